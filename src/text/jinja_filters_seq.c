/* jinja_filters_seq.c - filters over sequences: first, join, map, select, sort, ...
 * map, select and their kin answer a one-shot iterator as in jinja2, but computed at once: a failing item fails even if
 * nobody would have read it. */
#include <string.h>

#include "jinja_filters.h"
#include "jinja_text.h"

/* ---- keys: "a.b.0" of an item, several separated by commas ---- */
struct getter { const struct jstr *path; struct jval index, fallback; bool fold_case, many; };

static bool getter_init(struct jrt *rt, struct getter *getter, struct jval attribute, bool fold_case, bool many)
{
    *getter = (struct getter){
        .index = { .kind = JK_MISSING }, .fallback = { .kind = JK_MISSING }, .fold_case = fold_case, .many = many};
    if (!jgiven(attribute) || attribute.kind == JK_NONE) return true;
    if (attribute.kind == JK_UNDEFINED) jundef_fail(rt, attribute);
    else if (jis_str(attribute)) getter->path = attribute.s;
    else if (jis_int(attribute)) getter->index = attribute;
    else jrt_fail(rt, "attribute must be a string or an integer");
    return !rt->rc;
}

static struct jval path_part(struct jrt *rt, const struct jstr *path, size_t from, size_t to)
{
    int64_t index = 0;
    bool digits = to > from && to - from < 10;

    for (size_t i = from; i < to && digits; i++) {
        digits = path->data[i] >= '0' && path->data[i] <= '9';
        index = index * 10 + (path->data[i] - '0');
    }
    return digits ? jint(index) : jstr_sub(rt, path, from, to);
}

static struct jval get_one(struct jrt *rt, const struct getter *getter, struct jval item, size_t from, size_t end)
{
    while (!rt->rc) {
        size_t to = from;
        while (to < end && getter->path->data[to] != '.') to++;
        item = jgetitem(rt, item, path_part(rt, getter->path, from, to));
        if (jgiven(getter->fallback) && item.kind == JK_UNDEFINED) item = getter->fallback;
        if (to >= end) break;
        from = to + 1;
    }
    return item;
}

static struct jval fold(struct jrt *rt, const struct getter *getter, struct jval key)
{
    return getter->fold_case && jis_str(key) ? jtext_lower(rt, key.s) : key;
}

static struct jval get_key(struct jrt *rt, const struct getter *getter, struct jval item)
{
    struct jval keys[16];
    size_t n = 0, from = 0;

    if (jgiven(getter->index)) return fold(rt, getter, jgetitem(rt, item, getter->index));
    if (!getter->path) return fold(rt, getter, item);
    if (!getter->many || !memchr(getter->path->data, ',', getter->path->len))
        return fold(rt, getter, get_one(rt, getter, item, 0, getter->path->len));
    while (from <= getter->path->len && !rt->rc) {
        size_t to = from;
        while (to < getter->path->len && getter->path->data[to] != ',') to++;
        if (n == sizeof(keys) / sizeof(keys[0])) return jrt_fail(rt, "too many attributes");
        keys[n++] = fold(rt, getter, get_one(rt, getter, item, from, to));
        from = to + 1;
    }
    return jlist_wrap(rt, JK_TUPLE, keys, n);
}

/* ---- picking ---- */
FILTER(first)
{
    const struct jlist *items;

    JUNUSED;
    if (v.kind == JK_ITER)
        return v.iter->pos < v.iter->items->n ? v.iter->items->items[v.iter->pos++]
                                              : jundefined(rt, "No first item, sequence was empty.");
    if (v.kind == JK_STR && v.s->len) return jgetitem(rt, v, jint(0));
    items = jitems(rt, v);
    if (!items) return JUNDEF;
    return items->n ? items->items[0] : jundefined(rt, "No first item, sequence was empty.");
}

FILTER(last)
{
    const struct jlist *items;

    JUNUSED;
    if (v.kind == JK_ITER) return jrt_fail(rt, "'generator' object is not reversible");
    if (v.kind == JK_STR && v.s->len) return jgetitem(rt, v, jint(-1));
    items = jitems(rt, v);
    if (!items) return JUNDEF;
    return items->n ? items->items[items->n - 1] : jundefined(rt, "No last item, sequence was empty.");
}

FILTER(list)
{
    const struct jlist *items = jitems(rt, v);

    JUNUSED;
    return items ? jlist_wrap(rt, JK_LIST, items->items, items->n) : JUNDEF;
}

FILTER(items)
{
    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jiter_new(rt, jlist_new(rt, 0));
    if (v.kind != JK_DICT) return jrt_fail(rt, "Can only get item pairs from a mapping.");
    struct jval view = jmethod_find(v, &(struct jstr){ .data = "items", .len = 5 })->fn(rt, v, argv, args);
    return rt->rc ? JUNDEF : jiter_new(rt, (struct jval){ .kind = JK_LIST, .list = view.view->items });
}

FILTER(reverse)
{
    const struct jlist *items;
    struct jval list;

    JUNUSED;
    if (jis_str(v)) return jtext_reverse(rt, v.s);
    if (!(items = jitems(rt, v))) return JUNDEF;
    list = jlist_new(rt, items->n);
    for (size_t i = 0; i < items->n && !rt->rc; i++) *jlist_at(list, i) = items->items[items->n - 1 - i];
    return v.kind == JK_ITER ? list : jiter_new(rt, list);
}

FILTER(join)
{
    const struct jlist *items = jitems(rt, v);
    struct getter getter;
    struct jval list;

    JUNUSED;
    if (!items || !getter_init(rt, &getter, argv[1], false, false)) return JUNDEF;
    list = jlist_new(rt, items->n);
    for (size_t i = 0; i < items->n && !rt->rc; i++) *jlist_at(list, i) = get_key(rt, &getter, items->items[i]);
    const struct jstr *sep = jgiven(argv[0]) ? jto_str(rt, argv[0]) : &(struct jstr){ .data = "" };
    return rt->rc ? JUNDEF : jtext_join(rt, sep, list.list, false);
}

FILTER(batch)
{
    const struct jlist *items = jitems(rt, v);
    int64_t size = 0;
    struct jval list;
    size_t n;

    JUNUSED;
    if (!items || !jfilter_int(rt, argv[0], &size)) return JUNDEF;
    if (size < 1) return jrt_fail(rt, "batch needs a positive size");
    n = items->n ? (items->n - 1) / (size_t)size + 1 : 0;
    list = jlist_new(rt, n);
    for (size_t i = 0; i < n && jrt_charge(rt, 1); i++) {
        size_t from = i * (size_t)size, have = items->n - from < (size_t)size ? items->n - from : (size_t)size;
        bool fills = have < (size_t)size && jgiven(argv[1]) && argv[1].kind != JK_NONE;
        if (fills && size > JRT_MAX_RANGE) return jrt_fail(rt, "batch too long");
        struct jval row = jlist_wrap(rt, JK_LIST, NULL, fills ? (size_t)size : have);
        for (size_t k = 0; !rt->rc && k < row.list->n; k++)
            *jlist_at(row, k) = k < have ? items->items[from + k] : argv[1];
        *jlist_at(list, i) = row;
    }
    return jiter_new(rt, list);
}

/* ---- map, select ---- */
static struct jargs rest_of(const struct jargs *args, size_t from)
{
    return (struct jargs){ .pos = args->pos + from, .n_pos = args->n_pos - from, .kw = args->kw, .n_kw = args->n_kw };
}

/* The filter or test named by args->pos[at]. */
static const struct jdef *named(struct jrt *rt, const struct jargs *args, size_t at,
                                const struct jdef *(*find)(const char *), const char *what)
{
    const struct jdef *def = NULL;
    char name[64];

    if (jis_str(args->pos[at]) && args->pos[at].s->len < sizeof(name)) {
        memcpy(name, args->pos[at].s->data, args->pos[at].s->len);
        name[args->pos[at].s->len] = 0;
        def = find(name);
    }
    if (!def) jrt_fail(rt, "no %s of that name", what);
    return def;
}

static bool map_by_attribute(struct jrt *rt, const struct jargs *args, struct getter *getter)
{
    struct jval attribute = { .kind = JK_MISSING }, fallback = { .kind = JK_MISSING };

    for (size_t i = 0; i < args->n_kw; i++) {
        if (strcmp(args->kw[i].name, "attribute") == 0) attribute = args->kw[i].value;
        else if (strcmp(args->kw[i].name, "default") == 0) fallback = args->kw[i].value;
        else jrt_fail(rt, "Unexpected keyword argument '%s'", args->kw[i].name);
    }
    if (!jgiven(attribute)) jrt_fail(rt, "map requires a filter argument");
    if (rt->rc || !getter_init(rt, getter, attribute, false, false)) return false;
    if (fallback.kind != JK_NONE) getter->fallback = fallback;
    return true;
}

FILTER(map)
{
    const struct jdef *def = NULL;
    const struct jlist *items;
    struct getter getter;
    struct jval list;

    JUNUSED;
    if (!jtruth(v)) return jiter_new(rt, jlist_new(rt, 0));
    if (!(items = jitems(rt, v))) return JUNDEF;
    if (args->n_pos ? !(def = named(rt, args, 0, jfilter_find, "filter")) : !map_by_attribute(rt, args, &getter))
        return JUNDEF;
    struct jargs rest = args->n_pos ? rest_of(args, 1) : *args;
    list = jlist_new(rt, items->n);
    for (size_t i = 0; i < items->n && !rt->rc; i++)
        *jlist_at(list, i) = def ? jcall_def(rt, def, items->items[i], &rest) : get_key(rt, &getter, items->items[i]);
    return jiter_new(rt, list);
}

/* select(test?), selectattr(attribute, test?) and their opposites. */
static struct jval pick(struct jrt *rt, struct jval v, const struct jargs *args, bool by_attribute, bool wanted)
{
    const struct jdef *def = NULL;
    const struct jlist *items;
    struct getter getter;
    struct jval list;
    size_t n = 0, off = by_attribute ? 1 : 0;
    struct jlist *kept;

    if (!jtruth(v)) return jiter_new(rt, jlist_new(rt, 0));
    if (by_attribute && args->n_pos == 0) return jrt_fail(rt, "Missing parameter for attribute name");
    if (!(items = jitems(rt, v)) ||
        !getter_init(rt, &getter, by_attribute ? args->pos[0] : (struct jval){ .kind = JK_MISSING }, false, false))
        return JUNDEF;
    if (args->n_pos > off && !(def = named(rt, args, off, jtest_find, "test"))) return JUNDEF;
    struct jargs rest = def ? rest_of(args, off + 1) : *args;
    list = jlist_new(rt, items->n);
    for (size_t i = 0; i < items->n && jrt_charge(rt, 1); i++) {
        struct jval key = get_key(rt, &getter, items->items[i]);
        if (jtruth(def ? jcall_def(rt, def, key, &rest) : key) == wanted && !rt->rc)
            *jlist_at(list, n++) = items->items[i];
    }
    if (rt->rc || !(kept = jrt_alloc(rt, 1, sizeof(*kept)))) return JUNDEF;
    *kept = (struct jlist){ .items = list.list->items, .n = n };
    return jiter_new(rt, (struct jval){ .kind = JK_LIST, .list = kept });
}

FILTER(select) { JUNUSED; return pick(rt, v, args, false, true); }
FILTER(reject) { JUNUSED; return pick(rt, v, args, false, false); }
FILTER(selectattr) { JUNUSED; return pick(rt, v, args, true, true); }
FILTER(rejectattr) { JUNUSED; return pick(rt, v, args, true, false); }

FILTER(unique)
{
    const struct jlist *items = jitems(rt, v);
    struct getter getter;
    struct jval list, seen;
    struct jlist *kept;
    size_t n = 0;

    JUNUSED;
    if (!items || !getter_init(rt, &getter, argv[1], !jfilter_flag(argv[0], false), false)) return JUNDEF;
    list = jlist_new(rt, items->n);
    seen = jdict_new(rt, JK_DICT, items->n);
    for (size_t i = 0; i < items->n && !rt->rc; i++) {
        struct jval key = get_key(rt, &getter, items->items[i]);
        size_t before = seen.dict->n;
        if (jdict_set(rt, seen, key, JNONE) && seen.dict->n > before) *jlist_at(list, n++) = items->items[i];
    }
    if (rt->rc || !(kept = jrt_alloc(rt, 1, sizeof(*kept)))) return JUNDEF;
    *kept = (struct jlist){ .items = list.list->items, .n = n };
    return jiter_new(rt, (struct jval){ .kind = JK_LIST, .list = kept });
}

/* ---- order and sums ---- */
static bool goes_before(struct jrt *rt, struct jval a, struct jval b, bool reverse)
{
    return reverse ? jcompare(rt, b, a) < 0 : jcompare(rt, a, b) < 0;
}

/* Merge sort of positions by key: stable, and in reverse stable as well. */
static void merge_sort(struct jrt *rt, const struct jval *keys, size_t *order, size_t *spare, size_t n, bool reverse)
{
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t from = 0; from < n && jrt_charge(rt, 1); from += 2 * width) {
            size_t mid = from + width < n ? from + width : n, end = from + 2 * width < n ? from + 2 * width : n;
            size_t a = from, b = mid;
            for (size_t k = from; k < end; k++) {
                bool take_b = b < end && (a >= mid || goes_before(rt, keys[order[b]], keys[order[a]], reverse));
                spare[k] = take_b ? order[b++] : order[a++];
            }
        }
        if (rt->rc) return;
        memcpy(order, spare, n * sizeof(*order));
    }
}

static struct jval sorted(struct jrt *rt, const struct jlist *items, const struct jval *keys, bool reverse)
{
    size_t *order = jrt_alloc(rt, items->n + 1, sizeof(*order)), *spare = jrt_alloc(rt, items->n + 1, sizeof(*spare));
    struct jval list = jlist_new(rt, items->n);

    if (rt->rc) return JUNDEF;
    for (size_t i = 0; i < items->n; i++) order[i] = i;
    merge_sort(rt, keys, order, spare, items->n, reverse);
    for (size_t i = 0; i < items->n; i++) *jlist_at(list, i) = items->items[order[i]];
    return list;
}

static struct jval *keys_of(struct jrt *rt, const struct jlist *items, const struct getter *getter)
{
    struct jval *keys = jrt_alloc(rt, items->n + 1, sizeof(*keys));

    for (size_t i = 0; keys && i < items->n && !rt->rc; i++) keys[i] = get_key(rt, getter, items->items[i]);
    return keys;
}

FILTER(sort)
{
    const struct jlist *items = jitems(rt, v);
    struct getter getter;
    struct jval *keys;

    JUNUSED;
    if (!items || !getter_init(rt, &getter, argv[2], !jfilter_flag(argv[1], false), true)) return JUNDEF;
    keys = keys_of(rt, items, &getter);
    return rt->rc ? JUNDEF : sorted(rt, items, keys, jfilter_flag(argv[0], false));
}

FILTER(dictsort)
{
    struct getter getter;
    bool by_value = jis_str(argv[1]) && jstr_is(argv[1].s, "value");
    struct jval view, *keys;

    JUNUSED;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (v.kind != JK_DICT) return jrt_fail(rt, "'%s' object has no attribute 'items'", jkind_name(v));
    if (jgiven(argv[1]) && !by_value && !(jis_str(argv[1]) && jstr_is(argv[1].s, "key")))
        return jrt_fail(rt, "You can only sort by either \"key\" or \"value\"");
    if (!getter_init(rt, &getter, jint(by_value), !jfilter_flag(argv[0], false), false)) return JUNDEF;
    view = jmethod_find(v, &(struct jstr){ .data = "items", .len = 5 })->fn(rt, v, argv, args);
    if (rt->rc) return JUNDEF;
    keys = keys_of(rt, view.view->items, &getter);
    return rt->rc ? JUNDEF : sorted(rt, view.view->items, keys, jfilter_flag(argv[2], false));
}

static struct jval extreme(struct jrt *rt, struct jval v, const struct jval *argv, bool largest)
{
    const struct jlist *items = jitems(rt, v);
    struct getter getter;
    struct jval *keys;
    size_t best = 0;

    if (!items || !getter_init(rt, &getter, argv[1], !jfilter_flag(argv[0], false), false)) return JUNDEF;
    if (items->n == 0) return jundefined(rt, "No aggregated item, sequence was empty.");
    keys = keys_of(rt, items, &getter);
    for (size_t i = 1; i < items->n && !rt->rc; i++)
        if (goes_before(rt, keys[i], keys[best], largest)) best = i;
    return rt->rc ? JUNDEF : items->items[best];
}

FILTER(min) { JUNUSED; return extreme(rt, v, argv, false); }
FILTER(max) { JUNUSED; return extreme(rt, v, argv, true); }

FILTER(sum)
{
    const struct jlist *items = jitems(rt, v);
    struct jval total = jgiven(argv[1]) ? argv[1] : jint(0);
    struct getter getter;

    JUNUSED;
    if (!items || !getter_init(rt, &getter, argv[0], false, false)) return JUNDEF;
    if (jis_str(total)) return jrt_fail(rt, "sum() can't sum strings [use ''.join(seq) instead]");
    for (size_t i = 0; i < items->n && !rt->rc; i++)
        total = jbinary(rt, JOP_ADD, total, get_key(rt, &getter, items->items[i]));
    return total;
}

static const struct jdef filters[] = {
    { "batch", f_batch, 1, false, { "linecount", "fill_with" } },
    { "dictsort", f_dictsort, 0, false, { "case_sensitive", "by", "reverse" } },
    { "first", f_first, 0, false, { NULL } },
    { "items", f_items, 0, false, { NULL } },
    { "join", f_join, 0, false, { "d", "attribute" } },
    { "last", f_last, 0, false, { NULL } },
    { "list", f_list, 0, false, { NULL } },
    { "map", f_map, 0, true, { NULL } },
    { "max", f_max, 0, false, { "case_sensitive", "attribute" } },
    { "min", f_min, 0, false, { "case_sensitive", "attribute" } },
    { "reject", f_reject, 0, true, { NULL } },
    { "rejectattr", f_rejectattr, 0, true, { NULL } },
    { "reverse", f_reverse, 0, false, { NULL } },
    { "select", f_select, 0, true, { NULL } },
    { "selectattr", f_selectattr, 0, true, { NULL } },
    { "sort", f_sort, 0, false, { "reverse", "case_sensitive", "attribute" } },
    { "sum", f_sum, 0, false, { "attribute", "start" } },
    { "unique", f_unique, 0, false, { "case_sensitive", "attribute" } },
};

const struct jdef *jfilter_seq_find(const char *name)
{
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++)
        if (strcmp(filters[i].name, name) == 0) return &filters[i];
    return NULL;
}
