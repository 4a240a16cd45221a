/* Compares the unwinder with glibc's backtrace() at the place where check_stack() is called. */
#ifndef WALK_CHECK_H
#define WALK_CHECK_H

#ifdef __cplusplus
extern "C" {
#endif

/* Tells the unwinder of every module that is loaded now, and takes out those that are gone. */
void follow_modules(void);

/* Walks from here in every way that there is; each must give what backtrace() does and end in the way named. */
enum { ENDS_COMPLETE = 0, ENDS_NO_TABLE = 2, ENDS_OUT_OF_BOUNDS = 4, ENDS_SOMEHOW = -1 };
void check_stack(const char *what, int expected_end);

/* The same, with at least this many frames. */
void check_stack_of(const char *what, int expected_end, int at_least);

/* The number of checks that were made, and of those that failed. */
extern int checks_made, checks_failed;

/* Prints the two and gives the program's exit status. */
int finish_checks(int checks_expected);

/* Code that no compiler may inline, or turn a call in it into a jump. */
#define OPAQUE __attribute__((noinline, noclone, noipa))
#ifdef __clang__
#undef OPAQUE
#define OPAQUE __attribute__((noinline))
#endif
#define NO_TAIL_CALL() __asm__ volatile("" ::: "memory")

#ifdef __cplusplus
}
#endif

#endif
