/* What a wake-up costs: a raw, shared futex between two processes, the waiter proven asleep.
 *
 * The waker looks at the waiter's state in /proc until it sleeps, lets `settle_us` pass, reads the
 * clock, changes the word and wakes. The waiter reads the clock as the first thing it does awake.
 * A sample is that difference; a wake that found nobody asleep is counted and thrown away. */
#include "reference.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/syscall.h>

struct shared {
    _Alignas(SPAN) _Atomic uint32_t word;
    _Alignas(SPAN) _Atomic uint64_t armed; /* the round whose wait is about to begin */
    _Alignas(SPAN) _Atomic uint64_t woken; /* the round whose wait has ended */
    int64_t woken_at_ns;
};

static const uint32_t STOP = UINT32_MAX;

static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void sleep_and_tell(struct shared *shared) {
    for (uint32_t round = 1;; round++) {
        atomic_store_explicit(&shared->armed, round, memory_order_release);
        while (atomic_load_explicit(&shared->word, memory_order_acquire) == round - 1)
            futex(&shared->word, FUTEX_WAIT, round - 1);
        shared->woken_at_ns = now_ns();
        if (atomic_load_explicit(&shared->word, memory_order_relaxed) == STOP) _exit(0);
        atomic_store_explicit(&shared->woken, round, memory_order_release);
    }
}

/* The state letter stands after the name, which is in parentheses and may hold anything. */
static int is_asleep(int stat) {
    char line[512];
    ssize_t length = pread(stat, line, sizeof line - 1, 0);
    if (length <= 0) fail("the waiter's state");
    line[length] = '\0';
    const char *name_end = strrchr(line, ')');
    return name_end && name_end[1] == ' ' && name_end[2] == 'S';
}

static void wait_until_asleep(int stat, int64_t settle_ns) {
    while (!is_asleep(stat)) sched_yield();
    int64_t settled_ns = now_ns() + settle_ns;
    while (now_ns() < settled_ns) {}
}

static int64_t wake_rounds(struct shared *shared, int stat, struct samples *samples,
                           int64_t settle_ns, int64_t deadline_ns) {
    int64_t not_asleep = 0;
    for (uint32_t round = 1; !samples_full(samples) && now_ns() < deadline_ns; round++) {
        while (atomic_load_explicit(&shared->armed, memory_order_acquire) != round) sched_yield();
        wait_until_asleep(stat, settle_ns);
        int64_t start_ns = now_ns();
        atomic_store_explicit(&shared->word, round, memory_order_release);
        long woken = futex(&shared->word, FUTEX_WAKE, 1);
        /* Yielding lets a waiter on the same core run. */
        while (atomic_load_explicit(&shared->woken, memory_order_acquire) != round) sched_yield();
        if (woken == 1) samples_add(samples, (uint64_t)(shared->woken_at_ns - start_ns));
        else not_asleep++;
    }
    atomic_store_explicit(&shared->word, STOP, memory_order_release);
    futex(&shared->word, FUTEX_WAKE, 1);
    return not_asleep;
}

int main(int argc, char **argv) {
    check_options(argc, argv, " a b samples warmup seconds settle_us ");
    int64_t a = option(argc, argv, "a", 0), b = option(argc, argv, "b", 1);
    int64_t seconds = option(argc, argv, "seconds", 10);
    int64_t settle_us = option(argc, argv, "settle_us", 10);
    if (settle_us < 0 || settle_us > 1000000) refuse("settle_us", "must be 0 to 1000000");
    struct samples samples = samples_new(option(argc, argv, "samples", 20000),
                                         option(argc, argv, "warmup", 1000));
    struct shared *shared = (struct shared *)share(sizeof *shared);
    pid_t child = fork_peer(seconds + 10);
    if (child == 0) {
        limit_run_time(seconds + 10);
        pin(b);
        sleep_and_tell(shared);
    }
    pin(a);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)child);
    int stat = open(path, O_RDONLY | O_CLOEXEC);
    if (stat < 0) fail(path);
    int64_t not_asleep = wake_rounds(shared, stat, &samples, settle_us * 1000,
                                     now_ns() + seconds * 1000000000);
    join_peer(child);
    char more[96];
    snprintf(more, sizeof more, ",\"not_asleep\":%" PRId64 ",\"settle_us\":%" PRId64, not_asleep,
             settle_us);
    report("futex_wake", a, b, &samples, 1, 1.0, more);
    return 0;
}
