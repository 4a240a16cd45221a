/* A program that calls probe() at a given depth when it is told to, for a test that hooks probe(). */
#include <execinfo.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define OPAQUE __attribute__((noinline, noclone, noipa, visibility("default")))

/* Written by the test. `request` last; the program sets it back to 0 when it is done. */
volatile int request, depth, calls, varied;
volatile int64_t nanoseconds;
volatile int recorded_count;
void *recorded[64];
volatile uint64_t stack_low, stack_high;

static volatile int sink, recording;

OPAQUE int probe(int value)
{
    if (recording)
        recorded_count = backtrace(recorded, 64); /* the last call's stays */
    return value + 1;
}

OPAQUE int innermost(int n)
{
    int i, sum = 0;
    for (i = 0; i < n; i++)
        sum += probe(i);
    return sum;
}

OPAQUE int other_innermost(int n) { return innermost(n) + 1; }

OPAQUE int descend(int levels, int n)
{
    int result;
    if (levels > 1)
        result = descend(levels - 1, n) + 1;
    else if (varied && (n & 1))
        result = other_innermost(1) + 2;
    else
        result = innermost(varied ? 1 : n) + 3;
    sink = result;
    return result;
}

int main(int argc, char **argv)
{
    pthread_attr_t attributes;
    void *address;
    size_t size;
    (void)argc;
    (void)argv;
    extern int pthread_getattr_np(pthread_t, pthread_attr_t *);
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &size);
    stack_low = (uint64_t)(uintptr_t)address;
    stack_high = stack_low + size;
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct timespec start, end;
        if (!request) {
            if (getppid() == 1)
                return 0; /* the test is gone */
            usleep(1000);
            continue;
        }
        if (request == 3)
            return 0;
        recording = request == 2;
        clock_gettime(CLOCK_MONOTONIC, &start);
        if (varied) {
            int i;
            for (i = 0; i < calls; i++)
                descend(depth, i);
        } else {
            descend(depth, calls);
        }
        clock_gettime(CLOCK_MONOTONIC, &end);
        nanoseconds = (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
        __sync_synchronize();
        request = 0;
    }
}
