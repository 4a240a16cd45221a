/*
 * The native engine's way where a function cannot be replaced: Interceptor.attach with these callbacks. The listener's
 * data is the function's number in enum event_api.
 */
#include "gum.h"

/* Where a call's registers are: offset of the pointer to them, and of the stack and frame pointers in them. */
struct call_layout {
    uint64_t registers, sp, bp;
};

STATE(struct call_layout, call_layout);

static uint64_t register_at(GumInvocationContext *context, uint64_t offset) {
    return *(const uint64_t *) (*(const uint8_t *const *) ((const uint8_t *) context + call_layout.registers) + offset);
}

struct listened_call {
    struct thread_slot *thread;
    uint64_t frame[3]; /* as hooks.c sees one: saved rbp, return address */
    const char *type;
    uint64_t size;
    uint64_t old;
    int socket;
    uint32_t stack, announced;
};

static uint64_t argument(GumInvocationContext *context, unsigned number) {
    return (uint64_t) gum_invocation_context_get_nth_argument(context, number);
}

/* The stack of a listened call: its return address is on the program's stack, not in a frame of ours. */
static uint32_t listened_stack(GumInvocationContext *context, struct thread_slot *thread, int release) {
    uint64_t frames[MAX_FRAMES];
    uint64_t sp = register_at(context, call_layout.sp) + 8;
    struct unwind_trace trace;
    trace.ra = (uint64_t) gum_invocation_context_get_return_address(context);
    if (!on_known_stack(thread, sp)) return intern_stack(hash_stack(&trace.ra, 1), &trace.ra, 1, STACK_OUT_OF_BOUNDS);
    trace.sp = trace.low = sp;
    trace.bp = register_at(context, call_layout.bp);
    trace.high = own_of(thread)->stack_high;
    trace.frames = frames;
    trace.max_frames = (int32_t) agent.max_frames;
    unwind_walk_with_memo(agent.unwinder, NULL, &trace);
    if (originals.wrapping != 0) take_out_hooks(&trace);
    return intern_stack(trace.hash, frames, (uint32_t) trace.count, (uint32_t) trace.end);
}

void listener_enter(GumInvocationContext *context) {
    struct listened_call *call = INVOCATION_DATA(context, struct listened_call);
    uint32_t api = (uint32_t) (uint64_t) gum_invocation_context_get_listener_function_data(context);
    uint64_t sp = register_at(context, call_layout.sp);
    call->thread = NESTED;
    call->announced = 0;
    call->stack = 0;
    call->type = NULL;
    call->socket = SOCKET_ANY;
    call->old = 0;
    if (!agent.on) return;
    /* After a tail call from a listened function the stack pointer is equal: one byte lower says "deeper". */
    call->thread = enter((const uint64_t *) (sp - 1));
    if (!OUTERMOST(call->thread)) return;
    own_of(call->thread)->outermost_sp = sp;
    switch (api) {
    case API_MALLOC_SOCKET: case API_ZMALLOC_SOCKET: call->socket = (int) argument(context, 3); /* fallthrough */
    case API_MALLOC: case API_ZMALLOC:
        call->type = (const char *) argument(context, 0);
        call->size = argument(context, 1);
        break;
    case API_CALLOC_SOCKET: call->socket = (int) argument(context, 4); /* fallthrough */
    case API_CALLOC:
        call->type = (const char *) argument(context, 0);
        call->size = argument(context, 1) * argument(context, 2);
        break;
    case API_REALLOC_SOCKET: call->socket = (int) argument(context, 3); /* fallthrough */
    case API_REALLOC:
        call->old = argument(context, 0);
        call->size = argument(context, 1);
        break;
    case API_MEMZONE_RESERVE: case API_MEMZONE_RESERVE_ALIGNED: case API_MEMZONE_RESERVE_BOUNDED:
        call->type = (const char *) argument(context, 0);
        call->size = argument(context, 1);
        call->socket = (int) argument(context, 2);
        break;
    case API_FREE: case API_FREE_SENSITIVE: call->old = argument(context, 0); break;
    case API_HEAP_FREE: call->old = block_of_element(argument(context, 0)); break;
    case API_MEMZONE_FREE: call->old = argument(context, 0) != 0 ? zone_address((const struct memzone *) argument(context, 0)) : 0; break;
    }
    if (api == API_FREE || api == API_FREE_SENSITIVE || api == API_MEMZONE_FREE || api == API_HEAP_FREE) {
        if (call->old == 0) return;
        if (agent.free_backtrace) call->stack = listened_stack(context, call->thread, 1);
        append(call->thread, WHAT(EVENT_FREED, api, SOCKET_ANY), call->old, 0, call->stack, 0);
        return;
    }
    if (agent.allocation_backtrace) call->stack = listened_stack(context, call->thread, 0);
    if (call->old != 0) {
        append(call->thread, WHAT(EVENT_RESIZE_STARTED, api, call->socket), call->old, call->size, call->stack, 0);
        call->announced = 1;
    }
}

void listener_leave(GumInvocationContext *context) {
    struct listened_call *call = INVOCATION_DATA(context, struct listened_call);
    uint32_t api = (uint32_t) (uint64_t) gum_invocation_context_get_listener_function_data(context);
    uint64_t result = (uint64_t) gum_invocation_context_get_return_value(context), size = call->size;
    uint32_t label;
    if (OUTERMOST(call->thread)) {
        switch (api) {
        case API_FREE: case API_FREE_SENSITIVE: case API_MEMZONE_FREE: case API_HEAP_FREE: break;
        case API_REALLOC: case API_REALLOC_SOCKET:
            if (call->announced) {
                append(call->thread, WHAT(EVENT_RESIZE_ENDED, api, call->socket), result, size, call->stack, 0);
                break;
            } /* fallthrough */
        default:
            label = 0;
            if (api == API_HEAP_ALLOC) size = result != 0 ? size_of_block(result) : 0;
            else if (api >= API_MEMZONE_RESERVE) {
                label = copy_label("memzone:", call->type);
                if (result != 0) {
                    size = ((const struct memzone *) result)->length;
                    result = ((const struct memzone *) result)->address;
                }
            } else label = label_of(call->type);
            append(call->thread, WHAT(result != 0 ? EVENT_ALLOCATED : EVENT_ALLOCATION_FAILED, api, call->socket), result, size,
                   call->stack, label);
        }
    }
    leave(call->thread);
}
