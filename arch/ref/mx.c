/* arch/ref/mx.c: y = x W^T + b with MXFP4 W [n][k]: blocks of 32 E2M1 elements along k, one E8M0
 * scale each (OCP Microscaling Formats 1.0; core/mx.h decodes). Owns nothing; any thread; cannot
 * fail. */
#include "core/mx.h"

#include <string.h>

#include "arch/ref/ref.h"
#include "core/arith.h"

static const uint8_t *row_blocks(const struct nib_matmul *mm, uint32_t j)
{
    return (const uint8_t *)mm->w + (uint64_t)j * (mm->k / NIB_MX_BLOCK) * NIB_MXFP4_BLOCK_BYTES;
}

static const uint8_t *row_scales(const struct nib_matmul *mm, uint32_t j)
{
    return row_blocks(mm, mm->n) + (uint64_t)j * (mm->k / NIB_MX_BLOCK);
}

uint64_t nib_ref_mx_bytes(uint32_t n, uint32_t k)
{
    return nib_round_up((uint64_t)n * (k / NIB_MX_BLOCK) * (NIB_MXFP4_BLOCK_BYTES + 1), 64);
}

void nib_ref_mx_repack(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                       uint32_t n1)
{
    const uint64_t groups = k / NIB_MX_BLOCK;
    const uint64_t first = n0 * groups, count = (n1 - n0) * groups;
    uint8_t *to_scales = (uint8_t *)dst + n * groups * NIB_MXFP4_BLOCK_BYTES;
    memcpy((uint8_t *)dst + first * NIB_MXFP4_BLOCK_BYTES, blocks + first * NIB_MXFP4_BLOCK_BYTES,
           count * NIB_MXFP4_BLOCK_BYTES);
    memcpy(to_scales + first, scales + first, count);
}

void nib_ref_mx_gemv(const struct nib_matmul *mm)
{
    for (uint32_t j = mm->n0; j < mm->n1; j++) {
        const uint8_t *blocks = row_blocks(mm, j), *scales = row_scales(mm, j);
        double bias = mm->bias ? (double)nib_bf16_decode(mm->bias[j]) : 0;
        for (uint32_t i = 0; i < mm->m; i++) {
            const float *x = nib_ref_acts_row(mm, i);
            double sum = 0;
            for (uint64_t g = 0; g < mm->k / NIB_MX_BLOCK; g++) {
                float w[NIB_MX_BLOCK];
                nib_mxfp4_decode(scales[g], blocks + g * NIB_MXFP4_BLOCK_BYTES, w);
                for (uint32_t e = 0; e < NIB_MX_BLOCK; e++)
                    sum += (double)x[g * NIB_MX_BLOCK + e] * (double)w[e];
            }
            mm->y[i * mm->ldy + j] = (float)(sum + bias);
        }
    }
}

/* The same sums; a row of weights is decoded once for all rows of x. */
void nib_ref_mx_gemm(const struct nib_matmul *mm, void *scratch)
{
    float *w = scratch; /* [k] */
    for (uint32_t j = mm->n0; j < mm->n1; j++) {
        const uint8_t *blocks = row_blocks(mm, j), *scales = row_scales(mm, j);
        for (uint64_t g = 0; g < mm->k / NIB_MX_BLOCK; g++)
            nib_mxfp4_decode(scales[g], blocks + g * NIB_MXFP4_BLOCK_BYTES, w + g * NIB_MX_BLOCK);
        double bias = mm->bias ? (double)nib_bf16_decode(mm->bias[j]) : 0;
        for (uint32_t i = 0; i < mm->m; i++) {
            const float *x = nib_ref_acts_row(mm, i);
            double sum = 0;
            for (uint32_t k = 0; k < mm->k; k++)
                sum += (double)x[k] * (double)w[k];
            mm->y[i * mm->ldy + j] = (float)(sum + bias);
        }
    }
}
