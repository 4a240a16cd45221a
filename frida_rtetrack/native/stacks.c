/* The table of stacks: each distinct one is stored once, and named by its place. */

static uint64_t hash_stack(const uint64_t *frames, uint32_t count) {
    uint64_t hash = count;
    uint32_t i;
    for (i = 0; i < count; i++) {
        hash = (hash ^ frames[i]) * SESSION_HASH_MULTIPLIER;
        hash ^= hash >> 32;
    }
    return hash;
}

static uint32_t store_stack(uint64_t hash, const uint64_t *frames, uint32_t count, uint32_t end) {
    struct session_header *header = agent.header;
    uint64_t words = STACK_RECORD_WORDS + count, at, *record;
    if (!reserve(&header->stacks_used, words, agent.stacks_words, &at)) {
        atomic_add(&header->stacks_refused, 1);
        return 0;
    }
    record = &agent.stacks[at];
    record[0] = count | (uint64_t) end << 16 | (uint64_t) agent.module_process << 24 | (uint64_t) agent.epoch << 32;
    record[1] = hash;
    memcpy(record + STACK_RECORD_WORDS, frames, count * sizeof *frames);
    atomic_add(&header->walks_ended[end & 7], 1);
    return (uint32_t) at;
}

/*
 * The number of this stack. `hash` covers the frames; the module epoch is mixed in here, so that the same addresses
 * after another library was loaded in their place are another stack. Stacks with equal 64-bit hashes are taken to be
 * equal (one chance in 10^7 among a million stacks).
 *
 * No lock, so that nobody waits for, or works around, a thread that was held up: an entry is taken by writing its id.
 * Until its hash follows, the record that the id names tells whose it is. Threads that store the same new stack at the
 * same time store a copy each, and all but one of the copies are used once.
 */
static uint32_t intern_stack(uint64_t hash, const uint64_t *frames, uint32_t count, uint32_t end) {
    struct stack_index_entry *entry;
    uint64_t at, probes;
    uint32_t stored = 0, taken;
    hash = (hash ^ (agent.epoch * 8 + end)) * SESSION_HASH_MULTIPLIER;
    hash ^= hash >> 32;
    if (hash == 0) hash = 1;
    for (at = hash, probes = 0; probes < 64; at++, probes++) {
        entry = &agent.stack_index[at & (STACK_INDEX_ENTRIES - 1)];
        if (entry->hash == hash) return entry->id;
        if (entry->hash != 0) continue;
        taken = entry->id;
        if (taken == 0) {
            if (stored == 0 && (stored = store_stack(hash, frames, count, end)) == 0) return 0;
            taken = atomic_claim(&entry->id, stored);
            if (taken == 0) {
                entry->hash = hash;
                return stored;
            }
        }
        if (agent.stacks[taken + 1] == hash) return taken;
    }
    return stored != 0 ? stored : store_stack(hash, frames, count, end);
}
