/*
 * What the program runs for us while Frida comes and goes: machine code for x86-64 Linux, of its own page.
 *
 * The lender, a thread of the program that was stopped at a safe place, runs `lender`: it creates the stand-in with
 * pthread_create and waits until the tracer gives it its registers back; if the tracer has died, it takes them back
 * itself. The stand-in runs `standin` until it is sent away, or nobody has given a sign of life for some seconds.
 *
 * Assembled into standin.bin (see tests/unit/test_arrival_code.py); offsets of the data: code.py.
 */
        .intel_syntax noprefix
        .set SYS_PPOLL, 271
        .set SYS_RT_SIGACTION, 13
        .set SYS_RT_SIGPROCMASK, 14
        .set SYS_GETPID, 39
        .set SYS_GETTID, 186
        .set SYS_CLOCK_GETTIME, 228
        .set SYS_TKILL, 200
        .set SYS_TGKILL, 234
        .set ESRCH, 3
        .set SYS_PRCTL, 157
        .set SYS_SOCKETPAIR, 53
        .set PR_SET_SECCOMP, 22
        .set PR_SET_NO_NEW_PRIVS, 38
        .set SECCOMP_MODE_FILTER, 2
        .set SIGSEGV, 11
        .set SIG_SETMASK, 2
        .set SA_SIGINFO, 4
        .set SA_ONSTACK, 0x08000000
        .set SA_RESETHAND, 0x80000000
        .set FRIDAS_RETURN, 0x320       /* DUMMY_RETURN_ADDRESS, frida-helper-backend.vala */
        .set UC_RSP, 160                /* struct ucontext: uc_mcontext.gregs */
        .set UC_RIP, 168
        .set SI_CODE, 8
        .set REGION_BYTES, 0x10000
        .set GUARDED, 1
        .set SETTLED, 2
        .set GONE, 3
        .set MS, 1000000
        .set GATE_PATIENCE_MS, 3000     /* without a sign of life from the host, where Frida is not there either */
        .set FRIDA_PATIENCE_MS, 20000   /* where it is: it leaves by itself, which takes a moment on a machine that is overloaded */
        .text
region:
/* ---- the lender ---- */
lender:
        lea     rdi, [rip + thread]
        xor     esi, esi
        lea     rdx, [rip + standin]
        lea     rcx, [rip + region]
        call    [rip + pthread_create]
        mov     [rip + created], eax
        mov     dword ptr [rip + lent], 1
        mov     ebx, [rip + lender_patience_ms]
1:      mov     eax, 1
        call    wait_ms
        dec     ebx
        jnz     1b
        /* The tracer is gone: back without it. */
        mov     edi, SIG_SETMASK
        lea     rsi, [rip + mask]
        xor     edx, edx
        mov     r10d, 8
        mov     eax, SYS_RT_SIGPROCMASK
        syscall
        mov     eax, -1
        mov     edx, -1
        xrstor64 [rip + region + 0x1000]
        push    [rip + flags]
        popfq
        mov     r15, [rip + lender_regs]
        mov     r14, [rip + lender_regs + 8]
        mov     r13, [rip + lender_regs + 16]
        mov     r12, [rip + lender_regs + 24]
        mov     rbp, [rip + lender_regs + 32]
        mov     rbx, [rip + lender_regs + 40]
        mov     r11, [rip + lender_regs + 48]
        mov     r10, [rip + lender_regs + 56]
        mov     r9,  [rip + lender_regs + 64]
        mov     r8,  [rip + lender_regs + 72]
        mov     rax, [rip + lender_regs + 80]
        mov     rcx, [rip + lender_regs + 88]
        mov     rdx, [rip + lender_regs + 96]
        mov     rsi, [rip + lender_regs + 104]
        mov     rdi, [rip + lender_regs + 112]
        mov     rsp, [rip + lender_rsp]
        jmp     [rip + lender_rip]

/* Waits eax milliseconds, or until a signal. ppoll, since it leaves the lender's restart block alone. */
wait_ms:
        push    rbx
        sub     rsp, 16
        imul    rax, rax, MS
        mov     qword ptr [rsp], 0
        mov     [rsp + 8], rax
        xor     edi, edi
        xor     esi, esi
        mov     rdx, rsp
        xor     r10d, r10d
        mov     r8d, 8
        mov     eax, SYS_PPOLL
        syscall
        add     rsp, 16
        pop     rbx
        ret

/* ---- the stand-in ---- */
standin:
        push    rbx
        push    rbp
        push    r12
        mov     [rip + standin_rsp], rsp
        mov     edi, SIG_SETMASK
        lea     rsi, [rip + standin_mask]
        xor     edx, edx
        mov     r10d, 8
        mov     eax, SYS_RT_SIGPROCMASK
        syscall
        /* Frida shall meet its loader by name, not by a socket pair that a child forked meanwhile holds an end of. */
        mov     edi, PR_SET_NO_NEW_PRIVS
        mov     esi, 1
        xor     edx, edx
        xor     r10d, r10d
        xor     r8d, r8d
        mov     eax, SYS_PRCTL
        syscall
        lea     rdx, [rip + no_pairs]
        lea     rsi, [rip + no_pairs_program]
        mov     [rdx + 8], rsi
        mov     edi, PR_SET_SECCOMP
        mov     esi, SECCOMP_MODE_FILTER
        mov     eax, SYS_PRCTL
        syscall
        call    [rip + pthread_self]
        mov     rdi, rax
        call    [rip + pthread_detach]
        call    guard
        mov     dword ptr [rip + state], GUARDED
        mov     eax, SYS_GETPID
        syscall
        mov     [rip + own_pid], eax
        mov     eax, SYS_GETTID
        syscall
        mov     [rip + standin_tid], eax
resume:
        xor     ebx, ebx                /* milliseconds since the last sign of life */
        mov     ebp, [rip + heartbeat]
2:      mov     eax, [rip + command]
        cmp     eax, GONE
        je      5f
        cmp     eax, [rip + state]
        je      4f
        cmp     eax, SETTLED
        je      3f
        call    guard
        mov     dword ptr [rip + state], GUARDED
        jmp     4f
3:      call    unguard
        mov     dword ptr [rip + state], SETTLED
4:      mov     eax, [rip + ask_locks]
        cmp     eax, [rip + asked_locks]
        je      9f
        xor     edi, edi                /* dlopen(NULL, RTLD_LAZY): it takes the dynamic linker's lock, and gives it back */
        mov     esi, 1
        call    [rip + dlopen]
        test    rax, rax
        jz      8f
        mov     rdi, rax
        call    [rip + dlclose]
8:      mov     rax, [rip + _IO_list_lock]      /* which fork has until the child is there */
        test    rax, rax
        jz      8f
        call    rax
        call    [rip + _IO_list_unlock]
8:      mov     eax, [rip + ask_locks]
        mov     [rip + asked_locks], eax
9:      mov     r12d, 2
        cmp     dword ptr [rip + state], GUARDED
        je      6f
        mov     r12d, 50
6:      mov     eax, r12d
        call    wait_ms
        add     ebx, r12d
        mov     eax, [rip + heartbeat]
        cmp     eax, ebp
        je      7f
        mov     ebp, eax
        xor     ebx, ebx
7:      cmp     ebx, GATE_PATIENCE_MS   /* nobody else will open it */
        jb      2b
        cmp     ebx, FRIDA_PATIENCE_MS
        jae     8f
        call    frida_is_there
        test    eax, eax
        jnz     2b
8:      mov     dword ptr [rip + gate_closed], 0
        cmp     ebx, [rip + patience_ms]
        jb      2b
5:      mov     dword ptr [rip + gate_closed], 0
        call    unguard
        or      eax, [rip + gate_in_use]
        mov     dword ptr [rip + state], GONE
        mov     rsp, [rip + standin_rsp]
        pop     r12
        pop     rbp
        pop     rbx
        test    eax, eax
        jnz     8f                      /* somebody else has our handler's address: the page stays */
        lea     rdi, [rip + region]
        mov     esi, REGION_BYTES
        jmp     [rip + munmap]          /* which returns to where the stand-in was called from */
8:      xor     eax, eax
        ret

/* Takes SIGSEGV, for the moment when Frida dies while the stand-in is in its hands. The program's handler is kept. */
guard:
        push    rbx
        mov     edi, SIGSEGV
        xor     esi, esi
        lea     rdx, [rip + new_action]
        call    [rip + sigaction]
        lea     rax, [rip + handler]
        cmp     [rip + new_action], rax
        je      3f
        lea     rsi, [rip + new_action]         /* libc's struct sigaction: 152 bytes, its flags at 136 */
        lea     rdx, [rip + old_action]
        xor     ecx, ecx
1:      mov     rax, [rsi + rcx]
        mov     [rdx + rcx], rax
        add     ecx, 8
        cmp     ecx, 152
        jb      1b
        lea     rax, [rip + handler]
        mov     [rsi], rax
        mov     eax, [rsi + 136]
        or      eax, SA_SIGINFO | SA_ONSTACK
        and     eax, ~SA_RESETHAND
        mov     [rsi + 136], eax
        mov     edi, SIGSEGV
        xor     edx, edx
        call    [rip + sigaction]
3:      pop     rbx
        ret

/* Gives SIGSEGV back. eax: 1 if somebody has taken it since and may call our handler. */
unguard:
        push    rbx
        mov     edi, SIGSEGV
        xor     esi, esi
        lea     rdx, [rip + new_action]
        call    [rip + sigaction]
        lea     rax, [rip + handler]
        cmp     [rip + new_action], rax
        jne     1f
        mov     edi, SIGSEGV
        lea     rsi, [rip + old_action]
        xor     edx, edx
        call    [rip + sigaction]
        xor     eax, eax
        pop     rbx
        ret
1:      mov     rax, [rip + new_action]         /* what was ours to give back is in place already */
        xor     ecx, ecx
        cmp     rax, [rip + old_action]
        setne   cl
        mov     eax, ecx
        pop     rbx
        ret

/* The handler: rdi signal, rsi siginfo, rdx ucontext. */
handler:
        mov     rax, [rdx + UC_RIP]
        cmp     rax, FRIDAS_RETURN
        je      lost
        lea     rcx, [rip + region]
        sub     rax, rcx
        cmp     rax, 0x1000
        jb      1f
forward:
        mov     rax, [rip + old_action]
        cmp     rax, 1
        ja      2f
        jb      3f
        cmp     dword ptr [rsi + SI_CODE], 0    /* ignored, and sent by somebody */
        jle     1f
3:      push    rsi
        mov     edi, SIGSEGV
        lea     rsi, [rip + default_action]
        xor     edx, edx
        mov     r10d, 8
        mov     eax, SYS_RT_SIGACTION
        syscall
        pop     rsi
        cmp     dword ptr [rsi + SI_CODE], 0
        jg      1f                              /* a fault: it happens again, and ends the program as it should */
        mov     eax, SYS_GETTID
        syscall
        mov     edi, eax
        mov     esi, SIGSEGV
        mov     eax, SYS_TKILL
        syscall
1:      ret
2:      jmp     rax
lost:   mov     r8, rdx
        mov     eax, SYS_GETTID
        syscall
        cmp     eax, [rip + standin_tid]
        mov     rdx, r8
        jne     forward
        mov     rax, [rip + standin_rsp]
        mov     [rdx + UC_RSP], rax
        lea     rax, [rip + resume]
        mov     [rdx + UC_RIP], rax
        ret

/*
 * ---- the gate: what modules of the program call instead of dlopen, fork and the like while Frida comes or leaves ----
 * They wait until it opens, or the host has given no sign of life for three seconds and Frida is gone too. Frida's threads, known
 * by their signal mask, go through, and so does a forked child, in which nobody would ever open it.
 */
        .macro  gate name
gate_\name:
        lea     rax, [rip + \name]
        jmp     gate
        .endm
        gate    dlopen
        gate    dlmopen
        gate    dlclose
        gate    fork
        gate    __fork
        gate    _Fork
        gate    daemon
        gate    forkpty
gate:
        lock inc dword ptr [rip + gate_inside]
        push    rax
        push    rdi
        push    rsi
        push    rdx
        push    rcx
        push    rbx
        push    rbp
        push    r8
        push    r10
        push    r11
        mov     eax, SYS_GETPID
        syscall
        cmp     eax, [rip + own_pid]
        jne     2f
        sub     rsp, 8
        xor     edi, edi
        xor     esi, esi
        mov     rdx, rsp
        mov     r10d, 8
        mov     eax, SYS_RT_SIGPROCMASK
        syscall
        pop     rax
        not     rax
        test    rax, [rip + fridas_mask]
        jz      2f
        mov     ebp, [rip + heartbeat]
        call    now_ms
        lea     ebx, [rax + GATE_PATIENCE_MS]
1:      cmp     dword ptr [rip + gate_closed], 0
        je      2f
        mov     eax, 1
        call    wait_ms
        call    now_ms
        mov     ecx, [rip + heartbeat]
        cmp     ecx, ebp
        je      3f
        mov     ebp, ecx
        lea     ebx, [rax + GATE_PATIENCE_MS]
3:      sub     eax, ebx
        js      1b
        cmp     eax, FRIDA_PATIENCE_MS - GATE_PATIENCE_MS
        jge     2f
        call    frida_is_there
        test    eax, eax
        jnz     1b
2:      pop     r11
        pop     r10
        pop     r8
        pop     rbp
        pop     rbx
        pop     rcx
        pop     rdx
        pop     rsi
        pop     rdi
        pop     rax
        lock dec dword ptr [rip + gate_inside]
        jmp     [rax]

/* eax: 0 if the thread that took Frida's agent in has ended, with which the agent is out again, or if it is not known. */
frida_is_there:
        xor     eax, eax
        mov     esi, [rip + fridas_tid]
        test    esi, esi
        jz      1f
        mov     edi, [rip + own_pid]
        xor     edx, edx
        mov     eax, SYS_TGKILL
        syscall
        mov     ecx, eax
        xor     eax, eax
        cmp     ecx, -ESRCH
        setne   al
1:      ret

/* CLOCK_MONOTONIC in milliseconds, the low 32 bits. */
now_ms:
        sub     rsp, 16
        mov     edi, 1
        mov     rsi, rsp
        mov     eax, SYS_CLOCK_GETTIME
        syscall
        mov     rax, [rsp + 8]
        xor     edx, edx
        mov     ecx, MS
        div     rcx
        imul    rdx, [rsp], 1000
        add     eax, edx
        add     rsp, 16
        ret

        .org    0x800
pthread_create:         .quad 0         /* 0x800 */
pthread_self:           .quad 0
pthread_detach:         .quad 0
sigaction:              .quad 0
munmap:                 .quad 0
thread:                 .quad 0
created:                .long 0         /* 0x830: what pthread_create returned */
lent:                   .long 0         /* 0x834: 1 when it has */
standin_tid:            .long 0         /* 0x838 */
command:                .long GUARDED   /* 0x83c */
state:                  .long 0         /* 0x840 */
heartbeat:              .long 0         /* 0x844 */
patience_ms:            .long 0         /* 0x848 */
lender_patience_ms:     .long 0         /* 0x84c */
standin_rsp:            .quad 0         /* 0x850 */
mask:                   .quad 0         /* 0x858 */
flags:                  .quad 0         /* 0x860 */
lender_rsp:             .quad 0         /* 0x868 */
lender_rip:             .quad 0         /* 0x870 */
lender_regs:            .fill 15, 8, 0  /* 0x878: the first 15 of struct user_regs_struct, r15 to rdi */
default_action:         .fill 4, 8, 0   /* the kernel's struct sigaction, SIG_DFL */
old_action:             .fill 19, 8, 0
new_action:             .fill 19, 8, 0
standin_mask:           .quad 0         /* 0xa40 */
no_pairs:               .quad 6, 0      /* struct sock_fprog */
no_pairs_program:                       /* struct sock_filter: code, jt, jf, k */
        .short  0x20; .byte 0, 0; .long 4                       /* the architecture */
        .short  0x15; .byte 0, 2; .long 0xc000003e              /* x86-64: the next, else allow */
        .short  0x20; .byte 0, 0; .long 0                       /* the system call's number */
        .short  0x15; .byte 1, 0; .long SYS_SOCKETPAIR
        .short  0x06; .byte 0, 0; .long 0x7fff0000              /* allow */
        .short  0x06; .byte 0, 0; .long 0x00050001              /* EPERM */
        .org    0xb00
dlopen:                 .quad 0         /* 0xb00: what there is of it; 0 is never called */
dlmopen:                .quad 0
dlclose:                .quad 0
fork:                   .quad 0
__fork:                 .quad 0
_Fork:                  .quad 0
daemon:                 .quad 0
forkpty:                .quad 0
gates:                  .quad gate_dlopen - region, gate_dlmopen - region, gate_dlclose - region        /* 0xb40 */
                        .quad gate_fork - region, gate___fork - region, gate__Fork - region, gate_daemon - region
                        .quad gate_forkpty - region
_IO_list_lock:          .quad 0         /* 0xb80 */
_IO_list_unlock:        .quad 0
fridas_mask:            .quad 0         /* 0xb90: what all of them block */
gate_closed:            .long 0         /* 0xb98 */
gate_inside:            .long 0         /* 0xb9c */
gate_in_use:            .long 0         /* 0xba0: modules call it */
ask_locks:              .long 0         /* 0xba4 */
asked_locks:            .long 0         /* 0xba8 */
own_pid:                .long 0         /* 0xbac */
fridas_tid:             .long 0         /* 0xbb0 */
