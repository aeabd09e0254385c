/* arch/x86/gemm_avx2.c: prefill products for AVX2 and FMA, fp32. Owns nothing; any thread; cannot fail. */
#include "arch/x86/gemm_body.h"
#include "arch/x86/mx_avx2.h"
#include "arch/x86/rows.h"

/* MXFP4 with its scale: exact, as a float holds every E2M1 value times a power of two (denormals included). */
NIB_INLINE void mx_fill(float *panel, const uint8_t *tile, uint32_t k0, uint32_t kb)
{
    for (uint32_t k = 0; k < kb; k += 8) {
        const uint32_t b = (k0 + k) / NIB_MX_BLOCK, l = k % NIB_MX_BLOCK / 8;
        const uint8_t *line = tile + nib_x86_mx_lines_at(b) + l * NIB_LINE_BYTES;
#pragma GCC unroll 2
        for (uint32_t half = 0; half < 2; half++) {
            const __m256 scale = nib_mx_scale(tile + nib_x86_mx_scales_at(b) + 8 * half);
            float *to = panel + k * (uint64_t)NIB_GEMM_COLS + half * 8;
            __m256i pair[4];
            nib_mx_pairs(nib_mx_bf16_tables(), line + 32 * half, pair);
#pragma GCC unroll 4
            for (uint32_t j = 0; j < 4; j++) {
                _mm256_store_ps(to + 2 * j * NIB_GEMM_COLS, _mm256_mul_ps(nib_v_even(pair[j]), scale));
                _mm256_store_ps(to + (2 * j + 1) * NIB_GEMM_COLS, _mm256_mul_ps(nib_v_odd(pair[j]), scale));
            }
        }
    }
}

uint64_t nib_gemm_scratch_bytes_avx2(uint32_t k)
{
    (void)k;
    return NIB_GEMM_SCRATCH_BYTES;
}

void nib_dense_gemm_avx2(const struct nib_matmul *mm, void *scratch)
{
    nib_gemm_run(mm, scratch, nib_x86_acts_bytes(mm->k), nib_x86_dense_tile_bytes(mm->k), nib_dense_fill);
}

void nib_mx_gemm_avx2(const struct nib_matmul *mm, void *scratch)
{
    nib_gemm_run(mm, scratch, nib_x86_acts_bytes(mm->k), nib_x86_mx_tile_bytes(mm->k), mx_fill);
}
