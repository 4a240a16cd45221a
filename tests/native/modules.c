/*
 * The module table: what is no module, modules that overlap, more of them than there is room for.
 *
 *     modules FILE
 */
#include "../../frida_rtetrack/native/unwind.c"

#include "image.h"

#define CHECK(condition)                                                                                                 \
    do {                                                                                                                 \
        if (!(condition)) {                                                                                              \
            printf("line %d: %s\n", __LINE__, #condition);                                                               \
            return 1;                                                                                                    \
        }                                                                                                                \
    } while (0)

static struct unwind_state *state;

static uint64_t kind_at(uint64_t address) { return unwind_row(state, address + 1) >> ROW_KIND_SHIFT; }

int main(int argc, char **argv)
{
    struct image image;
    struct function_entry entry;
    uint64_t base, inside, moved, fde;
    uint8_t *room;
    state = calloc(1, unwind_state_bytes());
    CHECK(argc == 2 && load_image(argv[1], &image));
    room = calloc(1, image.size + 0x10000);
    base = (uint64_t)(uintptr_t)room;
    memcpy(room, image.bytes, image.size);

    /* No module, or no usable one. */
    CHECK(!unwind_add_module(state, base, 0) && !unwind_add_module(state, base, 63));
    CHECK(!unwind_add_module(state, base, 4096));      /* its segments reach further */
    CHECK(!unwind_add_module(state, base, ~0ULL));     /* wraps around */
    CHECK(!unwind_add_module(state, base + 1, image.size - 1));
    unwind_remove_module(state, base);
    CHECK(state->module_slots == 0 && state->generation == 0);

    /* One that is there, and gone, and there. */
    CHECK(unwind_add_module(state, base, image.size));
    CHECK(table_pair(&state->modules[0].module, state->modules[0].module.table_entries / 2, &inside, &fde));
    CHECK(read_fde(fde, &state->modules[0].module, &entry) && entry.start == inside);
    CHECK(kind_at(inside) == ROW_SP && kind_at(base) == ROW_NO_TABLE && kind_at(~0ULL >> 20) == ROW_NO_TABLE);
    unwind_remove_module(state, base + 1);
    CHECK(kind_at(inside) == ROW_SP);
    unwind_remove_module(state, base);
    CHECK(kind_at(inside) == ROW_NO_TABLE);
    CHECK(unwind_add_module(state, base, image.size) && unwind_add_module(state, base, image.size));
    CHECK(kind_at(inside) == ROW_SP && state->module_slots == 1);

    /* Another one over it, while nobody said that the first is gone. */
    memset(room, 0, image.size);
    memcpy(room + 0x10000, image.bytes, image.size);
    CHECK(unwind_add_module(state, base + 0x10000, image.size));
    moved = inside + 0x10000;
    CHECK(kind_at(moved) == ROW_SP);
    for (uint64_t i = 0; i < state->module_slots; i++)
        CHECK(state->modules[i].module.base != base);
    unwind_remove_module(state, base + 0x10000);
    CHECK(kind_at(moved) == ROW_NO_TABLE);

    /* Code that keeps frames by rbp and has no table. */
    unwind_add_framed_code(state, 0x7000, 0x7100);
    CHECK(unwind_row(state, 0x7001) == ROW(ROW_BP, 2 << 16 | 2) && kind_at(0x70ff) == ROW_BP);
    CHECK(kind_at(0x6fff) == ROW_NO_TABLE && kind_at(0x7100) == ROW_NO_TABLE);

    /* As many as there is room for, and one more. */
    struct module *module = &state->modules[0].module;
    for (uint64_t i = 0; i < UNWIND_MAX_MODULES; i++) {
        module = &state->modules[i].module;
        module->base = i + 1;
        module->start = 0x1000 * i;
        module->end = 0x1000 * i + 0x1000;
    }
    state->module_slots = UNWIND_MAX_MODULES;
    CHECK(!unwind_add_module(state, base + 0x10000, image.size));
    unwind_remove_module(state, 1000);
    CHECK(unwind_add_module(state, base + 0x10000, image.size));
    CHECK(kind_at(moved) == ROW_SP && state->module_slots == UNWIND_MAX_MODULES);
    free(room);
    free(image.bytes);
    free(state);
    printf("ok\n");
    return 0;
}
