/*
 * A process that shares this one's table of open files, and nothing else: where this one is killed, Frida's connections stay
 * open for a moment longer, all others are closed at once. See linger.py, which puts linger.bin (the .text of this) into
 * memory of its own and calls it:
 *
 *     long linger(int pidfd_of_this_process, long bytes_of_that_memory, long rseq_offset)     returns the pid, or a negated errno
 *
 * rseq_offset: the C library's __rseq_offset, 0 where it has registered nothing.
 *
 *     gcc -c linger.S && objcopy -O binary -j .text linger.o linger.bin
 *
 * x86-64. The child never returns: what the C library and Python hold at the moment of a fork is of no consequence to it.
 */
        .intel_syntax noprefix
        .set SYS_CLOSE, 3
        .set SYS_POLL, 7
        .set SYS_MUNMAP, 11
        .set SYS_RT_SIGPROCMASK, 14
        .set SYS_GETSOCKNAME, 51
        .set SYS_GETSOCKOPT, 55
        .set SYS_CLONE, 56
        .set SYS_SETSID, 112
        .set SYS_PRCTL, 157
        .set SYS_EXIT_GROUP, 231
        .set SYS_PPOLL, 271
        .set SYS_RSEQ, 334
        .set SYS_CLOSE_RANGE, 436
        .set CLONE_FILES, 0x400         /* no signal at its end: whoever waits for children of this process is not told of it */
        .set PR_SET_NAME, 15
        .set RSEQ_BYTES, 32             /* as the C library registers it */
        .set RSEQ_UNREGISTER, 1
        .set RSEQ_SIGNATURE, 0x53053053
        .set AF_UNIX, 1
        .set SOL_SOCKET, 1
        .set SO_ACCEPTCONN, 30
        .set POLLIN, 1
        .set USER_END, 0x7ffffffff000   /* task_size, five-level paging aside: nothing is mapped beyond without being asked for */
        .set FILES, 16384               /* those beyond are closed unseen */
        .set KEPT, 64                   /* those beyond stay open until the end */
        .text
linger:
        mov     r9, rdi
        push    rsi
        push    rdx
        mov     edi, CLONE_FILES
        xor     esi, esi
        xor     edx, edx
        xor     r10d, r10d
        xor     r8d, r8d
        mov     eax, SYS_CLONE
        syscall
        pop     rdi
        pop     r10
        test    rax, rax
        jz      1f
        ret

1:      lea     rbp, [rip + linger]     /* rbp: the memory, r12: the descriptor to wait for */
        mov     r12, r9
        lea     r13, [rbp + r10]
        xor     r15d, r15d              /* r15: 0 if the kernel does not write to the memory of this thread any more */
        test    rdi, rdi
        jz      2f
        add     rdi, fs:0
        mov     esi, RSEQ_BYTES
        mov     edx, RSEQ_UNREGISTER
        mov     r10d, RSEQ_SIGNATURE
        mov     eax, SYS_RSEQ
        syscall
        mov     r15, rax
2:      mov     rsp, r13
        mov     eax, SYS_SETSID         /* what is sent to the group of this process is not for it */
        syscall
        mov     edi, 2                  /* SIG_SETMASK */
        lea     rsi, [rip + all_signals]
        xor     edx, edx
        mov     r10d, 8
        mov     eax, SYS_RT_SIGPROCMASK
        syscall
        mov     edi, PR_SET_NAME
        lea     rsi, [rip + name]
        mov     eax, SYS_PRCTL
        syscall
        test    r15, r15                /* the copy of the memory: given back */
        jnz     1f
        xor     edi, edi
        mov     rsi, rbp
        mov     eax, SYS_MUNMAP
        syscall
        mov     rdi, r13
        mov     rsi, USER_END
        sub     rsi, r13
        mov     eax, SYS_MUNMAP
        syscall

1:      push    0                       /* until that process has ended: struct pollfd */
        mov     [rsp], r12d
        mov     word ptr [rsp + 4], POLLIN
2:      mov     rdi, rsp
        mov     esi, 1
        mov     edx, -1
        mov     eax, SYS_POLL
        syscall
        cmp     rax, 1
        jne     2b

        sub     rsp, KEPT * 8 + 120     /* rsp: pollfds; above them a struct sockaddr_un, of 110 bytes */
        xor     ebx, ebx                /* the descriptor */
        xor     r14d, r14d              /* how many are kept */
3:      lea     r15, [rsp + KEPT * 8]
        mov     edi, ebx
        mov     rsi, r15
        lea     rdx, [rip + length]
        mov     dword ptr [rdx], 110
        mov     eax, SYS_GETSOCKNAME
        syscall
        test    rax, rax
        jnz     5f
        cmp     word ptr [r15], AF_UNIX
        jne     5f
        cmp     dword ptr [rip + length], 2
        je      4f                      /* of a socket pair, as Frida makes one in a program that was started */
        mov     rax, [r15 + 2]          /* of an abstract name: its first eight bytes */
        cmp     rax, [rip + fridas_name]
        jne     5f
4:      mov     edi, ebx                /* nobody is to come by it any more */
        mov     esi, SOL_SOCKET
        mov     edx, SO_ACCEPTCONN
        mov     r10, r15
        lea     r8, [rip + length]
        mov     dword ptr [r8], 4
        mov     eax, SYS_GETSOCKOPT
        syscall
        test    rax, rax
        jnz     5f
        cmp     dword ptr [r15], 0
        jne     5f
        cmp     r14d, KEPT
        jae     6f
        mov     [rsp + r14 * 8], rbx    /* no events: a hang-up is told in any case */
        inc     r14d
        jmp     6f
5:      mov     edi, ebx
        mov     eax, SYS_CLOSE
        syscall
6:      inc     ebx
        cmp     ebx, FILES
        jb      3b
        mov     edi, ebx
        mov     esi, -1
        xor     edx, edx
        mov     eax, SYS_CLOSE_RANGE
        syscall

7:      test    r14d, r14d              /* every agent has gone */
        jz      9f
        mov     rdi, rsp
        mov     esi, r14d
        lea     rdx, [rip + time_left]  /* which the kernel counts down */
        xor     r10d, r10d
        mov     eax, SYS_PPOLL
        syscall
        cmp     rax, 0
        jle     9f
        xor     ecx, ecx                /* those that have hung up: the last one takes their place */
8:      cmp     ecx, r14d
        jae     7b
        cmp     word ptr [rsp + rcx * 8 + 6], 0
        jz      1f
        dec     r14d
        mov     rax, [rsp + r14 * 8]
        mov     [rsp + rcx * 8], rax
        jmp     8b
1:      inc     ecx
        jmp     8b
9:      xor     edi, edi
        mov     eax, SYS_EXIT_GROUP
        syscall

        .balign 8
all_signals:    .quad -1
time_left:      .quad 1, 0              /* struct timespec */
fridas_name:    .ascii "\0/frida-"
name:           .asciz "rtetrack-linger"
length:         .long 0
