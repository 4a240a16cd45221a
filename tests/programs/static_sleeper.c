/* Linked fully static: there is no dynamic loader, so nothing can be put into it. Sleeps. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    puts("ready");
    fflush(stdout);
    sleep(60);
    return 0;
}
