#include "guard.h"

#include <string.h>
#include <strings.h>

struct pass {
    const struct str_list *allowed_hosts;
    struct guard_result *result;
    struct err *err;
    size_t bytes;
    int hosts, lengths, encodings, authorizations, request_ids, origins, traces;
};

static bool is_token_char(unsigned char c)
{
    return (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!is_token_char((unsigned char)text[i])) return false;
    }
    return len > 0;
}

/* No control characters but tab; bytes above 0x7f are opaque. */
static bool is_field_value(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) return false;
    }
    return true;
}

static bool equals(const char *text, size_t len, const char *other)
{
    return strlen(other) == len && strncasecmp(text, other, len) == 0;
}

static bool named(const struct guard_field *field, const char *name)
{
    return equals(field->name, field->name_len, name);
}
static bool has_value(const struct guard_field *field, const char *value)
{
    return equals(field->value, field->value_len, value);
}

bool guard_request_id_ok(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        bool ok = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '.' || c == '_' ||
            c == '-';
        if (!ok) return false;
    }
    return len > 0 && len <= REQUEST_ID_MAX;
}

static int refuse(struct pass *pass, const char *what)
{
    return err_set(pass->err, ERR_HTTP, "Invalid HTTP request: %s.", what);
}

static int check_length(struct pass *pass, const struct guard_field *field)
{
    uint64_t length = 0;

    if (pass->lengths++) return refuse(pass, "more than one Content-Length");
    if (field->value_len == 0 || field->value_len > 18) return refuse(pass, "Content-Length is not a length");
    for (size_t i = 0; i < field->value_len; i++) {
        if (field->value[i] < '0' || field->value[i] > '9') return refuse(pass, "Content-Length is not a length");
        length = length * 10 + (uint64_t)(field->value[i] - '0');
    }
    pass->result->has_length = true;
    pass->result->content_length = length;
    return 0;
}

static int check_transfer_encoding(struct pass *pass, const struct guard_field *field)
{
    if (pass->encodings++) return refuse(pass, "more than one Transfer-Encoding");
    if (!has_value(field, "chunked")) return refuse(pass, "Transfer-Encoding is not chunked");
    pass->result->chunked = true;
    return 0;
}

/* The port is not part of the comparison; an IPv6 literal keeps its brackets. */
static int check_host(struct pass *pass, const struct guard_field *field)
{
    const struct str_list *allowed = pass->allowed_hosts;
    size_t len = field->value_len;

    if (pass->hosts++) return refuse(pass, "more than one Host");
    if (!allowed || allowed->n == 0) return 0;
    const char *colon = memrchr(field->value, ':', len), *bracket = memrchr(field->value, ']', len);
    if (colon && (!bracket || colon > bracket)) len = (size_t)(colon - field->value);
    for (size_t i = 0; i < allowed->n; i++) {
        if (equals(field->value, len, allowed->items[i])) return 0;
    }
    return refuse(pass, "this Host is not served");
}

/* Header names with commas and spaces between: harmless in an answer. */
static bool is_name_list(const struct guard_field *field)
{
    for (size_t i = 0; i < field->value_len; i++) {
        char c = field->value[i];
        if (!is_token_char((unsigned char)c) && c != ',' && c != ' ') return false;
    }
    return field->value_len > 0 && field->value_len <= GUARD_MAX_CORS_HEADERS;
}

/* version "-" trace id "-" parent id "-" flags, in lower-case hex; a later version may go on behind a "-". */
static const char *trace_id_of(const struct guard_field *field)
{
    static const char form[] = "xx-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
    const char *value = field->value;
    size_t len = sizeof form - 1;

    if (field->value_len < len || (field->value_len > len && (!strncmp(value, "00", 2) || value[len] != '-'))) return NULL;
    for (size_t i = 0; i < len; i++) {
        bool hex = (value[i] >= '0' && value[i] <= '9') || (value[i] >= 'a' && value[i] <= 'f');
        if (form[i] == '-' ? value[i] != '-' : !hex) return NULL;
    }
    if (!strncmp(value, "ff", 2) || strspn(value + 3, "0") >= GUARD_TRACE_ID) return NULL;
    return value + 3;
}

static int check_field(struct pass *pass, const struct guard_field *field)
{
    struct guard_result *result = pass->result;

    if (!is_token(field->name, field->name_len)) return refuse(pass, "a header name is not a token");
    if (!is_field_value(field->value, field->value_len)) return refuse(pass, "a header value has control characters");
    if (named(field, "content-length")) return check_length(pass, field);
    if (named(field, "transfer-encoding")) return check_transfer_encoding(pass, field);
    if (named(field, "host")) return check_host(pass, field);
    if (named(field, "authorization")) {
        if (pass->authorizations++) return refuse(pass, "more than one Authorization");
        result->authorization = field;
    } else if (named(field, "x-request-id")) {
        bool usable = pass->request_ids++ == 0 && guard_request_id_ok(field->value, field->value_len);
        result->request_id = usable ? field : NULL;
    } else if (named(field, "traceparent")) {
        result->trace_id = pass->traces++ == 0 ? trace_id_of(field) : NULL;
    } else if (named(field, "content-encoding")) {
        if (field->value_len && !has_value(field, "identity")) result->encoding = field;
    } else if (named(field, "origin")) {
        result->origin = pass->origins++ == 0 ? field : NULL;
    } else if (named(field, "access-control-request-headers")) {
        if (is_name_list(field)) result->cors_headers = field;
    } else if (named(field, "expect")) {
        result->expect_continue = has_value(field, "100-continue");
    } else if (named(field, "endpoint-load-metrics-format")) {
        result->load_report = has_value(field, "TEXT");
    }
    return 0;
}

static int check_url(struct pass *pass, const char *url)
{
    size_t path = strcspn(url, "?");

    if (strlen(url) > GUARD_MAX_URL)
        return err_set(pass->err, ERR_URI_LONG, "The URL is longer than %d bytes.", GUARD_MAX_URL);
    for (size_t i = 0; i < path; i++) {
        unsigned char c = (unsigned char)url[i];
        if (c < 0x20 || c == 0x7f) return refuse(pass, "control character in the path");
        if (c == '%' && url[i + 1] == '0' && url[i + 2] == '0') return refuse(pass, "NUL in the path");
    }
    return 0;
}

int guard_check(const struct guard_input *input, const struct str_list *allowed_hosts, struct guard_result *result,
                struct err *err)
{
    struct pass pass = { .allowed_hosts = allowed_hosts, .result = result, .err = err };
    bool http_1_1 = strcmp(input->version, "HTTP/1.1") == 0;
    int rc;

    *result = (struct guard_result){ 0 };
    if (!http_1_1 && strcmp(input->version, "HTTP/1.0") != 0)
        return err_set(err, ERR_HTTP_VERSION, "Only HTTP/1.1 and HTTP/1.0 are spoken here.");
    if (!is_token(input->method, strlen(input->method))) return refuse(&pass, "the method is not a token");
    if (input->url_is_cut) return refuse(&pass, "NUL in the path");
    if ((rc = check_url(&pass, input->raw_url)) < 0) return rc;
    if (input->n_fields > GUARD_MAX_FIELDS)
        return err_set(err, ERR_HEADERS_LARGE, "More than %d header fields.", GUARD_MAX_FIELDS);
    for (size_t i = 0; i < input->n_fields; i++) {
        if ((rc = check_field(&pass, &input->fields[i])) < 0) return rc;
        pass.bytes += input->fields[i].name_len + input->fields[i].value_len + 4;   /* ": " and CR LF */
    }
    if (pass.bytes > GUARD_MAX_HEADER_BYTES)
        return err_set(err, ERR_HEADERS_LARGE, "The header block is longer than %d bytes.", GUARD_MAX_HEADER_BYTES);
    if (result->chunked && result->has_length) return refuse(&pass, "both Content-Length and Transfer-Encoding");
    if (result->chunked && !http_1_1) return refuse(&pass, "Transfer-Encoding in HTTP/1.0");
    if (http_1_1 && pass.hosts == 0) return refuse(&pass, "no Host");
    result->has_body = result->chunked || result->content_length > 0;
    return 0;
}
