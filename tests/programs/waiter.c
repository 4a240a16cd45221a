/*
 * Allocates one block of type "kept" in a named chain and waits: `waiter [sigint|lock]`. With sigint it ends with status
 * 5 at the first SIGINT; with ignore-sigint it counts them ("interrupted") and goes on; with lock it has locked all its
 * memory, present and future. Prints "ready". Lines on standard input: "leak SIZE" allocates, "say TEXT" prints, "bad"
 * frees a block twice, "exec" replaces it with sleep, "ask TEXT" prints TEXT and ends no line, "load PATH" loads
 * a library in another thread ("loading", "loaded"); it ends at the end of its input.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "eal.h"

static void end_on_sigint(int number) {
    (void) number;
    _exit(5);
}

static void note_sigint(int number) {
    (void) number;
    if (write(1, "interrupted\n", 12) < 0) _exit(6);
}

NOINLINE void *keep(size_t size) { return rte_malloc("kept", size, 0); }
NOINLINE void *wait_inner(void) { return keep(4242); }

NOINLINE void free_twice(void) {
    void *block = rte_malloc("freed twice", 77, 0);
    rte_free(block);
    rte_free(block);
}

static void *load(void *path) {
    puts(dlopen(path, RTLD_NOW) != NULL ? "loaded" : "not loaded");
    fflush(stdout);
    return NULL;
}

static void load_meanwhile(char *path) {
    pthread_t thread;
    path[strcspn(path, "\n")] = 0;
    puts("loading");
    if (pthread_create(&thread, NULL, load, strdup(path)) == 0) pthread_detach(thread);
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "";
    char line[256];
    size_t size;
    if (strcmp(how, "sigint") == 0) signal(SIGINT, end_on_sigint);
    if (strcmp(how, "ignore-sigint") == 0) signal(SIGINT, note_sigint);
    if (strcmp(how, "lock") == 0 && mlockall(MCL_CURRENT | MCL_FUTURE) != 0) return 71;
    start_eal();
    printf("address %p\n", wait_inner());
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (fgets(line, sizeof line, stdin) == NULL) {
            if (errno == EINTR && !feof(stdin)) {
                clearerr(stdin);
                errno = 0;
                continue;
            }
            break;
        }
        if (sscanf(line, "leak %zu", &size) == 1) printf("leaked %p\n", keep(size));
        else if (strncmp(line, "say ", 4) == 0) printf("said %s", line + 4);
        else if (strncmp(line, "load ", 5) == 0) load_meanwhile(line + 5);
        else if (strncmp(line, "bad", 3) == 0) {
            free_twice();
            puts("freed twice");
        }
        else if (strncmp(line, "ask ", 4) == 0) printf("%.*s", (int) strcspn(line + 4, "\n"), line + 4);
        else if (strncmp(line, "exec", 4) == 0) execl("/bin/sleep", "sleep", "1", (char *) NULL);
        fflush(stdout);
    }
    return 0;
}
