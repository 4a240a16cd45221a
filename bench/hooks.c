/*
 * The native engine's own cost: ns a malloc/free pair through the hooks of the compiled engine, with originals that do
 * nothing. `hooks ENGINE.so FRAMES SECONDS` prints a line for no stacks, for stacks of allocations, and for both; and
 * before them what the machine's counter takes, which each event is timed with.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "../frida_rtetrack/native/session.h"

/* What Gum gives the engine in a target. */
size_t gum_tls_key_new(void) { pthread_key_t key; pthread_key_create(&key, NULL); return key; }
void gum_tls_key_free(size_t key) { pthread_key_delete((pthread_key_t) key); }
void *gum_tls_key_get_value(size_t key) { return pthread_getspecific((pthread_key_t) key); }
void gum_tls_key_set_value(size_t key, void *value) { pthread_setspecific((pthread_key_t) key, value); }
void *gum_invocation_context_get_nth_argument(void *c, unsigned n) { return NULL; }
void gum_invocation_context_replace_nth_argument(void *c, unsigned n, void *v) {}
void *gum_invocation_context_get_return_value(void *c) { return NULL; }
void *gum_invocation_context_get_return_address(void *c) { return NULL; }
void *gum_invocation_context_get_listener_function_data(void *c) { return NULL; }
void *gum_invocation_context_get_listener_invocation_data(void *c, size_t n) { return NULL; }

static void *engine;
static char block[64];

static void *stub_malloc(const char *type, size_t size, unsigned align) { return block; }
static void stub_free(void *address) {}

static void *(*hooked_malloc)(const char *, size_t, unsigned);
static void (*hooked_free)(void *);
static double until;
static uint64_t pairs;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static __attribute__((noinline)) void *take(void) { void *taken = hooked_malloc("bench", 64, 0); __asm__ volatile("" : : : "memory"); return taken; }
static __attribute__((noinline)) void give(void *given) { hooked_free(given); __asm__ volatile("" : : : "memory"); }

static __attribute__((noinline)) int descend(int depth) {
    int left = depth;
    if (depth > 0) {
        left = descend(depth - 1);
        __asm__ volatile("" : "+r"(left) : : "memory");
        return left;
    }
    while (now() < until) {
        int i;
        for (i = 0; i < 10000; i++) give(take());
        pairs += 10000;
    }
    return 0;
}

/* ns that the loop around it takes more with a reading in it. */
static double counter_ns(void) {
    double best[2] = {1e9, 1e9};
    int round, with, i;
    for (round = 0; round < 20; round++)
        for (with = 0; with < 2; with++) {
            double started = now(), took;
            for (i = 0; i < 100000; i++)
                if (with) __asm__ volatile("rdtsc" : : : "rax", "rdx", "memory");
                else __asm__ volatile("" : : : "rax", "rdx", "memory");
            took = (now() - started) * 1e9 / i;
            if (took < best[with]) best[with] = took;
        }
    return best[1] - best[0];
}

static void *get(const char *name) {
    void *found = dlsym(engine, name);
    if (found == NULL) { fprintf(stderr, "no %s\n", name); exit(1); }
    return found;
}

static int add_module(struct dl_phdr_info *info, size_t size, void *unwinder) {
    int (*add)(void *, uint64_t, uint64_t) = get("unwind_add_module");
    uint64_t low = ~0ULL, high = 0;
    int i;
    for (i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            uint64_t start = info->dlpi_phdr[i].p_vaddr & ~4095ULL, end = info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
            if (start < low) low = start;
            if (end > high) high = end;
        }
    add(unwinder, info->dlpi_addr + low, (high - low + 4095) & ~4095ULL);
    ((void *(*)(uint64_t, uint64_t, const char *)) get("agent_module_loaded"))(info->dlpi_addr + low, (high - low + 4095) & ~4095ULL, info->dlpi_name);
    return 0;
}

int main(int argc, char **argv) {
    int frames = argc > 2 ? atoi(argv[2]) : 13, i;
    double seconds = argc > 3 ? atof(argv[3]) : 1;
    uint64_t bytes = 256 << 20;
    struct session_header *header = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t (*size)(void);
    void *tables, *unwinder;
    void **originals;
    engine = dlopen(argv[1], RTLD_NOW);
    if (engine == NULL) { fprintf(stderr, "%s\n", dlerror()); return 1; }
    originals = get("originals");
    printf("a reading of the counter: %.1f ns\n", counter_ns());
    header->magic = SESSION_MAGIC; header->version = SESSION_VERSION; header->header_bytes = SESSION_HEADER_BYTES;
    header->total_bytes = bytes;
    header->ring_offset = 4096; header->ring_capacity = 1 << 21;
    header->stacks_offset = 96 << 20; header->stacks_words = 1 << 20;
    header->labels_offset = 128 << 20; header->labels_bytes = 1 << 20;
    header->threads_offset = 160 << 20; header->threads_capacity = 1 << 16;
    header->modules_offset = 192 << 20; header->modules_bytes = 1 << 20;
    header->stacks_used = header->threads_used = 1; header->labels_used = 8; header->clock_source = CLOCK_TSC;
    header->tail = 1ULL << 60; /* room for ever: nobody reads */
    size = get("agent_tables_bytes");
    tables = mmap(NULL, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size = get("unwind_state_bytes");
    unwinder = mmap(NULL, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (i = 0; i < 3; i++) {
        static const char *const NAMES[] = {"none", "allocations", "both"};
        if (((int (*)(void *, uint64_t, void *, uint32_t, uint32_t, uint32_t)) get("agent_start"))(header, bytes, tables, 64, i > 0, i > 1) < 0) return 1;
        if (i == 0) {
            ((void (*)(void *)) get("agent_use_unwinder"))(unwinder);
            ((void (*)(void)) get("hooks_start"))();
            dl_iterate_phdr(add_module, unwinder);
        }
        originals[0] = stub_malloc;
        originals[8] = stub_free;
        hooked_malloc = get("hook_rte_malloc");
        hooked_free = get("hook_rte_free");
        ((void (*)(int)) get("agent_switch"))(1);
        ((void (*)(int)) get("agent_record"))(1);
        pairs = 0;
        until = now() + seconds;
        double started = now();
        descend(frames - 6); /* take, this function and the four outermost are frames too */
        printf("%d frames, %s: %.1f ns a pair\n", frames, NAMES[i], (now() - started) * 1e9 / pairs);
    }
    for (i = 1; i < (int) header->stacks_used && header->stacks_used > 1; i += 2 + (((uint64_t *) ((char *) header + header->stacks_offset))[i] & 0xffff))
        fprintf(stderr, "stack %d: %d frames\n", i, (int) (((uint64_t *) ((char *) header + header->stacks_offset))[i] & 0xffff));
    return 0;
}
