/* arch/sm90/batch_attn_plan.cuh: which splits of a full layer's keys a block gets, and shared memory in which its warps meet.
 *
 * Keys are dealt in chunks (batch_attn_chunks.cuh). A block's first two are known from the beginning. It gets further ones from a counter, since not all blocks get their
 * keys equally fast. */
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

/* Behind the warps' rings. */
struct batch_attn_shared {
    batch_attn_part part[CU_BATCH_ATTN_PARTS];
    cu_attn_chunk chunk[CU_BATCH_ATTN_CHUNKS];
    uint64_t full[CU_BATCH_ATTN_PARTS], empty[CU_BATCH_ATTN_PARTS]; /* mbarriers */
    uint64_t dealt[CU_BATCH_ATTN_CHUNKS];                           /* so are they: a chunk is known */
    uint32_t last;

    /* All threads call it, then a barrier. */
    __device__ __forceinline__ void open()
    {
        const uint32_t warp = threadIdx.x / 32;
        if (threadIdx.x % 32)
            return;
        for (uint32_t i = warp; i < CU_BATCH_ATTN_CHUNKS; i += CU_BATCH_ATTN_THREADS / 32)
            bulk_init<1>(smem_at(&dealt[i]));
        if (warp < CU_BATCH_ATTN_PARTS) {
            bulk_init<ATTN_KEY_WARPS>(smem_at(&full[warp]));
            bulk_init<CU_BATCH_ATTN_JOINERS>(smem_at(&empty[warp]));
        }
    }
};
static_assert(sizeof(batch_attn_shared) <= CU_BATCH_ATTN_MEET, "the table says less");
static_assert(CU_BATCH_ATTN_THREADS / 32 >= CU_BATCH_ATTN_PARTS, "a warp an mbarrier");

/* A chunk, by its number; of no splits: there are not so many. */
__device__ __forceinline__ cu_attn_chunk batch_attn_chunk(const batch_attn_view &view, uint32_t number)
{
    const struct cu_scratch *from = at<const struct cu_scratch>(view.scratch);
    const uint32_t all = __ldcg(&from->chunks);
    union {
        uint4 words;
        cu_attn_chunk chunk;
    } what = {__ldcg((const uint4 *)&from->chunk[min(number, CU_ATTN_CHUNKS - 1u)])};
    if (number >= all)
        what.words = make_uint4(0, 0, 0, 0);
    return what.chunk;
}

/* This chunk of the block, to shared memory. By a warp. All but the first two are for whoever comes. */
__device__ __forceinline__ void batch_attn_deal(const batch_attn_view &view, batch_attn_shared &sh, uint32_t chunk)
{
    uint32_t number = chunk * gridDim.x + blockIdx.x;
    if (chunk >= 2)
        overlap_wait();
    if (threadIdx.x % 32 == 0) {
        struct cu_scratch *to = at<struct cu_scratch>(view.scratch);
        if (chunk >= 2) {
            const uint32_t before = atomicAdd(&to->dealt, 1);
            if (before + gridDim.x + 1 == __ldcg(&to->chunks)) /* the last to ask, as each block does until there are no more */
                to->dealt = 0;
            number = 2 * gridDim.x + before;
        }
        sh.chunk[(chunk - 1) % CU_BATCH_ATTN_CHUNKS] = batch_attn_chunk(view, number);
    }
    bulk_arrive(smem_at(&sh.dealt[(chunk - 1) % CU_BATCH_ATTN_CHUNKS]));
}

/* A split of the block's. DEALS: for the warps that take keys in; one of them sees to the next chunk when it comes to one. */
template <bool DEALS> struct batch_attn_place {
    uint32_t at, count, chunk; /* of all; splits that are known, in so many chunks */
    uint32_t split;
    cu_attn_chunk of;

    __device__ __forceinline__ void open(const batch_attn_view &view, batch_attn_shared &sh, const cu_attn_chunk &first)
    {
        at = count = chunk = 0;
        of = first;
        split = first.split;
        go(view, sh, first);
    }

    __device__ __forceinline__ void go(const batch_attn_view &view, batch_attn_shared &sh, const cu_attn_chunk &what)
    {
        if (what.splits == 0)
            return;
        if (DEALS && chunk > 0 && threadIdx.x / 32 - CU_BATCH_ATTN_JOINERS == chunk % CU_BATCH_ATTN_WARPS)
            batch_attn_deal(view, sh, chunk + 1);
        chunk++;
        split = what.split;
        count += what.splits;
        of = what;
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
