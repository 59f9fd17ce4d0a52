#include "normalize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"

bool text_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || cp == 0x20 || cp == 0x85 || cp == 0xa0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200a) || cp == 0x2028 || cp == 0x2029 || cp == 0x202f || cp == 0x205f ||
           cp == 0x3000;
}

bool text_is_word(uint32_t cp)
{
    if (cp == 0x200c || cp == 0x200d) return true;                        /* Join_Control */
    if ((cp >= 0x24b6 && cp <= 0x24e9) || (cp >= 0x1f130 && cp <= 0x1f149) || (cp >= 0x1f150 && cp <= 0x1f169) ||
        (cp >= 0x1f170 && cp <= 0x1f189)) return true;                    /* alphabetic symbols */
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
    }
}

/* ---- NFC, NFD, NFKC, NFKD ---- */
struct codepoints { utf8proc_int32_t *data; size_t len, cap; };

static int codepoints_reserve(struct codepoints *cps, size_t more)
{
    if (cps->cap - cps->len >= more) return 0;
    size_t cap = (cps->len + more) * 2;
    utf8proc_int32_t *bigger = cap < SIZE_MAX / 8 ? realloc(cps->data, cap * sizeof *bigger) : NULL;
    if (!bigger) return ERR_NO_MEMORY;
    cps->data = bigger;
    cps->cap = cap;
    return 0;
}

/* Hugging Face's normalizers know Unicode 9. What later versions gave a combining class or a decomposition is an
 * ordinary
 * character there, and models have learned from text normalized that way. */
static const struct { uint32_t first, last;
} unicode_10_on[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
    {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
    {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x10781, 0x107ba},
    {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11935, 0x11935},
    {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34},
    {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
    {0x16ff0, 0x16ff1}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1f16c, 0x1f16c},
    {0x1fbf0, 0x1fbf9},
};

static bool is_unicode_10_on(uint32_t cp)
{
    size_t low = 0, high = sizeof unicode_10_on / sizeof *unicode_10_on;

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (unicode_10_on[mid].last < cp) low = mid + 1; else high = mid;
    }
    return low < sizeof unicode_10_on / sizeof *unicode_10_on && unicode_10_on[low].first <= cp;
}

static unsigned combining_class(utf8proc_int32_t cp)
{
    unsigned class = cp < 0x300 ? 0 : (unsigned)utf8proc_get_property(cp)->combining_class;

    return class && is_unicode_10_on((uint32_t)cp) ? 0 : class;
}

static void sort_short_run(utf8proc_int32_t *run, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        utf8proc_int32_t cp = run[i];
        size_t at = i;
        for (; at && combining_class(run[at - 1]) > combining_class(cp); at--) run[at] = run[at - 1];
        run[at] = cp;
    }
}

/* Stable by combining class. A run holds only marks with a class above 0. */
static int sort_marks(utf8proc_int32_t *run, size_t n)
{
    size_t start[257] = { 0 };

    if (n < 2) return 0;
    if (n <= 16) {
        sort_short_run(run, n);
        return 0;
    }
    utf8proc_int32_t *copy = malloc(n * sizeof *copy);
    if (!copy) return ERR_NO_MEMORY;
    memcpy(copy, run, n * sizeof *copy);
    for (size_t i = 0; i < n; i++) start[(combining_class(copy[i]) & 255) + 1]++;
    for (int class = 0; class < 256; class++) start[class + 1] += start[class];
    for (size_t i = 0; i < n; i++) run[start[combining_class(copy[i]) & 255]++] = copy[i];
    free(copy);
    return 0;
}

static int canonical_order(struct codepoints *cps)
{
    for (size_t i = 0; i < cps->len;) {
        size_t end = i;
        while (end < cps->len && combining_class(cps->data[end])) end++;
        if (sort_marks(cps->data + i, end - i) < 0) return ERR_NO_MEMORY;
        i = end + 1;
    }
    return 0;
}

static int decompose(struct codepoints *cps, const char *text, size_t len, utf8proc_option_t options)
{
    cps->len = 0;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int step = utf8_decode(text + i, len - i, &cp);
        int boundclass = 0;
        if (step <= 0 || codepoints_reserve(cps, 32) < 0) return ERR_NO_MEMORY;
        if (is_unicode_10_on(cp)) {
            cps->data[cps->len++] = (utf8proc_int32_t)cp;
            i += (size_t)step;
            continue;
        }
        utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)cp, cps->data + cps->len,
                                                     (utf8proc_ssize_t)(cps->cap - cps->len), options, &boundclass);
        if (n < 0 || (size_t)n > cps->cap - cps->len) return ERR_NO_MEMORY;
        cps->len += (size_t)n;
        i += (size_t)step;
    }
    return canonical_order(cps);
}

/* Composes between the newer characters, which separate as starters do. */
static int compose(struct codepoints *cps)
{
    size_t kept = 0;

    for (size_t i = 0; i < cps->len;) {
        size_t end = i;
        while (end < cps->len && !is_unicode_10_on((uint32_t)cps->data[end])) end++;
        utf8proc_ssize_t n = end == i ? 0 : utf8proc_normalize_utf32(cps->data + i, (utf8proc_ssize_t)(end - i),
                                                                     UTF8PROC_STABLE | UTF8PROC_COMPOSE);
        if (n < 0) return ERR_NO_MEMORY;
        memmove(cps->data + kept, cps->data + i, (size_t)n * sizeof *cps->data);
        kept += (size_t)n;
        if (end < cps->len) cps->data[kept++] = cps->data[end++];
        i = end;
    }
    cps->len = kept;
    return 0;
}

static int normal_form(struct codepoints *cps, const char *text, size_t len, bool compat, bool composed,
                       struct buf *out)
{
    utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);

    if (decompose(cps, text, len, options) < 0) return ERR_NO_MEMORY;
    if (composed && compose(cps) < 0) return ERR_NO_MEMORY;
    for (size_t i = 0; i < cps->len; i++) {
        char bytes[4];
        buf_append(out, bytes, (size_t)utf8_encode((uint32_t)cps->data[i], bytes));
    }
    return out->failed ? ERR_NO_MEMORY : 0;
}

/* A starter that no composition touches from its left and that is itself composed: text between two of these can be
 * normalized on its own. Only ranges where that holds for every code point; ideographs and Latin are most of all
 * text. */
static bool is_inert_nfc(uint32_t cp)
{
    return cp < 0x300 || (cp >= 0x400 && cp < 0x483) || (cp >= 0x4e00 && cp <= 0x9fff) ||
           (cp >= 0xac00 && cp <= 0xd7a3) || (cp >= 0x3001 && cp <= 0x3029) || (cp >= 0x3041 && cp <= 0x3098) ||
           (cp >= 0x309b && cp <= 0x30ff) || (cp >= 0xff01 && cp <= 0xffef) || (cp >= 0x2010 && cp <= 0x2027);
}

/* Copies inert text and normalizes what lies between, together with the one character before it. */
static int nfc(struct codepoints *cps, const char *text, size_t len, struct buf *out)
{
    size_t copied = 0, last = 0, i = 0;

    while (i < len) {
        uint32_t cp = (unsigned char)text[i];
        int step = cp < 0x80 ? 1 : utf8_decode(text + i, len - i, &cp);
        if (step <= 0) return ERR_NO_MEMORY;
        if (is_inert_nfc(cp)) {
            last = i;
            i += (size_t)step;
            continue;
        }
        size_t end = i;
        while (end < len) {
            step = utf8_decode(text + end, len - end, &cp);
            if (step <= 0 || is_inert_nfc(cp)) break;
            end += (size_t)step;
        }
        buf_append(out, text + copied, last - copied);
        if (normal_form(cps, text + last, end - last, false, true, out) < 0) return ERR_NO_MEMORY;
        copied = last = i = end;
    }
    buf_append(out, text + copied, len - copied);
    return out->failed ? ERR_NO_MEMORY : 0;
}

static int unicode_step(enum normalize_kind kind, const char *text, size_t len, struct buf *out)
{
    struct codepoints cps = { 0 };
    int rc;

    if (kind == NORM_NFC)
        rc = nfc(&cps, text, len, out);
    else
        rc = normal_form(&cps, text, len, kind == NORM_NFKC || kind == NORM_NFKD, kind == NORM_NFKC, out);
    free(cps.data);
    return rc;
}

/* ---- the other steps ---- */
static void lowercase(const char *text, size_t len, struct buf *out)
{
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        int step = utf8_decode(text + i, len - i, &cp);
        char bytes[4];
        if (step <= 0) return;
        i += (size_t)step;
        if (cp == 0x130) {                                   /* the one character whose lower case is two */
            buf_append(out, "i\xcc\x87", 3);
            continue;
        }
        buf_append(out, bytes, (size_t)utf8_encode((uint32_t)utf8proc_tolower((utf8proc_int32_t)cp), bytes));
    }
}

static void strip(const struct normalize_step *step, const char **text, size_t *len)
{
    uint32_t cp;
    int n;

    while (step->left && (n = utf8_decode(*text, *len, &cp)) > 0 && text_is_space(cp)) {
        *text += n;
        *len -= (size_t)n;
    }
    while (step->right && *len) {
        size_t start = *len - 1;
        while (start && ((unsigned char)(*text)[start] & 0xc0) == 0x80) start--;
        if (utf8_decode(*text + start, *len - start, &cp) <= 0 || !text_is_space(cp)) return;
        *len = start;
    }
}

static void replace(const struct normalize_step *step, const char *text, size_t len, struct buf *out)
{
    size_t at = 0;

    while (at < len) {
        const char *hit = step->pattern_len ? memmem(text + at, len - at, step->pattern, step->pattern_len) : NULL;
        size_t end = hit ? (size_t)(hit - text) : len;
        buf_append(out, text + at, end - at);
        if (hit) buf_append(out, step->content, step->content_len);
        at = hit ? end + step->pattern_len : len;
    }
}

static bool is_ascii(const char *text, size_t len)
{
    uint64_t bits = 0, word;
    size_t i = 0;

    for (; i + 8 <= len; i += 8) {
        memcpy(&word, text + i, 8);
        bits |= word;
    }
    for (; i < len; i++) bits |= (unsigned char)text[i];
    return !(bits & 0x8080808080808080u);
}

static bool is_identity(const struct normalize_step *step, const char *text, size_t len)
{
    switch (step->kind) {
    case NORM_NFC: case NORM_NFD: case NORM_NFKC: case NORM_NFKD: return is_ascii(text, len);
    case NORM_REPLACE: return !step->pattern_len || !memmem(text, len, step->pattern, step->pattern_len);
    case NORM_PREPEND: return !len;
    default: return false;
    }
}

static int run_step(const struct normalize_step *step, const char *text, size_t len, struct buf *out)
{
    switch (step->kind) {
    case NORM_LOWERCASE: lowercase(text, len, out); break;
    case NORM_REPLACE: replace(step, text, len, out); break;
    case NORM_PREPEND:
        buf_append(out, step->content, step->content_len);
        buf_append(out, text, len);
        break;
    default: return unicode_step(step->kind, text, len, out);
    }
    return out->failed ? ERR_NO_MEMORY : 0;
}

int normalize_run(const struct normalizer *normalizer, struct normalize_scratch *scratch, const char *text, size_t len,
                  const char **out, size_t *out_len, struct err *err)
{
    struct buf *spare = &scratch->a, *used = &scratch->b;

    for (int i = 0; i < normalizer->n_steps; i++) {
        const struct normalize_step *step = &normalizer->steps[i];
        if (step->kind == NORM_STRIP) {
            strip(step, &text, &len);
            continue;
        }
        if (is_identity(step, text, len)) continue;
        buf_reset(spare);
        if (run_step(step, text, len, spare) < 0)
            return err_set(err, ERR_NO_MEMORY, "no memory to normalize %zu bytes", len);
        struct buf *done = spare;
        spare = used;
        used = done;
        text = done->data ? done->data : "";
        len = done->len;
    }
    *out = text;
    *out_len = len;
    return 0;
}

void normalize_scratch_release(struct normalize_scratch *scratch)
{
    buf_release(&scratch->a);
    buf_release(&scratch->b);
}
