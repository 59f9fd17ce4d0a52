#include "scan_ascii.h"

#include <stdbool.h>
#include <string.h>

enum class { OTHER, LETTER, DIGIT, SPACE, NEWLINE, HIGH };   /* HIGH: only the regex knows */

static const unsigned char class_of[256] = {
    ['\t'] = SPACE, ['\n'] = NEWLINE, ['\v'] = SPACE, ['\f'] = SPACE, ['\r'] = NEWLINE, [' '] = SPACE,
    ['0' ... '9'] = DIGIT, ['A' ... 'Z'] = LETTER, ['a' ... 'z'] = LETTER, [128 ... 255] = HIGH,
};

static inline enum class class_at(const char *text, size_t at) { return class_of[(unsigned char)text[at]]; }

/* End of the run of one class from at; 0 when a high byte ends it (and might belong to it). */
static inline size_t run_end(const char *text, size_t len, size_t at, enum class class)
{
    while (at < len && class_at(text, at) == class) at++;
    return at < len && class_at(text, at) == HIGH ? 0 : at;
}

static inline size_t span(size_t end, size_t at) { return end ? end - at : 0; }

/* 's 't 'm 'd 're 've 'll after the apostrophe at `at`; 0 if none of them. */
static size_t contraction(const char *text, size_t len, size_t at, char fold)
{
    if (len - at < 2) return 0;
    char a = (char)(text[at + 1] | fold);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (len - at < 3) return 0;
    char b = (char)(text[at + 2] | fold);
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* \s*[\r\n]+ (where newlines counts), \s+(?!\S), \s+ */
static size_t whitespace(const char *text, size_t len, size_t at, bool newlines)
{
    size_t end = at, after_newline = 0;

    for (; end < len; end++) {
        enum class class = class_at(text, end);
        if (class == HIGH) return 0;
        if (class == NEWLINE) after_newline = end + 1;
        if (class != SPACE && class != NEWLINE) break;
    }
    if (newlines && after_newline) return after_newline - at;
    return end == len || end - at == 1 ? end - at : end - at - 1;
}

static size_t scan_gpt2(const char *text, size_t len, size_t at)
{
    size_t from = at + (text[at] == ' ' && at + 1 < len), n;

    if (text[at] == '\'' && (n = contraction(text, len, at, 0))) return n;
    enum class class = class_at(text, from);
    switch (class) {
    case HIGH: return 0;
    case LETTER: case DIGIT: case OTHER: return span(run_end(text, len, from, class), at);
    default: return whitespace(text, len, at, false);
    }
}

static inline size_t scan_cl100k(const char *text, size_t len, size_t at, size_t max_digits)
{
    enum class class = class_at(text, at);
    enum class next = at + 1 < len ? class_at(text, at + 1) : NEWLINE;
    size_t n;

    if (class == HIGH) return 0;
    if (class == LETTER) return span(run_end(text, len, at, LETTER), at);
    if (class == DIGIT) {
        for (n = 1; n < max_digits && at + n < len && class_at(text, at + n) == DIGIT;) n++;
        return n < max_digits && at + n < len && class_at(text, at + n) == HIGH ? 0 : n;
    }
    if (next == HIGH) return 0;
    if (text[at] == '\'' && (n = contraction(text, len, at, 0x20))) return n;
    if (class != NEWLINE && next == LETTER) return span(run_end(text, len, at + 1, LETTER), at);
    if (class == OTHER || (text[at] == ' ' && next == OTHER && at + 1 < len)) {
        size_t end = run_end(text, len, at + (class != OTHER), OTHER);
        while (end && end < len && class_at(text, end) == NEWLINE) end++;
        return span(end, at);
    }
    return whitespace(text, len, at, true);
}

static size_t scan_llama3(const char *text, size_t len, size_t at) { return scan_cl100k(text, len, at, 3); }
static size_t scan_qwen2(const char *text, size_t len, size_t at) { return scan_cl100k(text, len, at, 1); }

size_t (*scan_ascii_for(const char *pattern, size_t len))(const char *text, size_t len, size_t at)
{
    static const struct { const char *pattern; size_t (*scan)(const char *, size_t, size_t); } known[] = {
        { PATTERN_GPT2, scan_gpt2 }, { PATTERN_LLAMA3, scan_llama3 }, { PATTERN_QWEN2, scan_qwen2 },
    };

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].pattern) == len && !memcmp(known[i].pattern, pattern, len)) return known[i].scan;
    return NULL;
}
