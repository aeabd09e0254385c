/* arch/x86/gemm_body.h: the prefill products in fp32. Compiled per instruction set (vec.h).
 *
 * For each group of output columns (2 vectors), k is cut in chunks; a chunk of weights is decoded once into a panel
 * [k][columns] of floats that fits the first-level cache, and all rows of x run over it, NIB_GEMM_MR at a time. An
 * output is one chain of FMAs a chunk, the chunks added in y in the order of k, then the bias: it does not depend on
 * the other rows or on the cut of n.
 *
 * Work: 2 m n k flops at 2 FMAs a cycle; weights are read once. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_GEMM_BODY_H
#define NIB_ARCH_X86_GEMM_BODY_H

#include "arch/kernels.h"
#include "arch/x86/layout.h"
#include "arch/x86/vec.h"

#define NIB_GEMM_VECS  2                           /* vectors of columns of a group */
#define NIB_GEMM_COLS  (NIB_GEMM_VECS * NIB_LANES) /* 32 or 16 */
#define NIB_GEMM_KB    256                         /* k of a chunk */
#define NIB_GEMM_TILES (NIB_GEMM_COLS / NIB_TILE_N)
#if NIB_LANES == 16
#define NIB_GEMM_MR 12 /* 24 of 32 registers hold sums */
#else
#define NIB_GEMM_MR 6 /* 12 of 16 */
#endif

#define NIB_GEMM_SCRATCH_BYTES ((uint64_t)NIB_GEMM_KB * NIB_GEMM_COLS * sizeof(float))

/* One chunk of one group of columns. */
struct nib_gemm_chunk {
    const struct nib_matmul *mm;
    const float *panel; /* [kb][NIB_GEMM_COLS] */
    uint32_t k0, kb;
    uint32_t n, cols; /* first column, columns that exist */
};

NIB_INLINE uint32_t nib_gemm_cols(const struct nib_gemm_chunk *c, uint32_t vec)
{
    const uint32_t first = vec * NIB_LANES;
    return c->cols <= first ? 0 : c->cols - first < NIB_LANES ? c->cols - first : NIB_LANES;
}

/* Adds a chunk's sums to y: the first chunk begins it, the last adds the bias. */
NIB_INLINE void nib_gemm_store(const struct nib_gemm_chunk *c, uint32_t i, uint32_t rows, NIB_VF (*sum)[NIB_GEMM_VECS])
{
    const int last = c->mm->bias && c->k0 + c->kb == c->mm->k;
#pragma GCC unroll 2
    for (uint32_t v = 0; v < NIB_GEMM_VECS; v++) {
        const uint32_t cols = nib_gemm_cols(c, v);
        const NIB_VF bias = last ? nib_v_load_bf16_n(c->mm->bias + c->n + v * NIB_LANES, cols) : nib_v_zero();
#pragma GCC unroll 12
        for (uint32_t r = 0; r < rows; r++) {
            float *y = c->mm->y + (i + r) * c->mm->ldy + c->n + v * NIB_LANES;
            NIB_VF s = c->k0 > 0 ? nib_v_add(nib_v_load_n(y, cols), sum[r][v]) : sum[r][v];
            if (last)
                s = nib_v_add(s, bias);
            nib_v_store_n(y, s, cols);
        }
    }
}

/* `rows` rows of x from row i of the product on; rows is a constant. */
NIB_INLINE void nib_gemm_rows(const struct nib_gemm_chunk *c, uint64_t stride, uint32_t i, uint32_t rows)
{
    const float *x[NIB_GEMM_MR];
#pragma GCC unroll 12
    for (uint32_t r = 0; r < rows; r++) {
        const uint64_t row = c->mm->rows ? c->mm->rows[i + r] : i + r;
        x[r] = (const float *)((const uint8_t *)c->mm->x + row * stride) + c->k0;
    }
    NIB_VF sum[NIB_GEMM_MR][NIB_GEMM_VECS];
#pragma GCC unroll 12
    for (uint32_t r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = nib_v_zero();
    const float *w = c->panel;
#pragma GCC unroll 4
    for (uint32_t k = 0; k < c->kb; k++, w += NIB_GEMM_COLS) {
        const NIB_VF w0 = nib_v_load(w), w1 = nib_v_load(w + NIB_LANES);
#pragma GCC unroll 12
        for (uint32_t r = 0; r < rows; r++) {
            const NIB_VF a = nib_v_set1(x[r][k]);
            sum[r][0] = nib_v_fma(w0, a, sum[r][0]);
            sum[r][1] = nib_v_fma(w1, a, sum[r][1]);
        }
    }
    nib_gemm_store(c, i, rows, sum);
}

static void nib_gemm_chunk_run(const struct nib_gemm_chunk *c, uint64_t stride)
{
    uint32_t i = 0;
    for (; i + NIB_GEMM_MR <= c->mm->m; i += NIB_GEMM_MR)
        nib_gemm_rows(c, stride, i, NIB_GEMM_MR);
#if NIB_GEMM_MR > 8
    if (i + 8 <= c->mm->m) {
        nib_gemm_rows(c, stride, i, 8);
        i += 8;
    }
#endif
    if (i + 4 <= c->mm->m) {
        nib_gemm_rows(c, stride, i, 4);
        i += 4;
    }
    for (; i < c->mm->m; i++)
        nib_gemm_rows(c, stride, i, 1);
}

/* Decodes k0 .. k0+kb of one tile into columns of the panel (row length NIB_GEMM_COLS). */
NIB_INLINE void nib_dense_fill(float *panel, const uint8_t *tile, uint32_t k0, uint32_t kb)
{
    const uint8_t *line = tile + k0 / 2 * (uint64_t)NIB_LINE_BYTES;
    for (uint32_t k = 0; k < kb; k += 2, line += NIB_LINE_BYTES, panel += 2 * (uint64_t)NIB_GEMM_COLS)
#pragma GCC unroll 2
        for (uint32_t v = 0; v < NIB_TILE_N / NIB_LANES; v++) {
            const NIB_VI pair = nib_v_load_i(line + v * NIB_LANES * 4);
            nib_v_store(panel + v * NIB_LANES, nib_v_even(pair));
            nib_v_store(panel + NIB_GEMM_COLS + v * NIB_LANES, nib_v_odd(pair));
        }
}

NIB_INLINE void nib_gemm_run(const struct nib_matmul *mm, void *scratch, uint64_t stride, uint64_t tile_bytes,
                             void (*fill)(float *, const uint8_t *, uint32_t, uint32_t))
{
    float *panel = scratch;
    for (uint32_t n = mm->n0; n < mm->n1; n += NIB_GEMM_COLS) {
        struct nib_gemm_chunk c = {.mm = mm, .panel = panel, .n = n};
        c.cols = mm->n1 - n < NIB_GEMM_COLS ? mm->n1 - n : NIB_GEMM_COLS;
        for (c.k0 = 0; c.k0 < mm->k; c.k0 += NIB_GEMM_KB) {
            c.kb = mm->k - c.k0 < NIB_GEMM_KB ? mm->k - c.k0 : NIB_GEMM_KB;
            for (uint32_t t = 0; t * NIB_TILE_N < c.cols; t++)
                fill(panel + t * NIB_TILE_N, (const uint8_t *)mm->w + (n / NIB_TILE_N + t) * tile_bytes, c.k0, c.kb);
            nib_gemm_chunk_run(&c, stride);
        }
    }
}

#endif
