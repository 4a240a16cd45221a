/*
 * See unwind.h. From the hot end to the cold one:
 *
 *   memo     the last walk of this thread. A frame (return address, sp, rbp) that it already holds leads to the same
 *            frames again if the words that the walk read from the stack are still the same; comparing them is quicker
 *            than walking, because no comparison waits for the one before.
 *   rows     for each return address seen, what the call-frame table says there, packed into 64 bits that a thread
 *            reads and writes in one piece. So the cache needs no lock, and a signal may interrupt it anywhere.
 *   tables   a row that is missing is computed: the module by linear search, its function by binary search in
 *            .eh_frame_hdr, the row by interpreting the function's CFA program up to the address.
 *
 * Formats: System V ABI for x86-64, chapter 3.7 and 4.2.4; LSB Core, "Exception Frames"; DWARF 4, chapters 2.5 and 6.4.
 */
#include "unwind.h"

#include <string.h>

#ifdef __TINYC__ /* has no __atomic_*; on x86-64 an aligned load or store is what the others' acquire and release are */
#define load_word(place) (*(volatile const uint64_t *)(place))
#define store_word(place, value) (*(volatile uint64_t *)(place) = (value))
#else
#define load_word(place) __atomic_load_n((const uint64_t *)(place), __ATOMIC_ACQUIRE)
#define store_word(place, value) __atomic_store_n((uint64_t *)(place), (value), __ATOMIC_RELEASE)
#endif
#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")
#define FULL_BARRIER() __asm__ volatile("mfence" ::: "memory")

static uint64_t stack_word(uint64_t address) { return *(const uint64_t *)(uintptr_t)address; }

/* ---------------------------------------------------------------------------------------------------------- rows --
 *
 * A row is the upper 34 bits of the 47-bit return address and 30 bits of information. Its set is the lower 13 bits,
 * mixed with some of the upper ones so that copies of the same code elsewhere get other sets: together the whole address.
 *
 *   row = ra[46:13] << 30 | info;  set = ra[12:0] ^ ra[25:13];  info = kind (6 bits) | payload (24 bits); 0 is no row
 *
 * The caller's frame in terms of this one's sp and bp, offsets in units of 8 bytes:
 *   ROW_SP, ROW_BP           CFA = sp or bp + payload[15:0]; rbp is saved n = payload[23:16] below the CFA; n = 1, the
 *                            return address's own place, says that rbp is unchanged
 *   ROW_LARGE_SP/BP + n - 1  the same with CFA = sp or bp + payload and n up to 16
 *   ROW_LOST_SP/BP           CFA = sp or bp + payload; rbp is lost
 *   ROW_DEREF_SP/BP          CFA = *(sp or bp + signed payload[23:12]) + payload[11:8]; n = payload[7:0] as above
 *   ROW_DEREF_BP_AT_BP       the same with bp, rbp saved at bp + signed payload[7:0] (what gcc makes of a realigned stack)
 *   ROW_SIGNAL               the kernel's signal frame: struct ucontext lies at sp
 * and those that end a walk: ROW_OUTERMOST, ROW_NO_TABLE, ROW_UNSUPPORTED.
 */
enum row_kind {
    ROW_NONE = 0,
    ROW_SP = 1,
    ROW_BP = 2,
    ROW_OUTERMOST = 3,
    ROW_NO_TABLE = 4,
    ROW_UNSUPPORTED = 5,
    ROW_SIGNAL = 6,
    ROW_DEREF_SP = 7,
    ROW_DEREF_BP = 8,
    ROW_DEREF_BP_AT_BP = 9,
    ROW_LOST_SP = 10,
    ROW_LOST_BP = 11,
    ROW_LARGE_SP = 16,
    ROW_LARGE_BP = 32
};
#define ROW_LARGE_KINDS 16
#define ROW_KIND_SHIFT 24
#define ROW(kind, payload) (((uint64_t)(kind) << ROW_KIND_SHIFT) | (uint64_t)(payload))

#define ADDRESS_BITS 47 /* user space, without 5-level paging's upper part, which a program must ask for */
#define SET_BITS 13
#define SET_COUNT (1 << SET_BITS)
#define INFO_BITS (64 - (ADDRESS_BITS - SET_BITS))
#define INFO_MASK ((1ULL << INFO_BITS) - 1)

/* ------------------------------------------------------------------------------------------------------- modules -- */

struct module {
    uint64_t start, end;           /* executable addresses; end 0: empty */
    uint64_t base;                 /* what the module is known by */
    uint64_t header;               /* .eh_frame_hdr: "datarel" pointers are relative to it */
    uint64_t table, table_entries; /* its sorted table */
    uint64_t table_end;            /* where the segment that holds it ends */
    uint64_t entry_bytes;          /* 8: pairs of 32 bits, 16: pairs of 64 bits, 0: no usable table */
    uint64_t frames, frames_low, frames_end; /* .eh_frame, and the segment that holds it */
};
#define MODULE_WORDS (sizeof(struct module) / sizeof(uint64_t))

struct module_slot {
    uint64_t version; /* odd while it is written */
    struct module module;
};

struct unwind_state {
    uint64_t generation;   /* changes with every module added or removed */
    uint64_t module_slots; /* how many have ever been used */
    uint64_t plain_loops;
    uint64_t rows_filled;
    uint64_t framed_start, framed_bytes; /* see unwind_add_framed_code */
    uint64_t pad[2];
    uint64_t rows[2 * SET_COUNT]; /* the newer row of each set, then the older of each */
    struct module_slot modules[UNWIND_MAX_MODULES];
};

#include "unwind_walk.c"
#include "unwind_tables.c"

/* ---- modules ---- */

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
