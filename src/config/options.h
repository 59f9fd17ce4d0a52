/* options.h - the option table: one row drives YAML, flags, environment, help, check and the generated documentation.
 * A row says where its value lives in struct config, so that nothing else knows an option by name.
 * Flow: text from any source -> option_parse -> option_value -> option_store -> struct config.
 * Thread: any; the table is const. */
#ifndef SLUICE_CONFIG_OPTIONS_H
#define SLUICE_CONFIG_OPTIONS_H

#include <sluice/config.h>

#include "base/buf.h"

enum option_type {
    OPT_STRING,
    OPT_ENUM,       /* one of choices */
    OPT_INT,
    OPT_REAL,
    OPT_BOOL,       /* true or false, nothing else */
    OPT_BYTES,      /* integer, optionally KiB MiB GiB TiB */
    OPT_MS,         /* integer milliseconds, or with ms s m h; stored in ms */
    OPT_SECONDS,    /* integer seconds, or with ms s m h; stored in ms */
    OPT_LIST        /* flags repeat, text is split at commas (not OPTION_VERBATIM), YAML takes a list or one value */
};

enum option_flags {
    OPTION_ENGINE = 1,      /* an engine process needs it */
    OPTION_SECRET = 2,      /* never printed */
    OPTION_VERBATIM = 4,    /* a list whose text is one item, commas included */
    OPTION_NO_FILE = 8      /* refused in files */
};

enum {
    OPTION_MAX_TEXT = 4096,     /* bytes of one value */
    OPTION_MAX_ITEMS = 1024     /* of a list */
};

struct option {
    const char *name;           /* as in YAML: snake_case */
    const char *group;          /* heading in help and documentation */
    enum option_type type;
    const char *default_text;   /* parsed like any other value */
    double min, max;            /* numbers: in the row's unit, exact below 2^53 */
    const char *unit;           /* "" = none */
    const char *choices;        /* OPT_ENUM: "auto cpu cuda" */
    enum config_when when;
    unsigned flags;
    size_t offset;              /* of the field in struct config */
    const char *help;
};

extern const struct option option_table[];
extern const size_t option_count;

/* Another spelling of a row, in every source. */
struct option_alias {
    const char *name;
    const char *target;
    bool complement;            /* stands for 1 - value */
};
extern const struct option_alias option_aliases[];
extern const size_t option_alias_count;

struct option_ref {
    const struct option *option;   /* NULL = unknown name */
    bool complement;
};

/* name: snake_case, exact. */
struct option_ref option_find(const char *name);
/* The known name (alias included) with the fewest edits, or NULL when none is near. */
const char *option_nearest(const char *name);

/* As a flag it needs no value: --name, --no-name. Booleans, and choices of "auto true false". */
bool option_is_switch(const struct option *option);

struct option_value {
    int64_t integer;            /* OPT_INT, OPT_BYTES, durations in ms */
    double real;
    bool boolean;
    char *text;                 /* OPT_STRING, OPT_ENUM: owned */
    struct str_list list;       /* OPT_LIST: owned */
};

/* Checks text against the row. ERR_CONFIG with a message that names the found value (not of a secret) and what is
 * accepted, without saying which option or where: the caller prefixes that. */
int  option_parse(struct option_ref ref, const char *text, struct option_value *value, struct err *err);
/* The same for the items of a YAML list; each item is one value. item gets the index of a refused one. */
int  option_parse_items(struct option_ref ref, const char *const *items, size_t n, struct option_value *value,
                        size_t *item,
                        struct err *err);
void option_value_release(struct option_value *value);

/* Moves value into config; append keeps what a list has already. 0, ERR_NO_MEMORY, ERR_CONFIG (too many items). */
int  option_store(const struct option *option, struct config *config, struct option_value *value, bool append,
                  struct err *err);
/* Appends the value as option_parse reads it; secrets in full: for masks see config_print. */
void option_format(const struct option *option, const struct config *config, struct buf *out);
/* Frees what the row owns in config. */
void option_clear(const struct option *option, struct config *config);
/* The row's list in config; the row must be OPT_LIST. */
struct str_list *option_list(const struct option *option, struct config *config);

/* "1..4096 seqs", "auto, cpu or cuda", "true or false": what a row accepts, for messages and documentation. */
void option_describe_range(const struct option *option, struct buf *out);
const char *option_type_name(enum option_type type);

int  str_list_add(struct str_list *list, const char *text, size_t len);   /* copies; 0 or ERR_NO_MEMORY */
void str_list_release(struct str_list *list);

#endif
