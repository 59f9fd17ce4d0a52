/* jinja_parse.h - what the two halves of the parser share: jinja_parse.c (statements), jinja_parse_expr.c
 * (expressions). */
#ifndef TEXT_JINJA_PARSE_H
#define TEXT_JINJA_PARSE_H

#include "jinja_ast.h"

struct jparser {
    struct jtokens tokens;
    size_t pos;
    struct jtemplate *tmpl;
    struct err *err;
    int rc;
    int nest, loops;
    bool in_target;              /* names are written, not read */
    uint32_t n_nodes;
    uint32_t special_reads;      /* JNF_VARARGS, JNF_KWARGS, JNF_CALLER read since the macro's start */
    struct jnode dummy;          /* what a failed production returns */
};

/* Where a comma list stands decides what ends it and what its items may be. */
enum jtuple_mode {
    JTUPLE_FULL, JTUPLE_PARENS, JTUPLE_NO_COND, JTUPLE_FOR_ITER,
    JTUPLE_FOR_TARGET, JTUPLE_SET_TARGET, JTUPLE_WITH_TARGET
};

static inline const struct jtok *jparse_tok(const struct jparser *p) { return &p->tokens.items[p->pos]; }
void jparse_fail(struct jparser *p, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
const struct jtok *jparse_next(struct jparser *p);              /* returns the current one and moves on */
bool jtok_is_name(const struct jtok *tok, const char *name);
bool jparse_skip_name(struct jparser *p, const char *name);
bool jparse_is_op(const struct jparser *p, uint8_t op);
bool jparse_skip_op(struct jparser *p, uint8_t op);
void jparse_expect_op(struct jparser *p, uint8_t op, const char *text);
const struct jtok *jparse_expect_name(struct jparser *p);       /* NULL: failed */
void *jparse_alloc(struct jparser *p, size_t n, size_t size);
int32_t jparse_name(struct jparser *p, const char *text, size_t len);
struct jval jparse_str(struct jparser *p, const char *text, size_t len);
bool jparse_enter(struct jparser *p);                           /* one level deeper; the caller does nest-- */

struct jnode *jnode_new(struct jparser *p, uint8_t kind, struct jnode *a, struct jnode *b, struct jnode *c);
void jnode_push(struct jparser *p, struct jnode *node, struct jnode *item);
void jnode_push_kw(struct jparser *p, struct jnode *node, const char *name, struct jnode *value);

struct jnode *jparse_expr(struct jparser *p);
struct jnode *jparse_tuple(struct jparser *p, enum jtuple_mode mode);
struct jnode *jparse_target(struct jparser *p, enum jtuple_mode mode);
struct jnode *jparse_filters(struct jparser *p, struct jnode *input);     /* while there is a `|` */
struct jnode *jparse_filter_block(struct jparser *p);                     /* name(args) | name ... of {% filter %} */

#endif
