/*
 * Finds what a mapped module exports, by its own hash table. dlsym would take the dynamic loader's lock, and deadlock: a
 * thread of the program holds it in dlopen while it waits for the agent's JavaScript to look at the new module. And the
 * module may be unloaded while we look: everything is read by peek(). Layouts: System V ABI, Elf64_Dyn and Elf64_Sym;
 * DT_GNU_HASH as in glibc's elf/dl-lookup.c.
 */

#define DYNAMIC_STRINGS 5
#define DYNAMIC_SYMBOLS 6
#define DYNAMIC_GNU_HASH 0x6ffffef5
#define SYMBOL_BYTES 24
#define DYNAMIC_ENTRIES 128
#define CHAIN_LIMIT 10000

struct exports {
    uint64_t bias, symbols, strings, hash;
};

/* The tables of the 64-bit ELF module mapped at [base, base + size); 0 if it has none that we know. */
static int open_exports(uint64_t base, uint64_t size, struct exports *exports) {
    uint8_t page[ELF_PAGE];
    uint64_t entries[2 * DYNAMIC_ENTRIES], dynamic = 0, bytes = 0, i;
    const uint8_t *program;
    uint32_t count;
    memset(exports, 0, sizeof *exports);
    if (!peek_elf(base, size, page, &program, &count)) return 0;
    exports->bias = base - lowest_address(program, count);
    for (; count > 0; count--, program += 56) {
        if (*(const uint32_t *) program != 2 /* PT_DYNAMIC */) continue;
        dynamic = exports->bias + *(const uint64_t *) (program + 16);
        bytes = *(const uint64_t *) (program + 40);
    }
    if (bytes > sizeof entries) bytes = sizeof entries;
    if (dynamic == 0 || !peek(dynamic, entries, bytes)) return 0;
    for (i = 0; i + 2 <= bytes / 8 && entries[i] != 0; i += 2) {
        uint64_t value = entries[i + 1] < base ? entries[i + 1] + exports->bias : entries[i + 1]; /* relocated in place? */
        if (entries[i] == DYNAMIC_STRINGS) exports->strings = value;
        else if (entries[i] == DYNAMIC_SYMBOLS) exports->symbols = value;
        else if (entries[i] == DYNAMIC_GNU_HASH) exports->hash = value;
    }
    return exports->strings != 0 && exports->symbols != 0 && exports->hash != 0;
}

static int is_named(const struct exports *exports, const uint8_t *symbol, const char *name) {
    char own[64];
    uint64_t length = strlen(name) + 1;
    return length <= sizeof own && peek(exports->strings + *(const uint32_t *) symbol, own, length)
           && same_text((const uint8_t *) own, name, (uint32_t) length);
}

/* The address of the function `name` that the module at `base` exports, or 0. */
uint64_t module_export(uint64_t base, uint64_t size, const char *name) {
    struct exports exports;
    uint32_t header[4], hash = 5381, symbol, own, steps;
    uint64_t buckets, chains;
    uint8_t entry[SYMBOL_BYTES];
    const char *c;
    if (!open_exports(base, size, &exports) || !peek(exports.hash, header, sizeof header) || header[0] == 0) return 0;
    for (c = name; *c != 0; c++) hash = hash * 33 + (uint8_t) *c;
    buckets = exports.hash + sizeof header + 8ULL * header[2];
    chains = buckets + 4ULL * header[0];
    if (!peek(buckets + 4ULL * (hash % header[0]), &symbol, 4) || symbol < header[1]) return 0;
    for (steps = 0; steps < CHAIN_LIMIT; steps++, symbol++) {
        if (!peek(chains + 4ULL * (symbol - header[1]), &own, 4)) return 0;
        if ((own | 1) == (hash | 1) && peek(exports.symbols + (uint64_t) symbol * SYMBOL_BYTES, entry, sizeof entry)
            && (entry[4] & 15) == 2 /* STT_FUNC */ && *(const uint16_t *) (entry + 6) != 0 && is_named(&exports, entry, name))
            return exports.bias + *(const uint64_t *) (entry + 8);
        if (own & 1) return 0;
    }
    return 0;
}

#define SECTION_BYTES 64 /* Elf64_Shdr; sh_type at 4 */
#define SECTION_SYMBOLS 2 /* SHT_SYMTAB */
#define SECTIONS_READ 128

/*
 * Whether the ELF file at `path` has names that it does not export (.symtab). Frida maps a file whole, twice, to look for
 * them, and most libraries are stripped. 1 also where the file cannot be read: that is for Frida to find out.
 */
int file_has_symbols(const char *path) {
    uint8_t header[64], sections[SECTIONS_READ * SECTION_BYTES];
    uint32_t count, i;
    long got, fd = syscall(SYS_OPENAT, (long) AT_FDCWD, path, 0x80000L /* O_CLOEXEC */, 0L);
    if (fd < 0) return 1;
    got = syscall(SYS_PREAD64, fd, header, (long) sizeof header, 0L);
    if (got != (long) sizeof header || header[0] != 0x7f || header[4] != 2 || *(const uint16_t *) (header + 58) != SECTION_BYTES) {
        syscall(SYS_CLOSE, fd);
        return 1;
    }
    count = *(const uint16_t *) (header + 60);
    if (count == 0 || count > SECTIONS_READ) count = SECTIONS_READ + 1; /* many, or counted elsewhere */
    else got = syscall(SYS_PREAD64, fd, sections, (long) count * SECTION_BYTES, *(const uint64_t *) (header + 40));
    syscall(SYS_CLOSE, fd);
    if (count > SECTIONS_READ || got != (long) count * SECTION_BYTES) return 1;
    for (i = 0; i < count; i++)
        if (*(const uint32_t *) (sections + i * SECTION_BYTES + 4) == SECTION_SYMBOLS) return 1;
    return 0;
}
