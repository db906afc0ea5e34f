/* How fast bytes cross from one core to another: memcpy in, hand over, memcpy out.
 *
 * The producer copies a batch from private memory into one of several shared buffers, the consumer
 * copies it out into private memory; a flag per buffer passes it back and forth. One sample is the
 * mean time of a batch over GROUP batches, so that the clock costs next to nothing. */
#include "reference.h"

#include <stdatomic.h>

enum { GROUP = 16, BUFFERS_MAX = 1024 };

/* Even turns belong to the producer, odd ones to the consumer; STOP ends the run. */
struct turn {
    _Alignas(SPAN) _Atomic uint64_t word;
};

static const uint64_t STOP = UINT64_MAX;

struct shared {
    struct turn turns[BUFFERS_MAX];
    _Alignas(4096) unsigned char bytes[];
};

/* The compiler must neither drop the copy nor see through it. */
static inline void copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
    __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
}

static void produce(struct shared *shared, size_t batch, size_t buffers) {
    unsigned char *source = (unsigned char *)aligned_alloc(4096, (batch + 4095) / 4096 * 4096);
    if (!source) fail("aligned_alloc");
    memset(source, 0x5a, batch);
    for (uint64_t i = 0;; i++) {
        size_t slot = i % buffers;
        uint64_t mine = i / buffers * 2, seen;
        while ((seen = atomic_load_explicit(&shared->turns[slot].word, memory_order_acquire)) !=
               mine)
            if (seen == STOP) _exit(0);
        copy(shared->bytes + slot * batch, source, batch);
        /* Not a plain store: it must not hide a STOP that arrived meanwhile. */
        if (!atomic_compare_exchange_strong_explicit(&shared->turns[slot].word, &seen, mine + 1,
                                                     memory_order_release, memory_order_acquire))
            _exit(0);
    }
}

static double consume(struct shared *shared, size_t batch, size_t buffers, struct samples *samples,
                      int64_t deadline_ns) {
    unsigned char *target = (unsigned char *)aligned_alloc(4096, (batch + 4095) / 4096 * 4096);
    if (!target) fail("aligned_alloc");
    memset(target, 0, batch);
    uint64_t last = ticks(), start = last, counted = 0;
    for (uint64_t i = 0; !samples_full(samples); i++) {
        size_t slot = i % buffers;
        uint64_t mine = i / buffers * 2 + 1;
        while (atomic_load_explicit(&shared->turns[slot].word, memory_order_acquire) != mine) {}
        copy(target, shared->bytes + slot * batch, batch);
        atomic_store_explicit(&shared->turns[slot].word, mine + 1, memory_order_release);
        if ((i + 1) % GROUP != 0) continue;
        uint64_t now = ticks();
        if (samples_warm(samples)) counted += GROUP;
        else start = now;
        samples_add(samples, now - last);
        last = now;
        if ((i + 1) % (GROUP * 1024) == 0 && now_ns() > deadline_ns) break;
    }
    uint64_t elapsed = ticks() - start;
    for (size_t slot = 0; slot < buffers; slot++)
        atomic_store_explicit(&shared->turns[slot].word, STOP, memory_order_release);
    for (size_t i = 0; i < batch; i++)
        if (target[i] != 0x5a) refuse("memcpy_cores", "the bytes that arrived are not those sent");
    free(target);
    return (double)counted * (double)batch / (double)elapsed; /* bytes per tick */
}

int main(int argc, char **argv) {
    check_options(argc, argv, " a b samples warmup seconds batch buffers ");
    int64_t a = option(argc, argv, "a", 0), b = option(argc, argv, "b", 1);
    int64_t seconds = option(argc, argv, "seconds", 10);
    int64_t batch = option(argc, argv, "batch", 64 * 32);
    int64_t buffers = option(argc, argv, "buffers", 16);
    require_two_cores(a, b);
    if (batch < 1 || batch > 1 << 20) refuse("batch", "must be 1 to 1048576 bytes");
    if (buffers < 1 || buffers > BUFFERS_MAX) refuse("buffers", "must be 1 to 1024");
    struct samples samples = samples_new(option(argc, argv, "samples", 50000),
                                         option(argc, argv, "warmup", 5000));
    struct shared *shared =
        (struct shared *)share(sizeof *shared + (size_t)batch * (size_t)buffers);
    double per_tick = ns_per_tick();
    pid_t child = fork_peer(seconds + 10);
    if (child == 0) {
        limit_run_time(seconds + 10);
        pin(a);
        produce(shared, (size_t)batch, (size_t)buffers);
    }
    pin(b);
    double rate = consume(shared, (size_t)batch, (size_t)buffers, &samples,
                          now_ns() + seconds * 1000000000) / per_tick;
    join_peer(child);
    char more[160];
    snprintf(more, sizeof more,
             ",\"batch_bytes\":%" PRId64 ",\"buffers\":%" PRId64
             ",\"bytes_per_s\":%.0f,\"gb_per_s\":%.4f",
             batch, buffers, rate * 1e9, rate);
    report("memcpy_cores", a, b, &samples, GROUP, per_tick, more);
    return 0;
}
