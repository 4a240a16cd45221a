/* The cold part of unwind.c, second half: a function's CFA program is run up to one address, and packed into a row. */

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
