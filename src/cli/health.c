/* health.c - sluice health: one GET to a running sluiced. Exit 0 when the answer is 200, else 1. */
#include <sluice/cli.h>

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <sluice/config.h>

#include "base/clock.h"
#include "say.h"

enum { DEADLINE_MS = 5000, ANSWER_MAX_BYTES = 8192, HOST_SIZE = 256, PORT_SIZE = 8, PATH_SIZE = 256 };

#define HEALTH_USAGE "usage: sluice health [--ready | --live] [--url http://HOST:PORT[/PATH]] [options of sluiced]"

struct target { char host[HOST_SIZE], port[PORT_SIZE], path[PATH_SIZE]; };

static bool copy_part(char *out, size_t size, const char *text, size_t len)
{
    if (len == 0 || len >= size) return false;
    memcpy(out, text, len);
    out[len] = '\0';
    return true;
}

/* http://host[:port][/path], host in brackets for IPv6; keeps path when the URL has none. */
static bool read_url(const char *url, struct target *target)
{
    const char *host = url + strlen("http://"), *after = NULL, *path = NULL;
    bool bracket = false;
    size_t len = 0;

    if (strncmp(url, "http://", strlen("http://")) != 0) return false;
    bracket = *host == '[';
    host += bracket;
    len = strcspn(host, bracket ? "]" : ":/");
    if (!copy_part(target->host, sizeof target->host, host, len)) return false;
    after = host + len + bracket;
    if (bracket && host[len] != ']') return false;
    snprintf(target->port, sizeof target->port, "80");
    if (*after == ':') {
        len = strspn(after + 1, "0123456789");
        if (!copy_part(target->port, sizeof target->port, after + 1, len)) return false;
        after += 1 + len;
    }
    path = after;
    if (*path == '\0' || strcmp(path, "/") == 0) return true;
    /* a blank or a control byte would end the request line early */
    for (const char *at = path; *at; at++)
        if ((unsigned char)*at <= ' ' || *at == 0x7f) return false;
    return *path == '/' && copy_part(target->path, sizeof target->path, path, strlen(path));
}

static int wait_for(int fd, short events, int64_t deadline_ms)
{
    struct pollfd poller = { .fd = fd, .events = events };

    for (;;) {
        int64_t left = deadline_ms - clock_now_ms();
        int n = left > 0 ? poll(&poller, 1, (int)left) : 0;
        if (n > 0) return 0;
        if (n == 0) errno = ETIMEDOUT;
        if (n == 0 || errno != EINTR) return -1;
    }
}

static int connect_one(const struct addrinfo *address, int64_t deadline_ms)
{
    int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address->ai_protocol);
    int failure = 0;
    socklen_t size = sizeof failure;

    if (fd < 0) return -1;
    if (connect(fd, address->ai_addr, address->ai_addrlen) == 0) return fd;
    failure = errno;
    if (failure == EINPROGRESS && wait_for(fd, POLLOUT, deadline_ms) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) == 0 && failure == 0)
        return fd;
    if (failure == EINPROGRESS) failure = errno;
    close(fd);
    errno = failure;
    return -1;
}

static int connect_to(const struct target *target, int64_t deadline_ms, struct err *err)
{
    struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *list = NULL;
    int rc = getaddrinfo(target->host, target->port, &hints, &list), fd = -1;

    if (rc != 0) return err_set(err, ERR_IO, "%s: %s", target->host, gai_strerror(rc));
    for (const struct addrinfo *address = list; address && fd < 0; address = address->ai_next)
        fd = connect_one(address, deadline_ms);
    if (fd < 0) rc = err_sys(err, ERR_IO, "%s port %s", target->host, target->port);
    freeaddrinfo(list);
    return fd < 0 ? rc : fd;
}

static int send_all(int fd, const char *data, size_t len, int64_t deadline_ms)
{
    while (len > 0) {
        ssize_t sent = send(fd, data, len, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            len -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (wait_for(fd, POLLOUT, deadline_ms) < 0) return -1;
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
        if (wait_for(fd, POLLIN, deadline_ms) < 0) return -1;
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
    bool v6 = strchr(target->host, ':') != NULL;
    int status = 0, rc = 0;
    int fd = connect_to(target, deadline_ms, err);

    if (fd < 0) return fd;
    int len = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s%s%s:%s\r\nConnection: close\r\n\r\n",
                       target->path,
                       v6 ? "[" : "", target->host, v6 ? "]" : "", target->port);
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
    if (code == 0 && url && !read_url(url, &target))
        code = say_refused("health", "--url: '%.200s' is not http://HOST[:PORT][/PATH]", url);
    if (code == 0 && !url && config_load(&config, n_rest, rest, NULL, &err) < 0) code = say_error("health", &err);
    if (code == 0 && url && n_rest > 0) code = say_refused("health", "'%s' has no use beside --url", rest[0]);
    if (code == 0 && !url) target_from_config(&config, &target);
    if (code == 0) code = report(&target, answer, ask(&target, answer, sizeof answer, &err), &err);
    config_release(&config);
    free(rest);
    return code;
}
