/*
 * The benchmark's program: threads that do rte_malloc/rte_free pairs at a given call depth, and print what a pair took.
 *
 *     pairs MODE THREADS FRAMES SIZE LIVE SECONDS [EAL arguments]
 *
 * MODE is "burst" (bursts of BURST_PAIRS pairs with pauses between, so that a reader can keep up), "sustained" (without
 * pauses), or a number: so many pairs a second at a steady pace. FRAMES is the number of frames that a backtrace of a
 * call has. LIVE blocks of SIZE bytes are kept by each thread; a pair frees the oldest of them. After SECONDS it prints
 * one line: ns a pair (median over bursts, or mean when sustained), pairs done, CPU seconds of the process since EAL was up.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <rte_eal.h>
#include <rte_malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BURST_PAIRS 20000
#define BURSTS_MAX 100000
#define FRAMES_OF_A_THREAD 5 /* pairs(), descend()'s first frame, run(), start_thread, clone3 */

static size_t block_size;
static unsigned live_blocks, depth, threads;
static double seconds, pairs_a_second;
static int burst;
static pthread_barrier_t barrier;
static volatile int finished;
static volatile int warm; /* keeps the compiler from turning descend() into a loop */

struct worker {
    pthread_t thread;
    unsigned number;
    void **live;
    uint64_t next, done;
    double *bursts_ns; /* a pair, one entry a burst */
    unsigned bursts;
    double sustained_ns;
};

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static __attribute__((noinline)) void pairs(struct worker *worker, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        void **slot = &worker->live[worker->next++ % live_blocks];
        rte_free(*slot);
        *slot = rte_malloc("bench", block_size, 0);
        if (*slot == NULL) abort();
    }
    worker->done += count;
}

static __attribute__((noinline)) void descend(struct worker *worker, unsigned left, unsigned count) {
    if (left == 0) pairs(worker, count);
    else descend(worker, left - 1, count);
    warm++;
}

static void pin(unsigned number) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(number % (unsigned) sysconf(_SC_NPROCESSORS_ONLN), &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void *run(void *argument) {
    struct worker *worker = argument;
    double end, start;
    pin(worker->number);
    descend(worker, depth, live_blocks > 1000 ? live_blocks : 1000); /* fills the live set and every cache */
    worker->done = 0;
    if (burst) usleep(100000);
    pthread_barrier_wait(&barrier);
    start = now_ns();
    end = start + seconds * 1e9;
    if (pairs_a_second > 0) {
        double next = start;
        while (now_ns() < end) {
            descend(worker, depth, 10);
            next += 10e9 / pairs_a_second;
            double rest = next - now_ns();
            if (rest > 0) {
                struct timespec pause = {(time_t) (rest / 1e9), (long) rest % 1000000000};
                nanosleep(&pause, NULL);
            }
        }
    } else if (burst) {
        for (;;) {
            if (worker->number == 0 && (now_ns() >= end || worker->bursts == BURSTS_MAX)) finished = 1;
            pthread_barrier_wait(&barrier); /* all threads stop after the same burst */
            if (finished) break;
            double before = now_ns();
            descend(worker, depth, BURST_PAIRS);
            worker->bursts_ns[worker->bursts++] = (now_ns() - before) / BURST_PAIRS;
            pthread_barrier_wait(&barrier);
            usleep(30000);
        }
    } else {
        while (now_ns() < end) descend(worker, depth, 1000);
    }
    worker->sustained_ns = (now_ns() - start) / worker->done;
    return NULL;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: pairs MODE THREADS FRAMES SIZE LIVE SECONDS [EAL arguments]\n");
        return 2;
    }
    burst = strcmp(argv[1], "burst") == 0;
    pairs_a_second = atof(argv[1]);
    threads = (unsigned) atoi(argv[2]);
    depth = (unsigned) atoi(argv[3]) - FRAMES_OF_A_THREAD;
    block_size = (size_t) atol(argv[4]);
    live_blocks = (unsigned) atoi(argv[5]) > 0 ? (unsigned) atoi(argv[5]) : 1;
    seconds = atof(argv[6]);
    argv[6] = argv[0];
    if (rte_eal_init(argc - 6, argv + 6) < 0) return 3;
    struct timespec cpu_before, cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu_before);
    struct worker *workers = calloc(threads, sizeof *workers);
    pthread_barrier_init(&barrier, NULL, threads);
    for (unsigned i = 0; i < threads; i++) {
        workers[i].number = i;
        workers[i].live = calloc(live_blocks, sizeof(void *));
        workers[i].bursts_ns = calloc(BURSTS_MAX, sizeof(double));
        pthread_create(&workers[i].thread, NULL, run, &workers[i]);
    }
    double ns = 0, done = 0;
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
        qsort(workers[i].bursts_ns, workers[i].bursts, sizeof(double), by_value);
        ns += (burst ? workers[i].bursts_ns[workers[i].bursts / 2] : workers[i].sustained_ns) / threads;
        done += workers[i].done;
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("%.1f %.0f %.6f\n", ns, done, cpu.tv_sec - cpu_before.tv_sec + (cpu.tv_nsec - cpu_before.tv_nsec) / 1e9);
    return 0;
}
