/*
 * The session memory: what the target writes and the host reads.
 *
 * One memfd, created in the target and mapped by the host, holds a header, the event ring and append-only tables of
 * stacks, labels, threads and modules. This file is the one definition of the layout; events.py mirrors it for numpy
 * and a test compiles this file to compare every size and offset. It compiles with TinyCC (Frida's CModule) and with
 * the system's compiler.
 */
#ifndef RTETRACK_SESSION_H
#define RTETRACK_SESSION_H

#include <stddef.h>
#include <stdint.h>

#define SESSION_MAGIC 0x4b43415254455452ULL /* "RTETRACK", little endian */
#define SESSION_VERSION 1
#define SESSION_HEADER_BYTES 4096
#define SESSION_MAX_PROCESSES 192
#define SESSION_MAX_THREADS 65536

/* What happened. A free is recorded before the original is called, an allocation after it returned. */
enum event_kind {
    EVENT_ALLOCATED = 1,      /* address, size, label, stack */
    EVENT_FREED = 2,          /* address, stack */
    EVENT_RESIZE_STARTED = 3, /* address (the old block's), size asked for, stack; ended by the same thread's next event 4 */
    EVENT_RESIZE_ENDED = 4,   /* address of the block now (0: failed, the old one is unchanged), size, stack as in 3 */
    EVENT_ALLOCATION_FAILED = 5, /* size, label, stack: the function returned NULL */
    EVENT_BASELINE_BLOCK = 6, /* address, size: DPDK's own heap says that this block is live */
    EVENT_MARK = 7            /* api: which mark (enum mark); size: its argument */
};

/* Which of DPDK's functions the program called (the outermost one). */
enum event_api {
    API_NONE = 0,
    API_MALLOC = 1,
    API_MALLOC_SOCKET = 2,
    API_ZMALLOC = 3,
    API_ZMALLOC_SOCKET = 4,
    API_CALLOC = 5,
    API_CALLOC_SOCKET = 6,
    API_REALLOC = 7,
    API_REALLOC_SOCKET = 8,
    API_FREE = 9,
    API_FREE_SENSITIVE = 10,
    API_MEMZONE_RESERVE = 11,
    API_MEMZONE_RESERVE_ALIGNED = 12,
    API_MEMZONE_RESERVE_BOUNDED = 13,
    API_MEMZONE_FREE = 14,
    API_HEAP_ALLOC = 15,      /* malloc_heap_alloc itself: the function that called it was inlined (LTO) */
    API_HEAP_FREE = 16        /* malloc_heap_free */
};

/* Points in the order of events that are no allocation. */
enum mark {
    MARK_SIGNAL = 1,          /* SIGRTMIN arrived: write a dump of the heap as it is here */
    MARK_PAUSED = 2,          /* the user paused the recording: what follows is unknown until MARK_BASELINE_ENDED */
    MARK_RESUMED = 3,
    MARK_BASELINE_STARTED = 4, /* size: a number that MARK_BASELINE_ENDED repeats; EVENT_BASELINE_BLOCKs lie between */
    MARK_BASELINE_ENDED = 5,
    MARK_EAL_CLEANUP_STARTED = 6, /* the program called rte_eal_cleanup */
    MARK_EAL_CLEANUP_ENDED = 7,
    MARK_HEAP_SNAPSHOT = 8,   /* size: the baseline's number; the BASELINE_BLOCKs that follow are the heap as it is here */
    MARK_EAL_INIT_STARTED = 9,   /* the program called rte_eal_init: what is allocated until 10 is EAL's own */
    MARK_EAL_INIT_ENDED = 10,
    MARK_HEAP_REGION = 11,    /* address, size, socket: addresses that DPDK reserved for its heap */
    MARK_CLOCK = 12,          /* address: ticks; stack and label: CLOCK_MONOTONIC of that moment in ns, low and high half */
    MARK_END_HELD = 13        /* the program ends, or lets go of its heap, and waits for the host to look at its memory */
};

/* The number of the baseline that the agent takes by itself, when the heap is about to go (--verify). */
#define FINAL_BASELINE (1ULL << 40)


/* Slot of the ring; a program's call appends one (a resize two). Written by one thread, which sets `commit` last. */
struct event {
    uint16_t commit;  /* (index / ring_capacity) + 1, truncated: says that this lap's event is complete */
    uint16_t time_low; /* when it happened, in units of 2^EVENT_TIME_SHIFT ticks: the low 24 bits of that, in two pieces */
    uint8_t kind;     /* enum event_kind */
    uint8_t api;      /* enum event_api; for EVENT_MARK enum mark */
    int8_t socket;    /* NUMA socket asked for, -1 any */
    uint8_t time_high;
    uint64_t address; /* the pointer that the program gets or gives */
    uint64_t size_and_thread; /* size in bytes in the low 44 bits (larger ones saturate), index into the thread table in the high 20 */
    uint32_t stack;   /* word index into the stack table, 0: none */
    uint32_t label;   /* index in units of 8 bytes into the label table, 0: NULL */
};

#define EVENT_SIZE_BITS 44

/*
 * Events tell their times in ticks of the processor's counter (CLOCK_TSC), where the kernel itself relies on that, or else of
 * the kernel's clock. The header's anchor says what ticks are in ns, and MARK_CLOCK does again, a second or two later at
 * most: so the 24 bits, of 20 to 70 us each, are never mistaken for those of another time round.
 */
#define EVENT_TIME_SHIFT 16
enum clock_source { CLOCK_KERNEL = 0, CLOCK_TSC = 1 };

/* Why a recorded stack ends where it does. */
enum stack_end {
    STACK_COMPLETE = 0,      /* the outermost frame was reached */
    STACK_MAX_FRAMES = 1,    /* --max-frames, or the engine's own limit */
    STACK_NO_UNWIND_TABLE = 2, /* the last frame's code has no call-frame table (JIT) */
    STACK_UNSUPPORTED_RULE = 3, /* its table uses a rule that the unwinder does not know */
    STACK_OUT_OF_BOUNDS = 4, /* the next frame would lie outside the thread's stack */
    STACK_UNKNOWN_END = 5    /* the engine cannot tell (portable) */
};

/*
 * Stack table: records of 64-bit words, the id is the index of a record's first word (word 0 is never used).
 *   word 0   frames (16 bits) | enum stack_end (8) | process (8) | module epoch (32)
 *   word 1   hash of all the frames
 *   word 2.. return addresses, innermost first
 */
#define STACK_RECORD_WORDS 2

/* Label table: records of { uint16_t length; char text[length]; } at multiples of 8 bytes, record 0 is never used. */
#define LABEL_MAX_BYTES 255

/*
 * 64 bytes, one a thread that ever called a hooked function. For the host: no process reads it back, its own or another's
 * (struct own_thread, agent.h).
 */
struct thread_slot {
    uint32_t tid;
    uint16_t process;     /* index into session_header.processes */
    uint16_t reserved;
    char name[16];        /* as it was at the thread's first event */
    uint16_t appending;   /* not 0 between claiming a slot of the ring and committing it */
    uint16_t reserved2[3];
    uint64_t stack_low, stack_high; /* the stack that it was last seen on */
    uint64_t reserved3[2];
};

/* Module table: records one after another at multiples of 8 bytes; record_bytes is written last. */
struct module_record {
    uint32_t record_bytes; /* whole record, 0: no more records (yet) */
    uint16_t process;
    uint16_t path_bytes;   /* length of the path that follows the struct, without a terminator */
    uint64_t base, size;   /* address range, bytes */
    uint32_t loaded_epoch;   /* holds for stacks whose epoch is >= this one ... */
    uint32_t unloaded_epoch; /* ... and < this one (MODULE_LOADED while it is still there) */
};
#define MODULE_LOADED 0xffffffffu

struct process_entry { /* 16 bytes */
    uint32_t pid;
    uint32_t attached; /* 1 while its agent is at work */
    uint64_t reserved; /* of a followed child: its parent's index + 1 */
};

/* A process about to execute a program: it waits, for a while, until the host has seen to it (--follow-fork). */
struct exec_entry {
    uint32_t pid; /* 0: free */
    uint32_t state; /* enum exec_state */
};
enum exec_state { EXEC_FREE = 0, EXEC_WAITING = 1, EXEC_SEEN = 2, EXEC_GO = 3 };
#define SESSION_EXECS 16

struct session_header {
    /* Written once by the host before the agent maps it. */
    uint64_t magic;
    uint32_t version;
    uint32_t header_bytes;
    uint64_t total_bytes;
    uint64_t ring_offset, ring_capacity;       /* capacity in events, a power of two */
    uint64_t stacks_offset, stacks_words;
    uint64_t labels_offset, labels_bytes;
    uint64_t threads_offset, threads_capacity;
    uint64_t modules_offset, modules_bytes;
    uint32_t clock_source; /* enum clock_source */
    uint8_t pad0[256 - 108];
    /* Written by the host. */
    uint64_t heartbeat_ns; /* CLOCK_MONOTONIC, now and then, while the host is alive */
    uint8_t pad1[56];
    uint64_t tail;         /* events consumed */
    uint8_t pad2[56];
    /* Written by the target. */
    uint64_t head;         /* events claimed */
    uint8_t pad3[56];
    uint64_t lost;         /* events dropped because the ring stayed full */
    uint64_t stacks_used;  /* words */
    uint64_t labels_used;  /* bytes */
    uint64_t threads_used;
    uint64_t modules_used; /* bytes */
    uint64_t processes_used;
    uint64_t stacks_refused;  /* stacks not stored because the table was full */
    uint64_t labels_refused;
    uint64_t threads_refused; /* calls by threads that the table had no room for; their events carry slot 0 */
    uint64_t waits;        /* times that a caller found the ring full and waited */
    uint64_t walks_ended[8]; /* by enum stack_end: distinct stacks that ended so */
    uint32_t heap_owner;   /* index + 1 of the process whose DPDK is tracked; others join its heap, or are not tracked */
    uint32_t pad4;
    struct exec_entry execs[SESSION_EXECS];
    uint64_t clock_ticks, clock_ns; /* of one moment, when the first agent began */
    uint64_t clock_rate;   /* ns in 2^32 ticks; written last */
    uint8_t pad5[1024 - 752];
    struct process_entry processes[SESSION_MAX_PROCESSES];
};

#endif
