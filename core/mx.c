/* core/mx.c: owns the element formats: bf16, fp16, E2M1, E8M0, E4M3.
 * Works on the bits of an fp32, so results do not depend on the rounding mode or the compiler. Any
 * thread. Cannot fail. */
#include "core/mx.h"

#include <math.h>

#define F32_SIGN 0x80000000u
#define F32_INF  0x7f800000u

const float nib_e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

/* value / 2^shift to the nearest integer, ties to even; shift 1..31. */
static uint32_t shift_round_even(uint32_t value, uint32_t shift)
{
    uint32_t quotient = value >> shift;
    uint32_t rest = value & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    if (rest > half || (rest == half && (quotient & 1)))
        quotient++;
    return quotient;
}

uint16_t nib_bf16_encode(float x)
{
    uint32_t bits = nib_f32_bits(x);
    if ((bits & ~F32_SIGN) > F32_INF)
        return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float nib_fp16_decode(uint16_t code)
{
    uint32_t sign = (uint32_t)(code & 0x8000) << 16;
    uint32_t exponent = (code >> 10) & 31;
    uint32_t mantissa = code & 0x3ff;
    if (exponent == 31)
        return nib_f32_from_bits(sign | F32_INF | mantissa << 13);
    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f;
        return nib_f32_from_bits(sign | nib_f32_bits(magnitude));
    }
    return nib_f32_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

/* The magnitude bits of x as sign-less code with `mantissa_bits` below an exponent of that bias;
 * what rounds past the largest exponent just counts on, and the caller sees it. */
static uint32_t encode_magnitude(uint32_t magnitude, uint32_t mantissa_bits, uint32_t bias)
{
    uint32_t exponent = magnitude >> 23;
    uint32_t drop = 23 - mantissa_bits;
    uint32_t lowest = 127 - bias + 1; /* fp32 exponent of the smallest normal code */
    if (exponent >= lowest)
        return shift_round_even(magnitude - ((127 - bias) << 23), drop);
    uint32_t shift = drop + (lowest - exponent);
    if (exponent == 0 || shift > 24)
        return 0; /* less than half of the smallest code */
    return shift_round_even((magnitude & 0x7fffff) | 0x800000, shift);
}

uint16_t nib_fp16_encode(float x)
{
    uint32_t bits = nib_f32_bits(x);
    uint32_t sign = (bits >> 16) & 0x8000;
    uint32_t magnitude = bits & ~F32_SIGN;
    if (magnitude > F32_INF)
        return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    uint32_t code = encode_magnitude(magnitude, 10, 15);
    return (uint16_t)(sign | (code > 0x7c00 ? 0x7c00 : code));
}

uint8_t nib_e2m1_encode(float x)
{
    uint32_t bits = nib_f32_bits(x);
    uint32_t sign = bits >> 28 & 8;
    uint32_t magnitude = bits & ~F32_SIGN;
    if (magnitude > F32_INF)
        return (uint8_t)sign;
    uint32_t code = encode_magnitude(magnitude, 1, 1);
    return (uint8_t)(sign | (code > 7 ? 7 : code));
}

uint8_t nib_e4m3_encode(float x)
{
    uint32_t bits = nib_f32_bits(x);
    uint32_t sign = bits >> 24 & 0x80;
    uint32_t magnitude = bits & ~F32_SIGN;
    if (magnitude > F32_INF)
        return (uint8_t)(sign | 0x7f);
    uint32_t code = encode_magnitude(magnitude, 3, 7);
    return (uint8_t)(sign | (code > 0x7e ? 0x7e : code));
}

float nib_e4m3_decode(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80) << 24;
    uint32_t exponent = (code >> 3) & 15;
    uint32_t mantissa = code & 7;
    if ((code & 0x7f) == 0x7f)
        return nib_f32_from_bits(sign | 0x7fc00000u);
    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-9f;
        return nib_f32_from_bits(sign | nib_f32_bits(magnitude));
    }
    return nib_f32_from_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

float nib_e8m0_decode(uint8_t code)
{
    if (code == 255)
        return nib_f32_from_bits(0x7fc00000u);
    if (code == 0)
        return 0x1p-127f; /* below the normal numbers of fp32, but exact */
    return nib_f32_from_bits((uint32_t)code << 23);
}

uint8_t nib_e8m0_encode(float x)
{
    uint32_t bits = nib_f32_bits(x);
    if (bits == 0 || bits >= F32_INF)
        return 255;
    if (bits < 0x00600000u) /* below 1.5 x 2^-127 */
        return 0;
    uint32_t code = (bits + 0x400000u) >> 23;
    return (uint8_t)(code > 254 ? 254 : code);
}
