/* From a frame to its caller: the hot loop over plain rows, and every other kind of row. */

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
