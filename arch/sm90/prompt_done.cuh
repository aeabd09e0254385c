/* arch/sm90/prompt_done.cuh: what becomes of the sums of a prompt product, as arch/cuda/done.cuh has it for decode: bias, rotation, activation,
 * and where they go. A lane has of a tile of 16 weight rows the rows g and g + 8, for tokens 2t, 2t + 1 of each 8 of the item: sums[4 n + c], c
 * as in mma.m16n8k16. What has to be read is asked for many at a time. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/sm90/prompt_ring.cuh"

/* A sum times its scale, a power of two, and with its bias; what is not finite is NaN, as mx_finish has it. */
__device__ __forceinline__ float prompt_sum(float sum, float scale, float bias)
{
    const float v = __fmaf_rn(sum, scale, bias);
    return __fmaf_rn(v, 0.0f, v);
}

/* As swiglu of arch/cuda/done.cuh, from a finite gate: an item has 16,384 of them, so with an approximate exponential and quotient,
 * each right to 2 units of the last place of an fp32. */
__device__ __forceinline__ float prompt_swiglu(float gate, float up)
{
    gate = min_nan(gate, NIB_SWIGLU_LIMIT);
    up = -min_nan(-min_nan(up, NIB_SWIGLU_LIMIT), NIB_SWIGLU_LIMIT);
    float power, part;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(gate * (-NIB_SWIGLU_ALPHA * 1.4426950408889634f)));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(part) : "f"(1.0f + power));
    return gate * part * (up + 1.0f);
}

/* Of an item's tokens those from this lane's first on. */
__device__ __forceinline__ uint32_t prompt_left(const prompt_item &item)
{
    const uint32_t t = threadIdx.x % 4 * 2;
    return t < item.tokens ? item.tokens - t : 0;
}

/* Element tile * 8 + g of the activation. */
struct prompt_up_tile {
    __half *to; /* of token 2t */
    uint32_t inner, left;
    float2 bias, scale;

    template <int N> __device__ __forceinline__ void operator()(const float (&sums)[N]) const
    {
#pragma unroll
        for (uint32_t n = 0; n < N / 4; n++) {
            const float *c = sums + 4 * n;
            const float a0 = prompt_swiglu(prompt_sum(c[0], scale.x, bias.x), prompt_sum(c[2], scale.y, bias.y));
            const float a1 = prompt_swiglu(prompt_sum(c[1], scale.x, bias.x), prompt_sum(c[3], scale.y, bias.y));
            __half *row = to + (uint64_t)(n * 8) * inner;
            if (n * 8 < left)
                row[0] = __float2half(a0);
            if (n * 8 + 1 < left)
                row[inner] = __float2half(a1);
        }
    }
};

struct prompt_up_done : done_up {
    using done_up::done_up;

    __device__ __forceinline__ prompt_up_tile open(const prompt_item &item, uint32_t tile, float2 scale) const
    {
        const uint32_t i = tile * 8 + threadIdx.x % 32 / 4;
        return {gated + (uint64_t)(item.first + threadIdx.x % 4 * 2) * inner + i, inner, i < inner ? prompt_left(item) : 0,
                bias(item.expert, tile), scale};
    }
};

/* Output rows tile * 16 + g and + 8. */
struct prompt_down_tile {
    float *to;
    uint32_t hidden, left, left8; /* of row g, of row g + 8 */
    float2 bias, scale;

    template <int N> __device__ __forceinline__ void operator()(const float (&sums)[N]) const
    {
#pragma unroll
        for (uint32_t n = 0; n < N / 4; n++) {
            const float *c = sums + 4 * n;
            float *row = to + (uint64_t)(n * 8) * hidden;
            if (n * 8 < left)
                row[0] = prompt_sum(c[0], scale.x, bias.x);
            if (n * 8 + 1 < left)
                row[hidden] = prompt_sum(c[1], scale.x, bias.x);
            if (n * 8 < left8)
                row[8] = prompt_sum(c[2], scale.y, bias.y);
            if (n * 8 + 1 < left8)
                row[hidden + 8] = prompt_sum(c[3], scale.y, bias.y);
        }
    }
};

struct prompt_down_done : done_down {
    using done_down::done_down;

    __device__ __forceinline__ prompt_down_tile open(const prompt_item &item, uint32_t tile, float2 scale) const
    {
        const uint32_t n = tile * CU_TILE + threadIdx.x % 32 / 4, left = prompt_left(item);
        return {down + (uint64_t)(item.first + threadIdx.x % 4 * 2) * hidden + n, hidden, n < hidden ? left : 0,
                n + 8 < hidden ? left : 0, bias(item.expert, tile), scale};
    }
};

/* x += y + b, 32 tokens at a time. */
struct prompt_out_tile {
    float *x;
    uint32_t hidden, left, left8;
    float bias, bias8;

    template <int N> __device__ __forceinline__ void operator()(const float (&sums)[N]) const
    {
#pragma unroll
        for (uint32_t first = 0; first < N / 4; first += 4) {
            float old[4][4];
#pragma unroll
            for (uint32_t c = 0; c < 16; c++) {
                const uint32_t token = (first + c / 4) * 8 + c % 2;
                if (token < (c & 2 ? left8 : left))
                    old[c / 4][c % 4] = x[(uint64_t)token * hidden + (c & 2) * 4];
            }
#pragma unroll
            for (uint32_t c = 0; c < 16; c++) {
                const uint32_t token = (first + c / 4) * 8 + c % 2;
                if (token < (c & 2 ? left8 : left))
                    x[(uint64_t)token * hidden + (c & 2) * 4] =
                        old[c / 4][c % 4] + (sums[first * 4 + c] + (c & 2 ? bias8 : bias));
            }
        }
    }
};

struct prompt_out_done {
    const struct nib_gpu_machine *m;
    uint32_t layer;

    __device__ __forceinline__ prompt_out_tile open(const prompt_item &item, uint32_t tile, float2) const
    {
        const uint32_t hidden = m->hidden, n = tile * CU_TILE + threadIdx.x % 32 / 4, left = prompt_left(item);
        const nib_gpu_ptr biases = m->layer[layer].out_bias;
        return {at<float>(m->x) + (uint64_t)(item.first + threadIdx.x % 4 * 2) * hidden + n, hidden, n < hidden ? left : 0,
                n + 8 < hidden ? left : 0, n < hidden ? bf16_at(biases, n) : 0, n + 8 < hidden ? bf16_at(biases, n + 8) : 0};
    }
};

/* q, k rotated and v: dims dim and dim + 32 of a head; heads count through q, k and v. All lanes of a warp have the same head. */
struct prompt_qkv_tile {
    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer, head, dim, first, tokens; /* first: row of the item's first token */
    float bias0, bias1;

    /* Where a row's part of this head begins. */
    __device__ __forceinline__ uint64_t place(uint32_t row) const
    {
        const uint32_t heads = m->heads;
        if (head < heads)
            return m->q + ((uint64_t)row * heads + head) * NIB_HEAD_DIM * 2;
        if (m->kv_new)
            return m->kv_new + ((uint64_t)row * 2 * m->kv_heads + head - heads) * NIB_HEAD_DIM * 2;
        const struct nib_row r = rows[row];
        const uint64_t page = page_at(m, layer, r.slot, r.pos / NIB_KV_PAGE_TOKENS, NIB_GPU_QKV);
        return m->layer[layer].kv + page + (uint64_t)(head - heads) * PAGE_HEAD_BYTES +
               r.pos % NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM * 2;
    }

    template <int N> __device__ __forceinline__ void operator()(const float (&sums)[N]) const
    {
        if (tokens == 0)
            return;
        const uint32_t lane = threadIdx.x % 32, t = lane % 4 * 2;
        const bool turns = head < m->heads + m->kv_heads;
        const float *cos_of = at<const float>(m->rope), *sin_of = cos_of + m->step_rows_max * 32;
        uint64_t places[N / 16]; /* of tokens lane, lane + 32, ... */
#pragma unroll
        for (uint32_t i = 0; i < N / 16; i++)
            places[i] = place(first + min(lane + 32 * i, tokens - 1));
#pragma unroll
        for (uint32_t chunk = 0; chunk < N / 4; chunk += 4) {
            float cos[8], sin[8];
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) { /* tokens that are not there read the last one's */
                const uint32_t row = first + min((chunk + i / 2) * 8 + t + i % 2, tokens - 1);
                cos[i] = turns ? cos_of[row * 32 + dim] : 1;
                sin[i] = turns ? sin_of[row * 32 + dim] : 0;
            }
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                const float *c = sums + (chunk + i / 2) * 4 + i % 2;
                float a = c[0] + bias0, b = c[2] + bias1;
                if (turns)
                    rotate(a, b, cos[i], sin[i]);
                __nv_bfloat16 *to = at<__nv_bfloat16>(__shfl_sync(~0u, places[chunk / 4], i / 2 * 8 + t + i % 2)) + dim;
                if ((chunk + i / 2) * 8 + t + i % 2 < tokens) {
                    to[0] = __float2bfloat16(a);
                    to[32] = __float2bfloat16(b);
                }
            }
        }
    }
};

struct prompt_qkv_done {
    const struct nib_gpu_machine *m;
    const struct nib_row *rows;
    uint32_t layer;

    __device__ __forceinline__ prompt_qkv_tile open(const prompt_item &item, uint32_t tile, float2) const
    {
        const uint32_t head = tile / 4, dim = tile % 4 * 8 + threadIdx.x % 32 / 4;
        const bool there = head < m->heads + 2 * m->kv_heads;
        const nib_gpu_ptr biases = m->layer[layer].qkv_bias;
        return {m, rows, layer, head, dim, item.first, there ? item.tokens : 0,
                there ? bf16_at(biases, head * NIB_HEAD_DIM + dim) : 0, there ? bf16_at(biases, head * NIB_HEAD_DIM + dim + 32) : 0};
    }
};
