/* arch/kernels.h: the operations of the CPU engine, one table a capability-table row.
 *
 * arch/ref fills the table in plain fp32 C and is the specification; arch/x86 fills it per instruction set. The engine
 * (arch/cpu.c) calls them from its worker threads, each on its own range of outputs, so a kernel never starts threads,
 * never allocates, and touches only what its arguments name.
 *
 * Rules:
 * - An output element is computed by one call in a fixed order: it does not depend on m, on the range [n0, n1) it was
 *   part of, or on the other rows. (Batch invariance; see core/engine.h.)
 * - decode rows always go through the *_gemv entries and prefill rows through the *_gemm entries, whatever their number,
 *   so that rounding depends on the kind of the row only.
 * - Shapes: m rows, k inputs (multiple of 32), n outputs. n0 and n1 are multiples of tile_n, or n1 = n.
 * - All outputs are overwritten. All pointers are 64-byte aligned at their start; leading dimensions are in elements.
 * - Every *_bytes function returns a multiple of 64, so that what is laid end to end stays aligned. */
#ifndef NIB_ARCH_KERNELS_H
#define NIB_ARCH_KERNELS_H

#include <stdint.h>

#include "core/model.h"

/* y[i][j] = sum_k x[rows ? rows[i] : i][k] * W[j][k] + bias[j]   for i < m, n0 <= j < n1.
 * x is in the form acts_prep wrote. y has leading dimension ldy; bias is bf16 or NULL. */
struct nib_matmul {
    const void *w;        /* repacked [n][k] */
    const void *x;        /* prepared activations, rows of acts_bytes(k) bytes each */
    const uint32_t *rows; /* [m] gather list or NULL */
    const uint16_t *bias; /* [n] bf16 or NULL */
    float *y;             /* [m][ldy] */
    uint64_t ldy;
    uint32_t m, n, k;
    uint32_t n0, n1;
};

/* Attention of consecutive positions pos0 .. pos0+rows-1 of one sequence, query heads of KV heads [h0, h1).
 * Query i sees keys j <= i, and j > i - window when window > 0. Softmax runs over the scores q.k/8 and the head's sink;
 * the sink's probability is dropped (gpt-oss model card). Keys and values of the rows themselves are already stored.
 * Position p is token p % NIB_KV_PAGE_TOKENS of the page at kv + pages[(p / NIB_KV_PAGE_TOKENS) % pages_count] * page_stride. */
struct nib_attn {
    const float *q;        /* [rows][ldq], head h at h*64, rotated */
    float *out;            /* [rows][ldo], head h at h*64 */
    const uint8_t *kv;     /* this layer's first page */
    const uint32_t *pages; /* [pages_count] */
    const uint16_t *sinks; /* [heads] bf16 */
    void *scratch;         /* this thread's own, attn_scratch_bytes() */
    uint64_t page_stride;  /* bytes between pages of this layer */
    uint64_t ldq, ldo;
    uint32_t pages_count;
    uint32_t rows, pos0, window;
    uint32_t kv_heads, h0, h1;
    enum nib_kv_form form; /* of the pages */
};

struct nib_kernels {
    const char *name; /* of the capability-table row */
    uint32_t tile_n;  /* output rows a weight tile holds; n is padded to it in memory */

    /* weights: bytes of an [n][k] matrix in this layout, and repacking of output rows [n0, n1) from canonical form */
    uint64_t (*dense_bytes)(uint32_t n, uint32_t k);
    void (*dense_repack)(void *dst, const uint16_t *src /* bf16 [n][k] */, uint32_t n, uint32_t k, uint32_t n0,
                         uint32_t n1);
    /* the same layout from MXFP8, each weight as bf16: dense_gemv and dense_gemm run on it. The bits are those of dense_repack
     * of the decoded matrix */
    void (*mxfp8_repack)(void *dst, const uint8_t *codes /* [n][k] */, const uint8_t *scales /* [n][k/32] */,
                         uint32_t n, uint32_t k, uint32_t n0, uint32_t n1);
    uint64_t (*mx_bytes)(uint32_t n, uint32_t k);
    void (*mx_repack)(void *dst, const uint8_t *blocks /* [n][k/32][16] */, const uint8_t *scales /* [n][k/32] */,
                      uint32_t n, uint32_t k, uint32_t n0, uint32_t n1);

    /* activations: bytes of one prepared row, and preparation of rows from fp32 */
    uint64_t (*acts_bytes)(uint32_t k);
    void (*acts_prep)(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k);

    void (*dense_gemv)(const struct nib_matmul *mm);
    void (*dense_gemm)(const struct nib_matmul *mm, void *scratch);
    void (*mx_gemv)(const struct nib_matmul *mm);
    void (*mx_gemm)(const struct nib_matmul *mm, void *scratch);
    uint64_t (*gemm_scratch_bytes)(uint32_t k); /* of one thread, for any n */

    /* y = x / sqrt(mean(x^2) + 1e-5) * w, one row of n */
    void (*rmsnorm)(float *y, const float *x, const uint16_t *w /* bf16 [n] */, uint32_t n);
    /* rotates `heads` heads of 64 in place; cos, sin are [32] for the row's position, half-split pairs (i, i+32) */
    void (*rope)(float *x, uint32_t heads, const float *cos, const float *sin);
    /* a[i] = gate' * sigmoid(1.702 gate') * (up' + 1), gate' = min(h[2i], 7), up' = clamp(h[2i+1], -7, 7); i < n */
    void (*swiglu)(float *a, const float *h /* [2n] */, uint32_t n);

    /* KV pages: bytes of one page of one layer, and storing one token's keys and values of all KV heads; the same for pages in
     * NIB_KV_FP8, whose codes and scales are those of nib_kv8_encode of each half head. A page is one piece in either form,
     * scales included: whoever copies pages need not know the form */
    uint64_t (*kv_page_bytes)(uint32_t kv_heads);
    void (*kv_put)(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v /* [kv_heads*64] */);
    uint64_t (*kv8_page_bytes)(uint32_t kv_heads);
    void (*kv8_put)(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v);
    uint64_t (*attn_scratch_bytes)(uint32_t ctx_tokens); /* of one thread */
    void (*attn)(const struct nib_attn *a);
};

extern const struct nib_kernels nib_kernels_ref;
#if defined(__x86_64__)
extern const struct nib_kernels nib_kernels_avx2;
extern const struct nib_kernels nib_kernels_avx512;
extern const struct nib_kernels nib_kernels_amx;
#endif

#endif
