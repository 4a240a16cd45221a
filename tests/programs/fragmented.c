/*
 * A heap that is cut up: blocks of 32 KiB until there is no room left, then every second one is freed, so that half the
 * heap is free and nothing larger than one of them fits. Prints what DPDK itself says, asks for 1 MiB, which fails, prints
 * "ready" and sleeps.
 */
#include "eal.h"

#define BLOCK_BYTES 32768
#define BLOCKS_AT_MOST 4096

static void *blocks[BLOCKS_AT_MOST];

int main(void) {
    struct rte_malloc_socket_stats stats;
    int count = 0;
    start_eal();
    while (count < BLOCKS_AT_MOST && (blocks[count] = rte_malloc("flow", BLOCK_BYTES, 0)) != NULL) count++;
    for (int i = 0; i < count; i += 2) rte_free(blocks[i]);
    rte_malloc_get_socket_stats(0, &stats);
    printf("total %zu free %zu largest %zu pieces %u busy %u\n", stats.heap_totalsz_bytes, stats.heap_freesz_bytes,
           stats.greatest_free_size, stats.free_count, stats.alloc_count);
    if (rte_malloc("table", 1 << 20, 0) != NULL) return 1;
    printf("ready\n");
    fflush(stdout);
    for (;;) pause();
}
