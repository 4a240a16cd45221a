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
