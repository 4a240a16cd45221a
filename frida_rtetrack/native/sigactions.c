/*
 * What the program calls in place of libc's sigaction and signal, and of what the dynamic linker calls when it has loaded
 * something. In the process that is tracked they go on to Frida's own hooks, which keep a table of who is in which under a
 * lock. A forked child may have that lock taken by a thread that it does not have, and would spin for ever: it calls the
 * kernel, or nobody. x86-64 only.
 */
#if defined(RTETRACK_TARGET) && defined(__x86_64__)
#define KERNEL_RESTORER 0x04000000UL /* SA_RESTORER */
#define LAST_SIGNAL 64
#define INVALID 22 /* EINVAL */

struct sigactions { /* not wiped in a forked child */
    int (*original)(int signal, const struct signal_action *action, struct signal_action *old);
    void *(*original_signal)(int signal, void *handler);
    void (*original_loaded)(void);
    uint32_t pid;
    struct kernel_action program[SIGNALS]; /* of FAULT_SIGNALS, which Frida handles: what the program believes */
};

STATE(struct sigactions, sigactions);

/* What a handler that a child installs returns to: rt_sigreturn(2), in the very bytes that debuggers know. */
void child_restorer(void);
__asm__(
    ".text\n"
    ".globl child_restorer\n"
    "child_restorer:\n"
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05\n");

static void note_action(int signal, const struct signal_action *action) {
    if (signal < 1 || signal >= SIGNALS) return;
    sigactions.program[signal].handler = action->handler;
    sigactions.program[signal].flags = (uint64_t) (uint32_t) action->flags;
    sigactions.program[signal].mask = action->mask[0];
}

void sigactions_start(void) {
    struct signal_action now;
    unsigned i;
    sigactions.pid = (uint32_t) syscall(SYS_GETPID);
    for (i = 0; i < sizeof FAULT_SIGNALS / sizeof *FAULT_SIGNALS; i++)
        if (sigaction(FAULT_SIGNALS[i], NULL, &now) == 0) note_action(FAULT_SIGNALS[i], &now);
}

static int in_child(void) { return (uint32_t) syscall(SYS_GETPID) != sigactions.pid; }

/* What the program believes to be there, where the kernel has Frida's handler or ours. */
static void tell_action(int signal, const struct kernel_action *there, struct signal_action *told) {
    int frida = signal < SIGNALS && faults.before[signal].handler != NULL
        && (there->handler == (void *) fault_handler || there->handler == faults.before[signal].handler);
    const struct kernel_action *action = frida ? &sigactions.program[signal] : there;
    memset(told, 0, sizeof *told);
    told->handler = action->handler;
    told->mask[0] = action->mask;
    told->flags = (int) (action->flags & ~KERNEL_RESTORER);
    if (signal == sigmark.signal && there->handler == (void *) sigmark_handler) *told = sigmark.program;
}

static int kernel_sigaction(int signal, const struct signal_action *action, struct signal_action *old) {
    struct kernel_action now, before;
    if (signal < 1 || signal > LAST_SIGNAL || signal == 32 || signal == 33) { /* the C library's own */
        *__errno_location() = INVALID;
        return -1;
    }
    if (action != NULL) {
        now.handler = action->handler;
        now.flags = (uint64_t) (uint32_t) action->flags | KERNEL_RESTORER;
        now.restorer = (void *) child_restorer;
        now.mask = action->mask[0];
    }
    if (syscall(SYS_RT_SIGACTION, (long) signal, action != NULL ? &now : NULL, &before, SIGNAL_SET_BYTES) != 0) return -1;
    if (old != NULL) tell_action(signal, &before, old);
    return 0;
}

int hook_sigaction(int signal, const struct signal_action *action, struct signal_action *old) {
    struct sigaction_call call;
    int child = in_child(), result;
    const struct signal_action *installed = action;
    if (!child) atomic_add(&sigmark.inside, 1);
    call.ours = 0;
    /* A child of vfork borrows this memory: what it installs is its own. */
    if (agent.on && agent.pid == (uint32_t) syscall(SYS_GETPID)) installed = sigaction_begins(&call, signal, action, old);
    result = child ? kernel_sigaction(signal, installed, old) : sigactions.original(signal, installed, old);
    sigaction_ended(&call, result);
    if (!child && result == 0 && action != NULL) note_action(signal, action);
    if (!child) atomic_add(&sigmark.inside, (uint64_t) -1);
    return result;
}

void *hook_signal(int signal, void *handler) {
    struct signal_action action, old;
    void *before;
    memset(&action, 0, sizeof action);
    action.handler = handler;
    action.flags = ACTION_RESTART;
    if (in_child()) {
        if (signal >= 1 && signal <= LAST_SIGNAL) action.mask[0] = 1UL << (signal - 1);
        return kernel_sigaction(signal, &action, &old) == 0 ? old.handler : (void *) -1;
    }
    atomic_add(&sigmark.inside, 1);
    before = sigactions.original_signal(signal, handler);
    if (before != (void *) -1) note_action(signal, &action);
    atomic_add(&sigmark.inside, (uint64_t) -1);
    return before;
}

/* _dl_debug_state, which does nothing by itself: debuggers, and Frida, stop there. */
void hook__dl_debug_state(void) {
    if (in_child()) return;
    sigactions.original_loaded();
}
#endif
