/* jinja_text.c - strip, case, replace, join and split as Python's str does them; every byte keeps its origin. */
#include "jinja_text.h"

#include <string.h>

#include "jinja_ast.h"
#include "jinja_unicode.h"

static bool strips(const struct jstr *chars, const char *cp_text, size_t cp_len)
{
    size_t n = 0;

    if (!chars) return jcp_space(jcp_next(cp_text, cp_len, &n));
    for (size_t i = 0; i < chars->len; i += n) {
        jcp_next(chars->data + i, chars->len - i, &n);
        if (n == cp_len && memcmp(chars->data + i, cp_text, n) == 0) return true;
    }
    return false;
}

static size_t cp_before(const struct jstr *s, size_t end)
{
    size_t start = end - 1;

    while (start > 0 && end - start < 4 && ((unsigned char)s->data[start] & 0xC0) == 0x80) start--;
    return start;
}

struct jval jtext_strip(struct jrt *rt, const struct jstr *s, const struct jstr *chars, int sides)
{
    size_t from = 0, to = s->len, n = 0;

    if (!jrt_charge(rt, s->len / 64)) return JUNDEF;
    while ((sides & JSTRIP_LEFT) && from < to) {
        jcp_next(s->data + from, to - from, &n);
        if (!strips(chars, s->data + from, n) || !jrt_charge(rt, chars ? chars->len / 64 : 0)) break;
        from += n;
    }
    while ((sides & JSTRIP_RIGHT) && from < to) {
        size_t start = cp_before(s, to);
        if (!strips(chars, s->data + start, to - start) || !jrt_charge(rt, chars ? chars->len / 64 : 0)) break;
        to = start;
    }
    return jstr_sub(rt, s, from, to);
}

/* ---- case ---- */
/* A few letters become more than one: the ones that real text has. */
static void add_upper(struct jbuf *buf, uint32_t cp, uint8_t origin, bool title)
{
    if (cp == 0xDF) {
        jbuf_puts(buf, title ? "Ss" : "SS", origin);
        return;
    }
    jbuf_add_cp(buf, title ? jcp_to_title(cp) : jcp_to_upper(cp), origin);
}

static void add_lower(struct jbuf *buf, uint32_t cp, uint8_t origin)
{
    if (cp == 0x130) {
        jbuf_puts(buf, "i\xcc\x87", origin);
        return;
    }
    jbuf_add_cp(buf, jcp_to_lower(cp), origin);
}

static bool is_cased(uint32_t cp)
{ return jcp_upper(cp) || jcp_lower(cp) || jcp_to_lower(cp) != cp || jcp_to_upper(cp) != cp; }

/* A capital sigma is written as a final one after a letter and before no letter. */
static bool is_final_sigma(const struct jstr *s, size_t at, size_t len, bool after_letter)
{
    size_t n = 0;

    return after_letter && (at + len >= s->len || !jcp_alpha(jcp_next(s->data + at + len, s->len - at - len, &n)));
}

enum casing { CASE_UPPER, CASE_LOWER, CASE_CAPITAL, CASE_TITLE };

static struct jval recase(struct jrt *rt, const struct jstr *s, enum casing casing)
{
    bool after_cased = false, after_letter = false;
    size_t n = 0;
    struct jbuf buf;

    jbuf_init(&buf, rt);
    jrt_charge(rt, s->len / 16);
    for (size_t i = 0; i < s->len && !rt->rc; i += n) {
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        uint8_t origin = jstr_origin_at(s, i);
        bool first = casing == CASE_CAPITAL ? i == 0 : casing == CASE_TITLE && !after_cased;
        if (casing == CASE_UPPER || first) add_upper(&buf, cp, origin, casing != CASE_UPPER);
        else if (cp == 0x3A3 && is_final_sigma(s, i, n, after_letter)) jbuf_add_cp(&buf, 0x3C2, origin);
        else add_lower(&buf, cp, origin);
        after_cased = is_cased(cp);
        after_letter = jcp_alpha(cp);
    }
    buf.markup = s->markup;
    return jbuf_take(&buf);
}

struct jval jtext_upper(struct jrt *rt, const struct jstr *s) { return recase(rt, s, CASE_UPPER); }
struct jval jtext_lower(struct jrt *rt, const struct jstr *s) { return recase(rt, s, CASE_LOWER); }
struct jval jtext_capitalize(struct jrt *rt, const struct jstr *s) { return recase(rt, s, CASE_CAPITAL); }
struct jval jtext_title(struct jrt *rt, const struct jstr *s) { return recase(rt, s, CASE_TITLE); }

struct jval jtext_reverse(struct jrt *rt, const struct jstr *s)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    jrt_charge(rt, s->len / 16);
    for (size_t end = s->len; end > 0 && !rt->rc;) {
        size_t start = cp_before(s, end);
        jbuf_add_range(&buf, s, start, end);
        end = start;
    }
    buf.markup = s->markup;
    return jbuf_take(&buf);
}

/* ---- replace, join ---- */
struct jval jtext_replace(struct jrt *rt, const struct jstr *s, const struct jstr *old, const struct jstr *new_text,
                          int64_t count)
{
    size_t from = 0;
    struct jbuf buf;

    jbuf_init(&buf, rt);
    jrt_charge(rt, s->len / 64);
    while (count != 0 && !rt->rc) {
        size_t at = jstr_find(s, from, old);
        if (at == SIZE_MAX || !jrt_charge(rt, 1)) break;
        jbuf_add_range(&buf, s, from, at);
        jbuf_add_range(&buf, new_text, 0, new_text->len);
        from = at + old->len;
        if (count > 0) count--;
        if (old->len > 0) continue;
        if (from >= s->len) return jbuf_take(&buf);
        size_t next = jstr_offset(s, from, 1);   /* an empty `old` stands before every code point and at the end */
        jbuf_add_range(&buf, s, from, next);
        from = next;
    }
    jbuf_add_range(&buf, s, from, s->len);
    return jbuf_take(&buf);
}

struct jval jtext_join(struct jrt *rt, const struct jstr *sep, const struct jlist *items, bool only_strings)
{
    struct jbuf buf;

    jbuf_init(&buf, rt);
    for (size_t i = 0; items && i < items->n && !rt->rc; i++) {
        if (only_strings && !jis_str(items->items[i]))
            return jrt_fail(rt, "sequence item %zu: expected str instance, %s found", i, jkind_name(items->items[i]));
        if (!jrt_charge(rt, 1)) break;
        if (i) jbuf_add_range(&buf, sep, 0, sep->len);
        jbuf_add_value(&buf, items->items[i]);
    }
    return jbuf_take(&buf);
}

/* ---- split ---- */
struct pieces { struct jrt *rt; struct jval *items; size_t n, cap; };

static void add_piece(struct pieces *pieces, const struct jstr *s, size_t from, size_t to)
{
    struct jrt *rt = pieces->rt;

    if (!jrt_charge(rt, 1)) return;
    if (pieces->n == pieces->cap) {
        size_t cap = pieces->cap ? pieces->cap * 2 : 8;
        struct jval *items = jrt_alloc(rt, cap, sizeof(*items));
        if (!items) return;
        if (pieces->n) memcpy(items, pieces->items, pieces->n * sizeof(*items));
        pieces->items = items;
        pieces->cap = cap;
    }
    pieces->items[pieces->n++] = jstr_sub(rt, s, from, to);
}

static struct jval take_pieces(struct pieces *pieces, bool reversed)
{
    struct jval list = jlist_wrap(pieces->rt, JK_LIST, pieces->items, pieces->n);

    for (size_t i = 0; reversed && !pieces->rt->rc && i < pieces->n; i++)
        *jlist_at(list, i) = pieces->items[pieces->n - 1 - i];
    return list;
}

static void split_space(struct pieces *pieces, const struct jstr *s, int64_t max)
{
    size_t from = 0, n = 0;

    while (!pieces->rt->rc) {
        from += jtext_lstrip(s->data + from, s->len - from);
        if (from >= s->len) return;
        if (max >= 0 && (int64_t)pieces->n == max) {     /* the rest as it is, but for white space before it */
            add_piece(pieces, s, from, s->len);
            return;
        }
        size_t to = from;
        while (to < s->len && !jcp_space(jcp_next(s->data + to, s->len - to, &n))) to += n;
        add_piece(pieces, s, from, to);
        from = to;
    }
}

struct jval jtext_split(struct jrt *rt, const struct jstr *s, const struct jstr *sep, int64_t max)
{
    struct pieces pieces = { .rt = rt };
    size_t from = 0, at;

    if (sep && sep->len == 0) return jrt_fail(rt, "empty separator");
    jrt_charge(rt, s->len / 64);
    if (!sep) {
        split_space(&pieces, s, max);
        return take_pieces(&pieces, false);
    }
    while (!rt->rc && (max < 0 || (int64_t)pieces.n < max) && (at = jstr_find(s, from, sep)) != SIZE_MAX) {
        add_piece(&pieces, s, from, at);
        from = at + sep->len;
    }
    add_piece(&pieces, s, from, s->len);
    return take_pieces(&pieces, false);
}

static void rsplit_space(struct pieces *pieces, const struct jstr *s, int64_t max)
{
    size_t end = s->len;

    while (!pieces->rt->rc) {
        end = jtext_rstrip(s->data, end);
        if (end == 0) return;
        if (max >= 0 && (int64_t)pieces->n == max) {
            add_piece(pieces, s, 0, end);
            return;
        }
        size_t from = end, n = 0;
        while (from > 0) {
            size_t start = cp_before(s, from);
            if (jcp_space(jcp_next(s->data + start, from - start, &n))) break;
            from = start;
        }
        add_piece(pieces, s, from, end);
        end = from;
    }
}

struct jval jtext_rsplit(struct jrt *rt, const struct jstr *s, const struct jstr *sep, int64_t max)
{
    struct pieces pieces = { .rt = rt };
    size_t end = s->len;

    if (sep && sep->len == 0) return jrt_fail(rt, "empty separator");
    if (!jrt_charge(rt, (s->len / 64 + 1) * ((sep ? sep->len : 0) / 64 + 1))) return JUNDEF;
    if (!sep) {
        rsplit_space(&pieces, s, max);
        return take_pieces(&pieces, true);
    }
    for (size_t at = end; at >= sep->len && !rt->rc && (max < 0 || (int64_t)pieces.n < max);) {
        if (memcmp(s->data + at - sep->len, sep->data, sep->len) != 0) {
            at--;
            continue;
        }
        add_piece(&pieces, s, at, end);
        end = at -= sep->len;
    }
    add_piece(&pieces, s, 0, end);
    return take_pieces(&pieces, true);
}

struct jval jtext_splitlines(struct jrt *rt, const struct jstr *s, bool keep_ends)
{
    struct pieces pieces = { .rt = rt };
    size_t from = 0, n = 0;

    jrt_charge(rt, s->len / 16);
    for (size_t i = 0; i < s->len && !rt->rc;) {
        uint32_t cp = jcp_next(s->data + i, s->len - i, &n);
        size_t end = i + n;
        if (jcp_line_end(cp)) {
            if (cp == '\r' && end < s->len && s->data[end] == '\n') end++;
            add_piece(&pieces, s, from, keep_ends ? end : i);
            from = end;
        }
        i = end;
    }
    if (from < s->len) add_piece(&pieces, s, from, s->len);
    return take_pieces(&pieces, false);
}
