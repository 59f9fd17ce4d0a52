#include "config_load.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bug.h"
#include "base/program.h"
#include "options.h"
#include "yaml_read.h"

enum { NAME_SIZE = 64, API_KEYS_FILE_MAX_BYTES = 1 << 18, MODEL_NAME_MAX_BYTES = 256 };

#define ENV_PREFIX "SLUICE_"

struct load {
    struct config *config;
    const struct config_sources *sources;
    struct err *err;
    const char *positional;         /* the model as a plain argument */
    /* of the file being read */
    enum config_source source;
    const char *file_label;         /* "sluice.yaml", "1x" */
    size_t *seen_lines;             /* per option: where the file has set it, 0 = not yet */
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "configuration: out of memory");
}

static size_t index_of(const struct option *option)
{
    return (size_t)(option - option_table);
}

static const char *origin_text(const struct config *config, const char *name)
{
    const struct config_origin *origin = &config->origins[index_of(option_find(name).option)];

    return origin->text ? origin->text : "default";
}

static int set_origin(struct config_origin *origin, enum config_source source, const char *text)
{
    char *copy = strdup(text);

    if (!copy) return ERR_NO_MEMORY;
    free(origin->text);
    origin->text = copy;
    origin->source = source;
    return 0;
}

/* Keeps value if no stronger source has spoken; consumes it in any case. A list grows within one source. */
static int commit(struct config *config, const struct option *option, struct option_value *value,
                  enum config_source source,
                  const char *origin, struct err *err)
{
    struct config_origin *known = &config->origins[index_of(option)];
    bool append = option->type == OPT_LIST && known->source == source && source != SOURCE_DEFAULT;

    if (source < known->source) {
        option_value_release(value);
        return 0;
    }
    if (set_origin(known, source, origin) < 0) {
        option_value_release(value);
        return no_memory(err);
    }
    return option_store(option, config, value, append, err);
}

/* One text from a flag or the environment. where: "--port", "SLUICE_PORT". */
static int assign(struct load *load, struct option_ref ref, const char *text, enum config_source source,
                  const char *where,
                  const char *origin)
{
    struct option_value value = { 0 };
    int rc = option_parse(ref, text, &value, load->err);

    if (rc == 0) rc = commit(load->config, ref.option, &value, source, origin, load->err);
    return rc < 0 ? err_prefix(load->err, "%s", where), rc : 0;
}

/* ---- defaults ---- */
static int set_defaults(struct config *config, struct err *err)
{
    config->origins = calloc(option_count, sizeof *config->origins);
    if (!config->origins) return no_memory(err);
    for (size_t i = 0; i < option_count; i++) {
        const struct option *option = &option_table[i];
        struct option_value value = { 0 };
        if (option->type == OPT_LIST) continue;   /* empty */
        int rc = option_parse((struct option_ref){ .option = option }, option->default_text, &value, NULL);
        BUG_ON(rc < 0 && rc != ERR_NO_MEMORY);
        if (rc < 0) return no_memory(err);
        (void)option_store(option, config, &value, false, NULL);   /* not a list: cannot fail */
    }
    return 0;
}

/* ---- flags ---- */
/* "--max-num-seqs=4" -> "max_num_seqs"; *value points behind '=' or is NULL. */
static bool flag_name(const char *arg, char *name, const char **value)
{
    const char *start = arg + strspn(arg, "-");
    size_t len = strcspn(start, "=");

    *value = start[len] == '=' ? start + len + 1 : NULL;
    if (len == 0 || len >= NAME_SIZE) return false;
    for (size_t i = 0; i < len; i++) name[i] = start[i] == '-' ? '_' : start[i];
    name[len] = '\0';
    return true;
}

static int unknown_flag(struct load *load, const char *arg, const char *name)
{
    const char *nearest = name ? option_nearest(name) : NULL;
    char dashed[NAME_SIZE] = "";
    size_t len = strcspn(arg, "=");

    snprintf(dashed, sizeof dashed, "%s", nearest ? nearest : "");
    for (char *at = dashed; *at; at++)
        if (*at == '_') *at = '-';
    return err_set(load->err, ERR_CONFIG, "%.*s: unknown option%s%s", (int)(len < 80 ? len : 80), arg,
                   nearest ? "; the nearest is --" : "; --help lists all", dashed);
}

/* --name, --no-name, --name=true, --name=false (--name=auto): never the next argument. */
static int take_bool(struct load *load, struct option_ref ref, bool negated, const char *value, const char *where)
{
    if (negated && value) return err_set(load->err, ERR_CONFIG, "%s: takes no value", where);
    if (!value) value = negated ? "false" : "true";
    return assign(load, ref, value, SOURCE_FLAG, where, "flag");
}

static int take_flag(struct load *load, int *i)
{
    const struct config_sources *from = load->sources;
    const char *arg = from->argv[*i], *value = NULL;
    char name[NAME_SIZE], where[NAME_SIZE + 8];
    struct option_ref ref = { 0 };
    bool negated = false;

    if (!flag_name(arg, name, &value)) return unknown_flag(load, arg, NULL);
    ref = option_find(name);
    /* one dash is for vLLM's two-letter forms only */
    if (arg[1] != '-' && strlen(name) != 2) return unknown_flag(load, arg, name);
    if (!ref.option && strncmp(name, "no_", 3) == 0) {
        ref = option_find(name + 3);
        negated = ref.option && option_is_switch(ref.option);
        if (!negated) ref.option = NULL;
    }
    if (!ref.option) return unknown_flag(load, arg, name);
    snprintf(where, sizeof where, "%.*s", (int)strcspn(arg, "="), arg);
    if (option_is_switch(ref.option)) return take_bool(load, ref, negated, value, where);
    if (!value) {
        bool present = *i + 1 < from->argc && strncmp(from->argv[*i + 1], "--", 2) != 0;
        if (!present) return err_set(load->err, ERR_CONFIG, "%s: needs a value", where);
        value = from->argv[++*i];
    }
    return assign(load, ref, value, SOURCE_FLAG, where, "flag");
}

static int take_positional(struct load *load, const char *arg)
{
    if (load->positional)
        return err_set(load->err, ERR_CONFIG,
                       "'%.80s': one plain argument is accepted, the model; '%.80s' came before", arg,
                       load->positional);
    load->positional = arg;
    return 0;
}

static int read_flags(struct load *load, bool *help)
{
    const struct config_sources *from = load->sources;
    bool only_plain = false;
    int rc = 0;

    for (int i = 0; i < from->argc && rc == 0; i++) {
        const char *arg = from->argv[i];
        if (only_plain || arg[0] != '-' || arg[1] == '\0') rc = take_positional(load, arg);
        else if (strcmp(arg, "--") == 0) only_plain = true;
        else if (help && (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0)) *help = true;
        else rc = take_flag(load, &i);
        if (help && *help) return 0;
    }
    if (rc < 0 || !load->positional) return rc;
    struct option_ref model = option_find("model");
    if (load->config->origins[index_of(model.option)].source == SOURCE_FLAG)
        return err_set(load->err, ERR_CONFIG, "'%.80s': the model is given by --model too", load->positional);
    return assign(load, model, load->positional, SOURCE_FLAG, "model", "flag");
}

/* ---- environment ---- */
bool config_env_name(const char *option, char *name, size_t size)
{
    int len = snprintf(name, size, ENV_PREFIX "%s", option);

    if (len < 0 || (size_t)len >= size) return false;
    for (char *at = name; *at; at++) *at = (char)toupper((unsigned char)*at);
    return true;
}

bool config_env_entry(const char *entry, char *option, size_t size, const char **value)
{
    size_t prefix = strlen(ENV_PREFIX), len = strcspn(entry, "=");

    option[0] = '\0';
    *value = entry + len + (entry[len] == '=');
    if (strncmp(entry, ENV_PREFIX, prefix) != 0 || len - prefix >= size) return false;
    for (size_t i = prefix; i < len; i++) option[i - prefix] = (char)tolower((unsigned char)entry[i]);
    option[len - prefix] = '\0';
    if (**value == '\0') return false;   /* set to nothing = not set */
    if (strcmp(option, "port") == 0 && strstr(*value, "://")) return false;
    return option_find(option).option != NULL;
}

static int read_environment(struct load *load)
{
    char option[NAME_SIZE], where[NAME_SIZE + 8], origin[NAME_SIZE + 16];
    const char *value = NULL;
    int rc = 0;

    for (char *const *entry = load->sources->env; *entry && rc == 0; entry++) {
        if (!config_env_entry(*entry, option, sizeof option, &value)) continue;
        struct option_ref ref = option_find(option);
        const struct config_origin *known = &load->config->origins[index_of(ref.option)];
        snprintf(where, sizeof where, "%.*s", (int)strcspn(*entry, "="), *entry);
        snprintf(origin, sizeof origin, "env %s", where);
        if (known->source == SOURCE_ENV && ref.option->type != OPT_LIST)
            return err_set(load->err, ERR_CONFIG, "%s: sets %s, as %s does", where, ref.option->name, known->text);
        rc = assign(load, ref, value, SOURCE_ENV, where, origin);
    }
    return rc;
}

/* ---- files ---- */
__attribute__((format(printf, 3, 4)))
static int refuse_entry(struct load *load, const struct yaml_entry *entry, const char *fmt, ...)
{
    char message[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return err_set(load->err, ERR_CONFIG, "%s:%zu:%zu: %.80s: %s", load->file_label, entry->key_place.line,
                   entry->key_place.column, entry->key, message);
}

static int check_entry(struct load *load, const struct yaml_entry *entry, const struct option *option)
{
    const char *nearest = option ? NULL : option_nearest(entry->key);

    if (nearest) return refuse_entry(load, entry, "unknown option; the nearest is %s", nearest);
    if (!option) return refuse_entry(load, entry, "unknown option");
    if (option->flags & OPTION_NO_FILE) return refuse_entry(load, entry, "not accepted in a file");
    if (load->source == SOURCE_PRESET && strcmp(option->name, "preset") == 0)
        return refuse_entry(load, entry, "not accepted in a preset");
    size_t *seen = &load->seen_lines[index_of(option)];
    if (*seen) return refuse_entry(load, entry, "duplicate; first set in line %zu", *seen);
    *seen = entry->key_place.line;
    return 0;
}

static int take_entry(void *context, const struct yaml_entry *entry, struct err *err)
{
    struct load *load = context;
    struct option_ref ref = option_find(entry->key);
    struct option_value value = { 0 };
    struct yaml_place place = entry->key_place;
    char origin[PATH_MAX + 64];
    size_t item = 0;
    int rc = check_entry(load, entry, ref.option);

    if (rc < 0) return rc;
    if (entry->is_list) rc = option_parse_items(ref, entry->items, entry->n, &value, &item, err);
    else rc = option_parse(ref, entry->items[0], &value, err);
    if (item < entry->n) place = entry->places[item];
    if (rc < 0) goto out;
    if (load->source == SOURCE_PRESET) snprintf(origin, sizeof origin, "preset %s:%zu", load->file_label,
                                                entry->key_place.line);
    else snprintf(origin, sizeof origin, "file %s:%zu", load->file_label, entry->key_place.line);
    rc = commit(load->config, ref.option, &value, load->source, origin, err);
out:
    if (rc < 0) err_prefix(err, "%s:%zu:%zu: %s", load->file_label, place.line, place.column, entry->key);
    return rc;
}

static int read_file(struct load *load, enum config_source source, const char *path, const char *label)
{
    int rc = 0;

    load->source = source;
    load->file_label = label;
    load->seen_lines = calloc(option_count, sizeof *load->seen_lines);
    if (!load->seen_lines) return no_memory(load->err);
    rc = yaml_read_file(path, take_entry, load, load->err);
    free(load->seen_lines);
    load->seen_lines = NULL;
    return rc;
}

/* An installed program has its presets in ../share, one in a build tree in the source's configs/. */
static int read_preset(struct load *load)
{
    static const char *const places[] = { "../share/sluice/configs", "../../configs", "../../../configs" };
    const char *name = load->config->preset;
    char path[PATH_MAX];

    if (name[0] == '\0') return 0;
    if (name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-_")] != '\0')
        return err_set(load->err, ERR_CONFIG, "preset: '%.80s' is not a name (small letters, digits, - and _)", name);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        int len = snprintf(path, sizeof path, "%s/%s/%s.yaml", load->sources->program_dir, places[i], name);
        if (len > 0 && (size_t)len < sizeof path && access(path, F_OK) == 0) return read_file(load, SOURCE_PRESET,
                                                                                              path, name);
    }
    return err_set(load->err, ERR_CONFIG, "preset: no configs/%.80s.yaml is shipped with this program (%s)", name,
                   origin_text(load->config, "preset"));
}

/* ---- API keys ---- */
static const char *key_of(const char *item)
{
    const char *colon = strchr(item, ':');

    return colon ? colon + 1 : item;
}

/* NULL, or what is wrong. Never says the key. */
static const char *check_key(const char *item)
{
    const char *key = key_of(item);

    if (*key == '\0') return "the key is empty";
    for (const char *at = item; *at; at++)
        if (*at <= ' ' || *at == 0x7f || (unsigned char)*at >= 0x80)
            return "only printable ASCII without blanks is accepted";
    return key == item + 1 ? "the name before ':' is empty" : NULL;
}

static int add_key_line(struct config *config, char *line, size_t number, struct err *err)
{
    const char *path = config->api_keys_file, *wrong = NULL;
    size_t len = strlen(line);

    while (len && (line[len - 1] == '\r' || line[len - 1] == ' ')) line[--len] = '\0';
    if (len == 0 || line[0] == '#') return 0;
    if (!strchr(line, ':')) wrong = "expected name:key";
    else wrong = check_key(line);
    if (!wrong && len > OPTION_MAX_TEXT) wrong = "the line is too long";
    if (!wrong && config->api_keys.n >= OPTION_MAX_ITEMS) wrong = "more than 1024 keys";
    if (wrong) return err_set(err, ERR_CONFIG, "%s:%zu:1: %s", path, number, wrong);
    return str_list_add(&config->api_keys, line, len) < 0 ? no_memory(err) : 0;
}

static int read_api_keys_file(struct config *config, struct err *err)
{
    char *text = NULL;
    size_t len = 0, number = 0;
    int rc = 0;

    if (config->api_keys_file[0] == '\0') return 0;
    rc = small_file_read(config->api_keys_file, API_KEYS_FILE_MAX_BYTES, true, &text, &len, err);
    if (rc < 0) return err_prefix(err, "api_keys_file"), rc;
    if (strlen(text) != len) rc = err_set(err, ERR_CONFIG, "%s: has a NUL byte", config->api_keys_file);
    for (char *line = text; rc == 0 && line;) {
        char *end = strchr(line, '\n');
        if (end) *end = '\0';
        rc = add_key_line(config, line, ++number, err);
        line = end ? end + 1 : NULL;
    }
    explicit_bzero(text, len);
    free(text);
    struct config_origin *keys = &config->origins[index_of(option_find("api_keys").option)];
    if (rc == 0 && !keys->text && set_origin(keys, SOURCE_DEFAULT, "api_keys_file") < 0) rc = no_memory(err);
    return rc;
}

/* ---- what one row cannot say ---- */
static int refuse_value(const struct config *config, const char *name, struct err *err, const char *what)
{
    return err_set(err, ERR_CONFIG, "%s: %s (%s)", name, what, origin_text(config, name));
}

static int check_partition(const struct config *config, struct err *err)
{
    const struct str_list *layers = &config->pp_layer_partition;

    if (layers->n == 0) return 0;
    for (size_t i = 0; i < layers->n; i++) {
        const char *text = layers->items[i];
        if (text[0] < '1' || text[0] > '9' || text[strspn(text, "0123456789")] != '\0' || strlen(text) > 6)
            return refuse_value(config, "pp_layer_partition", err, "each item is a number of layers, 1 or more");
    }
    if ((int64_t)layers->n != config->pipeline_parallel_size)
        return refuse_value(config, "pp_layer_partition", err, "needs one item per stage of pipeline_parallel_size");
    return 0;
}

static int check_together(const struct config *config, struct err *err)
{
    for (size_t i = 0; i < config->api_keys.n; i++) {
        const char *wrong = check_key(config->api_keys.items[i]);
        if (wrong) return refuse_value(config, "api_keys", err, wrong);
    }
    for (size_t i = 0; i < config->served_model_name.n; i++)
        if (strlen(config->served_model_name.items[i]) > MODEL_NAME_MAX_BYTES)
            return refuse_value(config, "served_model_name", err, "a name has more than 256 bytes");
    if (config->admin_api_key[0] && check_key(config->admin_api_key))
        return refuse_value(config, "admin_api_key", err, check_key(config->admin_api_key));
    if (config->block_size & (config->block_size - 1)) return refuse_value(config, "block_size", err,
                                                                           "must be a power of two");
    if (config->sse_keep_alive_interval > 0 && config->sse_keep_alive_interval < 15)
        return refuse_value(config, "sse_keep_alive_interval", err, "must be 0 or at least 15 s");
    if (config->max_body_bytes > config->max_body_bytes_in_flight)
        return refuse_value(config, "max_body_bytes", err, "is larger than max_body_bytes_in_flight");
    if (config->host[0] == '\0') return refuse_value(config, "host", err, "is empty");
    return check_partition(config, err);
}

/* ---- what follows from other values ---- */
/* models/Name.gguf -> Name; a directory of a Hugging Face cache, models--org--name/snapshots/revision, -> org/name. */
static int name_model(struct config *config, struct err *err)
{
    const char *path = config->model, *cache = strstr(path, "models--"), *name = NULL;
    size_t len = strlen(path);
    char text[MODEL_NAME_MAX_BYTES + 1];

    if (config->served_model_name.n > 0 || len == 0) return 0;
    while (len > 1 && path[len - 1] == '/') len--;
    name = memrchr(path, '/', len);
    name = name && len > 1 ? name + 1 : path;
    len -= (size_t)(name - path);
    if (cache && strstr(cache, "/snapshots/")) {
        name = cache + strlen("models--");
        len = strcspn(name, "/");
    } else if (len > 5 && strncmp(name + len - 5, ".gguf", 5) == 0) {
        len -= 5;
    }
    if (len > MODEL_NAME_MAX_BYTES) len = MODEL_NAME_MAX_BYTES;
    memcpy(text, name, len);
    text[len] = '\0';
    char *dashes = cache && name == cache + strlen("models--") ? strstr(text, "--") : NULL;
    if (dashes) {
        *dashes = '/';
        memmove(dashes + 1, dashes + 2, strlen(dashes + 2) + 1);
    }
    return str_list_add(&config->served_model_name, text, strlen(text)) < 0 ? no_memory(err) : 0;
}

static int place_admin_socket(struct load *load)
{
    const char *const variable = "RUNTIME_DIRECTORY=";
    struct config *config = load->config;

    if (config->admin_socket[0]) return 0;
    for (char *const *entry = load->sources->env; *entry; entry++) {
        if (strncmp(*entry, variable, strlen(variable)) != 0) continue;
        const char *dir = *entry + strlen(variable);
        char *path = NULL;
        if (*dir == '\0') return 0;
        if (asprintf(&path, "%.*s/admin.sock", (int)strcspn(dir, ":"), dir) < 0) return no_memory(load->err);
        free(config->admin_socket);
        config->admin_socket = path;
        return 0;
    }
    return 0;
}

int config_load_from(struct config *config, const struct config_sources *sources, bool *help, struct err *err)
{
    struct load load = { .config = config, .sources = sources, .err = err };
    int rc = 0;

    *config = (struct config){ 0 };
    if (help) *help = false;
    if ((rc = set_defaults(config, err)) < 0) goto out;
    if ((rc = read_flags(&load, help)) < 0 || (help && *help)) goto out;
    if ((rc = read_environment(&load)) < 0) goto out;
    if (config->config_file[0] && (rc = read_file(&load, SOURCE_FILE, config->config_file,
                                                  config->config_file)) < 0) goto out;
    if ((rc = read_preset(&load)) < 0) goto out;
    if ((rc = check_together(config, err)) < 0) goto out;
    if ((rc = read_api_keys_file(config, err)) < 0) goto out;
    if ((rc = place_admin_socket(&load)) < 0) goto out;
    rc = name_model(config, err);
out:
    if (rc < 0 || (help && *help)) config_release(config);
    return rc;
}

int config_load(struct config *config, int argc, char *const *argv, bool *help, struct err *err)
{
    char dir[PATH_MAX];
    struct config_sources sources = { .argc = argc, .argv = argv, .env = environ, .program_dir = dir };
    bool asked = false;
    int rc = 0;

    program_dir(dir, sizeof dir);
    rc = config_load_from(config, &sources, &asked, err);
    if (help) *help = asked;
    if (rc == 0 && asked) config_print_help(stdout, "usage: sluiced [MODEL] [options]");
    return rc;
}

int config_load_again(struct config *config, int argc, char *const *argv, char *const *env, struct err *err)
{
    char dir[PATH_MAX];
    struct config_sources sources = { .argc = argc, .argv = argv, .env = env, .program_dir = dir };
    bool asked = false;

    program_dir(dir, sizeof dir);
    return config_load_from(config, &sources, &asked, err);
}

void config_release(struct config *config)
{
    if (!config->origins) return;
    for (size_t i = 0; i < option_count; i++) {
        option_clear(&option_table[i], config);
        free(config->origins[i].text);
    }
    free(config->origins);
    *config = (struct config){ 0 };
}

const char *config_model_name(const struct config *config)
{
    return config->served_model_name.n > 0 ? config->served_model_name.items[0] : "";
}
