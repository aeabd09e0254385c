/* arch/x86/gemv_avx512.c: decode products for AVX-512. Owns nothing; any thread; cannot fail. */
#include "arch/x86/gemv_body.h"
#include "arch/x86/mx_avx512.h"
#include "arch/x86/rows.h"

#define DENSE_ROWS 8
#define MX_ROWS    4
#define PARTS      4 /* accumulators of a block and row of x */

/* MXFP4: the 32 products of a block are summed in 4 accumulators without the scale, then join the row's sum by one FMA
 * with the scale. Element e of a line goes to accumulator e % 4. */
NIB_INLINE void mx_block(const uint8_t *lines, const float *const *x, uint32_t rows, uint32_t k, __m512 scale,
                         __m512 *sum)
{
    const __m512 table = nib_mx_table();
    __m512 part[MX_ROWS][PARTS];
#pragma GCC unroll 4
    for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
        _mm_prefetch((const char *)lines + l * NIB_LINE_BYTES + NIB_AHEAD, _MM_HINT_T0);
        const __m512i line = _mm512_load_si512(lines + l * NIB_LINE_BYTES);
#pragma GCC unroll 8
        for (uint32_t e = 0; e < 8; e++) {
            const __m512 w = nib_mx_element(table, line, e);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < rows; r++) {
                const __m512 a = _mm512_set1_ps(x[r][k + l * 8 + e]);
                part[r][e % PARTS] =
                    l == 0 && e < PARTS ? _mm512_mul_ps(w, a) : _mm512_fmadd_ps(w, a, part[r][e % PARTS]);
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        const __m512 block =
            _mm512_add_ps(_mm512_add_ps(part[r][0], part[r][1]), _mm512_add_ps(part[r][2], part[r][3]));
        sum[r] = _mm512_fmadd_ps(block, scale, sum[r]);
    }
}

NIB_INLINE void mx_pass(const struct nib_gemv_pass *p, uint32_t rows)
{
    __m512 sum[MX_ROWS];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        sum[r] = _mm512_setzero_ps();
    const uint8_t *group = p->tile;
    for (uint32_t k = 0; k < p->k; group += NIB_MX_GROUP_BYTES) {
        _mm_prefetch((const char *)group + NIB_AHEAD, _MM_HINT_T0);
        for (uint32_t b = 0; b < NIB_MX_GROUP && k < p->k; b++, k += NIB_MX_BLOCK)
            mx_block(group + NIB_LINE_BYTES + b * NIB_MX_TILE_BLOCK_BYTES, p->x, rows, k,
                     nib_mx_scale(group + b * NIB_TILE_N), sum);
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        nib_gemv_put(p, r, 0, sum[r]);
}

void nib_dense_gemv_avx512(const struct nib_matmul *mm, uint64_t stride)
{
    nib_gemv_run(mm, stride, nib_x86_dense_tile_bytes(mm->k), DENSE_ROWS, nib_dense_pass);
}

void nib_mx_gemv_avx512(const struct nib_matmul *mm, uint64_t stride)
{
    nib_gemv_run(mm, stride, nib_x86_mx_tile_bytes(mm->k), MX_ROWS, mx_pass);
}
