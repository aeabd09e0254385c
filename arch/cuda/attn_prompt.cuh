/* arch/cuda/attn_prompt.cuh: attention of prompt rows. A block takes 16 rows of the step and one KV head, two rows a warp with all
 * 8 query heads; it walks the keys page by page, two pages in flight. Rows of several sequences in one block are taken
 * sequence after sequence. Pages begin at multiples of 64 positions and a masked key changes nothing, so that a row's result
 * does not depend on how its prompt was cut. */
#pragma once
#include "arch/cuda/attn.cuh"

struct attn_pages {
    uint4 k[2][NIB_KV_PAGE_TOKENS * 8];
    uint4 v[2][NIB_KV_PAGE_TOKENS * 8];
};

/* Keys of a page: 16-byte chunks of odd tokens are swapped in halves (16-byte reads of a warp meet all banks); values: xor-ed
 * by token % 8 (ldmatrix reads 8 tokens). Positions from `end` on, which nobody has written, are zeros. */
template <class Page>
__device__ __forceinline__ void attn_load_page(attn_pages &sh, uint32_t to, const uint8_t *from, uint64_t values, uint32_t page,
                                               uint32_t end)
{
#pragma unroll
    for (int i = 0; i < NIB_KV_PAGE_TOKENS * 8 / CU_ATTN_THREADS; i++) {
        const uint32_t c = threadIdx.x + i * CU_ATTN_THREADS, token = c / 8, chunk = c % 8;
        const bool there = page * NIB_KV_PAGE_TOKENS + token < end;
        Page::copy_keys(smem_at(&sh.k[to][token * 8 + (chunk ^ (token & 1) << 2)]), from, values, c, there);
        Page::copy_values(smem_at(&sh.v[to][token * 8 + (chunk ^ token % 8)]), from, values, c, there);
    }
}

/* One page for this warp's rows at positions pos[0], pos[1]; from[h] is the first key each may see, none[h] if it has no row. */
__device__ __forceinline__ void attn_page(attn_pages &sh, uint32_t buffer, uint32_t page, const uint4 q[2][2],
                                          const uint32_t from[2], const uint32_t pos[2], attn_state &st)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int part = 0; part < 2; part++) { /* 32 keys at a time */
        float s[4][4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const uint32_t token = part * 32 + n * 8 + g;
            uint4 k[2];
#pragma unroll
            for (uint32_t half = 0; half < 2; half++)
                k[half] = sh.k[buffer][token * 8 + ((half * 4 + t) ^ (token & 1) << 2)];
            s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
            attn_scores(s[n], q, k);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const uint32_t j = page * NIB_KV_PAGE_TOKENS + part * 32 + n * 8 + t * 2 + c % 2;
                s[n][c] = j >= from[c / 2] && j <= pos[c / 2] ? s[n][c] * ATTN_SCALE : -INFINITY;
            }
        }
        attn_take<4>(st, s, smem_at(sh.v[buffer]) + part * 32 * 128);
    }
}

/* Rows [first, end) of one sequence; positions ascend. All threads of the block. */
template <class Page>
__device__ __forceinline__ void attn_run(const struct nib_gpu_machine *m, uint32_t layer, const struct nib_row *rows,
                                         uint32_t tile, uint32_t first, uint32_t end, attn_pages &sh)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, kv_head = blockIdx.x;
    const uint32_t slot = rows[first].slot, window = layer % 2 == 0 ? m->window : ~0u;
    const nib_gpu_ptr kv = Page::keys(m, layer, kv_head);
    const uint64_t values = Page::values(m);
    uint32_t pos[2], from[2];
    bool mine[2];
    const __nv_bfloat16 *q_row[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t row = tile + warp * 2 + h;
        mine[h] = row >= first && row < end;
        pos[h] = mine[h] ? rows[row].pos : 0;
        from[h] = !mine[h] ? ~0u : pos[h] + 1 > window ? pos[h] + 1 - window : 0;
        q_row[h] = mine[h] ? at<const __nv_bfloat16>(m->q) + ((uint64_t)row * m->heads + kv_head * NIB_GQA_GROUP) * NIB_HEAD_DIM
                           : NULL;
    }
    uint4 q[2][2];
    attn_query(q_row[0], q_row[1], q);
    const uint32_t head = kv_head * NIB_GQA_GROUP + lane / 4;
    const float sink = bf16_at(m->layer[layer].sinks, head) * LOG2E;
    attn_state st;
    attn_clear(st, sink, sink);
    const uint32_t last_pos = rows[end - 1].pos, first_pos = rows[first].pos;
    const uint32_t page0 = (first_pos + 1 > window ? first_pos + 1 - window : 0) / NIB_KV_PAGE_TOKENS;
    const uint32_t pages = min(last_pos / NIB_KV_PAGE_TOKENS + 1, m->ctx_pages);
    auto load = [&](uint32_t page) {
        if (page < pages)
            attn_load_page<Page>(sh, page & 1, at<const uint8_t>(kv, page_at(m, layer, slot, page, Page::op)), values, page,
                                 last_pos + 1);
        copy_commit();
    };
    load(page0);
    for (uint32_t page = page0; page < pages; page++) {
        load(page + 1);
        copy_wait<1>();
        __syncthreads();
        attn_page(sh, page & 1, page, q, from, pos, st);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float sum = quad_sum(st.sum[h]) + exp2_fast(sink - st.max[h]);
        if (!mine[h])
            continue;
        uint32_t *out = (uint32_t *)(acts_row(m, tile + warp * 2 + h) + head * NIB_HEAD_DIM * 2);
#pragma unroll
        for (int n = 0; n < 8; n++)
            out[n * 4 + lane % 4] = pack_bf16(st.o[n][2 * h] / sum, st.o[n][2 * h + 1] / sum);
    }
}

/* Grid: x KV heads, y tiles of 16 prompt rows, the last (which see the most keys) first. */
template <class Page>
__device__ __forceinline__ void attn_tile(const struct nib_gpu_machine *m, uint32_t layer, attn_pages &sh)
{
    attn_sequences(m, [&](const struct nib_row *rows, uint32_t tile, uint32_t first, uint32_t stop) {
        attn_run<Page>(m, layer, rows, tile, first, stop, sh);
    });
}

KERNEL(attn_prompt, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 attn_dynamic[];
    attn_tile<attn_wide_page>(m, layer, *(attn_pages *)attn_dynamic);
}

KERNEL(attn_prompt_fp8, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 attn_dynamic[];
    attn_tile<attn_fp8_page>(m, layer, *(attn_pages *)attn_dynamic);
}
