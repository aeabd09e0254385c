/* gpu/trial_checks.c: the self-test's comparisons of what is not a product: sums, the step, norms, the router's choice, the
 * sampler. Owns nothing. Boot thread. What differs goes into the report; only trial.c's calls fail. */
#include <math.h>
#include <string.h>

#include "arch/ref/ref.h"
#include "arch/rope.h"
#include "core/mx.h"
#include "core/sample.h"
#include "gpu/trial.h"

void nib_trial_add(struct nib_trial_error *e, double out, double ref)
{
    if (!isfinite(out)) {
        e->bad++;
        return;
    }
    e->diff += (out - ref) * (out - ref);
    e->norm += ref * ref;
}

/* 1 is just right. */
static double badness(const struct nib_gpu_verdict *v)
{
    return v->bound > 0 ? v->error / v->bound : v->error > 0 ? INFINITY : 0;
}

void nib_trial_expect(struct nib_trial *t, enum nib_gpu_op op, const char *what, const struct nib_trial_error *e,
                      double bound)
{
    struct nib_gpu_verdict *old = &t->report->op[op], v = {.ran = true, .bound = bound, .what = what};
    v.error = e->diff > 0 ? sqrt(e->diff / e->norm) : 0;
    if (e->bad)
        v.error = bound > 0 ? INFINITY : (double)e->bad;
    if (!t->err && (!old->ran || badness(&v) > badness(old)))
        *old = v;
}

struct nib_trial_range nib_trial_rows(const struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t all = t->decode + t->prompt;
    switch (nib_gpu_op_few(nib_gpu_op_plain(op))) {
    case NIB_GPU_QKV:
    case NIB_GPU_ATTN:
    case NIB_GPU_ATTN_FP8:
    case NIB_GPU_OUT:
    case NIB_GPU_UP:
    case NIB_GPU_DOWN:
        return (struct nib_trial_range){0, t->decode};
    case NIB_GPU_QKV_PROMPT:
    case NIB_GPU_ATTN_PROMPT:
    case NIB_GPU_ATTN_PROMPT_FP8:
    case NIB_GPU_OUT_PROMPT:
    case NIB_GPU_UP_PROMPT:
    case NIB_GPU_DOWN_PROMPT:
        return (struct nib_trial_range){t->decode, all};
    default:
        return (struct nib_trial_range){0, all};
    }
}

bool nib_trial_compared(const struct nib_trial *t, uint32_t row)
{
    const uint32_t last = t->decode + t->prompt - 1;
    return row < t->decode || row == t->decode || row == t->decode + t->prompt / 2 || row == last;
}

bool nib_trial_multiplied(const struct nib_trial *t, uint32_t row)
{
    const uint32_t layer = row < t->decode && t->prompt ? 0 : 1;
    return t->layer == layer && nib_trial_compared(t, row);
}

static uint64_t acts_bytes(const struct nib_trial *t)
{
    const uint32_t q_dim = nib_q_dim(&t->shape), h = t->shape.hidden;
    return NIB_TRIAL_ROWS * 2ull * (q_dim > h ? q_dim : h);
}

/* acts of the compared rows against the norm of x by w */
static void expect_norm(struct nib_trial *t, enum nib_gpu_op op, const float *x, const void *acts, const uint16_t *w,
                        double bound)
{
    const uint32_t h = t->shape.hidden, rows = t->decode + t->prompt;
    struct nib_trial_error e = {0};
    float *want = nib_trial_take(t, h * 4ull), *out = nib_trial_take(t, h * 4ull);
    for (uint32_t r = 0; r < rows; r++) {
        t->k->forms.acts(&t->m, op, acts, r, h, out);
        const bool compared = nib_trial_compared(t, r);
        if (compared)
            nib_ref_rmsnorm(want, x + (uint64_t)r * h, w, h);
        for (uint32_t i = 0; i < h; i++)
            if (compared)
                nib_trial_add(&e, (double)out[i], (double)want[i]);
            else
                e.bad += isfinite(out[i]) ? 0 : 1;
    }
    nib_trial_expect(t, op, "norm", &e, bound);
}

void nib_trial_sum(struct nib_trial *t, enum nib_gpu_op op)
{
    /* what lies in the staging: the last matrix's codes */
    const uint64_t bytes = t->staging_bytes / 8 * 8 < (1u << 20) ? t->staging_bytes / 8 * 8 : 1u << 20;
    struct nib_trial_letter *letter = &t->letters[NIB_TRIAL_LETTERS];
    const nib_gpu_ptr sum_at = t->m.repack + offsetof(struct nib_trial_letter, sum);
    const uint64_t *words = nib_trial_fetch(t, t->staging, bytes);
    *letter = (struct nib_trial_letter){.repack = {.src = t->staging, .sum_bytes = bytes, .sum = sum_at}, .sum = 5};
    nib_trial_send(t, t->m.repack, letter, sizeof *letter);
    if (!nib_trial_launch(t, op))
        return;
    const uint64_t *got = nib_trial_fetch(t, sum_at, sizeof *got);
    nib_trial_wait(t);
    uint64_t want = 5;
    for (uint64_t i = 0; i < bytes / 8; i++)
        want += NIB_GPU_SUM_WORD(words[i], i);
    nib_trial_expect(t, op, "sum", &(struct nib_trial_error){.bad = *got != want}, 0);
}

void nib_trial_begin(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint64_t table = NIB_TRIAL_PAGES * 4, seen = nib_sample_state_bytes(t->shape.vocab);
    const uint32_t slot = t->step->rows[t->step->rows_count - 1].slot;
    nib_trial_fill(t, t->m.step, 0xff, sizeof *t->step);
    nib_trial_fill(t, t->m.seen + slot * seen, 1, seen);
    if (!nib_trial_launch(t, op))
        return;
    const struct nib_gpu_step *step = nib_trial_fetch(t, t->m.step, sizeof *step), *want = t->step;
    const uint32_t *tables = nib_trial_fetch(t, t->m.tables + slot * table, table);
    const struct nib_sampling *sampling = nib_trial_fetch(t, t->m.sampling + slot * sizeof *sampling, sizeof *sampling);
    const uint32_t *counts = nib_trial_fetch(t, t->m.seen + slot * seen, seen);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    e.bad += step->serial != want->serial || step->rows_count != want->rows_count ||
             step->decode_count != want->decode_count || step->want_count != want->want_count || step->fault != 0;
    for (uint32_t i = 0; i < want->rows_count; i++)
        e.bad += memcmp(&step->rows[i], &want->rows[i], sizeof want->rows[i]) != 0;
    for (uint32_t i = 0; i < want->want_count; i++)
        e.bad += step->want[i] != want->want[i];
    if (t->prompt) { /* its first row is one of a new sequence */
        const struct nib_sampling *sent = &t->host_sampling[slot];
        e.bad += memcmp(tables, t->host_tables + slot * NIB_TRIAL_PAGES, table) != 0;
        e.bad +=
            memcmp(sampling, sent, offsetof(struct nib_sampling, bias) + sent->bias_count * sizeof sent->bias[0]) != 0;
        for (uint32_t i = 0; i < t->shape.vocab; i++)
            e.bad += counts[i] != 0;
    }
    nib_trial_expect(t, op, "step", &e, 0);
}

/* Token of a row, as `embed` must find it. */
static uint32_t token_of(const struct nib_trial *t, uint32_t r)
{
    const struct nib_row *row = &t->step->rows[r];
    return row->flags & NIB_ROW_FEEDBACK ? t->last[row->slot] : row->token;
}

static void expect_seen(struct nib_trial *t, enum nib_gpu_op op, const uint32_t *seen)
{
    const uint32_t vocab = t->shape.vocab;
    struct nib_trial_error e = {0};
    uint32_t *want = nib_trial_take(t, nib_sample_state_bytes(vocab));
    nib_sample_reset(want, vocab);
    for (uint32_t r = t->decode; r < t->decode + t->prompt; r++)
        nib_sample_seen(want, token_of(t, r));
    for (uint32_t i = 0; i < vocab && t->prompt; i++)
        e.bad += want[i] != seen[i];
    nib_trial_expect(t, op, "token counts", &e, 0);
}

void nib_trial_embed(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t h = t->shape.hidden, rows = t->decode + t->prompt;
    const uint64_t seen_bytes = nib_sample_state_bytes(t->shape.vocab);
    if (!nib_trial_launch(t, op))
        return;
    const float *x = nib_trial_fetch(t, t->m.x, rows * h * 4ull);
    const float *rope = nib_trial_fetch(t, t->m.rope, NIB_TRIAL_ROWS * 256ull);
    const void *acts = nib_trial_fetch(t, t->m.acts, acts_bytes(t));
    const uint32_t *seen = nib_trial_fetch(t, t->m.seen + t->step->rows[rows - 1].slot * seen_bytes, seen_bytes);
    nib_trial_wait(t);
    uint16_t *row = nib_trial_take(t, h * 2ull);
    struct nib_trial_error of_x = {0}, of_rope = {0};
    for (uint32_t r = 0; r < rows && !t->err; r++) {
        float cos[NIB_ROPE_PAIRS], sin[NIB_ROPE_PAIRS];
        nib_trial_dense_rows(t, NIB_TRIAL_EMBED, h, token_of(t, r), 1, row);
        for (uint32_t i = 0; i < h; i++)
            of_x.bad += nib_f32_bits(x[(uint64_t)r * h + i]) != nib_f32_bits(nib_bf16_decode(row[i]));
        nib_rope_table(t->m.rope_freq, t->step->rows[r].pos, cos, sin);
        for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++) {
            nib_trial_add(&of_rope, (double)rope[r * NIB_ROPE_PAIRS + i], (double)cos[i]);
            nib_trial_add(&of_rope, (double)rope[(NIB_TRIAL_ROWS + r) * NIB_ROPE_PAIRS + i], (double)sin[i]);
        }
    }
    nib_trial_expect(t, op, "x", &of_x, 0);
    nib_trial_expect(t, op, "rope", &of_rope, 1e-6);
    expect_norm(t, op, x, acts, t->v.attn_norm, 4e-3);
    expect_seen(t, op, seen);
}

/* ---- router ---- */

/* The choices against logits by arch/ref. The row's own logits differ a little from these: an expert within `near` of the
 * last one is as good. */
static void expect_choice(struct nib_trial *t, const struct nib_gpu_choice *c, const float *logits,
                          struct nib_trial_error *ret)
{
    const double near = 0.02;
    const uint32_t used = t->shape.experts_used;
    double sum = 0;
    for (uint32_t k = 0; k < used; k++) {
        uint32_t better = 0;
        if (c[k].expert >= t->shape.experts) {
            ret->bad++;
            return;
        }
        for (uint32_t e = 0; e < t->shape.experts; e++)
            better += (double)logits[e] > (double)logits[c[k].expert] + near;
        ret->bad += better > k;
        for (uint32_t before = 0; before < k; before++)
            ret->bad += c[before].expert == c[k].expert;
        sum += exp((double)logits[c[k].expert]);
    }
    for (uint32_t k = 0; k < used; k++)
        nib_trial_add(ret, (double)c[k].weight, exp((double)logits[c[k].expert]) / sum);
}

/* Every assignment has a place of its own. */
static uint64_t wrong_places(struct nib_trial *t, const void *route)
{
    const uint32_t rows = t->decode + t->prompt, used = t->shape.experts_used;
    uint64_t wrong = 0;
    uint8_t *taken = nib_trial_take(t, rows * used);
    memset(taken, 0, rows * used);
    for (uint32_t i = 0; i < rows * used; i++) {
        struct nib_gpu_choice c;
        t->k->forms.choice(&t->m, route, i / used, i % used, &c);
        if (c.place >= rows * used || taken[c.place]++)
            wrong++;
    }
    return wrong;
}

void nib_trial_route(struct nib_trial *t, enum nib_gpu_op op)
{
    const struct nib_shape *s = &t->shape;
    const uint32_t h = s->hidden, rows = t->decode + t->prompt, used = s->experts_used;
    nib_trial_fill(t, t->m.acts, 0xff, acts_bytes(t));
    const float *x = nib_trial_fetch(t, t->m.x, rows * h * 4ull);
    if (!nib_trial_launch(t, op))
        return;
    const void *acts = nib_trial_fetch(t, t->m.acts, acts_bytes(t));
    const void *route = nib_trial_fetch(t, t->m.route, t->k->route_bytes(NIB_TRIAL_ROWS, s->experts));
    nib_trial_wait(t);
    float *normed = nib_trial_take(t, nib_ref_acts_bytes(h)), *logits = nib_trial_take(t, s->experts * 4ull);
    uint16_t *w = nib_trial_take(t, s->experts * h * 2ull);
    nib_trial_dense_rows(t, NIB_TRIAL_ROUTER, h, 0, s->experts, w);
    struct nib_trial_error e = {.bad = wrong_places(t, route)};
    for (uint32_t r = 0; r < rows && !t->err; r++) {
        struct nib_gpu_choice choice[NIB_MAX_EXPERTS_USED];
        if (!nib_trial_compared(t, r))
            continue;
        nib_ref_rmsnorm(normed, x + (uint64_t)r * h, t->v.mlp_norm, h);
        const struct nib_matmul mm = {.w = w,
                                      .x = normed,
                                      .bias = t->v.router_bias,
                                      .y = logits,
                                      .ldy = s->experts,
                                      .m = 1,
                                      .n = s->experts,
                                      .k = h,
                                      .n1 = s->experts};
        nib_ref_dense_gemv(&mm);
        for (uint32_t c = 0; c < used; c++)
            t->k->forms.choice(&t->m, route, r, c, &choice[c]);
        expect_choice(t, choice, logits, &e);
    }
    nib_trial_expect(t, op, "choice", &e, 1e-2);
    expect_norm(t, op, x, acts, t->v.mlp_norm, 4e-3);
}

void nib_trial_combine(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t h = t->shape.hidden, rows = t->decode + t->prompt, used = t->shape.experts_used;
    const float *before = nib_trial_fetch(t, t->m.x, rows * h * 4ull);
    const float *down = nib_trial_fetch(t, t->m.down, (uint64_t)rows * used * h * 4);
    const void *route = nib_trial_fetch(t, t->m.route, t->k->route_bytes(NIB_TRIAL_ROWS, t->shape.experts));
    nib_trial_fill(t, t->m.acts, 0xff, acts_bytes(t));
    if (!nib_trial_launch(t, op))
        return;
    const float *after = nib_trial_fetch(t, t->m.x, rows * h * 4ull);
    const void *acts = nib_trial_fetch(t, t->m.acts, acts_bytes(t));
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    for (uint32_t r = 0; r < rows && !t->err; r++) {
        struct nib_gpu_choice c[NIB_MAX_EXPERTS_USED];
        for (uint32_t k = 0; k < used; k++) {
            t->k->forms.choice(&t->m, route, r, k, &c[k]);
            e.bad += c[k].place >= rows * used;
        }
        for (uint32_t i = 0; i < h && !e.bad; i++) {
            double sum = (double)before[(uint64_t)r * h + i];
            for (uint32_t k = 0; k < used; k++)
                sum += (double)c[k].weight * (double)down[(uint64_t)c[k].place * h + i];
            nib_trial_add(&e, (double)after[(uint64_t)r * h + i], sum);
        }
    }
    nib_trial_expect(t, op, "x", &e, 2e-6);
    expect_norm(t, op, after, acts, t->layer + 1 < t->shape.layers ? t->v.attn_norm : t->v.final_norm, 4e-3);
}

/* What the ops one by one have left of the step's one row, the fused kernel leaves to the bit. */
void nib_trial_token(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint64_t x_bytes = t->shape.hidden * 4ull, acts = t->shape.hidden * 2ull;
    const void *old_x = nib_trial_fetch(t, t->m.x, x_bytes), *old_acts = nib_trial_fetch(t, t->m.acts, acts);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    for (int launch = 0; launch < 2; launch++) { /* the first leaves in `scratch` what later ones go by */
        nib_trial_fill(t, t->m.x, 0xff, x_bytes);
        nib_trial_fill(t, t->m.acts, 0xff, acts);
        if (!nib_trial_launch(t, op))
            return;
        const void *new_x = nib_trial_fetch(t, t->m.x, x_bytes), *new_acts = nib_trial_fetch(t, t->m.acts, acts);
        nib_trial_wait(t);
        if (!t->err)
            e.bad += (memcmp(old_x, new_x, x_bytes) ? 1u : 0u) + (memcmp(old_acts, new_acts, acts) ? 1u : 0u);
    }
    nib_trial_expect(t, op, "x and acts", &e, 0);
}

/* ---- sampler ---- */

static float bias_of(const struct nib_sampling *s, uint32_t id)
{
    float bias = 0;
    for (uint32_t i = 0; i < s->bias_count; i++)
        bias += s->bias[i].token == id ? s->bias[i].bias : 0;
    return bias;
}

void nib_trial_scan(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t vocab = t->sampler.vocab;
    const uint64_t bytes = (uint64_t)vocab * 4;
    nib_trial_send(t, t->sampler.logits, t->logits, t->want * bytes);
    nib_trial_send(t, t->sampler.seen, t->seen, NIB_TRIAL_SLOTS * bytes);
    if (!nib_trial_launch(t, op))
        return;
    const float *out = nib_trial_fetch(t, t->sampler.logits, t->want * bytes);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    for (uint32_t i = 0; i < t->want && !t->err; i++) {
        const struct nib_sampling *s = &t->host_sampling[t->step->rows[t->step->want[i]].slot];
        for (uint32_t id = 0; id < vocab; id++) {
            const float z = t->logits[(uint64_t)i * vocab + id], got = out[(uint64_t)i * vocab + id];
            const bool banned = t->banned[id / 32] >> id % 32 & 1;
            e.bad += !banned && got != (s->bias_count ? z + bias_of(s, id) : z);
        }
    }
    nib_trial_expect(t, op, "logits", &e, 0);
}

static bool close_to(float a, float b)
{
    return fabsf(a - b) <= 2e-6f * (1 + fabsf(b));
}

static bool same(const struct nib_sampled *a, const struct nib_sampled *b)
{
    bool good = a->slot == b->slot && a->token == b->token && a->failed == b->failed && a->top_count == b->top_count &&
                close_to(a->logprob, b->logprob);
    for (uint32_t i = 0; good && i < a->top_count; i++)
        good = a->top[i].token == b->top[i].token && close_to(a->top[i].logprob, b->top[i].logprob);
    return good;
}

void nib_trial_sample(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t vocab = t->sampler.vocab;
    struct nib_gpu_result *out = &t->outbox[t->step->serial % NIB_GPU_MAILBOX];
    memset(out, 0xff, sizeof *out);
    if (!nib_trial_launch(t, op))
        return;
    const uint32_t *last = nib_trial_fetch(t, t->m.last, NIB_TRIAL_SLOTS * 4);
    const uint32_t *seen = nib_trial_fetch(t, t->sampler.seen, NIB_TRIAL_SLOTS * nib_sample_state_bytes(vocab));
    const uint64_t *serial = nib_trial_fetch(t, t->m.next_serial, 8);
    nib_trial_wait(t);
    struct nib_trial_error e = {.bad = out->serial != t->step->serial || out->count != t->want || out->fault != 0 ||
                                       *serial != t->step->serial + 1};
    void *scratch = nib_trial_take(t, nib_sample_scratch_bytes(vocab));
    for (uint32_t i = 0; i < t->want && !t->err && !e.bad; i++) {
        const struct nib_row *row = &t->step->rows[t->step->want[i]];
        const struct nib_sample_in in = {.logits = t->logits + (uint64_t)i * vocab,
                                         .banned = t->banned,
                                         .state = t->seen + (uint64_t)row->slot * vocab,
                                         .sampling = &t->host_sampling[row->slot],
                                         .vocab = vocab,
                                         .pos = row->pos};
        struct nib_sampled want = {0};
        nib_sample(&in, scratch, &want);
        want.slot = row->slot;
        e.bad += !same(&out->sampled[i], &want) || last[row->slot] != want.token ||
                 seen[(uint64_t)row->slot * vocab + want.token] != in.state[want.token] + 1;
    }
    nib_trial_expect(t, op, "tokens", &e, 0);
}
