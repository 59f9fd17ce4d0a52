/* show.c - sluice options, sluice version: what is built in. */
#include <sluice/cli.h>

#include <stdio.h>
#include <string.h>

#include <sluice/config.h>
#include <sluice/version.h>

#include "base/program.h"
#include "say.h"

#define OPTIONS_USAGE "usage: sluice options [--markdown | --yaml]"

int cli_options(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        puts(OPTIONS_USAGE "\n\nPrints every option of sluiced: as help, as docs/options.md, as configs/sluice.yaml.");
        return say_done("options");
    }
    if (argc > 1) return say_refused("options", "too many arguments; " OPTIONS_USAGE);
    if (argc == 0) config_print_help(stdout, "usage: sluiced [MODEL] [options]");
    else if (strcmp(argv[0], "--markdown") == 0) config_print_markdown(stdout);
    else if (strcmp(argv[0], "--yaml") == 0) config_print_yaml(stdout);
    else return say_refused("options", "unknown argument '%s'; " OPTIONS_USAGE, argv[0]);
    return say_done("options");
}

int cli_version(int argc, char **argv)
{
    if (wants_help(argc, argv)) {
        puts("usage: sluice version\n\nPrints the version.");
        return say_done("version");
    }
    if (argc > 0) return say_refused("version", "takes no arguments, found '%s'", argv[0]);
    puts("sluice " SLUICE_VERSION);
    return say_done("version");
}
