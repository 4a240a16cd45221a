/*
 * The ring and the tables of session.c, built with the system's compiler: `session_check layout` prints every size,
 * offset and constant; `session_check append FD THREADS EVENTS` appends to the session memory behind FD from THREADS
 * threads. Thread t's event i is ALLOCATED at (t << 32 | i) << 6, with stack (t, i % 7), label "label-(i % 5)".
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../../frida_rtetrack/native/session.c"

struct agent agent;
struct follow fork_follow;

static uint64_t events;

static void *append_all(void *argument) {
    uint64_t t = (uint64_t) argument, i;
    for (i = 0; i < events; i++) {
        uint64_t frames[3] = {0x1000 + t, 0x2000 + i % 7, 0x3000};
        char label[32];
        struct thread_slot *thread = thread_self();
        snprintf(label, sizeof label, "label-%d", (int) (i % 5));
        if (thread == NULL || !append(thread, WHAT(EVENT_ALLOCATED, API_MALLOC, -1), (t << 32 | i) << 6, i,
                                      intern_stack(hash_stack(frames, 3), frames, 3, STACK_COMPLETE), label_of(label)))
            abort();
    }
    return NULL;
}

#define SHOW(name) printf("%s %llu\n", #name, (unsigned long long) (name))
#define SHOW_FIELD(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field))

int main(int argc, char **argv) {
    if (argc == 2) {
        SHOW(SESSION_MAGIC); SHOW(SESSION_VERSION); SHOW(SESSION_HEADER_BYTES); SHOW(SESSION_MAX_PROCESSES); SHOW(SESSION_MAX_THREADS);
        SHOW(EVENT_SIZE_BITS); SHOW(EVENT_TIME_SHIFT); SHOW(CLOCK_TSC); SHOW(MARK_CLOCK); SHOW(LABEL_MAX_BYTES); SHOW(STACK_RECORD_WORDS); SHOW(MODULE_LOADED); SHOW(FINAL_BASELINE);
        SHOW(sizeof(struct event)); SHOW(sizeof(struct thread_slot)); SHOW(sizeof(struct module_record));
        SHOW(sizeof(struct session_header)); SHOW(sizeof(struct process_entry));
        SHOW_FIELD(event, kind); SHOW_FIELD(event, api); SHOW_FIELD(event, socket); SHOW_FIELD(event, time_low); SHOW_FIELD(event, time_high);
        SHOW_FIELD(event, address); SHOW_FIELD(event, size_and_thread); SHOW_FIELD(event, stack); SHOW_FIELD(event, label);
        SHOW_FIELD(thread_slot, process); SHOW_FIELD(thread_slot, name); SHOW_FIELD(thread_slot, appending);
        SHOW_FIELD(thread_slot, stack_low); SHOW_FIELD(thread_slot, stack_high);
        SHOW_FIELD(session_header, ring_capacity); SHOW_FIELD(session_header, modules_bytes);
        SHOW_FIELD(session_header, clock_source); SHOW_FIELD(session_header, clock_ticks); SHOW_FIELD(session_header, clock_rate);
        SHOW_FIELD(session_header, heartbeat_ns); SHOW_FIELD(session_header, tail); SHOW_FIELD(session_header, head);
        SHOW_FIELD(session_header, lost); SHOW_FIELD(session_header, waits); SHOW_FIELD(session_header, walks_ended);
        SHOW_FIELD(session_header, heap_owner); SHOW_FIELD(session_header, execs); SHOW_FIELD(session_header, processes);
        SHOW(SESSION_EXECS); SHOW(sizeof(struct exec_entry)); SHOW(EXEC_WAITING); SHOW(EXEC_GO);
        SHOW_FIELD(module_record, base); SHOW_FIELD(module_record, unloaded_epoch);
        SHOW(EVENT_ALLOCATED); SHOW(EVENT_FREED); SHOW(EVENT_RESIZE_STARTED); SHOW(EVENT_RESIZE_ENDED);
        SHOW(EVENT_ALLOCATION_FAILED); SHOW(EVENT_BASELINE_BLOCK); SHOW(EVENT_MARK);
        SHOW(API_FREE); SHOW(API_MEMZONE_RESERVE); SHOW(API_MEMZONE_FREE);
        SHOW(MARK_SIGNAL); SHOW(MARK_HEAP_SNAPSHOT); SHOW(MARK_EAL_INIT_ENDED); SHOW(STACK_UNKNOWN_END);
        return 0;
    }
    int fd = atoi(argv[2]), threads = atoi(argv[3]);
    struct stat_like { uint64_t total; } size;
    struct session_header *header = mmap(NULL, SESSION_HEADER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    pthread_t workers[64];
    events = (uint64_t) atoll(argv[4]);
    size.total = header->total_bytes;
    header = mmap(NULL, size.total, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (agent_start(header, size.total, mmap(NULL, agent_tables_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 64, 1, 1) != 0) return 1;
    agent_record(1);
    agent_switch(1);
    agent_module_loaded(0x400000, 32 /* too small to be read */, "/some/module");
    for (int i = 0; i < threads; i++) pthread_create(&workers[i], NULL, append_all, (void *) (uint64_t) i);
    for (int i = 0; i < threads; i++) pthread_join(workers[i], NULL);
    return agent_threads_inside();
}
