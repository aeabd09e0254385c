/* arch/cuda/gemm.cuh: matrix products of prompt rows. A block computes 128 output rows for 128 tokens, 64 inputs at a time through
 * a ring of cp.async stages; eight warps of 32 output rows by 64 tokens. Weights are in fragment order already; activations
 * lie 128 bytes a token, their halves swapped in odd tokens so that 16-byte reads of a warp meet all banks.
 * A token's outputs do not depend on the other tokens of its tile. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/cuda/weights.cuh"

/* Tile of the block; token i of it, below tokens, has its activations at from(i). */
struct gemm_place {
    uint32_t tile0;  /* first of its 8 weight tiles */
    uint32_t tokens; /* 1..128 */
};

__device__ __forceinline__ uint32_t gemm_acts_at(uint32_t token, uint32_t chunk)
{
    return token * 128 + (chunk ^ (token & 1) << 2) * 16;
}

/* Copies 64 inputs of the block's tokens; src[i] says where, in 16 bytes from `acts`, the row of token thread / 8 + 32 i begins;
 * ~0: there is no such token. */
__device__ __forceinline__ void gemm_load_acts(uint32_t to, const uint8_t *acts, const uint32_t src[4], uint32_t step,
                                               uint32_t k)
{
    const uint32_t chunk = threadIdx.x % 8, in = step * CU_GEMM_K + chunk * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const bool there = src[i] != ~0u && in < k;
        copy16(to + gemm_acts_at(threadIdx.x / 8 + 32 * i, chunk), there ? acts + (src[i] * 16ull + in * 2) : acts, there);
    }
}

struct gemm_dense {
    const uint8_t *w;
    uint32_t tiles, units; /* of the matrix */

    static constexpr int stages = CU_DENSE_STAGES;
    static constexpr uint32_t weight_bytes = CU_GEMM_N * CU_GEMM_K * 2;

    __device__ __forceinline__ void load(uint32_t to, uint32_t tile0, uint32_t step) const
    {
        const uint32_t tile = tile0 + threadIdx.x / 128, c = threadIdx.x % 128;
        const uint8_t *from = w + (uint64_t)(tile * units + step * 2) * CU_DENSE_BYTES + c * 16;
        const bool inside = step * 2 + c / 64 < units;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool there = inside && tile + 2 * i < tiles;
            copy16(to + (threadIdx.x + 256 * i) * 16, there ? from : w, there);
            from += 2 * units * CU_DENSE_BYTES;
        }
    }

    /* 64 inputs: warp_n picks 2 of the 8 tiles, warp_m 64 of the tokens. */
    __device__ __forceinline__ void step(uint32_t weights, uint32_t acts, uint32_t warp_n, uint32_t warp_m,
                                         float acc[2][8][4]) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint4 a[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    a[i][j] = lds16(weights + (warp_n * 2 + i) * 2048 + half * 1024 + j * 512 + lane * 16);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const uint4 b = lds16(acts + gemm_acts_at(warp_m * 64 + n * 8 + g, half * 4 + t));
                mma_unit(acc[0][n], a[0][0], a[0][1], b);
                mma_unit(acc[1][n], a[1][0], a[1][1], b);
            }
        }
    }
};

/* In a stage: the codes of all units, [tile][2]; then their scales. */
struct gemm_mxfp8 {
    const uint8_t *w;
    uint32_t tiles, units;

    static constexpr int stages = CU_MXFP8_STAGES;
    static constexpr uint32_t units_of = CU_GEMM_N / CU_TILE * 2, weight_bytes = units_of * CU_MXFP8_BYTES;

    __device__ __forceinline__ void copy(uint32_t to, uint32_t tile0, uint32_t step, uint32_t unit, uint32_t at) const
    {
        const uint32_t tile = tile0 + unit / 2, mine = step * 2 + unit % 2;
        const bool there = tile < tiles && mine < units;
        copy16(to, there ? w + ((uint64_t)tile * units + mine) * CU_MXFP8_BYTES + at : w, there);
    }

    __device__ __forceinline__ void load(uint32_t to, uint32_t tile0, uint32_t step) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
            copy(to + (threadIdx.x + 256 * i) * 16, tile0, step, threadIdx.x / 32 + 8 * i, threadIdx.x % 32 * 16);
        if (threadIdx.x < units_of)
            copy(to + units_of * CU_MXFP8_CODES + threadIdx.x * 16, tile0, step, threadIdx.x, CU_MXFP8_CODES);
    }

    __device__ __forceinline__ void step(uint32_t weights, uint32_t acts, uint32_t warp_n, uint32_t warp_m,
                                         float acc[2][8][4]) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint4 a[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint32_t unit = (warp_n * 2 + i) * 2 + half;
                mxfp8_fragments(lds16(weights + unit * CU_MXFP8_CODES + lane * 16),
                                lds2(weights + units_of * CU_MXFP8_CODES + unit * 16 + g * 2), a[i][0], a[i][1]);
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const uint4 b = lds16(acts + gemm_acts_at(warp_m * 64 + n * 8 + g, half * 4 + t));
                mma_unit(acc[0][n], a[0][0], a[0][1], b);
                mma_unit(acc[1][n], a[1][0], a[1][1], b);
            }
        }
    }
};

struct gemm_mx {
    const uint8_t *w;
    uint32_t tiles, units;

    static constexpr int stages = CU_MX_STAGES;
    static constexpr uint32_t weight_bytes = CU_GEMM_N / CU_TILE * CU_MX_BYTES;

    __device__ __forceinline__ void load(uint32_t to, uint32_t tile0, uint32_t step) const
    {
        const uint32_t tile = threadIdx.x / 32;
        const bool there = tile0 + tile < tiles;
        const uint64_t unit = there ? (uint64_t)(tile0 + tile) * units + step : 0;
        copy16(to + threadIdx.x * 16, w + unit * CU_MX_BYTES + threadIdx.x % 32 * 16, there);
        if (threadIdx.x < CU_GEMM_N / CU_TILE * 2) { /* scales behind the codes of all tiles */
            const uint32_t other = threadIdx.x / 2;
            const bool inside = tile0 + other < tiles;
            const uint64_t at_unit = inside ? (uint64_t)(tile0 + other) * units + step : 0;
            copy16(to + CU_GEMM_N / CU_TILE * CU_MX_CODES + threadIdx.x * 16,
                   w + at_unit * CU_MX_BYTES + CU_MX_CODES + threadIdx.x % 2 * 16, inside);
        }
    }

    __device__ __forceinline__ void step(uint32_t weights, uint32_t acts, uint32_t warp_n, uint32_t warp_m,
                                         float acc[2][8][4]) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        uint32_t code[2][4], scale[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 c = lds16(weights + (warp_n * 2 + i) * CU_MX_CODES + lane * 16);
            code[i][0] = c.x;
            code[i][1] = c.y;
            code[i][2] = c.z;
            code[i][3] = c.w;
            scale[i] = lds4(weights + CU_GEMM_N / CU_TILE * CU_MX_CODES + (warp_n * 2 + i) * CU_MX_SCALES + g * 4);
        }
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t a[2][2][4];
            float s[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mx_fragment(code[i][half * 2], a[i][0]);
                mx_fragment(code[i][half * 2 + 1], a[i][1]);
                mx_scales(scale[i], half, s[i]);
            }
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const uint4 b = lds16(acts + gemm_acts_at(warp_m * 64 + n * 8 + g, half * 4 + t));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float block[4];
                    mma_fp16_zero(block, a[i][0], b.x, b.y);
                    mma_fp16(block, a[i][1], b.z, b.w);
                    acc[i][n][0] += s[i][0] * block[0];
                    acc[i][n][1] += s[i][0] * block[1];
                    acc[i][n][2] += s[i][1] * block[2];
                    acc[i][n][3] += s[i][1] * block[3];
                }
            }
        }
    }
};

/* from(token): where its row begins in `acts`, in 16 bytes. done(tile, token, tokens, c) as in arch/cuda/done.cuh. */
template <class Weights, class From, class Done>
__device__ __forceinline__ void gemm_block(const Weights &w, struct gemm_place place, uint32_t k, const uint8_t *acts, From from,
                                           Done done)
{
    extern __shared__ uint4 gemm_dynamic[];
    constexpr int stages = Weights::stages;
    constexpr uint32_t stage_bytes = Weights::weight_bytes + CU_GEMM_M * CU_GEMM_K * 2;
    const uint32_t base = smem_at(gemm_dynamic), steps = CU_DIV_UP(k, CU_GEMM_K);
    const uint32_t warp = threadIdx.x / 32, warp_n = warp % 4, warp_m = warp / 4;
    uint32_t src[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t token = threadIdx.x / 8 + 32 * i;
        src[i] = token < place.tokens ? from(token) : ~0u;
    }
    float acc[2][8][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < 8; n++)
            acc[i][n][0] = acc[i][n][1] = acc[i][n][2] = acc[i][n][3] = 0;
    auto load = [&](uint32_t step) {
        if (step < steps) {
            const uint32_t to = base + step % stages * stage_bytes;
            w.load(to, place.tile0, step);
            gemm_load_acts(to + Weights::weight_bytes, acts, src, step, k);
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < stages - 1; i++)
        load(i);
    for (uint32_t step = 0; step < steps; step++) {
        copy_wait<stages - 2>();
        __syncthreads();
        load(step + stages - 1);
        const uint32_t from_stage = base + step % stages * stage_bytes;
        w.step(from_stage, from_stage + Weights::weight_bytes, warp_n, warp_m, acc);
    }
    copy_wait<0>();
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (place.tile0 + warp_n * 2 + i < w.tiles)
#pragma unroll
            for (int n = 0; n < 8; n++)
                done(place.tile0 + warp_n * 2 + i, warp_m * 64 + n * 8 + 2 * t, place.tokens, acc[i][n]);
}
