/* core/mx.h: the number formats of weights: decode, and encode with round-to-nearest-even.
 *
 * Sources: OCP Microscaling Formats (MX) 1.0 for E2M1, E8M0 and the MX blocks; OCP 8-bit Floating
 * Point (OFP8) 1.0 for E4M3; IEEE 754 for fp16; NVIDIA's NVFP4 description; the QLoRA paper
 * (arXiv:2305.14314) and bitsandbytes for NF4; GGUF for Q8_0. Pure functions over caller memory;
 * any thread; none can fail. Every decode is exact in fp32, but for what fp32 cannot hold: an MXFP4
 * weight of 2^128 or more (scale codes 253 and 254) becomes infinity. Codes are the low bits of their
 * integer; other bits must be zero. */
#ifndef NIB_CORE_MX_H
#define NIB_CORE_MX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/model.h"

#define NIB_NVFP4_BLOCK       16  /* elements that share one E4M3 scale */
#define NIB_NF4_BLOCK         64  /* elements that share one absmax */
#define NIB_NF4_GROUP         256 /* absmax values that share one fp32 scale (double quantisation) */
#define NIB_Q8_0_BLOCK        32  /* elements that share one fp16 scale */
#define NIB_MXFP4_BLOCK_BYTES (NIB_MX_BLOCK / 2)

static inline uint32_t nib_f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float nib_f32_from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* bf16: the upper half of an fp32. Encoding overflows to infinity; a NaN stays a NaN, made quiet.
 */
static inline float nib_bf16_decode(uint16_t code)
{
    return nib_f32_from_bits((uint32_t)code << 16);
}
uint16_t nib_bf16_encode(float x);

/* IEEE binary16. Encoding overflows to infinity; a NaN stays a NaN, made quiet. */
float nib_fp16_decode(uint16_t code);
uint16_t nib_fp16_encode(float x);

/* E2M1: sign, then 0 .5 1 1.5 2 3 4 6. No infinity and no NaN: encoding saturates to +-6 and makes
 * a NaN a zero of its sign (MX 1.0 leaves that open; a block encode never meets one). */
extern const float nib_e2m1_values[16];
static inline float nib_e2m1_decode(uint8_t code)
{
    return nib_e2m1_values[code & 15];
}
uint8_t nib_e2m1_encode(float x);

/* E8M0: 2^(code - 127); 255 is NaN. Encoding rounds to the nearest power of two (ties to the
 * larger), saturates to 2^-127 and 2^127;
 * what has no logarithm (zero, negative, infinite, NaN) becomes NaN. */
float nib_e8m0_decode(uint8_t code);
uint8_t nib_e8m0_encode(float x);

/* E4M3 of OFP8: no infinity, NaN is 0x7f and 0xff, largest 448. Encoding saturates, infinity
 * included. */
float nib_e4m3_decode(uint8_t code);
uint8_t nib_e4m3_encode(float x);

/* MXFP4: 32 elements of E2M1, low nibble even element, high nibble odd, and one E8M0 scale.
 * MXFP8: 32 elements of E4M3 and one E8M0 scale.
 * Encoding follows MX 1.0 section 6.3: scale 2^(floor(log2 max) - emax) (emax 2 and 8), elements x
 * / scale rounded and saturated. All zero gives scale code 0; a NaN or infinity in the block gives
 * scale 255, which makes all of it NaN. */
void nib_mxfp4_decode(uint8_t scale, const uint8_t codes[16], float ret_x[32]);
void nib_mxfp4_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[16]);
void nib_mxfp8_decode(uint8_t scale, const uint8_t codes[32], float ret_x[32]);
void nib_mxfp8_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[32]);

/* A block as bf16: exact for scale codes 3 to 246, which every block of bf16 numbers of at least 2^-116 gets; below it may
 * round, above it may overflow. */
void nib_mxfp8_decode_bf16(uint8_t scale, const uint8_t codes[32], uint16_t ret_x[32]);

/* Keys and values in FP8 (NIB_KV_FP8): a block of 32 elements of E4M3 and one E8M0 scale, as MXFP8, which nib_mxfp8_decode
 * decodes; only the scale is chosen otherwise. It is the smallest power of two that max|x| / scale <= 448, so that the largest
 * element is not cut off as in MXFP8, and it is kept within 2^-120 and 2^7, so that every value is exact as bf16, a
 * product of two bf16 numbers: x above 57,344 saturates there. Elements are rounded to bf16 first, on
 * every row: kernels hand keys and values on so. A NaN or an infinity among them gives scale 255, which makes all of it NaN. */
#define NIB_KV8_SCALE_MIN 7
#define NIB_KV8_SCALE_MAX 134
void nib_kv8_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[32]);

/* NVFP4: value = E2M1 * block scale (E4M3) * tensor scale (fp32). The tensor scale is max|x| / (6 *
 * 448), or 1 for a tensor of zeros; a block's scale is max|block| / 6 / tensor scale, rounded to
 * E4M3. x is finite. */
float nib_nvfp4_tensor_scale(const float *x, size_t count);
void nib_nvfp4_decode(float tensor_scale, uint8_t scale, const uint8_t codes[8], float ret_x[16]);
void nib_nvfp4_encode(const float x[16], float tensor_scale, uint8_t *ret_scale, uint8_t ret_codes[8]);

/* NF4: value = quantile[code] * absmax of the block of 64; in a byte the HIGH nibble is the even
 * element (bitsandbytes' order). Encoding takes the nearest quantile, the lower one at a midpoint.
 * A block of zeros has absmax 0. x is finite. */
extern const float nib_nf4_values[16];
void nib_nf4_decode(float absmax, const uint8_t codes[32], float ret_x[64]);
void nib_nf4_encode(const float x[64], float *ret_absmax, uint8_t ret_codes[32]);

/* Double quantisation of NF4's absmax values: absmax = map[code] * group_scale + offset, where
 * offset is the mean over the tensor, group_scale is max|absmax - offset| of the group (up to 256
 * values), and map is the signed 8-bit dynamic map of bitsandbytes (7 exponent levels, powers of
 * ten). */
float nib_nf4_map_value(uint8_t code);
void nib_nf4_scales_decode(float offset, float group_scale, const uint8_t *codes, size_t count, float *ret_absmax);
void nib_nf4_scales_encode(const float *absmax, size_t count, float offset, float *ret_group_scale, uint8_t *ret_codes);

/* Q8_0: value = int8 * fp16 scale. Encoding as GGUF does: scale max|x| / 127, elements rounded half
 * away from zero with the scale before its rounding to fp16. x is finite. */
void nib_q8_0_decode(uint16_t scale, const int8_t codes[32], float ret_x[32]);
void nib_q8_0_encode(const float x[32], uint16_t *ret_scale, int8_t ret_codes[32]);

#endif
