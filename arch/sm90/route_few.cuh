/* arch/sm90/route_few.cuh: the router of a step of up to CU_ROUTE_ROWS rows, by one cluster of ROUTE_WARPS blocks, which hand over through each
 * other's shared memory: words that come to an mbarrier, so that none waits for more than it needs. Block i norms row i and, when the sums are
 * there, picks its experts; and it has share i of the inputs, for all rows and experts, a warp a tile. Sums, their order and results are those of
 * the other form (arch/cuda/route.cuh). */
#pragma once
#include "arch/sm90/cluster.cuh"
#include "arch/sm90/route_few.h"

struct route_few {
    float squares[CU_ROW_THREADS / 32];         /* of this block's row: sums of the threads of norm_row */
    float scale[CU_ROUTE_ROWS];                 /* of all rows */
    float parts[ROUTE_WARPS][NIB_MAX_EXPERTS];  /* shares of the logits of this block's row */
    uint32_t chosen[32];                        /* the first block's: expert of an assignment */
    uint64_t came[3];                           /* mbarriers: scales, parts, the chosen */
};
enum { ROUTE_SCALES, ROUTE_PARTS_CAME, ROUTE_CHOSEN };

/* Writes a word of ours, in the block of that rank; it comes to that block's mbarrier. */
__device__ __forceinline__ void route_give(struct route_few &sh, uint32_t came, const void *ours, uint32_t rank, uint32_t v)
{
    const uint32_t there = cluster_at(smem_at(ours), rank), bar = cluster_at(smem_at(&sh.came[came]), rank);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there), "r"(v), "r"(bar) : "memory");
}

/* The block's row, of which thread i has parts i, i + CU_ROUTE_THREADS, ...: its scale to all blocks, then fp16 to acts. */
__device__ __forceinline__ void route_few_norm(const struct nib_gpu_machine *m, uint32_t row, bool mine, const uint2 w[ROUTE_FEW],
                                               const float4 v[ROUTE_FEW], struct route_few &sh)
{
    static_assert(ROUTE_FEW == ROUTE_AS_ROW, "a part for each of the threads that this one stands for");
    const uint32_t hidden = m->hidden, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW && mine; p++) {
        const float sum = warp_sum(__fadd_rn(0.0f, square4(v[p])));
        if (lane == 0)
            sh.squares[p * ROUTE_WARPS + threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (mine) {
        const float sum = warp_sum(lane < CU_ROW_THREADS / 32 ? sh.squares[lane] : 0);
        const float scale = 1.0f / sqrtf(sum / (float)hidden + NIB_RMS_EPS);
        if (threadIdx.x < ROUTE_WARPS)
            route_give(sh, ROUTE_SCALES, &sh.scale[row], threadIdx.x, __float_as_uint(scale));
        uint2 *acts = (uint2 *)acts_row(m, row);
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW; p++) {
            const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
            const float4 y = normed(v[p], scale, bf16_four(w[p]));
            if (i < hidden / 4)
                acts[i] = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
        }
    }
    bulk_wait(smem_at(&sh.came[ROUTE_SCALES]), 0);
}

/* One warp: products of a tile with this block's share of the inputs, to the blocks that have the rows. */
__device__ __forceinline__ void route_few_tile(const struct nib_gpu_machine *m, uint32_t tile, uint32_t units, uint32_t share, uint32_t rows,
                                               uint32_t weights, uint32_t acts, struct route_few &sh)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float c[4] = {0, 0, 0, 0};
#pragma unroll 4
    for (uint32_t u = 0; u < units; u++) {
        const uint4 b = g < rows ? lds16(acts + g * CU_ROUTE_STRIDE + u * 64 + t * 16) : make_uint4(0, 0, 0, 0);
        mma_unit(c, lds16(weights + u * CU_DENSE_BYTES), lds16(weights + u * CU_DENSE_BYTES + 512), b);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t e = tile * CU_TILE + g + i / 2 * 8, row = t * 2 + i % 2;
        if (e < m->experts && row < rows)
            route_give(sh, ROUTE_PARTS_CAME, &sh.parts[share][e], row, __float_as_uint(c[i]));
    }
}

/* One warp: the row's logits, experts and weights. */
__device__ __forceinline__ void route_few_pick(const struct nib_gpu_machine *m, uint32_t row, const float bias[NIB_MAX_EXPERTS / 32],
                                               struct route_few &sh)
{
    const uint32_t lane = threadIdx.x % 32, experts = m->experts, used = m->experts_used;
    float value[NIB_MAX_EXPERTS / 32], weight;
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++) {
        const uint32_t e = lane + 32 * i;
        float sum = e < experts ? sh.parts[0][e] : 0;
#pragma unroll
        for (uint32_t s = 1; s < ROUTE_WARPS && e < experts; s++)
            sum += sh.parts[s][e];
        value[i] = e < experts ? sum + bias[i] : 0;
    }
    const uint32_t chosen = route_choose(experts, used, value, &weight);
    if (lane < used) {
        route_give(sh, ROUTE_CHOSEN, &sh.chosen[row * used + lane], 0, min(chosen, experts - 1));
        route_array(m, 0)[row * used + lane] = chosen;
        route_array(m, 1)[row * used + lane] = __float_as_uint(weight);
    }
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        if (lane + 32 * i < experts)
            route_logits(m)[(uint64_t)row * experts + lane + 32 * i] = value[i];
}

/* The blocks end together, when all that was handed over has come. Weights, norm and biases are asked for before the op before this one has ended. From layer 1 on the step block may be read as early, since
 * the expert products of the layer before wait for all that came before them. */
__device__ __forceinline__ void route_few(const struct nib_gpu_machine *m, uint32_t layer)
{
    __shared__ struct route_few sh;
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t rank = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, hidden = m->hidden, experts = m->experts;
    const uint32_t all = hidden / CU_DENSE_UNIT, u0 = unit_first<ROUTE_WARPS>(all, rank), units = unit_first<ROUTE_WARPS>(all, rank + 1) - u0;
    const uint32_t acts = smem_at(gemv_dynamic), weights = acts + CU_ROUTE_ROWS * CU_ROUTE_STRIDE + warp * CU_ROUTE_UNITS * CU_DENSE_BYTES + lane * 16;
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 3; i++)
            bulk_open(smem_at(&sh.came[i]));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    if (warp < cu_tiles(experts)) {
        const uint64_t policy = stream_policy();
        const uint8_t *from = at<const uint8_t>(m->layer[layer].router, ((uint64_t)warp * all + u0) * CU_DENSE_BYTES + lane * 16);
#pragma unroll
        for (uint32_t u = 0; u < CU_ROUTE_UNITS; u++) {
            if (u >= units)
                break;
            copy16_stream(weights + u * CU_DENSE_BYTES, from + u * CU_DENSE_BYTES, policy);
            copy16_stream(weights + u * CU_DENSE_BYTES + 512, from + u * CU_DENSE_BYTES + 512, policy);
        }
    }
    copy_commit();
    const uint2 *norm = at<const uint2>(m->layer[layer].mlp_norm);
    uint2 w[ROUTE_FEW], w_share[ROUTE_FEW];
    float bias[NIB_MAX_EXPERTS / 32];
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS, j = lane + p * 32;
        w[p] = i < hidden / 4 ? __ldg(norm + i) : make_uint2(0, 0);
        w_share[p] = j < units * 8 ? __ldg(norm + u0 * 8 + j) : make_uint2(0, 0);
    }
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        bias[i] = warp == 0 && lane + 32 * i < experts ? bf16_at(m->layer[layer].router_bias, lane + 32 * i) : 0;
    uint32_t rows = layer ? step->rows_count : 0;
    overlap_wait();
    rows = layer ? rows : step->rows_count;
    const bool mine = rank < rows, there = warp < rows; /* this block's row, and the one of whose share this warp takes care */
    float4 v[ROUTE_FEW], part[ROUTE_FEW];
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS, j = lane + p * 32;
        v[p] = mine && i < hidden / 4 ? at<const float4>(m->x)[(uint64_t)rank * (hidden / 4) + i] : make_float4(0, 0, 0, 0);
        part[p] = there && j < units * 8 ? at<const float4>(m->x)[(uint64_t)warp * (hidden / 4) + u0 * 8 + j] : make_float4(0, 0, 0, 0);
    }
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); /* all blocks have begun */
    if (rows == 0) {
        if (rank == 0 && warp == 0)
            route_group_few(m, step, ~0u);
        copy_wait<0>();
        __syncwarp();
        asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" ::: "memory");
        return;
    }
    if (threadIdx.x == 0) {
        bulk_expect(smem_at(&sh.came[ROUTE_SCALES]), rows * 4);
        bulk_expect(smem_at(&sh.came[ROUTE_PARTS_CAME]), ROUTE_WARPS * experts * 4);
        bulk_expect(smem_at(&sh.came[ROUTE_CHOSEN]), rows * m->experts_used * 4);
    }
    route_few_norm(m, rank, mine, w, v, sh);
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW; p++) {
        const uint32_t j = lane + p * 32;
        const float4 y = normed(part[p], there ? sh.scale[warp] : 0, bf16_four(w_share[p]));
        if (there && j < units * 8)
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(acts + warp * CU_ROUTE_STRIDE + j * 8), "r"(pack_bf16(y.x, y.y)),
                         "r"(pack_bf16(y.z, y.w))
                         : "memory");
    }
    copy_wait<0>();
    __syncthreads();
    if (warp < cu_tiles(experts))
        route_few_tile(m, warp, units, rank, rows, weights, acts, sh);
    if (mine && warp == 0) {
        bulk_wait(smem_at(&sh.came[ROUTE_PARTS_CAME]), 0);
        route_few_pick(m, rank, bias, sh);
    }
    const bool groups = rank == 0 && warp == 0;
    if (groups)
        bulk_wait(smem_at(&sh.came[ROUTE_CHOSEN]), 0);
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    if (groups)
        route_group_few(m, step, lane < rows * m->experts_used ? sh.chosen[lane] : ~0u);
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
