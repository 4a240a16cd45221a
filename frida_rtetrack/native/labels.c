/* The table of labels: the texts of types and memzones, each stored once. */

/* Copies at most LABEL_MAX_BYTES of the text at `from`, which may be no valid pointer at all; -1: unreadable. */
static int copy_text(const char *from, char *to) {
    uint64_t at = (uint64_t) from;
    int used = 0;
    while (used < LABEL_MAX_BYTES) {
        uint64_t chunk = 256 - (at & 255); /* never across a page */
        uint64_t local[2], remote[2];
        long got;
        int i, *error = __errno_location(), saved = *error;
        if (chunk > (uint64_t) (LABEL_MAX_BYTES - used)) chunk = (uint64_t) (LABEL_MAX_BYTES - used);
        local[0] = (uint64_t) (to + used);
        remote[0] = at;
        local[1] = remote[1] = chunk;
        got = syscall(SYS_PROCESS_VM_READV, (long) agent.pid, local, 1L, remote, 1L, 0L);
        *error = saved;
        if (got <= 0) return -1;
        for (i = 0; i < (int) got; i++)
            if (to[used + i] == 0) return used + i;
        used += (int) got;
        at += (uint64_t) got;
    }
    return used;
}

static int same_text(const uint8_t *a, const char *b, uint32_t length) {
    uint32_t i;
    for (i = 0; i < length; i++)
        if (a[i] != (uint8_t) b[i]) return 0;
    return 1;
}

/* The number of the label with this text. */
static uint32_t intern_label(const char *text, uint32_t length) {
    struct session_header *header = agent.header;
    uint64_t hash = length, at, bytes;
    uint32_t i, probes, id = 0;
    uint8_t *record;
    for (i = 0; i < length; i++) {
        hash = (hash ^ (uint8_t) text[i]) * SESSION_HASH_MULTIPLIER;
        hash ^= hash >> 29;
    }
    for (probes = 0; probes < 64; probes++) {
        id = agent.label_index[(hash + probes) & (LABEL_INDEX_ENTRIES - 1)];
        if (id == 0) break;
        record = agent.labels + (uint64_t) id * 8;
        if (*(uint16_t *) record == length && same_text(record + 2, text, length)) return id;
    }
    bytes = (2 + (uint64_t) length + 7) & ~7ULL;
    if (!reserve(&header->labels_used, bytes, agent.labels_bytes, &at)) {
        atomic_add(&header->labels_refused, 1);
        return 0;
    }
    record = agent.labels + at;
    *(uint16_t *) record = (uint16_t) length;
    memcpy(record + 2, text, length);
    /* If another thread takes the entry now, there is a copy more. */
    if (probes < 64) atomic_claim(&agent.label_index[(hash + probes) & (LABEL_INDEX_ENTRIES - 1)], (uint32_t) (at / 8));
    return (uint32_t) (at / 8);
}

static int is_read_only(uint64_t address) {
    uint64_t i, used = agent.read_only_used;
    for (i = 0; i < used; i++)
        if (address < agent.read_only[i].end && address >= agent.read_only[i].start) return 1;
    return 0;
}

/* Stores "PREFIX" + the text at `type` as a label. */
static uint32_t copy_label(const char *prefix, const char *type) {
    char text[2 * LABEL_MAX_BYTES];
    uint32_t used = 0;
    int length;
    while (prefix[used] != 0) text[used] = prefix[used], used++;
    length = copy_text(type, text + used);
    if (length < 0) return intern_label("<unreadable>", 12);
    used += (uint32_t) length;
    return intern_label(text, used > LABEL_MAX_BYTES ? LABEL_MAX_BYTES : used);
}

/* A label whose pointer was not seen before, or whose text may have changed: it is copied. */
static __attribute__((noinline)) uint32_t read_label(const char *type, struct label_cache_entry *entry, uint32_t epoch) {
    uint32_t label = copy_label("", type);
    if (label != 0 && is_read_only((uint64_t) type) && !atomic_exchange(&agent.label_lock, 1)) {
        entry->pointer = 0;
        entry->label_and_epoch = label | (uint64_t) epoch << 32;
        entry->pointer = (uint64_t) type;
        publish_u32(&agent.label_lock, 0);
    }
    return label;
}

/*
 * The number of the label that `type` points to: 0 for NULL. The text is copied at every call, except where the
 * pointer lies in a module's read-only memory: such text cannot change until the module is unloaded.
 */
INLINE uint32_t label_of(const char *type) {
    uint64_t pointer = (uint64_t) type, value;
    struct label_cache_entry *entry = &agent.label_cache[(pointer ^ pointer >> 12) & (LABEL_CACHE_ENTRIES - 1)];
    uint32_t epoch = agent.epoch;
    if (type == NULL) return 0;
    if (likely(entry->pointer == pointer)) {
        value = entry->label_and_epoch;
        if (likely(value >> 32 == epoch && entry->pointer == pointer)) return (uint32_t) value;
    }
    return read_label(type, entry, epoch);
}
