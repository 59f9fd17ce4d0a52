/* health.c - sluice health: one GET to a running sluiced. Exit 0 when the answer is 200, else 1. */
#include <sluice/cli.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sluice/config.h>

#include "base/clock.h"
#include "say.h"
#include "url.h"

enum { DEADLINE_MS = 5000, ANSWER_MAX_BYTES = 8192 };

#define HEALTH_USAGE "usage: sluice health [--ready | --live] [--url http://HOST:PORT[/PATH]] [options of sluiced]"

static int send_all(int fd, const char *data, size_t len, int64_t deadline_ms)
{
    while (len > 0) {
        ssize_t sent = send(fd, data, len, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            len -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (url_wait(fd, POLLOUT, deadline_ms) < 0) return -1;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return 0;
}

/* Reads to the end of the connection (the request asked for it) or until answer is full. */
static int receive_all(int fd, char *answer, size_t size, int64_t deadline_ms)
{
    size_t len = 0;

    while (len + 1 < size) {
        if (url_wait(fd, POLLIN, deadline_ms) < 0) return -1;
        ssize_t got = recv(fd, answer + len, size - 1 - len, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        len += (size_t)got;
    }
    answer[len] = '\0';
    return 0;
}

/* answer: size bytes. Returns the status of the answer, or a negative code when there was none. */
static int ask(const struct target *target, char *answer, size_t size, struct err *err)
{
    int64_t deadline_ms = clock_now_ms() + DEADLINE_MS;
    char request[PATH_SIZE + HOST_SIZE + 128];
    char authority[AUTHORITY_SIZE];
    int status = 0, rc = 0;
    int fd = url_connect(target, deadline_ms, err);

    if (fd < 0) return fd;
    url_authority(target, authority);
    int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n",
                       target->path, authority);
    rc = send_all(fd, request, (size_t)len, deadline_ms);
    if (rc == 0) rc = receive_all(fd, answer, size, deadline_ms);
    if (rc < 0) rc = err_sys(err, ERR_IO, "%s port %s", target->host, target->port);
    else if (sscanf(answer, "HTTP/1.%*1[01] %3d", &status) != 1)
        rc = err_set(err, ERR_PROTOCOL, "%s port %s: the answer is not HTTP", target->host, target->port);
    close(fd);
    return rc < 0 ? rc : status;
}

/* What listens on all addresses is asked on the loopback one. */
static void target_from_config(const struct config *config, struct target *target)
{
    const char *host = config->host;

    if (strcmp(host, "0.0.0.0") == 0) host = "127.0.0.1";
    if (strcmp(host, "::") == 0) host = "::1";
    snprintf(target->host, sizeof target->host, "%s", host);
    snprintf(target->port, sizeof target->port, "%" PRId64, config->port);
}

/* Takes this command's own arguments out of argv; the rest is for config_load. */
static int take_own(int argc, char **argv, int *n_rest, char **rest, const char **url, struct target *target)
{
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--ready") == 0) snprintf(target->path, sizeof target->path, "/health/ready");
        else if (strcmp(argv[i], "--live") == 0) snprintf(target->path, sizeof target->path, "/health/live");
        else if (strncmp(argv[i], "--url=", 6) == 0) *url = argv[i] + 6;
        else if (strcmp(argv[i], "--url") != 0) rest[(*n_rest)++] = argv[i];
        else if (++i < argc) *url = argv[i];
        else return say_refused("health", "--url: needs a value");
    }
    return 0;
}

static int report(const struct target *target, char *answer, int status, const struct err *err)
{
    char *body = NULL;

    if (status < 0) {
        fprintf(stderr, "sluice health: %s\n", err->message);
        return 1;
    }
    body = strstr(answer, "\r\n\r\n");
    body = body ? body + 4 : answer + strlen(answer);
    body[strcspn(body, "\r\n")] = '\0';
    printf("%s %d %s\n", target->path, status, body);
    return status == 200 ? say_done("health") : 1;
}

int cli_health(int argc, char **argv)
{
    struct target target = { .path = "/health/ready" };
    struct config config = { 0 };
    struct err err = { 0 };
    char answer[ANSWER_MAX_BYTES];
    const char *url = NULL;
    char **rest = NULL;
    int n_rest = 0, code = 0;

    if (wants_help(argc, argv)) {
        puts(HEALTH_USAGE "\n\nAsks a running sluiced at host and port of the configuration, or at the URL.\n"
             "--ready (default): may requests be sent? --live: does the gateway answer?\n"
             "Exit code 0 = yes, 1 = no or no answer, 78 = bad options.");
        return say_done("health");
    }
    rest = calloc((size_t)argc + 1, sizeof *rest);
    if (!rest) return EXIT_FAULT;
    code = take_own(argc, argv, &n_rest, rest, &url, &target);
    if (code == 0 && url && !url_read(url, &target))
        code = say_refused("health", "--url: '%.200s' is not http://HOST[:PORT][/PATH]", url);
    if (code == 0 && !url && config_load(&config, n_rest, rest, NULL, &err) < 0) code = say_error("health", &err);
    if (code == 0 && url && n_rest > 0) code = say_refused("health", "'%s' has no use beside --url", rest[0]);
    if (code == 0 && !url) target_from_config(&config, &target);
    if (code == 0) code = report(&target, answer, ask(&target, answer, sizeof answer, &err), &err);
    config_release(&config);
    free(rest);
    return code;
}
