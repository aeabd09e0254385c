/* arch/cuda/weights.cuh: the two forms of dense weights (arch/cuda/layout.h) in a ring of cp.async: how a lane copies its part of a
 * stage, `span` units, and how it gets its fragments from it. The last stage of a tile may lack its last unit. */
#pragma once
#include "arch/cuda/base.cuh"

/* A lane copies and reads only its own bytes. */
struct weights_bf16 {
    static constexpr uint32_t unit_bytes = CU_DENSE_BYTES, span = 1;
    static constexpr int ring = CU_DENSE_RING;

    __device__ __forceinline__ static void copy(uint32_t to, const uint8_t *from, uint64_t policy, bool)
    {
        copy16_stream(to, from, policy);
        copy16_stream(to + 512, from + 512, policy);
    }

    __device__ __forceinline__ static void read(uint32_t at, uint4 w[span][2])
    {
        w[0][0] = lds16(at);
        w[0][1] = lds16(at + 512);
    }
};

/* Pairs of bf16, multiplied. A product of fma with -0 is that of mul, which sm_80 lacks. */
__device__ __forceinline__ uint32_t mul_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
    return d;
}

/* A lane's 16 codes and the scale bytes of its rows g and g + 8 to bf16 fragments. A code's bits in the place of a bf16's are its
 * value times 2^-120, subnormals too; the multiplication takes that back together with the scale, and is exact. */
__device__ __forceinline__ void mxfp8_fragments(uint4 codes, uint32_t scales, uint4 &w0, uint4 &w1)
{
    const uint32_t upper = (scales & 0xff) * 0x00800080u, lower = (scales >> 8) * 0x00800080u;
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
    uint32_t g[4], h[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        g[i] = mul_bf16x2(word[i] & 0x87f087f0u, upper);
        h[i] = mul_bf16x2((word[i] << 4 & 0x80f080f0u) | (word[i] >> 4 & 0x07000700u), lower);
    }
    w0 = make_uint4(g[0], h[0], g[1], h[1]);
    w1 = make_uint4(g[2], h[2], g[3], h[3]);
}

/* The scales of unit i of a stage are lane i's to copy and every lane's to read. */
struct weights_mxfp8 {
    static constexpr uint32_t unit_bytes = CU_MXFP8_BYTES, span = CU_MXFP8_SPAN;
    static constexpr int ring = CU_MXFP8_RING;

    __device__ __forceinline__ static void copy(uint32_t to, const uint8_t *from, uint64_t policy, bool whole)
    {
        const uint32_t lane = threadIdx.x % 32, scales = lane * (unit_bytes - 16) + CU_MXFP8_CODES;
#pragma unroll
        for (uint32_t i = 0; i < span; i++)
            if (i + 1 < span || whole)
                copy16_stream(to + i * unit_bytes, from + i * unit_bytes, policy);
        if (lane + 1 < span || (lane + 1 == span && whole))
            copy16_stream(to + scales, from + scales, policy);
    }

    /* Every lane's copies of this stage have come; what was read from the stage before may then be overwritten. */
    __device__ __forceinline__ static void read(uint32_t at, uint4 w[span][2])
    {
        const uint32_t lane = threadIdx.x % 32, scales = at + CU_MXFP8_CODES - lane * 16 + lane / 4 * 2;
        __syncwarp();
#pragma unroll
        for (uint32_t i = 0; i < span; i++)
            mxfp8_fragments(lds16(at + i * unit_bytes), lds2(scales + i * unit_bytes), w[i][0], w[i][1]);
    }
};
