/* The cache-coherency floor: two processes, one flag word per direction, each in lines of its own.
 *
 * Nothing can make a round trip through shared memory faster than moving one line there and one
 * line back, so every ring is measured against this. One sample is the mean of `group` round trips
 * (1 unless told): some clocks advance in steps of 10 ns, which is much for one of them. */
#include "reference.h"

#include <stdatomic.h>

struct flags {
    _Alignas(SPAN) _Atomic uint64_t ping;
    _Alignas(SPAN) _Atomic uint64_t pong;
};

static const uint64_t STOP = UINT64_MAX;

static void answer(struct flags *flags) {
    for (uint64_t i = 1;; i++) {
        uint64_t seen;
        while ((seen = atomic_load_explicit(&flags->ping, memory_order_acquire)) != i)
            if (seen == STOP) _exit(0);
        atomic_store_explicit(&flags->pong, i, memory_order_release);
    }
}

static void ask(struct flags *flags, struct samples *samples, uint64_t group,
                int64_t deadline_ns) {
    uint64_t last = ticks();
    for (uint64_t i = 1; !samples_full(samples); i++) {
        atomic_store_explicit(&flags->ping, i, memory_order_release);
        while (atomic_load_explicit(&flags->pong, memory_order_acquire) != i) {}
        if (i % group != 0) continue;
        uint64_t now = ticks();
        samples_add(samples, now - last);
        last = now;
        if (i / group % 4096 == 0) { /* the look at the clock is in no sample */
            if (now_ns() > deadline_ns) break;
            last = ticks();
        }
    }
    atomic_store_explicit(&flags->ping, STOP, memory_order_release);
}

int main(int argc, char **argv) {
    check_options(argc, argv, " a b samples warmup seconds group ");
    int64_t a = option(argc, argv, "a", 0), b = option(argc, argv, "b", 1);
    int64_t seconds = option(argc, argv, "seconds", 10);
    int64_t group = option(argc, argv, "group", 1);
    require_two_cores(a, b);
    if (group < 1 || group > 4096) refuse("group", "must be 1 to 4096");
    struct samples samples = samples_new(option(argc, argv, "samples", 200000),
                                         option(argc, argv, "warmup", 20000));
    struct flags *flags = (struct flags *)share(sizeof *flags);
    double per_tick = ns_per_tick();
    pid_t child = fork_peer(seconds + 10);
    if (child == 0) {
        limit_run_time(seconds + 10);
        pin(b);
        answer(flags);
    }
    pin(a);
    ask(flags, &samples, (uint64_t)group, now_ns() + seconds * 1000000000);
    join_peer(child);
    char more[48];
    snprintf(more, sizeof more, ",\"group\":%" PRId64, group);
    report("floor_pingpong", a, b, &samples, group, per_tick, more);
    return 0;
}
