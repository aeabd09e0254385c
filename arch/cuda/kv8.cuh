/* arch/cuda/kv8.cuh: keys and values in FP8 (kv_new of arch/gpu_abi.h): where they lie in a page, eight codes to bf16, and the op that
 * encodes those of a step. A part is the keys of a head, or, kv_heads further, its values. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/cuda/weights.cuh"

#define KV8_PART_BYTES  (NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM) /* codes */
#define KV8_PART_SCALES (NIB_KV_PAGE_TOKENS * 2)
#define KV8_SCALE_MIN   7 /* NIB_KV8_SCALE_MIN of core/mx.h, and so on */
#define KV8_SCALE_MAX   134

/* Eight dims of a token: codes and their scale, from the second-level cache, since the first may hold what was there before. */
struct kv8_chunk {
    uint2 codes;
    uint32_t scale;

    __device__ __forceinline__ void ask(const uint8_t *page, uint32_t kv_heads, uint32_t part, uint32_t token, uint32_t chunk)
    {
        const uint8_t *scales = page + (uint64_t)kv_heads * 2 * KV8_PART_BYTES + part * KV8_PART_SCALES;
        codes = __ldcg((const uint2 *)(page + (uint64_t)part * KV8_PART_BYTES + token * NIB_HEAD_DIM) + chunk);
        scale = __ldcg(scales + token * 2 + chunk / 4);
    }

    /* As bf16, exactly. A code's bits in the place of a bf16's are its value times 2^-120, subnormals too; the multiplication takes
     * that back together with the scale. Scales that no encoder gives are NaN. */
    __device__ __forceinline__ uint4 wide() const
    {
        const uint32_t factor = (scale <= KV8_SCALE_MAX ? (scale + 120) << 7 : 0x7fffu) * 0x10001u;
        const uint32_t pair[4] = {__byte_perm(codes.x, 0, 0x1404), __byte_perm(codes.x, 0, 0x3424),
                                  __byte_perm(codes.y, 0, 0x1404), __byte_perm(codes.y, 0, 0x3424)};
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[i] = mul_bf16x2((pair[i] & 0x80008000u) | (pair[i] >> 4 & 0x07f007f0u), factor);
        return make_uint4(w[0], w[1], w[2], w[3]);
    }
};

/* A finite number, divided by its scale, to E4M3: to nearest, ties to even; 448 at most. */
__device__ __forceinline__ uint32_t kv8_code(float x)
{
    const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffffu;
    if (magnitude < 0x3c800000u) /* below 2^-6: multiples of 2^-9 */
        return sign | (uint32_t)__float2int_rn(fabsf(x) * 512.0f);
    const uint32_t code = ((magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20) - (120 << 3);
    return sign | min(code, 0x7eu);
}

/* The code of the scale of a block, from the bits of its largest magnitude: nib_kv8_encode of core/mx.h. */
__device__ __forceinline__ uint32_t kv8_scale(uint32_t most)
{
    const int exponent = (int)((most + 0x1fffffu) >> 23) - 8;
    return most >= 0x7f800000u ? 255 : (uint32_t)min(max(exponent, KV8_SCALE_MIN), KV8_SCALE_MAX);
}

/* Grid: x rows of the step. A warp takes a part, a lane two dims. */
KERNEL(kv_fp8, CU_KV8_THREADS, 1)
{
    const struct nib_gpu_step *step = step_of(m);
    overlap_next();
    overlap_wait();
    const uint32_t row = blockIdx.x, lane = threadIdx.x % 32, parts = 2 * m->kv_heads;
    if (row >= step->rows_count)
        return;
    const struct nib_row r = step->rows[row];
    const uint32_t token = r.pos % NIB_KV_PAGE_TOKENS;
    uint8_t *page = at<uint8_t>(m->layer[layer].kv, page_at(m, layer, r.slot, r.pos / NIB_KV_PAGE_TOKENS, NIB_GPU_KV_FP8));
    for (uint32_t part = threadIdx.x / 32; part < parts; part += CU_KV8_THREADS / 32) {
        const uint32_t pair = at<const uint32_t>(m->kv_new)[((uint64_t)row * parts + part) * (NIB_HEAD_DIM / 2) + lane];
        const float a = __uint_as_float(pair << 16), b = __uint_as_float(pair & 0xffff0000u);
        uint32_t most = max(__float_as_uint(a) & 0x7fffffffu, __float_as_uint(b) & 0x7fffffffu);
#pragma unroll
        for (int d = 8; d > 0; d /= 2)
            most = max(most, __shfl_xor_sync(~0u, most, d));
        const uint32_t scale = kv8_scale(most);
        const float inverse = __uint_as_float((254 - scale) << 23);
        const uint32_t codes = scale == 255 ? 0x7f7f : kv8_code(a * inverse) | kv8_code(b * inverse) << 8;
        ((uint16_t *)(page + (uint64_t)part * KV8_PART_BYTES + token * NIB_HEAD_DIM))[lane] = (uint16_t)codes;
        if (lane % 16 == 0)
            page[(uint64_t)parts * KV8_PART_BYTES + part * KV8_PART_SCALES + token * 2 + lane / 16] = (uint8_t)scale;
    }
}
