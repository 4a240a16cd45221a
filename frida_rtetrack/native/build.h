/* Who compiled this: the host looks for the text in the compiled engine, the agent asks for it. */
#ifndef RTETRACK_BUILD_H
#define RTETRACK_BUILD_H

#ifndef RTETRACK_BUILT_BY
#define RTETRACK_BUILT_BY "TinyCC"
#endif
#ifndef RTETRACK_SOURCE
#define RTETRACK_SOURCE "-"
#endif

#define BUILT_BY_MARKER "rtetrack engine by "

__attribute__((used)) static const char BUILT_BY[] = BUILT_BY_MARKER RTETRACK_BUILT_BY;

/* Of which source: see build.py. */
__attribute__((used)) static const char SOURCE[] = "rtetrack source " RTETRACK_SOURCE;

const char *engine_built_by(void) { return BUILT_BY + sizeof BUILT_BY_MARKER - 1; }

#endif
