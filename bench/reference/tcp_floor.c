/* The floor under iSCSI on loopback TCP: the same message sizes, no protocol, both ends polling.
 *
 * The client keeps `depth` requests of `request` bytes in flight and counts responses of `response`
 * bytes; both ends move as many messages with one system call as there are, up to `chunk` bytes. A
 * sample is one message's time from just before its send to the receipt of its last byte. */
#include "tcp.h"

enum { DEPTH_MAX = 4096 };

struct client {
    int fd;
    int64_t request, response, depth, chunk;
    int64_t sent, completed;   /* messages */
    int64_t unsent, partial;   /* bytes of requests still to send, bytes of a partial response */
    uint64_t started[DEPTH_MAX];
};

static void serve(int listener, int64_t request, int64_t response, int64_t chunk) {
    struct service service = {0};
    service.chunk = chunk;
    service.fd = accept(listener, NULL, NULL);
    if (service.fd < 0) fail("accept");
    make_fast(service.fd);
    unsigned char *buffer = chunk_new();
    while (serve_once(&service, buffer, request, response)) {}
    _exit(0);
}

static void send_requests(struct client *c, unsigned char *buffer) {
    int64_t room = c->depth - (c->sent - c->completed);
    if (room > 0) {
        uint64_t now = ticks();
        for (int64_t i = 0; i < room; i++) c->started[(c->sent + i) % c->depth] = now;
        c->sent += room;
        c->unsent += room * c->request;
    }
    if (c->unsent == 0) return;
    int64_t moved = send_some(c->fd, buffer, (size_t)(c->unsent < c->chunk ? c->unsent : c->chunk));
    if (moved < 0) refuse("tcp_floor", "the server closed the connection");
    c->unsent -= moved;
}

static void take_responses(struct client *c, unsigned char *buffer, struct samples *samples) {
    int64_t moved = receive_some(c->fd, buffer, (size_t)c->chunk);
    if (moved < 0) refuse("tcp_floor", "the server closed the connection");
    if (moved == 0) return;
    c->partial += moved;
    uint64_t now = ticks();
    for (; c->partial >= c->response; c->partial -= c->response) {
        samples_add(samples, now - c->started[c->completed % c->depth]);
        c->completed++;
    }
}

/* Returns messages per tick, warm-up excluded. */
static double run(struct client *c, struct samples *samples, int64_t deadline_ns) {
    unsigned char *buffer = chunk_new();
    uint64_t start = ticks();
    int64_t before = 0;
    while (!samples_full(samples) && now_ns() < deadline_ns) {
        for (int i = 0; i < 64 && !samples_full(samples); i++) {
            send_requests(c, buffer);
            take_responses(c, buffer, samples);
        }
        if (!samples_warm(samples)) {
            start = ticks();
            before = c->completed;
        }
    }
    uint64_t elapsed = ticks() - start;
    free(buffer);
    return (double)(c->completed - before) / (double)elapsed;
}

int main(int argc, char **argv) {
    check_options(argc, argv, " a b samples warmup seconds request response depth chunk ");
    int64_t a = option(argc, argv, "a", 0), b = option(argc, argv, "b", 1);
    int64_t seconds = option(argc, argv, "seconds", 2);
    struct client client = {0};
    client.request = option(argc, argv, "request", 48);
    client.response = option(argc, argv, "response", 48 + 4096);
    client.depth = option(argc, argv, "depth", 1);
    client.chunk = option(argc, argv, "chunk", CHUNK_USUAL);
    if (client.request < 1 || client.response < 1) refuse("sizes", "must be positive");
    if (client.depth < 1 || client.depth > DEPTH_MAX) refuse("depth", "must be 1 to 4096");
    if (client.chunk < 1 || client.chunk > CHUNK_MAX) refuse("chunk", "must be 1 to 1048576");
    struct samples samples = samples_new(option(argc, argv, "samples", 1000000),
                                         option(argc, argv, "warmup", 2000));
    double per_tick = ns_per_tick();
    int listener = listen_on(0);
    pid_t child = fork_peer(seconds + 10);
    if (child == 0) {
        limit_run_time(seconds + 10);
        pin(b);
        serve(listener, client.request, client.response, client.chunk);
    }
    pin(a);
    client.fd = connect_to(port_of(listener));
    double rate = run(&client, &samples, now_ns() + seconds * 1000000000) / per_tick;
    close(client.fd);
    join_peer(child);
    char more[160];
    snprintf(more, sizeof more,
             ",\"request\":%" PRId64 ",\"response\":%" PRId64 ",\"depth\":%" PRId64 ",\"iops\":%.1f",
             client.request, client.response, client.depth, rate * 1e9);
    report("tcp_floor", a, b, &samples, 1, per_tick, more);
    return 0;
}
