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
 * A row is 34 bits that, with the number of its set, are the whole return address, and 30 bits of information. The
 * 47-bit address is multiplied by an odd number, which loses nothing; the high 13 bits of the product choose the set.
 *
 *   info = kind (6 bits) | payload (24 bits); 0 is no row.
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
#define SET_SHIFT (64 - SET_BITS)
#define INFO_BITS (64 - (ADDRESS_BITS - SET_BITS))
#define INFO_MASK ((1ULL << INFO_BITS) - 1)
#define SPREAD 0x9e3779b97f4a0000ULL /* 2^47 / golden ratio, odd, times 2^17 */
#define GATHER 0x31bdb6d8102dULL     /* its inverse modulo 2^47 */
#define ROW_COUNT (2 << SET_BITS)    /* two to a set, the newer one first */

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
    uint64_t pad[4];
    uint64_t rows[ROW_COUNT];
    struct module_slot modules[UNWIND_MAX_MODULES];
};

/* ---------------------------------------------------------------------------------------------------------- memo -- */

/* What the memo compares, outermost frame first. `check` points to a word that must still equal `bp`: where rbp was
 * loaded from, if anything depends on it; to `zero` with bp = 0 if there is nothing to compare, with bp = 1 if the step
 * to this frame read more than this and has to be done again. */
struct memo_frame {
    uint64_t ra, sp, bp, check;
};

struct memo_detail {
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
};

struct unwind_memo {
    uint64_t busy; /* a walk is at work on it, perhaps one that a signal interrupted */
    uint64_t generation, low, high;
    uint64_t zero, lost_bp;
    int64_t count;
    int32_t end;
    uint32_t number;
    struct memo_frame frames[UNWIND_MAX_FRAMES];
    struct memo_detail details[UNWIND_MAX_FRAMES];
    struct fresh_frame fresh[UNWIND_MAX_FRAMES];
};

#define LOST_BP 1 /* stands for an rbp that the table does not give */

/* ---------------------------------------------------------------------------------------------------------- walk -- */

/* The walk's registers. The loops in assembly know the offsets. */
struct walk {
    uint64_t ra, sp, bp;   /*  0: the frame that was reached; ra is pc + 1 if a signal interrupted it there */
    uint64_t high;         /* 24 */
    uint64_t frames;       /* 32: where the next frame's address is written */
    uint64_t frames_end;   /* 40 */
    uint64_t rows;         /* 48 */
    uint64_t fresh;        /* 56: where the next fresh_frame is written ... */
    uint64_t fresh_stride; /* 64: ... and how far that moves it, 0 without memo */
    uint64_t memo_sp;      /* 72: the loop stops at a frame with an sp from here on */
    uint64_t spread;       /* 80 */
    uint64_t saved[5];     /* 88: the registers that the assembly has to put back */
    /* Not for the assembly. */
    uint64_t low;
    uint64_t interrupted;  /* the frame that was reached was interrupted by a signal */
    uint64_t next_ra, next_sp, next_bp, next_slot, next_interrupted; /* what step() found */
};

_Static_assert(offsetof(struct walk, frames) == 32 && offsetof(struct walk, fresh) == 56 &&
                   offsetof(struct walk, memo_sp) == 72 && offsetof(struct walk, saved) == 88 &&
                   sizeof(struct memo_frame) == 32 && offsetof(struct fresh_frame, via) == 32,
               "the assembly knows these offsets");
_Static_assert(SET_SHIFT == 51 && SET_BITS == 13 && ROW_KIND_SHIFT == 24 && INFO_BITS == 30, "and these shifts");

static uint64_t compute_row(struct unwind_state *state, uint64_t ra);

static uint64_t row_tag(uint64_t spread_ra) { return spread_ra << SET_BITS; }

/* The address that a row with this content in this set stands for. */
static uint64_t row_address(uint64_t row, uint64_t set)
{
    uint64_t spread_ra = ((row & ~INFO_MASK) >> SET_BITS) | (set << SET_SHIFT);
    return ((spread_ra >> (64 - ADDRESS_BITS)) * GATHER) & ((1ULL << ADDRESS_BITS) - 1);
}

static uint64_t cached_row(const uint64_t *rows, uint64_t ra)
{
    uint64_t spread_ra = ra * SPREAD;
    const uint64_t *set = rows + (spread_ra >> SET_SHIFT) * 2;
    uint64_t tag = row_tag(spread_ra);
    uint64_t info = load_word(set) ^ tag;
    if (info <= INFO_MASK)
        return info;
    info = load_word(set + 1) ^ tag;
    return info <= INFO_MASK ? info : ROW_NONE;
}

uint64_t unwind_row(struct unwind_state *state, uint64_t ra)
{
    uint64_t info, generation, spread_ra, *set;
    if (ra >> ADDRESS_BITS || ra == 0)
        return ROW(ROW_NO_TABLE, 0);
    info = cached_row(state->rows, ra);
    if (info != ROW_NONE)
        return info;
    generation = load_word(&state->generation);
    info = compute_row(state, ra);
    spread_ra = ra * SPREAD;
    set = state->rows + (spread_ra >> SET_SHIFT) * 2;
    store_word(set + 1, load_word(set));
    store_word(set, row_tag(spread_ra) | info);
    store_word(&state->rows_filled, 1);
    /* Either forget_rows() comes later and sees what was written, or the generation that it announced is seen here. */
    FULL_BARRIER();
    if (load_word(&state->generation) != generation) {
        store_word(set, 0);
        store_word(set + 1, 0);
    }
    return info;
}

/* Drops the rows of [start, end), after the modules there changed. */
static void forget_rows(struct unwind_state *state, uint64_t start, uint64_t end)
{
    uint64_t i;
    store_word(&state->generation, state->generation + 1);
    FULL_BARRIER();
    if (!load_word(&state->rows_filled))
        return;
    for (i = 0; i < ROW_COUNT; i++) {
        uint64_t row = load_word(&state->rows[i]);
        if (row != 0) {
            uint64_t pc = row_address(row, i / 2) - 1;
            if (pc >= start && pc < end)
                store_word(&state->rows[i], 0);
        }
    }
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
        uint64_t info = cached_row((const uint64_t *)(uintptr_t)walk->rows, walk->ra);
        uint64_t kind = info >> ROW_KIND_SHIFT;
        uint64_t n = (info >> 16) & 0xff;
        uint64_t cfa, slot, ra;
        struct fresh_frame *fresh = (struct fresh_frame *)(uintptr_t)walk->fresh;
        if (kind != ROW_SP && kind != ROW_BP)
            return;
        cfa = (kind == ROW_SP ? walk->sp : walk->bp) + (info & 0xffff) * 8;
        slot = cfa - n * 8;
        if (slot < walk->sp || cfa <= walk->sp || cfa > walk->high || (slot & 7))
            return;
        if (walk->frames >= walk->frames_end)
            return;
        ra = stack_word(cfa - 8);
        if (ra == 0)
            return;
        if (n != 1)
            walk->bp = stack_word(slot);
        walk->ra = ra;
        walk->sp = cfa;
        *(uint64_t *)(uintptr_t)walk->frames = ra;
        walk->frames += 8;
        fresh->ra = ra;
        fresh->sp = cfa;
        fresh->bp = walk->bp;
        fresh->slot = slot;
        fresh->via = info;
        walk->fresh += walk->fresh_stride;
        if (cfa >= walk->memo_sp)
            return;
    }
}

static void steps_in_assembly(struct walk *walk)
{
    __asm__ volatile(
        "movq %%rbx, 88(%%rdi)\n"
        "movq %%r12, 96(%%rdi)\n"
        "movq %%r13, 104(%%rdi)\n"
        "movq %%r14, 112(%%rdi)\n"
        "movq %%r15, 120(%%rdi)\n"
        "movq 0(%%rdi), %%r10\n"  /* ra */
        "movq 8(%%rdi), %%r8\n"   /* sp */
        "movq 16(%%rdi), %%r9\n"  /* bp */
        "movq 32(%%rdi), %%rcx\n" /* frames */
        "movq 48(%%rdi), %%rsi\n" /* rows */
        "movq 56(%%rdi), %%r15\n" /* fresh */
        "movq 80(%%rdi), %%r12\n" /* spread */
        "1:\n"
        "movq %%r10, %%rax\n"
        "imulq %%r12, %%rax\n"
        "movq %%rax, %%rdx\n"
        "shrq $51, %%rdx\n"
        "shlq $4, %%rdx\n"
        "addq %%rsi, %%rdx\n" /* the set */
        "shlq $13, %%rax\n"   /* the tag */
        "movq (%%rdx), %%rbx\n"
        "xorq %%rax, %%rbx\n" /* info, if it is this address's row */
        "movq %%rbx, %%r11\n"
        "shrq $24, %%r11\n"
        "decq %%r11\n"
        "cmpq $1, %%r11\n" /* below: ROW_SP, equal: ROW_BP */
        "ja 3f\n"
        "2:\n"
        "movq %%r8, %%r13\n"
        "cmoveq %%r9, %%r13\n"
        "movl %%ebx, 32(%%r15)\n" /* via; its high half is zero already */
        "movzwl %%bx, %%eax\n"
        "leaq (%%r13,%%rax,8), %%r13\n" /* CFA */
        "shrl $16, %%ebx\n"
        "movzbl %%bl, %%ebx\n"
        "negq %%rbx\n" /* -n */
        "leaq (%%r13,%%rbx,8), %%rax\n" /* slot */
        "cmpq %%r8, %%rax\n"
        "jb 4f\n"
        "cmpq %%r8, %%r13\n"
        "jbe 4f\n"
        "cmpq 24(%%rdi), %%r13\n"
        "ja 4f\n"
        "testb $7, %%al\n"
        "jnz 4f\n"
        "cmpq 40(%%rdi), %%rcx\n"
        "jae 4f\n"
        "movq -8(%%r13), %%r14\n"
        "testq %%r14, %%r14\n"
        "jz 4f\n"
        "movq (%%rax), %%r11\n"
        "cmpq $-1, %%rbx\n"
        "cmovneq %%r11, %%r9\n"
        "movq %%r14, %%r10\n"
        "movq %%r13, %%r8\n"
        "movq %%r10, (%%rcx)\n"
        "addq $8, %%rcx\n"
        "movq %%r10, 0(%%r15)\n"
        "movq %%r8, 8(%%r15)\n"
        "movq %%r9, 16(%%r15)\n"
        "movq %%rax, 24(%%r15)\n"
        "addq 64(%%rdi), %%r15\n"
        "cmpq 72(%%rdi), %%r8\n"
        "jb 1b\n"
        "jmp 4f\n"
        "3:\n" /* the older row of the set */
        "movq 8(%%rdx), %%rbx\n"
        "xorq %%rax, %%rbx\n"
        "movq %%rbx, %%r11\n"
        "shrq $24, %%r11\n"
        "decq %%r11\n"
        "cmpq $1, %%r11\n"
        "jbe 2b\n"
        "4:\n"
        "movq %%r10, 0(%%rdi)\n"
        "movq %%r8, 8(%%rdi)\n"
        "movq %%r9, 16(%%rdi)\n"
        "movq %%rcx, 32(%%rdi)\n"
        "movq %%r15, 56(%%rdi)\n"
        "movq 88(%%rdi), %%rbx\n"
        "movq 96(%%rdi), %%r12\n"
        "movq 104(%%rdi), %%r13\n"
        "movq 112(%%rdi), %%r14\n"
        "movq 120(%%rdi), %%r15\n"
        :
        : "D"(walk)
        : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
}

/*
 * The memo's loop: from the memo's frame `from` outwards (downwards in the array) while the words on the stack are those
 * that it holds, at most to `last`. Writes the frames' addresses and returns the one that it reached.
 */
static const struct memo_frame *follow_in_c(const struct memo_frame *from, const struct memo_frame *last, uint64_t *frames)
{
    while (from != last) {
        const struct memo_frame *outer = from - 1;
        uint64_t ra = stack_word(outer->sp - 8);
        if (ra != outer->ra || stack_word(outer->check) != outer->bp)
            break;
        *frames++ = ra;
        from = outer;
    }
    return from;
}

static const struct memo_frame *follow_in_assembly(const struct memo_frame *from, const struct memo_frame *last,
                                                   uint64_t *frames)
{
    const struct memo_frame *reached;
    __asm__ volatile(
        "1:\n"
        "cmpq %%rdx, %%rax\n"
        "je 2f\n"
        "movq -24(%%rax), %%rcx\n" /* sp */
        "movq -8(%%rcx), %%rcx\n"  /* ra on the stack */
        "cmpq -32(%%rax), %%rcx\n"
        "jne 2f\n"
        "movq -8(%%rax), %%rsi\n" /* check */
        "movq (%%rsi), %%rsi\n"
        "cmpq -16(%%rax), %%rsi\n" /* bp */
        "jne 2f\n"
        "movq %%rcx, (%%rdi)\n"
        "addq $8, %%rdi\n"
        "subq $32, %%rax\n"
        "jmp 1b\n"
        "2:\n"
        : "=a"(reached), "+D"(frames)
        : "a"(from), "d"(last)
        : "rcx", "rsi", "memory", "cc");
    return reached;
}

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

static int step(struct walk *walk, uint64_t info)
{
    uint64_t kind = info >> ROW_KIND_SHIFT;
    uint64_t payload = info & 0xffffff;
    uint64_t low = walk->sp, cfa, slot, n;
    int by_bp = kind == ROW_BP || kind == ROW_DEREF_BP || kind == ROW_DEREF_BP_AT_BP || kind == ROW_LOST_BP ||
                (kind >= ROW_LARGE_BP && kind < ROW_LARGE_BP + ROW_LARGE_KINDS);
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
    } else if (kind == ROW_DEREF_SP || kind == ROW_DEREF_BP || kind == ROW_DEREF_BP_AT_BP) {
        uint64_t place = base + (uint64_t)signed_field(payload, 12, 12) * 8;
        if (!on_stack(walk, low, place))
            return STACK_OUT_OF_BOUNDS;
        cfa = stack_word(place) + ((payload >> 8) & 15) * 8;
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
        walk->next_slot = 0;
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

static uint64_t hash_frame(uint64_t outer_hash, uint64_t address)
{
    uint64_t hash = (outer_hash ^ address) * 0x9fb21c651e98df25ULL;
    return hash ^ (hash >> 32);
}

static uint64_t frame_address(uint64_t ra, uint64_t via)
{
    return via >> ROW_KIND_SHIFT == ROW_SIGNAL ? ra - 1 : ra;
}

/*
 * Puts this walk's fresh frames on top of the memo's first `kept` frames. From the outermost one inwards: a frame's bp is
 * live if its row needs it, or hands it on to a frame whose bp is live.
 */
static void remember(struct unwind_memo *memo, int64_t kept, int64_t fresh_count, int bottom_is_live)
{
    struct fresh_frame *fresh = memo->fresh + fresh_count;
    struct memo_detail *outer = memo->details + kept - 1;
    int64_t i;
    for (i = kept; i < kept + fresh_count; i++) {
        struct memo_frame *frame = memo->frames + i;
        struct memo_detail *detail = memo->details + i;
        uint64_t kind;
        fresh--;
        kind = fresh->via >> ROW_KIND_SHIFT;
        if (i == 0)
            detail->live = bottom_is_live;
        else if (outer->via >> ROW_KIND_SHIFT == ROW_SP)
            detail->live = outer->slot == 0 && outer->live;
        else
            detail->live = 1;
        detail->bp = fresh->bp;
        detail->slot = fresh->slot == fresh->sp - 8 ? 0 : fresh->slot;
        detail->via = (uint32_t)fresh->via;
        detail->hash = hash_frame(i == 0 ? 0 : outer->hash, frame_address(fresh->ra, fresh->via));
        frame->ra = fresh->ra;
        frame->sp = fresh->sp;
        frame->bp = 0;
        frame->check = (uint64_t)(uintptr_t)&memo->zero;
        if (kind != ROW_SP && kind != ROW_BP && kind != ROW_NONE) {
            frame->bp = 1;
        } else if (detail->live && detail->slot != 0) {
            frame->bp = fresh->bp;
            frame->check = detail->slot;
        }
        outer = detail;
    }
    memo->count = kept + fresh_count;
}

/* Whether the memo's frame `i` is this one. */
static int is_frame(const struct unwind_memo *memo, int64_t i, uint64_t ra, uint64_t sp, uint64_t bp, uint64_t interrupted)
{
    const struct memo_detail *detail = memo->details + i;
    return memo->frames[i].sp == sp && memo->frames[i].ra == ra &&
           (detail->via >> ROW_KIND_SHIFT == ROW_SIGNAL) == (interrupted != 0) && (!detail->live || detail->bp == bp);
}

/* rbp in the memo's frame `i`, when the walk joined the memo at `joined` with this rbp and found the frames between equal. */
static uint64_t followed_bp(const struct unwind_memo *memo, int64_t i, int64_t joined, uint64_t bp)
{
    for (; i < joined; i++)
        if (memo->details[i].slot != 0)
            return stack_word(memo->details[i].slot);
    return bp;
}

/* The walk leaves the memo at `i`: its frames from where the walk joined it are fresh ones now. */
static void take_out(struct unwind_memo *memo, struct walk *walk, int64_t joined, int64_t i, uint64_t bp)
{
    struct fresh_frame *fresh = (struct fresh_frame *)(uintptr_t)walk->fresh;
    int64_t j = joined;
    if (fresh == memo->fresh) {
        fresh->ra = memo->frames[j].ra;
        fresh->sp = memo->frames[j].sp;
        fresh->bp = bp;
        fresh->slot = fresh->sp - 8;
        fresh->via = ROW_NONE;
        fresh++;
    }
    for (j--; j >= i; j--) {
        uint64_t slot = memo->details[j].slot;
        if (slot != 0)
            bp = stack_word(slot);
        fresh->ra = memo->frames[j].ra;
        fresh->sp = memo->frames[j].sp;
        fresh->bp = bp;
        fresh->slot = slot != 0 ? slot : fresh->sp - 8;
        fresh->via = memo->details[j].via;
        fresh++;
    }
    walk->fresh = (uint64_t)(uintptr_t)fresh;
}

/* The frame that step() found becomes the walk's frame, and a fresh one. */
static void arrive(struct walk *walk, uint64_t info, uint64_t lost_bp_slot)
{
    struct fresh_frame *fresh = (struct fresh_frame *)(uintptr_t)walk->fresh;
    walk->ra = walk->next_ra;
    walk->sp = walk->next_sp;
    walk->bp = walk->next_bp;
    walk->interrupted = walk->next_interrupted;
    *(uint64_t *)(uintptr_t)walk->frames = frame_address(walk->ra, info);
    walk->frames += 8;
    fresh->ra = walk->ra;
    fresh->sp = walk->sp;
    fresh->bp = walk->bp;
    fresh->slot = walk->next_slot != 0 ? walk->next_slot : lost_bp_slot;
    fresh->via = info;
    walk->fresh += walk->fresh_stride;
}

static void next_number(struct unwind_memo *memo)
{
    memo->number++;
    if (memo->number == 0)
        memo->number = 1;
}

int unwind_walk_with_memo(struct unwind_state *state, struct unwind_memo *memo, struct unwind_trace *trace)
{
    struct walk walk;
    struct fresh_frame nowhere;
    int64_t candidate = -1;  /* the memo's frame that the walk may come to next */
    int64_t joined = -1;     /* where it joined the memo, ... */
    int64_t at = -1;         /* ... and where it is there; -1: it is not there */
    uint64_t joined_bp = 0, info, fresh_start, plain = state->plain_loops;
    int terminal = 0;        /* the last frame's row ends the walk, whatever the stack holds */

    if (memo != NULL && (memo->busy || trace->max_frames > UNWIND_MAX_FRAMES))
        memo = NULL;
    fresh_start = (uint64_t)(uintptr_t)&nowhere;
    walk.fresh_stride = 0;
    if (memo != NULL) {
        uint64_t generation;
        memo->busy = 1;
        COMPILER_BARRIER();
        generation = load_word(&state->generation);
        if (memo->generation != generation || memo->low != trace->low || memo->high != trace->high) {
            memo->count = 0;
            memo->generation = generation;
            memo->low = trace->low;
            memo->high = trace->high;
            memo->lost_bp = LOST_BP;
        }
        candidate = memo->count - 1;
        fresh_start = (uint64_t)(uintptr_t)memo->fresh;
        walk.fresh_stride = sizeof(struct fresh_frame);
    }
    walk.ra = trace->ra;
    walk.sp = trace->sp;
    walk.bp = trace->bp;
    walk.low = trace->low;
    walk.high = trace->high;
    walk.frames = (uint64_t)(uintptr_t)(trace->frames + 1);
    walk.frames_end = (uint64_t)(uintptr_t)(trace->frames + trace->max_frames);
    walk.rows = (uint64_t)(uintptr_t)state->rows;
    walk.fresh = fresh_start;
    walk.spread = SPREAD;
    walk.interrupted = 0;
    nowhere.via = 0;
    trace->frames[0] = trace->ra;

    if (walk.sp < walk.low || walk.sp > walk.high || (walk.sp & 7)) {
        trace->end = STACK_OUT_OF_BOUNDS;
        candidate = -1;
        goto ended;
    }
    for (;;) {
        if (at < 0) {
            while (candidate >= 0 &&
                   (memo->frames[candidate].sp < walk.sp ||
                    (memo->frames[candidate].sp == walk.sp &&
                     !is_frame(memo, candidate, walk.ra, walk.sp, walk.bp, walk.interrupted))))
                candidate--;
            if (candidate >= 0 && memo->frames[candidate].sp == walk.sp) {
                joined = at = candidate;
                joined_bp = walk.bp;
                continue;
            }
            if (memo != NULL && walk.fresh == fresh_start) {
                memo->fresh[0].ra = walk.ra;
                memo->fresh[0].sp = walk.sp;
                memo->fresh[0].bp = walk.bp;
                memo->fresh[0].slot = walk.sp - 8;
                memo->fresh[0].via = ROW_NONE;
                walk.fresh += walk.fresh_stride;
            }
            walk.memo_sp = candidate >= 0 ? memo->frames[candidate].sp : ~0ULL;
            if (!walk.interrupted) {
                if (plain)
                    steps_in_c(&walk);
                else
                    steps_in_assembly(&walk);
                if (walk.sp >= walk.memo_sp)
                    continue;
            }
        } else {
            int64_t room = (int64_t)(walk.frames_end - walk.frames) / 8;
            const struct memo_frame *last = memo->frames + (at > room ? at - room : 0);
            const struct memo_frame *reached;
            uint64_t *frames = (uint64_t *)(uintptr_t)walk.frames;
            if (plain)
                reached = follow_in_c(memo->frames + at, last, frames);
            else
                reached = follow_in_assembly(memo->frames + at, last, frames);
            walk.frames += (uint64_t)((memo->frames + at) - reached) * 8;
            at = reached - memo->frames;
            walk.ra = reached->ra;
            walk.sp = reached->sp;
            walk.interrupted = memo->details[at].via >> ROW_KIND_SHIFT == ROW_SIGNAL;
        }

        info = unwind_row(state, walk.ra);
        if (ends_walk(info, &trace->end)) {
            terminal = 1;
            break;
        }
        if (at >= 0)
            walk.bp = followed_bp(memo, at, joined, joined_bp);
        trace->end = step(&walk, info);
        if (trace->end != STEPPED)
            break;
        if (walk.frames >= walk.frames_end) {
            trace->end = STACK_MAX_FRAMES;
            break;
        }
        if (at > 0 && is_frame(memo, at - 1, walk.next_ra, walk.next_sp, walk.next_bp, walk.next_interrupted)) {
            at--;
            *(uint64_t *)(uintptr_t)walk.frames = frame_address(walk.next_ra, info);
            walk.frames += 8;
        } else {
            if (at >= 0) {
                take_out(memo, &walk, joined, at, joined_bp);
                candidate = at - 1;
                at = -1;
            }
            arrive(&walk, info, memo != NULL ? (uint64_t)(uintptr_t)&memo->lost_bp : 0);
        }
        if (walk.next_interrupted && (walk.next_sp < walk.low || walk.next_sp > walk.high || (walk.next_sp & 7))) {
            trace->end = STACK_OUT_OF_BOUNDS; /* the signal came on another stack, whose bounds are not known */
            break;
        }
    }

ended:
    trace->count = (int32_t)((walk.frames - (uint64_t)(uintptr_t)trace->frames) / 8);
    trace->number = 0;
    if (memo == NULL) {
        uint64_t hash = 0;
        int64_t i;
        for (i = trace->count - 1; i >= 0; i--)
            hash = hash_frame(hash, trace->frames[i]);
        trace->hash = hash;
        return trace->count;
    }
    if (at == 0 && trace->end == memo->end) {
        /* The outer frames are the memo's, down to its last one. */
        if (walk.fresh != fresh_start) {
            remember(memo, joined, (int64_t)(walk.fresh - fresh_start) / (int64_t)sizeof(struct fresh_frame), !terminal);
            next_number(memo);
        } else if (joined != memo->count - 1) {
            memo->count = joined + 1;
            next_number(memo);
        }
    } else {
        if (at >= 0)
            take_out(memo, &walk, joined, at, joined_bp);
        remember(memo, 0, (int64_t)(walk.fresh - fresh_start) / (int64_t)sizeof(struct fresh_frame), !terminal);
        memo->end = trace->end;
        next_number(memo);
    }
    trace->number = memo->number;
    trace->hash = memo->count > 0 ? memo->details[memo->count - 1].hash : 0;
    COMPILER_BARRIER();
    memo->busy = 0;
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
