/* utf8.h - strict UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF). */
#ifndef SLUICE_BASE_UTF8_H
#define SLUICE_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes one code point from the first bytes of text. Returns its length 1..4, 0 if len is 0,
 * -1 if the bytes can never become valid, -2 if they are a valid but unfinished prefix. */
int utf8_decode(const char *text, size_t len, uint32_t *cp);
int utf8_encode(uint32_t cp, char out[4]);                    /* length 1..4 */
bool utf8_valid(const char *text, size_t len);
/* Length of the longest prefix that does not end inside a code point (invalid bytes count as complete). */
size_t utf8_complete_len(const char *text, size_t len);
size_t utf8_count(const char *text, size_t len);              /* code points of valid text */

#endif
