/* arch/sm90/batch_mx_cuts.cuh: which part of all lists' tiles a block of up_batch and down_batch has. Parts are cut at multiples of four tiles, a quad, so that the block
 * that takes longest takes as little as can be: by what items take, measured, as two halves of an item take half as much again as the whole.
 *
 * A search would go through all lists one after another. So the blocks are in runs of 16 or 17, which get even parts, cut between items; a block only
 * searches in its own run. One warp does it: a lane tries whether the run's blocks take all when each takes as much as it can within some time, which is
 * another for each lane. All blocks of a run find the same. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/sm90/batch_mx.h"

/* x / n rounded down, where per_n is 1 / n: a quotient that is no whole number is not so near to the next one. */
__device__ __forceinline__ float batch_mx_floor(float x, float per_n)
{
    return __fmaf_rn(x, per_n, -0.498f) + 12582912.0f - 12582912.0f;
}

/* What items of a list take: one of `most` quads `whole`, one of fewer `part` and for each quad `more`. */
struct __align__(16) batch_mx_costs {
    float whole, part, more, most, per_whole, per_more, per_most, unused;

    /* Of lists of up to 8 rows, 16, ... */
    __device__ __forceinline__ void open(uint32_t eights)
    {
        constexpr float wholes[CU_BATCH_MX_ROWS / 8] = CU_BATCH_MX_WHOLE;
        const bool two = (eights + 1) * 8 <= CU_BATCH_MX_HALF;
        whole = wholes[0];
#pragma unroll
        for (uint32_t i = 1; i < CU_BATCH_MX_ROWS / 8; i++)
            whole = eights >= i ? wholes[i] : whole;
        most = (two ? 2 : 1) * CU_BATCH_MX_READERS / 4;
        part = whole * (two ? CU_BATCH_MX_PART_TWO : CU_BATCH_MX_PART_ONE);
        more = (whole - part) / most;
        per_whole = 1 / whole;
        per_more = 1 / more;
        per_most = 1 / most;
    }

    __device__ __forceinline__ float of(float quads) const
    {
        const float items = batch_mx_floor(quads, per_most), rest = __fmaf_rn(-items, most, quads), last = __fmaf_rn(rest, more, part);
        return __fmaf_rn(items, whole, rest > 0 ? last : 0);
    }

    /* Quads that take no longer than `room`. */
    __device__ __forceinline__ float within(float room) const
    {
        const float items = batch_mx_floor(room, per_whole), rest = batch_mx_floor(__fmaf_rn(-items, whole, room) - part, per_more);
        return fmaxf(__fmaf_rn(items, most, fminf(fmaxf(rest, 0.0f), most - 1)), 0.0f);
    }
};

/* A run's part: from a list's quad to another's. */
struct batch_mx_run {
    uint32_t list[2], quad[2], cost[2]; /* of all that lies before */
};

/* The sum of what the threads before this one have, and of what all have. All threads call it. */
__device__ __forceinline__ void batch_mx_sums(uint32_t mine, uint32_t &before, uint32_t &total)
{
    __shared__ uint32_t sums[CU_BATCH_MX_THREADS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = mine;
    before = total = 0;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, sum, d);
        sum += (int)lane >= d ? other : 0;
    }
    if (lane == 31)
        sums[warp] = sum;
    __syncthreads();
#pragma unroll
    for (uint32_t w = 0; w < CU_BATCH_MX_THREADS / 32; w++) {
        before += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    before += sum - mine;
}

/* This block's run, of blocks first[0] .. first[1] - 1. All threads call it, a thread a list, which has `count` rows, 0: there is none. */
__device__ __forceinline__ void batch_mx_find_run(uint32_t count, float quads, uint32_t lists, const struct batch_mx_costs *table, const uint32_t first[2],
                                                  struct batch_mx_run &run)
{
    const struct batch_mx_costs costs = table[(max(count, 1u) - 1) / 8];
    const uint32_t mine = count ? (uint32_t)costs.of(quads) : 0;
    uint32_t before, total;
    batch_mx_sums(mine, before, total);
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t want = (uint32_t)((float)total / (float)gridDim.x * (float)first[i]);
        if (want >= before && want < before + mine) {
            const float items = batch_mx_floor((float)(want - before) + costs.whole / 2, costs.per_whole), quad = items * costs.most;
            const bool next = quad >= quads;
            run.list[i] = threadIdx.x + next;
            run.quad[i] = next ? 0 : (uint32_t)quad;
            run.cost[i] = before + (next ? mine : (uint32_t)(items * costs.whole));
        }
        if (threadIdx.x == 0 && (want >= total || first[i] == gridDim.x)) {
            run.list[i] = lists;
            run.quad[i] = 0;
            run.cost[i] = total;
        }
    }
    __syncthreads();
}

/* Where the parts of this block and of the next one begin, in tiles counted through all lists, to bounds[2]; seen behind a barrier. All threads call it. */
__device__ __forceinline__ void batch_mx_search(const struct cu_group *groups, uint32_t count, uint32_t tiles, uint32_t lists,
                                                const struct batch_mx_costs *table, uint32_t *bounds)
{
    __shared__ struct batch_mx_run run;
    const uint32_t runs = CU_DIV_UP(gridDim.x, CU_BATCH_MX_RUN), mine = blockIdx.x * runs / gridDim.x, lane = threadIdx.x % 32;
    const uint32_t first[2] = {CU_DIV_UP(mine * gridDim.x, runs), CU_DIV_UP((mine + 1) * gridDim.x, runs)};
    const float quads = (float)CU_DIV_UP(tiles, 4), blocks = (float)(first[1] - first[0]), me = (float)(blockIdx.x - first[0]);
    batch_mx_find_run(count, quads, lists, table, first, run);
    if (threadIdx.x >= 32)
        return;
    const uint32_t end = run.list[1] * tiles + run.quad[1] * 4;
    const float each = (float)(run.cost[1] - run.cost[0]) / blocks * (1.0f + (float)(lane * lane) / 4096.0f);
    uint32_t bound[2] = {me == 0 ? run.list[0] * tiles + run.quad[0] * 4 : end, end};
    float block = 0, room = each; /* the block that takes tiles now, and what time it has left */
#pragma unroll 1
    for (uint32_t i = run.list[0]; i <= run.list[1] && i < lists; i++) {
        const struct batch_mx_costs costs = table[(groups[i].count - 1) / 8];
        const float from = i == run.list[0] ? (float)run.quad[0] : 0, there = (i == run.list[1] ? (float)run.quad[1] : quads) - from;
        const float here = costs.within(room), left = there - here, rest = room - costs.of(there);
        const float fresh = fmaxf(costs.within(each), 1.0f), full = batch_mx_floor(left - 0.5f, __fdividef(1.0f, fresh)); /* blocks with nothing else */
        const float last = each - costs.of(__fmaf_rn(-full, fresh, left));
        const bool over = left > 0;
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) {
            const float turn = me + (float)j - block - 1;
            if (over && turn >= 0 && turn <= full)
                bound[j] = i * tiles + (uint32_t)__fmaf_rn(turn, fresh, from + here) * 4;
        }
        block += over ? 1 + full : 0;
        room = over ? last : rest;
    }
    const uint32_t fit = __ballot_sync(~0u, block < blocks), best = fit ? __ffs((int)fit) - 1 : 31;
    if (lane == best) {
        bounds[0] = bound[0];
        bounds[1] = me + 1 == blocks ? end : bound[1];
    }
}
