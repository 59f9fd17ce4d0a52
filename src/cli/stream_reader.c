#include "stream_reader.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { HELD_MAX_BYTES = 1 << 20, ERROR_MAX_BYTES = 4096 };

void stream_reader_reset(struct stream_reader *reader)
{
    struct buf held = reader->held;

    buf_reset(&held);
    held.limit = HELD_MAX_BYTES;
    *reader = (struct stream_reader){ .held = held, .keep_alive = true, .prompt_tokens = -1, .completion_tokens = -1 };
}

void stream_reader_release(struct stream_reader *reader) { buf_release(&reader->held); }

/* ---- a frame ---- */

/* What follows "key": in the frame; NULL if it has no such key. A quote inside a text is escaped, so the key's own quotes
 * cannot be one. */
static const char *value_of(const char *frame, size_t len, const char *quoted_key)
{
    size_t key_len = strlen(quoted_key);
    const char *at = memmem(frame, len, quoted_key, key_len), *end = frame + len;

    if (!at) return NULL;
    at += key_len;
    while (at < end && (*at == ' ' || *at == ':')) at++;
    return at < end ? at : NULL;
}

static bool starts(const char *value, const char *frame, size_t len, const char *with)
{
    size_t n = strlen(with);

    return value && (size_t)(frame + len - value) >= n && !memcmp(value, with, n);
}

static int64_t number_of(const char *frame, size_t len, const char *quoted_key)
{
    const char *at = value_of(frame, len, quoted_key), *end = frame + len;
    int64_t number = 0;

    if (!at || *at < '0' || *at > '9') return -1;
    for (; at < end && *at >= '0' && *at <= '9' && number < INT32_MAX; at++) number = number * 10 + (*at - '0');
    return number;
}

/* The last frame may say only that it is the last, the first only which prompt it answers, and the usage has one too. */
static bool has_token(const char *frame, size_t len)
{
    const char *choices = value_of(frame, len, "\"choices\""), *text = value_of(frame, len, "\"text\"");
    const char *reason = value_of(frame, len, "\"finish_reason\"");

    if (!choices || starts(choices, frame, len, "[]")) return false;
    if (!starts(text, frame, len, "\"\"")) return true;
    return !starts(reason, frame, len, "\"") && !memmem(frame, len, "\"prompt_token_ids\"", 18);
}

static void read_usage(struct stream_reader *reader, const char *frame, size_t len)
{
    const char *usage = value_of(frame, len, "\"usage\"");

    if (!starts(usage, frame, len, "{")) return;
    size_t left = (size_t)(frame + len - usage);
    reader->prompt_tokens = number_of(usage, left, "\"prompt_tokens\"");
    reader->completion_tokens = number_of(usage, left, "\"completion_tokens\"");
}

static int64_t take_line(struct stream_reader *reader, const char *line, size_t len)
{
    if (len && line[len - 1] == '\r') len--;
    if (len < 5 || memcmp(line, "data:", 5) != 0) return 0;
    line += 5;
    len -= 5;
    if (len && *line == ' ') line++, len--;
    if (len == 6 && !memcmp(line, "[DONE]", 6)) {
        reader->done = true;
        return 0;
    }
    if (starts(value_of(line, len, "\"error\""), line, len, "{")) {
        struct buf copy = BUF_INIT;            /* line may lie in held */
        buf_append(&copy, line, len < ERROR_MAX_BYTES ? len : ERROR_MAX_BYTES);
        buf_release(&reader->held);
        reader->held = copy;
        reader->failed = true;
        return 0;
    }
    read_usage(reader, line, len);
    return has_token(line, len);
}

/* Bytes of the body of a good answer: whole lines are taken where they lie. */
static int64_t take_events(struct stream_reader *reader, const char *data, size_t len)
{
    int64_t frames = 0;

    while (len && !reader->failed) {
        const char *end = memchr(data, '\n', len);
        size_t n = end ? (size_t)(end - data) : len;
        if (!end || reader->held.len) buf_append(&reader->held, data, n);
        if (!end) break;
        if (reader->held.len) {
            frames += take_line(reader, reader->held.data, reader->held.len);
            if (!reader->failed) buf_reset(&reader->held);
        } else {
            frames += take_line(reader, data, n);
        }
        data = end + 1;
        len -= n + 1;
    }
    return frames;
}

static int64_t take_payload(struct stream_reader *reader, const char *data, size_t len)
{
    if (reader->status == 200) return take_events(reader, data, len);
    if (reader->held.len < ERROR_MAX_BYTES) buf_append(&reader->held, data, len);
    return 0;
}

/* ---- head and chunks ---- */

static bool header_is(const char *line, const char *name, const char **value)
{
    size_t n = strlen(name);

    if (strncasecmp(line, name, n) != 0 || line[n] != ':') return false;
    *value = line + n + 1 + strspn(line + n + 1, " \t");
    return true;
}

static void read_head(struct stream_reader *reader)
{
    char *line = reader->held.data, *next;
    const char *value;

    if (strncmp(line, "HTTP/1.", 7) != 0 || reader->held.len < 12) {
        reader->state = STREAM_BROKEN;
        return;
    }
    reader->status = (int)strtol(line + 9, NULL, 10);
    for (line = strchr(line, '\n'); line; line = next) {
        next = strchr(++line, '\n');
        if (header_is(line, "transfer-encoding", &value)) reader->chunked = !strncasecmp(value, "chunked", 7);
        else if (header_is(line, "connection", &value)) reader->keep_alive = strncasecmp(value, "close", 5) != 0;
        else if (header_is(line, "content-length", &value)) {
            reader->has_length = true;
            reader->left = strtoull(value, NULL, 10);
        }
    }
    reader->state = reader->chunked ? STREAM_CHUNK_SIZE : STREAM_BODY;
    if (!reader->chunked && reader->has_length && !reader->left) reader->state = STREAM_ENDED;
    if (reader->chunked) reader->left = 0;
    buf_reset(&reader->held);
}

/* Bytes used up. */
static size_t take_head(struct stream_reader *reader, const char *data, size_t len)
{
    size_t before = reader->held.len, from = before > 3 ? before - 3 : 0;

    buf_append(&reader->held, data, len);
    if (reader->held.failed) {
        reader->state = STREAM_BROKEN;
        return len;
    }
    char *end = memmem(reader->held.data + from, reader->held.len - from, "\r\n\r\n", 4);
    if (!end) return len;
    size_t head_len = (size_t)(end + 4 - reader->held.data);
    reader->held.len = head_len - 2;               /* with the last line's end */
    reader->held.data[reader->held.len] = '\0';
    read_head(reader);
    return head_len - before;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void take_size_byte(struct stream_reader *reader, char c)
{
    int digit = hex_digit(c);

    if (digit >= 0 && reader->left < UINT64_C(1) << 40) reader->left = reader->left * 16 + (uint64_t)digit;
    else if (c == '\n') reader->state = reader->left ? STREAM_CHUNK : STREAM_TRAILER;
    else if (c != '\r') reader->state = STREAM_BROKEN;         /* no extensions: nobody sends them */
    if (reader->state == STREAM_TRAILER) reader->left = 0;
}

/* A blank line ends it. left: bytes of the present line. */
static void take_trailer_byte(struct stream_reader *reader, char c)
{
    if (c == '\n' && !reader->left) reader->state = STREAM_ENDED;
    else if (c == '\n') reader->left = 0;
    else if (c != '\r') reader->left++;
}

int64_t stream_reader_feed(struct stream_reader *reader, const char *data, size_t len)
{
    int64_t frames = 0;
    size_t n;

    while (len && reader->state < STREAM_ENDED) {
        n = 1;
        switch (reader->state) {
        case STREAM_HEAD: n = take_head(reader, data, len); break;
        case STREAM_CHUNK_SIZE: take_size_byte(reader, *data); break;
        case STREAM_CHUNK_END:
            if (*data == '\n') reader->state = STREAM_CHUNK_SIZE;
            break;
        case STREAM_TRAILER: take_trailer_byte(reader, *data); break;
        default:
            n = reader->left < len && (reader->chunked || reader->has_length) ? (size_t)reader->left : len;
            frames += take_payload(reader, data, n);
            reader->left -= reader->chunked || reader->has_length ? n : 0;
            if (reader->left || !(reader->chunked || reader->has_length)) break;
            reader->state = reader->chunked ? STREAM_CHUNK_END : STREAM_ENDED;
        }
        data += n;
        len -= n;
    }
    if (reader->held.failed) reader->state = STREAM_BROKEN;
    reader->frames += frames;
    return frames;
}

void stream_reader_close(struct stream_reader *reader)
{
    bool to_the_end = reader->state == STREAM_BODY && !reader->has_length;

    reader->keep_alive = false;
    if (reader->state < STREAM_ENDED) reader->state = to_the_end ? STREAM_ENDED : STREAM_BROKEN;
}

const char *stream_reader_error(const struct stream_reader *reader)
{
    bool told = reader->failed || (reader->status && reader->status != 200);

    return told && reader->held.len ? reader->held.data : "";
}
