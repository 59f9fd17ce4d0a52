#include "tokenizer_impl.h"

#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd"

void detok_init(struct detok *detok, const struct tokenizer *tok, bool skip_special, bool at_start)
{
    *detok = (struct detok){ .tok = tok, .skip_special = skip_special, .at_start = at_start };
    detok->strip_leading_space = tok->start_space != START_KEEP;
}

static void put_char(struct detok *detok, const char *bytes, size_t len, struct buf *out)
{
    bool drop = detok->at_start && detok->strip_leading_space && detok->tok->start_space == START_STRIP_ONE &&
                len == 1 && bytes[0] == ' ';

    detok->at_start = false;
    if (!drop) buf_append(out, bytes, len);
}

/* Completes the unfinished code point or gives it up: one U+FFFD per maximal prefix of a code point, as Unicode
 * advises. */
static void put_byte(struct detok *detok, char byte, struct buf *out)
{
    char bytes[sizeof detok->pending + 1];
    size_t n = detok->pending_len;
    uint32_t cp;

    memcpy(bytes, detok->pending, n);
    bytes[n++] = byte;
    int got = utf8_decode(bytes, n, &cp);
    if (got == -1 && n > 1) {
        put_char(detok, REPLACEMENT, 3, out);
        bytes[0] = byte;
        n = 1;
        got = utf8_decode(bytes, n, &cp);
    }
    detok->pending_len = 0;
    if (got > 0) {
        put_char(detok, bytes, n, out);
    } else if (got == -1) {
        put_char(detok, REPLACEMENT, 3, out);
    } else {
        memcpy(detok->pending, bytes, n);
        detok->pending_len = (uint8_t)n;
    }
}

void detok_push(struct detok *detok, token_id id, struct buf *out)
{
    const char *bytes;
    size_t len;

    if (detok->skip_special && tokenizer_is_special(detok->tok, id)) return;
    tokenizer_token_bytes(detok->tok, id, &bytes, &len);
    bool drop_spaces = detok->at_start && detok->strip_leading_space && detok->tok->start_space == START_STRIP_MARKS;
    for (size_t i = 0; i < len; i++)
        if (!drop_spaces || bytes[i] != ' ') put_byte(detok, bytes[i], out);
    if (drop_spaces && len) detok->at_start = false;
}

void detok_finish(struct detok *detok, struct buf *out)
{
    if (detok->pending_len) put_char(detok, REPLACEMENT, 3, out);
    detok->pending_len = 0;
}
