/* The modules that can be unwound through: what their ELF headers say, and the table that walkers read without a lock. */

/* The parts of the ELF format that are needed; System V ABI, "Program Header". */
enum {
    ELF_HEADER_BYTES = 64,
    ELF_MACHINE = 18,
    ELF_PROGRAM_HEADERS = 32,
    ELF_PROGRAM_HEADER_BYTES = 54,
    ELF_PROGRAM_HEADER_COUNT = 56,
    PROGRAM_HEADER_BYTES = 56,
    SEGMENT_LOAD = 1,
    SEGMENT_EH_FRAME = 0x6474e550,
    SEGMENT_EXECUTABLE = 1,
    SEGMENT_READABLE = 4,
    MACHINE_X86_64 = 62
};

struct segment {
    uint64_t type, flags, start, end; /* addresses without the load bias; end: of what is in the file */
};

static struct segment read_segment(uint64_t headers, uint64_t i)
{
    struct segment segment;
    uint64_t at = headers + i * PROGRAM_HEADER_BYTES;
    struct cursor cursor = cursor_over(at, at + PROGRAM_HEADER_BYTES);
    segment.type = read_fixed(&cursor, 4);
    segment.flags = read_fixed(&cursor, 4);
    skip_bytes(&cursor, 8);
    segment.start = read_fixed(&cursor, 8);
    skip_bytes(&cursor, 8);
    segment.end = segment.start + read_fixed(&cursor, 8);
    return segment;
}

/* The readable segment that `address` lies in, as absolute addresses inside the module. */
static int find_segment(uint64_t headers, uint64_t count, uint64_t bias, uint64_t base, uint64_t size, uint64_t address,
                        uint64_t *start, uint64_t *end)
{
    uint64_t i;
    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type != SEGMENT_LOAD || !(segment.flags & SEGMENT_READABLE))
            continue;
        *start = bias + segment.start;
        *end = bias + segment.end;
        if (*start < base || *end > base + size || *start >= *end)
            continue;
        if (address >= *start && address < *end)
            return 1;
    }
    return 0;
}

/* A library may be unloaded while it is added: in the target its headers are read as session.c's peek() does it. */
static int read_memory(uint64_t from, void *to, uint64_t bytes)
{
#ifdef RTETRACK_AGENT_H
    return peek(from, to, bytes);
#else
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return 1;
#endif
}
#define HEADERS_BYTES 4096
#define EH_FRAME_HEADER_BYTES 20 /* version, three encodings, two pointers of at most 8 bytes */

/* Fills *module from the ELF header in memory; 0 if there is nothing to unwind by. */
static int read_module(uint64_t base, uint64_t size, struct module *module)
{
    uint8_t elf[HEADERS_BYTES], eh_frame_header[EH_FRAME_HEADER_BYTES];
    uint64_t headers, count, i, bias, lowest = ~0ULL, header = 0, segment_start, segment_end, encoding, copied, moved;
    struct cursor cursor;
    copied = size < HEADERS_BYTES ? size : HEADERS_BYTES;
    if (size < ELF_HEADER_BYTES || base + size < base || !read_memory(base, elf, copied))
        return 0;
    if (elf[0] != 0x7f || elf[1] != 'E' || elf[2] != 'L' || elf[3] != 'F' || elf[4] != 2 || elf[5] != 1)
        return 0;
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_MACHINE, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    if (read_fixed(&cursor, 2) != MACHINE_X86_64)
        return 0;
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_PROGRAM_HEADERS, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    headers = read_fixed(&cursor, 8);
    cursor = cursor_over((uint64_t)(uintptr_t)elf + ELF_PROGRAM_HEADER_BYTES, (uint64_t)(uintptr_t)elf + ELF_HEADER_BYTES);
    if (read_fixed(&cursor, 2) != PROGRAM_HEADER_BYTES)
        return 0;
    count = read_fixed(&cursor, 2);
    if (headers > copied || count * PROGRAM_HEADER_BYTES > copied - headers)
        return 0;
    headers += (uint64_t)(uintptr_t)elf;

    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type == SEGMENT_LOAD && segment.start < lowest)
            lowest = segment.start;
        if (segment.type == SEGMENT_EH_FRAME)
            header = segment.start;
    }
    if (lowest == ~0ULL || header == 0)
        return 0;
    bias = base - (lowest & ~0xfffULL);
    module->base = base;
    module->start = ~0ULL;
    module->end = 0;
    for (i = 0; i < count; i++) {
        struct segment segment = read_segment(headers, i);
        if (segment.type == SEGMENT_LOAD && (segment.flags & SEGMENT_EXECUTABLE) && segment.start < segment.end) {
            uint64_t start = bias + segment.start, end = bias + segment.end;
            if (start < base || end > base + size || start >= end)
                return 0;
            module->start = start < module->start ? start : module->start;
            module->end = end > module->end ? end : module->end;
        }
    }
    if (module->end == 0)
        return 0;

    module->header = bias + header;
    if (!find_segment(headers, count, bias, base, size, module->header, &segment_start, &segment_end))
        return 0;
    copied = segment_end - module->header < EH_FRAME_HEADER_BYTES ? segment_end - module->header : EH_FRAME_HEADER_BYTES;
    if (!read_memory(module->header, eh_frame_header, copied))
        return 0;
    moved = module->header - (uint64_t)(uintptr_t)eh_frame_header; /* what is relative to its own place is off by this */
    cursor = cursor_over((uint64_t)(uintptr_t)eh_frame_header, (uint64_t)(uintptr_t)eh_frame_header + copied);
    if (read_fixed(&cursor, 1) != 1) /* version */
        return 0;
    encoding = read_fixed(&cursor, 3); /* of the pointer to .eh_frame, of the count, of the table */
    if ((encoding & 0x80) || (encoding >> 8 & 0x80 && (encoding >> 8 & 0xff) != ENCODING_OMIT))
        return 0; /* DW_EH_PE_indirect: nobody does that here */
    module->frames = read_pointer(&cursor, (unsigned)(encoding & 0xff), module->header);
    if ((encoding & 0x70) == ENCODING_PCREL)
        module->frames += moved;
    if (cursor.bad || !find_segment(headers, count, bias, base, size, module->frames, &module->frames_low, &module->frames_end))
        return 0;
    module->entry_bytes = 0;
    module->table_end = segment_end;
    if (((encoding >> 8) & 0xff) != ENCODING_OMIT) {
        module->table_entries = read_pointer(&cursor, (unsigned)((encoding >> 8) & 0xff), module->header);
        if ((encoding >> 8 & 0x70) == ENCODING_PCREL)
            module->table_entries += moved;
        module->table = (uint64_t)(uintptr_t)cursor.at + moved;
        if (encoding >> 16 == (ENCODING_DATAREL | ENCODING_SDATA4))
            module->entry_bytes = 8;
        else if (encoding >> 16 == (ENCODING_DATAREL | ENCODING_SDATA8))
            module->entry_bytes = 16;
        if (cursor.bad || module->table_entries > (segment_end - module->table) / 8)
            module->entry_bytes = 0;
    }
    return 1;
}

static void write_slot(struct module_slot *slot, const struct module *module)
{
    size_t i;
    store_word(&slot->version, slot->version + 1);
    COMPILER_BARRIER();
    for (i = 0; i < MODULE_WORDS; i++)
        store_word((uint64_t *)&slot->module + i, ((const uint64_t *)module)[i]);
    COMPILER_BARRIER();
    store_word(&slot->version, slot->version + 1);
}

static void empty_slot(struct unwind_state *state, uint64_t i)
{
    static const struct module empty = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    uint64_t start = state->modules[i].module.start, end = state->modules[i].module.end;
    write_slot(state->modules + i, &empty);
    forget_rows(state, start, end);
}

int unwind_add_module(struct unwind_state *state, uint64_t base, uint64_t size)
{
    struct module module;
    uint64_t i;
    unwind_remove_module(state, base);
    if (!read_module(base, size, &module))
        return 0;
    for (i = 0; i < state->module_slots; i++) /* whatever was there must be gone */
        if (state->modules[i].module.start < module.end && state->modules[i].module.end > module.start)
            empty_slot(state, i);
    for (i = 0; i < state->module_slots && state->modules[i].module.end != 0; i++) {
    }
    if (i == UNWIND_MAX_MODULES)
        return 0;
    write_slot(state->modules + i, &module);
    if (i == state->module_slots)
        store_word(&state->module_slots, i + 1);
    forget_rows(state, module.start, module.end); /* that there was no table */
    return 1;
}

void unwind_remove_module(struct unwind_state *state, uint64_t base)
{
    uint64_t i;
    for (i = 0; i < state->module_slots; i++)
        if (state->modules[i].module.end != 0 && state->modules[i].module.base == base)
            empty_slot(state, i);
}

void unwind_add_framed_code(struct unwind_state *state, uint64_t start, uint64_t end)
{
    state->framed_start = start;
    state->framed_bytes = end - start;
}
