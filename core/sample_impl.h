/* core/sample_impl.h: the parts of one draw, shared by core/sample*.c. Not a contract; nobody else
 * includes it. Formulas: core/sample.h. */
#ifndef NIB_CORE_SAMPLE_IMPL_H
#define NIB_CORE_SAMPLE_IMPL_H

#include <math.h>
#include <string.h>

#include "core/sample.h"

#define SAMPLE_BLOCK   32 /* ids with one word of the banned bitmap and one maximum */
#define SAMPLE_BUCKETS 2048
#define SAMPLE_MASS    0x1p44f /* weight of the likeliest id */

/* One draw in progress; the arrays are in the caller's scratch. */
struct sample_work {
    uint32_t blocks;
    float *z;         /* [blocks][32]; -inf: takes no part */
    float *e;         /* [blocks][32] 2^44 * exp(d), where asked for */
    float *block_max; /* [blocks] */
    float max;        /* over all z */
    float inv_t;      /* 1 / temperature */
    uint64_t *bucket; /* [SAMPLE_BUCKETS] */
    uint32_t *list;   /* [vocab] ids that truncation kept, ascending */
    uint32_t list_count;
};

/* Floats in order as unsigned integers; -0 must not occur. */
static inline uint32_t sample_key(float z)
{
    uint32_t bits;
    memcpy(&bits, &z, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* exp for x <= 0 by the polynomial of Cephes expf (Moshier): each operation rounds once. The clamp
 * to -80 compares bits, which the compiler can do without a branch. */
static inline float sample_exp(float x)
{
    uint32_t bits, least = 0xc2a00000u; /* -80.0f; below it the bits are larger */
    memcpy(&bits, &x, sizeof bits);
    bits = bits < least ? bits : least;
    memcpy(&x, &bits, sizeof x);
    int32_t n = (int32_t)(x * 1.44269504f - 0.5f);
    float k = (float)n;
    float r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    bits = (uint32_t)(n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* Step 5's d, and w before trunc. */
static inline float sample_d(const struct sample_work *work, float z)
{
    return (z - work->max) * work->inv_t;
}

static inline float sample_e(const struct sample_work *work, float z)
{
    return sample_exp(sample_d(work, z)) * SAMPLE_MASS;
}

/* Fills e for all z; the sum of their weights. inv_t and max must be set. */
uint64_t nib_sample_mass_all(struct sample_work *work);

/* Step 5: fills list and list_count. False: nothing is truncated and the list is not made. */
bool nib_sample_truncate(struct sample_work *work, const struct nib_sampling *sampling);

/* Step 6 over all z, or over the list. */
uint32_t nib_sample_draw_all(const struct sample_work *work, uint64_t seed, uint32_t pos);
uint32_t nib_sample_draw_list(const struct sample_work *work, uint64_t seed, uint32_t pos);

#endif
