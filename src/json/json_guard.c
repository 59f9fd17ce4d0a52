/* json_guard.c - one pass over the raw bytes, then cJSON.
 * Flow     bytes -> guard_run (strict RFC 8259, no recursion, linear) -> cJSON -> repair_tree (only after a rewrite).
 * Keys     of the objects that are open lie on one stack; when an object closes, its keys are compared by a keyed hash
 *          (pairs for a few, a table for many), equal hashes by their unescaped bytes, and the stack is cut back.
 * Rewrite  is lazy: text is copied only up to the last byte that cJSON would get wrong; clean text is parsed as is. */
#include "json_guard.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "base/buf.h"
#include "base/bug.h"
#include "base/hash.h"
#include "base/utf8.h"

enum {
    NUMBER_MAX = 1024,      /* bytes of one number; keeps strtod bounded */
    CJSON_NUMBER_MAX = 60,  /* cJSON reads numbers through a buffer of 64 bytes and cuts longer ones */
    SMALL_OBJECT = 12,      /* keys compared pair by pair */
};
static const uint64_t exact_int_max = 1ULL << 53;

const struct json_limits json_limits_request = { 64, 1 << 20, 32u << 20, true };
const struct json_limits json_limits_file = { 64, 64u << 20, 1u << 30, true };

struct guard_key {
    uint64_t hash;
    size_t offset;      /* of the byte after the opening quote */
    uint32_t len;       /* raw bytes between the quotes */
    bool escaped;
};

struct guard_frame {
    bool is_object;
    size_t first_key;   /* index in keys */
};

struct guard {
    const char *text;
    size_t len, pos;
    struct json_limits limits;
    struct err *err;

    struct guard_frame frames[JSON_DEPTH_CAP];
    int depth;
    size_t nodes;

    struct guard_key *keys;
    size_t num_keys, cap_keys;
    uint32_t *table;           /* of a large object: 1 + index of its key, 0 = free */
    size_t cap_table;
    uint64_t seed;
    struct buf key_a, key_b;   /* unescaped keys */

    size_t num_numbers;        /* that cJSON will see as such */
    struct buf reals;          /* uint32_t: which of them were written with a fraction or an exponent */

    struct buf out;            /* rewritten text up to `copied` */
    size_t copied;
    bool rewritten;
};

static int bad(struct guard *g, const char *what, size_t pos)
{
    return err_set(g->err, ERR_JSON, "%s at byte %zu", what, pos);
}

/* Replaces text[from, to) in the copy that cJSON will read. */
static void rewrite(struct guard *g, size_t from, size_t to, const char *with, size_t with_len)
{
    buf_append(&g->out, g->text + g->copied, from - g->copied);
    buf_append(&g->out, with, with_len);
    g->copied = to;
    g->rewritten = true;
}

static void skip_space(struct guard *g)
{
    size_t pos = g->pos;
    while (pos < g->len) {
        char c = g->text[pos];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') break;
        pos++;
    }
    g->pos = pos;
}

/* ---- strings ---- */
static int hex4(const char *text)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)text[i];
        int digit = c >= '0' && c <= '9' ? c - '0'
                  : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* g->pos is at "\u". Surrogates must come as a high-low pair. */
static int scan_unicode_escape(struct guard *g)
{
    size_t pos = g->pos;
    int unit = g->len - pos >= 6 ? hex4(g->text + pos + 2) : -1;
    if (unit < 0) return bad(g, "bad \\u escape", pos);
    if (unit >= 0xDC00 && unit <= 0xDFFF) return bad(g, "lone low surrogate", pos);
    g->pos = pos + 6;
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        const char *next = g->text + g->pos;
        int low = g->len - g->pos >= 6 && next[0] == '\\' && next[1] == 'u' ? hex4(next + 2) : -1;
        if (low < 0xDC00 || low > 0xDFFF) return bad(g, "lone high surrogate", pos);
        g->pos += 6;
    }
    if (unit == 0) {
        if (!g->limits.allow_nul) return bad(g, "\\u0000 is not allowed", pos);
        rewrite(g, pos, g->pos, "\xC0\x80", 2);
    }
    return 0;
}

static int scan_escape(struct guard *g)
{
    if (g->len - g->pos < 2) return bad(g, "unterminated string", g->len);
    switch (g->text[g->pos + 1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        g->pos += 2;
        return 0;
    case 'u':
        return scan_unicode_escape(g);
    default:
        return bad(g, "bad escape", g->pos);
    }
}

/* The high bit of each byte of the result: that byte is a quote, a backslash, a control byte or not ASCII. Bits above
 * the lowest set one may be false alarms (borrows), the lowest never is. */
static uint64_t special_bytes(uint64_t w)
{
    const uint64_t ones = 0x0101010101010101ULL, high = 0x8080808080808080ULL;
    uint64_t quote = w ^ (ones * '"'), slash = w ^ (ones * '\\');
    return ((w - ones * 0x20) | (quote - ones) | (slash - ones) | w) & high;
}

/* g->pos is after the opening quote; on return after the closing one. */
static int scan_string(struct guard *g, bool *escaped)
{
    *escaped = false;
    for (;;) {
        while (g->len - g->pos >= 8) {
            uint64_t word;
            memcpy(&word, g->text + g->pos, 8);
            uint64_t found = special_bytes(word);
            if (found) {
                g->pos += (size_t)__builtin_ctzll(found) >> 3;   /* little endian, as every target */
                break;
            }
            g->pos += 8;
        }
        if (g->pos == g->len) return bad(g, "unterminated string", g->len);
        unsigned char c = (unsigned char)g->text[g->pos];
        if (c == '"') {
            g->pos++;
            return 0;
        }
        if (c == '\\') {
            int rc = scan_escape(g);
            if (rc < 0) return rc;
            *escaped = true;
        } else if (c < 0x20) {
            return bad(g, "raw control byte in string", g->pos);
        } else if (c < 0x80) {
            g->pos++;
        } else {
            uint32_t cp;
            int n = utf8_decode(g->text + g->pos, g->len - g->pos, &cp);
            if (n <= 0) return bad(g, "invalid UTF-8", g->pos);
            g->pos += (size_t)n;
        }
    }
}

/* ---- keys ---- */
/* raw is a validated string without its quotes. */
static void unescape(struct buf *out, const char *raw, size_t len)
{
    static const char plain[] = "\"\\/bfnrt", meaning[] = "\"\\/\b\f\n\r\t";

    buf_reset(out);
    for (size_t i = 0; i < len;) {
        const char *slash = memchr(raw + i, '\\', len - i);
        size_t run = (slash ? (size_t)(slash - raw) : len) - i;
        buf_append(out, raw + i, run);
        i += run;
        if (!slash) break;
        if (raw[i + 1] != 'u') {
            buf_putc(out, meaning[strchr(plain, raw[i + 1]) - plain]);
            i += 2;
            continue;
        }
        uint32_t cp = (uint32_t)hex4(raw + i + 2);
        i += 6;
        if (cp >= 0xD800 && cp <= 0xDBFF) {
            cp = 0x10000 + ((cp - 0xD800) << 10) + ((uint32_t)hex4(raw + i + 2) - 0xDC00);
            i += 6;
        }
        char bytes[4];
        buf_append(out, bytes, (size_t)utf8_encode(cp, bytes));
    }
}

static void key_bytes(struct guard *g, const struct guard_key *key, struct buf *scratch, const char **text, size_t *len)
{
    *text = g->text + key->offset;
    *len = key->len;
    if (key->escaped) {
        unescape(scratch, *text, *len);
        *text = scratch->data ? scratch->data : "";
        *len = scratch->len;
    }
}

static int push_key(struct guard *g, size_t offset, size_t len, bool escaped)
{
    if (g->num_keys == g->cap_keys) {
        size_t cap = g->cap_keys ? g->cap_keys * 2 : 64;
        struct guard_key *keys = realloc(g->keys, cap * sizeof *keys);
        if (!keys) return err_set(g->err, ERR_NO_MEMORY, "out of memory reading JSON");
        g->keys = keys;
        g->cap_keys = cap;
    }
    struct guard_key *key = &g->keys[g->num_keys++];
    *key = (struct guard_key){ .offset = offset, .len = (uint32_t)len, .escaped = escaped };
    const char *text;
    size_t text_len;
    key_bytes(g, key, &g->key_a, &text, &text_len);
    key->hash = hash_bytes(text, text_len, g->seed);
    return g->key_a.failed ? err_set(g->err, ERR_NO_MEMORY, "out of memory reading JSON") : 0;
}

static bool same_key(struct guard *g, const struct guard_key *a, const struct guard_key *b)
{
    const char *text_a, *text_b;
    size_t len_a, len_b;

    if (a->hash != b->hash) return false;
    key_bytes(g, a, &g->key_a, &text_a, &len_a);
    key_bytes(g, b, &g->key_b, &text_b, &len_b);
    return len_a == len_b && memcmp(text_a, text_b, len_a) == 0;
}

static int check_large_object(struct guard *g, const struct guard_key *keys, size_t n)
{
    size_t cap = 64;
    while (cap < n * 2) cap *= 2;
    if (cap > g->cap_table) {
        free(g->table);
        g->table = malloc(cap * sizeof *g->table);
        g->cap_table = g->table ? cap : 0;
        if (!g->table) return err_set(g->err, ERR_NO_MEMORY, "out of memory reading JSON");
    }
    memset(g->table, 0, cap * sizeof *g->table);
    for (size_t i = 0; i < n; i++) {
        size_t slot = keys[i].hash & (cap - 1);
        for (; g->table[slot]; slot = (slot + 1) & (cap - 1)) {
            if (same_key(g, &keys[g->table[slot] - 1], &keys[i])) return bad(g, "duplicate key", keys[i].offset - 1);
        }
        g->table[slot] = (uint32_t)(i + 1);
    }
    return 0;
}

/* The innermost frame's object is complete: its keys must differ. */
static int check_keys(struct guard *g)
{
    size_t first = g->frames[g->depth - 1].first_key, n = g->num_keys - first;
    if (n < 2) {
        g->num_keys = first;
        return 0;
    }
    const struct guard_key *keys = g->keys + first;
    g->num_keys = first;
    if (n > SMALL_OBJECT) return check_large_object(g, keys, n);
    for (size_t i = 1; i < n; i++) {
        for (size_t k = 0; k < i; k++) {
            if (same_key(g, &keys[k], &keys[i])) return bad(g, "duplicate key", keys[i].offset - 1);
        }
    }
    return 0;
}

/* ---- numbers and words ---- */
static size_t scan_digits(struct guard *g)
{
    size_t start = g->pos;
    while (g->pos < g->len && g->text[g->pos] >= '0' && g->text[g->pos] <= '9') g->pos++;
    return g->pos - start;
}

/* A valid number token that cJSON may not read right as it stands. */
static int check_long_number(struct guard *g, size_t start, bool is_integer)
{
    char text[NUMBER_MAX + 1], repaired[NUMBER_MAX + 8];
    size_t len = g->pos - start;

    if (len > NUMBER_MAX) return bad(g, "number of more than 1024 bytes", start);
    memcpy(text, g->text + start, len);
    text[len] = '\0';
    double value = strtod(text, NULL);
    if (!isfinite(value)) return bad(g, "number out of range", start);
    if (is_integer && fabs(value) >= (double)exact_int_max) {
        errno = 0;
        long long exact = strtoll(text, NULL, 10);
        if (errno == 0 && exact >= -(long long)exact_int_max && exact <= (long long)exact_int_max) return 0;
        int n = snprintf(repaired, sizeof repaired, "\"\xC0\x81%s\"", text);   /* repair_tree makes it a number again */
        rewrite(g, start, g->pos, repaired, (size_t)n);
        g->num_numbers--;
    } else if (len > CJSON_NUMBER_MAX) {
        int n = snprintf(repaired, sizeof repaired, "%.17g", value);
        rewrite(g, start, g->pos, repaired, (size_t)n);
    }
    return 0;
}

static int scan_number(struct guard *g)
{
    size_t start = g->pos;
    bool is_integer = true, has_exponent = false;

    if (g->text[g->pos] == '-') g->pos++;
    size_t first = g->pos;
    size_t digits = scan_digits(g);
    if (digits == 0) return bad(g, "bad number", start);
    if (digits > 1 && g->text[first] == '0') return bad(g, "number with a leading zero", start);
    if (g->pos < g->len && g->text[g->pos] == '.') {
        is_integer = false;
        g->pos++;
        if (scan_digits(g) == 0) return bad(g, "number without digits after the point", start);
    }
    if (g->pos < g->len && (g->text[g->pos] == 'e' || g->text[g->pos] == 'E')) {
        is_integer = false;
        has_exponent = true;
        g->pos++;
        if (g->pos < g->len && (g->text[g->pos] == '+' || g->text[g->pos] == '-')) g->pos++;
        if (scan_digits(g) == 0) return bad(g, "number without digits in the exponent", start);
    }
    uint32_t ordinal = (uint32_t)g->num_numbers++;
    if (!is_integer) buf_append(&g->reals, &ordinal, sizeof ordinal);
    bool plain = is_integer ? digits <= 15 : !has_exponent && g->pos - start <= CJSON_NUMBER_MAX;
    return plain ? 0 : check_long_number(g, start, is_integer);
}

static int scan_word(struct guard *g, const char *word, size_t len)
{
    if (g->len - g->pos < len || memcmp(g->text + g->pos, word, len) != 0)
        return bad(g, "unexpected character", g->pos);
    g->pos += len;
    return 0;
}

/* ---- structure ---- */
static int open_frame(struct guard *g, bool is_object)
{
    int max_depth = g->limits.max_depth < JSON_DEPTH_CAP ? g->limits.max_depth : JSON_DEPTH_CAP;
    if (g->depth >= max_depth) {
        return err_set(g->err, ERR_JSON, "nested more than %d deep at byte %zu", max_depth, g->pos);
    }
    g->frames[g->depth++] = (struct guard_frame){ is_object, g->num_keys };
    g->pos++;
    skip_space(g);
    return 0;
}

/* "key" : */
static int scan_key(struct guard *g)
{
    bool escaped;
    skip_space(g);
    if (g->pos == g->len || g->text[g->pos] != '"') return bad(g, "expected a key in quotes", g->pos);
    size_t start = ++g->pos;
    int rc = scan_string(g, &escaped);
    if (rc < 0) return rc;
    if ((rc = push_key(g, start, g->pos - 1 - start, escaped)) < 0) return rc;
    skip_space(g);
    if (g->pos == g->len || g->text[g->pos] != ':') return bad(g, "expected ':'", g->pos);
    g->pos++;
    return 0;
}

/* A value, or the opening of one. *complete: whether it ended (scalars). */
static int scan_value(struct guard *g, bool *complete)
{
    bool escaped;
    skip_space(g);
    if (g->pos == g->len) return bad(g, "unexpected end", g->pos);
    if (++g->nodes > g->limits.max_nodes) {
        return err_set(g->err, ERR_JSON, "more than %zu values at byte %zu", g->limits.max_nodes, g->pos);
    }
    *complete = true;
    switch (g->text[g->pos]) {
    case '{':
        *complete = false;
        return open_frame(g, true);
    case '[':
        *complete = false;
        return open_frame(g, false);
    case '"':
        g->pos++;
        return scan_string(g, &escaped);
    case 't': return scan_word(g, "true", 4);
    case 'f': return scan_word(g, "false", 5);
    case 'n': return scan_word(g, "null", 4);
    case '-': case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9':
        return scan_number(g);
    default:
        return bad(g, "unexpected character", g->pos);
    }
}

/* After a complete value: closes what closes, until a comma asks for more (*more) or the document is complete. */
static int scan_after_value(struct guard *g, bool *more)
{
    for (*more = false; g->depth > 0; g->depth--) {
        bool is_object = g->frames[g->depth - 1].is_object;
        skip_space(g);
        if (g->pos == g->len) return bad(g, "unexpected end", g->pos);
        char c = g->text[g->pos];
        if (c == ',') {
            g->pos++;
            *more = true;
            return 0;
        }
        if (c != (is_object ? '}' : ']'))
            return bad(g, is_object ? "expected ',' or '}'" : "expected ',' or ']'", g->pos);
        g->pos++;
        int rc = is_object ? check_keys(g) : 0;
        if (rc < 0) return rc;
    }
    return 0;
}

static int guard_run(struct guard *g)
{
    bool more = true;
    int rc;

    if (g->len >= 3 && memcmp(g->text, "\xEF\xBB\xBF", 3) == 0) return bad(g, "byte order mark", 0);
    while (more) {
        bool complete = false;
        if (g->depth > 0 && g->frames[g->depth - 1].is_object && (rc = scan_key(g)) < 0) return rc;
        if ((rc = scan_value(g, &complete)) < 0) return rc;
        if (!complete) {
            char close = g->frames[g->depth - 1].is_object ? '}' : ']';
            if (g->pos == g->len || g->text[g->pos] != close) continue;   /* first member or element follows */
        }
        if ((rc = scan_after_value(g, &more)) < 0) return rc;
    }
    skip_space(g);
    return g->pos == g->len ? 0 : bad(g, "bytes after the document", g->pos);
}

/* ---- after cJSON ---- */
/* Turns C0 80 back into NUL in place. */
static void repair_string(cJSON *item)
{
    char *text = item->valuestring;
    if (text[0] == '\xC0' && text[1] == '\x81') {
        memmove(text, text + 2, strlen(text + 2) + 1);
        item->type = cJSON_Raw;
        item->valuedouble = strtod(text, NULL);
        return;
    }
    char *pair = strstr(text, "\xC0\x80");
    if (!pair) return;
    char *to = pair;
    const char *from = pair;
    while (*from) {
        if (from[0] == '\xC0' && from[1] == '\x80') {
            *to++ = '\0';
            from += 2;
        } else {
            *to++ = *from++;
        }
    }
    *to = '\0';
    item->valueint = (int)(to - text);   /* json_limits keep texts below INT_MAX */
    item->valuedouble = json_nul_tag(text);
}

/* In the order of the text: numbers are counted as the scan counted them. */
static void repair_tree(const struct guard *g, cJSON *root)
{
    cJSON *stack[JSON_DEPTH_CAP + 1];
    const char *next_real = g->reals.data, *end = g->reals.len ? next_real + g->reals.len : next_real;
    uint32_t number = 0, ordinal;
    int depth = 0;

    stack[depth++] = root;
    while (depth > 0) {
        cJSON *item = stack[depth - 1];
        if (!item) {
            depth--;
            continue;
        }
        stack[depth - 1] = item->next;
        if (item->type == cJSON_String) repair_string(item);
        if (item->type == cJSON_Number && next_real < end) {
            memcpy(&ordinal, next_real, sizeof ordinal);
            if (ordinal == number++) {
                item->type |= JSON_REAL_FLAG;
                next_real += sizeof ordinal;
            }
        }
        BUG_ON(item->child && depth > JSON_DEPTH_CAP);
        if (item->child) stack[depth++] = item->child;
    }
}

static int parse_validated(struct guard *g, cJSON **root)
{
    const char *text = g->text, *end = NULL;
    size_t len = g->len;

    if (g->rewritten) {
        buf_append(&g->out, g->text + g->copied, g->len - g->copied);
        if (g->out.failed) return err_set(g->err, ERR_NO_MEMORY, "out of memory reading JSON");
        text = g->out.data;
        len = g->out.len;
    }
    *root = cJSON_ParseWithLengthOpts(text, len, &end, 0);
    if (!*root) return err_set(g->err, ERR_NO_MEMORY, "out of memory reading JSON of %zu bytes", len);
    if (g->rewritten || g->reals.len) repair_tree(g, *root);
    return 0;
}

int json_parse(const char *text, size_t len, const struct json_limits *limits, struct cJSON **root, struct err *err)
{
    *root = NULL;
    if (len > limits->max_bytes || len > INT32_MAX) {
        return err_set(err, ERR_JSON, "JSON of %zu bytes is too long at byte %zu", len, limits->max_bytes);
    }
    struct guard *g = calloc(1, sizeof *g);
    if (!g) return err_set(err, ERR_NO_MEMORY, "out of memory reading JSON");
    g->text = text;
    g->len = len;
    g->limits = *limits;
    g->err = err;
    g->seed = hash_process_seed();
    int rc = guard_run(g);
    if (rc == 0 && g->reals.failed) rc = err_set(err, ERR_NO_MEMORY, "out of memory reading JSON");
    if (rc == 0) rc = parse_validated(g, root);
    buf_release(&g->out);
    buf_release(&g->reals);
    buf_release(&g->key_a);
    buf_release(&g->key_b);
    free(g->table);
    free(g->keys);
    free(g);
    return rc;
}

void json_free(struct cJSON *root)
{
    cJSON_Delete(root);
}
