/*
 * A primary and a secondary process of one DPDK heap (hugepages are needed), each waiting for a line on standard input:
 * the primary allocates BLOCKS, the secondary frees them and allocates as many, the primary frees those. The memzone
 * "exchange" holds the pointers. Nothing is planted: every block is freed once, by the process that did not allocate it.
 */
#include <rte_eal.h>
#include <rte_malloc.h>
#include <rte_memzone.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define BLOCKS 100

struct exchange {
    volatile int turn;
    void *blocks[BLOCKS];
};

static void wait_for_line(const char *said) {
    char line[16];
    printf("%s\n", said);
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL) _exit(9);
}

static void wait_for_turn(struct exchange *exchange, int turn) {
    while (exchange->turn < turn) usleep(1000);
}

static void take_and_give(struct exchange *exchange, const char *type, int takes, int gives) {
    for (int i = 0; i < BLOCKS; i++) {
        if (takes) rte_free(exchange->blocks[i]);
        if (gives) exchange->blocks[i] = rte_malloc(type, 100 + (unsigned) i, 0);
    }
    exchange->turn++;
}

int main(int argc, char **argv) {
    if (rte_eal_init(argc, argv) < 0) return 3;
    if (rte_eal_process_type() == RTE_PROC_PRIMARY) {
        const struct rte_memzone *zone = rte_memzone_reserve("exchange", sizeof(struct exchange), SOCKET_ID_ANY, 0);
        struct exchange *exchange = zone->addr;
        exchange->turn = 0;
        wait_for_line("ready");
        take_and_give(exchange, "by primary", 0, 1);
        wait_for_turn(exchange, 2);
        take_and_give(exchange, "by primary", 1, 0);
        wait_for_line("done");
        rte_memzone_free(zone);
    } else {
        struct exchange *exchange = rte_memzone_lookup("exchange")->addr;
        wait_for_line("ready");
        wait_for_turn(exchange, 1);
        take_and_give(exchange, "by secondary", 1, 1);
        wait_for_turn(exchange, 3);
        wait_for_line("done");
    }
    return 0;
}
