/* The cold part of unwind.c, to its end: what the rules say, packed into the row for one return address. */

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
