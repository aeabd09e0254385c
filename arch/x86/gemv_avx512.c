/* arch/x86/gemv_avx512.c: decode products for AVX-512 with VNNI. Owns nothing; any thread; cannot fail. */
#include <string.h>

#include "arch/x86/gemv_body.h"
#include "arch/x86/mx_avx512.h"
#include "arch/x86/rows.h"

#define DENSE_ROWS 8
#define MX_ROWS    4
#define PARTS      4 /* accumulators of a block and row of x */

/* The rows of x of a pass, in integers. */
struct mx_x {
    const int16_t *ints[MX_ROWS];
    const float *scales[MX_ROWS];
};

/* Twice E2M1 in the order of its codes, two times: the look-up uses 5 bits of its index, the fifth of which is the next
 * nibble's. */
static inline __m512i int_table(void)
{
    return _mm512_broadcast_i64x4(_mm256_setr_epi16(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
}

/* MXFP4: the 32 products of a block are summed exactly in 32-bit integers (at most 32 x 12 x 32767), then join the row's
 * sum by one FMA with both scales. */
NIB_INLINE void mx_block(const uint8_t *lines, const struct mx_x *x, uint32_t rows, uint32_t k, __m512 scale,
                         __m512 *sum)
{
    const __m512i table = int_table();
    __m512i part[MX_ROWS][PARTS];
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        part[r][0] = part[r][1] = part[r][2] = part[r][3] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
        nib_gemv_ask(lines + l * NIB_LINE_BYTES);
        const __m512i line = _mm512_load_si512(lines + l * NIB_LINE_BYTES);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++) {
            const __m512i w = _mm512_permutexvar_epi16(s ? _mm512_srli_epi16(line, 4 * s) : line, table);
#pragma GCC unroll 4
            for (uint32_t r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x->ints[r] + k + l * 8 + 2 * (uint32_t)s, sizeof pair);
                part[r][s % PARTS] = _mm512_dpwssd_epi32(part[r][s % PARTS], w, _mm512_set1_epi32(pair));
            }
        }
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        const __m512i low = _mm512_add_epi32(part[r][0], part[r][1]), high = _mm512_add_epi32(part[r][2], part[r][3]);
        const __m512 block = _mm512_cvtepi32_ps(_mm512_add_epi32(low, high));
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x->scales[r][k / NIB_MX_BLOCK]));
        sum[r] = _mm512_fmadd_ps(block, both, sum[r]);
    }
}

NIB_INLINE void mx_pass(const struct nib_gemv_pass *p, uint32_t rows)
{
    __m512 sum[MX_ROWS];
    struct mx_x x;
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++) {
        sum[r] = _mm512_setzero_ps();
        x.ints[r] = (const int16_t *)((const uint8_t *)p->x[r] + nib_x86_acts_ints_at(p->k));
        x.scales[r] = (const float *)((const uint8_t *)p->x[r] + nib_x86_acts_scales_at(p->k));
    }
    const uint8_t *group = p->tile;
    for (uint32_t k = 0; k < p->k; group += NIB_MX_GROUP_BYTES) {
        nib_gemv_ask(group);
        for (uint32_t b = 0; b < NIB_MX_GROUP && k < p->k; b++, k += NIB_MX_BLOCK)
            mx_block(group + NIB_LINE_BYTES + b * NIB_MX_TILE_BLOCK_BYTES, &x, rows, k,
                     nib_mx_scale(group + b * NIB_TILE_N), sum);
    }
#pragma GCC unroll 4
    for (uint32_t r = 0; r < rows; r++)
        nib_gemv_put(p, r, 0, _mm512_mul_ps(sum[r], _mm512_set1_ps(0.5f))); /* the table holds twice E2M1 */
}

void nib_dense_gemv_avx512(const struct nib_matmul *mm, uint64_t stride)
{
    nib_gemv_run(mm, stride, nib_x86_dense_tile_bytes(mm->k), DENSE_ROWS, nib_dense_pass);
}

void nib_mx_gemv_avx512(const struct nib_matmul *mm, uint64_t stride)
{
    nib_gemv_run(mm, stride, nib_x86_mx_tile_bytes(mm->k), MX_ROWS, mx_pass);
}
