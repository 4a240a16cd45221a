/*
 * The tracking map's kernel on events with anything in them, built with sanitizers: every array is as large as the
 * kernel may use it and no larger. After each batch the table must be whole: every row found by its address, and the live
 * bytes and blocks those that the kernel says.
 *
 *     map_fuzz ROUNDS
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "map_kernel.c"

#define BATCH 4096

static uint64_t state = 0x243f6a8885a308d3ULL;

static uint64_t dice(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return z ^ z >> 31;
}

static void *sized(void *old, uint64_t old_bytes, uint64_t bytes) {
    char *grown = malloc(bytes);
    if (grown == NULL) exit(2);
    memset(grown, 0, bytes);
    if (old != NULL) memcpy(grown, old, old_bytes);
    free(old);
    return grown;
}

static void make_room(struct table *table) {
    if (table->used == table->capacity) {
        uint64_t had = table->capacity, has = had == 0 ? 1 : had + 1 + dice() % had;
        table->rows = sized(table->rows, had * sizeof *table->rows, has * sizeof *table->rows);
        table->frees = sized(table->frees, had * sizeof *table->frees, has * sizeof *table->frees);
        table->resizes = sized(table->resizes, had * sizeof *table->resizes, has * sizeof *table->resizes);
        table->capacity = has;
    }
    if (2 * (table->used + 1) > table->mask + 1 || table->index == NULL) {
        table->shift = table->index == NULL ? 61 : table->shift - 1;
        table->mask = (1ULL << (64 - table->shift)) - 1;
        free(table->index);
        table->index = sized(NULL, 0, (table->mask + 1) * sizeof *table->index);
        map_index(table);
    }
}

static void any_event(struct event *event, uint64_t addresses) {
    uint64_t words[4] = {dice(), dice(), dice(), dice()};
    memcpy(event, words, sizeof *event);
    if (dice() % 8) event->kind = (uint8_t) (1 + dice() % 7);
    if (dice() % 8) event->address = dice() % 16 ? 0x140000000ULL + 64 * (dice() % addresses) : 0;
    if (dice() % 8) event->size_and_thread = dice() % 5000 | (dice() % 4 ? dice() % 8 : dice() % THREADS) << EVENT_SIZE_BITS;
    if (dice() % 8) event->api = API_FREE;
}

static void check(int holds, const char *what) {
    if (holds) return;
    printf("%s\n", what);
    exit(1);
}

static void check_table(const struct table *table, int64_t bytes, int64_t blocks) {
    uint64_t row, live_bytes = 0, entered = 0, slot;
    int64_t live_blocks = 0, found;
    for (slot = 0; slot <= table->mask; slot++) entered += table->index[slot] != 0;
    check(entered == table->used && table->used <= table->capacity, "index and rows differ");
    for (row = 0; row < table->used; row++) {
        map_find(table, &table->rows[row].address, &found, 1);
        check(found == (int64_t) row, "a row is not found");
        if (table->rows[row].live) live_blocks++, live_bytes += table->rows[row].size_bytes;
    }
    check((uint64_t) bytes == live_bytes && blocks == live_blocks, "the sums are not those of the live rows");
}

/* As compiledbatches.py does: what is out of the ordinary ends the kernel's knowledge of open resizes. */
static void hand_over(struct run *run) {
    while (run->open > 0) run->resize_of[run->resizes[--run->open].thread] = WITH_THE_RULES;
    if (dice() % 4 == 0) memset(run->resize_of, 0, THREADS * sizeof *run->resize_of);
}

static void fuzz(uint64_t addresses) {
    struct table table;
    struct run run;
    struct event *events = malloc(BATCH * sizeof *events);
    int64_t *times = calloc(BATCH, sizeof *times);
    uint64_t batch, count, at, i;
    int64_t bytes = 0, blocks = 0;
    memset(&table, 0, sizeof table);
    memset(&run, 0, sizeof run);
    run.resizes = malloc(OPEN_RESIZES * sizeof *run.resizes);
    run.resize_of = calloc(THREADS, sizeof *run.resize_of);
    if (events == NULL || times == NULL || run.resizes == NULL || run.resize_of == NULL) exit(2);
    make_room(&table);
    for (batch = 0; batch < 40; batch++) {
        count = 1 + dice() % BATCH;
        run.complete = dice() % 2;
        for (i = 0; i < count; i++) any_event(&events[BATCH - count + i], addresses);
        for (at = BATCH - count; at < BATCH;) { /* up to the end of the array: a read behind it is noticed */
            run.bytes = run.blocks = run.top_bytes = run.top_blocks = 0;
            run.times_ns = times + at;
            i = map_apply(&table, &run, events + at, BATCH - at);
            check(i <= BATCH - at, "more taken than there were");
            check(run.top_bytes >= 0 && run.top_bytes >= run.bytes, "the most is less than what is there");
            at += i, run.sequence += i, bytes += run.bytes, blocks += run.blocks;
            if (run.stop == NEEDS_ROOM) make_room(&table);
            else if (run.stop == FOR_THE_RULES) hand_over(&run), at++, run.sequence++;
            else check(at == BATCH, "stopped without a reason");
        }
        check_table(&table, bytes, blocks);
    }
    free(table.rows), free(table.frees), free(table.resizes), free(table.index);
    free(run.resizes), free(run.resize_of), free(events), free(times);
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int round = 0; round < rounds; round++) fuzz(1 + dice() % (round % 2 ? 50 : 20000));
    printf("ok\n");
    return 0;
}
