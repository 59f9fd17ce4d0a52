/* jinja_json.c - cJSON trees -> values, values -> JSON text as Python's json.dumps writes it.
 * Includes cJSON.h to walk children; scalars are read through <sluice/json.h>, which knows about NULs and big
 * integers. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <cjson/cJSON.h>

#include <sluice/json.h>

#include "base/utf8.h"
#include "jinja_ast.h"
#include "jinja_unicode.h"

/* ---- in ---- */
static struct jval number_from(struct jrt *rt, const cJSON *item)
{
    int64_t i;

    if (!json_is_int(item) || json_is_written_real(item)) return jfloat(item->valuedouble);
    if (json_int64(item, &i) == 0) return jint(i);
    return jrt_fail(rt, "an integer in the request does not fit in 64 bits");
}

static struct jval string_from(struct jrt *rt, const cJSON *item, uint8_t origin)
{
    const char *text = "";
    size_t len = 0;

    json_string(item, &text, &len);
    return jstr_new(rt, text, len, origin);
}

static struct jval container_from(struct jrt *rt, const cJSON *item, uint8_t origin)
{
    struct jval v;
    size_t n = 0;

    for (const cJSON *child = item->child; child; child = child->next) n++;
    if (cJSON_IsArray(item)) {
        size_t i = 0;
        v = jlist_new(rt, n);
        for (const cJSON *child = item->child; child && !rt->rc; child = child->next)
            *jlist_at(v, i++) = jval_from_json(rt, child, origin);
        return v;
    }
    v = jdict_new(rt, JK_DICT, n);
    for (const cJSON *child = item->child; child && !rt->rc; child = child->next) {
        struct jval key = jstr_new(rt, child->string, strlen(child->string), origin);
        /* the guard in front of cJSON refused duplicate keys, so none is looked for */
        v.dict->pairs[v.dict->n++] = (struct jpair){ .key = key, .value = jval_from_json(rt, child, origin) };
    }
    return v;
}

struct jval jval_from_json(struct jrt *rt, const struct cJSON *item, uint8_t origin)
{
    struct jval v = JNONE;

    if (rt->rc) return JUNDEF;
    if (++rt->depth > JRT_MAX_DEPTH) return jrt_fail(rt, "nested too deep");
    if (cJSON_IsString(item)) v = string_from(rt, item, origin);
    else if (cJSON_IsArray(item) || cJSON_IsObject(item)) v = container_from(rt, item, origin);
    else if (cJSON_IsBool(item)) v = jbool(cJSON_IsTrue(item));
    else if (cJSON_IsNumber(item) || cJSON_IsRaw(item)) v = number_from(rt, item);
    if (v.kind != JK_STR) v.origin = origin;
    rt->depth--;
    return v;
}

/* ---- out ---- */
struct writer {
    struct jbuf buf;
    bool ascii, sort_keys, pretty;
    const struct jstr *indent, *item_sep, *key_sep;
    size_t level;
};

static void write_value(struct writer *w, struct jval v);

static void add_u16(struct jbuf *buf, uint32_t unit, uint8_t origin)
{
    char text[16];

    snprintf(text, sizeof(text), "\\u%04x", (unsigned)unit);
    jbuf_puts(buf, text, origin);
}

static void write_escaped(struct jbuf *buf, uint32_t cp, uint8_t origin)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    const char *hit = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;

    if (hit) {
        char text[2] = { '\\', to[hit - from] };
        jbuf_add(buf, text, 2, origin);
    } else if (cp >= 0x10000) {
        add_u16(buf, 0xD800 + ((cp - 0x10000) >> 10), origin);
        add_u16(buf, 0xDC00 + ((cp - 0x10000) & 0x3FF), origin);
    } else {
        add_u16(buf, cp, origin);
    }
}

static void write_string(struct writer *w, const struct jstr *s)
{
    size_t plain = 0, n = 0;

    jbuf_puts(&w->buf, "\"", JO_CLIENT);
    for (size_t i = 0; i < s->len && !w->buf.rt->rc; i += n) {
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        if (cp >= 0x20 && cp != '"' && cp != '\\' && !(w->ascii && cp > 0x7e)) continue;
        jbuf_add_range(&w->buf, s, plain, i);
        write_escaped(&w->buf, cp, jstr_origin_at(s, i));
        plain = i + n;
    }
    jbuf_add_range(&w->buf, s, plain, s->len);
    jbuf_puts(&w->buf, "\"", JO_CLIENT);
}

static void write_scalar(struct writer *w, struct jval v)
{
    char text[40];

    switch (v.kind) {
    case JK_NONE: memcpy(text, "null", 5); break;
    case JK_BOOL: snprintf(text, sizeof(text), "%s", v.b ? "true" : "false"); break;
    case JK_INT: snprintf(text, sizeof(text), "%" PRId64, v.i); break;
    default:
        if (isnan(v.f)) memcpy(text, "NaN", 4);
        else if (isinf(v.f)) snprintf(text, sizeof(text), "%sInfinity", v.f < 0 ? "-" : "");
        else jfloat_repr(v.f, text);
        break;
    }
    jbuf_puts(&w->buf, text, v.origin);
}

static void new_line(struct writer *w)
{
    if (!w->pretty) return;
    jbuf_puts(&w->buf, "\n", JO_CLIENT);
    for (size_t i = 0; i < w->level && !w->buf.rt->rc; i++)
        jbuf_add(&w->buf, w->indent->data, w->indent->len, JO_CLIENT);
}

static void write_list(struct writer *w, const struct jlist *list)
{
    if (list->n == 0) {
        jbuf_puts(&w->buf, "[]", JO_CLIENT);
        return;
    }
    jbuf_puts(&w->buf, "[", JO_CLIENT);
    w->level++;
    for (size_t i = 0; i < list->n && !w->buf.rt->rc; i++) {
        if (i) jbuf_add(&w->buf, w->item_sep->data, w->item_sep->len, JO_CLIENT);
        new_line(w);
        write_value(w, list->items[i]);
    }
    w->level--;
    new_line(w);
    jbuf_puts(&w->buf, "]", JO_CLIENT);
}

static void write_key(struct writer *w, struct jval key)
{
    if (jis_str(key)) {
        write_string(w, key.s);
    } else if (key.kind == JK_NONE || jis_num(key)) {
        jbuf_puts(&w->buf, "\"", JO_CLIENT);
        write_scalar(w, key);
        jbuf_puts(&w->buf, "\"", JO_CLIENT);
    } else {
        jrt_fail(w->buf.rt, "keys must be str, int, float, bool or None, not %s", jkind_name(key));
    }
}

/* The pairs in the order of their keys: by the dictsort filter, which is case-sensitive here. */
static const struct jlist *sorted_pairs(struct jrt *rt, struct jval dict)
{
    struct jval argv[3] = { jbool(true), { .kind = JK_MISSING }, { .kind = JK_MISSING } };
    struct jargs none = { .n_pos = 0 };

    return jitems(rt, jfilter_find("dictsort")->fn(rt, dict, argv, &none));
}

static void write_dict(struct writer *w, struct jval v)
{
    struct jrt *rt = w->buf.rt;
    const struct jlist *pairs = w->sort_keys ? sorted_pairs(rt, v) : NULL;

    if (v.dict->n == 0) {
        jbuf_puts(&w->buf, "{}", JO_CLIENT);
        return;
    }
    jbuf_puts(&w->buf, "{", JO_CLIENT);
    w->level++;
    for (size_t i = 0; i < v.dict->n && !rt->rc; i++) {
        const struct jval *pair = pairs ? pairs->items[i].list->items : NULL;
        if (i) jbuf_add(&w->buf, w->item_sep->data, w->item_sep->len, JO_CLIENT);
        new_line(w);
        write_key(w, pair ? pair[0] : v.dict->pairs[i].key);
        jbuf_add(&w->buf, w->key_sep->data, w->key_sep->len, JO_CLIENT);
        write_value(w, pair ? pair[1] : v.dict->pairs[i].value);
    }
    w->level--;
    new_line(w);
    jbuf_puts(&w->buf, "}", JO_CLIENT);
}

static void write_value(struct writer *w, struct jval v)
{
    struct jrt *rt = w->buf.rt;

    if (!jrt_charge(rt, 1)) return;
    if (++rt->depth > JRT_MAX_DEPTH) {
        jrt_fail(rt, "nested too deep");
        return;
    }
    switch (v.kind) {
    case JK_STR: write_string(w, v.s); break;
    case JK_NONE: case JK_BOOL: case JK_INT: case JK_FLOAT: write_scalar(w, v); break;
    case JK_LIST: case JK_TUPLE: write_list(w, v.list); break;
    case JK_DICT: write_dict(w, v); break;
    default: jrt_fail(rt, "Object of type %s is not JSON serializable", jkind_name(v)); break;
    }
    rt->depth--;
}

static bool set_separators(struct jrt *rt, struct writer *w, struct jval v)
{
    const struct jlist *pair = jitems(rt, v);

    if (!pair) return false;
    if (pair->n != 2 || !jis_str(pair->items[0]) || !jis_str(pair->items[1])) {
        jrt_fail(rt, "separators must be two strings");
        return false;
    }
    w->item_sep = pair->items[0].s;
    w->key_sep = pair->items[1].s;
    return true;
}

/* argv: ensure_ascii, indent, separators, sort_keys. */
struct jval jval_to_json(struct jrt *rt, struct jval v, const struct jval *argv)
{
    static const struct jstr comma = { .data = ",", .len = 1 }, comma_space = { .data = ", ", .len = 2 },
                             colon_space = { .data = ": ", .len = 2 };
    struct writer w = {
        .ascii = jtruth(argv[0]), .sort_keys = jtruth(argv[3]), .item_sep = &comma_space, .key_sep = &colon_space};

    jbuf_init(&w.buf, rt);
    if (jgiven(argv[1]) && argv[1].kind != JK_NONE) {
        w.pretty = true;
        w.item_sep = &comma;
        if (jis_str(argv[1])) w.indent = argv[1].s;
        else w.indent = jto_str(rt, jbinary(rt, JOP_MUL, jstr_lit(rt, " "), argv[1]));
    }
    if (jgiven(argv[2]) && argv[2].kind != JK_NONE && !set_separators(rt, &w, argv[2])) return JUNDEF;
    if (!rt->rc) write_value(&w, v);
    return jbuf_take(&w.buf);
}
