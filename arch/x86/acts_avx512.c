/* arch/x86/acts_avx512.c: preparation of activations for AVX-512. Owns nothing; any thread; cannot fail. */
#include "arch/x86/acts_body.h"
#include "arch/x86/rows.h"

void nib_acts_prep_avx512(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k)
{
    for (uint32_t i = 0; i < m; i++)
        nib_acts_row((uint8_t *)dst + i * nib_x86_acts_bytes(k), x + i * ldx, k);
}
