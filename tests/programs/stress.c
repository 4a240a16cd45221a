/*
 * Everything at once until SIGTERM: `stress PLUGIN [nofork] [nothreads]`. Two threads allocate and free at changing depth, a
 * third one keeps creating threads that do so and exit (nothreads: not), the main thread loads a library that allocates and
 * unloads it (SIGUSR2: no more, SIGUSR1: again), forks children that leave (nofork: not), and a timer interrupts whoever
 * runs. Nothing is planted: at the end everything is freed. Prints "ready", and at the end the number of pairs.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "eal.h"

static atomic_int stopping;
static atomic_ulong pairs_done;
static volatile int interruptions;

static void stop(int signal) {
    (void) signal;
    stopping = 1;
}

static volatile int loading = 1;

static void load_or_not(int signal) { loading = signal == SIGUSR1; }

static void interrupt(int signal) {
    (void) signal;
    interruptions++;
}

static NOINLINE void pairs(int depth, int count) {
    void *blocks[16];
    if (depth > 0) {
        pairs(depth - 1, count);
        interruptions += 0;
        return;
    }
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < 16; k++) blocks[k] = rte_malloc(k % 2 ? "odd" : "even", 64 + 32 * (unsigned) k, 0);
        if (i == 0) blocks[3] = rte_realloc(blocks[3], 3000, 0); /* dear to the host: now and then */
        for (int k = 0; k < 16; k++) rte_free(blocks[k]);
        pairs_done += 16;
    }
}

static void *steadily(void *argument) {
    (void) argument;
    for (int depth = 0; !stopping; depth = (depth + 1) % 40) pairs(depth, 100);
    return NULL;
}

static void *briefly(void *argument) {
    pairs((int) (long) argument, 20);
    return NULL;
}

static void *keep_creating(void *argument) {
    (void) argument;
    for (long n = 0; !stopping; n++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, briefly, (void *) (n % 30)) == 0) pthread_join(thread, NULL);
    }
    return NULL;
}

int main(int argc, char **argv) {
    struct itimerval often = {{0, 2000}, {0, 2000}};
    struct sigaction on_user = {.sa_handler = load_or_not, .sa_flags = SA_RESTART};
    struct sigaction on_alarm = {.sa_handler = interrupt, .sa_flags = SA_RESTART}, on_term = {.sa_handler = stop};
    pthread_t threads[3];
    start_eal();
    sigaction(SIGALRM, &on_alarm, NULL);
    sigaction(SIGTERM, &on_term, NULL);
    sigaction(SIGUSR1, &on_user, NULL);
    sigaction(SIGUSR2, &on_user, NULL);
    for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, steadily, NULL);
    int forks = 1, count = 3;
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "nofork") == 0) forks = 0;
        if (strcmp(argv[i], "nothreads") == 0) count = 2;
    }
    if (count == 3) pthread_create(&threads[2], NULL, keep_creating, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    printf("ready\n");
    fflush(stdout);
    while (!stopping) {
        void *plugin = loading ? dlopen(argc > 1 ? argv[1] : "", RTLD_NOW) : NULL;
        if (plugin != NULL) {
            void *(*allocate)(size_t) = (void *(*) (size_t)) dlsym(plugin, "plugin_allocate");
            if (allocate != NULL) rte_free(allocate(100));
            dlclose(plugin);
        }
        pid_t child = forks ? fork() : -1;
        if (child == 0) _exit(0); /* DPDK's locks may be held in it */
        if (child > 0) waitpid(child, NULL, 0);
        usleep(5000);
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    printf("%lu\n", (unsigned long) pairs_done);
    return 0;
}
