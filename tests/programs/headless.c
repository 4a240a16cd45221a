/*
 * `headless`: its main thread ends with pthread_exit, as is legal; another one allocates and frees. `headless faults`: it
 * stays, has a handler for SIGSEGV, and at each line of its input reads where nothing is. Prints "ready", and "handled".
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include "eal.h"

static sigjmp_buf back;

static void on_fault(int number) { siglongjmp(back, number); }

static void *work(void *argument) {
    for (;;) {
        rte_free(rte_malloc("headless", 64, 0));
        usleep(1000);
    }
    return argument;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = on_fault};
    pthread_t thread;
    char line[16];
    start_eal();
    pthread_create(&thread, NULL, work, NULL);
    printf("ready\n");
    fflush(stdout);
    if (argc < 2 || strcmp(argv[1], "faults") != 0) pthread_exit(NULL);
    sigaction(SIGSEGV, &action, NULL);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sigsetjmp(back, 1) == 0) *(volatile int *) 8 = 1;
        printf("handled\n");
        fflush(stdout);
    }
    return 0;
}
