/* arch/cuda/done.cuh: what becomes of a product's sums: bias, rotation, activation, and where they go. The same for decode and
 * prompt tiles. A lane has output rows g and g + 8 of a tile for the rows of activations row, row + 1 below `end`. */
#pragma once
#include "arch/cuda/base.cuh"

/* Rotates a pair of dims of q or k. */
__device__ __forceinline__ void rotate(float &a, float &b, float cos, float sin)
{
    const float first = __fmaf_rn(a, cos, -__fmul_rn(b, sin));
    b = __fmaf_rn(b, cos, __fmul_rn(a, sin));
    a = first;
}

/* q, k rotated and v, by row of the step. */
struct done_qkv {
    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer;
    const uint64_t *kv; /* kv_at of the first rows_known rows */
    uint32_t rows_known;

    /* Where in the layer's KV the row's keys of the first head lie. */
    __device__ __forceinline__ uint64_t kv_at(uint32_t row) const
    {
        const struct nib_row r = rows[row];
        return page_at(m, layer, r.slot, r.pos / NIB_KV_PAGE_TOKENS, NIB_GPU_QKV) + r.pos % NIB_KV_PAGE_TOKENS * (NIB_HEAD_DIM * 2);
    }

    __device__ __forceinline__ void one(uint32_t head, uint32_t dim, uint32_t row, float a, float b) const
    {
        const uint32_t heads = m->heads, kv_heads = m->kv_heads;
        if (head < heads + kv_heads) {
            const float *rope = at<const float>(m->rope);
            rotate(a, b, rope[row * 32 + dim], rope[(m->step_rows_max + row) * 32 + dim]);
        }
        __nv_bfloat16 *to;
        if (head < heads) {
            to = at<__nv_bfloat16>(m->q) + ((uint64_t)row * heads + head) * NIB_HEAD_DIM;
        } else if (m->kv_new) {
            to = at<__nv_bfloat16>(m->kv_new) + ((uint64_t)row * 2 * kv_heads + head - heads) * NIB_HEAD_DIM;
        } else {
            /* keys of all heads, then values: head - heads counts through both */
            to = at<__nv_bfloat16>(m->layer[layer].kv,
                                   (row < rows_known ? kv[row] : kv_at(row)) + (uint64_t)(head - heads) * PAGE_HEAD_BYTES);
        }
        to[dim] = __float2bfloat16(a);
        to[dim + 32] = __float2bfloat16(b);
    }

    __device__ __forceinline__ void ask(uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ void operator()(uint32_t tile, uint32_t row, uint32_t end, const float c[4]) const
    {
        const uint32_t g = threadIdx.x % 32 / 4;
        const uint32_t head = tile / 4, dim = tile % 4 * 8 + g;
        if (head >= m->heads + 2 * m->kv_heads)
            return;
        const float bias0 = bf16_at(m->layer[layer].qkv_bias, head * NIB_HEAD_DIM + dim);
        const float bias1 = bf16_at(m->layer[layer].qkv_bias, head * NIB_HEAD_DIM + dim + 32);
        if (row < end)
            one(head, dim, row, c[0] + bias0, c[2] + bias1);
        if (row + 1 < end)
            one(head, dim, row + 1, c[1] + bias0, c[3] + bias1);
    }
};

/* x += y + b. Of each tile ask() comes first, as early as may be. */
struct done_out {
    float *all; /* rows of x */
    const __nv_bfloat16 *biases;
    uint32_t hidden;
    float bias[2], x[4]; /* x as sums have it */

    __device__ __forceinline__ done_out(const struct nib_gpu_machine *m, uint32_t layer)
        : all(at<float>(m->x)), biases(at<const __nv_bfloat16>(m->layer[layer].out_bias)), hidden(m->hidden)
    {
    }

    __device__ __forceinline__ void ask(uint32_t tile, uint32_t row, uint32_t end)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4 + h * 8;
            const float *from = all + n;
            bias[h] = n < hidden ? __bfloat162float(biases[n]) : 0;
            x[2 * h] = n < hidden && row < end ? from[(uint64_t)row * hidden] : 0;
            x[2 * h + 1] = n < hidden && row + 1 < end ? from[(uint64_t)(row + 1) * hidden] : 0;
        }
    }

    __device__ __forceinline__ void operator()(uint32_t tile, uint32_t row, uint32_t end, const float c[4]) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4 + h * 8;
            float *to = all + n;
            if (n < hidden && row < end)
                to[(uint64_t)row * hidden] = x[2 * h] + (c[2 * h] + bias[h]);
            if (n < hidden && row + 1 < end)
                to[(uint64_t)(row + 1) * hidden] = x[2 * h + 1] + (c[2 * h + 1] + bias[h]);
        }
    }
};

struct done_head {
    const struct nib_gpu_machine *m;

    __device__ __forceinline__ void ask(uint32_t, uint32_t, uint32_t) const
    {
    }

    __device__ __forceinline__ void operator()(uint32_t tile, uint32_t row, uint32_t end, const float c[4]) const
    {
        const uint32_t vocab = m->vocab;
        float *logits = at<float>(m->logits);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4 + h * 8;
            if (n >= vocab)
                continue;
            if (row < end)
                logits[(uint64_t)row * vocab + n] = c[2 * h];
            if (row + 1 < end)
                logits[(uint64_t)(row + 1) * vocab + n] = c[2 * h + 1];
        }
    }
};

/* a = gate' sigmoid(1.702 gate') (up' + 1); comparisons are so that a NaN passes. */
__device__ __forceinline__ float swiglu(float gate, float up)
{
    gate = gate > NIB_SWIGLU_LIMIT ? NIB_SWIGLU_LIMIT : gate;
    up = up > NIB_SWIGLU_LIMIT ? NIB_SWIGLU_LIMIT : up < -NIB_SWIGLU_LIMIT ? -NIB_SWIGLU_LIMIT : up;
    return gate / (1.0f + expf(-NIB_SWIGLU_ALPHA * gate)) * (up + 1.0f);
}

/* Output row g of a tile is the gate and g + 8 the up part of one element; rows are places. bias() may be called early. */
struct done_up {
    const uint32_t *biases; /* [E][I] pairs of bf16 */
    __half *gated;
    uint32_t inner;

    __device__ __forceinline__ done_up(const struct nib_gpu_machine *m, uint32_t layer)
        : biases(at<const uint32_t>(m->layer[layer].up_bias)), gated(at<__half>(m->gated)), inner(m->intermediate)
    {
    }

    __device__ __forceinline__ float2 bias(uint32_t expert, uint32_t tile) const
    {
        const uint32_t i = tile * 8 + threadIdx.x % 32 / 4;
        const uint32_t pair = i < inner ? __ldg(biases + (uint64_t)expert * inner + i) : 0;
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }

    __device__ __forceinline__ void operator()(uint32_t tile, uint32_t place, uint32_t end, const float c[4], float2 b) const
    {
        const uint32_t i = tile * 8 + threadIdx.x % 32 / 4;
        if (i >= inner)
            return;
        __half *to = gated + (uint64_t)place * inner + i;
        if (place < end)
            to[0] = __float2half(swiglu(mx_finish(c[0]) + b.x, mx_finish(c[2]) + b.y));
        if (place + 1 < end)
            to[inner] = __float2half(swiglu(mx_finish(c[1]) + b.x, mx_finish(c[3]) + b.y));
    }
};

struct done_down {
    const __nv_bfloat16 *biases; /* [E][H] */
    float *down;
    uint32_t hidden;

    __device__ __forceinline__ done_down(const struct nib_gpu_machine *m, uint32_t layer)
        : biases(at<const __nv_bfloat16>(m->layer[layer].down_bias)), down(at<float>(m->down)), hidden(m->hidden)
    {
    }

    __device__ __forceinline__ float2 bias(uint32_t expert, uint32_t tile) const
    {
        const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4;
        const __nv_bfloat16 *from = biases + (uint64_t)expert * hidden + n;
        return make_float2(n < hidden ? __bfloat162float(from[0]) : 0, n + 8 < hidden ? __bfloat162float(from[8]) : 0);
    }

    __device__ __forceinline__ void operator()(uint32_t tile, uint32_t place, uint32_t end, const float c[4], float2 b) const
    {
        const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4;
        float *to = down + (uint64_t)place * hidden + n;
        if (place < end && n < hidden)
            to[0] = mx_finish(c[0]) + b.x;
        if (place + 1 < end && n < hidden)
            to[hidden] = mx_finish(c[1]) + b.x;
        if (place < end && n + 8 < hidden)
            to[8] = mx_finish(c[2]) + b.y;
        if (place + 1 < end && n + 8 < hidden)
            to[hidden + 8] = mx_finish(c[3]) + b.y;
    }
};
