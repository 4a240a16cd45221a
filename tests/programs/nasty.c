/*
 * One misdeed or odd ending a command; `nasty COMMAND [NUMBER]`. What each plants stands above its function.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

#include "eal.h"

static int number = 0;

/* Four threads, one after the other, free the same 10 blocks: 30 duplicate frees. */
#define FREEING_THREADS 4
#define SHARED_BLOCKS 10
static void *shared[SHARED_BLOCKS];
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

NOINLINE void free_shared(void) {
    for (int i = 0; i < SHARED_BLOCKS; i++) {
        pthread_mutex_lock(&turn); /* DPDK's heap would not survive two frees at the same time */
        rte_free(shared[i]);
        pthread_mutex_unlock(&turn);
    }
}

static void *freeing_thread(void *name) {
    pthread_setname_np(pthread_self(), name);
    free_shared();
    return NULL;
}

static void duplicate_threads(void) {
    static char names[FREEING_THREADS][16];
    pthread_t threads[FREEING_THREADS];
    for (int i = 0; i < SHARED_BLOCKS; i++) shared[i] = rte_malloc("shared", 100 + i, 0);
    for (int i = 0; i < FREEING_THREADS; i++) {
        snprintf(names[i], sizeof names[i], "freeing%d", i);
        pthread_create(&threads[i], NULL, freeing_thread, names[i]);
    }
    for (int i = 0; i < FREEING_THREADS; i++) pthread_join(threads[i], NULL);
}

/* An address is freed, handed out again and freed again: no bad free. Then the second life is freed twice: one. */
NOINLINE void *first_life(void) { return rte_malloc("first life", 60, 0); }
NOINLINE void *second_life(void) { return rte_malloc("second life", 64, 0); }
NOINLINE void end_first_life(void *block) { rte_free(block); }
NOINLINE void end_second_life(void *block) { rte_free(block); }
NOINLINE void end_it_again(void *block) { rte_free(block); }

static void reuse(void) {
    void *first = first_life();
    end_first_life(first);
    void *second = second_life();
    if (second != first) {
        puts("not reused");
        exit(71);
    }
    end_second_life(second);
    end_it_again(second);
}

/* A stray free that ends the program in the next instruction. */
NOINLINE void free_and_crash(void) { rte_free((void *) 0x1); }

/* NUMBER bad frees: half of them duplicates of one block, half strays of one address, in turns. */
static void many(void) {
    void *stray = never_handed_out();
    void *block = rte_malloc("many", 64, 0);
    rte_free(block);
    for (int i = 0; i < number; i++) rte_free(i % 2 ? stray : block);
}

/* NULL may be freed. */
static void free_null(void) {
    for (int i = 0; i < 10; i++) rte_free(NULL);
}

/* Type names that a dump must survive; each block's size tells which one it is. None is freed; then it waits. */
NOINLINE void *allocate_with_type_on_stack(size_t size) {
    char type[32] = "on the stack";
    void *block = rte_malloc(type, size, 0);
    memset(type, 'X', sizeof type - 1);
    __asm__ volatile("" : : "r"(type) : "memory");
    return block;
}

static void types(void) {
    static char long_type[301];
    memset(long_type, 'L', 300);
    rte_malloc("plain", 1001, 0);
    rte_malloc("comma, and more", 1002, 0);
    rte_malloc("\"quoted\"", 1003, 0);
    rte_malloc("two\nlines", 1004, 0);
    rte_malloc("\xff\xfe latin \xe9", 1005, 0);
    rte_malloc(long_type, 1006, 0);
    rte_malloc(NULL, 1007, 0);
    rte_malloc("", 1008, 0);
    allocate_with_type_on_stack(1009);
    rte_malloc("carriage\rreturn", 1010, 0);
    rte_malloc("\xe2\x82\xac utf-8", 1011, 0);
    puts("ready");
    fflush(stdout);
    while (getchar() != EOF) {}
}

/* NUMBER allocations, every second one freed, and then the end by SIGKILL. */
static void events_then_sigkill(void) {
    for (int i = 0; i < number; i++) {
        void *block = rte_malloc("counted", 64, 0);
        if (i % 2) rte_free(block);
    }
    raise(SIGKILL);
}

static void *exiting_thread(void *unused) {
    (void) unused;
    rte_malloc("last", 64, 0);
    exit(number);
}

/* A duplicate free, and then the program waits to be told to go on (end of its standard input). */
static void duplicate_then_wait(void) {
    void *block = rte_malloc("waiting", 64, 0);
    rte_free(block);
    rte_free(block);
    puts("freed");
    fflush(stdout);
    while (getchar() != EOF) {}
}

/* Memory of DPDK's own that is freed twice in one thread while 64 more threads come and go. */
static void *short_lived(void *unused) {
    (void) unused;
    rte_free(rte_malloc("short-lived", 64, 0));
    return NULL;
}

static void short_lived_threads(void) {
    for (int i = 0; i < number; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, short_lived, NULL);
        pthread_join(thread, NULL);
    }
}

static sigjmp_buf back;
static volatile sig_atomic_t handled_signals;

static void note_signal(int signal) { handled_signals += signal; }

static void jump_back(int signal) { siglongjmp(back, signal); }

/* 0 if its own handlers run, for a signal that is sent and for a real fault (left by siglongjmp), and SIG_IGN holds. */
static int handled(void) {
    signal(SIGSEGV, note_signal);
    raise(SIGSEGV);
    if (handled_signals != SIGSEGV) return 1;
    signal(SIGSEGV, jump_back);
    if (sigsetjmp(back, 1) == 0) {
        *(volatile int *) 8 = 1;
        return 2;
    }
    signal(SIGSEGV, SIG_IGN);
    raise(SIGSEGV);
    return 0;
}

int main(int argc, char **argv) {
    const char *command = argc > 1 ? argv[1] : "";
    number = argc > 2 ? atoi(argv[2]) : 0;
    start_eal_with(strcmp(command, "many") == 0 ? "--log-level=emergency" : "--log-level=error");
    if (strcmp(command, "duplicate-threads") == 0) duplicate_threads();
    else if (strcmp(command, "reuse") == 0) reuse();
    else if (strcmp(command, "crash") == 0) free_and_crash();
    else if (strcmp(command, "many") == 0) many();
    else if (strcmp(command, "null") == 0) free_null();
    else if (strcmp(command, "types") == 0) types();
    else if (strcmp(command, "events-then-sigkill") == 0) events_then_sigkill();
    else if (strcmp(command, "duplicate-then-wait") == 0) duplicate_then_wait();
    else if (strcmp(command, "short-lived-threads") == 0) short_lived_threads();
    else if (strcmp(command, "status") == 0) return number;
    else if (strcmp(command, "_exit") == 0) _exit(number);
    else if (strcmp(command, "abort") == 0) abort();
    else if (strcmp(command, "raise") == 0) raise(number);
    else if (strcmp(command, "handled") == 0) return handled();
    else if (strcmp(command, "exit-from-thread") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, exiting_thread, NULL);
        pthread_join(thread, NULL);
    } else return 64;
    return 0;
}
