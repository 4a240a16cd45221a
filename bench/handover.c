/*
 * How far apart two processors are: ns that a cache line takes from the first one to the second, or back (median of some
 * tries). On a virtual machine that changes within seconds, as its processors are moved; and what two threads pay for
 * whatever they share, DPDK's lock above all, changes with it.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TRIES 9
#define TURNS 10000

static volatile long turn __attribute__((aligned(64)));

static void pin(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *answer(void *argument) {
    pin(1);
    for (long i = 0; i < (long) TRIES * TURNS; i++) {
        while (turn != 2 * i + 1);
        turn = 2 * i + 2;
    }
    return argument;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *) a, y = *(const double *) b;
    return (x > y) - (x < y);
}

int main(void) {
    double tries_ns[TRIES];
    pthread_t other;
    long i = 0;
    pin(0);
    pthread_create(&other, NULL, answer, NULL);
    for (int try = 0; try < TRIES; try++) {
        double begun = now_ns();
        for (int n = 0; n < TURNS; n++, i++) {
            while (turn != 2 * i);
            turn = 2 * i + 1;
        }
        tries_ns[try] = (now_ns() - begun) / TURNS / 2;
    }
    pthread_join(other, NULL);
    qsort(tries_ns, TRIES, sizeof(double), by_value);
    printf("%.1f\n", tries_ns[TRIES / 2]);
    return 0;
}
