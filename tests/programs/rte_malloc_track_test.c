/* rteMallocTrack's own test: allocate, free, free again (a duplicate free), free 0x1 (a stray free that crashes). */
#include "eal.h"

int main(void) {
    start_eal();
    void *block = rte_malloc("test", 100, 0);
    rte_free(block);
    rte_free(block);
    rte_free((void *) 0x1);
    return 0;
}
