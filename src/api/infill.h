/* infill.h - `suffix`: a prompt and what follows it, with the model's own fill-in-the-middle tokens between them.
 * The markers are found by their names in the vocabulary; the text behind is never parsed for special tokens. Thread: any. */
#ifndef SLUICE_API_INFILL_H
#define SLUICE_API_INFILL_H

#include <sluice/err.h>
#include <sluice/text.h>

enum { INFILL_SEGMENTS = 5 };

/* Borrowed from before, behind and constants. ERR_UNSUPPORTED when the model has no such tokens. */
int infill_segments(const struct tokenizer *tok, const struct text_segment *before, const struct text_segment *behind,
                    struct text_segment out[INFILL_SEGMENTS], struct err *err);

#endif
