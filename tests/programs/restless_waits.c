/* A part of restless.c: what its main thread waits in, one after the other. */

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
