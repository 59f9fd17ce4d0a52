/* config_load.h - config_load with its sources as arguments, and where each value came from. Thread: as config.h. */
#ifndef SLUICE_CONFIG_CONFIG_LOAD_H
#define SLUICE_CONFIG_CONFIG_LOAD_H

#include <sluice/config.h>

enum config_source { SOURCE_DEFAULT, SOURCE_PRESET, SOURCE_FILE, SOURCE_ENV, SOURCE_FLAG };   /* the later wins */

struct config_origin {
    enum config_source source;
    char *text;                 /* "file sluice.yaml:12"; NULL = "default" */
};

struct config_sources {
    int argc;
    char *const *argv;          /* without the program's name */
    char *const *env;           /* NAME=value, NULL-terminated */
    const char *program_dir;    /* presets are looked for beside it */
};

/* As config_load, except that --help only sets *help. */
int config_load_from(struct config *config, const struct config_sources *sources, bool *help, struct err *err);

/* "SLUICE_PORT" for option port; false when it does not fit. */
bool config_env_name(const char *option, char *name, size_t size);
/* Does this entry of the environment set an option? A name alone does not: Kubernetes makes SLUICE_PORT=tcp://... for a
 * service called sluice. option gets the snake_case name of a SLUICE_ entry ("" for any other), *value its value. */
bool config_env_entry(const char *entry, char *option, size_t size, const char **value);

#endif
