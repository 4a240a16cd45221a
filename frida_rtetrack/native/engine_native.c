/* The native engine, whole: what is compiled for x86-64. */
#define RTETRACK_TARGET
#include "build.h"
#include "session.c"
#include "execs.c"
#include "exports.c"
#include "snapshot.c"
#include "exits.c"
#include "unwind.c"
#include "hooks.c"
#include "listeners.c"
#include "sigmark.c"
#include "faults.c"
#include "sigactions.c"
