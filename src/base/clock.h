/* clock.h - CLOCK_MONOTONIC only; wall time just for `created` and log stamps. Any thread. */
#ifndef SLUICE_BASE_CLOCK_H
#define SLUICE_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_now_ns(void);
int64_t clock_now_ms(void);
int64_t clock_wall_s(void);     /* Unix seconds */

#endif
