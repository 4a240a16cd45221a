/*
 * Rings, mempools and memzones made and freed, three rounds: no bad free and no leak. One memzone of 12345 bytes named
 * "kept_zone" stays.
 */
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_memzone.h>
#include <rte_ring.h>

#include "eal.h"

int main(void) {
    start_eal();
    for (int round = 0; round < 3; round++) {
        struct rte_ring *ring = rte_ring_create("ring", 1024, SOCKET_ID_ANY, 0);
        struct rte_mempool *pool = rte_mempool_create("pool", 511, 256, 32, 0, NULL, NULL, NULL, NULL, SOCKET_ID_ANY, 0);
        struct rte_mempool *mbufs = rte_pktmbuf_pool_create("mbufs", 255, 0, 0, 2048, SOCKET_ID_ANY);
        const struct rte_memzone *zone = rte_memzone_reserve("zone", 10000, SOCKET_ID_ANY, 0);
        const struct rte_memzone *aligned = rte_memzone_reserve_aligned("aligned", 10000, SOCKET_ID_ANY, 0, 4096);
        const struct rte_memzone *bounded = rte_memzone_reserve_bounded("bounded", 10000, SOCKET_ID_ANY, 0, 64, 1 << 20);
        printf("made: %d\n", ring && pool && mbufs && zone && aligned && bounded);
        rte_ring_free(ring);
        rte_mempool_free(pool);
        rte_mempool_free(mbufs);
        rte_memzone_free(zone);
        rte_memzone_free(aligned);
        rte_memzone_free(bounded);
    }
    rte_memzone_reserve("kept_zone", 12345, SOCKET_ID_ANY, 0);
    return 0;
}
