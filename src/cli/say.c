#include "say.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int say_error(const char *command, const struct err *err)
{
    fprintf(stderr, "sluice %s: %s\n", command, err->message);
    switch (err->code) {
    case ERR_CONFIG:
    case ERR_MODEL_FILE:
    case ERR_NOT_FOUND:
    case ERR_UNSUPPORTED:
    case ERR_IO: return EXIT_CONFIG;
    default: return EXIT_FAULT;
    }
}

int say_refused(const char *command, const char *fmt, ...)
{
    va_list args;

    fprintf(stderr, "sluice %s: ", command);
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    return EXIT_CONFIG;
}

int say_done(const char *command)
{
    if (fflush(stdout) == 0 && !ferror(stdout)) return 0;
    fprintf(stderr, "sluice %s: writing: %s\n", command, strerror(errno));
    return EXIT_FAULT;
}
