/* url.h - where a server is, and a connection to it. Thread: any; no state. */
#ifndef SLUICE_CLI_URL_H
#define SLUICE_CLI_URL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sluice/err.h>

enum { HOST_SIZE = 256, PORT_SIZE = 8, PATH_SIZE = 256 };

struct target { char host[HOST_SIZE], port[PORT_SIZE], path[PATH_SIZE]; };

/* http://host[:port][/path], host in brackets for IPv6; keeps path when the URL has none. */
bool url_read(const char *url, struct target *target);
/* Non-blocking descriptor, connected; tries every address of the host. ERR_IO. */
int  url_connect(const struct target *target, int64_t deadline_ms, struct err *err);
/* 0 when fd is ready for events (POLLIN, POLLOUT), -1 with errno (ETIMEDOUT). */
int  url_wait(int fd, short events, int64_t deadline_ms);
/* One GET. answer: size bytes, head and body, cut to fit, NUL added. The answer's status, or a negative code. */
int  url_get(const struct target *target, char *answer, size_t size, int64_t timeout_ms, struct err *err);
/* "[::1]:80" or "host:80", as in the Host header. */
enum { AUTHORITY_SIZE = HOST_SIZE + PORT_SIZE + 4 };
void url_authority(const struct target *target, char text[AUTHORITY_SIZE]);

#endif
