/* arch/sm90/batch_acts.cuh: activations on their way to the dense products of many decode rows (arch/sm90/batch_dense.h says where they lie). */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/sm90/batch_dense.h"

__device__ __forceinline__ uint8_t *batch_acts(const struct nib_gpu_machine *m)
{
    return at<uint8_t>(m->scratch, cu_batch_acts_at());
}

/* Words `word` and word + 1 of a place, two bf16 each. */
__device__ __forceinline__ void batch_acts_put(const struct nib_gpu_machine *m, uint32_t place, uint32_t word, uint2 v)
{
    uint8_t *to = batch_acts(m);
    *(uint32_t *)(to + cu_batch_acts_word(place, word)) = v.x;
    *(uint32_t *)(to + cu_batch_acts_word(place, word + 1)) = v.y;
}

/* Input i of a place; acts: batch_acts. */
__device__ __forceinline__ void batch_acts_put(uint8_t *acts, uint32_t place, uint32_t i, __nv_bfloat16 v)
{
    *(__nv_bfloat16 *)(acts + cu_batch_acts_word(place, i / 2) + i % 2 * 2) = v;
}
