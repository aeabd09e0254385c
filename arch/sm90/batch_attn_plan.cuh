/* arch/sm90/batch_attn_plan.cuh: which splits of a full layer's keys a block has, and shared memory in which its warps meet.
 *
 * The step's splits, in the order of (row, KV head, split), are dealt to the blocks in runs of like numbers of keys. */
#pragma once
#include "arch/sm90/batch_attn_form.cuh"

/* A split's groups. Dim d of a head h lies at d ^ batch_attn_mix(h). */
struct batch_attn_part {
    float o[ATTN_KEY_WARPS][NIB_GQA_GROUP][NIB_HEAD_DIM];
    float max[ATTN_KEY_WARPS][NIB_GQA_GROUP], sum[ATTN_KEY_WARPS][NIB_GQA_GROUP];
};

__device__ __forceinline__ uint32_t batch_attn_mix(uint32_t h)
{
    return h / 2 % 4 * 8;
}

struct batch_attn_row {
    uint32_t pos;
    uint16_t slot;
    uint8_t splits, doublings; /* of the keys of a split */
};

/* The first split of a block: `at` is its number among all. */
struct batch_attn_cut {
    uint32_t row, head, split, at;
};

/* Behind the warps' rings. */
struct batch_attn_shared {
    batch_attn_part part[CU_BATCH_ATTN_PARTS];
    uint64_t full[CU_BATCH_ATTN_PARTS], empty[CU_BATCH_ATTN_PARTS]; /* mbarriers */
    batch_attn_row row[NIB_MAX_SLOTS];
    uint2 sum[CU_BATCH_ATTN_THREADS / 32]; /* of a warp's rows: weights, splits of a head */
    batch_attn_cut cut[2];
    uint32_t last;
};
static_assert(sizeof(batch_attn_shared) <= CU_BATCH_ATTN_MEET, "the table says less");
static_assert(CU_BATCH_ATTN_THREADS >= NIB_MAX_SLOTS, "a thread a row");

/* A row's splits; weight: steps of a block's groups through its keys. */
__device__ __forceinline__ batch_attn_row batch_attn_measure(const batch_attn_view &view, const nib_row &r,
                                                             uint32_t *ret_weight)
{
    const uint32_t keys = cu_split_keys(r.pos);
    *ret_weight = r.pos / CU_ATTN_KEYS + 1;
    return {r.pos, r.slot, (uint8_t)(r.pos / keys + 1), (uint8_t)(31 - __clz(keys / CU_ATTN_KEYS))};
}

/* The row's split at or after a weight that lies in it. `before`: weights and splits of the rows before it, a head each. */
__device__ __forceinline__ batch_attn_cut batch_attn_cut_at(const batch_attn_row &r, uint32_t row, uint32_t kv_heads,
                                                            uint32_t weight, uint2 before, uint32_t at)
{
    const uint32_t head = at / weight, split = (at % weight + (1u << r.doublings) - 1) >> r.doublings;
    batch_attn_cut cut = {row, head, split, before.y * kv_heads + head * r.splits + split};
    if (cut.split == r.splits) {
        cut.split = 0;
        cut.head++;
    }
    if (cut.head == kv_heads) {
        cut.head = 0;
        cut.row++;
    }
    return cut;
}

/* The rows, and the two ends of this block's run of splits, to shared memory. */
__device__ __forceinline__ void batch_attn_plan(const batch_attn_view &view, batch_attn_shared &sh)
{
    const struct nib_gpu_step *step = step_of(view.m);
    const uint32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32, kv_heads = view.kv_heads;
    const uint32_t rows = min(step->decode_count, (uint32_t)NIB_MAX_SLOTS);
    batch_attn_row r = {0, 0, 0, 0};
    uint32_t weight = 0;
    if (tid < rows) {
        r = batch_attn_measure(view, step->rows[tid], &weight);
        sh.row[tid] = r;
    }
    uint2 sum = make_uint2(weight, r.splits);
#pragma unroll
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(~0u, sum.x, d), y = __shfl_up_sync(~0u, sum.y, d);
        sum.x += lane >= d ? x : 0;
        sum.y += lane >= d ? y : 0;
    }
    if (lane == 31)
        sh.sum[warp] = sum;
    __syncthreads();
    uint2 before = make_uint2(sum.x - weight, sum.y - r.splits), all = make_uint2(0, 0);
#pragma unroll
    for (uint32_t w = 0; w < CU_BATCH_ATTN_THREADS / 32; w++) {
        const uint2 of = sh.sum[w];
        before.x += w < warp ? of.x : 0;
        before.y += w < warp ? of.y : 0;
        all.x += of.x;
        all.y += of.y;
    }
    const uint32_t total = all.x * kv_heads, first = before.x * kv_heads;
#pragma unroll
    for (uint32_t side = 0; side < 2; side++) {
        const uint32_t at = (uint32_t)((uint64_t)total * (blockIdx.x + side) / gridDim.x);
        if (at >= first && at < first + weight * kv_heads)
            sh.cut[side] = batch_attn_cut_at(r, tid, kv_heads, weight, before, at - first);
        if (at == total && tid == 0)
            sh.cut[side] = {rows, 0, 0, all.y * kv_heads};
    }
    __syncthreads();
}

/* A split of the block's run. What the block shares with the next one comes first, so that neither waits for the other at its end. */
struct batch_attn_place {
    uint32_t at, turn, count; /* of the run; the one at which its beginning follows; all */
    uint32_t row, head, split;
    batch_attn_row of;

    __device__ __forceinline__ void open(const batch_attn_shared &sh)
    {
        const batch_attn_cut &a = sh.cut[0], &b = sh.cut[1];
        const bool turned = b.split != 0 && (a.row != b.row || a.head != b.head);
        at = 0;
        count = b.at - a.at;
        turn = turned ? b.split : 0;
        go(sh, turned ? b.row : a.row, turned ? b.head : a.head, turned ? 0 : a.split);
    }

    __device__ __forceinline__ void go(const batch_attn_shared &sh, uint32_t to_row, uint32_t to_head,
                                       uint32_t to_split)
    {
        row = to_row;
        head = to_head;
        split = to_split;
        if (at < count)
            of = sh.row[row];
    }

    __device__ __forceinline__ bool there() const
    {
        return at < count;
    }

    /* Splits of the same row and head that follow each other here, from this one on. */
    __device__ __forceinline__ uint32_t run() const
    {
        return min(of.splits - split, (at < turn ? turn : count) - at);
    }

    /* On by `n` splits, of this row and head. */
    __device__ __forceinline__ void next(const batch_attn_shared &sh, uint32_t kv_heads, uint32_t n)
    {
        at += n;
        split += n;
        if (at == turn)
            go(sh, sh.cut[0].row, sh.cut[0].head, sh.cut[0].split);
        else if (split == of.splits)
            go(sh, head + 1 == kv_heads ? row + 1 : row, head + 1 == kv_heads ? 0 : head + 1, 0);
    }
};
