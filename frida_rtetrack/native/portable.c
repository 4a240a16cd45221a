/* The portable engine's way into the session: called by agent.js from its hooks, on the program's thread. */

/* Appends one event of the program's call; 0: dropped. `frames` are return addresses, innermost first. */
int portable_append(uint32_t kind, uint32_t api, int32_t socket, uint64_t address, uint64_t size, const char *prefix,
                    const char *type, const uint64_t *frames, uint32_t count, uint32_t end) {
    struct thread_slot *thread;
    uint32_t stack = 0, label = 0;
    if (OFF() || !agent.recording) return 0;
    thread = thread_self();
    if (thread == NULL) {
        atomic_add(&agent.header->lost, 1);
        return 0;
    }
    if (count != 0) stack = intern_stack(hash_stack(frames, count), frames, count, end);
    if (type != NULL) label = prefix != NULL ? copy_label(prefix, type) : label_of(type);
    return append(thread, WHAT(kind, api, socket), address, size, stack, label);
}
