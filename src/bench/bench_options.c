/* bench_options.c - the options of a benchmark: a table of its own, so that the server's table knows nothing of them. */
#include <sluice/bench.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct bench_option *find(const struct bench_option *options, size_t num, const char *arg, const char **value)
{
    size_t len = strcspn(arg, "=");

    *value = arg[len] ? arg + len + 1 : NULL;
    for (size_t i = 0; i < num; i++)
        if (strlen(options[i].name) == len && !strncmp(options[i].name, arg, len)) return &options[i];
    return NULL;
}

/* A whole number up to one of the bytes in ends (or the end of the text); *text is moved behind it. */
static bool read_int(const char **text, const char *ends, const struct bench_option *option, int64_t *value)
{
    char *end = NULL;

    if ((unsigned)**text - '0' > 9) return false;
    errno = 0;
    long long read = strtoll(*text, &end, 10);
    if (errno || (double)read < option->min || (double)read > option->max) return false;
    if (*end && !strchr(ends, *end)) return false;
    *value = read;
    *text = end;
    return true;
}

static bool read_ints(const char *text, const struct bench_option *option, struct bench_ints *ints)
{
    ints->n = 0;
    for (;; text++) {
        if (ints->n == BENCH_MAX_INTS || !read_int(&text, ",", option, &ints->items[ints->n])) return false;
        ints->n++;
        if (!*text) return true;
    }
}

static bool read_range(const char *text, const struct bench_option *option, struct bench_range *range)
{
    if (!read_int(&text, "-", option, &range->low)) return false;
    range->high = range->low;
    if (!*text) return true;
    text++;
    return read_int(&text, "", option, &range->high) && range->high >= range->low;
}

static bool read_real(const char *text, const struct bench_option *option, double *value)
{
    char *end = NULL;

    *value = strtod(text, &end);
    return end != text && !*end && isfinite(*value) && *value >= option->min && *value <= option->max;
}

static bool read_value(const struct bench_option *option, const char *text)
{
    switch (option->type) {
    case BENCH_FLAG: *(bool *)option->target = true; return true;
    case BENCH_INT: return read_int(&text, "", option, option->target);
    case BENCH_REAL: return read_real(text, option, option->target);
    case BENCH_TEXT: *(const char **)option->target = text; return true;
    case BENCH_INTS: return read_ints(text, option, option->target);
    case BENCH_RANGE: return read_range(text, option, option->target);
    }
    return false;
}

static const char *accepted(const struct bench_option *option)
{
    switch (option->type) {
    case BENCH_INTS: return "whole numbers with commas between";
    case BENCH_RANGE: return "a whole number, or LOW-HIGH";
    case BENCH_REAL: return "a number";
    default: return "a whole number";
    }
}

int bench_options_take(const struct bench_option *options, size_t num, int argc, char **argv, char **rest, int *n_rest,
                       struct err *err)
{
    bool ended = false;

    if (n_rest) *n_rest = 0;
    for (int i = 0; i < argc; i++) {
        const char *value = NULL;
        const struct bench_option *option = ended ? NULL : find(options, num, argv[i], &value);
        ended = ended || !strcmp(argv[i], "--");
        if (!option && !rest) return err_set(err, ERR_CONFIG, "%.80s: unknown option; --help lists all", argv[i]);
        if (!option) {
            rest[(*n_rest)++] = argv[i];
            continue;
        }
        if (option->type == BENCH_FLAG && value) return err_set(err, ERR_CONFIG, "%s: takes no value", option->name);
        if (option->type != BENCH_FLAG && !value && i + 1 < argc) value = argv[++i];
        if (option->type != BENCH_FLAG && !value) return err_set(err, ERR_CONFIG, "%s: needs a value", option->name);
        if (!read_value(option, value))
            return err_set(err, ERR_CONFIG, "%s: '%.80s' is not %s (%.15g to %.15g)", option->name, value,
                           accepted(option), option->min, option->max);
    }
    return 0;
}

void bench_options_help(const struct bench_option *options, size_t num, FILE *out)
{
    for (size_t i = 0; i < num; i++) fprintf(out, "  %-18s %s\n", options[i].name, options[i].help);
}
