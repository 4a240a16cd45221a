/*
 * The call-frame unwinder that runs inside the hooks, on the program's own threads (x86-64 Linux).
 *
 * It turns the frame of a hook into the return addresses above it, exactly, from the modules' own .eh_frame. It owns a
 * table of modules, a cache of rows (what the call-frame table says at one return address) and, per thread, a memo of
 * the last walk. It allocates nothing, takes no lock, calls nothing, and reads only the stack between the bounds that
 * it is given and the tables of the modules that it was told of. A signal handler may enter it on a thread that is
 * inside it. It compiles with TinyCC (Frida's CModule) and with the system's compiler.
 */
#ifndef RTETRACK_UNWIND_H
#define RTETRACK_UNWIND_H

#include <stddef.h>
#include <stdint.h>

#include "session.h" /* enum stack_end */

#define UNWIND_MAX_MODULES 2048
#define UNWIND_MAX_FRAMES 256 /* the most that a walk with a memo may ask for */

struct unwind_state; /* unwind_state_bytes() of zeroed memory, one a process */
struct unwind_memo;  /* unwind_memo_bytes() of zeroed memory, one a thread and kind of call */

/* Where to start, and what was found. */
struct unwind_trace {
    uint64_t ra;        /* return address of the hook: into the function that called it */
    uint64_t sp;        /* that function's stack pointer after the return: the address above the return address */
    uint64_t bp;        /* that function's rbp */
    uint64_t low, high; /* the stack that all of this lies on: [low, high) is readable */
    uint64_t *frames;   /* room for max_frames return addresses, innermost first */
    int32_t max_frames; /* at least 1 */
    /* Results. */
    int32_t count;      /* frames written; frames[0] is ra */
    int32_t end;        /* enum stack_end */
    uint32_t number;    /* of this trace in the memo: equal numbers mean equal frames and end; 0: not remembered */
    uint64_t hash;      /* over the frames */
};

size_t unwind_state_bytes(void);
size_t unwind_memo_bytes(void);

/*
 * Adds the ELF module that is mapped at [base, base + size). Returns 0 if it has no usable .eh_frame (its code then ends
 * a walk, STACK_NO_UNWIND_TABLE), else 1. Reads the ELF header at base. One thread adds and removes, others may walk.
 */
int unwind_add_module(struct unwind_state *state, uint64_t base, uint64_t size);

/*
 * Says that the code in [start, end), which has no table, keeps frames by rbp (push %rbp; mov %rsp, %rbp), as TinyCC's
 * does: our own hooks, where they stay on the stack below the program's function that they stand in for.
 */
void unwind_add_framed_code(struct unwind_state *state, uint64_t start, uint64_t end);

/* Forgets the module at `base` and all that was remembered of its code. */
void unwind_remove_module(struct unwind_state *state, uint64_t base);

/*
 * Walks the stack and returns the number of frames. `memo` may be NULL; it makes a walk whose outer frames are those of
 * the memo's last walk several times faster, with the same result. It must not be used by two threads at a time (a
 * signal handler on the same thread is all right). A frame that a signal interrupted is given by its exact pc, as
 * backtrace() does; every other one by its return address.
 */
int unwind_walk_with_memo(struct unwind_state *state, struct unwind_memo *memo, struct unwind_trace *trace);

/* The same with neither memo nor struct. */
int unwind_walk(struct unwind_state *state, uint64_t ra, uint64_t sp, uint64_t bp, uint64_t low, uint64_t high,
                uint64_t *frames, int max_frames, int *end, uint64_t *hash);

/* For tests: the packed row that holds for a return address (see unwind.c), and a switch to the loops in plain C. */
uint64_t unwind_row(struct unwind_state *state, uint64_t ra);
void unwind_use_plain_loops(struct unwind_state *state, int on);

#endif
