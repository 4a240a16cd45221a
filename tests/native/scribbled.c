/*
 * The compiled engine over a session memory that somebody else writes: `scribbled ENGINE.so` fills everything that no
 * process may trust with the address of a page of this program's own and with numbers at the edge of something, while
 * threads, and a followed forked child, come by the hooks. Ends with 0 where nothing of the program's was touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../frida_rtetrack/native/session.h"

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

#define BYTES (64UL << 20)
#define OWN_BYTES (1UL << 20)
#define THREADS 8

static void *engine;
static char block[64];
static uint8_t *own; /* the program's: nobody else's to write, or to unmap */
static struct session_header *header;
static uint64_t first_slot[64];
static sem_t go, came;

static void *stub_malloc(const char *type, size_t size, unsigned align) { return block; }
static void stub_free(void *address) {}
static void *(*hooked_malloc)(const char *, size_t, unsigned);
static void (*hooked_free)(void *);

static void *get(const char *name) {
    void *found = dlsym(engine, name);
    if (found == NULL) { fprintf(stderr, "no %s\n", name); exit(2); }
    return found;
}

static int add_module(struct dl_phdr_info *info, size_t size, void *unwinder) {
    int (*add)(void *, uint64_t, uint64_t) = get("unwind_add_module");
    uint64_t low = ~0ULL, high = 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            uint64_t start = info->dlpi_phdr[i].p_vaddr & ~4095ULL, end = info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
            if (start < low) low = start;
            if (end > high) high = end;
        }
    add(unwinder, info->dlpi_addr + low, (high - low + 4095) & ~4095ULL);
    return 0;
}

static void load_modules(void) {
    void *(*loaded)(uint64_t, uint64_t, const char *) = get("agent_module_loaded");
    void (*unloaded)(void *) = get("agent_module_unloaded");
    unloaded(loaded(0x400000, 32, "/some/module"));
}

static __attribute__((noinline)) void come_by(int times) {
    char label[32];
    for (int i = 0; i < times; i++) {
        snprintf(label, sizeof label, "label %d", i % 50);
        hooked_free(hooked_malloc(label, 64, 0));
    }
}

static __attribute__((noinline)) int deeper(int depth, int times) {
    int left = depth;
    if (depth > 0) left = deeper(depth - 1, times);
    else come_by(times);
    __asm__ volatile("" : "+r"(left) : : "memory");
    return left;
}

static void *thread(void *argument) {
    deeper(3, 50);
    sem_post(&came);
    sem_wait(&go);
    deeper(5, 50);
    return NULL;
}

/* `number` into every counter, the program's own address into every slot, and rubbish where the layout was. */
static void scribble(uint64_t number) {
    uint64_t *slots = (uint64_t *) ((char *) header + first_slot[0]);
    for (uint64_t i = 8; i < 8ULL * 256; i++) slots[i] = (uint64_t) own;
    for (uint64_t *field = &header->ring_offset; field < &header->modules_bytes + 1; field++) *field = (uint64_t) own;
    header->threads_used = header->stacks_used = header->labels_used = header->modules_used = number;
    header->heartbeat_ns = ~0ULL;
    header->tail = 1ULL << 60;
}

static int untouched(void) {
    for (uint64_t i = 0; i < OWN_BYTES; i++)
        if (own[i] != 0x5a) return 0;
    return 1;
}

int main(int argc, char **argv) {
    static const uint64_t NUMBERS[] = {0, 1, 2, 65535, 65536, 1ULL << 32, ~0ULL, ~0ULL - 4, ~0ULL - 64};
    uint64_t (*size)(void);
    void *tables, *unwinder, **originals;
    pthread_t threads[THREADS];
    header = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    own = mmap(NULL, OWN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(own, 0x5a, OWN_BYTES);
    engine = dlopen(argv[1], RTLD_NOW);
    if (engine == NULL) { fprintf(stderr, "%s\n", dlerror()); return 2; }
    originals = get("originals");
    header->magic = SESSION_MAGIC; header->version = SESSION_VERSION; header->header_bytes = SESSION_HEADER_BYTES;
    header->total_bytes = BYTES;
    header->ring_offset = 4096; header->ring_capacity = 1 << 16;
    header->stacks_offset = 4 << 20; header->stacks_words = 1 << 16;
    header->labels_offset = 8 << 20; header->labels_bytes = 1 << 16;
    first_slot[0] = header->threads_offset = 16 << 20; header->threads_capacity = SESSION_MAX_THREADS;
    header->modules_offset = 32 << 20; header->modules_bytes = 1 << 16;
    header->stacks_used = header->threads_used = 1; header->labels_used = 8;
    header->tail = 1ULL << 60; /* room for ever: nobody reads */
    size = get("agent_tables_bytes");
    tables = mmap(NULL, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size = get("unwind_state_bytes");
    unwinder = mmap(NULL, size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (((int (*)(void *, uint64_t, void *, uint32_t, uint32_t, uint32_t)) get("agent_start"))(header, BYTES, tables, 64, 1, 1) != 0) return 2;
    ((void (*)(void *)) get("agent_use_unwinder"))(unwinder);
    ((void (*)(void)) get("hooks_start"))();
    dl_iterate_phdr(add_module, unwinder);
    originals[0] = stub_malloc;
    originals[8] = stub_free;
    hooked_malloc = get("hook_rte_malloc");
    hooked_free = get("hook_rte_free");
    ((void (*)(int)) get("agent_switch"))(1);
    ((void (*)(int)) get("agent_record"))(1);
    if (madvise(get("agent"), 4096, MADV_WIPEONFORK) != 0) return 2;
    ((void (*)(int)) get("agent_follow"))(1);
    for (unsigned i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++) {
        for (int t = 0; t < THREADS; t++) {
            pthread_create(&threads[t], NULL, thread, NULL);
            if (t % 2) header->threads_used = 1; /* two threads are told the same number */
        }
        for (int t = 0; t < THREADS; t++) sem_wait(&came);
        scribble(NUMBERS[i]);
        load_modules();
        deeper(4, 50);
        pid_t child = fork();
        if (child == 0) {
            deeper(4, 50);
            scribble(NUMBERS[i]);
            sem_init(&go, 0, THREADS);
            pthread_create(&threads[0], NULL, thread, NULL);
            pthread_join(threads[0], NULL);
            deeper(2, 50);
            _exit(untouched() && ((int (*)(void)) get("agent_threads_inside"))() == 0 ? 0 : 1);
        }
        int status;
        waitpid(child, &status, 0);
        if (status != 0) { fprintf(stderr, "the child, %llx: status %x\n", (unsigned long long) NUMBERS[i], status); return 1; }
        for (int t = 0; t < THREADS; t++) sem_post(&go);
        for (int t = 0; t < THREADS; t++) pthread_join(threads[t], NULL);
        if (!untouched()) { fprintf(stderr, "%llx: the program's own memory was written\n", (unsigned long long) NUMBERS[i]); return 1; }
        header->threads_used = 1000 * (i + 1); /* places for the next ones */
    }
    if (((int (*)(void)) get("agent_threads_inside"))() != 0) return 3;
    ((void (*)(void)) get("hooks_stop"))();
    if (!untouched()) return 4;
    printf("%llu events\n", (unsigned long long) header->head);
    return 0;
}
