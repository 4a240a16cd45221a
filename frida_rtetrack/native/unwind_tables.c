/* The cold part of unwind.c: from a module's call-frame table to the row for one return address. */

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
