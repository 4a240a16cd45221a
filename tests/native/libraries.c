/* Libraries that come and go, one at the address of another: their rows must not outlive them. */
#include "walk_check.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

struct seen {
    int expected_end;
    void *return_address;
};

static void called_back(void *argument)
{
    struct seen *seen = argument;
    seen->return_address = __builtin_return_address(0);
    check_stack_of("called from a library", seen->expected_end, 2);
    NO_TAIL_CALL();
}

int main(int argc, char **argv)
{
    void *last = NULL;
    int same_address = 0;
    if (argc != 3)
        return 2;
    follow_modules();
    for (int round = 0; round < 12; round++) {
        struct seen seen = {ENDS_NO_TABLE, NULL};
        void *library = dlopen(argv[1 + round % 2], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 2;
        }
        void (*enter)(void (*)(void *), void *) = (void (*)(void (*)(void *), void *))dlsym(library, "enter");
        if (round % 3 == 0)
            enter(called_back, &seen); /* nobody has told the unwinder yet */
        seen.expected_end = ENDS_COMPLETE;
        follow_modules();
        enter(called_back, &seen);
        enter(called_back, &seen);
        same_address += seen.return_address == last;
        last = seen.return_address;
        dlclose(library);
        follow_modules();
    }
    printf("the other library at the same address: %d times\n", same_address);
    return finish_checks(28) || same_address == 0;
}
