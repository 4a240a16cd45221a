/* The program's threads: a slot of the session memory for each, where its stack lies, and who has ended. */

#define PR_GET_NAME 16
#define AT_FDCWD -100

INLINE struct own_thread *own_of(struct thread_slot *slot) {
    return (struct own_thread *) ((uint64_t) slot + agent.to_own_threads);
}

static int thread_is_gone(uint32_t tid) {
    int *error = __errno_location();
    int saved = *error, gone;
    gone = syscall(SYS_TGKILL, (long) agent.pid, (long) tid, 0L) != 0 && *error == 3; /* ESRCH */
    *error = saved;
    return gone;
}

/* Takes the lock of a thread's place if that thread is gone, and 0 if it is not, or somebody else is at it. */
static int lock_gone_thread(struct own_thread *own) {
    if (own->tid == 0 || !thread_is_gone(own->tid) || atomic_exchange(&own->lock, 1)) return 0;
    if (thread_is_gone(own->tid)) return 1;
    publish_u32(&own->lock, 0);
    return 0;
}

static struct thread_slot *reuse_thread_slot(uint32_t tid) {
    uint64_t start = atomic_add(&agent.header->threads_refused, 1), i;
    for (i = 0; i < 64; i++) { /* bounded: a later call goes on from where this one stopped */
        struct thread_slot *slot = &agent.threads[1 + (start * 64 + i) % (agent.threads_capacity - 1)];
        struct own_thread *own = own_of(slot);
        if (!lock_gone_thread(own)) continue;
        own->tid = tid;
        publish_u32(&own->lock, 0);
        return slot;
    }
    return NULL;
}

/* The calling thread's slot; NULL if there is no room for another thread. */
static __attribute__((noinline)) struct thread_slot *thread_register(void) {
    struct session_header *header = agent.header;
    struct thread_slot *slot = NULL;
    struct own_thread *own;
    uint32_t tid = (uint32_t) syscall(SYS_GETTID);
    uint64_t number = *(volatile uint64_t *) &header->threads_used;
    if (number < agent.threads_capacity) number = atomic_add(&header->threads_used, 1);
    /* Whatever the number is: no two threads of ours have one place. */
    if (number != 0 && number < agent.threads_capacity && atomic_claim(&own_of(&agent.threads[number])->tid, tid) == 0)
        slot = &agent.threads[number];
    else slot = reuse_thread_slot(tid);
    if (slot == NULL) return NULL;
    own = own_of(slot);
    own->depth = own->appending = 0;
    own->outermost_sp = own->stack_low = own->stack_high = 0;
    slot->process = agent.process;
    slot->appending = 0;
    slot->stack_low = slot->stack_high = 0;
    memset(slot->name, 0, sizeof slot->name);
    syscall(SYS_PRCTL, (long) PR_GET_NAME, slot->name, 0L, 0L, 0L);
    slot->tid = tid;
    tls_set(agent.thread_key, slot);
    return slot;
}

#if defined(__x86_64__) && defined(RTETRACK_TARGET)
/*
 * glibc keeps the values of the first 32 keys inside of struct pthread, as pairs of a sequence number and the value
 * (nptl/descr.h, struct pthread_key_data). Where our key's pair lies is found once, by looking for a value that was set;
 * 0: not found (another C library, or a later key), and the call has to be made.
 */
static void find_thread_value(void) {
    uint64_t magic = 0x7274657472616b21ULL, self, offset, found = 0;
    __asm__ volatile("movq %%fs:0, %0" : "=r"(self));
    tls_set(agent.thread_key, (void *) magic);
    for (offset = 8; offset < 2048; offset += 8)
        if (*(volatile uint64_t *) (self + offset) == magic) found = found == 0 ? offset : 1;
    tls_set(agent.thread_key, NULL);
    if (found <= 1 || *(volatile uint64_t *) (self + found) != 0) return;
    agent.thread_value_sequence = *(volatile uint64_t *) (self + found - 8);
    agent.thread_value = found;
}

INLINE struct thread_slot *thread_known(void) {
    uint64_t at = agent.thread_value, sequence, value;
    if (unlikely(at == 0)) return tls_get(agent.thread_key);
    __asm__ volatile("movq %%fs:-8(%2), %0\n movq %%fs:(%2), %1" : "=&r"(sequence), "=&r"(value) : "r"(at));
    return sequence == agent.thread_value_sequence ? (struct thread_slot *) value : NULL;
}
#else
static void find_thread_value(void) {}
static struct thread_slot *thread_known(void) { return tls_get(agent.thread_key); }
#endif

static struct thread_slot *thread_self(void) {
    struct thread_slot *slot = thread_known();
    return slot != NULL ? slot : thread_register();
}

static uint64_t thread_number(struct thread_slot *slot) { return (uint64_t) (slot - agent.threads); }

#if defined(__x86_64__)
static uint64_t parse_hex(const char **text, const char *end) {
    uint64_t value = 0;
    for (; *text < end; (*text)++) {
        char c = **text;
        if (c >= '0' && c <= '9') value = value << 4 | (uint64_t) (c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uint64_t) (c - 'a' + 10);
        else break;
    }
    return value;
}

/*
 * The mapping that `sp` lies in, from /proc/self/maps, into stack_low and stack_high; a thread's own control block, at
 * the top of its stack, bounds it further. Called once for each stack that a thread is seen on.
 */
static void find_stack(struct own_thread *own, uint64_t sp) {
    char buffer[2048];
    uint64_t control_block;
    int used = 0;
    long fd = syscall(SYS_OPENAT, (long) AT_FDCWD, "/proc/self/maps", 0x80000L /* O_CLOEXEC */, 0L);
    __asm__ volatile("movq %%fs:0, %0" : "=r"(control_block));
    own->stack_low = own->stack_high = 0;
    if (fd < 0) {
        if (control_block > sp && control_block - sp < (64ULL << 20)) own->stack_low = sp, own->stack_high = control_block;
        return;
    }
    for (;;) {
        long got = syscall(SYS_READ, fd, buffer + used, (long) (sizeof buffer - (size_t) used));
        const char *line = buffer, *end;
        if (got <= 0) break;
        end = buffer + used + got;
        for (;;) {
            const char *newline = line, *text = line;
            uint64_t low, high;
            while (newline < end && *newline != '\n') newline++;
            if (newline == end && line != buffer) break;
            low = parse_hex(&text, end);
            if (text < end && *text == '-') text++;
            high = parse_hex(&text, end);
            if (sp >= low && sp < high) {
                own->stack_low = low;
                own->stack_high = control_block > sp && control_block < high ? control_block : high;
                syscall(SYS_CLOSE, fd);
                return;
            }
            if (newline == end) { line = end; break; } /* a line longer than the buffer: its rest is no address */
            line = newline + 1;
        }
        used = (int) (end - line);
        memmove(buffer, line, (size_t) used);
    }
    syscall(SYS_CLOSE, fd);
}

/* Sets the thread's stack bounds for `sp`, and tells the host of them; 0 where they cannot be told. */
static int on_known_stack(struct thread_slot *slot, uint64_t sp) {
    struct own_thread *own = own_of(slot);
    if (sp >= own->stack_low && sp < own->stack_high) return 1;
    find_stack(own, sp);
    slot->stack_low = own->stack_low;
    slot->stack_high = own->stack_high;
    return sp >= own->stack_low && sp < own->stack_high;
}
#else
static int on_known_stack(struct thread_slot *slot, uint64_t sp) { return 0; }
#endif
