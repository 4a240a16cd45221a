/*
 * What differs between those who build this folder: the system's compiler and TinyCC for the target (RTETRACK_TARGET, see
 * engine_native.c), and the system's compiler for the tests on the host. TinyCC has neither __atomic builtins nor
 * __thread, and miscompiles "m" operands that are reached through a pointer: every operand below is a register.
 */
#ifndef RTETRACK_PLATFORM_H
#define RTETRACK_PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * State that outlives a call. TinyCC's is read-only where Frida puts it: there agent.js maps pages and hands them in by
 * name. Compiled ahead it lies in .bss, each object on pages of its own, as what a fork does with them differs.
 */
#if defined(RTETRACK_TARGET) && !defined(__TINYC__)
#define STATE(type, name) type name __attribute__((aligned(4096)))
#define WHOLE_PAGES __attribute__((aligned(4096)))
#else
#define STATE(type, name) extern type name
#define WHOLE_PAGES
#endif

#define INLINE static inline __attribute__((always_inline))
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#ifdef RTETRACK_TARGET /* Gum's, gum/gumtls.h: a libc's own key may be narrower */
typedef size_t tls_key_t;
extern tls_key_t gum_tls_key_new(void);
extern void gum_tls_key_free(tls_key_t key);
extern void *gum_tls_key_get_value(tls_key_t key);
extern void gum_tls_key_set_value(tls_key_t key, void *value);
#define tls_get gum_tls_key_get_value
#define tls_set gum_tls_key_set_value
#define tls_new gum_tls_key_new
#define tls_free gum_tls_key_free
#else
#include <pthread.h>
typedef pthread_key_t tls_key_t;
static inline void *tls_get(tls_key_t key) { return pthread_getspecific(key); }
static inline void tls_set(tls_key_t key, void *value) { pthread_setspecific(key, value); }
static inline tls_key_t tls_new(void) { pthread_key_t key; pthread_key_create(&key, NULL); return key; }
static inline void tls_free(tls_key_t key) { pthread_key_delete(key); }
#endif

#if defined(__x86_64__)
/* Adds and returns the value before. A full barrier. */
INLINE uint64_t atomic_add(volatile uint64_t *p, uint64_t value) {
    __asm__ volatile("lock xaddq %0, (%1)" : "+r"(value) : "r"(p) : "memory");
    return value;
}
/* Sets and returns the value before. A full barrier. */
INLINE uint32_t atomic_exchange(volatile uint32_t *p, uint32_t value) {
    __asm__ volatile("xchgl %0, (%1)" : "+r"(value) : "r"(p) : "memory");
    return value;
}
/* Sets to `value` what was 0, and returns the value before. A full barrier. */
INLINE uint32_t atomic_claim(volatile uint32_t *p, uint32_t value) {
    uint32_t before = 0;
    __asm__ volatile("lock cmpxchgl %2, (%1)" : "+a"(before) : "r"(p), "r"(value) : "memory");
    return before;
}
/* x86 keeps stores in order and loads in order: only the compiler must be held back. */
INLINE void publish_u32(volatile uint32_t *p, uint32_t value) {
    __asm__ volatile("" : : : "memory");
    *p = value;
}
INLINE void cpu_relax(void) { __asm__ volatile("pause" : : : "memory"); }
#define HAS_TICK_COUNTER 1
INLINE uint64_t tick_counter(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (uint64_t) high << 32;
}
#elif defined(__TINYC__)
#include <glib.h>
static uint64_t atomic_add(volatile uint64_t *p, uint64_t value) { return (uint64_t) g_atomic_pointer_add((void **) p, (gssize) value); }
static uint32_t atomic_exchange(volatile uint32_t *p, uint32_t value) {
    uint32_t before;
    do before = (uint32_t) g_atomic_int_get((gint *) p);
    while (!g_atomic_int_compare_and_exchange((gint *) p, (gint) before, (gint) value));
    return before;
}
static uint32_t atomic_claim(volatile uint32_t *p, uint32_t value) {
    uint32_t before = 0;
    while (!g_atomic_int_compare_and_exchange((gint *) p, 0, (gint) value) && before == 0) before = (uint32_t) g_atomic_int_get((gint *) p);
    return before;
}
static void publish_u32(volatile uint32_t *p, uint32_t value) { g_atomic_int_set((gint *) p, (gint) value); }
static void cpu_relax(void) {}
#else
static inline uint64_t atomic_add(volatile uint64_t *p, uint64_t value) { return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST); }
static inline uint32_t atomic_exchange(volatile uint32_t *p, uint32_t value) { return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST); }
static inline uint32_t atomic_claim(volatile uint32_t *p, uint32_t value) {
    uint32_t before = 0;
    __atomic_compare_exchange_n(p, &before, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return before;
}
static inline void publish_u32(volatile uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }
static inline void cpu_relax(void) {}
#endif

#ifndef HAS_TICK_COUNTER
#define HAS_TICK_COUNTER 0
INLINE uint64_t tick_counter(void) { return 0; }
#endif

/* libc's, handed in by the agent. */
extern long syscall(long number, ...);
extern int *__errno_location(void);

#if defined(__x86_64__)
#define SYS_GETTID 186
#define SYS_NANOSLEEP 35
#define SYS_CLOCK_GETTIME 228
#define SYS_PRCTL 157
#define SYS_PROCESS_VM_READV 310
#define SYS_GETPID 39
#define SYS_OPENAT 257
#define SYS_READ 0
#define SYS_PREAD64 17
#define SYS_CLOSE 3
#define SYS_TGKILL 234
#define SYS_MMAP 9
#define SYS_MUNMAP 11
#define SYS_MREMAP 25
#define SYS_MADVISE 28
#define SYS_FACCESSAT 269
#define SYS_GETDENTS64 217
#else /* the numbers that arm64, riscv64 and loongarch64 share */
#define SYS_GETTID 178
#define SYS_NANOSLEEP 101
#define SYS_CLOCK_GETTIME 113
#define SYS_PRCTL 167
#define SYS_PROCESS_VM_READV 270
#define SYS_GETPID 172
#define SYS_OPENAT 56
#define SYS_READ 63
#define SYS_PREAD64 67
#define SYS_CLOSE 57
#define SYS_TGKILL 131
#define SYS_MMAP 222
#define SYS_MUNMAP 215
#define SYS_MREMAP 216
#define SYS_MADVISE 233
#define SYS_FACCESSAT 48
#define SYS_GETDENTS64 61
#endif

#endif
