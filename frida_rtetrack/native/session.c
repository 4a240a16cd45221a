/*
 * Appends events to the session memory and stores each distinct stack and label once. Runs on the program's threads,
 * inside of DPDK's allocation calls and in signal handlers: no heap, no lock that is waited for, no unbounded loop
 * other than waiting for the host while it is alive.
 */
#include "agent.h"

#define RING_MARGIN 1024           /* threads that may pass the check for room at the same time */
#define HEARTBEAT_LIMIT_NS 2000000000ULL
#define PR_GET_NAME 16
#define AT_FDCWD -100
#define SESSION_HASH_MULTIPLIER 0x9e3779b97f4a7c15ULL

static uint64_t monotonic_ns(void) {
    int64_t time[2];
    if (syscall(SYS_CLOCK_GETTIME, 1L, time) != 0) return 0;
    return (uint64_t) time[0] * 1000000000ULL + (uint64_t) time[1];
}

/*
 * Copies memory that may be gone, such as a library that another thread unloads; 0: it is. Where the kernel does not let
 * a process ask, it is read as it is.
 */
static int peek(uint64_t from, void *to, uint64_t bytes) {
    uint64_t local[2], remote[2];
    int *error = __errno_location(), saved = *error, refused;
    long got;
    local[0] = (uint64_t) to;
    remote[0] = from;
    local[1] = remote[1] = bytes;
    got = syscall(SYS_PROCESS_VM_READV, (long) agent.pid, local, 1L, remote, 1L, 0L);
    refused = got < 0 && (*error == 1 /* EPERM */ || *error == 38 /* ENOSYS */);
    *error = saved;
    if (refused) memcpy(to, (const void *) from, bytes);
    return refused || got == (long) bytes;
}

/* ---- threads ---- */

static int thread_is_gone(struct thread_slot *slot) {
    int *error = __errno_location();
    int saved = *error, gone;
    gone = syscall(SYS_TGKILL, (long) agent.pid, (long) slot->tid, 0L) != 0 && *error == 3; /* ESRCH */
    *error = saved;
    return gone;
}

static struct thread_slot *reuse_thread_slot(void) {
    struct session_header *header = agent.header;
    uint64_t start = atomic_add(&header->threads_refused, 1), i;
    for (i = 0; i < 64; i++) { /* bounded: a later call goes on from where this one stopped */
        struct thread_slot *slot = &agent.threads[1 + (start * 64 + i) % (header->threads_capacity - 1)];
        if (slot->process == agent.process && thread_is_gone(slot)) return slot;
    }
    return NULL;
}

/* The calling thread's slot; NULL if there is no room for another thread. */
static struct thread_slot *thread_register(void) {
    struct session_header *header = agent.header;
    struct thread_slot *slot;
    uint64_t number = header->threads_used;
    if (number < header->threads_capacity) number = atomic_add(&header->threads_used, 1);
    slot = number < header->threads_capacity ? &agent.threads[number] : reuse_thread_slot();
    if (slot == NULL) return NULL;
    slot->process = agent.process;
    slot->depth = 0;
    slot->appending = 0;
    slot->outermost_sp = slot->stack_low = slot->stack_high = 0;
    memset(slot->name, 0, sizeof slot->name);
    syscall(SYS_PRCTL, (long) PR_GET_NAME, slot->name, 0L, 0L, 0L);
    slot->tid = (uint32_t) syscall(SYS_GETTID);
    tls_set(agent.thread_key, slot);
    return slot;
}

#if defined(__x86_64__) && defined(__TINYC__)
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

static struct thread_slot *thread_known(void) {
    uint64_t at = agent.thread_value, sequence, value;
    if (at == 0) return tls_get(agent.thread_key);
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
 * The mapping that `sp` lies in, from /proc/self/maps, into the slot's stack_low and stack_high; a thread's own control
 * block, at the top of its stack, bounds it further. Called once for each stack that a thread is seen on.
 */
static void find_stack(struct thread_slot *slot, uint64_t sp) {
    char buffer[2048];
    uint64_t control_block;
    int used = 0;
    long fd = syscall(SYS_OPENAT, (long) AT_FDCWD, "/proc/self/maps", 0x80000L /* O_CLOEXEC */, 0L);
    __asm__ volatile("movq %%fs:0, %0" : "=r"(control_block));
    slot->stack_low = slot->stack_high = 0;
    if (fd < 0) {
        if (control_block > sp && control_block - sp < (64ULL << 20)) slot->stack_low = sp, slot->stack_high = control_block;
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
                slot->stack_low = low;
                slot->stack_high = control_block > sp && control_block < high ? control_block : high;
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

/* Sets the slot's stack bounds for `sp`; 0 where they cannot be told. */
static int on_known_stack(struct thread_slot *slot, uint64_t sp) {
    if (sp >= slot->stack_low && sp < slot->stack_high) return 1;
    find_stack(slot, sp);
    return sp >= slot->stack_low && sp < slot->stack_high;
}
#else
static int on_known_stack(struct thread_slot *slot, uint64_t sp) { return 0; }
#endif

/*
 * In a forked child, where `agent` reads as zeros: takes the parent's state over as a process of its own, if children
 * are followed. 0: they are not, or the host has gone.
 */
static int adopt_child(void) {
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
#define OFF() (!agent.on && !adopt_child())

/* ---- the ring ---- */

/* Waits until the ring has room again. 0: the host is not there (any more); the event must be dropped. */
static int wait_for_room(uint64_t needed_tail) {
    struct session_header *header = agent.header;
    int64_t pause[2];
    pause[0] = 0;
    pause[1] = 50000;
    atomic_add(&header->waits, 1);
    for (;;) {
        uint64_t heartbeat;
        agent.tail_seen = *(volatile uint64_t *) &header->tail;
        if ((int64_t) (agent.tail_seen - needed_tail) >= 0) return 1;
        if (agent.abandoned) return 0;
        heartbeat = *(volatile uint64_t *) &header->heartbeat_ns;
        if (monotonic_ns() > heartbeat + HEARTBEAT_LIMIT_NS) {
            if (agent.process != agent.module_process) agent.recording = 0, agent.abandoned = 1; /* a followed child has nobody to unhook it */
            return 0;
        }
        syscall(SYS_NANOSLEEP, pause, 0L);
    }
}

/*
 * Claims the next slot of the ring, and says that the thread is writing it; NULL: dropped and counted. `commit` says
 * what to hand to publish_u32(&event->commit) once the slot is filled in; then thread->appending must be put back.
 */
static struct event *claim(struct thread_slot *thread, uint32_t *commit) {
    struct session_header *header = agent.header;
    uint64_t room = agent.tail_seen + agent.ring_capacity, index = *(volatile uint64_t *) &header->head + RING_MARGIN;
    if (index >= room) { /* full, as far as was known */
        agent.tail_seen = *(volatile uint64_t *) &header->tail;
        if (index >= agent.tail_seen + agent.ring_capacity && !wait_for_room(index + 1 - agent.ring_capacity)) {
            atomic_add(&header->lost, 1);
            return NULL;
        }
        room = agent.tail_seen + agent.ring_capacity;
    }
    thread->appending++;
    index = atomic_add(&header->head, 1);
    /* More threads than the margin came through the check together: only now must this one wait, for its own slot. */
    if (index >= room && !wait_for_room(index + 1 - agent.ring_capacity)) {
        thread->appending--; /* the slot stays uncommitted: the reader skips and counts it */
        return NULL;
    }
    *commit = (uint32_t) (index >> agent.ring_shift) + 1;
    return &agent.ring[index & agent.ring_mask];
}

/* Appends one event. `what` is its kind, api << 8 and socket << 16. 0: dropped and counted. */
static int append(struct thread_slot *thread, uint32_t what, uint64_t address, uint64_t size, uint32_t stack, uint32_t label) {
    uint32_t commit;
    volatile struct event *event = claim(thread, &commit);
    if (event == NULL) return 0;
    *(volatile uint32_t *) &event->kind = what;
    event->address = address;
    if (size >> EVENT_SIZE_BITS) size = (1ULL << EVENT_SIZE_BITS) - 1;
    event->size_and_thread = size | thread_number(thread) << EVENT_SIZE_BITS;
    *(volatile uint64_t *) &event->stack = stack | (uint64_t) label << 32;
    publish_u32(&event->commit, commit);
    thread->appending--;
    return 1;
}

#define WHAT(kind, api, socket) ((uint32_t) (kind) | (uint32_t) (api) << 8 | ((uint32_t) (socket) & 0xff) << 16)

/* ---- stacks ---- */

static uint64_t hash_stack(const uint64_t *frames, uint32_t count) {
    uint64_t hash = count;
    uint32_t i;
    for (i = 0; i < count; i++) {
        hash = (hash ^ frames[i]) * SESSION_HASH_MULTIPLIER;
        hash ^= hash >> 32;
    }
    return hash;
}

static uint32_t store_stack(uint64_t hash, const uint64_t *frames, uint32_t count, uint32_t end) {
    struct session_header *header = agent.header;
    uint64_t words = STACK_RECORD_WORDS + count, at, *record;
    if (*(volatile uint64_t *) &header->stacks_used + words > header->stacks_words
        || (at = atomic_add(&header->stacks_used, words)) + words > header->stacks_words) {
        atomic_add(&header->stacks_refused, 1);
        return 0;
    }
    record = &agent.stacks[at];
    record[0] = count | (uint64_t) end << 16 | (uint64_t) agent.module_process << 24 | (uint64_t) agent.epoch << 32;
    record[1] = hash;
    memcpy(record + STACK_RECORD_WORDS, frames, count * sizeof *frames);
    atomic_add(&header->walks_ended[end & 7], 1);
    return (uint32_t) at;
}

/*
 * The number of this stack. `hash` covers the frames; the module epoch is mixed in here, so that the same addresses
 * after another library was loaded in their place are another stack. Stacks with equal 64-bit hashes are taken to be
 * equal (one chance in 10^7 among a million stacks).
 *
 * No lock, so that nobody waits for, or works around, a thread that was held up: an entry is taken by writing its id.
 * Until its hash follows, the record that the id names tells whose it is. Threads that store the same new stack at the
 * same time store a copy each, and all but one of the copies are used once.
 */
static uint32_t intern_stack(uint64_t hash, const uint64_t *frames, uint32_t count, uint32_t end) {
    struct stack_index_entry *entry;
    uint64_t at, probes;
    uint32_t stored = 0, taken;
    hash = (hash ^ (agent.epoch * 8 + end)) * SESSION_HASH_MULTIPLIER;
    hash ^= hash >> 32;
    if (hash == 0) hash = 1;
    for (at = hash, probes = 0; probes < 64; at++, probes++) {
        entry = &agent.stack_index[at & (STACK_INDEX_ENTRIES - 1)];
        if (entry->hash == hash) return entry->id;
        if (entry->hash != 0) continue;
        taken = entry->id;
        if (taken == 0) {
            if (stored == 0 && (stored = store_stack(hash, frames, count, end)) == 0) return 0;
            taken = atomic_claim(&entry->id, stored);
            if (taken == 0) {
                entry->hash = hash;
                return stored;
            }
        }
        if (agent.stacks[taken + 1] == hash) return taken;
    }
    return stored != 0 ? stored : store_stack(hash, frames, count, end);
}

/* ---- labels ---- */

/* Copies at most LABEL_MAX_BYTES of the text at `from`, which may be no valid pointer at all; -1: unreadable. */
static int copy_text(const char *from, char *to) {
    uint64_t at = (uint64_t) from;
    int used = 0;
    while (used < LABEL_MAX_BYTES) {
        uint64_t chunk = 256 - (at & 255); /* never across a page */
        uint64_t local[2], remote[2];
        long got;
        int i, *error = __errno_location(), saved = *error;
        if (chunk > (uint64_t) (LABEL_MAX_BYTES - used)) chunk = (uint64_t) (LABEL_MAX_BYTES - used);
        local[0] = (uint64_t) (to + used);
        remote[0] = at;
        local[1] = remote[1] = chunk;
        got = syscall(SYS_PROCESS_VM_READV, (long) agent.pid, local, 1L, remote, 1L, 0L);
        *error = saved;
        if (got <= 0) return -1;
        for (i = 0; i < (int) got; i++)
            if (to[used + i] == 0) return used + i;
        used += (int) got;
        at += (uint64_t) got;
    }
    return used;
}

static int same_text(const uint8_t *a, const char *b, uint32_t length) {
    uint32_t i;
    for (i = 0; i < length; i++)
        if (a[i] != (uint8_t) b[i]) return 0;
    return 1;
}

/* The number of the label with this text. */
static uint32_t intern_label(const char *text, uint32_t length) {
    struct session_header *header = agent.header;
    uint64_t hash = length, at, bytes;
    uint32_t i, probes, id = 0;
    uint8_t *record;
    for (i = 0; i < length; i++) {
        hash = (hash ^ (uint8_t) text[i]) * SESSION_HASH_MULTIPLIER;
        hash ^= hash >> 29;
    }
    for (probes = 0; probes < 64; probes++) {
        id = agent.label_index[(hash + probes) & (LABEL_INDEX_ENTRIES - 1)];
        if (id == 0) break;
        record = agent.labels + (uint64_t) id * 8;
        if (*(uint16_t *) record == length && same_text(record + 2, text, length)) return id;
    }
    bytes = (2 + (uint64_t) length + 7) & ~7ULL;
    if (*(volatile uint64_t *) &header->labels_used + bytes > header->labels_bytes
        || (at = atomic_add(&header->labels_used, bytes)) + bytes > header->labels_bytes) {
        atomic_add(&header->labels_refused, 1);
        return 0;
    }
    record = agent.labels + at;
    *(uint16_t *) record = (uint16_t) length;
    memcpy(record + 2, text, length);
    /* If another thread takes the entry now, there is a copy more. */
    if (probes < 64) atomic_claim(&agent.label_index[(hash + probes) & (LABEL_INDEX_ENTRIES - 1)], (uint32_t) (at / 8));
    return (uint32_t) (at / 8);
}

static int is_read_only(uint64_t address) {
    uint64_t i, used = agent.read_only_used;
    for (i = 0; i < used; i++)
        if (address < agent.read_only[i].end && address >= agent.read_only[i].start) return 1;
    return 0;
}

/* Stores "PREFIX" + the text at `type` as a label. */
static uint32_t copy_label(const char *prefix, const char *type) {
    char text[2 * LABEL_MAX_BYTES];
    uint32_t used = 0;
    int length;
    while (prefix[used] != 0) text[used] = prefix[used], used++;
    length = copy_text(type, text + used);
    if (length < 0) return intern_label("<unreadable>", 12);
    used += (uint32_t) length;
    return intern_label(text, used > LABEL_MAX_BYTES ? LABEL_MAX_BYTES : used);
}

/*
 * The number of the label that `type` points to: 0 for NULL. The text is copied at every call, except where the
 * pointer lies in a module's read-only memory: such text cannot change until the module is unloaded.
 */
static uint32_t label_of(const char *type) {
    uint64_t pointer = (uint64_t) type, value;
    struct label_cache_entry *entry;
    uint32_t label, epoch = agent.epoch;
    if (type == NULL) return 0;
    entry = &agent.label_cache[(pointer ^ pointer >> 12) & (LABEL_CACHE_ENTRIES - 1)];
    if (entry->pointer == pointer) {
        value = entry->label_and_epoch;
        if (value >> 32 == epoch && entry->pointer == pointer) return (uint32_t) value;
    }
    label = copy_label("", type);
    if (label != 0 && is_read_only(pointer) && !atomic_exchange(&agent.label_lock, 1)) {
        entry->pointer = 0;
        entry->label_and_epoch = label | (uint64_t) epoch << 32;
        entry->pointer = pointer;
        publish_u32(&agent.label_lock, 0);
    }
    return label;
}

/* Where the zone's memory is; 0 for a zone that was freed before (DPDK clears it) or that is no readable pointer. */
uint64_t zone_address(const struct memzone *zone) {
    uint64_t address;
    return peek((uint64_t) &zone->address, &address, sizeof address) ? address : 0;
}

/* ---- struct malloc_elem, 128 bytes before the block (DPDK lib/eal/common/malloc_elem.h; the same since 18.05) ---- */

#define ELEMENT_BYTES 128
#define ELEMENT_STATE 48 /* uint32_t, the state in the low 3 bits; then uint32_t pad, then size_t size */
#define ELEMENT_BUSY 1

static int read_element(uint64_t element, uint32_t *state, uint32_t *pad, uint64_t *size) {
    uint64_t words[2];
    if (!peek(element + ELEMENT_STATE, words, sizeof words)) return 0;
    *state = (uint32_t) words[0] & 7;
    *pad = (uint32_t) (words[0] >> 32);
    *size = words[1];
    return 1;
}

/* The block that malloc_heap_free is given the element of; 0 for none. */
uint64_t block_of_element(uint64_t element) {
    uint32_t state, pad;
    uint64_t size;
    if (element == 0) return 0;
    if (!read_element(element, &state, &pad, &size) || state != ELEMENT_BUSY) pad = 0;
    return element + pad + ELEMENT_BYTES;
}

/* How large the block is that malloc_heap_alloc returned, in bytes, what DPDK rounded it up by included. */
uint64_t size_of_block(uint64_t block) {
    uint32_t state, pad;
    uint64_t size;
    return read_element(block - ELEMENT_BYTES, &state, &pad, &size) && size >= ELEMENT_BYTES ? size - ELEMENT_BYTES : 0;
}

/* ---- called by agent.js, on its own thread ---- */

/*
 * Takes the mapped session memory into use; the host has filled in the header. `tables` is zeroed private memory of
 * agent_tables_bytes(). Returns our index in the process table, or -1 where the memory is not what we know.
 */
int agent_start(struct session_header *header, uint8_t *tables, uint32_t max_frames, uint32_t allocation_backtrace,
                uint32_t free_backtrace) {
    uint64_t process;
    if (header->magic != SESSION_MAGIC || header->version != SESSION_VERSION) return -1;
    process = atomic_add(&header->processes_used, 1);
    if (process >= SESSION_MAX_PROCESSES) return -1;
    agent.pid = (uint32_t) syscall(SYS_GETPID);
    agent.process = agent.module_process = (uint32_t) process;
    agent.epoch = 0;
    agent.header = header;
    agent.ring = (struct event *) ((uint8_t *) header + header->ring_offset);
    agent.ring_capacity = header->ring_capacity;
    agent.ring_mask = header->ring_capacity - 1;
    for (agent.ring_shift = 0; (1ULL << agent.ring_shift) < header->ring_capacity; agent.ring_shift++) {}
    agent.stacks = (uint64_t *) ((uint8_t *) header + header->stacks_offset);
    agent.labels = (uint8_t *) header + header->labels_offset;
    agent.threads = (struct thread_slot *) ((uint8_t *) header + header->threads_offset);
    agent.modules = (uint8_t *) header + header->modules_offset;
    agent.tail_seen = *(volatile uint64_t *) &header->tail;
    agent.max_frames = max_frames < MAX_FRAMES ? max_frames : MAX_FRAMES;
    agent.allocation_backtrace = allocation_backtrace;
    agent.free_backtrace = free_backtrace;
    agent.stack_index = (struct stack_index_entry *) tables;
    tables += STACK_INDEX_ENTRIES * sizeof(struct stack_index_entry);
    agent.label_cache = (struct label_cache_entry *) tables;
    tables += LABEL_CACHE_ENTRIES * sizeof(struct label_cache_entry);
    agent.read_only = (struct read_only_range *) tables;
    tables += READ_ONLY_RANGES * sizeof(struct read_only_range);
    agent.label_index = (volatile uint32_t *) tables;
    agent.thread_key = tls_new();
    find_thread_value();
    header->processes[process].pid = agent.pid;
    publish_u32(&header->processes[process].attached, 1);
    return (int) process;
}

/* From now on (not) every forked child records into this session too. */
void agent_follow(int on) {
    publish_u32(&fork_follow.on, 0);
    fork_follow.parent = agent;
    publish_u32(&fork_follow.on, (uint32_t) on);
}

/* Bytes of zeroed memory that agent_start wants. */
uint64_t agent_tables_bytes(void) {
    return STACK_INDEX_ENTRIES * sizeof(struct stack_index_entry) + LABEL_CACHE_ENTRIES * sizeof(struct label_cache_entry)
           + READ_ONLY_RANGES * sizeof(struct read_only_range) + LABEL_INDEX_ENTRIES * sizeof(uint32_t);
}

void agent_switch(int on) { publish_u32(&agent.on, (uint32_t) on); }

void agent_record(int on) { publish_u32(&agent.recording, (uint32_t) on); }

/* Nobody makes room in the ring any more: whoever waits for it must go on. */
void agent_abandon(void) { publish_u32(&agent.abandoned, 1); }

/* Threads of this process that are inside of a hooked function or of append(): unloading waits for 0. */
int agent_threads_inside(void) {
    uint64_t i, used = agent.header->threads_used;
    int inside = 0;
    if (used > agent.header->threads_capacity) used = agent.header->threads_capacity;
    for (i = 1; i < used; i++) {
        struct thread_slot *slot = &agent.threads[i];
        if (slot->process == agent.process && slot->tid != 0 && (slot->depth != 0 || slot->appending != 0)
            && !thread_is_gone(slot))
            inside++;
    }
    return inside;
}

struct unwind_state;
void agent_use_unwinder(struct unwind_state *unwinder) { agent.unwinder = unwinder; }

void agent_stop(void) {
    publish_u32(&agent.header->processes[agent.process].attached, 0);
    tls_free(agent.thread_key);
}

/* Appends a mark; 0: dropped. */
int agent_mark(uint32_t mark, uint64_t argument) {
    struct thread_slot *thread = thread_self();
    return thread != NULL && append(thread, WHAT(EVENT_MARK, mark, 0), 0, argument, 0, 0);
}

/* How DPDK is asked of its heap; `final` says to take a snapshot by ourselves before the heap goes. */
void agent_use_heap(void (*dump_heaps)(void *), void (*walk_memzones)(void (*)(const struct memzone *, void *), void *),
                    int (*walk_regions)(int (*)(const void *, void *), void *), int final) {
    agent.walk_memzones = walk_memzones;
    agent.walk_regions = walk_regions;
    agent.dump_heaps = final ? dump_heaps : NULL;
}

/* struct rte_memseg_list (lib/eal/include/rte_eal_memconfig.h): base_va 0, page_sz 8, socket_id 16, version 20, len 24. */
static int note_region(const void *list, void *argument) {
    uint64_t base = *(const uint64_t *) list, bytes = *(const uint64_t *) ((const uint8_t *) list + 24);
    if (base != 0)
        append(argument, WHAT(EVENT_MARK, MARK_HEAP_REGION, *(const int32_t *) ((const uint8_t *) list + 16)), base, bytes, 0, 0);
    return 0;
}

/* Says where DPDK's heap lies: at the end of rte_eal_init, or when the agent joins. */
void agent_note_regions(void) {
    struct thread_slot *thread = thread_self();
    if (thread != NULL && agent.walk_regions != NULL) agent.walk_regions(note_region, thread);
}

/* Text in [start, end) cannot change until its module is unloaded. */
static void add_read_only(uint64_t start, uint64_t end) {
    uint64_t i, used = agent.read_only_used;
    for (i = 0; i < used && agent.read_only[i].end != 0; i++) {}
    if (i == READ_ONLY_RANGES) return;
    agent.read_only[i].start = start;
    agent.read_only[i].end = end;
    if (i == used) agent.read_only_used = used + 1;
}

/* The first page of the 64-bit ELF module mapped at `base`, with its program headers; 0 if there is none (any more). */
#define ELF_PAGE 4096
static int peek_elf(uint64_t base, uint64_t size, uint8_t *page, const uint8_t **programs, uint32_t *count) {
    uint64_t table;
    if (size < ELF_PAGE || !peek(base, page, ELF_PAGE)) return 0;
    if (page[0] != 0x7f || page[1] != 'E' || page[2] != 'L' || page[3] != 'F' || page[4] != 2) return 0;
    table = *(const uint64_t *) (page + 32);
    *count = *(const uint16_t *) (page + 56);
    if (*(const uint16_t *) (page + 54) != 56 || table > ELF_PAGE || *count * 56ULL > ELF_PAGE - table) return 0;
    *programs = page + table;
    return 1;
}

/* The address of the lowest PT_LOAD segment, page-aligned, in the file's own numbering: where `base` is. */
static uint64_t lowest_address(const uint8_t *programs, uint32_t count) {
    uint64_t lowest = ~0ULL;
    for (; count > 0; count--, programs += 56)
        if (*(const uint32_t *) programs == 1 /* PT_LOAD */ && *(const uint64_t *) (programs + 16) < lowest)
            lowest = *(const uint64_t *) (programs + 16);
    return lowest & ~4095ULL;
}

/* The segments that cannot be written: System V ABI, Elf64_Ehdr, Elf64_Phdr. */
static void add_read_only_segments(uint64_t base, uint64_t size) {
    uint8_t page[ELF_PAGE];
    const uint8_t *program;
    uint32_t count;
    uint64_t lowest;
    if (!peek_elf(base, size, page, &program, &count)) return;
    lowest = lowest_address(program, count);
    for (; count > 0; count--, program += 56) {
        uint64_t start = *(const uint64_t *) (program + 16) - lowest, bytes = *(const uint64_t *) (program + 40);
        if (*(const uint32_t *) program != 1 || (*(const uint32_t *) (program + 4) & 2 /* PF_W */)) continue;
        if (start < size && bytes <= size - start) add_read_only(base + start, base + start + bytes);
    }
}

/* Records a module; returns its record for agent_module_unloaded, NULL where the table is full. */
struct module_record *agent_module_loaded(uint64_t base, uint64_t size, const char *path) {
    struct session_header *header = agent.header;
    struct module_record *record;
    uint64_t length = strlen(path), bytes, at;
    add_read_only_segments(base, size);
    if (length > 4095) length = 4095;
    bytes = (sizeof *record + length + 7) & ~7ULL;
    at = atomic_add(&header->modules_used, bytes);
    if (at + bytes > header->modules_bytes) return NULL;
    record = (struct module_record *) (agent.modules + at);
    record->process = (uint16_t) agent.process;
    record->path_bytes = (uint16_t) length;
    record->base = base;
    record->size = size;
    record->loaded_epoch = agent.epoch;
    record->unloaded_epoch = MODULE_LOADED;
    memcpy(record + 1, path, length);
    publish_u32(&record->record_bytes, (uint32_t) bytes);
    return record;
}

void agent_module_unloaded(struct module_record *record) {
    uint64_t i, used = agent.read_only_used;
    agent.epoch++;
    if (record == NULL) return;
    record->unloaded_epoch = agent.epoch;
    for (i = 0; i < used; i++)
        if (agent.read_only[i].start >= record->base && agent.read_only[i].start < record->base + record->size)
            agent.read_only[i].end = 0;
}

