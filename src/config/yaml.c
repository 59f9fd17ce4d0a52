#include "yaml_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <yaml.h>

/* One entry being built; its arrays are reused for the next. */
struct reader {
    const char *name;
    yaml_parser_t parser;
    yaml_entry_fn on_entry;
    void *context;
    struct err *err;
    char *key;
    struct yaml_place key_place;
    char **items;
    struct yaml_place *places;
    size_t n, cap;
};

static struct yaml_place place_of(yaml_mark_t mark)
{
    return (struct yaml_place){ mark.line + 1, mark.column + 1 };
}

static int refuse(struct reader *reader, yaml_mark_t mark, const char *what)
{
    struct yaml_place place = place_of(mark);

    return err_set(reader->err, ERR_CONFIG, "%s:%zu:%zu: %s", reader->name, place.line, place.column, what);
}

static int no_memory(struct reader *reader)
{
    return err_set(reader->err, ERR_NO_MEMORY, "%s: out of memory", reader->name);
}

static int next_event(struct reader *reader, yaml_event_t *event)
{
    const yaml_parser_t *parser = &reader->parser;

    if (yaml_parser_parse(&reader->parser, event)) return 0;
    memset(event, 0, sizeof *event);
    if (parser->error == YAML_MEMORY_ERROR) return no_memory(reader);
    return refuse(reader, parser->error == YAML_READER_ERROR ? parser->mark : parser->problem_mark,
                  parser->problem ? parser->problem : "not YAML");
}

static bool is_null_word(const char *text)
{
    return *text == '\0' || strcmp(text, "~") == 0 || strcmp(text, "null") == 0;
}

/* What the subset leaves out, said before the value is looked at. */
static int check_scalar(struct reader *reader, const yaml_event_t *event, bool is_key)
{
    const char *text = (const char *)event->data.scalar.value;

    if (event->data.scalar.anchor) return refuse(reader, event->start_mark, "anchors are not accepted");
    if (event->data.scalar.tag) return refuse(reader, event->start_mark, "tags are not accepted");
    if (strlen(text) != event->data.scalar.length) return refuse(reader, event->start_mark,
                                                                 "a NUL byte is not accepted");
    if (is_key && strcmp(text, "<<") == 0) return refuse(reader, event->start_mark, "merge keys are not accepted");
    if (!is_key && event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && is_null_word(text))
        return refuse(reader, event->start_mark,
                      "no value; leave the key out for its default, or write \"\" for an empty text");
    return 0;
}

static int grow(struct reader *reader)
{
    size_t cap = reader->cap ? 2 * reader->cap : 8;
    char **items = reallocarray(reader->items, cap, sizeof *items);

    if (!items) return no_memory(reader);
    reader->items = items;
    struct yaml_place *places = reallocarray(reader->places, cap, sizeof *places);
    if (!places) return no_memory(reader);
    reader->places = places;
    reader->cap = cap;
    return 0;
}

static int add_item(struct reader *reader, const yaml_event_t *event)
{
    int rc = check_scalar(reader, event, false);

    if (rc < 0) return rc;
    if (reader->n >= YAML_LIST_MAX_ITEMS) return refuse(reader, event->start_mark, "too many list items");
    if (reader->n == reader->cap && (rc = grow(reader)) < 0) return rc;
    reader->items[reader->n] = strdup((const char *)event->data.scalar.value);
    if (!reader->items[reader->n]) return no_memory(reader);
    reader->places[reader->n] = place_of(event->start_mark);
    reader->n++;
    return 0;
}

static int read_list(struct reader *reader)
{
    yaml_event_t event = { 0 };
    int rc = 0;

    for (bool more = true; more && rc == 0;) {
        if ((rc = next_event(reader, &event)) < 0) break;
        if (event.type == YAML_SCALAR_EVENT) rc = add_item(reader, &event);
        else if (event.type == YAML_SEQUENCE_END_EVENT) more = false;
        else if (event.type == YAML_ALIAS_EVENT) rc = refuse(reader, event.start_mark, "aliases are not accepted");
        else rc = refuse(reader, event.start_mark, "a list item must be one value");
        yaml_event_delete(&event);
    }
    return rc;
}

/* event: the first of the value. */
static int read_value(struct reader *reader, const yaml_event_t *event, bool *is_list)
{
    *is_list = false;
    switch (event->type) {
    case YAML_SCALAR_EVENT: return add_item(reader, event);
    case YAML_SEQUENCE_START_EVENT:
        *is_list = true;
        if (event->data.sequence_start.anchor) return refuse(reader, event->start_mark, "anchors are not accepted");
        if (event->data.sequence_start.tag) return refuse(reader, event->start_mark, "tags are not accepted");
        return read_list(reader);
    case YAML_ALIAS_EVENT: return refuse(reader, event->start_mark, "aliases are not accepted");
    default: return refuse(reader, event->start_mark, "expected one value or a list, found a mapping");
    }
}

static void entry_reset(struct reader *reader)
{
    free(reader->key);
    reader->key = NULL;
    for (size_t i = 0; i < reader->n; i++) free(reader->items[i]);
    reader->n = 0;
}

/* event: the key's. */
static int read_entry(struct reader *reader, const yaml_event_t *event)
{
    yaml_event_t value = { 0 };
    bool is_list = false;
    int rc = 0;

    if (event->type == YAML_ALIAS_EVENT) return refuse(reader, event->start_mark, "aliases are not accepted");
    if (event->type != YAML_SCALAR_EVENT) return refuse(reader, event->start_mark,
                                                        "an option's name must be plain text");
    if ((rc = check_scalar(reader, event, true)) < 0) return rc;
    reader->key_place = place_of(event->start_mark);
    reader->key = strdup((const char *)event->data.scalar.value);
    if (!reader->key) return no_memory(reader);
    if ((rc = next_event(reader, &value)) < 0) goto out;
    if ((rc = read_value(reader, &value, &is_list)) < 0) goto out;
    struct yaml_entry entry = { .key = reader->key, .key_place = reader->key_place, .is_list = is_list, .n = reader->n,
                                .items = (const char *const *)reader->items, .places = reader->places };
    rc = reader->on_entry(reader->context, &entry, reader->err);
out:
    yaml_event_delete(&value);
    entry_reset(reader);
    return rc;
}

static int read_mapping(struct reader *reader)
{
    yaml_event_t event = { 0 };
    int rc = 0;

    for (bool more = true; more && rc == 0;) {
        if ((rc = next_event(reader, &event)) < 0) break;
        if (event.type == YAML_MAPPING_END_EVENT) more = false;
        else rc = read_entry(reader, &event);
        yaml_event_delete(&event);
    }
    return rc;
}

static bool has_directives(const yaml_event_t *event)
{
    return event->data.document_start.version_directive ||
           event->data.document_start.tag_directives.start != event->data.document_start.tag_directives.end;
}

static int read_top(struct reader *reader, const yaml_event_t *event, int documents)
{
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (documents > 1) return refuse(reader, event->start_mark, "a second document is not accepted");
        return has_directives(event) ? refuse(reader, event->start_mark, "directives are not accepted") : 0;
    case YAML_MAPPING_START_EVENT:
        if (event->data.mapping_start.anchor) return refuse(reader, event->start_mark, "anchors are not accepted");
        if (event->data.mapping_start.tag) return refuse(reader, event->start_mark, "tags are not accepted");
        return read_mapping(reader);
    case YAML_SCALAR_EVENT:   /* a file of comments and "---" alone */
        if (event->data.scalar.length == 0 && event->data.scalar.plain_implicit) return 0;
        return refuse(reader, event->start_mark, "expected lines of name: value");
    case YAML_SEQUENCE_START_EVENT:
    case YAML_ALIAS_EVENT: return refuse(reader, event->start_mark, "expected lines of name: value");
    default: return 0;
    }
}

int yaml_read_text(const char *name, const char *text, size_t len, yaml_entry_fn on_entry, void *context,
                   struct err *err)
{
    struct reader reader = { .name = name, .on_entry = on_entry, .context = context, .err = err };
    yaml_event_t event = { 0 };
    int rc = 0, documents = 0;

    if (!yaml_parser_initialize(&reader.parser)) return no_memory(&reader);
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, len);
    for (bool more = true; more && rc == 0;) {
        if ((rc = next_event(&reader, &event)) < 0) break;
        documents += event.type == YAML_DOCUMENT_START_EVENT;
        more = event.type != YAML_STREAM_END_EVENT;
        rc = read_top(&reader, &event, documents);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&reader.parser);
    free(reader.items);
    free(reader.places);
    return rc;
}

static int read_all(int fd, const char *path, size_t max_bytes, char **data, size_t *len, struct err *err)
{
    char *bytes = malloc(max_bytes + 2);   /* one more than allowed, to see that it is too long, and the NUL */

    if (!bytes) return err_set(err, ERR_NO_MEMORY, "%s: out of memory", path);
    *len = 0;
    for (;;) {
        ssize_t got = read(fd, bytes + *len, max_bytes + 1 - *len);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            free(bytes);
            return err_sys(err, ERR_CONFIG, "%s", path);
        }
        *len += (size_t)got;
        if (got == 0 || *len > max_bytes) break;
    }
    if (*len > max_bytes) {
        free(bytes);
        return err_set(err, ERR_CONFIG, "%s: larger than %zu bytes", path, max_bytes);
    }
    bytes[*len] = '\0';
    *data = bytes;
    return 0;
}

int small_file_read(const char *path, size_t max_bytes, bool owner_only, char **data, size_t *len, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    struct stat info;
    int rc = 0;

    if (fd < 0) return err_sys(err, ERR_CONFIG, "%s", path);
    if (fstat(fd, &info) < 0) rc = err_sys(err, ERR_CONFIG, "%s", path);
    else if (owner_only && (info.st_mode & 077))
        rc = err_set(err, ERR_CONFIG, "%s: mode %04o; only the owner may have access (chmod 600)", path,
                     (unsigned)(info.st_mode & 07777));
    else rc = read_all(fd, path, max_bytes, data, len, err);
    close(fd);
    return rc;
}

int yaml_read_file(const char *path, yaml_entry_fn on_entry, void *context, struct err *err)
{
    char *text = NULL;
    size_t len = 0;
    int rc = small_file_read(path, YAML_FILE_MAX_BYTES, false, &text, &len, err);

    if (rc < 0) return rc;
    rc = yaml_read_text(path, text, len, on_entry, context, err);
    free(text);
    return rc;
}
