/* core/mx_nf4.c: owns NF4 and the double quantisation of its scales.
 * Any thread. Cannot fail; inputs are finite. */
#include "core/mx.h"

#include <math.h>

/* The 16 quantiles (QLoRA, arXiv:2305.14314, appendix E), as fp32. */
const float nib_nf4_values[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

/* The positive values of the dynamic map, ascending, without the last, 1: level i of 0..6 holds the
 * 2^i midpoints of 2^i + 1 even steps over [0.1, 1], times 10^(i - 6). Computed in fp32 by
 * tests/vectors/mx_full.py. */
static const float map_positive[127] = {
    0x1.27476ep-21f, 0x1.b43528p-19f, 0x1.040bfep-17f, 0x1.64840cp-16f, 0x1.6f0068p-15f, 0x1.15df66p-14f,
    0x1.743e96p-14f, 0x1.47ae16p-13f, 0x1.19ce0ap-12f, 0x1.8fc506p-12f, 0x1.02de02p-11f, 0x1.3dd982p-11f,
    0x1.78d5p-11f,   0x1.b3d07cp-11f, 0x1.eecbfep-11f, 0x1.4fdf3ap-10f, 0x1.e353f8p-10f, 0x1.3b645ap-9f,
    0x1.851eb8p-9f,  0x1.ced914p-9f,  0x1.0c49bap-8f,  0x1.3126e8p-8f,  0x1.56041ap-8f,  0x1.7ae148p-8f,
    0x1.9fbe76p-8f,  0x1.c49ba6p-8f,  0x1.e978d4p-8f,  0x1.072b02p-7f,  0x1.19999ap-7f,  0x1.2c083p-7f,
    0x1.3e76c8p-7f,  0x1.75c29p-7f,   0x1.d1eb86p-7f,  0x1.170a3ep-6f,  0x1.451ebap-6f,  0x1.733334p-6f,
    0x1.a147aep-6f,  0x1.cf5c2ap-6f,  0x1.fd70a4p-6f,  0x1.15c29p-5f,   0x1.2ccccep-5f,  0x1.43d70ap-5f,
    0x1.5ae146p-5f,  0x1.71eb86p-5f,  0x1.88f5c2p-5f,  0x1.ap-5f,       0x1.b70a3ep-5f,  0x1.ce147ap-5f,
    0x1.e51ebap-5f,  0x1.fc28f6p-5f,  0x1.09999ap-4f,  0x1.151ebap-4f,  0x1.20a3d6p-4f,  0x1.2c28f6p-4f,
    0x1.37ae14p-4f,  0x1.433334p-4f,  0x1.4eb854p-4f,  0x1.5a3d7p-4f,   0x1.65c29p-4f,   0x1.7147aep-4f,
    0x1.7ccccep-4f,  0x1.8851eep-4f,  0x1.93d70ap-4f,  0x1.b66668p-4f,  0x1.fp-4f,       0x1.14ccccp-3f,
    0x1.31999ap-3f,  0x1.4e6666p-3f,  0x1.6b3334p-3f,  0x1.88p-3f,      0x1.a4ccccp-3f,  0x1.c1999ap-3f,
    0x1.de6666p-3f,  0x1.fb3332p-3f,  0x1.0cp-2f,      0x1.1a6668p-2f,  0x1.28ccccp-2f,  0x1.373334p-2f,
    0x1.459998p-2f,  0x1.54p-2f,      0x1.626666p-2f,  0x1.70ccccp-2f,  0x1.7f3334p-2f,  0x1.8d9998p-2f,
    0x1.9cp-2f,      0x1.aa6666p-2f,  0x1.b8ccccp-2f,  0x1.c73334p-2f,  0x1.d59998p-2f,  0x1.e4p-2f,
    0x1.f26664p-2f,  0x1.006666p-1f,  0x1.079998p-1f,  0x1.0eccccp-1f,  0x1.16p-1f,      0x1.1d3334p-1f,
    0x1.246668p-1f,  0x1.2b999ap-1f,  0x1.32ccccp-1f,  0x1.3ap-1f,      0x1.413334p-1f,  0x1.486668p-1f,
    0x1.4f999ap-1f,  0x1.56ccccp-1f,  0x1.5ep-1f,      0x1.653334p-1f,  0x1.6c6668p-1f,  0x1.73999ap-1f,
    0x1.7accccp-1f,  0x1.82p-1f,      0x1.893334p-1f,  0x1.906666p-1f,  0x1.97999ap-1f,  0x1.9eccccp-1f,
    0x1.a6p-1f,      0x1.ad3334p-1f,  0x1.b46666p-1f,  0x1.bb999ap-1f,  0x1.c2ccccp-1f,  0x1.cap-1f,
    0x1.d13334p-1f,  0x1.d86666p-1f,  0x1.df999ap-1f,  0x1.e6ccccp-1f,  0x1.eep-1f,      0x1.f53334p-1f,
    0x1.fc6666p-1f,
};

/* Index of the value nearest to x in an ascending table; the lower one at a midpoint. */
static uint8_t nearest(float x, float (*value)(uint8_t code), int count)
{
    int low = 0;
    int high = count - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        double edge = ((double)value((uint8_t)middle) + (double)value((uint8_t)(middle + 1))) / 2;
        if ((double)x > edge)
            low = middle + 1;
        else
            high = middle;
    }
    return (uint8_t)low;
}

static float quantile(uint8_t code)
{
    return nib_nf4_values[code];
}

void nib_nf4_decode(float absmax, const uint8_t codes[32], float ret_x[64])
{
    for (int i = 0; i < 32; i++) {
        ret_x[2 * i] = nib_nf4_values[codes[i] >> 4] * absmax;
        ret_x[2 * i + 1] = nib_nf4_values[codes[i] & 15] * absmax;
    }
}

void nib_nf4_encode(const float x[64], float *ret_absmax, uint8_t ret_codes[32])
{
    float absmax = 0.0f;
    for (int i = 0; i < NIB_NF4_BLOCK; i++)
        absmax = fmaxf(absmax, fabsf(x[i]));
    for (int i = 0; i < 32; i++) {
        float even = absmax == 0.0f ? 0.0f : x[2 * i] / absmax;
        float odd = absmax == 0.0f ? 0.0f : x[2 * i + 1] / absmax;
        ret_codes[i] = (uint8_t)(nearest(even, quantile, 16) << 4 | nearest(odd, quantile, 16));
    }
    *ret_absmax = absmax;
}

float nib_nf4_map_value(uint8_t code)
{
    if (code == 255)
        return 1.0f;
    if (code == 127)
        return 0.0f;
    return code > 127 ? map_positive[code - 128] : -map_positive[126 - code];
}

void nib_nf4_scales_decode(float offset, float group_scale, const uint8_t *codes, size_t count, float *ret_absmax)
{
    for (size_t i = 0; i < count; i++)
        ret_absmax[i] = nib_nf4_map_value(codes[i]) * group_scale + offset;
}

void nib_nf4_scales_encode(const float *absmax, size_t count, float offset, float *ret_group_scale, uint8_t *ret_codes)
{
    float scale = 0.0f;
    for (size_t i = 0; i < count; i++)
        scale = fmaxf(scale, fabsf(absmax[i] - offset));
    for (size_t i = 0; i < count; i++)
        ret_codes[i] = nearest(scale == 0.0f ? 0.0f : (absmax[i] - offset) / scale, nib_nf4_map_value, 256);
    *ret_group_scale = scale;
}
