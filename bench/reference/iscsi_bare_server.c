/* The least that an iSCSI initiator takes for a target: what a target's own work is held against.
 *
 * It polls its sockets and never sleeps, one command's answer costs one header (RFC 7143 §11.7,
 * §11.4) and no thought: a read is answered by whatever lies in the buffer, the data of a write is
 * thrown away, nothing is checked. Writes bring all their data with the command (immediate data of
 * up to 256 KiB). No digests, one login request per stage. The first line of output is {"port": N};
 * it serves until its parent dies, SIGTERM comes, or `seconds` are over. */
#include "tcp.h"

enum {
    BHS = 48,
    IN_SIZE = 1 << 20,
    OUT_SIZE = 4 << 20,
    ANSWER_MAX = BHS + (1 << 18) + 8192,
    BLOCK = 512,
    WINDOW = 256,
    CLIENTS_MAX = 16,
};
enum { NOP_OUT, COMMAND, LOGIN = 3, LOGOUT = 6 };
enum { NOP_IN = 0x20, RESPONSE = 0x21, LOGIN_RESPONSE = 0x23, DATA_IN = 0x25, LOGOUT_RESPONSE = 0x26 };

struct client {
    int fd;
    uint32_t stat_sn, exp_cmd_sn;
    size_t held, made, sent; /* bytes in `in`; of answers in `out`, and of those sent */
    unsigned char *in, *out;
};

static volatile sig_atomic_t stopped = 0;
static int64_t blocks;

static void stop(int signal_number) {
    (void)signal_number;
    stopped = 1;
}

static uint32_t load_32(const unsigned char *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return ntohl(value);
}

static void store_32(unsigned char *at, uint32_t value) {
    value = htonl(value);
    memcpy(at, &value, 4);
}

static size_t padded(size_t length) { return (length + 3) & ~(size_t)3; }

static size_t data_length(const unsigned char *pdu) { return load_32(pdu + 4) & 0xffffff; }

/* Begin an answer of `length` bytes of data, which are already there. Its header. */
static unsigned char *answer(struct client *c, const unsigned char *pdu, int opcode, int flags,
                             size_t length) {
    unsigned char *header = c->out + c->made;
    memset(header, 0, BHS);
    header[0] = (unsigned char)opcode;
    header[1] = (unsigned char)flags;
    store_32(header + 4, (uint32_t)length);
    memcpy(header + 16, pdu + 16, 4); /* the initiator's task tag */
    store_32(header + 24, c->stat_sn++);
    store_32(header + 28, c->exp_cmd_sn);
    store_32(header + 32, c->exp_cmd_sn + WINDOW - 1);
    c->made += BHS + padded(length);
    return header;
}

/* Data with good status in one PDU, with what the initiator expected beyond it as a residual. */
static void answer_data(struct client *c, const unsigned char *pdu, size_t length) {
    uint32_t expected = load_32(pdu + 20);
    if (length > ANSWER_MAX - BHS) refuse("a read", "is longer than 256 KiB");
    if (length > expected) length = expected;
    unsigned char *header = answer(c, pdu, DATA_IN, 0x81, length);
    store_32(header + 20, 0xffffffff);
    if (length == expected) return;
    header[1] |= 0x02;
    store_32(header + 44, expected - (uint32_t)length);
}

static void inquire(struct client *c, const unsigned char *pdu) {
    unsigned char *data = c->out + c->made + BHS;
    memset(data, 0, 64);
    if (pdu[33] & 1) { /* vital product data: the list of pages has itself alone */
        data[3] = 1;
        answer_data(c, pdu, 5);
        return;
    }
    data[2] = 6, data[3] = 2, data[4] = 31, data[7] = 2;
    memcpy(data + 8, "BARE    reference       1   ", 28);
    answer_data(c, pdu, 36);
}

static void tell_capacity(struct client *c, const unsigned char *pdu) {
    unsigned char *data = c->out + c->made + BHS;
    memset(data, 0, 32);
    store_32(data + 4, (uint32_t)(blocks - 1));
    store_32(data + 8, BLOCK);
    answer_data(c, pdu, 32);
}

static void execute(struct client *c, const unsigned char *pdu) {
    if (!(pdu[0] & 0x40)) c->exp_cmd_sn++;
    switch (pdu[32]) {
    case 0x28: case 0x88: answer_data(c, pdu, load_32(pdu + 20)); break;
    case 0x12: inquire(c, pdu); break;
    case 0x9e: tell_capacity(c, pdu); break;
    case 0x2a: case 0x8a:
        if (data_length(pdu) != load_32(pdu + 20)) refuse("a write", "is not all immediate data");
        /* fall through */
    case 0x00: answer(c, pdu, RESPONSE, 0x80, 0); break;
    default: refuse("a command", "is none that a bare server answers");
    }
}

/* Accept every offer as it is; of a list of choices, the one that is nothing. */
static size_t accept_offers(const char *said, size_t length, char *out, int is_security) {
    static const char *declared[] = {"InitiatorName=", "InitiatorAlias=", "TargetName=",
                                     "SessionType=", NULL};
    size_t made = 0;
    if (is_security) made = 1 + (size_t)sprintf(out, "TargetPortalGroupTag=1");
    for (size_t at = 0; at < length; at += strnlen(said + at, length - at) + 1) {
        const char *pair = said + at, *equals = memchr(pair, '=', length - at);
        if (!equals) continue;
        int skip = 0;
        for (const char **one = declared; *one; one++) skip |= !strncmp(pair, *one, strlen(*one));
        if (skip) continue;
        int is_list = !strncmp(pair, "AuthMethod=", 11) || !strncmp(pair, "HeaderDigest=", 13) ||
                      !strncmp(pair, "DataDigest=", 11);
        if (is_list)
            made += 1 + (size_t)sprintf(out + made, "%.*s=None", (int)(equals - pair), pair);
        else
            made += 1 + (size_t)sprintf(out + made, "%s", pair);
    }
    return made;
}

static void log_in(struct client *c, unsigned char *pdu) {
    size_t length = data_length(pdu);
    if (length > 4096 || !(pdu[1] & 0x80)) refuse("the login", "is not one request per stage");
    pdu[BHS + length] = 0; /* there is room: a login leaves most of `in` unused */
    c->exp_cmd_sn = load_32(pdu + 24);
    size_t made = accept_offers((char *)pdu + BHS, length, (char *)c->out + c->made + BHS,
                                (pdu[1] & 0x0c) == 0);
    unsigned char *header = answer(c, pdu, LOGIN_RESPONSE, pdu[1], made);
    memcpy(header + 8, pdu + 8, 6); /* ISID */
    header[15] = 1;                 /* TSIH */
}

static void take(struct client *c, unsigned char *pdu) {
    switch (pdu[0] & 0x3f) {
    case COMMAND: execute(c, pdu); break;
    case LOGIN: log_in(c, pdu); break;
    case NOP_OUT:
        if (load_32(pdu + 16) != 0xffffffff) store_32(answer(c, pdu, NOP_IN, 0x80, 0) + 20, ~0u);
        break;
    case LOGOUT: answer(c, pdu, LOGOUT_RESPONSE, 0x80, 0); break;
    default: refuse("a PDU", "is none that a bare server answers");
    }
}

static void take_all(struct client *c) {
    size_t at = 0;
    while (c->held - at >= BHS && c->made + ANSWER_MAX <= OUT_SIZE) {
        size_t length = BHS + padded(data_length(c->in + at)) + 4 * (size_t)c->in[at + 4];
        if (length > IN_SIZE) refuse("a PDU", "is too long");
        if (c->held - at < length) break;
        take(c, c->in + at);
        at += length;
    }
    if (at == 0) return;
    c->held -= at;
    if (c->held) memmove(c->in, c->in + at, c->held);
}

/* One pass over one connection. Returns 0 when the client has gone. */
static int serve_client(struct client *c) {
    if (c->held < IN_SIZE) {
        int64_t moved = receive_some(c->fd, c->in + c->held, IN_SIZE - c->held);
        if (moved < 0) return 0;
        c->held += (size_t)moved;
    }
    take_all(c);
    if (c->made == c->sent) return 1;
    int64_t moved = send_some(c->fd, c->out + c->sent, c->made - c->sent);
    if (moved < 0) return 0;
    c->sent += (size_t)moved;
    if (c->sent == c->made) c->sent = c->made = 0;
    return 1;
}

static int accept_one(int listener, struct client *clients, int count) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return count;
    if (count == CLIENTS_MAX) {
        close(fd);
        return count;
    }
    make_fast(fd);
    struct client *c = &clients[count];
    unsigned char *in = c->in, *out = c->out;
    memset(c, 0, sizeof *c);
    c->fd = fd, c->stat_sn = 1;
    c->in = in ? in : (unsigned char *)calloc(1, IN_SIZE);
    c->out = out ? out : (unsigned char *)calloc(1, OUT_SIZE);
    if (!c->in || !c->out) fail("calloc");
    return count + 1;
}

int main(int argc, char **argv) {
    check_options(argc, argv, " core port blocks seconds ");
    int64_t seconds = option(argc, argv, "seconds", 60);
    blocks = option(argc, argv, "blocks", 131072);
    if (blocks < 1 || blocks > INT32_MAX) refuse("blocks", "must be 1 to 2^31-1");
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    limit_run_time(seconds + 10);
    pin(option(argc, argv, "core", -1));
    int listener = listen_on(option(argc, argv, "port", 0));
    if (fcntl(listener, F_SETFL, O_NONBLOCK) != 0) fail("O_NONBLOCK");
    printf("{\"port\":%u}\n", (unsigned)port_of(listener));
    fflush(stdout);
    static struct client clients[CLIENTS_MAX];
    int64_t end = now_ns() + seconds * 1000000000;
    int count = 0;
    for (uint64_t pass = 0; !stopped; pass++) {
        if (pass % 1024 == 0 || count == 0) { /* new clients and the clock are rare */
            count = accept_one(listener, clients, count);
            if (now_ns() > end) break;
        }
        for (int i = 0; i < count; i++) {
            if (serve_client(&clients[i])) continue;
            close(clients[i].fd);
            struct client gone = clients[i];
            clients[i--] = clients[--count];
            clients[count] = gone;
        }
    }
    return 0;
}
