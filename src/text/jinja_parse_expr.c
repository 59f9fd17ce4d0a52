/* jinja_parse_expr.c - expressions by recursive descent, precedence as in jinja2 (lowest first):
 *   a if b else c · or · and · not · comparisons · + - · ~ · * / // % · ** · unary · .x [x] (x)
 *   · | filter, is test */
#include "jinja_parse.h"

#include <string.h>

static struct jnode *parse_unary(struct jparser *p, bool with_filter);
static struct jnode *parse_or(struct jparser *p);

static struct jnode *name_node(struct jparser *p, const struct jtok *tok)
{
    struct jnode *node = jnode_new(p, JN_NAME, NULL, NULL, NULL);

    node->name = jparse_name(p, tok->text, tok->len);
    if (p->rc || p->in_target) return node;
    p->tmpl->is_read[node->name] = true;
    if (node->name == JNAME_VARARGS) p->special_reads |= JNF_VARARGS;
    if (node->name == JNAME_KWARGS) p->special_reads |= JNF_KWARGS;
    if (node->name == JNAME_CALLER) p->special_reads |= JNF_CALLER;
    return node;
}

static struct jnode *const_node(struct jparser *p, struct jval value)
{
    struct jnode *node = jnode_new(p, JN_CONST, NULL, NULL, NULL);

    node->value = value;
    return node;
}

static bool name_const(const struct jtok *tok, struct jval *value)
{
    static const struct { const char *name; uint8_t kind; bool b; } consts[] = {
        { "true", JK_BOOL, true }, { "True", JK_BOOL, true }, { "false", JK_BOOL, false }, { "False", JK_BOOL, false },
        { "none", JK_NONE, false }, { "None", JK_NONE, false },
    };

    for (size_t i = 0; i < sizeof(consts) / sizeof(consts[0]); i++) {
        if (!jtok_is_name(tok, consts[i].name)) continue;
        *value = consts[i].kind == JK_BOOL ? jbool(consts[i].b) : JNONE;
        return true;
    }
    return false;
}

static struct jnode *parse_string(struct jparser *p)
{
    const struct jtok *first = jparse_tok(p);
    size_t n = 0, len = 0, at = 0;
    char *text;

    while (first[n].kind == JT_STRING) len += first[n++].len;
    if (n == 1) {
        jparse_next(p);
        return const_node(p, jparse_str(p, first->text, first->len));
    }
    if (!(text = jparse_alloc(p, len + 1, 1))) return &p->dummy;
    for (size_t i = 0; i < n; i++) {             /* adjacent literals are one */
        memcpy(text + at, first[i].text, first[i].len);
        at += first[i].len;
        jparse_next(p);
    }
    return const_node(p, jparse_str(p, text, len));
}

static struct jnode *parse_list(struct jparser *p)
{
    struct jnode *node = jnode_new(p, JN_LIST, NULL, NULL, NULL);

    while (!p->rc && !jparse_is_op(p, JOP_RBRACKET)) {
        if (node->n_items) jparse_expect_op(p, JOP_COMMA, ",");
        if (jparse_is_op(p, JOP_RBRACKET)) break;
        jnode_push(p, node, jparse_expr(p));
    }
    jparse_expect_op(p, JOP_RBRACKET, "]");
    return node;
}

static struct jnode *parse_dict(struct jparser *p)
{
    struct jnode *node = jnode_new(p, JN_DICT, NULL, NULL, NULL);

    while (!p->rc && !jparse_is_op(p, JOP_RBRACE)) {
        if (node->n_items) jparse_expect_op(p, JOP_COMMA, ",");
        if (jparse_is_op(p, JOP_RBRACE)) break;
        jnode_push(p, node, jparse_expr(p));
        jparse_expect_op(p, JOP_COLON, ":");
        jnode_push(p, node, jparse_expr(p));
    }
    jparse_expect_op(p, JOP_RBRACE, "}");
    return node;
}

static struct jnode *parse_nsref(struct jparser *p, const struct jtok *ns)
{
    struct jnode *node = jnode_new(p, JN_NSREF, NULL, NULL, NULL);
    const struct jtok *attr = jparse_expect_name(p);

    node->name = jparse_name(p, ns->text, ns->len);
    if (attr) node->value = jparse_str(p, attr->text, attr->len);
    return node;
}

static struct jnode *parse_primary(struct jparser *p, bool namespace_ref)
{
    const struct jtok *tok = jparse_tok(p);
    struct jnode *node;
    struct jval value;

    switch (tok->kind) {
    case JT_NAME:
        jparse_next(p);
        if (name_const(tok, &value)) return const_node(p, value);
        if (namespace_ref && jparse_skip_op(p, JOP_DOT)) return parse_nsref(p, tok);
        return name_node(p, tok);
    case JT_STRING:
        return parse_string(p);
    case JT_INT:
    case JT_FLOAT:
        jparse_next(p);
        return const_node(p, tok->kind == JT_INT ? jint(tok->i) : jfloat(tok->f));
    case JT_OP:
        if (jparse_skip_op(p, JOP_LPAREN)) {
            node = jparse_tuple(p, JTUPLE_PARENS);
            jparse_expect_op(p, JOP_RPAREN, ")");
            return node;
        }
        if (jparse_skip_op(p, JOP_LBRACKET)) return parse_list(p);
        if (jparse_skip_op(p, JOP_LBRACE)) return parse_dict(p);
        break;
    default:
        break;
    }
    jparse_fail(p, ERR_TEMPLATE, "expected an expression");
    return &p->dummy;
}

/* One part of a subscript: an expression or a slice with parts left out. */
static struct jnode *parse_subscribed(struct jparser *p, struct jnode *of)
{
    struct jnode *none = const_node(p, JNONE), *parts[3] = { none, none, none }, *node;
    int n = 0;

    if (!jparse_is_op(p, JOP_COLON)) {
        parts[0] = jparse_expr(p);
        if (!jparse_is_op(p, JOP_COLON)) return jnode_new(p, JN_ITEM, of, parts[0], NULL);
    }
    while (n < 2 && jparse_skip_op(p, JOP_COLON)) {
        n++;
        if (!jparse_is_op(p, JOP_COLON) && !jparse_is_op(p, JOP_RBRACKET)) parts[n] = jparse_expr(p);
    }
    node = jnode_new(p, JN_SLICE, of, parts[0], parts[1]);
    jnode_push(p, node, parts[2]);
    return node;
}

static struct jnode *parse_attribute(struct jparser *p, struct jnode *of)
{
    const struct jtok *tok = jparse_next(p);
    struct jnode *node;

    if (tok->kind == JT_INT) return jnode_new(p, JN_ITEM, of, const_node(p, jint(tok->i)), NULL);
    if (tok->kind != JT_NAME) {
        jparse_fail(p, ERR_TEMPLATE, "expected name or number");
        return &p->dummy;
    }
    node = jnode_new(p, JN_ATTR, of, NULL, NULL);
    node->value = jparse_str(p, tok->text, tok->len);
    return node;
}

/* Arguments up to the closing parenthesis, into items and kw of node. The opening one is consumed. */
static void parse_arguments(struct jparser *p, struct jnode *node)
{
    bool first = true;

    while (!p->rc && !jparse_is_op(p, JOP_RPAREN)) {
        if (!first) jparse_expect_op(p, JOP_COMMA, ",");
        if (!first && jparse_is_op(p, JOP_RPAREN)) break;
        first = false;
        const struct jtok *tok = jparse_tok(p);
        if (jparse_is_op(p, JOP_MUL) || jparse_is_op(p, JOP_POW)) {
            jparse_fail(p, ERR_TEMPLATE, "* and ** arguments are not supported");
        } else if (tok->kind == JT_NAME && tok[1].kind == JT_OP && tok[1].op == JOP_ASSIGN) {
            int32_t name = jparse_name(p, tok->text, tok->len);
            jparse_next(p);
            jparse_next(p);
            struct jnode *value = jparse_expr(p);
            if (!p->rc) jnode_push_kw(p, node, p->tmpl->names[name], value);
        } else {
            if (node->n_kw) jparse_fail(p, ERR_TEMPLATE, "positional argument after keyword argument");
            jnode_push(p, node, jparse_expr(p));
        }
    }
    jparse_expect_op(p, JOP_RPAREN, ")");
}

static struct jnode *parse_call(struct jparser *p, struct jnode *callee)
{
    struct jnode *node = jnode_new(p, JN_CALL, callee, NULL, NULL);

    parse_arguments(p, node);
    return node;
}

static struct jnode *parse_postfix(struct jparser *p, struct jnode *node)
{
    while (!p->rc) {
        if (jparse_skip_op(p, JOP_DOT)) {
            node = parse_attribute(p, node);
        } else if (jparse_skip_op(p, JOP_LBRACKET)) {
            node = parse_subscribed(p, node);
            jparse_expect_op(p, JOP_RBRACKET, "]");
        } else if (jparse_skip_op(p, JOP_LPAREN)) {
            node = parse_call(p, node);
        } else {
            break;
        }
    }
    return node;
}

static struct jnode *parse_filter(struct jparser *p, struct jnode *input)
{
    struct jnode *node = jnode_new(p, JN_FILTER, input, NULL, NULL);
    const struct jtok *tok = jparse_expect_name(p);

    if (!tok) return node;
    int32_t name = jparse_name(p, tok->text, tok->len);
    if (p->rc) return node;
    node->value = jparse_str(p, tok->text, tok->len);
    node->def = jfilter_find(p->tmpl->names[name]);
    if (jparse_skip_op(p, JOP_LPAREN)) parse_arguments(p, node);
    return node;
}

struct jnode *jparse_filters(struct jparser *p, struct jnode *input)
{
    while (jparse_skip_op(p, JOP_PIPE)) input = parse_filter(p, input);
    return input;
}

struct jnode *jparse_filter_block(struct jparser *p) { return jparse_filters(p, parse_filter(p, NULL)); }

static bool test_has_argument(const struct jtok *tok)
{
    switch (tok->kind) {
    case JT_STRING: case JT_INT: case JT_FLOAT:
        return true;
    case JT_OP:
        return tok->op == JOP_LBRACKET || tok->op == JOP_LBRACE;
    case JT_NAME:
        return !jtok_is_name(tok, "else") && !jtok_is_name(tok, "or") && !jtok_is_name(tok, "and");
    default:
        return false;
    }
}

/* `is` is consumed. */
static struct jnode *parse_test(struct jparser *p, struct jnode *input)
{
    bool negated = jparse_skip_name(p, "not");
    struct jnode *node = jnode_new(p, JN_TEST, input, NULL, NULL);
    const struct jtok *tok = jparse_expect_name(p);

    if (!tok) return node;
    int32_t name = jparse_name(p, tok->text, tok->len);
    if (p->rc) return node;
    if (negated) node->flags |= JNF_NEGATED;
    node->value = jparse_str(p, tok->text, tok->len);
    node->def = jtest_find(p->tmpl->names[name]);
    if (jparse_skip_op(p, JOP_LPAREN)) {
        parse_arguments(p, node);
    } else if (test_has_argument(jparse_tok(p))) {
        if (jtok_is_name(jparse_tok(p), "is")) jparse_fail(p, ERR_TEMPLATE, "tests cannot be chained with is");
        jnode_push(p, node, parse_postfix(p, parse_primary(p, false)));
    }
    return node;
}

static struct jnode *parse_unary(struct jparser *p, bool with_filter)
{
    struct jnode *node = &p->dummy;

    if (!jparse_enter(p)) { p->nest--; return node; }
    if (jparse_is_op(p, JOP_SUB) || jparse_is_op(p, JOP_ADD)) {
        uint8_t op = jparse_next(p)->op;
        node = jnode_new(p, JN_UNARY, parse_unary(p, false), NULL, NULL);
        node->op = op;
    } else {
        node = parse_primary(p, false);
    }
    node = parse_postfix(p, node);
    while (with_filter && !p->rc) {
        if (jparse_skip_op(p, JOP_PIPE)) node = parse_filter(p, node);
        else if (jparse_skip_name(p, "is")) node = parse_test(p, node);
        else if (jparse_skip_op(p, JOP_LPAREN)) node = parse_call(p, node);
        else break;
    }
    p->nest--;
    return node;
}

static struct jnode *binary(struct jparser *p, uint8_t op, struct jnode *left, struct jnode *right)
{
    struct jnode *node = jnode_new(p, JN_BINARY, left, right, NULL);

    node->op = op;
    return node;
}

static struct jnode *parse_pow(struct jparser *p)
{
    struct jnode *left = parse_unary(p, true);

    while (jparse_skip_op(p, JOP_POW)) left = binary(p, JOP_POW, left, parse_unary(p, true));
    return left;
}

static struct jnode *parse_product(struct jparser *p)
{
    struct jnode *left = parse_pow(p);

    while (jparse_is_op(p, JOP_MUL) || jparse_is_op(p, JOP_DIV) || jparse_is_op(p, JOP_FLOORDIV) ||
           jparse_is_op(p, JOP_MOD)) {
        uint8_t op = jparse_next(p)->op;
        left = binary(p, op, left, parse_pow(p));
    }
    return left;
}

static struct jnode *parse_concat(struct jparser *p)
{
    struct jnode *first = parse_product(p), *node;

    if (!jparse_is_op(p, JOP_TILDE)) return first;
    node = jnode_new(p, JN_CONCAT, NULL, NULL, NULL);
    jnode_push(p, node, first);
    while (jparse_skip_op(p, JOP_TILDE)) jnode_push(p, node, parse_product(p));
    return node;
}

static struct jnode *parse_sum(struct jparser *p)
{
    struct jnode *left = parse_concat(p);

    while (jparse_is_op(p, JOP_ADD) || jparse_is_op(p, JOP_SUB)) {
        uint8_t op = jparse_next(p)->op;
        left = binary(p, op, left, parse_concat(p));
    }
    return left;
}

/* The comparison operator at the current token, consumed; JOP_NONE if there is none. */
static uint8_t comparison(struct jparser *p)
{
    const struct jtok *tok = jparse_tok(p);

    if (tok->kind == JT_OP && tok->op >= JOP_EQ && tok->op <= JOP_GE) return jparse_next(p)->op;
    if (jparse_skip_name(p, "in")) return JOP_IN;
    if (jtok_is_name(tok, "not") && jtok_is_name(tok + 1, "in")) {
        jparse_next(p);
        jparse_next(p);
        return JOP_NOT_IN;
    }
    return JOP_NONE;
}

static struct jnode *parse_compare(struct jparser *p)
{
    struct jnode *first = parse_sum(p), *node;
    uint8_t op = comparison(p), ops[64];

    if (op == JOP_NONE) return first;
    node = jnode_new(p, JN_COMPARE, first, NULL, NULL);
    for (; op != JOP_NONE && !p->rc; op = comparison(p)) {
        if (node->n_items == sizeof(ops)) { jparse_fail(p, ERR_TEMPLATE, "comparison chain too long"); break; }
        ops[node->n_items] = op;
        jnode_push(p, node, parse_sum(p));
    }
    if (p->rc || !(node->ops = jparse_alloc(p, node->n_items, 1))) return node;
    memcpy(node->ops, ops, node->n_items);
    return node;
}

static struct jnode *parse_not(struct jparser *p)
{
    struct jnode *node;

    if (!jparse_skip_name(p, "not")) return parse_compare(p);
    if (!jparse_enter(p)) { p->nest--; return &p->dummy; }
    node = jnode_new(p, JN_NOT, parse_not(p), NULL, NULL);
    p->nest--;
    return node;
}

static struct jnode *parse_and(struct jparser *p)
{
    struct jnode *left = parse_not(p);

    while (jparse_skip_name(p, "and")) left = jnode_new(p, JN_AND, left, parse_not(p), NULL);
    return left;
}

static struct jnode *parse_or(struct jparser *p)
{
    struct jnode *left = parse_and(p);

    while (jparse_skip_name(p, "or")) left = jnode_new(p, JN_OR, left, parse_and(p), NULL);
    return left;
}

struct jnode *jparse_expr(struct jparser *p)
{
    struct jnode *node = &p->dummy;

    if (!jparse_enter(p)) { p->nest--; return node; }
    node = parse_or(p);
    while (jparse_skip_name(p, "if")) {
        struct jnode *test = parse_or(p), *other = jparse_skip_name(p, "else") ? jparse_expr(p) : NULL;
        node = jnode_new(p, JN_COND, node, test, other);
    }
    p->nest--;
    return node;
}

static bool tuple_ends(const struct jparser *p, enum jtuple_mode mode)
{
    const struct jtok *tok = &p->tokens.items[p->pos];

    if (tok->kind == JT_VAR_END || tok->kind == JT_BLOCK_END || jparse_is_op(p, JOP_RPAREN)) return true;
    if (mode == JTUPLE_FOR_TARGET) return jtok_is_name(tok, "in");
    return mode == JTUPLE_FOR_ITER && jtok_is_name(tok, "recursive");
}

static struct jnode *tuple_item(struct jparser *p, enum jtuple_mode mode)
{
    if (mode >= JTUPLE_FOR_TARGET) return parse_primary(p, mode == JTUPLE_SET_TARGET);
    return mode == JTUPLE_NO_COND || mode == JTUPLE_FOR_ITER ? parse_or(p) : jparse_expr(p);
}

struct jnode *jparse_tuple(struct jparser *p, enum jtuple_mode mode)
{
    struct jnode *node = NULL, *first = NULL;
    uint32_t n = 0;

    while (!p->rc) {
        if (n) jparse_expect_op(p, JOP_COMMA, ",");
        if (tuple_ends(p, mode)) break;
        struct jnode *item = tuple_item(p, mode);
        if (n++ == 0) first = item;
        if (jparse_is_op(p, JOP_COMMA) && !node) {
            node = jnode_new(p, JN_TUPLE, NULL, NULL, NULL);
            jnode_push(p, node, first);
            if (n == 1) continue;
        }
        if (!node) return first;
        jnode_push(p, node, item);
        if (!jparse_is_op(p, JOP_COMMA)) break;
    }
    if (!node && mode != JTUPLE_PARENS) jparse_fail(p, ERR_TEMPLATE, "expected an expression");
    return node ? node : jnode_new(p, JN_TUPLE, NULL, NULL, NULL);
}

static void check_target(struct jparser *p, const struct jnode *node)
{
    if (p->rc || node->kind == JN_NAME || node->kind == JN_NSREF) return;
    if (node->kind != JN_TUPLE) {
        jparse_fail(p, ERR_TEMPLATE, "cannot assign to this expression");
        return;
    }
    for (uint32_t i = 0; i < node->n_items; i++)
        check_target(p, node->items[i]);
}

struct jnode *jparse_target(struct jparser *p, enum jtuple_mode mode)
{
    struct jnode *node;

    p->in_target = true;
    node = jparse_tuple(p, mode);
    p->in_target = false;
    check_target(p, node);
    return node;
}
