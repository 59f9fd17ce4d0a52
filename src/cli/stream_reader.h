/* stream_reader.h - reads one HTTP answer that is a stream of events: head, chunks, frames. Minimal on purpose: a frame is
 * looked at for what is counted, not parsed. Feed it bytes as they come; nothing is copied but lines cut by a read.
 * Thread: its owner's. */
#ifndef SLUICE_CLI_STREAM_READER_H
#define SLUICE_CLI_STREAM_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum stream_state { STREAM_HEAD, STREAM_BODY, STREAM_CHUNK_SIZE, STREAM_CHUNK, STREAM_CHUNK_END, STREAM_TRAILER, STREAM_ENDED,
                    STREAM_BROKEN };

struct stream_reader {
    enum stream_state state;
    int status;                        /* of the head; 0 before */
    bool chunked, keep_alive, has_length;
    uint64_t left;                     /* of the chunk, or of the body */
    struct buf held;                   /* head, or a line that is not complete; the body of an error */
    /* counted: */
    int64_t frames;                    /* with a token, so far */
    bool done, failed;                 /* data: [DONE]; a frame with an error (held has it) */
    int64_t prompt_tokens, completion_tokens;      /* of usage; -1 = not told */
};

void stream_reader_reset(struct stream_reader *reader);        /* for the next answer on this connection */
void stream_reader_release(struct stream_reader *reader);
/* Frames with a token among these bytes. See state for the end. */
int64_t stream_reader_feed(struct stream_reader *reader, const char *data, size_t len);
/* The peer has closed: right for an answer without length, wrong otherwise. */
void stream_reader_close(struct stream_reader *reader);
/* What the server said is wrong, one line; "" when there is nothing. */
const char *stream_reader_error(const struct stream_reader *reader);

#endif
