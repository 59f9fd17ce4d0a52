#include "pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "scan_ascii.h"

enum {
    JIT_STACK_START = 32 << 10,
    JIT_STACK_MAX = 8 << 20,
    MATCH_LIMIT = 200 << 20,      /* steps of one match: above what 64 MiB of one class of character can need */
    DEPTH_LIMIT = 100000,
    HEAP_LIMIT_KIB = 512 << 10,
};

/* ---- Oniguruma to PCRE2 ---- */
struct translator { const char *text; size_t len, at; bool in_class; struct buf *out; struct err *err; };

static int refuse(struct translator *t, const char *what)
{
    return err_set(t->err, ERR_MODEL_FILE, "tokenizer: pattern with %s at byte %zu is not supported", what, t->at);
}

static void put_class(struct translator *t, const char *inside, bool negated)
{
    if (t->in_class)
        buf_puts(t->out, inside);
    else
        buf_printf(t->out, "[%s%s]", negated ? "^" : "", inside);
}

/* \p{Han} is Script=Han for Oniguruma and Script_Extensions=Han for PCRE2 from 10.40 on. */
static int translate_property(struct translator *t)
{
    const char *start = t->text + t->at;
    const char *close = memchr(start, '}', t->len - t->at);

    if (t->len - t->at < 4 || start[2] != '{' || !close) return refuse(t, "a property without braces");
    const char *name = start + 3;
    bool negated = *name == '^';
    name += negated;
    size_t len = (size_t)(close - name);
    if (!len || len > 32) return refuse(t, "an unknown property");
    for (size_t i = 0; i < len; i++)
        if (!((name[i] | 32) >= 'a' && (name[i] | 32) <= 'z') && name[i] != '_')
            return refuse(t, "an unknown property");
    buf_printf(t->out, "\\%c{%s%s%.*s}", start[1], negated ? "^" : "", len > 2 ? "sc:" : "", (int)len, name);
    t->at += (size_t)(close - start) + 1;
    return 0;
}

static int translate_escape(struct translator *t)
{
    static const char space[] = "\\x{9}-\\x{d}\\x{85}\\p{Z}", word[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

    if (t->at + 1 >= t->len) return refuse(t, "a lone backslash");
    char c = t->text[t->at + 1];
    if (c == 'p' || c == 'P') return translate_property(t);
    if (strchr("SWDHhRXCGKkgQEZzABb0123456789", c) && c != '\0' && (t->in_class || !strchr("SWDABbZz", c)))
        return refuse(t, "an escape of unclear meaning");
    if (c == 's' || c == 'S')
        put_class(t, space, c == 'S');
    else if (c == 'w' || c == 'W')
        put_class(t, word, c == 'W');
    else if (c == 'd' || c == 'D')
        put_class(t, "\\p{Nd}", c == 'D');
    else if (c == 'u') {
        if (t->len - t->at < 6) return refuse(t, "a short \\u");
        buf_printf(t->out, "\\x{%.4s}", t->text + t->at + 2);
        t->at += 4;
    } else
        buf_append(t->out, t->text + t->at, 2);
    t->at += 2;
    return 0;
}

/* One unescaped character. In a class Oniguruma knows nested sets and intersections; PCRE2 would read them as
 * literals. */
static int translate_plain(struct translator *t)
{
    char c = t->text[t->at];

    if (t->in_class) {
        if (c == '[') return refuse(t, "a nested character class");
        if (c == '&' && t->at + 1 < t->len && t->text[t->at + 1] == '&') return refuse(t, "a class intersection");
        if (c == ']') t->in_class = false;
    } else if (c == '[') {
        t->in_class = true;
        buf_putc(t->out, '[');
        t->at++;
        if (t->at < t->len && t->text[t->at] == '^') {
            buf_putc(t->out, '^');
            t->at++;
        }
        if (t->at < t->len && t->text[t->at] == ']') return refuse(t, "a class that starts with ]");
        return 0;
    } else if (c == '}' && t->at + 1 < t->len && t->text[t->at + 1] == '+')
        return refuse(t, "an interval followed by +");
    buf_putc(t->out, c);
    t->at++;
    return 0;
}

int pretok_translate(const char *pattern, size_t len, struct buf *out, struct err *err)
{
    struct translator t = { .text = pattern, .len = len, .out = out, .err = err };
    int rc = 0;

    while (!rc && t.at < len) rc = pattern[t.at] == '\\' ? translate_escape(&t) : translate_plain(&t);
    if (!rc && t.in_class) rc = refuse(&t, "an open character class");
    if (!rc && out->failed) rc = err_set(err, ERR_NO_MEMORY, "no memory for a pattern of %zu bytes", len);
    return rc;
}

/* ---- building ---- */
int pretok_add(struct pretokenizer *pre, const struct pretok_stage *stage, struct err *err)
{
    if (pre->n_stages == PRETOK_MAX_STAGES)
        return err_set(err, ERR_MODEL_FILE, "tokenizer: more than %d pre-tokenizer stages", PRETOK_MAX_STAGES);
    pre->stages[pre->n_stages++] = *stage;
    return 0;
}

static int compile(pcre2_code **out, const struct buf *pattern, struct err *err)
{
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int code = 0;
    PCRE2_SIZE offset = 0;

    *out = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->len, options, &code, &offset, NULL);
    if (!*out)
        return err_set(err, ERR_MODEL_FILE, "tokenizer: pattern does not compile at byte %zu (error %d)",
                       (size_t)offset, code);
    pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);   /* without JIT the interpreter does the same, slower */
    return 0;
}

int pretok_add_regex(struct pretokenizer *pre, const char *pattern, size_t len, enum split_behavior behavior,
                     bool invert, struct err *err)
{
    struct pretok_stage stage = { .kind = PRETOK_SPLIT, .behavior = behavior, .invert = invert };
    struct buf translated = BUF_INIT;
    int rc;

    if (!len || len > PRETOK_PATTERN_MAX)
        return err_set(err, ERR_MODEL_FILE, "tokenizer: a pattern of %zu bytes, at most %d", len, PRETOK_PATTERN_MAX);
    if ((rc = pretok_translate(pattern, len, &translated, err)) < 0) goto out;
    if ((rc = compile(&stage.regex, &translated, err)) < 0) goto out;
    stage.scan = scan_ascii_for(pattern, len);
    if ((rc = pretok_add(pre, &stage, err)) < 0) pcre2_code_free(stage.regex);
out:
    buf_release(&translated);
    return rc;
}

void pretokenizer_release(struct pretokenizer *pre)
{
    for (int i = 0; i < pre->n_stages; i++) pcre2_code_free(pre->stages[i].regex);
    *pre = (struct pretokenizer){ 0 };
}

/* ---- running ---- */
struct pretok_scratch {
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
    pcre2_match_data *match[PRETOK_MAX_STAGES];
    struct buf text[PRETOK_MAX_STAGES];
};

int pretok_scratch_new(struct pretok_scratch **out, const struct pretokenizer *pre, struct err *err)
{
    struct pretok_scratch *scratch = calloc(1, sizeof *scratch);
    bool failed = !scratch;

    for (int i = 0; !failed && i < pre->n_stages; i++) {
        if (!pre->stages[i].regex) continue;
        scratch->match[i] = pcre2_match_data_create(1, NULL);
        failed = !scratch->match[i];
    }
    if (!failed) {
        scratch->context = pcre2_match_context_create(NULL);
        scratch->jit_stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, NULL);
        failed = !scratch->context || !scratch->jit_stack;
    }
    if (failed) {
        pretok_scratch_free(scratch);
        return err_set(err, ERR_NO_MEMORY, "no memory to split text");
    }
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->jit_stack);
    pcre2_set_match_limit(scratch->context, MATCH_LIMIT);
    pcre2_set_depth_limit(scratch->context, DEPTH_LIMIT);
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    *out = scratch;
    return 0;
}

void pretok_scratch_free(struct pretok_scratch *scratch)
{
    if (!scratch) return;
    for (int i = 0; i < PRETOK_MAX_STAGES; i++) {
        pcre2_match_data_free(scratch->match[i]);
        buf_release(&scratch->text[i]);
    }
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->jit_stack);
    free(scratch);
}

struct run {
    const struct pretokenizer *pre;
    struct pretok_scratch *scratch;
    pretok_emit emit;
    void *arg;
    struct err *err;
};

/* A piece on its way through stage `index`; pending is what the behavior may still join to the next span. */
struct piece {
    struct run *run;
    const struct pretok_stage *stage;
    int index;
    const char *text;
    size_t len;
    bool at_origin;
    bool has_pending, pending_match, last_match;
    size_t pending_start, pending_end;
};

static int run_stage(struct run *run, int index, const char *text, size_t len, bool at_origin);

/* 1 with the next match at or after `from`, 0 if there is none. */
static int find_match(struct piece *piece, size_t from, size_t *start, size_t *end)
{
    const struct pretok_stage *stage = piece->stage;

    if (!stage->regex) {
        const char *hit = memmem(piece->text + from, piece->len - from, stage->literal, stage->literal_len);
        if (!hit) return 0;
        *start = (size_t)(hit - piece->text);
        *end = *start + stage->literal_len;
        return 1;
    }
    if (stage->scan && (*end = stage->scan(piece->text, piece->len, from)) > 0) {
        *start = from;
        *end += from;
        return 1;
    }
    pcre2_match_data *match = piece->run->scratch->match[piece->index];
    int rc = pcre2_match(stage->regex, (PCRE2_SPTR)piece->text, piece->len, from, PCRE2_NO_UTF_CHECK, match,
                         piece->run->scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(stage->regex, (PCRE2_SPTR)piece->text, piece->len, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         match, piece->run->scratch->context);
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc == PCRE2_ERROR_NOMEMORY) return err_set(piece->run->err, ERR_NO_MEMORY, "no memory to split text");
    if (rc < 0) return err_set(piece->run->err, ERR_LIMIT, "text cannot be split within the match limit");
    const PCRE2_SIZE *vector = pcre2_get_ovector_pointer(match);
    *start = vector[0];
    *end = vector[1] > vector[0] ? vector[1] : vector[0];
    return 1;
}

static int pass_on(struct piece *piece, size_t start, size_t end)
{
    if (start == end) return 0;
    return run_stage(piece->run, piece->index + 1, piece->text + start, end - start, piece->at_origin && !start);
}

static int flush_pending(struct piece *piece)
{
    if (!piece->has_pending) return 0;
    piece->has_pending = false;
    return pass_on(piece, piece->pending_start, piece->pending_end);
}

static int set_pending(struct piece *piece, size_t start, size_t end, bool is_match)
{
    int rc = flush_pending(piece);

    piece->has_pending = true;
    piece->pending_start = start;
    piece->pending_end = end;
    piece->pending_match = is_match;
    return rc;
}

/* One span in order, matching or between matches. */
static int on_span(struct piece *piece, size_t start, size_t end, bool is_match)
{
    bool join = false;

    switch (piece->stage->behavior) {
    case SPLIT_ISOLATED: return pass_on(piece, start, end);
    case SPLIT_REMOVED: return is_match ? 0 : pass_on(piece, start, end);
    case SPLIT_CONTIGUOUS: join = piece->has_pending && is_match == piece->last_match; break;
    case SPLIT_MERGED_WITH_PREVIOUS: join = piece->has_pending && is_match && !piece->last_match; break;
    case SPLIT_MERGED_WITH_NEXT: join = piece->has_pending && piece->pending_match && !is_match; break;
    }
    piece->last_match = is_match;
    if (!join) return set_pending(piece, start, end, is_match);
    piece->pending_end = end;
    piece->pending_match = is_match;
    return 0;
}

static size_t next_char(const char *text, size_t len, size_t at)
{
    for (at++; at < len && ((unsigned char)text[at] & 0xc0) == 0x80;) at++;
    return at;
}

static int split(struct piece *piece)
{
    size_t prev = 0, from = 0, start = 0, end = 0;
    bool invert = piece->stage->invert;
    int rc = 0, found;

    while (!rc && from < piece->len && (found = find_match(piece, from, &start, &end)) != 0) {
        if (found < 0) return found;
        if (end == start) {                       /* an empty match cuts nothing */
            from = next_char(piece->text, piece->len, start);
            continue;
        }
        if (start > prev) rc = on_span(piece, prev, start, invert);
        if (!rc) rc = on_span(piece, start, end, !invert);
        prev = from = end;
    }
    if (!rc && prev < piece->len) rc = on_span(piece, prev, piece->len, invert);
    return rc ? rc : flush_pending(piece);
}

static int out_of_memory(struct run *run, size_t len)
{
    return err_set(run->err, ERR_NO_MEMORY, "no memory to split %zu bytes", len);
}

static int prefix_space(struct run *run, int index, const char *text, size_t len, bool at_origin)
{
    struct buf *buf = &run->scratch->text[index];

    if (text[0] == ' ') return run_stage(run, index + 1, text, len, at_origin);
    buf_reset(buf);
    buf_putc(buf, ' ');
    buf_append(buf, text, len);
    if (buf->failed) return out_of_memory(run, len);
    return run_stage(run, index + 1, buf->data, buf->len, at_origin);
}

static int metaspace(struct run *run, int index, const char *text, size_t len, bool at_origin)
{
    const struct pretok_stage *stage = &run->pre->stages[index];
    struct buf *buf = &run->scratch->text[index];
    bool marked = text[0] == ' ' || (len >= stage->literal_len && !memcmp(text, stage->literal, stage->literal_len));
    bool prepend = stage->prepend == PREPEND_ALWAYS || (stage->prepend == PREPEND_FIRST && at_origin);

    buf_reset(buf);
    if (prepend && !marked) buf_append(buf, stage->literal, stage->literal_len);
    for (size_t at = 0; at < len;) {
        const char *space = memchr(text + at, ' ', len - at);
        size_t end = space ? (size_t)(space - text) : len;
        buf_append(buf, text + at, end - at);
        if (space) buf_append(buf, stage->literal, stage->literal_len);
        at = space ? end + 1 : len;
    }
    if (buf->failed) return out_of_memory(run, len);
    return run_stage(run, index + 1, buf->data, buf->len, at_origin);
}

static int run_stage(struct run *run, int index, const char *text, size_t len, bool at_origin)
{
    if (!len) return 0;
    if (index == run->pre->n_stages) return run->emit(run->arg, text, len);
    const struct pretok_stage *stage = &run->pre->stages[index];
    if (stage->kind == PRETOK_PREFIX_SPACE) return prefix_space(run, index, text, len, at_origin);
    if (stage->kind == PRETOK_METASPACE) return metaspace(run, index, text, len, at_origin);
    struct piece piece = {.run = run, .stage = stage, .index = index, .text = text, .len = len, .at_origin = at_origin};
    return split(&piece);
}

int pretokenize_run(const struct pretokenizer *pre, struct pretok_scratch *scratch, const char *text, size_t len,
                    bool at_origin, pretok_emit emit, void *arg, struct err *err)
{
    struct run run = { pre, scratch, emit, arg, err };

    return run_stage(&run, 0, text, len, at_origin);
}
