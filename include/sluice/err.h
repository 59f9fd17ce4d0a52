/* err.h - how every function of sluice says no.
 * A function returns 0 or a negative enum err_code. One that touches the world takes `struct err *err` last and
 * fills it before it returns negative: who, what, limit, found. err may be NULL; then only the code is returned.
 * The table is also the wire contract: code string, HTTP status and OpenAI type of each error a client can see.
 * Thread: none; a struct err belongs to its caller. */
#ifndef SLUICE_ERR_H
#define SLUICE_ERR_H

#include <stdbool.h>
#include <stddef.h>

/* enum                    wire code                      status  OpenAI type */
#define ERR_MAP(X)                                                                      \
    X(ERR_JSON,             "invalid_json",                400, "invalid_request_error") \
    X(ERR_TYPE,             "invalid_type",                400, "invalid_request_error") \
    X(ERR_VALUE,            "invalid_value",               400, "invalid_request_error") \
    X(ERR_MISSING,          "missing_required_parameter",  400, "invalid_request_error") \
    X(ERR_UNSUPPORTED,      "unsupported_parameter",       400, "invalid_request_error") \
    X(ERR_CONTENT_TYPE,     "unsupported_content_type",    400, "invalid_request_error") \
    X(ERR_EMPTY_ARRAY,      "empty_array",                 400, "invalid_request_error") \
    X(ERR_EMPTY_STRING,     "empty_string",                400, "invalid_request_error") \
    X(ERR_ARRAY_LONG,       "array_above_max_length",      400, "invalid_request_error") \
    X(ERR_INT_LOW,          "integer_below_min_value",     400, "invalid_request_error") \
    X(ERR_INT_HIGH,         "integer_above_max_value",     400, "invalid_request_error") \
    X(ERR_REAL_LOW,         "decimal_below_min_value",     400, "invalid_request_error") \
    X(ERR_REAL_HIGH,        "decimal_above_max_value",     400, "invalid_request_error") \
    X(ERR_CONTEXT_LENGTH,   "context_length_exceeded",     400, "invalid_request_error") \
    X(ERR_TEMPLATE,         "template_error",              400, "invalid_request_error") \
    X(ERR_SCHEMA,           "invalid_schema",              400, "invalid_request_error") \
    X(ERR_RESPONSE_LARGE,   "response_too_large",          400, "invalid_request_error") \
    X(ERR_HTTP,             "invalid_http",                400, "invalid_request_error") \
    X(ERR_HTTP_VERSION,     "invalid_http",                505, "invalid_request_error") \
    X(ERR_API_KEY,          "invalid_api_key",             401, "authentication_error")  \
    X(ERR_NOT_FOUND,        "not_found",                   404, "invalid_request_error") \
    X(ERR_MODEL_NOT_FOUND,  "model_not_found",             404, "invalid_request_error") \
    X(ERR_REQ_NOT_FOUND,    "request_not_found",           404, "invalid_request_error") \
    X(ERR_METHOD,           "method_not_allowed",          405, "invalid_request_error") \
    X(ERR_REQUEST_TIMEOUT,  "request_timeout",             408, "invalid_request_error") \
    X(ERR_LENGTH_REQUIRED,  "length_required",             411, "invalid_request_error") \
    X(ERR_TOO_LARGE,        "request_too_large",           413, "invalid_request_error") \
    X(ERR_URI_LONG,         "uri_too_long",                414, "invalid_request_error") \
    X(ERR_ENCODING,         "unsupported_content_encoding", 415, "invalid_request_error") \
    X(ERR_HEADERS_LARGE,    "headers_too_large",           431, "invalid_request_error") \
    X(ERR_QUEUE_FULL,       "queue_full",                  429, "rate_limit_error")      \
    X(ERR_INTERNAL,         "internal_error",              500, "server_error")          \
    X(ERR_DEAD_END,         "grammar_dead_end",            500, "server_error")          \
    X(ERR_NO_REPLICA,       "no_replica_available",        503, "server_error")          \
    X(ERR_DRAINING,         "draining",                    503, "server_error")          \
    X(ERR_REPLICA_LOST,     "replica_lost",                503, "server_error")          \
    X(ERR_QUEUE_TIMEOUT,    "queue_timeout",               503, "server_error")          \
    X(ERR_TTFT_TIMEOUT,     "ttft_timeout",                503, "server_error")          \
    X(ERR_TOTAL_TIMEOUT,    "total_timeout",               503, "server_error")          \
    X(ERR_KILLED,           "request_killed",              503, "server_error")          \
    /* never on the wire as such: a client sees internal_error */                        \
    X(ERR_NO_MEMORY,        "internal_error",              500, "server_error")          \
    X(ERR_NO_BLOCKS,        "internal_error",              500, "server_error")          \
    X(ERR_IO,               "internal_error",              500, "server_error")          \
    X(ERR_LIMIT,            "internal_error",              500, "server_error")          \
    X(ERR_PROTOCOL,         "internal_error",              500, "server_error")          \
    X(ERR_ENDED,            "internal_error",              500, "server_error") /* peer or queue closed */ \
    X(ERR_CONFIG,           "invalid_config",              400, "invalid_request_error") \
    X(ERR_MODEL_FILE,       "internal_error",              500, "server_error") /* damaged or unsupported model: exit 78 */

enum err_ordinal_ { ERR_ORDINAL_OK_,
#define ERR_X(name, code, status, type) name##_ORDINAL_,
    ERR_MAP(ERR_X)
#undef ERR_X
    ERR_ORDINAL_END_ };

enum err_code { ERR_OK = 0,
#define ERR_X(name, code, status, type) name = -(int)name##_ORDINAL_,
    ERR_MAP(ERR_X)
#undef ERR_X
};

enum { EXIT_FAULT = 70, EXIT_CONFIG = 78 };   /* exit codes of the programs; 0 = asked to stop */

struct err {
    int code;             /* enum err_code, ERR_OK while nothing is set */
    char param[96];       /* request field the error is about, "" = none ("param": null) */
    char message[512];    /* one line, UTF-8, no path or library text where a client may see it */
};

/* Fills err (if not NULL; the first error set wins until err_clear) and returns code, so `return err_set(...)` reads well. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same with the request field it is about. */
int err_param(struct err *err, int code, const char *param, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* The same with ": " + strerror(errno) appended. */
int err_sys(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Puts "prefix: " before the message that is there (context added on the way up). Returns err->code. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void err_clear(struct err *err);

const char *err_name(int code);          /* "ERR_JSON"; "ERR_?" for what is not in the table */
const char *err_wire_code(int code);     /* "invalid_json" */
int err_http_status(int code);           /* 400 */
const char *err_type(int code);          /* "invalid_request_error" */

#endif
