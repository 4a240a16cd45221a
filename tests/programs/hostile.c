/*
 * A tracked program that turns on its tracker: `hostile MODE STRANGER [fork]` finds the session memory in its own address
 * space and damages it, by MODE. Prints "ready", waits for a line, and "done" at its end. Before, it does what must be
 * reported all the same: ten blocks of type "good" that stay, and one that is freed twice. With `fork` a child of it does
 * the damage. `hostile unstoppable` cannot be come into until it has a line to read. STRANGER is the pid of a process that has nothing to do with it.
 */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "../../frida_rtetrack/native/session.h"
#include "eal.h"

static struct session_header *header;
static uint64_t session_bytes;
static uint32_t stranger;

static int find_session(void) {
    char line[512], *path;
    unsigned long start, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (header == NULL && fgets(line, sizeof line, maps) != NULL) {
        path = strstr(line, "memfd:rtetrack-session");
        if (path == NULL || sscanf(line, "%lx-%lx", &start, &end) != 2) continue;
        header = (struct session_header *) start;
        session_bytes = end - start;
    }
    fclose(maps);
    return header != NULL;
}

static NOINLINE void free_twice(const char *type) {
    void *block = rte_malloc(type, 64, 0);
    rte_free(block);
    rte_free(block);
}

static NOINLINE void do_good(void) {
    for (int i = 0; i < 10; i++)
        if (rte_malloc("good", 1000, 0) == NULL) exit(71);
    free_twice("freed twice");
}

static void *at(uint64_t offset) { return (uint8_t *) header + offset; }

/* An event as an agent writes it, of whatever content. */
static void append(uint8_t kind, uint8_t api, uint64_t address, uint64_t size_and_thread, uint32_t stack, uint32_t label) {
    uint64_t index = __atomic_fetch_add(&header->head, 1, __ATOMIC_SEQ_CST);
    struct event *event = (struct event *) at(header->ring_offset) + index % header->ring_capacity;
    event->kind = kind;
    event->api = api;
    event->socket = -1;
    event->address = address;
    event->size_and_thread = size_and_thread;
    event->stack = stack;
    event->label = label;
    __atomic_store_n(&event->commit, (uint16_t) (index / header->ring_capacity + 1), __ATOMIC_RELEASE);
}

static void garbage_ids(void) {
    for (uint32_t i = 0; i < 2000; i++) {
        append(EVENT_ALLOCATED, API_MALLOC, 0x10000000 + 64 * i, 64 | 1ULL << EVENT_SIZE_BITS, 0xfffffff0u - i, 0x7fffffffu - i);
        append(EVENT_FREED, API_FREE, 0x20000000 + 64 * i, (uint64_t) (70000 + i) << EVENT_SIZE_BITS, 0xffffffffu, 0);
        append((uint8_t) (8 + i), (uint8_t) i, 0x30000000, ~0ULL, i, i);
        append(EVENT_FREED, API_FREE, 0x20000000 + 64 * i, (uint64_t) (5000 + i) << EVENT_SIZE_BITS, 0xffffffffu - i, 0);
    }
}

/* Nobody has asked yet what the stack and the type of these are. */
static NOINLINE void leave_something_new(void) {
    if (rte_malloc("new", 1 << 20, 0) == NULL) exit(71);
}

static void long_stacks(void) {
    leave_something_new();
    uint64_t *words = at(header->stacks_offset), used = header->stacks_used, word = 1;
    while (word < used && word < header->stacks_words) {
        uint64_t frames = words[word] & 0xffff;
        words[word] |= 0xffff;
        word += STACK_RECORD_WORDS + frames;
    }
}

static void long_labels(void) {
    leave_something_new();
    uint8_t *labels = at(header->labels_offset);
    for (uint64_t offset = 8; offset + 2 < header->labels_used;) {
        uint16_t length = *(uint16_t *) (labels + offset);
        *(uint16_t *) (labels + offset) = 65535;
        offset += (2 + (uint64_t) length + 7) & ~7ULL;
    }
}

static void scribble(uint64_t from, uint64_t bytes) {
    uint8_t *place = at(from);
    for (uint64_t i = 0; i < bytes; i++) place[i] = (uint8_t) rand();
}

static void wrong_threads(void) {
    struct thread_slot *slots = at(header->threads_offset);
    for (int i = 1; i < 200; i++) {
        slots[i].process = 60000;
        slots[i].tid = stranger;
        slots[i].appending = 1;
        memcpy(slots[i].name, "\033]0;pwned\007\033[2J", 15);
    }
    header->threads_used = ~0ULL;
}

static void waiting_stranger(void) {
    for (int i = 0; i < SESSION_EXECS; i++) {
        header->execs[i].pid = stranger;
        header->execs[i].state = EXEC_WAITING;
    }
}

static void child_stranger(void) {
    for (int i = 3; i < 20; i++) {
        header->processes[i].pid = stranger;
        header->processes[i].reserved = 1;
        header->processes[i].attached = 1;
    }
    header->processes_used = 20;
}

/* Every way that there is to the memory's file. */
static void truncate_it(void) {
    char path[600];
    struct dirent *entry;
    DIR *open_files = opendir("/proc/self/fd");
    int tried = 0, fd;
    snprintf(path, sizeof path, "/proc/self/map_files/%lx-%lx", (unsigned long) header, (unsigned long) header + session_bytes);
    if ((fd = open(path, O_RDWR)) >= 0) {
        tried++;
        if (ftruncate(fd, 4096) == 0) printf("truncated\n");
    }
    while ((entry = readdir(open_files)) != NULL) {
        char link[256] = "";
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        if (readlink(path, link, sizeof link - 1) < 0 || strstr(link, "rtetrack-session") == NULL) continue;
        tried++;
        if (ftruncate(atoi(entry->d_name), 4096) == 0) printf("truncated\n");
    }
    closedir(open_files);
    printf("tried %d\n", tried);
}

static void *free_twice_by_a_name(void *unused) {
    prctl(PR_SET_NAME, "\033[31mred\007\033[2J");
    free_twice("\033]0;pwned\007\033[2Jtype\nline");
    return unused;
}

static void escapes(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, free_twice_by_a_name, NULL);
    pthread_join(thread, NULL);
}

static void everything(void) {
    for (int i = 0; i < 300; i++) {
        scribble(256 + (uint64_t) rand() % 3800, 40);
        scribble(header->stacks_offset + (uint64_t) rand() % 4000, 40);
        scribble(header->labels_offset + (uint64_t) rand() % 400, 20);
        scribble(header->threads_offset + (uint64_t) rand() % 400, 60);
        scribble(header->modules_offset + (uint64_t) rand() % 4000, 60);
        scribble(header->ring_offset + (uint64_t) rand() % 100000, 200);
        usleep(1000);
    }
}

static void damage(const char *mode) {
    if (strcmp(mode, "head") == 0) header->head = 0x4141414141414141ULL;
    else if (strcmp(mode, "tail") == 0) header->tail = 0x4141414141414141ULL;
    else if (strcmp(mode, "ids") == 0) garbage_ids();
    else if (strcmp(mode, "stacks") == 0) long_stacks();
    else if (strcmp(mode, "labels") == 0) long_labels();
    else if (strcmp(mode, "modules") == 0) scribble(header->modules_offset, 1 << 16);
    else if (strcmp(mode, "threads") == 0) wrong_threads();
    else if (strcmp(mode, "execs") == 0) waiting_stranger();
    else if (strcmp(mode, "processes") == 0) child_stranger();
    else if (strcmp(mode, "truncate") == 0) truncate_it();
    else if (strcmp(mode, "escapes") == 0) escapes();
    else if (strcmp(mode, "everything") == 0) everything();
    else if (strcmp(mode, "nothing") != 0) exit(72);
}

static void turn_on_it(const char *mode) {
    damage(mode);
    usleep(200000);
    free_twice("after");
    usleep(300000);
}

/* A thread in vfork stops for nobody until its child executes something or ends. */
static int be_unstoppable(void) {
    pid_t child;
    printf("ready\n");
    fflush(stdout);
    child = vfork();
    if (child == 0) {
        char c;
        _exit(read(0, &c, 1) < 0);
    }
    printf("done\n");
    return 0;
}

int main(int argc, char **argv) {
    char line[16];
    pid_t child;
    if (argc > 1 && strcmp(argv[1], "unstoppable") == 0) return be_unstoppable();
    if (argc < 3) return 64;
    stranger = (uint32_t) atoi(argv[2]);
    start_eal();
    printf("ready\n");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL || !find_session()) return 73;
    do_good();
    usleep(500000); /* it has been read */
    if (argc < 4) turn_on_it(argv[1]);
    else if ((child = fork()) == 0) {
        turn_on_it(argv[1]);
        _exit(0);
    } else waitpid(child, NULL, 0);
    printf("done\n");
    return 0;
}
