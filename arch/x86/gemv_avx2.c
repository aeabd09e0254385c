/* arch/x86/gemv_avx2.c: decode products for AVX2 and FMA. Owns nothing; any thread; cannot fail. */
#include "arch/x86/gemv_body.h"
#include "arch/x86/mx_avx2.h"
#include "arch/x86/rows.h"

#define DENSE_ROWS 2
#define MX_ROWS    4
#define HALVES     2 /* vectors of 8 rows of a tile */

/* MXFP4, 8 rows of one block: even and odd k have an accumulator each, without the scale; then one FMA with the scale. */
NIB_INLINE void mx_half_block(const uint8_t *lines, const float *const *x, uint32_t rows, uint32_t k, __m256 scale,
                              __m256 (*sum)[HALVES], uint32_t half)
{
    __m256 part[MX_ROWS][2];
#pragma GCC unroll 4
    for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
        __m256i pair[4];
        nib_mx_pairs(lines + l * NIB_LINE_BYTES + half * 32, pair);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++) {
            const __m256 even = nib_v_even(pair[j]), odd = nib_v_odd(pair[j]);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < rows; r++) {
                const __m256 a = _mm256_set1_ps(x[r][k + l * 8 + 2 * j]),
                             b = _mm256_set1_ps(x[r][k + l * 8 + 2 * j + 1]);
                part[r][0] = l + j == 0 ? _mm256_mul_ps(even, a) : _mm256_fmadd_ps(even, a, part[r][0]);
                part[r][1] = l + j == 0 ? _mm256_mul_ps(odd, b) : _mm256_fmadd_ps(odd, b, part[r][1]);
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        sum[r][half] = _mm256_fmadd_ps(_mm256_add_ps(part[r][0], part[r][1]), scale, sum[r][half]);
}

NIB_INLINE void mx_pass(const struct nib_gemv_pass *p, uint32_t rows)
{
    __m256 sum[MX_ROWS][HALVES];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
    for (uint32_t b = 0; b < p->k / NIB_MX_BLOCK; b++) {
        const uint8_t *scales = p->tile + nib_x86_mx_scales_at(b), *lines = p->tile + nib_x86_mx_lines_at(b);
#pragma GCC unroll 5
        for (uint32_t l = 0; l < NIB_MX_LINES + 1; l++)
            _mm_prefetch((const char *)lines + l * NIB_LINE_BYTES + NIB_AHEAD, _MM_HINT_T0);
#pragma GCC unroll 2
        for (uint32_t half = 0; half < HALVES; half++)
            mx_half_block(lines, p->x, rows, b * NIB_MX_BLOCK, nib_mx_scale(scales + 8 * half), sum, half);
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        nib_gemv_put(p, r, 0, sum[r][0]);
        nib_gemv_put(p, r, 1, sum[r][1]);
    }
}

void nib_dense_gemv_avx2(const struct nib_matmul *mm)
{
    nib_gemv_run(mm, mm->k * sizeof(float), nib_x86_dense_tile_bytes(mm->k), DENSE_ROWS, nib_dense_pass);
}

void nib_mx_gemv_avx2(const struct nib_matmul *mm)
{
    nib_gemv_run(mm, mm->k * sizeof(float), nib_x86_mx_tile_bytes(mm->k), MX_ROWS, mx_pass);
}
