/* The memo: finding the last walk's frames again by comparing, and keeping this walk for the next one. */

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
