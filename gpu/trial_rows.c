/* gpu/trial_rows.c: the self-test's comparisons of products and of attention, decode and prompt forms alike, on the first
 * and the last outputs of some rows; that all outputs were written, on all. Owns nothing. Boot thread. What differs goes
 * into the report; only trial.c's calls fail. */
#include <math.h>
#include <string.h>

#include "arch/ref/ref.h"
#include "core/mx.h"
#include "gpu/trial.h"

#define OUTPUTS 16u /* compared at either end of a product */

static uint32_t q_dim(const struct nib_trial *t)
{
    return nib_q_dim(&t->shape);
}

static uint64_t acts_bytes(const struct nib_trial *t)
{
    const uint32_t wide = q_dim(t) > t->shape.hidden ? q_dim(t) : t->shape.hidden;
    return NIB_TRIAL_ROWS * 2ull * wide;
}

static const void *fetch_acts(struct nib_trial *t)
{
    return nib_trial_fetch(t, t->m.acts, acts_bytes(t));
}

static const void *fetch_route(struct nib_trial *t)
{
    return nib_trial_fetch(t, t->m.route, t->k->route_bytes(NIB_TRIAL_ROWS, t->shape.experts));
}

/* The two ends of n outputs: *first of the last range; true when it overlaps the first one's and there is one only. */
static bool one_range(uint32_t n, uint32_t *ret_first)
{
    *ret_first = n > OUTPUTS ? n - OUTPUTS : 0;
    return n <= OUTPUTS;
}

/* y[j] = x . W[first + j] + bias[first + j], j < count, for one row of activations */
struct product {
    enum nib_trial_matrix matrix;
    uint32_t expert, k, first, count;
    const uint16_t *bias; /* of the whole matrix, or NULL */
    uint8_t *w;           /* the rows, when prepared */
};

static void prepare(struct nib_trial *t, struct product *p)
{
    p->w = nib_trial_take(t, 2ull * p->count * p->k);
    if (p->matrix == NIB_TRIAL_UP || p->matrix == NIB_TRIAL_DOWN)
        nib_trial_mx_rows(t, p->matrix, p->expert, p->k, p->first, p->count, p->w);
    else
        nib_trial_dense_rows(t, p->matrix, p->k, p->first, p->count, (uint16_t *)(void *)p->w);
}

static void multiply(const struct product *p, const float *x, float *y)
{
    const struct nib_matmul mm = {.w = p->w,
                                  .x = x,
                                  .bias = p->bias ? p->bias + p->first : NULL,
                                  .y = y,
                                  .ldy = p->count,
                                  .m = 1,
                                  .n = p->count,
                                  .k = p->k,
                                  .n1 = p->count};
    if (p->matrix == NIB_TRIAL_UP || p->matrix == NIB_TRIAL_DOWN)
        nib_ref_mx_gemv(&mm);
    else
        nib_ref_dense_gemv(&mm);
}

/* ---- qkv ---- */

static uint64_t page_of(const struct nib_trial *t, uint32_t slot, uint32_t pos)
{
    const uint32_t page = pos / NIB_KV_PAGE_TOKENS;
    return nib_layer_windowed(t->layer) ? slot * t->m.ring_pages + page % t->m.ring_pages
                                        : t->host_tables[slot * NIB_TRIAL_PAGES + page];
}

static uint64_t layer_pages(const struct nib_trial *t)
{
    return nib_layer_windowed(t->layer) ? (uint64_t)NIB_TRIAL_SLOTS * t->m.ring_pages : t->m.kv_pages;
}

static uint64_t page_elements(const struct nib_trial *t)
{
    return 2ull * nib_kv_dim(&t->shape) * NIB_KV_PAGE_TOKENS;
}

static const uint8_t *fetch_kv(struct nib_trial *t)
{
    return nib_trial_fetch(t, t->m.layer[t->layer].kv, layer_pages(t) * t->m.page_stride);
}

/* After the wait: the pages in bf16; those in FP8 decoded, which bf16 can hold. */
static const uint16_t *wide_kv(struct nib_trial *t, const uint8_t *pages)
{
    const uint64_t count = page_elements(t);
    if (t->kv != NIB_KV_FP8)
        return (const uint16_t *)(const void *)pages;
    uint16_t *wide = nib_trial_take(t, layer_pages(t) * count * 2);
    for (uint64_t p = 0; p < layer_pages(t); p++)
        for (uint64_t b = 0; b < count / NIB_MX_BLOCK; b++) {
            const uint8_t *page = pages + p * t->m.page_stride;
            nib_mxfp8_decode_bf16(page[count + b], page + b * NIB_MX_BLOCK, wide + p * count + b * NIB_MX_BLOCK);
        }
    return wide;
}

static const uint16_t *fetch_kv_new(struct nib_trial *t)
{
    return nib_trial_fetch(t, t->m.kv_new, NIB_TRIAL_ROWS * 4ull * nib_kv_dim(&t->shape));
}

/* One head of one row: a query head from q, a key or value head from where QKV leaves it: its page, or kv_new. */
static void expect_head(struct nib_trial *t, uint32_t r, uint32_t head, const float *y, const uint16_t *q,
                        const uint16_t *kv, struct nib_trial_error *e)
{
    const struct nib_row *row = &t->step->rows[r];
    const uint16_t *out = q + (uint64_t)r * q_dim(t) + (uint64_t)head * NIB_HEAD_DIM;
    if (head >= t->shape.heads && t->kv == NIB_KV_FP8)
        out = kv + (uint64_t)r * 2 * nib_kv_dim(&t->shape) + (uint64_t)(head - t->shape.heads) * NIB_HEAD_DIM;
    else if (head >= t->shape.heads)
        out = kv + page_of(t, row->slot, row->pos) * page_elements(t) +
              ((uint64_t)(head - t->shape.heads) * NIB_KV_PAGE_TOKENS + row->pos % NIB_KV_PAGE_TOKENS) * NIB_HEAD_DIM;
    for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
        nib_trial_add(e, (double)nib_bf16_decode(out[d]), (double)y[d]);
}

void nib_trial_qkv(struct nib_trial *t, enum nib_gpu_op op)
{
    const struct nib_shape *s = &t->shape;
    const struct nib_trial_range rows = nib_trial_rows(t, op);
    /* a query, a key and a value head: those at the other end in the other form */
    const bool decode = nib_gpu_op_few(nib_gpu_op_plain(op)) == NIB_GPU_QKV;
    const uint32_t q = decode ? 0 : s->heads - 1, kv = decode ? s->kv_heads - 1 : 0;
    const uint32_t heads[3] = {q, s->heads + kv, s->heads + s->kv_heads + kv};
    const void *acts = fetch_acts(t);
    const float *rope = nib_trial_fetch(t, t->m.rope, NIB_TRIAL_ROWS * 256ull);
    if (decode || t->decode == 0)
        nib_trial_fill(t, t->m.q, 0xff, NIB_TRIAL_ROWS * 2ull * q_dim(t));
    if (!nib_trial_launch(t, op))
        return;
    const uint16_t *queries = nib_trial_fetch(t, t->m.q, NIB_TRIAL_ROWS * 2ull * q_dim(t));
    const uint16_t *kv_out = t->kv == NIB_KV_FP8 ? fetch_kv_new(t) : (const uint16_t *)(const void *)fetch_kv(t);
    nib_trial_wait(t);
    struct nib_trial_error of_q = {0}, of_kv = {0};
    float *x = nib_trial_take(t, nib_ref_acts_bytes(s->hidden)), y[NIB_HEAD_DIM];
    for (int i = 0; i < 3 && !t->err; i++) {
        struct product p = {NIB_TRIAL_QKV, 0, s->hidden, heads[i] * NIB_HEAD_DIM, NIB_HEAD_DIM, t->v.qkv_bias, NULL};
        prepare(t, &p);
        for (uint32_t r = rows.first; r < rows.end; r++) {
            if (!nib_trial_multiplied(t, r))
                continue;
            t->k->forms.acts(&t->m, t->layer ? NIB_GPU_COMBINE : NIB_GPU_EMBED, acts, r, s->hidden, x);
            multiply(&p, x, y);
            if (heads[i] < s->heads + s->kv_heads)
                nib_ref_rope(y, 1, rope + r * 32, rope + (NIB_TRIAL_ROWS + r) * 32);
            expect_head(t, r, heads[i], y, queries, kv_out, i < 1 ? &of_q : &of_kv);
        }
    }
    for (uint64_t i = (uint64_t)rows.first * q_dim(t); i < (uint64_t)rows.end * q_dim(t) && !t->err; i++)
        of_q.bad += isfinite(nib_bf16_decode(queries[i])) ? 0 : 1;
    nib_trial_expect(t, op, "q", &of_q, 4e-3);
    nib_trial_expect(t, op, "k, v", &of_kv, 4e-3);
}

/* ---- keys and values to FP8 ---- */

/* Every block of the step's keys and values as nib_kv8_encode has it. */
void nib_trial_kv8(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t blocks = 2 * nib_kv_dim(&t->shape) / NIB_MX_BLOCK, halves = NIB_HEAD_DIM / NIB_MX_BLOCK;
    const uint16_t *from = fetch_kv_new(t);
    if (!nib_trial_launch(t, op))
        return;
    const uint8_t *pages = fetch_kv(t);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    for (uint32_t r = 0; r < t->decode + t->prompt && !t->err; r++)
        for (uint32_t b = 0; b < blocks; b++) {
            const struct nib_row *row = &t->step->rows[r];
            const uint8_t *page = pages + page_of(t, row->slot, row->pos) * t->m.page_stride;
            const uint64_t at =
                ((uint64_t)(b / halves) * NIB_KV_PAGE_TOKENS + row->pos % NIB_KV_PAGE_TOKENS) * halves + b % halves;
            float x[NIB_MX_BLOCK];
            uint8_t scale, codes[NIB_MX_BLOCK];
            for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
                x[i] = nib_bf16_decode(from[((uint64_t)r * blocks + b) * NIB_MX_BLOCK + i]);
            nib_kv8_encode(x, &scale, codes);
            e.bad += scale != page[page_elements(t) + at] || memcmp(codes, page + at * NIB_MX_BLOCK, sizeof codes) != 0;
        }
    nib_trial_expect(t, op, "codes", &e, 0);
}

/* ---- attention ---- */

/* One KV head of one row by arch/ref, over fp32 copies of that head's pages. */
static void ref_attention(struct nib_trial *t, const uint16_t *kv, const uint16_t *q, uint32_t r, uint32_t head,
                          float *out)
{
    const struct nib_row *row = &t->step->rows[r];
    const uint32_t window = nib_layer_windowed(t->layer) ? t->shape.window : 0, end = row->pos + 1;
    const uint32_t first = (window && end > window ? end - window : 0) / NIB_KV_PAGE_TOKENS;
    const uint32_t elements = NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM;
    float(*pages)[2 * NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM], qf[NIB_GQA_GROUP * NIB_HEAD_DIM];
    uint32_t ids[NIB_TRIAL_PAGES] = {0};
    const uint64_t mark = t->host_used;
    void *scratch = nib_trial_take(t, nib_ref_attn_scratch_bytes(end));
    pages = nib_trial_take(t, NIB_TRIAL_PAGES * sizeof pages[0]);
    for (uint32_t p = first; p * NIB_KV_PAGE_TOKENS < end; p++) {
        const uint16_t *from = kv + page_of(t, row->slot, p * NIB_KV_PAGE_TOKENS) * page_elements(t);
        ids[p] = p;
        for (uint32_t i = 0; i < elements; i++) {
            pages[p][i] = nib_bf16_decode(from[head * elements + i]);
            pages[p][elements + i] = nib_bf16_decode(from[(t->shape.kv_heads + head) * elements + i]);
        }
    }
    for (uint32_t i = 0; i < NIB_GQA_GROUP * NIB_HEAD_DIM; i++)
        qf[i] = nib_bf16_decode(q[(uint64_t)r * q_dim(t) + head * NIB_GQA_GROUP * NIB_HEAD_DIM + i]);
    const struct nib_attn a = {.q = qf,
                               .out = out,
                               .kv = (const uint8_t *)pages,
                               .pages = ids,
                               .sinks = t->v.sinks + head * NIB_GQA_GROUP,
                               .scratch = scratch,
                               .page_stride = sizeof pages[0],
                               .ldq = NIB_GQA_GROUP * NIB_HEAD_DIM,
                               .ldo = NIB_GQA_GROUP * NIB_HEAD_DIM,
                               .pages_count = NIB_TRIAL_PAGES,
                               .rows = 1,
                               .pos0 = row->pos,
                               .window = window,
                               .kv_heads = 1,
                               .h1 = 1};
    nib_ref_attn(&a);
    t->host_used = mark;
}

void nib_trial_attn(struct nib_trial *t, enum nib_gpu_op op)
{
    const struct nib_trial_range rows = nib_trial_rows(t, op);
    const uint32_t group = NIB_GQA_GROUP * NIB_HEAD_DIM, heads[2] = {0, t->shape.kv_heads - 1};
    const uint16_t *q = nib_trial_fetch(t, t->m.q, NIB_TRIAL_ROWS * 2ull * q_dim(t));
    const uint8_t *pages = fetch_kv(t);
    if (nib_gpu_op_few(op) == NIB_GPU_ATTN || nib_gpu_op_few(op) == NIB_GPU_ATTN_FP8 || t->decode == 0)
        nib_trial_fill(t, t->m.acts, 0xff, acts_bytes(t));
    if (!nib_trial_launch(t, op))
        return;
    const void *acts = fetch_acts(t);
    nib_trial_wait(t);
    const uint16_t *kv = t->err ? NULL : wide_kv(t, pages);
    struct nib_trial_error e = {0};
    float *out = nib_trial_take(t, q_dim(t) * 4ull), want[NIB_GQA_GROUP * NIB_HEAD_DIM];
    for (uint32_t r = rows.first; r < rows.end && !t->err; r++) {
        t->k->forms.acts(&t->m, NIB_GPU_ATTN, acts, r, q_dim(t), out);
        for (uint32_t i = 0; i < q_dim(t); i++)
            e.bad += isfinite(out[i]) ? 0 : 1;
        for (int h = 0; h < 2 && nib_trial_compared(t, r); h++) {
            ref_attention(t, kv, q, r, heads[h], want);
            for (uint32_t i = 0; i < group; i++)
                nib_trial_add(&e, (double)out[heads[h] * group + i], (double)want[i]);
        }
    }
    nib_trial_expect(t, op, "attention", &e, 6e-3);
}

/* ---- x += product ---- */

void nib_trial_out(struct nib_trial *t, enum nib_gpu_op op)
{
    const struct nib_trial_range rows = nib_trial_rows(t, op);
    const uint32_t h = t->shape.hidden;
    const void *acts = fetch_acts(t);
    const float *before = nib_trial_fetch(t, t->m.x, NIB_TRIAL_ROWS * 4ull * h);
    if (!nib_trial_launch(t, op))
        return;
    const float *after = nib_trial_fetch(t, t->m.x, NIB_TRIAL_ROWS * 4ull * h);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    uint32_t last, untouched = 0;
    const int ranges = one_range(h, &last) ? 1 : 2;
    float *x = nib_trial_take(t, nib_ref_acts_bytes(q_dim(t))), y[OUTPUTS];
    for (int i = 0; i < ranges && !t->err; i++) {
        struct product p = {NIB_TRIAL_OUT, 0, q_dim(t), i ? last : 0, h < OUTPUTS ? h : OUTPUTS, t->v.out_bias, NULL};
        prepare(t, &p);
        for (uint32_t r = rows.first; r < rows.end; r++) {
            if (!nib_trial_multiplied(t, r))
                continue;
            t->k->forms.acts(&t->m, NIB_GPU_ATTN, acts, r, q_dim(t), x);
            multiply(&p, x, y);
            for (uint32_t j = 0; j < p.count; j++) {
                const uint64_t at = (uint64_t)r * h + p.first + j;
                nib_trial_add(&e, (double)after[at], (double)before[at] + (double)y[j]);
            }
        }
    }
    for (uint64_t i = (uint64_t)rows.first * h; i < (uint64_t)rows.end * h && !t->err; i++) {
        e.bad += isfinite(after[i]) ? 0 : 1;
        untouched += nib_f32_bits(after[i]) == nib_f32_bits(before[i]);
    }
    e.bad += untouched > (rows.end - rows.first) * h / 100; /* a sum may happen to change nothing */
    nib_trial_expect(t, op, "x", &e, 2e-5);
}

/* ---- experts ---- */

struct experts {
    enum nib_gpu_op op;
    bool up;
    uint32_t n, k; /* of an expert's matrix */
    const void *route, *in, *out;
    struct nib_trial_error e;
};

/* The outputs of a place, all of them. */
static void read_place(struct nib_trial *t, const struct experts *x, uint32_t place, float *ret)
{
    if (x->up)
        t->k->forms.gated(&t->m, x->op, x->route, x->out, place, ret);
    else
        memcpy(ret, (const float *)x->out + (uint64_t)place * x->n, x->n * 4ull);
}

static void expect_place(struct nib_trial *t, struct experts *x, const struct nib_gpu_choice *c, const float *in,
                         const float *out)
{
    const uint16_t *bias = (x->up ? t->v.up_bias : t->v.down_bias) + (uint64_t)c->expert * x->n;
    uint32_t last;
    const int ranges = one_range(x->n, &last) ? 1 : 2;
    for (int i = 0; i < ranges; i++) {
        float y[OUTPUTS], a[OUTPUTS / 2];
        struct product p = {x->up ? NIB_TRIAL_UP : NIB_TRIAL_DOWN, c->expert, x->k, i ? last : 0,
                            x->n < OUTPUTS ? x->n : OUTPUTS,       bias,      NULL};
        const uint64_t mark = t->host_used;
        prepare(t, &p);
        multiply(&p, in, y);
        t->host_used = mark;
        if (x->up)
            nib_ref_swiglu(a, y, p.count / 2);
        for (uint32_t j = 0; j < (x->up ? p.count / 2 : p.count); j++)
            nib_trial_add(&x->e, (double)out[(x->up ? p.first / 2 : p.first) + j], (double)(x->up ? a[j] : y[j]));
    }
}

static void expect_experts(struct nib_trial *t, struct experts *x)
{
    const struct nib_trial_range rows = nib_trial_rows(t, x->op);
    const uint32_t used = t->shape.experts_used, picks = (t->decode + t->prompt) * used;
    const uint32_t out_n = x->up ? x->n / 2 : x->n;
    float *in = nib_trial_take(t, nib_ref_acts_bytes(x->k)), *out = nib_trial_take(t, x->n * 4ull);
    for (uint32_t i = rows.first * used; i < rows.end * used && !t->err; i++) {
        const uint32_t r = i / used;
        struct nib_gpu_choice c;
        t->k->forms.choice(&t->m, x->route, r, i % used, &c);
        if (c.place >= picks || c.expert >= t->shape.experts) {
            x->e.bad++;
            continue;
        }
        read_place(t, x, c.place, out);
        for (uint32_t j = 0; j < out_n; j++)
            x->e.bad += isfinite(out[j]) ? 0 : 1;
        if (!nib_trial_multiplied(t, r) || (r >= t->decode && i % used > 1))
            continue;
        if (x->up)
            t->k->forms.acts(&t->m, NIB_GPU_ROUTE, x->in, r, x->k, in);
        else
            t->k->forms.gated(&t->m, x->op, x->route, x->in, c.place, in);
        expect_place(t, x, &c, in, out);
    }
}

static bool rows_are_decoded(enum nib_gpu_op op)
{
    const enum nib_gpu_op few = nib_gpu_op_few(op);
    return few == NIB_GPU_UP || few == NIB_GPU_DOWN;
}

static void check_experts(struct nib_trial *t, enum nib_gpu_op op, bool up)
{
    const uint32_t inner = t->shape.intermediate, h = t->shape.hidden, used = t->shape.experts_used;
    const uint64_t gated = 2ull * NIB_TRIAL_ROWS * used * inner, down = 4ull * NIB_TRIAL_ROWS * used * h;
    struct experts x = {.op = op, .up = up, .n = up ? 2 * inner : h, .k = up ? h : inner};
    x.in = up ? fetch_acts(t) : nib_trial_fetch(t, t->m.gated, gated);
    x.route = fetch_route(t);
    if (rows_are_decoded(op) || t->decode == 0)
        nib_trial_fill(t, up ? t->m.gated : t->m.down, 0xff, up ? gated : down);
    if (!nib_trial_launch(t, op))
        return;
    x.out = nib_trial_fetch(t, up ? t->m.gated : t->m.down, up ? gated : down);
    nib_trial_wait(t);
    expect_experts(t, &x);
    nib_trial_expect(t, op, up ? "gated" : "down", &x.e, up ? 6e-4 : 3e-5);
}

void nib_trial_up(struct nib_trial *t, enum nib_gpu_op op)
{
    check_experts(t, op, true);
}

void nib_trial_down(struct nib_trial *t, enum nib_gpu_op op)
{
    check_experts(t, op, false);
}

/* ---- head ---- */

void nib_trial_head(struct nib_trial *t, enum nib_gpu_op op)
{
    const uint32_t h = t->shape.hidden, vocab = t->shape.vocab;
    const uint64_t bytes = 4ull * NIB_TRIAL_SLOTS * vocab;
    const void *acts = fetch_acts(t);
    nib_trial_fill(t, t->m.logits, 0xff, bytes);
    if (!nib_trial_launch(t, op))
        return;
    const float *logits = nib_trial_fetch(t, t->m.logits, bytes);
    nib_trial_wait(t);
    struct nib_trial_error e = {0};
    uint32_t last;
    const int ranges = one_range(vocab, &last) ? 1 : 2;
    float *x = nib_trial_take(t, nib_ref_acts_bytes(h)), y[OUTPUTS];
    for (int i = 0; i < ranges && !t->err; i++) {
        struct product p = {NIB_TRIAL_HEAD, 0, h, i ? last : 0, vocab < OUTPUTS ? vocab : OUTPUTS, NULL, NULL};
        prepare(t, &p);
        for (uint32_t r = 0; r < t->want; r++) {
            t->k->forms.acts(&t->m, NIB_GPU_COMBINE, acts, t->step->want[r], h, x);
            multiply(&p, x, y);
            for (uint32_t j = 0; j < p.count; j++)
                nib_trial_add(&e, (double)logits[(uint64_t)r * vocab + p.first + j], (double)y[j]);
        }
    }
    for (uint64_t i = 0; i < (uint64_t)t->want * vocab && !t->err; i++)
        e.bad += isfinite(logits[i]) ? 0 : 1;
    nib_trial_expect(t, op, "logits", &e, 3e-5);
}
