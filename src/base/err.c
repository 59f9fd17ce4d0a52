#include <sluice/err.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct err_row { const char *name, *wire_code, *type; int status; };

static const struct err_row err_rows[ERR_ORDINAL_END_] = {
#define ERR_X(enum_name, code, http_status, openai_type) \
    [enum_name##_ORDINAL_] = { .name = #enum_name, .wire_code = code, .type = openai_type, .status = http_status },
    ERR_MAP(ERR_X)
#undef ERR_X
};

static const struct err_row *row_of(int code)
{
    static const struct err_row unknown = { "ERR_?", "internal_error", "server_error", 500 };

    return code < 0 && -code < ERR_ORDINAL_END_ ? &err_rows[-code] : &unknown;
}

const char *err_name(int code) { return row_of(code)->name; }
const char *err_wire_code(int code) { return row_of(code)->wire_code; }
int err_http_status(int code) { return row_of(code)->status; }
const char *err_type(int code) { return row_of(code)->type; }

void err_clear(struct err *err)
{
    if (!err) return;
    err->code = ERR_OK;
    err->param[0] = err->message[0] = '\0';
}

static void fill(struct err *err, int code, const char *param, const char *fmt, va_list args)
{
    if (!err || err->code != ERR_OK) return;
    err->code = code;
    snprintf(err->param, sizeof err->param, "%s", param);
    vsnprintf(err->message, sizeof err->message, fmt, args);
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fill(err, code, "", fmt, args);
    va_end(args);
    return code;
}

int err_param(struct err *err, int code, const char *param, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fill(err, code, param, fmt, args);
    va_end(args);
    return code;
}

int err_sys(struct err *err, int code, const char *fmt, ...)
{
    int saved = errno;
    char reason[96];
    va_list args;

    if (!err || err->code != ERR_OK) return code;
    va_start(args, fmt);
    fill(err, code, "", fmt, args);
    va_end(args);
    /* the GNU strerror_r: it may answer a static string instead of filling the buffer */
    const char *text = strerror_r(saved, reason, sizeof reason);
    size_t len = strlen(err->message);
    snprintf(err->message + len, sizeof err->message - len, ": %s", text);
    errno = saved;
    return code;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    char old[sizeof err->message];
    va_list args;

    if (!err) return ERR_INTERNAL;
    memcpy(old, err->message, sizeof old);
    va_start(args, fmt);
    vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    size_t len = strlen(err->message);
    snprintf(err->message + len, sizeof err->message - len, ": %s", old);
    return err->code;
}
