/* arch/cuda/route.cuh: the router. A block norms up to 8 rows for the experts (fp16), computes their logits for a
 * tile of 16 experts, or for all; the last block to finish picks each row's experts where the others have not, and groups all
 * assignments by expert, rows in order, so that an expert's decode rows come first. */
#pragma once
#include "arch/cuda/gemv.cuh"

#define ROUTE_WARPS (CU_ROUTE_THREADS / 32)

#define ROUTE_AS_ROW (CU_ROW_THREADS / CU_ROUTE_THREADS)
#define ROUTE_PARTS  CU_DIV_UP(NIB_MAX_HIDDEN / 4, CU_ROUTE_THREADS) /* of a row, four numbers a thread each */
#define ROUTE_SIDE   4 /* rows whose experts a warp picks side by side */
#define ROUTE_FEW    3 /* parts of today's models' rows: of them several rows are on their way at once */

/* A row's logits are sums of integers: whoever has a tile of x, CU_TILE inputs, adds its part whenever it likes, and the bits stay. A part is what mma
 * gives of one unit whose other tile is zeros, from zero on, in steps of 1 / ROUTE_STEPS. Inputs are x w in bf16: the norm's scale, which all of x must be known for,
 * multiplies the sum. A part beyond ROUTE_MOST counts as that: x w of a million, weights of a half. */
#define ROUTE_MOST  8388608.0f  /* 2^23 */
#define ROUTE_STEPS 16777216.0f /* 2^24 */
static_assert(NIB_MAX_HIDDEN / CU_TILE < 1 << 16, "sums of parts of 2^47 steps fit in 63 bits");

/* Two of the router's inputs. */
__device__ __forceinline__ uint32_t route_inputs(float x0, float x1, float w0, float w1)
{
    return pack_bf16(__fmul_rn(x0, w0), __fmul_rn(x1, w1));
}

/* A part in steps. A NaN is one of the ends: the norm's scale is one then, too. */
__device__ __forceinline__ int64_t route_fixed(float part)
{
    return __float2ll_rn(fminf(fmaxf(part, -ROUTE_MOST), ROUTE_MOST) * ROUTE_STEPS);
}

__device__ __forceinline__ float route_logit(int64_t sum, float scale, float bias)
{
    return __fmaf_rn(__ll2float_rn(sum), __fmul_rn(scale, 1 / ROUTE_STEPS), bias);
}

/* The parts of tile `half` of a unit, 0 or 1: weights as they lie, inputs 16 bytes, those of the other tile's lanes of no matter. */
__device__ __forceinline__ void route_parts(float c[4], uint4 w0, uint4 w1, uint4 b, uint32_t half)
{
    c[0] = c[1] = c[2] = c[3] = 0;
    mma_unit(c, w0, w1, threadIdx.x % 4 / 2 == half ? b : make_uint4(0, 0, 0, 0));
}

/* Adds them. */
__device__ __forceinline__ void route_add(int64_t sum[4], uint4 w0, uint4 w1, uint4 b, uint32_t half)
{
    float c[4];
    route_parts(c, w0, w1, b, half);
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum[i] += route_fixed(c[i]);
}

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

/* The router's inputs of rows first .. first + count - 1, ROWS of them at a time, whose PARTS parts hold all of a row, to shared memory; norms' scales to
 * scales; normed in fp16 to acts by the block that `writes`. The sum of squares has the order of norm_row (arch/cuda/rows.cuh). */
template <uint32_t PARTS, uint32_t ROWS>
__device__ __forceinline__ void route_norm(const struct nib_gpu_machine *m, uint32_t first, uint32_t count, bool writes,
                                           const uint2 w[ROUTE_PARTS], const gemv_shared &sh, float scales[CU_ROUTE_ROWS])
{
    __shared__ float sums[CU_ROUTE_ROWS][CU_ROW_THREADS / 32];
    const uint32_t hidden = m->hidden, lane = threadIdx.x % 32;
    for (uint32_t r0 = 0; r0 < count; r0 += ROWS) {
        float4 v[ROWS][PARTS];
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            const float4 *x = at<const float4>(m->x, (uint64_t)(first + r0 + r) * hidden * 4);
#pragma unroll
            for (uint32_t p = 0; p < PARTS; p++) {
                const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
                v[r][p] = r0 + r < count && i < hidden / 4 ? x[i] : make_float4(0, 0, 0, 0);
            }
        }
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            float sum[ROUTE_AS_ROW] = {}; /* as so many threads of norm_row have them */
#pragma unroll
            for (uint32_t p = 0; p < PARTS; p++)
                sum[p % ROUTE_AS_ROW] = __fadd_rn(sum[p % ROUTE_AS_ROW], square4(v[r][p]));
            if (r0 + r >= count)
                continue;
#pragma unroll
            for (uint32_t p = 0; p < ROUTE_AS_ROW; p++) {
                const float of_warp = warp_sum(sum[p]);
                if (lane == 0)
                    sums[r0 + r][p * ROUTE_WARPS + threadIdx.x / 32] = of_warp;
            }
        }
        __syncthreads();
#pragma unroll
        for (uint32_t r = 0; r < ROWS; r++) {
            if (r0 + r >= count)
                continue;
            uint2 *acts = (uint2 *)acts_row(m, first + r0 + r);
            const float sum = warp_sum(lane < CU_ROW_THREADS / 32 ? sums[r0 + r][lane] : 0);
            const float scale = norm_scale(sum, hidden);
            if (threadIdx.x == 0)
                scales[r0 + r] = scale;
#pragma unroll
            for (uint32_t p = 0; p < PARTS; p++) {
                const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
                if (i >= hidden / 4)
                    continue;
                const float4 x = v[r][p], g = bf16_four(w[p]);
                asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(sh.acts + (r0 + r) * sh.stride + i * 8),
                             "r"(route_inputs(x.x, x.y, g.x, g.y)), "r"(route_inputs(x.z, x.w, g.z, g.w))
                             : "memory");
                const float4 y = normed(x, scale, g);
                const uint2 words = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
                if (writes)
                    acts[i] = words;
#if NIB_SM >= 90
                if (writes && first + r0 + r < NIB_MAX_SLOTS && !cu_lists_short(NIB_MAX_SLOTS, m->experts_used, m->experts))
                    batch_acts_put_mx(batch_acts(m), first + r0 + r, hidden, i * 2, words);
#endif
            }
        }
    }
}

/* Nothing to be done before all is known. */
struct route_waits {
    __device__ __forceinline__ void operator()(const uint32_t *) const
    {
    }
};

/* The experts of N rows, best first, ties to the lowest index, and the softmax over their logits. One warp; lane l has
 * the logits of experts l, l + 32, ... A NaN counts as the largest and makes the weights NaN. *mine is the lane's choice and *ret_weight
 * its weight, lanes below experts_used. best_known(those of the rows) is called as soon as these are known. */
template <int N, class First = route_waits>
__device__ __forceinline__ void route_choose_rows(uint32_t experts, uint32_t used, const float value[N][NIB_MAX_EXPERTS / 32],
                                             uint32_t mine[N], float ret_weight[N], First best_known = First())
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t key[N][NIB_MAX_EXPERTS / 32];
    float first[N], sum[N];
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++) {
            const uint32_t bits = __float_as_uint(value[n][i] + 0.0f);
            key[n][i] = lane + 32 * i >= experts ? 0 : bits & 0x80000000u ? ~bits | 1 : bits | 0x80000000u; /* 0: no candidate */
        }
        mine[n] = 0;
        ret_weight[n] = first[n] = sum[n] = 0;
    }
#pragma unroll
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
        uint32_t best[N], index[N], most[N], chosen[N];
        float logit[N];
#pragma unroll
        for (int n = 0; n < N; n++) {
            best[n] = index[n] = 0;
            logit[n] = 0;
#pragma unroll
            for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
                if (key[n][i] > best[n]) {
                    best[n] = key[n][i];
                    index[n] = lane + 32 * i;
                    logit[n] = value[n][i];
                }
        }
        /* rows side by side: each of these takes a while */
#pragma unroll
        for (int n = 0; n < N; n++)
            most[n] = __reduce_max_sync(~0u, best[n]);
#pragma unroll
        for (int n = 0; n < N; n++)
            chosen[n] = __reduce_min_sync(~0u, best[n] == most[n] ? index[n] : ~0u);
        if (c == 0)
            best_known(chosen);
#pragma unroll
        for (int n = 0; n < N; n++)
            logit[n] = __shfl_sync(~0u, logit[n], chosen[n] % 32);
#pragma unroll
        for (int n = 0; n < N; n++) {
            first[n] = c == 0 ? logit[n] : first[n];
            const float w = c < used ? expf(logit[n] - first[n]) : 0;
            sum[n] += w;
            if (lane == c) {
                mine[n] = chosen[n];
                ret_weight[n] = w;
            }
#pragma unroll
            for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
                if (lane + 32 * i == chosen[n])
                    key[n][i] = 0;
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++) /* other lanes not 0 / sum, for which the division calls a function that is in no cache */
        ret_weight[n] = (lane < used ? ret_weight[n] : sum[n]) / sum[n];
}

/* Of one row: returns the lane's choice. */
template <class First = route_waits>
__device__ __forceinline__ uint32_t route_choose(uint32_t experts, uint32_t used, const float value[NIB_MAX_EXPERTS / 32],
                                                 float *ret_weight, First best_known = First())
{
    float row[1][NIB_MAX_EXPERTS / 32];
    uint32_t mine[1];
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        row[0][i] = value[i];
    route_choose_rows<1>(experts, used, row, mine, ret_weight, best_known);
    return mine[0];
}

/* The choices of rows first, first + step, ... below end, N of them, to `route`; logit(row, e) is that of expert e; took(row, expert)
 * is called by the lanes below experts_used. One warp. */
template <int N, class Logit, class Took>
__device__ __forceinline__ void route_pick(const struct nib_gpu_machine *m, uint32_t first, uint32_t step, uint32_t end, Logit logit,
                                           Took took)
{
    const uint32_t lane = threadIdx.x % 32, experts = m->experts, used = m->experts_used;
    float value[N][NIB_MAX_EXPERTS / 32], weight[N];
    uint32_t mine[N];
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
            value[n][i] = lane + 32 * i < experts && first + n * step < end ? logit(first + n * step, lane + 32 * i) : 0;
    route_choose_rows<N>(experts, used, value, mine, weight);
#pragma unroll
    for (int n = 0; n < N; n++) {
        const uint32_t row = first + n * step;
        if (lane >= used || row >= end)
            continue;
        route_array(m, 0)[row * used + lane] = mine[n];
        route_array(m, 1)[row * used + lane] = __float_as_uint(weight[n]);
        took(row, mine[n]);
    }
}

struct route_counts {
    uint32_t warp[ROUTE_WARPS][NIB_MAX_EXPERTS]; /* of each warp's assignments; then the next place */
    uint32_t decode[NIB_MAX_EXPERTS];
};

/* What the last block works with, where the weights were: the expert of each assignment, and logits when it picks. */
#define ROUTE_PICKED (CU_ROUTE_SPREAD * NIB_MAX_EXPERTS_USED) /* bytes: assignments of steps whose rows it picks */
static_assert(ROUTE_PICKED + CU_ROUTE_SPREAD * NIB_MAX_EXPERTS * 4 <= ROUTE_WARPS * (CU_ROUTE_RING * CU_DENSE_BYTES + 1024),
              "the logits of a step with CU_ROUTE_SPREAD rows fit in rings and sums");
#define ROUTE_BYTES (NIB_MAX_STEP_ROWS * NIB_MAX_EXPERTS_USED) /* a byte an assignment; behind them the counts */
static_assert(ROUTE_BYTES + sizeof(struct route_counts) <= ROUTE_WARPS * CU_ROUTE_RING_MANY * CU_DENSE_BYTES && NIB_MAX_EXPERTS <= 256,
              "assignments and counts fit in rings");

__device__ __forceinline__ uint8_t *route_experts()
{
    return (uint8_t *)gemv_dynamic;
}

/* Lists of at most `size` assignments each. One thread an expert; `offset` its first list. */
__device__ __forceinline__ void route_lists(struct cu_group *to, uint32_t at_list, uint32_t most, uint32_t expert,
                                            uint32_t place, uint32_t count, uint32_t size)
{
    for (uint32_t i = 0; i < count; i += size, at_list++)
        if (at_list < most)
            to[at_list] = {expert, place + i, min(size, count - i)};
}

#define ROUTE_FIELD 20 /* bits of a number of assignments or lists: three in a word */

/* Exclusive sum over the threads of the block, of which those below NIB_MAX_EXPERTS have any; all threads call it, once. */
__device__ __forceinline__ uint64_t route_scan(uint64_t v, uint64_t *ret_total)
{
    __shared__ uint64_t sums[NIB_MAX_EXPERTS / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint64_t sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint64_t other = __shfl_up_sync(~0u, sum, d);
        sum += (int)lane >= d ? other : 0;
    }
    if (lane == 31 && warp < NIB_MAX_EXPERTS / 32)
        sums[warp] = sum;
    __syncthreads();
    uint64_t before = 0, total = 0;
#pragma unroll
    for (uint32_t w = 0; w < NIB_MAX_EXPERTS / 32; w++) {
        before += w < warp ? sums[w] : 0;
        total += sums[w];
    }
    *ret_total = total;
    return before + sum - v;
}

/* All lists, those of decode rows none longer than `most`. Thread e has the numbers of expert e's assignments, and of those of decode rows, 0 and 0
 * when there is no such expert; returns its first place. All threads of the block call it. `writes`: not when it is only for practice. */
__device__ __forceinline__ uint32_t route_table(struct cu_route *head, uint32_t count, uint32_t of_decode, uint32_t most, bool writes)
{
    const uint32_t e = threadIdx.x, of_prompt = count - of_decode;
    const uint32_t lists = CU_DIV_UP(of_decode, most), lists_prompt = CU_DIV_UP(of_prompt, CU_GEMM_M);
    uint64_t total;
    const uint64_t before = route_scan(count | (uint64_t)lists << ROUTE_FIELD | (uint64_t)lists_prompt << 2 * ROUTE_FIELD, &total);
    const uint32_t mask = (1u << ROUTE_FIELD) - 1, begin = (uint32_t)before & mask;
    /* lists of an expert are of like length, in 8s, prompt rows' in 32s */
    uint32_t length = lists && CU_LIST_ROWS > 8 ? CU_DIV_UP(CU_DIV_UP(of_decode, lists), 8) * 8 : most;
    route_lists(head->group, (uint32_t)(before >> ROUTE_FIELD) & mask, writes ? CU_GROUPS_MAX : 0, e, begin, of_decode, length);
    length = lists_prompt ? CU_DIV_UP(CU_DIV_UP(of_prompt, lists_prompt), 32) * 32 : CU_GEMM_M;
    route_lists(head->group_prompt, (uint32_t)(before >> 2 * ROUTE_FIELD), writes ? CU_GROUPS_PROMPT_MAX : 0, e, begin + of_decode,
                of_prompt, length);
    if (threadIdx.x == 0 && writes) {
        head->groups = min((uint32_t)(total >> ROUTE_FIELD) & mask, (uint32_t)CU_GROUPS_MAX);
        head->groups_prompt = min((uint32_t)(total >> 2 * ROUTE_FIELD), (uint32_t)CU_GROUPS_PROMPT_MAX);
    }
    return begin;
}

/* A stable counting sort of the assignments by expert, by one block: each warp has a part of them, in order. */
__device__ __forceinline__ void route_group(const struct nib_gpu_machine *m, uint32_t all, uint32_t decode)
{
    struct route_counts &n = *(struct route_counts *)(route_experts() + ROUTE_BYTES);
    const uint32_t used = m->experts_used, experts = m->experts, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t per = CU_DIV_UP(CU_DIV_UP(all, ROUTE_WARPS), 32) * 32;
    const uint32_t first = min(warp * per, all), end = min(first + per, all);
    const uint8_t *expert = route_experts();
    for (uint32_t i = threadIdx.x; i < sizeof n / 4; i += CU_ROUTE_THREADS)
        (&n.warp[0][0])[i] = 0; /* `decode` lies behind */
    __syncthreads();
    for (uint32_t i = first + lane; i < end; i += 32) {
        atomicAdd(&n.warp[warp][expert[i]], 1u);
        if (i < decode)
            atomicAdd(&n.decode[expert[i]], 1u);
    }
    __syncthreads();
    const uint32_t e = threadIdx.x;
    uint32_t of_warp[ROUTE_WARPS], count = 0, of_decode = 0;
#pragma unroll
    for (uint32_t w = 0; w < ROUTE_WARPS; w++) {
        of_warp[w] = e < experts ? n.warp[w][e] : 0;
        count += of_warp[w];
    }
    if (e < experts)
        of_decode = n.decode[e];
    uint32_t next = route_table(route_head(m), count, of_decode, cu_lists_short(decode / used, used, experts) ? CU_GEMV_ROWS : CU_LIST_ROWS, true);
#pragma unroll
    for (uint32_t w = 0; w < ROUTE_WARPS; w++) {
        if (e < experts)
            n.warp[w][e] = next;
        next += of_warp[w];
    }
    __syncthreads();
    uint32_t *place = route_array(m, 2), *rows = route_array(m, 3), *counted = n.warp[warp];
    for (uint32_t base = first; base < end; base += 32) {
        const uint32_t i = base + lane, mine = i < end ? expert[i] : ~0u;
        const uint32_t peers = __match_any_sync(~0u, mine), rank = __popc(peers & ((1u << lane) - 1));
        const uint32_t to = i < end ? counted[mine] + rank : 0;
        __syncwarp();
        if (i < end && rank == 0)
            counted[mine] = to + __popc(peers);
        __syncwarp();
        if (i < end) {
            place[i] = to;
            rows[to] = i / used;
        }
    }
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

/* Logits of `rows` rows from `first` on, to `route`; a warp has a share of a tile's units. */
template <int RING>
__device__ __forceinline__ void route_logits_of(const struct nib_gpu_machine *m, uint32_t layer, dense_stream<ROUTE_WARPS, RING> &s,
                                                const gemv_shared &sh, uint32_t first, uint32_t rows, const float scales[CU_ROUTE_ROWS])
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, experts = m->experts;
    const uint32_t acts = sh.acts + g * sh.stride + unit_first<ROUTE_WARPS>(m->hidden / CU_DENSE_UNIT, warp) * 64 + lane % 4 * 16;
    int64_t *sums = (int64_t *)sh.sums; /* [warp][expert][row] */
    for (uint32_t tile = blockIdx.x; tile < cu_tiles(experts); tile += gridDim.x) {
        int64_t sum[4] = {};
        for (uint32_t u = 0; u < s.per; u++) {
            uint4 w[1][2];
            s.pop(w);
            const uint4 b = g < rows ? lds16(acts + u * 64) : make_uint4(0, 0, 0, 0);
            route_add(sum, w[0][0], w[0][1], b, 0);
            route_add(sum, w[0][0], w[0][1], b, 1);
        }
        longlong2 *mine = (longlong2 *)(sums + warp * CU_TILE * CU_ROUTE_ROWS);
        mine[lane] = make_longlong2(sum[0], sum[1]);
        mine[lane + 32] = make_longlong2(sum[2], sum[3]);
        __syncthreads();
        const uint32_t e = tile * CU_TILE + threadIdx.x / CU_ROUTE_ROWS, row = threadIdx.x % CU_ROUTE_ROWS;
        if (threadIdx.x < CU_TILE * CU_ROUTE_ROWS && e < experts && row < rows) {
            int64_t all = 0;
#pragma unroll
            for (uint32_t i = 0; i < ROUTE_WARPS; i++)
                all += sums[i * CU_TILE * CU_ROUTE_ROWS + threadIdx.x];
            route_logits(m)[(uint64_t)(first + row) * experts + e] = route_logit(all, scales[row], bf16_at(m->layer[layer].router_bias, e));
        }
        __syncthreads();
    }
    copy_wait<0>();
}

/* The last block: the experts of all rows' assignments to shared memory, picked here or by the blocks that have all logits of their rows. */
__device__ __forceinline__ void route_gather(const struct nib_gpu_machine *m, uint32_t all, bool picked)
{
    uint8_t *expert = route_experts();
    const uint32_t experts = m->experts, used = m->experts_used;
    if (picked) { /* the last words of four may lie behind the last assignment */
        const uint4 *from = (const uint4 *)route_array(m, 0);
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i * 4 < all * used; i += CU_ROUTE_THREADS) {
            const uint4 e = __ldcg(from + i);
            const uint32_t most = experts - 1;
            ((uint32_t *)expert)[i] = min(e.x, most) | min(e.y, most) << 8 | min(e.z, most) << 16 | min(e.w, most) << 24;
        }
        return;
    }
    float *logits = (float *)(expert + ROUTE_PICKED);
    const float4 *from = (const float4 *)route_logits(m);
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i * 4 < all * experts; i += CU_ROUTE_THREADS)
        ((float4 *)logits)[i] = __ldcg(from + i);
    __syncthreads();
    const auto logit = [&](uint32_t row, uint32_t e) { return logits[row * experts + e]; };
    const auto took = [&](uint32_t row, uint32_t e) { expert[row * used + threadIdx.x % 32] = (uint8_t)min(e, experts - 1); };
    if (all <= ROUTE_WARPS)
        route_pick<1>(m, threadIdx.x / 32, ROUTE_WARPS, all, logit, took);
    else
        for (uint32_t r = threadIdx.x / 32; r < all; r += ROUTE_WARPS * ROUTE_SIDE)
            route_pick<ROUTE_SIDE>(m, r, ROUTE_WARPS, all, logit, took);
}

template <int RING> __device__ __forceinline__ void route_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const bool alone = gridDim.x == 1; /* a block has all logits of its rows */
    __shared__ uint32_t ticket;
    __shared__ float scales[CU_ROUTE_ROWS];
    const struct nib_gpu_step *step = step_of(m);
    gemv_shared sh = gemv_carve<ROUTE_WARPS>(m->hidden, RING * CU_DENSE_BYTES);
    dense_stream<ROUTE_WARPS, RING> s;
    uint2 w[ROUTE_PARTS];
    route_weights(m, layer, w);
    prefetch(m->layer[layer].router_bias, m->experts * 2);
    s.open(m->layer[layer].router, m->hidden / CU_DENSE_UNIT, blockIdx.x, gridDim.x, cu_tiles(m->experts), sh.ring);
    overlap_wait();
    const uint32_t all = step->rows_count, most = cu_route_rows(all, gridDim.y), first = blockIdx.y * most;
    if (first >= all) {
        copy_wait<0>();
        if (all == 0 && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
            route_head(m)->groups = route_head(m)->groups_prompt = 0;
        return;
    }
    const uint32_t rows = min(all - first, most);
    gemv_rows<ROUTE_WARPS>(sh, rows, RING * CU_DENSE_BYTES);
    if (m->hidden > ROUTE_FEW * CU_ROUTE_THREADS * 4)
        route_norm<ROUTE_PARTS, 1>(m, first, rows, blockIdx.x == 0, w, sh, scales);
    else
        route_norm<ROUTE_FEW, CU_ROUTE_ROWS / 2>(m, first, rows, blockIdx.x == 0, w, sh, scales);
    __syncthreads();
    route_logits_of<RING>(m, layer, s, sh, first, rows, scales);
    if (alone && threadIdx.x / 32 < rows)
        route_pick<1>(
            m, first + threadIdx.x / 32, ROUTE_WARPS, first + rows,
            [&](uint32_t row, uint32_t e) { return __ldcg(route_logits(m) + (uint64_t)row * m->experts + e); },
            [](uint32_t, uint32_t) {});
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        ticket = atomicAdd(&at<struct cu_scratch>(m->scratch)->routed, 1u);
        __threadfence();
    }
    __syncthreads();
    if (ticket + 1 < gridDim.x * CU_DIV_UP(all, most))
        return;
    route_gather(m, all, alone);
    __syncthreads();
    const uint32_t used = m->experts_used;
    if (all > CU_GEMV_ROWS || all * used > 32)
        route_group(m, all * used, step->decode_count * used);
    else if (threadIdx.x < 32)
        route_group_few(m, step, threadIdx.x < all * used ? route_experts()[threadIdx.x] : ~0u);
    if (threadIdx.x == 0)
        at<struct cu_scratch>(m->scratch)->routed = 0;
}

#if NIB_SM >= 90
#include "arch/sm90/route_cluster.cuh"
#endif

/* Grid: x the tiles of experts, or 1 for all; y groups of rows: cu_route_rows. Or clusters, along y. */
KERNEL(route, CU_ROUTE_THREADS, 2)
{
    overlap_next();
#if NIB_SM >= 90
    if (cluster_blocks() > 1) {
        if (dynamic_shared_bytes() == cu_route_cluster_bytes(1, m->experts))
            if (m->experts <= 32)
                route_cluster<1, 1>(m, layer);
            else
                route_cluster<1, NIB_MAX_EXPERTS / 32>(m, layer);
        else /* of up to 32 experts: cu_route_each */
            route_cluster<CU_ROUTE_EACH, 1>(m, layer);
        return;
    }
#endif
    if (dynamic_shared_bytes() == cu_route_bytes(CU_ROUTE_RING_MANY, CU_ROUTE_ROWS, m->hidden))
        route_rows<CU_ROUTE_RING_MANY>(m, layer);
    else
        route_rows<CU_ROUTE_RING>(m, layer);
}
