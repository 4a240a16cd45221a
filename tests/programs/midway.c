/*
 * Stands behind the first instruction of a function, interrupted by a signal there, until a line comes: `midway NAME`. Prints
 * "midway" and how long that instruction is, in bytes (less than 10), then "through" when the call has come to its end, and waits for one more line. NAME: one of those in `call`.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include <rte_memzone.h>

#include "eal.h"

#define TRAP_FLAG 0x100

static unsigned long function;
static volatile int inside;

static void step(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *) context)->uc_mcontext.gregs;
    unsigned long at = (unsigned long) registers[REG_RIP];
    char line, text[] = "midway 0\n";
    (void) number, (void) info;
    if (at == function) inside = 1;
    else if (inside) {
        registers[REG_EFL] &= ~TRAP_FLAG;
        text[7] = (char) ('0' + at - function);
        if (write(1, text, 9) == 9 && read(0, &line, 1) == 1) return;
        _exit(3);
    }
}

static void call(const char *name) {
    void *block = rte_malloc(NULL, 100, 0);
    const struct rte_memzone *zone = rte_memzone_reserve("taken", 100, SOCKET_ID_ANY, 0);
    __asm__ volatile("pushf; orl %0, (%%rsp); popf" : : "i"(TRAP_FLAG) : "cc", "memory");
    if (strcmp(name, "rte_malloc") == 0) block = rte_malloc(NULL, 10, 0);
    else if (strcmp(name, "rte_malloc_socket") == 0) block = rte_malloc_socket(NULL, 10, 0, SOCKET_ID_ANY);
    else if (strcmp(name, "rte_zmalloc") == 0) block = rte_zmalloc(NULL, 10, 0);
    else if (strcmp(name, "rte_zmalloc_socket") == 0) block = rte_zmalloc_socket(NULL, 10, 0, SOCKET_ID_ANY);
    else if (strcmp(name, "rte_calloc") == 0) block = rte_calloc(NULL, 10, 10, 0);
    else if (strcmp(name, "rte_calloc_socket") == 0) block = rte_calloc_socket(NULL, 10, 10, 0, SOCKET_ID_ANY);
    else if (strcmp(name, "rte_realloc") == 0) block = rte_realloc(block, 1000, 0);
    else if (strcmp(name, "rte_realloc_socket") == 0) block = rte_realloc_socket(block, 1000, 0, SOCKET_ID_ANY);
    else if (strcmp(name, "rte_free") == 0) rte_free(block), block = NULL;
    else if (strcmp(name, "rte_memzone_reserve") == 0) zone = rte_memzone_reserve("zone", 10, SOCKET_ID_ANY, 0);
    else if (strcmp(name, "rte_memzone_reserve_aligned") == 0) zone = rte_memzone_reserve_aligned("zone", 10, SOCKET_ID_ANY, 0, 64);
    else if (strcmp(name, "rte_memzone_free") == 0) rte_memzone_free(zone);
    if (block != NULL) rte_free(block);
}

static void *work(void *name) {
    call(name);
    printf("through\n");
    fflush(stdout);
    return NULL;
}

int main(int argc, char **argv) {
    struct sigaction on_step = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    pthread_t thread;
    start_eal();
    if (argc != 2 || (function = (unsigned long) dlsym(RTLD_DEFAULT, argv[1])) == 0) return 2;
    sigaction(SIGTRAP, &on_step, NULL);
    pthread_create(&thread, NULL, work, argv[1]);
    pthread_join(thread, NULL);
    getchar();
    return 0;
}
