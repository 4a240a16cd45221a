/*
 * Appends events to the session memory and stores each distinct stack and label once. Runs on the program's threads,
 * inside of DPDK's allocation calls and in signal handlers: no heap, no lock that is waited for, no unbounded loop
 * other than waiting for the host while it is alive.
 */

#include "agent.h"
#include "memory.c"
#include "threads.c"
#include "forks.c"
#include "clock.c"
#include "progress.c"
#include "ring.c"
#include "stacks.c"
#include "labels.c"
#include "elements.c"
#include "modules.c"

/* ---- called by agent.js, on its own thread ---- */

/* Whether `count` units lie in the memory from `offset` on, behind the header and aligned to units. */
static int lies_within(uint64_t offset, uint64_t count, uint64_t unit_bytes, uint64_t bytes) {
    return offset >= SESSION_HEADER_BYTES && offset % 8 == 0 && offset <= bytes && count <= (bytes - offset) / unit_bytes;
}

/* Our own copy of where what is: other processes can write the header. 0: it is not laid out as we know. */
static int take_layout(const struct session_header *header, uint64_t bytes) {
    struct session_header own;
    memcpy(&own, header, offsetof(struct session_header, pad0));
    if (own.magic != SESSION_MAGIC || own.version != SESSION_VERSION) return 0;
    if (own.ring_capacity == 0 || (own.ring_capacity & (own.ring_capacity - 1)) != 0) return 0;
    if (own.threads_capacity < 2 || own.threads_capacity > SESSION_MAX_THREADS) return 0;
    if (!lies_within(own.ring_offset, own.ring_capacity, sizeof(struct event), bytes)
        || !lies_within(own.stacks_offset, own.stacks_words, 8, bytes) || !lies_within(own.labels_offset, own.labels_bytes, 1, bytes)
        || !lies_within(own.threads_offset, own.threads_capacity, sizeof(struct thread_slot), bytes)
        || !lies_within(own.modules_offset, own.modules_bytes, 1, bytes))
        return 0;
    agent.ring = (struct event *) ((uint8_t *) header + own.ring_offset);
    agent.ring_capacity = own.ring_capacity;
    agent.ring_mask = own.ring_capacity - 1;
    for (agent.ring_shift = 0; (1ULL << agent.ring_shift) < own.ring_capacity; agent.ring_shift++) {}
    agent.stacks = (uint64_t *) ((uint8_t *) header + own.stacks_offset);
    agent.stacks_words = own.stacks_words;
    agent.labels = (uint8_t *) header + own.labels_offset;
    agent.labels_bytes = own.labels_bytes;
    agent.threads = (struct thread_slot *) ((uint8_t *) header + own.threads_offset);
    agent.threads_capacity = own.threads_capacity;
    agent.modules = (uint8_t *) header + own.modules_offset;
    agent.modules_bytes = own.modules_bytes;
    return 1;
}

/*
 * Takes the mapped session memory of `bytes` into use; the host has filled in the header. `tables` is zeroed private
 * memory of agent_tables_bytes(), whole pages. Returns our index in the process table, or -1 where the memory is not what
 * we know.
 */
int agent_start(struct session_header *header, uint64_t bytes, uint8_t *tables, uint32_t max_frames, uint32_t allocation_backtrace,
                uint32_t free_backtrace) {
    uint64_t process;
    if (!take_layout(header, bytes)) return -1;
    process = atomic_add(&header->processes_used, 1);
    if (process >= SESSION_MAX_PROCESSES) return -1;
    agent.pid = (uint32_t) syscall(SYS_GETPID);
    agent.process = agent.module_process = (uint32_t) process;
    agent.epoch = 0;
    agent.header = header;
    agent.tail_seen = *(volatile uint64_t *) &header->tail;
    agent.max_frames = max_frames < MAX_FRAMES ? max_frames : MAX_FRAMES;
    agent.allocation_backtrace = allocation_backtrace;
    agent.free_backtrace = free_backtrace;
    agent.to_own_threads = (uint64_t) tables - (uint64_t) agent.threads;
    tables += OWN_THREADS_BYTES;
    agent.stack_index = (struct stack_index_entry *) tables;
    tables += STACK_INDEX_ENTRIES * sizeof(struct stack_index_entry);
    agent.label_cache = (struct label_cache_entry *) tables;
    tables += LABEL_CACHE_ENTRIES * sizeof(struct label_cache_entry);
    agent.read_only = (struct read_only_range *) tables;
    tables += READ_ONLY_RANGES * sizeof(struct read_only_range);
    agent.label_index = (volatile uint32_t *) tables;
    agent.thread_key = tls_new();
    find_thread_value();
    begin_clock(process == 0);
    header->processes[process].pid = agent.pid;
    publish_u32(&header->processes[process].attached, 1);
    return (int) process;
}

/* Bytes of zeroed memory that agent_start wants. */
uint64_t agent_tables_bytes(void) {
    return OWN_THREADS_BYTES + STACK_INDEX_ENTRIES * sizeof(struct stack_index_entry)
           + LABEL_CACHE_ENTRIES * sizeof(struct label_cache_entry) + READ_ONLY_RANGES * sizeof(struct read_only_range) + LABEL_INDEX_ENTRIES * sizeof(uint32_t);
}

void agent_switch(int on) { publish_u32(&agent.on, (uint32_t) on); }

void agent_record(int on) { publish_u32(&agent.recording, (uint32_t) on); }

/* Nobody makes room in the ring any more: whoever waits for it must go on. */
void agent_abandon(void) { publish_u32(&agent.abandoned, 1); }

/* Threads of this process that are inside of a hooked function or of append(): unloading waits for 0. */
int agent_threads_inside(void) {
    uint64_t i;
    int inside = 0;
    for (i = 1; i < agent.threads_capacity; i++) {
        struct own_thread *own = own_of(&agent.threads[i]);
        if (own->tid != 0 && (own->depth != 0 || own->appending != 0) && !thread_is_gone(own->tid)) inside++;
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
