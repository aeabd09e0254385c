/* arch/sm80/kernels.cu: every kernel of the portable row, one image: PTX for compute capability 8.0 and later. */
#define NIB_SM 80
#include "arch/cuda/repack.cuh"
#include "arch/cuda/sum.cuh"
#include "arch/cuda/begin.cuh"
#include "arch/cuda/rows.cuh"
#include "arch/cuda/products.cuh"
#include "arch/cuda/moe_gemv.cuh"
#include "arch/cuda/products_prompt.cuh"
#include "arch/cuda/attn.cuh"
#include "arch/cuda/attn_prompt.cuh"
#include "arch/cuda/route.cuh"
#include "arch/cuda/sample.cuh"
