/*
 * The tracking map's inner loop, for the host: takes events in their order and changes the table of blocks.
 *
 * It does what is ordinary and hands everything else (a bad free, a live address that is handed out again, half a
 * resize) back, event by event, to the exact rules in tracking/rules.py, which are also what says here what is right.
 * tracking/mapkernel.py mirrors the structures; the arrays are numpy's.
 *
 * Events come from a program that may write anything into them: every index is made here, from numbers that the host
 * keeps or from fields cut to their bits, and nothing is read through an address that an event names. All sums are
 * unsigned and wrap. No library, no allocation, no global state:
 *
 *     gcc -O2 -shared -fPIC -o map_kernel.so map_kernel.c
 */
#include "session.h"

#define MAP_KERNEL_VERSION 3
#define HASH_MULTIPLIER 0x9e3779b97f4a7c15ULL /* as blocktable.py */
#define NO_ROW UINT64_MAX
#define THREADS (1u << (64 - EVENT_SIZE_BITS))
#define OPEN_RESIZES 1024 /* followed here at once; more go to the rules */
#define WITH_THE_RULES 0xffff
#define AHEAD 8 /* events between fetching an index slot, fetching the row it names, and using both */
#define HOMES 32 /* a power of two, more than 2 * AHEAD */

#define ORIGIN_SEEN 0
#define ORIGIN_BASELINE 1
#define ORIGIN_UNKNOWN 2

struct row { /* blocktable.ROW_DTYPE */
    uint64_t address, size_bytes, sequence;
    int64_t allocated_at_ns;
    uint32_t stack, label;
    uint16_t thread;
    uint8_t api;
    int8_t socket;
    uint8_t origin, live, resized;
    uint8_t tenancies; /* of this address that ended, TENANCIES_KEPT at the most: how much of its row_free is filled in */
};
struct tenancy { /* blocktable.TENANCY_DTYPE: a block that had an address, and its end; zeros where it is not known */
    uint32_t stack, label, free_stack;
    uint32_t freed_at; /* ns >> TENANCY_TIME_SHIFT, the low bits */
};
#define TENANCY_TIME_SHIFT 20
#define EARLIER 2
#define TENANCIES_KEPT (1 + EARLIER)
struct row_free { /* blocktable.FREE_DTYPE: the last free, whose the block was, and the tenancies before: one line of the caches */
    uint64_t sequence;
    int64_t freed_at_ns;
    uint32_t stack;
    uint16_t thread;
    uint8_t api, unused;
    uint32_t tenant_stack, tenant_label;
    struct tenancy earlier[EARLIER]; /* the latest first */
};
struct row_resizes { /* blocktable.RESIZE_DTYPE: zeros, and not written, where `resized` is not set */
    uint32_t stack, count;
};
_Static_assert(sizeof(struct row) == 48 && sizeof(struct row_free) == 64 && sizeof(struct row_resizes) == 8, "blocktable.py");
_Static_assert(sizeof(struct event) == 32, "events.EVENT_DTYPE");

struct table { /* mapkernel.Table: open addressing, linear probing, at most half full; a slot holds a row + 1, or 0 */
    struct row *rows; /* `capacity` of each of these three */
    struct row_free *frees;
    struct row_resizes *resizes;
    uint32_t *index;
    uint64_t used, capacity, mask, shift;
};

struct resize { /* mapkernel.RESIZE_DTYPE: one that has started, of a block that was live */
    uint64_t address, size_bytes, sequence; /* the block's sequence */
    uint64_t started;                       /* number of the event */
    uint64_t thread;
};

enum stop { ALL_TAKEN = 0, NEEDS_ROOM = 1, FOR_THE_RULES = 2 };

struct run { /* mapkernel.Run */
    struct resize *resizes; /* OPEN_RESIZES of them, the first `open` of which are open */
    uint16_t *resize_of;    /* by thread (THREADS of them): its resize + 1, 0 for none, or WITH_THE_RULES */
    uint64_t open;
    uint64_t sequence; /* number of the first event */
    const int64_t *times_ns; /* when they happened, one an event */
    uint64_t baseline_sequence; /* of the last MARK_BASELINE_STARTED */
    uint64_t complete;          /* the free of an unknown address is a bad one */
    uint64_t stop;
    /* What has changed, and how much more than at the start it was at the most: the first such moment. */
    int64_t bytes, blocks, top_bytes, top_blocks;
    uint64_t top_sequence;
    /* rules.Totals */
    uint64_t allocations, frees, resizes_ended, failed, unknown_frees, baseline_blocks;
    uint64_t allocated_bytes, freed_bytes, failed_bytes, baseline_bytes;
};

uint32_t map_kernel_version(void) { return MAP_KERNEL_VERSION; }

static inline uint64_t home_of(const struct table *table, uint64_t address) {
    return address * HASH_MULTIPLIER >> table->shift;
}

/* The row of `address`, which is looked for from slot *at on, or NO_ROW; *at is then the slot for it. */
static inline uint64_t find(const struct table *table, uint64_t address, uint64_t *at) {
    for (;;) {
        uint32_t found = table->index[*at];
        if (found == 0) return NO_ROW;
        if (table->rows[found - 1].address == address) return found - 1;
        *at = (*at + 1) & table->mask;
    }
}

static inline int has_room(const struct table *table) {
    return table->used < table->capacity && 2 * (table->used + 1) <= table->mask + 1;
}

static inline uint64_t insert(struct table *table, uint64_t address, uint64_t at) {
    table->rows[table->used].address = address;
    table->rows[table->used].tenancies = 0;
    table->index[at] = (uint32_t) ++table->used;
    return table->used - 1;
}

static inline uint64_t size_of(const struct event *event) { return event->size_and_thread & ((1ULL << EVENT_SIZE_BITS) - 1); }
static inline uint32_t thread_of(const struct event *event) { return (uint32_t) (event->size_and_thread >> EVENT_SIZE_BITS); }

static inline int is_memzone(uint8_t api) { return api >= API_MEMZONE_RESERVE && api <= API_MEMZONE_RESERVE_BOUNDED; }

static inline void set_resizes(const struct table *table, uint64_t row, uint32_t count, uint32_t stack) {
    if (count == 0 && !table->rows[row].resized) return;
    table->rows[row].resized = count != 0;
    table->resizes[row].stack = stack;
    table->resizes[row].count = count;
}

static inline void put(const struct table *table, uint64_t at, const struct event *event, uint64_t sequence, int64_t time_ns, uint8_t origin) {
    struct row *row = &table->rows[at];
    set_resizes(table, at, 0, 0);
    row->size_bytes = size_of(event);
    row->sequence = sequence;
    row->allocated_at_ns = time_ns;
    row->stack = event->stack;
    row->label = event->label;
    row->thread = (uint16_t) thread_of(event);
    row->api = event->api;
    row->socket = event->socket;
    row->origin = origin;
    row->live = 1;
}

static inline void put_freed(const struct table *table, uint64_t at, const struct event *event, uint64_t sequence, int64_t time_ns) {
    struct row_free *freed = &table->frees[at];
    struct row *row = &table->rows[at];
    if (row->tenancies != 0) {
        freed->earlier[1] = freed->earlier[0]; /* rubbish at first: `tenancies` says so */
        freed->earlier[0].stack = freed->tenant_stack;
        freed->earlier[0].label = freed->tenant_label;
        freed->earlier[0].free_stack = freed->stack;
        freed->earlier[0].freed_at = (uint32_t) (freed->freed_at_ns >> TENANCY_TIME_SHIFT);
    }
    if (row->tenancies < TENANCIES_KEPT) row->tenancies++;
    freed->tenant_stack = row->origin == ORIGIN_UNKNOWN ? 0 : row->stack;
    freed->tenant_label = row->origin == ORIGIN_UNKNOWN ? 0 : row->label;
    row->live = 0;
    freed->sequence = sequence;
    freed->freed_at_ns = time_ns;
    freed->stack = event->stack;
    freed->thread = (uint16_t) thread_of(event);
    freed->api = event->api;
}

static inline void changed(struct run *run, uint64_t bytes, int64_t blocks, uint64_t sequence) {
    run->bytes = (int64_t) ((uint64_t) run->bytes + bytes);
    run->blocks += blocks;
    if (run->bytes > run->top_bytes) {
        run->top_bytes = run->bytes;
        run->top_blocks = run->blocks;
        run->top_sequence = sequence;
    }
}

/* Each of these takes one event whose address is looked for from slot `at` on, or says why it did not. */

static inline enum stop take_allocated(struct table *table, struct run *run, const struct event *event, int64_t time_ns, uint64_t at, uint64_t sequence) {
    uint64_t row = find(table, event->address, &at);
    if (row == NO_ROW) {
        if (!has_room(table)) return NEEDS_ROOM;
        row = insert(table, event->address, at);
    } else if (table->rows[row].live) return FOR_THE_RULES;
    put(table, row, event, sequence, time_ns, ORIGIN_SEEN);
    run->allocations++;
    run->allocated_bytes += size_of(event);
    changed(run, size_of(event), 1, sequence);
    return ALL_TAKEN;
}

static inline enum stop take_freed(struct table *table, struct run *run, const struct event *event, int64_t time_ns, uint64_t at, uint64_t sequence) {
    uint64_t row = find(table, event->address, &at);
    if (row != NO_ROW && table->rows[row].live) {
        uint64_t size_bytes = table->rows[row].size_bytes;
        if (is_memzone(table->rows[row].api) && event->api != API_MEMZONE_FREE) return FOR_THE_RULES;
        put_freed(table, row, event, sequence, time_ns);
        run->frees++;
        run->freed_bytes += size_bytes;
        changed(run, 0 - size_bytes, -1, sequence);
        return ALL_TAKEN;
    }
    if (run->complete) return FOR_THE_RULES;
    if (row == NO_ROW) {
        if (!has_room(table)) return NEEDS_ROOM;
        row = insert(table, event->address, at);
    }
    table->rows[row].origin = ORIGIN_UNKNOWN;
    put_freed(table, row, event, sequence, time_ns);
    run->unknown_frees++;
    return ALL_TAKEN;
}

static inline enum stop take_baseline_block(struct table *table, struct run *run, const struct event *event, int64_t time_ns, uint64_t at, uint64_t sequence) {
    uint64_t row = find(table, event->address, &at);
    if (row == NO_ROW) {
        if (!has_room(table)) return NEEDS_ROOM;
        row = insert(table, event->address, at);
    } else if (table->rows[row].live || table->frees[row].sequence >= run->baseline_sequence) return ALL_TAKEN;
    put(table, row, event, sequence, time_ns, ORIGIN_BASELINE);
    run->baseline_blocks++;
    run->baseline_bytes += size_of(event);
    changed(run, size_of(event), 1, sequence);
    return ALL_TAKEN;
}

static inline enum stop take_resize_started(struct table *table, struct run *run, const struct event *event, uint64_t at, uint64_t sequence) {
    uint64_t found = find(table, event->address, &at);
    uint16_t *number = &run->resize_of[thread_of(event)];
    struct resize *resize;
    if (*number != 0 || found == NO_ROW || !table->rows[found].live || run->open >= OPEN_RESIZES) return FOR_THE_RULES;
    resize = &run->resizes[run->open++];
    resize->address = event->address;
    resize->size_bytes = size_of(event);
    resize->sequence = table->rows[found].sequence;
    resize->started = sequence;
    resize->thread = thread_of(event);
    *number = (uint16_t) run->open;
    return ALL_TAKEN;
}

/* The resize number `number` has ended: the last one takes its place. */
static inline void close_resize(struct run *run, uint16_t number) {
    struct resize *closed = &run->resizes[number - 1], *last = &run->resizes[run->open - 1];
    run->resize_of[closed->thread] = 0;
    if (last != closed) {
        *closed = *last;
        run->resize_of[closed->thread] = number;
    }
    run->open--;
}

static inline enum stop take_resize_ended(struct table *table, struct run *run, const struct event *event, int64_t time_ns, uint64_t at, uint64_t sequence) {
    uint16_t number = run->resize_of[thread_of(event)];
    uint64_t old_at, old, row, size_bytes = size_of(event), old_size_bytes;
    const struct resize *resize;
    if (number == 0 || number == WITH_THE_RULES) return FOR_THE_RULES;
    resize = &run->resizes[number - 1];
    if (event->address == 0) {
        run->failed++;
        run->failed_bytes += resize->size_bytes;
        close_resize(run, number);
        return ALL_TAKEN;
    }
    old_at = home_of(table, resize->address);
    row = old = find(table, resize->address, &old_at);
    if (old == NO_ROW || !table->rows[old].live || table->rows[old].sequence != resize->sequence) return FOR_THE_RULES;
    old_size_bytes = table->rows[old].size_bytes;
    if (event->address != resize->address) {
        row = find(table, event->address, &at);
        if (row == NO_ROW) {
            if (!has_room(table)) return NEEDS_ROOM;
            row = insert(table, event->address, at);
        } else if (table->rows[row].live) return FOR_THE_RULES;
        struct row moved = table->rows[old];
        moved.address = event->address;
        moved.resized = table->rows[row].resized;
        moved.tenancies = table->rows[row].tenancies;
        table->rows[row] = moved;
        put_freed(table, old, event, sequence, time_ns);
    }
    table->rows[row].size_bytes = size_bytes;
    set_resizes(table, row, table->rows[old].resized ? table->resizes[old].count + 1 : 1, event->stack);
    run->resizes_ended++;
    if (size_bytes > old_size_bytes) run->allocated_bytes += size_bytes - old_size_bytes;
    else run->freed_bytes += old_size_bytes - size_bytes;
    changed(run, size_bytes - old_size_bytes, 0, sequence);
    close_resize(run, number);
    return ALL_TAKEN;
}

static inline enum stop take(struct table *table, struct run *run, const struct event *event, int64_t time_ns, uint64_t at, uint64_t sequence) {
    switch (event->kind) {
    case EVENT_ALLOCATED: return take_allocated(table, run, event, time_ns, at, sequence);
    case EVENT_FREED: return take_freed(table, run, event, time_ns, at, sequence);
    case EVENT_RESIZE_STARTED: return take_resize_started(table, run, event, at, sequence);
    case EVENT_RESIZE_ENDED: return take_resize_ended(table, run, event, time_ns, at, sequence);
    case EVENT_BASELINE_BLOCK: return take_baseline_block(table, run, event, time_ns, at, sequence);
    case EVENT_ALLOCATION_FAILED:
        run->failed++;
        run->failed_bytes += size_of(event);
        return ALL_TAKEN;
    case EVENT_MARK: return event->api == MARK_BASELINE_STARTED ? FOR_THE_RULES : ALL_TAKEN;
    default: return ALL_TAKEN; /* of a newer agent: it means nothing here */
    }
}

/*
 * Takes `events` in order until all are taken, the table needs room, or one is for the rules; returns how many it took.
 * run->stop says which. In a table of a million rows nearly every access misses the caches: what the events after this
 * one will need is fetched meanwhile.
 */
uint64_t map_apply(struct table *in_table, struct run *in_run, const struct event *events, uint64_t count) {
    struct table table = *in_table; /* copies, so that the compiler can keep them in registers */
    struct run run = *in_run;
    uint64_t homes[HOMES], i, ahead = 0;
    enum stop stop = ALL_TAKEN;
    for (i = 0; i < count; i++) {
        for (; ahead < count && ahead <= i + 2 * AHEAD; ahead++) {
            uint64_t home = home_of(&table, events[ahead].address);
            homes[ahead % HOMES] = home;
            __builtin_prefetch(&table.index[home]);
        }
        if (i + AHEAD < count) {
            uint32_t found = table.index[homes[(i + AHEAD) % HOMES]];
            if (found != 0) {
                const char *row = (const char *) &table.rows[found - 1];
                __builtin_prefetch(row, 1);
                __builtin_prefetch(row + sizeof(struct row) - 1, 1);
                if (events[i + AHEAD].kind == EVENT_FREED) __builtin_prefetch(&table.frees[found - 1], 1);
            }
        }
        stop = take(&table, &run, &events[i], run.times_ns[i], homes[i % HOMES], run.sequence + i);
        if (stop != ALL_TAKEN) break;
    }
    run.stop = stop;
    *in_run = run;
    in_table->used = table.used;
    return i;
}

/* The rows (count,) of `addresses` (count,), -1 where there is none. */
void map_find(const struct table *table, const uint64_t *addresses, int64_t *rows, uint64_t count) {
    uint64_t i;
    for (i = 0; i < count; i++) {
        uint64_t at = home_of(table, addresses[i]);
        if (i + 2 * AHEAD < count) __builtin_prefetch(&table->index[home_of(table, addresses[i + 2 * AHEAD])]);
        if (i + AHEAD < count) {
            uint32_t found = table->index[home_of(table, addresses[i + AHEAD])];
            if (found != 0) __builtin_prefetch(&table->rows[found - 1]);
        }
        rows[i] = (int64_t) find(table, addresses[i], &at); /* NO_ROW is -1 */
    }
}

/* Enters all rows into the index, which is empty and has more than two slots a row. */
void map_index(const struct table *table) {
    uint64_t row;
    for (row = 0; row < table->used; row++) {
        uint64_t at = home_of(table, table->rows[row].address);
        if (row + AHEAD < table->used) __builtin_prefetch(&table->index[home_of(table, table->rows[row + AHEAD].address)], 1);
        while (table->index[at] != 0) at = (at + 1) & table->mask;
        table->index[at] = (uint32_t) row + 1;
    }
}
