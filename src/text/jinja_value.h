/* jinja_value.h - the values a template computes with, and the run that owns them.
 * Flow: jinja_json.c (cJSON -> value) -> jinja_eval.c -> jinja_filters.c, jinja_tests.c, jinja_methods.c -> jinja_out.
 * Thread: one run belongs to one worker. Owner: everything is in the run's arena; nothing is freed on its own.
 * Values are immutable once made (the sandbox that templates expect forbids mutation), so they are shared freely; only
 * namespaces and one-shot iterators change.
 * Errors stick: the first jrt_fail sets rc, later calls return undefined quickly; loops check rt->rc.
 * Origin: every string byte and every number knows whether the template's author or a client wrote it. */
#ifndef TEXT_JINJA_VALUE_H
#define TEXT_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

#include "base/arena.h"

struct cJSON;
struct jnode;
struct jtemplate;
struct jscope;

enum jorigin { JO_TEMPLATE, JO_CLIENT, JO_MARK /* the tag of continue_final_message */ };

enum {
    JRT_MAX_STEPS = 1000000,
    JRT_UNITS_PER_STEP = 16, /* a statement, call or iteration costs a step; a node or 64 bytes one unit */
    JRT_MAX_OUTPUT = 64 << 20,
    JRT_MAX_CALLS = 64,   /* macros inside macros */
    JRT_MAX_DEPTH = 1200, /* nested evaluation, bounds the C stack */
    JRT_MAX_MEMORY = 512 << 20,
    JRT_MAX_RANGE = 100000, /* as jinja2's sandbox */
    JDEF_MAX_PARAMS = 6
};

enum jkind {
    JK_MISSING,                            /* an argument that was not given; never seen by templates */
    JK_UNDEFINED, JK_NONE, JK_BOOL, JK_INT, JK_FLOAT, JK_STR, JK_LIST, JK_TUPLE, JK_DICT,
    JK_VIEW,                               /* dict.keys(), .values(), .items() */
    JK_ITER,                               /* what map, select, ... return: read once */
    JK_RANGE, JK_NAMESPACE, JK_LOOP, JK_MACRO, JK_FUNC
};

struct jval {
    uint8_t kind;
    uint8_t origin;                        /* of JK_BOOL, JK_INT, JK_FLOAT, JK_NONE */
    union {
        bool b;
        int64_t i;
        double f;
        const struct jstr *s;
        const struct jlist *list;          /* JK_LIST, JK_TUPLE */
        struct jdict *dict;                /* JK_DICT, JK_NAMESPACE */
        const struct jview *view;
        struct jiter *iter;
        const struct jrange *range;
        struct jloop *loop;
        const struct jmacro *macro;
        const struct jfunc *func;
        const struct jundef *undef;        /* NULL: no more to say */
    };
};

struct jstr {
    const char *data;                      /* UTF-8, may hold NUL, not NUL-terminated */
    size_t len;
    const uint8_t *origin;                 /* [len] or NULL: every byte is of `all` */
    uint8_t all;
    bool markup;                           /* made by |safe or |escape: `+` escapes the other side, as in markupsafe */
};
struct jlist { struct jval *items; size_t n; };
struct jpair { struct jval key, value; };
struct jdict { struct jpair *pairs; size_t n, cap; };                    /* insertion order */
struct jview { const struct jlist *items; const char *name; };
struct jiter { const struct jlist *items; size_t pos; };
struct jrange { int64_t start, stop, step; size_t n; };
struct jmacro { const struct jnode *node; struct jscope *scope; };
struct jundef { const char *hint; uint8_t of_kind; const struct jstr *name; };

struct jkw { const char *name; struct jval value; };
struct jargs { const struct jval *pos; size_t n_pos; const struct jkw *kw; size_t n_kw; };

struct jrt;
/* argv: JDEF_MAX_PARAMS values in the order of params, JK_MISSING where absent; variadic ones read args themselves. */
typedef struct jval (*jfn)(struct jrt *rt, struct jval self, const struct jval *argv, const struct jargs *args);
struct jdef {
    const char *name;
    jfn fn;
    uint8_t required;
    bool variadic;
    const char *params[JDEF_MAX_PARAMS];   /* "_": positional only */
};
struct jfunc { const struct jdef *def; struct jval self; };

struct jrt {                               /* one run */
    struct arena *arena;
    struct err *err;
    const struct jtemplate *tmpl;
    struct jval *root;                     /* [n_names] variables of the outermost scope */
    int64_t fuel;                          /* units left */
    int64_t now_s;
    int rc, depth, calls, line;
};

#define JUNDEF ((struct jval){ .kind = JK_UNDEFINED })
#define JNONE ((struct jval){ .kind = JK_NONE })

static inline struct jval jbool(bool b) { return (struct jval){ .kind = JK_BOOL, .b = b }; }
static inline struct jval jint(int64_t i) { return (struct jval){ .kind = JK_INT, .i = i }; }
static inline struct jval jfloat(double f) { return (struct jval){ .kind = JK_FLOAT, .f = f }; }
static inline bool jis_str(struct jval v) { return v.kind == JK_STR; }
static inline bool jis_int(struct jval v) { return v.kind == JK_INT || v.kind == JK_BOOL; }      /* as Python's int */
static inline bool jis_num(struct jval v) { return jis_int(v) || v.kind == JK_FLOAT; }
static inline int64_t jint_of(struct jval v) { return v.kind == JK_BOOL ? v.b : v.i; }
static inline double jnum_of(struct jval v) { return v.kind == JK_FLOAT ? v.f : (double)jint_of(v); }
static inline bool jgiven(struct jval v) { return v.kind != JK_MISSING; }

/* ---- the run (jinja_value.c) ---- */
struct jval jrt_fail(struct jrt *rt, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));                    /* returns undefined */
bool  jrt_charge(struct jrt *rt, size_t units);               /* false: out of fuel, rt->rc is set */
void *jrt_alloc(struct jrt *rt, size_t n, size_t size);       /* zeroed; NULL: rt->rc is set */

/* ---- values (jinja_value.c) ---- */
const char *jkind_name(struct jval v);                        /* Python's type name */
bool jtruth(struct jval v);
bool jequal(struct jrt *rt, struct jval a, struct jval b);
int  jcompare(struct jrt *rt, struct jval a, struct jval b);  /* <0, 0, >0; unordered kinds fail; NaN answers 2 */
bool jcontains(struct jrt *rt, struct jval container, struct jval item);
int64_t jlength(struct jrt *rt, struct jval v);               /* -1: fails, no len() */
/* All items; NULL: fails (not iterable). Reads a one-shot iterator to its end. */
const struct jlist *jitems(struct jrt *rt, struct jval v);
bool jiterable(struct jval v);
bool jhashable(struct jrt *rt, struct jval v);
struct jval jlist_new(struct jrt *rt, size_t n);              /* items to be filled through jlist_at */
struct jval *jlist_at(struct jval list, size_t i);
struct jval jlist_wrap(struct jrt *rt, uint8_t kind, const struct jval *items, size_t n);   /* copies */
struct jval jiter_new(struct jrt *rt, struct jval list);
struct jval jdict_new(struct jrt *rt, uint8_t kind, size_t cap);
bool jdict_set(struct jrt *rt, struct jval dict, struct jval key, struct jval value);       /* false: fails */
const struct jval *jdict_get(struct jrt *rt, const struct jdict *dict, struct jval key);    /* NULL: absent */
const struct jval *jdict_find(const struct jdict *dict, const char *key, size_t len);
struct jval jundefined(struct jrt *rt, const char *hint);
struct jval jundefined_of(struct jrt *rt, struct jval obj, const struct jstr *name);
struct jval jundef_fail(struct jrt *rt, struct jval undef);   /* what using an undefined value raises */
struct jval jgetattr(struct jrt *rt, struct jval obj, const struct jstr *name);
struct jval jgetitem(struct jrt *rt, struct jval obj, struct jval index);
struct jval jslice(struct jrt *rt, struct jval obj, struct jval from, struct jval to, struct jval step);

/* ---- strings (jinja_str.c) ---- */
struct jval jstr_new(struct jrt *rt, const char *data, size_t len, uint8_t origin);         /* borrows data */
struct jval jstr_lit(struct jrt *rt, const char *text);
struct jval jstr_sub(struct jrt *rt, const struct jstr *s, size_t from, size_t to);
uint8_t jstr_origin_at(const struct jstr *s, size_t i);
bool jstr_all_template(const struct jstr *s);
size_t jstr_run(const struct jstr *s, size_t from,
                uint8_t *origin); /* end of the run of one origin that starts at from */
int  jstr_compare(const struct jstr *a, const struct jstr *b);
bool jstr_is(const struct jstr *s, const char *text);
size_t jstr_find(const struct jstr *s, size_t from, const struct jstr *needle);             /* SIZE_MAX: absent */
size_t jstr_chars(const struct jstr *s);                                 /* code points */
size_t jstr_offset(const struct jstr *s, size_t from, size_t chars); /* byte offset `chars` code points after from */

struct jbuf {                              /* a string in the making; the first failure is in rt->rc */
    struct jrt *rt;
    char *data;
    uint8_t *origin;                       /* NULL while all bytes are of `all` */
    size_t len, cap;
    uint8_t all;
    bool markup;
};
void jbuf_init(struct jbuf *buf, struct jrt *rt);
void jbuf_add(struct jbuf *buf, const char *data, size_t len, uint8_t origin);
void jbuf_puts(struct jbuf *buf, const char *text, uint8_t origin);
void jbuf_add_range(struct jbuf *buf, const struct jstr *s, size_t from, size_t to);
void jbuf_add_cp(struct jbuf *buf, uint32_t cp, uint8_t origin);
void jbuf_add_value(struct jbuf *buf, struct jval v);          /* str(v) */
void jbuf_add_repr(struct jbuf *buf, struct jval v);           /* repr(v) */
struct jval jbuf_take(struct jbuf *buf);
const struct jstr *jto_str(struct jrt *rt, struct jval v);     /* str(v); never NULL */
void jfloat_repr(double f, char out[40]);

#endif
