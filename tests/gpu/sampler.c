/* tests/gpu/sampler.c: scan and sample against core/sample.c: the same token, whatever is asked for. One thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/sample.h"
#include "tests/gpu/model.h"
#include "tests/gpu/random.h"

enum { SLOTS = 64 }; /* at most; a state has `rows` of them */

struct state {
    struct rig *rig;
    uint32_t vocab, rows;
    float *logits;    /* [rows][V] */
    uint32_t *seen;   /* [rows][V] */
    uint32_t *banned; /* bitmap */
    void *scratch;
    uint64_t seed;
};

#define EDGES 3 /* a kind of rounds besides 0, 1, 2 */

/* Logits as a model has them: most far below a few; some rows with many ties. */
static void make_logits(struct state *s, int kind)
{
    for (uint32_t r = 0; r < s->rows; r++)
        for (uint32_t i = 0; i < s->vocab; i++) {
            float z = model_normal(&s->seed) * (kind == 2 ? 0.5f : 3.0f);
            if (kind == 0 && random_next(&s->seed) % 5000 == 0)
                z += 12.0f;
            if (kind == 1 || (kind == EDGES && r % 5 == 1))
                z = (float)(int)z; /* ties */
            if (kind == EDGES && r % 5 == 2)
                z = 0; /* all alike */
            if (kind == EDGES && r % 5 == 3)
                z = i == s->vocab / 2 ? z : -INFINITY; /* one id, or none when that is banned */
            if (kind == EDGES && r % 5 == 4)
                z *= 1e30f;
            s->logits[(uint64_t)r * s->vocab + i] = z;
        }
    for (uint64_t i = 0; i < (uint64_t)s->rows * s->vocab; i++)
        s->seen[i] = random_next(&s->seed) % 50
                         ? 0
                         : (uint32_t)(random_next(&s->seed) % 4) | (random_next(&s->seed) % 2 ? 0x80000000u : 0);
}

static struct nib_sampling random_sampling(struct state *s)
{
    struct nib_sampling p;
    nib_sample_defaults(&p);
    uint64_t *seed = &s->seed;
    p.temperature = random_next(seed) % 5 == 0 ? 0 : (float)(0.2 + 1.6 * model_uniform(seed));
    p.seed = random_next(seed);
    if (random_next(seed) % 2)
        p.top_p = (float)(0.05 + 0.94 * model_uniform(seed));
    if (random_next(seed) % 3 == 0)
        p.top_k = (uint32_t)(1 + random_next(seed) % 2000);
    if (random_next(seed) % 3 == 0)
        p.min_p = (float)(0.3 * model_uniform(seed));
    if (random_next(seed) % 3 == 0) {
        p.repetition_penalty = (float)(0.8 + model_uniform(seed));
        p.frequency_penalty = (float)(model_uniform(seed) - 0.5);
        p.presence_penalty = (float)(model_uniform(seed) - 0.5);
    }
    if (random_next(seed) % 3 == 0) {
        p.logprobs = true;
        p.top_logprobs = (uint32_t)(random_next(seed) % (NIB_MAX_TOP_LOGPROBS + 1));
    }
    if (random_next(seed) % 3 == 0) {
        p.bias_count = (uint32_t)(1 + random_next(seed) % NIB_MAX_LOGIT_BIAS);
        for (uint32_t i = 0; i < p.bias_count; i++)
            p.bias[i] =
                (struct nib_bias){.token = (uint32_t)(random_next(seed) % s->vocab), .bias = model_normal(seed) * 5};
        if (p.bias_count > 1)
            p.bias[1].token = p.bias[0].token; /* the same id twice */
    }
    return p;
}

/* Options at the ends of their ranges, one way a row; logits are of every kind in turn. */
static struct nib_sampling edge_sampling(struct state *s, uint32_t row)
{
    static const struct nib_sampling edges[] = {
        {.temperature = 1, .top_p = 1e-6f},
        {.temperature = 1, .top_p = 0.99999994f},
        {.temperature = 1, .top_p = 1, .top_k = 1},
        {.temperature = 1, .top_p = 1, .top_k = 2},
        {.temperature = 1, .top_p = 1, .top_k = 1u << 30},
        {.temperature = 1, .top_p = 1, .min_p = 0.99999994f},
        {.temperature = 1, .top_p = 1, .min_p = 1e-30f},
        {.temperature = 100, .top_p = 1},
        {.temperature = 100, .top_p = 0.5f, .top_k = 100, .min_p = 0.5f},
        {.temperature = 1e-3f, .top_p = 1}, /* the smallest that is not greedy */
        {.temperature = 9.99e-4f, .top_p = 0.5f, .top_k = 3},
        {.temperature = 1, .top_p = 1, .frequency_penalty = 100},
        {.temperature = 1, .top_p = 1, .frequency_penalty = -100},
        {.temperature = 1, .top_p = 1, .presence_penalty = 100},
        {.temperature = 1, .top_p = 1, .presence_penalty = -100, .top_k = 5},
        {.temperature = 0, .top_p = 1, .repetition_penalty = 100},
        {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 0.01f},
        {.temperature = 1, .top_p = 1, .logprobs = true, .top_logprobs = NIB_MAX_TOP_LOGPROBS},
        {.temperature = 0, .top_p = 1, .logprobs = true},
        {.temperature = 1, .top_p = 0.9f, .top_k = 7, .logprobs = true, .top_logprobs = 1, .frequency_penalty = 1},
    };
    enum { COUNT = sizeof edges / sizeof edges[0] };
    struct nib_sampling p = edges[row % COUNT];
    if (p.repetition_penalty == 0)
        p.repetition_penalty = 1;
    p.seed = row % 3 == 0 ? 0 : row % 3 == 1 ? UINT64_MAX : random_next(&s->seed);
    if (row / COUNT == 1) { /* the strongest biases: of the first and the last id, and a banned one */
        p.bias_count = 3;
        p.bias[0] = (struct nib_bias){.token = 0, .bias = 100};
        p.bias[1] = (struct nib_bias){.token = s->vocab - 1, .bias = 100};
        p.bias[2] = (struct nib_bias){.token = 1, .bias = -100};
    }
    if (row / COUNT == 2) { /* as many as there may be, all of one id but one */
        p.bias_count = NIB_MAX_LOGIT_BIAS;
        for (uint32_t i = 0; i < NIB_MAX_LOGIT_BIAS; i++)
            p.bias[i] = (struct nib_bias){.token = i == 9 ? 2 : 3, .bias = i % 2 ? 1.25f : -1};
    }
    return p;
}

static bool compare(const struct nib_sampled *a, const struct nib_sampled *b)
{
    bool good = a->token == b->token && a->failed == b->failed && a->top_count == b->top_count &&
                fabsf(a->logprob - b->logprob) <= 2e-6f * (1 + fabsf(b->logprob));
    for (uint32_t i = 0; good && i < a->top_count; i++)
        good = a->top[i].token == b->top[i].token &&
               fabsf(a->top[i].logprob - b->top[i].logprob) <= 2e-6f * (1 + fabsf(b->top[i].logprob));
    return good;
}

/* Puts a step of `want` decode rows on the device and samples it. */
static void sample_step(struct state *s, const struct nib_sampling *sampling, const uint32_t *pos)
{
    struct rig *rig = s->rig;
    static struct nib_gpu_step step;
    rig_down(rig, &step.serial, rig->m.next_serial, 8);
    step.rows_count = step.decode_count = step.want_count = s->rows;
    step.fault = 0;
    for (uint32_t r = 0; r < s->rows; r++) {
        step.rows[r] = (struct nib_row){
            .pos = pos[r], .slot = (uint16_t)(s->rows - 1 - r), .flags = NIB_ROW_DECODE | NIB_ROW_LOGITS};
        step.want[r] = (uint16_t)r;
        rig_up(rig, rig->m.seen + (uint64_t)(s->rows - 1 - r) * s->vocab * 4, s->seen + (uint64_t)r * s->vocab,
               s->vocab * 4ull);
        rig_up(rig, rig->m.sampling + (s->rows - 1 - r) * sizeof *sampling, &sampling[r], sizeof *sampling);
    }
    rig_up(rig, rig->m.step, &step, sizeof step);
    rig_up(rig, rig->m.logits, s->logits, (uint64_t)s->rows * s->vocab * 4);
    rig_up(rig, rig->m.banned, s->banned, nib_sample_banned_words(s->vocab) * 4ull);
    const struct rig_bucket b = {.decode = s->rows, .want = s->rows};
    (void)rig_launch(rig, NIB_GPU_SCAN, 0, b);
    (void)rig_launch(rig, NIB_GPU_SAMPLE, 0, b);
    rig_wait(rig);
    if (rig->outbox[step.serial % NIB_GPU_MAILBOX].serial != step.serial)
        rig_die("the sampler handed nothing over");
}

static int round_of(struct state *s, int kind, int broken)
{
    struct nib_sampling sampling[SLOTS];
    uint32_t pos[SLOTS];
    uint64_t serial = 0;
    int failures = 0;
    make_logits(s, kind);
    for (uint32_t r = 0; r < s->rows; r++) {
        sampling[r] = kind == EDGES ? edge_sampling(s, r) : random_sampling(s);
        pos[r] = (uint32_t)(random_next(&s->seed) % (kind == EDGES ? NIB_MAX_CTX_TOKENS : 4096));
    }
    if (kind == 0) /* the plain draw on most rows */
        for (uint32_t r = 0; r < s->rows; r += 2) {
            nib_sample_defaults(&sampling[r]);
            sampling[r].temperature = 1.0f;
            sampling[r].seed = random_next(&s->seed);
        }
    if (broken) {
        s->logits[77] = NAN;
        s->logits[(uint64_t)s->vocab + 5] = INFINITY;
        for (uint32_t i = 0; i < s->vocab; i++)
            s->logits[2ull * s->vocab + i] = -INFINITY;
        s->logits[3ull * s->vocab + 9] = -INFINITY;
    }
    rig_down(s->rig, &serial, s->rig->m.next_serial, 8);
    sample_step(s, sampling, pos);
    const struct nib_gpu_result *out = &s->rig->outbox[serial % NIB_GPU_MAILBOX];
    for (uint32_t r = 0; r < s->rows; r++) {
        const struct nib_sample_in in = {.logits = s->logits + (uint64_t)r * s->vocab,
                                         .banned = s->banned,
                                         .state = s->seen + (uint64_t)r * s->vocab,
                                         .sampling = &sampling[r],
                                         .vocab = s->vocab,
                                         .pos = pos[r]};
        struct nib_sampled want = {0};
        nib_sample(&in, s->scratch, &want);
        uint32_t last = 0, times = 0;
        rig_down(s->rig, &last, s->rig->m.last + (s->rows - 1 - r) * 4ull, 4);
        rig_down(s->rig, &times, s->rig->m.seen + ((uint64_t)(s->rows - 1 - r) * s->vocab + want.token) * 4, 4);
        const bool counted = times == in.state[want.token] + !want.failed;
        if (compare(&out->sampled[r], &want) && last == want.token && counted)
            continue;
        failures++;
        const struct nib_sampling *p = &sampling[r];
        printf("FAILED sampler vocab %u kind %d row %u: token %u (want %u), failed %d (%d), logprob %g (%g), tops %u "
               "(%u); t %g p %g k %u "
               "min %g rep %g bias %u\n",
               s->vocab, kind, r, out->sampled[r].token, want.token, out->sampled[r].failed, want.failed,
               (double)out->sampled[r].logprob, (double)want.logprob, out->sampled[r].top_count, want.top_count,
               (double)p->temperature, (double)p->top_p, p->top_k, (double)p->min_p, (double)p->repetition_penalty,
               p->bias_count);
    }
    return failures;
}

static int test_vocab(struct rig *rig, const char *shape, uint32_t rows, int rounds)
{
    struct state s = {.rig = rig, .seed = 99, .rows = rows};
    const struct nib_shape *sh = nib_shape_find(shape);
    rig_arena(rig, 2ull << 30, true);
    rig_machine(rig, sh, 2, rows, 4096, 64, 64);
    rig_send_machine(rig);
    s.vocab = sh->vocab;
    s.logits = malloc((uint64_t)rows * s.vocab * 4);
    s.seen = malloc((uint64_t)rows * s.vocab * 4);
    s.banned = calloc(nib_sample_banned_words(s.vocab), 4);
    s.scratch = aligned_alloc(64, nib_round_up(nib_sample_scratch_bytes(s.vocab), 64));
    if (!s.logits || !s.seen || !s.banned || !s.scratch)
        rig_die("out of host memory");
    nib_sample_ban_reserved(sh, s.banned);
    int failures = 0;
    for (int i = 0; i < rounds; i++)
        failures += rows == SLOTS ? round_of(&s, EDGES, 0) : round_of(&s, i % 3, i % 5 == 4);
    printf("%s sampler, vocabulary %u: %d of %d rows differ\n", failures ? "FAILED" : "ok    ", s.vocab, failures,
           rounds * (int)rows);
    free(s.logits);
    free(s.seen);
    free(s.banned);
    free(s.scratch);
    return failures;
}

int rig_test_sampler(struct rig *rig)
{
    return test_vocab(rig, "nano", 8, 40) + test_vocab(rig, "20b-slice", 8, 30) + test_vocab(rig, "small", 8, 12) +
           test_vocab(rig, "nano", SLOTS, 4) + test_vocab(rig, "20b-slice", SLOTS, 3) +
           test_vocab(rig, "small", SLOTS, 1);
}

/* Steps that break a bound: the fault comes back, nothing else happens, and the next step works. */
int rig_test_faults(struct rig *rig)
{
    struct model model;
    const uint32_t ctx[4] = {1024, 1024, 1024, 1024};
    int failures = 0;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, "tiny", 4, 1024, 64, 64, 5);
    model_tables(rig, &model, ctx, 4);
    const struct model_run run = {.slot = 1, .pos = 70, .count = 1, .decode = true};
    for (int kind = 0; kind < 9; kind++) {
        uint64_t serial = 0;
        rig_down(rig, &serial, rig->m.next_serial, 8);
        const struct rig_bucket b = model_send(rig, &model, &run, 1);
        struct nib_gpu_step *step = &rig->mailbox[serial % NIB_GPU_MAILBOX];
        uint32_t *entry = &rig->host_tables[ctx[1] / 64 * 1 + 70 / 64], kept = *entry;
        switch (kind) {
        case 1:
            step->rows[0].slot = 4;
            break;
        case 2:
            step->rows[0].pos = 1024;
            break;
        case 3:
            step->rows[0].token = model.shape->vocab;
            break;
        case 4:
            step->rows_count = 65;
            break;
        case 5:
            step->want[0] = 1;
            break;
        case 6:
            step->serial++;
            break;
        case 7:
            step->decode_count = 0;
            break;
        case 8: /* a page that the pool has not */
            *entry = rig->m.kv_pages;
            rig_up(rig, rig->m.tables, rig->host_tables, 4ull * rig->m.ctx_pages * 4);
            break;
        default:
            break;
        }
        rig_step(rig, b);
        rig_wait(rig);
        const struct nib_gpu_result *out = &rig->outbox[serial % NIB_GPU_MAILBOX];
        const bool faulty = out->fault != 0;
        if (out->serial != serial || faulty != (kind != 0)) {
            printf("FAILED fault %d: serial %llu of %llu, fault %u\n", kind, (unsigned long long)out->serial,
                   (unsigned long long)serial, out->fault);
            failures++;
        }
        *entry = kept;
        rig_up(rig, rig->m.tables, rig->host_tables, 4ull * rig->m.ctx_pages * 4);
    }
    printf("%s broken steps: %d\n", failures ? "FAILED" : "ok    ", failures);
    model_close(&model);
    return failures;
}
