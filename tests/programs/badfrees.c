/*
 * One planted bug a run: `badfrees WHAT`. Kinds of bad frees, and bugs that real projects had. Whatever DPDK lets pass
 * with "Invalid memory" ends with status 0; "unmapped" and "after_cleanup" may crash, as they do untracked.
 */
#include <pthread.h>
#include <rte_memzone.h>
#include <rte_mempool.h>

#include "eal.h"

struct device {
    void *queue;
    void *stats;
};

static char global_zeros[8192];

static NOINLINE void uninit(struct device *device) {
    rte_free(device->queue);
    rte_free(device->stats);
    rte_free(device->queue); /* the same field once more: queue was meant to be set to NULL */
}

static void *release_queue(void *queue) {
    rte_free(queue);
    return NULL;
}

static NOINLINE void leak_a_block(void) {
    if (rte_malloc("leaked", 300, 0) == NULL) exit(71);
}

/* `first`, of the first owner, is freed twice; in between its address was handed out to a second one. */
static NOINLINE void first_owner_frees(void *first) { rte_free(first); }
static NOINLINE void second_owner_frees(void *second) { rte_free(second); }
static NOINLINE void *second_owner_takes(void) { return rte_malloc("second's", 640, 0); }
static NOINLINE void free_a_recycled_address(void) {
    volatile int times = 2; /* one call site: the second time it is the second owner's block */
    void *first = rte_malloc("first's", 640, 0), *second = NULL;
    for (int time = 0; time < times; time++) {
        first_owner_frees(first);
        if (time == 0 && (second = second_owner_takes()) != first) exit(71);
    }
    second_owner_frees(second);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    char stack_zeros[8192];
    memset(stack_zeros, 0, sizeof stack_zeros);
    start_eal();
    char *block = rte_zmalloc("block", 4096, 0);
    usleep(200000); /* as a real program is some time at work before it errs */

    if (strcmp(what, "duplicate_field") == 0) {
        struct device device = {rte_malloc("queue", 128, 0), rte_malloc("stats", 64, 0)};
        uninit(&device);
    } else if (strcmp(what, "two_threads") == 0) {
        void *queue = rte_malloc("queue", 128, 0);
        pthread_t first, second;
        pthread_create(&first, NULL, release_queue, queue);
        pthread_join(first, NULL);
        pthread_create(&second, NULL, release_queue, queue);
        pthread_join(second, NULL);
    } else if (strcmp(what, "recycled") == 0) {
        free_a_recycled_address();
    } else if (strcmp(what, "interior") == 0) {
        rte_free(block + 1024);
    } else if (strcmp(what, "libc") == 0) {
        char *libc = calloc(2, 4096);
        rte_free(libc + 4096);
        free(libc);
        usleep(300000); /* time to look at what lies there */
    } else if (strcmp(what, "stack") == 0) {
        rte_free(stack_zeros + 4096);
    } else if (strcmp(what, "global") == 0) {
        rte_free(global_zeros + 4096);
    } else if (strcmp(what, "unmapped") == 0) {
        rte_free((void *) 0x123456789000);
    } else if (strcmp(what, "null_page") == 0) {
        rte_free((void *) 0x80);
    } else if (strcmp(what, "stray") == 0) {
        rte_free(never_handed_out());
    } else if (strcmp(what, "memzone") == 0) {
        rte_free(rte_memzone_reserve("a_zone", 1000, SOCKET_ID_ANY, 0)->addr);
    } else if (strcmp(what, "mempool") == 0) {
        struct rte_mempool *pool = rte_mempool_create("a_pool", 63, 512, 0, 0, NULL, NULL, NULL, NULL, SOCKET_ID_ANY, 0);
        void *object;
        if (pool == NULL || rte_mempool_get(pool, &object) != 0) return 72;
        rte_free(object);
    } else if (strcmp(what, "after_cleanup") == 0) {
        rte_eal_cleanup();
        rte_free(block);
    } else if (strcmp(what, "leak") == 0) {
        volatile int leaks = 3; /* one call, three times: no unrolling */
        for (int i = 0; i < leaks; i++) leak_a_block();
        rte_free(block);
        rte_eal_cleanup();
    } else if (strcmp(what, "clean") == 0) {
        rte_free(block);
        rte_eal_cleanup();
    } else {
        return 64;
    }
    return 0;
}
