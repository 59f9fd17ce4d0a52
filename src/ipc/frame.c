#include <sluice/ipc.h>

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/bug.h"

enum { FRAME_ALIGN = 8, READER_MIN = 64 << 10 };

_Static_assert(sizeof(struct frame_head) == FRAME_ALIGN, "a head keeps the payload aligned");

static size_t padded(size_t len) { return (len + FRAME_ALIGN - 1) / FRAME_ALIGN * FRAME_ALIGN; }

void ipc_put(struct buf *out, enum msg_type type, const void *payload, size_t len)
{
    static const char zeros[FRAME_ALIGN];
    struct frame_head head = { .len = (uint32_t)len, .type = (uint16_t)type };

    BUG_ON(len > IPC_MAX_PAYLOAD);
    buf_append(out, &head, sizeof head);
    buf_append(out, payload, len);
    buf_append(out, zeros, padded(len) - len);
}

void ipc_reader_init(struct ipc_reader *reader) { *reader = (struct ipc_reader){ 0 }; }

int ipc_reader_feed(struct ipc_reader *reader, const void *data, size_t len)
{
    size_t left = reader->len - reader->pos, need;

    if (reader->pos) memmove(reader->data, reader->data + reader->pos, left);
    reader->pos = 0;
    reader->len = left;
    if (__builtin_add_overflow(left, len, &need)) return ERR_NO_MEMORY;
    if (need > reader->cap) {
        size_t cap = reader->cap ? reader->cap : READER_MIN;
        while (cap < need) cap = cap > SIZE_MAX / 2 ? need : cap * 2;
        char *grown = realloc(reader->data, cap);
        if (!grown) return ERR_NO_MEMORY;
        reader->data = grown;
        reader->cap = cap;
    }
    if (len) memcpy(reader->data + left, data, len);
    reader->len = need;
    return 0;
}

int ipc_reader_next(struct ipc_reader *reader, struct frame_head *head, const void **payload)
{
    size_t left = reader->len - reader->pos;

    if (left < sizeof *head) return 0;
    memcpy(head, reader->data + reader->pos, sizeof *head);
    if (head->zero || head->len > IPC_MAX_PAYLOAD || !head->type) return ERR_PROTOCOL;
    if (left - sizeof *head < padded(head->len)) return 0;
    *payload = reader->data + reader->pos + sizeof *head;
    reader->pos += sizeof *head + padded(head->len);
    return 1;
}

void ipc_reader_release(struct ipc_reader *reader)
{
    free(reader->data);
    ipc_reader_init(reader);
}
