/* What a walk along the stack keeps, and what a thread's memo of its last walk holds. */

/* ---------------------------------------------------------------------------------------------------------- memo -- */

/* What the memo compares, outermost frame first: the words that the walk read on its way to this frame. The word that a
 * `place` points to must still equal what stands before it. What need not be compared points to `zero`, and so does the
 * ra_place of a frame to which the step has to be made again in any case. */
struct memo_frame {
    uint64_t ra, ra_place;
    uint64_t bp, bp_place;   /* if anything further out depends on rbp, and it was loaded */
    uint64_t cfa, cfa_place; /* if the CFA was loaded (ROW_DEREF_*), then the memo is `thorough` */
};

struct memo_detail {
    uint64_t sp;
    uint64_t bp;   /* right if `live` */
    uint64_t slot; /* where bp was loaded from, 0: it is the inner frame's */
    uint64_t hash; /* over the frames from here outwards */
    uint32_t via;  /* info of the inner frame's row, which led here; 0: innermost */
    uint32_t live; /* whether the frames further out depend on bp */
};

/* A frame that this walk reached by a row. */
struct fresh_frame {
    uint64_t ra, sp, bp;
    uint64_t slot; /* sp - 8, the return address's place: bp is the inner frame's */
    uint64_t via;
    uint64_t cfa_loaded, cfa_place; /* with ROW_DEREF_* */
};

/* A word on the stack that must be what it was for the whole walk to be the same again. */
struct memo_check {
    uint64_t place, expected;
};
#define MEMO_CHECKS (2 * UNWIND_MAX_FRAMES)
#define MEMO_CHECKS_AT_ONCE 4 /* their number is a multiple of this */

struct unwind_memo {
    uint64_t busy;            /* a walk is at work on it, perhaps one that a signal interrupted */
    uint64_t generation;      /* what held for its walk: the state's generation ... */
    uint64_t low, high;       /* ... and the stack's bounds */
    uint64_t top_ra, top_sp;  /* where its walk began */
    uint64_t top_bp;
    uint64_t top_bp_mask;     /* 0 if nothing depends on top_bp, else all ones */
    struct memo_check *checks_end; /* NULL: the walk cannot be repeated by comparing alone */
    uint64_t thorough;        /* the comparison frame by frame has to look at loaded CFAs, too */
    uint64_t hash;
    int64_t count;
    int32_t end;              /* these two as in struct unwind_trace */
    uint32_t number;
    uint64_t others_since;    /* walks that were not this one, since it was last seen */
    uint64_t zero, lost_bp;   /* words to point to */
    uint64_t terminal;        /* the outermost frame's row ends the walk, whatever the stack holds */
    struct memo_check checks[MEMO_CHECKS];
    struct memo_frame frames[UNWIND_MAX_FRAMES];
    struct memo_detail details[UNWIND_MAX_FRAMES];
    struct fresh_frame fresh[UNWIND_MAX_FRAMES + 1]; /* the loop writes a word ahead */
};

#define LOST_BP 1 /* stands for an rbp that the table does not give */

/* A memo is worth more than what it costs to write it if its walk comes again. So a walk that is not the memo's replaces
 * it only when the memo's has not been seen for this many others. */
#define MEMO_PATIENCE 3

/* ---------------------------------------------------------------------------------------------------------- walk -- */

struct walk {
    /* The assembly knows these. */
    uint64_t ra, sp, bp;   /*  0: the frame that was reached; ra is pc + 1 if a signal interrupted it there */
    uint64_t high;         /* 24 */
    uint64_t *frames;      /* 32: where the next frame's address is written */
    uint64_t *frames_end;  /* 40 */
    const uint64_t *rows;  /* 48 */
    struct fresh_frame *fresh; /* 56: where the next fresh frame is written ... */
    uint64_t fresh_stride; /* 64: ... and how far that moves it, 0 without memo */
    uint64_t memo_sp;      /* 72: the loop stops at a frame with an sp from here on */
    uint64_t saved[5];     /* 80: the registers that the assembly has to put back */
    /* And not these. */
    struct unwind_state *state;
    struct unwind_memo *memo;
    struct fresh_frame no_fresh; /* stands in for the memo's */
    uint64_t *frames_start;
    uint64_t low;
    int plain_loops;
    int interrupted;     /* a signal interrupted the frame that was reached */
    int terminal;        /* the row of the frame that was reached ends the walk */
    int64_t candidate;   /* the memo's frame that the walk may come to next, -1: none */
    int64_t at;          /* the memo's frame that was reached, -1: it is not in the memo */
    int64_t joined;      /* the memo's frame where the walk came to it ... */
    int64_t joined_after; /* ... after this many fresh frames, that one included (0: the walk began there) ... */
    uint64_t joined_bp;  /* ... with this rbp */
    /* What step_by_row() found. */
    uint64_t next_ra, next_sp, next_bp, next_slot;
    uint64_t cfa_loaded, cfa_place;
    int next_interrupted;
};

_Static_assert(offsetof(struct walk, high) == 24 && offsetof(struct walk, frames) == 32 &&
                   offsetof(struct walk, frames_end) == 40 && offsetof(struct walk, rows) == 48 &&
                   offsetof(struct walk, fresh) == 56 && offsetof(struct walk, fresh_stride) == 64 &&
                   offsetof(struct walk, memo_sp) == 72 && offsetof(struct walk, saved) == 80 &&
                   sizeof(struct memo_frame) == 48 && offsetof(struct memo_frame, cfa_place) == 40 &&
                   offsetof(struct fresh_frame, slot) == 24 && offsetof(struct fresh_frame, via) == 32,
               "the assembly knows these offsets");
_Static_assert(SET_BITS == 13 && ROW_KIND_SHIFT == 24 && INFO_BITS == 30, "and these numbers");
