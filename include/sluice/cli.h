/* cli.h - the commands of the program `sluice`; the table is in src/cli_main.c.
 * Each takes the arguments after its name, prints to stdout, puts one clear line on stderr when it fails and returns the exit
 * code: 0, 1 (health: not healthy), EXIT_CONFIG, EXIT_FAULT. --help prints its manual. Thread: main only. */
#ifndef SLUICE_CLI_H
#define SLUICE_CLI_H

int cli_check(int argc, char **argv);       /* effective options and origins; opens the model */
int cli_plan(int argc, char **argv);        /* layouts and memory, by the sluice-engine beside it: its backend knows the sizes */
int cli_options(int argc, char **argv);     /* the option table as text, Markdown or YAML */
int cli_health(int argc, char **argv);      /* asks a running sluiced */
int cli_bench(int argc, char **argv);       /* load on a running server, timed */
int cli_ramp(int argc, char **argv);        /* how many streams it holds, and what gives way */
int cli_version(int argc, char **argv);

#endif
