/*
 * A load: `load THREADS DEPTH SECONDS FILE`. Each thread allocates and frees in a tight loop at the bottom of a call
 * chain of DEPTH functions. Every 100 ms a line "PAIRS_IN_THESE_100_MS" is appended to FILE; at the end, by time or
 * SIGTERM, "total PAIRS" is printed. No bug is planted: every block is freed once.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#include "eal.h"

#define MAX_THREADS 64

static volatile sig_atomic_t stopped = 0;
static int depth = 8;

static struct {
    _Alignas(64) atomic_ullong pairs;
} counters[MAX_THREADS];

static void on_sigterm(int signal) {
    (void) signal;
    stopped = 1;
}

NOINLINE void work(atomic_ullong *pairs) {
    while (!stopped) {
        void *block = rte_malloc("load", 64, 0);
        rte_free(block);
        atomic_fetch_add_explicit(pairs, 1, memory_order_relaxed);
    }
}

NOINLINE void descend(int left, atomic_ullong *pairs) { /* NOLINT(misc-no-recursion) */
    if (left <= 1) work(pairs);
    else descend(left - 1, pairs);
    __asm__ volatile("" : : : "memory"); /* no tail call */
}

static void *thread_main(void *pairs) {
    descend(depth, pairs);
    return NULL;
}

static unsigned long long all_pairs(int threads) {
    unsigned long long sum = 0;
    for (int i = 0; i < threads; i++) sum += atomic_load(&counters[i].pairs);
    return sum;
}

int main(int argc, char **argv) {
    if (argc < 5) return 64;
    int threads = atoi(argv[1]), tenths = (int) (atof(argv[3]) * 10);
    depth = atoi(argv[2]);
    if (threads > MAX_THREADS) return 64;
    FILE *file = fopen(argv[4], "a");
    if (file == NULL) return 66;
    start_eal();
    signal(SIGTERM, on_sigterm);
    pthread_t ids[MAX_THREADS];
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, thread_main, &counters[i].pairs);
    unsigned long long before = 0;
    for (int i = 0; i < tenths && !stopped; i++) {
        struct timespec pause = {0, 100000000};
        nanosleep(&pause, NULL);
        unsigned long long now = all_pairs(threads);
        fprintf(file, "%llu\n", now - before);
        fflush(file);
        before = now;
    }
    stopped = 1;
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    printf("total %llu\n", all_pairs(threads));
    return 0;
}
