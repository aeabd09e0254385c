/* arch/x86/gemv_body.h: the frame of the decode products, and the dense one. Compiled per instruction set (vec.h).
 *
 * A tile of 16 weight rows is streamed once for up to NIB_*_M rows of x together; each row of x has its own
 * accumulators and its own order of additions, so its bits do not depend on how many there are. bf16 weights meet fp32
 * activations, MXFP4 weights meet 16-bit integers with a scale a block (layout.h).
 *
 * Bytes moved: the weights, once (2 a bf16 weight, 17/32 an MXFP4 weight); x stays in the first-level cache.
 * Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_GEMV_BODY_H
#define NIB_ARCH_X86_GEMV_BODY_H

#include "arch/kernels.h"
#include "arch/x86/layout.h"
#include "arch/x86/vec.h"

#define NIB_TILE_VECS (NIB_TILE_N / NIB_LANES) /* vectors of a tile's outputs */
#define NIB_GEMV_ROWS 8                        /* most rows of x that share one pass over a tile */
#define NIB_AHEAD     2560                     /* bytes that are asked for before their use */
#define NIB_FAR       6144                     /* and that are asked for into the second-level cache only */

/* Asks for the line that will be used NIB_AHEAD bytes after `line`. Two distances measured better than one for MXFP4,
 * whose decoding leaves the memory idle when a line is late. */
NIB_INLINE void nib_gemv_ask(const uint8_t *line)
{
    _mm_prefetch((const char *)line + NIB_AHEAD, _MM_HINT_T0);
    _mm_prefetch((const char *)line + NIB_FAR, _MM_HINT_T1);
}

/* One pass: a tile and the rows of x that share it. */
struct nib_gemv_pass {
    const uint8_t *tile;
    const float *x[NIB_GEMV_ROWS];
    float *y[NIB_GEMV_ROWS]; /* the tile's first output of each row */
    const uint16_t *bias;    /* of the tile, or NULL */
    uint32_t k;
    uint32_t cols; /* outputs of the tile that exist, 1..16 */
};

NIB_INLINE uint32_t nib_cols_of(uint32_t cols, uint32_t vec)
{
    const uint32_t first = vec * NIB_LANES;
    return cols <= first ? 0 : cols - first < NIB_LANES ? cols - first : NIB_LANES;
}

NIB_INLINE void nib_gemv_put(const struct nib_gemv_pass *pass, uint32_t row, uint32_t vec, NIB_VF sum)
{
    const uint32_t cols = nib_cols_of(pass->cols, vec);
    if (pass->bias)
        sum = nib_v_add(sum, nib_v_load_bf16_n(pass->bias + vec * NIB_LANES, cols));
    nib_v_store_n(pass->y[row] + vec * NIB_LANES, sum, cols);
}

/* Runs `pass` (a function of the pass and a constant count of rows, at most `most`) over all tiles and rows. `stride`
 * is the bytes of a prepared row of x, which begins with the row in fp32. */
NIB_INLINE void nib_gemv_run(const struct nib_matmul *mm, uint64_t stride, uint64_t tile_bytes, uint32_t most,
                             void (*pass)(const struct nib_gemv_pass *, uint32_t))
{
    for (uint32_t n = mm->n0; n < mm->n1; n += NIB_TILE_N) {
        struct nib_gemv_pass p;
        p.tile = (const uint8_t *)mm->w + n / NIB_TILE_N * tile_bytes;
        p.bias = mm->bias ? mm->bias + n : 0;
        p.k = mm->k;
        p.cols = mm->n1 - n < NIB_TILE_N ? mm->n1 - n : NIB_TILE_N;
        uint32_t rows;
        for (uint32_t i = 0; i < mm->m; i += rows) {
            const uint32_t left = mm->m - i;
            rows = most >= 8 && left >= 8 ? 8 : most >= 4 && left >= 4 ? 4 : left >= 2 ? 2 : 1;
            for (uint32_t r = 0; r < rows; r++) {
                const uint64_t row = mm->rows ? mm->rows[i + r] : i + r;
                p.x[r] = (const float *)((const uint8_t *)mm->x + row * stride);
                p.y[r] = mm->y + (i + r) * mm->ldy + n;
            }
            if (most >= 8 && rows == 8)
                pass(&p, 8);
            else if (most >= 4 && rows == 4)
                pass(&p, 4);
            else if (rows == 2)
                pass(&p, 2);
            else
                pass(&p, 1);
        }
    }
}

/* bf16: even and odd k have an accumulator each. */
NIB_INLINE void nib_dense_pass(const struct nib_gemv_pass *p, uint32_t rows)
{
    NIB_VF sum[NIB_GEMV_ROWS][NIB_TILE_VECS][2];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (uint32_t v = 0; v < NIB_TILE_VECS; v++)
            sum[r][v][0] = sum[r][v][1] = nib_v_zero();
    const uint8_t *line = p->tile;
    for (uint32_t k = 0; k < p->k; k += 2, line += NIB_LINE_BYTES) {
        nib_gemv_ask(line);
#pragma GCC unroll 2
        for (uint32_t v = 0; v < NIB_TILE_VECS; v++) {
            const NIB_VI pair = nib_v_load_i(line + v * NIB_LANES * 4);
            const NIB_VF even = nib_v_even(pair), odd = nib_v_odd(pair);
#pragma GCC unroll 8
            for (uint32_t r = 0; r < rows; r++) {
                sum[r][v][0] = nib_v_fma(even, nib_v_set1(p->x[r][k]), sum[r][v][0]);
                sum[r][v][1] = nib_v_fma(odd, nib_v_set1(p->x[r][k + 1]), sum[r][v][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (uint32_t v = 0; v < NIB_TILE_VECS; v++)
            nib_gemv_put(p, r, v, nib_v_add(sum[r][v][0], sum[r][v][1]));
}

#endif
