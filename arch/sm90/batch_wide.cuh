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

/* What a lane has of a span of a tile, on its way. */
struct batch_wide_span {
    uint4 carriers[3];
    uint32_t last, high[3];

    __device__ __forceinline__ void ask(const struct nib_gpu_machine *m, uint64_t span)
    {
        const uint32_t lane = threadIdx.x % 32;
        const uint8_t *from = at<const uint8_t>(m->lm_head, span * CU_BF13_BYTES);
        const uint32_t *behind = at<const uint32_t>(m->lm_head, cu_bf13_high_at(m->vocab, m->hidden) + span * CU_BF13_HIGH);
#pragma unroll
        for (uint32_t q = 0; q < 3; q++) {
            carriers[q] = __ldg((const uint4 *)(from + q * CU_BF13_PIECE) + lane);
            high[q] = __ldg(behind + q * 32 + lane);
        }
        last = __ldg((const uint32_t *)(from + 3 * CU_BF13_PIECE) + lane);
    }

    __device__ __forceinline__ void words(uint32_t w[16]) const
    {
        bf13_words(carriers, last, w);
        bf13_wide(w, high[0], high[1], high[2]);
    }
};

/* sum += the products of a unit, whose weights are w, with the rows from row0 on. */
__device__ __forceinline__ void batch_wide_unit(const uint8_t *acts, uint32_t row0, uint32_t end, const uint32_t w[8],
                                                float sum[BATCH_WIDE_GROUPS][4])
{
    uint32_t b[BATCH_WIDE_GROUPS][4];
#pragma unroll
    for (uint32_t n = 0; n < BATCH_WIDE_GROUPS; n++)
        if (row0 + n * 8 < end)
#pragma unroll
            for (uint32_t j = 0; j < 4; j++)
                b[n][j] = *(const uint32_t *)(acts + cu_batch_acts_word(min(row0 + n * 8 + threadIdx.x % 32 / 4, end - 1), threadIdx.x % 4 * 4 + j));
#pragma unroll
    for (uint32_t n = 0; n < BATCH_WIDE_GROUPS; n++)
        if (row0 + n * 8 < end) {
            mma_bf16(sum[n], w[0], w[1], w[2], w[3], b[n][0], b[n][1]);
            mma_bf16(sum[n], w[4], w[5], w[6], w[7], b[n][2], b[n][3]);
        }
}

/* The logits of `rows` rows from `first` on. By one warp. */
__device__ __noinline__ void batch_wide(const struct nib_gpu_machine *m, uint32_t tile, uint32_t first, uint32_t rows)
{
    const uint32_t units = m->hidden / CU_DENSE_UNIT, spans = cu_bf13_spans(m->hidden), end = first + rows;
    const uint64_t span0 = (uint64_t)tile * spans;
    const done_head done = {m};
#pragma unroll 1
    for (uint32_t row0 = first; row0 < end; row0 += BATCH_WIDE_GROUPS * 8) {
        float all[BATCH_WIDE_GROUPS][4] = {};
        batch_wide_span next;
        next.ask(m, span0);
#pragma unroll 1
        for (uint32_t share = 0; share < CU_GEMV_WARPS; share++) {
            float sum[BATCH_WIDE_GROUPS][4] = {};
#pragma unroll 1
            for (uint32_t s = unit_first<CU_GEMV_WARPS>(spans, share); s < unit_first<CU_GEMV_WARPS>(spans, share + 1); s++) {
                const uint8_t *acts = batch_acts(m) + s * CU_BF13_SPAN * NIB_MAX_SLOTS * CU_BATCH_LINE;
                uint32_t w[16];
                next.words(w);
                next.ask(m, span0 + min(s + 1, spans - 1));
                batch_wide_unit(acts, row0, end, w, sum);
                if (s * CU_BF13_SPAN + 1 < units)
                    batch_wide_unit(acts + NIB_MAX_SLOTS * CU_BATCH_LINE, row0, end, w + 8, sum);
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
