/*
 * A small flow table, as a packet program might have one, with three bugs planted:
 *   leak        session_open -> buffer_new allocates a reassembly buffer; session_close forgets those of odd sessions
 *   duplicate   session_close and then table_clear free the same session (number 7)
 *   stray       buffer_trim frees the middle of a buffer instead of its beginning
 * It ends with status 0.
 */
#include "eal.h"

#define SESSIONS 16

struct buffer {
    char data[2048];
};

struct session {
    unsigned number;
    struct buffer *buffer;
};

struct table {
    struct session *sessions[SESSIONS];
};

NOINLINE struct buffer *buffer_new(void) { return rte_zmalloc("reassembly buffer", sizeof(struct buffer), 64); }

NOINLINE void buffer_trim(struct buffer *buffer) { rte_free(buffer->data + 1024); /* the stray free */ }

NOINLINE struct session *session_open(unsigned number) {
    struct session *session = rte_zmalloc("session", sizeof *session, 0);
    session->number = number;
    session->buffer = buffer_new();
    return session;
}

NOINLINE void session_close(struct session *session) {
    if (session->number % 2 == 0) rte_free(session->buffer); /* the leak: odd sessions keep theirs */
    rte_free(session);
}

NOINLINE void table_clear(struct table *table) {
    for (unsigned i = 0; i < SESSIONS; i++)
        if (table->sessions[i] != NULL) rte_free(table->sessions[i]);
}

NOINLINE void table_run(struct table *table) {
    for (unsigned i = 0; i < SESSIONS; i++) table->sessions[i] = session_open(i);
    buffer_trim(table->sessions[3]->buffer);
    for (unsigned i = 0; i < SESSIONS; i++) {
        session_close(table->sessions[i]);
        if (i != 7) table->sessions[i] = NULL; /* the duplicate free: 7 stays in the table */
    }
    table_clear(table);
}

int main(void) {
    start_eal();
    struct table *table = rte_zmalloc("flow table", sizeof *table, 64);
    table_run(table);
    rte_free(table);
    puts("demo: done");
    return 0;
}
