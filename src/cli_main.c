/* cli_main.c - the program `sluice`: the operator's command. This file is the table of its commands. */
#include <stdio.h>
#include <string.h>

#include <sluice/cli.h>
#include <sluice/err.h>

struct command {
    const char *name, *summary;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    { "check",   "print the effective options and their origins; look into the model's files", cli_check },
    { "plan",    "which layout of the GPUs holds the model, and what its memory then holds",   cli_plan },
    { "options", "print every option: as text, Markdown or YAML",                              cli_options },
    { "health",  "ask a running sluiced whether it is ready or alive",                         cli_health },
    { "bench",   "measure a running server: bench serve",                                      cli_bench },
    { "ramp",    "raise the load on a running server until it gives way; say why",             cli_ramp },
    { "version", "print the version",                                                          cli_version },
};
enum { NUM_COMMANDS = sizeof commands / sizeof commands[0] };

static int print_usage(FILE *out)
{
    fprintf(out, "usage: sluice COMMAND [arguments]\n\n");
    for (int i = 0; i < NUM_COMMANDS; i++) fprintf(out, "  %-9s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "  %-9s print this, or the help of a command\n", "help");
    fprintf(out, "\nEvery command has --help. The server itself is sluiced.\n");
    return 0;
}

static const struct command *find_command(const char *name)
{
    for (int i = 0; i < NUM_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

int main(int argc, char **argv)
{
    char help_flag[] = "--help";
    char *help_args[] = { help_flag, NULL };
    const char *name = argc > 1 ? argv[1] : "";
    bool help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;

    if (help && argc == 2) return print_usage(stdout);
    if (help) name = argv[2];
    const struct command *command = find_command(name);
    if (command && help) return command->run(1, help_args);
    if (command) return command->run(argc - 2, argv + 2);
    if (*name) fprintf(stderr, "sluice: no command '%.40s'; `sluice help` lists them\n", name);
    else print_usage(stderr);
    return EXIT_CONFIG;
}
