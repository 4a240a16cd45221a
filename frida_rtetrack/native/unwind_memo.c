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


static struct memo_check *add_check(struct unwind_memo *memo, struct memo_check *check, uint64_t place, uint64_t expected)
{
    if (check == NULL || check == memo->checks + MEMO_CHECKS)
        return NULL;
    check->place = place;
    check->expected = expected;
    return check + 1;
}

/* Lists the words that the memo's walk depends on; returns where the list ends, NULL if the walk cannot be repeated so. */
static struct memo_check *list_checks(struct unwind_memo *memo)
{
    struct memo_check *check = memo->checks;
    uint64_t zero = (uint64_t)(uintptr_t)&memo->zero;
    int64_t i;
    for (i = memo->count - 2; i >= 0; i--) {
        const struct memo_frame *frame = memo->frames + i;
        if (frame->ra_place == zero)
            return NULL;
        check = add_check(memo, check, frame->ra_place, frame->ra);
        if (frame->bp_place != zero)
            check = add_check(memo, check, frame->bp_place, frame->bp);
        if (frame->cfa_place != zero)
            check = add_check(memo, check, frame->cfa_place, frame->cfa);
    }
    while (check != NULL && (check == memo->checks || (check - memo->checks) % MEMO_CHECKS_AT_ONCE != 0))
        check = add_check(memo, check, zero, 0);
    return check;
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
    memo->checks_end = memo->terminal && detail->via >> ROW_KIND_SHIFT != ROW_SIGNAL ? list_checks(memo) : NULL;
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
        memo->checks_end = NULL;
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

static int matches_in_c(const struct memo_check *check, const struct memo_check *end)
{
    uint64_t difference = 0;
    for (; check != end; check++)
        difference |= stack_word(check->place) ^ check->expected;
    return difference == 0;
}

/* The same for at least one lot of MEMO_CHECKS_AT_ONCE: no comparison waits for another. */
INLINE int matches_in_assembly(const struct memo_check *check, const struct memo_check *end)
{
    uint64_t a, b, c, difference;
    __asm__ volatile(
        "1:\n"
        "movq 0(%[check]), %[a]\n"
        "movq 16(%[check]), %[b]\n"
        "movq 32(%[check]), %[c]\n"
        "movq 48(%[check]), %[d]\n"
        "movq (%[a]), %[a]\n"
        "movq (%[b]), %[b]\n"
        "movq (%[c]), %[c]\n"
        "movq (%[d]), %[d]\n"
        "xorq 8(%[check]), %[a]\n"
        "xorq 24(%[check]), %[b]\n"
        "xorq 40(%[check]), %[c]\n"
        "xorq 56(%[check]), %[d]\n"
        "orq %[a], %[b]\n"
        "orq %[c], %[d]\n"
        "orq %[b], %[d]\n"
        "jnz 2f\n"
        "addq $64, %[check]\n"
        "cmpq %[end], %[check]\n"
        "jb 1b\n"
        "2:\n"
        : [check] "+r"(check), [a] "=&r"(a), [b] "=&r"(b), [c] "=&r"(c), [d] "=&r"(difference)
        : [end] "r"(end)
        : "memory", "cc");
    return difference == 0;
}

_Static_assert(sizeof(struct memo_check) * MEMO_CHECKS_AT_ONCE == 64, "the assembly knows this");

static void recall_walk(const struct unwind_memo *memo, struct unwind_trace *trace)
{
    int64_t i;
    for (i = 0; i < memo->count; i++)
        trace->frames[i] = memo->frames[memo->count - 1 - i].ra;
    trace->count = (int32_t)memo->count;
    trace->end = memo->end;
    trace->number = memo->number;
    trace->hash = memo->hash;
}

/*
 * The most common walk: the memo's whole one again, found by comparing the words that it depends on. Returns its number, 0
 * if it is not that. `trace`, if it is not NULL, gets the results; it has room for max_frames.
 */
INLINE uint32_t repeat_walk(const struct unwind_state *state, struct unwind_memo *memo, uint64_t ra, uint64_t sp, uint64_t bp,
                            uint64_t low, uint64_t high, int32_t max_frames, struct unwind_trace *trace)
{
    uint32_t number = 0;
    if (unlikely(memo->busy))
        return 0;
    memo->busy = 1; /* before anything of it is read: a signal may come in between and change it */
    COMPILER_BARRIER();
    if (likely(memo->generation == load_word(&state->generation) && memo->checks_end != NULL && memo->low == low &&
               memo->high == high && memo->top_ra == ra && memo->top_sp == sp &&
               ((memo->top_bp ^ bp) & memo->top_bp_mask) == 0 && memo->count <= max_frames) &&
        likely(state->plain_loops ? matches_in_c(memo->checks, memo->checks_end)
                                  : matches_in_assembly(memo->checks, memo->checks_end))) {
        number = memo->number;
        memo->others_since = 0;
        if (trace != NULL)
            recall_walk(memo, trace);
    }
    COMPILER_BARRIER();
    memo->busy = 0;
    return number;
}
