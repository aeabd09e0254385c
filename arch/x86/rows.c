/* arch/x86/rows.c: owns the kernel tables of the x86 rows. Constant; any thread. */
#include "arch/x86/rows.h"

#include "arch/x86/kv.h"
#include "arch/x86/layout.h"

static void dense_gemv_avx512(const struct nib_matmul *mm)
{
    nib_dense_gemv_avx512(mm, nib_x86_acts_bytes(mm->k));
}

static void mx_gemv_avx512(const struct nib_matmul *mm)
{
    nib_mx_gemv_avx512(mm, nib_x86_acts_bytes(mm->k));
}

static void dense_gemv_amx(const struct nib_matmul *mm)
{
    nib_dense_gemv_avx512(mm, nib_acts_bytes_amx(mm->k));
}

static void mx_gemv_amx(const struct nib_matmul *mm)
{
    nib_mx_gemv_avx512(mm, nib_acts_bytes_amx(mm->k));
}

const struct nib_kernels nib_kernels_avx2 = {
    .name = "avx2",
    .tile_n = NIB_TILE_N,
    .dense_bytes = nib_x86_dense_bytes,
    .dense_repack = nib_x86_dense_repack,
    .mxfp8_repack = nib_x86_mxfp8_repack,
    .mx_bytes = nib_x86_mx_bytes,
    .mx_repack = nib_x86_mx_repack_byte,
    .acts_bytes = nib_x86_acts_bytes,
    .acts_prep = nib_acts_prep_avx2,
    .dense_gemv = nib_dense_gemv_avx2,
    .dense_gemm = nib_dense_gemm_avx2,
    .mx_gemv = nib_mx_gemv_avx2,
    .mx_gemm = nib_mx_gemm_avx2,
    .gemm_scratch_bytes = nib_gemm_scratch_bytes_avx2,
    .rmsnorm = nib_rmsnorm_avx2,
    .rope = nib_rope_avx2,
    .swiglu = nib_swiglu_avx2,
    .kv_page_bytes = nib_x86_kv_page_bytes,
    .kv_put = nib_x86_kv_put,
    .kv8_page_bytes = nib_x86_kv8_page_bytes,
    .kv8_put = nib_x86_kv8_put,
    .attn_scratch_bytes = nib_attn_scratch_bytes_avx2,
    .attn = nib_attn_avx2,
};

const struct nib_kernels nib_kernels_avx512 = {
    .name = "avx512",
    .tile_n = NIB_TILE_N,
    .dense_bytes = nib_x86_dense_bytes,
    .dense_repack = nib_x86_dense_repack,
    .mxfp8_repack = nib_x86_mxfp8_repack,
    .mx_bytes = nib_x86_mx_bytes,
    .mx_repack = nib_x86_mx_repack_lane,
    .acts_bytes = nib_x86_acts_bytes,
    .acts_prep = nib_acts_prep_avx512,
    .dense_gemv = dense_gemv_avx512,
    .dense_gemm = nib_dense_gemm_avx512,
    .mx_gemv = mx_gemv_avx512,
    .mx_gemm = nib_mx_gemm_avx512,
    .gemm_scratch_bytes = nib_gemm_scratch_bytes_avx512,
    .rmsnorm = nib_rmsnorm_avx512,
    .rope = nib_rope_avx512,
    .swiglu = nib_swiglu_avx512,
    .kv_page_bytes = nib_x86_kv_page_bytes,
    .kv_put = nib_x86_kv_put,
    .kv8_page_bytes = nib_x86_kv8_page_bytes,
    .kv8_put = nib_x86_kv8_put,
    .attn_scratch_bytes = nib_attn_scratch_bytes_avx512,
    .attn = nib_attn_avx512,
};

const struct nib_kernels nib_kernels_amx = {
    .name = "amx",
    .tile_n = NIB_TILE_N,
    .dense_bytes = nib_x86_dense_bytes,
    .dense_repack = nib_x86_dense_repack,
    .mxfp8_repack = nib_x86_mxfp8_repack,
    .mx_bytes = nib_x86_mx_bytes,
    .mx_repack = nib_x86_mx_repack_lane,
    .acts_bytes = nib_acts_bytes_amx,
    .acts_prep = nib_acts_prep_amx,
    .dense_gemv = dense_gemv_amx,
    .dense_gemm = nib_dense_gemm_amx,
    .mx_gemv = mx_gemv_amx,
    .mx_gemm = nib_mx_gemm_amx,
    .gemm_scratch_bytes = nib_gemm_scratch_bytes_amx,
    .rmsnorm = nib_rmsnorm_avx512,
    .rope = nib_rope_avx512,
    .swiglu = nib_swiglu_avx512,
    .kv_page_bytes = nib_x86_kv_page_bytes,
    .kv_put = nib_x86_kv_put,
    .kv8_page_bytes = nib_x86_kv8_page_bytes,
    .kv8_put = nib_x86_kv8_put,
    .attn_scratch_bytes = nib_attn_scratch_bytes_avx512,
    .attn = nib_attn_avx512,
};
