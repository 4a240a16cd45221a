/* The clock that events tell their times by; session.h says how. */

#define CLOCK_NOTED_EVERY (1LL << 15) /* in units of 2^EVENT_TIME_SHIFT ticks: 0.5 to 2.2 s */
#define RATE_NS 2000000               /* the rate is measured over so long: right to 0.01 % */

struct clock_reading {
    uint64_t ticks, ns;
};

INLINE uint64_t ticks(void) { return likely(agent.clock_is_counter) ? tick_counter() : monotonic_ns(); }

/* Both clocks at one moment: of some tries the one that was interrupted least. */
static struct clock_reading read_clock(void) {
    struct clock_reading best = {0, 0};
    uint64_t shortest = ~0ULL;
    int i;
    for (i = 0; i < 3; i++) {
        uint64_t before = ticks(), ns = monotonic_ns(), took = ticks() - before;
        if (took >= shortest) continue;
        shortest = took;
        best.ticks = before + took / 2;
        best.ns = ns;
    }
    return best;
}

/* Sets the clock up. The session's first process tells what ticks are: another one tells it with its first event. */
static void begin_clock(int first) {
    struct clock_reading start, end;
    int64_t pause[2];
    agent.clock_is_counter = HAS_TICK_COUNTER && agent.header->clock_source == CLOCK_TSC;
    agent.clock_noted = 0;
    if (!first) return;
    pause[0] = 0;
    pause[1] = RATE_NS;
    start = read_clock();
    syscall(SYS_NANOSLEEP, pause, 0L);
    end = read_clock();
    agent.clock_noted = end.ticks >> EVENT_TIME_SHIFT;
    agent.header->clock_ticks = end.ticks;
    agent.header->clock_ns = end.ns;
    if (end.ticks != start.ticks) /* no overflow: a pause of up to a second has less than 2^30 ns */
        *(volatile uint64_t *) &agent.header->clock_rate = ((end.ns - start.ns) << 32) / (end.ticks - start.ticks);
}
