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

#include "restless_waits.c"

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
