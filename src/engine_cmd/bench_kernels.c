/* bench_kernels.c - sluice-engine bench kernels: runs the programs sluice-bench-* that lie beside this one. Each measures
 * one family of kernels and prints JSON lines of its own; they are separate because only a CUDA build has them. */
#include <dirent.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_private.h"

#define PREFIX "sluice-bench-"

static int is_bench(const struct dirent *entry) { return !strncmp(entry->d_name, PREFIX, strlen(PREFIX)); }

static bool program_dir(char dir[PATH_MAX])
{
    ssize_t len = readlink("/proc/self/exe", dir, PATH_MAX - 1);
    char *slash;

    dir[len > 0 ? len : 0] = '\0';
    slash = strrchr(dir, '/');
    if (slash) *slash = '\0';
    return slash != NULL;
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

static bool chosen(const char *only, const char *name) { return !only || !strcmp(only, name + strlen(PREFIX)); }

int bench_kernels(int argc, char **argv)
{
    struct dirent **found = NULL;
    char dir[PATH_MAX];
    int code = 0, num_run = 0;

    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        puts("usage: sluice-engine bench kernels [NAME [arguments]]\n\n"
             "Runs every program " PREFIX "NAME beside this one, or the one that is named.");
        return 0;
    }
    const char *only = argc > 1 && argv[1][0] != '-' ? argv[1] : NULL;
    int num = program_dir(dir) ? scandir(dir, &found, is_bench, alphasort) : 0;
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
    fprintf(stderr, "sluice-engine bench kernels: this build has %s%s: kernels are measured in a CUDA build only\n",
            only ? "no " PREFIX : "none", only ? only : "");
    return EXIT_CONFIG;
}
