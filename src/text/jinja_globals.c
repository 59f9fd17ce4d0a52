/* jinja_globals.c - the functions a template finds without being given them: range, dict, namespace, raise_exception,
 * strftime_now; and the constructors behind them. */
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "jinja_ast.h"

static bool int_arg(struct jrt *rt, struct jval v, int64_t *out)
{
    if (!jgiven(v)) return true;
    if (v.kind == JK_UNDEFINED) jundef_fail(rt, v);
    else if (!jis_int(v)) jrt_fail(rt, "'%s' object cannot be interpreted as an integer", jkind_name(v));
    else *out = jint_of(v);
    return !rt->rc;
}

static struct jval global_range(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args)
{
    int64_t start = 0, stop = 0, step = 1, span;
    struct jrange *range = jrt_alloc(rt, 1, sizeof(*range));
    uint64_t n = 0;

    (void)self;
    (void)args;
    if (!range) return JUNDEF;
    if (!jgiven(argv[1]) ? !int_arg(rt, argv[0], &stop) : !int_arg(rt, argv[0], &start) || !int_arg(rt, argv[1], &stop))
        return JUNDEF;
    if (!int_arg(rt, argv[2], &step)) return JUNDEF;
    if (step == 0) return jrt_fail(rt, "range() arg 3 must not be zero");
    if (__builtin_sub_overflow(stop, start, &span)) return jrt_fail(rt, "range too big");
    if (step > 0 && span > 0) n = ((uint64_t)span - 1) / (uint64_t)step + 1;
    if (step < 0 && span < 0) n = (-(uint64_t)span - 1) / -(uint64_t)step + 1;
    if (n > JRT_MAX_RANGE)
        return jrt_fail(rt, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", JRT_MAX_RANGE);
    *range = (struct jrange){ .start = start, .stop = stop, .step = step, .n = (size_t)n };
    return (struct jval){ .kind = JK_RANGE, .range = range };
}

/* dict(mapping or pairs, key=value...), also what a namespace is filled from. */
static struct jval make_dict(struct jrt *rt, uint8_t kind, const struct jargs *args)
{
    struct jval dict = jdict_new(rt, kind, args->n_kw);

    if (args->n_pos > 1) return jrt_fail(rt, "dict expected at most 1 argument, got %zu", args->n_pos);
    if (args->n_pos == 1 && args->pos[0].kind == JK_DICT) {
        const struct jdict *from = args->pos[0].dict;
        for (size_t i = 0; i < from->n && !rt->rc; i++)
            jdict_set(rt, dict, from->pairs[i].key, from->pairs[i].value);
    } else if (args->n_pos == 1) {
        const struct jlist *pairs = jitems(rt, args->pos[0]);
        for (size_t i = 0; pairs && i < pairs->n && !rt->rc; i++) {
            const struct jlist *pair = jitems(rt, pairs->items[i]);
            if (pair && pair->n == 2) jdict_set(rt, dict, pair->items[0], pair->items[1]);
            else jrt_fail(rt, "dictionary update sequence element #%zu has the wrong length", i);
        }
    }
    for (size_t i = 0; i < args->n_kw && !rt->rc; i++)
        jdict_set(rt, dict, jstr_lit(rt, args->kw[i].name), args->kw[i].value);
    return dict;
}

static struct jval global_dict(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args)
{
    (void)self;
    (void)argv;
    return make_dict(rt, JK_DICT, args);
}

static struct jval global_namespace(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args)
{
    struct jval ns = make_dict(rt, JK_NAMESPACE, args);

    (void)self;
    (void)argv;
    for (size_t i = 0; !rt->rc && i < ns.dict->n; i++) {
        struct jval key = ns.dict->pairs[i].key;
        if (jis_str(key) && key.s->len && key.s->data[0] == '_')
            return jrt_fail(rt, "namespace attributes may not start with an underscore");
    }
    return ns;
}

/* The message goes to the client as it is: it is what the template's author wants to say. */
static struct jval global_raise(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args)
{
    const struct jstr *text = jto_str(rt, argv[0]);
    char message[500];
    size_t n = 0;

    (void)self;
    (void)args;
    if (rt->rc) return JUNDEF;
    for (size_t i = 0; i < text->len && n + 1 < sizeof(message); i++)
        message[n++] = (unsigned char)text->data[i] < 0x20 || text->data[i] == 0x7f ? ' ' : text->data[i];
    message[utf8_complete_len(message, n)] = 0;
    rt->rc = err_set(rt->err, ERR_TEMPLATE, "%s", message);
    return JUNDEF;
}

static struct jval global_strftime_now(struct jrt *rt, struct jval self, const struct jval *argv,
                                       const struct jargs *args)
{
    time_t now = (time_t)rt->now_s;
    struct tm tm;
    char fmt[256], text[1024];
    struct jbuf buf;

    (void)self;
    (void)args;
    if (!jis_str(argv[0])) return jrt_fail(rt, "strftime() argument 1 must be str, not %s", jkind_name(argv[0]));
    if (argv[0].s->len >= sizeof(fmt) || memchr(argv[0].s->data, 0, argv[0].s->len))
        return jrt_fail(rt, "bad strftime format");
    memcpy(fmt, argv[0].s->data, argv[0].s->len);
    fmt[argv[0].s->len] = 0;
    if (!localtime_r(&now, &tm)) return jrt_fail(rt, "time is out of range");
    jbuf_init(&buf, rt);
    jbuf_add(&buf, text, strftime(text, sizeof(text), fmt, &tm), JO_CLIENT);
    return jbuf_take(&buf);
}

static const struct jdef globals[] = {
    { "range", global_range, 1, false, { "_", "_", "_" } },
    { "dict", global_dict, 0, true, { NULL } },
    { "namespace", global_namespace, 0, true, { NULL } },
    { "raise_exception", global_raise, 1, false, { "message" } },
    { "strftime_now", global_strftime_now, 1, false, { "format" } },
};

const struct jdef *jglobal_find(const char *name)
{
    for (size_t i = 0; i < sizeof(globals) / sizeof(globals[0]); i++)
        if (strcmp(globals[i].name, name) == 0) return &globals[i];
    return NULL;
}
