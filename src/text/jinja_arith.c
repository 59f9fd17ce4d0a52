/* jinja_arith.c - the operators + - * / // % ** between values, as Python's. Integers have 64 bits: what does
 * not fit fails. A number computed from a client's number counts as the client's. */
#include <math.h>
#include <string.h>

#include "jinja_ast.h"

static const char *const op_text[] = {
    [JOP_ADD] = "+", [JOP_SUB] = "-", [JOP_MUL] = "*", [JOP_DIV] = "/", [JOP_FLOORDIV] = "//", [JOP_MOD] = "%",
    [JOP_POW] = "** or pow()",
};

static struct jval overflow(struct jrt *rt) { return jrt_fail(rt, "integer result beyond 64 bits"); }

static struct jval int_pow(struct jrt *rt, int64_t base, int64_t exp)
{
    int64_t result = 1;

    if (exp < 0)
        return base == 0 ? jrt_fail(rt, "0.0 cannot be raised to a negative power")
                         : jfloat(pow((double)base, (double)exp));
    while (exp > 0) {
        if ((exp & 1) && __builtin_mul_overflow(result, base, &result)) return overflow(rt);
        exp >>= 1;
        if (exp > 0 && __builtin_mul_overflow(base, base, &base)) return overflow(rt);
    }
    return jint(result);
}

static struct jval int_div(struct jrt *rt, uint8_t op, int64_t a, int64_t b)
{
    if (b == 0) return jrt_fail(rt, op == JOP_DIV ? "division by zero" : "integer division or modulo by zero");
    if (op == JOP_DIV) return jfloat((double)a / (double)b);
    if (a == INT64_MIN && b == -1) return op == JOP_MOD ? jint(0) : overflow(rt);
    int64_t quotient = a / b, rest = a % b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
        quotient--;
        rest += b;
    }
    return jint(op == JOP_MOD ? rest : quotient);
}

static struct jval int_op(struct jrt *rt, uint8_t op, int64_t a, int64_t b)
{
    int64_t r;

    switch (op) {
    case JOP_ADD: return __builtin_add_overflow(a, b, &r) ? overflow(rt) : jint(r);
    case JOP_SUB: return __builtin_sub_overflow(a, b, &r) ? overflow(rt) : jint(r);
    case JOP_MUL: return __builtin_mul_overflow(a, b, &r) ? overflow(rt) : jint(r);
    case JOP_POW: return int_pow(rt, a, b);
    default: return int_div(rt, op, a, b);
    }
}

static double float_mod(double a, double b)
{
    double rest = fmod(a, b);

    if (rest == 0) return copysign(0, b);
    return (rest < 0) != (b < 0) ? rest + b : rest;
}

static struct jval float_op(struct jrt *rt, uint8_t op, double a, double b)
{
    double r;

    if (b == 0 && (op == JOP_DIV || op == JOP_FLOORDIV || op == JOP_MOD)) return jrt_fail(rt, "float division by zero");
    switch (op) {
    case JOP_ADD: return jfloat(a + b);
    case JOP_SUB: return jfloat(a - b);
    case JOP_MUL: return jfloat(a * b);
    case JOP_DIV: return jfloat(a / b);
    case JOP_FLOORDIV:
        r = (a - float_mod(a, b)) / b;
        return jfloat(r == 0 ? copysign(0, a / b) : floor(r + 0.5));
    case JOP_MOD: return jfloat(float_mod(a, b));
    default: break;
    }
    if (a == 0 && b < 0) return jrt_fail(rt, "0.0 cannot be raised to a negative power");
    if (a < 0 && floor(b) != b && !isinf(b)) return jrt_fail(rt, "complex numbers are not supported");
    r = pow(a, b);
    return isinf(r) && !isinf(a) && !isinf(b) ? jrt_fail(rt, "result too large") : jfloat(r);
}

static struct jval str_concat(struct jrt *rt, const struct jstr *a, const struct jstr *b)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    if (a->markup && !b->markup) b = jto_str(rt, jescape(rt, b));
    else if (b->markup && !a->markup) a = jto_str(rt, jescape(rt, a));
    jbuf_add_range(&buf, a, 0, a->len);
    jbuf_add_range(&buf, b, 0, b->len);
    buf.markup = a->markup || b->markup;
    return jbuf_take(&buf);
}

static struct jval list_concat(struct jrt *rt, uint8_t kind, const struct jlist *a, const struct jlist *b)
{
    struct jval list = jlist_wrap(rt, kind, NULL, a->n + b->n);

    if (rt->rc) return JUNDEF;
    for (size_t i = 0; i < a->n + b->n; i++)
        *jlist_at(list, i) = i < a->n ? a->items[i] : b->items[i - a->n];
    return list;
}

static struct jval repeat(struct jrt *rt, struct jval v, int64_t times)
{
    struct jval list;
    struct jbuf buf;

    if (times < 0) times = 0;
    if (v.kind == JK_STR) {
        size_t total;
        if (__builtin_mul_overflow(v.s->len, (size_t)times, &total) || total > JRT_MAX_OUTPUT)
            return jrt_fail(rt, "string too long");
        jbuf_init(&buf, rt);
        for (int64_t i = 0; v.s->len && i < times && jrt_charge(rt, 1); i++)
            jbuf_add_range(&buf, v.s, 0, v.s->len);
        buf.markup = v.s->markup;
        return jbuf_take(&buf);
    }
    size_t n = v.list->n, total;
    if (__builtin_mul_overflow(n, (size_t)times, &total) || total > JRT_MAX_STEPS) return jrt_fail(rt, "list too long");
    list = jlist_wrap(rt, v.kind, NULL, total);
    for (size_t i = 0; i < total && !rt->rc; i++)
        *jlist_at(list, i) = v.list->items[i % n];
    return list;
}

static bool is_repeatable(struct jval v) { return v.kind == JK_STR || v.kind == JK_LIST || v.kind == JK_TUPLE; }

struct jval jbinary(struct jrt *rt, uint8_t op, struct jval a, struct jval b)
{
    struct jval r;

    if (rt->rc) return JUNDEF;
    if (jis_num(a) && jis_num(b)) {
        r = jis_int(a) && jis_int(b) ? int_op(rt, op, jint_of(a), jint_of(b))
                                     : float_op(rt, op, jnum_of(a), jnum_of(b));
        r.origin = a.origin > b.origin ? a.origin : b.origin;
        return r;
    }
    if (op == JOP_MOD && jis_str(a)) {
        struct jargs args = {.pos = b.kind == JK_TUPLE ? b.list->items : &b,
                             .n_pos = b.kind == JK_TUPLE ? b.list->n : 1};
        if (b.kind != JK_UNDEFINED) return jformat_percent(rt, a.s, &args);
    }
    if (a.kind == JK_UNDEFINED) return jundef_fail(rt, a);
    if (b.kind == JK_UNDEFINED) return jundef_fail(rt, b);
    if (op == JOP_ADD && a.kind == b.kind) {
        if (jis_str(a)) return str_concat(rt, a.s, b.s);
        if (a.kind == JK_LIST || a.kind == JK_TUPLE) return list_concat(rt, a.kind, a.list, b.list);
    }
    if (op == JOP_MUL && is_repeatable(a) && jis_int(b)) return repeat(rt, a, jint_of(b));
    if (op == JOP_MUL && is_repeatable(b) && jis_int(a)) return repeat(rt, b, jint_of(a));
    if (op == JOP_ADD && jis_str(a)) return jrt_fail(rt, "can only concatenate str (not \"%s\") to str", jkind_name(b));
    return jrt_fail(rt, "unsupported operand type(s) for %s: '%s' and '%s'", op_text[op], jkind_name(a), jkind_name(b));
}
