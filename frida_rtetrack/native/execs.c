/*
 * --follow-fork across execve: a probe at its entry, in the program and in the children that it forked. Whoever is about
 * to execute a program waits there until the host watches it, so that the new program is joined before it begins.
 *
 * The caller may be a child of vfork or posix_spawn that borrows its parent's memory and thread: system calls only.
 */
#include "agent.h"
#include "gum.h"

#define EXEC_LIMIT_NS 5000000000ULL
#define AT_CURRENT_FOLDER -100L
#define MAY_EXECUTE 1L

/* Waits until the host has seen to it that `pid` is watched; not longer than EXEC_LIMIT_NS, nor if the host is gone. */
static void wait_to_be_watched(struct session_header *header, uint32_t pid) {
    uint64_t until = monotonic_ns() + EXEC_LIMIT_NS, i;
    int64_t pause[2];
    pause[0] = 0;
    pause[1] = 1000000;
    for (i = 0; i < SESSION_EXECS; i++) {
        struct exec_entry *entry = &header->execs[i];
        if (atomic_claim(&entry->pid, pid) != 0) continue;
        publish_u32(&entry->state, EXEC_WAITING);
        while (*(volatile uint32_t *) &entry->state != EXEC_GO && monotonic_ns() < until && host_is_alive(header))
            syscall(SYS_NANOSLEEP, pause, 0L);
        publish_u32(&entry->state, EXEC_FREE);
        publish_u32(&entry->pid, 0);
        return;
    }
}

/* `path` as execve gets it. Nothing to do where the host wants no more programs, or there is none at `path`. */
static void exec_called(const char *path) {
    struct session_header *header = fork_follow.parent.header;
    int *error = __errno_location(), saved = *error;
    if (fork_follow.on && header->heap_owner == 0
        && syscall(SYS_FACCESSAT, AT_CURRENT_FOLDER, path, MAY_EXECUTE) == 0)
        wait_to_be_watched(header, (uint32_t) syscall(SYS_GETPID));
    *error = saved;
}

#ifdef RTETRACK_TARGET
struct execs {
    int (*original)(const char *path, char *const *arguments, char *const *environment);
    volatile uint64_t inside;
};

STATE(struct execs, execs);

/* In the place of execve. Not a listener, whose bookkeeping may keep a forked child waiting. */
int hook_execve(const char *path, char *const *arguments, char *const *environment) {
    atomic_add(&execs.inside, 1);
    exec_called(path);
    atomic_add(&execs.inside, (uint64_t) -1);
    return execs.original(path, arguments, environment);
}

int execs_inside(void) { return (int) execs.inside; }

/* A listener, where execve cannot be redirected. */
void exec_probe(GumInvocationContext *context) {
    exec_called((const char *) gum_invocation_context_get_nth_argument(context, 0));
}
#endif

/* Says that this process's DPDK is the one that is tracked. 0: another process's is. */
int agent_own_heap(void) {
    uint32_t me = agent.process + 1, owner = atomic_claim(&agent.header->heap_owner, me);
    return owner == 0 || owner == me;
}
