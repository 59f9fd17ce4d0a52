/* headroom.h - watches the machine's free memory: when others eat into what the plan left free, admission is throttled
 * until it is back.
 * Flow: its own thread reads the free memory each second -> throttled flag -> engine thread, before each step.
 * Thread: open and close on the engine's; the two getters from any. Never read on the engine thread: /proc can block.
 * Short of memory = below the floor; back = a quarter above it (hysteresis). One log line per change. */
#ifndef SLUICE_ENGINE_HEADROOM_H
#define SLUICE_ENGINE_HEADROOM_H

#include <stdbool.h>
#include <stdint.h>

#include <sluice/err.h>

struct headroom_watch;

/* The rule alone: is memory short, given whether it was. */
bool headroom_is_short(uint64_t free_bytes, uint64_t floor_bytes, bool was_short);

/* floor = headroom_bytes, but at most half of what is free now: a server that starts in a tight place is throttled when
 * that gets tighter. free_memory: bytes this process may still take, 0 = unknown; called on the watch's thread.
 * ERR_NO_MEMORY. */
int  headroom_open(struct headroom_watch **out, uint64_t headroom_bytes, uint64_t (*free_memory)(void *arg),
                   void *free_memory_arg, int32_t interval_ms, struct err *err);
bool headroom_throttled(const struct headroom_watch *watch);
/* Of the last reading. */
void headroom_gauges(const struct headroom_watch *watch, uint64_t *free_bytes, uint64_t *floor_bytes);
void headroom_close(struct headroom_watch *watch);

#endif
