/* jinja_str.c - strings whose bytes know their origin.
 * A string of one origin keeps one byte for all; a mixed one has an origin byte beside every text byte. Slices
 * share the memory of what they were cut from. */
#include "jinja_value.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "jinja_ast.h"
#include "jinja_unicode.h"

static const struct jstr empty_str = { .data = "" };

struct jval jstr_new(struct jrt *rt, const char *data, size_t len, uint8_t origin)
{
    struct jstr *s = jrt_alloc(rt, 1, sizeof(*s));

    if (!s) return JUNDEF;
    *s = (struct jstr){ .data = data, .len = len, .all = origin };
    return (struct jval){ .kind = JK_STR, .s = s };
}

struct jval jstr_lit(struct jrt *rt, const char *text) { return jstr_new(rt, text, strlen(text), JO_TEMPLATE); }

struct jval jstr_sub(struct jrt *rt, const struct jstr *s, size_t from, size_t to)
{
    struct jstr *sub = jrt_alloc(rt, 1, sizeof(*sub));

    if (!sub) return JUNDEF;
    *sub = *s;
    sub->data = s->data + from;
    sub->len = to - from;
    if (s->origin) sub->origin = s->origin + from;
    return (struct jval){ .kind = JK_STR, .s = sub };
}

uint8_t jstr_origin_at(const struct jstr *s, size_t i) { return s->origin ? s->origin[i] : s->all; }

bool jstr_all_template(const struct jstr *s)
{
    uint8_t origin;

    return s->len == 0 || (jstr_run(s, 0, &origin) == s->len && origin == JO_TEMPLATE);
}

size_t jstr_run(const struct jstr *s, size_t from, uint8_t *origin)
{
    if (!s->origin || from >= s->len) {
        *origin = s->all;
        return s->len;
    }
    *origin = s->origin[from];
    while (from < s->len && s->origin[from] == *origin) from++;
    return from;
}

int jstr_compare(const struct jstr *a, const struct jstr *b)
{
    size_t n = a->len < b->len ? a->len : b->len;
    int order = n ? memcmp(a->data, b->data, n) : 0;

    return order ? order : (a->len > b->len) - (a->len < b->len);
}

bool jstr_is(const struct jstr *s, const char *text)
{
    return s->len == strlen(text) && memcmp(s->data, text, s->len) == 0;
}

size_t jstr_find(const struct jstr *s, size_t from, const struct jstr *needle)
{
    if (from > s->len) return SIZE_MAX;
    if (needle->len == 0) return from;
    const char *hit = memmem(s->data + from, s->len - from, needle->data, needle->len);
    return hit ? (size_t)(hit - s->data) : SIZE_MAX;
}

size_t jstr_chars(const struct jstr *s)
{
    size_t n = 0, cp_len = 0;

    for (size_t i = 0; i < s->len; i += cp_len, n++)
        jcp_next(s->data + i, s->len - i, &cp_len);
    return n;
}

size_t jstr_offset(const struct jstr *s, size_t from, size_t chars)
{
    size_t cp_len = 0;

    for (; chars > 0 && from < s->len; chars--, from += cp_len)
        jcp_next(s->data + from, s->len - from, &cp_len);
    return from;
}

/* ---- a string in the making ---- */
void jbuf_init(struct jbuf *buf, struct jrt *rt) { *buf = (struct jbuf){ .rt = rt }; }

static bool grow(struct jbuf *buf, size_t len)
{
    size_t cap = buf->cap ? buf->cap : 64;
    char *data;

    if (!jrt_charge(buf->rt, len / 64)) return false;
    if (len > JRT_MAX_MEMORY || buf->len + len > JRT_MAX_MEMORY) {
        jrt_fail(buf->rt, "string too long");
        return false;
    }
    if (len <= buf->cap - buf->len) return true;
    while (cap - buf->len < len) cap *= 2;
    if (!(data = jrt_alloc(buf->rt, cap, 1))) return false;
    if (buf->len) memcpy(data, buf->data, buf->len);
    if (buf->origin) {
        uint8_t *origin = jrt_alloc(buf->rt, cap, 1);
        if (!origin) return false;
        memcpy(origin, buf->origin, buf->len);
        buf->origin = origin;
    }
    buf->data = data;
    buf->cap = cap;
    return true;
}

void jbuf_add(struct jbuf *buf, const char *data, size_t len, uint8_t origin)
{
    if (len == 0 || buf->rt->rc || !grow(buf, len)) return;
    if (buf->len == 0) buf->all = origin;
    if (!buf->origin && buf->all != origin) {
        buf->origin = jrt_alloc(buf->rt, buf->cap, 1);
        if (!buf->origin) return;
        memset(buf->origin, buf->all, buf->len);
    }
    memcpy(buf->data + buf->len, data, len);
    if (buf->origin) memset(buf->origin + buf->len, origin, len);
    buf->len += len;
}

void jbuf_puts(struct jbuf *buf, const char *text, uint8_t origin) { jbuf_add(buf, text, strlen(text), origin); }

void jbuf_add_range(struct jbuf *buf, const struct jstr *s, size_t from, size_t to)
{
    while (from < to && !buf->rt->rc) {
        uint8_t origin;
        size_t end = jstr_run(s, from, &origin);
        if (end > to) end = to;
        jbuf_add(buf, s->data + from, end - from, origin);
        from = end;
    }
}

void jbuf_add_cp(struct jbuf *buf, uint32_t cp, uint8_t origin)
{
    char text[4];

    jbuf_add(buf, text, (size_t)utf8_encode(cp, text), origin);
}

struct jval jbuf_take(struct jbuf *buf)
{
    struct jstr *s = jrt_alloc(buf->rt, 1, sizeof(*s));

    if (!s || buf->rt->rc) return JUNDEF;
    *s = (struct jstr){ .data = buf->len ? buf->data : "", .len = buf->len, .origin = buf->origin, .all = buf->all,
                        .markup = buf->markup };
    return (struct jval){ .kind = JK_STR, .s = s };
}

/* ---- str() and repr() as Python prints them ---- */
/* Shortest digits that read back as f; fixed notation for 1e-4 <= |f| < 1e16, else scientific. */
void jfloat_repr(double f, char out[40])
{
    char digits[40], *e;
    int exp, n;

    if (isnan(f)) { memcpy(out, "nan", 4); return; }
    if (isinf(f)) { memcpy(out, f < 0 ? "-inf" : "inf", f < 0 ? 5 : 4); return; }
    for (n = 1; n <= 17; n++) {
        snprintf(digits, sizeof(digits), "%.*e", n - 1, f);
        if (strtod(digits, NULL) == f) break;
    }
    e = strchr(digits, 'e');
    exp = (int)strtol(e + 1, NULL, 10);
    if (n > 17) n = 17;
    if (exp < -4 || exp >= 16) {
        *e = 0;
        snprintf(out, 40, "%.20se%s%02d", digits, exp < 0 ? "-" : "+", abs(exp));
        return;
    }
    int decimals = n - 1 - exp;
    snprintf(out, 40, "%.*f", decimals < 1 ? 1 : decimals, f);
}

static void add_str_repr(struct jbuf *buf, const struct jstr *s)
{
    bool single = s->len && memchr(s->data, '\'', s->len), dbl = s->len && memchr(s->data, '"', s->len);
    char quote = single && !dbl ? '"' : '\'';
    size_t n = 0;

    jbuf_add(buf, &quote, 1, JO_CLIENT);
    for (size_t i = 0; i < s->len && !buf->rt->rc; i += n) {
        uint8_t origin = jstr_origin_at(s, i);
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        char text[16];
        if (cp == (uint32_t)quote || cp == '\\') snprintf(text, sizeof(text), "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            snprintf(text, sizeof(text), "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (jcp_printable(cp)) { jbuf_add(buf, s->data + i, n, origin); continue; }
        else snprintf(text, sizeof(text), cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
        jbuf_puts(buf, text, origin);
    }
    jbuf_add(buf, &quote, 1, JO_CLIENT);
}

static void add_items(struct jbuf *buf, const struct jlist *list, const char *open, const char *close)
{
    jbuf_puts(buf, open, JO_CLIENT);
    for (size_t i = 0; i < list->n && !buf->rt->rc; i++) {
        if (i) jbuf_puts(buf, ", ", JO_CLIENT);
        jbuf_add_repr(buf, list->items[i]);
    }
    jbuf_puts(buf, close, JO_CLIENT);
}

static void add_dict(struct jbuf *buf, const struct jdict *dict)
{
    jbuf_puts(buf, "{", JO_CLIENT);
    for (size_t i = 0; i < dict->n && !buf->rt->rc; i++) {
        if (i) jbuf_puts(buf, ", ", JO_CLIENT);
        jbuf_add_repr(buf, dict->pairs[i].key);
        jbuf_puts(buf, ": ", JO_CLIENT);
        jbuf_add_repr(buf, dict->pairs[i].value);
    }
    jbuf_puts(buf, "}", JO_CLIENT);
}

static void add_container_repr(struct jbuf *buf, struct jval v)
{
    struct jrt *rt = buf->rt;

    if (++rt->depth > JRT_MAX_DEPTH) jrt_fail(rt, "nested too deep");
    if (rt->rc) return;
    switch (v.kind) {
    case JK_LIST: add_items(buf, v.list, "[", "]"); break;
    case JK_TUPLE: add_items(buf, v.list, "(", v.list->n == 1 ? ",)" : ")"); break;
    case JK_DICT: add_dict(buf, v.dict); break;
    case JK_NAMESPACE:
        jbuf_puts(buf, "<TemplateNamespace ", JO_CLIENT);
        add_dict(buf, v.dict);
        jbuf_puts(buf, ">", JO_CLIENT);
        break;
    default:
        jbuf_puts(buf, v.view->name, JO_CLIENT);
        add_items(buf, v.view->items, "([", "])");
        break;
    }
    rt->depth--;
}

void jbuf_add_repr(struct jbuf *buf, struct jval v)
{
    char text[80];

    if (!jrt_charge(buf->rt, 1)) return;
    switch (v.kind) {
    case JK_STR:
        if (v.s->markup) jbuf_puts(buf, "Markup(", JO_CLIENT);
        add_str_repr(buf, v.s);
        if (v.s->markup) jbuf_puts(buf, ")", JO_CLIENT);
        return;
    case JK_LIST: case JK_TUPLE: case JK_DICT: case JK_NAMESPACE: case JK_VIEW: add_container_repr(buf, v); return;
    case JK_UNDEFINED: jbuf_puts(buf, "Undefined", JO_TEMPLATE); return;
    case JK_NONE: jbuf_puts(buf, "None", v.origin); return;
    case JK_BOOL: jbuf_puts(buf, v.b ? "True" : "False", v.origin); return;
    case JK_INT: snprintf(text, sizeof(text), "%" PRId64, v.i); break;
    case JK_FLOAT: jfloat_repr(v.f, text); break;
    case JK_RANGE:
        if (v.range->step == 1)
            snprintf(text, sizeof(text), "range(%" PRId64 ", %" PRId64 ")", v.range->start, v.range->stop);
        else
            snprintf(text, sizeof(text), "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")", v.range->start, v.range->stop,
                     v.range->step);
        break;
    case JK_MACRO:
        jbuf_puts(buf, "<Macro '", JO_TEMPLATE);
        jbuf_puts(buf, buf->rt->tmpl->names[v.macro->node->name], JO_TEMPLATE);
        jbuf_puts(buf, "'>", JO_TEMPLATE);
        return;
    default: snprintf(text, sizeof(text), "<%s object>", jkind_name(v)); break;
    }
    jbuf_puts(buf, text, v.origin);
}

void jbuf_add_value(struct jbuf *buf, struct jval v)
{
    if (v.kind == JK_STR) jbuf_add_range(buf, v.s, 0, v.s->len);
    else if (v.kind != JK_UNDEFINED) jbuf_add_repr(buf, v);
}

const struct jstr *jto_str(struct jrt *rt, struct jval v)
{
    struct jbuf buf;

    if (v.kind == JK_STR) return v.s;
    jbuf_init(&buf, rt);
    jbuf_add_value(&buf, v);
    v = jbuf_take(&buf);
    return v.kind == JK_STR ? v.s : &empty_str;
}

/* ---- what a block prints ---- */
void jout_add_str(struct jrt *rt, struct jout *out, const struct jstr *s)
{
    if (!jrt_charge(rt, s->len / 1024)) return;
    if (s->len > (size_t)JRT_MAX_OUTPUT - out->len) {
        jrt_fail(rt, "the chat template wrote more than %d bytes", JRT_MAX_OUTPUT);
        return;
    }
    for (size_t from = 0; from < s->len;) {
        uint8_t origin;
        size_t end = jstr_run(s, from, &origin);
        if (out->n == out->cap) {
            size_t cap = out->cap ? out->cap * 2 : 16;
            struct jpiece *pieces = jrt_alloc(rt, cap, sizeof(*pieces));
            if (!pieces) return;
            if (out->n) memcpy(pieces, out->pieces, out->n * sizeof(*pieces));
            out->pieces = pieces;
            out->cap = cap;
        }
        out->pieces[out->n++] = (struct jpiece){ .text = s->data + from, .len = end - from, .origin = origin };
        out->len += end - from;
        from = end;
    }
}

struct jval jout_take(struct jrt *rt, const struct jout *out)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    for (size_t i = 0; i < out->n && !rt->rc; i++)
        jbuf_add(&buf, out->pieces[i].text, out->pieces[i].len, out->pieces[i].origin);
    return jbuf_take(&buf);
}
