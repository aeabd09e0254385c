/* arch/sm90/route_cluster.cuh: the router of a step of up to NIB_MAX_SLOTS rows, by clusters of ROUTE_WARPS blocks, which hand over through each other's shared
 * memory: words that come to an mbarrier, so that none waits for more than it needs. Block i of a cluster has share i of the inputs, for all the cluster's rows
 * and all experts, of which a warp takes one unit or two; its sums go to the blocks that have the rows. Block i norms its rows i (and i + 8) meanwhile and, when their
 * sums are there, picks their experts. Results are those of the other form (arch/cuda/route.cuh).
 *
 * A single cluster's first block groups. Beside several there is one more cluster, whose first block does nothing else: each row's experts come to it as a
 * word in global memory that is not 0, which it waits for and sets back. It is of the last cluster, so that no block waits for one that has not begun. */
#pragma once
#include "arch/sm90/batch_acts.cuh"
#include "arch/sm90/cluster.cuh"
#include "arch/sm90/route_cluster.h"

struct route_cluster {
    float squares[CU_ROUTE_EACH][CU_ROW_THREADS / 32]; /* of this block's rows: sums of the threads of norm_row */
    uint32_t chosen[32];                               /* a single cluster's first block's: expert of an assignment */
    uint64_t came[2];                                  /* mbarriers: shares' sums, the chosen */
};
enum { ROUTE_SUMS, ROUTE_CHOSEN };
static_assert(CU_ROUTE_BLOCKS == ROUTE_WARPS && NIB_MAX_EXPERTS_USED == 4 && NIB_MAX_EXPERTS < 255, "a row's experts are a word");
#define ROUTE_OWN CU_DIV_UP(CU_ROUTE_UNITS, ROUTE_WARPS) /* units of a warp: warp, warp + 8 of the share */

/* Where results go. Known before the op before this one has ended: found when it is needed, each of these would be a trip more. */
struct route_to {
    struct cu_route *head;
    float *logits, *weight;
    uint32_t *expert, *place, *row, *picked;
    uint8_t *acts, *lines; /* of rows; for the experts' products of many */
    uint32_t experts, used, stride; /* bytes of a row of acts */

    __device__ __forceinline__ explicit route_to(const struct nib_gpu_machine *m)
        : head(route_head(m)), logits(route_logits(m)), weight((float *)route_array(m, 1)), expert(route_array(m, 0)), place(route_array(m, 2)),
          row(route_array(m, 3)), picked((uint32_t *)at<struct cu_scratch>(m->scratch)->picked), acts(acts_row(m, 0)),
          lines(batch_acts(m)), experts(m->experts), used(m->experts_used), stride(acts_stride16(m) * 16)
    {
        asm volatile("" : "+l"(head), "+l"(logits), "+l"(weight), "+l"(expert), "+l"(place), "+l"(row), "+l"(picked));
        asm volatile("" : "+l"(acts), "+l"(lines), "+r"(experts), "+r"(used), "+r"(stride));
    }
};

/* What a block knows of its work. */
struct route_job {
    uint32_t first, rows;   /* of the step, those of the cluster */
    uint32_t u0, units;     /* its share of the inputs */
    uint32_t weights, sums; /* shared addresses: weights [unit][tile]; sums of its rows [row][share][expert] int64 */
    uint32_t norm;          /* the norm's weights */
    uint32_t tiles;

    /* Of a block with `each` rows; `rows` is not known yet. */
    __device__ __forceinline__ route_job(const struct nib_gpu_machine *m, uint32_t each)
    {
        const uint32_t rank = blockIdx.x;
        tiles = cu_tiles(m->experts);
        u0 = unit_first<ROUTE_WARPS>(m->hidden / CU_DENSE_UNIT, rank);
        units = unit_first<ROUTE_WARPS>(m->hidden / CU_DENSE_UNIT, rank + 1) - u0;
        weights = smem_at(gemv_dynamic);
        sums = weights + cu_route_room(each) * tiles * CU_DENSE_BYTES;
        norm = sums + each * ROUTE_WARPS * tiles * CU_TILE * 8;
        first = blockIdx.y * each * ROUTE_WARPS;
        rows = 0;
    }

    __device__ __forceinline__ uint32_t weights_at(uint32_t unit, uint32_t tile) const
    {
        return weights + (unit * tiles + tile) * CU_DENSE_BYTES;
    }

    /* Warp w's sum of an expert for row j * 8 + i, where its weights were. The order of experts is another in each pair of rows, so that lanes that write meet in no bank. */
    __device__ __forceinline__ uint32_t part(uint32_t w, uint32_t j, uint32_t i, uint32_t e) const
    {
        return weights_at(j * ROUTE_WARPS + w, e / CU_TILE) + (i * CU_TILE + (e % CU_TILE ^ i / 2 * 4)) * 8;
    }

    __device__ __forceinline__ uint32_t sum(uint32_t j, uint32_t share, uint32_t e) const
    {
        return sums + ((j * ROUTE_WARPS + share) * tiles * CU_TILE + e) * 8;
    }
};

__device__ __forceinline__ int64_t lds_sum(uint32_t p)
{
    int64_t v;
    asm volatile("ld.shared.b64 %0, [%1];" : "=l"(v) : "r"(p));
    return v;
}

/* Writes a word, or two, at this block's address `ours` in the block of that rank; they come to that block's mbarrier. */
__device__ __forceinline__ void route_give(struct route_cluster &sh, uint32_t came, uint32_t ours, uint32_t rank, uint32_t v)
{
    const uint32_t there = cluster_at(ours, rank), bar = cluster_at(smem_at(&sh.came[came]), rank);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(there), "r"(v), "r"(bar) : "memory");
}

__device__ __forceinline__ void route_give(struct route_cluster &sh, uint32_t came, uint32_t ours, uint32_t rank, int64_t v)
{
    const uint32_t there = cluster_at(ours, rank), bar = cluster_at(smem_at(&sh.came[came]), rank);
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];" ::"r"(there), "l"(v), "r"(bar) : "memory");
}

/* The sums of squares of the block's rows, of which thread i has parts i, i + CU_ROUTE_THREADS, ...: each warp's part. */
template <uint32_t EACH> __device__ __forceinline__ void route_cluster_squares(const float4 (&v)[EACH][ROUTE_FEW], struct route_cluster &sh)
{
    static_assert(ROUTE_FEW == ROUTE_AS_ROW, "a part for each of the threads that this one stands for");
    float sum[EACH][ROUTE_FEW];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW; p++)
            sum[j][p] = warp_sum(__fadd_rn(0.0f, square4(v[j][p])));
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
            for (uint32_t p = 0; p < ROUTE_FEW; p++)
                sh.squares[j][p * ROUTE_WARPS + threadIdx.x / 32] = sum[j][p];
}

/* The scale of the norm of the block's row j. */
__device__ __forceinline__ float route_cluster_scale(uint32_t hidden, uint32_t j, const struct route_cluster &sh)
{
    const uint32_t lane = threadIdx.x % 32;
    const float sum = warp_sum(lane < CU_ROW_THREADS / 32 ? sh.squares[j][lane] : 0);
    return norm_scale(sum, hidden);
}

/* The block's row j in fp16 to acts, and to lines where the launch may be of a step with long lists. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_acts(uint32_t hidden, const route_to &to, const route_job &job, uint32_t j, float scale,
                                                   const float4 (&v)[ROUTE_FEW])
{
    const uint32_t row = job.first + j * ROUTE_WARPS + blockIdx.x;
    const bool lines = !cu_lists_short((gridDim.y - 1) * ROUTE_WARPS * EACH, to.used, to.experts);
    uint2 *acts = (uint2 *)(to.acts + (uint64_t)row * to.stride);
#pragma unroll
    for (uint32_t p = 0; p < ROUTE_FEW; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROUTE_THREADS;
        if (i >= hidden / 4)
            break;
        const float4 y = normed(v[p], scale, bf16_four(lds8(job.norm + i * 8)));
        const uint2 words = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
        acts[i] = words;
        if (lines)
            batch_acts_put_mx(to.lines, row, hidden, i * 2, words);
    }
}

/* This warp's units' part of all logits, to where its weights were. own: a lane's 8 inputs of a unit and row. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_multiply(const route_job &job, const float4 (&own)[ROUTE_OWN][EACH][2])
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint4 b[ROUTE_OWN][EACH] = {};
#pragma unroll
    for (uint32_t i = 0; i < ROUTE_OWN; i++) {
        const uint32_t u = i * ROUTE_WARPS + warp;
        if (u >= job.units)
            break;
        const uint4 w = lds16(job.norm + (job.u0 + u) * CU_DENSE_UNIT * 2 + t * 16);
        const float4 lo = bf16_four(make_uint2(w.x, w.y)), hi = bf16_four(make_uint2(w.z, w.w));
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            const float4 x = own[i][j][0], y = own[i][j][1];
            b[i][j] = make_uint4(route_inputs(x.x, x.y, lo.x, lo.y), route_inputs(x.z, x.w, lo.z, lo.w), route_inputs(y.x, y.y, hi.x, hi.y),
                                 route_inputs(y.z, y.w, hi.z, hi.w));
        }
    }
#pragma unroll 1 /* short programs are there soon */
    for (uint32_t tile = 0; tile < job.tiles; tile++) {
        int64_t sum[EACH][4] = {};
#pragma unroll
        for (uint32_t i = 0; i < ROUTE_OWN; i++) {
            const uint32_t u = i * ROUTE_WARPS + warp, from = job.weights_at(u, tile) + lane * 16;
            if (u >= job.units)
                break;
            const uint4 w0 = lds16(from), w1 = lds16(from + 512);
            float c[EACH][2][4];
#pragma unroll
            for (uint32_t j = 0; j < EACH; j++) {
                route_parts(c[j][0], w0, w1, b[i][j], 0);
                route_parts(c[j][1], w0, w1, b[i][j], 1);
            }
#pragma unroll
            for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
                for (uint32_t k = 0; k < 4; k++)
                    sum[j][k] += route_fixed(c[j][0][k]) + route_fixed(c[j][1][k]);
        }
        __syncwarp(); /* the tile's weights are read */
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                asm volatile("st.shared.b64 [%0], %1;" ::"r"(job.part(warp, j, t * 2 + i % 2, tile * CU_TILE + g + i / 2 * 8)), "l"(sum[j][i]) : "memory");
    }
}

/* The block's share of a row's logits, a warp a row, to the block that has the row. */
template <uint32_t EACH>
__device__ __forceinline__ void route_cluster_give(uint32_t experts, const route_job &job, struct route_cluster &sh)
{
    const uint32_t warp = threadIdx.x / 32;
#pragma unroll 1
    for (uint32_t j = 0; j < EACH && j * ROUTE_WARPS + warp < job.rows; j++)
#pragma unroll 1
        for (uint32_t e = threadIdx.x % 32; e < experts; e += 32) {
            int64_t sum = 0;
#pragma unroll
            for (uint32_t w = 0; w < ROUTE_WARPS; w++)
                sum += lds_sum(job.part(w, j, warp, e));
            route_give(sh, ROUTE_SUMS, job.sum(j, blockIdx.x, e), warp, sum);
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

/* One warp: the logits, experts and weights of this block's row j. bias: of experts lane, lane + 32, ... */
template <uint32_t N>
__device__ __forceinline__ void route_cluster_pick(const route_to &to, uint32_t j, const route_job &job,
                                               const float (&bias)[N], float scale, struct route_cluster &sh)
{
    const uint32_t lane = threadIdx.x % 32, experts = to.experts, used = to.used, row = job.first + j * ROUTE_WARPS + blockIdx.x;
    float value[NIB_MAX_EXPERTS / 32] = {}, weight;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t e = lane + 32 * i;
        if (i * 32 >= experts)
            continue;
        int64_t sum = 0;
#pragma unroll
        for (uint32_t s = 0; s < ROUTE_WARPS; s++)
            sum += lds_sum(job.sum(j, s, min(e, experts - 1)));
        value[i] = e < experts ? route_logit(sum, scale, bias[i]) : 0;
    }
    const uint32_t chosen = N == 1 || experts <= 32 ? route_choose_few(experts, used, value[0], &weight) : route_choose(experts, used, value, &weight);
    const uint32_t known = min(chosen, experts - 1);
    if (lane < used) {
        if (gridDim.y == 1)
            route_give(sh, ROUTE_CHOSEN, smem_at(&sh.chosen[row * used + lane]), 0, known);
        else
            ((volatile uint8_t *)(to.picked + row))[lane] = (uint8_t)(known + 1);
        to.expert[row * used + lane] = chosen;
        to.weight[row * used + lane] = weight;
    }
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        if (lane + 32 * i < experts)
            to.logits[(uint64_t)row * experts + lane + 32 * i] = value[i];
}

/* What the block that groups works with, where weights were. */
struct route_marks {
    uint32_t has[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS];   /* which of 32 rows have chosen the expert */
    uint32_t place[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS]; /* of the first of them */
};
static_assert(sizeof(struct route_marks) <= CU_ROUTE_UNITS * CU_DENSE_BYTES &&
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

/* This warp's weights, and the norm's: on their way before the op before this one has ended. */
__device__ __forceinline__ void route_cluster_weights(const struct nib_gpu_machine *m, uint32_t layer, const route_job &job)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint64_t policy = stream_policy(), all = m->hidden / CU_DENSE_UNIT;
#pragma unroll
    for (uint32_t i = 0; i < ROUTE_OWN; i++) {
        const uint32_t u = i * ROUTE_WARPS + warp;
#pragma unroll 1
        for (uint32_t tile = 0; tile < job.tiles && u < job.units; tile++) {
            const uint8_t *from = at<const uint8_t>(m->layer[layer].router, (tile * all + job.u0 + u) * CU_DENSE_BYTES + lane * 16);
            const uint32_t to = job.weights_at(u, tile) + lane * 16;
            copy16_stream(to, from, policy);
            copy16_stream(to + 512, from + 512, policy);
        }
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x * 16; i < m->hidden * 2; i += CU_ROUTE_THREADS * 16)
        copy16(job.norm + i, at<const uint8_t>(m->layer[layer].mlp_norm, i), true);
    copy_commit();
}

/* The mbarriers are told how much comes; one thread. */
template <uint32_t EACH> __device__ __forceinline__ void route_cluster_expect(const route_job &job, const route_to &to, struct route_cluster &sh)
{
    const uint32_t rank = blockIdx.x;
    uint32_t mine = 0;
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
        mine += j * ROUTE_WARPS + rank < job.rows;
    bulk_expect(smem_at(&sh.came[ROUTE_SUMS]), mine * ROUTE_WARPS * to.experts * 8);
    bulk_expect(smem_at(&sh.came[ROUTE_CHOSEN]), gridDim.y == 1 && rank == 0 ? job.rows * to.used * 4 : 0);
}

/* The mbarriers are there, and other blocks hear of it. All threads. */
__device__ __forceinline__ void route_cluster_open(struct route_cluster &sh)
{
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < 2; i++)
            bulk_open(smem_at(&sh.came[i]));
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

/* With EACH rows a block and up to 32 N experts. A block ends when all that others write to it has come. Weights, norm and biases are asked for before the
 * op before this one has ended. From layer 1 on the step block may be read as early, since the expert products of the layer before wait for all that came before them. */
template <uint32_t EACH, uint32_t N> __device__ __forceinline__ void route_cluster(const struct nib_gpu_machine *m, uint32_t layer)
{
    __shared__ struct route_cluster sh;
    if (gridDim.y > 1 && blockIdx.y + 1 == gridDim.y) {
        if (blockIdx.x == 0)
            route_group_marks(m);
        return;
    }
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t rank = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4, hidden = m->hidden, experts = m->experts;
    route_job job(m, EACH);
    route_cluster_open(sh);
    route_cluster_weights(m, layer, job);
    float bias[N];
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        bias[i] = warp < EACH && lane + 32 * i < experts ? bf16_at(m->layer[layer].router_bias, lane + 32 * i) : 0;
    const route_to to(m);
    const uint8_t *x_own[EACH], *x_row[EACH]; /* of the lane's inputs of the warp's first unit; of the block's rows */
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++) {
        const uint64_t row = job.first + j * ROUTE_WARPS;
        x_own[j] = at<const uint8_t>(m->x, (row + lane / 4) * hidden * 4 + (job.u0 + warp) * CU_DENSE_UNIT * 4 + t * 32);
        x_row[j] = at<const uint8_t>(m->x, (row + rank) * hidden * 4 + threadIdx.x * 16);
    }
    uint32_t all = layer ? step->rows_count : 0;
    cluster_begun();
    overlap_wait();
    all = layer ? all : step->rows_count;
    job.rows = min(all - min(all, job.first), EACH * ROUTE_WARPS);
    float4 own[ROUTE_OWN][EACH][2] = {}, v[EACH][ROUTE_FEW] = {};
#pragma unroll
    for (uint32_t i = 0; i < ROUTE_OWN; i++)
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++) {
            if (i * ROUTE_WARPS + warp >= job.units || j * ROUTE_WARPS + lane / 4 >= job.rows)
                break;
            const float4 *from = (const float4 *)(x_own[j] + i * ROUTE_WARPS * CU_DENSE_UNIT * 4);
            own[i][j][0] = from[0];
            own[i][j][1] = from[1];
        }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
        for (uint32_t p = 0; p < ROUTE_FEW; p++)
            if (j * ROUTE_WARPS + rank < job.rows && threadIdx.x + p * CU_ROUTE_THREADS < hidden / 4)
                v[j][p] = *(const float4 *)(x_row[j] + p * CU_ROUTE_THREADS * 16);
    if (threadIdx.x == CU_ROUTE_THREADS - 32) /* of a warp that has no more than one unit */
        route_cluster_expect<EACH>(job, to, sh);
    copy_wait<0>();
    __syncthreads();
    if (job.rows == 0) {
        if (gridDim.y == 1 && rank == 0 && warp == 0) /* a step without rows */
            route_group_few(m, step, ~0u);
        return;
    }
    route_cluster_multiply<EACH>(job, own);
    __syncthreads();
    route_cluster_give<EACH>(experts, job, sh);
    route_cluster_squares<EACH>(v, sh);
    __syncthreads();
    float scale[EACH];
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
        scale[j] = route_cluster_scale(hidden, j, sh);
    if (warp < EACH && warp * ROUTE_WARPS + rank < job.rows) {
        bulk_wait(smem_at(&sh.came[ROUTE_SUMS]), 0);
        route_cluster_pick(to, warp, job, bias, EACH > 1 && warp ? scale[EACH - 1] : scale[0], sh);
    }
#pragma unroll
    for (uint32_t j = 0; j < EACH; j++)
        if (j * ROUTE_WARPS + rank < job.rows)
            route_cluster_acts<EACH>(hidden, to, job, j, scale[j], v[j]);
    if (gridDim.y == 1 && rank == 0 && warp == 0) {
        bulk_wait(smem_at(&sh.came[ROUTE_CHOSEN]), 0);
        route_group_few(m, step, lane < all * to.used ? sh.chosen[lane] : ~0u);
    }
}
