/* arch/x86/gemm_avx512.c: prefill products for AVX-512, fp32. Owns nothing; any thread; cannot fail. */
#include "arch/x86/gemm_body.h"
#include "arch/x86/mx_avx512.h"
#include "arch/x86/rows.h"

/* MXFP4 with its scale: exact, as a float holds every E2M1 value times a power of two (denormals included). */
NIB_INLINE void mx_fill(float *panel, const uint8_t *tile, uint32_t k0, uint32_t kb)
{
    const __m512 table = nib_mx_table();
    for (uint32_t k = 0; k < kb; k += NIB_MX_BLOCK) {
        const uint32_t b = (k0 + k) / NIB_MX_BLOCK;
        const uint8_t *lines = tile + nib_x86_mx_lines_at(b);
        const __m512 scale = nib_mx_scale(tile + nib_x86_mx_scales_at(b));
        for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
            const __m512i line = _mm512_load_si512(lines + l * NIB_LINE_BYTES);
#pragma GCC unroll 8
            for (uint32_t e = 0; e < 8; e++, panel += NIB_GEMM_COLS)
                _mm512_store_ps(panel, _mm512_mul_ps(nib_mx_element(table, line, e), scale));
        }
    }
}

uint64_t nib_gemm_scratch_bytes_avx512(uint32_t k)
{
    (void)k;
    return NIB_GEMM_SCRATCH_BYTES;
}

void nib_dense_gemm_avx512(const struct nib_matmul *mm, void *scratch)
{
    nib_gemm_run(mm, scratch, nib_x86_acts_bytes(mm->k), nib_x86_dense_tile_bytes(mm->k), nib_dense_fill);
}

void nib_mx_gemm_avx512(const struct nib_matmul *mm, void *scratch)
{
    nib_gemm_run(mm, scratch, nib_x86_acts_bytes(mm->k), nib_x86_mx_tile_bytes(mm->k), mx_fill);
}
