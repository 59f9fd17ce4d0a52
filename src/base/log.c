#include "base/log.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/utf8.h"

/* Set once at start, before threads; read by all. */
static enum log_level min_level = LOG_INFO;
static const char *program = "sluice";
static uint64_t dropped;

static const char *const level_names[] = { "debug", "info", "warning", "error" };

void log_set_level(enum log_level level) { __atomic_store_n(&min_level, level, __ATOMIC_RELAXED); }
void log_set_program(const char *name) { program = name; }
uint64_t log_dropped(void) { return __atomic_load_n(&dropped, __ATOMIC_RELAXED); }

int log_level_from_name(const char *name)
{
    for (int i = 0; i < 4; i++) {
        if (!strcmp(name, level_names[i])) return i;
    }
    return -1;
}

/* A pipe that nobody reads must not stop the server: without room now the line is dropped. */
static void write_or_drop(const char *line, size_t len)
{
    struct pollfd fd = { .fd = STDERR_FILENO, .events = POLLOUT };

    if (poll(&fd, 1, 0) == 1 && (fd.revents & POLLOUT) && write(STDERR_FILENO, line, len) == (ssize_t)len) return;
    __atomic_fetch_add(&dropped, 1, __ATOMIC_RELAXED);
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    char message[1024], memory[2600], stamp[40];
    struct timespec now;
    struct tm utc;
    va_list args;

    if (level < __atomic_load_n(&min_level, __ATOMIC_RELAXED)) return;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    size_t message_len = utf8_complete_len(message, strlen(message));

    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);

    /* one line in one write, on the stack first: logging must work when memory is out */
    size_t len = (size_t)snprintf(memory, sizeof memory, "{\"ts\":\"%s.%03ldZ\",\"level\":\"%s\",\"program\":\"%s\",\"event\":\"%s\",\"msg\":\"",
                                  stamp, now.tv_nsec / 1000000, level_names[level], program, event);
    for (size_t i = 0; i < message_len && len < sizeof memory - 16; i++) {
        unsigned char c = (unsigned char)message[i];
        if (c < 0x20 || c == 0x7f || c == '"' || c == '\\') len += (size_t)snprintf(memory + len, 8, "\\u%04x", c);
        else memory[len++] = (char)c;
    }
    len += (size_t)snprintf(memory + len, 8, "\"}\n");
    write_or_drop(memory, len);
}
