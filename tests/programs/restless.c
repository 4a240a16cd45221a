/*
 * Never at rest, for tests of attaching: `restless COUNTERS MAIN [OTHER...]`. MAIN is what the main thread does without
 * pause: compute, malloc, fork, dlopen, wait. Each OTHER is a thread: threads (created and joined), forks (fork, vfork and
 * posix_spawn in turn), spawns (vfork, posix_spawn, system, popen), rare forks (_Fork, forkpty, daemon, a child that loads,
 * takes signals, allocates, forks and executes), loads (dlopen, dlclose; pauses of 1 ms), malloc, signals (SIGALRM every
 * 2 ms, SA_RESTART).
 *
 * Every actor has a slot in the file COUNTERS, which the test maps: how often it came round, and how often something was
 * not as it must be, with a sentence about the last time. Prints "ready".
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "eal.h"

#define SLOTS 8
#define PATTERN_BYTES (64 * 32 + 64)
#define GENERAL_CHANGED "general registers, flags or the red zone changed"

static struct slot {
    char name[32];
    _Atomic uint64_t rounds, wrong;
    char what[208];
} *slots;

static char library[256];
static int loads; /* somebody loads libraries */
extern char **environ;

int hold_registers_sse(const void *pattern, void *after, long spins);
int hold_registers_avx(const void *pattern, void *after, long spins);
int hold_registers_avx512(const void *pattern, void *after, long spins);

static void wrong(struct slot *slot, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(slot->what, sizeof slot->what, format, arguments);
    va_end(arguments);
    slot->wrong++;
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double) now.tv_sec * 1e3 + (double) now.tv_nsec / 1e6;
}

/* ---- computing, with every register in use ---- */

static void hold_x87(struct slot *slot, long spins) {
    unsigned short control = 0x067f, control_after; /* single precision, rounding down */
    unsigned mxcsr = 0x3f80, mxcsr_after;           /* rounding up */
    long double in[8], out[8];
    for (int i = 0; i < 8; i++) in[i] = 1.0L / (i + 3);
    __asm__ volatile(
        "fldcw %[control]\n\t ldmxcsr %[mxcsr]\n\t"
        "fldt (%[in])\n\t fldt 16(%[in])\n\t fldt 32(%[in])\n\t fldt 48(%[in])\n\t"
        "fldt 64(%[in])\n\t fldt 80(%[in])\n\t fldt 96(%[in])\n\t fldt 112(%[in])\n\t"
        "1: dec %[spins]\n\t jnz 1b\n\t"
        "fstpt 112(%[out])\n\t fstpt 96(%[out])\n\t fstpt 80(%[out])\n\t fstpt 64(%[out])\n\t"
        "fstpt 48(%[out])\n\t fstpt 32(%[out])\n\t fstpt 16(%[out])\n\t fstpt (%[out])\n\t"
        "fnstcw %[control_after]\n\t stmxcsr %[mxcsr_after]"
        : [spins] "+r"(spins), [control_after] "=m"(control_after), [mxcsr_after] "=m"(mxcsr_after)
        : [in] "r"(in), [out] "r"(out), [control] "m"(control), [mxcsr] "m"(mxcsr)
        : "memory", "cc");
    for (int i = 0; i < 8; i++)
        if (memcmp(&in[i], &out[i], 10) != 0) wrong(slot, "x87 register %d changed", i);
    if (control_after != control) wrong(slot, "the x87 control word changed to %x", control_after);
    if ((mxcsr_after & 0xffc0) != (mxcsr & 0xffc0)) wrong(slot, "MXCSR changed to %x", mxcsr_after);
    control = 0x037f;
    mxcsr = 0x1f80;
    __asm__ volatile("fninit\n\t fldcw %0\n\t ldmxcsr %1" : : "m"(control), "m"(mxcsr));
}

static void compute(struct slot *slot) {
    static uint8_t pattern[PATTERN_BYTES], after[PATTERN_BYTES];
    int avx512 = __builtin_cpu_supports("avx512bw"), avx = __builtin_cpu_supports("avx");
    for (unsigned i = 0; i < sizeof pattern; i++) pattern[i] = (uint8_t) (i * 37 + slot->rounds);
    int (*hold[])(const void *, void *, long) = {hold_registers_sse, avx ? hold_registers_avx : hold_registers_sse,
                                                 avx512 ? hold_registers_avx512 : hold_registers_sse};
    const size_t used[] = {16 * 16, avx ? 32 * 16 : 16 * 16, avx512 ? PATTERN_BYTES - 8 : 16 * 16};
    for (int kind = 0; kind < 3; kind++) {
        memset(after, 0, sizeof after);
        if (hold[kind](pattern, after, 200000) != 0) wrong(slot, GENERAL_CHANGED);
        size_t vectors = used[kind] < 64 * 32 ? used[kind] : 64 * 32;
        if (memcmp(pattern, after, vectors) != 0) wrong(slot, "vector registers changed (%d)", kind);
        if (used[kind] > vectors && memcmp(pattern, after + 64 * 32, 56) != 0) wrong(slot, "mask registers changed");
    }
    hold_x87(slot, 200000);
}

/* ---- the heap, processes, threads, libraries ---- */

static void use_malloc(struct slot *slot) {
    void *blocks[64];
    for (int i = 0; i < 64; i++) blocks[i] = malloc((size_t) (i * 97 % 5000 + (i % 16 == 0 ? 200000 : 1)));
    for (int i = 0; i < 64; i++) {
        if (blocks[i] == NULL) wrong(slot, "malloc failed");
        free(blocks[i]);
    }
    rte_free(rte_malloc("restless", 100, 0));
}

static void reap(struct slot *slot, pid_t child, int expected, const char *how) {
    int status = -1;
    pid_t reaped;
    if (child <= 0) {
        wrong(slot, "%s: errno %d", how, errno);
        return;
    }
    while ((reaped = waitpid(child, &status, 0)) < 0 && errno == EINTR) {}
    if (reaped != child || !WIFEXITED(status) || WEXITSTATUS(status) != expected)
        wrong(slot, "%s: waitpid gave %d, status %x, errno %d", how, reaped, status, errno);
}

/* What borrows the memory and waits until the child has executed something or ended. */
static void spawn_in_turn(struct slot *slot) {
    static char *const nothing[] = {"true", NULL};
    FILE *pipe;
    pid_t child = vfork();
    if (child == 0) _exit(9);
    reap(slot, child, 9, "vfork");
    child = vfork();
    if (child == 0) {
        execv("/bin/true", nothing);
        _exit(127);
    }
    reap(slot, child, 0, "vfork, exec");
    child = 0;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, nothing, environ) != 0) wrong(slot, "posix_spawn: errno %d", errno);
    reap(slot, child, 0, "posix_spawn");
    if (system("exit 5") != 5 << 8) wrong(slot, "system: errno %d", errno);
    pipe = popen("exit 6", "r");
    if (pipe == NULL || pclose(pipe) != 6 << 8) wrong(slot, "popen: errno %d", errno);
}

/* A daemon that ends at once; the child waits for what it began. */
static void become_daemon(void) {
    if (daemon(1, 1) != 0) _exit(99);
    _exit(0);
}

static void fork_otherwise(struct slot *slot) {
    int terminal, status;
    pid_t child = _Fork();
    if (child == 0) _exit(10);
    reap(slot, child, 10, "_Fork");
    child = forkpty(&terminal, NULL, NULL, NULL);
    if (child == 0) _exit(11);
    reap(slot, child, 11, "forkpty");
    if (child > 0) close(terminal);
    child = fork();
    if (child == 0) become_daemon(); /* daemon ends the child that called it */
    reap(slot, child, 0, "fork, daemon");
    child = fork();
    if (child == 0) { /* the child uses what attaching may have changed, and forks itself */
        void *handle = dlopen("libm.so.6", RTLD_NOW);
        pid_t grandchild;
        struct sigaction action = {.sa_handler = SIG_DFL};
        if (handle == NULL || dlclose(handle) != 0) _exit(20);
        if (sigaction(SIGUSR2, &action, NULL) != 0 || sigaction(SIGSEGV, NULL, &action) != 0) _exit(21);
        rte_free(rte_malloc("in a child", 100, 0));
        grandchild = fork();
        if (grandchild == 0) execl("/bin/true", "true", NULL);
        if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild || status != 0) _exit(22);
        _exit(12);
    }
    reap(slot, child, 12, "fork, dlopen, sigaction, fork, exec");
}

static void fork_in_turn(struct slot *slot) {
    static char *const nothing[] = {"true", NULL};
    pid_t child = fork();
    if (child == 0) _exit(7);
    reap(slot, child, 7, "fork");
    if (!loads) { /* else glibc itself can wait for ever in the child's exit: another thread was in dlopen at the fork */
        child = fork();
        if (child == 0) {
            free(malloc(100));
            exit(8);
        }
        reap(slot, child, 8, "fork, exit");
    }
    child = vfork();
    if (child == 0) _exit(9);
    reap(slot, child, 9, "vfork");
    child = 0;
    if (posix_spawn(&child, "/bin/true", NULL, NULL, nothing, environ) != 0) wrong(slot, "posix_spawn: errno %d", errno);
    reap(slot, child, 0, "posix_spawn");
}

static void load(struct slot *slot) {
    void *handle = dlopen(library, RTLD_NOW);
    if (handle == NULL || dlsym(handle, "plugin_allocate") == NULL) wrong(slot, "dlopen failed: %s", dlerror());
    if (handle != NULL) dlclose(handle);
}

static void *nothing_much(void *argument) {
    free(malloc(1000));
    return argument;
}

static void create_threads(struct slot *slot) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, nothing_much, slot) != 0) wrong(slot, "pthread_create failed");
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}

/* ---- waiting ---- */

#define SHORT_MS 12
#define SLACK_MS 2000 /* other work on the machine */

static int pipe_ends[2], sockets[2], pair[2], epoll;
static sem_t semaphore, posted;
static int semaphores, messages, signalled;
static pthread_cond_t condition_without_limit = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile sig_atomic_t alarms;

static void on_alarm(int number) {
    (void) number;
    alarms++;
}

/* A call that must return `expected` (with errno `error` if that is -1) after `ms`. errno is left alone by what succeeds. */
#define EXPECT(call, expected, error, ms)                                                                              \
    do {                                                                                                               \
        double begun = now_ms(), took;                                                                                 \
        errno = 4711;                                                                                                  \
        long got = (long) (call);                                                                                      \
        int number = errno;                                                                                            \
        took = now_ms() - begun;                                                                                       \
        if (got != (expected)) wrong(slot, "%s gave %ld, errno %d", #call, got, number);                               \
        else if (number != ((expected) == -1 ? (error) : 4711)) wrong(slot, "%s: errno %d", #call, number);            \
        else if (took < (ms) - 1.5 || took > (ms) + SLACK_MS) wrong(slot, "%s took %.1f ms", #call, took);             \
        slot->rounds++;                                                                                                \
    } while (0)

static struct timespec in_ms(clockid_t clock, long ms) {
    struct timespec at;
    clock_gettime(clock, &at);
    at.tv_nsec += ms * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

/* And again: one that comes before the wait has begun, since the machine is busy, would be missed. */
static void alarm_in(long us) {
    struct itimerval soon = {{0, us}, {0, us}};
    setitimer(ITIMER_REAL, &soon, NULL);
}

static void wait_for_time(struct slot *slot) {
    struct timespec brief = {0, SHORT_MS * 1000000}, left = {5, 5}, at;
    struct timeval brief_us = {0, SHORT_MS * 1000};
    struct epoll_event event;
    struct sembuf down = {0, -1, 0};
    sigset_t usr1;
    char byte;
    struct iovec room = {&byte, 1};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1};
    static uint32_t futex;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    EXPECT(nanosleep(&brief, &left), 0, 0, SHORT_MS);
    at = in_ms(CLOCK_MONOTONIC, SHORT_MS);
    EXPECT(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL), 0, 0, SHORT_MS);
    EXPECT(clock_nanosleep(CLOCK_MONOTONIC, 0, &brief, NULL), 0, 0, SHORT_MS);
    EXPECT(poll(NULL, 0, SHORT_MS), 0, 0, SHORT_MS);
    EXPECT(ppoll(NULL, 0, &brief, &usr1), 0, 0, SHORT_MS);
    EXPECT(select(0, NULL, NULL, NULL, &brief_us), 0, 0, SHORT_MS);
    EXPECT(epoll_wait(epoll, &event, 1, SHORT_MS), 0, 0, SHORT_MS);
    EXPECT(epoll_pwait(epoll, &event, 1, SHORT_MS, &usr1), 0, 0, SHORT_MS);
    at = in_ms(CLOCK_REALTIME, SHORT_MS);
    EXPECT(sem_timedwait(&semaphore, &at), -1, ETIMEDOUT, SHORT_MS);
    at = in_ms(CLOCK_REALTIME, SHORT_MS);
    pthread_mutex_lock(&mutex);
    EXPECT(pthread_cond_timedwait(&condition, &mutex, &at), ETIMEDOUT, 0, SHORT_MS);
    pthread_mutex_unlock(&mutex);
    EXPECT(sigtimedwait(&usr1, NULL, &brief), -1, EAGAIN, SHORT_MS);
    EXPECT(semtimedop(semaphores, &down, 1, &brief), -1, EAGAIN, SHORT_MS);
    EXPECT(recv(sockets[0], &byte, 1, 0), -1, EAGAIN, SHORT_MS); /* SO_RCVTIMEO */
    EXPECT(recvmsg(sockets[0], &message, 0), -1, EAGAIN, SHORT_MS);
    EXPECT(pselect(0, NULL, NULL, NULL, &brief, &usr1), 0, 0, SHORT_MS);
    EXPECT(syscall(SYS_futex, &futex, FUTEX_WAIT_PRIVATE, 0, &brief, NULL, 0), -1, ETIMEDOUT, SHORT_MS);
    at = in_ms(CLOCK_MONOTONIC, SHORT_MS);
    EXPECT(syscall(SYS_futex, &futex, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, NULL, FUTEX_BITSET_MATCH_ANY), -1, ETIMEDOUT, SHORT_MS);
}

static void *feed(void *argument) {
    (void) argument;
    for (;;) {
        usleep(SHORT_MS * 1000);
        if (write(pipe_ends[1], "x", 1) != 1) return NULL;
        if (sem_post(&posted) != 0) return NULL;
        pthread_mutex_lock(&mutex);
        signalled++;
        pthread_cond_signal(&condition_without_limit);
        pthread_mutex_unlock(&mutex);
        msgsnd(messages, &(struct {long type; char text;}) {1, 'x'}, 1, IPC_NOWAIT);
    }
}

static void wait_for_things(struct slot *slot) {
    struct sigaction interrupting = {.sa_handler = on_alarm}, restarting = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct timespec brief = {0, SHORT_MS * 1000000}, long_time = {3, 0}, left;
    struct pollfd readable = {pipe_ends[0], POLLIN, 0};
    struct sembuf down = {0, -1, 0};
    struct {long type; char text;} message;
    sigset_t alarm_only, before;
    siginfo_t ended;
    char byte;
    int number, status;
    pid_t child;
    EXPECT(read(pipe_ends[0], &byte, 1), 1, 0, 0);
    EXPECT(poll(&readable, 1, -1), 1, 0, 0);
    child = fork();
    if (child == 0) {
        nanosleep(&brief, NULL);
        _exit(3);
    }
    EXPECT(waitpid(child, &status, 0), child, 0, 0);
    sigemptyset(&alarm_only);
    sigaddset(&alarm_only, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarm_only, &before);
    alarm_in(SHORT_MS * 1000);
    EXPECT((status = sigwait(&alarm_only, &number), errno = 4711, status), 0, 0, 0); /* glibc itself sets errno there */
    sigaction(SIGALRM, &interrupting, NULL);
    alarm_in(SHORT_MS * 1000);
    EXPECT(sigsuspend(&before), -1, EINTR, 0);
    sigprocmask(SIG_SETMASK, &before, NULL);
    alarm_in(SHORT_MS * 1000);
    EXPECT(pause(), -1, EINTR, 0);
    alarm_in(SHORT_MS * 1000);
    EXPECT(nanosleep(&long_time, &left), -1, EINTR, 0);
    if (left.tv_sec < 1) wrong(slot, "nanosleep left %ld s", (long) left.tv_sec);
    alarm_in(SHORT_MS * 1000);
    EXPECT(epoll_wait(epoll, &(struct epoll_event) {0}, 1, -1), -1, EINTR, 0);
    sigaction(SIGALRM, &restarting, NULL);
    alarm_in(SHORT_MS * 500);
    EXPECT(read(pipe_ends[0], &byte, 1), 1, 0, 0);
    while (sem_trywait(&posted) == 0) {}
    EXPECT(sem_wait(&posted), 0, 0, 0);
    child = fork();
    if (child == 0) {
        nanosleep(&brief, NULL);
        _exit(3);
    }
    EXPECT(waitid(P_PID, (id_t) child, &ended, WEXITED), 0, 0, 0);
    alarm_in(0);
    while (sem_trywait(&posted) == 0) {}
    EXPECT(sem_wait(&posted), 0, 0, 0);
    pthread_mutex_lock(&mutex);
    for (signalled = 0; signalled == 0;) pthread_cond_wait(&condition_without_limit, &mutex);
    pthread_mutex_unlock(&mutex);
    EXPECT(msgrcv(messages, &message, 1, 0, 0), 1, 0, 0);
    sigaction(SIGALRM, &interrupting, NULL);
    alarm_in(SHORT_MS * 1000);
    EXPECT(sem_wait(&semaphore), -1, EINTR, 0);
    alarm_in(SHORT_MS * 1000);
    EXPECT(recv(pair[0], &byte, 1, 0), -1, EINTR, 0);
    alarm_in(SHORT_MS * 1000);
    EXPECT(semop(semaphores, &down, 1), -1, EINTR, 0);
    sigaction(SIGALRM, &restarting, NULL);
    alarm_in(SHORT_MS * 1000);
    EXPECT(poll(NULL, 0, -1), -1, EINTR, 0); /* SA_RESTART or not */
    alarm_in(0);
}

static void wait_in_turn(struct slot *slot) {
    wait_for_time(slot);
    wait_for_things(slot);
}

static void remove_semaphores(void) {
    semctl(semaphores, 0, IPC_RMID);
    msgctl(messages, IPC_RMID, NULL);
}

static void leave(int number) {
    remove_semaphores();
    _exit(128 + number);
}

static void prepare_waits(void) {
    struct timeval limit = {0, SHORT_MS * 1000};
    pthread_t feeder;
    if (pipe(pipe_ends) != 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets) != 0) exit(73);
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) != 0) exit(73);
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    epoll = epoll_create1(0);
    sem_init(&semaphore, 0, 0);
    sem_init(&posted, 0, 0);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    messages = msgget(IPC_PRIVATE, 0600);
    sigaction(SIGTERM, &(struct sigaction) {.sa_handler = leave}, NULL);
    pthread_create(&feeder, NULL, feed, NULL);
}

/* ---- who does what ---- */

static const struct deed {
    const char *name;
    void (*once)(struct slot *slot);
    unsigned pause_us;
} deeds[] = {
    {"compute", compute, 0},         {"malloc", use_malloc, 0}, {"fork", fork_in_turn, 0},  {"dlopen", load, 0},
    {"threads", create_threads, 0},  {"forks", fork_in_turn, 0}, {"loads", load, 1000},      {"wait", wait_in_turn, 0},
    {"spawns", spawn_in_turn, 0},    {"rare forks", fork_otherwise, 0},
};

static void *act(void *argument) {
    struct slot *slot = argument;
    for (unsigned i = 0; i < sizeof deeds / sizeof *deeds; i++)
        if (strcmp(deeds[i].name, slot->name) == 0)
            for (;;) {
                deeds[i].once(slot);
                slot->rounds++;
                if (deeds[i].pause_us != 0) usleep(deeds[i].pause_us);
            }
    fprintf(stderr, "nobody can do %s\n", slot->name);
    exit(64);
}

int main(int argc, char **argv) {
    struct sigaction restarting = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 2000}, {0, 2000}};
    int file, actors = 0;
    if (argc < 3 || argc - 2 > SLOTS) return 64;
    snprintf(library, sizeof library, "%.*splugin.so", (int) (strrchr(argv[0], '/') - argv[0] + 1), argv[0]);
    file = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, SLOTS * sizeof *slots) != 0) return 66;
    slots = mmap(NULL, SLOTS * sizeof *slots, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    start_eal();
    for (int i = 2; i < argc; i++) {
        snprintf(slots[i - 2].name, sizeof slots->name, "%s", argv[i]);
        loads |= strcmp(argv[i], "loads") == 0;
    }
    sigaction(SIGALRM, &restarting, NULL);
    if (strcmp(argv[2], "wait") == 0) prepare_waits();
    for (int i = 3; i < argc; i++) {
        pthread_t thread;
        if (strcmp(argv[i], "signals") == 0) setitimer(ITIMER_REAL, &often, NULL);
        else if (pthread_create(&thread, NULL, act, &slots[i - 2]) != 0) return 71;
        actors++;
    }
    printf("ready\n");
    fflush(stdout);
    act(&slots[0]);
    return actors;
}
