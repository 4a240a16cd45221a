/*
 * The native engine's hooks (x86-64 Linux): each stands in for one of DPDK's functions, calls the original, and appends
 * the event with its exact stack. They run on the program's threads: see the rules at the top of session.c.
 *
 * agent.js redirects a function to its hook (class NativeEngine); where a function is too short for any redirect,
 * listener_enter and listener_leave at the end do the same from Interceptor.attach.
 */
#include "agent.h"
#include "unwind.h"

/* What to call instead of the replaced function. Not wiped in a forked child: it goes on calling the originals. */
struct originals {
    void *(*rte_malloc)(const char *, size_t, unsigned);
    void *(*rte_malloc_socket)(const char *, size_t, unsigned, int);
    void *(*rte_zmalloc)(const char *, size_t, unsigned);
    void *(*rte_zmalloc_socket)(const char *, size_t, unsigned, int);
    void *(*rte_calloc)(const char *, size_t, size_t, unsigned);
    void *(*rte_calloc_socket)(const char *, size_t, size_t, unsigned, int);
    void *(*rte_realloc)(void *, size_t, unsigned);
    void *(*rte_realloc_socket)(void *, size_t, unsigned, int);
    void (*rte_free)(void *);
    void (*rte_free_sensitive)(void *);
    const struct memzone *(*rte_memzone_reserve)(const char *, size_t, int, unsigned);
    const struct memzone *(*rte_memzone_reserve_aligned)(const char *, size_t, int, unsigned, unsigned);
    const struct memzone *(*rte_memzone_reserve_bounded)(const char *, size_t, int, unsigned, unsigned, unsigned);
    int (*rte_memzone_free)(const struct memzone *);
    int (*rte_eal_cleanup)(void);
    int (*rte_eal_init)(int, char **);
    uint64_t first_hook, hooks_bytes; /* where the hooks lie, which are compiled in the order of this file */
    volatile uint64_t search; /* where inherit_private goes on */
    volatile uint64_t wrapping; /* threads inside of rte_eal_init or rte_eal_cleanup: our hook is on their stacks */
    volatile uint64_t uncounted; /* threads inside of a hook that have no slot of their own */
};

STATE(struct originals, originals);

#define SOCKET_ANY -1
#define NESTED ((struct thread_slot *) 1)
#define FRAME() ((const uint64_t *) __builtin_frame_address(0))

/* What a thread keeps between its calls, beside its slot. */
struct walk_cache {
    uint32_t number, epoch, stack, reserved;
};
struct thread_private {
    struct walk_cache allocation, release;
    /* two memos follow */
};

INLINE struct unwind_memo *memo_of(struct thread_private *own, int release) {
    return (struct unwind_memo *) ((uint8_t *) (own + 1) + (release ? sizeof(struct unwind_memo) : 0));
}

#define PRIVATE_BYTES ((long) ((sizeof(struct thread_private) + 2 * unwind_memo_bytes() + 4095) & ~4095UL))
#define INHERITANCE_SEARCH 16

/* The private memory of a thread that is gone, if one is found near the end of a bounded search; else 0. */
static uint64_t inherit_private(void) {
    uint64_t threads = agent.header->threads_used, i, memory = 0;
    if (threads > agent.threads_capacity) threads = agent.threads_capacity;
    for (i = 0; i < INHERITANCE_SEARCH && threads > 1 && memory == 0; i++) {
        struct own_thread *own = own_of(&agent.threads[1 + atomic_add(&originals.search, 1) % (threads - 1)]);
        if (own->memory == 0 || !lock_gone_thread(own)) continue;
        memory = own->memory;
        own->memory = 0;
        publish_u32(&own->lock, 0);
    }
    return memory;
}

static struct thread_private *private_of(struct own_thread *own) {
    if (own->memory == 0) {
        uint64_t address = inherit_private();
        if (address == 0) address = (uint64_t) syscall(SYS_MMAP, 0L, PRIVATE_BYTES, 3L, 0x22L, -1L, 0L);
        if ((int64_t) address < 0) return NULL;
        own->memory = address;
    }
    return (struct thread_private *) own->memory;
}

/*
 * Whether a hook was reached from another one's original by a tail call (rte_malloc jumps to rte_malloc_socket): then
 * the return address lies in that hook, which counts the call. A cheap answer for the commonest nesting.
 */
#define IN_HOOKS(address) ((address) - originals.first_hook < originals.hooks_bytes)
#define FROM_HOOK(frame) IN_HOOKS((frame)[1])

/* Takes our own hooks of rte_eal_init and rte_eal_cleanup out of a trace: the program's stack has no such frame. */
static void take_out_hooks(struct unwind_trace *trace) {
    int32_t i, kept = 0;
    for (i = 0; i < trace->count; i++)
        if (!IN_HOOKS(trace->frames[i])) trace->frames[kept++] = trace->frames[i];
    trace->count = kept;
    trace->hash = hash_stack(trace->frames, (uint32_t) kept);
    trace->number = 0;
}

/* The stack above a hook, by walking; it becomes what stack_above() finds again if the thread keeps coming by. */
static __attribute__((noinline)) uint32_t walk_stack_above(struct thread_slot *thread, const uint64_t *frame, int release) {
    uint64_t frames[MAX_FRAMES], sp = (uint64_t) (frame + 2);
    struct unwind_trace trace;
    struct thread_private *own;
    struct walk_cache *cache;
    uint32_t epoch = agent.epoch;
    if (!on_known_stack(thread, sp)) { /* its bounds are unknown: the caller is all that can be vouched for */
        uint64_t caller = frame[1];
        return intern_stack(hash_stack(&caller, 1), &caller, 1, STACK_OUT_OF_BOUNDS);
    }
    own = private_of(own_of(thread));
    trace.ra = frame[1];
    trace.sp = sp;
    trace.bp = frame[0];
    trace.low = sp;
    trace.high = own_of(thread)->stack_high;
    trace.frames = frames;
    trace.max_frames = (int32_t) agent.max_frames;
    cache = own == NULL ? NULL : release ? &own->release : &own->allocation;
    unwind_walk_with_memo(agent.unwinder, own == NULL ? NULL : memo_of(own, release), &trace);
    if (originals.wrapping != 0) take_out_hooks(&trace);
    if (cache == NULL || trace.number == 0)
        return intern_stack(trace.hash, frames, (uint32_t) trace.count, (uint32_t) trace.end);
    if (trace.number == cache->number && epoch == cache->epoch) return cache->stack;
    cache->stack = intern_stack(trace.hash, frames, (uint32_t) trace.count, (uint32_t) trace.end);
    cache->number = trace.number;
    cache->epoch = epoch;
    return cache->stack;
}

/*
 * The number of the stack above the hook whose frame is `frame` (saved rbp, then the return address). 0: not stored.
 * Where it is the one that this thread came by last, no frame of it is copied.
 */
INLINE uint32_t stack_above(struct thread_slot *thread, const uint64_t *frame, int release) {
    uint64_t sp = (uint64_t) (frame + 2);
    const struct own_thread *kept = own_of(thread);
    struct thread_private *own = (struct thread_private *) kept->memory;
    if (likely(own != NULL && sp >= kept->stack_low && sp < kept->stack_high)) {
        const struct walk_cache *cache = release ? &own->release : &own->allocation;
        uint32_t number = repeat_walk(agent.unwinder, memo_of(own, release), frame[1], sp, frame[0], sp, kept->stack_high,
                                      (int32_t) agent.max_frames, NULL);
        if (likely(number != 0 && number == cache->number && cache->epoch == agent.epoch)) return cache->stack;
    }
    return walk_stack_above(thread, frame, release);
}

/*
 * The calling thread's slot if this is the outermost hooked call on it, NESTED if another one encloses it, NULL if the
 * thread has no slot. The stack grows down: a frame above the outermost one means that that one was left by longjmp.
 */
INLINE struct thread_slot *enter(const uint64_t *frame) {
    struct thread_slot *thread = thread_known();
    struct own_thread *own;
    if (unlikely(thread == NULL) && (thread = thread_register()) == NULL) {
        atomic_add(&originals.uncounted, 1);
        atomic_add(&agent.header->lost, 1);
        return NULL;
    }
    own = own_of(thread);
    if (unlikely(own->depth != 0) && (uint64_t) frame < own->outermost_sp) return NESTED;
    own->depth = 1;
    own->outermost_sp = (uint64_t) frame;
    return thread;
}

INLINE void leave(struct thread_slot *thread) {
    if (thread == NULL) atomic_add(&originals.uncounted, (uint64_t) -1);
    else if (thread != NESTED) own_of(thread)->depth = 0;
}

#define OUTERMOST(thread) likely((uint64_t) (thread) > 1 && agent.recording)

INLINE void note_allocation(struct thread_slot *thread, const uint64_t *frame, uint32_t api, int socket, const char *type,
                            uint64_t size, uint64_t address) {
    uint32_t stack = agent.allocation_backtrace ? stack_above(thread, frame, 0) : 0;
    append(thread, WHAT(address != 0 ? EVENT_ALLOCATED : EVENT_ALLOCATION_FAILED, api, socket), address, size, stack,
           label_of(type));
}

INLINE void note_free(struct thread_slot *thread, const uint64_t *frame, uint32_t api, uint64_t address) {
    uint32_t stack = agent.free_backtrace ? stack_above(thread, frame, 1) : 0;
    append(thread, WHAT(EVENT_FREED, api, SOCKET_ANY), address, 0, stack, 0);
}

static void note_reservation(struct thread_slot *thread, const uint64_t *frame, uint32_t api, int socket, const char *name,
                             uint64_t length, const struct memzone *zone) {
    uint32_t stack = agent.allocation_backtrace ? stack_above(thread, frame, 0) : 0;
    uint32_t label = copy_label("memzone:", name);
    if (zone == NULL) append(thread, WHAT(EVENT_ALLOCATION_FAILED, api, socket), 0, length, stack, label);
    else append(thread, WHAT(EVENT_ALLOCATED, api, socket), zone->address, zone->length, stack, label);
}

/* ---- one hook a function: hook_rte_malloc first, hooks_uncounted after the last ---- */

#define ALLOCATING_HOOK(name, api, parameters, arguments, socket, size) \
    void *hook_##name parameters { \
        const uint64_t *frame = FRAME(); \
        struct thread_slot *thread; \
        void *block; \
        if (OFF() || FROM_HOOK(frame)) return originals.name arguments; \
        thread = enter(frame); \
        block = originals.name arguments; \
        if (OUTERMOST(thread)) note_allocation(thread, frame, api, socket, type, size, (uint64_t) block); \
        leave(thread); \
        return block; \
    }

ALLOCATING_HOOK(rte_malloc, API_MALLOC, (const char *type, size_t size, unsigned align), (type, size, align), SOCKET_ANY, size)
ALLOCATING_HOOK(rte_malloc_socket, API_MALLOC_SOCKET, (const char *type, size_t size, unsigned align, int socket),
                (type, size, align, socket), socket, size)
ALLOCATING_HOOK(rte_zmalloc, API_ZMALLOC, (const char *type, size_t size, unsigned align), (type, size, align), SOCKET_ANY, size)
ALLOCATING_HOOK(rte_zmalloc_socket, API_ZMALLOC_SOCKET, (const char *type, size_t size, unsigned align, int socket),
                (type, size, align, socket), socket, size)
ALLOCATING_HOOK(rte_calloc, API_CALLOC, (const char *type, size_t number, size_t size, unsigned align),
                (type, number, size, align), SOCKET_ANY, number * size)
ALLOCATING_HOOK(rte_calloc_socket, API_CALLOC_SOCKET, (const char *type, size_t number, size_t size, unsigned align, int socket),
                (type, number, size, align, socket), socket, number * size)

/* A resize of NULL is an allocation; any other one is announced before and ended after, for the order's sake. */
#define RESIZING_HOOK(name, api, parameters, arguments, socket) \
    void *hook_##name parameters { \
        const uint64_t *frame = FRAME(); \
        struct thread_slot *thread; \
        uint32_t stack = 0, announced = 0; \
        void *block; \
        if (OFF()) return originals.name arguments; \
        thread = enter(frame); \
        if (OUTERMOST(thread)) { \
            stack = agent.allocation_backtrace ? stack_above(thread, frame, 0) : 0; \
            if (old != NULL) { \
                append(thread, WHAT(EVENT_RESIZE_STARTED, api, (socket)), (uint64_t) old, size, stack, 0); \
                announced = 1; \
            } \
        } \
        block = originals.name arguments; \
        if (announced) append(thread, WHAT(EVENT_RESIZE_ENDED, api, (socket)), (uint64_t) block, size, stack, 0); \
        else if (old == NULL && OUTERMOST(thread)) \
            append(thread, WHAT(block != NULL ? EVENT_ALLOCATED : EVENT_ALLOCATION_FAILED, api, (socket)), (uint64_t) block, \
                   size, stack, 0); \
        leave(thread); \
        return block; \
    }

RESIZING_HOOK(rte_realloc, API_REALLOC, (void *old, size_t size, unsigned align), (old, size, align), SOCKET_ANY)
RESIZING_HOOK(rte_realloc_socket, API_REALLOC_SOCKET, (void *old, size_t size, unsigned align, int socket),
              (old, size, align, socket), socket)

#define FREEING_HOOK(name, api) \
    void hook_##name(void *block) { \
        const uint64_t *frame = FRAME(); \
        struct thread_slot *thread; \
        if (OFF()) { \
            originals.name(block); \
            return; \
        } \
        thread = enter(frame); \
        if (block != NULL && OUTERMOST(thread)) note_free(thread, frame, api, (uint64_t) block); \
        originals.name(block); \
        leave(thread); \
    }

FREEING_HOOK(rte_free, API_FREE)
FREEING_HOOK(rte_free_sensitive, API_FREE_SENSITIVE)

#define RESERVING_HOOK(hooked, api, parameters, arguments) \
    const struct memzone *hook_##hooked parameters { \
        const uint64_t *frame = FRAME(); \
        struct thread_slot *thread; \
        const struct memzone *zone; \
        if (OFF()) return originals.hooked arguments; \
        thread = enter(frame); \
        zone = originals.hooked arguments; \
        if (OUTERMOST(thread)) note_reservation(thread, frame, api, socket, name, length, zone); \
        leave(thread); \
        return zone; \
    }

RESERVING_HOOK(rte_memzone_reserve, API_MEMZONE_RESERVE, (const char *name, size_t length, int socket, unsigned flags),
               (name, length, socket, flags))
RESERVING_HOOK(rte_memzone_reserve_aligned, API_MEMZONE_RESERVE_ALIGNED,
               (const char *name, size_t length, int socket, unsigned flags, unsigned align), (name, length, socket, flags, align))
RESERVING_HOOK(rte_memzone_reserve_bounded, API_MEMZONE_RESERVE_BOUNDED,
               (const char *name, size_t length, int socket, unsigned flags, unsigned align, unsigned bound),
               (name, length, socket, flags, align, bound))

int hook_rte_memzone_free(const struct memzone *zone) {
    const uint64_t *frame = FRAME();
    struct thread_slot *thread;
    uint64_t address;
    int result;
    if (OFF()) return originals.rte_memzone_free(zone);
    thread = enter(frame);
    if (zone != NULL && OUTERMOST(thread) && (address = zone_address(zone)) != 0)
        note_free(thread, frame, API_MEMZONE_FREE, address);
    result = originals.rte_memzone_free(zone);
    leave(thread);
    return result;
}

/* These two are only marked, not entered: what they allocate and free counts. */
int hook_rte_eal_cleanup(void) {
    int result;
    if (OFF()) return originals.rte_eal_cleanup();
    atomic_add(&originals.uncounted, 1);
    atomic_add(&originals.wrapping, 1);
    cleanup_started();
    result = originals.rte_eal_cleanup();
    agent_mark(MARK_EAL_CLEANUP_ENDED, 0);
    atomic_add(&originals.wrapping, (uint64_t) -1);
    atomic_add(&originals.uncounted, (uint64_t) -1);
    return result;
}

int hook_rte_eal_init(int argc, char **argv) {
    int result;
    if (OFF()) return originals.rte_eal_init(argc, argv);
    atomic_add(&originals.uncounted, 1);
    atomic_add(&originals.wrapping, 1);
    own_heap_begins();
    agent_mark(MARK_EAL_INIT_STARTED, 0);
    result = originals.rte_eal_init(argc, argv);
    agent_note_regions();
    agent_mark(MARK_EAL_INIT_ENDED, 0);
    atomic_add(&originals.wrapping, (uint64_t) -1);
    atomic_add(&originals.uncounted, (uint64_t) -1);
    return result;
}

uint64_t hooks_uncounted(void) { return originals.uncounted; }

/* Gives back what the threads of this process keep. Nobody is inside a hook any more. */
void hooks_stop(void) {
    uint64_t i;
    for (i = 1; i < agent.threads_capacity; i++) {
        struct own_thread *own = own_of(&agent.threads[i]);
        if (own->memory == 0) continue;
        syscall(SYS_MUNMAP, (long) own->memory, PRIVATE_BYTES);
        own->memory = 0;
    }
}

void hooks_start(void) {
    originals.first_hook = (uint64_t) hook_rte_malloc;
    originals.hooks_bytes = (uint64_t) hooks_uncounted - originals.first_hook;
    unwind_add_framed_code(agent.unwinder, originals.first_hook, (uint64_t) hooks_uncounted);
}
