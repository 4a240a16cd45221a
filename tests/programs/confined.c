/*
 * Puts itself under a seccomp filter, then waits as waiter does: `confined SYSTEM_CALL HOW`. That call (memfd_create,
 * openat, socket, or umount2, which nobody needs) kills it from then on, or with HOW "errno" fails. Prints "ready".
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "eal.h"

static int confine(long number, unsigned action) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned) number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

int main(int argc, char **argv) {
    char line[256];
    long number = SYS_umount2;
    start_eal();
    if (argc > 1 && strcmp(argv[1], "memfd_create") == 0) number = SYS_memfd_create;
    if (argc > 1 && strcmp(argv[1], "openat") == 0) number = SYS_openat;
    if (argc > 1 && strcmp(argv[1], "socket") == 0) number = SYS_socket;
    if (rte_malloc("kept", 4242, 0) == NULL) return 71;
    if (confine(number, argc > 2 ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS) != 0) return 72;
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strncmp(line, "say ", 4) == 0) printf("said %s", line + 4);
        fflush(stdout);
    }
    return 0;
}
