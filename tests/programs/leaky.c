/*
 * What a leak check has to tell apart: `leaky WHAT [END]`.
 *   WHAT  lose     forgets two blocks, and a third that one of them points to
 *         keep     keeps three blocks in a list that a global holds
 *         grow     puts ever more blocks into that list, for a second
 *         churn    allocates and frees, for a second
 *   END   cleanup  calls rte_eal_cleanup and returns from main (else without)
 *         killed   by SIGKILL
 */
#include <signal.h>

#include "eal.h"

struct node {
    struct node *next;
    char filling[200];
};

static struct node *volatile kept;

NOINLINE void keep_one(void) {
    struct node *node = rte_zmalloc("kept", sizeof *node, 0);
    node->next = kept;
    kept = node;
}

NOINLINE void lose_some(void) {
    struct node *volatile node = rte_zmalloc("lost", sizeof *node, 0);
    node = rte_zmalloc("lost", sizeof *node, 0);
    node->next = rte_zmalloc("lost with it", 100, 0);
    node = NULL;
}

/* What the stack below holds from earlier calls would count. */
NOINLINE void scrub(void) {
    char waste[1 << 20];
    explicit_bzero(waste, sizeof waste);
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "", *end = argc > 2 ? argv[2] : "";
    start_eal();
    if (strcmp(what, "lose") == 0) lose_some();
    for (int i = 0; i < 3 && strcmp(what, "keep") == 0; i++) keep_one();
    for (int i = 0; i < 200 && strcmp(what, "grow") == 0; i++, usleep(5000)) keep_one();
    for (int i = 0; i < 200 && strcmp(what, "churn") == 0; i++, usleep(5000)) rte_free(rte_malloc("churned", 64, 0));
    scrub();
    if (strcmp(end, "killed") == 0) raise(SIGKILL);
    if (strcmp(end, "cleanup") == 0) rte_eal_cleanup();
    return 0;
}
