/* The hot part of unwind.c: a walk along the stack, by the memo and by the rows. */

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
