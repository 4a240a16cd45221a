/*
 * A program with a mind of its own about SIGRTMIN; told by lines on standard input what to do:
 *   install handler|siginfo|signal|ignore|default|reset    sets the action (reset: SA_RESETHAND)
 *   query       prints "action NAME": what sigaction(SIGRTMIN, NULL, ...) says
 *   allocate    allocates and keeps a block of type "kept"; prints "allocated"
 *   count       prints "caught N": how often its own handler ran
 * It prints "ready" once EAL is up, and ends at the end of its input. Arguments are lines to carry out before that.
 */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>

#include "eal.h"

static atomic_int caught, with_info, wrong;

static void handler(int number) {
    if (number != SIGRTMIN) atomic_fetch_add(&wrong, 1);
    atomic_fetch_add(&caught, 1);
}

static void siginfo_handler(int number, siginfo_t *info, void *context) {
    if (number != SIGRTMIN || info->si_signo != SIGRTMIN || context == NULL) atomic_fetch_add(&wrong, 1);
    if (info->si_pid > 0) atomic_fetch_add(&with_info, 1);
    atomic_fetch_add(&caught, 1);
}

static const char *name_of(const struct sigaction *action) {
    if (action->sa_flags & SA_SIGINFO) return action->sa_sigaction == siginfo_handler ? "siginfo" : "foreign";
    if (action->sa_handler == SIG_DFL) return "default";
    if (action->sa_handler == SIG_IGN) return "ignore";
    return action->sa_handler == handler ? "handler" : "foreign";
}

static void install(const char *how) {
    struct sigaction action = {.sa_flags = SA_RESTART}, old;
    if (strcmp(how, "signal") == 0) {
        signal(SIGRTMIN, handler);
        printf("installed %s\n", how);
        return;
    }
    if (strcmp(how, "siginfo") == 0) {
        action.sa_sigaction = siginfo_handler;
        action.sa_flags |= SA_SIGINFO;
    } else if (strcmp(how, "ignore") == 0) action.sa_handler = SIG_IGN;
    else if (strcmp(how, "default") == 0) action.sa_handler = SIG_DFL;
    else action.sa_handler = handler;
    if (strcmp(how, "reset") == 0) action.sa_flags |= (int) SA_RESETHAND;
    if (sigaction(SIGRTMIN, &action, &old) == 0) printf("installed %s over %s\n", how, name_of(&old));
    else printf("failed %d\n", errno);
}

static void obey(const char *line) {
    struct sigaction action;
    char word[32];
    if (sscanf(line, "install %31s", word) == 1) install(word);
    else if (strncmp(line, "query", 5) == 0) {
        sigaction(SIGRTMIN, NULL, &action);
        printf("action %s flags %x\n", name_of(&action), (unsigned) action.sa_flags & ~0x04000000u); /* SA_RESTORER */
    } else if (strncmp(line, "allocate", 8) == 0) {
        rte_malloc("kept", 64, 0);
        puts("allocated");
    } else if (strncmp(line, "count", 5) == 0)
        printf("caught %d info %d wrong %d\n", caught, with_info, wrong);
    fflush(stdout);
}

int main(int argc, char **argv) {
    char line[128];
    for (int i = 1; i < argc; i++) obey(argv[i]);
    start_eal();
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (fgets(line, sizeof line, stdin) != NULL) obey(line);
        else if (errno == EINTR && !feof(stdin)) clearerr(stdin), errno = 0;
        else break;
    }
    return 0;
}
