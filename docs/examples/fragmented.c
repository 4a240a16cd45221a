/*
 * A heap that is half free and yet has no room: short-lived messages lie between long-lived notes of a few bytes, and when
 * the messages are gone, no hole between two notes is large enough for a table.
 *
 *   ./fragmented --no-huge -m 64 --no-pci
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_malloc.h>

#define MESSAGE_BYTES (60 * 1024)
#define TABLE_BYTES (1024 * 1024)
#define MOST 1080 /* as many as a heap of 64 MiB has room for */

static void *messages[MOST], *notes[MOST];

static int note_take(int number)
{
    messages[number] = rte_malloc("message", MESSAGE_BYTES, 0);
    if (messages[number] == NULL)
        return 0;
    notes[number] = rte_zmalloc("note", 40, 0);
    return notes[number] != NULL;
}

static int fill(void)
{
    int number = 0;
    while (number < MOST && note_take(number))
        number++;
    return number;
}

int main(int argc, char **argv)
{
    void *table;
    int number;

    if (rte_eal_init(argc, argv) < 0)
        return EXIT_FAILURE;
    number = fill();
    for (int i = 0; i < MOST; i++)
        rte_free(messages[i]);
    sleep(2); /* a program has other things to do in between */
    table = rte_zmalloc("table", TABLE_BYTES, 0);
    printf("%d notes are kept; a table of 1 MiB: %s\n", number, table == NULL ? "no room" : "made");
    fflush(stdout);
    sleep(1);
    for (int i = 0; i < MOST; i++)
        rte_free(notes[i]);
    rte_free(table);
    return rte_eal_cleanup();
}
