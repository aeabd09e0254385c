/* tests/core/sample_test.c: the sampler against a plain implementation of its definition (sort
 * everything, evaluate every id), against exact distributions, and at its edges.
 *
 * sample_test --bench prints microseconds a draw instead. */
#include "core/sample.h"

#include <float.h>
#include <math.h>
#include <time.h>

#include "core/rng.h"
#include "tests/harness.h"

#define VOCAB_20B 201088u

/* ---- the oracle: core/sample.h step by step, nothing clever ---- */

struct oracle_id {
    uint32_t id;
    float z, d;
    uint64_t weight;
};

static int by_z(const void *a, const void *b)
{
    const struct oracle_id *x = a, *y = b;
    if (x->z != y->z)
        return x->z > y->z ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static uint32_t oracle_kept(const struct nib_sampling *s, struct oracle_id *ids, uint32_t count)
{
    if (s->top_k != 0 && count > s->top_k)
        count = s->top_k;
    uint64_t total = 0, sum = 0;
    for (uint32_t i = 0; i < count; i++)
        total += ids[i].weight;
    if (s->top_p < 1.0f) {
        uint32_t kept = 0;
        while ((double)sum < ceil((double)s->top_p * (double)total) && kept < count)
            sum += ids[kept++].weight;
        count = kept;
    }
    if (s->min_p > 0.0f)
        while (ids[count - 1].d < (float)log((double)s->min_p))
            count--;
    return count;
}

/* The token, or UINT32_MAX for failed. `ids` has room for the vocabulary; *ret_kept as truncation left
 * it. */
static uint32_t oracle(const struct nib_sample_in *in, struct oracle_id *ids, uint32_t *ret_kept)
{
    const struct nib_sampling *s = in->sampling;
    uint32_t count = 0;
    for (uint32_t id = 0; id < in->vocab; id++) {
        if (in->banned && (in->banned[id / 32] >> id % 32 & 1))
            continue;
        float z = in->logits[id] + 0.0f;
        for (uint32_t i = 0; i < s->bias_count; i++)
            if (s->bias[i].token == id)
                z += s->bias[i].bias;
        if (isnan(z) || z == INFINITY)
            return UINT32_MAX;
        uint32_t seen = in->state ? in->state[id] : 0, answers = seen & 0x7fffffffu;
        if (seen) {
            z = z > 0 ? z / s->repetition_penalty : z * s->repetition_penalty;
            z = z - s->frequency_penalty * (float)answers;
            z = z - (answers ? s->presence_penalty : 0.0f);
        }
        if (z != -INFINITY)
            ids[count++] = (struct oracle_id){.id = id, .z = z + 0.0f};
    }
    if (count == 0)
        return UINT32_MAX;
    qsort(ids, count, sizeof *ids, by_z);
    *ret_kept = 1;
    if (s->temperature < 1e-3f)
        return ids[0].id;
    float inv_t = 1.0f / s->temperature;
    for (uint32_t i = 0; i < count; i++) {
        ids[i].d = (ids[i].z - ids[0].z) * inv_t;
        ids[i].weight = (uint64_t)((double)nib_sample_exp(ids[i].d) * 0x1p44);
    }
    *ret_kept = count = oracle_kept(s, ids, count);
    uint32_t best = UINT32_MAX;
    double best_score = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t word[4];
        nib_rng_draw(s->seed, in->pos, ids[i].id / 4, word);
        double v = ((double)word[ids[i].id % 4] + 0.5) / 4294967296.0;
        double score = (double)ids[i].d - log(-log1p(-v));
        if (score > best_score || (score == best_score && ids[i].id < best)) {
            best_score = score;
            best = ids[i].id;
        }
    }
    return best;
}

/* ---- inputs ---- */

static double uniform(uint64_t *state)
{
    return ((double)(nib_test_rand(state) >> 11) + 0.5) * 0x1p-53;
}

static float normal(uint64_t *state)
{
    double r = sqrt(-2.0 * log(uniform(state)));
    return (float)(r * cos(6.283185307179586 * uniform(state)));
}

static bool coin(uint64_t *state, uint32_t one_in)
{
    return nib_test_rand(state) % one_in == 0;
}

static float pick(uint64_t *state, const float *list, size_t count)
{
    return list[nib_test_rand(state) % count];
}

static void random_sampling(struct nib_sampling *s, uint32_t vocab, uint64_t *state)
{
    static const float temperatures[] = {0.0f, 1e-3f, 0.05f, 0.5f, 0.7f, 1.0f, 1.0f, 2.0f, 100.0f};
    static const float top_ps[] = {1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 0.999999f};
    static const float min_ps[] = {1e-6f, 0.01f, 0.05f, 0.5f, 0.999f};
    nib_sample_defaults(s);
    s->temperature = pick(state, temperatures, 9);
    s->seed = nib_test_rand(state);
    if (coin(state, 2))
        s->top_p = pick(state, top_ps, 7);
    if (coin(state, 3))
        s->top_k = 1 + (uint32_t)(nib_test_rand(state) % (coin(state, 2) ? 20 : vocab + 5));
    if (coin(state, 3))
        s->min_p = pick(state, min_ps, 5);
    if (coin(state, 3))
        s->repetition_penalty = coin(state, 2) ? 1.3f : 0.8f;
    if (coin(state, 3))
        s->frequency_penalty = coin(state, 2) ? 0.5f : -0.7f;
    if (coin(state, 3))
        s->presence_penalty = coin(state, 2) ? 0.25f : -1.5f;
    if (coin(state, 3))
        for (s->bias_count = 0; s->bias_count < 5; s->bias_count++)
            s->bias[s->bias_count] = (struct nib_bias){.token = (uint32_t)(nib_test_rand(state) % vocab),
                                                       .bias = normal(state) * (coin(state, 3) ? 100.0f / 8 : 1.0f)};
}

/* kind 0: spread; 1: few distinct values, many ties; 2: flat; 3: a few peaks over a far floor;
 * 4: huge range; 5: holes of -inf and both zeros */
static void random_logits(float *logits, uint32_t vocab, uint32_t kind, uint64_t *state)
{
    for (uint32_t i = 0; i < vocab; i++) {
        float n = normal(state);
        logits[i] = kind == 0        ? n * 3.0f
                    : kind == 1      ? (float)(int)(n * 2.0f)
                    : kind == 2      ? 1.5f
                    : kind == 3      ? n + (coin(state, 50) ? 20.0f : 0.0f)
                    : kind == 4      ? n * 1e30f
                    : coin(state, 3) ? -INFINITY
                                     : (coin(state, 2) ? -0.0f : (coin(state, 2) ? 0.0f : n));
    }
}

static void *scratch_of(uint32_t vocab)
{
    size_t bytes = (nib_sample_scratch_bytes(vocab) + 63) / 64 * 64;
    void *p = aligned_alloc(64, bytes);
    NIB_MUST(p);
    memset(p, 0xa5, bytes);
    return p;
}

/* One random case: the same token as the oracle, from a dirty scratch. */
static uint32_t compare_one(uint32_t vocab, uint64_t *state)
{
    float *logits = malloc(vocab * sizeof *logits);
    uint32_t *banned = calloc(nib_sample_banned_words(vocab), sizeof *banned);
    uint32_t *counts = calloc(vocab, sizeof *counts);
    struct oracle_id *ids = malloc(vocab * sizeof *ids);
    void *scratch = scratch_of(vocab);
    struct nib_sampling s;
    random_sampling(&s, vocab, state);
    random_logits(logits, vocab, (uint32_t)(nib_test_rand(state) % 6), state);
    for (uint32_t i = 0; i < vocab / 8 && coin(state, 2); i++) {
        uint32_t id = (uint32_t)(nib_test_rand(state) % vocab);
        banned[id / 32] |= 1u << id % 32;
    }
    for (uint32_t i = 0; i < vocab / 4; i++) {
        nib_sample_seen(counts, (uint32_t)(nib_test_rand(state) % vocab));
        nib_sample_took(counts, (uint32_t)(nib_test_rand(state) % vocab));
    }
    struct nib_sample_in in = {.logits = logits,
                               .banned = coin(state, 2) ? banned : NULL,
                               .state = coin(state, 2) ? counts : NULL,
                               .sampling = &s,
                               .vocab = vocab,
                               .pos = (uint32_t)(nib_test_rand(state) % 131072)};
    struct nib_sampled out;
    uint32_t kept = 0, want = oracle(&in, ids, &kept);
    nib_sample(&in, scratch, &out);
    ck_assert_int_eq(out.failed, want == UINT32_MAX);
    if (!out.failed)
        ck_assert_msg(out.token == want, "vocab %u t %g k %u p %g min_p %g: token %u, oracle %u (%u kept)", vocab,
                      (double)s.temperature, s.top_k, (double)s.top_p, (double)s.min_p, out.token, want, kept);
    free(scratch);
    free(ids);
    free(counts);
    free(banned);
    free(logits);
    return kept;
}

START_TEST(small_vocabularies_agree_with_the_oracle)
{
    uint64_t state = nib_test_seed();
    uint32_t truncated = 0;
    for (int i = 0; i < 20000; i++)
        truncated += compare_one(1 + (uint32_t)(nib_test_rand(&state) % 200), &state) > 1;
    ck_assert_uint_gt(truncated, 5000); /* the cases are not all greedy */
}
END_TEST

START_TEST(large_vocabularies_agree_with_the_oracle)
{
    uint64_t state = nib_test_seed();
    for (int i = 0; i < 300; i++)
        compare_one(1000 + (uint32_t)(nib_test_rand(&state) % 20000), &state);
    for (int i = 0; i < 4; i++)
        compare_one(VOCAB_20B, &state);
}
END_TEST

/* ---- distributions ---- */

/* Chi-square of draws against the exact distribution of the kept ids; bins expected below 5 are pooled.
 * The bound is the mean plus 4.5 standard deviations of the statistic: it holds for these fixed seeds and
 * fails for a wrong distribution. */
static void check_distribution(const float *logits, uint32_t vocab, const struct nib_sampling *base)
{
    enum { DRAWS = 20000 };
    struct nib_sampling s = *base;
    struct nib_sample_in in = {.logits = logits, .sampling = &s, .vocab = vocab};
    struct oracle_id *ids = malloc(vocab * sizeof *ids);
    uint32_t *count = calloc(vocab, sizeof *count);
    void *scratch = scratch_of(vocab);
    uint32_t kept = 0;
    (void)oracle(&in, ids, &kept);
    double total = 0;
    for (uint32_t i = 0; i < kept; i++)
        total += exp((double)(ids[i].z - ids[0].z) / (double)s.temperature);
    struct nib_sampled out;
    for (uint32_t i = 0; i < DRAWS; i++) {
        s.seed = 77 + i / 100;
        in.pos = i % 100;
        nib_sample(&in, scratch, &out);
        ck_assert(!out.failed);
        count[out.token]++;
    }
    double chi = 0, pool_want = 0, pool_have = 0, bins = 0, have_kept = 0;
    for (uint32_t i = 0; i < kept; i++) {
        double want = exp((double)(ids[i].z - ids[0].z) / (double)s.temperature) / total * DRAWS;
        double have = count[ids[i].id];
        have_kept += have;
        if (want < 5) {
            pool_want += want;
            pool_have += have;
            continue;
        }
        chi += (have - want) * (have - want) / want;
        bins++;
    }
    if (pool_want >= 1) {
        chi += (pool_have - pool_want) * (pool_have - pool_want) / pool_want;
        bins++;
    }
    ck_assert_double_eq(have_kept, DRAWS); /* nothing outside of the kept set */
    double freedom = bins > 1 ? bins - 1 : 1;
    ck_assert_msg(chi < freedom + 4.5 * sqrt(2 * freedom), "chi-square %g, %g bins", chi, bins);
    free(scratch);
    free(count);
    free(ids);
}

START_TEST(draws_follow_the_distribution)
{
    uint64_t state = nib_test_seed();
    float logits[300];
    for (uint32_t i = 0; i < 300; i++)
        logits[i] = normal(&state) * 1.5f;
    static const struct {
        float temperature, top_p, min_p;
        uint32_t top_k;
    } cases[] = {{1.0f, 1.0f, 0.0f, 0}, {0.5f, 1.0f, 0.0f, 0},  {3.0f, 1.0f, 0.0f, 0}, {100.0f, 1.0f, 0.0f, 0},
                 {1.0f, 0.8f, 0.0f, 0}, {1.0f, 1.0f, 0.0f, 20}, {1.0f, 1.0f, 0.1f, 0}, {0.7f, 0.9f, 0.05f, 50}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nib_sampling s;
        nib_sample_defaults(&s);
        s.temperature = cases[i].temperature;
        s.top_p = cases[i].top_p;
        s.min_p = cases[i].min_p;
        s.top_k = cases[i].top_k;
        check_distribution(logits, 300, &s);
        check_distribution(logits, 3, &s);
    }
}
END_TEST

/* Two requests with different seeds, or two positions, draw independently: their joint counts follow
 * the product. */
START_TEST(neighbouring_seeds_and_positions_are_independent)
{
    enum { N = 4, DRAWS = 40000 };
    float logits[N] = {0.0f, 0.3f, -0.4f, 0.1f};
    double p[N], total = 0;
    for (int i = 0; i < N; i++)
        total += p[i] = exp((double)logits[i]);
    void *scratch = scratch_of(N);
    for (int by_seed = 0; by_seed < 2; by_seed++) {
        double joint[N][N] = {{0}};
        for (uint32_t i = 0; i < DRAWS; i++) {
            uint32_t token[2];
            for (uint32_t k = 0; k < 2; k++) {
                struct nib_sampling s;
                nib_sample_defaults(&s);
                s.temperature = 1.0f;
                s.seed = by_seed ? 2 * i + k : 5;
                struct nib_sample_in in = {
                    .logits = logits, .sampling = &s, .vocab = N, .pos = by_seed ? 9 : 2 * i + k};
                struct nib_sampled out;
                nib_sample(&in, scratch, &out);
                token[k] = out.token;
            }
            joint[token[0]][token[1]]++;
        }
        double chi = 0;
        for (int a = 0; a < N; a++)
            for (int b = 0; b < N; b++) {
                double want = p[a] * p[b] / total / total * DRAWS;
                chi += (joint[a][b] - want) * (joint[a][b] - want) / want;
            }
        ck_assert_msg(chi < 15 + 4.5 * sqrt(30.0), "chi-square %g of 15", chi);
    }
    free(scratch);
}
END_TEST

/* ---- edges ---- */

static struct nib_sampled draw(const float *logits, uint32_t vocab, const struct nib_sampling *s,
                               const uint32_t *banned, const uint32_t *counts)
{
    struct nib_sample_in in = {
        .logits = logits, .banned = banned, .state = counts, .sampling = s, .vocab = vocab, .pos = 3};
    struct nib_sampled out;
    void *scratch = scratch_of(vocab);
    nib_sample(&in, scratch, &out);
    free(scratch);
    return out;
}

START_TEST(greedy_takes_the_largest_and_the_lowest_of_equals)
{
    float logits[70] = {0};
    struct nib_sampling s;
    nib_sample_defaults(&s);
    ck_assert_uint_eq(draw(logits, 70, &s, NULL, NULL).token, 0);
    logits[69] = 2.0f;
    ck_assert_uint_eq(draw(logits, 70, &s, NULL, NULL).token, 69);
    logits[33] = 2.0f;
    ck_assert_uint_eq(draw(logits, 70, &s, NULL, NULL).token, 33);
    uint32_t banned[3] = {0, 1u << 1, 0};
    ck_assert_uint_eq(draw(logits, 70, &s, banned, NULL).token, 69);
    float zeros[2] = {-0.0f, 0.0f}; /* equal: the lowest id */
    ck_assert_uint_eq(draw(zeros, 2, &s, NULL, NULL).token, 0);
}
END_TEST

START_TEST(truncation_to_one_is_greedy)
{
    uint64_t state = nib_test_seed();
    float logits[500];
    for (int i = 0; i < 200; i++) {
        random_logits(logits, 500, (uint32_t)i % 4, &state);
        struct nib_sampling greedy, s;
        nib_sample_defaults(&greedy);
        uint32_t want = draw(logits, 500, &greedy, NULL, NULL).token;
        s = greedy;
        s.temperature = 1.0f;
        s.seed = (uint64_t)i;
        s.top_k = 1;
        ck_assert_uint_eq(draw(logits, 500, &s, NULL, NULL).token, want);
        s.top_k = 0;
        s.top_p = 1e-9f;
        ck_assert_uint_eq(draw(logits, 500, &s, NULL, NULL).token, want);
    }
}
END_TEST

/* Seed 1, position 72,431: ids 96,794 and 183,309 have the same, smallest noise word (found by search). */
START_TEST(equal_scores_go_to_the_lowest_id)
{
    float *logits = calloc(VOCAB_20B, sizeof *logits);
    void *scratch = scratch_of(VOCAB_20B);
    struct nib_sampling s;
    nib_sample_defaults(&s);
    s.temperature = 1.0f;
    s.seed = 1;
    struct nib_sample_in in = {.logits = logits, .sampling = &s, .vocab = VOCAB_20B, .pos = 72431};
    struct nib_sampled out;
    nib_sample(&in, scratch, &out);
    ck_assert_uint_eq(out.token, 96794);
    s.min_p = 0.5f; /* the same through the list */
    nib_sample(&in, scratch, &out);
    ck_assert_uint_eq(out.token, 96794);
    logits[96794] = -INFINITY;
    nib_sample(&in, scratch, &out);
    ck_assert_uint_eq(out.token, 183309);
    free(scratch);
    free(logits);
}
END_TEST

START_TEST(unusable_logits_fail_and_set_nothing)
{
    static const float bad[] = {NAN, -NAN, INFINITY};
    struct nib_sampling s;
    nib_sample_defaults(&s);
    s.top_logprobs = 3;
    for (int t = 0; t < 2; t++) {
        s.temperature = (float)t;
        for (size_t i = 0; i < 3; i++)
            for (uint32_t at = 0; at < 65; at++) {
                float logits[65] = {0};
                logits[at] = bad[i];
                struct nib_sampled out = draw(logits, 65, &s, NULL, NULL);
                ck_assert(out.failed && out.token == 0 && out.top_count == 0);
                uint32_t banned[3] = {0};
                banned[at / 32] = 1u << at % 32; /* a banned id is not looked at */
                ck_assert(!draw(logits, 65, &s, banned, NULL).failed);
            }
        float none[65];
        for (int i = 0; i < 65; i++)
            none[i] = -INFINITY;
        ck_assert(draw(none, 65, &s, NULL, NULL).failed);
        none[64] = -FLT_MAX;
        ck_assert_uint_eq(draw(none, 65, &s, NULL, NULL).token, 64);
        uint32_t all[3] = {~0u, ~0u, ~0u};
        ck_assert(draw(none, 65, &s, all, NULL).failed);
    }
}
END_TEST

START_TEST(a_bias_cannot_raise_a_banned_id)
{
    float logits[40] = {0};
    uint32_t banned[2] = {1u << 7, 0};
    struct nib_sampling s;
    nib_sample_defaults(&s);
    s.bias_count = 2;
    s.bias[0] = (struct nib_bias){.token = 7, .bias = 100.0f};
    s.bias[1] = (struct nib_bias){.token = 9, .bias = 1.0f};
    ck_assert_uint_eq(draw(logits, 40, &s, banned, NULL).token, 9);
    ck_assert_uint_eq(draw(logits, 40, &s, NULL, NULL).token, 7);
}
END_TEST

START_TEST(penalties_count_prompt_and_answer_apart)
{
    uint32_t counts[4];
    nib_sample_reset(counts, 4);
    nib_sample_seen(counts, 0);
    nib_sample_took(counts, 1);
    nib_sample_took(counts, 1);
    struct nib_sampling s;
    nib_sample_defaults(&s);
    float a[4] = {1.2f, 1.1f, 1.0f, -9.0f};
    s.repetition_penalty = 1.5f; /* 0.8, 0.73, 1.0 */
    ck_assert_uint_eq(draw(a, 4, &s, NULL, counts).token, 2);
    s.repetition_penalty = 1.0f;
    s.presence_penalty = 0.3f; /* 1.2 is prompt: untouched */
    ck_assert_uint_eq(draw(a, 4, &s, NULL, counts).token, 0);
    float b[4] = {0.0f, 1.5f, 1.0f, -9.0f};
    s.presence_penalty = 0.0f;
    s.frequency_penalty = 0.3f; /* 1.5 - 0.6 */
    ck_assert_uint_eq(draw(b, 4, &s, NULL, counts).token, 2);
    s.frequency_penalty = 0.2f; /* 1.5 - 0.4 */
    ck_assert_uint_eq(draw(b, 4, &s, NULL, counts).token, 1);
    nib_sample_reset(counts, 4);
    s.frequency_penalty = 100.0f;
    ck_assert_uint_eq(draw(b, 4, &s, NULL, counts).token, 1);
}
END_TEST

START_TEST(log_probabilities_are_those_before_temperature_and_penalties)
{
    uint64_t state = nib_test_seed();
    for (int round = 0; round < 200; round++) {
        enum { V = 777 };
        float logits[V];
        double z[V], total = 0;
        random_logits(logits, V, round % 2 ? 3 : 1, &state);
        struct nib_sampling s;
        random_sampling(&s, V, &state);
        s.logprobs = true;
        s.top_logprobs = (uint32_t)round % (NIB_MAX_TOP_LOGPROBS + 1);
        uint32_t counts[V] = {0}, banned[V / 32 + 1] = {0x80000001u};
        nib_sample_took(counts, 5);
        struct nib_sampled out = draw(logits, V, &s, banned, counts);
        for (int i = 0; i < V; i++) {
            float biased = logits[i];
            for (uint32_t b = 0; b < s.bias_count; b++)
                biased += s.bias[b].token == (uint32_t)i ? s.bias[b].bias : 0.0f;
            z[i] = banned[i / 32] >> i % 32 & 1 ? -INFINITY : (double)biased;
            total += exp(z[i]);
        }
        ck_assert(!out.failed);
        ck_assert_double_eq_tol((double)out.logprob, z[out.token] - log(total), 1e-5);
        ck_assert_uint_eq(out.top_count, s.top_logprobs);
        for (uint32_t k = 0; k < out.top_count; k++) {
            const struct nib_top *top = &out.top[k];
            ck_assert_double_eq_tol((double)top->logprob, z[top->token] - log(total), 1e-5);
            uint32_t before = 0; /* ids that come first: larger, or equal and lower */
            for (uint32_t i = 0; i < V; i++)
                before += z[i] > z[top->token] || (z[i] == z[top->token] && i < top->token);
            ck_assert_uint_eq(before, k);
        }
    }
}
END_TEST

START_TEST(the_vocabulary_may_be_smaller_than_the_alternatives)
{
    float logits[3] = {1.0f, 2.0f, -INFINITY};
    struct nib_sampling s;
    nib_sample_defaults(&s);
    s.top_logprobs = 20;
    struct nib_sampled out = draw(logits, 3, &s, NULL, NULL);
    ck_assert_uint_eq(out.top_count, 2);
    ck_assert_uint_eq(out.top[0].token, 1);
    s.top_logprobs = 0;
    out = draw(logits, 3, &s, NULL, NULL);
    ck_assert_float_eq(out.logprob, 0.0f);
}
END_TEST

START_TEST(reserved_ids_are_banned_and_named_ones_are_not)
{
    const struct nib_shape *shape = nib_shape_find("20b");
    ck_assert_ptr_nonnull(shape);
    static const uint32_t named[] = {199998, 199999, 200002, 200003, 200005, 200006, 200007, 200008, 200012};
    uint32_t *banned = calloc(nib_sample_banned_words(shape->vocab), sizeof *banned);
    nib_sample_ban_reserved(shape, banned);
    for (uint32_t id = 0; id < shape->vocab; id++) {
        bool want = id >= 199998;
        for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
            want = want && id != named[i];
        ck_assert_msg((banned[id / 32] >> id % 32 & 1) == want, "id %u", id);
    }
    free(banned);
}
END_TEST

START_TEST(exp_is_accurate_and_exact_at_zero)
{
    ck_assert_float_eq(nib_sample_exp(0.0f), 1.0f);
    ck_assert_float_eq(nib_sample_exp(-0.0f), 1.0f);
    ck_assert_float_eq(nib_sample_exp(-INFINITY), nib_sample_exp(-80.0f));
    double worst = 0;
    for (float x = -80.0f; x <= 0.0f; x += 0.00137f) {
        double want = exp((double)x);
        worst = fmax(worst, fabs((double)nib_sample_exp(x) - want) / want);
    }
    ck_assert_double_lt(worst, 3e-7);
}
END_TEST

START_TEST(parameters_out_of_range_are_refused)
{
    struct nib_sampling good, s;
    struct nib_msg msg;
    nib_sample_defaults(&good);
    ck_assert_int_eq(nib_sample_check(&good, 100, &msg), NIB_OK);
#define BAD(field, value, word)                                                                                        \
    do {                                                                                                               \
        s = good;                                                                                                      \
        s.field = (value);                                                                                             \
        ck_assert_int_eq(nib_sample_check(&s, 100, &msg), NIB_E_ARG);                                                  \
        ck_assert_ptr_nonnull(strstr(msg.text, word));                                                                 \
    } while (0)
    BAD(temperature, -0.1f, "temperature");
    BAD(temperature, 101.0f, "temperature");
    BAD(temperature, NAN, "temperature");
    BAD(top_p, 0.0f, "top_p");
    BAD(top_p, 1.01f, "top_p");
    BAD(min_p, 1.0f, "min_p");
    BAD(min_p, -0.1f, "min_p");
    BAD(repetition_penalty, 0.0f, "repetition");
    BAD(frequency_penalty, INFINITY, "frequency");
    BAD(presence_penalty, NAN, "presence");
    BAD(top_logprobs, NIB_MAX_TOP_LOGPROBS + 1, "top_logprobs");
    BAD(bias_count, NIB_MAX_LOGIT_BIAS + 1, "logit_bias");
#undef BAD
    s = good;
    s.bias_count = 1;
    s.bias[0] = (struct nib_bias){.token = 100, .bias = 0};
    ck_assert_int_eq(nib_sample_check(&s, 100, &msg), NIB_E_ARG);
    s.bias[0] = (struct nib_bias){.token = 99, .bias = NAN};
    ck_assert_int_eq(nib_sample_check(&s, 100, &msg), NIB_E_ARG);
    s.bias[0].bias = -100.0f;
    ck_assert_int_eq(nib_sample_check(&s, 100, &msg), NIB_OK);
}
END_TEST

/* ---- bench ---- */

static double micros(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void bench_one(const char *shape, const float *logits, const char *name, const struct nib_sampling *s,
                      const uint32_t *counts)
{
    enum { DRAWS = 100 };
    void *scratch = scratch_of(VOCAB_20B);
    uint32_t *banned = calloc(nib_sample_banned_words(VOCAB_20B), sizeof *banned);
    nib_sample_ban_reserved(nib_shape_find("20b"), banned);
    struct nib_sampled out;
    double best = INFINITY, sum = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        struct nib_sample_in in = {
            .logits = logits, .banned = banned, .state = counts, .sampling = s, .vocab = VOCAB_20B, .pos = i};
        double start = micros();
        nib_sample(&in, scratch, &out);
        double took = micros() - start;
        best = fmin(best, took);
        sum += took;
    }
    printf("%-8s %-16s best %6.0f us  mean %6.0f us\n", shape, name, best, sum / DRAWS);
    free(banned);
    free(scratch);
}

static void bench(void)
{
    static const char *const shapes[] = {"peaked", "spread", "flat"};
    float *logits = malloc(VOCAB_20B * sizeof *logits);
    uint32_t *counts = calloc(VOCAB_20B, sizeof *counts);
    uint64_t state = 1;
    for (uint32_t i = 0; i < 2000; i++)
        nib_sample_took(counts, i * 97);
    for (int shape = 0; shape < 3; shape++) {
        for (uint32_t i = 0; i < VOCAB_20B; i++)
            logits[i] = normal(&state) * (shape == 0 ? 2.0f : shape == 1 ? 3.0f : 0.01f);
        for (uint32_t i = 0; i < 30 && shape == 0; i++)
            logits[i * 6701] = 18.0f - 0.4f * (float)i;
        struct nib_sampling s;
        nib_sample_defaults(&s);
        bench_one(shapes[shape], logits, "greedy", &s, counts);
        s.top_logprobs = 20;
        bench_one(shapes[shape], logits, "greedy+logprobs", &s, counts);
        s.top_logprobs = 0;
        s.temperature = 1.0f;
        bench_one(shapes[shape], logits, "temperature", &s, counts);
        s.repetition_penalty = 1.1f;
        bench_one(shapes[shape], logits, "penalties", &s, counts);
        s.repetition_penalty = 1.0f;
        s.top_k = 50;
        bench_one(shapes[shape], logits, "top_k 50", &s, counts);
        s.top_p = 0.9f;
        bench_one(shapes[shape], logits, "top_k+top_p", &s, counts);
        s.top_k = 0;
        bench_one(shapes[shape], logits, "top_p 0.9", &s, counts);
        s.top_p = 1.0f;
        s.min_p = 0.05f;
        bench_one(shapes[shape], logits, "min_p 0.05", &s, counts);
    }
    free(counts);
    free(logits);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--bench") == 0) {
        bench();
        return EXIT_SUCCESS;
    }
    const TTest *const tests[] = {
        small_vocabularies_agree_with_the_oracle,
        large_vocabularies_agree_with_the_oracle,
        draws_follow_the_distribution,
        neighbouring_seeds_and_positions_are_independent,
        greedy_takes_the_largest_and_the_lowest_of_equals,
        truncation_to_one_is_greedy,
        equal_scores_go_to_the_lowest_id,
        unusable_logits_fail_and_set_nothing,
        a_bias_cannot_raise_a_banned_id,
        penalties_count_prompt_and_answer_apart,
        log_probabilities_are_those_before_temperature_and_penalties,
        the_vocabulary_may_be_smaller_than_the_alternatives,
        reserved_ids_are_banned_and_named_ones_are_not,
        exp_is_accurate_and_exact_at_zero,
        parameters_out_of_range_are_refused,
    };
    return nib_suite_run("sample", tests, sizeof tests / sizeof tests[0]);
}
