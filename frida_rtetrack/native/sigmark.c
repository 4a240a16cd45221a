/*
 * SIGRTMIN in the target: appends a mark to the event stream, so that the host writes a dump of the heap at exactly
 * that point. The program's own handler, installed before or after, runs too; a program that ignores the signal is left
 * alone; sigmark_stop puts back what was there.
 */
#include "gum.h"

struct signal_action { /* glibc's struct sigaction on 64-bit Linux */
    void *handler;
    uint64_t mask[16];
    int flags;
    void *restorer;
};

#define ACTION_SIGINFO 4
#define ACTION_RESTART 0x10000000
#define ACTION_RESETHAND ((int) 0x80000000)
#define HANDLER_DEFAULT ((void *) 0)
#define HANDLER_IGNORE ((void *) 1)

struct sigmark { /* not wiped in a forked child: the child's handler must still reach the program's */
    int signal;
    volatile uint32_t active, own_call;
    volatile uint64_t inside;
    struct signal_action program; /* what the program believes to be installed */
};

STATE(struct sigmark, sigmark);
extern int sigaction(int signal, const struct signal_action *action, struct signal_action *old);

static void sigmark_handler(int signal, void *info, void *context) {
    int *error = __errno_location(), saved = *error;
    void *handler = sigmark.program.handler;
    int flags = sigmark.program.flags;
    atomic_add(&sigmark.inside, 1);
    if (agent.on) agent_mark(MARK_SIGNAL, 0);
    *error = saved;
    if (handler != HANDLER_DEFAULT && handler != HANDLER_IGNORE) {
        if (flags & ACTION_RESETHAND) sigmark.program.handler = HANDLER_DEFAULT;
        if (flags & ACTION_SIGINFO) ((void (*)(int, void *, void *)) handler)(signal, info, context);
        else ((void (*)(int)) handler)(signal);
    }
    atomic_add(&sigmark.inside, (uint64_t) -1);
}

/* The action that stands in for the program's. */
static void wrap_action(const struct signal_action *program, struct signal_action *wrapper) {
    *wrapper = *program;
    wrapper->handler = (void *) sigmark_handler;
    wrapper->flags = (program->flags | ACTION_SIGINFO) & ~ACTION_RESETHAND;
    if (program->handler == HANDLER_DEFAULT) wrapper->flags |= ACTION_RESTART;
}

static int own_sigaction(const struct signal_action *action, struct signal_action *old) {
    int result;
    sigmark.own_call = (uint32_t) syscall(SYS_GETTID);
    result = sigaction(sigmark.signal, action, old);
    sigmark.own_call = 0;
    return result;
}

/* 1: installed, 0: the program ignores the signal, -1: sigaction failed. */
int sigmark_start(int signal) {
    struct signal_action wrapper;
    sigmark.signal = signal;
    if (own_sigaction(NULL, &sigmark.program) != 0) return -1;
    publish_u32(&sigmark.active, 1);
    if (sigmark.program.handler == HANDLER_IGNORE) return 0;
    wrap_action(&sigmark.program, &wrapper);
    return own_sigaction(&wrapper, NULL) == 0 ? 1 : -1;
}

void sigmark_stop(void) {
    struct signal_action now;
    if (!sigmark.active) return;
    publish_u32(&sigmark.active, 0);
    if (own_sigaction(NULL, &now) == 0 && now.handler == (void *) sigmark_handler) own_sigaction(&sigmark.program, NULL);
}

int sigmark_inside(void) { return (int) sigmark.inside; }

/* A call of libc's sigaction: what the program installs later is wrapped in the same way, and it never sees ours. */
struct sigaction_call {
    int ours; /* the call is about the mark's signal */
    struct signal_action *old;
    struct signal_action program_before, program_after, wrapper;
};

/* Returns the action to install in place of `action`. */
static const struct signal_action *sigaction_begins(struct sigaction_call *call, int signal,
                                                    const struct signal_action *action, struct signal_action *old) {
    call->ours = 0;
    if (!sigmark.active || signal != sigmark.signal) return action;
    if (sigmark.own_call != 0 && sigmark.own_call == (uint32_t) syscall(SYS_GETTID)) return action;
    call->ours = 1;
    call->old = old;
    call->program_before = call->program_after = sigmark.program;
    if (action == NULL) return action;
    call->program_after = *action;
    if (action->handler == HANDLER_IGNORE) return action;
    sigmark.program = *action; /* before the kernel can deliver to the wrapper */
    wrap_action(action, &call->wrapper);
    return &call->wrapper;
}

static void sigaction_ended(struct sigaction_call *call, int result) {
    if (!call->ours) return;
    if (result != 0) {
        sigmark.program = call->program_before;
        return;
    }
    sigmark.program = call->program_after;
    if (call->old != NULL) *call->old = call->program_before;
}

#ifdef RTETRACK_TARGET
/* Listeners, where sigaction cannot be redirected (sigactions.c). */
void sigaction_enter(GumInvocationContext *context) {
    const struct signal_action *action = gum_invocation_context_get_nth_argument(context, 1), *wrapped;
    wrapped = sigaction_begins(INVOCATION_DATA(context, struct sigaction_call),
                               (int) (uint64_t) gum_invocation_context_get_nth_argument(context, 0), action,
                               gum_invocation_context_get_nth_argument(context, 2));
    if (wrapped != action) gum_invocation_context_replace_nth_argument(context, 1, (void *) wrapped);
}

void sigaction_leave(GumInvocationContext *context) {
    sigaction_ended(INVOCATION_DATA(context, struct sigaction_call),
                    (int) (uint64_t) gum_invocation_context_get_return_value(context));
}
#endif
