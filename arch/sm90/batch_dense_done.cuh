/* arch/sm90/batch_dense_done.cuh: what becomes of the sums of a batched dense product: the arithmetic of arch/cuda/done.cuh, in two steps, so that what
 * must be read for several rows is asked for at once. open(tile): a tile of 16 output rows; ask(held, row, step, end): what the sums of the
 * lane's rows row + j step and the next ones, those below `end`, need; put(): c as in arch/cuda/done.cuh. */
#pragma once
#include "arch/cuda/done.cuh"

/* q, k rotated and v. */
struct batch_qkv_tile {
    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer, head, dim;
    float bias0, bias1;

    struct held {
        float cos[2], sin[2];
        __nv_bfloat16 *to[2];
    };

    /* Keys and values: where those of each row's position begin. */
    template <uint32_t COUNT>
    __device__ __forceinline__ void ask_pages(held (&h)[COUNT], uint32_t row, uint32_t step, uint32_t last) const
    {
        const layer_pages pages(m, layer);
        const uint8_t *kv = at<const uint8_t>(m->layer[layer].kv, (uint64_t)(head - m->heads) * PAGE_HEAD_BYTES);
        uint32_t slot[COUNT][2], pos[COUNT][2], id[COUNT][2];
#pragma unroll
        for (uint32_t j = 0; j < 2 * COUNT; j++) {
            const struct nib_row *of = &rows[min(row + j / 2 * step + j % 2, last)];
            slot[j / 2][j % 2] = of->slot;
            pos[j / 2][j % 2] = of->pos;
        }
#pragma unroll
        for (uint32_t j = 0; j < 2 * COUNT; j++)
            id[j / 2][j % 2] = pages.id(slot[j / 2][j % 2], pos[j / 2][j % 2] / NIB_KV_PAGE_TOKENS);
#pragma unroll
        for (uint32_t j = 0; j < 2 * COUNT; j++)
            h[j / 2].to[j % 2] = (__nv_bfloat16 *)(kv + pages.from(id[j / 2][j % 2], NIB_GPU_QKV)) +
                                 pos[j / 2][j % 2] % NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM + dim;
    }

    /* Rows that are not there are the last one again, until they are put. */
    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&h)[COUNT], uint32_t row, uint32_t step, uint32_t end) const
    {
        const float *cos_of = at<const float>(m->rope) + dim, *sin_of = cos_of + m->step_rows_max * 32;
        const uint32_t heads = m->heads, kv_heads = m->kv_heads, last = end - 1;
        const bool turns = head < heads + kv_heads, paged = head >= heads && !m->kv_new;
        __nv_bfloat16 *to = head < heads ? at<__nv_bfloat16>(m->q) + head * NIB_HEAD_DIM
                                         : at<__nv_bfloat16>(m->kv_new) + (head - heads) * NIB_HEAD_DIM;
        const uint32_t stride = (head < heads ? heads : 2 * kv_heads) * NIB_HEAD_DIM;
#pragma unroll
        for (uint32_t j = 0; j < 2 * COUNT; j++) {
            const uint32_t r = min(row + j / 2 * step + j % 2, last);
            h[j / 2].cos[j % 2] = turns ? cos_of[r * 32] : 1;
            h[j / 2].sin[j % 2] = turns ? sin_of[r * 32] : 0;
            h[j / 2].to[j % 2] = to + (uint64_t)r * stride + dim;
        }
        if (paged && head < heads + 2 * kv_heads)
            ask_pages(h, row, step, last);
    }

    __device__ __forceinline__ void put(const held &h, uint32_t row, uint32_t end, const float c[4]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            float a = c[i] + bias0, b = c[i + 2] + bias1;
            if (row + i >= end || head >= m->heads + 2 * m->kv_heads)
                continue;
            if (head < m->heads + m->kv_heads)
                rotate(a, b, h.cos[i], h.sin[i]);
            h.to[i][0] = __float2bfloat16(a);
            h.to[i][32] = __float2bfloat16(b);
        }
    }
};

struct batch_qkv_done {
    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer;

    __device__ __forceinline__ batch_qkv_tile open(uint32_t tile) const
    {
        const uint32_t head = tile / 4, dim = tile % 4 * 8 + threadIdx.x % 32 / 4;
        const bool there = head < m->heads + 2 * m->kv_heads;
        const nib_gpu_ptr biases = m->layer[layer].qkv_bias;
        return {m, rows, layer, head, dim, there ? bf16_at(biases, head * NIB_HEAD_DIM + dim) : 0,
                there ? bf16_at(biases, head * NIB_HEAD_DIM + dim + 32) : 0};
    }
};

/* x += y + b */
struct batch_out_tile {
    float *x; /* of row 0; output row g of the tile */
    uint32_t hidden;
    bool there[2];
    float bias[2];

    struct held {
        float old[4];
    };

    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&h)[COUNT], uint32_t row, uint32_t step, uint32_t end) const
    {
#pragma unroll
        for (uint32_t j = 0; j < COUNT; j++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                h[j].old[i] = there[i / 2] ? x[(uint64_t)min(row + j * step + i % 2, end - 1) * hidden + i / 2 * 8] : 0;
    }

    __device__ __forceinline__ void put(const held &h, uint32_t row, uint32_t end, const float c[4]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (there[i / 2] && row + i % 2 < end)
                x[(uint64_t)(row + i % 2) * hidden + i / 2 * 8] = h.old[i] + (c[i] + bias[i / 2]);
    }
};

struct batch_out_done {
    const struct nib_gpu_machine *m;
    uint32_t layer;

    __device__ __forceinline__ batch_out_tile open(uint32_t tile) const
    {
        const uint32_t hidden = m->hidden, n = tile * CU_TILE + threadIdx.x % 32 / 4;
        const nib_gpu_ptr biases = m->layer[layer].out_bias;
        return {at<float>(m->x) + n, hidden, {n < hidden, n + 8 < hidden},
                {n < hidden ? bf16_at(biases, n) : 0, n + 8 < hidden ? bf16_at(biases, n + 8) : 0}};
    }
};

struct batch_head_tile : done_head {
    uint32_t tile;

    struct held {
    };

    template <uint32_t COUNT> __device__ __forceinline__ void ask(held (&)[COUNT], uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ void put(const held &, uint32_t row, uint32_t end, const float c[4]) const
    {
        done_head::operator()(tile, row, end, c);
    }
};

struct batch_head_done {
    const struct nib_gpu_machine *m;

    __device__ __forceinline__ batch_head_tile open(uint32_t tile) const
    {
        return {{m}, tile};
    }
};
