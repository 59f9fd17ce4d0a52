/* pretokenize.h - cuts text into the words that byte-pair merging sees: a list of stages, each cutting finer.
 * Flow: normalize -> pretokenize_run -> emit(word) -> bpe_encode_word.    Thread: the list is immutable after load; a
 * pretok_scratch belongs to one encode call.                              Owns: compiled patterns.
 * Patterns are written for Oniguruma; what PCRE2 reads otherwise is rewritten (\s, \w, scripts), and what cannot be
 * (nested classes, a possessive interval) is refused at load, never guessed. Matching runs in JIT code on a stack
 * of its
 * own with a match limit. All stages are linear in the text for the patterns of the families served. */
#ifndef SLUICE_TEXT_PRETOKENIZE_H
#define SLUICE_TEXT_PRETOKENIZE_H

#include <stdbool.h>
#include <stddef.h>

#include <sluice/err.h>

#include "base/buf.h"

enum pretok_kind {
    PRETOK_SPLIT,            /* by regex or literal */
    PRETOK_PREFIX_SPACE,     /* ByteLevel add_prefix_space */
    PRETOK_METASPACE,        /* ' ' becomes the mark, one is put in front; splitting is a SPLIT after it */
};
enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS
};
enum prepend_scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pcre2_real_code_8;
/* Length of the match at text[at], 0 when only the regex can tell (anything but ASCII near by). See scan_ascii.c. */
typedef size_t (*scan_fn)(const char *text, size_t len, size_t at);

struct pretok_stage {
    enum pretok_kind kind;
    enum split_behavior behavior;
    bool invert;
    struct pcre2_real_code_8 *regex;      /* NULL: the literal */
    scan_fn scan;                         /* fast path equal to regex on ASCII, or NULL */
    const char *literal;                  /* SPLIT: what to find; METASPACE: the mark. Borrowed */
    size_t literal_len;
    enum prepend_scheme prepend;
};

enum { PRETOK_MAX_STAGES = 16, PRETOK_PATTERN_MAX = 16384 };
struct pretokenizer { struct pretok_stage stages[PRETOK_MAX_STAGES]; int n_stages; };

/* Appends a stage. ERR_MODEL_FILE: too many stages, or a pattern that cannot be compiled with the same meaning. */
int  pretok_add(struct pretokenizer *pre, const struct pretok_stage *stage, struct err *err);
int  pretok_add_regex(struct pretokenizer *pre, const char *pattern, size_t len, enum split_behavior behavior,
                      bool invert, struct err *err);
void pretokenizer_release(struct pretokenizer *pre);

/* Oniguruma syntax to PCRE2 syntax (UTF, UCP); exposed for its test. */
int  pretok_translate(const char *pattern, size_t len, struct buf *out, struct err *err);

struct pretok_scratch;                    /* match data, JIT stack, one buffer per stage */
int  pretok_scratch_new(struct pretok_scratch **out, const struct pretokenizer *pre, struct err *err);
void pretok_scratch_free(struct pretok_scratch *scratch);

/* Receives each word in order; a negative return stops the run and is returned. */
typedef int (*pretok_emit)(void *arg, const char *word, size_t len);
/* at_origin: the text starts where the whole input starts (Metaspace "first"). text is valid UTF-8 of at most 2 GiB.
 * Errors: ERR_NO_MEMORY, ERR_LIMIT (match limit), what emit returns. */
int  pretokenize_run(const struct pretokenizer *pre, struct pretok_scratch *scratch, const char *text, size_t len,
                     bool at_origin, pretok_emit emit, void *arg, struct err *err);

#endif
