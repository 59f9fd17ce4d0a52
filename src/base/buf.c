#include "base/buf.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *buf, size_t limit) { *buf = (struct buf){ .limit = limit }; }

char *buf_reserve(struct buf *buf, size_t len)
{
    if (buf->failed) return NULL;
    size_t need;
    if (__builtin_add_overflow(buf->len, len, &need) || need == SIZE_MAX || (buf->limit && need > buf->limit)) goto fail;
    if (need + 1 > buf->cap) {
        size_t cap = buf->cap ? buf->cap : 64;
        while (cap < need + 1) cap = cap > SIZE_MAX / 2 ? need + 1 : cap * 2;
        char *data = realloc(buf->data, cap);
        if (!data) goto fail;
        buf->data = data;
        buf->cap = cap;
    }
    return buf->data + buf->len;
fail:
    buf->failed = true;
    return NULL;
}

void buf_append(struct buf *buf, const void *data, size_t len)
{
    char *to = buf_reserve(buf, len);

    if (!to) return;
    if (len) memcpy(to, data, len);
    buf->len += len;
    buf->data[buf->len] = '\0';
}

void buf_puts(struct buf *buf, const char *text) { buf_append(buf, text, strlen(text)); }
void buf_putc(struct buf *buf, char c) { buf_append(buf, &c, 1); }

void buf_vprintf(struct buf *buf, const char *fmt, va_list args)
{
    va_list again;

    va_copy(again, args);
    int len = vsnprintf(NULL, 0, fmt, args);
    if (len < 0) {
        buf->failed = true;
    } else if (buf_reserve(buf, (size_t)len)) {
        vsnprintf(buf->data + buf->len, (size_t)len + 1, fmt, again);
        buf->len += (size_t)len;
    }
    va_end(again);
}

void buf_printf(struct buf *buf, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    buf_vprintf(buf, fmt, args);
    va_end(args);
}

void buf_json_escape(struct buf *buf, const char *text, size_t len)
{
    size_t run = 0;

    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f) continue;
        buf_append(buf, text + run, i - run);
        run = i + 1;
        switch (c) {
        case '"': buf_puts(buf, "\\\""); break;
        case '\\': buf_puts(buf, "\\\\"); break;
        case '\n': buf_puts(buf, "\\n"); break;
        case '\r': buf_puts(buf, "\\r"); break;
        case '\t': buf_puts(buf, "\\t"); break;
        default: buf_printf(buf, "\\u%04x", c);
        }
    }
    buf_append(buf, text + run, len - run);
}

void buf_reset(struct buf *buf)
{
    buf->len = 0;
    buf->failed = false;
    if (buf->data) buf->data[0] = '\0';
}

char *buf_detach(struct buf *buf)
{
    char *data = NULL;

    if (!buf->failed && buf_reserve(buf, 0)) {
        data = buf->data;
        data[buf->len] = '\0';
        buf->data = NULL;
    }
    buf_release(buf);
    return data;
}

void buf_release(struct buf *buf)
{
    free(buf->data);
    buf_init(buf, buf->limit);
}
