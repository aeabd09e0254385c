/* core/mx_block.c: owns the block formats that share one scale: MXFP4, MXFP8, NVFP4, Q8_0.
 * Any thread. Cannot fail; inputs that a format cannot hold are named in mx.h. */
#include "core/mx.h"

#include <float.h>
#include <math.h>

#define E2M1_EMAX 2 /* largest exponent of an element: 6 = 1.5 x 2^2 */
#define E4M3_EMAX 8 /* 448 = 1.75 x 2^8 */
#define E2M1_MAX  6.0f
#define E4M3_MAX  448.0f

/* Largest magnitude; NaN or infinity when one is there. */
static float max_magnitude(const float *x, size_t count)
{
    uint32_t max = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = nib_f32_bits(x[i]) & 0x7fffffffu;
        if (magnitude > max)
            max = magnitude;
    }
    return nib_f32_from_bits(max);
}

/* MX 1.0, 6.3: the largest power of two in max, divided by the largest power of two of the element.
 */
static uint8_t mx_scale(const float x[NIB_MX_BLOCK], int emax)
{
    float max = max_magnitude(x, NIB_MX_BLOCK);
    if (!isfinite(max))
        return 255;
    if (max == 0.0f)
        return 0;
    int exponent;
    (void)frexpf(max, &exponent); /* max = 0.5..1 x 2^exponent */
    int code = exponent - 1 - emax + 127;
    return (uint8_t)(code < 0 ? 0 : code);
}

/* x / 2^(code - 127); exact but for underflow far below the smallest element. */
static float mx_unscale(float x, uint8_t code)
{
    return ldexpf(x, 127 - (int)code);
}

void nib_mxfp4_decode(uint8_t scale, const uint8_t codes[16], float ret_x[32])
{
    float s = nib_e8m0_decode(scale);
    for (int i = 0; i < 16; i++) {
        ret_x[2 * i] = nib_e2m1_decode(codes[i] & 15) * s;
        ret_x[2 * i + 1] = nib_e2m1_decode(codes[i] >> 4) * s;
    }
}

void nib_mxfp4_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[16])
{
    uint8_t scale = mx_scale(x, E2M1_EMAX);
    for (int i = 0; i < 16; i++) {
        uint8_t low = nib_e2m1_encode(mx_unscale(x[2 * i], scale));
        uint8_t high = nib_e2m1_encode(mx_unscale(x[2 * i + 1], scale));
        ret_codes[i] = (uint8_t)(low | high << 4);
    }
    *ret_scale = scale;
}

void nib_mxfp8_decode(uint8_t scale, const uint8_t codes[32], float ret_x[32])
{
    float s = nib_e8m0_decode(scale);
    for (int i = 0; i < 32; i++)
        ret_x[i] = nib_e4m3_decode(codes[i]) * s;
}

void nib_mxfp8_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[32])
{
    uint8_t scale = mx_scale(x, E4M3_EMAX);
    for (int i = 0; i < 32; i++)
        ret_codes[i] = nib_e4m3_encode(mx_unscale(x[i], scale));
    *ret_scale = scale;
}

void nib_mxfp8_decode_bf16(uint8_t scale, const uint8_t codes[32], uint16_t ret_x[32])
{
    float x[NIB_MX_BLOCK];
    nib_mxfp8_decode(scale, codes, x);
    for (int i = 0; i < NIB_MX_BLOCK; i++)
        ret_x[i] = nib_bf16_encode(x[i]);
}

void nib_kv8_encode(const float x[32], uint8_t *ret_scale, uint8_t ret_codes[32])
{
    float narrow[NIB_MX_BLOCK];
    for (int i = 0; i < NIB_MX_BLOCK; i++)
        narrow[i] = nib_bf16_decode(nib_bf16_encode(x[i]));
    const uint32_t max = nib_f32_bits(max_magnitude(narrow, NIB_MX_BLOCK));
    if (max >= 0x7f800000u) {
        *ret_scale = 255;
        memset(ret_codes, 0x7f, NIB_MX_BLOCK);
        return;
    }
    const int exponent = (int)((max + 0x1fffffu) >> 23); /* one more above 1.75 x 2^n */
    int scale = exponent - E4M3_EMAX;
    scale = scale < NIB_KV8_SCALE_MIN ? NIB_KV8_SCALE_MIN : scale > NIB_KV8_SCALE_MAX ? NIB_KV8_SCALE_MAX : scale;
    const float inverse = nib_e8m0_decode((uint8_t)(254 - scale));
    for (int i = 0; i < NIB_MX_BLOCK; i++)
        ret_codes[i] = nib_e4m3_encode(narrow[i] * inverse);
    *ret_scale = (uint8_t)scale;
}

float nib_nvfp4_tensor_scale(const float *x, size_t count)
{
    float max = max_magnitude(x, count);
    return max == 0.0f ? 1.0f : fmaxf(max / (E2M1_MAX * E4M3_MAX), FLT_MIN);
}

void nib_nvfp4_decode(float tensor_scale, uint8_t scale, const uint8_t codes[8], float ret_x[16])
{
    float s = nib_e4m3_decode(scale) * tensor_scale;
    for (int i = 0; i < 8; i++) {
        ret_x[2 * i] = nib_e2m1_decode(codes[i] & 15) * s;
        ret_x[2 * i + 1] = nib_e2m1_decode(codes[i] >> 4) * s;
    }
}

void nib_nvfp4_encode(const float x[16], float tensor_scale, uint8_t *ret_scale, uint8_t ret_codes[8])
{
    float max = max_magnitude(x, NIB_NVFP4_BLOCK);
    uint8_t scale = nib_e4m3_encode(max / E2M1_MAX / tensor_scale);
    float s = nib_e4m3_decode(scale) * tensor_scale;
    for (int i = 0; i < 8; i++) {
        uint8_t low = s == 0.0f ? 0 : nib_e2m1_encode(x[2 * i] / s);
        uint8_t high = s == 0.0f ? 0 : nib_e2m1_encode(x[2 * i + 1] / s);
        ret_codes[i] = (uint8_t)(low | high << 4);
    }
    *ret_scale = scale;
}

void nib_q8_0_decode(uint16_t scale, const int8_t codes[32], float ret_x[32])
{
    float s = nib_fp16_decode(scale);
    for (int i = 0; i < 32; i++)
        ret_x[i] = (float)codes[i] * s;
}

void nib_q8_0_encode(const float x[32], uint16_t *ret_scale, int8_t ret_codes[32])
{
    float scale = max_magnitude(x, NIB_Q8_0_BLOCK) / 127.0f;
    float inverse = scale < FLT_MIN ? 0.0f : 1.0f / scale; /* so small a scale is 0 in fp16 */
    for (int i = 0; i < 32; i++) {
        float code = roundf(x[i] * inverse);
        ret_codes[i] = (int8_t)fminf(fmaxf(code, -127.0f), 127.0f);
    }
    *ret_scale = nib_fp16_encode(scale);
}
