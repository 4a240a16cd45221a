// What only C++ has: exceptions, destructors that run while one flies, virtual calls, threads, the standard library's own.
#include "walk_check.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

static volatile int sink;

OPAQUE static void plain(const char *what)
{
    check_stack(what, ENDS_COMPLETE);
    NO_TAIL_CALL();
}

struct Checks {
    const char *what;
    explicit Checks(const char *text) : what(text) {}
    ~Checks() { plain(what); }
};

OPAQUE static int throws(int a)
{
    Checks checks("destructor in flight");
    if (a > 0)
        throw std::runtime_error(std::string(static_cast<size_t>(a), 'x'));
    return a;
}

OPAQUE static int passes_on(int a)
{
    std::vector<int> room(static_cast<size_t>(a));
    Checks checks("destructor of a frame that the exception leaves");
    return throws(a) + static_cast<int>(room.size());
}

OPAQUE static int catches(int a)
{
    alignas(64) volatile char local[64];
    local[a & 63] = 1;
    try {
        sink = passes_on(a);
    } catch (const std::exception &error) {
        plain("catch");
        sink = static_cast<int>(std::string(error.what()).size());
        try {
            throw;
        } catch (...) {
            plain("catch of what was thrown again");
        }
    }
    plain("after the catch");
    return local[a & 63];
}

struct Shape {
    virtual ~Shape() = default;
    virtual int area(int depth) const = 0;
};

struct Square : Shape {
    int area(int depth) const override
    {
        plain("virtual call");
        return depth;
    }
};

struct Nested : Shape {
    std::unique_ptr<Shape> inside;
    int area(int depth) const override
    {
        std::function<int(int)> call = [this](int n) { return inside->area(n - 1) + 1; };
        int result = call(depth);
        NO_TAIL_CALL();
        return result;
    }
};

template <int N> OPAQUE int instantiate(int a)
{
    volatile char local[N * 8 + 1];
    local[N] = static_cast<char>(a);
    int result = instantiate<N - 1>(a + local[N]);
    NO_TAIL_CALL();
    return result + local[N];
}

template <> OPAQUE int instantiate<0>(int a)
{
    plain("templates");
    return a;
}

int main()
{
    follow_modules();
    for (int a = 1; a < 5; a++)
        sink = catches(a);
    std::unique_ptr<Shape> shape = std::make_unique<Square>();
    for (int i = 0; i < 6; i++) {
        auto around = std::make_unique<Nested>();
        around->inside = std::move(shape);
        shape = std::move(around);
    }
    sink = shape->area(6);
    sink = instantiate<20>(1);
    std::vector<int> numbers = {4, 2, 7, 1};
    int checked = 0;
    std::sort(numbers.begin(), numbers.end(), [&](int a, int b) {
        if (checked++ < 3)
            plain("std::sort's comparison");
        return a < b;
    });
    std::thread([] {
        plain("std::thread");
        sink = catches(2);
    }).join();
    return finish_checks(30);
}
