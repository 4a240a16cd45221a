/*
 * See unwind.h. From the hot end to the cold one:
 *
 *   memo     the last walk of this thread. A frame (return address, sp, rbp) that it already holds leads to the same
 *            frames again if the words that the walk read from the stack are still the same; comparing them is quicker
 *            than walking, because no comparison waits for the one before.
 *   rows     for each return address seen, what the call-frame table says there, packed into 64 bits that a thread
 *            reads and writes in one piece. So the cache needs no lock, and a signal may interrupt it anywhere.
 *   tables   a row that is missing is computed: the module by linear search, its function by binary search in
 *            .eh_frame_hdr, the row by interpreting the function's CFA program up to the address.
 *
 * Formats: System V ABI for x86-64, chapter 3.7 and 4.2.4; LSB Core, "Exception Frames"; DWARF 4, chapters 2.5 and 6.4.
 */
#include "unwind.h"
#include "platform.h"

#include <string.h>

#ifdef __TINYC__ /* has no __atomic_*; on x86-64 an aligned load or store is what the others' acquire and release are */
#define load_word(place) (*(volatile const uint64_t *)(place))
#define store_word(place, value) (*(volatile uint64_t *)(place) = (value))
#else
#define load_word(place) __atomic_load_n((const uint64_t *)(place), __ATOMIC_ACQUIRE)
#define store_word(place, value) __atomic_store_n((uint64_t *)(place), (value), __ATOMIC_RELEASE)
#endif
#define COMPILER_BARRIER() __asm__ volatile("" ::: "memory")
#define FULL_BARRIER() __asm__ volatile("mfence" ::: "memory")

static uint64_t stack_word(uint64_t address) { return *(const uint64_t *)(uintptr_t)address; }

/* ---------------------------------------------------------------------------------------------------------- rows --
 *
 * A row is the upper 34 bits of the 47-bit return address and 30 bits of information. Its set is the lower 13 bits,
 * mixed with some of the upper ones so that copies of the same code elsewhere get other sets: together the whole address.
 *
 *   row = ra[46:13] << 30 | info;  set = ra[12:0] ^ ra[25:13];  info = kind (6 bits) | payload (24 bits); 0 is no row
 *
 * The caller's frame in terms of this one's sp and bp, offsets in units of 8 bytes:
 *   ROW_SP, ROW_BP           CFA = sp or bp + payload[15:0]; rbp is saved n = payload[23:16] below the CFA; n = 1, the
 *                            return address's own place, says that rbp is unchanged
 *   ROW_LARGE_SP/BP + n - 1  the same with CFA = sp or bp + payload and n up to 16
 *   ROW_LOST_SP/BP           CFA = sp or bp + payload; rbp is lost
 *   ROW_DEREF_SP/BP          CFA = *(sp or bp + signed payload[23:12]) + payload[11:8]; n = payload[7:0] as above
 *   ROW_DEREF_BP_AT_BP       the same with bp, rbp saved at bp + signed payload[7:0] (what gcc makes of a realigned stack)
 *   ROW_SIGNAL               the kernel's signal frame: struct ucontext lies at sp
 * and those that end a walk: ROW_OUTERMOST, ROW_NO_TABLE, ROW_UNSUPPORTED.
 */
enum row_kind {
    ROW_NONE = 0,
    ROW_SP = 1,
    ROW_BP = 2,
    ROW_OUTERMOST = 3,
    ROW_NO_TABLE = 4,
    ROW_UNSUPPORTED = 5,
    ROW_SIGNAL = 6,
    ROW_DEREF_SP = 7,
    ROW_DEREF_BP = 8,
    ROW_DEREF_BP_AT_BP = 9,
    ROW_LOST_SP = 10,
    ROW_LOST_BP = 11,
    ROW_LARGE_SP = 16,
    ROW_LARGE_BP = 32
};
#define ROW_LARGE_KINDS 16
#define ROW_KIND_SHIFT 24
#define ROW(kind, payload) (((uint64_t)(kind) << ROW_KIND_SHIFT) | (uint64_t)(payload))

#define ADDRESS_BITS 47 /* user space, without 5-level paging's upper part, which a program must ask for */
#define SET_BITS 13
#define SET_COUNT (1 << SET_BITS)
#define INFO_BITS (64 - (ADDRESS_BITS - SET_BITS))
#define INFO_MASK ((1ULL << INFO_BITS) - 1)

/* ------------------------------------------------------------------------------------------------------- modules -- */

struct module {
    uint64_t start, end;           /* executable addresses; end 0: empty */
    uint64_t base;                 /* what the module is known by */
    uint64_t header;               /* .eh_frame_hdr: "datarel" pointers are relative to it */
    uint64_t table, table_entries; /* its sorted table */
    uint64_t table_end;            /* where the segment that holds it ends */
    uint64_t entry_bytes;          /* 8: pairs of 32 bits, 16: pairs of 64 bits, 0: no usable table */
    uint64_t frames, frames_low, frames_end; /* .eh_frame, and the segment that holds it */
};
#define MODULE_WORDS (sizeof(struct module) / sizeof(uint64_t))

struct module_slot {
    uint64_t version; /* odd while it is written */
    struct module module;
};

struct unwind_state {
    uint64_t generation;   /* changes with every module added or removed */
    uint64_t module_slots; /* how many have ever been used */
    uint64_t plain_loops;
    uint64_t rows_filled;
    uint64_t framed_start, framed_bytes; /* see unwind_add_framed_code */
    uint64_t pad[2];
    uint64_t rows[2 * SET_COUNT]; /* the newer row of each set, then the older of each */
    struct module_slot modules[UNWIND_MAX_MODULES];
};

#include "unwind_walk.h"
#include "unwind_rows.c"
#include "unwind_steps.c"
#include "unwind_memo.c"
#include "unwind_walk.c"
#include "cfi_tables.c"
#include "cfi_rules.c"
#include "cfi_expressions.c"
#include "cfi_rows.c"
#include "unwind_modules.c"
