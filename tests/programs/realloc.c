/*
 * Every way that rte_realloc can go; prints what happened. At the end six blocks live, of 6001, 7002, 8003, 5004, 4005
 * and 3006 bytes, and there is no bad free. (With an alignment of 0, DPDK 22.11 always moves the block.)
 */
#include "eal.h"

NOINLINE void *allocate(const char *type, size_t size) { return rte_malloc(type, size, 64); }

int main(void) {
    start_eal();
    /* in place: DPDK hands out from the top, so the block above the second one is the first */
    void *above = allocate("above", 6000);
    void *in_place = allocate("in place", 3000);
    rte_free(above);
    printf("in place: %d\n", rte_realloc(in_place, 6001, 64) == in_place);
    /* moved: a block stands above it */
    void *fence = allocate("fence", 64);
    void *moving = allocate("moved", 3000);
    void *moved = rte_realloc(moving, 7002, 64);
    printf("moved: %d\n", moved != moving && moved != NULL);
    /* the moved block's old address may be handed out and freed again */
    void *reused = allocate("reused", 3000);
    printf("reused: %d\n", reused == moving);
    rte_free(reused);
    void *aligned = rte_realloc(allocate("moved by alignment 0", 3006), 3006, 0);
    printf("moved by alignment 0: %d\n", aligned != NULL);
    /* failed: the old block stays */
    void *stays = allocate("stays", 8003);
    printf("failed: %d\n", rte_realloc(stays, (size_t) 1 << 40, 64) == NULL);
    /* of NULL: an allocation without a type */
    printf("of NULL: %d\n", rte_realloc(NULL, 5004, 64) != NULL);
    /* smaller */
    void *shrinking = allocate("smaller", 9000);
    printf("smaller: %d\n", rte_realloc(shrinking, 4005, 64) == shrinking);
    /* to nothing: no free in 22.11, the block lives on with no bytes */
    void *vanishing = allocate("vanishing", 100);
    printf("to nothing: %d\n", rte_realloc(vanishing, 0, 64) == vanishing);
    rte_free(vanishing);
    rte_free(fence);
    return 0;
}
