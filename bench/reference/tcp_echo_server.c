/* A bare server to hold a target against: each `request` bytes are answered by `response` bytes.
 *
 * It polls its sockets and never sleeps. The first line of output is {"port": N}; it serves until
 * its parent dies, SIGTERM comes, or `seconds` are over, and then prints what it served. */
#include "tcp.h"

static volatile sig_atomic_t stopped = 0;

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

static int accept_one(int listener, struct service *services, int count) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return count;
    if (count == CONNECTIONS_MAX) {
        close(fd);
        return count;
    }
    make_fast(fd);
    memset(&services[count], 0, sizeof services[count]);
    services[count].fd = fd;
    services[count].chunk = CHUNK_USUAL;
    return count + 1;
}

static int64_t serve(int listener, int64_t request, int64_t response, int64_t deadline_ns) {
    struct service services[CONNECTIONS_MAX];
    unsigned char *buffer = chunk_new();
    int count = 0;
    int64_t served = 0;
    for (uint64_t pass = 0; !stopped; pass++) {
        if (pass % 1024 == 0 || count == 0) { /* new clients and the clock are rare */
            count = accept_one(listener, services, count);
            if (now_ns() > deadline_ns) break;
        }
        for (int i = 0; i < count; i++) {
            if (serve_once(&services[i], buffer, request, response)) continue;
            served += services[i].requests;
            close(services[i].fd);
            services[i--] = services[--count];
        }
    }
    for (int i = 0; i < count; i++) served += services[i].requests;
    free(buffer);
    return served;
}

int main(int argc, char **argv) {
    check_options(argc, argv, " core port request response seconds ");
    int64_t request = option(argc, argv, "request", 48);
    int64_t response = option(argc, argv, "response", 48 + 4096);
    int64_t seconds = option(argc, argv, "seconds", 60);
    if (request < 1 || response < 1) refuse("sizes", "must be positive");
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    limit_run_time(seconds + 10);
    pin(option(argc, argv, "core", -1));
    int listener = listen_on(option(argc, argv, "port", 0));
    if (fcntl(listener, F_SETFL, O_NONBLOCK) != 0) fail("O_NONBLOCK");
    printf("{\"port\":%u}\n", (unsigned)port_of(listener));
    fflush(stdout);
    int64_t served = serve(listener, request, response, now_ns() + seconds * 1000000000);
    printf("{\"name\":\"tcp_echo_server\",\"requests\":%" PRId64 "}\n", served);
    return 0;
}
