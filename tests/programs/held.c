/*
 * Blocks that are held in every way, and blocks that nobody holds; then it sleeps. Each block's type says what a search for
 * pointers must find: "lost" (3: one alone, one at the head of a list, one of a ring of two), "indirect" (11: the list's
 * other ten, the ring's other one), and "held" by way of what stands behind it. Calls itself held-READY then.
 * `held CHAIN`: a list of that many blocks besides, from a global.
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>

#include <rte_memzone.h>

#include "eal.h"

struct node {
    struct node *next;
    uint64_t filling[7];
};

void *held_by_global;
/* volatile: what is never read would not be written either */
static void *volatile held_by_static;
static volatile uintptr_t tagged;
static char *volatile interior;
static struct node *volatile list;
static void *volatile *libc_block;
static void *volatile *large_libc_block;
static const struct rte_memzone *zone;
static struct node *volatile chain;
static pthread_barrier_t barrier;

static struct node *block(const char *type) { return rte_zmalloc(type, sizeof(struct node), 0); }

static void *wait_with_one_on_the_stack(void *unused) {
    void *volatile mine = block("held-by-stack");
    pthread_barrier_wait(&barrier);
    for (;;) pause();
    return (void *) mine + (unused != NULL);
}

static void *keep_one_in_a_register(void *unused) {
    register void *mine asm("r12") = block("held-by-register");
    pthread_barrier_wait(&barrier);
    for (;;) asm volatile("pause" : "+r"(mine));
    return unused;
}

static __attribute__((noinline)) void lose(void) {
    struct node *volatile first = block("lost"), *at;
    first = block("lost");
    at = first;
    for (int i = 0; i < 10; i++) at = at->next = block("indirect");
    struct node *a = block("ring"), *b = block("ring");
    a->next = b;
    b->next = a;
    first = at = a = b = NULL;
}

static __attribute__((noinline)) void hold(void) {
    held_by_global = block("held-by-global");
    held_by_static = block("held-by-static");
    tagged = (uintptr_t) block("held-by-tag") | (uintptr_t) 0xabcd << 48 | 5;
    interior = (char *) block("held-inside") + 24;
    list = block("held-list");
    list->next = block("held-list");
    libc_block = malloc(64);
    libc_block[3] = block("held-by-libc");
    large_libc_block = malloc(1 << 20);
    large_libc_block[1000] = block("held-by-libc");
    zone = rte_memzone_reserve("held_zone", 4096, SOCKET_ID_ANY, 0);
    ((void *volatile *) zone->addr)[10] = block("held-by-zone");
}

/* What the stack below holds from earlier calls would count. */
static __attribute__((noinline)) void scrub(void) {
    char waste[1 << 20];
    explicit_bzero(waste, sizeof waste);
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    start_eal();
    pthread_barrier_init(&barrier, NULL, 3);
    pthread_create(&threads[0], NULL, wait_with_one_on_the_stack, NULL);
    pthread_create(&threads[1], NULL, keep_one_in_a_register, NULL);
    hold();
    lose();
    for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--) {
        struct node *next = chain;
        chain = block("chain");
        chain->next = next;
    }
    pthread_barrier_wait(&barrier);
    scrub();
    prctl(PR_SET_NAME, "held-READY");
    for (;;) pause();
}
