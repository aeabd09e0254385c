/* arch/cuda/weights.cuh: the three forms of dense weights (arch/cuda/layout.h) in a ring of cp.async: how a lane copies its part of a
 * stage, `span` units, and how it gets its fragments from it. The last stage of a tile may lack its last unit.
 *
 * A form's object is what a warp knows of the tiles it walks: open() and step() say which they are, widen() completes a stage's
 * fragments, and finish() the sums of a tile. */
#pragma once
#include "arch/cuda/base.cuh"

/* A form whose stages hold all that there is. */
struct weights_whole {
    /* Units of a tile that lie in memory. */
    __device__ __forceinline__ static uint32_t stored(uint32_t units)
    {
        return units;
    }

    /* Tiles from `first` on, below `tiles`, all that the matrix has; stages from `stage` on. */
    __device__ __forceinline__ void open(nib_gpu_ptr, uint32_t, uint32_t, uint32_t, uint32_t)
    {
    }

    /* The next tile begins; behind it comes another. */
    __device__ __forceinline__ void step(uint32_t)
    {
    }

    /* Stage `u` of the tile, counted from the first. */
    template <uint32_t SPAN> __device__ __forceinline__ void widen(uint32_t, uint4 (&)[SPAN][2]) const
    {
    }

    __device__ __forceinline__ void finish(float[4]) const
    {
    }
};

/* A lane copies and reads only its own bytes. */
struct weights_bf16 : weights_whole {
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
        h[i] = mul_bf16x2((word[i] << 4 ^ word[i] >> 4) & 0x87f087f0u, lower);
    }
    w0 = make_uint4(g[0], h[0], g[1], h[1]);
    w1 = make_uint4(g[2], h[2], g[3], h[3]);
}

/* The scales of unit i of a stage are lane i's to copy and every lane's to read. */
struct weights_mxfp8 : weights_whole {
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

/* (a & b) | c as one instruction. The compiler makes two of it where b and c are constants. */
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* A carrier's own word: each weight times 2^(96 - base), a code's exponent being 96 more; of a wide tile without the upper bits of its exponents. */
__device__ __forceinline__ uint32_t bf13_own(uint32_t carrier)
{
    return and_or(carrier, 0x8fff8fffu, 0x30003000u);
}

/* The word that four carriers carry beside their own, without its signs. */
__device__ __forceinline__ uint32_t bf13_carried(const uint32_t c[4])
{
    uint32_t w = and_or(c[0] >> 3, 0x0e000e00u, 0x30003000u);
    w = and_or(c[1] >> 6, 0x01c001c0u, w);
    w = and_or(c[2] >> 9, 0x00380038u, w);
    return and_or(c[3] >> 12, 0x00070007u, w);
}

/* Word 13 + j with its signs, from the last carrier. */
__device__ __forceinline__ uint32_t bf13_signed(uint32_t word, uint32_t last, uint32_t j)
{
    return and_or(last << (1 + j), 0x80008000u, word);
}

/* A lane's carriers of a span to its 16 words. */
__device__ __forceinline__ void bf13_words(const uint4 c[3], uint32_t c12, uint32_t w[16])
{
#pragma unroll
    for (int j = 0; j < 3; j++) {
        const uint32_t carrier[4] = {c[j].x, c[j].y, c[j].z, c[j].w};
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[4 * j + i] = bf13_own(carrier[i]);
        w[13 + j] = bf13_signed(bf13_carried(carrier), c12, j);
    }
    w[12] = bf13_own(c12);
}

/* The words of a wide tile as they are, by their high words. */
__device__ __forceinline__ void bf13_wide(uint32_t w[16], uint32_t s0, uint32_t s1, uint32_t s2)
{
    const uint32_t s[3] = {s0, s1, s2};
#pragma unroll
    for (int i = 0; i < 15; i++)
        w[i] = (w[i] & 0x8fff8fffu) | (s[i / 5] >> 3 * (i % 5) & 0x00070007u) << 12;
    w[15] = (w[15] & 0x8fff8fffu) | (s0 >> 3 & 0x10001000u) | (s1 >> 2 & 0x20002000u) | (s2 >> 1 & 0x40004000u);
}

/* What takes the factor back from a sum: 2^(base - 96); 0 when all weights are. */
__device__ __forceinline__ float bf13_scale(uint32_t base)
{
    return base == CU_BF13_WIDE ? 1.0f : base == CU_BF13_ZERO ? 0.0f : __uint_as_float((base + 31) << 23);
}

/* A lane copies and reads only its own bytes. */
struct weights_bf13 {
    static constexpr uint32_t unit_bytes = CU_BF13_BYTES / CU_BF13_SPAN, span = CU_BF13_SPAN;
    static constexpr int ring = CU_BF13_RING;

    const uint8_t *from;          /* the matrix */
    uint32_t units, stage, tiles; /* of a tile, dense; this warp's first; of the matrix */
    uint32_t tile, ahead;         /* this tile, the next one */
    uint32_t base, next;          /* of these tiles */

    __device__ __forceinline__ static uint32_t stored(uint32_t units)
    {
        return CU_DIV_UP(units, span) * span;
    }

    /* A tile's base is asked for one tile ahead. */
    __device__ __forceinline__ void ask()
    {
        if (ahead < tiles)
            next = __ldg(from + cu_bf13_bases_at(tiles * CU_TILE, units * CU_DENSE_UNIT) + ahead);
    }

    __device__ __forceinline__ void open(nib_gpu_ptr w, uint32_t tile_units, uint32_t first, uint32_t end, uint32_t at_stage)
    {
        from = at<const uint8_t>(w);
        units = tile_units;
        stage = at_stage;
        tiles = end;
        ahead = first;
        next = CU_BF13_WIDE;
        ask();
    }

    __device__ __forceinline__ void step(uint32_t behind)
    {
        tile = ahead;
        base = next;
        ahead = behind;
        ask();
    }

    __device__ __forceinline__ static void copy(uint32_t to, const uint8_t *from, uint64_t policy, bool)
    {
#pragma unroll
        for (uint32_t q = 0; q < 3; q++)
            copy16_stream(to + q * CU_BF13_PIECE, from + q * CU_BF13_PIECE, policy);
        const uint32_t last = 3 * CU_BF13_PIECE - threadIdx.x % 32 * 12;
        copy4_stream(to + last, from + last, policy);
    }

    __device__ __forceinline__ static void read(uint32_t at, uint4 w[span][2])
    {
        uint4 c[3];
#pragma unroll
        for (uint32_t q = 0; q < 3; q++)
            c[q] = lds16(at + q * CU_BF13_PIECE);
        uint32_t words[16];
        bf13_words(c, lds4(at + 3 * CU_BF13_PIECE - threadIdx.x % 32 * 12), words);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            w[i / 2][i % 2] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }

    __device__ __forceinline__ void widen(uint32_t u, uint4 (&w)[span][2]) const
    {
        if (base != CU_BF13_WIDE)
            return;
        const uint32_t spans = stored(units) / span;
        const uint32_t *high = (const uint32_t *)(from + cu_bf13_high_at(tiles * CU_TILE, units * CU_DENSE_UNIT)) +
                               ((uint64_t)tile * spans + stage + u) * (CU_BF13_HIGH / 4) + threadIdx.x % 32;
        uint32_t words[16];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint4 v = w[i / 2][i % 2];
            words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
        }
        bf13_wide(words, __ldg(high), __ldg(high + 32), __ldg(high + 64));
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            w[i / 2][i % 2] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }

    __device__ __forceinline__ void finish(float c[4]) const
    {
        const float scale = bf13_scale(base);
#pragma unroll
        for (int i = 0; i < 4; i++)
            c[i] *= scale;
    }
};
