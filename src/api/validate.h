/* validate.h - the field policy: one row per honoured parameter {name, routes, type, min, max, where it goes}, one row
 * per known parameter that is refused because ignoring it would change the answer.
 * Order (api-contract 1.1): types of all fields, then the model, then ranges; each pass walks the same table.
 * Thread: any; the tables are const. */
#ifndef SLUICE_API_VALIDATE_H
#define SLUICE_API_VALIDATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>
#include <sluice/request.h>

struct buf;
struct cJSON;

/* Wrong JSON types of known fields: ERR_TYPE. in: enum generation_route. */
int validate_types(const struct cJSON *root, unsigned in, struct err *err);
/* Known and refused, unless null or neutral: ERR_UNSUPPORTED. */
int validate_supported(const struct cJSON *root, unsigned in, struct err *err);
/* Ranges of scalar fields; stores those that have a home in gen. Defaults must be in gen already. */
int validate_ranges(const struct cJSON *root, unsigned in, struct generation_params *gen, struct err *err);
/* \u0000 anywhere but in prompt and messages[].content: ERR_VALUE. */
int validate_no_nul(const struct cJSON *root, struct err *err);

/* ,"name":{schema} of every field of the route but `model`, for the OpenAPI document. */
void validate_put_schema(unsigned in, struct buf *out);

/* Errors with the texts of one kind. param is the field ("messages[3].role"). */
int fail_type(struct err *err, const char *param, const char *expected, const struct cJSON *found);
int fail_missing(struct err *err, const char *param);
int fail_empty_array(struct err *err, const char *param);
int fail_array_long(struct err *err, const char *param, long long max, long long found);
int fail_int_low(struct err *err, const char *param, long long min, const char *found);
int fail_int_high(struct err *err, const char *param, long long max, const char *found);

/* An integer field of [min, max]; NULL item keeps *value. Big integers answer low or high by their sign. */
int read_int(const struct cJSON *item, const char *param, int64_t min, int64_t max, int64_t *value, struct err *err);
double json_real(const struct cJSON *item);          /* of a number, integers beyond 2^53 included */
bool read_bool(const struct cJSON *root, const char *name, bool fallback);   /* type was checked before */

#endif
