/* jinja_format.c - text made by a pattern: "%s" % x and |format, "{}".format(x), HTML escapes. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "jinja_ast.h"
#include "jinja_unicode.h"

struct spec { bool left, plus, space, zero, alt; int width, precision; /* -1: not given */ };

static size_t parse_spec(const struct jstr *fmt, size_t i, struct spec *spec)
{
    *spec = (struct spec){ .precision = -1 };
    for (; i < fmt->len; i++) {
        char c = fmt->data[i];
        if (c == '-') spec->left = true;
        else if (c == '+') spec->plus = true;
        else if (c == ' ') spec->space = true;
        else if (c == '0') spec->zero = true;
        else if (c == '#') spec->alt = true;
        else break;
    }
    for (; i < fmt->len && fmt->data[i] >= '0' && fmt->data[i] <= '9' && spec->width < 10000; i++)
        spec->width = spec->width * 10 + (fmt->data[i] - '0');
    if (i < fmt->len && fmt->data[i] == '.') {
        spec->precision = 0;
        for (i++; i < fmt->len && fmt->data[i] >= '0' && fmt->data[i] <= '9' && spec->precision < 10000; i++)
            spec->precision = spec->precision * 10 + (fmt->data[i] - '0');
    }
    return i;
}

static void add_padded(struct jbuf *buf, const struct jstr *s, const struct spec *spec)
{
    size_t chars = jstr_chars(s), pad = (size_t)spec->width > chars ? (size_t)spec->width - chars : 0;

    for (size_t i = 0; !spec->left && i < pad; i++) jbuf_puts(buf, " ", JO_TEMPLATE);
    jbuf_add_range(buf, s, 0, s->len);
    for (size_t i = 0; spec->left && i < pad; i++) jbuf_puts(buf, " ", JO_TEMPLATE);
}

static void add_text(struct jbuf *buf, struct jval v, const struct spec *spec, bool repr)
{
    const struct jstr *s;
    struct jbuf text;

    jbuf_init(&text, buf->rt);
    if (repr) jbuf_add_repr(&text, v);
    else jbuf_add_value(&text, v);
    s = jto_str(buf->rt, jbuf_take(&text));
    if (spec->precision >= 0)
        s = jto_str(buf->rt, jstr_sub(buf->rt, s, 0, jstr_offset(s, 0, (size_t)spec->precision)));
    add_padded(buf, s, spec);
}

static void add_number(struct jbuf *buf, struct jval v, const struct spec *spec, char conv)
{
    char fmt[32], text[512];
    size_t n = 0;
    bool is_int = strchr("dxXo", conv) != NULL;
    int width = spec->width > 200 ? 200 : spec->width, precision = spec->precision > 200 ? 200 : spec->precision;

    if (is_int && conv != 'd' && jint_of(v) < 0) {
        jrt_fail(buf->rt, "negative numbers in %%%c are not supported", conv);
        return;
    }
    fmt[n++] = '%';
    if (spec->left) fmt[n++] = '-';
    if (spec->plus) fmt[n++] = '+';
    if (spec->space) fmt[n++] = ' ';
    if (spec->zero) fmt[n++] = '0';
    if (spec->alt) fmt[n++] = '#';
    memcpy(fmt + n, "*.*", 3);                   /* a negative precision counts as not given */
    n += 3;
    if (is_int) fmt[n++] = 'l', fmt[n++] = 'l';
    fmt[n++] = conv;
    fmt[n] = 0;
    if (is_int) snprintf(text, sizeof(text), fmt, width, precision, (long long)jint_of(v));
    else snprintf(text, sizeof(text), fmt, width, precision, jnum_of(v));
    jbuf_puts(buf, text, v.origin);
}

static void add_conversion(struct jbuf *buf, struct jval v, const struct spec *spec, char conv)
{
    struct jrt *rt = buf->rt;

    switch (conv) {
    case 's': add_text(buf, v, spec, false); return;
    case 'r': add_text(buf, v, spec, true); return;
    case 'i': case 'u': conv = 'd'; break;
    case 'd': case 'x': case 'X': case 'o': case 'f': case 'F': case 'e': case 'E': case 'g': case 'G': break;
    default: jrt_fail(rt, "unsupported format character '%c'", conv); return;
    }
    if (!jis_num(v)) { jrt_fail(rt, "%%%c format: a number is required, not %s", conv, jkind_name(v)); return; }
    if (conv == 'd' && v.kind == JK_FLOAT) {
        if (!(fabs(v.f) < 9.2e18)) { jrt_fail(rt, "number does not fit in 64 bits"); return; }
        uint8_t origin = v.origin;
        v = jint((int64_t)v.f);
        v.origin = origin;
    }
    if (strchr("xXo", conv) && v.kind == JK_FLOAT) {
        jrt_fail(rt, "%%%c format: an integer is required, not float", conv);
        return;
    }
    add_number(buf, v, spec, conv);
}

static const struct jval *key_arg(struct jrt *rt, const struct jstr *fmt, size_t *i, const struct jargs *args)
{
    const char *close = memchr(fmt->data + *i, ')', fmt->len - *i);
    const struct jval *found = NULL;
    size_t len;

    if (!close) { jrt_fail(rt, "incomplete format key"); return NULL; }
    len = (size_t)(close - (fmt->data + *i));
    for (size_t k = 0; k < args->n_kw && !found; k++)
        if (strlen(args->kw[k].name) == len && memcmp(args->kw[k].name, fmt->data + *i, len) == 0)
            found = &args->kw[k].value;
    if (!found && args->n_pos == 1 && args->pos[0].kind == JK_DICT)
        found = jdict_find(args->pos[0].dict, fmt->data + *i, len);
    if (!found) jrt_fail(rt, "format key not found");
    *i += len + 1;
    return found;
}

struct jval jformat_percent(struct jrt *rt, const struct jstr *fmt, const struct jargs *args)
{
    size_t used = 0;
    bool keyed = false;
    struct jbuf buf;

    jbuf_init(&buf, rt);
    for (size_t i = 0; i < fmt->len && !rt->rc;) {
        const char *next = memchr(fmt->data + i, '%', fmt->len - i);
        size_t at = next ? (size_t)(next - fmt->data) : fmt->len;
        const struct jval *v = NULL;
        struct spec spec;
        jbuf_add_range(&buf, fmt, i, at);
        if (!next) break;
        i = at + 1;
        if (i < fmt->len && fmt->data[i] == '(') {
            i++;
            keyed = true;
            if (!(v = key_arg(rt, fmt, &i, args))) break;
        }
        i = parse_spec(fmt, i, &spec);
        if (i >= fmt->len) return jrt_fail(rt, "incomplete format");
        char conv = fmt->data[i++];
        if (conv == '%') { jbuf_add_range(&buf, fmt, i - 1, i); continue; }
        if (!v && used >= args->n_pos) return jrt_fail(rt, "not enough arguments for format string");
        add_conversion(&buf, v ? *v : args->pos[used++], &spec, conv);
    }
    bool mapping = args->n_pos == 1 && (args->pos[0].kind == JK_DICT || args->pos[0].kind == JK_LIST);
    if (!rt->rc && !keyed && used < args->n_pos && !(mapping && used == 0))
        return jrt_fail(rt, "not all arguments converted during string formatting");
    buf.markup = fmt->markup;
    return jbuf_take(&buf);
}

/* One replacement field: a position, a name or nothing, and no conversions or format of its own. */
static const struct jval *field_arg(struct jrt *rt, const char *name, size_t len, size_t *used,
                                    const struct jargs *args)
{
    size_t index = 0;

    if (len == 0) index = (*used)++;
    else if (name[0] >= '0' && name[0] <= '9')
        for (size_t i = 0; i < len && index < 1000; i++) {
            if (name[i] < '0' || name[i] > '9') {
                jrt_fail(rt, "format fields with a format of their own are not supported");
                return NULL;
            }
            index = index * 10 + (size_t)(name[i] - '0');
        }
    else {
        for (size_t k = 0; k < args->n_kw; k++)
            if (strlen(args->kw[k].name) == len && memcmp(args->kw[k].name, name, len) == 0) return &args->kw[k].value;
        jrt_fail(rt, "format field not found or not supported");
        return NULL;
    }
    if (index < args->n_pos) return &args->pos[index];
    jrt_fail(rt, "Replacement index %zu out of range for positional args tuple", index);
    return NULL;
}

struct jval jformat_braces(struct jrt *rt, const struct jstr *fmt, const struct jargs *args)
{
    size_t used = 0, plain = 0;
    struct jbuf buf;

    jbuf_init(&buf, rt);
    for (size_t i = 0; i < fmt->len && !rt->rc;) {
        char c = fmt->data[i];
        if (c != '{' && c != '}') { i++; continue; }
        jbuf_add_range(&buf, fmt, plain, i);
        if (i + 1 < fmt->len && fmt->data[i + 1] == c) {
            jbuf_add_range(&buf, fmt, i, i + 1);
            plain = i += 2;
            continue;
        }
        const char *close = c == '{' ? memchr(fmt->data + i, '}', fmt->len - i) : NULL;
        if (!close) return jrt_fail(rt, "Single '%c' encountered in format string", c);
        size_t end = (size_t)(close - fmt->data);
        const struct jval *v = field_arg(rt, fmt->data + i + 1, end - i - 1, &used, args);
        if (v) jbuf_add_value(&buf, *v);
        plain = i = end + 1;
    }
    if (!rt->rc) jbuf_add_range(&buf, fmt, plain, fmt->len);
    return jbuf_take(&buf);
}

struct jval jescape(struct jrt *rt, const struct jstr *s)
{
    struct jbuf buf;
    size_t plain = 0;

    jbuf_init(&buf, rt);
    for (size_t i = 0; i < s->len && !rt->rc; i++) {
        char c = s->data[i];
        const char *text = c == '&'    ? "&amp;"
                           : c == '<'  ? "&lt;"
                           : c == '>'  ? "&gt;"
                           : c == '\'' ? "&#39;"
                           : c == '"'  ? "&#34;"
                                       : NULL;
        if (!text) continue;
        jbuf_add_range(&buf, s, plain, i);
        jbuf_puts(&buf, text, jstr_origin_at(s, i));
        plain = i + 1;
    }
    jbuf_add_range(&buf, s, plain, s->len);
    buf.markup = true;
    return jbuf_take(&buf);
}
