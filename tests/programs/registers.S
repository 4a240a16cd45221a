/*
 * int hold_registers_{sse,avx,avx512}(const void *pattern, void *after, long spins): loads every register that a compiler
 * may keep something in from `pattern`, spins without a call, and stores them into `after`. Returns a bit mask of general
 * registers, flags and red zone that changed. Vector registers are the caller's to compare.
 */
        .intel_syntax noprefix
        .text

        .macro  hold name, width, move, count, masks
        .globl  \name
        .type   \name, @function
\name:
        .cfi_startproc
        push    rbx
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset rbx, 0
        push    rbp
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset rbp, 0
        push    r12
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset r12, 0
        push    r13
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset r13, 0
        push    r14
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset r14, 0
        push    r15
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset r15, 0
        .altmacro
        .set    i, 0
        .rept   \count
        hold_load %i, \width, \move
        .set    i, i + 1
        .endr
        .if     \masks
        kmovq   k1, [rdi]
        kmovq   k2, [rdi + 8]
        kmovq   k3, [rdi + 16]
        kmovq   k4, [rdi + 24]
        kmovq   k5, [rdi + 32]
        kmovq   k6, [rdi + 40]
        kmovq   k7, [rdi + 48]
        .endif
        mov     rcx, rdx
        mov     rdx, rsi                /* after */
        .irp    reg, rax, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        movabs  \reg, 0x5aa5c33c0ff01221
        .endr
        mov     [rsp - 8], rax          /* the red zone */
        mov     [rsp - 128], rax
        stc
1:      dec     rcx                     /* leaves the carry */
        jnz     1b
        setnc   cl
        movzx   ecx, cl
        cmp     [rsp - 8], rax
        je      2f
        or      ecx, 2
2:      cmp     [rsp - 128], rax
        je      3f
        or      ecx, 2
3:      .irp    reg, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        cmp     \reg, rax
        je      4f
        or      ecx, 4
4:
        .endr
        movabs  rbx, 0x5aa5c33c0ff01221
        cmp     rax, rbx
        je      5f
        or      ecx, 8
5:      .set    i, 0
        .rept   \count
        hold_store %i, \width, \move
        .set    i, i + 1
        .endr
        .if     \masks
        add     rdx, 64 * 32
        kmovq   [rdx], k1
        kmovq   [rdx + 8], k2
        kmovq   [rdx + 16], k3
        kmovq   [rdx + 24], k4
        kmovq   [rdx + 32], k5
        kmovq   [rdx + 40], k6
        kmovq   [rdx + 48], k7
        .endif
        mov     eax, ecx
        pop     r15
        .cfi_adjust_cfa_offset -8
        .cfi_restore r15
        pop     r14
        .cfi_adjust_cfa_offset -8
        .cfi_restore r14
        pop     r13
        .cfi_adjust_cfa_offset -8
        .cfi_restore r13
        pop     r12
        .cfi_adjust_cfa_offset -8
        .cfi_restore r12
        pop     rbp
        .cfi_adjust_cfa_offset -8
        .cfi_restore rbp
        pop     rbx
        .cfi_adjust_cfa_offset -8
        .cfi_restore rbx
        ret
        .cfi_endproc
        .size   \name, . - \name
        .endm

        .macro  hold_load number, width, move
        .if \width == 16
        \move   xmm\number, [rdi + 16 * \number]
        .elseif \width == 32
        \move   ymm\number, [rdi + 32 * \number]
        .else
        \move   zmm\number, [rdi + 64 * \number]
        .endif
        .endm
        .macro  hold_store number, width, move
        .if \width == 16
        \move   [rdx + 16 * \number], xmm\number
        .elseif \width == 32
        \move   [rdx + 32 * \number], ymm\number
        .else
        \move   [rdx + 64 * \number], zmm\number
        .endif
        .endm

        hold    hold_registers_sse, 16, movups, 16, 0
        hold    hold_registers_avx, 32, vmovups, 16, 0
        hold    hold_registers_avx512, 64, vmovups, 32, 1
        .section .note.GNU-stack, "", @progbits
