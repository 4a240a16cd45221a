/*
 * Two threads that both believe that a request is theirs: the worker frees it when it has handled it, and main once more
 * when it gives up on those that took long.
 *
 *   ./double_free --no-huge -m 64 --no-pci
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define REQUESTS 4

struct request {
    unsigned int number;
    int slow;
};

static struct request *requests[REQUESTS];

static struct request *request_new(unsigned int number)
{
    struct request *request = rte_zmalloc("request", sizeof(*request), 0);
    if (request == NULL)
        exit(EXIT_FAILURE);
    request->number = number;
    request->slow = number == 2;
    return request;
}

static void request_done(struct request *request)
{
    rte_free(request);
}

static void *worker(void *argument)
{
    for (int i = 0; i < REQUESTS; i++) {
        if (requests[i]->slow)
            usleep(20000);
        request_done(requests[i]);
    }
    return argument;
}

static void give_up(struct request *request)
{
    rte_free(request); /* the worker has done that, or will */
}

int main(int argc, char **argv)
{
    pthread_t thread;

    if (rte_eal_init(argc, argv) < 0)
        return EXIT_FAILURE;
    for (unsigned int number = 0; number < REQUESTS; number++)
        requests[number] = request_new(number);
    pthread_create(&thread, NULL, worker, NULL);
    pthread_join(thread, NULL);
    give_up(requests[2]);
    printf("handled %d requests\n", REQUESTS);
    return rte_eal_cleanup();
}
