/*
 * What the listeners need of Gum (gum/guminterceptor.h, gum/guminvocationcontext.h), which resolves for TinyCC and for what
 * was compiled ahead alike. The registers of a call lie where the Frida that runs here says: agent.js asks its own headers.
 */
#ifndef RTETRACK_GUM_H
#define RTETRACK_GUM_H

#include "platform.h"

typedef struct GumInvocationContext GumInvocationContext;

extern void *gum_invocation_context_get_nth_argument(GumInvocationContext *context, unsigned number);
extern void gum_invocation_context_replace_nth_argument(GumInvocationContext *context, unsigned number, void *value);
extern void *gum_invocation_context_get_return_value(GumInvocationContext *context);
extern void *gum_invocation_context_get_return_address(GumInvocationContext *context);
extern void *gum_invocation_context_get_listener_function_data(GumInvocationContext *context);
extern void *gum_invocation_context_get_listener_invocation_data(GumInvocationContext *context, size_t bytes);

#define INVOCATION_DATA(context, type) ((type *) gum_invocation_context_get_listener_invocation_data(context, sizeof(type)))

#endif
