/* option_value.c - the values of the table's rows: text in, text out, nothing guessed. */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bug.h"
#include "base/utf8.h"

struct suffix { const char *text; int64_t factor; };

static const struct suffix byte_suffixes[] = {
    { "TiB", INT64_C(1) << 40 }, { "GiB", INT64_C(1) << 30 }, { "MiB", INT64_C(1) << 20 }, { "KiB",
                                                                                            INT64_C(1) << 10 }, { NULL,
                                                                                                                 0 } };
static const struct suffix time_suffixes[] = {
    { "ms", 1 }, { "s", 1000 }, { "m", 60 * 1000 }, { "h", 60 * 60 * 1000 }, { NULL, 0 } };

static void *field_of(const struct option *option, const struct config *config)
{
    return (char *)(uintptr_t)config + option->offset;
}

struct str_list *option_list(const struct option *option, struct config *config)
{
    BUG_ON(option->type != OPT_LIST);
    return field_of(option, config);
}

int str_list_add(struct str_list *list, const char *text, size_t len)
{
    char **items = reallocarray(list->items, list->n + 1, sizeof *items);

    if (!items) return ERR_NO_MEMORY;
    list->items = items;
    items[list->n] = strndup(text, len);
    if (!items[list->n]) return ERR_NO_MEMORY;
    list->n++;
    return 0;
}

void str_list_release(struct str_list *list)
{
    for (size_t i = 0; i < list->n; i++) free(list->items[i]);
    free(list->items);
    *list = (struct str_list){ 0 };
}

void option_value_release(struct option_value *value)
{
    free(value->text);
    str_list_release(&value->list);
    *value = (struct option_value){ 0 };
}

/* ---- what is accepted, for messages ---- */
static void format_bytes(int64_t bytes, struct buf *out)
{
    const struct suffix *suffix = byte_suffixes;

    while (suffix->text && (bytes == 0 || bytes % suffix->factor != 0)) suffix++;
    if (suffix->text) buf_printf(out, "%" PRId64 "%s", bytes / suffix->factor, suffix->text);
    else buf_printf(out, "%" PRId64, bytes);
}

static void format_bound(const struct option *option, double bound, struct buf *out)
{
    if (option->type == OPT_BYTES) format_bytes((int64_t)bound, out);
    else if (bound == (double)(int64_t)bound) buf_printf(out, "%" PRId64, (int64_t)bound);
    else buf_printf(out, "%g", bound);
}

static void describe_choices(const char *choices, struct buf *out)
{
    for (const char *word = choices; *word;) {
        size_t len = strcspn(word, " ");
        bool last = word[len] == '\0';
        if (word != choices) buf_puts(out, last ? " or " : ", ");
        buf_append(out, word, len);
        word += last ? len : len + 1;
    }
}

void option_describe_range(const struct option *option, struct buf *out)
{
    switch (option->type) {
    case OPT_STRING: buf_puts(out, "text"); return;
    case OPT_LIST: buf_puts(out, "list"); return;
    case OPT_BOOL: buf_puts(out, "true or false"); return;
    case OPT_ENUM: describe_choices(option->choices, out); return;
    case OPT_INT: case OPT_REAL: case OPT_BYTES: case OPT_MS: case OPT_SECONDS: break;
    }
    format_bound(option, option->min, out);
    buf_puts(out, "..");
    format_bound(option, option->max, out);
    if (option->unit[0] && option->type != OPT_BYTES) buf_printf(out, " %s", option->unit);
}

/* "'x' is not an integer; accepted: 1..4096 seqs" */
static int refuse(const struct option *option, const char *text, const char *what, struct err *err)
{
    struct buf range = { .limit = 256 };
    int rc;

    option_describe_range(option, &range);
    if (option->flags & OPTION_SECRET) rc = err_set(err, ERR_CONFIG, "%s", what);
    else rc = err_set(err, ERR_CONFIG, "'%.80s' %s; accepted: %s", text, what, range.data ? range.data : "");
    buf_release(&range);
    return rc;
}

/* ---- numbers ---- */
/* -?(0|[1-9][0-9]*), the whole of text up to *end. NULL or what is wrong with it. */
static const char *read_integer(const char *text, int64_t *value, const char **end)
{
    const char *digits = text + (*text == '-');
    char *stop = NULL;

    if (!isdigit((unsigned char)*digits)) return "is not an integer";
    if (digits[0] == '0' && isdigit((unsigned char)digits[1])) return "has a leading zero";
    errno = 0;
    *value = strtoll(text, &stop, 10);
    if (errno == ERANGE) return "is out of range";
    *end = stop;
    return NULL;
}

static const char *scale_by_suffix(const struct suffix *suffix, const char *end, int64_t *value, const char *unknown)
{
    if (*end == ' ') end++;
    for (; suffix->text; suffix++) {
        if (strcmp(end, suffix->text) != 0) continue;
        return __builtin_mul_overflow(*value, suffix->factor, value) ? "is out of range" : NULL;
    }
    return unknown;
}

/* Bounds are in the row's unit, scale turns them into the stored one. */
static int parse_whole(const struct option *option, const char *text, int64_t *value, struct err *err)
{
    const char *end = text, *wrong = read_integer(text, value, &end);
    int64_t unit = option->type == OPT_SECONDS ? 1000 : 1;

    if (!wrong && *end == '\0') {
        if (__builtin_mul_overflow(*value, unit, value)) wrong = "is out of range";
    } else if (!wrong && option->type == OPT_INT) {
        wrong = "is not an integer";
    } else if (!wrong && option->type == OPT_BYTES) {
        wrong = scale_by_suffix(byte_suffixes, end, value, "has an unknown unit (KiB, MiB, GiB, TiB)");
    } else if (!wrong) {
        wrong = scale_by_suffix(time_suffixes, end, value, "has an unknown unit (ms, s, m, h)");
    }
    if (!wrong && ((double)*value < option->min * (double)unit || (double)*value > option->max * (double)unit))
        wrong = "is out of range";
    return wrong ? refuse(option, text, wrong, err) : 0;
}

static const char *skip_digits(const char *text)
{
    while (isdigit((unsigned char)*text)) text++;
    return text;
}

/* A JSON number: no inf, nan, hexadecimal, leading zero or plus. */
static bool is_decimal(const char *text)
{
    const char *at = text + (*text == '-');

    if (!isdigit((unsigned char)*at) || (at[0] == '0' && isdigit((unsigned char)at[1]))) return false;
    at = skip_digits(at);
    if (*at == '.') {
        if (!isdigit((unsigned char)*++at)) return false;
        at = skip_digits(at);
    }
    if (*at == 'e' || *at == 'E') {
        at++;
        if (*at == '+' || *at == '-') at++;
        if (!isdigit((unsigned char)*at)) return false;
        at = skip_digits(at);
    }
    return *at == '\0';
}

static int parse_real(struct option_ref ref, const char *text, double *value, struct err *err)
{
    const struct option *option = ref.option;

    if (!is_decimal(text)) return refuse(option, text, "is not a number", err);
    *value = strtod(text, NULL);
    /* to nine digits, or 1 - 0.9 would print as 0.09999999999999998 */
    if (ref.complement && *value >= 0 && *value <= 1)
        *value = (double)(int64_t)((1 - *value) * 1e9 + 0.5) / 1e9;
    else if (ref.complement) return err_set(err, ERR_CONFIG, "'%.80s' is out of range; it stands for 1 - %s", text,
                                            option->name);
    if (*value < option->min || *value > option->max) {
        if (!ref.complement) return refuse(option, text, "is out of range", err);
        return err_set(err, ERR_CONFIG, "'%.80s' is out of range; accepted: %g..%g", text, 1 - option->max,
                       1 - option->min);
    }
    return 0;
}

/* ---- texts ---- */
static int check_text(const struct option *option, const char *text, struct err *err)
{
    size_t len = strlen(text);

    if (len > OPTION_MAX_TEXT) return err_set(err, ERR_CONFIG, "value of %zu bytes; at most %d", len, OPTION_MAX_TEXT);
    if (!utf8_valid(text, len)) return err_set(err, ERR_CONFIG, "value is not UTF-8");
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return err_set(err, ERR_CONFIG, "value has a control character (byte %zu)", i);
    return option->type == OPT_STRING || option->type == OPT_LIST || len ? 0 : err_set(err, ERR_CONFIG,
                                                                                       "value is empty");
}

static bool is_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);

    for (const char *word = choices; *word;) {
        size_t word_len = strcspn(word, " ");
        if (word_len == len && memcmp(word, text, len) == 0) return true;
        word += word_len + (word[word_len] == ' ');
    }
    return false;
}

static int add_item(const struct option *option, const char *text, size_t len, struct option_value *value,
                    struct err *err)
{
    if (len == 0) return err_set(err, ERR_CONFIG, "a list item is empty");
    if (value->list.n >= (size_t)option->max) return err_set(err, ERR_CONFIG, "more than %.0f items", option->max);
    return str_list_add(&value->list, text, len) < 0 ? err_set(err, ERR_NO_MEMORY, "out of memory") : 0;
}

static int parse_list(const struct option *option, const char *text, struct option_value *value, struct err *err)
{
    int rc = 0;

    if (option->flags & OPTION_VERBATIM) return add_item(option, text, strlen(text), value, err);
    while (*text && rc == 0) {
        size_t len = strcspn(text, ",");
        rc = add_item(option, text, len, value, err);
        text += len;
        if (*text == ',' && *++text == '\0' && rc == 0) rc = err_set(err, ERR_CONFIG, "a list item is empty");
    }
    return rc;
}

int option_parse(struct option_ref ref, const char *text, struct option_value *value, struct err *err)
{
    const struct option *option = ref.option;
    int rc = check_text(option, text, err);

    *value = (struct option_value){ 0 };
    if (rc < 0) return rc;
    switch (option->type) {
    case OPT_INT: case OPT_BYTES: case OPT_MS: case OPT_SECONDS: return parse_whole(option, text, &value->integer, err);
    case OPT_REAL: return parse_real(ref, text, &value->real, err);
    case OPT_BOOL:
        value->boolean = strcmp(text, "true") == 0;
        return value->boolean || strcmp(text, "false") == 0 ? 0 : refuse(option, text, "is not a boolean", err);
    case OPT_LIST:
        rc = parse_list(option, text, value, err);
        if (rc < 0) option_value_release(value);
        return rc;
    case OPT_ENUM:
        if (!is_choice(option->choices, text)) return refuse(option, text, "is not a choice", err);
        break;
    case OPT_STRING: break;
    }
    value->text = strdup(text);
    return value->text ? 0 : err_set(err, ERR_NO_MEMORY, "out of memory");
}

int option_parse_items(struct option_ref ref, const char *const *items, size_t n, struct option_value *value,
                       size_t *item,
                       struct err *err)
{
    int rc = 0;

    *value = (struct option_value){ 0 };
    *item = 0;
    if (ref.option->type != OPT_LIST) return err_set(err, ERR_CONFIG, "takes one value, not a list");
    for (size_t i = 0; i < n && rc == 0; i++) {
        *item = i;
        rc = check_text(ref.option, items[i], err);
        if (rc == 0) rc = add_item(ref.option, items[i], strlen(items[i]), value, err);
    }
    if (rc < 0) option_value_release(value);
    return rc;
}

/* ---- into and out of struct config ---- */
static int store_list(const struct option *option, struct str_list *list, struct option_value *value, bool append,
                      struct err *err)
{
    if (append && list->n + value->list.n > (size_t)option->max)
        return err_set(err, ERR_CONFIG, "more than %.0f items", option->max);
    if (!append) {
        str_list_release(list);
        *list = value->list;
        value->list = (struct str_list){ 0 };
        return 0;
    }
    for (size_t i = 0; i < value->list.n; i++)
        if (str_list_add(list, value->list.items[i], strlen(value->list.items[i])) < 0)
            return err_set(err, ERR_NO_MEMORY, "out of memory");
    return 0;
}

int option_store(const struct option *option, struct config *config, struct option_value *value, bool append,
                 struct err *err)
{
    void *field = field_of(option, config);
    int rc = 0;

    switch (option->type) {
    case OPT_INT: case OPT_BYTES: case OPT_MS: case OPT_SECONDS: *(int64_t *)field = value->integer; break;
    case OPT_REAL: *(double *)field = value->real; break;
    case OPT_BOOL: *(bool *)field = value->boolean; break;
    case OPT_LIST: rc = store_list(option, field, value, append, err); break;
    case OPT_STRING: case OPT_ENUM:
        free(*(char **)field);
        *(char **)field = value->text;
        value->text = NULL;
        break;
    }
    option_value_release(value);
    return rc;
}

void option_clear(const struct option *option, struct config *config)
{
    struct option_value empty = { 0 };

    (void)option_store(option, config, &empty, false, NULL);   /* an empty value cannot be refused */
}

static void format_list(const struct str_list *list, struct buf *out)
{
    for (size_t i = 0; i < list->n; i++) {
        if (i) buf_putc(out, ',');
        buf_puts(out, list->items[i]);
    }
}

/* The shortest text that reads back as the same number. */
static void format_real(double value, struct buf *out)
{
    char text[32];

    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) break;
    }
    buf_puts(out, text);
}

void option_format(const struct option *option, const struct config *config, struct buf *out)
{
    const void *field = field_of(option, config);
    const char *text = NULL;

    switch (option->type) {
    case OPT_INT: case OPT_MS: buf_printf(out, "%" PRId64, *(const int64_t *)field); break;
    case OPT_BYTES: format_bytes(*(const int64_t *)field, out); break;
    case OPT_SECONDS:
        if (*(const int64_t *)field % 1000 == 0) buf_printf(out, "%" PRId64 "s", *(const int64_t *)field / 1000);
        else buf_printf(out, "%" PRId64 "ms", *(const int64_t *)field);
        break;
    case OPT_REAL: format_real(*(const double *)field, out); break;
    case OPT_BOOL: buf_puts(out, *(const bool *)field ? "true" : "false"); break;
    case OPT_LIST: format_list(field, out); break;
    case OPT_STRING: case OPT_ENUM:
        text = *(char *const *)field;
        buf_puts(out, text ? text : "");
        break;
    }
}
