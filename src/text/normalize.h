/* normalize.h - the normalizer of a tokenizer: a list of steps over a whole piece of text.
 * Thread: immutable after load, any thread; scratch belongs to the call.      Borrows: the strings of its steps.
 * Linear in the text: canonical reordering sorts each run of combining marks by counting, because the usual swapping of
 * neighbours is quadratic in a run a client chooses. Unicode as Hugging Face's normalizers know it (9). */
#ifndef SLUICE_TEXT_NORMALIZE_H
#define SLUICE_TEXT_NORMALIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

#include "base/buf.h"

enum normalize_kind {
    NORM_NFC,
    NORM_NFD,
    NORM_NFKC,
    NORM_NFKD,
    NORM_LOWERCASE,
    NORM_STRIP,
    NORM_REPLACE,
    NORM_PREPEND
};

struct normalize_step {
    enum normalize_kind kind;
    bool left, right;                 /* STRIP */
    const char *pattern, *content; /* REPLACE: each pattern becomes content; PREPEND: content before non-empty text */
    size_t pattern_len, content_len;
};

enum { NORMALIZE_MAX_STEPS = 16 };
struct normalizer { struct normalize_step steps[NORMALIZE_MAX_STEPS]; int n_steps; };
struct normalize_scratch { struct buf a, b; };

/* *out points into text (nothing to do) or into scratch, valid until the next call with it. text is valid UTF-8.
 * Errors: ERR_NO_MEMORY. */
int  normalize_run(const struct normalizer *normalizer, struct normalize_scratch *scratch, const char *text, size_t len,
                   const char **out, size_t *out_len, struct err *err);
void normalize_scratch_release(struct normalize_scratch *scratch);

/* Unicode White_Space, and the \w of Rust's regex (single_word added tokens). */
bool text_is_space(uint32_t cp);
bool text_is_word(uint32_t cp);

#endif
