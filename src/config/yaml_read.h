/* yaml_read.h - a configuration file as a flat list of keys with the place of each.
 * The accepted subset: one document, a mapping of names to scalars or to lists of scalars. No anchors, aliases, tags,
 * merge keys, directives or nested mappings. YAML's own guesses about types are not used: every value is text, the
 * option's row reads it.
 * Thread: any. */
#ifndef SLUICE_CONFIG_YAML_READ_H
#define SLUICE_CONFIG_YAML_READ_H

#include <stdbool.h>
#include <stddef.h>

#include <sluice/err.h>

enum {
    YAML_FILE_MAX_BYTES = 1 << 20,
    YAML_LIST_MAX_ITEMS = 4096      /* the options' own limits are lower */
};

struct yaml_place { size_t line, column; };   /* from 1 */

struct yaml_entry {
    const char *key;
    struct yaml_place key_place;
    bool is_list;
    size_t n;                               /* 1 for a scalar */
    const char *const *items;
    const struct yaml_place *places;        /* of each item */
};

/* Gets each entry in file order; what it points to lives during the call. A negative answer ends the reading. */
typedef int (*yaml_entry_fn)(void *context, const struct yaml_entry *entry, struct err *err);

/* name: how messages call the text, "name:line:column: ...". Errors: ERR_CONFIG, ERR_NO_MEMORY, or on_entry's. */
int yaml_read_text(const char *name, const char *text, size_t len, yaml_entry_fn on_entry, void *context,
                   struct err *err);
/* The same for a file of at most YAML_FILE_MAX_BYTES. */
int yaml_read_file(const char *path, yaml_entry_fn on_entry, void *context, struct err *err);

/* Reads a whole small file (NUL added); *data is malloc'ed. owner_only refuses a file others may read. */
int small_file_read(const char *path, size_t max_bytes, bool owner_only, char **data, size_t *len, struct err *err);

#endif
