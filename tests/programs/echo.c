/* Says what it was given: arguments, environment, working directory, standard input, and whether it sees a terminal. */
#include "eal.h"

int main(int argc, char **argv, char **environment) {
    char directory[4096], line[256];
    start_eal();
    for (int i = 0; i < argc; i++) printf("argument %s\n", argv[i]);
    for (char **entry = environment; *entry != NULL; entry++) printf("environment %s\n", *entry);
    printf("directory %s\n", getcwd(directory, sizeof directory));
    printf("terminal %d\n", isatty(0));
    while (fgets(line, sizeof line, stdin) != NULL) printf("input %s", line);
    fprintf(stderr, "to standard error\n");
    return 0;
}
