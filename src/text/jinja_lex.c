/* jinja_lex.c - template source -> tokens, with jinja2's white space rules for trim_blocks and lstrip_blocks on.
 * Three states: text outside of tags, inside {{ }}, inside {% %}. Comments and {% raw %} never leave this file.
 * A tag's `-` strips all white space beside it; without a sign a block's tag eats the blanks before it on its line and
 * one newline after it; `+` keeps both. */
#include "jinja_ast.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "jinja_unicode.h"

struct lexer {
    struct jtokens *tokens;
    struct arena *arena;
    struct err *err;
    const char *src;
    size_t len, pos;
    int line;
    bool line_starting;      /* what was consumed last ended with a newline, or nothing was */
    int rc;
};

static int lex_fail(struct lexer *lex, int code, const char *what)
{
    if (!lex->rc) lex->rc = err_set(lex->err, code, "chat template line %d: %s", lex->line, what);
    return lex->rc;
}

static struct jtok *push(struct lexer *lex, uint8_t kind)
{
    struct jtokens *toks = lex->tokens;

    if (toks->n == toks->cap) {
        size_t cap = toks->cap ? toks->cap * 2 : 256;
        if (cap > JINJA_MAX_TOKENS) { lex_fail(lex, ERR_TEMPLATE, "too many tokens"); return NULL; }
        struct jtok *items = arena_array(lex->arena, cap, sizeof(*items));
        if (!items) { lex_fail(lex, ERR_NO_MEMORY, "out of memory"); return NULL; }
        if (toks->n) memcpy(items, toks->items, toks->n * sizeof(*items));
        toks->items = items;
        toks->cap = cap;
    }
    struct jtok *tok = &toks->items[toks->n++];
    *tok = (struct jtok){ .kind = kind, .line = lex->line };
    return tok;
}

static void advance(struct lexer *lex, size_t to)
{
    for (size_t i = lex->pos; i < to; i++)
        lex->line += lex->src[i] == '\n';
    if (to > lex->pos) lex->line_starting = lex->src[to - 1] == '\n';
    lex->pos = to;
}

static bool at(const struct lexer *lex, size_t pos, const char *text)
{
    size_t n = strlen(text);

    return pos <= lex->len && lex->len - pos >= n && memcmp(lex->src + pos, text, n) == 0;
}

static size_t skip_space(const struct lexer *lex, size_t pos)
{
    return pos + jtext_lstrip(lex->src + pos, lex->len - pos);
}

/* End of a closing tag `close` at pos with its sign and what it eats behind; 0 if there is none. */
static size_t tag_end(const struct lexer *lex, size_t pos, const char *close, bool plus_allowed, bool eats_newline)
{
    if (at(lex, pos, close)) {
        pos += 2;
        return eats_newline && at(lex, pos, "\n") ? pos + 1 : pos;
    }
    if (plus_allowed && at(lex, pos, "+") && at(lex, pos + 1, close)) return pos + 3;
    if (at(lex, pos, "-") && at(lex, pos + 1, close)) return skip_space(lex, pos + 3);
    return 0;
}

/* Text from pos to end, which stands before a tag with this sign. */
static void emit_data(struct lexer *lex, size_t end, char sign, bool lstrip)
{
    const char *text = lex->src + lex->pos;
    size_t len = end - lex->pos;

    if (sign == '-') {
        len = jtext_rstrip(text, len);
    } else if (sign != '+' && lstrip) {
        size_t line_at = len;
        while (line_at > 0 && text[line_at - 1] != '\n') line_at--;
        if ((line_at > 0 || lex->line_starting) && jtext_lstrip(text + line_at, len - line_at) == len - line_at)
            len = line_at;
    }
    if (len > 0) {
        struct jtok *tok = push(lex, JT_DATA);
        if (tok) {
            tok->text = text;
            tok->len = len;
        }
    }
    advance(lex, end);
}

static size_t after_sign(const struct lexer *lex, size_t pos, char *sign)
{
    *sign = pos < lex->len && (lex->src[pos] == '-' || lex->src[pos] == '+') ? lex->src[pos] : 0;
    return *sign ? pos + 1 : pos;
}

/* Is there `{%[-+] word [-]%}` at pos? Returns its end or 0. */
static size_t word_tag(const struct lexer *lex, size_t pos, const char *word, bool is_end, char *sign)
{
    if (!at(lex, pos, "{%")) return 0;
    pos = skip_space(lex, after_sign(lex, pos + 2, sign));
    if (!at(lex, pos, word)) return 0;
    return tag_end(lex, skip_space(lex, pos + strlen(word)), "%}", is_end, is_end);
}

static void lex_raw(struct lexer *lex)
{
    for (size_t pos = lex->pos; pos < lex->len; pos++) {
        char sign = 0;
        size_t end = word_tag(lex, pos, "endraw", true, &sign);
        if (end) {
            emit_data(lex, pos, sign, true);
            advance(lex, end);
            return;
        }
    }
    lex_fail(lex, ERR_TEMPLATE, "Missing end of raw directive");
}

static void lex_comment(struct lexer *lex)
{
    for (size_t pos = lex->pos; pos < lex->len; pos++) {
        size_t end = tag_end(lex, pos, "#}", true, true);
        if (end) {
            advance(lex, end);
            return;
        }
    }
    lex_fail(lex, ERR_TEMPLATE, "Missing end of comment tag");
}

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || (c & 0x80);
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Digits with single underscores between them; returns the end. */
static size_t digits_end(const struct lexer *lex, size_t pos)
{
    while (pos < lex->len && (is_digit(lex->src[pos]) ||
           (lex->src[pos] == '_' && pos + 1 < lex->len && is_digit(lex->src[pos + 1])))) pos++;
    return pos;
}

static size_t float_end(const struct lexer *lex)
{
    size_t pos = digits_end(lex, lex->pos), end = 0;

    if (lex->pos > 0 && lex->src[lex->pos - 1] == '.') return 0;
    if (pos + 1 < lex->len && lex->src[pos] == '.' && is_digit(lex->src[pos + 1])) end = pos = digits_end(lex, pos + 1);
    if (pos < lex->len && (lex->src[pos] == 'e' || lex->src[pos] == 'E')) {
        size_t exp = pos + 1;
        if (exp < lex->len && (lex->src[exp] == '+' || lex->src[exp] == '-')) exp++;
        if (exp < lex->len && is_digit(lex->src[exp])) end = digits_end(lex, exp);
    }
    return end;
}

static int digit_value(char c)
{
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

static void lex_int(struct lexer *lex)
{
    size_t pos = lex->pos, end;
    int base = 10;
    int64_t value = 0;

    if (lex->src[pos] == '0' && pos + 1 < lex->len) {
        char c = lex->src[pos + 1] | 0x20;
        base = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 10;
    }
    if (base != 10) pos += 2;
    for (end = pos; end < lex->len; end++) {
        bool gap = lex->src[end] == '_' && end + 1 < lex->len && digit_value(lex->src[end + 1]) < base;
        if (!gap && digit_value(lex->src[end]) >= base) break;
        if (gap) continue;
        if (__builtin_mul_overflow(value, base, &value) ||
            __builtin_add_overflow(value, digit_value(lex->src[end]), &value)) {
            lex_fail(lex, ERR_TEMPLATE, "integer beyond 64 bits");
            return;
        }
    }
    if (end == pos) { lex_fail(lex, ERR_TEMPLATE, "malformed number"); return; }
    if (base == 10 && lex->src[pos] == '0' && value != 0) {
        lex_fail(lex, ERR_TEMPLATE, "malformed number");
        return;
    }
    struct jtok *tok = push(lex, JT_INT);
    if (tok) tok->i = value;
    advance(lex, end);
}

static void lex_float(struct lexer *lex, size_t end)
{
    char digits[400];
    size_t n = 0;

    for (size_t i = lex->pos; i < end && n + 1 < sizeof(digits); i++)
        if (lex->src[i] != '_') digits[n++] = lex->src[i];
    digits[n] = 0;
    if (n + 1 >= sizeof(digits)) { lex_fail(lex, ERR_TEMPLATE, "number too long"); return; }
    struct jtok *tok = push(lex, JT_FLOAT);
    if (tok) tok->f = strtod(digits, NULL);
    advance(lex, end);
}

/* \xhh, \uhhhh, \Uhhhhhhhh and octal; returns bytes of the escape read after the backslash, 0 if malformed. */
static size_t number_escape(const char *text, size_t len, uint32_t *cp)
{
    size_t want = text[0] == 'x' ? 2 : text[0] == 'u' ? 4 : text[0] == 'U' ? 8 : 0;

    *cp = 0;
    if (want) {
        if (len < 1 + want) return 0;
        for (size_t i = 1; i <= want; i++) {
            int d = digit_value(text[i]);
            if (d > 15) return 0;
            *cp = *cp << 4 | (uint32_t)d;
        }
        return 1 + want;
    }
    size_t n = 0;
    while (n < 3 && n < len && text[n] >= '0' && text[n] <= '7') *cp = *cp << 3 | (uint32_t)(text[n++] - '0');
    return n;
}

/* Decodes one escape after the backslash into out; returns bytes read, 0 on a malformed one. */
static size_t decode_escape(const char *text, size_t len, char out[4], size_t *out_len)
{
    static const char plain[] = "\\'\"abfnrtv", decoded[] = "\\'\"\a\b\f\n\r\t\v";
    const char *hit = memchr(plain, text[0], sizeof(plain) - 1);
    uint32_t cp;

    *out_len = 0;
    if (text[0] == '\n') return 1;
    if (hit) {
        out[0] = decoded[hit - plain];
        *out_len = 1;
        return 1;
    }
    if (text[0] == 'x' || text[0] == 'u' || text[0] == 'U' || (text[0] >= '0' && text[0] <= '7')) {
        size_t n = number_escape(text, len, &cp);
        if (!n || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) return 0;
        *out_len = (size_t)utf8_encode(cp, out);
        return n;
    }
    if (text[0] == 'N') return 0;
    out[0] = '\\';                               /* unknown: the backslash stays, the character is read again */
    *out_len = 1;
    return SIZE_MAX;
}

static void lex_string(struct lexer *lex)
{
    char quote = lex->src[lex->pos];
    size_t start = lex->pos + 1, end = start, n = 0;

    while (end < lex->len && lex->src[end] != quote) end += lex->src[end] == '\\' ? 2 : 1;
    if (end >= lex->len) { lex_fail(lex, ERR_TEMPLATE, "string is not closed"); return; }
    char *text = arena_alloc(lex->arena, end - start + 1);
    struct jtok *tok = text ? push(lex, JT_STRING) : NULL;
    if (!text) lex_fail(lex, ERR_NO_MEMORY, "out of memory");
    if (!tok) return;
    for (size_t i = start; i < end;) {
        if (lex->src[i] != '\\') {
            text[n++] = lex->src[i++];
            continue;
        }
        char out[4];
        size_t out_len, used = decode_escape(lex->src + i + 1, end - i - 1, out, &out_len);
        if (!used) { lex_fail(lex, ERR_TEMPLATE, "bad escape in a string"); return; }
        memcpy(text + n, out, out_len);
        n += out_len;
        i += used == SIZE_MAX ? 1 : 1 + used;
    }
    tok->text = text;
    tok->len = n;
    advance(lex, end + 1);
}

static const struct { char text[3]; uint8_t op; } operators[] = {
    { "//", JOP_FLOORDIV }, { "**", JOP_POW }, { "==", JOP_EQ }, { "!=", JOP_NE }, { ">=", JOP_GE }, { "<=", JOP_LE },
    { "+", JOP_ADD }, { "-", JOP_SUB }, { "/", JOP_DIV }, { "*", JOP_MUL }, { "%", JOP_MOD }, { "~", JOP_TILDE },
    { "[", JOP_LBRACKET }, { "]", JOP_RBRACKET }, { "(", JOP_LPAREN }, { ")", JOP_RPAREN }, { "{", JOP_LBRACE },
    { "}", JOP_RBRACE }, { ">", JOP_GT }, { "<", JOP_LT }, { "=", JOP_ASSIGN }, { ".", JOP_DOT }, { ":", JOP_COLON },
    { "|", JOP_PIPE }, { ",", JOP_COMMA }, { ";", JOP_SEMICOLON },
};

/* Brackets open inside the tag, as a stack of their closing operators: "}}" closes a tag only when none is open. */
struct brackets { uint8_t open[JINJA_MAX_NEST]; int n; };

static void lex_operator(struct lexer *lex, struct brackets *brackets)
{
    for (size_t i = 0; i < sizeof(operators) / sizeof(operators[0]); i++) {
        if (!at(lex, lex->pos, operators[i].text)) continue;
        uint8_t op = operators[i].op;
        if (op == JOP_LBRACKET || op == JOP_LPAREN || op == JOP_LBRACE) {
            if (brackets->n == JINJA_MAX_NEST) { lex_fail(lex, ERR_TEMPLATE, "brackets nested too deep"); return; }
            brackets->open[brackets->n++] = op + 1;
        } else if (op == JOP_RBRACKET || op == JOP_RPAREN || op == JOP_RBRACE) {
            if (brackets->n == 0 || brackets->open[--brackets->n] != op) {
                lex_fail(lex, ERR_TEMPLATE, "unbalanced bracket");
                return;
            }
        }
        struct jtok *tok = push(lex, JT_OP);
        if (tok) tok->op = op;
        advance(lex, lex->pos + strlen(operators[i].text));
        return;
    }
    lex_fail(lex, ERR_TEMPLATE, "unexpected character in a tag");
}

static void lex_tag(struct lexer *lex, bool is_block)
{
    struct brackets brackets = { .n = 0 };

    while (!lex->rc) {
        size_t end = brackets.n ? 0 : tag_end(lex, lex->pos, is_block ? "%}" : "}}", is_block, is_block);
        if (end) {
            push(lex, is_block ? JT_BLOCK_END : JT_VAR_END);
            advance(lex, end);
            return;
        }
        if (lex->pos >= lex->len) { lex_fail(lex, ERR_TEMPLATE, "tag is not closed"); return; }
        size_t space = skip_space(lex, lex->pos);
        char c = lex->src[lex->pos];
        if (space > lex->pos) {
            advance(lex, space);
        } else if (is_digit(c)) {
            size_t number = float_end(lex);
            if (number) lex_float(lex, number);
            else lex_int(lex);
        } else if (is_name_byte(c)) {
            size_t stop = lex->pos;
            while (stop < lex->len && is_name_byte(lex->src[stop])) stop++;
            struct jtok *tok = push(lex, JT_NAME);
            if (tok) {
                tok->text = lex->src + lex->pos;
                tok->len = stop - lex->pos;
            }
            advance(lex, stop);
        } else if (c == '\'' || c == '"') {
            lex_string(lex);
        } else {
            lex_operator(lex, &brackets);
        }
    }
}

/* Text up to the next tag, then the tag. */
static void lex_root(struct lexer *lex)
{
    size_t tag = lex->pos;
    char sign = 0;

    while (tag < lex->len &&
           !(lex->src[tag] == '{' && (at(lex, tag, "{{") || at(lex, tag, "{%") || at(lex, tag, "{#"))))
        tag++;
    if (tag >= lex->len) {
        emit_data(lex, lex->len, '+', false);
        return;
    }
    size_t raw_end = word_tag(lex, tag, "raw", false, &sign);
    char open = lex->src[tag + 1];
    size_t inside = after_sign(lex, tag + 2, &sign);
    emit_data(lex, tag, sign, open != '{');
    if (raw_end) {
        advance(lex, raw_end);
        lex_raw(lex);
        return;
    }
    if (open != '#') push(lex, open == '%' ? JT_BLOCK_BEGIN : JT_VAR_BEGIN);
    advance(lex, inside);
    if (open == '#') lex_comment(lex);
    else lex_tag(lex, open == '%');
}

/* \r\n and \r become \n; one newline at the very end is dropped (keep_trailing_newline is off). */
static int normalise(struct lexer *lex, const char *source, size_t len)
{
    char *text = arena_alloc(lex->arena, len + 1);
    size_t n = 0;

    if (!text) return lex_fail(lex, ERR_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < len; i++) {
        if (source[i] == '\r' && i + 1 < len && source[i + 1] == '\n') continue;
        text[n++] = source[i] == '\r' ? '\n' : source[i];
    }
    if (n > 0 && text[n - 1] == '\n') n--;
    lex->src = text;
    lex->len = n;
    return 0;
}

int jlex_run(struct jtokens *tokens, struct arena *arena, const char *source, size_t len, struct err *err)
{
    struct lexer lex = { .tokens = tokens, .arena = arena, .err = err, .line = 1, .line_starting = true };

    if (len > JINJA_MAX_SOURCE)
        return err_set(err, ERR_TEMPLATE, "chat template of %zu bytes, limit %d", len, JINJA_MAX_SOURCE);
    if (!utf8_valid(source, len)) return err_set(err, ERR_TEMPLATE, "chat template is not valid UTF-8");
    if (normalise(&lex, source, len) < 0) return lex.rc;
    while (!lex.rc && lex.pos < lex.len) lex_root(&lex);
    if (!lex.rc) push(&lex, JT_EOF);
    return lex.rc;
}
