/* arch/ref/acts.c: prepared activations of the reference: the rows themselves. Owns nothing; any
 * thread; cannot fail. */
#include <string.h>

#include "arch/ref/ref.h"
#include "core/arith.h"

uint64_t nib_ref_acts_bytes(uint32_t k)
{
    return nib_round_up((uint64_t)k * sizeof(float), 64);
}

void nib_ref_acts_prep(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k)
{
    for (uint32_t i = 0; i < m; i++)
        memcpy((uint8_t *)dst + i * nib_ref_acts_bytes(k), x + i * ldx, k * sizeof(float));
}

const float *nib_ref_acts_row(const struct nib_matmul *mm, uint32_t i)
{
    uint64_t row = mm->rows ? mm->rows[i] : i;
    return (const float *)((const uint8_t *)mm->x + row * nib_ref_acts_bytes(mm->k));
}

uint64_t nib_ref_gemm_scratch_bytes(uint32_t k)
{
    return nib_round_up((uint64_t)k * sizeof(float), 64); /* one decoded row of weights */
}
