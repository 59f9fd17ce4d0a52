/* jinja_exec.c - statements, loops, macros. Every statement and every turn of a loop costs one step of fuel.
 * Scopes as in jinja2: a for body (each turn afresh), a macro, a block set, with: own scope; if: none. */
#include <string.h>

#include "jinja_ast.h"

static enum jflow exec_if(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    for (uint32_t i = 0; i + 1 < node->n_items; i += 2)
        if (jtruth(jeval(rt, scope, node->items[i]))) return jexec(rt, scope, node->items[i + 1], out);
    return node->c && !rt->rc ? jexec(rt, scope, node->c, out) : JFLOW_NEXT;
}

/* ---- loops ---- */
/* The next item that passes the loop's filter; false at the end. */
static bool fetch(struct jrt *rt, struct jloop *loop, struct jval *item)
{
    while (loop->pos < loop->items->n && !rt->rc) {
        *item = loop->items->items[loop->pos++];
        if (!loop->filtered) return true;
        if (!jrt_charge(rt, JRT_UNITS_PER_STEP)) return false;
        struct jscope *scope = jrt_alloc(rt, 1, sizeof(*scope));
        if (!scope) return false;
        scope->parent = loop->outer;
        if (!jassign(rt, scope, loop->node->a, *item)) return false;
        if (jtruth(jeval(rt, scope, loop->node->c))) return !rt->rc;
    }
    return false;
}

static bool peek(struct jrt *rt, struct jloop *loop)
{
    if (!loop->has_after) loop->has_after = fetch(rt, loop, &loop->after);
    return loop->has_after;
}

bool jloop_next(struct jrt *rt, struct jloop *loop)
{
    struct jval item;

    if (loop->has_after) {
        item = loop->after;
        loop->has_after = false;
    } else if (!fetch(rt, loop, &item)) {
        return false;
    }
    loop->index0++;
    loop->before = loop->current;
    loop->current = item;
    return true;
}

/* Items in all. A filtered loop has to run its filter over the rest to know. */
static int64_t loop_length(struct jrt *rt, struct jloop *loop)
{
    if (loop->length >= 0) return loop->length;
    if (loop->filtered) {
        size_t cap = loop->items->n - loop->pos, n = 0;
        struct jval rest = jlist_new(rt, cap), item;
        struct jlist *list = jrt_alloc(rt, 1, sizeof(*list));
        if (!list || rt->rc) return 0;
        while (fetch(rt, loop, &item)) *jlist_at(rest, n++) = item;
        *list = (struct jlist){ .items = rest.list->items, .n = n };
        loop->items = list;
        loop->pos = 0;
        loop->filtered = false;
        loop->length = (int64_t)n + loop->index0 + 1 + loop->has_after;
    } else {
        loop->length = (int64_t)loop->items->n;
    }
    return loop->length;
}

struct jval jloop_attr(struct jrt *rt, struct jloop *loop, const struct jstr *name)
{
    if (jstr_is(name, "index")) return jint(loop->index0 + 1);
    if (jstr_is(name, "index0")) return jint(loop->index0);
    if (jstr_is(name, "first")) return jbool(loop->index0 == 0);
    if (jstr_is(name, "last")) return jbool(!peek(rt, loop));
    if (jstr_is(name, "length")) return jint(loop_length(rt, loop));
    if (jstr_is(name, "revindex")) return jint(loop_length(rt, loop) - loop->index0);
    if (jstr_is(name, "revindex0")) return jint(loop_length(rt, loop) - loop->index0 - 1);
    if (jstr_is(name, "depth")) return jint(1);
    if (jstr_is(name, "depth0")) return jint(0);
    if (jstr_is(name, "previtem")) return loop->index0 > 0 ? loop->before : jundefined(rt, "there is no previous item");
    if (jstr_is(name, "nextitem")) return peek(rt, loop) ? loop->after : jundefined(rt, "there is no next item");
    return (struct jval){ .kind = JK_MISSING };
}

static bool start_turn(struct jrt *rt, struct jscope *outer, struct jloop *loop, struct jscope **scope)
{
    if (!jrt_charge(rt, JRT_UNITS_PER_STEP) || !(*scope = jrt_alloc(rt, 1, sizeof(**scope)))) return false;
    (*scope)->parent = outer;
    jscope_set(rt, *scope, JNAME_LOOP, (struct jval){ .kind = JK_LOOP, .loop = loop });
    return jassign(rt, *scope, loop->node->a, loop->current);
}

static enum jflow exec_for(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    struct jval iterable = jeval(rt, scope, node->b);
    const struct jlist *items = jitems(rt, iterable);
    struct jloop *loop = items ? jrt_alloc(rt, 1, sizeof(*loop)) : NULL;
    struct jscope *turn = NULL;
    bool completed = false;                      /* else runs unless a turn came to its end, as in jinja2 */

    if (!loop) return JFLOW_NEXT;
    *loop = (struct jloop){
        .node = node, .outer = scope, .items = items, .filtered = node->c != NULL, .index0 = -1, .length = -1};
    while (!rt->rc && jloop_next(rt, loop)) {
        if (!start_turn(rt, scope, loop, &turn)) return JFLOW_NEXT;
        enum jflow flow = jexec(rt, turn, node->items[0], out);
        if (flow == JFLOW_BREAK) break;
        if (flow == JFLOW_NEXT) completed = true;
    }
    if (completed || node->n_items < 2 || rt->rc) return JFLOW_NEXT;
    if (!(turn = jrt_alloc(rt, 1, sizeof(*turn)))) return JFLOW_NEXT;
    turn->parent = scope;
    return jexec(rt, turn, node->items[1], out);
}

/* ---- blocks that are captured ---- */
/* Runs body in a scope of its own and gives what it printed. *flow: a break or continue that left it. */
static struct jval capture(struct jrt *rt, struct jscope *scope, const struct jnode *body, enum jflow *flow)
{
    struct jscope *inner = jrt_alloc(rt, 1, sizeof(*inner));
    struct jout out = { .n = 0 };

    if (!inner) return JUNDEF;
    inner->parent = scope;
    *flow = jexec(rt, inner, body, &out);
    return jout_take(rt, &out);
}

static enum jflow exec_set_block(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    enum jflow flow = JFLOW_NEXT;
    struct jval text = capture(rt, scope, node->c, &flow);

    (void)out;
    if (flow == JFLOW_NEXT) jassign(rt, scope, node->a, jeval_chain(rt, scope, node->b, text));
    return flow;
}

static enum jflow exec_filter_block(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    enum jflow flow = JFLOW_NEXT;
    struct jval text = capture(rt, scope, node->c, &flow);

    if (flow == JFLOW_NEXT) text = jeval_chain(rt, scope, node->b, text);
    if (flow == JFLOW_NEXT && !rt->rc) jout_add_str(rt, out, jto_str(rt, text));
    return flow;
}

static enum jflow exec_scope(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    struct jscope *inner = jrt_alloc(rt, 1, sizeof(*inner));

    if (!inner) return JFLOW_NEXT;
    inner->parent = scope;
    for (uint32_t i = 0; i + 1 < node->n_items && !rt->rc; i += 2)      /* values are read outside of the new scope */
        jassign(rt, inner, node->items[i], jeval(rt, scope, node->items[i + 1]));
    return rt->rc ? JFLOW_NEXT : jexec(rt, inner, node->c, out);
}

/* ---- macros ---- */
static struct jval macro_new(struct jrt *rt, struct jscope *scope, const struct jnode *node)
{
    struct jmacro *macro = jrt_alloc(rt, 1, sizeof(*macro));

    if (!macro) return JUNDEF;
    *macro = (struct jmacro){ .node = node, .scope = scope };
    return (struct jval){ .kind = JK_MACRO, .macro = macro };
}

static const struct jval *kw_find(const struct jargs *args, const char *name)
{
    for (size_t i = 0; i < args->n_kw; i++)
        if (strcmp(args->kw[i].name, name) == 0) return &args->kw[i].value;
    return NULL;
}

/* Keyword arguments that are no parameter: collected for a macro that reads `kwargs`, `caller` for one that
 * reads it. */
static void bind_extra(struct jrt *rt, struct jscope *scope, const struct jnode *node, const struct jargs *args)
{
    struct jval rest = jdict_new(rt, JK_DICT, args->n_kw), caller = jundefined(rt, "No caller defined");

    for (size_t i = 0; i < args->n_kw && !rt->rc; i++) {
        const char *name = args->kw[i].name;
        size_t param = 0;
        while (param < node->n_items && strcmp(rt->tmpl->names[node->items[param]->name], name) != 0) param++;
        if (param < node->n_items && param >= args->n_pos) continue;
        if ((node->flags & JNF_CALLER) && strcmp(name, "caller") == 0) caller = args->kw[i].value;
        else if (node->flags & JNF_KWARGS) jdict_set(rt, rest, jstr_lit(rt, name), args->kw[i].value);
        else jrt_fail(rt, "macro '%s' takes no keyword argument '%s'", rt->tmpl->names[node->name], name);
    }
    if (node->flags & JNF_KWARGS) jscope_set(rt, scope, JNAME_KWARGS, rest);
    if (node->flags & JNF_CALLER) jscope_set(rt, scope, JNAME_CALLER, caller);
}

static void bind_params(struct jrt *rt, struct jscope *scope, const struct jnode *node, const struct jargs *args)
{
    size_t extra = args->n_pos > node->n_items ? args->n_pos - node->n_items : 0;

    if (extra && !(node->flags & JNF_VARARGS)) {
        jrt_fail(rt, "macro '%s' takes not more than %u argument(s)", rt->tmpl->names[node->name], node->n_items);
        return;
    }
    if (node->flags & JNF_VARARGS)
        jscope_set(rt, scope, JNAME_VARARGS, jlist_wrap(rt, JK_TUPLE, extra ? args->pos + node->n_items : NULL, extra));
    bind_extra(rt, scope, node, args);
    for (uint32_t i = 0; i < node->n_items && !rt->rc; i++) {
        const struct jval *kw = kw_find(args, rt->tmpl->names[node->items[i]->name]);
        struct jval value = JUNDEF;
        if (i < args->n_pos) value = args->pos[i];
        else if (kw) value = *kw;
        else if (node->kw[i].value) value = jeval(rt, scope, node->kw[i].value);
        else value = jundefined(rt, "a parameter of the macro was not provided");
        jscope_set(rt, scope, node->items[i]->name, value);
    }
}

struct jval jcall_macro(struct jrt *rt, const struct jmacro *macro, const struct jargs *args)
{
    struct jscope *scope = jrt_alloc(rt, 1, sizeof(*scope));
    struct jout out = { .n = 0 };
    struct jval text;

    if (!scope || !jrt_charge(rt, JRT_UNITS_PER_STEP)) return JUNDEF;
    if (++rt->calls > JRT_MAX_CALLS) return jrt_fail(rt, "macros nested deeper than %d", JRT_MAX_CALLS);
    scope->parent = macro->scope;
    bind_params(rt, scope, macro->node, args);
    if (!rt->rc) jexec(rt, scope, macro->node->c, &out);
    text = jout_take(rt, &out);
    rt->calls--;
    return text;
}

static enum jflow exec_macro(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    (void)out;
    jscope_set(rt, scope, node->name, macro_new(rt, scope, node));
    return JFLOW_NEXT;
}

static enum jflow exec_call_block(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    struct jval callee = jeval(rt, scope, node->a->a), text;
    struct jargs args;
    struct jkw *kw;

    if (!jeval_args(rt, scope, node->a, &args) || !(kw = jrt_alloc(rt, args.n_kw + 1, sizeof(*kw)))) return JFLOW_NEXT;
    for (size_t i = 0; i < args.n_kw; i++) kw[i] = args.kw[i];
    kw[args.n_kw++] = (struct jkw){ .name = "caller", .value = macro_new(rt, scope, node->b) };
    args.kw = kw;
    text = jcall(rt, callee, &args);
    if (!rt->rc) jout_add_str(rt, out, jto_str(rt, text));
    return JFLOW_NEXT;
}

/* ---- all statements ---- */
static enum jflow exec_text(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    (void)scope;
    jout_add_str(rt, out, node->value.s);
    return JFLOW_NEXT;
}

static enum jflow exec_output(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    struct jval v = jeval(rt, scope, node->a);

    if (!rt->rc) jout_add_str(rt, out, jto_str(rt, v));
    return JFLOW_NEXT;
}

static enum jflow exec_block(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    enum jflow flow = JFLOW_NEXT;

    for (uint32_t i = 0; i < node->n_items && flow == JFLOW_NEXT && !rt->rc; i++)
        flow = jexec(rt, scope, node->items[i], out);
    return flow;
}

static enum jflow exec_set(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    (void)out;
    jassign(rt, scope, node->a, jeval(rt, scope, node->b));
    return JFLOW_NEXT;
}

static enum jflow exec_jump(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    (void)rt;
    (void)scope;
    (void)out;
    return node->kind == JN_BREAK ? JFLOW_BREAK : JFLOW_CONTINUE;
}

typedef enum jflow (*exec_fn)(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out);

static const exec_fn exec_table[] = {
    [JN_TEXT] = exec_text, [JN_OUTPUT] = exec_output, [JN_BLOCK] = exec_block, [JN_IF] = exec_if, [JN_FOR] = exec_for,
    [JN_SET] = exec_set, [JN_SET_BLOCK] = exec_set_block, [JN_MACRO] = exec_macro, [JN_CALL_BLOCK] = exec_call_block,
    [JN_WITH] = exec_scope, [JN_SCOPE] = exec_scope, [JN_FILTER_BLOCK] = exec_filter_block, [JN_BREAK] = exec_jump,
    [JN_CONTINUE] = exec_jump,
};

enum jflow jexec(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out)
{
    enum jflow flow;

    if (!jrt_charge(rt, node->kind == JN_BLOCK ? 1 : JRT_UNITS_PER_STEP)) return JFLOW_NEXT;
    if (rt->depth >= JRT_MAX_DEPTH) {
        jrt_fail(rt, "nested too deep");
        return JFLOW_NEXT;
    }
    rt->depth++;
    rt->line = node->line;
    flow = exec_table[node->kind](rt, scope, node, out);
    rt->depth--;
    return rt->rc ? JFLOW_NEXT : flow;
}
