/* jinja_parse.c - tokens -> statements, with jinja2's grammar. Expressions are in jinja_parse_expr.c.
 * Errors stick and move the parser to the end token, so every loop ends by itself. Recursion is bounded by
 * JINJA_MAX_NEST, the depth of what is built by JINJA_MAX_NODE_DEPTH. */
#include "jinja_parse.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void jparse_fail(struct jparser *p, int code, const char *fmt, ...)
{
    char what[256];
    va_list args;

    if (p->rc) return;
    va_start(args, fmt);
    vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    p->rc = err_set(p->err, code, "chat template line %d: %s", jparse_tok(p)->line, what);
    p->pos = p->tokens.n - 1;
}

const struct jtok *jparse_next(struct jparser *p)
{
    const struct jtok *tok = jparse_tok(p);

    if (p->pos + 1 < p->tokens.n) p->pos++;
    return tok;
}

bool jtok_is_name(const struct jtok *tok, const char *name)
{
    return tok->kind == JT_NAME && tok->len == strlen(name) && memcmp(tok->text, name, tok->len) == 0;
}

bool jparse_skip_name(struct jparser *p, const char *name)
{
    if (!jtok_is_name(jparse_tok(p), name)) return false;
    jparse_next(p);
    return true;
}

bool jparse_is_op(const struct jparser *p, uint8_t op)
{
    const struct jtok *tok = &p->tokens.items[p->pos];

    return tok->kind == JT_OP && tok->op == op;
}

bool jparse_skip_op(struct jparser *p, uint8_t op)
{
    if (!jparse_is_op(p, op)) return false;
    jparse_next(p);
    return true;
}

void jparse_expect_op(struct jparser *p, uint8_t op, const char *text)
{
    if (!jparse_skip_op(p, op)) jparse_fail(p, ERR_TEMPLATE, "expected '%s'", text);
}

static void expect_kind(struct jparser *p, uint8_t kind, const char *what)
{
    if (jparse_tok(p)->kind == kind) jparse_next(p);
    else jparse_fail(p, ERR_TEMPLATE, "expected %s", what);
}

const struct jtok *jparse_expect_name(struct jparser *p)
{
    if (jparse_tok(p)->kind == JT_NAME) return jparse_next(p);
    jparse_fail(p, ERR_TEMPLATE, "expected a name");
    return NULL;
}

void *jparse_alloc(struct jparser *p, size_t n, size_t size)
{
    void *mem = arena_array(&p->tmpl->arena, n, size);

    if (!mem) jparse_fail(p, ERR_NO_MEMORY, "out of memory");
    return mem;
}

static void raise_depth(struct jparser *p, struct jnode *node, const struct jnode *child)
{
    if (!child || child->depth < node->depth) return;
    node->depth = child->depth + 1;
    if (node->depth > JINJA_MAX_NODE_DEPTH) jparse_fail(p, ERR_TEMPLATE, "nested too deep");
}

struct jnode *jnode_new(struct jparser *p, uint8_t kind, struct jnode *a, struct jnode *b, struct jnode *c)
{
    struct jnode *node = ++p->n_nodes <= JINJA_MAX_NODES ? jparse_alloc(p, 1, sizeof(*node)) : NULL;

    if (p->n_nodes > JINJA_MAX_NODES) jparse_fail(p, ERR_TEMPLATE, "template too large");
    if (!node) return &p->dummy;
    *node = (struct jnode){ .kind = kind, .line = jparse_tok(p)->line, .name = -1, .depth = 1, .a = a, .b = b, .c = c };
    raise_depth(p, node, a);
    raise_depth(p, node, b);
    raise_depth(p, node, c);
    return node;
}

void jnode_push(struct jparser *p, struct jnode *node, struct jnode *item)
{
    uint32_t n = node->n_items;

    if (p->rc) return;
    if ((n & (n - 1)) == 0) {                    /* grows at powers of two */
        struct jnode **items = jparse_alloc(p, n ? n * 2 : 1, sizeof(*items));
        if (!items) return;
        if (n) memcpy(items, node->items, n * sizeof(*items));
        node->items = items;
    }
    node->items[node->n_items++] = item;
    raise_depth(p, node, item);
}

void jnode_push_kw(struct jparser *p, struct jnode *node, const char *name, struct jnode *value)
{
    uint32_t n = node->n_kw;

    if (p->rc) return;
    for (uint32_t i = 0; i < n; i++)
        if (value && strcmp(node->kw[i].name, name) == 0) jparse_fail(p, ERR_TEMPLATE, "keyword %s repeated", name);
    if ((n & (n - 1)) == 0) {
        struct jkwnode *kw = jparse_alloc(p, n ? n * 2 : 1, sizeof(*kw));
        if (!kw) return;
        if (n) memcpy(kw, node->kw, n * sizeof(*kw));
        node->kw = kw;
    }
    node->kw[node->n_kw++] = (struct jkwnode){ .name = name, .value = value };
    raise_depth(p, node, value);
}

int32_t jparse_name(struct jparser *p, const char *text, size_t len)
{
    struct jtemplate *tmpl = p->tmpl;
    int32_t existing = -1;
    char *copy;

    if (p->rc) return JNAME_LOOP;
    if ((existing = jtemplate_name(tmpl, text, len)) >= 0) return existing;
    if (tmpl->n_names == tmpl->cap_names) {
        int32_t cap = tmpl->cap_names ? tmpl->cap_names * 2 : 64;
        const char **names = jparse_alloc(p, (size_t)cap, sizeof(*names));
        bool *is_read = jparse_alloc(p, (size_t)cap, sizeof(*is_read));
        if (!names || !is_read) return JNAME_LOOP;
        for (int32_t i = 0; i < tmpl->n_names; i++) {
            names[i] = tmpl->names[i];
            is_read[i] = tmpl->is_read[i];
        }
        tmpl->names = names;
        tmpl->is_read = is_read;
        tmpl->cap_names = cap;
    }
    copy = arena_strndup(&tmpl->arena, text, len);
    if (!copy || str_map_put(&tmpl->name_index, copy, len, tmpl->n_names, &existing) < 0) {
        jparse_fail(p, ERR_NO_MEMORY, "out of memory");
        return JNAME_LOOP;
    }
    tmpl->names[tmpl->n_names] = copy;
    return tmpl->n_names++;
}

struct jval jparse_str(struct jparser *p, const char *text, size_t len)
{
    struct jstr *s = jparse_alloc(p, 1, sizeof(*s));

    if (!s) return JUNDEF;
    *s = (struct jstr){ .data = text, .len = len, .all = JO_TEMPLATE };
    return (struct jval){ .kind = JK_STR, .s = s };
}

bool jparse_enter(struct jparser *p)
{
    if (++p->nest > JINJA_MAX_NEST) jparse_fail(p, ERR_TEMPLATE, "nested too deep");
    return !p->rc;
}

/* ---- statements ---- */
static bool at_any(struct jparser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (jtok_is_name(jparse_tok(p), *ends)) return true;
    return false;
}

static struct jnode *parse_statement(struct jparser *p);

/* Text, outputs and statements up to a tag that starts with one of ends (NULL: to the end of the template). That tag's
 * name is the current token afterwards. */
static struct jnode *parse_body(struct jparser *p, const char *const *ends)
{
    struct jnode *body = jnode_new(p, JN_BLOCK, NULL, NULL, NULL);

    if (!jparse_enter(p)) return body;
    while (jparse_tok(p)->kind != JT_EOF) {
        const struct jtok *tok = jparse_next(p);
        if (tok->kind == JT_DATA) {
            struct jnode *text = jnode_new(p, JN_TEXT, NULL, NULL, NULL);
            text->value = jparse_str(p, tok->text, tok->len);
            jnode_push(p, body, text);
        } else if (tok->kind == JT_VAR_BEGIN) {
            jnode_push(p, body, jnode_new(p, JN_OUTPUT, jparse_tuple(p, JTUPLE_FULL), NULL, NULL));
            expect_kind(p, JT_VAR_END, "end of print statement");
        } else if (tok->kind == JT_BLOCK_BEGIN) {
            if (at_any(p, ends)) break;
            jnode_push(p, body, parse_statement(p));
            expect_kind(p, JT_BLOCK_END, "end of statement block");
        } else {
            jparse_fail(p, ERR_TEMPLATE, "unexpected token");
        }
    }
    if (ends && jparse_tok(p)->kind == JT_EOF)
        jparse_fail(p, ERR_TEMPLATE, "unexpected end of template, expected %s", ends[0]);
    p->nest--;
    return body;
}

/* The body of a statement whose opening tag is not closed yet. */
static struct jnode *parse_inner(struct jparser *p, const char *const *ends)
{
    jparse_skip_op(p, JOP_COLON);
    expect_kind(p, JT_BLOCK_END, "end of statement block");
    return parse_body(p, ends);
}

static struct jnode *parse_until(struct jparser *p, const char *end)
{
    const char *ends[] = { end, NULL };
    struct jnode *body = parse_inner(p, ends);

    jparse_next(p);
    return body;
}

static struct jnode *parse_if(struct jparser *p)
{
    static const char *const ends[] = { "endif", "elif", "else", NULL };
    struct jnode *node = jnode_new(p, JN_IF, NULL, NULL, NULL);

    do {
        jnode_push(p, node, jparse_tuple(p, JTUPLE_NO_COND));
        jnode_push(p, node, parse_inner(p, ends));
    } while (jparse_skip_name(p, "elif"));
    if (jparse_skip_name(p, "else")) {
        node->c = parse_until(p, "endif");
        raise_depth(p, node, node->c);
    } else {
        jparse_next(p);
    }
    return node;
}

static struct jnode *parse_for(struct jparser *p)
{
    static const char *const ends[] = { "endfor", "else", NULL };
    struct jnode *node = jnode_new(p, JN_FOR, NULL, NULL, NULL), *body;

    node->a = jparse_target(p, JTUPLE_FOR_TARGET);
    if (!jparse_skip_name(p, "in")) jparse_fail(p, ERR_TEMPLATE, "expected 'in'");
    node->b = jparse_tuple(p, JTUPLE_FOR_ITER);
    if (jparse_skip_name(p, "if")) node->c = jparse_expr(p);
    if (jtok_is_name(jparse_tok(p), "recursive")) jparse_fail(p, ERR_TEMPLATE, "recursive loops are not supported");
    raise_depth(p, node, node->a);
    raise_depth(p, node, node->b);
    raise_depth(p, node, node->c);
    p->loops++;
    body = parse_inner(p, ends);
    p->loops--;
    jnode_push(p, node, body);
    if (jparse_skip_name(p, "else")) jnode_push(p, node, parse_until(p, "endfor"));
    else jparse_next(p);
    return node;
}

static struct jnode *parse_set(struct jparser *p)
{
    struct jnode *target = jparse_target(p, JTUPLE_SET_TARGET), *filter, *node;

    if (jparse_skip_op(p, JOP_ASSIGN)) return jnode_new(p, JN_SET, target, jparse_tuple(p, JTUPLE_FULL), NULL);
    filter = jparse_filters(p, NULL);
    node = jnode_new(p, JN_SET_BLOCK, target, filter, NULL);
    node->c = parse_until(p, "endset");
    raise_depth(p, node, node->c);
    return node;
}

/* (a, b=1) of a macro or call block. Parameters without a default have a NULL value. */
static void parse_parameters(struct jparser *p, struct jnode *node)
{
    jparse_expect_op(p, JOP_LPAREN, "(");
    while (!p->rc && !jparse_is_op(p, JOP_RPAREN)) {
        if (node->n_items) jparse_expect_op(p, JOP_COMMA, ",");
        const struct jtok *tok = jparse_expect_name(p);
        if (!tok) return;
        struct jnode *param = jnode_new(p, JN_NAME, NULL, NULL, NULL), *value = NULL;
        param->name = jparse_name(p, tok->text, tok->len);
        jnode_push(p, node, param);
        if (jparse_skip_op(p, JOP_ASSIGN)) value = jparse_expr(p);
        else if (node->n_kw && node->kw[node->n_kw - 1].value)
            jparse_fail(p, ERR_TEMPLATE, "non-default argument follows default argument");
        if (p->rc) return;
        jnode_push_kw(p, node, p->tmpl->names[param->name], value);
    }
    jparse_expect_op(p, JOP_RPAREN, ")");
}

/* The body of node up to end; finds out whether it uses varargs, kwargs, caller. */
static void parse_macro_body(struct jparser *p, struct jnode *node, const char *end)
{
    int loops = p->loops;
    uint32_t before = p->special_reads;

    p->loops = 0;
    p->special_reads = 0;
    node->c = parse_until(p, end);
    raise_depth(p, node, node->c);
    node->flags |= (uint8_t)p->special_reads;
    p->special_reads |= before;
    p->loops = loops;
}

static struct jnode *parse_macro(struct jparser *p)
{
    struct jnode *node = jnode_new(p, JN_MACRO, NULL, NULL, NULL);
    const struct jtok *tok = jparse_expect_name(p);

    if (!tok) return node;
    node->name = jparse_name(p, tok->text, tok->len);
    parse_parameters(p, node);
    parse_macro_body(p, node, "endmacro");
    return node;
}

static struct jnode *parse_call_block(struct jparser *p)
{
    struct jnode *macro = jnode_new(p, JN_MACRO, NULL, NULL, NULL), *call;

    if (jparse_is_op(p, JOP_LPAREN)) parse_parameters(p, macro);
    macro->name = JNAME_CALLER;
    call = jparse_expr(p);
    if (call->kind != JN_CALL) jparse_fail(p, ERR_TEMPLATE, "expected call");
    parse_macro_body(p, macro, "endcall");
    return jnode_new(p, JN_CALL_BLOCK, call, macro, NULL);
}

static struct jnode *parse_with(struct jparser *p)
{
    struct jnode *node = jnode_new(p, JN_WITH, NULL, NULL, NULL);

    while (!p->rc && jparse_tok(p)->kind != JT_BLOCK_END) {
        if (node->n_items) jparse_expect_op(p, JOP_COMMA, ",");
        jnode_push(p, node, jparse_target(p, JTUPLE_WITH_TARGET));
        jparse_expect_op(p, JOP_ASSIGN, "=");
        jnode_push(p, node, jparse_expr(p));
    }
    node->c = parse_until(p, "endwith");
    raise_depth(p, node, node->c);
    return node;
}

static struct jnode *parse_filter_block(struct jparser *p)
{
    struct jnode *chain = jparse_filter_block(p), *body;

    body = parse_until(p, "endfilter");
    return jnode_new(p, JN_FILTER_BLOCK, NULL, chain, body);
}

static struct jnode *parse_print(struct jparser *p)
{
    struct jnode *body = jnode_new(p, JN_BLOCK, NULL, NULL, NULL);

    while (!p->rc && jparse_tok(p)->kind != JT_BLOCK_END) {
        if (body->n_items) jparse_expect_op(p, JOP_COMMA, ",");
        jnode_push(p, body, jnode_new(p, JN_OUTPUT, jparse_expr(p), NULL, NULL));
    }
    return body;
}

/* Marks assistant text for training; here it is only a scope. */
static struct jnode *parse_generation(struct jparser *p)
{
    int loops = p->loops;
    struct jnode *node;

    p->loops = 0;
    node = jnode_new(p, JN_SCOPE, NULL, NULL, parse_until(p, "endgeneration"));
    p->loops = loops;
    return node;
}

static struct jnode *parse_jump(struct jparser *p, uint8_t kind)
{
    if (p->loops == 0) jparse_fail(p, ERR_TEMPLATE, "break or continue outside of a loop");
    return jnode_new(p, kind, NULL, NULL, NULL);
}

static struct jnode *parse_break(struct jparser *p) { return parse_jump(p, JN_BREAK); }
static struct jnode *parse_continue(struct jparser *p) { return parse_jump(p, JN_CONTINUE); }

static const struct { const char *name; struct jnode *(*parse)(struct jparser *p); } statements[] = {
    { "if", parse_if }, { "for", parse_for }, { "set", parse_set }, { "macro", parse_macro },
    { "call", parse_call_block }, { "with", parse_with }, { "filter", parse_filter_block }, { "print", parse_print },
    { "generation", parse_generation }, { "break", parse_break }, { "continue", parse_continue },
};

static struct jnode *parse_statement(struct jparser *p)
{
    const struct jtok *tok = jparse_tok(p);

    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++) {
        if (!jtok_is_name(tok, statements[i].name)) continue;
        jparse_next(p);
        return statements[i].parse(p);
    }
    if (tok->kind == JT_NAME)
        jparse_fail(p, ERR_TEMPLATE, "unknown tag '%.*s'", (int)(tok->len < 64 ? tok->len : 64), tok->text);
    else jparse_fail(p, ERR_TEMPLATE, "tag name expected");
    return &p->dummy;
}

/* ---- the template ---- */
int jtemplate_compile(struct jtemplate *tmpl, const char *source, size_t len, struct err *err)
{
    static const char *const first_names[] = { "loop", "varargs", "kwargs", "caller" };   /* order of JNAME_* */
    struct jparser p = { .tmpl = tmpl, .err = err };
    int rc;

    arena_init(&tmpl->arena, 0);
    rc = str_map_init(&tmpl->name_index, 64);
    if (rc < 0) return err_set(err, rc, "out of memory");
    if ((rc = jlex_run(&p.tokens, &tmpl->arena, source, len, err)) < 0) return rc;
    for (int32_t i = 0; i < JNAME_FIRST_FREE; i++)
        jparse_name(&p, first_names[i], strlen(first_names[i]));
    tmpl->body = parse_body(&p, NULL);
    return p.rc;
}

void jtemplate_release(struct jtemplate *tmpl)
{
    str_map_release(&tmpl->name_index);
    arena_release(&tmpl->arena);
    *tmpl = (struct jtemplate){ .body = NULL };
}

int32_t jtemplate_name(const struct jtemplate *tmpl, const char *name, size_t len)
{
    return tmpl->name_index.cap ? str_map_get(&tmpl->name_index, name, len) : -1;
}
