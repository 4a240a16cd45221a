/* The cache of rows: what the call-frame table says at each return address seen. */

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
