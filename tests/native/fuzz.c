/*
 * Damaged call-frame tables: the unwinder may give up on them, but not fault, read past their end or loop. The tables
 * lie at the end of an allocation of exactly their size, so that the address sanitizer sees what leaves them.
 *
 *     fuzz FILE SEED SECONDS       a file's tables with random damage, the same for the same seed
 *     clang -fsanitize=fuzzer,address,undefined -DLIBFUZZER     the same guided by coverage
 */
#include "../../frida_rtetrack/native/unwind.c"

#include "image.h"

#include <time.h>
#include <unistd.h>

static uint64_t seed = 1;

static uint64_t below(uint64_t limit)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 11) % limit;
}

static void check(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* Walks a stack of random words that are mostly addresses of this module. */
static void walk_random_stack(struct unwind_state *state, struct unwind_memo *memo, uint64_t code, uint64_t code_size)
{
    uint64_t words = 16 + below(200), frames[64], plain_frames[64];
    uint64_t *stack = malloc(words * 8); /* of exactly this size: a read outside is seen */
    struct unwind_trace trace, plain;
    for (uint64_t i = 0; i < words; i++)
        stack[i] = below(3) ? code + below(code_size) : (uint64_t)(uintptr_t)(stack + below(words + 4)) + (below(9) ? 0 : below(8));
    trace.low = (uint64_t)(uintptr_t)stack;
    trace.high = trace.low + words * 8;
    trace.sp = trace.low + 8 * below(words / 2);
    trace.ra = code + below(code_size);
    trace.bp = trace.sp + 8 * below(40) + (below(9) ? 0 : below(8));
    trace.frames = frames;
    trace.max_frames = 64;
    plain = trace;
    plain.frames = plain_frames;
    state->plain_loops = 1;
    unwind_walk_with_memo(state, NULL, &plain);
    for (int times = 0; times < 5; times++) {
        state->plain_loops = (uint64_t)(times == 1); /* in C the sanitizer sees the memo's reads, too */
        unwind_walk_with_memo(state, memo, &trace);
        check(trace.count == plain.count && trace.end == plain.end && trace.hash == plain.hash &&
                  memcmp(frames, plain_frames, sizeof frames[0] * (size_t)trace.count) == 0,
              "the same walk gave something else");
    }
    check(trace.count >= 1 && trace.count <= 64 && trace.end >= 0 && trace.end <= STACK_OUT_OF_BOUNDS, "nonsense");
    free(stack);
}

#ifdef LIBFUZZER

enum { TABLE = 0x400, CODE = 0x200, CODE_SIZE = 0x100 };

/* The input is .eh_frame_hdr and what follows it, in a module that has its code CODE - TABLE bytes from there. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct unwind_state *state;
    static struct unwind_memo *memo;
    uint8_t *image;
    if (size > 4096)
        return 0;
    if (state == NULL) {
        state = calloc(1, sizeof *state);
        memo = calloc(1, sizeof *memo);
    }
    image = calloc(1, TABLE + size);
    Elf64_Ehdr *elf = (Elf64_Ehdr *)image;
    Elf64_Phdr *segments = (Elf64_Phdr *)(image + sizeof *elf);
    memcpy(elf->e_ident, "\177ELF\2\1\1", 7);
    elf->e_machine = EM_X86_64;
    elf->e_phoff = sizeof *elf;
    elf->e_phentsize = sizeof *segments;
    elf->e_phnum = 2;
    segments[0].p_type = PT_LOAD;
    segments[0].p_flags = PF_R | PF_X;
    segments[0].p_filesz = segments[0].p_memsz = TABLE + size;
    segments[1].p_type = PT_GNU_EH_FRAME;
    segments[1].p_vaddr = TABLE;
    memcpy(image + TABLE, data, size);
    uint64_t base = (uint64_t)(uintptr_t)image;
    if (unwind_add_module(state, base, TABLE + size)) {
        seed = 7;
        for (uint64_t i = 0; i < CODE_SIZE; i += 5)
            unwind_row(state, base + CODE + i);
        for (int i = 0; i < 3; i++)
            walk_random_stack(state, memo, base + CODE, CODE_SIZE);
        unwind_remove_module(state, base);
    }
    free(image);
    return 0;
}

#else

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Damages one place between `start` and `end`. */
static void damage(uint8_t *bytes, uint64_t start, uint64_t end)
{
    static const uint8_t telling[] = {0x00, 0x7f, 0x80, 0xff, 0x0a, 0x0b, 0x0f, 0x10, 0x16, 0x40, 0x04, 0x01, 0xc6, 0x9b, 0x3b};
    uint64_t at = start + below(end - start), length, room = end - at;
    switch (below(6)) {
    case 0:
        bytes[at] ^= (uint8_t)(1 << below(8));
        break;
    case 1:
        bytes[at] = telling[below(sizeof telling)];
        break;
    case 2:
        bytes[at] = (uint8_t)below(256);
        break;
    case 3: /* a long or a negative number */
        length = 1 + below(12);
        for (uint64_t i = 0; i < length && i < room; i++)
            bytes[at + i] = (uint8_t)(0x80 | below(128));
        break;
    case 4: /* a word */
        at &= ~3ULL;
        if (at >= start && end - at >= 4) {
            uint32_t words[] = {0, 0xffffffff, 0x7fffffff, 0x80000000, (uint32_t)below(64), (uint32_t)below(1 << 20)};
            memcpy(bytes + at, &words[below(6)], 4);
        }
        break;
    case 5: /* a piece from elsewhere */
        length = 1 + below(40);
        if (length > room)
            length = room;
        memmove(bytes + at, bytes + start + below(end - start - length + 1), length);
    }
}

int main(int argc, char **argv)
{
    struct image image;
    struct unwind_state *state = calloc(1, sizeof *state);
    struct unwind_memo *memo = calloc(1, sizeof *memo);
    long rounds = 0, rows = 0, kinds[64] = {0};
    double duration = argc > 3 ? atof(argv[3]) : 5, end = seconds() + duration, longest = 0;
    if (argc < 3 || !load_image(argv[1], &image))
        return 2;
    seed = strtoull(argv[2], NULL, 0) * 2 + 1;
    alarm((unsigned)(duration * 4) + 20); /* a loop */

    uint64_t base = (uint64_t)(uintptr_t)image.bytes, code = base + 64, code_size = image.header - 64;
    uint8_t *good = malloc(image.size);
    memcpy(good, image.bytes, image.size);
    while (seconds() < end) {
        /* Part of the time only the tables' first bytes are damaged, where many functions are not to be had. */
        uint64_t start = image.header, tables_end = image.size, changes = 1 + below(below(4) ? 3 : 200);
        rounds++;
        if (below(4) == 0)
            tables_end = start + 16 + below(600) < tables_end ? start + 16 + below(500) : tables_end;
        if (below(20) == 0) /* the ELF header and the program headers */
            damage(image.bytes, 0, 64 + 12 * 56);
        if (below(8) == 0) { /* a segment that ends early */
            Elf64_Phdr *segments = (Elf64_Phdr *)(image.bytes + 64);
            Elf64_Phdr *segment = segments + below(8);
            if (segment->p_type == PT_LOAD && segment->p_filesz != 0)
                segment->p_filesz = below(segment->p_filesz);
        }
        if (below(50) == 0 && tables_end > start + 4)
            image.bytes[start + 3 - below(2)] = (uint8_t)(below(2) ? 0xff : 0x3c); /* no sorted table, or another format */
        for (uint64_t i = 0; i < changes && tables_end > start; i++)
            damage(image.bytes, start, tables_end);

        if (unwind_add_module(state, base, image.size)) {
            struct function_entry entry;
            struct module *module = &state->modules[0].module;
            int tries = module->entry_bytes != 0 ? 200 : 3; /* a linear search takes its time under a sanitizer */
            double before = seconds(), took;
            for (int i = 0; i < tries; i++) {
                uint64_t pc = code + below(code_size), fde;
                if (module->entry_bytes != 0 && module->table_entries != 0 && below(4)) {
                    if (table_pair(module, below(module->table_entries), &pc, &fde) && read_fde(fde, module, &entry))
                        pc = entry.start + below(entry.end - entry.start < 400 ? entry.end - entry.start : 400);
                }
                kinds[compute_row(state, pc + 1) >> ROW_KIND_SHIFT]++;
                rows++;
            }
            took = (seconds() - before) / tries;
            longest = took > longest ? took : longest;
            for (int i = 0; i < (tries > 3 ? 10 : 0); i++)
                walk_random_stack(state, memo, code, code_size);
        }
        unwind_remove_module(state, base);
        if (state->modules[0].module.end != 0)
            return 4;
        memcpy(image.bytes, good, image.size);
    }
    printf("%ld rounds, %ld rows, longest %.0f us; kinds:", rounds, rows, longest * 1e6);
    for (int i = 0; i < 64; i++)
        if (kinds[i] != 0)
            printf(" %d: %ld", i, kinds[i]);
    printf("\n");
    free(good);
    free(image.bytes);
    free(state);
    free(memo);
    return 0;
}

#endif
