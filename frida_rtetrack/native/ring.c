/* The event ring: claim a slot, fill it in, publish it; and what to do while there is no room. */

#define RING_MARGIN 1024           /* events: so near to what it knows to be the end of the room a thread looks where that is now */
#define HEARTBEAT_LIMIT_NS 2000000000LL

static int host_is_alive(struct session_header *header) {
    int64_t ago = (int64_t) (monotonic_ns() - *(volatile uint64_t *) &header->heartbeat_ns);
    return ago < HEARTBEAT_LIMIT_NS && ago > -HEARTBEAT_LIMIT_NS; /* none is to come: another process wrote that */
}

/* Waits until the ring has room again. 0: the host is not there (any more); the event must be dropped. */
static __attribute__((noinline)) int wait_for_room(uint64_t needed_tail) {
    struct session_header *header = agent.header;
    int64_t pause[2];
    int counted = 0;
    pause[0] = 0;
    pause[1] = 50000;
    for (;;) {
        agent.tail_seen = *(volatile uint64_t *) &header->tail;
        if ((int64_t) (agent.tail_seen - needed_tail) >= 0) return 1;
        if (!counted) atomic_add(&header->waits, 1);
        counted = 1;
        if (agent.abandoned) return 0;
        if (!host_is_alive(header)) {
            if (agent.process != agent.module_process) agent.recording = 0, agent.abandoned = 1; /* a followed child has nobody to unhook it */
            return 0;
        }
        syscall(SYS_NANOSLEEP, pause, 0L);
    }
}

/* The index from which on there is no room, as far as is known now. 0: the event must be dropped, and is counted. */
static __attribute__((noinline)) uint64_t look_for_room(void) {
    struct session_header *header = agent.header;
    uint64_t index = *(volatile uint64_t *) &header->head + RING_MARGIN;
    agent.tail_seen = *(volatile uint64_t *) &header->tail;
    if (index >= agent.tail_seen + agent.ring_capacity && !wait_for_room(index + 1 - agent.ring_capacity)) {
        atomic_add(&header->lost, 1);
        return 0;
    }
    return agent.tail_seen + agent.ring_capacity;
}

/*
 * Claims the next slot of the ring, and says that the thread is writing it; NULL: dropped and counted. `commit` is what
 * event->commit must become once the slot is filled in; then `appending` must be put back. Whether there is room is told
 * by this thread's last slot: `head` changes hands with every event, and to look at it first would have it do so twice.
 */
INLINE struct event *claim(struct thread_slot *thread, uint32_t *commit) {
    struct own_thread *own = own_of(thread);
    uint64_t room = agent.tail_seen + agent.ring_capacity, index;
    if (unlikely(own->last_index + RING_MARGIN >= room) && (room = look_for_room()) == 0) return NULL;
    thread->appending = ++own->appending;
    index = atomic_add(&agent.header->head, 1);
    own->last_index = index;
    /* The others have filled the ring since its last one: only now must this one wait, for its own slot. */
    if (unlikely(index >= room) && !wait_for_room(index + 1 - agent.ring_capacity)) {
        thread->appending = --own->appending; /* the slot stays uncommitted: the reader skips and counts it */
        return NULL;
    }
    *commit = (uint32_t) ((index >> agent.ring_shift) + 1) & 0xffff;
    return &agent.ring[index & agent.ring_mask];
}

/* Appends one event of the time `units`. `what` is its kind, api << 8 and socket << 16. 0: dropped and counted. */
INLINE int append_at(struct thread_slot *thread, uint64_t units, uint32_t what, uint64_t address, uint64_t size, uint32_t stack,
                     uint32_t label) {
    uint32_t commit;
    volatile struct event *event = claim(thread, &commit);
    if (unlikely(event == NULL)) return 0;
    *(volatile uint32_t *) &event->kind = what | (uint32_t) (units >> 16) << 24;
    event->address = address;
    if (unlikely(size >> EVENT_SIZE_BITS)) size = (1ULL << EVENT_SIZE_BITS) - 1;
    event->size_and_thread = size | thread_number(thread) << EVENT_SIZE_BITS;
    *(volatile uint64_t *) &event->stack = stack | (uint64_t) label << 32;
    publish_u32((volatile uint32_t *) &event->commit, commit | (uint32_t) units << 16);
    thread->appending = --own_of(thread)->appending;
    return 1;
}

#define WHAT(kind, api, socket) ((uint32_t) (kind) | (uint32_t) (api) << 8 | ((uint32_t) (socket) & 0xff) << 16)

/*
 * Says what ticks are in ns from here on. It counts as said once the mark has its place: whoever finds that it was goes
 * behind it. Dropped it is not tried again soon: the one before holds for minutes.
 */
static __attribute__((noinline)) void note_clock(struct thread_slot *thread) {
    struct clock_reading now = read_clock();
    uint64_t units = now.ticks >> EVENT_TIME_SHIFT;
    append_at(thread, units, WHAT(EVENT_MARK, MARK_CLOCK, 0), now.ticks, 0, (uint32_t) now.ns, (uint32_t) (now.ns >> 32));
    agent.clock_noted = units;
}

/*
 * Appends one event, of now: its time is taken before its slot, so that a thread which is held up in between does not make
 * those that overtake it look late.
 */
INLINE int append(struct thread_slot *thread, uint32_t what, uint64_t address, uint64_t size, uint32_t stack, uint32_t label) {
    uint64_t units = ticks() >> EVENT_TIME_SHIFT;
    if (unlikely((int64_t) (units - agent.clock_noted) >= CLOCK_NOTED_EVERY)) note_clock(thread);
    return append_at(thread, units, what, address, size, stack, label);
}
