/* jinja_value.c - truth, equality, order, length, items, attributes and subscripts, as Python's objects have them. */
#include "jinja_value.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "jinja_ast.h"
#include "jinja_unicode.h"

/* ---- the run ---- */
struct jval jrt_fail(struct jrt *rt, const char *fmt, ...)
{
    char what[480];
    va_list args;

    if (rt->rc) return JUNDEF;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    what[utf8_complete_len(what, strlen(what))] = 0;
    for (char *c = what; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = ' ';
    rt->rc = err_set(rt->err, ERR_TEMPLATE, "chat template line %d: %s", rt->line, what);
    return JUNDEF;
}

bool jrt_charge(struct jrt *rt, size_t units)
{
    if (rt->rc) return false;
    if (units > (size_t)rt->fuel) {
        rt->fuel = 0;
        jrt_fail(rt, "the run took more than %d steps", JRT_MAX_STEPS);
        return false;
    }
    rt->fuel -= (int64_t)units;
    return true;
}

void *jrt_alloc(struct jrt *rt, size_t n, size_t size)
{
    void *mem = rt->rc ? NULL : arena_array(rt->arena, n, size);

    if (mem || rt->rc) return mem;
    if (n > JRT_MAX_MEMORY / size || rt->arena->used_bytes + n * size >= JRT_MAX_MEMORY / 2)
        jrt_fail(rt, "the run needs too much memory");
    else
        rt->rc = err_set(rt->err, ERR_NO_MEMORY, "out of memory");
    return NULL;
}

/* ---- kinds ---- */
const char *jkind_name(struct jval v)
{
    static const char *const names[] = {
        [JK_MISSING] = "missing", [JK_UNDEFINED] = "Undefined", [JK_NONE] = "NoneType", [JK_BOOL] = "bool",
        [JK_INT] = "int", [JK_FLOAT] = "float", [JK_STR] = "str", [JK_LIST] = "list", [JK_TUPLE] = "tuple",
        [JK_DICT] = "dict", [JK_VIEW] = "dict_view", [JK_ITER] = "generator", [JK_RANGE] = "range",
        [JK_NAMESPACE] = "Namespace", [JK_LOOP] = "LoopContext", [JK_MACRO] = "Macro", [JK_FUNC] = "function",
    };

    return names[v.kind];
}

bool jtruth(struct jval v)
{
    switch (v.kind) {
    case JK_MISSING: case JK_UNDEFINED: case JK_NONE: return false;
    case JK_BOOL: return v.b;
    case JK_INT: return v.i != 0;
    case JK_FLOAT: return v.f != 0;
    case JK_STR: return v.s->len > 0;
    case JK_LIST: case JK_TUPLE: return v.list->n > 0;
    case JK_DICT: return v.dict->n > 0;
    case JK_VIEW: return v.view->items->n > 0;
    case JK_RANGE: return v.range->n > 0;
    default: return true;
    }
}

static bool list_equal(struct jrt *rt, const struct jlist *a, const struct jlist *b)
{
    bool equal = a->n == b->n;

    if (++rt->depth > JRT_MAX_DEPTH) jrt_fail(rt, "nested too deep");
    for (size_t i = 0; equal && i < a->n && !rt->rc; i++)
        equal = jequal(rt, a->items[i], b->items[i]);
    rt->depth--;
    return equal;
}

static bool dict_equal(struct jrt *rt, const struct jdict *a, const struct jdict *b)
{
    bool equal = a->n == b->n;

    if (++rt->depth > JRT_MAX_DEPTH) jrt_fail(rt, "nested too deep");
    for (size_t i = 0; equal && i < a->n && !rt->rc; i++) {
        const struct jval *other = jdict_get(rt, b, a->pairs[i].key);
        equal = other && jequal(rt, a->pairs[i].value, *other);
    }
    rt->depth--;
    return equal;
}

bool jequal(struct jrt *rt, struct jval a, struct jval b)
{
    if (!jrt_charge(rt, 1)) return false;
    if (jis_int(a) && jis_int(b)) return jint_of(a) == jint_of(b);
    if (jis_num(a) && jis_num(b)) return jnum_of(a) == jnum_of(b);
    if (a.kind != b.kind) return false;
    switch (a.kind) {
    case JK_UNDEFINED: case JK_NONE: return true;
    case JK_STR: return a.s->len == b.s->len && jrt_charge(rt, a.s->len / 64) && jstr_compare(a.s, b.s) == 0;
    case JK_LIST: case JK_TUPLE: return list_equal(rt, a.list, b.list);
    case JK_DICT: return dict_equal(rt, a.dict, b.dict);
    case JK_VIEW: return a.view == b.view;
    case JK_RANGE: {
        const struct jrange *x = a.range, *y = b.range;
        return x->n == y->n && (x->n == 0 || (x->start == y->start && (x->n == 1 || x->step == y->step)));
    }
    default: return a.list == b.list;
    }
}

int jcompare(struct jrt *rt, struct jval a, struct jval b)
{
    if (!jrt_charge(rt, 1)) return 0;
    if (jis_int(a) && jis_int(b)) return (jint_of(a) > jint_of(b)) - (jint_of(a) < jint_of(b));
    if (jis_num(a) && jis_num(b)) {
        double x = jnum_of(a), y = jnum_of(b);
        return isnan(x) || isnan(y) ? 2 : (x > y) - (x < y);
    }
    if (a.kind == JK_UNDEFINED) { jundef_fail(rt, a); return 0; }
    if (b.kind == JK_UNDEFINED) { jundef_fail(rt, b); return 0; }
    if (jis_str(a) && jis_str(b)) return jstr_compare(a.s, b.s);
    if (a.kind == b.kind && (a.kind == JK_LIST || a.kind == JK_TUPLE)) {
        size_t n = a.list->n < b.list->n ? a.list->n : b.list->n;
        for (size_t i = 0; i < n && !rt->rc; i++) {
            if (jequal(rt, a.list->items[i], b.list->items[i])) continue;
            return jcompare(rt, a.list->items[i], b.list->items[i]);
        }
        return (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    jrt_fail(rt, "'<' not supported between instances of '%s' and '%s'", jkind_name(a), jkind_name(b));
    return 0;
}

bool jhashable(struct jrt *rt, struct jval v)
{
    bool hashable = true;

    if (v.kind != JK_TUPLE) return v.kind != JK_LIST && v.kind != JK_DICT;
    if (++rt->depth > JRT_MAX_DEPTH) jrt_fail(rt, "nested too deep");
    for (size_t i = 0; hashable && i < v.list->n && jrt_charge(rt, 1); i++)
        hashable = jhashable(rt, v.list->items[i]);
    rt->depth--;
    return hashable;
}

bool jcontains(struct jrt *rt, struct jval container, struct jval item)
{
    if (jis_str(container)) {
        if (!jis_str(item)) {
            jrt_fail(rt, "'in <string>' requires string as left operand, not %s", jkind_name(item));
            return false;
        }
        jrt_charge(rt, container.s->len / 64);
        return jstr_find(container.s, 0, item.s) != SIZE_MAX;
    }
    if (container.kind == JK_DICT) {
        if (!jhashable(rt, item)) jrt_fail(rt, "unhashable type: '%s'", jkind_name(item));
        return jdict_get(rt, container.dict, item) != NULL;
    }
    if (container.kind == JK_ITER) {             /* reads up to the hit, as Python's iterators */
        struct jiter *iter = container.iter;
        while (iter->pos < iter->items->n && !rt->rc)
            if (jequal(rt, iter->items->items[iter->pos++], item)) return true;
        return false;
    }
    const struct jlist *items = jitems(rt, container);
    for (size_t i = 0; items && i < items->n && !rt->rc; i++)
        if (jequal(rt, items->items[i], item)) return true;
    return false;
}

int64_t jlength(struct jrt *rt, struct jval v)
{
    switch (v.kind) {
    case JK_UNDEFINED: return 0;
    case JK_STR: jrt_charge(rt, v.s->len / 64); return (int64_t)jstr_chars(v.s);
    case JK_LIST: case JK_TUPLE: return (int64_t)v.list->n;
    case JK_DICT: return (int64_t)v.dict->n;
    case JK_VIEW: return (int64_t)v.view->items->n;
    case JK_RANGE: return (int64_t)v.range->n;
    default: break;
    }
    jrt_fail(rt, "object of type '%s' has no len()", jkind_name(v));
    return -1;
}

/* ---- lists, iterators, dicts ---- */
struct jval jlist_wrap(struct jrt *rt, uint8_t kind, const struct jval *items, size_t n)
{
    struct jlist *list = jrt_alloc(rt, 1, sizeof(*list));
    struct jval *copy = list ? jrt_alloc(rt, n + !n, sizeof(*copy)) : NULL;

    if (!copy || !jrt_charge(rt, n / 8)) return JUNDEF;
    if (n && items) memcpy(copy, items, n * sizeof(*copy));
    *list = (struct jlist){ .items = copy, .n = n };
    return (struct jval){ .kind = kind, .list = list };
}

struct jval jlist_new(struct jrt *rt, size_t n) { return jlist_wrap(rt, JK_LIST, NULL, n); }
struct jval *jlist_at(struct jval list, size_t i) { return &list.list->items[i]; }

struct jval jiter_new(struct jrt *rt, struct jval list)
{
    struct jiter *iter = rt->rc ? NULL : jrt_alloc(rt, 1, sizeof(*iter));

    if (!iter) return JUNDEF;
    iter->items = list.list;
    return (struct jval){ .kind = JK_ITER, .iter = iter };
}

bool jiterable(struct jval v)
{
    switch (v.kind) {
    case JK_UNDEFINED:
    case JK_STR:
    case JK_LIST:
    case JK_TUPLE:
    case JK_DICT:
    case JK_VIEW:
    case JK_ITER:
    case JK_RANGE:
    case JK_LOOP:
        return true;
    default:
        return false;
    }
}

static struct jval str_items(struct jrt *rt, const struct jstr *s)
{
    size_t n = jstr_chars(s), at = 0, cp_len = 0;
    struct jval list = jrt_charge(rt, n) ? jlist_new(rt, n) : JUNDEF;

    for (size_t i = 0; i < n && !rt->rc; i++, at += cp_len) {
        jcp_next(s->data + at, s->len - at, &cp_len);
        struct jstr plain = *s;                  /* the letters of markup are plain text in Python */
        plain.markup = false;
        *jlist_at(list, i) = jstr_sub(rt, &plain, at, at + cp_len);
    }
    return list;
}

static struct jval dict_keys(struct jrt *rt, const struct jdict *dict)
{
    struct jval list = jlist_new(rt, dict->n);

    for (size_t i = 0; i < dict->n && !rt->rc; i++)
        *jlist_at(list, i) = dict->pairs[i].key;
    return list;
}

static struct jval range_items(struct jrt *rt, const struct jrange *range)
{
    struct jval list = jrt_charge(rt, range->n) ? jlist_new(rt, range->n) : JUNDEF;

    for (size_t i = 0; i < range->n && !rt->rc; i++)
        *jlist_at(list, i) = jint(range->start + (int64_t)i * range->step);
    return list;
}

static struct jval iter_rest(struct jrt *rt, struct jiter *iter)
{
    struct jval list = jlist_wrap(rt, JK_LIST, iter->items->items + iter->pos, iter->items->n - iter->pos);

    iter->pos = iter->items->n;
    return list;
}

const struct jlist *jitems(struct jrt *rt, struct jval v)
{
    struct jval list;

    if (rt->rc) return NULL;
    switch (v.kind) {
    case JK_LIST: case JK_TUPLE: return v.list;
    case JK_VIEW: return v.view->items;
    case JK_UNDEFINED: list = jlist_new(rt, 0); break;
    case JK_STR: list = str_items(rt, v.s); break;
    case JK_DICT: list = dict_keys(rt, v.dict); break;
    case JK_RANGE: list = range_items(rt, v.range); break;
    case JK_ITER: list = iter_rest(rt, v.iter); break;
    default:
        jrt_fail(rt, "'%s' object is not iterable", jkind_name(v));
        return NULL;
    }
    return rt->rc ? NULL : list.list;
}

struct jval jdict_new(struct jrt *rt, uint8_t kind, size_t cap)
{
    struct jdict *dict = jrt_alloc(rt, 1, sizeof(*dict));

    if (!dict) return JUNDEF;
    dict->pairs = jrt_alloc(rt, cap + !cap, sizeof(*dict->pairs));
    if (!dict->pairs) return JUNDEF;
    dict->cap = cap + !cap;
    return (struct jval){ .kind = kind, .dict = dict };
}

const struct jval *jdict_find(const struct jdict *dict, const char *key, size_t len)
{
    for (size_t i = 0; i < dict->n; i++) {
        const struct jval *k = &dict->pairs[i].key;
        if (k->kind == JK_STR && k->s->len == len && memcmp(k->s->data, key, len) == 0) return &dict->pairs[i].value;
    }
    return NULL;
}

const struct jval *jdict_get(struct jrt *rt, const struct jdict *dict, struct jval key)
{
    if (!jrt_charge(rt, dict->n / 16)) return NULL;
    if (jis_str(key)) return jdict_find(dict, key.s->data, key.s->len);
    for (size_t i = 0; i < dict->n && !rt->rc; i++)
        if (jequal(rt, dict->pairs[i].key, key)) return &dict->pairs[i].value;
    return NULL;
}

bool jdict_set(struct jrt *rt, struct jval v, struct jval key, struct jval value)
{
    struct jdict *dict = v.dict;

    if (rt->rc) return false;
    if (!jhashable(rt, key)) {
        jrt_fail(rt, "unhashable type: '%s'", jkind_name(key));
        return false;
    }
    struct jval *there = (struct jval *)jdict_get(rt, dict, key);
    if (there) {
        *there = value;
        return true;
    }
    if (dict->n == dict->cap) {
        struct jpair *pairs = jrt_alloc(rt, dict->cap * 2, sizeof(*pairs));
        if (!pairs) return false;
        memcpy(pairs, dict->pairs, dict->n * sizeof(*pairs));
        dict->pairs = pairs;
        dict->cap *= 2;
    }
    dict->pairs[dict->n++] = (struct jpair){ .key = key, .value = value };
    return true;
}

/* ---- undefined ---- */
static struct jval undefined_new(struct jrt *rt, const char *hint, uint8_t of_kind, const struct jstr *name)
{
    struct jundef *undef = jrt_alloc(rt, 1, sizeof(*undef));

    if (!undef) return JUNDEF;
    *undef = (struct jundef){ .hint = hint, .of_kind = of_kind, .name = name };
    return (struct jval){ .kind = JK_UNDEFINED, .undef = undef };
}

struct jval jundefined(struct jrt *rt, const char *hint) { return undefined_new(rt, hint, 0, NULL); }
struct jval jundefined_of(struct jrt *rt, struct jval obj, const struct jstr *name)
{ return undefined_new(rt, NULL, obj.kind, name); }

struct jval jundef_fail(struct jrt *rt, struct jval undef)
{
    const struct jundef *why = undef.kind == JK_UNDEFINED ? undef.undef : NULL;

    if (!why) return jrt_fail(rt, "a value is undefined");
    if (why->hint) return jrt_fail(rt, "%s", why->hint);
    int len = why->name->len < 200 ? (int)why->name->len : 200;
    if (why->of_kind == JK_MISSING) return jrt_fail(rt, "'%.*s' is undefined", len, why->name->data);
    return jrt_fail(rt, "'%s%s' has no attribute '%.*s'",
                    why->of_kind == JK_NONE ? "None" : jkind_name((struct jval){ .kind = why->of_kind }),
                    why->of_kind == JK_NONE ? "" : " object", len, why->name->data);
}

/* ---- attributes and subscripts ---- */
/* Is name a Python method that changes its object? The sandbox answers undefined for those. */
static bool is_mutator(struct jval obj, const struct jstr *name)
{
    static const char *const of_dict[] = { "clear", "pop", "popitem", "setdefault", "update", NULL };
    static const char *const of_list[] = {"append", "clear",  "pop",    "reverse", "insert",
                                          "sort",   "extend", "remove", NULL};
    const char *const *names = obj.kind == JK_DICT ? of_dict : obj.kind == JK_LIST ? of_list : NULL;

    for (; names && *names; names++)
        if (jstr_is(name, *names)) return true;
    return false;
}

/* The Python attribute; JK_MISSING if there is none. */
static struct jval own_attr(struct jrt *rt, struct jval obj, const struct jstr *name)
{
    const struct jdef *def;
    const struct jval *found;
    struct jfunc *method;

    if (obj.kind == JK_NAMESPACE) {
        found = jdict_find(obj.dict, name->data, name->len);
        return found ? *found : (struct jval){ .kind = JK_MISSING };
    }
    if (obj.kind == JK_LOOP) {
        struct jval v = jloop_attr(rt, obj.loop, name);
        if (jgiven(v)) return v;
    }
    if (is_mutator(obj, name)) return jundefined(rt, "access to a method that changes its object is unsafe");
    if (obj.kind == JK_MACRO && jstr_is(name, "name")) return jstr_lit(rt, rt->tmpl->names[obj.macro->node->name]);
    if (!(def = jmethod_find(obj, name))) return (struct jval){ .kind = JK_MISSING };
    if (!(method = jrt_alloc(rt, 1, sizeof(*method)))) return JUNDEF;
    *method = (struct jfunc){ .def = def, .self = obj };
    return (struct jval){ .kind = JK_FUNC, .func = method };
}

struct jval jgetattr(struct jrt *rt, struct jval obj, const struct jstr *name)
{
    const struct jval *found;
    struct jval v;

    if (rt->rc) return JUNDEF;
    if (obj.kind == JK_UNDEFINED) return jundef_fail(rt, obj);
    v = own_attr(rt, obj, name);
    if (jgiven(v)) return v;
    if (obj.kind == JK_DICT) {
        jrt_charge(rt, obj.dict->n / 16);
        if ((found = jdict_find(obj.dict, name->data, name->len))) return *found;
    }
    return jundefined_of(rt, obj, name);
}

/* Python index (negative from the end) of a sequence of n -> position, or SIZE_MAX. */
static size_t position(struct jval index, size_t n)
{
    int64_t i = jint_of(index);

    if (i < 0) i += (int64_t)n;
    return i < 0 || i >= (int64_t)n ? SIZE_MAX : (size_t)i;
}

static struct jval str_at(struct jrt *rt, const struct jstr *s, struct jval index)
{
    size_t at, from;

    if (!jrt_charge(rt, s->len / 64)) return JUNDEF;
    at = position(index, jstr_chars(s));
    if (at == SIZE_MAX) return (struct jval){ .kind = JK_MISSING };
    from = jstr_offset(s, 0, at);
    return jstr_sub(rt, s, from, jstr_offset(s, from, 1));
}

struct jval jgetitem(struct jrt *rt, struct jval obj, struct jval index)
{
    struct jval v = { .kind = JK_MISSING };
    size_t at;

    if (rt->rc) return JUNDEF;
    if (obj.kind == JK_UNDEFINED) return jundef_fail(rt, obj);
    if (obj.kind == JK_DICT && jhashable(rt, index)) {
        const struct jval *found = jdict_get(rt, obj.dict, index);
        if (found) return *found;
    } else if ((obj.kind == JK_LIST || obj.kind == JK_TUPLE) && jis_int(index)) {
        at = position(index, obj.list->n);
        if (at != SIZE_MAX) return obj.list->items[at];
    } else if (obj.kind == JK_STR && jis_int(index)) {
        v = str_at(rt, obj.s, index);
    } else if (obj.kind == JK_RANGE && jis_int(index)) {
        at = position(index, obj.range->n);
        if (at != SIZE_MAX) return jint(obj.range->start + (int64_t)at * obj.range->step);
    }
    if (!jgiven(v) && jis_str(index)) v = own_attr(rt, obj, index.s);
    return jgiven(v) ? v : jundefined_of(rt, obj, jto_str(rt, index));
}

struct bounds { int64_t from, to, step; size_t n; };

static bool slice_part(struct jrt *rt, struct jval part, int64_t *value)
{
    if (part.kind == JK_UNDEFINED) jundef_fail(rt, part);
    else if (!jis_int(part)) jrt_fail(rt, "slice indices must be integers or None");
    else *value = jint_of(part);
    return !rt->rc;
}

static int64_t clamp(int64_t i, int64_t len, int64_t step)
{
    if (i < 0 && (i += len) < 0) return step < 0 ? -1 : 0;
    return i >= len ? (step < 0 ? len - 1 : len) : i;
}

static bool slice_bounds(struct jrt *rt, int64_t len, const struct jval part[3], struct bounds *out)
{
    int64_t step = 1, from, to;

    if (part[2].kind != JK_NONE && !slice_part(rt, part[2], &step)) return false;
    if (step == 0) { jrt_fail(rt, "slice step cannot be zero"); return false; }
    if (step < -INT32_MAX) step = -INT32_MAX;
    if (step > INT32_MAX) step = INT32_MAX;
    from = step < 0 ? len - 1 : 0;
    to = step < 0 ? -1 : len;
    if (part[0].kind != JK_NONE) {
        if (!slice_part(rt, part[0], &from)) return false;
        from = clamp(from, len, step);
    }
    if (part[1].kind != JK_NONE) {
        if (!slice_part(rt, part[1], &to)) return false;
        to = clamp(to, len, step);
    }
    int64_t n = step > 0 ? (to - from + step - 1) / step : (from - to - step - 1) / -step;
    *out = (struct bounds){ .from = from, .to = to, .step = step, .n = n > 0 ? (size_t)n : 0 };
    return true;
}

static struct jval slice_str(struct jrt *rt, const struct jstr *s, const struct jval part[3])
{
    struct bounds bounds;
    struct jval chars;
    struct jbuf buf;

    if (!jrt_charge(rt, s->len / 64) || !slice_bounds(rt, (int64_t)jstr_chars(s), part, &bounds)) return JUNDEF;
    if (bounds.step == 1) {
        size_t from = jstr_offset(s, 0, (size_t)bounds.from);
        return jstr_sub(rt, s, from, jstr_offset(s, from, bounds.n));
    }
    chars = str_items(rt, s);
    jbuf_init(&buf, rt);
    for (size_t i = 0; i < bounds.n && !rt->rc; i++)
        jbuf_add_value(&buf, *jlist_at(chars, (size_t)(bounds.from + (int64_t)i * bounds.step)));
    buf.markup = s->markup;
    return jbuf_take(&buf);
}

static struct jval slice_range(struct jrt *rt, const struct jrange *range, const struct jval part[3])
{
    struct jrange *cut = jrt_alloc(rt, 1, sizeof(*cut));
    struct bounds bounds;

    if (!cut || !slice_bounds(rt, (int64_t)range->n, part, &bounds)) return JUNDEF;
    *cut = (struct jrange){ .n = bounds.n };
    if (__builtin_mul_overflow(range->step, bounds.step, &cut->step) ||
        __builtin_mul_overflow(range->step, bounds.from, &cut->start) ||
        __builtin_mul_overflow(range->step, bounds.to, &cut->stop) ||
        __builtin_add_overflow(range->start, cut->start, &cut->start) ||
        __builtin_add_overflow(range->start, cut->stop, &cut->stop))
        return jrt_fail(rt, "integer result beyond 64 bits");
    return (struct jval){ .kind = JK_RANGE, .range = cut };
}

struct jval jslice(struct jrt *rt, struct jval obj, struct jval from, struct jval to, struct jval step)
{
    struct jval part[3] = { from, to, step }, list;
    struct bounds bounds;
    const struct jlist *items;

    if (rt->rc) return JUNDEF;
    if (obj.kind == JK_UNDEFINED) return jundef_fail(rt, obj);
    if (obj.kind == JK_STR) return slice_str(rt, obj.s, part);
    if (obj.kind == JK_RANGE) return slice_range(rt, obj.range, part);
    if (obj.kind != JK_LIST && obj.kind != JK_TUPLE)
        return jrt_fail(rt, "'%s' object is not subscriptable", jkind_name(obj));
    if (!(items = jitems(rt, obj)) || !slice_bounds(rt, (int64_t)items->n, part, &bounds)) return JUNDEF;
    list = jlist_wrap(rt, obj.kind, NULL, bounds.n);
    for (size_t i = 0; i < bounds.n && !rt->rc; i++)
        *jlist_at(list, i) = items->items[bounds.from + (int64_t)i * bounds.step];
    return list;
}
