/* arch/sm90/prompt_attn.cuh: attention of prompt rows on Hopper. A block takes 16 rows of the step and one KV head; each of its two
 * warpgroups 8 of the rows with all 8 query heads, the 64 rows of a wgmma: warp w rows 2w and 2w + 1, lane's rows g and g + 8 head g of
 * either. Scores of a page of 64 keys are Q K^T, Q in registers; probabilities stay in registers as the operand of P V. Pages come
 * through a ring of four, two ahead. Rows of several sequences in one block are taken sequence after sequence.
 *
 * Pages begin at multiples of 64 positions and a masked key changes nothing, so that a row's result does not depend on how its
 * prompt was cut. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/sm90/prompt.h"
#include "arch/sm90/wgmma.cuh"

#define ATTN_PAGE (NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM * 2) /* bytes of keys, or values, of a page */

/* The block's two rows of this warp, in one sequence, and what each may see: keys from[h] .. pos[h]. */
struct prompt_rows_seen {
    uint32_t pos[2], from[2]; /* from ~0: there is no such row */
};

/* Running softmax of a lane's rows g and g + 8: largest score, before its factor; sum of this lane's keys; values. */
struct prompt_softmax {
    float max[2], sum[2];
    float o[32];
};

/* Fragments of 64 dims of 8 heads of both rows; a row that is not there is zeros. */
__device__ __forceinline__ void prompt_query(const __nv_bfloat16 *row0, const __nv_bfloat16 *row1, uint32_t q[4][4])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const __nv_bfloat16 *row = r % 2 ? row1 : row0;
            q[k][r] = row ? *(const uint32_t *)(row + g * NIB_HEAD_DIM + k * 16 + r / 2 * 8 + t * 2) : 0;
        }
}

/* A page to shared memory, swizzled; positions from `end` on, which nobody has written, are zeros. */
template <class Page>
__device__ __forceinline__ void prompt_page(uint32_t to, const uint8_t *from, uint64_t values, uint32_t page, uint32_t end)
{
#pragma unroll
    for (int i = 0; i < NIB_KV_PAGE_TOKENS * 8 / CU_ATTN_THREADS; i++) {
        const uint32_t c = threadIdx.x + i * CU_ATTN_THREADS, token = c / 8, at = token * 128 + (c % 8 ^ token % 8) * 16;
        const bool there = page * NIB_KV_PAGE_TOKENS + token < end;
        Page::copy_keys(to + at, from, values, c, there);
        Page::copy_values(to + ATTN_PAGE + at, from, values, c, there);
    }
}

/* -inf for the keys of a page that a row may not see. */
__device__ __forceinline__ void prompt_mask(float (&s)[32], uint32_t page, const prompt_rows_seen &rows)
{
    const uint32_t key0 = page * NIB_KV_PAGE_TOKENS, least = min(rows.pos[0], rows.pos[1]), most = max(rows.from[0], rows.from[1]);
    if (key0 + NIB_KV_PAGE_TOKENS - 1 <= least && key0 >= most)
        return;
#pragma unroll
    for (int c = 0; c < 32; c++) {
        const uint32_t j = key0 + c / 4 * 8 + threadIdx.x % 4 * 2 + c % 2, h = c / 2 % 2;
        s[c] = j >= rows.from[h] && j <= rows.pos[h] ? s[c] : -INFINITY;
    }
}

/* Scores of 64 keys become probabilities, as fragments; what was summed up before is brought to the new maximum. */
__device__ __forceinline__ void prompt_probabilities(float (&s)[32], prompt_softmax &st, uint32_t p[4][4])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = s[2 * h];
#pragma unroll
        for (int n = 0; n < 8; n++)
            most = fmaxf(most, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
        most = fmaxf(st.max[h], quad_max(most));
        const float keep = exp2_fast((st.max[h] - most) * ATTN_SCALE);
        st.max[h] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int c = 4 * n + 2 * h; c < 4 * n + 2 * h + 2; c++) {
                s[c] = exp2_fast((s[c] - most) * ATTN_SCALE);
                sum += s[c];
                st.o[c] *= keep;
            }
        st.sum[h] = st.sum[h] * keep + sum;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int r = 0; r < 4; r++)
            p[k][r] = pack_bf16(s[8 * k + r / 2 * 4 + r % 2 * 2], s[8 * k + r / 2 * 4 + r % 2 * 2 + 1]);
}

/* The pages that rows of one sequence see: where they are, and the ring. */
template <class Page> struct prompt_pages {
    const struct nib_gpu_machine *m;
    nib_gpu_ptr kv; /* see the form of pages */
    uint64_t values, next; /* next: where the page after the last asked for lies */
    uint32_t layer, slot, asked, pages, end, ring;

    __device__ __forceinline__ uint64_t find(uint32_t page) const
    {
        return page < pages ? page_at(m, layer, slot, page, Page::op) : 0;
    }

    __device__ __forceinline__ uint32_t at(uint32_t page) const
    {
        return ring + page % CU_PROMPT_PAGES * 2 * ATTN_PAGE;
    }

    __device__ __forceinline__ void ask()
    {
        if (asked < pages)
            prompt_page<Page>(at(asked), ::at<uint8_t>(kv, next), values, asked, end);
        copy_commit();
        next = find(++asked);
    }
};

/* All pages, for this warpgroup's rows. All threads of the block. */
template <class Page>
__device__ __forceinline__ void prompt_attend(prompt_pages<Page> &from, uint32_t page0, const uint32_t q[4][4],
                                              const prompt_rows_seen &rows, prompt_softmax &st)
{
    from.asked = page0;
    from.next = from.find(page0);
    from.ask();
    from.ask();
#pragma unroll 1
    for (uint32_t page = page0; page < from.pages; page++) {
        copy_wait<1>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        from.ask(); /* to where the page before the last was: its products have ended in both warpgroups */
        const uint64_t keys = wgmma_tokens(from.at(page)), values = wgmma_tokens(from.at(page) + ATTN_PAGE);
        float s[32];
#pragma unroll
        for (int c = 0; c < 32; c++)
            s[c] = 0;
        wgmma_hold(s);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma(wgmma_bf16(), s, q[k], keys + 2 * k);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_hold(s);
        wgmma_hold(st.o);
        prompt_mask(s, page, rows);
        uint32_t p[4][4];
        prompt_probabilities(s, st, p);
        wgmma_hold(st.o);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            wgmma_across(st.o, p[k], values + 128 * k);
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_hold(st.o);
    copy_wait<0>();
    __syncthreads();
}

/* Rows [first, end) of one sequence; positions ascend. All threads of the block. */
template <class Page>
__device__ __forceinline__ void prompt_sequence(const struct nib_gpu_machine *m, uint32_t layer, const struct nib_row *rows,
                                                uint32_t tile, uint32_t first, uint32_t end, uint32_t ring)
{
    const uint32_t lane = threadIdx.x % 32, kv_head = blockIdx.x, window = layer % 2 == 0 ? m->window : ~0u;
    const uint32_t row0 = tile + threadIdx.x / 32 * 2, head = kv_head * NIB_GQA_GROUP + lane / 4;
    const uint32_t last_pos = rows[end - 1].pos, first_pos = rows[first].pos;
    prompt_rows_seen seen;
    const __nv_bfloat16 *q_row[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        const bool mine = row0 + h >= first && row0 + h < end;
        seen.pos[h] = mine ? rows[row0 + h].pos : 0;
        seen.from[h] = !mine ? ~0u : seen.pos[h] + 1 > window ? seen.pos[h] + 1 - window : 0;
        q_row[h] = mine ? at<const __nv_bfloat16>(m->q) + ((uint64_t)(row0 + h) * m->heads + kv_head * NIB_GQA_GROUP) * NIB_HEAD_DIM
                        : NULL;
    }
    uint32_t q[4][4];
    prompt_query(q_row[0], q_row[1], q);
    const float sink = bf16_at(m->layer[layer].sinks, head) * 8; /* as a score before its factor, 1/8 */
    prompt_softmax st = {{sink, sink}, {0, 0}, {}};
    prompt_pages<Page> from = {m, Page::keys(m, layer, kv_head), Page::values(m), 0, layer, rows[first].slot, 0,
                               min(last_pos / NIB_KV_PAGE_TOKENS + 1, m->ctx_pages), last_pos + 1, ring};
    prompt_attend(from, (first_pos + 1 > window ? first_pos + 1 - window : 0) / NIB_KV_PAGE_TOKENS, q, seen, st);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        const float sum = quad_sum(st.sum[h]) + exp2_fast((sink - st.max[h]) * ATTN_SCALE);
        if (!q_row[h])
            continue;
        uint32_t *out = (uint32_t *)(acts_row(m, row0 + h) + head * NIB_HEAD_DIM * 2);
#pragma unroll
        for (int n = 0; n < 8; n++)
            out[n * 4 + lane % 4] = pack_bf16(st.o[4 * n + 2 * h] / sum, st.o[4 * n + 2 * h + 1] / sum);
    }
}

/* Grid: x KV heads, y tiles of 16 prompt rows, the last (which see the most keys) first. */
template <class Page>
__device__ __forceinline__ void prompt_tile_rows(const struct nib_gpu_machine *m, uint32_t layer, const void *dynamic)
{
    const uint32_t ring = (smem_at(dynamic) + 1023) & ~1023u;
    attn_sequences(m, [&](const struct nib_row *rows, uint32_t tile, uint32_t first, uint32_t stop) {
        prompt_sequence<Page>(m, layer, rows, tile, first, stop, ring);
    });
}

KERNEL(attn_prompt, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 prompt_dynamic[];
    prompt_tile_rows<attn_wide_page>(m, layer, prompt_dynamic);
}

KERNEL(attn_prompt_fp8, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 prompt_dynamic[];
    prompt_tile_rows<attn_fp8_page>(m, layer, prompt_dynamic);
}
