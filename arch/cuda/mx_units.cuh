/* arch/cuda/mx_units.cuh: products of a warp's units of a tile of an expert with up to 16 rows of activations, by mma.sync. Activations are fp16, weights
 * E2M1 as fp16; each block of 32 inputs is summed alone and then scaled, so that every E8M0 scale but code 0, which counts as 0, is exact. */
#pragma once
#include "arch/cuda/base.cuh"

/* acc += scaled products of a block of 32 inputs: two words of codes, the scales of rows g and g + 8. FEW: odd columns are
 * empty. */
template <int NT, bool FEW>
__device__ __forceinline__ void mx_block(uint32_t w0, uint32_t w1, float scale0, float scale1, const uint4 b[NT],
                                         float acc[NT][4])
{
    uint32_t a0[4], a1[4];
    mx_fragment(w0, a0);
    mx_fragment(w1, a1);
#pragma unroll
    for (int n = 0; n < NT; n++) {
        float block[4];
        mma_fp16_zero(block, a0, b[n].x, b[n].y);
        mma_fp16(block, a1, b[n].z, b[n].w);
        acc[n][0] += scale0 * block[0];
        acc[n][2] += scale1 * block[2];
        if (!FEW) {
            acc[n][1] += scale0 * block[1];
            acc[n][3] += scale1 * block[3];
        }
    }
}

/* This lane's activations: `at` a row's part of the next unit, `step` from unit to unit. A lane whose row is not there
 * reads one place that holds zeros. FEW: row r is column 2r. */
template <int NT, bool FEW> struct mx_lane {
    uint32_t at[NT], step[NT];

    __device__ __forceinline__ mx_lane(uint32_t acts, uint32_t stride, uint32_t u0, uint32_t rows, uint32_t zeros)
    {
        const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint32_t row = FEW ? g / 2 : n * 8 + g;
            const bool there = row < rows && !(FEW && g % 2);
            at[n] = there ? acts + row * stride + u0 * 128 + threadIdx.x % 4 * 16 : zeros;
            step[n] = there ? 128 : 0;
        }
    }

    __device__ __forceinline__ uint32_t unit(int n) const
    {
        return step[n];
    }
};

/* The same where zeros, at a multiple of 128, are 128 bytes longer than a share: then the step is the same for all lanes and need not be added, and lanes without
 * a row meet no other's banks. */
template <int NT, bool FEW> struct mx_rows {
    uint32_t at[NT];

    __device__ __forceinline__ mx_rows(uint32_t acts, uint32_t stride, uint32_t u0, uint32_t rows, uint32_t zeros)
    {
        const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const uint32_t row = FEW ? g / 2 : n * 8 + g;
            at[n] = row < rows && !(FEW && g % 2) ? acts + row * stride + u0 * 128 + threadIdx.x % 4 * 16
                                                  : zeros + (row * stride + (FEW ? 64 : 0)) % 128;
        }
    }

    __device__ __forceinline__ uint32_t unit(int) const
    {
        return 128;
    }
};

/* The sums of columns 2t and 2t + 1 to where the epilogue wants them, when they lie in columns 4t and 4t + 2. */
__device__ __forceinline__ void mx_spread(float c[4])
{
    const uint32_t lane = threadIdx.x % 32, from = (lane & ~3u) + lane % 2 * 2;
    const float even0 = __shfl_sync(~0u, c[0], from), odd0 = __shfl_sync(~0u, c[0], from + 1);
    const float even1 = __shfl_sync(~0u, c[2], from), odd1 = __shfl_sync(~0u, c[2], from + 1);
    c[0] = even0;
    c[1] = odd0;
    c[2] = even1;
    c[3] = odd1;
}

/* N units of a span, from unit `i` of it on. Everything is loaded before it is used, so that the products overlap. */
template <int NT, bool FEW, int N, class Lane>
__device__ __forceinline__ void mx_units(uint32_t span, uint32_t i, Lane &acts, float acc[NT][4])
{
    const uint32_t lane = threadIdx.x % 32;
    uint4 codes[N], b[N][2][NT];
    uint32_t s[N];
#pragma unroll
    for (int u = 0; u < N; u++) {
        codes[u] = lds16(span + (i + u) * CU_MX_BYTES + lane * 16);
        s[u] = lds4(span + (i + u) * CU_MX_BYTES + CU_MX_CODES + lane / 4 * 4);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            b[u][0][n] = lds16(acts.at[n]);
            b[u][1][n] = lds16(acts.at[n] + acts.unit(n) / 2);
            acts.at[n] += acts.unit(n);
        }
    }
#pragma unroll
    for (int u = 0; u < N; u++) {
        mx_block<NT, FEW>(codes[u].x, codes[u].y, mx_scale<0>(s[u]), mx_scale<2>(s[u]), b[u][0], acc);
        mx_block<NT, FEW>(codes[u].z, codes[u].w, mx_scale<1>(s[u]), mx_scale<3>(s[u]), b[u][1], acc);
    }
}
