/* log.h - one JSON object per line on stderr: {"ts","level","event",...}. Values are escaped here, so CR, LF, ANSI codes
 * from clients cannot forge lines. Never blocks: stderr is written with a non-blocking attempt; what does not go is counted.
 * Any thread. */
#ifndef SLUICE_BASE_LOG_H
#define SLUICE_BASE_LOG_H

#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARNING, LOG_ERROR };

void log_set_level(enum log_level level);
int  log_level_from_name(const char *name);              /* debug info warning error; -1 = unknown */
void log_set_program(const char *name);                  /* "sluiced", "sluice-engine"; borrowed */
/* event is a short snake_case literal; fmt makes the "msg" text. */
void log_event(enum log_level level, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
uint64_t log_dropped(void);

#define log_debug(event, ...) log_event(LOG_DEBUG, event, __VA_ARGS__)
#define log_info(event, ...)  log_event(LOG_INFO, event, __VA_ARGS__)
#define log_warn(event, ...)  log_event(LOG_WARNING, event, __VA_ARGS__)
#define log_error(event, ...) log_event(LOG_ERROR, event, __VA_ARGS__)

#endif
