/* arch/cuda/repack.cuh: canonical weights to the layout of arch/cuda/layout.h, at boot. A thread writes 16 bytes at a time. */
#pragma once
#include "arch/cuda/base.cuh"

/* Output row that place `r` of tile `tile` holds. */
__device__ __forceinline__ uint32_t packed_row(uint32_t matrix, uint32_t tile, uint32_t r)
{
    if (matrix == NIB_GPU_M_QKV) /* pairs (i, i + 32) of a head at r, r + 8 */
        return tile / 4 * 64 + tile % 4 * 8 + r % 8 + r / 8 * 32;
    if (matrix == NIB_GPU_M_UP) /* gate and up at r, r + 8 */
        return tile * CU_TILE + r % 8 * 2 + r / 8;
    return tile * CU_TILE + r;
}

KERNEL(repack_dense, 256, 4)
{
    const struct nib_gpu_repack *p = at<const struct nib_gpu_repack>(m->repack);
    const uint32_t k = p->k, n = p->n, n0 = p->n0, n1 = p->n1, matrix = p->matrix, steps = k / 16;
    const uint16_t *src = at<const uint16_t>(p->src);
    uint4 *dst = at<uint4>(p->dst);
    const uint64_t first = (uint64_t)(n0 / CU_TILE) * steps * 32;
    const uint64_t end = (uint64_t)CU_DIV_UP(n1, CU_TILE) * steps * 32;
    for (uint64_t i = first + blockIdx.x * 256u + threadIdx.x; i < end; i += gridDim.x * 256u) {
        const uint32_t lane = i % 32, step = (uint32_t)(i / 32 % steps), tile = (uint32_t)(i / 32 / steps);
        const uint32_t col = step / 2 * 32 + lane % 4 * 8 + step % 2 * 4;
        uint2 row[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t r = packed_row(matrix, tile, lane / 4 + h * 8);
            row[h] = r < n && r >= n0 && r < n1 ? *(const uint2 *)(src + (uint64_t)(r - n0) * k + col) : make_uint2(0, 0);
        }
        dst[i] = make_uint4(row[0].x, row[1].x, row[0].y, row[1].y);
    }
}

/* The 16 words of a lane and span of a tile, as a dense matrix has them; `fill` for those behind the last input. */
__device__ __forceinline__ void bf13_collect(const struct nib_gpu_repack *p, uint32_t tile, uint32_t span, uint32_t lane, uint32_t fill,
                                             uint32_t w[16])
{
    const uint16_t *src = at<const uint16_t>(p->src);
#pragma unroll
    for (uint32_t u = 0; u < CU_BF13_SPAN; u++) {
        const uint32_t unit = span * CU_BF13_SPAN + u;
        uint4 row[2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t r = tile * CU_TILE + lane / 4 + h * 8;
            row[h] = make_uint4(fill, fill, fill, fill);
            if (unit >= p->k / CU_DENSE_UNIT)
                continue;
            row[h] = make_uint4(0, 0, 0, 0);
            if (r < p->n1)
                row[h] = *(const uint4 *)(src + (uint64_t)(r - p->n0) * p->k + unit * CU_DENSE_UNIT + lane % 4 * 8);
        }
        const uint32_t both[8] = {row[0].x, row[1].x, row[0].y, row[1].y, row[0].z, row[1].z, row[0].w, row[1].w};
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            w[u * 8 + i] = both[i];
    }
}

/* The base of a tile, by a block: its smallest exponent, or CU_BF13_WIDE or CU_BF13_ZERO. */
__device__ __forceinline__ uint32_t bf13_base(const struct nib_gpu_repack *p, uint32_t tile)
{
    __shared__ uint32_t ends[3]; /* least, most; whether any weight is not 0 */
    const uint32_t chunks = p->k / 8, rows = min(p->n1 - tile * CU_TILE, (uint32_t)CU_TILE);
    const uint4 *src = at<const uint4>(p->src) + (uint64_t)(tile * CU_TILE - p->n0) * chunks;
    uint32_t least = rows < CU_TILE ? 0 : 0xffffffffu, most = 0, any = 0; /* of both halves */
    for (uint32_t i = threadIdx.x; i < rows * chunks; i += blockDim.x) {
        const uint4 v = src[i];
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t exponents = words[j] >> 7 & 0x00ff00ffu;
            least = __vminu2(least, exponents);
            most = __vmaxu2(most, exponents);
            any |= words[j] & 0x7fff7fffu;
        }
    }
    if (threadIdx.x == 0) {
        ends[0] = 255;
        ends[1] = ends[2] = 0;
    }
    __syncthreads();
    atomicMin(&ends[0], min(least & 0xffff, least >> 16));
    atomicMax(&ends[1], max(most & 0xffff, most >> 16));
    if (any)
        ends[2] = 1;
    __syncthreads();
    const uint32_t low = min(ends[0], (uint32_t)CU_BF13_MAX), high = ends[1], all_zeros = !ends[2];
    __syncthreads();
    if (all_zeros)
        return CU_BF13_ZERO;
    return low == 0 || high == 255 || high > low + 31 ? CU_BF13_WIDE : low;
}

/* A lane's words of a span to carriers and high words. */
__device__ __forceinline__ void bf13_pack(const uint32_t w[16], uint32_t base, uint32_t carrier[13], uint32_t high[3])
{
    uint32_t code[16];
#pragma unroll
    for (int i = 0; i < 16; i++)
        code[i] = (w[i] - (base > CU_BF13_MAX ? 0 : base * 0x00800080u)) & 0x8fff8fffu; /* no half borrows: exponents are not below the base */
#pragma unroll
    for (int i = 0; i < 13; i++)
        carrier[i] = code[i];
#pragma unroll
    for (int j = 0; j < 3; j++) {
        const uint32_t c = code[13 + j];
        carrier[4 * j] |= (c & 0x0e000e00u) << 3;
        carrier[4 * j + 1] |= (c & 0x01c001c0u) << 6;
        carrier[4 * j + 2] |= (c & 0x00380038u) << 9;
        carrier[4 * j + 3] |= (c & 0x00070007u) << 12;
        carrier[12] |= (c & 0x80008000u) >> (1 + j);
    }
#pragma unroll
    for (int q = 0; q < 3; q++) {
        high[q] = (w[15] >> (12 + q) & 0x00010001u) << 15;
#pragma unroll
        for (int f = 0; f < 5; f++)
            high[q] |= (w[5 * q + f] >> 12 & 0x00070007u) << 3 * f;
    }
}

/* A block a tile at a time. */
KERNEL(repack_head, 256, 4)
{
    const struct nib_gpu_repack *p = at<const struct nib_gpu_repack>(m->repack);
    const uint32_t k = p->k, n = p->n, spans = cu_bf13_spans(k);
    uint8_t *dst = at<uint8_t>(p->dst);
    for (uint32_t tile = p->n0 / CU_TILE + blockIdx.x; tile < cu_tiles(p->n1); tile += gridDim.x) {
        const uint32_t base = bf13_base(p, tile);
        if (threadIdx.x == 0)
            dst[cu_bf13_bases_at(n, k) + tile] = (uint8_t)base;
        for (uint32_t i = threadIdx.x; i < spans * 32; i += 256) {
            const uint32_t lane = i % 32;
            const uint64_t span = (uint64_t)tile * spans + i / 32;
            uint32_t w[16], c[13], high[3];
            bf13_collect(p, tile, i / 32, lane, base > CU_BF13_MAX ? 0 : base * 0x00800080u, w);
            bf13_pack(w, base, c, high);
            uint8_t *to = dst + span * CU_BF13_BYTES;
#pragma unroll
            for (int q = 0; q < 3; q++)
                *(uint4 *)(to + q * CU_BF13_PIECE + lane * 16) = make_uint4(c[4 * q], c[4 * q + 1], c[4 * q + 2], c[4 * q + 3]);
            *(uint32_t *)(to + 3 * CU_BF13_PIECE + lane * 4) = c[12];
            uint32_t *plane = (uint32_t *)(dst + cu_bf13_high_at(n, k) + span * CU_BF13_HIGH);
#pragma unroll
            for (int q = 0; q < 3; q++)
                plane[q * 32 + lane] = high[q];
        }
    }
}

/* One E4M3 code in a half word, as mxfp8_fragments leaves it. */
__device__ __forceinline__ uint32_t mxfp8_place(uint32_t code)
{
    return (code >> 7) << 15 | (code & 127) << 4;
}

/* The word that mxfp8_fragments makes the codes of row g and row g + 8 of. Row g's lie in it as they are, and of the other bits each is row g + 8's bit of
 * the place four above or below, xored with the one that comes there from the other side: that one is known by then. */
__device__ __forceinline__ uint32_t mxfp8_word(uint32_t upper, uint32_t lower)
{
    uint32_t w = upper;
    w |= ((lower ^ upper << 4) & 0x07000700u) << 4; /* bits 14..12 of each half */
    w |= ((lower ^ upper >> 4) & 0x00700070u) >> 4; /* 2..0 */
#pragma unroll
    for (uint32_t bit = 0x80000000u; bit; bit >>= 8) /* 27, 19, 11, 3 */
        w |= ((lower ^ w >> 4) & bit) >> 4;
    return w;
}

/* True when one of four E4M3 codes is NaN. */
__device__ __forceinline__ bool mxfp8_nan(uint32_t codes)
{
    return __vcmpeq4(codes & 0x7f7f7f7fu, 0x7f7f7f7fu) != 0;
}

/* The exponent byte of the block of 32 codes that begins at `codes`: see layout.h. */
__device__ __forceinline__ uint32_t mxfp8_exponent(const uint8_t *codes, uint32_t scale)
{
    bool bad = scale > 134;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 four = *(const uint4 *)(codes + 16 * i);
        bad |= mxfp8_nan(four.x) || mxfp8_nan(four.y) || mxfp8_nan(four.z) || mxfp8_nan(four.w);
    }
    return bad ? 255 : scale + 120;
}

KERNEL(repack_mxfp8, 256, 4)
{
    const struct nib_gpu_repack *p = at<const struct nib_gpu_repack>(m->repack);
    const uint32_t k = p->k, n = p->n, n0 = p->n0, n1 = p->n1, matrix = p->matrix, units = k / CU_DENSE_UNIT;
    const uint8_t *src = at<const uint8_t>(p->src), *scales = at<const uint8_t>(p->scales);
    uint8_t *dst = at<uint8_t>(p->dst);
    const uint64_t first = (uint64_t)(n0 / CU_TILE) * units * 32;
    const uint64_t end = (uint64_t)CU_DIV_UP(n1, CU_TILE) * units * 32;
    for (uint64_t i = first + blockIdx.x * 256u + threadIdx.x; i < end; i += gridDim.x * 256u) {
        const uint32_t lane = i % 32, unit = (uint32_t)(i / 32 % units), tile = (uint32_t)(i / 32 / units);
        uint8_t *to = dst + i / 32 * CU_MXFP8_BYTES;
        uint32_t of_row[2][4] = {};
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t r = packed_row(matrix, tile, lane / 4 + h * 8);
            const bool there = r < n && r >= n0 && r < n1;
            const uint64_t block = there ? (uint64_t)(r - n0) * units + unit : 0;
            const uint8_t *codes = src + block * NIB_MX_BLOCK;
            const uint32_t exponent = there ? mxfp8_exponent(codes, scales[block]) : 0;
            if (lane % 4 == h)
                to[CU_MXFP8_CODES + lane / 4 * 2 + h] = (uint8_t)exponent;
            if (!there || exponent == 255)
                continue;
            const uint2 mine = *(const uint2 *)(codes + lane % 4 * 8); /* inputs 8t .. 8t+7 */
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                const uint32_t pair = (j < 2 ? mine.x : mine.y) >> (j % 2 * 16);
                of_row[h][j] = mxfp8_place(pair & 0xff) | mxfp8_place(pair >> 8 & 0xff) << 16;
            }
        }
        *(uint4 *)(to + lane * 16) = make_uint4(mxfp8_word(of_row[0][0], of_row[1][0]), mxfp8_word(of_row[0][1], of_row[1][1]),
                                                mxfp8_word(of_row[0][2], of_row[1][2]), mxfp8_word(of_row[0][3], of_row[1][3]));
    }
}

/* One E2M1 code in a half of a fragment register, as mx_fragment leaves it. */
__device__ __forceinline__ uint32_t mx_place(uint32_t code)
{
    return (code & 8) << 12 | (code & 7) << 9;
}

/* The word that mx_fragment makes these registers of: bit by bit, from those that a register shows as they are to those that are shown as the xor with
 * one known. */
__device__ __forceinline__ uint32_t mx_word(const uint32_t a[4])
{
    uint32_t w = a[0] >> 6 | a[1] >> 9;         /* bits 9, 6..0 of each half */
    w |= (a[2] ^ w >> 3) & 0x80008000u;         /* 15 */
    w |= (a[3] ^ w << 2) & 0x08000800u;         /* 11 */
    w |= ((a[3] ^ w) & 0x82008200u) >> 2;       /* 13, 7 */
    w |= ((a[2] ^ w) & 0x0a000a00u) << 3;       /* 14, 12 */
    w |= (a[2] ^ w >> 3) & 0x04000400u;         /* 10 */
    return w | ((a[3] ^ w) & 0x04000400u) >> 2; /* 8 */
}

#if NIB_SM >= 90
/* The reference of a row of `blocks` blocks (arch/cuda/layout.h), by one warp. */
__device__ __forceinline__ uint32_t mx_reference(const uint32_t *codes, const uint8_t *scales, uint32_t blocks)
{
    uint32_t most = 0, least = 255, bad = 0;
    for (uint32_t b = threadIdx.x % 32; b < blocks; b += 32) {
        const uint32_t *four = codes + b * 4, scale = scales[b];
        bad |= scale == 255;
        if (((four[0] | four[1] | four[2] | four[3]) & 0x77777777u) == 0)
            continue; /* zeros, whatever the scale */
        most = max(most, scale);
        least = min(least, scale);
    }
    most = __reduce_max_sync(~0u, most);
    least = __reduce_min_sync(~0u, least);
    if (__any_sync(~0u, bad))
        return 0;
    if (most < least)
        return 127; /* all zeros */
    return most - least <= CU_MX_SPREAD && most >= CU_MX_REF_MIN && most <= CU_MX_REF_MAX ? most : 0;
}

__device__ __forceinline__ void mx_references(const struct nib_gpu_repack *p)
{
    const uint32_t n = p->n, n0 = p->n0, n1 = p->n1, blocks = p->k / NIB_MX_BLOCK, warps = gridDim.x * 8;
    const uint8_t *src = at<const uint8_t>(p->src), *scales = at<const uint8_t>(p->scales);
    uint8_t *dst = at<uint8_t>(p->dst, cu_mx_refs_at(n, p->k));
    for (uint32_t i = n0 + blockIdx.x * 8 + threadIdx.x / 32; i < CU_DIV_UP(n1, CU_TILE) * CU_TILE; i += warps) {
        const uint32_t r = packed_row(p->matrix, i / CU_TILE, i % CU_TILE);
        const uint64_t block = (uint64_t)(r - n0) * blocks;
        const uint32_t ref = r < n ? mx_reference((const uint32_t *)(src + block * 16), scales + block, blocks) : 127;
        if (threadIdx.x % 32 == 0)
            dst[i] = (uint8_t)ref;
    }
}
#endif

KERNEL(repack_mx, 256, 4)
{
    const struct nib_gpu_repack *p = at<const struct nib_gpu_repack>(m->repack);
    const uint32_t k = p->k, n = p->n, n0 = p->n0, n1 = p->n1, matrix = p->matrix;
    const uint32_t units = cu_mx_units(k), blocks = k / NIB_MX_BLOCK;
    const uint8_t *src = at<const uint8_t>(p->src), *scales = at<const uint8_t>(p->scales);
    uint8_t *dst = at<uint8_t>(p->dst);
    const uint64_t first = (uint64_t)(n0 / CU_TILE) * units * 32;
    const uint64_t end = (uint64_t)CU_DIV_UP(n1, CU_TILE) * units * 32;
    for (uint64_t i = first + blockIdx.x * 256u + threadIdx.x; i < end; i += gridDim.x * 256u) {
        const uint32_t lane = i % 32, unit = (uint32_t)(i / 32 % units), tile = (uint32_t)(i / 32 / units);
        uint32_t a[4][4] = {}; /* of each word the fragment registers */
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t r = packed_row(matrix, tile, lane / 4 + h * 8);
            if (r >= n || r < n0 || r >= n1)
                continue;
#pragma unroll
            for (uint32_t b = 0; b < 2; b++) { /* blocks of 32 inputs */
                if (unit * 2 + b >= blocks)
                    continue;
                /* inputs 8t .. 8t+7: four bytes, the even input in the low half of each */
                const uint32_t in = *(const uint32_t *)(src + ((uint64_t)(r - n0) * blocks + unit * 2 + b) * 16 + lane % 4 * 4);
#pragma unroll
                for (uint32_t j = 0; j < 2; j++)
#pragma unroll
                    for (uint32_t c = 0; c < 2; c++) { /* register h (inputs +0, +1), h + 2 (inputs +2, +3) */
                        const uint32_t byte = in >> (16 * j + 8 * c) & 0xff;
                        a[b * 2 + j][h + 2 * c] = mx_place(byte & 15) | mx_place(byte >> 4) << 16;
                    }
            }
        }
        uint8_t *to = dst + i / 32 * CU_MX_BYTES;
        *(uint4 *)(to + lane * 16) = make_uint4(mx_word(a[0]), mx_word(a[1]), mx_word(a[2]), mx_word(a[3]));
        /* the lane's own scale: row g or g + 8 by t / 2, block by t % 2; its four lanes have the word */
        const uint32_t r = packed_row(matrix, tile, lane / 4 + lane % 4 / 2 * 8), block = unit * 2 + lane % 2;
        const bool there = r < n && r >= n0 && r < n1 && block < blocks;
        uint32_t four = there ? (uint32_t)scales[(uint64_t)(r - n0) * blocks + block] << lane % 4 * 8 : 0;
        four |= __shfl_xor_sync(~0u, four, 1);
        four |= __shfl_xor_sync(~0u, four, 2);
        if (lane % 4 == 0)
            *(uint32_t *)(to + CU_MX_CODES + lane) = __funnelshift_r(four, four, 1);
    }
#if NIB_SM >= 90
    mx_references(p);
#endif
}
