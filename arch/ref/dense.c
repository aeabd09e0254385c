/* arch/ref/dense.c: y = x W^T + b with bf16 W [n][k]; MXFP8 weights become bf16 when they are repacked. Owns nothing; any thread; cannot fail. */
#include <string.h>

#include "arch/ref/ref.h"
#include "core/arith.h"
#include "core/mx.h"

uint64_t nib_ref_dense_bytes(uint32_t n, uint32_t k)
{
    return nib_round_up((uint64_t)n * k * sizeof(uint16_t), 64);
}

void nib_ref_dense_repack(void *dst, const uint16_t *src, uint32_t n, uint32_t k, uint32_t n0, uint32_t n1)
{
    (void)n;
    uint64_t first = (uint64_t)n0 * k, count = (uint64_t)(n1 - n0) * k;
    memcpy((uint16_t *)dst + first, src + first, count * sizeof(uint16_t));
}

void nib_ref_mxfp8_repack(void *dst, const uint8_t *codes, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                          uint32_t n1)
{
    const uint64_t blocks = k / NIB_MX_BLOCK;
    (void)n;
    for (uint64_t b = n0 * blocks; b < n1 * blocks; b++)
        nib_mxfp8_decode_bf16(scales[b], codes + b * NIB_MX_BLOCK, (uint16_t *)dst + b * NIB_MX_BLOCK);
}

void nib_ref_dense_gemv(const struct nib_matmul *mm)
{
    for (uint32_t j = mm->n0; j < mm->n1; j++) {
        const uint16_t *w = (const uint16_t *)mm->w + (uint64_t)j * mm->k;
        double bias = mm->bias ? (double)nib_bf16_decode(mm->bias[j]) : 0;
        for (uint32_t i = 0; i < mm->m; i++) {
            const float *x = nib_ref_acts_row(mm, i);
            double sum = 0;
            for (uint32_t k = 0; k < mm->k; k++)
                sum += (double)x[k] * (double)nib_bf16_decode(w[k]);
            mm->y[i * mm->ldy + j] = (float)(sum + bias);
        }
    }
}

void nib_ref_dense_gemm(const struct nib_matmul *mm, void *scratch)
{
    (void)scratch;
    nib_ref_dense_gemv(mm);
}
