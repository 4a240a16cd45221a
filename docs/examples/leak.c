/*
 * A connection table that forgets memory on one path: session_reject frees the session but not its reassembly buffer.
 *
 *   ./leak --no-huge -m 64 --no-pci
 */
#include <stdio.h>
#include <stdlib.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define SESSIONS 64

struct session {
    unsigned int number;
    void *reassembly;
};

static struct session *session_open(unsigned int number)
{
    struct session *session = rte_zmalloc("session", sizeof(*session), 0);
    if (session == NULL)
        exit(EXIT_FAILURE);
    session->number = number;
    session->reassembly = rte_zmalloc("reassembly", 2048, RTE_CACHE_LINE_SIZE);
    return session;
}

static void session_close(struct session *session)
{
    rte_free(session->reassembly);
    rte_free(session);
}

static void session_reject(struct session *session)
{
    rte_free(session); /* and session->reassembly? */
}

static void serve(void)
{
    for (unsigned int number = 0; number < SESSIONS; number++) {
        struct session *session = session_open(number);
        if (number % 8 == 7)
            session_reject(session);
        else
            session_close(session);
    }
}

int main(int argc, char **argv)
{
    if (rte_eal_init(argc, argv) < 0)
        return EXIT_FAILURE;
    serve();
    printf("served %d sessions\n", SESSIONS);
    return rte_eal_cleanup();
}
