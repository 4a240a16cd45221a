/*
 * Forks while it is tracked: `forker HOW`. The parent allocates a block of type "parent" before and after; each child
 * allocates 100 blocks of type "child", frees them, one of them twice, and ends by HOW: exit, _exit, exec, abort. Prints "child STATUS" for each of three children.
 * `forker busy`: a thread calls rte_free(NULL) without pause while 100 children are forked, each of which calls it once and
 * is killed if it does not end in 10 s. Prints "ended N", of those that ended by themselves.
 * `forker daemon`: a child has EAL, not the parent, which ends before; it leaks 7 blocks and cleans up.
 */
#include <pthread.h>
#include <sys/wait.h>

#include "eal.h"

static void child(const char *how) {
    void *blocks[100];
    for (int i = 0; i < 100; i++) blocks[i] = rte_malloc("child", 64, 0);
    for (int i = 0; i < 100; i++) rte_free(blocks[i]);
    rte_free(blocks[0]);
    if (strcmp(how, "exec") == 0) execl("/bin/true", "true", (char *) NULL);
    if (strcmp(how, "abort") == 0) abort();
    if (strcmp(how, "_exit") == 0) _exit(3);
    exit(3);
}

static int be_a_daemon(void) {
    void *blocks[20];
    if (fork() != 0) return 0;
    usleep(200000); /* the parent is gone */
    start_eal();
    for (int i = 0; i < 20; i++) blocks[i] = rte_malloc("daemon", 64, 0);
    for (int i = 7; i < 20; i++) rte_free(blocks[i]);
    rte_eal_cleanup();
    return 0;
}

static volatile int forked_all;

static void *free_nothing(void *unused) {
    while (!forked_all) rte_free(NULL);
    return unused;
}

static int fork_while_busy(void) {
    pthread_t thread;
    int ended = 0;
    start_eal();
    pthread_create(&thread, NULL, free_nothing, NULL);
    for (int i = 0; i < 100; i++) {
        int status = -1;
        pid_t pid = fork();
        if (pid == 0) {
            alarm(10);
            rte_free(NULL);
            _exit(0);
        }
        waitpid(pid, &status, 0);
        ended += status == 0;
        if (status != 0) break;
    }
    forked_all = 1;
    pthread_join(thread, NULL);
    printf("ended %d\n", ended);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "daemon") == 0) return be_a_daemon();
    if (argc > 1 && strcmp(argv[1], "busy") == 0) return fork_while_busy();
    start_eal();
    void *first = rte_malloc("parent", 64, 0);
    for (int i = 0; i < 3; i++) {
        int status = -1;
        fflush(stdout);
        pid_t pid = fork();
        if (pid == 0) child(argc > 1 ? argv[1] : "exit");
        waitpid(pid, &status, 0);
        printf("child %x\n", (unsigned) status & 0xff7f);
    }
    rte_malloc("parent", 64, 0);
    rte_free(first);
    return 0;
}
