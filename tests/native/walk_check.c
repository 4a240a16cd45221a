#define _GNU_SOURCE
#include "walk_check.h"

#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "unwind.h"

int checks_made, checks_failed;

static pthread_mutex_t modules_lock = PTHREAD_MUTEX_INITIALIZER;
static struct unwind_state *state;
static uint64_t known[4096];
static int known_count;
static __thread struct unwind_memo *memos[2];

struct listing {
    uint64_t base[4096], size[4096];
    int count;
};

static int list_module(struct dl_phdr_info *info, size_t bytes, void *context)
{
    struct listing *listing = context;
    uint64_t low = ~0ULL, high = 0;
    (void)bytes;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = info->dlpi_phdr + i;
        if (segment->p_type != PT_LOAD)
            continue;
        if (segment->p_vaddr < low)
            low = segment->p_vaddr;
        if (segment->p_vaddr + segment->p_memsz > high)
            high = segment->p_vaddr + segment->p_memsz;
    }
    low &= ~0xfffULL;
    if (high > low && listing->count < 4096) {
        listing->base[listing->count] = info->dlpi_addr + low;
        listing->size[listing->count++] = high - low;
    }
    return 0;
}

static int contains(const uint64_t *bases, int count, uint64_t base)
{
    for (int i = 0; i < count; i++)
        if (bases[i] == base)
            return 1;
    return 0;
}

void follow_modules(void)
{
    static struct listing now;
    pthread_mutex_lock(&modules_lock);
    if (state == NULL)
        state = calloc(1, unwind_state_bytes());
    now.count = 0;
    dl_iterate_phdr(list_module, &now);
    for (int i = 0; i < known_count; i++)
        if (!contains(now.base, now.count, known[i]))
            unwind_remove_module(state, known[i]);
    for (int i = 0; i < now.count; i++)
        if (!contains(known, known_count, now.base[i]))
            unwind_add_module(state, now.base[i], now.size[i]);
    memcpy(known, now.base, sizeof known);
    known_count = now.count;
    pthread_mutex_unlock(&modules_lock);
}

static void stack_bounds(uint64_t sp, uint64_t *low, uint64_t *high)
{
    pthread_attr_t attributes;
    void *address;
    size_t size;
    stack_t alternate;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &size);
    pthread_attr_destroy(&attributes);
    *low = (uint64_t)(uintptr_t)address;
    *high = *low + size;
    if (sigaltstack(NULL, &alternate) == 0 && (alternate.ss_flags & SS_ONSTACK)) {
        *low = (uint64_t)(uintptr_t)alternate.ss_sp;
        *high = *low + alternate.ss_size;
    }
    (void)sp;
}

static void complain(const char *what, const char *way, const char *how, void **expected, int expected_count,
                     const uint64_t *frames, int count, int end)
{
    __atomic_add_fetch(&checks_failed, 1, __ATOMIC_SEQ_CST);
    fprintf(stderr, "FAILED %s (%s): %s; %d frames, ended by %d\n", what, way, how, count, end);
    for (int i = 0; i < expected_count || i < count; i++) {
        uint64_t a = i < expected_count ? (uint64_t)(uintptr_t)expected[i] : 0, b = i < count ? frames[i] : 0;
        fprintf(stderr, "  %2d %16lx %16lx %s\n", i, a, b, a == b ? "" : "<--");
    }
}

/* Built with a frame pointer: its own frame is where the walk starts. */
void check_stack_of(const char *what, int expected_end, int at_least)
{
    void *expected[UNWIND_MAX_FRAMES + 8];
    uint64_t frames[UNWIND_MAX_FRAMES];
    const uint64_t *own = __builtin_frame_address(0);
    struct unwind_trace trace;
    uint64_t hash = 0;
    uint32_t numbers[2] = {0, 0};
    int count, skipped;

    if (memos[0] == NULL) {
        memos[0] = calloc(1, unwind_memo_bytes());
        memos[1] = calloc(1, unwind_memo_bytes());
    }
    count = backtrace(expected, UNWIND_MAX_FRAMES + 8);
    for (skipped = 0; skipped < count && (uint64_t)(uintptr_t)expected[skipped] != own[1];)
        skipped++; /* this function, and a sanitizer's backtrace() */
    count -= skipped;
    memmove(expected, expected + skipped, sizeof expected[0] * (size_t)count);
    if (count > UNWIND_MAX_FRAMES)
        count = UNWIND_MAX_FRAMES;

    trace.ra = own[1];
    trace.sp = (uint64_t)(uintptr_t)(own + 2);
    trace.bp = own[0];
    trace.frames = frames;
    stack_bounds(trace.sp, &trace.low, &trace.high);
    for (int step = 0; step < 18; step++) {
        /* Without memo; with one memo for the plain loops and one for the assembly, often enough that the memo must have
         * taken it over, then cut short, and whole again. */
        int plain = step % 2 == 0, with_memo = step >= 2, cut = step / 2 == 7;
        int wanted = cut && count > 1 ? count / 2 : UNWIND_MAX_FRAMES;
        char way[64];
        snprintf(way, sizeof way, "%s%s, step %d", plain ? "plain" : "assembly", with_memo ? " with memo" : "", step);
        trace.max_frames = wanted;
        unwind_use_plain_loops(state, plain);
        unwind_walk_with_memo(state, with_memo ? memos[plain] : NULL, &trace);
        if (wanted > count)
            wanted = count;
        const char *wrong = NULL;
        if (trace.count < at_least && !cut)
            wrong = "too few frames";
        else if (trace.end == ENDS_COMPLETE ? trace.count != wanted : trace.count > wanted)
            wrong = "other number of frames";
        else if (memcmp(frames, expected, sizeof frames[0] * (size_t)trace.count) != 0)
            wrong = "other frames";
        else if (expected_end != ENDS_SOMEHOW && trace.end != expected_end && trace.end != STACK_MAX_FRAMES)
            wrong = "other end";
        else if (trace.end == STACK_MAX_FRAMES && trace.count != trace.max_frames)
            wrong = "ended for no reason";
        else if (step > 0 && !cut && trace.hash != hash)
            wrong = "other hash";
        else if (!with_memo && trace.number != 0)
            wrong = "remembered nowhere";
        else if ((step == 12 || step == 13) && (trace.number == 0 || trace.number != numbers[plain]))
            wrong = "not remembered";
        if (wrong != NULL)
            complain(what, way, wrong, expected, count, frames, trace.count, trace.end);
        if (!cut)
            hash = trace.hash;
        numbers[plain] = trace.number;
    }
    __atomic_add_fetch(&checks_made, 1, __ATOMIC_SEQ_CST);
    if (getenv("WALK_CHECK_VERBOSE"))
        fprintf(stderr, "%s: %d frames, ended by %d\n", what, trace.count, trace.end);
}

void check_stack(const char *what, int expected_end)
{
    check_stack_of(what, expected_end, 1);
    NO_TAIL_CALL();
}

int finish_checks(int checks_expected)
{
    printf("%d checks, %d failed\n", checks_made, checks_failed);
    if (checks_made < checks_expected)
        printf("only %d of %d checks were made\n", checks_made, checks_expected);
    return checks_failed != 0 || checks_made < checks_expected;
}
