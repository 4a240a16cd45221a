/*
 * Prints what the unwinder reads in a file's call-frame tables: for each address on standard input (hexadecimal, as in
 * the file) a line with the CFA and where rbp is.
 *
 *     rows FILE < ADDRESSES
 */
#include "../../frida_rtetrack/native/unwind.c"

#include "image.h"

static void print_bp(uint64_t n)
{
    if (n == 1)
        printf("same\n");
    else
        printf("c-%d\n", (int)n * 8);
}

static void print_row(uint64_t info)
{
    uint64_t kind = info >> ROW_KIND_SHIFT, payload = info & 0xffffff;
    int inner = (int)signed_field(payload, 12, 12) * 8, added = (int)(payload >> 8 & 15) * 8;
    switch (kind) {
    case ROW_OUTERMOST:
        printf("outermost\n");
        return;
    case ROW_NO_TABLE:
        printf("none\n");
        return;
    case ROW_UNSUPPORTED:
        printf("unsupported\n");
        return;
    case ROW_SIGNAL:
        printf("signal\n");
        return;
    case ROW_SP:
    case ROW_BP:
        printf("%s+%d ", kind == ROW_SP ? "rsp" : "rbp", (int)(payload & 0xffff) * 8);
        print_bp(payload >> 16);
        return;
    case ROW_LOST_SP:
    case ROW_LOST_BP:
        printf("%s+%d lost\n", kind == ROW_LOST_SP ? "rsp" : "rbp", (int)payload * 8);
        return;
    case ROW_DEREF_SP:
    case ROW_DEREF_BP:
        printf("*(%s%+d)+%d ", kind == ROW_DEREF_SP ? "rsp" : "rbp", inner, added);
        print_bp(payload & 0xff);
        return;
    case ROW_DEREF_BP_AT_BP:
        printf("*(rbp%+d)+%d rbp%+d\n", inner, added, (int)signed_field(payload, 0, 8) * 8);
        return;
    default:
        printf("%s+%d ", kind < ROW_LARGE_BP ? "rsp" : "rbp", (int)payload * 8);
        print_bp((kind & (ROW_LARGE_KINDS - 1)) + 1);
    }
}

int main(int argc, char **argv)
{
    struct image image;
    struct unwind_state *state = calloc(1, sizeof *state);
    unsigned long address;
    if (argc != 2 || !load_image(argv[1], &image))
        return 2;
    if (!unwind_add_module(state, (uint64_t)(uintptr_t)image.bytes, image.size)) {
        fprintf(stderr, "no table\n");
        return 3;
    }
    while (scanf("%lx", &address) == 1)
        print_row(unwind_row(state, (uint64_t)(uintptr_t)image.bytes + address - image.lowest + 1));
    free(image.bytes);
    free(state);
    return 0;
}
