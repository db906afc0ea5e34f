/* What the reference programs share: options, pinning, a clock, samples and their JSON report.
 *
 * The one rule: every program measures one thing, discards its warm-up, and never runs longer than
 * its `limit_s`, so nothing is left spinning when a peer dies. Valid as C11 and as C++17. */
#ifndef PPE_REFERENCE_H
#define PPE_REFERENCE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The adjacent-line prefetcher pulls lines in pairs, so two writers sit two lines apart. */
#define SPAN 128

static inline void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static inline void refuse(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(2);
}

/* Options are `key=value` words; every value is an integer. */
static inline int64_t option(int argc, char **argv, const char *key, int64_t otherwise) {
    size_t length = strlen(key);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], key, length) != 0 || argv[i][length] != '=') continue;
        char *end = NULL;
        int64_t value = strtoll(argv[i] + length + 1, &end, 10);
        if (*end != '\0' || end == argv[i] + length + 1) refuse(argv[i], "is not an integer");
        return value;
    }
    return otherwise;
}

/* A misspelt option would silently measure something else. */
static inline void check_options(int argc, char **argv, const char *known) {
    for (int i = 1; i < argc; i++) {
        char word[64];
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : 0;
        if (length == 0 || length + 3 > sizeof word) refuse(argv[i], "options are key=value");
        snprintf(word, sizeof word, " %.*s ", (int)length, argv[i]);
        if (!strstr(known, word)) {
            fprintf(stderr, "%s: unknown option; known:%s\n", argv[i], known);
            exit(2);
        }
    }
}

/* Pin the calling thread; a negative core leaves it to the scheduler. */
static inline void pin(int64_t core) {
    if (core < 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) fail("cannot pin to that core");
}

static inline void require_two_cores(int64_t a, int64_t b) {
    if (a >= 0 && a == b) refuse("a and b", "two spinning sides need two different cores");
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The cheapest clock there is: it is read once per sample and its cost is part of the sample. */
static inline uint64_t ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return (uint64_t)now_ns();
#endif
}

static inline double ns_per_tick(void) {
#if defined(__x86_64__)
    int64_t start_ns = now_ns(), end_ns = start_ns;
    uint64_t start = ticks();
    while (end_ns - start_ns < 20000000) end_ns = now_ns();
    return (double)(end_ns - start_ns) / (double)(ticks() - start);
#else
    return 1.0;
#endif
}

static inline double tick_cost_ns(double per_tick) {
    uint64_t start = ticks(), last = start;
    for (int i = 0; i < 1000; i++) last = ticks();
    return (double)(last - start) * per_tick / 1000.0;
}

static inline void *share(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    return memory;
}

/* The default action of SIGALRM ends the process: no side can outlive the limit. */
static inline void limit_run_time(int64_t limit_s) { alarm((unsigned)limit_s); }

/* Fork the other side; it dies with this one. Returns 0 in the child. */
static inline pid_t fork_peer(int64_t limit_s) {
    pid_t parent = getpid(), child = fork();
    if (child < 0) fail("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
    }
    limit_run_time(limit_s);
    return child;
}

static inline void join_peer(pid_t child) {
    int status = 0;
    if (waitpid(child, &status, 0) != child) fail("waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) refuse("the other side", "failed");
}

/* Samples in clock ticks; the first `warmup` of them are counted and thrown away. */
struct samples {
    uint64_t *values;
    int64_t count, limit, warmup, discarded;
};

static inline struct samples samples_new(int64_t limit, int64_t warmup) {
    if (limit < 1 || limit > 100000000) refuse("samples", "must be 1 to 100000000");
    if (warmup < 0) refuse("warmup", "must not be negative");
    struct samples s = {NULL, 0, limit, warmup, 0};
    s.values = (uint64_t *)malloc((size_t)limit * sizeof *s.values);
    if (!s.values) fail("malloc");
    memset(s.values, 0, (size_t)limit * sizeof *s.values); /* no page fault while measuring */
    return s;
}

static inline int samples_full(const struct samples *s) { return s->count >= s->limit; }
static inline int samples_warm(const struct samples *s) { return s->discarded >= s->warmup; }

static inline void samples_add(struct samples *s, uint64_t value) {
    if (s->discarded < s->warmup) s->discarded++;
    else if (s->count < s->limit) s->values[s->count++] = value;
}

static inline int compare_values(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank: the smallest sample that at least `percent` of all samples do not exceed. */
static inline uint64_t percentile(const struct samples *s, double percent) {
    int64_t rank = (int64_t)(percent / 100.0 * (double)s->count + 0.999999);
    if (rank < 1) rank = 1;
    if (rank > s->count) rank = s->count;
    return s->values[rank - 1];
}

/* Log-linear bins: sixteen to the octave, so a bin is at most 6.25 % wide. */
static inline uint64_t bin_width(uint64_t value) {
    uint64_t width = 1;
    while (value / width >= 32) width *= 2;
    return width;
}

static inline void print_bins(const struct samples *s, double per_tick) {
    printf("\"bins\":[");
    for (int64_t i = 0; i < s->count;) {
        uint64_t value = (uint64_t)((double)s->values[i] * per_tick + 0.5);
        uint64_t width = bin_width(value), low = value / width * width;
        int64_t first = i;
        while (i < s->count && (uint64_t)((double)s->values[i] * per_tick + 0.5) < low + width) i++;
        printf("%s[%" PRIu64 ",%" PRIu64 ",%" PRId64 "]", first ? "," : "", low, low + width,
               i - first);
    }
    printf("]");
}

/* Print the whole JSON object. A sample covers `group` operations and is reported as their mean;
 * `more` holds further members, each beginning with a comma. */
static inline void report(const char *name, int64_t a, int64_t b, struct samples *s, int64_t group,
                          double ns_per_clock_tick, const char *more) {
    double per_tick = ns_per_clock_tick / (double)group;
    if (s->count == 0) refuse(name, "no sample was taken within the time allowed");
    double sum = 0;
    for (int64_t i = 0; i < s->count; i++) sum += (double)s->values[i];
    qsort(s->values, (size_t)s->count, sizeof *s->values, compare_values);
    printf("{\"name\":\"%s\",\"cores\":[%" PRId64 ",%" PRId64 "],", name, a, b);
    printf("\"clock\":{\"ns_per_tick\":%.6f,\"read_ns\":%.1f},", ns_per_clock_tick,
           tick_cost_ns(ns_per_clock_tick));
    printf("\"latency_ns\":{\"count\":%" PRId64 ",\"warmup_discarded\":%" PRId64 ",", s->count,
           s->discarded);
    printf("\"min\":%.1f,\"mean\":%.1f,", (double)s->values[0] * per_tick,
           sum / (double)s->count * per_tick);
    printf("\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,",
           (double)percentile(s, 50) * per_tick, (double)percentile(s, 90) * per_tick,
           (double)percentile(s, 99) * per_tick, (double)percentile(s, 99.9) * per_tick);
    printf("\"max\":%.1f,", (double)s->values[s->count - 1] * per_tick);
    print_bins(s, per_tick);
    printf("}%s}\n", more);
    free(s->values);
}

#endif
