/*
 * Random rows over random stacks: the loops in C and in assembly, without and with a memo that has seen other walks
 * before, must all give the same. Knows the unwinder from the inside.
 *
 *     equivalence SEED WALKS
 */
#define _GNU_SOURCE
#include "../../frida_rtetrack/native/unwind.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define KNOWN 48
#define WORDS 512
#define MOST 40

static uint64_t seed;

static uint64_t below(uint64_t limit)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % limit;
}

static uint64_t known[KNOWN];
static uint64_t *stack;
static char taken[SET_COUNT]; /* sets where a word that is no return address may get a row: it must not evict a known one */
static struct unwind_state *state;

static uint64_t stack_address(uint64_t word) { return (uint64_t)(uintptr_t)(stack + word); }

static uint64_t random_info(void)
{
    uint64_t n = below(3) ? 1 + below(4) : 1, units = 1 + below(6);
    switch (below(24)) {
    case 0:
        return below(3) ? ROW(ROW_OUTERMOST, 0) : ROW(ROW_UNSUPPORTED, 0);
    case 1:
        return ROW(ROW_SIGNAL, 0);
    case 2:
        return ROW(ROW_DEREF_SP, below(4) << 12 | below(3) << 8 | n);
    case 3:
        return ROW(ROW_DEREF_BP, (below(2) ? 0xfff : 0) << 12 | below(2) << 8 | n);
    case 4:
        return ROW(ROW_DEREF_BP_AT_BP, (below(3) ? 0xfff : 0xffe) << 12);
    case 5:
        return ROW(below(2) ? ROW_LOST_SP : ROW_LOST_BP, units);
    case 6:
        return ROW((below(2) ? ROW_LARGE_SP : ROW_LARGE_BP) + n - 1, units);
    case 7:
    case 8:
    case 9:
    case 10:
    case 11:
        return ROW(ROW_BP, 2 << 16 | 2);
    case 12:
        return ROW(ROW_BP, n << 16 | units);
    default:
        return ROW(ROW_SP, n << 16 | units);
    }
}

/* A word as stacks have them: mostly return addresses and frame pointers that point a little further up. */
static uint64_t random_word(uint64_t at)
{
    switch (below(16)) {
    case 0:
        return below(2) ? 0 : below(1000);
    case 1:
        return below(2) ? ~0ULL - below(600) : 1ULL << 47 | below(1ULL << 40);
    case 2:
        return stack_address(0) + below(WORDS * 8 + 100);
    case 3:
        return known[below(KNOWN)] - 1;
    case 4:
    case 5:
    case 6:
    case 7:
        return stack_address(at + 1 + below(12));
    default:
        return known[below(KNOWN)];
    }
}

struct state_at {
    uint64_t ra, sp, bp;
};

static struct state_at chain[WORDS];
static uint64_t chain_length;


static int goes_on(uint64_t ra, int bp_is_good)
{
    uint64_t kind = cached_row(state->rows, ra) >> ROW_KIND_SHIFT;
    return kind != ROW_OUTERMOST && kind != ROW_UNSUPPORTED && (bp_is_good || !is_by_bp(kind)) &&
           (below(8) == 0 || (kind != ROW_LOST_SP && kind != ROW_LOST_BP));
}

/* Lays a chain of calls over the stack that a walk can follow for a while. */
static void lay_chain(void)
{
    struct state_at now = {known[0], 8, 16 + below(8)}; /* sp and bp in words here */
    for (uint64_t i = 0; i < WORDS; i++)
        stack[i] = random_word(i);
    chain_length = 0;
    while (now.sp + 64 < WORDS) {
        uint64_t info = cached_row(state->rows, now.ra), kind = info >> ROW_KIND_SHIFT;
        uint64_t units = info & 0xffff, n = (info >> 16) & 0xff, base = now.sp, cfa, next_bp;
        int64_t inner = (int64_t)((info >> 12 & 0xfff) ^ 0x800) - 0x800;
        chain[chain_length++] = (struct state_at){now.ra, stack_address(now.sp), stack_address(now.bp)};
        if (is_by_bp(kind))
            base = now.bp;
        if (kind == ROW_SIGNAL) {
            uint64_t pc = known[below(KNOWN)];
            stack[now.sp + 21] = pc - 1;
            stack[now.sp + 20] = stack_address(now.sp + 24);
            stack[now.sp + 15] = stack_address(now.sp + 26 + below(6));
            now.bp = (stack[now.sp + 15] - stack_address(0)) / 8;
            now.sp += 24;
            now.ra = pc;
            continue;
        }
        if (kind == ROW_DEREF_SP || kind == ROW_DEREF_BP || kind == ROW_DEREF_BP_AT_BP) {
            uint64_t at = base + (uint64_t)inner;
            cfa = (at > now.sp ? at : now.sp) + 3 + below(4);
            stack[at] = stack_address(cfa - (info >> 8 & 15));
            n = info & 0xff;
        } else if (kind >= ROW_LARGE_SP) {
            cfa = base + units;
            n = (kind & 15) + 1;
        } else if (kind == ROW_SP || kind == ROW_BP || kind == ROW_LOST_SP || kind == ROW_LOST_BP) {
            cfa = base + units;
        } else {
            return;
        }
        if (cfa <= now.sp || cfa + 64 >= WORDS || cfa - n < now.sp)
            return;
        next_bp = cfa + 1 + below(20);
        if (kind == ROW_DEREF_BP_AT_BP) {
            uint64_t at = base + (uint64_t)((int64_t)((info & 0xff) ^ 0x80) - 0x80);
            if (stack[at] != stack_address(cfa - (info >> 8 & 15))) {
                stack[at] = stack_address(next_bp);
                now.bp = next_bp;
            }
        } else if (n > 1) {
            stack[cfa - n] = stack_address(next_bp);
            now.bp = next_bp;
        }
        now.sp = cfa;
        now.ra = known[below(KNOWN)];
        for (int tries = 0; tries < 30 && !goes_on(now.ra, now.bp >= cfa); tries++)
            now.ra = known[below(KNOWN)];
        stack[cfa - 1] = now.ra;
    }
}

struct result {
    uint64_t frames[MOST];
    struct unwind_trace trace;
};

static void walk_once(struct result *result, const struct unwind_trace *from, struct unwind_memo *memo, int plain)
{
    result->trace = *from;
    result->trace.frames = result->frames;
    state->plain_loops = (uint64_t)plain;
    unwind_walk_with_memo(state, memo, &result->trace);
}

static int same(const struct result *a, const struct result *b)
{
    return a->trace.count == b->trace.count && a->trace.end == b->trace.end && a->trace.hash == b->trace.hash &&
           memcmp(a->frames, b->frames, sizeof(uint64_t) * (size_t)a->trace.count) == 0;
}

static void print(const char *name, const struct result *result)
{
    printf("%s: %d frames, end %d, hash %lx, number %u\n", name, result->trace.count, result->trace.end,
           result->trace.hash, result->trace.number);
    for (int i = 0; i < result->trace.count; i++)
        printf("  %lx\n", result->frames[i]);
}

int main(int argc, char **argv)
{
    long walks = argc > 2 ? atol(argv[2]) : 200000, frames = 0, ends[6] = {0}, longest = 0, remembered = 0;
    struct unwind_memo *memos[3] = {calloc(1, sizeof **memos), calloc(1, sizeof **memos), calloc(1, sizeof **memos)};
    static struct result reference, result, numbered[3];
    state = calloc(1, sizeof *state);
    seed = argc > 1 ? strtoull(argv[1], NULL, 0) * 2 + 1 : 1;

    stack = mmap((void *)0x200000000000, WORDS * 8, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (stack != (void *)0x200000000000)
        return 2;

    for (long walk = 0; walk < walks; walk++) {
        struct unwind_trace from;
        uint64_t start;
        if (walk % 5000 == 0) {
            memset(state->rows, 0, sizeof state->rows);
            memset(taken, 0, sizeof taken);
            for (uint64_t i = 0; i < WORDS * 8 + 200; i++)
                taken[row_set(stack_address(0) + i)] = taken[row_set(i)] = 1;
            for (int i = 0; i < KNOWN; i++) {
                uint64_t *row, *row_of_pc;
                do {
                    known[i] = 1 + below((1ULL << 47) - 1);
                    row = state->rows + row_set(known[i]);
                    row_of_pc = state->rows + row_set(known[i] - 1);
                } while (taken[row - state->rows] || (row[0] != 0 && row[SET_COUNT] != 0) || row_of_pc[0] != 0);
                row[row[0] != 0 ? SET_COUNT : 0] = row_tag(known[i]) | random_info();
                taken[row_of_pc - state->rows] = 1;
            }
            state->generation++;
        }
        if (walk % 50 == 0)
            lay_chain();
        if (below(4) == 0) { /* other words, most of them near the innermost frames */
            uint64_t changes = 1 + below(4);
            while (changes--) {
                uint64_t at = below(below(3) ? 40 : WORDS);
                stack[at] = random_word(at);
            }
        }
        start = below(4) ? 0 : below(chain_length < 12 ? chain_length : 12);
        from.ra = chain[start].ra;
        from.sp = chain[start].sp + (below(1000) == 0);
        from.bp = below(10) ? chain[start].bp : random_word(start);
        if (below(20) == 0)
            from.ra = below(100) ? known[below(KNOWN)] : random_word(0);
        from.low = stack_address(0);
        from.high = stack_address(below(200) ? WORDS : below(WORDS));
        from.max_frames = below(50) ? MOST : 1 + (int)below(MOST);

        walk_once(&reference, &from, NULL, 1);
        frames += reference.trace.count;
        ends[reference.trace.end]++;
        longest = reference.trace.count > longest ? reference.trace.count : longest;
        for (int way = 0; way < 4; way++) {
            /* The third memo is now and then found busy, and is used by both kinds of loops. */
            struct unwind_memo *memo = way == 0 ? NULL : memos[way - 1];
            int plain = way == 1 || (way == 3 && below(2));
            if (way == 3)
                memo->busy = below(8) == 0;
            walk_once(&result, &from, memo, plain);
            if (way == 3)
                memo->busy = 0;
            if (!same(&reference, &result)) {
                printf("walk %ld, way %d:\n", walk, way);
                print("reference", &reference);
                print("result", &result);
                return 1;
            }
            if (result.trace.number != 0) {
                struct result *last = numbered + way - 1;
                if (result.trace.number == last->trace.number && !same(last, &result)) {
                    printf("walk %ld, way %d: number %u is two traces\n", walk, way, result.trace.number);
                    return 1;
                }
                remembered += way == 2 && result.trace.number == last->trace.number;
                *last = result;
            }
        }
    }
    printf("%ld walks, %.1f frames each, at most %ld; %ld repeated; ends", walks, (double)frames / (double)walks, longest,
           remembered);
    for (int i = 0; i < 6; i++)
        printf(" %ld", ends[i]);
    printf("\n");
    free(state);
    for (int i = 0; i < 3; i++)
        free(memos[i]);
    return 0;
}
