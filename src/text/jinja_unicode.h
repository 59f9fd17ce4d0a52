/* jinja_unicode.h - what Python's str knows about code points. Thread: any, stateless. */
#ifndef TEXT_JINJA_UNICODE_H
#define TEXT_JINJA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Next code point; *len its bytes. A byte that is no UTF-8 counts as one code point of its own value. */
uint32_t jcp_next(const char *text, size_t len, size_t *cp_len);
bool jcp_space(uint32_t cp);             /* str.isspace, str.strip() */
bool jcp_line_end(uint32_t cp);          /* str.splitlines */
bool jcp_printable(uint32_t cp);         /* str.isprintable: decides escapes in repr */
bool jcp_alpha(uint32_t cp);
bool jcp_digit(uint32_t cp);
bool jcp_decimal(uint32_t cp);
bool jcp_numeric(uint32_t cp);
bool jcp_upper(uint32_t cp);
bool jcp_lower(uint32_t cp);
uint32_t jcp_to_upper(uint32_t cp);
uint32_t jcp_to_lower(uint32_t cp);
uint32_t jcp_to_title(uint32_t cp);
/* Offsets of the text without Unicode white space at the ends. */
size_t jtext_lstrip(const char *text, size_t len);               /* first kept byte */
size_t jtext_rstrip(const char *text, size_t len);               /* end of the kept bytes */

#endif
