/* arch/sm90/prompt_forms.cuh: the forms of weights in the ring of a prompt product: how a stage of 64 inputs is asked for, and how a
 * warp gets the fragments of its tiles from it. A consumer warpgroup has 8 tiles of 16 output rows; its warp w the tiles w and w + 4. */
#pragma once
#include "arch/cuda/weights.cuh"
#include "arch/sm90/prompt.h"
#include "arch/sm90/wgmma.cuh"

/* Weights that other blocks read at about the same time. */
__device__ __forceinline__ uint64_t shared_policy()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ uint32_t lds1(uint32_t p)
{
    uint16_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=h"(v) : "r"(p));
    return v;
}

/* MXFP4. The scale of a block goes into its weights: as fp16 they are 2^(code - reference of the row + 1) times their element, exact
 * down to 24 codes below the reference; the sum gets the rest. A row without such a reference (cu_mx_reference) makes its
 * warpgroup sum each block alone and scale the sum, as decode does. */
struct prompt_mx {
    static constexpr uint32_t stages = CU_PROMPT_MX_STAGES, bytes = CU_PROMPT_MX_BYTES, refs_at = CU_PROMPT_TILES * CU_MX_BYTES;
    static constexpr uint32_t tile_bytes = CU_MX_BYTES, unit_bytes = CU_MX_BYTES;
    typedef wgmma_fp16 numbers;

    uint32_t tiles, units;

    __device__ __forceinline__ prompt_mx(uint32_t n, uint32_t k) : tiles(cu_tiles(n)), units(cu_mx_units(k))
    {
    }

    /* Bytes of a tile from one stage to the next, and of this one. */
    __device__ __forceinline__ uint32_t stage_bytes(uint32_t) const
    {
        return tile_bytes;
    }

    /* References of this lane's rows g and g + 8 in its two tiles. */
    struct rows {
        uint32_t ref[2][2];
        bool wild;
    };

    __device__ __forceinline__ static rows begin(uint32_t stage, uint32_t group, uint32_t have)
    {
        const uint32_t at = stage + refs_at + group * 128, warp = threadIdx.x / 32 % 4, g = threadIdx.x % 32 / 4;
        rows r;
        uint32_t none = 0;
        for (uint32_t i = 0; i < have; i++) {
            const uint4 v = lds16(at + i * 16);
            none |= __vcmpeq4(v.x, 0) | __vcmpeq4(v.y, 0) | __vcmpeq4(v.z, 0) | __vcmpeq4(v.w, 0);
        }
        r.wild = none != 0;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
#pragma unroll
            for (uint32_t h = 0; h < 2; h++)
                r.ref[i][h] = lds1(at + (i * 4 + warp) * CU_TILE + h * 8 + g);
        return r;
    }

    struct held {
        uint4 codes[2];
        uint32_t scales[2];
    };

    __device__ __forceinline__ static held take(uint32_t stage, uint32_t group)
    {
        const uint32_t lane = threadIdx.x % 32, at = stage + (group * 8 + threadIdx.x / 32 % 4) * CU_MX_BYTES;
        held v;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            v.codes[i] = lds16(at + i * 4 * CU_MX_BYTES + lane * 16);
            v.scales[i] = lds4(at + i * 4 * CU_MX_BYTES + CU_MX_CODES + lane / 4 * 4);
        }
        return v;
    }

    /* A pair of the scale with that code, for weights that mx_fragment made 2^14 too small. A block that is all zeros may have
     * any scale. */
    __device__ __forceinline__ static __half2 scale(uint32_t ref, uint32_t code)
    {
        const uint32_t bits = 0x78007800u - min(ref - code, 24u) * 0x04000400u;
        return *(const __half2 *)&bits;
    }

    __device__ __forceinline__ static uint32_t times(uint32_t a, __half2 scale)
    {
        const __half2 v = __hmul2(*(const __half2 *)&a, scale);
        return *(const uint32_t *)&v;
    }

    /* Block HALF of 32 inputs: a[tile][mma]. `there`: a dense matrix has the second block of this stage. */
    template <int HALF> __device__ __forceinline__ static void fragments(const held &v, const rows &r, bool, uint32_t a[2][2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            mx_fragment(HALF ? v.codes[i].z : v.codes[i].x, a[i][0]);
            mx_fragment(HALF ? v.codes[i].w : v.codes[i].y, a[i][1]);
            const __half2 upper = scale(r.ref[i][0], mx_code<HALF>(v.scales[i]));
            const __half2 lower = scale(r.ref[i][1], mx_code<2 + HALF>(v.scales[i]));
#pragma unroll
            for (int j = 0; j < 2; j++) {
                a[i][j][0] = times(a[i][j][0], upper);
                a[i][j][1] = times(a[i][j][1], lower);
                a[i][j][2] = times(a[i][j][2], upper);
                a[i][j][3] = times(a[i][j][3], lower);
            }
        }
    }

    /* What the sums of rows g and g + 8 of a tile must be multiplied with. */
    __device__ __forceinline__ static float2 rest(const rows &r, int tile)
    {
        return make_float2(__uint_as_float((r.ref[tile][0] - 1) << 23), __uint_as_float((r.ref[tile][1] - 1) << 23));
    }
};

/* What the two forms of dense weights have in common, of UNIT bytes a unit: nothing is to be known of a row. */
template <uint32_t UNIT> struct prompt_units {
    static constexpr uint32_t tile_bytes = 2 * UNIT, unit_bytes = UNIT; /* in a stage; of a unit */
    typedef wgmma_bf16 numbers;

    uint32_t tiles, units;

    __device__ __forceinline__ prompt_units(uint32_t n, uint32_t k) : tiles(cu_tiles(n)), units(k / CU_DENSE_UNIT)
    {
    }

    __device__ __forceinline__ uint32_t stage_bytes(uint32_t step) const
    {
        return min(units - 2 * step, 2u) * unit_bytes;
    }

    struct rows {
    };

    struct held {
        uint32_t at;
    };

    __device__ __forceinline__ static float2 rest(const rows &, int)
    {
        return make_float2(1, 1);
    }

    __device__ __forceinline__ static rows begin(uint32_t, uint32_t, uint32_t)
    {
        return {};
    }
};

/* bf16. */
struct prompt_dense : prompt_units<CU_DENSE_BYTES> {
    static constexpr uint32_t stages = CU_PROMPT_DENSE_STAGES, bytes = CU_PROMPT_DENSE_BYTES;
    using prompt_units::prompt_units;

    __device__ __forceinline__ static held take(uint32_t stage, uint32_t group)
    {
        return {stage + (group * 8 + threadIdx.x / 32 % 4) * 2 * CU_DENSE_BYTES + threadIdx.x % 32 * 16};
    }

    template <int HALF> __device__ __forceinline__ static void fragments(const held &v, const rows &, bool there,
                                                                         uint32_t a[2][2][4])
    {
        const uint32_t mask = !HALF || there ? ~0u : 0; /* or what an earlier stage left, a NaN perhaps */
#pragma unroll
        for (uint32_t i = 0; i < 2; i++)
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                const uint4 w = lds16(v.at + i * 8 * CU_DENSE_BYTES + HALF * CU_DENSE_BYTES + j * 512);
                a[i][j][0] = w.x & mask;
                a[i][j][1] = w.y & mask;
                a[i][j][2] = w.z & mask;
                a[i][j][3] = w.w & mask;
            }
    }
};

/* MXFP8, to bf16. */
struct prompt_mxfp8 : prompt_units<CU_MXFP8_BYTES> {
    static constexpr uint32_t stages = CU_PROMPT_MXFP8_STAGES, bytes = CU_PROMPT_MXFP8_BYTES;
    using prompt_units::prompt_units;

    __device__ __forceinline__ static held take(uint32_t stage, uint32_t group)
    {
        return {stage + (group * 8 + threadIdx.x / 32 % 4) * 2 * CU_MXFP8_BYTES};
    }

    template <int HALF> __device__ __forceinline__ static void fragments(const held &v, const rows &, bool there,
                                                                         uint32_t a[2][2][4])
    {
        const uint32_t lane = threadIdx.x % 32, mask = !HALF || there ? ~0u : 0; /* a scale of 0 makes zeros of all codes */
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t at = v.at + i * 8 * CU_MXFP8_BYTES + HALF * CU_MXFP8_BYTES;
            uint4 w[2];
            mxfp8_fragments(lds16(at + lane * 16), lds2(at + CU_MXFP8_CODES + lane / 4 * 2) & mask, w[0], w[1]);
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                a[i][j][0] = w[j].x;
                a[i][j][1] = w[j].y;
                a[i][j][2] = w[j].z;
                a[i][j][3] = w[j].w;
            }
        }
    }
};
