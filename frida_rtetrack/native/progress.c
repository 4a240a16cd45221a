/*
 * Whether the program's threads have moved on. What a thread was in the middle of when its functions' entries changed takes
 * it a microsecond of its own time; but on a machine with more work than processors it may get that much later.
 * On the agent's own thread.
 */

#define TASKS_FOLDER "/proc/self/task"
#define RUNNERS 4096 /* that are waited for; those beyond are not */
#define PROGRESS_LOOK_NS 1000000L
#define THREAD_CLOCK(tid) ((long) (int32_t) (~(uint32_t) (tid) << 3 | 6)) /* its processor time: CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED */
#define O_DIRECTORY_CLOEXEC 0x90000L

struct runner {
    uint32_t tid;
    uint64_t ran_ns; /* processor time when it was seen first */
};

static uint64_t thread_ran_ns(uint32_t tid) {
    int64_t time[2];
    return syscall(SYS_CLOCK_GETTIME, THREAD_CLOCK(tid), time) == 0 ? (uint64_t) time[0] * 1000000000 + (uint64_t) time[1] : ~0ULL;
}

/* R, S and so on (proc_pid_stat(5)); X for one that is gone. */
static char thread_state(uint32_t tid) {
    char path[64] = TASKS_FOLDER "/", text[64], digits[12];
    uint32_t length = sizeof TASKS_FOLDER, count = 0;
    long fd, got, i;
    for (; tid != 0; tid /= 10) digits[count++] = (char) ('0' + tid % 10);
    while (count > 0) path[length++] = digits[--count];
    memcpy(path + length, "/stat", 6);
    fd = syscall(SYS_OPENAT, (long) AT_FDCWD, path, 0x80000L /* O_CLOEXEC */, 0L);
    if (fd < 0) return 'X';
    got = syscall(SYS_READ, fd, text, (long) sizeof text);
    syscall(SYS_CLOSE, fd);
    for (i = got - 1; i > 0 && text[i] != ')'; i--) {} /* a name may have one, too: the last one ends it */
    return i > 0 && i + 2 < got ? text[i + 2] : 'X';
}

static int may_run(char state) { return state == 'R' || state == 'D'; }

/* The other threads that run, or wait for a processor: up to RUNNERS. */
static uint32_t find_runners(struct runner *runners) {
    char entries[2048];
    uint32_t found = 0, own = (uint32_t) syscall(SYS_GETTID);
    long got, at, fd = syscall(SYS_OPENAT, (long) AT_FDCWD, TASKS_FOLDER, O_DIRECTORY_CLOEXEC, 0L);
    if (fd < 0) return 0;
    while ((got = syscall(SYS_GETDENTS64, fd, entries, (long) sizeof entries)) > 0) {
        /* struct linux_dirent64: inode 8, offset 8, length 2, type 1, name */
        for (at = 0; at < got; at += *(uint16_t *) (entries + at + 16)) {
            const char *name = entries + at + 19;
            uint32_t tid = 0;
            for (; *name >= '0' && *name <= '9'; name++) tid = tid * 10 + (uint32_t) (*name - '0');
            if (tid == 0 || tid == own || found == RUNNERS || !may_run(thread_state(tid))) continue;
            runners[found].tid = tid;
            runners[found++].ran_ns = thread_ran_ns(tid);
        }
    }
    syscall(SYS_CLOSE, fd);
    return found;
}

/*
 * Waits until each thread that runs now has had `own_ns` of processor time more, or waits for something, or is gone; up to
 * `limit_ns`. Returns how many have not.
 */
uint64_t threads_move_on(uint64_t own_ns, uint64_t limit_ns) {
    uint64_t bytes = RUNNERS * sizeof(struct runner), begun = monotonic_ns();
    uint32_t left, i;
    struct runner *runners;
    long memory = syscall(SYS_MMAP, 0L, (long) bytes, 3L, 0x22L, -1L, 0L);
    if (memory < 0) return 1;
    runners = (struct runner *) memory;
    left = find_runners(runners);
    while (left > 0 && monotonic_ns() - begun < limit_ns) {
        int64_t pause[2] = {0, PROGRESS_LOOK_NS};
        syscall(SYS_NANOSLEEP, pause, 0L);
        for (i = left; i-- > 0;)
            if (thread_ran_ns(runners[i].tid) >= runners[i].ran_ns + own_ns || !may_run(thread_state(runners[i].tid)))
                runners[i] = runners[--left];
    }
    syscall(SYS_MUNMAP, memory, (long) bytes);
    return left;
}
