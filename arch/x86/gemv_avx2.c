/* arch/x86/gemv_avx2.c: decode products for AVX2 and FMA. Owns nothing; any thread; cannot fail. */
#include <string.h>

#include "arch/x86/gemv_body.h"
#include "arch/x86/mx_avx2.h"
#include "arch/x86/rows.h"

#define DENSE_ROWS 2
#define MX_ROWS    4
#define HALVES     2 /* vectors of 8 rows of a tile */

/* The rows of x of a pass, in integers. */
struct mx_x {
    const int16_t *ints[MX_ROWS];
    const float *scales[MX_ROWS];
};

/* MXFP4, 8 rows of one block: the 32 products are summed exactly in 32-bit integers (at most 32 x 12 x 32767), then join
 * the row's sum by one FMA with both scales. */
NIB_INLINE void mx_half_block(const uint8_t *lines, const struct mx_x *x, uint32_t rows, uint32_t k, __m256 scale,
                              __m256 (*sum)[HALVES], uint32_t half)
{
    const struct nib_mx_tables tables = nib_mx_int_tables();
    __m256i part[MX_ROWS];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        part[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
        __m256i w[4];
        nib_mx_pairs(tables, lines + l * NIB_LINE_BYTES + half * 32, w);
#pragma GCC unroll 4
        for (uint32_t j = 0; j < 4; j++)
#pragma GCC unroll 4
            for (uint32_t r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x->ints[r] + k + l * 8 + 2 * j, sizeof pair);
                part[r] = _mm256_add_epi32(part[r], _mm256_madd_epi16(w[j], _mm256_set1_epi32(pair)));
            }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x->scales[r][k / NIB_MX_BLOCK]));
        sum[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[r]), both, sum[r][half]);
    }
}

NIB_INLINE void mx_pass(const struct nib_gemv_pass *p, uint32_t rows)
{
    __m256 sum[MX_ROWS][HALVES];
    struct mx_x x;
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        sum[r][0] = sum[r][1] = _mm256_setzero_ps();
        x.ints[r] = (const int16_t *)((const uint8_t *)p->x[r] + nib_x86_acts_ints_at(p->k));
        x.scales[r] = (const float *)((const uint8_t *)p->x[r] + nib_x86_acts_scales_at(p->k));
    }
    for (uint32_t b = 0; b < p->k / NIB_MX_BLOCK; b++) {
        const uint8_t *scales = p->tile + nib_x86_mx_scales_at(b), *lines = p->tile + nib_x86_mx_lines_at(b);
#pragma GCC unroll 5
        for (uint32_t l = 0; l < NIB_MX_LINES + 1; l++)
            nib_gemv_ask(lines + l * NIB_LINE_BYTES);
#pragma GCC unroll 2
        for (uint32_t half = 0; half < HALVES; half++) {
            __asm__ volatile("" ::: "memory"); /* read x again: kept for both halves it would be kept on the stack */
            mx_half_block(lines, &x, rows, b * NIB_MX_BLOCK, nib_mx_scale(scales + 8 * half), sum, half);
        }
    }
    const __m256 half_of = _mm256_set1_ps(0.5f); /* the table holds twice E2M1 */
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        nib_gemv_put(p, r, 0, _mm256_mul_ps(sum[r][0], half_of));
        nib_gemv_put(p, r, 1, _mm256_mul_ps(sum[r][1], half_of));
    }
}

void nib_dense_gemv_avx2(const struct nib_matmul *mm)
{
    nib_gemv_run(mm, nib_x86_acts_bytes(mm->k), nib_x86_dense_tile_bytes(mm->k), DENSE_ROWS, nib_dense_pass);
}

void nib_mx_gemv_avx2(const struct nib_matmul *mm)
{
    nib_gemv_run(mm, nib_x86_acts_bytes(mm->k), nib_x86_mx_tile_bytes(mm->k), MX_ROWS, mx_pass);
}
