/* arch/x86/kv.c: owns the storing of keys and values (kv.h). Any thread; cannot fail. */
#include "arch/x86/kv.h"

#include <string.h>

#include "core/mx.h"

/* fp32 to bf16, nearest even; a NaN stays one. */
static inline uint16_t bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

uint64_t nib_x86_kv_page_bytes(uint32_t kv_heads)
{
    return (uint64_t)kv_heads * 2 * NIB_KV_HALF_BYTES;
}

void nib_x86_kv_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    for (uint32_t h = 0; h < kv_heads; h++, k += NIB_HEAD_DIM, v += NIB_HEAD_DIM) {
        uint8_t *keys = (uint8_t *)page + (uint64_t)h * 2 * NIB_KV_HALF_BYTES, *values = keys + NIB_KV_HALF_BYTES;
        uint16_t code[NIB_HEAD_DIM];
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
            code[d] = bf16(k[d]);
        for (uint32_t p = 0; p < NIB_HEAD_DIM / 2; p++)
            memcpy(keys + p * NIB_KV_LINE_BYTES + token * 4, code + 2 * p, 4);
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
            code[d] = bf16(v[d]);
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
            memcpy(values + token / 2 * NIB_KV_LINE_BYTES + d * 4 + token % 2 * 2, code + d, 2);
    }
}

uint64_t nib_x86_kv8_page_bytes(uint32_t kv_heads)
{
    return (uint64_t)kv_heads * NIB_KV8_HEAD_BYTES;
}

/* Codes of one head of a token, and its scales to their places. */
static void encode(const float x[NIB_HEAD_DIM], uint8_t *scales, uint32_t token, uint8_t ret_codes[NIB_HEAD_DIM])
{
    for (uint32_t half = 0; half < NIB_HEAD_DIM / NIB_MX_BLOCK; half++)
        nib_kv8_encode(x + half * NIB_MX_BLOCK, scales + half * NIB_KV_PAGE_TOKENS + token,
                       ret_codes + half * NIB_MX_BLOCK);
}

void nib_x86_kv8_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    for (uint32_t h = 0; h < kv_heads; h++, k += NIB_HEAD_DIM, v += NIB_HEAD_DIM) {
        uint8_t *keys = (uint8_t *)page + (uint64_t)h * NIB_KV8_HEAD_BYTES, *values = keys + NIB_KV8_HALF_BYTES;
        uint8_t *scales = keys + NIB_KV8_SCALES_AT;
        uint8_t code[NIB_HEAD_DIM];
        encode(k, scales, token, code);
        for (uint32_t p = 0; p < NIB_HEAD_DIM / 2; p++)
            memcpy(keys + p * NIB_KV8_LINE_BYTES + token * 2, code + 2 * p, 2);
        encode(v, scales + NIB_KV8_SCALES_BYTES, token, code);
        for (uint32_t d = 0; d < NIB_HEAD_DIM; d++)
            values[token / 2 * NIB_KV8_LINE_BYTES + d * 2 + token % 2] = code[d];
    }
}
