/* program.h - where the running program lies (presets, engine and benchmarks are found beside it), and whether it was asked for help.
 * Thread: any. */
#ifndef SLUICE_BASE_PROGRAM_H
#define SLUICE_BASE_PROGRAM_H

#include <stdbool.h>
#include <stddef.h>

/* Its folder, "/opt/sluice/bin"; false, and "", where the system does not say or size is too small. */
bool program_dir(char *dir, size_t size);
/* The path of a program in that folder; else the bare name, to be found in PATH. False: it does not fit. */
bool program_beside(char *path, size_t size, const char *name);
/* --help or -h before any "--". argv: what follows a command's name. */
bool wants_help(int argc, char **argv);

#endif
