/* plan.c - sluice plan: handed on to the sluice-engine beside this program, which knows the sizes of its backends. */
#include <sluice/cli.h>

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/program.h"
#include "say.h"

int cli_plan(int argc, char **argv)
{
    char path[PATH_MAX], name[] = "plan";
    char **args = calloc((size_t)argc + 3, sizeof *args);

    if (!args || !program_beside(path, sizeof path, "sluice-engine")) {
        free(args);
        return say_refused("plan", "sluice-engine is not found");
    }
    args[0] = path;
    args[1] = name;
    for (int i = 0; i < argc; i++) args[i + 2] = argv[i];
    execvp(path, args);
    free(args);
    return say_refused("plan", "%s: %s", path, strerror(errno));
}
