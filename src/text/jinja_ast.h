/* jinja_ast.h - a compiled template: tokens, nodes, names.
 * Flow: source -> jlex_run -> jtemplate_compile -> jtemplate -> jinja_exec.c.   Thread: compile on one, run on any.
 * Owner: the template's arena; immutable after compile.
 * Bounds: source 1 MiB, tokens, nodes and nesting below; recursion of the parser and of the evaluator follows
 * `depth`. */
#ifndef TEXT_JINJA_AST_H
#define TEXT_JINJA_AST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/hash.h"

#include "jinja_value.h"

enum {
    JINJA_MAX_SOURCE = 1 << 20,
    JINJA_MAX_TOKENS = 400000,
    JINJA_MAX_NODES = 200000,
    JINJA_MAX_NEST = 200,
    JINJA_MAX_NODE_DEPTH = 400
};

enum jtok_kind {
    JT_EOF, JT_DATA, JT_VAR_BEGIN, JT_VAR_END, JT_BLOCK_BEGIN, JT_BLOCK_END,
    JT_NAME, JT_STRING, JT_INT, JT_FLOAT, JT_OP
};

enum jop {
    JOP_NONE, JOP_ADD, JOP_SUB, JOP_MUL, JOP_DIV, JOP_FLOORDIV, JOP_MOD, JOP_POW, JOP_TILDE,
    JOP_EQ, JOP_NE, JOP_LT, JOP_LE, JOP_GT, JOP_GE, JOP_IN, JOP_NOT_IN, JOP_ASSIGN,
    JOP_LBRACKET, JOP_RBRACKET, JOP_LPAREN, JOP_RPAREN, JOP_LBRACE, JOP_RBRACE,
    JOP_DOT, JOP_COLON, JOP_PIPE, JOP_COMMA, JOP_SEMICOLON
};

struct jtok {
    uint8_t kind, op;
    int line;
    const char *text;        /* data, name, decoded string */
    size_t len;
    union { int64_t i; double f; };
};

struct jtokens { struct jtok *items; size_t n, cap; };

/* Tokens and decoded text live in arena; the source is normalised (line ends, one trailing newline dropped) there. */
int jlex_run(struct jtokens *tokens, struct arena *arena, const char *source, size_t len, struct err *err);

enum jnode_kind {
    /* expressions */
    JN_CONST, JN_NAME, JN_LIST, JN_TUPLE, JN_DICT, JN_ATTR, JN_ITEM, JN_SLICE, JN_CALL, JN_FILTER, JN_TEST, JN_UNARY,
    JN_BINARY, JN_CONCAT, JN_COMPARE, JN_AND, JN_OR, JN_NOT, JN_COND,
    JN_EXPR_END_,
    /* targets only */
    JN_NSREF,
    /* statements */
    JN_TEXT, JN_OUTPUT, JN_BLOCK, JN_IF, JN_FOR, JN_SET, JN_SET_BLOCK, JN_MACRO, JN_CALL_BLOCK, JN_WITH, JN_SCOPE,
    JN_FILTER_BLOCK, JN_BREAK, JN_CONTINUE
};

struct jkwnode { const char *name; struct jnode *value; };

/* What the links mean:
 *   ATTR a.value   ITEM a[b]   SLICE a[b:c:items[0]]   CALL a(items, kw)   FILTER, TEST a|def(items, kw)
 *   COND a if b else c   COMPARE a, then items with their operators in ops   DICT items k,v,k,v
 *   IF items test,body,test,body; c else     FOR a target, b iterable, c filter, items[0] body, items[1] else
 *   SET a target, b value   SET_BLOCK a target, b filter chain or NULL, c body   MACRO name, items parameters (NAME),
 *     kw defaults, c body   CALL_BLOCK a call, b anonymous macro   WITH items target,value..., c body
 *   FILTER_BLOCK b, c
 * A filter chain of SET_BLOCK and FILTER_BLOCK has a FILTER with a == NULL at its inner end: it takes the
 * block's text. */
struct jnode {
    uint8_t kind, op;
    uint8_t flags;               /* JNF_* */
    uint16_t depth;
    int32_t line;
    int32_t name;                /* NAME, NSREF, MACRO: index into jtemplate.names */
    uint32_t n_items, n_kw;
    struct jnode *a, *b, *c;
    struct jnode **items;
    struct jkwnode *kw;
    uint8_t *ops;                /* COMPARE: [n_items] */
    const struct jdef *def;      /* FILTER, TEST; NULL: unknown to this engine, fails when reached */
    struct jval value;           /* CONST, ATTR, NSREF (attribute name), TEXT, FILTER and TEST (their name) */
};

enum { JNF_NEGATED = 1, JNF_VARARGS = 2, JNF_KWARGS = 4, JNF_CALLER = 8 };

enum { JNAME_LOOP, JNAME_VARARGS, JNAME_KWARGS, JNAME_CALLER, JNAME_FIRST_FREE };

struct jtemplate {
    struct arena arena;
    struct jnode *body;
    const char **names;          /* NUL-terminated */
    bool *is_read;               /* [n_names] loaded as a variable somewhere */
    int32_t n_names, cap_names;
    struct str_map name_index;
};

/* tmpl zeroed. On error the caller still calls jtemplate_release. ERR_TEMPLATE with the line, ERR_NO_MEMORY. */
int  jtemplate_compile(struct jtemplate *tmpl, const char *source, size_t len, struct err *err);
void jtemplate_release(struct jtemplate *tmpl);
int32_t jtemplate_name(const struct jtemplate *tmpl, const char *name, size_t len);   /* -1: not in the template */

/* Tables, by name; NULL if unknown. */
const struct jdef *jfilter_find(const char *name);       /* jinja_filters.c, jinja_filters_seq.c */
const struct jdef *jtest_find(const char *name);         /* jinja_tests.c */
const struct jdef *jmethod_find(struct jval obj,
                                const struct jstr *name); /* jinja_methods.c: str, dict, list, tuple, loop */
const struct jdef *jglobal_find(const char *name);       /* jinja_globals.c: range, dict, namespace, ... */

/* ---- evaluation (jinja_eval.c, jinja_exec.c) ---- */
struct jbind { int32_t name; struct jval value; struct jbind *next; };
struct jscope { struct jscope *parent; struct jbind *binds; };   /* parent NULL: outermost, see jrt.root */

struct jpiece { const char *text; size_t len; uint8_t origin; };
struct jout { struct jpiece *pieces; size_t n, cap, len; };      /* text in the making, by reference */

struct jloop {
    const struct jnode *node;
    struct jscope *outer;
    const struct jlist *items;
    size_t pos;
    bool filtered;               /* node has a filter that the items from pos on have still to pass */
    bool has_after, has_changed;
    int64_t index0, length;      /* length -1: not known yet */
    struct jval before, current, after, changed;
};

enum jflow { JFLOW_NEXT, JFLOW_BREAK, JFLOW_CONTINUE };

struct jval jeval(struct jrt *rt, struct jscope *scope, const struct jnode *node);
enum jflow jexec(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jout *out);
struct jval jcall(struct jrt *rt, struct jval callee, const struct jargs *args);
struct jval jcall_def(struct jrt *rt, const struct jdef *def, struct jval self, const struct jargs *args);
struct jval jcall_macro(struct jrt *rt, const struct jmacro *macro, const struct jargs *args);
bool jeval_args(struct jrt *rt, struct jscope *scope, const struct jnode *node, struct jargs *args);
struct jval jeval_chain(struct jrt *rt, struct jscope *scope, const struct jnode *filter, struct jval input);
bool jassign(struct jrt *rt, struct jscope *scope, const struct jnode *target, struct jval value);
void jscope_set(struct jrt *rt, struct jscope *scope, int32_t name, struct jval value);
struct jval jbinary(struct jrt *rt, uint8_t op, struct jval a, struct jval b);       /* jinja_arith.c */
struct jval jformat_percent(struct jrt *rt, const struct jstr *fmt, const struct jargs *args);  /* jinja_format.c */
struct jval jformat_braces(struct jrt *rt, const struct jstr *fmt, const struct jargs *args);
struct jval jescape(struct jrt *rt, const struct jstr *s);       /* HTML, marked as markup */
void jout_add_str(struct jrt *rt, struct jout *out, const struct jstr *s);
struct jval jout_take(struct jrt *rt, const struct jout *out);   /* as a string */
struct jval jloop_attr(struct jrt *rt, struct jloop *loop, const struct jstr *name);
bool jloop_next(struct jrt *rt, struct jloop *loop);

/* ---- JSON (jinja_json.c) ---- */
struct jval jval_from_json(struct jrt *rt, const struct cJSON *item, uint8_t origin);
struct jval jval_to_json(struct jrt *rt, struct jval v, const struct jval *argv);

#endif
