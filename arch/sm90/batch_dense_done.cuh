/* arch/sm90/batch_dense_done.cuh: what becomes of the sums of a batched dense product: the arithmetic of arch/cuda/done.cuh, in two steps, so that what
 * must be read for several rows is asked for at once. open(tile): a tile of 16 output rows; ask(row, end): what the sums of the
 * lane's rows row, row + 1 below `end` need; put(): c as in arch/cuda/done.cuh. */
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
        __nv_bfloat16 *to[2]; /* NULL: the row is not there */
    };

    __device__ __forceinline__ __nv_bfloat16 *place(uint32_t row) const
    {
        const uint32_t heads = m->heads;
        if (head < heads)
            return at<__nv_bfloat16>(m->q) + ((uint64_t)row * heads + head) * NIB_HEAD_DIM + dim;
        if (m->kv_new)
            return at<__nv_bfloat16>(m->kv_new) + ((uint64_t)row * 2 * m->kv_heads + head - heads) * NIB_HEAD_DIM + dim;
        const uint32_t slot = rows[row].slot, pos = rows[row].pos;
        const uint64_t page = page_at(m, layer, slot, pos / NIB_KV_PAGE_TOKENS, NIB_GPU_QKV);
        return at<__nv_bfloat16>(m->layer[layer].kv, page + (uint64_t)(head - heads) * PAGE_HEAD_BYTES) +
               pos % NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM + dim;
    }

    __device__ __forceinline__ held ask(uint32_t row, uint32_t end) const
    {
        const float *cos_of = at<const float>(m->rope), *sin_of = cos_of + m->step_rows_max * 32;
        const bool turns = head < m->heads + m->kv_heads;
        held h;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const bool there = row + i < end && head < m->heads + 2 * m->kv_heads;
            h.cos[i] = there && turns ? cos_of[(row + i) * 32 + dim] : 1;
            h.sin[i] = there && turns ? sin_of[(row + i) * 32 + dim] : 0;
            h.to[i] = there ? place(row + i) : NULL;
        }
        return h;
    }

    __device__ __forceinline__ void put(const held &h, uint32_t, uint32_t, const float c[4]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            float a = c[i] + bias0, b = c[i + 2] + bias1;
            if (!h.to[i])
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

    __device__ __forceinline__ held ask(uint32_t row, uint32_t end) const
    {
        held h;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            h.old[i] = there[i / 2] && row + i % 2 < end ? x[(uint64_t)(row + i % 2) * hidden + i / 2 * 8] : 0;
        return h;
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

    __device__ __forceinline__ held ask(uint32_t, uint32_t) const
    {
        return {};
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
