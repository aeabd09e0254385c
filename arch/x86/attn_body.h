/* arch/x86/attn_body.h: attention over KV pages. Compiled per instruction set (vec.h).
 *
 * A page of a KV head is two 8 KiB matrices of bf16 pairs (kv.h): keys as [pair of dims][token], values as [pair of
 * tokens][dim], so that scores and sums are the same product: 8 query heads times a 64 x 64 matrix, in fp32. Softmax
 * is online over pages: a query takes its pages in the order of positions, and its arithmetic depends only on its own
 * position, so the bits do not depend on how a prompt was cut or on which pages it was given. The sink is the softmax's
 * first element (maximum sink, sum 1, no value).
 *
 * Tokens outside a query's range never enter a sum, whatever their memory holds (NaN of an earlier owner included).
 *
 * A page in FP8 is first decoded to the same two matrices, once for the rows of a block.
 *
 * Rows are taken NIB_ATTN_ROWS at a time and pages outside of rows, so a page is read from memory once for all of them.
 * Bytes moved a query block: 2 x 2 x 64 x kv_heads a token (FP8: 2 x 66 x kv_heads). Any thread, with its own scratch; cannot fail. */
#ifndef NIB_ARCH_X86_ATTN_BODY_H
#define NIB_ARCH_X86_ATTN_BODY_H

#include <math.h>
#include <stddef.h>

#include "arch/kernels.h"
#include "arch/x86/kv.h"
#include "arch/x86/vec.h"

#define NIB_ATTN_ROWS 16u
#define NIB_HEADS     NIB_GQA_GROUP               /* query heads that share a KV head */
#define NIB_ATTN_VECS (NIB_LANES == 16 ? 2u : 1u) /* vectors of columns of one product */
#define NIB_ATTN_COLS (NIB_ATTN_VECS * NIB_LANES)

_Static_assert(NIB_HEADS == 8, "the heads of a group fill one half or whole vector");

/* The state of one row: online softmax of its 8 heads. */
struct nib_attn_state {
    float sum[NIB_HEADS][NIB_HEAD_DIM];
    float max[NIB_HEADS];
    float total[NIB_HEADS];
};

struct nib_attn_scratch {
    struct nib_attn_state state[NIB_ATTN_ROWS];
    float p[NIB_HEADS][NIB_KV_PAGE_TOKENS]; /* scores, then probabilities, of one row and page */
    uint8_t wide[2 * NIB_KV_HALF_BYTES];    /* a page of one head in FP8, as bf16 */
};

/* One pair of the inner dimension: sum[h] += a[h][2p] * even + a[h][2p+1] * odd. `keep` masks the pair. */
NIB_INLINE void nib_attn_pair(NIB_VF (*sum)[NIB_ATTN_VECS], const float *a, uint64_t lda, const uint8_t *line,
                              uint32_t p, uint32_t keep)
{
    NIB_VF even[NIB_ATTN_VECS], odd[NIB_ATTN_VECS];
#pragma GCC unroll 2
    for (uint32_t v = 0; v < NIB_ATTN_VECS; v++) {
        NIB_VI pair = nib_v_load_i(line + v * NIB_LANES * 4);
        if (keep != ~0u)
            pair = nib_v_and_i(pair, keep);
        even[v] = nib_v_even(pair);
        odd[v] = nib_v_odd(pair);
    }
#pragma GCC unroll 8
    for (uint32_t h = 0; h < NIB_HEADS; h++) {
        const NIB_VF a0 = nib_v_set1(a[h * lda + 2 * p]), a1 = nib_v_set1(a[h * lda + 2 * p + 1]);
#pragma GCC unroll 2
        for (uint32_t v = 0; v < NIB_ATTN_VECS; v++) {
            sum[h][v] = nib_v_fma(even[v], a0, sum[h][v]);
            sum[h][v] = nib_v_fma(odd[v], a1, sum[h][v]);
        }
    }
}

/* Asks for the next share of a page of one head: a page in the steps of one page's scores and values. */
NIB_INLINE void nib_attn_ask(const uint8_t **next)
{
    const uint32_t steps = 2 * NIB_KV_PAGE_TOKENS / NIB_ATTN_COLS * NIB_HEAD_DIM / 2;
    for (uint32_t i = 0; i < 2 * NIB_KV_HALF_BYTES / steps; i += 64)
        _mm_prefetch((const char *)*next + i, _MM_HINT_T0);
    *next += 2 * NIB_KV_HALF_BYTES / steps;
}

/* scores of tokens lo <= j < hi of a page; the others become -inf */
NIB_INLINE void nib_attn_scores(struct nib_attn_scratch *s, const float *q, const uint8_t *keys, int32_t lo, int32_t hi,
                                const uint8_t **next)
{
    for (uint32_t c = 0; c < NIB_KV_PAGE_TOKENS; c += NIB_ATTN_COLS) {
        const int32_t first = lo - (int32_t)c, end = hi - (int32_t)c;
        NIB_VF sum[NIB_HEADS][NIB_ATTN_VECS];
#pragma GCC unroll 8
        for (uint32_t h = 0; h < NIB_HEADS; h++)
#pragma GCC unroll 2
            for (uint32_t v = 0; v < NIB_ATTN_VECS; v++)
                sum[h][v] = nib_v_zero();
        if (end > 0 && first < (int32_t)NIB_ATTN_COLS)
            for (uint32_t p = 0; p < NIB_HEAD_DIM / 2; p++) {
                if (*next)
                    nib_attn_ask(next);
                nib_attn_pair(sum, q, NIB_HEAD_DIM, keys + p * NIB_KV_LINE_BYTES + c * 4, p, ~0u);
            }
#pragma GCC unroll 8
        for (uint32_t h = 0; h < NIB_HEADS; h++)
#pragma GCC unroll 2
            for (uint32_t v = 0; v < NIB_ATTN_VECS; v++) {
                const int32_t skip = (int32_t)(v * NIB_LANES);
                const NIB_VF score = nib_v_mul(sum[h][v], nib_v_set1(0.125f)); /* 1 / sqrt(64) */
                nib_v_store(s->p[h] + c + v * NIB_LANES,
                            nib_v_select(score, nib_v_set1(-INFINITY), first - skip, end - skip));
            }
    }
}

/* Scores to probabilities relative to the new maximum; returns how much the older sums shrink. */
NIB_INLINE void nib_attn_softmax(struct nib_attn_scratch *s, struct nib_attn_state *st, int32_t lo, int32_t hi,
                                 float shrink[NIB_HEADS])
{
    float top[NIB_HEADS];
    for (uint32_t h = 0; h < NIB_HEADS; h++) {
        NIB_VF m = nib_v_load(s->p[h]);
        for (uint32_t j = NIB_LANES; j < NIB_KV_PAGE_TOKENS; j += NIB_LANES)
            m = nib_v_max(m, nib_v_load(s->p[h] + j));
        top[h] = nib_v_top(m);
    }
    const NIB_VF old = nib_v_load_n(st->max, NIB_HEADS);
    const NIB_VF max = nib_v_max(old, nib_v_load_n(top, NIB_HEADS));
    nib_v_store_n(shrink, nib_v_exp(nib_v_sub(old, max)), NIB_HEADS);
    nib_v_store_n(st->max, max, NIB_HEADS);
    for (uint32_t h = 0; h < NIB_HEADS; h++) {
        const NIB_VF m = nib_v_set1(st->max[h]);
        NIB_VF total = nib_v_zero();
        for (uint32_t j = 0; j < NIB_KV_PAGE_TOKENS; j += NIB_LANES) {
            const NIB_VF e = nib_v_exp(nib_v_sub(nib_v_load(s->p[h] + j), m));
            const NIB_VF p = nib_v_select(e, nib_v_zero(), lo - (int32_t)j, hi - (int32_t)j);
            total = nib_v_add(total, p);
            nib_v_store(s->p[h] + j, p);
        }
        st->total[h] = st->total[h] * shrink[h] + nib_v_sum(total);
    }
}

/* sum = sum * shrink + p V over tokens lo <= j < hi */
NIB_INLINE void nib_attn_values(const struct nib_attn_scratch *s, struct nib_attn_state *st, const uint8_t *values,
                                uint32_t lo, uint32_t hi, const float shrink[NIB_HEADS], const uint8_t **next)
{
    for (uint32_t c = 0; c < NIB_HEAD_DIM; c += NIB_ATTN_COLS) {
        NIB_VF sum[NIB_HEADS][NIB_ATTN_VECS];
#pragma GCC unroll 8
        for (uint32_t h = 0; h < NIB_HEADS; h++)
#pragma GCC unroll 2
            for (uint32_t v = 0; v < NIB_ATTN_VECS; v++)
                sum[h][v] = nib_v_mul(nib_v_load(st->sum[h] + c + v * NIB_LANES), nib_v_set1(shrink[h]));
        const uint8_t *lines = values + c * 4;
        uint32_t p = lo / 2;
        if (lo % 2 == 1 || hi == lo + 1) { /* half a pair: token 2p is not seen, or 2p + 1 is not */
            const uint32_t keep = (lo % 2 == 1 ? 0xffff0000u : ~0u) & (hi == 2 * p + 1 ? 0xffffu : ~0u);
            nib_attn_pair(sum, s->p[0], NIB_KV_PAGE_TOKENS, lines + p * NIB_KV_LINE_BYTES, p, keep);
            p++;
        }
        for (; p < hi / 2; p++) {
            if (*next)
                nib_attn_ask(next);
            nib_attn_pair(sum, s->p[0], NIB_KV_PAGE_TOKENS, lines + p * NIB_KV_LINE_BYTES, p, ~0u);
        }
        if (2 * p < hi)
            nib_attn_pair(sum, s->p[0], NIB_KV_PAGE_TOKENS, lines + p * NIB_KV_LINE_BYTES, p, 0xffffu);
#pragma GCC unroll 8
        for (uint32_t h = 0; h < NIB_HEADS; h++)
#pragma GCC unroll 2
            for (uint32_t v = 0; v < NIB_ATTN_VECS; v++)
                nib_v_store(st->sum[h] + c + v * NIB_LANES, sum[h][v]);
    }
}

/* One row and one page of one head; the page `next` (or NULL) is asked for meanwhile. */
static void nib_attn_page(struct nib_attn_scratch *s, struct nib_attn_state *st, const float *q, const uint8_t *head,
                          uint32_t lo, uint32_t hi, const uint8_t *next)
{
    float shrink[NIB_HEADS];
    nib_attn_scores(s, q, head, (int32_t)lo, (int32_t)hi, &next);
    nib_attn_softmax(s, st, (int32_t)lo, (int32_t)hi, shrink);
    nib_attn_values(s, st, head + NIB_KV_HALF_BYTES, lo, hi, shrink, &next);
}

/* NIB_LANES pairs of codes to pairs of bf16; scales of the even and of the odd elements. */
NIB_INLINE void nib_attn_widen(uint8_t *wide, const uint8_t *codes, NIB_VF even, NIB_VF odd)
{
    const NIB_VI pair = nib_v_load_e4m3(codes);
    nib_v_store_pairs(wide, nib_v_mul(nib_v_e4m3_even(pair), even), nib_v_mul(nib_v_e4m3_odd(pair), odd));
}

/* A page of one head from FP8 to bf16, which holds every value; the page `next` (or NULL) is asked for meanwhile. */
static void nib_attn_widen_page(uint8_t *wide, const uint8_t *head, const uint8_t *next)
{
    const uint8_t *scales = head + NIB_KV8_SCALES_AT;
    for (uint32_t i = 0; next && i < NIB_KV8_HEAD_BYTES; i += 64)
        _mm_prefetch((const char *)next + i, _MM_HINT_T0);
    for (uint32_t c = 0; c < 2 * NIB_KV_PAGE_TOKENS; c += NIB_LANES) { /* half 0 of all tokens, then half 1 */
        const NIB_VF scale = nib_v_load_scales(scales + c);
        const uint32_t first = c / NIB_KV_PAGE_TOKENS * NIB_MX_BLOCK / 2, token = c % NIB_KV_PAGE_TOKENS;
        for (uint32_t p = first; p < first + NIB_MX_BLOCK / 2; p++)
            nib_attn_widen(wide + p * NIB_KV_LINE_BYTES + token * 4, head + p * NIB_KV8_LINE_BYTES + token * 2, scale,
                           scale);
    }
    float scale[2 * NIB_KV_PAGE_TOKENS];
    for (uint32_t i = 0; i < 2 * NIB_KV_PAGE_TOKENS; i += NIB_LANES)
        nib_v_store(scale + i, nib_v_load_scales(scales + NIB_KV8_SCALES_BYTES + i));
    for (uint32_t p = 0; p < NIB_KV_PAGE_TOKENS / 2; p++)
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d += NIB_LANES) {
            const float *of = scale + d / NIB_MX_BLOCK * NIB_KV_PAGE_TOKENS + 2 * p;
            nib_attn_widen(wide + NIB_KV_HALF_BYTES + p * NIB_KV_LINE_BYTES + d * 4,
                           head + NIB_KV8_HALF_BYTES + p * NIB_KV8_LINE_BYTES + d * 2, nib_v_set1(of[0]),
                           nib_v_set1(of[1]));
        }
}

/* First position query `pos` sees. */
NIB_INLINE uint32_t nib_attn_begin(const struct nib_attn *a, uint32_t pos)
{
    return a->window > 0 && pos + 1 > a->window ? pos + 1 - a->window : 0;
}

/* The piece of KV head g in the page that holds positions 64 page and up. */
NIB_INLINE const uint8_t *nib_attn_head(const struct nib_attn *a, uint32_t page, uint32_t g)
{
    const uint32_t bytes = a->form == NIB_KV_FP8 ? NIB_KV8_HEAD_BYTES : 2 * NIB_KV_HALF_BYTES;
    return a->kv + a->pages[page % a->pages_count] * a->page_stride + g * bytes;
}

static void nib_attn_finish(const struct nib_attn_state *st, float *out)
{
    for (uint32_t h = 0; h < NIB_HEADS; h++)
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d += NIB_LANES)
            nib_v_store(out + h * NIB_HEAD_DIM + d, nib_v_div(nib_v_load(st->sum[h] + d), nib_v_set1(st->total[h])));
}

/* Rows r0 .. r0+rows-1 of the call, query heads of KV head g. */
static void nib_attn_rows(const struct nib_attn *a, uint32_t r0, uint32_t rows, uint32_t g)
{
    struct nib_attn_scratch *s = a->scratch;
    const uint64_t head_at = (uint64_t)g * NIB_HEADS * NIB_HEAD_DIM;
    for (uint32_t r = 0; r < rows; r++) {
        s->state[r] = (struct nib_attn_state){0};
        nib_v_store_n(s->state[r].max, nib_v_load_bf16_n(a->sinks + g * NIB_HEADS, NIB_HEADS), NIB_HEADS);
        nib_v_store_n(s->state[r].total, nib_v_set1(1.0f), NIB_HEADS);
    }
    const uint32_t first = a->pos0 + r0, last = first + rows - 1;
    for (uint32_t page = nib_attn_begin(a, first) / NIB_KV_PAGE_TOKENS; page <= last / NIB_KV_PAGE_TOKENS; page++) {
        const uint32_t base = page * NIB_KV_PAGE_TOKENS;
        const uint8_t *head = nib_attn_head(a, page, g);
        const uint8_t *next = page < last / NIB_KV_PAGE_TOKENS ? nib_attn_head(a, page + 1, g) : NULL;
        if (a->form == NIB_KV_FP8) {
            nib_attn_widen_page(s->wide, head, next);
            head = s->wide;
            next = NULL;
        }
        for (uint32_t r = 0; r < rows; r++) {
            const uint32_t begin = nib_attn_begin(a, first + r), end = first + r + 1;
            const uint32_t lo = begin > base ? begin - base : 0;
            const uint32_t hi = end < base + NIB_KV_PAGE_TOKENS ? end - base : NIB_KV_PAGE_TOKENS;
            if (end > base && lo < hi) {
                nib_attn_page(s, &s->state[r], a->q + (r0 + r) * a->ldq + head_at, head, lo, hi, next);
                next = NULL;
            }
        }
    }
    for (uint32_t r = 0; r < rows; r++)
        nib_attn_finish(&s->state[r], a->out + (r0 + r) * a->ldo + head_at);
}

uint64_t NIB_ISA(nib_attn_scratch_bytes)(uint32_t ctx_tokens)
{
    (void)ctx_tokens;
    return sizeof(struct nib_attn_scratch);
}

void NIB_ISA(nib_attn)(const struct nib_attn *a)
{
    for (uint32_t g = a->h0; g < a->h1; g++)
        for (uint32_t r0 = 0; r0 < a->rows; r0 += NIB_ATTN_ROWS)
            nib_attn_rows(a, r0, a->rows - r0 < NIB_ATTN_ROWS ? a->rows - r0 : NIB_ATTN_ROWS, g);
}

#endif
