/* What the portable engine needs of C, whole: for every architecture, compiled in the program by TinyCC. */
#define RTETRACK_TARGET
#include "session.c"
#include "execs.c"
#include "exports.c"
#include "snapshot.c"
#include "exits.c"
#include "portable.c"
#include "sigmark.c"
#include "faults.c"
#include "sigactions.c"
