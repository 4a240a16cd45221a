/*
 * See unwind.h. From the hot end to the cold one:
 *
 *   memo     the last walk of this thread. A frame (return address, sp, rbp) that it already holds leads to the same
 *            frames again if the words that the walk read from the stack are still the same; comparing them is quicker
 *            than walking, because no comparison waits for the one before.
 *   rows     for each return address seen, what the call-frame table says there, packed into 64 bits that a thread
 *            reads and writes in one piece. So the cache needs no lock, and a signal may interrupt it anywhere.
 *   tables   a row that is missing is computed: the module by linear search, its function by binary search in
 *            .eh_frame_hdr, the row by interpreting the function's CFA program up to the address.
 *
 * Formats: System V ABI for x86-64, chapter 3.7 and 4.2.4; LSB Core, "Exception Frames"; DWARF 4, chapters 2.5 and 6.4.
 */
#include "unwind.h"

#include <string.h>

#ifdef __TINYC__ /* has no __atomic_*; on x86-64 an aligned load or store is what the others' acquire and release are */
#define load_word(place) (*(volatile const uint64_t *)(place))
#define store_word(place, value) (*(volatile uint64_t *)(place) = (value))
#else
#define load_word(place) __atomic_load_n((const uint64_t *)(place), __ATOMIC_ACQUIRE)
#define store_word(place, value) __atomic_store_n((uint64_t *)(place), (value), __ATOMIC_RELEASE)
#endif
#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")
#define FULL_BARRIER() __asm__ volatile("mfence" ::: "memory")

static uint64_t stack_word(uint64_t address) { return *(const uint64_t *)(uintptr_t)address; }

/* ---------------------------------------------------------------------------------------------------------- rows --
 *
 * A row is the upper 34 bits of the 47-bit return address and 30 bits of information. Its set is the lower 13 bits,
 * mixed with some of the upper ones so that copies of the same code elsewhere get other sets: together the whole address.
 *
 *   row = ra[46:13] << 30 | info;  set = ra[12:0] ^ ra[25:13];  info = kind (6 bits) | payload (24 bits); 0 is no row
 *
 * The caller's frame in terms of this one's sp and bp, offsets in units of 8 bytes:
 *   ROW_SP, ROW_BP           CFA = sp or bp + payload[15:0]; rbp is saved n = payload[23:16] below the CFA; n = 1, the
 *                            return address's own place, says that rbp is unchanged
 *   ROW_LARGE_SP/BP + n - 1  the same with CFA = sp or bp + payload and n up to 16
 *   ROW_LOST_SP/BP           CFA = sp or bp + payload; rbp is lost
 *   ROW_DEREF_SP/BP          CFA = *(sp or bp + signed payload[23:12]) + payload[11:8]; n = payload[7:0] as above
 *   ROW_DEREF_BP_AT_BP       the same with bp, rbp saved at bp + signed payload[7:0] (what gcc makes of a realigned stack)
 *   ROW_SIGNAL               the kernel's signal frame: struct ucontext lies at sp
 * and those that end a walk: ROW_OUTERMOST, ROW_NO_TABLE, ROW_UNSUPPORTED.
 */
enum row_kind {
    ROW_NONE = 0,
    ROW_SP = 1,
    ROW_BP = 2,
    ROW_OUTERMOST = 3,
    ROW_NO_TABLE = 4,
    ROW_UNSUPPORTED = 5,
    ROW_SIGNAL = 6,
    ROW_DEREF_SP = 7,
    ROW_DEREF_BP = 8,
    ROW_DEREF_BP_AT_BP = 9,
    ROW_LOST_SP = 10,
    ROW_LOST_BP = 11,
    ROW_LARGE_SP = 16,
    ROW_LARGE_BP = 32
};
#define ROW_LARGE_KINDS 16
#define ROW_KIND_SHIFT 24
#define ROW(kind, payload) (((uint64_t)(kind) << ROW_KIND_SHIFT) | (uint64_t)(payload))

#define ADDRESS_BITS 47 /* user space, without 5-level paging's upper part, which a program must ask for */
#define SET_BITS 13
#define SET_COUNT (1 << SET_BITS)
#define INFO_BITS (64 - (ADDRESS_BITS - SET_BITS))
#define INFO_MASK ((1ULL << INFO_BITS) - 1)

/* ------------------------------------------------------------------------------------------------------- modules -- */

struct module {
    uint64_t start, end;           /* executable addresses; end 0: empty */
    uint64_t base;                 /* what the module is known by */
    uint64_t header;               /* .eh_frame_hdr: "datarel" pointers are relative to it */
    uint64_t table, table_entries; /* its sorted table */
    uint64_t table_end;            /* where the segment that holds it ends */
    uint64_t entry_bytes;          /* 8: pairs of 32 bits, 16: pairs of 64 bits, 0: no usable table */
    uint64_t frames, frames_low, frames_end; /* .eh_frame, and the segment that holds it */
};
#define MODULE_WORDS (sizeof(struct module) / sizeof(uint64_t))

struct module_slot {
    uint64_t version; /* odd while it is written */
    struct module module;
};

struct unwind_state {
    uint64_t generation;   /* changes with every module added or removed */
    uint64_t module_slots; /* how many have ever been used */
    uint64_t plain_loops;
    uint64_t rows_filled;
    uint64_t framed_start, framed_bytes; /* see unwind_add_framed_code */
    uint64_t pad[2];
    uint64_t rows[2 * SET_COUNT]; /* the newer row of each set, then the older of each */
    struct module_slot modules[UNWIND_MAX_MODULES];
};

/* ---------------------------------------------------------------------------------------------------------- memo -- */

/* What the memo compares, outermost frame first: the words that the walk read on its way to this frame. The word that a
 * `place` points to must still equal what stands before it. What need not be compared points to `zero`, and so does the
 * ra_place of a frame to which the step has to be made again in any case. */
struct memo_frame {
    uint64_t ra, ra_place;
    uint64_t bp, bp_place;   /* if anything further out depends on rbp, and it was loaded */
    uint64_t cfa, cfa_place; /* if the CFA was loaded (ROW_DEREF_*), then the memo is `thorough` */
};

struct memo_detail {
    uint64_t sp;
    uint64_t bp;   /* right if `live` */
    uint64_t slot; /* where bp was loaded from, 0: it is the inner frame's */
    uint64_t hash; /* over the frames from here outwards */
    uint32_t via;  /* info of the inner frame's row, which led here; 0: innermost */
    uint32_t live; /* whether the frames further out depend on bp */
};

/* A frame that this walk reached by a row. */
struct fresh_frame {
    uint64_t ra, sp, bp;
    uint64_t slot; /* sp - 8, the return address's place: bp is the inner frame's */
    uint64_t via;
    uint64_t cfa_loaded, cfa_place; /* with ROW_DEREF_* */
};

struct unwind_memo {
    /* The assembly knows these. */
    uint64_t busy;            /*  0: a walk is at work on it, perhaps one that a signal interrupted */
    uint64_t generation;      /*  8: what held for its walk: the state's generation ... */
    uint64_t low, high;       /* 16: ... and the stack's bounds */
    uint64_t top_ra, top_sp;  /* 32: where its walk began */
    uint64_t top_bp;          /* 48 */
    uint64_t top_bp_mask;     /* 56: 0 if nothing depends on top_bp, else all ones */
    struct memo_frame *top;   /* 64: the innermost frame; NULL: the walk cannot be repeated by comparing alone */
    uint64_t thorough;        /* 72: the comparison has to look at loaded CFAs, too */
    uint64_t hash;            /* 80 */
    int64_t count;            /* 88 */
    int32_t end;              /* 96: these two as in struct unwind_trace */
    uint32_t number;
    uint64_t others_since;    /* 104: walks that were not this one, since it was last seen */
    /* And not these. */
    uint64_t zero, lost_bp;   /* words to point to */
    uint64_t terminal;        /* the outermost frame's row ends the walk, whatever the stack holds */
    uint64_t pad;
    struct memo_frame frames[UNWIND_MAX_FRAMES]; /* 144 */
    struct memo_detail details[UNWIND_MAX_FRAMES];
    struct fresh_frame fresh[UNWIND_MAX_FRAMES + 1]; /* the loop writes a word ahead */
};

#define LOST_BP 1 /* stands for an rbp that the table does not give */

/* A memo is worth more than what it costs to write it if its walk comes again. So a walk that is not the memo's replaces
 * it only when the memo's has not been seen for this many others. */
#define MEMO_PATIENCE 3

/* ---------------------------------------------------------------------------------------------------------- walk -- */

struct walk {
    /* The assembly knows these. */
    uint64_t ra, sp, bp;   /*  0: the frame that was reached; ra is pc + 1 if a signal interrupted it there */
    uint64_t high;         /* 24 */
    uint64_t *frames;      /* 32: where the next frame's address is written */
    uint64_t *frames_end;  /* 40 */
    const uint64_t *rows;  /* 48 */
    struct fresh_frame *fresh; /* 56: where the next fresh frame is written ... */
    uint64_t fresh_stride; /* 64: ... and how far that moves it, 0 without memo */
    uint64_t memo_sp;      /* 72: the loop stops at a frame with an sp from here on */
    uint64_t saved[5];     /* 80: the registers that the assembly has to put back */
    /* And not these. */
    struct unwind_state *state;
    struct unwind_memo *memo;
    struct fresh_frame no_fresh; /* stands in for the memo's */
    uint64_t *frames_start;
    uint64_t low;
    int plain_loops;
    int interrupted;     /* a signal interrupted the frame that was reached */
    int terminal;        /* the row of the frame that was reached ends the walk */
    int64_t candidate;   /* the memo's frame that the walk may come to next, -1: none */
    int64_t at;          /* the memo's frame that was reached, -1: it is not in the memo */
    int64_t joined;      /* the memo's frame where the walk came to it ... */
    int64_t joined_after; /* ... after this many fresh frames, that one included (0: the walk began there) ... */
    uint64_t joined_bp;  /* ... with this rbp */
    /* What step_by_row() found. */
    uint64_t next_ra, next_sp, next_bp, next_slot;
    uint64_t cfa_loaded, cfa_place;
    int next_interrupted;
};

_Static_assert(offsetof(struct walk, high) == 24 && offsetof(struct walk, frames) == 32 &&
                   offsetof(struct walk, frames_end) == 40 && offsetof(struct walk, rows) == 48 &&
                   offsetof(struct walk, fresh) == 56 && offsetof(struct walk, fresh_stride) == 64 &&
                   offsetof(struct walk, memo_sp) == 72 && offsetof(struct walk, saved) == 80 &&
                   sizeof(struct memo_frame) == 48 && offsetof(struct memo_frame, cfa_place) == 40 &&
                   offsetof(struct fresh_frame, slot) == 24 && offsetof(struct fresh_frame, via) == 32,
               "the assembly knows these offsets");
_Static_assert(offsetof(struct unwind_memo, high) == 24 && offsetof(struct unwind_memo, top_ra) == 32 &&
                   offsetof(struct unwind_memo, top_bp_mask) == 56 && offsetof(struct unwind_memo, top) == 64 &&
                   offsetof(struct unwind_memo, thorough) == 72 && offsetof(struct unwind_memo, hash) == 80 &&
                   offsetof(struct unwind_memo, count) == 88 && offsetof(struct unwind_memo, end) == 96 &&
                   offsetof(struct unwind_memo, others_since) == 104 && offsetof(struct unwind_memo, frames) == 144,
               "these");
_Static_assert(offsetof(struct unwind_trace, high) == 32 && offsetof(struct unwind_trace, frames) == 40 &&
                   offsetof(struct unwind_trace, max_frames) == 48 && offsetof(struct unwind_trace, count) == 52 &&
                   offsetof(struct unwind_trace, end) == 56 && offsetof(struct unwind_trace, number) == 60 &&
                   offsetof(struct unwind_trace, hash) == 64,
               "these");
_Static_assert(SET_BITS == 13 && ROW_KIND_SHIFT == 24 && INFO_BITS == 30, "and these numbers");

static uint64_t compute_row(struct unwind_state *state, uint64_t ra);

static uint64_t row_tag(uint64_t ra) { return ra >> SET_BITS << INFO_BITS; }

static uint64_t row_set(uint64_t ra) { return (ra ^ ra >> SET_BITS) & (SET_COUNT - 1); }

/* The address that a row with this content in this set stands for. */
static uint64_t row_address(uint64_t row, uint64_t set)
{
    uint64_t upper = row >> INFO_BITS;
    return upper << SET_BITS | ((set ^ upper) & (SET_COUNT - 1));
}

static uint64_t cached_row(const uint64_t *rows, uint64_t ra)
{
    const uint64_t *row = rows + row_set(ra);
    uint64_t tag = row_tag(ra);
    uint64_t info = load_word(row) ^ tag;
    if (info <= INFO_MASK)
        return info;
    info = load_word(row + SET_COUNT) ^ tag;
    return info <= INFO_MASK ? info : ROW_NONE;
}

uint64_t unwind_row(struct unwind_state *state, uint64_t ra)
{
    uint64_t info, generation, *row;
    if (ra >> ADDRESS_BITS || ra == 0)
        return ROW(ROW_NO_TABLE, 0);
    info = cached_row(state->rows, ra);
    if (info != ROW_NONE)
        return info;
    generation = load_word(&state->generation);
    info = compute_row(state, ra);
    row = state->rows + row_set(ra);
    store_word(row + SET_COUNT, load_word(row));
    store_word(row, row_tag(ra) | info);
    store_word(&state->rows_filled, 1);
    /* Either forget_rows() comes later and sees what was written, or the generation that it announced is seen here. */
    FULL_BARRIER();
    if (load_word(&state->generation) != generation) {
        store_word(row, 0);
        store_word(row + SET_COUNT, 0);
    }
    return info;
}

/* Drops the rows of [start, end), after the modules there changed. The generation changes before, for those who compute
 * rows meanwhile, and after, for the memos of walks that still used the old rows. */
static void forget_rows(struct unwind_state *state, uint64_t start, uint64_t end)
{
    uint64_t i;
    store_word(&state->generation, state->generation + 1);
    FULL_BARRIER();
    for (i = 0; load_word(&state->rows_filled) && i < 2 * SET_COUNT; i++) {
        uint64_t *place = state->rows + i, row = load_word(place);
        if (row != 0) {
            uint64_t pc = row_address(row, i & (SET_COUNT - 1)) - 1;
            if (pc >= start && pc < end)
                store_word(place, 0);
        }
    }
    store_word(&state->generation, state->generation + 1);
}

/*
 * The hot loop: while the frame's row is known and plain, go to the caller's frame, write its address and remember it as
 * fresh. Stops, with the frame that it reached in walk->ra, sp and bp, before anything that is not plain: no row, another
 * kind, a check that fails, ra = 0, no room, or a frame that may be in the memo. steps_in_c() is what it does;
 * steps_in_assembly() is what runs (TinyCC keeps every variable in memory, which makes the C several times slower).
 *
 * The checks: sp <= where rbp is loaded from, sp < CFA <= high, both aligned to 8. With sp aligned and the two less than
 * 2 KiB apart, neither can wrap around.
 */
static void steps_in_c(struct walk *walk)
{
    for (;;) {
        uint64_t info = cached_row(walk->rows, walk->ra);
        uint64_t kind = info >> ROW_KIND_SHIFT;
        uint64_t n = (info >> 16) & 0xff;
        uint64_t cfa, slot, ra;
        if (kind != ROW_SP && kind != ROW_BP)
            return;
        cfa = (kind == ROW_SP ? walk->sp : walk->bp) + (info & 0xffff) * 8;
        slot = cfa - n * 8;
        if (slot < walk->sp || cfa <= walk->sp || cfa > walk->high || (slot & 7))
            return;
        if (walk->frames == walk->frames_end)
            return;
        ra = stack_word(cfa - 8);
        if (ra == 0)
            return;
        if (n != 1)
            walk->bp = stack_word(slot);
        walk->ra = ra;
        walk->sp = cfa;
        *walk->frames++ = ra;
        walk->fresh->ra = ra;
        walk->fresh->sp = cfa;
        walk->fresh->bp = walk->bp;
        walk->fresh->slot = slot;
        walk->fresh->via = info;
        if (walk->fresh_stride != 0)
            walk->fresh++;
        if (cfa >= walk->memo_sp)
            return;
    }
}

static void steps_in_assembly(struct walk *walk)
{
    __asm__ volatile(
        "movq %%rbx, 80(%%rdi)\n"
        "movq %%r12, 88(%%rdi)\n"
        "movq %%r13, 96(%%rdi)\n"
        "movq %%r14, 104(%%rdi)\n"
        "movq %%r15, 112(%%rdi)\n"
        "movq 0(%%rdi), %%r10\n"  /* ra */
        "movq 8(%%rdi), %%r8\n"   /* sp */
        "movq 16(%%rdi), %%r9\n"  /* bp */
        "movq 24(%%rdi), %%r12\n" /* high */
        "movq 32(%%rdi), %%rcx\n" /* frames */
        "movq 48(%%rdi), %%rsi\n" /* rows */
        "movq 56(%%rdi), %%r15\n" /* fresh */
        "1:\n"
        "movq %%r10, %%rax\n"
        "shrq $13, %%rax\n"
        "movq %%rax, %%rdx\n"
        "xorq %%r10, %%rdx\n"
        "andl $8191, %%edx\n" /* set */
        "shlq $30, %%rax\n"   /* tag */
        "movq (%%rsi,%%rdx,8), %%rbx\n"
        "xorq %%rax, %%rbx\n" /* info, if it is this address's row */
        "movq %%rbx, %%r11\n"
        "shrq $24, %%r11\n"
        "cmpq $1, %%r11\n"
        "jne 4f\n"
        "2:\n" /* ROW_SP */
        "movq %%r8, %%r14\n"
        "3:\n" /* r14: the register that the CFA is computed from */
        "movzwl %%bx, %%eax\n"
        "leaq (%%r14,%%rax,8), %%r13\n" /* CFA */
        "movl %%ebx, 32(%%r15)\n"       /* via; its high half is zero already */
        "shrl $16, %%ebx\n"
        "movzbl %%bl, %%ebx\n"
        "negq %%rbx\n"                  /* -n */
        "leaq (%%r13,%%rbx,8), %%r11\n" /* slot */
        "cmpq %%r8, %%r11\n"
        "jb 6f\n"
        "cmpq %%r8, %%r13\n"
        "jbe 6f\n"
        "cmpq %%r12, %%r13\n"
        "ja 6f\n"
        "testb $7, %%r11b\n"
        "jnz 6f\n"
        "cmpq 40(%%rdi), %%rcx\n"
        "jae 6f\n"
        "movq -8(%%r14,%%rax,8), %%rax\n" /* the return address, a cycle earlier than by way of r13 */
        "testq %%rax, %%rax\n"
        "jz 6f\n"
        "movq (%%r11), %%rdx\n"
        "cmpq $-1, %%rbx\n"
        "cmovneq %%rdx, %%r9\n"
        "movq %%rax, %%r10\n"
        "movq %%r13, %%r8\n"
        "movq %%r10, (%%rcx)\n"
        "addq $8, %%rcx\n"
        "movq %%r10, 0(%%r15)\n"
        "movq %%r8, 8(%%r15)\n"
        "movq %%r9, 16(%%r15)\n"
        "movq %%r11, 24(%%r15)\n"
        "addq 64(%%rdi), %%r15\n"
        "cmpq 72(%%rdi), %%r8\n"
        "jb 1b\n"
        "jmp 6f\n"
        "4:\n" /* not ROW_SP */
        "cmpq $2, %%r11\n"
        "jne 5f\n"
        "movq %%r9, %%r14\n"
        "jmp 3b\n"
        "5:\n" /* the older row of the set */
        "movq 65536(%%rsi,%%rdx,8), %%rbx\n"
        "xorq %%rax, %%rbx\n"
        "movq %%rbx, %%r11\n"
        "shrq $24, %%r11\n"
        "cmpq $1, %%r11\n"
        "je 2b\n"
        "cmpq $2, %%r11\n"
        "jne 6f\n"
        "movq %%r9, %%r14\n"
        "jmp 3b\n"
        "6:\n"
        "movq %%r10, 0(%%rdi)\n"
        "movq %%r8, 8(%%rdi)\n"
        "movq %%r9, 16(%%rdi)\n"
        "movq %%rcx, 32(%%rdi)\n"
        "movq %%r15, 56(%%rdi)\n"
        "movq 80(%%rdi), %%rbx\n"
        "movq 88(%%rdi), %%r12\n"
        "movq 96(%%rdi), %%r13\n"
        "movq 104(%%rdi), %%r14\n"
        "movq 112(%%rdi), %%r15\n"
        :
        : "D"(walk)
        : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
}

/*
 * The memo's loop: from the memo's frame `from` outwards (downwards in the array) while the words on the stack are those
 * that it holds, at most to `last`. Writes the frames' addresses and returns where the next one goes.
 */
static uint64_t *follow_in_c(const struct memo_frame *from, const struct memo_frame *last, uint64_t *frames)
{
    while (from != last) {
        uint64_t ra;
        from--;
        ra = stack_word(from->ra_place);
        if (ra != from->ra || stack_word(from->bp_place) != from->bp || stack_word(from->cfa_place) != from->cfa)
            break;
        *frames++ = ra;
    }
    return frames;
}

/* The same; looks at loaded CFAs only if the memo is `thorough`. */
static uint64_t *follow_in_assembly(const struct memo_frame *from, const struct memo_frame *last, uint64_t *frames,
                                    uint64_t thorough)
{
    __asm__ volatile(
        "1:\n"
        "cmpq %%rdx, %%rax\n"
        "je 3f\n"
        "movq -40(%%rax), %%r8\n" /* ra_place */
        "movq (%%r8), %%r8\n"
        "cmpq -48(%%rax), %%r8\n" /* ra */
        "jne 3f\n"
        "movq -24(%%rax), %%rsi\n" /* bp_place */
        "movq (%%rsi), %%rsi\n"
        "cmpq -32(%%rax), %%rsi\n" /* bp */
        "jne 3f\n"
        "testq %%rcx, %%rcx\n"
        "jnz 2f\n"
        "4:\n"
        "movq %%r8, (%%rdi)\n"
        "addq $8, %%rdi\n"
        "subq $48, %%rax\n"
        "jmp 1b\n"
        "2:\n"
        "movq -8(%%rax), %%rsi\n" /* cfa_place */
        "movq (%%rsi), %%rsi\n"
        "cmpq -16(%%rax), %%rsi\n" /* cfa */
        "je 4b\n"
        "3:\n"
        : "+D"(frames), "+a"(from)
        : "d"(last), "c"(thorough)
        : "rsi", "r8", "memory", "cc");
    return frames;
}

static int is_by_bp(uint64_t kind)
{
    return kind == ROW_BP || kind == ROW_DEREF_BP || kind == ROW_DEREF_BP_AT_BP || kind == ROW_LOST_BP ||
           (kind >= ROW_LARGE_BP && kind < ROW_LARGE_BP + ROW_LARGE_KINDS);
}

static int is_deref(uint64_t kind) { return kind >= ROW_DEREF_SP && kind <= ROW_DEREF_BP_AT_BP; }

/*
 * Goes from the frame in *walk to its caller by any kind of row, into walk->next_*. Returns -1, or the enum stack_end
 * that stops the walk here. A signal frame whose interrupted frame lies elsewhere still sets next_ra.
 */
#define STEPPED (-1)
#define UCONTEXT_BP 120 /* struct ucontext: uc_mcontext.gregs[REG_RBP], [REG_RSP], [REG_RIP] */
#define UCONTEXT_SP 160
#define UCONTEXT_PC 168
#define RED_ZONE 128 /* below sp, a function's own until it calls another: what a signal interrupted may use it */

static int64_t signed_field(uint64_t value, int shift, int bits)
{
    return (int64_t)(value << (64 - shift - bits)) >> (64 - bits);
}

static int on_stack(const struct walk *walk, uint64_t low, uint64_t address)
{
    return address >= low && address < walk->high && walk->high - address >= 8 && !(address & 7);
}

static int step_by_row(struct walk *walk, uint64_t info)
{
    uint64_t kind = info >> ROW_KIND_SHIFT;
    uint64_t payload = info & 0xffffff;
    uint64_t low = walk->sp, cfa, slot, n;
    int by_bp = is_by_bp(kind);
    uint64_t base = by_bp ? walk->bp : walk->sp;

    walk->next_interrupted = 0;
    if (walk->interrupted)
        low = walk->sp - walk->low < RED_ZONE ? walk->low : walk->sp - RED_ZONE;
    if (by_bp && walk->bp == LOST_BP)
        return STACK_UNSUPPORTED_RULE;

    if (kind == ROW_SIGNAL) {
        uint64_t pc;
        if (!on_stack(walk, walk->sp, walk->sp + UCONTEXT_PC))
            return STACK_OUT_OF_BOUNDS;
        pc = stack_word(walk->sp + UCONTEXT_PC);
        if (pc == 0 || pc == ~0ULL)
            return STACK_NO_UNWIND_TABLE; /* a call of a null pointer: who made it cannot be told */
        walk->next_ra = pc + 1;
        walk->next_sp = stack_word(walk->sp + UCONTEXT_SP);
        walk->next_slot = walk->sp + UCONTEXT_BP;
        walk->next_bp = stack_word(walk->next_slot);
        walk->next_interrupted = 1;
        return STEPPED;
    }

    n = 1;
    if (kind == ROW_SP || kind == ROW_BP) {
        cfa = base + (payload & 0xffff) * 8;
        n = payload >> 16;
    } else if (kind == ROW_LOST_SP || kind == ROW_LOST_BP) {
        cfa = base + payload * 8;
    } else if (kind >= ROW_LARGE_SP && kind < ROW_LARGE_BP + ROW_LARGE_KINDS) {
        cfa = base + payload * 8;
        n = (kind & (ROW_LARGE_KINDS - 1)) + 1;
    } else if (is_deref(kind)) {
        uint64_t place = base + (uint64_t)signed_field(payload, 12, 12) * 8;
        if (!on_stack(walk, low, place))
            return STACK_OUT_OF_BOUNDS;
        walk->cfa_place = place;
        walk->cfa_loaded = stack_word(place);
        cfa = walk->cfa_loaded + ((payload >> 8) & 15) * 8;
        n = payload & 0xff;
    } else {
        return STACK_UNSUPPORTED_RULE;
    }
    if (cfa <= walk->sp || cfa > walk->high || (cfa & 7))
        return STACK_OUT_OF_BOUNDS;
    walk->next_ra = stack_word(cfa - 8);
    if (walk->next_ra == 0)
        return STACK_COMPLETE;
    walk->next_sp = cfa;

    slot = kind == ROW_DEREF_BP_AT_BP ? base + (uint64_t)signed_field(payload, 0, 8) * 8 : cfa - n * 8;
    walk->next_slot = slot;
    walk->next_bp = walk->bp;
    if (kind == ROW_LOST_SP || kind == ROW_LOST_BP) {
        walk->next_bp = LOST_BP;
        walk->next_slot = walk->memo != NULL ? (uint64_t)(uintptr_t)&walk->memo->lost_bp : 0;
    } else if (slot != cfa - 8) {
        if (!on_stack(walk, low, slot))
            return STACK_OUT_OF_BOUNDS;
        walk->next_bp = stack_word(slot);
    } else if (kind == ROW_DEREF_BP_AT_BP) {
        return STACK_UNSUPPORTED_RULE; /* rbp saved where the return address is: a table that makes no sense */
    }
    return STEPPED;
}

/* Whether a row ends the walk whatever the stack holds; if so *end says how. */
static int ends_walk(uint64_t info, int32_t *end)
{
    switch (info >> ROW_KIND_SHIFT) {
    case ROW_OUTERMOST:
        *end = STACK_COMPLETE;
        return 1;
    case ROW_NO_TABLE:
        *end = STACK_NO_UNWIND_TABLE;
        return 1;
    case ROW_UNSUPPORTED:
        *end = STACK_UNSUPPORTED_RULE;
        return 1;
    }
    return 0;
}

#define HASH_MULTIPLIER 0x9fb21c651e98df25ULL

static uint64_t hash_frame(uint64_t outer_hash, uint64_t address)
{
    uint64_t hash = (outer_hash ^ address) * HASH_MULTIPLIER;
    return hash ^ (hash >> 32);
}

/* The hash of these frames on top of those that have `hash`. */
static uint64_t hash_in_c(uint64_t hash, const uint64_t *frames, const uint64_t *frames_end)
{
    while (frames_end != frames)
        hash = hash_frame(hash, *--frames_end);
    return hash;
}

static uint64_t hash_in_assembly(uint64_t hash, const uint64_t *frames, const uint64_t *frames_end)
{
    uint64_t multiplier = HASH_MULTIPLIER;
    __asm__ volatile(
        "1:\n"
        "cmpq %%rsi, %%rdi\n"
        "je 2f\n"
        "subq $8, %%rdi\n"
        "xorq (%%rdi), %%rax\n"
        "imulq %%rdx, %%rax\n"
        "movq %%rax, %%rcx\n"
        "shrq $32, %%rcx\n"
        "xorq %%rcx, %%rax\n"
        "jmp 1b\n"
        "2:\n"
        : "+a"(hash), "+D"(frames_end)
        : "S"(frames), "d"(multiplier)
        : "rcx", "memory", "cc");
    return hash;
}

static uint64_t frame_address(uint64_t ra, uint64_t via)
{
    return via >> ROW_KIND_SHIFT == ROW_SIGNAL ? ra - 1 : ra;
}

/*
 * Puts this walk's fresh frames on top of the memo's first `kept` frames. From the outermost one inwards: a frame's bp is
 * live if its row needs it, or hands it on to a frame whose bp is live.
 */
static void remember_walk(struct unwind_memo *memo, int64_t kept, int64_t fresh_count, int bottom_is_live)
{
    struct fresh_frame *fresh = memo->fresh + fresh_count;
    struct memo_detail *outer = memo->details + (kept == 0 ? 0 : kept - 1);
    uint64_t zero = (uint64_t)(uintptr_t)&memo->zero;
    int64_t i;
    if (kept == 0)
        memo->thorough = 0;
    for (i = kept; i < kept + fresh_count; i++) {
        struct memo_frame *frame = memo->frames + i;
        struct memo_detail *detail = memo->details + i;
        uint64_t kind;
        fresh--;
        kind = fresh->via >> ROW_KIND_SHIFT;
        if (i == 0)
            detail->live = bottom_is_live != 0;
        else
            detail->live = is_by_bp(outer->via >> ROW_KIND_SHIFT) || (outer->slot == 0 && outer->live);
        detail->sp = fresh->sp;
        detail->bp = fresh->bp;
        detail->slot = fresh->slot == fresh->sp - 8 ? 0 : fresh->slot;
        detail->via = (uint32_t)fresh->via;
        detail->hash = hash_frame(i == 0 ? 0 : outer->hash, frame_address(fresh->ra, fresh->via));
        frame->ra = fresh->ra;
        frame->ra_place = kind == ROW_SIGNAL ? zero : fresh->sp - 8;
        frame->bp = frame->cfa = 0;
        frame->bp_place = frame->cfa_place = zero;
        if (detail->live && detail->slot != 0) {
            frame->bp = fresh->bp;
            frame->bp_place = detail->slot;
        }
        if (is_deref(kind)) {
            frame->cfa = fresh->cfa_loaded;
            frame->cfa_place = fresh->cfa_place;
            memo->thorough = 1;
        }
        outer = detail;
    }
    memo->count = kept + fresh_count;
}

/* Whether the memo's frame `i` is this one. */
static int is_frame(const struct unwind_memo *memo, int64_t i, uint64_t ra, uint64_t sp, uint64_t bp, int interrupted)
{
    const struct memo_detail *detail = memo->details + i;
    return detail->sp == sp && memo->frames[i].ra == ra &&
           (detail->via >> ROW_KIND_SHIFT == ROW_SIGNAL) == interrupted && (!detail->live || detail->bp == bp);
}

static struct fresh_frame *add_fresh(struct walk *walk, uint64_t ra, uint64_t sp, uint64_t bp, uint64_t slot, uint64_t via)
{
    struct fresh_frame *fresh = walk->fresh;
    fresh->ra = ra;
    fresh->sp = sp;
    fresh->bp = bp;
    fresh->slot = slot != 0 ? slot : sp - 8;
    fresh->via = via;
    if (walk->fresh_stride != 0)
        walk->fresh++;
    return fresh;
}

/* rbp in the memo's frame that was reached. */
static uint64_t followed_bp(const struct walk *walk)
{
    int64_t i;
    for (i = walk->at; i < walk->joined; i++)
        if (walk->memo->details[i].slot != 0)
            return stack_word(walk->memo->details[i].slot);
    return walk->joined_bp;
}

/* The walk leaves the memo: the frames from where it came to it are fresh ones now. */
static void leave_memo(struct walk *walk)
{
    const struct unwind_memo *memo = walk->memo;
    struct fresh_frame *fresh;
    int64_t i = walk->joined;
    uint64_t bp = walk->joined_bp;
    if (walk->joined_after == 0)
        add_fresh(walk, memo->frames[i].ra, memo->details[i].sp, bp, 0, ROW_NONE);
    for (i--; i >= walk->at; i--) {
        uint64_t slot = memo->details[i].slot;
        if (slot != 0)
            bp = stack_word(slot);
        fresh = add_fresh(walk, memo->frames[i].ra, memo->details[i].sp, bp, slot, memo->details[i].via);
        fresh->cfa_loaded = memo->frames[i].cfa;
        fresh->cfa_place = memo->frames[i].cfa_place;
    }
    walk->candidate = walk->at - 1;
    walk->at = -1;
}

/* Looks whether the memo has the frame that was reached. */
static void look_for_memo(struct walk *walk)
{
    const struct unwind_memo *memo = walk->memo;
    int64_t i = walk->candidate;
    while (i >= 0 && memo->details[i].sp < walk->sp)
        i--;
    walk->memo_sp = ~0ULL;
    if (i >= 0) {
        if (is_frame(memo, i, walk->ra, walk->sp, walk->bp, walk->interrupted)) {
            walk->joined = walk->at = i;
            walk->joined_after = walk->frames - walk->frames_start;
            walk->joined_bp = walk->bp;
        } else if (memo->details[i].sp == walk->sp) {
            i--;
        }
        if (i >= 0)
            walk->memo_sp = memo->details[i].sp;
    }
    walk->candidate = i;
}

/* Goes on by rows that are known and plain, until the walk comes to a frame of the memo or needs more. */
static void climb_by_rows(struct walk *walk)
{
    do {
        if (walk->plain_loops)
            steps_in_c(walk);
        else
            steps_in_assembly(walk);
        if (walk->sp < walk->memo_sp)
            return;
        look_for_memo(walk);
    } while (walk->at < 0);
}

/* Goes on along the memo as far as it is right. */
static void follow_memo(struct walk *walk)
{
    const struct unwind_memo *memo = walk->memo;
    int64_t room = walk->frames_end - walk->frames;
    const struct memo_frame *from = memo->frames + walk->at;
    const struct memo_frame *last = walk->at > room ? from - room : memo->frames;
    uint64_t *frames = walk->plain_loops ? follow_in_c(from, last, walk->frames)
                                         : follow_in_assembly(from, last, walk->frames, memo->thorough);
    walk->at -= frames - walk->frames;
    walk->frames = frames;
    walk->ra = memo->frames[walk->at].ra;
    walk->sp = memo->details[walk->at].sp;
    walk->interrupted = memo->details[walk->at].via >> ROW_KIND_SHIFT == ROW_SIGNAL;
}

/* Walks to the end. Returns the enum stack_end. */
static int walk_on(struct walk *walk)
{
    for (;;) {
        struct fresh_frame *fresh;
        uint64_t info;
        int32_t end;
        if (walk->at < 0 && !walk->interrupted)
            climb_by_rows(walk);
        if (walk->at >= 0) {
            follow_memo(walk);
            if (walk->at == 0 && walk->memo->terminal) {
                walk->terminal = 1;
                return walk->memo->end;
            }
        }
        info = unwind_row(walk->state, walk->ra);
        if (ends_walk(info, &end)) {
            walk->terminal = 1;
            return end;
        }
        if (walk->at >= 0)
            walk->bp = followed_bp(walk);
        end = step_by_row(walk, info);
        if (end != STEPPED)
            return end;
        if (walk->frames == walk->frames_end)
            return STACK_MAX_FRAMES;

        *walk->frames++ = frame_address(walk->next_ra, info);
        if (walk->at > 0 &&
            is_frame(walk->memo, walk->at - 1, walk->next_ra, walk->next_sp, walk->next_bp, walk->next_interrupted)) {
            walk->at--;
        } else {
            if (walk->at >= 0)
                leave_memo(walk);
            fresh = add_fresh(walk, walk->next_ra, walk->next_sp, walk->next_bp, walk->next_slot, info);
            fresh->cfa_loaded = walk->cfa_loaded;
            fresh->cfa_place = walk->cfa_place;
        }
        walk->ra = walk->next_ra;
        walk->sp = walk->next_sp;
        walk->bp = walk->next_bp;
        walk->interrupted = walk->next_interrupted;
        if (walk->interrupted && (walk->sp < walk->low || walk->sp > walk->high || (walk->sp & 7)))
            return STACK_OUT_OF_BOUNDS; /* the signal came on another stack, whose bounds are not known */
        if (walk->at < 0 && walk->memo != NULL)
            look_for_memo(walk);
    }
}

/* Takes what a finished walk found into the memo, or leaves the memo as it is. */
static void conclude_walk(struct walk *walk, struct unwind_trace *trace)
{
    struct unwind_memo *memo = walk->memo;
    struct memo_detail *detail;
    int joins = walk->at == 0 && trace->end == memo->end; /* its outer frames are the memo's, to the memo's end */
    int64_t kept = joins ? walk->joined : 0;
    int64_t fresh_count = joins ? walk->joined_after : trace->count;
    uint64_t hash = 0, *hashed_end = walk->frames;

    trace->number = 0;
    if (joins && fresh_count == 0 && walk->joined == memo->count - 1) {
        memo->others_since = 0;
        trace->number = memo->number;
        trace->hash = memo->hash;
        return;
    }
    if (memo->count != 0 && memo->others_since < MEMO_PATIENCE) {
        memo->others_since++;
        if (joins) {
            hash = memo->details[walk->joined].hash;
            hashed_end = walk->frames_start + (fresh_count == 0 ? 0 : fresh_count - 1);
        }
        trace->hash = walk->plain_loops ? hash_in_c(hash, walk->frames_start, hashed_end)
                                        : hash_in_assembly(hash, walk->frames_start, hashed_end);
        return;
    }
    if (!joins && walk->at >= 0)
        leave_memo(walk);
    if (joins && fresh_count == 0)
        memo->count = walk->joined + 1;
    else
        remember_walk(memo, kept, fresh_count, !walk->terminal);
    memo->end = trace->end;
    memo->terminal = walk->terminal != 0;
    memo->others_since = 0;
    memo->number++;
    if (memo->number == 0)
        memo->number = 1;
    detail = memo->details + memo->count - 1;
    memo->hash = detail->hash;
    memo->top = memo->terminal && detail->via >> ROW_KIND_SHIFT != ROW_SIGNAL ? memo->frames + memo->count - 1 : NULL;
    memo->top_ra = memo->frames[memo->count - 1].ra;
    memo->top_sp = detail->sp;
    memo->top_bp = detail->bp;
    memo->top_bp_mask = detail->live ? ~0ULL : 0;
    trace->number = memo->number;
    trace->hash = memo->hash;
}

/* Takes the memo for this walk, if it can be had. */
static int open_memo(struct unwind_memo *memo, const struct unwind_state *state, const struct unwind_trace *trace)
{
    uint64_t generation;
    if (memo->busy || trace->max_frames > UNWIND_MAX_FRAMES)
        return 0;
    memo->busy = 1;
    COMPILER_BARRIER();
    generation = load_word(&state->generation);
    if (memo->generation != generation || memo->low != trace->low || memo->high != trace->high) {
        memo->count = 0;
        memo->top = NULL;
        memo->generation = generation;
        memo->low = trace->low;
        memo->high = trace->high;
        memo->lost_bp = LOST_BP;
    }
    return 1;
}

static void close_memo(struct unwind_memo *memo)
{
    COMPILER_BARRIER();
    memo->busy = 0;
}

/* The most common walk, the memo's whole one again, with as little ado as possible. Returns 0 if it is not that, and has
 * then done nothing but write to trace->frames. */
static int repeat_in_c(struct unwind_memo *memo, struct unwind_trace *trace, uint64_t generation)
{
    uint64_t *frames;
    int repeated = 0;
    if (memo->busy)
        return 0;
    memo->busy = 1; /* before anything of it is read: a signal may come in between and change it */
    COMPILER_BARRIER();
    if (memo->generation == generation && memo->top != NULL && memo->low == trace->low && memo->high == trace->high &&
        memo->top_ra == trace->ra && memo->top_sp == trace->sp &&
        ((memo->top_bp ^ trace->bp) & memo->top_bp_mask) == 0 && memo->count <= trace->max_frames) {
        trace->frames[0] = trace->ra;
        frames = follow_in_c(memo->top, memo->frames, trace->frames + 1);
        repeated = frames == trace->frames + memo->count;
    }
    if (repeated) {
        trace->count = (int32_t)memo->count;
        trace->end = memo->end;
        trace->number = memo->number;
        trace->hash = memo->hash;
        memo->others_since = 0;
    }
    COMPILER_BARRIER();
    memo->busy = 0;
    return repeated;
}

static int repeat_in_assembly(struct unwind_memo *memo, struct unwind_trace *trace, uint64_t generation)
{
    uint64_t repeated = generation;
    __asm__ volatile(
        "cmpq $0, 0(%%rdi)\n" /* busy */
        "jne 5f\n"
        "movq $1, 0(%%rdi)\n"
        "cmpq 8(%%rdi), %%rax\n" /* generation */
        "jne 6f\n"
        "movq 64(%%rdi), %%rdx\n" /* top */
        "testq %%rdx, %%rdx\n"
        "jz 6f\n"
        "movq 24(%%rsi), %%r8\n" /* low */
        "cmpq 16(%%rdi), %%r8\n"
        "jne 6f\n"
        "movq 32(%%rsi), %%r8\n" /* high */
        "cmpq 24(%%rdi), %%r8\n"
        "jne 6f\n"
        "movq 0(%%rsi), %%r9\n" /* ra */
        "cmpq 32(%%rdi), %%r9\n"
        "jne 6f\n"
        "movq 8(%%rsi), %%r8\n" /* sp */
        "cmpq 40(%%rdi), %%r8\n"
        "jne 6f\n"
        "movq 16(%%rsi), %%r8\n" /* bp */
        "xorq 48(%%rdi), %%r8\n"
        "testq 56(%%rdi), %%r8\n"
        "jnz 6f\n"
        "movslq 48(%%rsi), %%r8\n" /* max_frames */
        "cmpq 88(%%rdi), %%r8\n"   /* count */
        "jl 6f\n"
        "movq 40(%%rsi), %%r10\n" /* frames */
        "movq %%r9, (%%r10)\n"
        "addq $8, %%r10\n"
        "leaq 144(%%rdi), %%r11\n" /* the outermost frame */
        "movq 72(%%rdi), %%rcx\n"  /* thorough */
        "1:\n"
        "cmpq %%r11, %%rdx\n"
        "je 4f\n"
        "movq -40(%%rdx), %%r8\n" /* ra_place */
        "movq (%%r8), %%r8\n"
        "cmpq -48(%%rdx), %%r8\n" /* ra */
        "jne 6f\n"
        "movq -24(%%rdx), %%r9\n" /* bp_place */
        "movq (%%r9), %%r9\n"
        "cmpq -32(%%rdx), %%r9\n" /* bp */
        "jne 6f\n"
        "testq %%rcx, %%rcx\n"
        "jnz 3f\n"
        "2:\n"
        "movq %%r8, (%%r10)\n"
        "addq $8, %%r10\n"
        "subq $48, %%rdx\n"
        "jmp 1b\n"
        "3:\n"
        "movq -8(%%rdx), %%r9\n" /* cfa_place */
        "movq (%%r9), %%r9\n"
        "cmpq -16(%%rdx), %%r9\n" /* cfa */
        "je 2b\n"
        "jmp 6f\n"
        "4:\n"
        "movq 88(%%rdi), %%r8\n"
        "movl %%r8d, 52(%%rsi)\n" /* count */
        "movq 96(%%rdi), %%r8\n"
        "movq %%r8, 56(%%rsi)\n" /* end and number */
        "movq 80(%%rdi), %%r8\n"
        "movq %%r8, 64(%%rsi)\n" /* hash */
        "movq $0, 104(%%rdi)\n"  /* others_since */
        "movq $0, 0(%%rdi)\n"
        "movl $1, %%eax\n"
        "jmp 7f\n"
        "6:\n"
        "movq $0, 0(%%rdi)\n"
        "5:\n"
        "xorl %%eax, %%eax\n"
        "7:\n"
        : "+a"(repeated)
        : "D"(memo), "S"(trace)
        : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
    return (int)repeated;
}

int unwind_walk_with_memo(struct unwind_state *state, struct unwind_memo *memo, struct unwind_trace *trace)
{
    struct walk walk;
    if (memo != NULL && (state->plain_loops ? repeat_in_c(memo, trace, load_word(&state->generation))
                                            : repeat_in_assembly(memo, trace, load_word(&state->generation))))
        return trace->count;
    trace->frames[0] = trace->ra;
    if (trace->sp < trace->low || trace->sp > trace->high || (trace->sp & 7)) {
        trace->count = 1;
        trace->end = STACK_OUT_OF_BOUNDS;
        trace->number = 0;
        trace->hash = hash_frame(0, trace->ra);
        return 1;
    }
    walk.at = -1;
    walk.memo = NULL;
    walk.fresh = &walk.no_fresh;
    walk.fresh_stride = 0;
    walk.memo_sp = ~0ULL;
    if (memo != NULL && open_memo(memo, state, trace)) {
        walk.memo = memo;
        walk.fresh = memo->fresh;
        walk.fresh_stride = sizeof(struct fresh_frame);
        walk.candidate = memo->count - 1;
    }
    walk.ra = trace->ra;
    walk.sp = trace->sp;
    walk.bp = trace->bp;
    walk.low = trace->low;
    walk.high = trace->high;
    walk.frames_start = trace->frames;
    walk.frames = trace->frames;
    walk.frames_end = trace->frames + trace->max_frames;
    walk.rows = state->rows;
    walk.state = state;
    walk.plain_loops = state->plain_loops != 0;
    walk.interrupted = 0;
    walk.terminal = 0;
    if (walk.memo != NULL) {
        look_for_memo(&walk); /* before the frame is counted: if the memo has it, no frame is fresh */
        if (walk.at < 0)
            add_fresh(&walk, walk.ra, walk.sp, walk.bp, 0, ROW_NONE);
    }
    walk.frames++;

    trace->end = walk_on(&walk);
    trace->count = (int32_t)(walk.frames - walk.frames_start);
    if (walk.memo != NULL) {
        conclude_walk(&walk, trace);
        close_memo(memo);
        return trace->count;
    }
    trace->number = 0;
    trace->hash = walk.plain_loops ? hash_in_c(0, walk.frames_start, walk.frames)
                                   : hash_in_assembly(0, walk.frames_start, walk.frames);
    return trace->count;
}

int unwind_walk(struct unwind_state *state, uint64_t ra, uint64_t sp, uint64_t bp, uint64_t low, uint64_t high,
                uint64_t *frames, int max_frames, int *end, uint64_t *hash)
{
    struct unwind_trace trace;
    trace.ra = ra;
    trace.sp = sp;
    trace.bp = bp;
    trace.low = low;
    trace.high = high;
    trace.frames = frames;
    trace.max_frames = max_frames;
    unwind_walk_with_memo(state, NULL, &trace);
    *end = trace.end;
    *hash = trace.hash;
    return trace.count;
}

void unwind_use_plain_loops(struct unwind_state *state, int on) { state->plain_loops = on != 0; }

size_t unwind_state_bytes(void) { return sizeof(struct unwind_state); }

size_t unwind_memo_bytes(void) { return sizeof(struct unwind_memo); }

/* -------------------------------------------------------------------------------------------------------- tables --
 *
 * Everything below is told what to read by the module's own bytes, which may be damaged: every read goes through a
 * cursor that knows its end, and every loop either eats bytes or counts.
 */
struct cursor {
    const uint8_t *at, *end;
    int bad; /* set by a read past the end; reads give 0 from then on */
};

static struct cursor cursor_over(uint64_t start, uint64_t end)
{
    struct cursor cursor;
    cursor.at = (const uint8_t *)(uintptr_t)start;
    cursor.end = (const uint8_t *)(uintptr_t)end;
    cursor.bad = start > end;
    return cursor;
}

static uint64_t read_fixed(struct cursor *cursor, unsigned bytes)
{
    uint64_t value = 0;
    unsigned i;
    if (cursor->bad || (size_t)(cursor->end - cursor->at) < bytes) {
        cursor->bad = 1;
        return 0;
    }
    for (i = 0; i < bytes; i++)
        value |= (uint64_t)cursor->at[i] << (8 * i);
    cursor->at += bytes;
    return value;
}

static uint64_t sign_extend(uint64_t value, unsigned bits)
{
    return bits >= 64 ? value : (uint64_t)((int64_t)(value << (64 - bits)) >> (64 - bits));
}

static uint64_t read_leb(struct cursor *cursor, int is_signed)
{
    uint64_t value = 0;
    unsigned shift;
    for (shift = 0; shift < 70; shift += 7) {
        uint64_t byte = read_fixed(cursor, 1);
        if (shift < 64)
            value |= (byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return is_signed ? sign_extend(value, shift + 7) : value;
    }
    cursor->bad = 1;
    return 0;
}

static uint64_t read_uleb(struct cursor *cursor) { return read_leb(cursor, 0); }
static int64_t read_sleb(struct cursor *cursor) { return (int64_t)read_leb(cursor, 1); }

static void skip_bytes(struct cursor *cursor, uint64_t bytes)
{
    if (cursor->bad || (uint64_t)(cursor->end - cursor->at) < bytes)
        cursor->bad = 1;
    else
        cursor->at += bytes;
}

enum pointer_encoding { /* LSB Core, "DWARF Exception Header Encoding" */
    ENCODING_ABSOLUTE = 0x00,
    ENCODING_UDATA4 = 0x03,
    ENCODING_UDATA8 = 0x04,
    ENCODING_SDATA4 = 0x0b,
    ENCODING_SDATA8 = 0x0c,
    ENCODING_FORMAT = 0x0f,
    ENCODING_PCREL = 0x10,
    ENCODING_DATAREL = 0x30,
    ENCODING_ALIGNED = 0x50,
    ENCODING_RELATIVE_TO = 0x70,
    ENCODING_INDIRECT = 0x80,
    ENCODING_OMIT = 0xff
};

/* The value without what it is relative to. */
static uint64_t read_format(struct cursor *cursor, unsigned encoding)
{
    switch (encoding & ENCODING_FORMAT) {
    case ENCODING_ABSOLUTE:
    case ENCODING_UDATA8:
    case ENCODING_SDATA8:
        return read_fixed(cursor, 8);
    case ENCODING_UDATA4:
        return read_fixed(cursor, 4);
    case ENCODING_SDATA4:
        return sign_extend(read_fixed(cursor, 4), 32);
    case 0x01:
        return read_uleb(cursor);
    case 0x09:
        return (uint64_t)read_sleb(cursor);
    case 0x02:
        return read_fixed(cursor, 2);
    case 0x0a:
        return sign_extend(read_fixed(cursor, 2), 16);
    }
    cursor->bad = 1;
    return 0;
}

static uint64_t read_pointer(struct cursor *cursor, unsigned encoding, uint64_t data)
{
    uint64_t place = (uint64_t)(uintptr_t)cursor->at;
    uint64_t value = read_format(cursor, encoding);
    switch (encoding & ~(unsigned)ENCODING_FORMAT) {
    case ENCODING_ABSOLUTE:
        return value;
    case ENCODING_PCREL:
        return place + value;
    case ENCODING_DATAREL:
        return data + value;
    }
    cursor->bad = 1; /* indirect or relative to what only a compiler's run-time library knows: not used for code */
    return 0;
}

/* What the table says of one function. */
struct function_entry {
    uint64_t start, end;
    uint64_t code_align;
    int64_t data_align;
    uint64_t data; /* what its "datarel" pointers are relative to */
    unsigned pointer_encoding;
    int signal_frame;
    struct cursor cie_program, program;
};

/* Opens the record at `cursor`: leaves it limited to the record, behind its length. Returns the size of its CIE pointer,
 * 0 if there is no record. */
static unsigned open_record(struct cursor *cursor)
{
    unsigned width = 4;
    uint64_t length = read_fixed(cursor, 4);
    if (length == 0xffffffff) {
        width = 8;
        length = read_fixed(cursor, 8);
    }
    if (cursor->bad || length < width || length > (uint64_t)(cursor->end - cursor->at))
        return 0;
    cursor->end = cursor->at + length;
    return width;
}

static int read_cie(uint64_t address, const struct module *module, struct function_entry *entry)
{
    struct cursor cie = cursor_over(address, module->frames_end);
    const uint8_t *augmentation;
    unsigned width = open_record(&cie), version, i;
    if (width == 0 || read_fixed(&cie, width) != 0)
        return 0;
    version = (unsigned)read_fixed(&cie, 1);
    if (version != 1 && version != 3 && version != 4)
        return 0;
    augmentation = cie.at;
    while (read_fixed(&cie, 1) != 0) {
    }
    if (version == 4 && read_fixed(&cie, 2) != 8) /* addresses of 8 bytes, no segment selectors */
        return 0;
    entry->code_align = read_uleb(&cie);
    entry->data_align = read_sleb(&cie);
    if ((version == 1 ? read_fixed(&cie, 1) : read_uleb(&cie)) != 16) /* the return address's column */
        return 0;
    entry->pointer_encoding = ENCODING_ABSOLUTE;
    entry->signal_frame = 0;
    if (cie.bad)
        return 0;
    if (augmentation[0] == 'z') {
        uint64_t length = read_uleb(&cie);
        struct cursor data = cie;
        skip_bytes(&cie, length);
        if (cie.bad)
            return 0;
        data.end = cie.at;
        for (i = 1; augmentation[i] != 0; i++) {
            unsigned encoding;
            switch (augmentation[i]) {
            case 'R':
                entry->pointer_encoding = (unsigned)read_fixed(&data, 1);
                break;
            case 'L':
                skip_bytes(&data, 1);
                break;
            case 'P':
                encoding = (unsigned)read_fixed(&data, 1);
                if (encoding == ENCODING_ALIGNED)
                    skip_bytes(&data, -(uint64_t)(uintptr_t)data.at & 7);
                if (encoding != ENCODING_OMIT)
                    read_format(&data, encoding);
                break;
            case 'S':
                entry->signal_frame = 1;
                break;
            case 'B': /* pointer authentication: not on this machine, but no data of its own */
                break;
            default:
                return 0; /* what follows cannot be read */
            }
        }
        if (data.bad)
            return 0;
    } else if (augmentation[0] != 0) {
        return 0;
    }
    entry->cie_program = cie;
    return augmentation[0] == 'z' ? 2 : 1;
}

/* Reads the FDE at `address`. */
static int read_fde(uint64_t address, const struct module *module, struct function_entry *entry)
{
    struct cursor fde;
    uint64_t pointer_place, pointer;
    unsigned width;
    int augmented;
    if (address < module->frames_low || address >= module->frames_end)
        return 0;
    fde = cursor_over(address, module->frames_end);
    width = open_record(&fde);
    if (width == 0)
        return 0;
    pointer_place = (uint64_t)(uintptr_t)fde.at;
    pointer = read_fixed(&fde, width);
    if (pointer == 0 || pointer > pointer_place - module->frames_low) /* a CIE, or a wild one */
        return 0;
    augmented = read_cie(pointer_place - pointer, module, entry);
    if (!augmented)
        return 0;
    entry->data = module->header;
    entry->start = read_pointer(&fde, entry->pointer_encoding, entry->data);
    entry->end = entry->start + read_format(&fde, entry->pointer_encoding);
    if (augmented == 2)
        skip_bytes(&fde, read_uleb(&fde));
    entry->program = fde;
    return !fde.bad && entry->start < entry->end;
}

static int table_pair(const struct module *module, uint64_t i, uint64_t *start, uint64_t *fde)
{
    unsigned half = (unsigned)(module->entry_bytes / 2);
    struct cursor cursor = cursor_over(module->table + i * module->entry_bytes, module->table_end);
    *start = module->header + sign_extend(read_fixed(&cursor, half), half * 8);
    *fde = module->header + sign_extend(read_fixed(&cursor, half), half * 8);
    return !cursor.bad;
}

#define MAX_RECORDS_SEARCHED 200000 /* without a sorted table; some milliseconds */

static int find_function(const struct module *module, uint64_t pc, struct function_entry *entry)
{
    uint64_t start, fde, i;
    if (module->entry_bytes != 0) {
        uint64_t below = 0, above = module->table_entries; /* entry `below` starts at or before pc, if any does */
        while (above - below > 1) {
            uint64_t middle = below + (above - below) / 2;
            if (!table_pair(module, middle, &start, &fde))
                return 0;
            if (start <= pc)
                below = middle;
            else
                above = middle;
        }
        return module->table_entries != 0 && table_pair(module, below, &start, &fde) && start <= pc &&
               read_fde(fde, module, entry) && pc >= entry->start && pc < entry->end;
    }
    fde = module->frames;
    for (i = 0; i < MAX_RECORDS_SEARCHED && fde < module->frames_end; i++) {
        struct cursor record = cursor_over(fde, module->frames_end);
        if (open_record(&record) == 0)
            return 0;
        if (read_fde(fde, module, entry) && pc >= entry->start && pc < entry->end)
            return 1;
        fde = (uint64_t)(uintptr_t)record.end;
    }
    return 0;
}

/* DWARF's numbers of the registers. */
enum { REGISTER_BP = 6, REGISTER_SP = 7, REGISTER_PC = 16 };

enum rule_kind {
    RULE_SAME = 0, /* also what holds where nothing is said */
    RULE_UNDEFINED,
    RULE_AT_CFA,        /* saved at CFA + value */
    RULE_IS_CFA,        /* is CFA + value */
    RULE_AT_EXPRESSION, /* saved where the expression says */
    RULE_OTHER
};

struct rule {
    int kind;
    int64_t value;
    struct cursor expression;
};

struct rules {
    uint64_t cfa_register;
    uint64_t cfa_offset;
    int cfa_by_expression;
    struct cursor cfa_expression;
    struct rule bp, sp, pc;
};

static struct rule *rule_of(struct rules *rules, uint64_t number, struct rule *ignored)
{
    switch (number) {
    case REGISTER_BP:
        return &rules->bp;
    case REGISTER_SP:
        return &rules->sp;
    case REGISTER_PC:
        return &rules->pc;
    }
    return ignored; /* the walk does not need the other registers */
}

static void set_rule(struct rules *rules, uint64_t number, int kind, int64_t value)
{
    struct rule ignored, *rule = rule_of(rules, number, &ignored);
    rule->kind = kind;
    rule->value = value;
}

static struct cursor read_block(struct cursor *program)
{
    struct cursor block;
    uint64_t length = read_uleb(program);
    block = *program;
    skip_bytes(program, length);
    block.end = program->at;
    block.bad = program->bad;
    return block;
}

#define MAX_REMEMBERED 8
#define MAX_PROGRAM_BYTES (1 << 20)

/* DW_CFA_*; the three with an operand in the low 6 bits first. */
enum {
    CFA_ADVANCE = 0x40,
    CFA_OFFSET = 0x80,
    CFA_RESTORE = 0xc0,
    CFA_NOP = 0x00,
    CFA_SET_LOC = 0x01,
    CFA_ADVANCE1 = 0x02,
    CFA_ADVANCE2 = 0x03,
    CFA_ADVANCE4 = 0x04,
    CFA_OFFSET_EXTENDED = 0x05,
    CFA_RESTORE_EXTENDED = 0x06,
    CFA_UNDEFINED = 0x07,
    CFA_SAME_VALUE = 0x08,
    CFA_REGISTER = 0x09,
    CFA_REMEMBER_STATE = 0x0a,
    CFA_RESTORE_STATE = 0x0b,
    CFA_DEF_CFA = 0x0c,
    CFA_DEF_CFA_REGISTER = 0x0d,
    CFA_DEF_CFA_OFFSET = 0x0e,
    CFA_DEF_CFA_EXPRESSION = 0x0f,
    CFA_EXPRESSION = 0x10,
    CFA_OFFSET_EXTENDED_SF = 0x11,
    CFA_DEF_CFA_SF = 0x12,
    CFA_DEF_CFA_OFFSET_SF = 0x13,
    CFA_VAL_OFFSET = 0x14,
    CFA_VAL_OFFSET_SF = 0x15,
    CFA_VAL_EXPRESSION = 0x16,
    CFA_GNU_ARGS_SIZE = 0x2e,
    CFA_GNU_NEGATIVE_OFFSET_EXTENDED = 0x2f
};

/* Runs a CFA program from *pc until it is past `target`. `initial` is what DW_CFA_restore goes back to. Returns 0 if the
 * program cannot be understood. */
static int run_program(struct cursor program, const struct function_entry *entry, uint64_t pc, uint64_t target,
                       const struct rules *initial, struct rules *rules)
{
    struct rules remembered[MAX_REMEMBERED];
    unsigned depth = 0;
    if (program.bad || program.end - program.at > MAX_PROGRAM_BYTES)
        return 0;
    while (program.at < program.end) {
        unsigned opcode = (unsigned)read_fixed(&program, 1);
        uint64_t number = opcode & 0x3f, advance = 0;
        int64_t offset;
        struct rule ignored, initially_ignored, *rule;
        if (opcode & 0xc0)
            opcode &= 0xc0;
        switch (opcode) {
        case CFA_ADVANCE:
            advance = number * entry->code_align;
            break;
        case CFA_ADVANCE1:
            advance = read_fixed(&program, 1) * entry->code_align;
            break;
        case CFA_ADVANCE2:
            advance = read_fixed(&program, 2) * entry->code_align;
            break;
        case CFA_ADVANCE4:
            advance = read_fixed(&program, 4) * entry->code_align;
            break;
        case CFA_SET_LOC:
            advance = read_pointer(&program, entry->pointer_encoding, entry->data) - pc;
            break;
        case CFA_NOP:
            break;
        case CFA_OFFSET_EXTENDED:
            number = read_uleb(&program);
            /* fall through */
        case CFA_OFFSET:
            offset = (int64_t)(read_uleb(&program) * (uint64_t)entry->data_align);
            set_rule(rules, number, RULE_AT_CFA, offset);
            break;
        case CFA_OFFSET_EXTENDED_SF:
            number = read_uleb(&program);
            offset = (int64_t)((uint64_t)read_sleb(&program) * (uint64_t)entry->data_align);
            set_rule(rules, number, RULE_AT_CFA, offset);
            break;
        case CFA_GNU_NEGATIVE_OFFSET_EXTENDED:
            number = read_uleb(&program);
            offset = (int64_t)(0 - read_uleb(&program) * (uint64_t)entry->data_align);
            set_rule(rules, number, RULE_AT_CFA, offset);
            break;
        case CFA_VAL_OFFSET:
            number = read_uleb(&program);
            offset = (int64_t)(read_uleb(&program) * (uint64_t)entry->data_align);
            set_rule(rules, number, RULE_IS_CFA, offset);
            break;
        case CFA_VAL_OFFSET_SF:
            number = read_uleb(&program);
            offset = (int64_t)((uint64_t)read_sleb(&program) * (uint64_t)entry->data_align);
            set_rule(rules, number, RULE_IS_CFA, offset);
            break;
        case CFA_RESTORE_EXTENDED:
            number = read_uleb(&program);
            /* fall through */
        case CFA_RESTORE:
            if (initial == NULL)
                return 0;
            initially_ignored.kind = RULE_SAME;
            ignored.kind = RULE_SAME;
            rule = rule_of(rules, number, &ignored);
            *rule = *rule_of((struct rules *)(uintptr_t)initial, number, &initially_ignored);
            break;
        case CFA_UNDEFINED:
            set_rule(rules, read_uleb(&program), RULE_UNDEFINED, 0);
            break;
        case CFA_SAME_VALUE:
            set_rule(rules, read_uleb(&program), RULE_SAME, 0);
            break;
        case CFA_REGISTER:
            set_rule(rules, read_uleb(&program), RULE_OTHER, 0);
            read_uleb(&program);
            break;
        case CFA_REMEMBER_STATE:
            if (depth == MAX_REMEMBERED)
                return 0;
            remembered[depth++] = *rules;
            break;
        case CFA_RESTORE_STATE:
            if (depth == 0)
                return 0;
            *rules = remembered[--depth];
            break;
        case CFA_DEF_CFA:
            rules->cfa_register = read_uleb(&program);
            rules->cfa_offset = read_uleb(&program);
            rules->cfa_by_expression = 0;
            break;
        case CFA_DEF_CFA_SF:
            rules->cfa_register = read_uleb(&program);
            rules->cfa_offset = (uint64_t)read_sleb(&program) * (uint64_t)entry->data_align;
            rules->cfa_by_expression = 0;
            break;
        case CFA_DEF_CFA_REGISTER:
            rules->cfa_register = read_uleb(&program);
            rules->cfa_by_expression = 0;
            break;
        case CFA_DEF_CFA_OFFSET:
            rules->cfa_offset = read_uleb(&program);
            break;
        case CFA_DEF_CFA_OFFSET_SF:
            rules->cfa_offset = (uint64_t)read_sleb(&program) * (uint64_t)entry->data_align;
            break;
        case CFA_DEF_CFA_EXPRESSION:
            rules->cfa_expression = read_block(&program);
            rules->cfa_by_expression = 1;
            break;
        case CFA_EXPRESSION:
            number = read_uleb(&program);
            rule = rule_of(rules, number, &ignored);
            rule->kind = RULE_AT_EXPRESSION;
            rule->expression = read_block(&program);
            break;
        case CFA_VAL_EXPRESSION:
            number = read_uleb(&program);
            rule = rule_of(rules, number, &ignored);
            rule->kind = RULE_OTHER;
            read_block(&program);
            break;
        case CFA_GNU_ARGS_SIZE:
            read_uleb(&program);
            break;
        default:
            return 0;
        }
        if (program.bad)
            return 0;
        if (advance > target - pc) /* pc <= target */
            return 1;
        pc += advance;
    }
    return 1;
}

/*
 * DWARF expressions, evaluated as far as can be done without registers. A value is
 *   offset, of = OF_NOTHING; register + offset; or *(register + inner) + offset.
 */
enum { OF_NOTHING, OF_SP, OF_BP, OF_CFA };

struct value {
    int of, loaded;
    uint64_t inner, offset;
};

#define MAX_VALUES 8

static int evaluate_expression(struct cursor expression, uint64_t pc, int cfa_is_pushed, struct value *result)
{
    struct value values[MAX_VALUES + 1];
    unsigned depth = 0;
    if (cfa_is_pushed) {
        values[0].of = OF_CFA;
        values[0].loaded = 0;
        values[0].inner = values[0].offset = 0;
        depth = 1;
    }
    if (expression.bad)
        return 0;
    while (expression.at < expression.end) {
        unsigned opcode = (unsigned)read_fixed(&expression, 1);
        struct value *top = values + depth; /* where a push goes */
        struct value *a, *b;                /* the two uppermost */
        uint64_t x, y;
        if (depth == MAX_VALUES)
            return 0;
        top->of = OF_NOTHING;
        top->loaded = 0;
        top->inner = top->offset = 0;
        if (opcode >= 0x30 && opcode <= 0x4f) { /* DW_OP_lit0 .. 31 */
            top->offset = opcode - 0x30;
            depth++;
            continue;
        }
        if (opcode >= 0x70 && opcode <= 0x8f) { /* DW_OP_breg0 .. 31 */
            top->offset = (uint64_t)read_sleb(&expression);
            if (opcode == 0x70 + REGISTER_SP)
                top->of = OF_SP;
            else if (opcode == 0x70 + REGISTER_BP)
                top->of = OF_BP;
            else if (opcode == 0x70 + REGISTER_PC)
                top->offset += pc;
            else
                return 0;
            depth++;
            continue;
        }
        if (opcode >= 0x08 && opcode <= 0x0f) { /* DW_OP_const1u, 1s, 2u, 2s, 4u, 4s, 8u, 8s */
            unsigned bytes = 1u << ((opcode - 0x08) >> 1);
            top->offset = read_fixed(&expression, bytes);
            if (opcode & 1)
                top->offset = sign_extend(top->offset, bytes * 8);
            depth++;
            continue;
        }
        switch (opcode) {
        case 0x10: /* DW_OP_constu */
            top->offset = read_uleb(&expression);
            depth++;
            continue;
        case 0x11: /* DW_OP_consts */
            top->offset = (uint64_t)read_sleb(&expression);
            depth++;
            continue;
        case 0x96: /* DW_OP_nop */
            continue;
        }
        if (depth < 1)
            return 0;
        b = values + depth - 1;
        switch (opcode) {
        case 0x12: /* DW_OP_dup */
            *top = *b;
            depth++;
            continue;
        case 0x06: /* DW_OP_deref */
            if (b->of == OF_NOTHING || b->loaded)
                return 0;
            b->loaded = 1;
            b->inner = b->offset;
            b->offset = 0;
            continue;
        case 0x23: /* DW_OP_plus_uconst */
            b->offset += read_uleb(&expression);
            continue;
        }
        if (depth < 2)
            return 0;
        a = values + depth - 2;
        if (opcode == 0x22) { /* DW_OP_plus */
            if (a->of != OF_NOTHING && b->of != OF_NOTHING)
                return 0;
            x = a->offset;
            if (a->of == OF_NOTHING)
                *a = *b;
            else
                x = b->offset;
            a->offset += x;
            depth--;
            continue;
        }
        if (b->of != OF_NOTHING)
            return 0;
        if (opcode == 0x1c) { /* DW_OP_minus */
            a->offset -= b->offset;
            depth--;
            continue;
        }
        if (a->of != OF_NOTHING)
            return 0;
        x = a->offset;
        y = b->offset;
        switch (opcode) {
        case 0x1a: /* DW_OP_and */
            a->offset = x & y;
            break;
        case 0x21: /* DW_OP_or */
            a->offset = x | y;
            break;
        case 0x24: /* DW_OP_shl */
            a->offset = y < 64 ? x << y : 0;
            break;
        case 0x25: /* DW_OP_shr */
            a->offset = y < 64 ? x >> y : 0;
            break;
        case 0x29: /* DW_OP_eq */
            a->offset = x == y;
            break;
        case 0x2a: /* DW_OP_ge, and the others that compare; signed */
            a->offset = (int64_t)x >= (int64_t)y;
            break;
        case 0x2b: /* DW_OP_gt */
            a->offset = (int64_t)x > (int64_t)y;
            break;
        case 0x2c: /* DW_OP_le */
            a->offset = (int64_t)x <= (int64_t)y;
            break;
        case 0x2d: /* DW_OP_lt */
            a->offset = (int64_t)x < (int64_t)y;
            break;
        case 0x2e: /* DW_OP_ne */
            a->offset = x != y;
            break;
        default:
            return 0;
        }
        depth--;
    }
    if (expression.bad || depth == 0)
        return 0;
    *result = values[depth - 1];
    return 1;
}

/* Where a register is saved. */
static int place_of(const struct rule *rule, uint64_t pc, struct value *place)
{
    if (rule->kind == RULE_AT_EXPRESSION)
        return evaluate_expression(rule->expression, pc, 1, place) && !place->loaded;
    if (rule->kind != RULE_AT_CFA)
        return 0;
    place->of = OF_CFA;
    place->loaded = 0;
    place->inner = 0;
    place->offset = (uint64_t)rule->value;
    return 1;
}

static int fits_signed(uint64_t value, unsigned bits) { return sign_extend(value, bits) == value; }

/* A place relative to the CFA instead of to the register that the CFA is computed from. */
static void relate_to_cfa(struct value *place, const struct value *cfa)
{
    if (!cfa->loaded && place->of == cfa->of) {
        place->offset -= cfa->offset;
        place->of = OF_CFA;
    }
}

/* Packs the rules into a row's information. */
static uint64_t pack_row(const struct rules *rules, uint64_t pc, int signal_frame)
{
    const uint64_t unsupported = ROW(ROW_UNSUPPORTED, 0);
    struct value cfa, place;
    uint64_t units, inner, n = 1;
    int by_bp, lost = 0, at_bp = 0;

    if (rules->pc.kind == RULE_UNDEFINED)
        return ROW(ROW_OUTERMOST, 0);
    if (rules->cfa_by_expression) {
        if (!evaluate_expression(rules->cfa_expression, pc, 0, &cfa))
            return unsupported;
    } else {
        cfa.of = rules->cfa_register == REGISTER_SP ? OF_SP : rules->cfa_register == REGISTER_BP ? OF_BP : OF_NOTHING;
        cfa.loaded = 0;
        cfa.inner = 0;
        cfa.offset = rules->cfa_offset;
    }
    if (cfa.of != OF_SP && cfa.of != OF_BP)
        return unsupported;

    if (signal_frame) { /* only the kernel's own layout: everything in the ucontext at sp */
        if (cfa.of != OF_SP || !cfa.loaded || cfa.inner != UCONTEXT_SP || cfa.offset != 0 ||
            !place_of(&rules->pc, pc, &place) || place.of != OF_SP || place.offset != UCONTEXT_PC ||
            !place_of(&rules->bp, pc, &place) || place.of != OF_SP || place.offset != UCONTEXT_BP)
            return unsupported;
        return ROW(ROW_SIGNAL, 0);
    }

    if (!place_of(&rules->pc, pc, &place))
        return unsupported;
    relate_to_cfa(&place, &cfa);
    if (place.of != OF_CFA || place.offset != (uint64_t)-8)
        return unsupported;
    if (rules->sp.kind != RULE_SAME && !(rules->sp.kind == RULE_IS_CFA && rules->sp.value == 0))
        return unsupported;

    if (place_of(&rules->bp, pc, &place)) {
        relate_to_cfa(&place, &cfa);
        if (place.offset & 7)
            return unsupported;
        if (place.of == OF_CFA && 0 - place.offset >= 16 && 0 - place.offset <= 255 * 8) {
            n = (0 - place.offset) / 8;
        } else if (place.of == OF_BP && cfa.of == OF_BP && cfa.loaded && fits_signed(place.offset, 11)) {
            at_bp = 1;
            n = (place.offset / 8) & 0xff;
        } else {
            lost = 1;
        }
    } else if (rules->bp.kind != RULE_SAME) {
        lost = 1;
    }

    by_bp = cfa.of == OF_BP;
    if ((cfa.offset & 7) || (cfa.inner & 7))
        return unsupported;
    units = cfa.offset / 8;
    if (cfa.loaded) {
        inner = cfa.inner;
        if (lost || units > 15 || !fits_signed(inner, 15))
            return unsupported;
        return ROW(at_bp ? ROW_DEREF_BP_AT_BP : by_bp ? ROW_DEREF_BP : ROW_DEREF_SP,
                   ((inner / 8) & 0xfff) << 12 | units << 8 | n);
    }
    if (units == 0 || units > 0xffffff) /* more than 128 MiB */
        return unsupported;
    if (lost)
        return ROW(by_bp ? ROW_LOST_BP : ROW_LOST_SP, units);
    if (units <= 0xffff)
        return ROW(by_bp ? ROW_BP : ROW_SP, n << 16 | units);
    if (n > ROW_LARGE_KINDS)
        return unsupported;
    return ROW((by_bp ? ROW_LARGE_BP : ROW_LARGE_SP) + n - 1, units);
}

static void copy_words(uint64_t *to, const uint64_t *from, size_t words)
{
    size_t i;
    for (i = 0; i < words; i++)
        to[i] = load_word(from + i);
}

static int find_module(const struct unwind_state *state, uint64_t pc, struct module *found)
{
    uint64_t i, slots = load_word(&state->module_slots);
    for (i = 0; i < slots; i++) {
        const struct module_slot *slot = state->modules + i;
        uint64_t version = load_word(&slot->version);
        if (pc < load_word(&slot->module.start) || pc >= load_word(&slot->module.end))
            continue;
        copy_words((uint64_t *)found, (const uint64_t *)&slot->module, MODULE_WORDS);
        COMPILER_BARRIER();
        if (!(version & 1) && load_word(&slot->version) == version && pc >= found->start && pc < found->end)
            return 1;
    }
    return 0;
}

static uint64_t compute_row(struct unwind_state *state, uint64_t ra)
{
    struct module module;
    struct function_entry entry;
    struct rules initial, rules;
    uint64_t pc = ra - 1; /* in the call: what follows it may be another row, or another function */
    if (pc - state->framed_start < state->framed_bytes)
        return ROW(ROW_BP, 2 << 16 | 2);
    if (!find_module(state, pc, &module) || !find_function(&module, pc, &entry))
        return ROW(ROW_NO_TABLE, 0);
    initial.cfa_register = ~0ULL;
    initial.cfa_offset = 0;
    initial.cfa_by_expression = 0;
    initial.bp.kind = initial.sp.kind = initial.pc.kind = RULE_SAME;
    if (!run_program(entry.cie_program, &entry, entry.start, ~0ULL, NULL, &initial))
        return ROW(ROW_UNSUPPORTED, 0);
    rules = initial;
    if (!run_program(entry.program, &entry, entry.start, pc, &initial, &rules))
        return ROW(ROW_UNSUPPORTED, 0);
    return pack_row(&rules, pc, entry.signal_frame);
}

/* The parts of the ELF format that are needed; System V ABI, "Program Header". */
enum {
    ELF_HEADER_BYTES = 64,
    ELF_MACHINE = 18,
    ELF_PROGRAM_HEADERS = 32,
    ELF_PROGRAM_HEADER_BYTES = 54,
    ELF_PROGRAM_HEADER_COUNT = 56,
    PROGRAM_HEADER_BYTES = 56,
    SEGMENT_LOAD = 1,
    SEGMENT_EH_FRAME = 0x6474e550,
    SEGMENT_EXECUTABLE = 1,
    SEGMENT_READABLE = 4,
    MACHINE_X86_64 = 62
};

struct segment {
    uint64_t type, flags, start, end; /* addresses without the load bias; end: of what is in the file */
};

static struct segment read_segment(uint64_t headers, uint64_t i)
{
    struct segment segment;
    uint64_t at = headers + i * PROGRAM_HEADER_BYTES;
    struct cursor cursor = cursor_over(at, at + PROGRAM_HEADER_BYTES);
    segment.type = read_fixed(&cursor, 4);
    segment.flags = read_fixed(&cursor, 4);
    skip_bytes(&cursor, 8);
    segment.start = read_fixed(&cursor, 8);
    skip_bytes(&cursor, 8);
    segment.end = segment.start + read_fixed(&cursor, 8);
    return segment;
}

/* The readable segment that `address` lies in, as absolute addresses inside the module. */
static int find_segment(uint64_t headers, uint64_t count, uint64_t bias, uint64_t base, uint64_t size, uint64_t address,
                        uint64_t *start, uint64_t *end)
{
    uint64_t i;
    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type != SEGMENT_LOAD || !(segment.flags & SEGMENT_READABLE))
            continue;
        *start = bias + segment.start;
        *end = bias + segment.end;
        if (*start < base || *end > base + size || *start >= *end)
            continue;
        if (address >= *start && address < *end)
            return 1;
    }
    return 0;
}

/* A library may be unloaded while it is added: in the target its headers are read as session.c's peek() does it. */
static int read_memory(uint64_t from, void *to, uint64_t bytes)
{
#ifdef RTETRACK_AGENT_H
    return peek(from, to, bytes);
#else
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return 1;
#endif
}
#define HEADERS_BYTES 4096
#define EH_FRAME_HEADER_BYTES 20 /* version, three encodings, two pointers of at most 8 bytes */

/* Fills *module from the ELF header in memory; 0 if there is nothing to unwind by. */
static int read_module(uint64_t base, uint64_t size, struct module *module)
{
    uint8_t elf[HEADERS_BYTES], eh_frame_header[EH_FRAME_HEADER_BYTES];
    uint64_t headers, count, i, bias, lowest = ~0ULL, header = 0, segment_start, segment_end, encoding, copied, moved;
    struct cursor cursor;
    copied = size < HEADERS_BYTES ? size : HEADERS_BYTES;
    if (size < ELF_HEADER_BYTES || base + size < base || !read_memory(base, elf, copied))
        return 0;
    if (elf[0] != 0x7f || elf[1] != 'E' || elf[2] != 'L' || elf[3] != 'F' || elf[4] != 2 || elf[5] != 1)
        return 0;
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_MACHINE, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    if (read_fixed(&cursor, 2) != MACHINE_X86_64)
        return 0;
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_PROGRAM_HEADERS, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    headers = read_fixed(&cursor, 8);
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_PROGRAM_HEADER_BYTES, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    if (read_fixed(&cursor, 2) != PROGRAM_HEADER_BYTES)
        return 0;
    count = read_fixed(&cursor, 2);
    if (headers > copied || count * PROGRAM_HEADER_BYTES > copied - headers)
        return 0;
    headers += (uint64_t)(uintptr_t)elf;

    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type == SEGMENT_LOAD && segment.start < lowest)
            lowest = segment.start;
        if (segment.type == SEGMENT_EH_FRAME)
            header = segment.start;
    }
    if (lowest == ~0ULL || header == 0)
        return 0;
    bias = base - (lowest & ~0xfffULL);
    module->base = base;
    module->start = ~0ULL;
    module->end = 0;
    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type == SEGMENT_LOAD && (segment.flags & SEGMENT_EXECUTABLE) && segment.start < segment.end) {
            uint64_t start = bias + segment.start, end = bias + segment.end;
            if (start < base || end > base + size || start >= end)
                return 0;
            module->start = start < module->start ? start : module->start;
            module->end = end > module->end ? end : module->end;
        }
    }
    if (module->end == 0)
        return 0;

    module->header = bias + header;
    if (!find_segment(headers, count, bias, base, size, module->header, &segment_start, &segment_end))
        return 0;
    copied = segment_end - module->header < EH_FRAME_HEADER_BYTES ? segment_end - module->header : EH_FRAME_HEADER_BYTES;
    if (!read_memory(module->header, eh_frame_header, copied))
        return 0;
    moved = module->header - (uint64_t)(uintptr_t)eh_frame_header; /* what is relative to its own place is off by this */
    cursor = cursor_over((uint64_t)(uintptr_t)eh_frame_header, (uint64_t)(uintptr_t)eh_frame_header + copied);
    if (read_fixed(&cursor, 1) != 1) /* version */
        return 0;
    encoding = read_fixed(&cursor, 3); /* of the pointer to .eh_frame, of the count, of the table */
    if ((encoding & 0x80) || (encoding >> 8 & 0x80 && (encoding >> 8 & 0xff) != ENCODING_OMIT))
        return 0; /* DW_EH_PE_indirect: nobody does that here */
    module->frames = read_pointer(&cursor, (unsigned)(encoding & 0xff), module->header);
    if ((encoding & 0x70) == ENCODING_PCREL)
        module->frames += moved;
    if (cursor.bad || !find_segment(headers, count, bias, base, size, module->frames, &module->frames_low, &module->frames_end))
        return 0;
    module->entry_bytes = 0;
    module->table_end = segment_end;
    if (((encoding >> 8) & 0xff) != ENCODING_OMIT) {
        module->table_entries = read_pointer(&cursor, (unsigned)((encoding >> 8) & 0xff), module->header);
        if ((encoding >> 8 & 0x70) == ENCODING_PCREL)
            module->table_entries += moved;
        module->table = (uint64_t)(uintptr_t)cursor.at + moved;
        if (encoding >> 16 == (ENCODING_DATAREL | ENCODING_SDATA4))
            module->entry_bytes = 8;
        else if (encoding >> 16 == (ENCODING_DATAREL | ENCODING_SDATA8))
            module->entry_bytes = 16;
        if (cursor.bad || module->table_entries > (segment_end - module->table) / 8)
            module->entry_bytes = 0;
    }
    return 1;
}

static void write_slot(struct module_slot *slot, const struct module *module)
{
    size_t i;
    store_word(&slot->version, slot->version + 1);
    COMPILER_BARRIER();
    for (i = 0; i < MODULE_WORDS; i++)
        store_word((uint64_t *)&slot->module + i, ((const uint64_t *)module)[i]);
    COMPILER_BARRIER();
    store_word(&slot->version, slot->version + 1);
}

static void empty_slot(struct unwind_state *state, uint64_t i)
{
    static const struct module empty = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    uint64_t start = state->modules[i].module.start, end = state->modules[i].module.end;
    write_slot(state->modules + i, &empty);
    forget_rows(state, start, end);
}

int unwind_add_module(struct unwind_state *state, uint64_t base, uint64_t size)
{
    struct module module;
    uint64_t i;
    unwind_remove_module(state, base);
    if (!read_module(base, size, &module))
        return 0;
    for (i = 0; i < state->module_slots; i++) /* whatever was there must be gone */
        if (state->modules[i].module.start < module.end && state->modules[i].module.end > module.start)
            empty_slot(state, i);
    for (i = 0; i < state->module_slots && state->modules[i].module.end != 0; i++) {
    }
    if (i == UNWIND_MAX_MODULES)
        return 0;
    write_slot(state->modules + i, &module);
    if (i == state->module_slots)
        store_word(&state->module_slots, i + 1);
    forget_rows(state, module.start, module.end); /* that there was no table */
    return 1;
}

void unwind_remove_module(struct unwind_state *state, uint64_t base)
{
    uint64_t i;
    for (i = 0; i < state->module_slots; i++)
        if (state->modules[i].module.end != 0 && state->modules[i].module.base == base)
            empty_slot(state, i);
}

void unwind_add_framed_code(struct unwind_state *state, uint64_t start, uint64_t end)
{
    state->framed_start = start;
    state->framed_bytes = end - start;
}
