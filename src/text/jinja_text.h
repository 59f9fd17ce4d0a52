/* jinja_text.h - operations on strings that filters (jinja_filters.c) and methods (jinja_methods.c) share. */
#ifndef TEXT_JINJA_TEXT_H
#define TEXT_JINJA_TEXT_H

#include "jinja_value.h"

enum jstrip { JSTRIP_LEFT = 1, JSTRIP_RIGHT = 2, JSTRIP_BOTH = 3 };
/* chars NULL: Unicode white space. */
struct jval jtext_strip(struct jrt *rt, const struct jstr *s, const struct jstr *chars, int sides);
struct jval jtext_upper(struct jrt *rt, const struct jstr *s);
struct jval jtext_lower(struct jrt *rt, const struct jstr *s);
struct jval jtext_capitalize(struct jrt *rt, const struct jstr *s);
struct jval jtext_title(struct jrt *rt, const struct jstr *s);             /* str.title: after any non-letter */
struct jval jtext_replace(struct jrt *rt, const struct jstr *s, const struct jstr *old, const struct jstr *new_text,
                          int64_t count);
struct jval jtext_join(struct jrt *rt, const struct jstr *sep, const struct jlist *items, bool only_strings);
struct jval jtext_split(struct jrt *rt, const struct jstr *s, const struct jstr *sep /* or NULL: white space */,
                        int64_t max);
struct jval jtext_rsplit(struct jrt *rt, const struct jstr *s, const struct jstr *sep, int64_t max);
struct jval jtext_splitlines(struct jrt *rt, const struct jstr *s, bool keep_ends);
struct jval jtext_reverse(struct jrt *rt, const struct jstr *s);

#endif
