/* arch/cuda/route.cuh: the router. A block norms 8 rows (fp16 for the experts, bf16 for itself), computes their logits for a tile of
 * 16 experts, or for all; the last block to finish picks each row's experts where the others have not, and groups all
 * assignments by expert, rows in order, so that an expert's decode rows come first. */
#pragma once
#include "arch/cuda/gemv.cuh"

#define ROUTE_WARPS (CU_ROUTE_THREADS / 32)

#define ROUTE_AS_ROW (CU_ROW_THREADS / CU_ROUTE_THREADS)
#define ROUTE_PARTS CU_DIV_UP(NIB_MAX_HIDDEN / 4, CU_ROUTE_THREADS) /* of a row, four numbers a thread each */

/* This thread's norm weights: read before the op before this one ends. */
__device__ __forceinline__ void route_weights(const struct nib_gpu_machine *m, uint32_t layer, uint2 w[ROUTE_PARTS])
{
    const uint2 *from = at<const uint2>(m->layer[layer].mlp_norm);
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_PARTS; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
        w[p] = i < m->hidden / 4 ? __ldg(from + i) : make_uint2(0, 0);
    }
}

/* This thread's part of a row of x. */
__device__ __forceinline__ void route_row(const struct nib_gpu_machine *m, uint32_t row, float4 v[ROUTE_PARTS])
{
    const float4 *x = at<const float4>(m->x, (uint64_t)row * m->hidden * 4);
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_PARTS; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
        v[p] = i < m->hidden / 4 ? x[i] : make_float4(0, 0, 0, 0);
    }
}

/* The sum of squares has the order of norm_row (arch/cuda/rows.cuh). Norms rows first .. first + count - 1; bf16 to shared memory, fp16 to acts by the block that `writes`. */
__device__ __forceinline__ void route_norm(const struct nib_gpu_machine *m, uint32_t first, uint32_t count, bool writes,
                                           const uint2 w[ROUTE_PARTS], const gemv_shared &sh)
{
    __shared__ float sums[CU_ROUTE_ROWS][CU_ROW_THREADS / 32];
    const uint32_t hidden = m->hidden, lane = threadIdx.x % 32;
    float4 v[ROUTE_PARTS];
    for (uint32_t r = 0; r < count; r++) {
        route_row(m, first + r, v);
        float sum[ROUTE_AS_ROW] = {}; /* as so many threads of norm_row have them */
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_PARTS; p++)
            sum[p % ROUTE_AS_ROW] = __fadd_rn(sum[p % ROUTE_AS_ROW], square4(v[p]));
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_AS_ROW; p++) {
            const float of_warp = warp_sum(sum[p]);
            if (lane == 0)
                sums[r][p * ROUTE_WARPS + threadIdx.x / 32] = of_warp;
        }
    }
    __syncthreads();
    for (uint32_t r = 0; r < count; r++) {
        if (count > 1)
            route_row(m, first + r, v);
        uint2 *acts = (uint2 *)acts_row(m, first + r);
        const float sum = warp_sum(lane < CU_ROW_THREADS / 32 ? sums[r][lane] : 0);
        const float scale = 1.0f / sqrtf(sum / (float)hidden + NIB_RMS_EPS);
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_PARTS; p++) {
            const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
            if (i >= hidden / 4)
                continue;
            const float4 y = normed(v[p], scale, bf16_four(w[p]));
            asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(sh.acts + r * sh.stride + i * 8), "r"(pack_bf16(y.x, y.y)),
                         "r"(pack_bf16(y.z, y.w))
                         : "memory");
            if (writes)
                acts[i] = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
        }
    }
}

/* The experts of one row, best first, ties to the lowest index, and the softmax over their logits. One warp; lane l has
 * the logits of experts l, l + 32, ... A NaN counts as the largest and makes the weights NaN. Returns the lane's choice and its
 * weight, lanes below experts_used. */
__device__ __forceinline__ uint32_t route_choose(uint32_t experts, uint32_t used, const float value[NIB_MAX_EXPERTS / 32],
                                                 float *ret_weight)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t key[NIB_MAX_EXPERTS / 32];
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++) {
        const uint32_t bits = __float_as_uint(value[i] + 0.0f);
        key[i] = lane + 32 * i >= experts ? 0 : bits & 0x80000000u ? ~bits | 1 : bits | 0x80000000u; /* 0: no candidate */
    }
    uint32_t mine = 0;
    float weight = 0, first = 0, sum = 0;
#pragma unroll
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
        uint32_t best = 0, index = 0;
        float logit = 0;
#pragma unroll
        for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
            if (key[i] > best) {
                best = key[i];
                index = lane + 32 * i;
                logit = value[i];
            }
        const uint32_t most = __reduce_max_sync(~0u, best);
        const uint32_t chosen = __reduce_min_sync(~0u, best == most ? index : ~0u);
        logit = __shfl_sync(~0u, logit, chosen % 32);
        first = c == 0 ? logit : first;
        const float w = c < used ? expf(logit - first) : 0;
        sum += w;
        if (lane == c) {
            mine = chosen;
            weight = w;
        }
#pragma unroll
        for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
            if (lane + 32 * i == chosen)
                key[i] = 0;
    }
    *ret_weight = weight / sum;
    return mine;
}

/* The choices of a row whose logits are in `route`, to `route`. One warp. */
__device__ __forceinline__ uint32_t route_pick(const struct nib_gpu_machine *m, uint32_t row)
{
    const uint32_t lane = threadIdx.x % 32, experts = m->experts, used = m->experts_used;
    const float *logits = route_logits(m) + (uint64_t)row * experts;
    float value[NIB_MAX_EXPERTS / 32], weight;
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        value[i] = lane + 32 * i < experts ? __ldcg(logits + lane + 32 * i) : 0;
    const uint32_t mine = route_choose(experts, used, value, &weight);
    if (lane < used) {
        route_array(m, 0)[row * used + lane] = mine;
        route_array(m, 1)[row * used + lane] = __float_as_uint(weight);
    }
    return mine;
}

struct route_counts {
    uint32_t warp[ROUTE_WARPS][NIB_MAX_EXPERTS]; /* of each warp's assignments; then the next place */
    uint32_t all[NIB_MAX_EXPERTS], decode[NIB_MAX_EXPERTS], begin[NIB_MAX_EXPERTS + 1];
};

/* Walks this warp's assignments [first, end) in order and counts them up in `next` by expert; seen(i, the count before). */
template <class Seen>
__device__ __forceinline__ void route_walk(const uint32_t *expert, uint32_t first, uint32_t end, uint32_t experts,
                                           uint32_t *next, Seen seen)
{
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = first; base < end; base += 32) {
        const uint32_t i = base + lane;
        const uint32_t e = i < end ? min(__ldcg(expert + i), experts - 1) : ~0u;
        const uint32_t peers = __match_any_sync(~0u, e);
        const uint32_t rank = __popc(peers & ((1u << lane) - 1));
        const uint32_t before = i < end ? next[e] : 0;
        __syncwarp();
        if (i < end && rank == 0)
            next[e] = before + __popc(peers);
        __syncwarp();
        if (i < end)
            seen(i, before + rank);
    }
}

/* Lists of at most `size` assignments each. One thread an expert; `offset` its first list. */
__device__ __forceinline__ void route_lists(struct cu_group *to, uint32_t at_list, uint32_t most, uint32_t expert,
                                            uint32_t place, uint32_t count, uint32_t size)
{
    for (uint32_t i = 0; i < count; i += size, at_list++)
        if (at_list < most)
            to[at_list] = {expert, place + i, min(size, count - i)};
}

/* Exclusive sum over the threads of the block, 128 of them used; all threads call it. */
__device__ __forceinline__ uint32_t route_scan(uint32_t v, uint32_t *ret_total)
{
    __shared__ uint32_t sums[NIB_MAX_EXPERTS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t other = __shfl_up_sync(~0u, sum, d);
        sum += (int)lane >= d ? other : 0;
    }
    __syncthreads();
    if (lane == 31 && warp < NIB_MAX_EXPERTS / 32)
        sums[warp] = sum;
    __syncthreads();
    uint32_t before = 0, total = 0;
#pragma unroll
    for (uint32_t w = 0; w < NIB_MAX_EXPERTS / 32; w++) {
        before += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    *ret_total = total;
    return before + sum - v;
}

/* A stable counting sort of the assignments by expert, by one block. */
__device__ __forceinline__ void route_group(const struct nib_gpu_machine *m, const struct nib_gpu_step *step)
{
    __shared__ struct route_counts n;
    const uint32_t used = m->experts_used, experts = m->experts, warp = threadIdx.x / 32;
    const uint32_t all = step->rows_count * used, decode = step->decode_count * used;
    const uint32_t per = CU_DIV_UP(CU_DIV_UP(all, ROUTE_WARPS), 32) * 32;
    const uint32_t first = min(warp * per, all), end = min(first + per, all);
    const uint32_t *expert = route_array(m, 0);
    uint32_t *place = route_array(m, 2), *rows = route_array(m, 3);
    for (uint32_t i = threadIdx.x; i < ROUTE_WARPS * NIB_MAX_EXPERTS; i += CU_ROUTE_THREADS)
        n.warp[i / NIB_MAX_EXPERTS][i % NIB_MAX_EXPERTS] = 0;
    for (uint32_t i = threadIdx.x; i < NIB_MAX_EXPERTS; i += CU_ROUTE_THREADS)
        n.decode[i] = 0;
    __syncthreads();
    route_walk(expert, first, end, experts, n.warp[warp], [](uint32_t, uint32_t) {});
    for (uint32_t i = threadIdx.x; i < decode; i += CU_ROUTE_THREADS)
        atomicAdd(&n.decode[min(__ldcg(expert + i), experts - 1)], 1u);
    __syncthreads();
    const uint32_t e = threadIdx.x;
    uint32_t count = 0, of_decode = 0, total;
    if (e < experts) {
        for (uint32_t w = 0; w < ROUTE_WARPS; w++)
            count += n.warp[w][e];
        of_decode = n.decode[e];
    }
    const uint32_t begin = route_scan(e < NIB_MAX_EXPERTS ? count : 0, &total);
    if (e < experts) {
        uint32_t next = begin;
        for (uint32_t w = 0; w < ROUTE_WARPS; w++) {
            const uint32_t of_warp = n.warp[w][e];
            n.warp[w][e] = next;
            next += of_warp;
        }
    }
    struct cu_route *head = route_head(m);
    uint32_t lists = CU_DIV_UP(of_decode, CU_GEMV_ROWS);
    uint32_t at_list = route_scan(lists, &total);
    route_lists(head->group, at_list, CU_GROUPS_MAX, e, begin, of_decode, CU_GEMV_ROWS);
    if (threadIdx.x == 0)
        head->groups = min(total, (uint32_t)CU_GROUPS_MAX);
    const uint32_t of_prompt = count - of_decode;
    lists = CU_DIV_UP(of_prompt, CU_GEMM_M);
    at_list = route_scan(lists, &total);
    /* lists of an expert are of like length, in 32s */
    const uint32_t length = lists ? CU_DIV_UP(CU_DIV_UP(of_prompt, lists), 32) * 32 : CU_GEMM_M;
    route_lists(head->group_prompt, at_list, CU_GROUPS_PROMPT_MAX, e, begin + of_decode, of_prompt, length);
    if (threadIdx.x == 0)
        head->groups_prompt = min(total, (uint32_t)CU_GROUPS_PROMPT_MAX);
    __syncthreads();
    route_walk(expert, first, end, experts, n.warp[warp], [&](uint32_t i, uint32_t to) {
        place[i] = to;
        rows[to] = i / used;
    });
}

/* The same for at most 32 assignments of at most CU_GEMV_ROWS rows, by one warp: lane i has the expert of assignment i. */
__device__ __forceinline__ void route_group_few(const struct nib_gpu_machine *m, const struct nib_gpu_step *step, uint32_t e)
{
    const uint32_t lane = threadIdx.x % 32, used = m->experts_used;
    const uint32_t all = step->rows_count * used, decode = step->decode_count * used;
    const bool there = lane < all;
    const uint32_t peers = __match_any_sync(~0u, there ? e : ~0u);
    const bool leads = there && (peers & ((1u << lane) - 1)) == 0;
    const uint32_t of_decode = decode >= 32 ? __popc(peers) : __popc(peers & ((1u << decode) - 1));
    const uint32_t of_prompt = __popc(peers) - of_decode;
    uint32_t before = 0, groups = 0, groups_prompt = 0; /* assignments and lists of smaller experts */
    for (uint32_t i = 0; i < all; i++) {
        const uint32_t other = __shfl_sync(~0u, e, i);
        const uint32_t lists = __shfl_sync(~0u, leads ? (of_decode ? 1u : 0) | (of_prompt ? 2u : 0) : 0, i);
        before += other < e;
        groups += other < e ? lists & 1 : 0;
        groups_prompt += other < e ? lists >> 1 : 0;
    }
    struct cu_route *head = route_head(m);
    if (there) {
        const uint32_t place = before + __popc(peers & ((1u << lane) - 1));
        route_array(m, 2)[lane] = place;
        route_array(m, 3)[place] = lane / used;
    }
    if (leads && of_decode)
        head->group[groups] = {e, before, of_decode};
    if (leads && of_prompt)
        head->group_prompt[groups_prompt] = {e, before + of_decode, of_prompt};
    const uint32_t decode_lists = __ballot_sync(~0u, leads && of_decode), prompt_lists = __ballot_sync(~0u, leads && of_prompt);
    if (lane == 0) {
        head->groups = __popc(decode_lists);
        head->groups_prompt = __popc(prompt_lists);
    }
}

/* Grid: x the tiles of experts, or 1 for all; y the groups of 8 rows. */
KERNEL(route, CU_ROUTE_THREADS, 1)
{
    __shared__ uint32_t ticket, picked[32];
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t k = m->hidden, units = k / CU_DENSE_UNIT, tiles = cu_tiles(m->experts);
    gemv_shared sh = gemv_carve<ROUTE_WARPS>(k, CU_ROUTE_RING * CU_DENSE_BYTES);
    dense_stream<ROUTE_WARPS, CU_ROUTE_RING> s;
    overlap_next();
    uint2 w[ROUTE_PARTS];
    route_weights(m, layer, w);
    prefetch(m->layer[layer].router_bias, m->experts * 2);
    s.open(m->layer[layer].router, units, blockIdx.x, gridDim.x, tiles, sh.ring);
    overlap_wait();
    const uint32_t first = blockIdx.y * CU_ROUTE_ROWS, all = step->rows_count;
    if (first >= all) {
        copy_wait<0>();
        if (all == 0 && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
            route_head(m)->groups = route_head(m)->groups_prompt = 0;
        return;
    }
    const uint32_t rows = min(all - first, (uint32_t)CU_ROUTE_ROWS);
    gemv_rows<ROUTE_WARPS>(sh, rows, CU_ROUTE_RING * CU_DENSE_BYTES);
    route_norm(m, first, rows, blockIdx.x == 0, w, sh);
    __syncthreads();
    dense_pass<1, ROUTE_WARPS, CU_ROUTE_RING>(
        s, sh, units, blockIdx.x, gridDim.x, tiles, rows, [&](uint32_t tile, uint32_t, const float c[4]) {
            const uint32_t lane = threadIdx.x % 32, row = lane % 4 * 2;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t e = tile * CU_TILE + lane / 4 + i / 2 * 8;
                if (e < m->experts && row + i % 2 < rows)
                    route_logits(m)[(uint64_t)(first + row + i % 2) * m->experts + e] =
                        c[i] + bf16_at(m->layer[layer].router_bias, e);
            }
        });
    copy_wait<0>();
    const bool alone = gridDim.x == 1; /* this block has all logits of its rows */
    if (alone && threadIdx.x / 32 < rows)
        route_pick(m, first + threadIdx.x / 32);
    __syncthreads();
    const uint32_t blocks = gridDim.x * CU_DIV_UP(all, CU_ROUTE_ROWS);
    if (threadIdx.x == 0) {
        __threadfence();
        ticket = atomicAdd(&at<struct cu_scratch>(m->scratch)->routed, 1u);
        __threadfence();
    }
    __syncthreads();
    if (ticket + 1 < blocks)
        return;
    const bool few = !alone && all <= CU_GEMV_ROWS && all * m->experts_used <= 32;
    if (!alone)
        for (uint32_t r = threadIdx.x / 32; r < all; r += ROUTE_WARPS) {
            const uint32_t mine = route_pick(m, r), lane = threadIdx.x % 32;
            if (few && lane < m->experts_used)
                picked[r * m->experts_used + lane] = mine;
        }
    __syncthreads();
    if (!few)
        route_group(m, step);
    else if (threadIdx.x < 32)
        route_group_few(m, step, picked[threadIdx.x]);
    if (threadIdx.x == 0)
        at<struct cu_scratch>(m->scratch)->routed = 0;
}
