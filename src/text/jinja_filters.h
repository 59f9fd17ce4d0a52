/* jinja_filters.h - what jinja_filters.c and jinja_filters_seq.c share. */
#ifndef TEXT_JINJA_FILTERS_H
#define TEXT_JINJA_FILTERS_H

#include "jinja_ast.h"

#define FILTER(name)                                                                                                   \
    static struct jval f_##name(struct jrt *rt, struct jval v, const struct jval *argv, const struct jargs *args)
#define FILTER_CALL(name, value) f_##name(rt, value, NULL, NULL)
#define JUNUSED (void)rt, (void)v, (void)argv, (void)args

bool jfilter_int(struct jrt *rt, struct jval v, int64_t *out); /* an argument that may be missing; false: failed */
bool jfilter_flag(struct jval v, bool fallback);
const struct jdef *jfilter_seq_find(const char *name);

#endif
