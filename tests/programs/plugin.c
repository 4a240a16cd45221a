/* A library that allocates from DPDK's heap with type names of its own. See plugin_host.c. */
#include "eal.h"

void plugin_start(void) { start_eal(); }

NOINLINE void *plugin_allocate(size_t size) { return rte_malloc("of the plugin", size, 0); }

void plugin_free(void *block) { rte_free(block); }
