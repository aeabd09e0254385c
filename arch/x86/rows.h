/* arch/x86/rows.h: the kernels that the tables of rows.c are made of. Meanings: arch/kernels.h. */
#ifndef NIB_ARCH_X86_ROWS_H
#define NIB_ARCH_X86_ROWS_H

#include "arch/kernels.h"

/* AVX2, FMA. */
void nib_acts_prep_avx2(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k);
void nib_dense_gemv_avx2(const struct nib_matmul *mm);
void nib_dense_gemm_avx2(const struct nib_matmul *mm, void *scratch);
void nib_mx_gemv_avx2(const struct nib_matmul *mm);
void nib_mx_gemm_avx2(const struct nib_matmul *mm, void *scratch);
uint64_t nib_gemm_scratch_bytes_avx2(uint32_t k);
void nib_rmsnorm_avx2(float *y, const float *x, const uint16_t *w, uint32_t n);
void nib_rope_avx2(float *x, uint32_t heads, const float *cos, const float *sin);
void nib_swiglu_avx2(float *a, const float *h, uint32_t n);
uint64_t nib_attn_scratch_bytes_avx2(uint32_t ctx_tokens);
void nib_attn_avx2(const struct nib_attn *a);

/* AVX-512 F, BW, VL, DQ, VNNI. The decode products take the bytes of a prepared row, since the AMX row keeps more in it. */
void nib_acts_prep_avx512(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k);
void nib_dense_gemv_avx512(const struct nib_matmul *mm, uint64_t stride);
void nib_dense_gemm_avx512(const struct nib_matmul *mm, void *scratch);
void nib_mx_gemv_avx512(const struct nib_matmul *mm, uint64_t stride);
void nib_mx_gemm_avx512(const struct nib_matmul *mm, void *scratch);
uint64_t nib_gemm_scratch_bytes_avx512(uint32_t k);
void nib_rmsnorm_avx512(float *y, const float *x, const uint16_t *w, uint32_t n);
void nib_rope_avx512(float *x, uint32_t heads, const float *cos, const float *sin);
void nib_swiglu_avx512(float *a, const float *h, uint32_t n);
uint64_t nib_attn_scratch_bytes_avx512(uint32_t ctx_tokens);
void nib_attn_avx512(const struct nib_attn *a);

/* AMX with bf16. A prepared row also has each element as the sum of two bf16 numbers. */
uint64_t nib_acts_bytes_amx(uint32_t k);
void nib_acts_prep_amx(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k);
void nib_dense_gemm_amx(const struct nib_matmul *mm, void *scratch);
void nib_mx_gemm_amx(const struct nib_matmul *mm, void *scratch);
uint64_t nib_gemm_scratch_bytes_amx(uint32_t k);

#endif
