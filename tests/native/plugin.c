/* A library that is loaded and unloaded; WHICH decides on its frames, not on its addresses. */
void enter(void (*callback)(void *), void *argument);

static __attribute__((noinline, noclone)) void inner(void (*callback)(void *), void *argument)
{
    volatile char room[WHICH == 1 ? 24 : 72];
    room[0] = 1;
    callback(argument);
    room[1] = 1;
}

void enter(void (*callback)(void *), void *argument)
{
    volatile char room[WHICH == 1 ? 88 : 40];
    room[0] = 1;
    inner(callback, argument);
    room[1] = 1;
}
