/* jinja_methods.c - the methods of str, dict, list, tuple and loop that templates may call. What Python has
 * and this engine has not is listed in missing_methods, so that using it fails by name instead of being undefined. */
#include <string.h>

#include "jinja_ast.h"
#include "jinja_text.h"
#include "jinja_unicode.h"

#define METHOD(name)                                                                                                   \
    static struct jval m_##name(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args)
#define UNUSED (void)rt, (void)self, (void)argv, (void)args

/* ---- arguments ---- */
static const struct jstr *str_arg(struct jrt *rt, struct jval v)
{
    static const struct jstr empty = { .data = "" };

    if (jis_str(v)) return v.s;
    if (v.kind == JK_UNDEFINED) jundef_fail(rt, v);
    else jrt_fail(rt, "argument must be str, not %s", jkind_name(v));
    return &empty;
}

static const struct jstr *str_or_none(struct jrt *rt, struct jval v)
{
    return !jgiven(v) || v.kind == JK_NONE ? NULL : str_arg(rt, v);
}

static int64_t int_or(struct jrt *rt, struct jval v, int64_t fallback)
{
    if (!jgiven(v)) return fallback;
    if (jis_int(v)) return jint_of(v);
    if (v.kind == JK_UNDEFINED) jundef_fail(rt, v);
    else jrt_fail(rt, "'%s' object cannot be interpreted as an integer", jkind_name(v));
    return fallback;
}

/* self[start:end] of find, count, startswith ... in bytes; false: an empty range that starts past the end. */
static bool byte_range(struct jrt *rt, const struct jstr *s, struct jval start, struct jval end, size_t *from,
                       size_t *to)
{
    int64_t chars, a = 0, b;

    *from = 0;
    *to = s->len;
    if (!jgiven(start) && !jgiven(end)) return true;
    if (!jrt_charge(rt, s->len / 64)) return false;
    b = chars = (int64_t)jstr_chars(s);
    if (jgiven(start) && start.kind != JK_NONE) a = int_or(rt, start, 0);
    if (jgiven(end) && end.kind != JK_NONE) b = int_or(rt, end, 0);
    if (a < 0 && (a += chars) < 0) a = 0;
    if (b < 0 && (b += chars) < 0) b = 0;
    if (a > chars || a > b) return false;
    *from = jstr_offset(s, 0, (size_t)a);
    *to = b >= chars ? s->len : jstr_offset(s, 0, (size_t)b);
    return true;
}

/* ---- str ---- */
METHOD(strip) { UNUSED; return jtext_strip(rt, self.s, str_or_none(rt, argv[0]), JSTRIP_BOTH); }
METHOD(lstrip) { UNUSED; return jtext_strip(rt, self.s, str_or_none(rt, argv[0]), JSTRIP_LEFT); }
METHOD(rstrip) { UNUSED; return jtext_strip(rt, self.s, str_or_none(rt, argv[0]), JSTRIP_RIGHT); }
METHOD(split) { UNUSED; return jtext_split(rt, self.s, str_or_none(rt, argv[0]), int_or(rt, argv[1], -1)); }
METHOD(rsplit) { UNUSED; return jtext_rsplit(rt, self.s, str_or_none(rt, argv[0]), int_or(rt, argv[1], -1)); }
METHOD(splitlines) { UNUSED; return jtext_splitlines(rt, self.s, jgiven(argv[0]) && jtruth(argv[0])); }
METHOD(upper) { UNUSED; return jtext_upper(rt, self.s); }
METHOD(lower) { UNUSED; return jtext_lower(rt, self.s); }
METHOD(title) { UNUSED; return jtext_title(rt, self.s); }
METHOD(capitalize) { UNUSED; return jtext_capitalize(rt, self.s); }
METHOD(format) { UNUSED; return jformat_braces(rt, self.s, args); }
METHOD(join) { UNUSED; return jtext_join(rt, self.s, jitems(rt, argv[0]), true); }

METHOD(replace)
{
    UNUSED;
    return jtext_replace(rt, self.s, str_arg(rt, argv[0]), str_arg(rt, argv[1]), int_or(rt, argv[2], -1));
}

static bool affix_matches(const struct jstr *s, size_t from, size_t to, const struct jstr *affix, bool at_end)
{
    if (affix->len > to - from) return false;
    return memcmp(s->data + (at_end ? to - affix->len : from), affix->data, affix->len) == 0;
}

static struct jval has_affix(struct jrt *rt, const struct jstr *s, const struct jval *argv, bool at_end)
{
    size_t from, to;
    bool in_range = byte_range(rt, s, argv[1], argv[2], &from, &to), hit = false;

    if (argv[0].kind != JK_TUPLE) {
        const struct jstr *affix = str_arg(rt, argv[0]);
        return jbool(in_range && affix_matches(s, from, to, affix, at_end));
    }
    for (size_t i = 0; i < argv[0].list->n && !hit && !rt->rc; i++) {
        const struct jstr *affix = str_arg(rt, argv[0].list->items[i]);
        hit = in_range && affix_matches(s, from, to, affix, at_end);
    }
    return jbool(hit);
}

METHOD(startswith) { UNUSED; return has_affix(rt, self.s, argv, false); }
METHOD(endswith) { UNUSED; return has_affix(rt, self.s, argv, true); }

static int64_t find_chars(struct jrt *rt, const struct jstr *s, const struct jval *argv, bool last)
{
    const struct jstr *needle = str_arg(rt, argv[0]);
    size_t from, to, hit = SIZE_MAX;

    if (!byte_range(rt, s, argv[1], argv[2], &from, &to) || rt->rc || needle->len > to - from) return -1;
    if (!jrt_charge(rt, (s->len / 64 + 1) * (needle->len / 64 + 1))) return -1;     /* rfind compares at every place */
    struct jstr window = { .data = s->data, .len = to };
    if (!last) {
        hit = jstr_find(&window, from, needle);
    } else {
        for (size_t at = to - needle->len + 1; at-- > from && hit == SIZE_MAX;)
            if (memcmp(s->data + at, needle->data, needle->len) == 0) hit = at;
    }
    if (hit == SIZE_MAX) return -1;
    return (int64_t)jstr_chars(&(struct jstr){ .data = s->data, .len = hit });
}

METHOD(find) { UNUSED; return jint(find_chars(rt, self.s, argv, false)); }
METHOD(rfind) { UNUSED; return jint(find_chars(rt, self.s, argv, true)); }

static struct jval found_or_fail(struct jrt *rt, int64_t at)
{
    return at < 0 ? jrt_fail(rt, "substring not found") : jint(at);
}

METHOD(index) { UNUSED; return found_or_fail(rt, find_chars(rt, self.s, argv, false)); }
METHOD(rindex) { UNUSED; return found_or_fail(rt, find_chars(rt, self.s, argv, true)); }

METHOD(count)
{
    const struct jstr *needle = str_arg(rt, argv[0]);
    size_t from, to;
    int64_t n = 0;

    UNUSED;
    if (!byte_range(rt, self.s, argv[1], argv[2], &from, &to) || rt->rc) return jint(0);
    struct jstr window = { .data = self.s->data, .len = to };
    jrt_charge(rt, to / 64);
    if (needle->len == 0)
        return jint((int64_t)jstr_chars(&(struct jstr){ .data = window.data + from, .len = to - from }) + 1);
    while ((from = jstr_find(&window, from, needle)) != SIZE_MAX) {
        n++;
        from += needle->len;
    }
    return jint(n);
}

METHOD(removeprefix)
{
    const struct jstr *affix = str_arg(rt, argv[0]);

    UNUSED;
    return jstr_sub(rt, self.s, affix_matches(self.s, 0, self.s->len, affix, false) ? affix->len : 0, self.s->len);
}

METHOD(removesuffix)
{
    const struct jstr *affix = str_arg(rt, argv[0]);

    UNUSED;
    return jstr_sub(rt, self.s, 0, self.s->len - (affix_matches(self.s, 0, self.s->len, affix, true) ? affix->len : 0));
}

static struct jval parted(struct jrt *rt, const struct jstr *s, const struct jstr *sep, bool last)
{
    struct jval argv[3] = { { .kind = JK_STR, .s = sep }, { .kind = JK_MISSING }, { .kind = JK_MISSING } }, parts[3];
    int64_t chars;
    size_t at;

    if (rt->rc) return JUNDEF;
    if (sep->len == 0) return jrt_fail(rt, "empty separator");
    chars = find_chars(rt, s, argv, last);
    if (chars < 0) at = last ? 0 : s->len;
    else at = jstr_offset(s, 0, (size_t)chars);
    size_t end = chars < 0 ? at : at + sep->len;
    parts[0] = jstr_sub(rt, s, 0, at);
    parts[1] = jstr_sub(rt, s, at, end);
    parts[2] = jstr_sub(rt, s, end, s->len);
    return jlist_wrap(rt, JK_TUPLE, parts, 3);
}

METHOD(partition) { UNUSED; return parted(rt, self.s, str_arg(rt, argv[0]), false); }
METHOD(rpartition) { UNUSED; return parted(rt, self.s, str_arg(rt, argv[0]), true); }

static struct jval every(struct jrt *rt, const struct jstr *s, bool (*is)(uint32_t))
{
    size_t n = 0;

    jrt_charge(rt, s->len / 16);
    for (size_t i = 0; i < s->len; i += n)
        if (!is(jcp_next(s->data + i, s->len - i, &n))) return jbool(false);
    return jbool(s->len > 0);
}

static bool is_alnum(uint32_t cp) { return jcp_alpha(cp) || jcp_numeric(cp); }

METHOD(isdigit) { UNUSED; return every(rt, self.s, jcp_digit); }
METHOD(isdecimal) { UNUSED; return every(rt, self.s, jcp_decimal); }
METHOD(isnumeric) { UNUSED; return every(rt, self.s, jcp_numeric); }
METHOD(isalpha) { UNUSED; return every(rt, self.s, jcp_alpha); }
METHOD(isalnum) { UNUSED; return every(rt, self.s, is_alnum); }
METHOD(isspace) { UNUSED; return every(rt, self.s, jcp_space); }

static struct jval by_test(struct jrt *rt, struct jval self, const char *test)
{
    return jtest_find(test)->fn(rt, self, NULL, NULL);
}

METHOD(isupper) { UNUSED; return by_test(rt, self, "upper"); }
METHOD(islower) { UNUSED; return by_test(rt, self, "lower"); }

static struct jval padded(struct jrt *rt, const struct jstr *s, const struct jval *argv, int left_share)
{
    int64_t width = int_or(rt, argv[0], 0), chars = (int64_t)jstr_chars(s), pad, left;
    const struct jstr *fill = jgiven(argv[1]) ? str_arg(rt, argv[1]) : &(struct jstr){ .data = " ", .len = 1 };
    struct jbuf buf;

    if (!rt->rc && jstr_chars(fill) != 1) return jrt_fail(rt, "The fill character must be exactly one character long");
    pad = width > chars ? width - chars : 0;
    if (pad > JRT_MAX_STEPS) return jrt_fail(rt, "string too long");
    left = left_share == 0 ? 0 : left_share == 2 ? pad : pad / 2 + (pad & width & 1);
    jbuf_init(&buf, rt);
    for (int64_t i = 0; i < left; i++) jbuf_add_range(&buf, fill, 0, fill->len);
    jbuf_add_range(&buf, s, 0, s->len);
    for (int64_t i = left; i < pad; i++) jbuf_add_range(&buf, fill, 0, fill->len);
    buf.markup = s->markup;
    return jbuf_take(&buf);
}

METHOD(ljust) { UNUSED; return padded(rt, self.s, argv, 0); }
METHOD(center) { UNUSED; return padded(rt, self.s, argv, 1); }
METHOD(rjust) { UNUSED; return padded(rt, self.s, argv, 2); }

METHOD(zfill)
{
    int64_t width = int_or(rt, argv[0], 0), chars = (int64_t)jstr_chars(self.s);
    size_t sign = self.s->len && (self.s->data[0] == '-' || self.s->data[0] == '+') ? 1 : 0;
    struct jbuf buf;

    UNUSED;
    if (width - chars > JRT_MAX_STEPS) return jrt_fail(rt, "string too long");
    jbuf_init(&buf, rt);
    jbuf_add_range(&buf, self.s, 0, sign);
    for (; width > chars; width--) jbuf_puts(&buf, "0", JO_TEMPLATE);
    jbuf_add_range(&buf, self.s, sign, self.s->len);
    buf.markup = self.s->markup;
    return jbuf_take(&buf);
}

METHOD(missing) { UNUSED; return jrt_fail(rt, "this method is not supported in chat templates"); }

/* ---- dict ---- */
static struct jval view_new(struct jrt *rt, struct jval list, const char *name)
{
    struct jview *view = jrt_alloc(rt, 1, sizeof(*view));

    if (!view || rt->rc) return JUNDEF;
    *view = (struct jview){ .items = list.list, .name = name };
    return (struct jval){ .kind = JK_VIEW, .view = view };
}

METHOD(items)
{
    const struct jdict *dict = self.dict;
    struct jval list = jlist_new(rt, dict->n);

    UNUSED;
    for (size_t i = 0; i < dict->n && jrt_charge(rt, 1); i++) {
        struct jval pair[2] = { dict->pairs[i].key, dict->pairs[i].value };
        *jlist_at(list, i) = jlist_wrap(rt, JK_TUPLE, pair, 2);
    }
    return view_new(rt, list, "dict_items");
}

METHOD(keys)
{
    struct jval list = jlist_new(rt, self.dict->n);

    UNUSED;
    for (size_t i = 0; i < self.dict->n && !rt->rc; i++) *jlist_at(list, i) = self.dict->pairs[i].key;
    return view_new(rt, list, "dict_keys");
}

METHOD(values)
{
    struct jval list = jlist_new(rt, self.dict->n);

    UNUSED;
    for (size_t i = 0; i < self.dict->n && !rt->rc; i++) *jlist_at(list, i) = self.dict->pairs[i].value;
    return view_new(rt, list, "dict_values");
}

METHOD(get)
{
    const struct jval *found;

    UNUSED;
    if (!jhashable(rt, argv[0])) return jrt_fail(rt, "unhashable type: '%s'", jkind_name(argv[0]));
    found = jdict_get(rt, self.dict, argv[0]);
    return found ? *found : jgiven(argv[1]) ? argv[1] : JNONE;
}

METHOD(copy) { UNUSED; return self; }            /* nothing can change the original */

/* ---- list, tuple ---- */
METHOD(list_count)
{
    int64_t n = 0;

    UNUSED;
    for (size_t i = 0; i < self.list->n && !rt->rc; i++) n += jequal(rt, self.list->items[i], argv[0]);
    return jint(n);
}

METHOD(list_index)
{
    UNUSED;
    for (size_t i = 0; i < self.list->n && !rt->rc; i++)
        if (jequal(rt, self.list->items[i], argv[0])) return jint((int64_t)i);
    return jrt_fail(rt, "value is not in list");
}

/* ---- loop ---- */
METHOD(cycle)
{
    UNUSED;
    if (args->n_kw) return jrt_fail(rt, "cycle() takes no keyword arguments");
    if (args->n_pos == 0) return jrt_fail(rt, "no items for cycling given");
    return args->pos[self.loop->index0 % (int64_t)args->n_pos];
}

METHOD(changed)
{
    struct jval now = jlist_wrap(rt, JK_TUPLE, args->pos, args->n_pos);
    bool same = !rt->rc && self.loop->has_changed && jequal(rt, self.loop->changed, now);

    UNUSED;
    self.loop->has_changed = true;
    self.loop->changed = now;
    return jbool(!same);
}

static const struct jdef str_methods[] = {
    { "strip", m_strip, 0, false, { "_" } },             { "lstrip", m_lstrip, 0, false, { "_" } },
    { "rstrip", m_rstrip, 0, false, { "_" } },           { "split", m_split, 0, false, { "sep", "maxsplit" } },
    { "rsplit", m_rsplit, 0, false, { "sep", "maxsplit" } },
    { "splitlines", m_splitlines, 0, false, { "keepends" } },
    { "startswith", m_startswith, 1, false, { "_", "_", "_" } },
    { "endswith", m_endswith, 1, false, { "_", "_", "_" } },
    { "replace", m_replace, 2, false, { "_", "_", "_" } },
    { "upper", m_upper, 0, false, { NULL } },            { "lower", m_lower, 0, false, { NULL } },
    { "casefold", m_lower, 0, false, { NULL } },         { "title", m_title, 0, false, { NULL } },
    { "capitalize", m_capitalize, 0, false, { NULL } },  { "find", m_find, 1, false, { "_", "_", "_" } },
    { "rfind", m_rfind, 1, false, { "_", "_", "_" } },   { "index", m_index, 1, false, { "_", "_", "_" } },
    { "rindex", m_rindex, 1, false, { "_", "_", "_" } }, { "count", m_count, 1, false, { "_", "_", "_" } },
    { "join", m_join, 1, false, { "_" } },               { "format", m_format, 0, true, { NULL } },
    { "removeprefix", m_removeprefix, 1, false, { "_" } },
    { "removesuffix", m_removesuffix, 1, false, { "_" } },
    { "partition", m_partition, 1, false, { "_" } },     { "rpartition", m_rpartition, 1, false, { "_" } },
    { "isdigit", m_isdigit, 0, false, { NULL } },        { "isdecimal", m_isdecimal, 0, false, { NULL } },
    { "isnumeric", m_isnumeric, 0, false, { NULL } },    { "isalpha", m_isalpha, 0, false, { NULL } },
    { "isalnum", m_isalnum, 0, false, { NULL } },        { "isspace", m_isspace, 0, false, { NULL } },
    { "isupper", m_isupper, 0, false, { NULL } },        { "islower", m_islower, 0, false, { NULL } },
    { "ljust", m_ljust, 1, false, { "_", "_" } },        { "center", m_center, 1, false, { "_", "_" } },
    { "rjust", m_rjust, 1, false, { "_", "_" } },        { "zfill", m_zfill, 1, false, { "_" } },
};

static const struct jdef missing_methods[] = {           /* of str */
    { "encode", m_missing, 0, true, { NULL } },          { "expandtabs", m_missing, 0, true, { NULL } },
    { "format_map", m_missing, 0, true, { NULL } },      { "isascii", m_missing, 0, true, { NULL } },
    { "isidentifier", m_missing, 0, true, { NULL } },    { "isprintable", m_missing, 0, true, { NULL } },
    { "istitle", m_missing, 0, true, { NULL } },         { "maketrans", m_missing, 0, true, { NULL } },
    { "swapcase", m_missing, 0, true, { NULL } },        { "translate", m_missing, 0, true, { NULL } },
};

static const struct jdef dict_methods[] = {
    { "items", m_items, 0, false, { NULL } },            { "keys", m_keys, 0, false, { NULL } },
    { "values", m_values, 0, false, { NULL } },          { "get", m_get, 1, false, { "_", "_" } },
    { "copy", m_copy, 0, false, { NULL } },
};

static const struct jdef list_methods[] = {
    { "count", m_list_count, 1, false, { "_" } },        { "index", m_list_index, 1, false, { "_" } },
    { "copy", m_copy, 0, false, { NULL } },
};

static const struct jdef loop_methods[] = {
    { "cycle", m_cycle, 0, true, { NULL } },             { "changed", m_changed, 0, true, { NULL } },
};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

static const struct jdef *find(const struct jdef *table, size_t n, const struct jstr *name)
{
    for (size_t i = 0; i < n; i++)
        if (jstr_is(name, table[i].name)) return &table[i];
    return NULL;
}

const struct jdef *jmethod_find(struct jval obj, const struct jstr *name)
{
    const struct jdef *def;

    switch (obj.kind) {
    case JK_STR:
        def = find(str_methods, COUNT(str_methods), name);
        return def ? def : find(missing_methods, COUNT(missing_methods), name);
    case JK_DICT: return find(dict_methods, COUNT(dict_methods), name);
    case JK_LIST: return find(list_methods, COUNT(list_methods), name);
    case JK_TUPLE: return find(list_methods, COUNT(list_methods) - 1, name);     /* no copy */
    case JK_LOOP: return find(loop_methods, COUNT(loop_methods), name);
    default: return NULL;
    }
}
