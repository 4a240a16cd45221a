/* Time, and memory that may be gone: what everything else in this folder asks of the kernel. */
#define SESSION_HASH_MULTIPLIER 0x9e3779b97f4a7c15ULL

static uint64_t monotonic_ns(void) {
    int64_t time[2];
    if (syscall(SYS_CLOCK_GETTIME, 1L, time) != 0) return 0;
    return (uint64_t) time[0] * 1000000000ULL + (uint64_t) time[1];
}

/*
 * Takes `amount` of a table that has room for `limit`, from where `used` says that it is free; 0: it is full. Whatever
 * another process wrote to `used`, *at is a place in the table.
 */
static int reserve(volatile uint64_t *used, uint64_t amount, uint64_t limit, uint64_t *at) {
    if (amount > limit || *used > limit - amount) return 0;
    *at = atomic_add(used, amount);
    return *at <= limit - amount;
}

/*
 * Copies memory that may be gone, such as a library that another thread unloads; 0: it is. Where the kernel does not let
 * a process ask, it is read as it is.
 */
static int peek(uint64_t from, void *to, uint64_t bytes) {
    uint64_t local[2], remote[2];
    int *error = __errno_location(), saved = *error, refused;
    long got;
    local[0] = (uint64_t) to;
    remote[0] = from;
    local[1] = remote[1] = bytes;
    got = syscall(SYS_PROCESS_VM_READV, (long) agent.pid, local, 1L, remote, 1L, 0L);
    refused = got < 0 && (*error == 1 /* EPERM */ || *error == 38 /* ENOSYS */);
    *error = saved;
    if (refused) memcpy(to, (const void *) from, bytes);
    return refused || got == (long) bytes;
}
