/*
 * For comparison: an LD_PRELOAD library in the manner of rteMallocTrack. It overrides rte_malloc_socket and rte_free,
 * keeps a std::map of live blocks behind a mutex, and takes a backtrace of each call with glibc's backtrace() (not even
 * its symbols, as the original did) unless INTERPOSER_BACKTRACE=0.
 */
#include <dlfcn.h>
#include <execinfo.h>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {
struct Block {
    size_t size;
    int frames;
    void *stack[32];
};
std::mutex lock;
std::map<void *, Block> &live() {
    static auto *map = new std::map<void *, Block>;
    return *map;
}
bool with_backtrace() {
    static const bool on = !getenv("INTERPOSER_BACKTRACE") || strcmp(getenv("INTERPOSER_BACKTRACE"), "0");
    return on;
}
}

extern "C" void *rte_malloc_socket(const char *type, size_t size, unsigned align, int socket) {
    using Function = void *(*)(const char *, size_t, unsigned, int);
    static auto original = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "rte_malloc_socket"));
    void *address = original(type, size, align, socket);
    if (address) {
        Block block;
        block.size = size;
        block.frames = with_backtrace() ? backtrace(block.stack, 32) : 0;
        std::lock_guard<std::mutex> guard(lock);
        live()[address] = block;
    }
    return address;
}

extern "C" void rte_free(void *address) {
    using Function = void (*)(void *);
    static auto original = reinterpret_cast<Function>(dlsym(RTLD_NEXT, "rte_free"));
    if (address) {
        std::lock_guard<std::mutex> guard(lock);
        live().erase(address);
    }
    original(address);
}
