/*
 * DPDK's own view of its heap, at one moment of the event order: the busy elements of every heap, as events.
 *
 * rte_malloc_dump_heaps prints each heap's elements under that heap's lock. It is given a stream of ours, so that the
 * lock is held while we look: the first element's text says where it is and proves that the element header is laid out
 * as we know it (lib/eal/common/malloc_elem.h: prev 8, next 16, state 48, pad 52, size 56); then the chain is walked in
 * memory, some nanoseconds an element, and a mark is appended. Where the proof fails, the text of every element is read.
 * Called on the agent's own thread.
 */

#define ELEMENT_PREV 8
#define ELEMENT_NEXT 16
#define ELEMENT_STATE 48
#define ELEMENT_PAD 52
#define ELEMENT_SIZE 56
#define ELEMENT_HEADER_BYTES 128
#define ELEMENT_BUSY 1
#define STREAM_REFUSES_WRITES 8 /* glibc's _IO_NO_WRITES, musl's F_NOWR: further printing costs next to nothing */
#define MREMAP_MAY_MOVE 1L

#define SETTLE_NS 10000000 /* a free that was recorded before has reached the heap after so long */
#define ZONE_SLOTS 8192    /* a power of two, more than twice RTE_MAX_MEMZONE (2560) */

struct busy_block {
    uint64_t address, size;
};

struct zone_labels { /* open addressing by address */
    struct {
        uint64_t address;
        uint32_t label;
    } slots[ZONE_SLOTS];
    uint32_t used;
};

static uint64_t zone_slot(const struct zone_labels *zones, uint64_t address) {
    uint64_t at = (address >> 6) * SESSION_HASH_MULTIPLIER >> 51;
    while (zones->slots[at].address != 0 && zones->slots[at].address != address) at = (at + 1) & (ZONE_SLOTS - 1);
    return at;
}

static void note_zone(const struct memzone *zone, void *argument) {
    struct zone_labels *zones = argument;
    uint64_t at;
    if (zone->address == 0 || zones->used >= ZONE_SLOTS / 2) return;
    at = zone_slot(zones, zone->address);
    if (zones->slots[at].address == 0) zones->used++;
    zones->slots[at].address = zone->address;
    zones->slots[at].label = copy_label("memzone:", zone->name);
}

struct snapshot {
    struct busy_block *blocks;
    uint64_t count, capacity;
    uint64_t number;
    int32_t *stream_flags; /* not NULL: only one heap can have elements, stop the printing after it */
    int walked;            /* this heap's chain was walked: its text is of no more interest */
    int proven;            /* the layout was found to be as we know it, at least once */
    int heaps;             /* with elements */
    int failed;
    char line[256];
    uint32_t used;
    uint64_t element, size, pad, prev, next;
    int busy;
};

struct stream_functions {
    void *read;
    long (*write)(void *, const char *, size_t);
    void *seek, *close;
};

extern void *fopencookie(void *cookie, const char *mode, struct stream_functions functions);
extern int fclose(void *stream);
extern int setvbuf(void *stream, char *buffer, int mode, size_t size);

static void snapshot_add(struct snapshot *snapshot, uint64_t address, uint64_t size) {
    if (snapshot->count == snapshot->capacity) {
        uint64_t bytes = snapshot->capacity * sizeof(struct busy_block);
        long moved = syscall(SYS_MREMAP, snapshot->blocks, (long) bytes, (long) (2 * bytes), MREMAP_MAY_MOVE);
        if (moved < 0) {
            snapshot->failed = 1;
            return;
        }
        snapshot->blocks = (struct busy_block *) moved;
        snapshot->capacity *= 2;
    }
    snapshot->blocks[snapshot->count].address = address;
    snapshot->blocks[snapshot->count].size = size;
    snapshot->count++;
}

/* The number after `label` in `line`, 0 where it is not there or printed as (nil). */
static uint64_t number_after(const char *line, const char *label) {
    uint64_t value = 0;
    uint32_t i;
    for (; *line != 0; line++) {
        for (i = 0; label[i] != 0 && line[i] == label[i]; i++) {}
        if (label[i] == 0) break;
    }
    if (*line == 0) return 0;
    for (line += i; *line != 0; line++) {
        char c = *line;
        if (c >= '0' && c <= '9') value = value << 4 | (uint64_t) (c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uint64_t) (c - 'a' + 10);
        else break;
    }
    return value;
}

static int starts_with(const char *line, const char *label) {
    while (*label != 0)
        if (*line++ != *label++) return 0;
    return 1;
}

static int contains(const char *line, const char *label) {
    for (; *line != 0; line++)
        if (starts_with(line, label)) return 1;
    return 0;
}

/* The element whose text was read last; its heap's lock is held. */
static void snapshot_element(struct snapshot *snapshot) {
    const uint8_t *element = (const uint8_t *) snapshot->element;
    int first = snapshot->prev == 0;
    if (first) {
        snapshot->heaps++;
        agent_mark(MARK_HEAP_SNAPSHOT, snapshot->number);
        if (*(const uint64_t *) (element + ELEMENT_PREV) == 0 && *(const uint64_t *) (element + ELEMENT_NEXT) == snapshot->next
            && *(const uint64_t *) (element + ELEMENT_SIZE) == snapshot->size && *(const uint32_t *) (element + ELEMENT_PAD) == snapshot->pad
            && ((*(const uint32_t *) (element + ELEMENT_STATE) & 7) == ELEMENT_BUSY) == snapshot->busy) {
            snapshot->proven = snapshot->walked = 1;
            for (; element != NULL; element = *(const uint8_t *const *) (element + ELEMENT_NEXT)) {
                uint64_t pad = *(const uint32_t *) (element + ELEMENT_PAD), size = *(const uint64_t *) (element + ELEMENT_SIZE);
                if ((*(const uint32_t *) (element + ELEMENT_STATE) & 7) == ELEMENT_BUSY)
                    snapshot_add(snapshot, (uint64_t) element + pad + ELEMENT_HEADER_BYTES, size - pad - ELEMENT_HEADER_BYTES);
            }
            if (snapshot->stream_flags != NULL) *snapshot->stream_flags |= STREAM_REFUSES_WRITES;
            return;
        }
    }
    if (snapshot->busy)
        snapshot_add(snapshot, snapshot->element + snapshot->pad + ELEMENT_HEADER_BYTES,
                     snapshot->size - snapshot->pad - ELEMENT_HEADER_BYTES);
}

static void snapshot_line(struct snapshot *snapshot) {
    const char *line = snapshot->line;
    if (starts_with(line, "Heap id:")) snapshot->walked = 0;
    if (snapshot->walked) return;
    if (starts_with(line, "Malloc element at 0x")) {
        snapshot->element = number_after(line, "at 0x");
        snapshot->busy = contains(line, "(BUSY)");
    } else if (starts_with(line, "  len:")) {
        snapshot->size = number_after(line, "len: 0x");
        snapshot->pad = number_after(line, "pad: 0x");
    } else if (starts_with(line, "  prev:") && snapshot->element != 0) {
        snapshot->prev = number_after(line, "prev: 0x");
        snapshot->next = number_after(line, "next: 0x");
        snapshot_element(snapshot);
        snapshot->element = 0;
    }
}

static long snapshot_write(void *cookie, const char *text, size_t size) {
    struct snapshot *snapshot = cookie;
    size_t i;
    for (i = 0; i < size; i++) {
        if (text[i] == '\n') {
            snapshot->line[snapshot->used] = 0;
            snapshot_line(snapshot);
            snapshot->used = 0;
        } else if (snapshot->used < sizeof snapshot->line - 1) snapshot->line[snapshot->used++] = text[i];
    }
    return (long) size;
}

static void append_busy_blocks(const struct snapshot *snapshot, const struct zone_labels *zones) {
    struct thread_slot *thread = thread_self();
    uint64_t i;
    if (thread == NULL) return;
    for (i = 0; i < snapshot->count; i++) {
        const struct busy_block *block = &snapshot->blocks[i];
        uint64_t at = zone_slot(zones, block->address);
        int is_zone = zones->slots[at].address != 0;
        append(thread, WHAT(EVENT_BASELINE_BLOCK, is_zone ? API_MEMZONE_RESERVE : API_NONE, -1), block->address, block->size, 0,
               is_zone ? zones->slots[at].label : 0);
    }
}

static void *map_memory(uint64_t bytes) {
    long address = syscall(SYS_MMAP, 0L, (long) bytes, 3L, 0x22L, -1L, 0L);
    return address < 0 ? NULL : (void *) address;
}

#ifdef RTETRACK_TARGET
/*
 * What the program calls in place of fork while it is tracked: a child that was forked while we have DPDK's heap locked would
 * have that lock taken for ever. So forks wait for us, and we for forks; not for longer than FORK_LIMIT_NS.
 */
#define FORK_LIMIT_NS 2000000000ULL

struct forking {
    int (*original)(void);
    volatile uint64_t inside;
};

STATE(struct forking, forking);

static const int64_t one_ms[2] = {0, 1000000};

static void wait_for_forks(void) {
    uint64_t until = monotonic_ns() + FORK_LIMIT_NS;
    while (forking.inside != 0 && monotonic_ns() < until) syscall(SYS_NANOSLEEP, one_ms, 0L);
}

int hook_fork(void) {
    uint64_t until = monotonic_ns() + FORK_LIMIT_NS;
    int child;
    for (;;) {
        atomic_add(&forking.inside, 1);
        if (agent.heap_users == 0 || monotonic_ns() > until) break; /* zero in a child, too */
        atomic_add(&forking.inside, (uint64_t) -1);
        syscall(SYS_NANOSLEEP, one_ms, 0L);
    }
    child = forking.original();
    if (child == 0) forking.inside = 0; /* the other threads' forks are the parent's */
    else atomic_add(&forking.inside, (uint64_t) -1);
    return child;
}

int forks_inside(void) { return (int) forking.inside; }
#else
static void wait_for_forks(void) {}
#endif

/* Around every call of ours into DPDK: 0 if its heap is gone and must not be touched. */
int heap_enter(void) {
    atomic_add(&agent.heap_users, 1);
    if (!agent.heap_gone) {
        wait_for_forks();
        return 1;
    }
    atomic_add(&agent.heap_users, (uint64_t) -1);
    return 0;
}

void heap_leave(void) { atomic_add(&agent.heap_users, (uint64_t) -1); }

/*
 * Takes a snapshot: MARK_BASELINE_STARTED, then MARK_HEAP_SNAPSHOT at the moment that holds for each heap, then a
 * BASELINE_BLOCK a busy element, then MARK_BASELINE_ENDED with `number`. Returns the number of blocks or -1
 * without memory. `one_heap` says that only one heap has elements.
 */
int64_t snapshot_take(void (*dump_heaps)(void *), uint64_t number, int one_heap) {
    struct snapshot snapshot;
    struct stream_functions functions;
    struct zone_labels *zones;
    void *stream = NULL;
    int64_t settle[2];
    memset(&snapshot, 0, sizeof snapshot);
    memset(&functions, 0, sizeof functions);
    functions.write = snapshot_write;
    snapshot.number = number;
    snapshot.capacity = 1 << 16;
    snapshot.blocks = map_memory(snapshot.capacity * sizeof(struct busy_block));
    zones = map_memory(sizeof *zones);
    if (snapshot.blocks != NULL && zones != NULL) stream = fopencookie(&snapshot, "w", functions);
    if (stream == NULL) return -1;
    agent_mark(MARK_BASELINE_STARTED, number);
    settle[0] = 0;
    settle[1] = SETTLE_NS;
    syscall(SYS_NANOSLEEP, settle, 0L);
    if (agent.walk_memzones != NULL) agent.walk_memzones(note_zone, zones);
    setvbuf(stream, NULL, 2 /* _IONBF: we must see the text while the lock is held */, 0);
    if (one_heap) snapshot.stream_flags = stream;
    dump_heaps(stream);
    fclose(stream);
    if (!snapshot.failed) {
        if (snapshot.heaps == 0) agent_mark(MARK_HEAP_SNAPSHOT, number);
        append_busy_blocks(&snapshot, zones);
        agent_mark(MARK_BASELINE_ENDED, number);
    }
    syscall(SYS_MUNMAP, snapshot.blocks, (long) (snapshot.capacity * sizeof(struct busy_block)));
    syscall(SYS_MUNMAP, zones, (long) sizeof *zones);
    return snapshot.failed ? -1 : (int64_t) snapshot.count;
}

#define END_HELD_LIMIT_NS 60000000000LL

/*
 * The thread that ends the program, or lets go of its heap, waits while the host looks at the memory: until the host says so
 * (agent_hold_end), is gone or leaves, or for a minute. All other threads go on.
 */
static void wait_for_look(void) {
    uint64_t until = monotonic_ns() + END_HELD_LIMIT_NS;
    int64_t pause[2];
    pause[0] = 0;
    pause[1] = 500000;
    if (!agent.hold_end || !agent.recording || agent.process != agent.module_process) return;
    if (!agent_mark(MARK_END_HELD, 0)) return;
    while (agent.hold_end && !agent.abandoned && host_is_alive(agent.header) && (int64_t) (until - monotonic_ns()) > 0)
        syscall(SYS_NANOSLEEP, pause, 0L);
}

/* The host wants to look at the memory before the program ends (1), or has (0). */
void agent_hold_end(int hold) { publish_u32(&agent.hold_end, (uint32_t) hold); }

/* Threads that are about to end the program: unloading waits for 0. */
int agent_threads_ending(void) { return (int) agent.ending; }

/* The program is about to let go of its heap: the last moment to look at it. Called on the program's thread. */
void cleanup_started(void) {
    int64_t pause[2];
    pause[0] = 0;
    pause[1] = 100000;
    wait_for_look();
    if (agent.dump_heaps != NULL && heap_enter()) {
        snapshot_take(agent.dump_heaps, FINAL_BASELINE, 0);
        heap_leave();
    }
    agent_mark(MARK_EAL_CLEANUP_STARTED, 0);
    atomic_exchange(&agent.heap_gone, 1);
    while (agent.heap_users != 0) syscall(SYS_NANOSLEEP, pause, 0L);
}
