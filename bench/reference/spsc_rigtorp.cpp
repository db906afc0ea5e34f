// A C++ queue to beat: one producer, one consumer, after the algorithm of rigtorp's SPSCQueue.
//
// Two indices, each written by one side, each side keeping a cached copy of the other's so that it
// reads the shared one only when the queue looks full or empty. One slot stays free to tell full
// from empty, so the capacity needs no power of two. One sample is the mean of `group` round trips (1
// unless told) through two queues between two threads. `span` is what the indices are kept apart by:
// 64 as published, or 128.
#include "reference.h"

#include <atomic>
#include <memory>
#include <thread>

namespace {

struct Entry {
    uint64_t words[8];
};

template <size_t Span>
class Queue {
public:
    // The slots have a span of padding at both ends: no neighbour shares their lines.
    explicit Queue(size_t capacity)
        : slots_count_(capacity + 1), memory_(new Entry[capacity + 1 + 2 * Padding]()) {}

    bool push(const Entry &entry) {
        const size_t index = write_.load(std::memory_order_relaxed);
        size_t next = index + 1;
        if (next == slots_count_) next = 0;
        if (next == read_cached_) {
            read_cached_ = read_.load(std::memory_order_acquire);
            if (next == read_cached_) return false;
        }
        memory_[index + Padding] = entry;
        write_.store(next, std::memory_order_release);
        return true;
    }

    bool pop(Entry &entry) {
        const size_t index = read_.load(std::memory_order_relaxed);
        if (index == write_cached_) {
            write_cached_ = write_.load(std::memory_order_acquire);
            if (index == write_cached_) return false;
        }
        entry = memory_[index + Padding];
        size_t next = index + 1;
        if (next == slots_count_) next = 0;
        read_.store(next, std::memory_order_release);
        return true;
    }

private:
    static constexpr size_t Padding = (Span - 1) / sizeof(Entry) + 1;

    const size_t slots_count_;
    const std::unique_ptr<Entry[]> memory_;
    alignas(Span) std::atomic<size_t> write_{0};
    alignas(Span) size_t read_cached_ = 0;
    alignas(Span) std::atomic<size_t> read_{0};
    alignas(Span) size_t write_cached_ = 0;
};

constexpr uint64_t STOP = UINT64_MAX;

template <size_t Span>
void answer(Queue<Span> &requests, Queue<Span> &replies, int64_t core) {
    pin(core);
    Entry entry{};
    for (;;) {
        while (!requests.pop(entry)) {}
        if (entry.words[0] == STOP) return;
        while (!replies.push(entry)) {}
    }
}

template <size_t Span>
void ask(Queue<Span> &requests, Queue<Span> &replies, samples &taken, uint64_t group,
         int64_t deadline_ns) {
    Entry entry{};
    uint64_t last = ticks();
    for (uint64_t i = 1; !samples_full(&taken); i++) {
        entry.words[0] = i;
        while (!requests.push(entry)) {}
        while (!replies.pop(entry)) {}
        if (entry.words[0] != i) refuse("spsc_rigtorp", "an entry was lost or out of order");
        if (i % group != 0) continue;
        const uint64_t now = ticks();
        samples_add(&taken, now - last);
        last = now;
        if (i / group % 4096 == 0) { // the look at the clock is in no sample
            if (now_ns() > deadline_ns) break;
            last = ticks();
        }
    }
    entry.words[0] = STOP;
    while (!requests.push(entry)) {}
}

template <size_t Span>
void measure(size_t capacity, samples &taken, uint64_t group, int64_t a, int64_t b,
             int64_t seconds) {
    auto requests = std::make_unique<Queue<Span>>(capacity);
    auto replies = std::make_unique<Queue<Span>>(capacity);
    std::thread peer([&] { answer(*requests, *replies, b); });
    pin(a);
    ask(*requests, *replies, taken, group, now_ns() + seconds * 1000000000);
    peer.join();
}

} // namespace

int main(int argc, char **argv) {
    check_options(argc, argv, " a b samples warmup seconds capacity span group ");
    const int64_t a = option(argc, argv, "a", 0), b = option(argc, argv, "b", 1);
    const int64_t seconds = option(argc, argv, "seconds", 10);
    const int64_t capacity = option(argc, argv, "capacity", 1023);
    const int64_t span = option(argc, argv, "span", 64);
    const int64_t group = option(argc, argv, "group", 1);
    require_two_cores(a, b);
    if (group < 1 || group > 4096) refuse("group", "must be 1 to 4096");
    if (capacity < 1 || capacity > 1 << 20) refuse("capacity", "must be 1 to 1048576");
    if (span != 64 && span != 128) refuse("span", "must be 64 or 128");
    samples taken = samples_new(option(argc, argv, "samples", 200000),
                                option(argc, argv, "warmup", 20000));
    const double per_tick = ns_per_tick();
    limit_run_time(seconds + 10);
    const auto slots = static_cast<size_t>(capacity);
    const auto trips = static_cast<uint64_t>(group);
    if (span == 64) measure<64>(slots, taken, trips, a, b, seconds);
    else measure<128>(slots, taken, trips, a, b, seconds);
    char more[128];
    snprintf(more, sizeof more,
             ",\"capacity\":%" PRId64 ",\"span\":%" PRId64 ",\"group\":%" PRId64, capacity, span,
             group);
    report("spsc_rigtorp", a, b, &taken, group, per_tick, more);
    return 0;
}
