/* The walk itself: along the memo as far as it is right, by rows where it is not. */

/* Goes on by rows that are known and plain, until the walk comes to a frame of the memo or needs more. */
static void climb_by_rows(struct walk *walk)
{
    do {
        if (walk->plain_loops)
            steps_in_c(walk);
        else
            steps_in_assembly(walk);
        if (walk->sp < walk->memo_sp)
            return;
        look_for_memo(walk);
    } while (walk->at < 0);
}

/* Goes on along the memo as far as it is right. */
static void follow_memo(struct walk *walk)
{
    const struct unwind_memo *memo = walk->memo;
    int64_t room = walk->frames_end - walk->frames;
    const struct memo_frame *from = memo->frames + walk->at;
    const struct memo_frame *last = walk->at > room ? from - room : memo->frames;
    uint64_t *frames = walk->plain_loops ? follow_in_c(from, last, walk->frames)
                                         : follow_in_assembly(from, last, walk->frames, memo->thorough);
    walk->at -= frames - walk->frames;
    walk->frames = frames;
    walk->ra = memo->frames[walk->at].ra;
    walk->sp = memo->details[walk->at].sp;
    walk->interrupted = memo->details[walk->at].via >> ROW_KIND_SHIFT == ROW_SIGNAL;
}

/* Walks to the end. Returns the enum stack_end. */
static int walk_on(struct walk *walk)
{
    for (;;) {
        struct fresh_frame *fresh;
        uint64_t info;
        int32_t end;
        if (walk->at < 0 && !walk->interrupted)
            climb_by_rows(walk);
        if (walk->at >= 0) {
            follow_memo(walk);
            if (walk->at == 0 && walk->memo->terminal) {
                walk->terminal = 1;
                return walk->memo->end;
            }
        }
        info = unwind_row(walk->state, walk->ra);
        if (ends_walk(info, &end)) {
            walk->terminal = 1;
            return end;
        }
        if (walk->at >= 0)
            walk->bp = followed_bp(walk);
        end = step_by_row(walk, info);
        if (end != STEPPED)
            return end;
        if (walk->frames == walk->frames_end)
            return STACK_MAX_FRAMES;

        *walk->frames++ = frame_address(walk->next_ra, info);
        if (walk->at > 0 &&
            is_frame(walk->memo, walk->at - 1, walk->next_ra, walk->next_sp, walk->next_bp, walk->next_interrupted)) {
            walk->at--;
        } else {
            if (walk->at >= 0)
                leave_memo(walk);
            fresh = add_fresh(walk, walk->next_ra, walk->next_sp, walk->next_bp, walk->next_slot, info);
            fresh->cfa_loaded = walk->cfa_loaded;
            fresh->cfa_place = walk->cfa_place;
        }
        walk->ra = walk->next_ra;
        walk->sp = walk->next_sp;
        walk->bp = walk->next_bp;
        walk->interrupted = walk->next_interrupted;
        if (walk->interrupted && (walk->sp < walk->low || walk->sp > walk->high || (walk->sp & 7)))
            return STACK_OUT_OF_BOUNDS; /* the signal came on another stack, whose bounds are not known */
        if (walk->at < 0 && walk->memo != NULL)
            look_for_memo(walk);
    }
}

int unwind_walk_with_memo(struct unwind_state *state, struct unwind_memo *memo, struct unwind_trace *trace)
{
    struct walk walk;
    if (memo != NULL && repeat_walk(state, memo, trace->ra, trace->sp, trace->bp, trace->low, trace->high, trace->max_frames, trace))
        return trace->count;
    trace->frames[0] = trace->ra;
    if (trace->sp < trace->low || trace->sp > trace->high || (trace->sp & 7)) {
        trace->count = 1;
        trace->end = STACK_OUT_OF_BOUNDS;
        trace->number = 0;
        trace->hash = hash_frame(0, trace->ra);
        return 1;
    }
    walk.at = -1;
    walk.memo = NULL;
    walk.fresh = &walk.no_fresh;
    walk.fresh_stride = 0;
    walk.memo_sp = ~0ULL;
    if (memo != NULL && open_memo(memo, state, trace)) {
        walk.memo = memo;
        walk.fresh = memo->fresh;
        walk.fresh_stride = sizeof(struct fresh_frame);
        walk.candidate = memo->count - 1;
    }
    walk.ra = trace->ra;
    walk.sp = trace->sp;
    walk.bp = trace->bp;
    walk.low = trace->low;
    walk.high = trace->high;
    walk.frames_start = trace->frames;
    walk.frames = trace->frames;
    walk.frames_end = trace->frames + trace->max_frames;
    walk.rows = state->rows;
    walk.state = state;
    walk.plain_loops = state->plain_loops != 0;
    walk.interrupted = 0;
    walk.terminal = 0;
    if (walk.memo != NULL) {
        look_for_memo(&walk); /* before the frame is counted: if the memo has it, no frame is fresh */
        if (walk.at < 0)
            add_fresh(&walk, walk.ra, walk.sp, walk.bp, 0, ROW_NONE);
    }
    walk.frames++;

    trace->end = walk_on(&walk);
    trace->count = (int32_t)(walk.frames - walk.frames_start);
    if (walk.memo != NULL) {
        conclude_walk(&walk, trace);
        close_memo(memo);
        return trace->count;
    }
    trace->number = 0;
    trace->hash = walk.plain_loops ? hash_in_c(0, walk.frames_start, walk.frames)
                                   : hash_in_assembly(0, walk.frames_start, walk.frames);
    return trace->count;
}

int unwind_walk(struct unwind_state *state, uint64_t ra, uint64_t sp, uint64_t bp, uint64_t low, uint64_t high,
                uint64_t *frames, int max_frames, int *end, uint64_t *hash)
{
    struct unwind_trace trace;
    trace.ra = ra;
    trace.sp = sp;
    trace.bp = bp;
    trace.low = low;
    trace.high = high;
    trace.frames = frames;
    trace.max_frames = max_frames;
    unwind_walk_with_memo(state, NULL, &trace);
    *end = trace.end;
    *hash = trace.hash;
    return trace.count;
}

void unwind_use_plain_loops(struct unwind_state *state, int on) { state->plain_loops = on != 0; }

size_t unwind_state_bytes(void) { return sizeof(struct unwind_state); }

size_t unwind_memo_bytes(void) { return sizeof(struct unwind_memo); }
