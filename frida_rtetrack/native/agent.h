/*
 * The agent's state in the target: where the session memory is mapped, the switches, and the private indexes that find
 * a stack or a label that was stored before.
 */
#ifndef RTETRACK_AGENT_H
#define RTETRACK_AGENT_H

#include "platform.h"
#include "session.h"

struct stack_index_entry { /* open addressing by hash; id is written before hash */
    volatile uint64_t hash;
    volatile uint32_t id; /* 0: free */
    uint32_t reserved;
};

struct label_cache_entry { /* direct mapped, by the pointer of a label in memory that cannot change */
    volatile uint64_t pointer;
    volatile uint64_t label_and_epoch; /* label in the low 32 bits, module epoch in the high */
};

struct read_only_range {
    volatile uint64_t start, end; /* end 0: free */
};

/*
 * What a process keeps of each of its threads, at the place in its table that the thread's slot has in the session memory.
 * Other processes write that one too: nothing that is followed, counted on or waited for may lie there.
 */
struct own_thread { /* 64 bytes */
    volatile uint32_t tid;  /* 0: nobody's */
    volatile uint32_t lock; /* 1 while somebody takes the place, or the memory, of a thread that is gone */
    uint16_t depth;         /* 1 while it is inside of a hooked function */
    uint16_t appending;     /* not 0 between claiming a slot of the ring and committing it */
    uint32_t reserved;
    uint64_t memory;        /* the native engine's for this thread, 0: none yet */
    uint64_t outermost_sp;  /* stack pointer of the outermost hooked call */
    uint64_t stack_low, stack_high; /* the stack that it was last seen on */
    uint64_t last_index;    /* of the ring: what it claimed last */
    uint64_t reserved2;
};

#define OWN_THREADS_BYTES (SESSION_MAX_THREADS * sizeof(struct own_thread)) /* whole pages */
#define LABEL_CACHE_ENTRIES 4096
#define LABEL_INDEX_ENTRIES 65536
#define STACK_INDEX_ENTRIES (1 << 20)
#define READ_ONLY_RANGES 4096
#define MAX_FRAMES 256

struct memzone { /* the part of struct rte_memzone that all versions share (lib/eal/include/rte_memzone.h) */
    char name[32];
    uint64_t iova;
    uint64_t address;
    uint64_t length;
};

/* On pages of their own with MADV_WIPEONFORK: a forked child reads zeros, so `on` is off in it. */
struct WHOLE_PAGES agent {
    volatile uint32_t on; /* this process is tracked: count who is inside of a hook */
    volatile uint32_t recording; /* append events (off: paused, or leaving) */
    volatile uint32_t abandoned; /* the host reads no more: a full ring drops */
    uint32_t process;     /* our index in session_header.processes */
    uint32_t module_process; /* whose modules our stacks are of: a followed child's are its parent's */
    volatile uint32_t epoch; /* how many modules were unloaded so far */
    uint32_t pid;
    struct session_header *header;
    struct event *ring;
    uint64_t ring_mask, ring_capacity;
    uint32_t ring_shift;
    uint32_t clock_is_counter; /* ticks are tick_counter()'s, else monotonic_ns()'s */
    volatile uint64_t clock_noted; /* units of 2^EVENT_TIME_SHIFT ticks: when MARK_CLOCK was appended last */
    tls_key_t thread_key;
    uint64_t thread_value, thread_value_sequence; /* see find_thread_value */
    uint64_t *stacks;
    uint8_t *labels;
    struct thread_slot *threads;
    uint64_t to_own_threads; /* from a thread's slot to its struct own_thread, bytes */
    uint8_t *modules;
    uint64_t stacks_words, labels_bytes, threads_capacity, modules_bytes; /* as they were when we began */
    volatile uint64_t tail_seen; /* a tail read earlier: never ahead of the real one */
    void (*dump_heaps)(void *); /* rte_malloc_dump_heaps, if the final baseline is wanted */
    void (*walk_memzones)(void (*)(const struct memzone *, void *), void *); /* rte_memzone_walk, if it is there */
    int (*walk_regions)(int (*)(const void *, void *), void *); /* rte_memseg_list_walk, if it is there */
    volatile uint32_t heap_gone; /* rte_eal_cleanup was called: its heap must not be touched any more */
    volatile uint64_t heap_users; /* calls of ours into DPDK that are under way: rte_eal_cleanup waits for them */
    volatile uint32_t ended; /* the last look at the heap was taken (exits.c) */
    volatile uint32_t hold_end; /* the host wants to look at the memory before the program ends, or lets go of its heap */
    volatile uint64_t ending; /* threads inside of program_ends */
    uint32_t max_frames;
    uint32_t allocation_backtrace, free_backtrace; /* switches */
    volatile uint32_t label_lock; /* of the cache by pointer */
    struct unwind_state *unwinder; /* the native engine's */
    struct stack_index_entry *stack_index;
    struct label_cache_entry *label_cache;
    volatile uint32_t *label_index;
    struct read_only_range *read_only;
    volatile uint64_t read_only_used; /* entries ever used */
};

STATE(struct agent, agent);

/* Not wiped: what a forked child needs to go on recording, if that is wanted (--follow-fork). */
struct follow {
    volatile uint32_t on, lock;
    struct agent parent; /* as it was when the session began */
};

STATE(struct follow, fork_follow);

#endif
