#include "base/program.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool program_dir(char *dir, size_t size)
{
    ssize_t len = readlink("/proc/self/exe", dir, size);

    if (len <= 0 || (size_t)len >= size) len = 0;
    dir[len] = '\0';
    char *slash = strrchr(dir, '/');
    if (slash) *slash = '\0';
    return slash != NULL;
}

bool program_beside(char *path, size_t size, const char *name)
{
    char dir[PATH_MAX];
    int n = program_dir(dir, sizeof dir) ? snprintf(path, size, "%s/%s", dir, name) : snprintf(path, size, "%s", name);

    return n >= 0 && (size_t)n < size;
}

bool wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}
