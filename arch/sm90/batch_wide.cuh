/* arch/sm90/batch_wide.cuh: the head's tiles whose exponents lie too far apart for bf13 (arch/cuda/layout.h), with many decode rows: a warp sums such a
 * tile again, right but slowly, from global memory and with mma.sync, in the order of arch/sm90/batch_dense.cuh. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/gemv.cuh"
#include "arch/sm90/batch_acts.cuh"

#define BATCH_WIDE_GROUPS 4 /* of eight rows at a time */

/* A tile's base; of one that is not there 0. Asked for here and not where it is used, whither the compiler would move it. */
__device__ __forceinline__ uint32_t batch_head_base(const struct nib_gpu_machine *m, uint32_t tile)
{
    const uint8_t *from = at<const uint8_t>(m->lm_head, cu_bf13_bases_at(m->vocab, m->hidden)) + tile;
    uint16_t base = 0;
    if (tile < cu_tiles(m->vocab))
        asm volatile("ld.global.nc.u8 %0, [%1];" : "=h"(base) : "l"(from));
    return base;
}

/* A lane's words of a span of a tile. */
__device__ __forceinline__ void batch_wide_words(const struct nib_gpu_machine *m, uint64_t span, uint32_t w[16])
{
    const uint32_t lane = threadIdx.x % 32;
    const uint8_t *from = at<const uint8_t>(m->lm_head, span * CU_BF13_BYTES);
    const uint32_t *high = at<const uint32_t>(m->lm_head, cu_bf13_high_at(m->vocab, m->hidden) + span * CU_BF13_HIGH);
    uint4 c[3];
#pragma unroll
    for (uint32_t q = 0; q < 3; q++)
        c[q] = *(const uint4 *)(from + q * CU_BF13_PIECE + lane * 16);
    bf13_words(c, *(const uint32_t *)(from + 3 * CU_BF13_PIECE + lane * 4), w);
    bf13_wide(w, high[lane], high[32 + lane], high[64 + lane]);
}

/* sum += the products of a unit, whose weights are w, with 8 rows. */
__device__ __forceinline__ void batch_wide_unit(const uint8_t *acts, uint32_t place, const uint32_t w[8], float sum[4])
{
    uint32_t b[4];
#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        b[j] = *(const uint32_t *)(acts + cu_batch_acts_word(place, threadIdx.x % 4 * 4 + j));
    mma_bf16(sum, w[0], w[1], w[2], w[3], b[0], b[1]);
    mma_bf16(sum, w[4], w[5], w[6], w[7], b[2], b[3]);
}

/* The logits of `rows` rows from `first` on. By one warp. */
__device__ __noinline__ void batch_wide(const struct nib_gpu_machine *m, uint32_t tile, uint32_t first, uint32_t rows)
{
    const uint32_t units = m->hidden / CU_DENSE_UNIT, spans = cu_bf13_spans(m->hidden), end = first + rows;
    const done_head done = {m};
#pragma unroll 1
    for (uint32_t row0 = first; row0 < end; row0 += BATCH_WIDE_GROUPS * 8) {
        float all[BATCH_WIDE_GROUPS][4] = {};
#pragma unroll 1
        for (uint32_t share = 0; share < CU_GEMV_WARPS; share++) {
            float sum[BATCH_WIDE_GROUPS][4] = {};
#pragma unroll 1
            for (uint32_t s = unit_first<CU_GEMV_WARPS>(spans, share); s < unit_first<CU_GEMV_WARPS>(spans, share + 1); s++) {
                uint32_t w[16];
                batch_wide_words(m, (uint64_t)tile * spans + s, w);
#pragma unroll
                for (uint32_t u = 0; u < CU_BF13_SPAN; u++)
                    if (s * CU_BF13_SPAN + u < units)
#pragma unroll
                        for (uint32_t n = 0; n < BATCH_WIDE_GROUPS; n++)
                            batch_wide_unit(batch_acts(m) + (s * CU_BF13_SPAN + u) * NIB_MAX_SLOTS * CU_BATCH_LINE,
                                            min(row0 + n * 8 + threadIdx.x % 32 / 4, end - 1), w + 8 * u, sum[n]);
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH_WIDE_GROUPS * 4; i++)
                all[i / 4][i % 4] = share == 0 ? sum[i / 4][i % 4] : all[i / 4][i % 4] + sum[i / 4][i % 4];
        }
#pragma unroll
        for (uint32_t n = 0; n < BATCH_WIDE_GROUPS; n++)
            done(tile, row0 + n * 8 + threadIdx.x % 4 * 2, end, all[n]);
    }
}
