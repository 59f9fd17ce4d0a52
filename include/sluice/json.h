/* json.h - the one door to JSON: a strict validator in front of cJSON, and typed look-ups behind it.
 * cJSON alone cuts strings at \u0000, takes trailing bytes, duplicate keys, bad UTF-8 and 1e999, and loses integers
 * beyond 2^53. json_parse refuses or repairs all of this before cJSON sees a byte; cJSON_Parse* is called nowhere else.
 * Repairs: \u0000 inside a string travels through cJSON as the byte pair C0 80 (illegal in the input, so unambiguous)
 * and is a NUL again in the tree, so read text with json_string, which knows the length (in keys it stays C0 80); an
 * integer beyond +-2^53 keeps its text as a cJSON_Raw item (json_int64 reads it exactly, cJSON prints it unchanged).
 * Accepts RFC 8259 UTF-8 without BOM. Look-ups are case-sensitive. Thread: none; a document belongs to its caller. */
#ifndef SLUICE_JSON_H
#define SLUICE_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

struct cJSON;

struct json_limits {
    int max_depth;          /* nested arrays and objects; 64 for requests, never more than 256 */
    size_t max_nodes;       /* values; 1 M for requests, more for tokenizer.json */
    size_t max_bytes;       /* of text */
    bool allow_nul;         /* \u0000 accepted (request bodies: fields that may not hold it check with json_has_nul) */
};
extern const struct json_limits json_limits_request;   /* 64, 1 M, 32 MiB, true */
extern const struct json_limits json_limits_file;      /* 64, 64 M, 1 GiB, true: model files */

/* *root is freed with json_free. On error: ERR_JSON, message ends "at byte N". */
int  json_parse(const char *text, size_t len, const struct json_limits *limits, struct cJSON **root, struct err *err);
void json_free(struct cJSON *root);

/* NULL when absent. json_get treats null as absent too; json_get_raw does not. Object may be NULL. */
const struct cJSON *json_get(const struct cJSON *object, const char *key);
const struct cJSON *json_get_raw(const struct cJSON *object, const char *key);

/* "string", "integer", "number", "boolean", "object", "array", "null", as in messages, without article. */
const char *json_kind(const struct cJSON *item);
bool json_is_int(const struct cJSON *item);             /* a number without fraction: 16 and 16.0, not true, not "16" */
bool json_is_written_real(const struct cJSON *item);    /* a number with fraction or exponent: 1.0, 1e3; Python prints these as floats */
int  json_int64(const struct cJSON *item, int64_t *value);  /* exact; ERR_TYPE when not an integer or outside int64 */
bool json_is_big_int(const struct cJSON *item);          /* an integer outside +-2^53 */
/* Bytes of a string; *text points into the document, has *len bytes (NULs among them where \u0000 stood) and a NUL
 * after them. A cJSON_Duplicate of the item is cut at the first NUL. ERR_TYPE if not a string. */
int  json_string(const struct cJSON *item, const char **text, size_t *len);
bool json_has_nul(const struct cJSON *item);             /* string containing \u0000 */

#endif
