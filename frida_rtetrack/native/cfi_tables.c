/*
 * The cold part of unwind.c, first half: a module's call-frame table, down to the entry of one function.
 *
 * Everything here and in cfi_rules.c is told what to read by the module's own bytes, which may be damaged: every read
 * goes through a cursor that knows its end, and every loop either eats bytes or counts.
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
