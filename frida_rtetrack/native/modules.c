/* The table of modules, and which addresses hold text that cannot change. */

/* Text in [start, end) cannot change until its module is unloaded. */
static void add_read_only(uint64_t start, uint64_t end) {
    uint64_t i, used = agent.read_only_used;
    for (i = 0; i < used && agent.read_only[i].end != 0; i++) {}
    if (i == READ_ONLY_RANGES) return;
    agent.read_only[i].start = start;
    agent.read_only[i].end = end;
    if (i == used) agent.read_only_used = used + 1;
}

/* The first page of the 64-bit ELF module mapped at `base`, with its program headers; 0 if there is none (any more). */
#define ELF_PAGE 4096
static int peek_elf(uint64_t base, uint64_t size, uint8_t *page, const uint8_t **programs, uint32_t *count) {
    uint64_t table;
    if (size < ELF_PAGE || !peek(base, page, ELF_PAGE)) return 0;
    if (page[0] != 0x7f || page[1] != 'E' || page[2] != 'L' || page[3] != 'F' || page[4] != 2) return 0;
    table = *(const uint64_t *) (page + 32);
    *count = *(const uint16_t *) (page + 56);
    if (*(const uint16_t *) (page + 54) != 56 || table > ELF_PAGE || *count * 56ULL > ELF_PAGE - table) return 0;
    *programs = page + table;
    return 1;
}

/* The address of the lowest PT_LOAD segment, page-aligned, in the file's own numbering: where `base` is. */
static uint64_t lowest_address(const uint8_t *programs, uint32_t count) {
    uint64_t lowest = ~0ULL;
    for (; count > 0; count--, programs += 56)
        if (*(const uint32_t *) programs == 1 /* PT_LOAD */ && *(const uint64_t *) (programs + 16) < lowest)
            lowest = *(const uint64_t *) (programs + 16);
    return lowest & ~4095ULL;
}

/* The segments that cannot be written: System V ABI, Elf64_Ehdr, Elf64_Phdr. */
static void add_read_only_segments(uint64_t base, uint64_t size) {
    uint8_t page[ELF_PAGE];
    const uint8_t *program;
    uint32_t count;
    uint64_t lowest;
    if (!peek_elf(base, size, page, &program, &count)) return;
    lowest = lowest_address(program, count);
    for (; count > 0; count--, program += 56) {
        uint64_t start = *(const uint64_t *) (program + 16) - lowest, bytes = *(const uint64_t *) (program + 40);
        if (*(const uint32_t *) program != 1 || (*(const uint32_t *) (program + 4) & 2 /* PF_W */)) continue;
        if (start < size && bytes <= size - start) add_read_only(base + start, base + start + bytes);
    }
}

/* Records a module; returns its record for agent_module_unloaded, NULL where the table is full. */
struct module_record *agent_module_loaded(uint64_t base, uint64_t size, const char *path) {
    struct session_header *header = agent.header;
    struct module_record *record;
    uint64_t length = strlen(path), bytes, at;
    add_read_only_segments(base, size);
    if (length > 4095) length = 4095;
    bytes = (sizeof *record + length + 7) & ~7ULL;
    if (!reserve(&header->modules_used, bytes, agent.modules_bytes, &at)) return NULL;
    record = (struct module_record *) (agent.modules + at);
    record->process = (uint16_t) agent.process;
    record->path_bytes = (uint16_t) length;
    record->base = base;
    record->size = size;
    record->loaded_epoch = agent.epoch;
    record->unloaded_epoch = MODULE_LOADED;
    memcpy(record + 1, path, length);
    publish_u32(&record->record_bytes, (uint32_t) bytes);
    return record;
}

void agent_module_unloaded(struct module_record *record) {
    uint64_t i, used = agent.read_only_used;
    agent.epoch++;
    if (record == NULL) return;
    record->unloaded_epoch = agent.epoch;
    for (i = 0; i < used; i++)
        if (agent.read_only[i].start >= record->base && agent.read_only[i].start < record->base + record->size)
            agent.read_only[i].end = 0;
}
