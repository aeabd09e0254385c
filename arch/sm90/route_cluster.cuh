/* arch/sm90/route_cluster.cuh: the router of a step of up to NIB_MAX_SLOTS rows, by clusters of ROUTE_WARPS blocks, which hand over through each other's shared
 * memory: words that come to an mbarrier, so that none waits for more than it needs. Block i of a cluster norms its rows i (and i + 8) and, when the sums
 * are there, picks their experts; and it has share i of the inputs, for all the cluster's rows and all experts, a warp a tile. Sums, their order and results
 * are those of the other form (arch/cuda/route.cuh).
 *
 * A single cluster's first block groups. Beside several there is one more cluster, whose first block does nothing else: each row's experts come to it as a
 * word in global memory that is not 0, which it waits for and sets back. It is of the last cluster, so that no block waits for one that has not begun. */
#pragma once
#include "arch/sm90/cluster.cuh"
#include "arch/sm90/route_cluster.h"

struct route_cluster {
    float squares[CU_ROUTE_EACH][CU_ROW_THREADS / 32]; /* of this block's rows: sums of the threads of norm_row */
    float scale[CU_ROUTE_EACH * ROUTE_WARPS];          /* of all rows of the cluster */
    uint32_t chosen[32];                               /* a single cluster's first block's: expert of an assignment */
    uint64_t came[3];                                  /* mbarriers: scales, parts, the chosen */
};
enum { ROUTE_SCALES, ROUTE_PARTS_CAME, ROUTE_CHOSEN };
static_assert(CU_ROUTE_BLOCKS == ROUTE_WARPS && NIB_MAX_EXPERTS_USED == 4 && NIB_MAX_EXPERTS < 255, "a row's experts are a word");

/* Where results go. Known before the op before this one has ended: found when it is needed, each of these would be a trip more. */
struct route_to {
    struct cu_route *head;
    float *logits, *weight;
    uint32_t *expert, *place, *row, *picked;
    uint8_t *acts;
    uint32_t experts, used, stride; /* bytes of a row of acts */

    __device__ __forceinline__ explicit route_to(const struct nib_gpu_machine *m)
        : head(route_head(m)), logits(route_logits(m)), weight((float *)route_array(m, 1)), expert(route_array(m, 0)), place(route_array(m, 2)),
          row(route_array(m, 3)), picked((uint32_t *)at<struct cu_scratch>(m->scratch)->picked), acts(acts_row(m, 0)), experts(m->experts), used(m->experts_used),
          stride(acts_stride16(m) * 16)
    {
        asm volatile("" : "+l"(head), "+l"(logits), "+l"(weight), "+l"(expert), "+l"(place), "+l"(row), "+l"(picked));
        asm volatile("" : "+l"(acts), "+r"(experts), "+r"(used), "+r"(stride));
    }
};

/* What a block knows of its work. */
struct route_job {
    uint32_t first, rows;   /* of the step, those of the cluster */
    uint32_t u0, units;     /* its share of the inputs */
    uint32_t acts, weights; /* shared addresses; weights: of this warp's tile, from this lane on */
    uint32_t parts;         /* of the logits of its rows: [row][share][tiles of experts] fp32 */
    uint32_t tiles;

    /* Of a block with `each` rows; `rows` is not known yet. */
    __device__ __forceinline__ route_job(const struct nib_gpu_machine *m, uint32_t each)
    {
        const uint32_t rank = blockIdx.x, at_acts = smem_at(gemv_dynamic), at_weights = at_acts + each * ROUTE_WARPS * CU_ROUTE_STRIDE;
        tiles = cu_tiles(m->experts);
        u0 = unit_first<ROUTE_WARPS>(m->hidden / CU_DENSE_UNIT, rank);
        units = unit_first<ROUTE_WARPS>(m->hidden / CU_DENSE_UNIT, rank + 1) - u0;
        acts = at_acts;
        parts = at_weights + tiles * CU_ROUTE_UNITS * CU_DENSE_BYTES;
        weights = at_weights + threadIdx.x / 32 * CU_ROUTE_UNITS * CU_DENSE_BYTES + threadIdx.x % 32 * 16;
        first = blockIdx.y * each * ROUTE_WARPS;
        rows = 0;
    }

    __device__ __forceinline__ uint32_t part(uint32_t j, uint32_t share, uint32_t e) const
    {
        return parts + (((j * ROUTE_WARPS + share) * tiles * CU_TILE) + e) * 4;
    }
};

/* Writes a word at this block's address `ours` in the block of that rank; it comes to that block's mbarrier. */
__device__ __forceinline__ void route_give(struct route_cluster &sh, uint32_t came, uint32_t ours, uint32_t rank, uint32_t v)
{
    const uint32_t there = cluster_at(ours, rank), bar = cluster_at(smem_at(&sh.came[came]), rank);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there), "r"(v), "r"(bar) : "memory");
}

/* The block's rows, of which thread i has parts i, i + CU_ROUTE_THREADS, ...: their scales to all blocks, then fp16 to acts. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_norm(uint32_t hidden, const route_to &to, const route_job &job, const uint2 w[ROUTE_FEW],
                                               const float4 (&v)[EACH][ROUTE_FEW], struct route_cluster &sh)
{
    static_assert(ROUTE_FEW == ROUTE_AS_ROW, "a part for each of the threads that this one stands for");
    const uint32_t lane = threadIdx.x % 32, rank = blockIdx.x;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW && j * ROUTE_WARPS + rank < job.rows; p++) {
            const float sum = warp_sum(__fadd_rn(0.0f, square4(v[j][p])));
            if (lane == 0)
                sh.squares[j][p * ROUTE_WARPS + threadIdx.x / 32] = sum;
        }
    __syncthreads();
    float scale[EACH];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t row = j * ROUTE_WARPS + rank;
        scale[j] = 0;
        if (row >= job.rows)
            continue;
        const float sum = warp_sum(lane < CU_ROW_THREADS / 32 ? sh.squares[j][lane] : 0);
        scale[j] = 1.0f / sqrtf(sum / (float)hidden + NIB_RMS_EPS);
        if (threadIdx.x < ROUTE_WARPS)
            route_give(sh, ROUTE_SCALES, smem_at(&sh.scale[row]), threadIdx.x, __float_as_uint(scale[j]));
    }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        uint2 *acts = (uint2 *)(to.acts + (uint64_t)(job.first + j * ROUTE_WARPS + rank) * to.stride);
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW && j * ROUTE_WARPS + rank < job.rows; p++) {
            const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
            const float4 y = normed(v[j][p], scale[j], bf16_four(w[p]));
            if (i < hidden / 4)
                acts[i] = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
        }
    }
    bulk_wait(smem_at(&sh.came[ROUTE_SCALES]), 0);
}

/* One warp: products of a tile with this block's share of the inputs, to the blocks that have the rows. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_tile(uint32_t experts, uint32_t tile, const route_job &job, struct route_cluster &sh)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float c[EACH][4] = {};
#pragma unroll 4
    for (uint32_t u = 0; u < job.units; u++) {
        const uint4 w0 = lds16(job.weights + u * CU_DENSE_BYTES), w1 = lds16(job.weights + u * CU_DENSE_BYTES + 512);
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            const uint32_t row = j * ROUTE_WARPS + g;
            const uint4 b = row < job.rows ? lds16(job.acts + row * CU_ROUTE_STRIDE + u * 64 + t * 16) : make_uint4(0, 0, 0, 0);
            mma_unit(c[j], w0, w1, b);
        }
    }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t e = tile * CU_TILE + g + i / 2 * 8, rank = t * 2 + i % 2;
            if (e < experts && j * ROUTE_WARPS + rank < job.rows)
                route_give(sh, ROUTE_PARTS_CAME, job.part(j, blockIdx.x, e), rank, __float_as_uint(c[j][i]));
        }
}

/* As route_choose, with the same bits, of up to 32 experts: a lane has the logit of one. */
__device__ __forceinline__ uint32_t route_choose_few(uint32_t experts, uint32_t used, float value, float *ret_weight)
{
    const uint32_t lane = threadIdx.x % 32, bits = __float_as_uint(value + 0.0f);
    uint32_t key = lane >= experts ? 0 : bits & 0x80000000u ? ~bits | 1 : bits | 0x80000000u, mine = 0; /* 0: no candidate */
#pragma unroll
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
        const uint32_t chosen = __ffs((int)__ballot_sync(~0u, key == __reduce_max_sync(~0u, key))) - 1;
        mine = lane == c ? chosen : mine;
        key = lane == chosen ? 0 : key;
    }
    const float logit = __shfl_sync(~0u, value, (int)mine), first = __shfl_sync(~0u, logit, 0);
    const float weight = lane < used ? expf(logit - first) : 0;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < NIB_MAX_EXPERTS_USED; c++)
        sum += __shfl_sync(~0u, weight, c);
    *ret_weight = (lane < used ? weight : sum) / sum; /* other lanes not 0 / sum: as in route_choose_rows */
    return mine;
}

/* One warp: the logits, experts and weights of this block's row j. Or, when it is not `live`, nothing: the program is there sooner for those who
 * are. */
__device__ __forceinline__ void route_cluster_pick(const route_to &to, uint32_t j, bool live, const route_job &job,
                                               const float bias[NIB_MAX_EXPERTS / 32], struct route_cluster &sh)
{
    const uint32_t lane = threadIdx.x % 32, experts = to.experts, used = to.used, row = job.first + j * ROUTE_WARPS + blockIdx.x;
    float value[NIB_MAX_EXPERTS / 32], weight;
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++) {
        const uint32_t e = lane + 32 * i;
        value[i] = 0;
        if (i * 32 >= experts)
            continue;
        float part[ROUTE_WARPS];
#pragma unroll
        for (uint32_t s = 0; s < ROUTE_WARPS; s++)
            part[s] = __uint_as_float(lds4(job.part(j, s, min(e, experts - 1))));
        float sum = part[0];
#pragma unroll
        for (uint32_t s = 1; s < ROUTE_WARPS; s++)
            sum += part[s];
        value[i] = e < experts ? sum + bias[i] : 0;
    }
    const uint32_t chosen = experts <= 32 ? route_choose_few(experts, used, value[0], &weight) : route_choose(experts, used, value, &weight);
    const uint32_t known = min(chosen, experts - 1);
    if (lane < used && live) {
        if (gridDim.y == 1)
            route_give(sh, ROUTE_CHOSEN, smem_at(&sh.chosen[row * used + lane]), 0, known);
        else
            ((volatile uint8_t *)(to.picked + row))[lane] = (uint8_t)(known + 1);
        to.expert[row * used + lane] = chosen;
        to.weight[row * used + lane] = weight;
    }
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        if (lane + 32 * i < experts && live)
            to.logits[(uint64_t)row * experts + lane + 32 * i] = value[i];
}

/* What the block that groups works with, where rows' shares and weights were. */
struct route_marks {
    uint32_t has[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS];   /* which of 32 rows have chosen the expert */
    uint32_t place[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS]; /* of the first of them */
};
static_assert(sizeof(struct route_marks) <= CU_ROUTE_BLOCKS * CU_ROUTE_STRIDE + CU_ROUTE_UNITS * CU_DENSE_BYTES &&
                  NIB_MAX_SLOTS <= CU_ROUTE_THREADS && NIB_MAX_EXPERTS <= CU_ROUTE_THREADS,
              "there is room; a thread a row, a thread an expert");

/* This thread's row's experts, plus 1, a byte each, when they are there; the next router finds 0. */
__device__ __forceinline__ uint32_t route_await(const route_to &to, uint32_t row)
{
    volatile uint32_t *from = to.picked + row;
    const uint32_t unused = to.used < 4 ? ~0u << 8 * to.used : 0;
    uint32_t word;
    do
        word = *from;
    while (__vcmpeq4(word | unused, 0));
    *from = 0;
    return word;
}

/* Groups the assignments of all rows by expert, rows in order: a row has an expert once. All threads of a block that does nothing else. What it
 * does it does twice, the first time for practice and before the op before this one has ended: the program is there then. */
__device__ __forceinline__ void route_group_marks(const struct nib_gpu_machine *m)
{
    struct route_marks &marks = *(struct route_marks *)gemv_dynamic;
    const route_to to(m);
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t used = to.used, row = threadIdx.x, e = threadIdx.x, word = row / 32, bit = 1u << row % 32;
    uint32_t rows = CU_ROUTE_THREADS, decode = CU_ROUTE_THREADS;
#pragma unroll 1
    for (uint32_t turn = 0; turn < 2; turn++) {
        if (turn) {
            __syncthreads(); /* marks are read */
            overlap_wait();
            rows = step->rows_count;
            decode = step->decode_count;
        }
        for (uint32_t i = threadIdx.x; i < sizeof marks.has / 16; i += CU_ROUTE_THREADS)
            ((uint4 *)marks.has)[i] = make_uint4(0, 0, 0, 0);
        __syncthreads();
        const uint32_t picks = turn && row < rows ? route_await(to, row) : 0x04030201;
#pragma unroll
        for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++)
            if (row < rows && c < used)
                atomicOr(&marks.has[word][(picks >> 8 * c & 255) - 1], bit);
        __syncthreads();
        uint32_t before[NIB_MAX_SLOTS / 32], count = 0, of_decode = 0;
#pragma unroll
        for (uint32_t w = 0; w < NIB_MAX_SLOTS / 32; w++) {
            const uint32_t has = e < to.experts ? marks.has[w][e] : 0;
            before[w] = count;
            count += __popc(has);
            of_decode += __popc(has & (decode >= w * 32 + 32 ? ~0u : decode <= w * 32 ? 0 : (1u << decode % 32) - 1));
        }
        const uint32_t begin = route_table(to.head, count, of_decode, cu_lists_short(decode, used, to.experts) ? CU_GEMV_ROWS : CU_LIST_ROWS, turn > 0);
#pragma unroll
        for (uint32_t w = 0; w < NIB_MAX_SLOTS / 32; w++)
            if (e < to.experts)
                marks.place[w][e] = begin + before[w];
        __syncthreads();
#pragma unroll
        for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
            if (row >= rows || c >= used)
                break;
            const uint32_t expert = (picks >> 8 * c & 255) - 1;
            const uint32_t place = marks.place[word][expert] + __popc(marks.has[word][expert] & (bit - 1));
            if (turn) {
                to.place[row * used + c] = place;
                to.row[place] = row;
            }
        }
    }
}

/* This block's weights: on their way before the op before this one has ended. */
__device__ __forceinline__ void route_cluster_weights(const struct nib_gpu_machine *m, uint32_t layer, const route_job &job)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < job.tiles) {
        const uint64_t policy = stream_policy(), all = m->hidden / CU_DENSE_UNIT;
        const uint8_t *from = at<const uint8_t>(m->layer[layer].router, (warp * all + job.u0) * CU_DENSE_BYTES + lane * 16);
#pragma unroll
        for (uint32_t u = 0; u < CU_ROUTE_UNITS; u++) {
            if (u >= job.units)
                break;
            copy16_stream(job.weights + u * CU_DENSE_BYTES, from + u * CU_DENSE_BYTES, policy);
            copy16_stream(job.weights + u * CU_DENSE_BYTES + 512, from + u * CU_DENSE_BYTES + 512, policy);
        }
    }
    copy_commit();
}

/* This block's share of the inputs of all the cluster's rows, normed, to shared memory: a warp has rows `warp` (and `warp` + 8). Ends with a barrier. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_share(const route_job &job, const uint2 w[ROUTE_FEW], const float4 (&part)[EACH][ROUTE_FEW],
                                                    const struct route_cluster &sh)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t theirs = j * ROUTE_WARPS + warp;
        const float scale = theirs < job.rows ? sh.scale[theirs] : 0;
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW; p++) {
            const uint32_t k = lane + p * 32;
            const float4 y = normed(part[j][p], scale, bf16_four(w[p]));
            if (theirs < job.rows && k < job.units * 8)
                asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(job.acts + theirs * CU_ROUTE_STRIDE + k * 8), "r"(pack_bf16(y.x, y.y)),
                             "r"(pack_bf16(y.z, y.w))
                             : "memory");
        }
    }
    copy_wait<0>();
    __syncthreads();
}

/* The mbarriers are told how much comes; one thread. */
template <uint32_t EACH> __device__ __forceinline__ void route_cluster_expect(const route_job &job, const route_to &to, struct route_cluster &sh)
{
    const uint32_t rank = blockIdx.x;
    uint32_t mine = 0;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
        mine += j * ROUTE_WARPS + rank < job.rows;
    bulk_expect(smem_at(&sh.came[ROUTE_SCALES]), job.rows * 4);
    bulk_expect(smem_at(&sh.came[ROUTE_PARTS_CAME]), mine * ROUTE_WARPS * to.experts * 4);
    bulk_expect(smem_at(&sh.came[ROUTE_CHOSEN]), gridDim.y == 1 && rank == 0 ? job.rows * to.used * 4 : 0);
}

/* The mbarriers are there, and other blocks hear of it. All threads. */
__device__ __forceinline__ void route_cluster_open(struct route_cluster &sh)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 3; i++)
            bulk_open(smem_at(&sh.came[i]));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

/* A block ends when all that others write to it has come. Weights, norm and biases are asked for before the op before this one has ended. From layer 1
 * on the step block may be read as early, since the expert products of the layer before wait for all that came before them. */
template <uint32_t EACH> __device__ __forceinline__ void route_cluster(const struct nib_gpu_machine *m, uint32_t layer)
{
    __shared__ struct route_cluster sh;
    if (gridDim.y > 1 && blockIdx.y + 1 == gridDim.y) {
        if (blockIdx.x == 0)
            route_group_marks(m);
        return;
    }
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t rank = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, hidden = m->hidden, experts = m->experts;
    route_job job(m, EACH);
    route_cluster_open(sh);
    route_cluster_weights(m, layer, job);
    const uint2 *norm = at<const uint2>(m->layer[layer].mlp_norm);
    uint2 w[ROUTE_FEW], w_share[ROUTE_FEW];
    float bias[NIB_MAX_EXPERTS / 32];
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS, j = lane + p * 32;
        w[p] = i < hidden / 4 ? __ldg(norm + i) : make_uint2(0, 0);
        w_share[p] = j < job.units * 8 ? __ldg(norm + job.u0 * 8 + j) : make_uint2(0, 0);
    }
#pragma unroll
    for (uint32_t i = 0; i < NIB_MAX_EXPERTS / 32; i++)
        bias[i] = warp < EACH && lane + 32 * i < experts ? bf16_at(m->layer[layer].router_bias, lane + 32 * i) : 0;
    const route_to to(m);
    uint32_t all = layer ? step->rows_count : 0;
    overlap_wait();
    all = layer ? all : step->rows_count;
    job.rows = min(all - min(all, job.first), EACH * ROUTE_WARPS);
    float4 v[EACH][ROUTE_FEW], part[EACH][ROUTE_FEW];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint32_t mine = j * ROUTE_WARPS + rank, theirs = j * ROUTE_WARPS + warp; /* of the latter this warp takes a share */
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW; p++) {
            const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS, k = lane + p * 32;
            const float4 *x = at<const float4>(m->x) + (uint64_t)job.first * (hidden / 4);
            v[j][p] = mine < job.rows && i < hidden / 4 ? x[mine * (hidden / 4) + i] : make_float4(0, 0, 0, 0);
            part[j][p] = theirs < job.rows && k < job.units * 8 ? x[theirs * (hidden / 4) + job.u0 * 8 + k] : make_float4(0, 0, 0, 0);
        }
    }
    cluster_begun();
    if (job.rows == 0) {
        if (gridDim.y == 1 && rank == 0 && warp == 0) /* a step without rows */
            route_group_few(m, step, ~0u);
        copy_wait<0>();
        return;
    }
    if (threadIdx.x == 0)
        route_cluster_expect<EACH>(job, to, sh);
    route_cluster_norm<EACH>(hidden, to, job, w, v, sh);
    route_cluster_share<EACH>(job, w_share, part, sh);
    if (warp < job.tiles)
        route_cluster_tile<EACH>(to.experts, warp, job, sh);
    const bool live = warp < EACH && warp * ROUTE_WARPS + rank < job.rows;
    if (live || (warp == ROUTE_WARPS - 1 && job.tiles < ROUTE_WARPS)) {
        if (live)
            bulk_wait(smem_at(&sh.came[ROUTE_PARTS_CAME]), 0);
        route_cluster_pick(to, live ? warp : 0, live, job, bias, sh);
    }
    if (gridDim.y == 1 && rank == 0 && warp == 0) {
        bulk_wait(smem_at(&sh.came[ROUTE_CHOSEN]), 0);
        route_group_few(m, step, lane < all * to.used ? sh.chosen[lane] : ~0u);
    }
}
