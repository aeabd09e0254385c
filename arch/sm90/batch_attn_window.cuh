/* arch/sm90/batch_attn_window.cuh: attention of many decode rows in a window layer (arch/sm90/BATCH.md). A row's keys are one split: its
 * five groups of 32 keys are one warp's, which meets nobody else. First all scores, then all values, so that every group's
 * part of the sum is known when its values are added up. */
#pragma once
#include "arch/sm90/batch_attn_chunks.cuh"

/* Of a warp, behind its ring and room. */
struct batch_window_warp {
    uint4 weights[ATTN_KEY_WARPS]
                 [32]; /* of a group's keys: a lane's operand; at the end of a row its outputs, once more */
    float2 most[ATTN_KEY_WARPS][32]; /* a lane's head: the group's largest score, and its sum */
};

/* Behind all warps' memory. */
struct batch_window_shared {
    uint2 row[NIB_MAX_SLOTS]; /* pos, slot */
    uint32_t sums[3][BATCH_CHUNKS_THREADS / 32];
};

/* A row's KV head, and the keys that it sees. */
struct batch_window_item {
    uint32_t row, head, slot, base, begin, end;

    __device__ __forceinline__ void open(const batch_attn_view &view, const batch_window_shared &sh, uint32_t item)
    {
        row = item / view.kv_heads;
        head = item % view.kv_heads;
        end = sh.row[row].x + 1;
        slot = sh.row[row].y;
        begin = view.begin(end);
        base = begin & ~31u;
    }
};

/* The stages of a warp's items, in the order in which it asks for them: the keys of an item, then its values. */
template <class Form> struct batch_window_stream {
    batch_window_item of;
    uint32_t item, items, stride, key, page, first_page; /* the ring's page of the key, and of the item's first */
    bool values;
    uint32_t to; /* where the next stage goes */

    __device__ __forceinline__ void open(const batch_attn_view &view, const batch_window_shared &sh)
    {
        if (item >= items)
            return;
        of.open(view, sh, item);
        key = of.base;
        page = first_page = of.base / NIB_KV_PAGE_TOKENS % view.pages.each;
        values = false;
    }

    /* Asks for a stage. */
    __device__ __forceinline__ void ask(const batch_attn_view &view, const batch_window_shared &sh, uint32_t ring)
    {
        if (item < items) {
            if (of.end - 1 - key < 32) /* the position that the step itself writes is among them */
                overlap_wait();
            const uint32_t low = of.begin > key ? min(of.begin - key, 32u) : 0, high = min(of.end - key, 32u);
            const uint8_t *pages = at<const uint8_t>(view.kv, (of.slot * view.pages.each + page) * view.pages.stride);
            Form::ask(ring + to, view,
                      {pages, values ? view.kv_heads + of.head : of.head, key % NIB_KV_PAGE_TOKENS, low, high});
            to = to == (Form::WINDOW_RING - 1) * Form::BYTES ? 0 : to + Form::BYTES;
            next(view, sh);
        }
        copy_commit();
    }

    __device__ __forceinline__ void next(const batch_attn_view &view, const batch_window_shared &sh)
    {
        key += 32;
        if (key % NIB_KV_PAGE_TOKENS == 0)
            page = page + 1 == view.pages.each ? 0 : page + 1;
        if (key < of.end)
            return;
        if (values) {
            item += stride;
            open(view, sh);
        } else {
            values = true;
            key = of.base;
            page = first_page;
        }
    }
};

/* The lane's part of the query, and the sink: of head g. */
struct batch_window_query {
    uint4 q[2];
    uint16_t sink;

    __device__ __forceinline__ void ask(const batch_attn_view &view, nib_gpu_ptr sinks, uint32_t item)
    {
        const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const __nv_bfloat16 *from = at<const __nv_bfloat16>(view.q) + (item * NIB_GQA_GROUP + g) * NIB_HEAD_DIM + t * 8;
        q[0] = *(const uint4 *)from;
        q[1] = *(const uint4 *)(from + 32);
        sink = at<const uint16_t>(sinks)[item % view.kv_heads * NIB_GQA_GROUP + g];
    }
};

/* What a row's softmax has so far: of head g the largest score and the sum, of heads 2t and 2t + 1 the values: dims 16d + g and + 8. */
struct batch_window_sum {
    float most, sum, o[4][4];
};

/* Scores of a group's keys, which lie at `from`. */
template <class Form>
__device__ __forceinline__ void batch_window_keys(const uint4 q[2], uint32_t from, uint32_t low, uint32_t high,
                                                  batch_window_warp &my, uint32_t group, batch_window_sum &all)
{
    const uint32_t lane = threadIdx.x % 32;
    float s[4][4], most = -1e30f, sum;
    batch_attn_scores<Form>(q, from, low, high, s);
    (void)attn_weigh<4, true>(s, 0, most, sum);
    my.weights[group][lane] = batch_attn_packed(s);
    my.most[group][lane] = make_float2(most, quad_sum(sum));
    all.most = fmaxf(all.most, most);
}

/* A group's values, as bf16 at `from`, joined to those before it: as attn_merge_warps does it. */
__device__ __forceinline__ void batch_window_values(uint32_t from, const batch_window_warp &my, uint32_t group,
                                                    batch_window_sum &all)
{
    const uint32_t lane = threadIdx.x % 32;
    const float2 most = my.most[group][lane];
    const float scale = exp2_fast(most.x - all.most);
    const float2 scales = batch_attn_pair(scale);
    float o[4][4] = {};
    all.sum = __fmaf_rn(scale, most.y, all.sum);
    batch_attn_add(o, my.weights[group][lane], from);
#pragma unroll
    for (uint32_t d = 0; d < 4; d++)
#pragma unroll
        for (uint32_t c = 0; c < 4; c++)
            all.o[d][c] = __fmaf_rn(c % 2 ? scales.y : scales.x, o[d][c], all.o[d][c]);
}

/* Where outputs go. */
struct batch_window_target {
    uint8_t *acts, *products;
    uint32_t stride16; /* of a row of acts */
};

/* The row's outputs: as attn_alone. */
__device__ __forceinline__ void batch_window_out(const batch_window_sum &all, float sink, batch_window_warp &my,
                                                 const batch_window_item &of, const batch_window_target &to, bool live)
{
    const uint32_t lane = threadIdx.x % 32, room = smem_at(my.weights);
    const float top = fmaxf(sink, all.most), scale = exp2_fast(all.most - top), keep = exp2_fast(sink - top),
                below = keep + scale * all.sum;
    const float2 scales = batch_attn_pair(scale), belows = batch_attn_pair(below);
    float y[4][4];
#pragma unroll
    for (uint32_t d = 0; d < 4; d++)
#pragma unroll
        for (uint32_t c = 0; c < 4; c++)
            y[d][c] = divide_plain((c % 2 ? scales.y : scales.x) * all.o[d][c], c % 2 ? belows.y : belows.x);
    __syncwarp();
#pragma unroll
    for (uint32_t d = 0; d < 4;
         d += 2) /* dims 16d to 16d + 31: four matrices of 8 dims and 8 heads, each to a head's 16 bytes */
        asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                         room + lane % 8 * 128 + ((d * 2 + lane / 8) ^ lane % 8) * 16),
                     "r"(pack_bf16(y[d][0], y[d][1])), "r"(pack_bf16(y[d][2], y[d][3])),
                     "r"(pack_bf16(y[d + 1][0], y[d + 1][1])), "r"(pack_bf16(y[d + 1][2], y[d + 1][3]))
                     : "memory");
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < 2 && live; i++) { /* and to where each of the output projections reads it (batch_dense.h) */
        const uint32_t h = lane / 8 + i * 4, line = room + h * 128, head = of.head * NIB_GQA_GROUP + h,
                       word = lane % 4 * 4;
        ((uint4 *)to.acts)[of.row * to.stride16 + head * 8 + lane % 8] = lds16(line + (lane % 8 ^ h) * 16);
        const uint32_t first = lane / 4 % 2 * 4; /* of the unit's chunks */
        *(uint4 *)(to.products + cu_batch_acts_word(of.row, (head * 2 + lane / 4 % 2) * 16 + lane % 4)) =
            make_uint4(lds4(line + (first ^ h) * 16 + word), lds4(line + ((first + 1) ^ h) * 16 + word),
                       lds4(line + ((first + 2) ^ h) * 16 + word), lds4(line + ((first + 3) ^ h) * 16 + word));
    }
    __syncwarp();
}

template <class Form> __device__ __forceinline__ void batch_window(const batch_attn_view &view, uint8_t *memory)
{
    constexpr uint32_t RING = Form::WINDOW_RING, WARPS = CU_BATCH_ATTN_WARPS, BYTES = Form::BYTES,
                       ROOM_AT = RING * BYTES;
    constexpr uint32_t OWN = ROOM_AT + Form::ROOM + sizeof(batch_window_warp);
    static_assert(WARPS * OWN + sizeof(batch_window_shared) <= CU_BATCH_ATTN_SHARED, "the table says less");
    const struct nib_gpu_machine *m = view.m;
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t warp = threadIdx.x / 32;
    batch_window_shared &sh = *(batch_window_shared *)(memory + WARPS * OWN);
    if (view.layer == 0) /* later the step block may be read early: see attn */
        overlap_wait();
    if (threadIdx.x < NIB_MAX_SLOTS) /* as many as may be, so that none waits for their number: the others, zeros of the boot, are not used */
        sh.row[threadIdx.x] = make_uint2(step->rows[threadIdx.x].pos, step->rows[threadIdx.x].slot);
    const uint32_t items = min(step->decode_count, (uint32_t)NIB_MAX_SLOTS) * view.kv_heads;
    const nib_gpu_ptr sinks = view.m->layer[view.layer].sinks;
    const batch_window_target to = {at<uint8_t>(m->acts), batch_acts(m), acts_stride16(m)};
    __syncthreads();
    if (warp >= WARPS) {
        if (view.layer == 0 && blockIdx.x + 1 == gridDim.x) /* whose warps have least to do */
            batch_chunks(view, sh.row, items / view.kv_heads, sh.sums);
        return;
    }
    const uint32_t ring = smem_at(memory) + warp * OWN, room = ring + ROOM_AT;
    batch_window_warp &my = *(batch_window_warp *)(memory + warp * OWN + ROOM_AT + Form::ROOM);
    batch_window_stream<Form> ahead;
    ahead.item = warp * gridDim.x + blockIdx.x;
    ahead.items = items;
    ahead.stride = gridDim.x * WARPS;
    ahead.to = 0;
    uint32_t at_stage = 0;
    ahead.open(view, sh);
    batch_window_query next;
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < RING; i++)
        ahead.ask(view, sh, ring);
    /* A warp without an item has the first one before it is there, for nothing: the program comes to the instruction caches. */
    const uint32_t first = warp * gridDim.x + blockIdx.x;
    const bool live = first < items;
    next = {};
    if (live) {
        overlap_wait();
        next.ask(view, sinks, first);
    }
#pragma unroll 1
    for (uint32_t item = first; item < items || !live; item += ahead.stride) {
        const batch_window_query query = next;
        batch_window_item of;
        of.open(view, sh, live ? item : 0);
        batch_window_sum all = {-INFINITY, 0};
        const uint32_t groups = CU_DIV_UP(of.end - of.base, 32);
#pragma unroll 1
        for (uint32_t i = 0; i < 2 * groups; i++) {
            const uint32_t group = i < groups ? i : i - groups, key = of.base + group * 32;
            const uint32_t low = of.begin > key ? of.begin - key : 0, high = min(of.end - key, 32u);
            ahead.ask(view, sh, ring);
            copy_wait<RING - 1>();
            __syncwarp();
            if (i < groups)
                batch_window_keys<Form>(query.q, ring + at_stage, low, high, my, group, all);
            else
                batch_window_values(Form::values(ring + at_stage, room, low, high), my, group, all);
            if (i == groups && item + ahead.stride < items)
                next.ask(view, sinks, item + ahead.stride);
            __syncwarp();
            at_stage = at_stage == (RING - 1) * BYTES ? 0 : at_stage + BYTES;
        }
        const float sink = __uint_as_float((uint32_t)query.sink << 16) * LOG2E;
        batch_window_out(all, sink, my, of, to, live);
        if (!live)
            break;
    }
}
