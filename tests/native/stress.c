/*
 * Threads that walk and look rows up while another adds and removes modules.
 *
 *     stress FILE FILE SECONDS    two files that take turns at the same address (not with a thread sanitizer: the one
 *                                 is copied over the other while it is read, as no program's own code would be)
 *     stress SECONDS              the modules of this program are taken away and put back, while signals interrupt walks
 *                                 and walk themselves
 */
#define _GNU_SOURCE
#include "../../frida_rtetrack/native/unwind.c"

#include "image.h"

#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#define THREADS 3
#define PLACES 400
#define OPAQUE __attribute__((noinline, noclone, noipa))

static struct unwind_state *state;
static volatile int stopping;
static long walks, complete, wrong;
static uint64_t places[PLACES];

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- files ---- */

static void *look_up(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument * 2654435761u + 1;
    while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED)) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unwind_row(state, places[seed >> 33 & 0xff]);
    }
    return NULL;
}

static int files_take_turns(const char *first, const char *second, double duration)
{
    struct image images[2];
    uint64_t expected[2][PLACES], size, base;
    uint8_t *place;
    pthread_t threads[THREADS];
    double end = seconds() + duration;
    long turns = 0, known = 0;
    if (!load_image(first, &images[0]) || !load_image(second, &images[1]))
        return 2;
    size = images[0].size > images[1].size ? images[0].size : images[1].size;
    place = calloc(1, size);
    base = (uint64_t)(uintptr_t)place;
    for (int which = 0; which < 2; which++) {
        memcpy(place, images[which].bytes, images[which].size);
        if (!unwind_add_module(state, base, images[which].size))
            return 2;
        for (int i = 0; i < PLACES; i++) {
            if (which == 0)
                places[i] = base + images[0].header / 2 / PLACES * (uint64_t)i + 1000;
            expected[which][i] = unwind_row(state, places[i]);
            known += expected[which][i] >> ROW_KIND_SHIFT != ROW_NO_TABLE;
        }
        unwind_remove_module(state, base);
    }
    for (intptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, look_up, (void *)i);
    while (seconds() < end) {
        int which = (int)(turns++ & 1);
        unwind_remove_module(state, base);
        memcpy(place, images[which].bytes, images[which].size);
        unwind_add_module(state, base, images[which].size);
        for (int round = 0; round < 3; round++)
            for (int i = 0; i < PLACES; i++)
                wrong += unwind_row(state, places[i]) != expected[which][i];
    }
    __atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("%ld turns, %ld of %d rows known, %ld wrong\n", turns, known, 2 * PLACES, wrong);
    return wrong != 0 || turns < 10 || known < 100;
}

/* ---- this program's own modules ---- */

struct module_list {
    uint64_t base[64], size[64];
    int count;
};

static int list(struct dl_phdr_info *info, size_t bytes, void *context)
{
    struct module_list *modules = context;
    uint64_t low = ~0ULL, high = 0;
    (void)bytes;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD) {
            low = info->dlpi_phdr[i].p_vaddr < low ? info->dlpi_phdr[i].p_vaddr & ~0xfffULL : low;
            high = info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        }
    modules->base[modules->count] = info->dlpi_addr + low;
    modules->size[modules->count++] = high - low;
    return modules->count == 64;
}

struct walker {
    struct unwind_memo *memo;
    uint64_t low, high, expected[64];
    int expected_count;
    uint64_t calls;
};

static __thread struct walker *own_walker;
static long interrupting_walks;
static uint64_t changes; /* odd while the modules are changed */

/* Interrupts a walk, as often as not, and uses the same memo; what it finds must be what a walk without memo finds. */
static void on_timer(int number)
{
    const uint64_t *own = __builtin_frame_address(0);
    uint64_t frames[2][64], before;
    struct unwind_trace traces[2];
    (void)number;
    if (own_walker == NULL)
        return;
    before = load_word(&changes);
    for (int i = 0; i < 2; i++) {
        traces[i] = (struct unwind_trace){.ra = own[1], .sp = (uint64_t)(uintptr_t)(own + 2), .bp = own[0],
                                          .low = own_walker->low, .high = own_walker->high, .frames = frames[i],
                                          .max_frames = 64};
        unwind_walk_with_memo(state, i == 0 ? NULL : own_walker->memo, &traces[i]);
    }
    if ((before & 1) || load_word(&changes) != before)
        return;
    __atomic_add_fetch(&interrupting_walks, 1, __ATOMIC_RELAXED);
    if (traces[0].count != traces[1].count || traces[0].end != traces[1].end || traces[0].hash != traces[1].hash ||
        memcmp(frames[0], frames[1], sizeof frames[0][0] * (size_t)traces[0].count) != 0)
        __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

OPAQUE static void innermost(struct walker *walker)
{
    const uint64_t *own = __builtin_frame_address(0);
    uint64_t frames[64];
    struct unwind_trace trace = {.ra = own[1], .sp = (uint64_t)(uintptr_t)(own + 2), .bp = own[0], .low = walker->low,
                                 .high = walker->high, .frames = frames, .max_frames = 64};
    if (walker->expected_count == 0) {
        void *addresses[66];
        int count = backtrace(addresses, 66), i = 0;
        while (i < count && (uint64_t)(uintptr_t)addresses[i] != own[1])
            i++;
        for (; i < count; i++)
            walker->expected[walker->expected_count++] = (uint64_t)(uintptr_t)addresses[i];
    }
    int count = unwind_walk_with_memo(state, ++walker->calls % 3 ? walker->memo : NULL, &trace);
    int right = count <= walker->expected_count &&
                (trace.end == STACK_COMPLETE ? count == walker->expected_count : trace.end == STACK_NO_UNWIND_TABLE);
    /* Frame 0 differs between the first call and the others. */
    for (int i = 1; right && i < count; i++)
        right = frames[i] == walker->expected[i];
    __atomic_add_fetch(&walks, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&complete, trace.end == STACK_COMPLETE, __ATOMIC_RELAXED);
    if (!right)
        __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

OPAQUE static int descend(struct walker *walker, int depth)
{
    int result = 1;
    if (depth > 0)
        result += descend(walker, depth - 1);
    else
        while (!__atomic_load_n(&stopping, __ATOMIC_RELAXED))
            innermost(walker);
    __asm__ volatile("" ::: "memory");
    return result;
}

static int compare(const void *a, const void *b)
{
    struct walker *walker = *(struct walker *const *)a;
    (void)b;
    return descend(walker, 6);
}

static void *walk_in_thread(void *argument)
{
    struct walker *pair[2], *walker = calloc(1, sizeof *walker);
    pthread_attr_t attributes;
    void *address;
    size_t size;
    (void)argument;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &size);
    pthread_attr_destroy(&attributes);
    walker->low = (uint64_t)(uintptr_t)address;
    walker->high = walker->low + size;
    walker->memo = calloc(1, sizeof *walker->memo);
    pair[0] = pair[1] = walker;
    own_walker = walker;
    qsort(pair, 2, sizeof pair[0], compare); /* frames of libc between those of the program */
    own_walker = NULL;
    free(walker->memo);
    free(walker);
    return NULL;
}

static int own_modules_come_and_go(double duration)
{
    struct module_list modules = {.count = 0};
    pthread_t threads[THREADS];
    long turns = 0;
    double end = seconds() + duration;
    dl_iterate_phdr(list, &modules);
    for (int i = 0; i < modules.count; i++)
        unwind_add_module(state, modules.base[i], modules.size[i]);
    for (intptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, walk_in_thread, NULL);
#ifndef __SANITIZE_THREAD__ /* which holds signals back */
    struct itimerval often = {{0, 150}, {0, 150}};
    signal(SIGPROF, on_timer);
    setitimer(ITIMER_PROF, &often, NULL);
#endif
    while (seconds() < end) {
        int i = (int)(turns++ % modules.count);
        struct timespec moment = {0, 200000};
        __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
        unwind_remove_module(state, modules.base[i]);
        __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
        nanosleep(&moment, NULL);
        __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
        unwind_add_module(state, modules.base[i], modules.size[i]);
        __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
        nanosleep(&moment, NULL);
    }
    __atomic_store_n(&stopping, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    signal(SIGPROF, SIG_IGN);
    printf("%ld turns, %ld walks, %ld complete, %ld in signals, %ld wrong\n", turns, walks, complete, interrupting_walks,
           wrong);
    return wrong != 0 || complete == 0 || complete == walks;
}

int main(int argc, char **argv)
{
    state = calloc(1, sizeof *state);
    if (argc == 4)
        return files_take_turns(argv[1], argv[2], atof(argv[3]));
    return own_modules_come_and_go(argc > 1 ? atof(argv[1]) : 1);
}
