/* arch/ref/table.c: the reference row of the kernel table. Constant data. */
#include "arch/ref/ref.h"

const struct nib_kernels nib_kernels_ref = {
    .name = "ref",
    .tile_n = 1,
    .dense_bytes = nib_ref_dense_bytes,
    .dense_repack = nib_ref_dense_repack,
    .mxfp8_repack = nib_ref_mxfp8_repack,
    .mx_bytes = nib_ref_mx_bytes,
    .mx_repack = nib_ref_mx_repack,
    .acts_bytes = nib_ref_acts_bytes,
    .acts_prep = nib_ref_acts_prep,
    .dense_gemv = nib_ref_dense_gemv,
    .dense_gemm = nib_ref_dense_gemm,
    .mx_gemv = nib_ref_mx_gemv,
    .mx_gemm = nib_ref_mx_gemm,
    .gemm_scratch_bytes = nib_ref_gemm_scratch_bytes,
    .rmsnorm = nib_ref_rmsnorm,
    .rope = nib_ref_rope,
    .swiglu = nib_ref_swiglu,
    .kv_page_bytes = nib_ref_kv_page_bytes,
    .kv_put = nib_ref_kv_put,
    .kv8_page_bytes = nib_ref_kv8_page_bytes,
    .kv8_put = nib_ref_kv8_put,
    .attn_scratch_bytes = nib_ref_attn_scratch_bytes,
    .attn = nib_ref_attn,
};
