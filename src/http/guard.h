/* guard.h - what libmicrohttpd lets through and sluice does not: framing, header syntax, sizes (api-contract 4.3 rows
 * 1, 2, 5, 8 to 10). A pure function over the fields, so that a fuzzer can drive it without sockets.
 * Thread: any. Borrows every string for the call. */
#ifndef SLUICE_HTTP_GUARD_H
#define SLUICE_HTTP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/config.h>
#include <sluice/err.h>

enum { GUARD_MAX_FIELDS = 100, GUARD_MAX_URL = 8192, GUARD_MAX_HEADER_BYTES = 32768, REQUEST_ID_MAX = 128,
       GUARD_MAX_CORS_HEADERS = 2048, GUARD_TRACE_ID = 32 };

struct guard_field { const char *name; size_t name_len; const char *value; size_t value_len; };

struct guard_input {
    const char *method, *version;
    const char *raw_url;                    /* as on the wire, query included, not decoded */
    bool url_is_cut;                        /* a NUL ended raw_url before the request line's target ended */
    const struct guard_field *fields;
    size_t n_fields;                        /* those seen, even if more than fit into fields */
};

/* What the rest of http/ needs from the headers, found in the same pass. */
struct guard_result {
    bool has_body;                          /* a length above 0, or chunked */
    bool chunked, has_length;
    uint64_t content_length;
    bool expect_continue;
    bool load_report;                       /* endpoint-load-metrics-format: TEXT */
    const struct guard_field *authorization;   /* NULL if absent; the first one, a second is refused */
    const struct guard_field *request_id;      /* NULL if absent, repeated or not fit to be echoed */
    const char *trace_id;                      /* of a W3C traceparent: GUARD_TRACE_ID hex digits, unterminated; NULL if absent or bad */
    const struct guard_field *origin;          /* NULL if absent or repeated */
    const struct guard_field *cors_headers;    /* Access-Control-Request-Headers that may be echoed */
    const struct guard_field *encoding;        /* Content-Encoding other than identity */
};

/* 0, or the error after which the connection must be closed unread: ERR_HTTP, ERR_HTTP_VERSION, ERR_URI_LONG,
 * ERR_HEADERS_LARGE. result is filled as far as it got. */
int guard_check(const struct guard_input *input, const struct str_list *allowed_hosts, struct guard_result *result,
                struct err *err);

bool guard_request_id_ok(const char *text, size_t len);     /* [A-Za-z0-9._-]{1,128} */

#endif
