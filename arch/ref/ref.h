/* arch/ref/ref.h: the functions of the reference table, one group a file.
 *
 * The specification of the model's arithmetic. Values between operations are fp32; inside an
 * operation products and sums are double, in index order, and the result is rounded to fp32 once.
 * So an element's bits do not depend on how the work was cut, and decode (gemv) equals prefill
 * (gemm) bit for bit. Layouts are the canonical ones; tile_n is 1. Meanings and shapes:
 * arch/kernels.h. Any thread; nothing can fail. */
#ifndef NIB_ARCH_REF_REF_H
#define NIB_ARCH_REF_REF_H

#include "arch/kernels.h"

/* norm.c */
void nib_ref_rmsnorm(float *y, const float *x, const uint16_t *w, uint32_t n);

/* rope.c */
void nib_ref_rope(float *x, uint32_t heads, const float *cos, const float *sin);

/* swiglu.c */
void nib_ref_swiglu(float *a, const float *h, uint32_t n);

/* acts.c: prepared activations are the fp32 rows, each padded to 64 bytes */
uint64_t nib_ref_acts_bytes(uint32_t k);
void nib_ref_acts_prep(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k);
const float *nib_ref_acts_row(const struct nib_matmul *mm, uint32_t i); /* row i of the product */
uint64_t nib_ref_gemm_scratch_bytes(uint32_t k);

/* dense.c: bf16 [n][k] */
uint64_t nib_ref_dense_bytes(uint32_t n, uint32_t k);
void nib_ref_dense_repack(void *dst, const uint16_t *src, uint32_t n, uint32_t k, uint32_t n0, uint32_t n1);
void nib_ref_mxfp8_repack(void *dst, const uint8_t *codes, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                          uint32_t n1);
void nib_ref_dense_gemv(const struct nib_matmul *mm);
void nib_ref_dense_gemm(const struct nib_matmul *mm, void *scratch);

/* mx.c: MXFP4, blocks [n][k/32][16], then scales [n][k/32] */
uint64_t nib_ref_mx_bytes(uint32_t n, uint32_t k);
void nib_ref_mx_repack(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                       uint32_t n1);
void nib_ref_mx_gemv(const struct nib_matmul *mm);
void nib_ref_mx_gemm(const struct nib_matmul *mm, void *scratch);

/* attn.c: a page is keys [kv_heads][64][64], then values [kv_heads][64][64], fp32; or both as E4M3 codes, and behind them
 * the scales of the keys [kv_heads][64][2], then of the values */
uint64_t nib_ref_kv_page_bytes(uint32_t kv_heads);
void nib_ref_kv_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v);
uint64_t nib_ref_kv8_page_bytes(uint32_t kv_heads);
void nib_ref_kv8_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v);
uint64_t nib_ref_attn_scratch_bytes(uint32_t ctx_tokens);
void nib_ref_attn(const struct nib_attn *a);

#endif
