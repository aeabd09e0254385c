/* arch/ref/attn.c: KV pages and attention with sinks. Owns nothing; any thread; cannot fail.
 *
 * Query i, head h sees keys j <= i and, in a window layer, j > i - window:
 *     s_j = q.k_j / 8;   p_j = exp(s_j - m) / (exp(sink_h - m) + sum_j exp(s_j - m));   out = sum_j
 * p_j v_j The sink is one more score whose probability goes nowhere (gpt-oss model card,
 * arXiv:2508.10925; its PyTorch reference appends the column and drops it after the softmax). m is
 * the largest of the scores and the sink. */
#include <math.h>
#include <string.h>

#include "arch/ref/ref.h"
#include "core/arith.h"
#include "core/limits.h"
#include "core/mx.h"

#define HEAD_PAGE ((uint64_t)NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM) /* elements of one head's keys in a page */
#define HALVES    (NIB_HEAD_DIM / NIB_MX_BLOCK)                 /* scales of one token's keys of a head */

uint64_t nib_ref_kv_page_bytes(uint32_t kv_heads)
{
    return HEAD_PAGE * 2 * kv_heads * sizeof(float);
}

void nib_ref_kv_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    float *keys = (float *)page + (uint64_t)token * NIB_HEAD_DIM, *values = keys + kv_heads * HEAD_PAGE;
    for (uint64_t h = 0; h < kv_heads; h++) {
        memcpy(keys + h * HEAD_PAGE, k + h * NIB_HEAD_DIM, NIB_HEAD_DIM * sizeof(float));
        memcpy(values + h * HEAD_PAGE, v + h * NIB_HEAD_DIM, NIB_HEAD_DIM * sizeof(float));
    }
}

/* Where FP8 keys or values of one token and KV head lie, in bytes from the page: codes of keys, codes of values, then the
 * scales in the same order. */
struct place8 {
    uint64_t codes, scales;
};

static struct place8 place8(uint32_t kv_heads, uint32_t token, uint32_t h, bool values)
{
    const uint64_t row = ((values ? kv_heads : 0ull) + h) * NIB_KV_PAGE_TOKENS + token;
    return (struct place8){.codes = row * NIB_HEAD_DIM, .scales = 2 * kv_heads * HEAD_PAGE + row * HALVES};
}

uint64_t nib_ref_kv8_page_bytes(uint32_t kv_heads)
{
    return 2 * kv_heads * (HEAD_PAGE + (uint64_t)NIB_KV_PAGE_TOKENS * HALVES);
}

static void put8(uint8_t *page, struct place8 at, const float *x)
{
    for (uint32_t half = 0; half < HALVES; half++)
        nib_kv8_encode(x + half * NIB_MX_BLOCK, page + at.scales + half, page + at.codes + half * NIB_MX_BLOCK);
}

void nib_ref_kv8_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    for (uint32_t h = 0; h < kv_heads; h++) {
        put8(page, place8(kv_heads, token, h, false), k + (uint64_t)h * NIB_HEAD_DIM);
        put8(page, place8(kv_heads, token, h, true), v + (uint64_t)h * NIB_HEAD_DIM);
    }
}

uint64_t nib_ref_attn_scratch_bytes(uint32_t ctx_tokens)
{
    return nib_round_up((uint64_t)ctx_tokens * sizeof(double), 64); /* one query's scores */
}

/* Key, or value, of position p and KV head h; `decoded` is room for it. */
static const float *row_at(const struct nib_attn *a, uint32_t p, uint32_t h, bool values, float decoded[NIB_HEAD_DIM])
{
    const uint8_t *page = a->kv + a->pages[p / NIB_KV_PAGE_TOKENS % a->pages_count] * a->page_stride;
    const uint32_t token = p % NIB_KV_PAGE_TOKENS;
    if (a->form != NIB_KV_FP8)
        return (const float *)(const void *)page + ((values ? a->kv_heads : 0ull) + h) * HEAD_PAGE +
               (uint64_t)token * NIB_HEAD_DIM;
    const struct place8 at = place8(a->kv_heads, token, h, values);
    for (uint32_t half = 0; half < HALVES; half++)
        nib_mxfp8_decode(page[at.scales + half], page + at.codes + half * NIB_MX_BLOCK, decoded + half * NIB_MX_BLOCK);
    return decoded;
}

static double dot64(const float *x, const float *y)
{
    double sum = 0;
    for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
        sum += (double)x[d] * (double)y[d];
    return sum;
}

/* One query: row r of the call, query head h. */
static void attend(const struct nib_attn *a, uint32_t r, uint32_t h)
{
    const float *q = a->q + r * a->ldq + (uint64_t)h * NIB_HEAD_DIM;
    float *out = a->out + r * a->ldo + (uint64_t)h * NIB_HEAD_DIM;
    const uint32_t kv_head = h / NIB_GQA_GROUP;
    const uint32_t end = a->pos0 + r + 1;
    const uint32_t begin = a->window > 0 && end > a->window ? end - a->window : 0;
    double *p = a->scratch; /* [end - begin] */
    float decoded[NIB_HEAD_DIM];

    const double sink = (double)nib_bf16_decode(a->sinks[h]);
    double max = sink;
    for (uint32_t j = begin; j < end; j++) {
        double s = dot64(q, row_at(a, j, kv_head, false, decoded)) / 8.0; /* 8 = sqrt(64) */
        max = s > max ? s : max;
        p[j - begin] = s;
    }
    double total = exp(sink - max);
    for (uint32_t j = begin; j < end; j++) {
        p[j - begin] = exp(p[j - begin] - max);
        total += p[j - begin];
    }
    double sum[NIB_HEAD_DIM] = {0};
    for (uint32_t j = begin; j < end; j++) {
        const float *v = row_at(a, j, kv_head, true, decoded);
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
            sum[d] += p[j - begin] * (double)v[d];
    }
    for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
        out[d] = (float)(sum[d] / total);
}

void nib_ref_attn(const struct nib_attn *a)
{
    for (uint32_t r = 0; r < a->rows; r++)
        for (uint32_t h = a->h0 * NIB_GQA_GROUP; h < a->h1 * NIB_GQA_GROUP; h++)
            attend(a, r, h);
}
