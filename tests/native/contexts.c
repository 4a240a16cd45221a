/* Calls check_stack() from every kind of frame that a C compiler makes. Built with many sets of flags. */
#define _GNU_SOURCE
#include "walk_check.h"

#include <alloca.h>
#include <dlfcn.h>
#include <pthread.h>
#include <search.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int sink;
static volatile int zero;

OPAQUE static void plain(const char *what)
{
    check_stack(what, ENDS_COMPLETE);
    NO_TAIL_CALL();
}

OPAQUE static int many_registers(const char *what, int a, int b, int c, int d, int e, int f, int g, int h)
{
    int x = a * b + zero, y = c * d + zero, z = e * f + zero, w = g * h + zero, v = a ^ h, u = b ^ g;
    plain(what);
    NO_TAIL_CALL();
    return x + y + z + w + v * u;
}

OPAQUE static int with_alloca(int bytes)
{
    volatile char *room = alloca((size_t)bytes + 1);
    room[bytes] = 1;
    plain("alloca");
    return room[bytes];
}

OPAQUE static int with_array(int count)
{
    volatile int array[count];
    array[count - 1] = 2;
    sink = many_registers("variable array", 1, 2, 3, 4, 5, 6, 7, 8);
    return array[count - 1];
}

OPAQUE __attribute__((force_align_arg_pointer)) static int realigned_by_attribute(int a)
{
    plain("force_align_arg_pointer");
    return a + sink;
}

OPAQUE static int realigned_for_a_local(int a, int b, int c, int d, int e, int f, int g, int h)
{
    volatile char local[64] __attribute__((aligned(64)));
    local[a & 63] = 1;
    sink = (int)((uintptr_t)local & 63);
    plain("local aligned to 64");
    return local[a & 63] + b + c + d + e + f + g + h;
}

OPAQUE static int realigned_with_alloca(int a, int b, int c, int d, int e, int f, int g, int h)
{
    volatile char local[128] __attribute__((aligned(128)));
    volatile char *room = alloca((size_t)a + 64);
    local[a & 63] = room[a] = 1;
    sink = realigned_by_attribute(3);
    plain("local aligned to 128 and alloca");
    return local[a & 63] + room[a] + b + c + d + e + f + g + h;
}

OPAQUE static int large_frame(int a)
{
    volatile char local[1 << 20];
    local[a] = 1;
    plain("frame of a MiB");
    return local[a];
}

OPAQUE static int recurse(int depth, int most)
{
    int result;
    if (depth == most) {
        check_stack_of("recursion", ENDS_COMPLETE, depth < 250 ? depth : 256);
        return 1;
    }
    result = recurse(depth + 1, most) + depth;
    NO_TAIL_CALL();
    return result;
}

OPAQUE static int recurse_with_alloca(int depth)
{
    volatile char *room = alloca((size_t)depth * 8 + 8);
    room[0] = (char)depth;
    if (depth == 0)
        plain("recursion with alloca");
    else if (depth % 3 == 0)
        sink = realigned_for_a_local(1, 2, 3, 4, 5, 6, 7, 8) + recurse_with_alloca(depth - 1);
    else
        sink = recurse_with_alloca(depth - 1);
    return room[0];
}

OPAQUE static int through_pointer(int (*function)(int), int argument)
{
    int result = function(argument) + 1;
    NO_TAIL_CALL();
    return result;
}

OPAQUE static int pointed_to(int a)
{
    plain("function pointer");
    return a;
}

/* The memo's cases: the same and other callers, deeper and shallower, one after the other. */
OPAQUE static int wander(int seed, int depth)
{
    int result = depth;
    if (depth == 0) {
        check_stack("wandering", ENDS_COMPLETE);
        NO_TAIL_CALL();
        return 1;
    }
    if (seed & 1)
        result += wander(seed >> 1, depth - 1);
    if (seed & 2) {
        volatile char *room = alloca((size_t)(seed & 0xff) + 16);
        room[0] = 1;
        result += wander(seed >> 2, depth - 1) + room[0];
    }
    if ((seed & 7) == 0)
        result += realigned_for_a_local(1, 2, 3, 4, 5, 6, 7, seed);
    if ((seed & 3) == 0)
        result += many_registers("wandering", seed, 2, 3, 4, 5, 6, 7, 8);
    NO_TAIL_CALL();
    return result;
}

static int compare(const void *a, const void *b)
{
    static int checked;
    if (checked++ < 2)
        plain("qsort's callback");
    return *(const int *)a - *(const int *)b;
}

static void visit(const void *node, VISIT which, int depth)
{
    (void)node;
    (void)which;
    (void)depth;
    plain("twalk's callback");
}

static jmp_buf after_noreturn;

OPAQUE static __attribute__((noreturn)) void never_returns(void)
{
    plain("call that does not return");
    longjmp(after_noreturn, 1);
}

/* The call is the function's last instruction: the return address belongs to whatever follows. */
OPAQUE static void ends_in_a_call(void) { never_returns(); }

OPAQUE static int caller_of_the_end(void)
{
    ends_in_a_call();
    return 3;
}

static void on_signal(int number)
{
    (void)number;
    plain("signal handler");
}

static void on_signal_elsewhere(int number)
{
    (void)number;
    check_stack("signal handler on its own stack", ENDS_OUT_OF_BOUNDS);
    NO_TAIL_CALL();
}

OPAQUE static int raise_in(int number)
{
    int result = raise(number);
    NO_TAIL_CALL();
    return result;
}

static void on_trap(int number)
{
    (void)number;
    plain("signal in the middle of a function");
}

OPAQUE static int traps(int a)
{
    volatile char local[32] __attribute__((aligned(32)));
    local[a & 31] = 1;
    __asm__ volatile("int3" ::: "memory");
    return local[a & 31];
}

static void on_nested(int number)
{
    (void)number;
    sink = raise_in(SIGUSR1);
}

static void *thread(void *argument)
{
    plain("thread");
    sink = recurse(0, 20) + (int)(intptr_t)argument;
    return NULL;
}

/* Code with no table: push the frame, call the function in rdi, return. */
static const unsigned char jit_code[] = {0x48, 0x83, 0xec, 0x08, 0xff, 0xd7, 0x48, 0x83, 0xc4, 0x08, 0xc3};

static void from_jit(void)
{
    check_stack_of("code without a table", ENDS_NO_TABLE, 2);
    NO_TAIL_CALL();
}

static int (*timed)(int);

static void on_timer(int number)
{
    static int checked;
    (void)number;
    if (checked < 40) {
        checked++;
        check_stack("timer", ENDS_SOMEHOW); /* anywhere: in a PLT stub, a prologue, libc, the vDSO */
    }
}

int main(int argc, char **argv)
{
    struct sigaction action;
    stack_t alternate;
    pthread_t threads[3];
    int numbers[] = {5, 3, 9, 1, 7}, first = 1;
    void *tree = NULL;
    int many[300];

    (void)argc;
    zero = argv[0] == NULL;
    follow_modules();
    plain("main");
    sink = many_registers("many registers", 1, 2, 3, 4, 5, 6, 7, 8);
    for (int bytes = 1; bytes < 5000; bytes *= 7) {
        sink = with_alloca(bytes);
        sink = with_array(bytes);
    }
    sink = realigned_by_attribute(1);
    sink = realigned_for_a_local(1, 2, 3, 4, 5, 6, 7, 8);
    sink = realigned_with_alloca(1, 2, 3, 4, 5, 6, 7, 8);
    sink = large_frame(5);
    sink = recurse(0, 5) + recurse(0, 40) + recurse(0, 200) + recurse(0, 240) + recurse(0, 600) + recurse(0, 260);
    sink = recurse_with_alloca(30);
    timed = pointed_to;
    sink = through_pointer(timed, 4);
    for (int seed = 1; seed < 4000; seed += 61)
        sink = wander(seed, 5);

    qsort(numbers, 5, sizeof numbers[0], compare);
    for (int i = 0; i < 300; i++)
        many[i] = i * 7919 % 300;
    qsort(many, 300, sizeof many[0], compare);
    tsearch(&first, &tree, compare);
    twalk(tree, visit);

    if (!setjmp(after_noreturn))
        sink = caller_of_the_end();

    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGUSR1, &action, NULL);
    sink = raise_in(SIGUSR1);
    sink = raise_in(SIGUSR1);
    action.sa_handler = on_nested;
    sigaction(SIGUSR2, &action, NULL);
    sink = raise_in(SIGUSR2);
    action.sa_handler = on_trap;
    sigaction(SIGTRAP, &action, NULL);
    sink = traps(1);
    sink = traps(2);

    alternate.ss_sp = malloc(1 << 17);
    alternate.ss_size = 1 << 17;
    alternate.ss_flags = 0;
    sigaltstack(&alternate, NULL);
    action.sa_handler = on_signal_elsewhere;
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR1, &action, NULL);
    sink = raise_in(SIGUSR1);
    action.sa_flags = 0;

    for (intptr_t i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, thread, (void *)i);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);

    unsigned char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(page, jit_code, sizeof jit_code);
    ((void (*)(void (*)(void)))page)(from_jit);
    ((void (*)(void (*)(void)))page)(from_jit);

    action.sa_handler = on_timer;
    sigaction(SIGALRM, &action, NULL);
    ualarm(300, 300);
    for (int i = 0; i < 20000; i++) {
        struct timespec now;
        char text[64];
        clock_gettime(CLOCK_MONOTONIC, &now);
        snprintf(text, sizeof text, "%ld.%09ld", (long)now.tv_sec, now.tv_nsec);
        sink = (int)strlen(text);
    }
    ualarm(0, 0);
    return finish_checks(60);
}
