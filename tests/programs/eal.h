/* What every test program shares: an EAL that needs no hugepages, no devices and no room in /var/run/dpdk. */
#ifndef EAL_H
#define EAL_H
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define NOINLINE __attribute__((noinline))

/* EAL on any core, quiet but for errors; the program's threads may run on every core that it was given. */
static inline void start_eal_with(const char *log_level) {
    char prefix[32];
    snprintf(prefix, sizeof prefix, "rtetrack%d", getpid());
    char *arguments[] = {"program",        "--no-shconf", "--no-huge",       "-m",
                         "64",             "--no-pci",    "--no-telemetry",  "--lcores=0",
                         (char *) log_level, "--file-prefix",    prefix,            NULL};
    cpu_set_t cores;
    sched_getaffinity(0, sizeof cores, &cores);
    char lcores[64];
    for (int core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &cores)) {
            snprintf(lcores, sizeof lcores, "--lcores=0@%d", core);
            arguments[7] = lcores;
            break;
        }
    if (rte_eal_init(11, arguments) < 0) {
        fprintf(stderr, "rte_eal_init failed\n");
        exit(70);
    }
    rmdir(rte_eal_get_runtime_dir()); /* it is empty, and stays for ever otherwise */
    sched_setaffinity(0, sizeof cores, &cores); /* EAL pins the main thread to its core */
}

static inline void start_eal(void) { start_eal_with("--log-level=error"); }

/*
 * An address in the heap that is never handed out and lies in no live block: inside of memory that was freed. DPDK 22.11
 * takes the "element header" 128 bytes below it, finds the state FREE in the zeros there, and only logs "Invalid memory".
 */
static inline void *never_handed_out(void) {
    char *block = rte_malloc("scrap", 1 << 16, 0);
    rte_free(block);
    return block + 4096;
}
#endif
