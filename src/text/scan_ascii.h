/* scan_ascii.h - hand-written matchers for the patterns that most models split with.
 * A matcher answers exactly what the regex answers at a position as long as only ASCII decides, and 0 when a byte above
 * 0x7f could: then the regex is asked. The tests compare the two on random text. Thread: pure functions. */
#ifndef SLUICE_TEXT_SCAN_ASCII_H
#define SLUICE_TEXT_SCAN_ASCII_H

#include <stddef.h>

/* The same strings as in tokenizer.json files; also used for GGUF names. */
#define PATTERN_GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define PATTERN_CL100K(digits)                                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define PATTERN_LLAMA3 PATTERN_CL100K("\\p{N}{1,3}")
#define PATTERN_QWEN2 PATTERN_CL100K("\\p{N}")

/* The matcher that equals this pattern, or NULL. */
size_t (*scan_ascii_for(const char *pattern, size_t len))(const char *text, size_t len, size_t at);

#endif
