/* client.h - a raw HTTP client for tests: bytes out, bytes in, nothing tidied up. */
#ifndef TEST_CLIENT_H
#define TEST_CLIENT_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"

enum { CLIENT_TIMEOUT_MS = 20000 };

struct reply { int status; struct buf head, body; bool closed; };

static int client_connect(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

static bool client_send(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t sent = send(fd, data, len, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        data += sent;
        len -= (size_t)sent;
    }
    return true;
}

/* One more piece into buf; false at the end of the stream or after the time-out. */
static bool client_more(int fd, struct buf *buf, bool *closed)
{
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    char piece[8192];

    if (poll(&ready, 1, CLIENT_TIMEOUT_MS) != 1) return false;
    ssize_t got = recv(fd, piece, sizeof piece, 0);
    if (got <= 0) { *closed = true; return false; }
    buf_append(buf, piece, (size_t)got);
    return true;
}

static const char *reply_header(const struct reply *reply, const char *name, char *value, size_t size)
{
    size_t len = strlen(name);

    for (const char *line = reply->head.data; line && (line = strstr(line, "\r\n")); ) {
        line += 2;
        if (strncasecmp(line, name, len) != 0 || line[len] != ':') continue;
        const char *start = line + len + 1 + strspn(line + len + 1, " ");
        snprintf(value, size, "%.*s", (int)strcspn(start, "\r"), start);
        return value;
    }
    return NULL;
}

/* Takes len bytes from the front of in. */
static void client_take(struct buf *in, struct buf *out, size_t len)
{
    buf_append(out, in->data, len);
    memmove(in->data, in->data + len, in->len - len + 1);
    in->len -= len;
}

static bool client_chunks(int fd, struct buf *in, struct reply *reply)
{
    struct buf dropped = BUF_INIT;

    for (bool last = false; !last; ) {
        char *end;
        while (!(in->data && (end = strstr(in->data, "\r\n")))) {
            if (!client_more(fd, in, &reply->closed)) return false;
        }
        size_t size = strtoul(in->data, NULL, 16), line = (size_t)(end - in->data) + 2;
        while (in->len < line + size + 2) {
            if (!client_more(fd, in, &reply->closed)) return false;
        }
        client_take(in, &dropped, line);
        client_take(in, &reply->body, size);
        client_take(in, &dropped, 2);
        last = size == 0;
    }
    buf_release(&dropped);
    return true;
}

/* Reads one reply; in keeps what came after it. False: the connection ended before it was whole. */
static bool client_reply(int fd, struct buf *in, struct reply *reply)
{
    char value[64], *end;

    *reply = (struct reply){ 0 };
    while (!(in->data && (end = strstr(in->data, "\r\n\r\n")))) {
        if (!client_more(fd, in, &reply->closed)) return false;
    }
    client_take(in, &reply->head, (size_t)(end - in->data) + 4);
    reply->status = (int)strtol(reply->head.data + 9, NULL, 10);
    if (reply_header(reply, "Transfer-Encoding", value, sizeof value)) return client_chunks(fd, in, reply);
    size_t len = reply_header(reply, "Content-Length", value, sizeof value) ? strtoul(value, NULL, 10) : 0;
    while (in->len < len) {
        if (!client_more(fd, in, &reply->closed)) return false;
    }
    client_take(in, &reply->body, len);
    return true;
}

static void reply_release(struct reply *reply)
{
    buf_release(&reply->head);
    buf_release(&reply->body);
}

static void client_format(struct buf *out, const char *method, const char *path, const char *extra, const char *body)
{
    buf_printf(out, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method, path, extra ? extra : "");
    if (body) buf_printf(out, "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
    else buf_puts(out, "\r\n");
}

#endif
