/* What a forked child does: it takes the session over as a process of its own (--follow-fork), or nothing at all. */

#ifndef MADV_DONTNEED
#define MADV_DONTNEED 4
#endif

/* What was copied of the parent's threads is nobody's here. */
static void forget_threads(void) {
    uint64_t own = (uint64_t) agent.threads + agent.to_own_threads;
    if (syscall(SYS_MADVISE, (long) own, (long) OWN_THREADS_BYTES, (long) MADV_DONTNEED) != 0)
        memset((void *) own, 0, OWN_THREADS_BYTES);
}

/*
 * In a forked child, where `agent` reads as zeros: takes the parent's state over as a process of its own, if children
 * are followed. 0: they are not, or the host has gone.
 */
static __attribute__((noinline)) int adopt_child(void) {
    uint64_t process;
    if (!fork_follow.on) return 0;
    while (atomic_exchange(&fork_follow.lock, 1)) cpu_relax(); /* the child's threads only, and for a moment */
    if (!agent.on && fork_follow.on) {
        process = atomic_add(&fork_follow.parent.header->processes_used, 1);
        if (process >= SESSION_MAX_PROCESSES) {
            fork_follow.on = 0;
        } else {
            uint64_t parent = fork_follow.parent.process;
            agent = fork_follow.parent;
            agent.on = 0;
            agent.pid = (uint32_t) syscall(SYS_GETPID);
            agent.process = (uint32_t) process;
            agent.label_lock = 0;
            agent.dump_heaps = NULL;
            forget_threads();
            tls_set(agent.thread_key, NULL); /* the forking thread's slot is the parent's */
            agent.header->processes[process].pid = agent.pid;
            agent.header->processes[process].reserved = parent + 1;
            publish_u32(&agent.header->processes[process].attached, 1);
            fork_follow.parent.process = agent.process; /* for its own children */
            publish_u32(&agent.recording, 1);
            publish_u32(&agent.on, 1);
        }
    }
    publish_u32(&fork_follow.lock, 0);
    return agent.on;
}

/* Whether this process is not tracked: nothing then but to call the original. */
#define OFF() (unlikely(!agent.on) && !adopt_child())

/* A forked child that sets EAL up has a heap of its own, at which it takes a last look itself (--verify). */
static void own_heap_begins(void) {
    if (fork_follow.on && agent.dump_heaps == NULL) agent.dump_heaps = fork_follow.parent.dump_heaps;
}

/* From now on (not) every forked child records into this session too. */
void agent_follow(int on) {
    publish_u32(&fork_follow.on, 0);
    fork_follow.parent = agent;
    publish_u32(&fork_follow.on, (uint32_t) on);
}
