/* arch/sm90/batch_attn_plan.cuh: which splits of a full layer's keys a block has, and shared memory in which its warps meet.
 *
 * They are dealt in chunks: a KV head of a row, or, of rows with many keys or of too few rows, some of its splits. A block's first two chunks are known from the
 * beginning. It gets further ones from a counter, since not all blocks get their keys equally fast. Splits of a head that blocks share go through m->partial, and that takes
 * longest at a block's end, so such chunks come first. */
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

/* Behind the warps' rings. */
struct batch_attn_shared {
    batch_attn_part part[CU_BATCH_ATTN_PARTS];
    uint64_t full[CU_BATCH_ATTN_PARTS], empty[CU_BATCH_ATTN_PARTS]; /* mbarriers */
    uint64_t dealt[CU_BATCH_ATTN_CHUNKS];                           /* so are they: a chunk is known */
    uint32_t chunk[CU_BATCH_ATTN_CHUNKS];                           /* as batch_attn_chunk has it */
    batch_attn_row row[NIB_MAX_SLOTS];
    uint32_t cut[NIB_MAX_SLOTS + 1]; /* chunks of all rows before that are cut; of all at the end */
    uint32_t all;                    /* of the others, too */
    uint8_t whole[NIB_MAX_SLOTS];    /* rows that are not cut: a chunk a KV head */
    uint32_t sum[3][CU_BATCH_ATTN_THREADS / 32];
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

/* The sum of what the threads up to this one have, and of what all have. All threads call it. */
__device__ __forceinline__ uint2 batch_attn_sums(uint32_t mine, uint32_t *sums)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint2 sum = make_uint2(mine, 0);
#pragma unroll
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(~0u, sum.x, d);
        sum.x += lane >= d ? x : 0;
    }
    if (lane == 31)
        sums[warp] = sum.x;
    __syncthreads();
#pragma unroll
    for (uint32_t w = 0; w < CU_BATCH_ATTN_THREADS / 32; w++) {
        sum.x += w < warp ? sums[w] : 0;
        sum.y += sums[w];
    }
    return sum;
}

/* The rows, and how they are cut, to shared memory. */
__device__ __forceinline__ void batch_attn_plan(const batch_attn_view &view, batch_attn_shared &sh)
{
    const struct nib_gpu_step *step = step_of(view.m);
    const uint32_t tid = threadIdx.x, blocks = gridDim.x, heads = view.kv_heads;
    const struct nib_row mine = step->rows[min(tid, (uint32_t)NIB_MAX_SLOTS - 1)]; /* read beside their number, whether it is one of them or not */
    batch_attn_row r = {0, 0, 0, 0};
    uint32_t weight = 0;
    if (tid < min(step->decode_count, (uint32_t)NIB_MAX_SLOTS)) {
        r = batch_attn_measure(view, mine, &weight);
        sh.row[tid] = r;
    }
    const uint32_t share = batch_attn_sums(weight, sh.sum[0]).y * heads / blocks, most = max(share / 16, (uint32_t)CU_BATCH_ATTN_WHOLE);
    const bool little = weight - 1 < most;
    const uint2 rows = batch_attn_sums(little, sh.sum[1]); /* with so few keys */
    /* As many of them stay whole as give every block a head, or some; what is left is cut so that every block has a part of it. */
    const uint32_t turns = (rows.y * heads + blocks / 6) / blocks, left = rows.y - min(turns * blocks / heads, rows.y);
    const bool whole = little && rows.x > left;
    uint32_t parts = CU_DIV_UP(weight, little ? max(share / 3, 8u) : most);
    if (little && turns > 0)
        parts = whole ? 0 : max(blocks / (left * heads), 1u);
    if (whole)
        sh.whole[rows.x - left - 1] = (uint8_t)tid;
    const uint2 cut = batch_attn_sums(min(parts, (uint32_t)r.splits) * heads, sh.sum[2]);
    if (tid < NIB_MAX_SLOTS)
        sh.cut[tid + 1] = cut.x;
    if (tid == 0) {
        sh.cut[0] = 0;
        sh.all = cut.y + (rows.y - left) * heads;
    }
    __syncthreads();
}

/* Row, KV head, split and number of splits of a chunk, 8 bits each, from the lowest on; 0: there are not so many. By a warp. */
__device__ __forceinline__ uint32_t batch_attn_chunk(const batch_attn_view &view, const batch_attn_shared &sh, uint32_t number)
{
    if (number >= sh.all)
        return 0;
    if (number >= sh.cut[NIB_MAX_SLOTS]) {
        const uint32_t i = (number - sh.cut[NIB_MAX_SLOTS]) / view.kv_heads, head = number - sh.cut[NIB_MAX_SLOTS] - i * view.kv_heads, row = sh.whole[i];
        return row | head << 8 | (uint32_t)sh.row[row].splits << 24;
    }
    uint32_t row = 0, behind;
    while ((behind = __ballot_sync(~0u, number < sh.cut[row + threadIdx.x % 32 + 1])) == 0)
        row += 32;
    row += __ffs((int)behind) - 1;
    const uint32_t first = sh.cut[row], parts = (sh.cut[row + 1] - first) / view.kv_heads, splits = sh.row[row].splits;
    const uint32_t head = (number - first) / parts, part = number - first - head * parts;
    const uint32_t split = part * splits / parts, end = (part + 1) * splits / parts;
    return row | head << 8 | split << 16 | (end - split) << 24;
}

/* This chunk of the block, to shared memory. By a warp. All but the first two are for whoever comes. */
__device__ __forceinline__ void batch_attn_deal(const batch_attn_view &view, batch_attn_shared &sh, uint32_t chunk)
{
    uint32_t number = chunk * gridDim.x + blockIdx.x;
    if (chunk >= 2) {
        uint32_t before = 0;
        overlap_wait();
        if (threadIdx.x % 32 == 0) {
            uint32_t *dealt = &at<struct cu_scratch>(view.m->scratch)->dealt;
            before = atomicAdd(dealt, 1);
            if (before + gridDim.x + 1 == sh.all) /* the last to ask, as each block does until there are no more */
                *dealt = 0;
        }
        number = 2 * gridDim.x + __shfl_sync(~0u, before, 0);
    }
    const uint32_t slot = (chunk - 1) % CU_BATCH_ATTN_CHUNKS, what = batch_attn_chunk(view, sh, number);
    if (threadIdx.x % 32 == 0)
        sh.chunk[slot] = what;
    bulk_arrive(smem_at(&sh.dealt[slot]));
}

/* A split of the block's. DEALS: for the warps that take keys in; one of them sees to the next chunk when it comes to one. */
template <bool DEALS> struct batch_attn_place {
    uint32_t at, count, chunk; /* of all; splits that are known, in so many chunks */
    uint32_t row, head, split;
    batch_attn_row of;

    __device__ __forceinline__ void open(const batch_attn_view &view, batch_attn_shared &sh)
    {
        at = count = chunk = 0;
        go(view, sh, batch_attn_chunk(view, sh, blockIdx.x));
    }

    __device__ __forceinline__ void go(const batch_attn_view &view, batch_attn_shared &sh, uint32_t what)
    {
        if (what == 0)
            return;
        if (DEALS && threadIdx.x / 32 - CU_BATCH_ATTN_JOINERS == chunk % CU_BATCH_ATTN_WARPS)
            batch_attn_deal(view, sh, chunk + 1);
        chunk++;
        row = what & 0xff;
        head = what >> 8 & 0xff;
        split = what >> 16 & 0xff;
        count += what >> 24;
        of = sh.row[row];
    }

    __device__ __forceinline__ bool there() const
    {
        return at < count;
    }

    /* Splits of the same row and head that follow each other here, from this one on. */
    __device__ __forceinline__ uint32_t run() const
    {
        return count - at;
    }

    /* On by `n` splits, of this row and head. */
    __device__ __forceinline__ void next(const batch_attn_view &view, batch_attn_shared &sh, uint32_t n)
    {
        at += n;
        split += n;
        if (at < count)
            return;
        const uint32_t slot = (chunk - 1) % CU_BATCH_ATTN_CHUNKS;
        bulk_wait(smem_at(&sh.dealt[slot]), (chunk - 1) / CU_BATCH_ATTN_CHUNKS & 1);
        go(view, sh, sh.chunk[slot]);
    }
};
