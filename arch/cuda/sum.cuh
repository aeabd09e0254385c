/* arch/cuda/sum.cuh: the sum of what the copy to the device brought: NIB_GPU_SUM_WORD of arch/gpu_abi.h. */
#pragma once
#include "arch/cuda/base.cuh"

KERNEL(sum, 256, 4)
{
    const struct nib_gpu_repack *p = at<const struct nib_gpu_repack>(m->repack);
    const uint64_t words = p->sum_bytes / 8, *src = at<const uint64_t>(p->src);
    uint64_t sum = 0;
    for (uint64_t i = blockIdx.x * 256u + threadIdx.x; i < words; i += gridDim.x * 256u)
        sum += NIB_GPU_SUM_WORD(src[i], i);
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (threadIdx.x % 32 == 0)
        atomicAdd(at<unsigned long long>(p->sum), (unsigned long long)sum);
}
