/* A library that takes RTETRACK_SLOW_S seconds to load. */
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void take_time(void) {
    const char *seconds = getenv("RTETRACK_SLOW_S");
    if (seconds != NULL) sleep((unsigned) atoi(seconds));
}
