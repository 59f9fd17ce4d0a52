/* body.h - bounded upload: the limit of one body, the budget of all, and what happens when either is crossed.
 * Thread: HTTP. The library takes a reply only before the first body byte or after the last; a limit crossed in
 * between is answered by bytes of our own (exchange_refuse). */
#ifndef SLUICE_HTTP_BODY_H
#define SLUICE_HTTP_BODY_H

#include "exchange.h"

/* At the end of the headers: 0, or ERR_TOO_LARGE, ERR_QUEUE_FULL (budget), ERR_NO_MEMORY. Nothing is kept when
 * `discard`. */
int body_expect(struct exchange *ex, const struct guard_result *headers, struct err *err);
/* A piece arrived; consumes it all, or refuses and answers MHD_NO. */
enum MHD_Result body_take(struct exchange *ex, const char *data, size_t *len);

#endif
