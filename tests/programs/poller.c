/*
 * poller FILE: forwards like l3fwd, without devices. The main lcore polls a ring and passes packets back by another one, a
 * worker does the same at the other end; none of the two ever calls the kernel. Each measures by the TSC how long it stood
 * still between two rounds, the longest time of each epoch, in the file FILE, which the test maps; and how much of that
 * it had merely to wait for a processor (/proc/thread-self/schedstat, read after a long one only). Prints "ready".
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include <rte_cycles.h>
#include <rte_ring.h>

#include "eal.h"

#define BURST 32
#define LONG_NS 100000
#define MALLOC_EVERY 4096

static struct poller {
    char name[32];
    _Atomic uint64_t rounds, packets, longest_ns, longest_stopped_ns, epoch;
} *pollers;

static _Atomic uint64_t *wanted_epoch; /* written by the test: begin anew */
static struct rte_ring *to_worker, *to_main;

static uint64_t waited_for_processor_ns(int schedstat) {
    char text[96] = "";
    unsigned long ran, waited;
    if (pread(schedstat, text, sizeof text - 1, 0) <= 0 || sscanf(text, "%lu %lu", &ran, &waited) != 2) return 0;
    return waited;
}

static void poll_for_ever(struct poller *own, struct rte_ring *from, struct rte_ring *to) {
    int schedstat = open("/proc/thread-self/schedstat", O_RDONLY);
    double ns_per_tick = 1e9 / (double) rte_get_tsc_hz();
    uint64_t waited = waited_for_processor_ns(schedstat), before = rte_rdtsc();
    for (;;) {
        void *packets[BURST];
        unsigned got = rte_ring_dequeue_burst(from, packets, BURST, NULL);
        for (unsigned i = 0; i < got; i++) (*(uint64_t *) packets[i])++;
        rte_ring_enqueue_burst(to, packets, got, NULL);
        if (own->rounds % MALLOC_EVERY == 0) rte_free(rte_malloc("flow", 64, 0));
        own->packets += got;
        own->rounds++;
        uint64_t now = rte_rdtsc(), stood_ns = (uint64_t) ((double) (now - before) * ns_per_tick);
        if (own->epoch != *wanted_epoch) {
            own->longest_ns = own->longest_stopped_ns = 0;
            own->epoch = *wanted_epoch;
        } else if (stood_ns > LONG_NS) {
            uint64_t waited_now = waited_for_processor_ns(schedstat), waiting = waited_now - waited;
            uint64_t stopped = stood_ns > waiting ? stood_ns - waiting : 0;
            waited = waited_now;
            if (stood_ns > own->longest_ns) own->longest_ns = stood_ns;
            if (stopped > own->longest_stopped_ns) own->longest_stopped_ns = stopped;
            now = rte_rdtsc();
        }
        before = now;
    }
}

static void *work(void *argument) {
    poll_for_ever(&pollers[1], to_worker, to_main);
    return argument;
}

int main(int argc, char **argv) {
    pthread_t worker;
    if (argc != 2) return 64;
    int file = open(argv[1], O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, 4096) != 0) return 66;
    pollers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    wanted_epoch = (_Atomic uint64_t *) ((char *) pollers + 2048);
    start_eal();
    to_worker = rte_ring_create("to worker", 1024, 0, RING_F_SP_ENQ | RING_F_SC_DEQ);
    to_main = rte_ring_create("to main", 1024, 0, RING_F_SP_ENQ | RING_F_SC_DEQ);
    for (int i = 0; i < 512; i++) rte_ring_enqueue(to_worker, rte_zmalloc("packet", 64, 0));
    strcpy(pollers[0].name, "main");
    strcpy(pollers[1].name, "worker");
    if (pthread_create(&worker, NULL, work, NULL) != 0) return 71;
    printf("ready\n");
    fflush(stdout);
    poll_for_ever(&pollers[0], to_main, to_worker);
    return 0;
}
