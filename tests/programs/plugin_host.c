/*
 * Not linked with DPDK: `plugin_host PLUGIN ROUNDS` loads PLUGIN, which brings DPDK, ROUNDS times; each time it
 * allocates a block of 2000 + ROUND bytes that stays live, one that it frees, and unloads the plugin (DPDK stays). At
 * the end of its input it frees the first block twice and ends.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc < 3) return 64;
    void *first = NULL;
    void (*release)(void *) = NULL;
    for (int round = 0; round < atoi(argv[2]); round++) {
        void *plugin = dlopen(argv[1], RTLD_NOW);
        if (plugin == NULL) {
            puts(dlerror());
            return 70;
        }
        dlopen("librte_eal.so.23", RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
        void (*start)(void) = (void (*)(void)) dlsym(plugin, "plugin_start");
        void *(*allocate)(size_t) = (void *(*) (size_t)) dlsym(plugin, "plugin_allocate");
        release = (void (*)(void *)) dlsym(plugin, "plugin_free");
        if (round == 0) start();
        void *kept = allocate(2000 + (size_t) round);
        if (first == NULL) first = kept;
        release(allocate(64));
        dlclose(plugin);
    }
    puts("unloaded");
    fflush(stdout);
    while (getchar() != EOF) {}
    void *plugin = dlopen(argv[1], RTLD_NOW);
    release = (void (*)(void *)) dlsym(plugin, "plugin_free");
    release(first);
    release(first);
    return 0;
}
