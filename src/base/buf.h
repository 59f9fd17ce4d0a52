/* buf.h - a byte string that grows, up to a limit.
 * The first failure (memory or limit) sticks in `failed` and every later append is a no-op, so that a formatter
 * checks once at the end. data is always NUL-terminated when not NULL. Thread: one owner. */
#ifndef SLUICE_BASE_BUF_H
#define SLUICE_BASE_BUF_H

#include <stdbool.h>
#include <stdarg.h>
#include <stddef.h>

struct buf {
    char *data;
    size_t len;
    size_t cap;
    size_t limit;    /* len never passes this; 0 = none */
    bool failed;
};

#define BUF_INIT { 0 }

void buf_init(struct buf *buf, size_t limit);
void buf_append(struct buf *buf, const void *data, size_t len);
void buf_puts(struct buf *buf, const char *text);
void buf_putc(struct buf *buf, char c);
void buf_printf(struct buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *buf, const char *fmt, va_list args);
/* Appends text as the inside of a JSON string (no quotes). text must be valid UTF-8; NUL, quotes, control bytes are escaped. */
void buf_json_escape(struct buf *buf, const char *text, size_t len);
/* Makes room for len more bytes and returns where they go (caller then adds to len), NULL on failure. */
char *buf_reserve(struct buf *buf, size_t len);
void buf_reset(struct buf *buf);      /* len = 0, keeps memory, clears failed */
char *buf_detach(struct buf *buf);    /* caller frees; NULL if failed */
void buf_release(struct buf *buf);

#endif
