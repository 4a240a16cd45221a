/*
 * Whether threads have moved on (progress.c), built with the system's compiler: `progress_check SPINNING SLEEPING OWN_MS LIMIT_MS`
 * prints how many have not, and how many ms that took. The sleeping ones have names that look like another state.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../frida_rtetrack/native/session.c"

struct agent agent;
struct follow fork_follow;

static volatile int ready;

static void *spin(void *argument) {
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    for (;;) cpu_relax();
    return argument;
}

static void *rest(void *argument) {
    int64_t pause[2] = {100, 0};
    syscall(SYS_PRCTL, 15L /* PR_SET_NAME */, "a) R 1 (b) R", 0L, 0L, 0L);
    __atomic_fetch_add(&ready, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_NANOSLEEP, pause, 0L);
    return argument;
}

int main(int argc, char **argv) {
    int spinning = atoi(argv[1]), sleeping = atoi(argv[2]);
    pthread_t thread;
    uint64_t begun, left;
    if (argc != 5) return 2;
    for (int i = 0; i < spinning + sleeping; i++) pthread_create(&thread, NULL, i < spinning ? spin : rest, NULL);
    while (ready < spinning + sleeping) cpu_relax();
    begun = monotonic_ns();
    left = threads_move_on((uint64_t) atoll(argv[3]) * 1000000, (uint64_t) atoll(argv[4]) * 1000000);
    printf("%d %d\n", (int) left, (int) ((monotonic_ns() - begun) / 1000000));
    fflush(stdout);
    _exit(0);
}
