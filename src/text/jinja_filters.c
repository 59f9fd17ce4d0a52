/* jinja_filters.c - filters that make a text or a number out of one value, and the table of all filters. */
#include "jinja_filters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jinja_text.h"
#include "jinja_unicode.h"

static const struct jstr *str_of(struct jrt *rt, struct jval v) { return jto_str(rt, v); }

bool jfilter_int(struct jrt *rt, struct jval v, int64_t *out)
{
    if (!jgiven(v)) return true;
    if (v.kind == JK_UNDEFINED) jundef_fail(rt, v);
    else if (!jis_int(v)) jrt_fail(rt, "'%s' object cannot be interpreted as an integer", jkind_name(v));
    else *out = jint_of(v);
    return !rt->rc;
}

bool jfilter_flag(struct jval v, bool fallback) { return jgiven(v) ? jtruth(v) : fallback; }

FILTER(upper) { JUNUSED; return jtext_upper(rt, str_of(rt, v)); }
FILTER(lower) { JUNUSED; return jtext_lower(rt, str_of(rt, v)); }
FILTER(capitalize) { JUNUSED; return jtext_capitalize(rt, str_of(rt, v)); }
FILTER(length) { JUNUSED; return jint(jlength(rt, v)); }

FILTER(trim)
{
    JUNUSED;
    if (!jgiven(argv[0]) || argv[0].kind == JK_NONE) return jtext_strip(rt, str_of(rt, v), NULL, JSTRIP_BOTH);
    if (argv[0].kind == JK_UNDEFINED) return jundef_fail(rt, argv[0]);
    if (!jis_str(argv[0])) return jrt_fail(rt, "strip arg must be None or str");
    return jtext_strip(rt, str_of(rt, v), argv[0].s, JSTRIP_BOTH);
}

static bool is_title_gap(uint32_t cp)
{
    return cp == '-' || cp == '(' || cp == '{' || cp == '[' || cp == '<' || jcp_space(cp);
}

/* Unlike str.title only white space and opening brackets start a word. */
FILTER(title)
{
    const struct jstr *s = str_of(rt, v);
    struct jbuf buf;
    size_t from = 0, n = 0;

    JUNUSED;
    jbuf_init(&buf, rt);
    while (from < s->len && !rt->rc) {
        size_t to = from;
        bool gap = is_title_gap(jcp_next(s->data + from, s->len - from, &n));
        while (to < s->len && is_title_gap(jcp_next(s->data + to, s->len - to, &n)) == gap) to += n;
        if (gap) {
            jbuf_add_range(&buf, s, from, to);
        } else {
            size_t first = jstr_offset(s, from, 1);
            jbuf_add_value(&buf, jtext_upper(rt, jto_str(rt, jstr_sub(rt, s, from, first))));
            jbuf_add_value(&buf, jtext_lower(rt, jto_str(rt, jstr_sub(rt, s, first, to))));
        }
        from = to;
    }
    return jbuf_take(&buf);
}

FILTER(replace)
{
    int64_t count = -1;

    JUNUSED;
    if (jgiven(argv[2]) && argv[2].kind != JK_NONE && !jfilter_int(rt, argv[2], &count)) return JUNDEF;
    return jtext_replace(rt, str_of(rt, v), str_of(rt, argv[0]), str_of(rt, argv[1]), count);
}

FILTER(string)
{
    const struct jstr *s = str_of(rt, v);

    JUNUSED;
    return jis_str(v) ? v : rt->rc ? JUNDEF : (struct jval){ .kind = JK_STR, .s = s };
}

FILTER(default)
{
    JUNUSED;
    if (v.kind == JK_UNDEFINED || (jfilter_flag(argv[1], false) && !jtruth(v)))
        return jgiven(argv[0]) ? argv[0] : jstr_lit(rt, "");
    return v;
}

FILTER(escape) { JUNUSED; return jis_str(v) && v.s->markup ? v : jescape(rt, str_of(rt, v)); }
FILTER(forceescape) { JUNUSED; return jescape(rt, str_of(rt, v)); }

FILTER(safe)
{
    const struct jstr *s = str_of(rt, v);
    struct jstr *marked = jrt_alloc(rt, 1, sizeof(*marked));

    JUNUSED;
    if (!marked) return JUNDEF;
    *marked = *s;
    marked->markup = true;
    return (struct jval){ .kind = JK_STR, .s = marked };
}

FILTER(indent)
{
    const struct jstr *pad, *s;
    struct jval lines;
    struct jbuf buf;
    int64_t width = 4;
    bool blank = jfilter_flag(argv[2], false);

    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (!jis_str(v)) return jrt_fail(rt, "unsupported operand type(s) for +=: '%s' and 'str'", jkind_name(v));
    if (jgiven(argv[0]) && jis_str(argv[0])) pad = argv[0].s;
    else if (!jfilter_int(rt, argv[0], &width)) return JUNDEF;
    else pad = jto_str(rt, jbinary(rt, JOP_MUL, jstr_lit(rt, " "), jint(width)));
    s = jto_str(rt, jbinary(rt, JOP_ADD, v, jstr_lit(rt, "\n"))); /* so that a last newline is a line of its own */
    lines = jtext_splitlines(rt, s, false);
    jbuf_init(&buf, rt);
    if (jfilter_flag(argv[1], false)) jbuf_add_range(&buf, pad, 0, pad->len);
    for (size_t i = 0; !rt->rc && i < lines.list->n; i++) {
        const struct jstr *line = lines.list->items[i].s;
        if (i) jbuf_puts(&buf, "\n", JO_TEMPLATE);
        if (i && (blank || line->len)) jbuf_add_range(&buf, pad, 0, pad->len);
        jbuf_add_range(&buf, line, 0, line->len);
    }
    buf.markup = v.s->markup;
    return jbuf_take(&buf);
}

FILTER(format)
{
    JUNUSED;
    if (args->n_pos && args->n_kw)
        return jrt_fail(rt, "can't handle positional and keyword arguments at the same time");
    return jformat_percent(rt, str_of(rt, v), args);
}

FILTER(center)
{
    struct jval width[1] = { jgiven(argv[0]) ? argv[0] : jint(80) }, s = FILTER_CALL(string, v);
    struct jargs center = { .pos = width, .n_pos = 1 };

    JUNUSED;
    if (rt->rc) return JUNDEF;
    return jcall_def(rt, jmethod_find(s, &(struct jstr){ .data = "center", .len = 6 }), s, &center);
}

FILTER(wordcount)
{
    const struct jstr *s = str_of(rt, v);
    int64_t words = 0;
    bool inside = false;
    size_t n = 0;

    JUNUSED;
    jrt_charge(rt, s->len / 16);
    for (size_t i = 0; i < s->len; i += n) {
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        bool word = cp == '_' || jcp_alpha(cp) || jcp_numeric(cp);
        words += word && !inside;
        inside = word;
    }
    return jint(words);
}

FILTER(truncate)
{
    const struct jstr *s = str_of(rt, v),
                      *end = jgiven(argv[2]) ? str_of(rt, argv[2]) : &(struct jstr){ .data = "...", .len = 3 };
    int64_t length = 255, leeway = 5, chars = (int64_t)jstr_chars(s), end_chars = (int64_t)jstr_chars(end);
    struct jbuf buf;
    size_t keep;

    JUNUSED;
    if (!jfilter_int(rt, argv[0], &length)) return JUNDEF;
    if (jgiven(argv[3]) && argv[3].kind != JK_NONE && !jfilter_int(rt, argv[3], &leeway)) return JUNDEF;
    if (length < end_chars || leeway < 0) return jrt_fail(rt, "truncate: length or leeway too small");
    if (chars - leeway <= length) return v;
    keep = jstr_offset(s, 0, (size_t)(length - end_chars));
    if (!jfilter_flag(argv[1], false)) {         /* not inside a word */
        size_t space = keep;
        while (space > 0 && s->data[space - 1] != ' ') space--;
        if (space > 0) keep = space - 1;
    }
    jbuf_init(&buf, rt);
    jbuf_add_range(&buf, s, 0, keep);
    jbuf_add_range(&buf, end, 0, end->len);
    return jbuf_take(&buf);
}

/* ---- numbers ---- */
/* The text as Python's int() and float() take it: no white space around, single underscores between digits.
 * NUL-terminated in out; false if it can be no number. */
static bool number_text(const struct jstr *s, char *out, size_t cap)
{
    size_t from = jtext_lstrip(s->data, s->len), to = jtext_rstrip(s->data, s->len), n = 0;

    if (from >= to || to - from >= cap) return false;
    for (size_t i = from; i < to; i++) {
        char c = s->data[i];
        bool alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (c == '_') {
            if (i == from || i + 1 == to || s->data[i - 1] == '_' || n == 0) return false;
            continue;
        }
        if (!alnum && c != '+' && c != '-' && c != '.') return false;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

static bool parse_int(const struct jstr *s, int base, int64_t *out)
{
    char text[80], *digits = text, *end;
    bool negative;

    if (!number_text(s, text, sizeof(text))) return false;
    negative = *digits == '-';
    if (*digits == '-' || *digits == '+') digits++;
    if (digits[0] == '0' && (base == 16 || base == 8 || base == 2 || base == 0)) {
        char c = digits[1] | 0x20;
        int prefix = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
        if (prefix && (base == 0 || base == prefix)) {
            digits += 2;
            base = prefix;
        }
    }
    if (!((*digits >= '0' && *digits <= '9') || ((*digits | 0x20) >= 'a' && (*digits | 0x20) <= 'z'))) return false;
    uint64_t value = 0;
    for (end = digits; *end; end++) {
        int d = *end <= '9' ? *end - '0' : (*end | 0x20) - 'a' + 10;
        if (d < 0 || d >= (base ? base : 10)) return false;
        if (__builtin_mul_overflow(value, (uint64_t)(base ? base : 10), &value) ||
            __builtin_add_overflow(value, (uint64_t)d, &value))
            return false;
    }
    if (value > (uint64_t)INT64_MAX) return false;
    *out = negative ? -(int64_t)value : (int64_t)value;
    return true;
}

static bool parse_float(const struct jstr *s, double *out)
{
    char text[400], *end;
    const char *digits = text;

    if (!number_text(s, text, sizeof(text))) return false;
    if (*digits == '-' || *digits == '+') digits++;
    if (digits[0] == '0' && (digits[1] | 0x20) == 'x') return false;
    if ((*digits < '0' || *digits > '9') && *digits != '.' && strcasecmp(digits, "inf") != 0 &&
        strcasecmp(digits, "infinity") != 0 && strcasecmp(digits, "nan") != 0)
        return false;
    *out = strtod(text, &end);
    return *end == 0 && end != text;
}

static uint8_t number_origin(struct jval v)
{ return jis_str(v) ? (jstr_all_template(v.s) ? JO_TEMPLATE : JO_CLIENT) : v.origin; }

static struct jval from_origin(struct jval number, struct jval of)
{
    number.origin = number_origin(of);
    return number;
}

static struct jval trunc_float(struct jrt *rt, double f)
{
    if (!(fabs(f) < 9223372036854775808.0)) return jrt_fail(rt, "integer result beyond 64 bits");
    return jint((int64_t)f);
}

FILTER(int)
{
    struct jval fallback = jgiven(argv[0]) ? argv[0] : jint(0);
    int64_t base = 10, i = 0;
    double f;

    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (!jfilter_int(rt, argv[1], &base)) return JUNDEF;
    if (jis_int(v)) return from_origin(jint(jint_of(v)), v);
    if (jis_str(v) && (base == 0 || (base >= 2 && base <= 36)) && parse_int(v.s, (int)base, &i))
        return from_origin(jint(i), v);
    if (v.kind == JK_FLOAT && isinf(v.f)) return jrt_fail(rt, "cannot convert float infinity to integer");
    if (v.kind == JK_FLOAT) f = v.f;
    else if (!jis_str(v) || !parse_float(v.s, &f)) return fallback;
    if (isnan(f) || isinf(f)) return fallback;
    return from_origin(trunc_float(rt, f), v);
}

FILTER(float)
{
    struct jval fallback = jgiven(argv[0]) ? argv[0] : jfloat(0);
    double f;

    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (jis_num(v)) return from_origin(jfloat(jnum_of(v)), v);
    return jis_str(v) && parse_float(v.s, &f) ? from_origin(jfloat(f), v) : fallback;
}

FILTER(abs)
{
    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (v.kind == JK_FLOAT) return from_origin(jfloat(fabs(v.f)), v);
    if (!jis_int(v)) return jrt_fail(rt, "bad operand type for abs(): '%s'", jkind_name(v));
    if (jint_of(v) < 0) return jbinary(rt, JOP_SUB, jint(0), v);
    return from_origin(jint(jint_of(v)), v);
}

static struct jval round_common(struct jrt *rt, struct jval v, int64_t precision)
{
    char text[512];

    if (jis_int(v)) {
        int64_t i = jint_of(v), unit = 1;
        for (int64_t p = precision; p < 0; p++)
            if (__builtin_mul_overflow(unit, 10, &unit)) return jint(0);
        if (unit == 1) return jint(i);
        int64_t rest = i % unit, down = i - rest;
        if (rest < 0) { rest += unit; down -= unit; }
        bool up = rest > unit - rest || (rest == unit - rest && (down / unit) % 2 != 0);
        return jbinary(rt, JOP_ADD, jint(down), jint(up ? unit : 0));
    }
    if (isnan(v.f) || isinf(v.f) || precision > 300) return jfloat(v.f);
    if (precision < -300) return jfloat(copysign(0, v.f));
    if (precision < 0) {
        double unit = pow(10, (double)-precision);
        return jfloat(rint(v.f / unit) * unit);
    }
    snprintf(text, sizeof(text), "%.*f", (int)(precision > 150 ? 150 : precision),
             v.f); /* exact half-even, as repr rounds */
    return jfloat(strtod(text, NULL));
}

FILTER(round)
{
    int64_t precision = 0;

    JUNUSED;
    if (!jfilter_int(rt, argv[0], &precision)) return JUNDEF;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (!jis_num(v)) return jrt_fail(rt, "type %s doesn't define __round__ method", jkind_name(v));
    bool ceiling = jis_str(argv[1]) && jstr_is(argv[1].s, "ceil"),
         flooring = jis_str(argv[1]) && jstr_is(argv[1].s, "floor");
    if (jgiven(argv[1]) && !ceiling && !flooring && !(jis_str(argv[1]) && jstr_is(argv[1].s, "common")))
        return jrt_fail(rt, "method must be common, ceil or floor");
    if (!ceiling && !flooring) return from_origin(round_common(rt, v, precision), v);
    double unit = pow(10, (double)precision), scaled = jnum_of(v) * unit;
    if (isnan(scaled) || isinf(scaled)) return jrt_fail(rt, "cannot round this number");
    return from_origin(jfloat((ceiling ? ceil(scaled) : floor(scaled)) / unit), v);
}

FILTER(tojson) { JUNUSED; return jval_to_json(rt, v, argv); }

FILTER(attr)
{
    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (!jis_str(argv[0])) return jrt_fail(rt, "attribute name must be string");
    if (v.kind == JK_DICT && !jmethod_find(v, argv[0].s)) return jundefined_of(rt, v, argv[0].s);
    return jgetattr(rt, v, argv[0].s);
}

static const struct jdef filters[] = {
    { "abs", f_abs, 0, false, { NULL } },
    { "attr", f_attr, 1, false, { "name" } },
    { "capitalize", f_capitalize, 0, false, { NULL } },
    { "center", f_center, 0, false, { "width" } },
    { "count", f_length, 0, false, { NULL } },
    { "d", f_default, 0, false, { "default_value", "boolean" } },
    { "default", f_default, 0, false, { "default_value", "boolean" } },
    { "e", f_escape, 0, false, { NULL } },
    { "escape", f_escape, 0, false, { NULL } },
    { "float", f_float, 0, false, { "default" } },
    { "forceescape", f_forceescape, 0, false, { NULL } },
    { "format", f_format, 0, true, { NULL } },
    { "indent", f_indent, 0, false, { "width", "first", "blank" } },
    { "int", f_int, 0, false, { "default", "base" } },
    { "length", f_length, 0, false, { NULL } },
    { "lower", f_lower, 0, false, { NULL } },
    { "replace", f_replace, 2, false, { "old", "new", "count" } },
    { "round", f_round, 0, false, { "precision", "method" } },
    { "safe", f_safe, 0, false, { NULL } },
    { "string", f_string, 0, false, { NULL } },
    { "title", f_title, 0, false, { NULL } },
    { "tojson", f_tojson, 0, false, { "ensure_ascii", "indent", "separators", "sort_keys" } },
    { "trim", f_trim, 0, false, { "chars" } },
    { "truncate", f_truncate, 0, false, { "length", "killwords", "end", "leeway" } },
    { "upper", f_upper, 0, false, { NULL } },
    { "wordcount", f_wordcount, 0, false, { NULL } },
};

const struct jdef *jfilter_find(const char *name)
{
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++)
        if (strcmp(filters[i].name, name) == 0) return &filters[i];
    return jfilter_seq_find(name);
}
