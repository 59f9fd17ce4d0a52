/* jinja_eval.c - expressions. Every node costs one unit of fuel, every call and filter one step.
 * Recursion follows the tree, whose depth the parser bounded; macros inside macros are bounded by JRT_MAX_DEPTH. */
#include <string.h>

#include "jinja_ast.h"

/* ---- variables ---- */
static struct jval lookup(struct jrt *rt, const struct jscope *scope, int32_t name)
{
    size_t walked = 0;

    for (; scope->parent; scope = scope->parent) {
        for (const struct jbind *bind = scope->binds; bind; bind = bind->next, walked++)
            if (bind->name == name) return jrt_charge(rt, walked / 8) ? bind->value : JUNDEF;
        walked++;
    }
    if (!jrt_charge(rt, walked / 8)) return JUNDEF;
    if (jgiven(rt->root[name])) return rt->root[name];

    const char *text = rt->tmpl->names[name];
    const struct jdef *def = jglobal_find(text);
    struct jval v = jstr_lit(rt, text);
    if (rt->rc) return JUNDEF;
    if (!def) return jundefined_of(rt, (struct jval){ .kind = JK_MISSING }, v.s);
    struct jfunc *func = jrt_alloc(rt, 1, sizeof(*func));
    if (!func) return JUNDEF;
    *func = (struct jfunc){ .def = def };
    return (struct jval){ .kind = JK_FUNC, .func = func };
}

void jscope_set(struct jrt *rt, struct jscope *scope, int32_t name, struct jval value)
{
    struct jbind *bind;

    if (rt->rc) return;
    if (!scope->parent) {
        rt->root[name] = value;
        return;
    }
    for (bind = scope->binds; bind && bind->name != name; bind = bind->next)
        if (!jrt_charge(rt, 1)) return;
    if (!bind) {
        if (!(bind = jrt_alloc(rt, 1, sizeof(*bind)))) return;
        *bind = (struct jbind){ .name = name, .next = scope->binds };
        scope->binds = bind;
    }
    bind->value = value;
}

static bool assign_tuple(struct jrt *rt, struct jscope *scope, const struct jnode *target, struct jval value)
{
    const struct jlist *items = jitems(rt, value);

    if (!items) return false;
    if (items->n != target->n_items) {
        jrt_fail(rt,
                 items->n < target->n_items ? "not enough values to unpack (expected %u, got %zu)"
                                            : "too many values to unpack (expected %u, got %zu)",
                 target->n_items, items->n);
        return false;
    }
    for (size_t i = 0; i < items->n && !rt->rc; i++)
        jassign(rt, scope, target->items[i], items->items[i]);
    return !rt->rc;
}

bool jassign(struct jrt *rt, struct jscope *scope, const struct jnode *target, struct jval value)
{
    struct jval ns;

    if (rt->rc) return false;
    switch (target->kind) {
    case JN_NAME:
        jscope_set(rt, scope, target->name, value);
        break;
    case JN_TUPLE:
        return assign_tuple(rt, scope, target, value);
    default:
        ns = lookup(rt, scope, target->name);
        if (ns.kind != JK_NAMESPACE) jrt_fail(rt, "cannot assign attribute on non-namespace object");
        else if (target->value.s->data[0] == '_') jrt_fail(rt, "namespace attributes may not start with an underscore");
        else jdict_set(rt, ns, target->value, value);
        break;
    }
    return !rt->rc;
}

/* ---- calls ---- */
bool jeval_args(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jargs *args)
{
    struct jval *pos = jrt_alloc(rt, node->n_items + 1, sizeof(*pos));
    struct jkw *kw = jrt_alloc(rt, node->n_kw + 1, sizeof(*kw));

    *args = (struct jargs){ .pos = pos, .kw = kw };
    if (!pos || !kw) return false;
    for (uint32_t i = 0; i < node->n_items && !rt->rc; i++)
        pos[i] = jeval(rt, scope, node->items[i]);
    for (uint32_t i = 0; i < node->n_kw && !rt->rc; i++)
        kw[i] = (struct jkw){ .name = node->kw[i].name, .value = jeval(rt, scope, node->kw[i].value) };
    args->n_pos = node->n_items;
    args->n_kw = node->n_kw;
    return !rt->rc;
}

static bool bind_params(struct jrt *rt, const struct jdef *def, const struct jargs *args, struct jval *argv)
{
    size_t n_params = 0;

    while (n_params < JDEF_MAX_PARAMS && def->params[n_params]) n_params++;
    if (args->n_pos > n_params) {
        jrt_fail(rt, "%s() takes at most %zu arguments (%zu given)", def->name, n_params, args->n_pos);
        return false;
    }
    for (size_t i = 0; i < args->n_pos; i++) argv[i] = args->pos[i];
    for (size_t k = 0; k < args->n_kw; k++) {
        size_t i = 0;
        while (i < n_params && strcmp(def->params[i], args->kw[k].name) != 0) i++;
        if (i == n_params || jgiven(argv[i])) {
            jrt_fail(rt, "%s() got an unexpected or repeated argument '%s'", def->name, args->kw[k].name);
            return false;
        }
        argv[i] = args->kw[k].value;
    }
    for (size_t i = 0; i < def->required; i++) {
        if (jgiven(argv[i])) continue;
        jrt_fail(rt, "%s() needs %u more argument(s)", def->name, (unsigned)(def->required - i));
        return false;
    }
    return true;
}

struct jval jcall_def(struct jrt *rt, const struct jdef *def, struct jval self, const struct jargs *args)
{
    struct jval argv[JDEF_MAX_PARAMS] = { { .kind = JK_MISSING } };

    if (!jrt_charge(rt, JRT_UNITS_PER_STEP)) return JUNDEF;
    if (!def->variadic && !bind_params(rt, def, args, argv)) return JUNDEF;
    return def->fn(rt, self, argv, args);
}

struct jval jcall(struct jrt *rt, struct jval callee, const struct jargs *args)
{
    if (rt->rc) return JUNDEF;
    switch (callee.kind) {
    case JK_MACRO: return jcall_macro(rt, callee.macro, args);
    case JK_FUNC: return jcall_def(rt, callee.func->def, callee.func->self, args);
    case JK_UNDEFINED: return jundef_fail(rt, callee);
    default: return jrt_fail(rt, "'%s' object is not callable", jkind_name(callee));
    }
}

static struct jval eval_call(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval callee = jeval(rt, scope, node->a);
    struct jargs args;

    if (!jeval_args(rt, scope, node, &args)) return JUNDEF;
    rt->line = node->line;
    return jcall(rt, callee, &args);
}

static struct jval call_named(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jval input)
{
    struct jargs args;

    if (!jeval_args(rt, scope, node, &args)) return JUNDEF;
    rt->line = node->line;
    if (!node->def)
        return jrt_fail(rt, "no %s named '%.*s'", node->kind == JN_TEST ? "test" : "filter",
                        (int)(node->value.s->len < 64 ? node->value.s->len : 64), node->value.s->data);
    return jcall_def(rt, node->def, input, &args);
}

static struct jval eval_filter(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    return call_named(rt, scope, node, jeval(rt, scope, node->a));
}

struct jval jeval_chain(struct jrt *rt, struct jscope *scope, const struct jnode *filter, struct jval input)
{
    if (!filter || rt->rc) return input;
    if (++rt->depth > JRT_MAX_DEPTH) return jrt_fail(rt, "nested too deep");
    if (filter->a) input = jeval_chain(rt, scope, filter->a, input);
    input = call_named(rt, scope, filter, input);
    rt->depth--;
    return input;
}

static struct jval eval_test(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval v = eval_filter(rt, scope, node);

    return node->flags & JNF_NEGATED ? jbool(!jtruth(v)) : v;
}

/* ---- literals ---- */
static struct jval eval_const(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    (void)rt;
    (void)scope;
    return node->value;
}

static struct jval eval_name(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    return lookup(rt, scope, node->name);
}

static struct jval eval_list(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval list = jlist_wrap(rt, node->kind == JN_TUPLE ? JK_TUPLE : JK_LIST, NULL, node->n_items);

    for (uint32_t i = 0; i < node->n_items && !rt->rc; i++)
        *jlist_at(list, i) = jeval(rt, scope, node->items[i]);
    return list;
}

static struct jval eval_dict(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval dict = jdict_new(rt, JK_DICT, node->n_items / 2);

    for (uint32_t i = 0; i + 1 < node->n_items && !rt->rc; i += 2) {
        struct jval key = jeval(rt, scope, node->items[i]);
        jdict_set(rt, dict, key, jeval(rt, scope, node->items[i + 1]));
    }
    return dict;
}

/* ---- access ---- */
static struct jval eval_attr(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval obj = jeval(rt, scope, node->a);

    rt->line = node->line;
    return jgetattr(rt, obj, node->value.s);
}

static struct jval eval_item(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval obj = jeval(rt, scope, node->a), index = jeval(rt, scope, node->b);

    rt->line = node->line;
    return jgetitem(rt, obj, index);
}

static struct jval eval_slice(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval obj = jeval(rt, scope, node->a), from = jeval(rt, scope, node->b), to = jeval(rt, scope, node->c);

    return jslice(rt, obj, from, to, jeval(rt, scope, node->items[0]));
}

/* ---- operators ---- */
static struct jval eval_unary(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval v = jeval(rt, scope, node->a), r;

    if (rt->rc) return JUNDEF;
    if (v.kind == JK_UNDEFINED) return jundef_fail(rt, v);
    if (!jis_num(v))
        return jrt_fail(rt, "bad operand type for unary %c: '%s'", node->op == JOP_SUB ? '-' : '+', jkind_name(v));
    if (node->op == JOP_ADD) r = v.kind == JK_FLOAT ? v : jint(jint_of(v));
    else if (v.kind == JK_FLOAT) r = jfloat(-v.f);
    else r = jbinary(rt, JOP_SUB, jint(0), v);
    r.origin = v.origin;
    return r;
}

/* a + b + c ... is gathered from the left spine, and runs of strings are joined in one copy. */
static struct jval eval_sum(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    size_t n = 1;
    const struct jnode *left = node, **terms;
    struct jval acc;
    struct jbuf buf;
    bool joining = false;

    for (; left->kind == JN_BINARY && left->op == JOP_ADD; left = left->a) n++;
    if (!(terms = jrt_alloc(rt, n, sizeof(*terms))) || !jrt_charge(rt, n)) return JUNDEF;
    left = node;
    for (size_t i = n; i-- > 1; left = left->a) terms[i] = left->b;
    terms[0] = left;
    acc = jeval(rt, scope, terms[0]);
    for (size_t i = 1; i < n && !rt->rc; i++) {
        struct jval next = jeval(rt, scope, terms[i]);
        bool plain = jis_str(acc) && jis_str(next) && !acc.s->markup && !next.s->markup;
        rt->line = terms[i]->line;
        if (plain) {
            if (!joining) {
                jbuf_init(&buf, rt);
                jbuf_add_value(&buf, acc);
            }
            joining = true;
            jbuf_add_value(&buf, next);
            continue;
        }
        if (joining) acc = jbuf_take(&buf);
        joining = false;
        acc = jbinary(rt, JOP_ADD, acc, next);
    }
    return joining ? jbuf_take(&buf) : acc;
}

static struct jval eval_binary(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    if (node->op == JOP_ADD) return eval_sum(rt, scope, node);
    struct jval a = jeval(rt, scope, node->a), b = jeval(rt, scope, node->b);
    rt->line = node->line;
    return jbinary(rt, node->op, a, b);
}

static struct jval eval_concat(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    for (uint32_t i = 0; i < node->n_items && !rt->rc; i++)
        jbuf_add_value(&buf, jeval(rt, scope, node->items[i]));
    return jbuf_take(&buf);
}

static bool compare_one(struct jrt *rt, uint8_t op, struct jval a, struct jval b)
{
    int order;

    switch (op) {
    case JOP_EQ: return jequal(rt, a, b);
    case JOP_NE: return !jequal(rt, a, b);
    case JOP_IN: return jcontains(rt, b, a);
    case JOP_NOT_IN: return !jcontains(rt, b, a);
    default: break;
    }
    order = jcompare(rt, a, b);
    if (order == 2) return false;                /* NaN */
    return op == JOP_LT ? order < 0 : op == JOP_LE ? order <= 0 : op == JOP_GT ? order > 0 : order >= 0;
}

static struct jval eval_compare(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval left = jeval(rt, scope, node->a);

    for (uint32_t i = 0; i < node->n_items && !rt->rc; i++) {
        struct jval right = jeval(rt, scope, node->items[i]);
        rt->line = node->line;
        if (rt->rc || !compare_one(rt, node->ops[i], left, right)) return jbool(false);
        left = right;
    }
    return jbool(true);
}

static struct jval eval_and(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval v = jeval(rt, scope, node->a);

    return jtruth(v) ? jeval(rt, scope, node->b) : v;
}

static struct jval eval_or(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval v = jeval(rt, scope, node->a);

    return jtruth(v) ? v : jeval(rt, scope, node->b);
}

static struct jval eval_not(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    return jbool(!jtruth(jeval(rt, scope, node->a)));
}

static struct jval eval_cond(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    if (jtruth(jeval(rt, scope, node->b))) return jeval(rt, scope, node->a);
    if (node->c) return jeval(rt, scope, node->c);
    return jundefined(rt, "the inline if-expression evaluated to false and no else section was defined");
}

typedef struct jval (*eval_fn)(struct jrt *rt, struct jscope *scope, const struct jnode *node);

static const eval_fn eval_table[JN_EXPR_END_] = {
    [JN_CONST] = eval_const,   [JN_NAME] = eval_name,     [JN_LIST] = eval_list,       [JN_TUPLE] = eval_list,
    [JN_DICT] = eval_dict,     [JN_ATTR] = eval_attr,     [JN_ITEM] = eval_item,       [JN_SLICE] = eval_slice,
    [JN_CALL] = eval_call,     [JN_FILTER] = eval_filter, [JN_TEST] = eval_test,       [JN_UNARY] = eval_unary,
    [JN_BINARY] = eval_binary, [JN_CONCAT] = eval_concat, [JN_COMPARE] = eval_compare, [JN_AND] = eval_and,
    [JN_OR] = eval_or,         [JN_NOT] = eval_not,       [JN_COND] = eval_cond,
};

struct jval jeval(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jval v;

    if (!jrt_charge(rt, 1)) return JUNDEF;
    if (rt->depth >= JRT_MAX_DEPTH) return jrt_fail(rt, "nested too deep");
    rt->depth++;
    v = eval_table[node->kind](rt, scope, node);
    rt->depth--;
    return rt->rc ? JUNDEF : v;
}
