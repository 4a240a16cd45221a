/*
 * Known call chains. Each one allocates at its bottom with its own name as the type, comes down again to free the
 * block, and once more to free it a second time: so the report of that duplicate free has three stacks of the chain.
 * Each chain ends in rte_malloc or rte_free itself, called by `act`.
 */
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include "eal.h"

static const char *chain; /* its name */
static void *block;
static enum { ALLOCATE, FREE } action;
static volatile int sink;

#define NO_TAIL_CALL __asm__ volatile("" : : : "memory")

NOINLINE void act(void) {
    if (action == ALLOCATE) block = rte_malloc(chain, 64, 0);
    else rte_free(block);
    NO_TAIL_CALL;
}

/* ---- direct ---- */
NOINLINE void direct_inner(void) { act(); NO_TAIL_CALL; }
NOINLINE void direct_outer(void) { direct_inner(); NO_TAIL_CALL; }
static void direct(void) { direct_outer(); NO_TAIL_CALL; }

/* ---- a static function, inlined where the compiler does so ---- */
static inline void inlined_leaf(void) { act(); NO_TAIL_CALL; }
NOINLINE void inlined_outer(void) { inlined_leaf(); NO_TAIL_CALL; }
static void inlined(void) { inlined_outer(); NO_TAIL_CALL; }

/* ---- through function pointers ---- */
typedef void (*step)(void);
NOINLINE void pointed_to(void) { act(); NO_TAIL_CALL; }
static volatile step pointer = pointed_to;
NOINLINE void through_pointer(step next) { next(); NO_TAIL_CALL; }
static void function_pointer(void) { through_pointer(pointer); NO_TAIL_CALL; }

/* ---- tail calls: at -O2 only the last function has a frame ---- */
NOINLINE void tail_last(void) { act(); NO_TAIL_CALL; }
NOINLINE void tail_middle(void) { sink++; tail_last(); }
NOINLINE void tail_first(void) { sink++; tail_middle(); }
static void tail_calls(void) { tail_first(); NO_TAIL_CALL; }

/* rte_malloc itself is reached by a jump */
NOINLINE void tail_leaf_allocate(void **result) { *result = rte_malloc(chain, 64, 0); }
NOINLINE void tail_leaf_free(void *freed) { rte_free(freed); }
static void tail_into_dpdk(void) {
    if (action == ALLOCATE) tail_leaf_allocate(&block);
    else tail_leaf_free(block);
    NO_TAIL_CALL;
}

/* ---- a callback of libc's qsort ---- */
static int compared;
NOINLINE int compare(const void *a, const void *b) {
    if (compared++ == 0) act();
    return *(const int *) a - *(const int *) b;
}
static void qsort_callback(void) {
    int numbers[] = {3, 1, 2, 5, 4, 9, 7, 8};
    compared = 0;
    qsort(numbers, 8, sizeof *numbers, compare);
    sink += numbers[0];
}

/* ---- callers that never return: the return address lies behind the function's end ---- */
static jmp_buf way_out;
NOINLINE __attribute__((noreturn)) void leave(void) {
    act();
    longjmp(way_out, 1);
}
NOINLINE __attribute__((noreturn)) void calls_leave_last(void) { sink++; leave(); }
static void noreturn_caller(void) {
    if (setjmp(way_out) == 0) calls_leave_last();
    NO_TAIL_CALL;
}

/* ---- a frame of variable size ---- */
NOINLINE void with_alloca(int bytes) {
    volatile char *room = alloca((size_t) bytes);
    room[0] = 1;
    act();
    sink += room[0];
}
static void alloca_frame(void) { with_alloca(100 + sink % 50); NO_TAIL_CALL; }

/* ---- a realigned stack: the CFA is found through rbp or an expression ---- */
NOINLINE void with_alignment(void) {
    _Alignas(256) volatile char room[512];
    room[3] = 1;
    act();
    sink += room[3];
}
static void realigned_stack(void) { with_alignment(); NO_TAIL_CALL; }

/* ---- a frame too large for an 8 or 16 bit offset ---- */
NOINLINE void with_large_frame(void) {
    volatile char room[200000];
    room[5] = 1;
    act();
    sink += room[5];
}
static void large_frame(void) { with_large_frame(); NO_TAIL_CALL; }

/* ---- a signal handler ---- */
static void handler(int number) {
    (void) number;
    act();
    NO_TAIL_CALL;
}
static void signal_handler(void) {
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    NO_TAIL_CALL;
}

/* ---- forty functions deep ---- */
#define LEVEL(n, next) NOINLINE void level_##n(void) { next(); NO_TAIL_CALL; }
LEVEL(1, act)
LEVEL(2, level_1) LEVEL(3, level_2) LEVEL(4, level_3) LEVEL(5, level_4) LEVEL(6, level_5) LEVEL(7, level_6)
LEVEL(8, level_7) LEVEL(9, level_8) LEVEL(10, level_9) LEVEL(11, level_10) LEVEL(12, level_11) LEVEL(13, level_12)
LEVEL(14, level_13) LEVEL(15, level_14) LEVEL(16, level_15) LEVEL(17, level_16) LEVEL(18, level_17)
LEVEL(19, level_18) LEVEL(20, level_19) LEVEL(21, level_20) LEVEL(22, level_21) LEVEL(23, level_22)
LEVEL(24, level_23) LEVEL(25, level_24) LEVEL(26, level_25) LEVEL(27, level_26) LEVEL(28, level_27)
LEVEL(29, level_28) LEVEL(30, level_29) LEVEL(31, level_30) LEVEL(32, level_31) LEVEL(33, level_32)
LEVEL(34, level_33) LEVEL(35, level_34) LEVEL(36, level_35) LEVEL(37, level_36) LEVEL(38, level_37)
LEVEL(39, level_38) LEVEL(40, level_39)
static void forty_deep(void) { level_40(); NO_TAIL_CALL; }

/* ---- each of the three acts in a thread of its own ---- */
NOINLINE void in_thread(void) { act(); NO_TAIL_CALL; }
static void *thread_main(void *unused) {
    in_thread();
    return unused;
}
static void thread(void) {
    pthread_t id;
    pthread_create(&id, NULL, thread_main, NULL);
    pthread_join(id, NULL);
}

static const struct {
    const char *name;
    void (*run)(void);
} chains[] = {
    {"direct", direct},
    {"inlined", inlined},
    {"function_pointer", function_pointer},
    {"tail_calls", tail_calls},
    {"tail_into_dpdk", tail_into_dpdk},
    {"qsort_callback", qsort_callback},
    {"noreturn_caller", noreturn_caller},
    {"alloca_frame", alloca_frame},
    {"realigned_stack", realigned_stack},
    {"large_frame", large_frame},
    {"signal_handler", signal_handler},
    {"forty_deep", forty_deep},
    {"thread", thread},
};

/* gdb waits for this before it looks at rte_malloc and rte_free. */
NOINLINE void chains_begin(void) { NO_TAIL_CALL; }

int main(void) {
    start_eal();
    chains_begin();
    for (unsigned i = 0; i < sizeof chains / sizeof *chains; i++) {
        chain = chains[i].name;
        action = ALLOCATE;
        chains[i].run();
        action = FREE;
        chains[i].run();
        chains[i].run();
    }
    return 0;
}
