/* bench_kernels.c - sluice-engine bench kernels: runs the programs NAME_bench that lie beside this one (bench/kernels/).
 * Each measures one family of kernels and prints JSON lines of its own; they are separate because only a CUDA build has
 * them, and an installed engine need not. */
#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/program.h"
#include "bench_private.h"

#define SUFFIX "_bench"

/* Of the programs of this kind one measures no kernel. */
static int is_bench(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name), end = strlen(SUFFIX);

    return len > end && !strcmp(entry->d_name + len - end, SUFFIX) && strcmp(entry->d_name, "scheduler_bench") != 0;
}

/* The exit code of the program. */
static int run_program(const char *dir, const char *name, int argc, char **argv)
{
    char path[PATH_MAX + NAME_MAX + 2];
    char **args = calloc((size_t)argc + 1, sizeof *args);
    int status = 0;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    pid_t pid = args ? fork() : -1;
    if (pid == 0) {
        args[0] = path;
        for (int i = 1; i < argc; i++) args[i] = argv[i];
        execv(path, args);
        _exit(EXIT_FAULT);
    }
    free(args);
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return EXIT_FAULT;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAULT;
}

static bool chosen(const char *only, const char *name)
{
    return !only || (strlen(name) == strlen(only) + strlen(SUFFIX) && !strncmp(name, only, strlen(only)));
}

int bench_kernels(int argc, char **argv)
{
    struct dirent **found = NULL;
    char dir[PATH_MAX];
    int code = 0, num_run = 0;

    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        puts("usage: sluice-engine bench kernels [NAME [arguments]]\n\n"
             "Runs every program NAME" SUFFIX " beside this one, or the one that is named.");
        return 0;
    }
    const char *only = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL;
    int num = program_dir(dir, sizeof dir) ? scandir(dir, &found, is_bench, alphasort) : 0;
    for (int i = 0; i < num; i++) {
        if (chosen(only, found[i]->d_name) && !code) {
            fprintf(stderr, "%s\n", found[i]->d_name);
            code = run_program(dir, found[i]->d_name, argc - (only != NULL), argv + (only != NULL));
            num_run++;
        }
        free(found[i]);
    }
    free(found);
    if (num_run) return code;
    fprintf(stderr, "sluice-engine bench kernels: there is no %s" SUFFIX " beside it (target kernel_benches of a CUDA build)\n",
            only ? only : "*");
    return EXIT_CONFIG;
}
