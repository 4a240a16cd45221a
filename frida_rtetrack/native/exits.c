/*
 * The last look at the heap when the program ends by itself (--verify, --leak-check=lost), on the thread that ends it. Frida would tell the
 * agent, by an exit monitor that makes forked children spin for ever: this does nothing in a child, neither in one of fork,
 * where `agent` reads as zeros, nor in one of vfork, which is another process in the same memory.
 */
#include "agent.h"

struct exits {
    void (*originals[3])(int); /* exit, _exit, abort */
};

STATE(struct exits, exits);

/* At the first of exit, _exit and abort. */
static void program_ends(void) {
    int *error = __errno_location(), saved = *error;
    if (!agent.on || (uint32_t) syscall(SYS_GETPID) != agent.pid) return;
    atomic_add(&agent.ending, 1);
    if (atomic_exchange(&agent.ended, 1) == 0 && heap_enter()) {
        wait_for_look();
        if (agent.dump_heaps != NULL) snapshot_take(agent.dump_heaps, FINAL_BASELINE, 0);
        heap_leave();
    }
    atomic_add(&agent.ending, (uint64_t) -1);
    *error = saved;
}

void hook_exit(int status) {
    program_ends();
    exits.originals[0](status);
}

void hook__exit(int status) {
    program_ends();
    exits.originals[1](status);
}

void hook_abort(int unused) {
    program_ends();
    exits.originals[2](unused);
}

/* A Frida probe, where a function cannot be redirected. */
void end_probe(void *context) {
    (void) context;
    program_ends();
}
