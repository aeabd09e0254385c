/* arch/sm90/batch_acts.cuh: activations on their way to the products of many decode rows (arch/sm90/batch_dense.h and batch_mx.h say where they lie). Dense ones and the
 * experts' have the same room in turns. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/sm90/batch_dense.h"
#include "arch/sm90/batch_mx.h"

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

/* Words `word` and word + 1 of a row for the experts' products of many rows, two fp16 each; acts: batch_acts, whose readers have ended. */
__device__ __forceinline__ void batch_acts_put_mx(uint8_t *acts, uint32_t row, uint32_t hidden, uint32_t word, uint2 v)
{
    *(uint32_t *)(acts + cu_batch_mx_acts_word(row, hidden, word)) = v.x;
    *(uint32_t *)(acts + cu_batch_mx_acts_word(row, hidden, word + 1)) = v.y;
}

/* Input i of a place; acts: batch_acts. */
__device__ __forceinline__ void batch_acts_put(uint8_t *acts, uint32_t place, uint32_t i, __nv_bfloat16 v)
{
    *(__nv_bfloat16 *)(acts + cu_batch_acts_word(place, i / 2) + i % 2 * 2) = v;
}
