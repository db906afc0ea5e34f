/* Non-blocking loopback TCP for the two TCP references. Every address is 127.0.0.1. */
#ifndef PPE_REFERENCE_TCP_H
#define PPE_REFERENCE_TCP_H

#include "reference.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

static inline void make_fast(int fd) {
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail("TCP_NODELAY");
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0) fail("O_NONBLOCK");
}

static inline int listen_on(int64_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) fail("socket");
    struct sockaddr_in address = {0};
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
    if (listen(fd, 16) != 0) fail("listen");
    return fd;
}

static inline uint16_t port_of(int fd) {
    struct sockaddr_in address = {0};
    socklen_t length = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &length) != 0) fail("getsockname");
    return ntohs(address.sin_port);
}

static inline int connect_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    struct sockaddr_in address = {0};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("connect");
    make_fast(fd);
    return fd;
}

/* Bytes moved; 0 when the socket has no data or no room now; -1 when the peer is gone. */
static inline int64_t receive_some(int fd, void *buffer, size_t bytes) {
    ssize_t moved = recv(fd, buffer, bytes, 0);
    if (moved > 0) return moved;
    if (moved < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    return -1;
}

static inline int64_t send_some(int fd, const void *buffer, size_t bytes) {
    ssize_t moved = send(fd, buffer, bytes, MSG_NOSIGNAL);
    if (moved >= 0) return moved;
    return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

enum { CHUNK_MAX = 1 << 20, CHUNK_USUAL = 1 << 18, CONNECTIONS_MAX = 64 };

/* A server's side of one connection: whole requests in, as many fixed responses out. */
struct service {
    int fd;
    int64_t chunk;    /* the most bytes that one system call moves */
    int64_t partial;  /* bytes of a request that is not complete yet */
    int64_t owed;     /* bytes of responses not sent yet */
    int64_t requests; /* complete requests so far */
};

/* One pass over one connection. Returns false when the client has gone. */
static inline int serve_once(struct service *s, unsigned char *buffer, int64_t request,
                             int64_t response) {
    int64_t moved = receive_some(s->fd, buffer, (size_t)s->chunk);
    if (moved < 0) return 0;
    s->partial += moved;
    s->requests += s->partial / request;
    s->owed += s->partial / request * response;
    s->partial %= request;
    if (s->owed == 0) return 1;
    moved = send_some(s->fd, buffer, (size_t)(s->owed < s->chunk ? s->owed : s->chunk));
    if (moved < 0) return 0;
    s->owed -= moved;
    return 1;
}

static inline unsigned char *chunk_new(void) {
    unsigned char *buffer = (unsigned char *)aligned_alloc(4096, CHUNK_MAX);
    if (!buffer) fail("aligned_alloc");
    memset(buffer, 0, CHUNK_MAX);
    return buffer;
}

#endif
