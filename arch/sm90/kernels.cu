/* arch/sm90/kernels.cu: every kernel of the sm_90a row, one image. */
#define NIB_SM 90
#include "arch/cuda/repack.cuh"
#include "arch/cuda/sum.cuh"
#include "arch/cuda/begin.cuh"
#include "arch/cuda/rows.cuh"
#include "arch/cuda/products.cuh"
#include "arch/cuda/attn.cuh"
#include "arch/cuda/route.cuh"
#include "arch/cuda/sample.cuh"
#include "arch/sm90/prompt.cuh"
#include "arch/sm90/prompt_attn.cuh"
#include "arch/sm90/token.cuh"
#include "arch/sm90/batch_dense.cuh"
