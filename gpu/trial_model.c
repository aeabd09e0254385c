/* gpu/trial_model.c: owns where the self-test's model lies, and what its weights are.
 * Limits: NIB_TRIAL_*. Boot thread. Cannot fail but as trial.c does. */
#include <math.h>
#include <string.h>

#include "core/arith.h"
#include "core/kv.h"
#include "core/mx.h"
#include "core/sample.h"
#include "gpu/trial.h"

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Sum of four uniforms, variance 1. */
static void normals(uint16_t *to, uint64_t count, float center, float spread, uint64_t *seed)
{
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t r = next(seed), sum = (r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48);
        to[i] = nib_bf16_encode(center + spread * ((float)sum / 65535.0f - 2.0f) * 1.7320508f);
    }
}

static uint64_t salt_of(enum nib_trial_matrix matrix, uint32_t expert)
{
    return 7919ull * (matrix + 1) + 104729ull * expert;
}

/* A window of a pattern: n elements of `size` bytes from element `first` on. */
static void window(void *to, const void *pattern, uint64_t length, uint64_t first, uint64_t n, uint64_t size)
{
    for (uint64_t done = 0, at = first % length; done < n; at = 0) {
        const uint64_t part = nib_min_u64(n - done, length - at);
        memcpy((uint8_t *)to + done * size, (const uint8_t *)pattern + at * size, part * size);
        done += part;
    }
}

static void send_window(struct nib_trial *t, nib_gpu_ptr to, const void *pattern, uint64_t length, uint64_t first,
                        uint64_t n, uint64_t size)
{
    for (uint64_t done = 0, at = first % length; done < n; at = 0) {
        const uint64_t part = nib_min_u64(n - done, length - at);
        nib_trial_send(t, to + done * size, (const uint8_t *)pattern + at * size, part * size);
        done += part;
    }
}

static bool is_mxfp8(const struct nib_trial *t, enum nib_trial_matrix matrix)
{
    return t->dense == NIB_DENSE_MXFP8 &&
           (matrix == NIB_TRIAL_QKV || matrix == NIB_TRIAL_OUT || matrix == NIB_TRIAL_HEAD);
}

static void mxfp8_rows(const struct nib_trial *t, enum nib_trial_matrix matrix, uint32_t k, uint32_t first,
                       uint32_t count, uint16_t *ret)
{
    const uint64_t salt = salt_of(matrix, 0), blocks = k / NIB_MX_BLOCK;
    for (uint64_t b = first * blocks; b < (first + count) * blocks; b++, ret += NIB_MX_BLOCK) {
        uint8_t codes[NIB_MX_BLOCK];
        window(codes, t->e4m3, NIB_TRIAL_WEIGHTS, salt + b * NIB_MX_BLOCK, NIB_MX_BLOCK, 1);
        nib_mxfp8_decode_bf16(t->e8m0[(salt + b) % NIB_TRIAL_SCALES], codes, ret);
    }
}

void nib_trial_dense_rows(const struct nib_trial *t, enum nib_trial_matrix matrix, uint32_t k, uint32_t first,
                          uint32_t count, uint16_t *ret)
{
    if (is_mxfp8(t, matrix)) {
        mxfp8_rows(t, matrix, k, first, count, ret);
        return;
    }
    const bool embed = matrix == NIB_TRIAL_EMBED;
    window(ret, embed ? t->acts : t->weights, embed ? NIB_TRIAL_ACTS : NIB_TRIAL_WEIGHTS,
           salt_of(matrix, 0) + (uint64_t)first * k, (uint64_t)count * k, 2);
}

void nib_trial_mx_rows(const struct nib_trial *t, enum nib_trial_matrix matrix, uint32_t expert, uint32_t k,
                       uint32_t first, uint32_t count, uint8_t *ret)
{
    const uint64_t salt = salt_of(matrix, expert), blocks = k / 2, scales = k / NIB_MX_BLOCK;
    window(ret, t->codes, NIB_TRIAL_CODES, salt + first * blocks, count * blocks, 1);
    window(ret + count * blocks, t->scales, NIB_TRIAL_SCALES, salt + first * scales, count * scales, 1);
}

/* ---- room ---- */

static nib_gpu_ptr device(struct nib_trial *t, uint64_t bytes)
{
    const nib_gpu_ptr at = t->arena + t->arena_used;
    t->arena_used += nib_round_up(bytes, NIB_GPU_PIECE_ALIGN);
    return at;
}

static void *pinned(struct nib_trial *t, uint64_t bytes, nib_gpu_ptr *ret_device)
{
    const uint64_t at = t->pinned_used;
    t->pinned_used += nib_round_up(bytes, NIB_GPU_PIECE_ALIGN);
    if (ret_device)
        *ret_device = t->pinned_at + at;
    return t->pinned ? t->pinned + at : NULL;
}

static uint16_t *vector(struct nib_trial *t, uint64_t count, nib_gpu_ptr *ret_device)
{
    *ret_device = device(t, count * 2);
    return pinned(t, count * 2, NULL);
}

/* Of one layer's page. */
static uint64_t page_elements(const struct nib_trial *t)
{
    return 2ull * nib_kv_dim(&t->shape) * NIB_KV_PAGE_TOKENS;
}

static void lay_out_shape(struct nib_trial *t)
{
    const struct nib_shape *s = &t->shape;
    t->m = (struct nib_gpu_machine){.slots = NIB_TRIAL_SLOTS,
                                    .ctx_pages = NIB_TRIAL_PAGES,
                                    .ring_pages = nib_kv_ring_pages(s->window, NIB_TRIAL_ROWS),
                                    .step_rows_max = NIB_TRIAL_ROWS,
                                    .splits_max = t->k->splits_max(NIB_TRIAL_CTX_TOKENS),
                                    .kv_pages = NIB_TRIAL_SLOTS * NIB_TRIAL_PAGES,
                                    .sms = t->m.sms};
    nib_gpu_machine_model(&t->m, s);
    t->m.page_stride = page_elements(t) * 2;
    if (t->kv == NIB_KV_FP8)
        t->m.page_stride = page_elements(t) + page_elements(t) / NIB_MX_BLOCK;
}

static uint64_t dense_bytes(const struct nib_trial *t, uint32_t n, uint32_t k)
{
    return t->dense == NIB_DENSE_MXFP8 ? t->k->mxfp8_bytes(n, k) : t->k->dense_bytes(n, k);
}

/* Both layers have the same weights; each its own pages. */
static void lay_out_weights(struct nib_trial *t)
{
    const struct nib_shape *s = &t->shape;
    const uint32_t h = s->hidden, inner = s->intermediate, e = s->experts;
    struct nib_gpu_layer *l = &t->m.layer[0];
    t->v.attn_norm = vector(t, h, &l->attn_norm);
    t->v.qkv_bias = vector(t, nib_qkv_dim(s), &l->qkv_bias);
    t->v.sinks = vector(t, s->heads, &l->sinks);
    t->v.out_bias = vector(t, h, &l->out_bias);
    t->v.mlp_norm = vector(t, h, &l->mlp_norm);
    t->v.router_bias = vector(t, e, &l->router_bias);
    t->v.up_bias = vector(t, 2ull * e * inner, &l->up_bias);
    t->v.down_bias = vector(t, (uint64_t)e * h, &l->down_bias);
    t->v.final_norm = vector(t, h, &t->m.final_norm);
    t->m.embed = device(t, (uint64_t)s->vocab * h * 2);
    l->qkv = device(t, dense_bytes(t, nib_qkv_dim(s), h));
    l->out = device(t, dense_bytes(t, h, nib_q_dim(s)));
    l->router = device(t, t->k->dense_bytes(e, h));
    t->m.lm_head =
        device(t, t->dense == NIB_DENSE_MXFP8 ? t->k->mxfp8_bytes(s->vocab, h) : t->k->head_bytes(s->vocab, h));
    l->up = device(t, e * t->k->mx_bytes(2 * inner, h));
    l->down = device(t, e * t->k->mx_bytes(h, inner));
    t->m.layer[1] = *l;
    l->kv = device(t, (uint64_t)NIB_TRIAL_SLOTS * t->m.ring_pages * t->m.page_stride);
    t->m.layer[1].kv = device(t, (uint64_t)t->m.kv_pages * t->m.page_stride);
    const uint64_t dense = 2ull * h * (nib_qkv_dim(s) > s->vocab ? nib_qkv_dim(s) : s->vocab);
    const uint64_t out = 2ull * h * nib_q_dim(s), mx = (uint64_t)inner * h * 2;
    t->staging_bytes = dense > out ? dense : out;
    t->staging_bytes = nib_round_up(t->staging_bytes > mx ? t->staging_bytes : mx, NIB_GPU_PIECE_ALIGN);
    t->staging = device(t, t->staging_bytes);
}

static void lay_out_activations(struct nib_trial *t)
{
    const struct nib_shape *s = &t->shape;
    struct nib_gpu_machine *m = &t->m;
    const uint64_t rows = NIB_TRIAL_ROWS, picks = rows * s->experts_used;
    const uint64_t widest = s->hidden > nib_q_dim(s) ? s->hidden : nib_q_dim(s);
    const uint64_t kv = (uint64_t)NIB_TRIAL_SLOTS * m->ring_pages + m->kv_pages;
    m->x = device(t, rows * s->hidden * 4);
    m->acts = device(t, rows * widest * 2);
    m->q = device(t, rows * nib_q_dim(s) * 2);
    m->kv_new = t->kv == NIB_KV_FP8 ? device(t, rows * 2 * nib_kv_dim(s) * 2) : 0;
    m->partial = device(t, NIB_TRIAL_SLOTS * s->heads * m->splits_max * (2 + NIB_HEAD_DIM) * 4ull);
    m->rope = device(t, rows * NIB_HEAD_DIM * 4);
    m->route = device(t, t->k->route_bytes(NIB_TRIAL_ROWS, s->experts));
    m->gated = device(t, picks * s->intermediate * 2);
    m->down = device(t, picks * s->hidden * 4);
    m->logits = device(t, (uint64_t)NIB_TRIAL_SLOTS * s->vocab * 4);
    m->scratch_bytes = t->k->scratch_bytes(s, NIB_TRIAL_SLOTS, NIB_TRIAL_ROWS);
    m->scratch = device(t, m->scratch_bytes);
    m->seen = device(t, NIB_TRIAL_SLOTS * nib_sample_state_bytes(s->vocab));
    /* the most that one check fetches */
    t->back_bytes = nib_round_up(kv * m->page_stride + rows * s->hidden * 12 + rows * widest * 8 +
                                     picks * s->hidden * 8 + picks * s->intermediate * 4 +
                                     2 * sizeof(struct nib_gpu_step) + t->k->route_bytes(NIB_TRIAL_ROWS, s->experts) +
                                     4 * NIB_TRIAL_SLOTS * nib_sample_state_bytes(t->sampler.vocab),
                                 4096) +
                    (64u << 10);
}

static void lay_out_control(struct nib_trial *t)
{
    struct nib_gpu_machine *m = &t->m;
    const uint64_t entries = (uint64_t)NIB_TRIAL_SLOTS * NIB_TRIAL_PAGES;
    m->tables = device(t, entries * 4);
    m->step = device(t, sizeof(struct nib_gpu_step));
    m->sampling = device(t, NIB_TRIAL_SLOTS * sizeof(struct nib_sampling));
    m->last = device(t, NIB_TRIAL_SLOTS * 4);
    m->repack = device(t, sizeof(struct nib_trial_letter));
    m->next_serial = device(t, 8);
    m->banned = device(t, nib_sample_banned_words(t->sampler.vocab) * 4ull);
    t->m_at = device(t, sizeof *m);
    t->sampler_at = device(t, sizeof *m);
    t->mailbox = pinned(t, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_step), &m->mailbox);
    t->outbox = pinned(t, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_result), &m->outbox);
    t->host_tables = pinned(t, entries * 4, &m->host_tables);
    t->host_sampling = pinned(t, NIB_TRIAL_SLOTS * sizeof(struct nib_sampling), &m->host_sampling);
    const uint32_t vocab = t->sampler.vocab;
    t->sampler = *m;
    t->sampler.vocab = vocab;
    t->sampler.seen = device(t, NIB_TRIAL_SLOTS * nib_sample_state_bytes(vocab));
    t->sampler.logits = device(t, 4ull * NIB_TRIAL_SLOTS * vocab);
    t->machines = pinned(t, 2 * sizeof *m, NULL);
    t->serial = pinned(t, 8, NULL);
    t->last = pinned(t, NIB_TRIAL_SLOTS * 4, NULL);
    t->banned = pinned(t, nib_sample_banned_words(vocab) * 4ull, NULL);
    t->seen = pinned(t, NIB_TRIAL_SLOTS * nib_sample_state_bytes(vocab), NULL);
    t->logits = pinned(t, 4ull * NIB_TRIAL_SLOTS * vocab, NULL);
    t->weights = pinned(t, 2 * NIB_TRIAL_WEIGHTS, NULL);
    t->acts = pinned(t, 2 * NIB_TRIAL_ACTS, NULL);
    t->e4m3 = pinned(t, NIB_TRIAL_WEIGHTS, NULL);
    t->e8m0 = pinned(t, NIB_TRIAL_SCALES, NULL);
    t->codes = pinned(t, NIB_TRIAL_CODES, NULL);
    t->scales = pinned(t, NIB_TRIAL_SCALES, NULL);
    t->letters = pinned(t, (NIB_TRIAL_LETTERS + 2) * sizeof *t->letters, NULL);
}

void nib_trial_lay_out(struct nib_trial *t)
{
    t->arena_used = t->pinned_used = 0;
    lay_out_shape(t);
    lay_out_weights(t);
    lay_out_activations(t);
    lay_out_control(t);
}

/* ---- content ---- */

static void make_patterns(struct nib_trial *t)
{
    uint64_t seed = 20260917;
    normals(t->weights, NIB_TRIAL_WEIGHTS, 0, 1.0f / sqrtf((float)t->shape.hidden), &seed);
    normals(t->acts, NIB_TRIAL_ACTS, 0, 1, &seed);
    for (uint64_t i = 0; i + 8 <= NIB_TRIAL_CODES; i += 8) {
        const uint64_t codes = next(&seed);
        memcpy(t->codes + i, &codes, sizeof codes);
    } /* the last few stay 0 */
    /* scales that make outputs of order 1 */
    const int middle = 127 - (int)lround(log2(2.5 * sqrt(t->shape.hidden)));
    for (uint64_t i = 0; i < NIB_TRIAL_SCALES; i++)
        t->scales[i] = (uint8_t)(middle - 2 + (int)(next(&seed) >> 56) % 5);
    /* codes of spread 64 and small ones, some subnormal; their scales undo it */
    for (uint64_t i = 0; i < NIB_TRIAL_WEIGHTS; i++)
        t->e4m3[i] = nib_e4m3_encode(nib_bf16_decode(t->acts[i % NIB_TRIAL_ACTS]) * (i % 7 ? 64.0f : 0x1p-8f));
    const int e8m0 = 127 - 6 - (int)lround(log2(sqrt(t->shape.hidden)));
    for (uint64_t i = 0; i < NIB_TRIAL_SCALES; i++)
        t->e8m0[i] = (uint8_t)(e8m0 - 1 + (int)(next(&seed) >> 56) % 3);
}

static void make_vector(struct nib_trial *t, uint16_t *v, nib_gpu_ptr to, uint64_t count, float center, float spread,
                        uint64_t *seed)
{
    normals(v, count, center, spread, seed);
    nib_trial_send(t, to, v, count * 2);
}

static void make_vectors(struct nib_trial *t)
{
    const struct nib_shape *s = &t->shape;
    const struct nib_gpu_layer *l = &t->m.layer[0];
    uint64_t seed = 77;
    make_vector(t, t->v.attn_norm, l->attn_norm, s->hidden, 1, 0.2f, &seed);
    make_vector(t, t->v.qkv_bias, l->qkv_bias, nib_qkv_dim(s), 0, 0.3f, &seed);
    make_vector(t, t->v.sinks, l->sinks, s->heads, 0, 1, &seed);
    make_vector(t, t->v.out_bias, l->out_bias, s->hidden, 0, 0.3f, &seed);
    make_vector(t, t->v.mlp_norm, l->mlp_norm, s->hidden, 1, 0.2f, &seed);
    make_vector(t, t->v.router_bias, l->router_bias, s->experts, 0, 0.3f, &seed);
    make_vector(t, t->v.up_bias, l->up_bias, 2ull * s->experts * s->intermediate, 0, 0.3f, &seed);
    make_vector(t, t->v.down_bias, l->down_bias, (uint64_t)s->experts * s->hidden, 0, 0.3f, &seed);
    make_vector(t, t->v.final_norm, t->m.final_norm, s->hidden, 1, 0.2f, &seed);
}

/* Repacks rows [n0, n1) that lie in the staging. */
static void repack(struct nib_trial *t, enum nib_gpu_op op, struct nib_gpu_repack r)
{
    struct nib_trial_letter *letter = &t->letters[t->letters_used++ % NIB_TRIAL_LETTERS];
    if (t->letters_used % NIB_TRIAL_LETTERS == 0)
        nib_trial_wait(t); /* before they are written again */
    *letter = (struct nib_trial_letter){.repack = r};
    nib_trial_send(t, t->m.repack, letter, sizeof letter->repack);
    (void)nib_trial_start(t, op);
}

/* In two pieces, the later first, as the loader may. */
static void load_matrix(struct nib_trial *t, enum nib_trial_matrix id, uint32_t expert, nib_gpu_ptr to, uint32_t n,
                        uint32_t k, enum nib_gpu_matrix kind)
{
    const bool mx = id == NIB_TRIAL_UP || id == NIB_TRIAL_DOWN, mxfp8 = is_mxfp8(t, id);
    const uint64_t salt = salt_of(id, expert), row = mx ? k / 2 : k, scale_row = k / NIB_MX_BLOCK;
    const uint32_t cut = n / 2 / 64 * 64;
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? n : cut;
        if (n0 == n1)
            continue;
        const nib_gpu_ptr scales = t->staging + nib_round_up((n1 - n0) * row, NIB_GPU_PIECE_ALIGN);
        if (mx) {
            send_window(t, t->staging, t->codes, NIB_TRIAL_CODES, salt + n0 * row, (n1 - n0) * row, 1);
            send_window(t, scales, t->scales, NIB_TRIAL_SCALES, salt + n0 * scale_row, (n1 - n0) * scale_row, 1);
        } else if (mxfp8) {
            send_window(t, t->staging, t->e4m3, NIB_TRIAL_WEIGHTS, salt + n0 * row, (n1 - n0) * row, 1);
            send_window(t, scales, t->e8m0, NIB_TRIAL_SCALES, salt + n0 * scale_row, (n1 - n0) * scale_row, 1);
        } else {
            send_window(t, t->staging, t->weights, NIB_TRIAL_WEIGHTS, salt + n0 * row, (n1 - n0) * row, 2);
        }
        repack(t,
               mx                     ? NIB_GPU_REPACK_MX
               : mxfp8                ? NIB_GPU_REPACK_MXFP8
               : id == NIB_TRIAL_HEAD ? NIB_GPU_REPACK_HEAD
                                      : NIB_GPU_REPACK_DENSE,
               (struct nib_gpu_repack){.dst = to,
                                       .src = t->staging,
                                       .scales = mx || mxfp8 ? scales : 0,
                                       .n = n,
                                       .k = k,
                                       .n0 = n0,
                                       .n1 = n1,
                                       .matrix = kind});
    }
}

/* Keys and values that earlier steps left, about normal. */
static void load_pages(struct nib_trial *t, uint32_t layer, uint32_t pages)
{
    const uint64_t count = page_elements(t), codes = t->kv == NIB_KV_FP8 ? count : 0;
    if (!codes)
        send_window(t, t->m.layer[layer].kv, t->acts, NIB_TRIAL_ACTS, 31 + layer, pages * count, 2);
    for (uint32_t p = 0; p < pages && codes; p++) {
        const nib_gpu_ptr to = t->m.layer[layer].kv + p * t->m.page_stride;
        send_window(t, to, t->e4m3, NIB_TRIAL_WEIGHTS, 31 + layer + p * codes, codes, 1);
        nib_trial_fill(t, to + codes, 127 - 6, codes / NIB_MX_BLOCK); /* see `e4m3` */
    }
}

static void load_matrices(struct nib_trial *t)
{
    const struct nib_shape *s = &t->shape;
    const struct nib_gpu_layer *l = &t->m.layer[0];
    const uint32_t h = s->hidden, inner = s->intermediate;
    load_matrix(t, NIB_TRIAL_QKV, 0, l->qkv, nib_qkv_dim(s), h, NIB_GPU_M_QKV);
    load_matrix(t, NIB_TRIAL_OUT, 0, l->out, h, nib_q_dim(s), NIB_GPU_M_PLAIN);
    load_matrix(t, NIB_TRIAL_ROUTER, 0, l->router, s->experts, h, NIB_GPU_M_PLAIN);
    load_matrix(t, NIB_TRIAL_HEAD, 0, t->m.lm_head, s->vocab, h, NIB_GPU_M_PLAIN);
    nib_trial_wait(t);
    for (uint32_t e = 0; e < s->experts; e++) {
        load_matrix(t, NIB_TRIAL_UP, e, l->up + e * t->k->mx_bytes(2 * inner, h), 2 * inner, h, NIB_GPU_M_UP);
        load_matrix(t, NIB_TRIAL_DOWN, e, l->down + e * t->k->mx_bytes(h, inner), h, inner, NIB_GPU_M_PLAIN);
    }
    send_window(t, t->m.embed, t->acts, NIB_TRIAL_ACTS, salt_of(NIB_TRIAL_EMBED, 0), (uint64_t)s->vocab * h, 2);
    load_pages(t, 0, NIB_TRIAL_SLOTS * t->m.ring_pages);
    load_pages(t, 1, t->m.kv_pages);
}

/* How the slots sample: greedy with a bias; the plain draw; everything on; cuts alone. */
static void make_sampling(struct nib_trial *t)
{
    struct nib_sampling *s = t->host_sampling;
    for (uint32_t i = 0; i < NIB_TRIAL_SLOTS; i++) {
        nib_sample_defaults(&s[i]);
        s[i].seed = 1000 + i;
    }
    s[0].logprobs = true;
    s[0].top_logprobs = 5;
    s[0].bias_count = 2;
    s[0].bias[0] = (struct nib_bias){.token = 17, .bias = 9.0f};
    s[0].bias[1] = (struct nib_bias){.token = t->sampler.vocab - 1, .bias = -3.0f};
    s[1].temperature = 1.0f;
    s[2].temperature = 0.8f;
    s[2].top_k = 50;
    s[2].top_p = 0.9f;
    s[2].min_p = 0.02f;
    s[2].repetition_penalty = 1.2f;
    s[2].frequency_penalty = 0.3f;
    s[2].presence_penalty = 0.2f;
    s[3].temperature = 1.3f;
    s[3].top_p = 0.7f;
    s[3].logprobs = true;
}

/* Logits as a model has them: most far below a few. */
static void make_sampler_input(struct nib_trial *t)
{
    uint64_t seed = 5;
    const uint32_t vocab = t->sampler.vocab;
    for (uint64_t i = 0; i < (uint64_t)NIB_TRIAL_SLOTS * vocab; i++) {
        const uint64_t r = next(&seed);
        t->logits[i] = 3.0f * nib_bf16_decode(t->acts[(i * 5 + 3) % NIB_TRIAL_ACTS]) + (r % 5000 == 0 ? 12.0f : 0.0f) +
                       (float)(r >> 40) * 0x1p-28f;
        t->seen[i] = r >> 32 & 0x1f ? 0 : (uint32_t)(r >> 20 & 3) | (r >> 19 & 1 ? 0x80000000u : 0);
    }
    for (uint32_t i = 0; i < vocab; i += 97)
        t->banned[i / 32] |= 1u << i % 32;
    nib_trial_send(t, t->m.banned, t->banned, nib_sample_banned_words(vocab) * 4ull);
}

/* The later slots' tables and sampling are brought by `begin`, the others lie there already. */
static void make_control(struct nib_trial *t)
{
    const uint32_t entries = NIB_TRIAL_SLOTS * NIB_TRIAL_PAGES;
    for (uint32_t i = 0; i < entries; i++)
        t->host_tables[i] = i * 11 % entries;
    make_sampling(t);
    make_sampler_input(t);
    *t->serial = 1;
    nib_trial_send(t, t->m.next_serial, t->serial, 8);
    nib_trial_fill(t, t->m.scratch, 0, t->m.scratch_bytes);
    nib_trial_fill(t, t->m.route, 0, t->k->route_bytes(NIB_TRIAL_ROWS, t->shape.experts));
}

void nib_trial_load(struct nib_trial *t)
{
    make_patterns(t);
    nib_trial_fill(t, t->arena, 0xff, t->arena_used); /* what is not written shows: NaN, or a huge index */
    t->machines[0] = t->m;
    t->machines[1] = t->sampler;
    nib_trial_send(t, t->m_at, &t->machines[0], sizeof t->m);
    nib_trial_send(t, t->sampler_at, &t->machines[1], sizeof t->m);
    make_vectors(t);
    load_matrices(t);
    make_control(t);
    nib_trial_wait(t);
}
