/* stream.h - generations on the HTTP side: the sink that the router calls, the outbox, the content reader.
 * Flow: router loop -> sink -> outbox (copies of deltas) -> wake -> HTTP thread: frames (api/sse.c) -> MHD's buffer.
 * The outbox holds text deltas, never SSE text: at most what max_tokens can produce.
 * The reader returns 0 only together with a suspend: otherwise the library would spin. */
#ifndef SLUICE_HTTP_STREAM_H
#define SLUICE_HTTP_STREAM_H

#include "exchange.h"

/* Worker: parses the body, submits, or finishes the exchange with an error. */
void stream_begin(struct exchange *ex, enum generation_route route);
/* HTTP thread: what a woken generation does next: answer, start the stream, or wait on. */
enum MHD_Result stream_proceed(struct exchange *ex);
void outbox_release(struct outbox *outbox);

#endif
