/* arch/sm90/batch_attn.cuh: attention of many decode rows (arch/sm90/BATCH.md), with the arithmetic, and so the bits, of
 * arch/cuda/attn.cuh: a split of the keys is five groups of 32, each with a softmax of its own.
 *
 * One block a multiprocessor. In a window layer warps work alone (batch_attn_window.cuh). In a full layer a block gets splits in chunks
 * (batch_attn_plan.cuh), whose groups its warps take in turns; a warp's keys and values come through a ring of its own. Other warps put
 * the groups together (batch_attn_join.cuh). */
#pragma once
#include "arch/sm90/batch_attn_join.cuh"
#include "arch/sm90/batch_attn_window.cuh"

/* What is left to know of 32 keys that were asked for. */
struct batch_attn_asked {
    uint32_t seen; /* so many of the 32 */
    uint32_t
        what; /* the split's number in the block, * 32; group * 4; 2: the group's first; 1: its last. NONE: nothing was asked for */
    uint32_t heads; /* of the query: the first head, counted through all rows */
    uint4 q[2]; /* the lane's part of it */

    static constexpr uint32_t NONE = ~0u;

    __device__ __forceinline__ bool there() const
    {
        return what != NONE;
    }
    __device__ __forceinline__ uint32_t split() const
    {
        return what / 32;
    }
    __device__ __forceinline__ uint32_t group() const
    {
        return what / 4 % 8;
    }
    __device__ __forceinline__ bool begins() const
    {
        return what & 2;
    }
    __device__ __forceinline__ bool ends() const
    {
        return what & 1;
    }

    /* Written by the op before this one. */
    __device__ __forceinline__ void query(const batch_attn_view &view)
    {
        const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const __nv_bfloat16 *from = at<const __nv_bfloat16>(view.q) + (heads + g) * NIB_HEAD_DIM + t * 8;
        q[0] = *(const uint4 *)from;
        q[1] = *(const uint4 *)(from + 32);
    }
};

/* 32 keys: a step of a group. A warp has every CU_BATCH_ATTN_WARPS-th group of the block's. */
template <class Form> struct batch_attn_piece {
    batch_attn_place<true> place;
    uint32_t group, key, end, last; /* keys up to `last` are the split's */
    bool begins;                    /* the group's first */
    uint32_t ids, front, chunk;     /* of this chunk the lane's of 32 pages, from `front` on */

    __device__ __forceinline__ void open(const batch_attn_view &view, batch_attn_shared &sh, const cu_attn_chunk &first)
    {
        place.open(view, sh, first);
        group = threadIdx.x / 32 - CU_BATCH_ATTN_JOINERS;
        settle(view, sh);
        chunk = 0;
        find(view);
    }

    __device__ __forceinline__ bool there() const
    {
        return place.there();
    }

    /* The position that the step itself writes is among them. */
    __device__ __forceinline__ bool newest() const
    {
        return end - 1 - key < 32;
    }

    __device__ __forceinline__ void settle(const batch_attn_view &view, batch_attn_shared &sh)
    {
        for (; group >= ATTN_KEY_WARPS && place.there(); group -= ATTN_KEY_WARPS)
            place.next(view, sh, 1);
        if (!place.there())
            return;
        end = place.of.pos + 1;
        const uint32_t keys = CU_ATTN_KEYS << place.of.doublings, base = place.split * keys;
        last = min(end, base + keys);
        key = base + group * 32;
        begins = true;
    }

    __device__ __forceinline__ void next(const batch_attn_view &view, batch_attn_shared &sh)
    {
        key += CU_ATTN_KEYS;
        begins = false;
        if (key >= last) {
            group += CU_BATCH_ATTN_WARPS;
            settle(view, sh);
        }
        find(view);
    }

    /* Its page: of a group without keys the row's last. */
    __device__ __forceinline__ uint32_t at_page() const
    {
        return min(key, end - 1) / NIB_KV_PAGE_TOKENS;
    }

    /* Pages that are not known yet, which the next call of ask() needs. */
    __device__ __forceinline__ void find(const batch_attn_view &view)
    {
        if (!there() || (chunk == place.chunk && at_page() - front < 32))
            return;
        chunk = place.chunk;
        front = at_page();
        ids = view.pages.id(place.of.slot, min(front + threadIdx.x % 32, (end - 1) / NIB_KV_PAGE_TOKENS));
    }

    /* Asks for keys and values. */
    __device__ __forceinline__ void ask(const batch_attn_view &view, uint32_t to, batch_attn_asked *ret) const
    {
        const uint32_t high = end > key ? min(end - key, 32u) : 0;
        const uint8_t *page = at<const uint8_t>(view.kv, view.pages.from(__shfl_sync(~0u, ids, at_page() - front), Form::OP));
        const uint32_t token = key % NIB_KV_PAGE_TOKENS;
        Form::ask(to, view, {page, place.of.head, token, 0, high});
        Form::ask(to + Form::BYTES, view, {page, view.kv_heads + place.of.head, token, 0, high});
        ret->seen = high;
        ret->heads = place.of.row * view.heads + place.of.head * NIB_GQA_GROUP;
        ret->what = place.at * 32 + group * 4 + begins * 2 + (key + CU_ATTN_KEYS >= last);
    }
};

/* A group's softmax: of head g the largest score and the lane's part of the sum; values as batch_attn_add has them. */
struct batch_attn_state {
    float max, sum, o[4][4];
};

template <class Form>
__device__ __forceinline__ void batch_attn_take(const batch_attn_asked &p, uint32_t stage, uint32_t room,
                                                batch_attn_state &st)
{
    float s[4][4];
    batch_attn_scores<Form>(p.q, stage, 0, p.seen, s);
    if (p.begins()) {
        st.max = -1e30f;
        (void)attn_weigh<4, true>(s, 0, st.max, st.sum);
#pragma unroll
        for (uint32_t d = 0; d < 4; d++)
            st.o[d][0] = st.o[d][1] = st.o[d][2] = st.o[d][3] = 0;
    } else {
        const float2 keep = batch_attn_pair(attn_weigh<4, false>(s, 0, st.max, st.sum));
#pragma unroll
        for (uint32_t d = 0; d < 4; d++)
#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                st.o[d][c] *= c % 2 ? keep.y : keep.x;
    }
    batch_attn_add(st.o, batch_attn_packed(s), Form::values(stage + Form::BYTES, room, 0, p.seen));
}

/* The group's state, to where the split's groups lie. */
__device__ __forceinline__ void batch_attn_put(const batch_attn_state &st, batch_attn_part &to, uint32_t group)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float sum = quad_sum(st.sum);
    if (t == 0) {
        to.max[group][g] = st.max;
        to.sum[group][g] = sum;
    }
#pragma unroll
    for (uint32_t d = 0; d < 4; d++)
#pragma unroll
        for (uint32_t c = 0; c < 4; c++)
            to.o[group][t * 2 + c % 2][(d * 16 + c / 2 * 8 + g) ^ batch_attn_mix(t * 2)] = st.o[d][c];
}

/* A warp that takes keys in. All but the newest key were written by earlier steps, and may be asked for before the op before this one
 * has ended. The loop's first turns only ask: keys come no sooner than the program that asks, so there is no other for these. */
template <class Form>
__device__ __forceinline__ void batch_attn_stream(const batch_attn_view &view, batch_attn_shared &sh, const cu_attn_chunk &first, uint32_t ring)
{
    constexpr uint32_t RING = Form::RING, STAGE = 2 * Form::BYTES;
    const uint32_t room = ring + RING * STAGE;
    batch_attn_asked asked[RING]; /* the one to take in, and those that follow it */
    batch_attn_piece<Form> piece;
    batch_attn_state st;
#pragma unroll
    for (uint32_t i = 0; i < RING; i++)
        asked[i] = {0, asked->NONE};
    piece.open(view, sh, first);
#pragma unroll 1
    for (uint32_t turn = 0, stage = STAGE, free = 0;; turn++) {
#pragma unroll
        for (uint32_t i = 0; i + 1 < RING; i++)
            asked[i] = asked[i + 1];
        asked[RING - 1].what = asked->NONE;
        if (piece.there()) {
            if (turn + 1 < RING && piece.newest())
                overlap_wait();
            piece.ask(view, ring + free, &asked[RING - 1]);
            piece.next(view, sh);
        }
        copy_commit();
        if (turn + 2 >= RING) {
            if (turn + 2 == RING)
                overlap_wait();
            if (asked[1].there())
                asked[1].query(view);
        }
        if (turn + 1 >= RING) {
            if (!asked[0].there())
                return;
            copy_wait<RING - 1>();
            __syncwarp();
            batch_attn_take<Form>(asked[0], ring + stage, room, st);
            if (asked[0].ends()) {
                const uint32_t split = asked[0].split(), slot = split % CU_BATCH_ATTN_PARTS;
                bulk_wait(smem_at(&sh.empty[slot]), (split / CU_BATCH_ATTN_PARTS & 1) ^ 1);
                batch_attn_put(st, sh.part[slot], asked[0].group());
                bulk_arrive(smem_at(&sh.full[slot]));
            }
            __syncwarp();
        }
        free = stage;
        stage = stage == (RING - 1) * STAGE ? 0 : stage + STAGE;
    }
}

template <class Form>
__device__ __forceinline__ void batch_attn(const struct nib_gpu_machine *m, uint32_t layer, uint8_t *room)
{
    constexpr uint32_t OWN = 2 * Form::RING * Form::BYTES + Form::ROOM; /* bytes of a warp */
    const batch_attn_view view(m, layer);
    overlap_next();
    if (view.windowed()) {
        batch_window<Form>(view, room);
        return;
    }
    static_assert(CU_BATCH_ATTN_WARPS * OWN + CU_BATCH_ATTN_MEET <= CU_BATCH_ATTN_SHARED, "the table says less");
    batch_attn_shared &sh = *(batch_attn_shared *)(room + CU_BATCH_ATTN_WARPS * OWN);
    sh.open();
    const cu_attn_chunk first = batch_attn_chunk(view, blockIdx.x);
    __syncthreads();
    const uint32_t warp = threadIdx.x / 32;
    if (warp < CU_BATCH_ATTN_JOINERS)
        batch_attn_join(view, sh, first);
    else
        batch_attn_stream<Form>(view, sh, first, smem_at(room) + (warp - CU_BATCH_ATTN_JOINERS) * OWN);
}

KERNEL(attn_batch, CU_BATCH_ATTN_THREADS, 1)
{
    extern __shared__ uint4 attn_dynamic[];
    batch_attn<batch_attn_wide>(m, layer, (uint8_t *)attn_dynamic);
}

KERNEL(attn_batch_fp8, CU_BATCH_ATTN_THREADS, 1)
{
    extern __shared__ uint4 attn_dynamic[];
    batch_attn<batch_attn_fp8>(m, layer, (uint8_t *)attn_dynamic);
}
