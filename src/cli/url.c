#include "url.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

static bool copy_part(char *out, size_t size, const char *text, size_t len)
{
    if (len == 0 || len >= size) return false;
    memcpy(out, text, len);
    out[len] = '\0';
    return true;
}

bool url_read(const char *url, struct target *target)
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

int url_wait(int fd, short events, int64_t deadline_ms)
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
    if (failure == EINPROGRESS && url_wait(fd, POLLOUT, deadline_ms) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) == 0 && failure == 0)
        return fd;
    if (failure == EINPROGRESS) failure = errno;
    close(fd);
    errno = failure;
    return -1;
}

int url_connect(const struct target *target, int64_t deadline_ms, struct err *err)
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

void url_authority(const struct target *target, char text[AUTHORITY_SIZE])
{
    bool v6 = strchr(target->host, ':') != NULL;

    snprintf(text, AUTHORITY_SIZE, "%s%s%s:%s", v6 ? "[" : "", target->host, v6 ? "]" : "", target->port);
}

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

int url_get(const struct target *target, char *answer, size_t size, int64_t timeout_ms, struct err *err)
{
    int64_t deadline_ms = clock_now_ms() + timeout_ms;
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
