/* tools/memrate.c: owns its threads for the length of a pass. Fails when a thread cannot be started. */
#include "tools/memrate.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

#include "core/limits.h"

enum { LINE_WORDS = 8, AHEAD_BYTES = 4096 };

#if defined(__x86_64__)
#define SWEEP_TARGETS __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#else
#define SWEEP_TARGETS __attribute__((optimize("O3")))
#endif

struct share {
    pthread_t thread;
    const uint64_t *words; /* [lines * LINE_WORDS] */
    uint64_t lines;
    uint64_t sum; /* keeps the reads from being dropped */
};

SWEEP_TARGETS static uint64_t sweep(const uint64_t *words, uint64_t lines)
{
    uint64_t sum[4 * LINE_WORDS] = {0};
    for (uint64_t i = 0; i + 4 <= lines; i += 4) {
        const uint64_t *w = words + i * LINE_WORDS;
        for (int line = 0; line < 4; line++)
            __builtin_prefetch((const char *)(w + line * LINE_WORDS) + AHEAD_BYTES);
        for (int j = 0; j < 4 * LINE_WORDS; j++)
            sum[j] ^= w[j];
    }
    for (int j = 1; j < 4 * LINE_WORDS; j++)
        sum[0] ^= sum[j];
    return sum[0];
}

static void *run(void *arg)
{
    struct share *s = arg;
    s->sum = sweep(s->words, s->lines);
    return NULL;
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Seconds of one pass; negative when a thread could not be started. */
static double pass(struct share *shares, uint32_t threads)
{
    double begin = now_s();
    uint32_t started = 0;
    while (started < threads && pthread_create(&shares[started].thread, NULL, run, &shares[started]) == 0)
        started++;
    for (uint32_t i = 0; i < started; i++)
        (void)pthread_join(shares[i].thread, NULL);
    return started == threads ? now_s() - begin : -1;
}

enum nib_err nib_memrate(const void *base, uint64_t bytes, uint32_t threads, uint32_t passes, double *ret_bytes_s,
                         struct nib_msg *msg)
{
    static struct share shares[NIB_MAX_THREADS];
    uint64_t lines = bytes / (LINE_WORDS * sizeof(uint64_t)) / threads;
    for (uint32_t i = 0; i < threads; i++)
        shares[i] = (struct share){.words = (const uint64_t *)base + i * lines * LINE_WORDS, .lines = lines};
    double best = 0;
    for (uint32_t i = 0; i < passes; i++) {
        double seconds = pass(shares, threads);
        if (seconds < 0)
            return nib_fail(msg, NIB_E_NOMEM, "%u threads cannot be started", threads);
        double rate = (double)(lines * threads * LINE_WORDS * sizeof(uint64_t)) / seconds;
        best = rate > best ? rate : best;
    }
    *ret_bytes_s = best;
    return NIB_OK;
}
