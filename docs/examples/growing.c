/*
 * A program whose heap grows: packets come and go, and so do flows, but names that were looked up once stay in a cache for
 * ever. Nothing is lost, all of it is freed in the end: at rte_eal_cleanup there is no leak.
 *
 *   ./growing SECONDS --no-huge -m 64 --no-pci
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define FLOWS 256
#define ROUNDS_A_SECOND 100

struct name {
    struct name *next;
    char text[200];
};

static struct name *cache;
static void *flows[FLOWS];

static void name_resolve(unsigned int number)
{
    struct name *name = rte_zmalloc("name", sizeof(*name), 0);
    if (name == NULL)
        exit(EXIT_FAILURE);
    snprintf(name->text, sizeof(name->text), "host-%u.example", number);
    name->next = cache;
    cache = name;
}

static void cache_clear(void)
{
    while (cache != NULL) {
        struct name *next = cache->next;
        rte_free(cache);
        cache = next;
    }
}

static void flow_replace(unsigned int number)
{
    void **flow = &flows[number % FLOWS];
    rte_free(*flow);
    *flow = rte_zmalloc("flow", 512, RTE_CACHE_LINE_SIZE);
}

static void packet_handle(unsigned int number)
{
    void *packet = rte_malloc("packet", 1536, 0);
    flow_replace(number);
    if (number % 4 == 0)
        name_resolve(number);
    rte_free(packet);
}

int main(int argc, char **argv)
{
    unsigned int seconds = argc > 1 ? (unsigned int)atoi(argv[1]) : 4;

    if (argc > 1) {
        argv[1] = argv[0];
        argc--, argv++;
    }
    if (rte_eal_init(argc, argv) < 0)
        return EXIT_FAILURE;
    for (unsigned int round = 0; round < seconds * ROUNDS_A_SECOND; round++) {
        for (unsigned int i = 0; i < 8; i++)
            packet_handle(8 * round + i);
        usleep(1000000 / ROUNDS_A_SECOND);
    }
    cache_clear();
    for (int i = 0; i < FLOWS; i++)
        rte_free(flows[i]);
    printf("handled %u packets\n", 8 * seconds * ROUNDS_A_SECOND);
    return rte_eal_cleanup();
}
