/*
 * Signals that are sent. Frida handles SIGSEGV and the like in whatever it is in; one that no instruction caused (raise,
 * kill) it takes for nothing and returns: the program would run on where it should have ended. This handler comes
 * before Frida's, gives such a signal back where the program has the default action for it, and passes on all else.
 *
 * x86-64 only: it must be gone from the stack when Frida's handler runs, which may never return (siglongjmp).
 */
#if defined(RTETRACK_TARGET) && defined(__x86_64__)
#define SYS_RT_SIGACTION 13L
#define SYS_RT_TGSIGQUEUEINFO 297L
#define SIGNALS 32
#define SIGNAL_SET_BYTES 8L

struct kernel_action { /* of rt_sigaction(2) on x86-64 */
    void *handler;
    uint64_t flags;
    void *restorer;
    uint64_t mask;
};

struct faults { /* not wiped in a forked child: its handler must still reach Frida's */
    volatile uint32_t active;
    struct kernel_action before[SIGNALS];
};

STATE(struct faults, faults);

static const int FAULT_SIGNALS[] = {4, 5, 6, 7, 8, 11, 31}; /* SIGILL TRAP ABRT BUS FPE SEGV SYS: what Frida handles */

/* Gives the signal the default action and sends it to this thread once more, as it came. */
static void end_by(int signal, void *info) {
    struct kernel_action action;
    memset(&action, 0, sizeof action);
    syscall(SYS_RT_SIGACTION, (long) signal, &action, 0L, SIGNAL_SET_BYTES);
    syscall(SYS_RT_TGSIGQUEUEINFO, syscall(SYS_GETPID), syscall(SYS_GETTID), (long) signal, info);
}

static int was_sent(void *info) { return ((int *) info)[2] <= 0; /* si_code */ }

static int program_has_default(int signal) {
    struct signal_action program;
    int *error = __errno_location(), saved = *error;
    int got = sigaction(signal, NULL, &program); /* libc's, to which Frida tells what the program installed */
    *error = saved;
    return got == 0 && program.handler == HANDLER_DEFAULT;
}

/* The handler to go on with; NULL: the signal has been dealt with. */
__attribute__((used)) void *fault_next(int signal, void *info) {
    if (!faults.active || !was_sent(info) || !program_has_default(signal)) return faults.before[signal].handler;
    end_by(signal, info);
    return NULL;
}

/* A jump, not a call: no frame of ours may lie under Frida's handler. */
void fault_handler(int signal, void *info, void *context);
__asm__(
    ".text\n"
    ".globl fault_handler\n"
    "fault_handler:\n"
    "pushq %rdi\n"
    "pushq %rsi\n"
    "pushq %rdx\n"
    "call fault_next\n"
    "popq %rdx\n"
    "popq %rsi\n"
    "popq %rdi\n"
    "testq %rax, %rax\n"
    "jz 1f\n"
    "jmp *%rax\n"
    "1: ret\n");

void faults_start(void) {
    unsigned i;
    for (i = 0; i < sizeof FAULT_SIGNALS / sizeof *FAULT_SIGNALS; i++) {
        int signal = FAULT_SIGNALS[i];
        struct kernel_action ours, *before = &faults.before[signal];
        if (syscall(SYS_RT_SIGACTION, (long) signal, 0L, before, SIGNAL_SET_BYTES) != 0) continue;
        if (before->handler == HANDLER_DEFAULT || before->handler == HANDLER_IGNORE || !(before->flags & ACTION_SIGINFO)) {
            before->handler = NULL; /* not Frida's */
            continue;
        }
        ours = *before;
        ours.handler = (void *) fault_handler;
        syscall(SYS_RT_SIGACTION, (long) signal, &ours, 0L, SIGNAL_SET_BYTES);
    }
    publish_u32(&faults.active, 1);
}

void faults_stop(void) {
    unsigned i;
    publish_u32(&faults.active, 0);
    for (i = 0; i < sizeof FAULT_SIGNALS / sizeof *FAULT_SIGNALS; i++) {
        int signal = FAULT_SIGNALS[i];
        struct kernel_action now;
        if (faults.before[signal].handler == NULL) continue;
        if (syscall(SYS_RT_SIGACTION, (long) signal, 0L, &now, SIGNAL_SET_BYTES) == 0 && now.handler == (void *) fault_handler)
            syscall(SYS_RT_SIGACTION, (long) signal, &faults.before[signal], 0L, SIGNAL_SET_BYTES);
    }
}
#else
void faults_start(void) {}
void faults_stop(void) {}
#endif
