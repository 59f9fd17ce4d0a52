/* say.h - how a command ends. */
#ifndef SLUICE_CLI_SAY_H
#define SLUICE_CLI_SAY_H

#include <stdbool.h>

#include <sluice/err.h>

/* "sluice check: message" on stderr; EXIT_CONFIG for what the user gave, EXIT_FAULT for what broke here. */
int  say_error(const char *command, const struct err *err);
/* The same for one line of text. */
int  say_refused(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Was all of stdout written? 0 or EXIT_FAULT with a message (a full disk must not look like success). */
int  say_done(const char *command);

#endif
