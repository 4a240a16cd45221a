/*
 * Frees blocks twice, a little later each time: `waits MS...`. For every wait, nanoseconds between which the time from the
 * first to the second free lies, and the same from the allocation on: "FREES_AT_LEAST FREES_AT_MOST ALLOCATED_...".
 * Without waits it does not even start EAL.
 */
#include <time.h>

#include "eal.h"

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc == 1) return 0;
    start_eal();
    for (int i = 1; i < argc; i++) {
        long long at[6];
        struct timespec wait = {0, atol(argv[i]) * 1000000L};
        at[0] = now();
        void *block = rte_malloc("waits", 64, 0);
        at[1] = now();
        nanosleep(&wait, NULL);
        at[2] = now();
        rte_free(block);
        at[3] = now();
        nanosleep(&wait, NULL);
        at[4] = now();
        rte_free(block);
        at[5] = now();
        printf("%lld %lld %lld %lld\n", at[4] - at[3], at[5] - at[2], at[4] - at[1], at[5] - at[0]);
    }
    return 0;
}
