/* arch/sm90/batch_mx_ring.cuh: the ring of stages of a batched expert product, and the four warps that fill it, each the stages of its own place. A stage
 * is a span of 3 units of up to 24 weight tiles, by bulk copies, and of the rows of a list of one expert, which the ops before have left in the order in which products read
 * them (arch/sm90/batch_mx.h): a list's places as up leaves them by bulk copies, too, else rows by cp.async, a lane 16 bytes of four lines at a time.
 *
 * An mbarrier `full` a stage counts the copies' bytes and the warp that brings it; `empty` the warps that have read it. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/sm90/batch_acts.cuh"
#include "arch/sm90/batch_mx_deal.cuh"
#include "arch/sm90/prompt_ring.cuh"

/* 16 bytes. */
__device__ __forceinline__ void copy16_there(uint32_t dst, const void *src)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

/* Two forms of the kernel: for lists of any length, and for short ones alone. ROWS: of a list at most; HALF: up to which a multiplying warp has two tiles;
 * SHORT: which of the two. */
struct batch_mx_any {
    static constexpr uint32_t STAGE_BYTES = CU_BATCH_MX_STAGE_BYTES, ROWS = CU_BATCH_MX_ROWS, HALF = CU_BATCH_MX_HALF;
    static constexpr bool SHORT = false;
};

struct batch_mx_short {
    static constexpr uint32_t STAGE_BYTES = CU_MX_SHORT_STAGE_BYTES, ROWS = CU_BATCH_MX_FEW, HALF = CU_BATCH_MX_FEW;
    static constexpr bool SHORT = true;
};

static_assert(CU_BATCH_MX_ACTS(CU_BATCH_MX_ROWS) + CU_BATCH_MX_READERS * CU_MX_STAGE <= CU_BATCH_MX_STAGE_BYTES, "a stage of one tile a warp fits, too");

/* Where a row's chunk of 16 bytes lies, from the first row's line on: where the 64-byte swizzle looks for it; in the short form, which has no wgmma, in order. */
template <class Form> __device__ __forceinline__ uint32_t batch_mx_chunk(uint32_t row, uint32_t chunk)
{
    return row * CU_BATCH_MX_LINE + (Form::SHORT ? chunk : chunk ^ row / 2 % 4) * 16;
}

template <class Form> struct batch_mx_ring {
    uint32_t stages; /* shared address; behind them the mbarriers: no register more */
    uint32_t slot, parity;

    __device__ __forceinline__ void open(const void *dynamic)
    {
        stages = (smem_at(dynamic) + 1023) & ~1023u;
        slot = parity = 0;
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < CU_BATCH_MX_STAGES; i++) {
                bulk_init<1>(full(i));
                bulk_init<CU_BATCH_MX_READERS>(empty(i));
            }
            bulk_inited();
        }
    }

    __device__ __forceinline__ uint32_t full(uint32_t i) const
    {
        return stages + CU_BATCH_MX_STAGES * Form::STAGE_BYTES + 8 * i;
    }

    __device__ __forceinline__ uint32_t empty(uint32_t i) const
    {
        return full(i) + 8 * CU_BATCH_MX_STAGES;
    }

    __device__ __forceinline__ uint32_t stage() const
    {
        return stages + slot * Form::STAGE_BYTES;
    }

    __device__ __forceinline__ void wait_full() const
    {
        bulk_wait(full(slot), parity);
    }

    __device__ __forceinline__ void wait_empty() const
    {
        bulk_wait(empty(slot), parity ^ 1);
    }

    /* By one warp, all lanes: the stage is read. */
    __device__ __forceinline__ void leave()
    {
        bulk_arrive(empty(slot));
        if (++slot == CU_BATCH_MX_STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
};

/* What a block does next: tiles tile0 .. of the matrix of an expert, for the `count` places of a list from `place` on. */
template <class Form> struct batch_mx_item {
    uint32_t list, expert, place, count, tile0, tiles;

    /* Lines of a unit's activations in a stage. */
    __device__ __forceinline__ uint32_t lines() const
    {
        return count <= Form::HALF ? Form::HALF : Form::ROWS;
    }
};

/* A block's items: those of its parts, as these become known. */
template <class Form> struct batch_mx_walk {
    const batch_mx_deal &deal; /* in shared memory */
    uint32_t part, left;       /* parts that were begun; tiles of the last of them, behind the item */

    __device__ __forceinline__ bool next(batch_mx_item<Form> &item)
    {
        item.tile0 += item.tiles;
        if (Form::SHORT || left == 0) {
            const batch_mx_part of = deal.wait(part++);
            left = of.tiles;
            if (left == 0)
                return false;
            item.list = of.list;
            item.expert = deal.group[of.list].expert;
            item.place = deal.group[of.list].place;
            item.count = min(deal.group[of.list].count, Form::ROWS);
            item.tile0 = of.tile0;
        }
        item.tiles = min(left, (uint32_t)(item.count <= Form::HALF ? 2 : 1) * CU_BATCH_MX_READERS);
        left -= item.tiles;
        return true;
    }

    /* The item is the last of its part. */
    __device__ __forceinline__ bool ends() const
    {
        return Form::SHORT || left == 0;
    }
};

/* A warp's rows of activations: rows lane / 8, + 4, ...; the lane has chunk lane % 8 of 16 bytes of a unit. Where rows begin lies in shared memory: with 32 registers, no more, those
 * who multiply have 160. */
template <class Form> struct batch_mx_acts {
    uint32_t from; /* shared address: where each row begins, in 16 bytes from `acts` */
    uint32_t list;

    template <class From> __device__ __forceinline__ void open(const batch_mx_item<Form> &item, From at)
    {
        if (item.list == list)
            return;
        list = item.list;
        const uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (uint32_t j = 0; j < Form::ROWS; j += 32)
            if (j < item.count && lane < Form::ROWS)
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(from + (j + lane) * 4), "r"(at(item.place + min(j + lane, item.count - 1))) : "memory");
        __syncwarp();
    }

    /* LINES is item.lines(), so that all but two addresses are constants. Inputs from k on, to which only weights of zero belong, are others of the row. */
    template <uint32_t LINES>
    __device__ __forceinline__ void ask(uint32_t stage, const batch_mx_item<Form> &item, uint32_t span, const uint8_t *acts, uint32_t k) const
    {
        constexpr uint32_t BLOCK = LINES * CU_BATCH_MX_LINE, UNIT = 2 * BLOCK, FOUR = 4 * CU_BATCH_MX_LINE;
        const uint32_t lane = threadIdx.x % 32, first = span * CU_MX_SPAN * CU_MX_UNIT;
        const uint32_t even = stage + lane % 8 / 4 * BLOCK + batch_mx_chunk<Form>(lane / 8, lane % 4), odd = even ^ (Form::SHORT ? 0 : 32);
        if (first + CU_MX_SPAN * CU_MX_UNIT <= k) {
            acts += first * 2 + lane % 8 * 16;
#pragma unroll
            for (uint32_t j = 0; j < LINES / 4; j++) {
                if (j * 4 >= item.count)
                    return;
                const uint8_t *row = acts + (uint64_t)lds4(from + (j * 4 + lane / 8) * 4) * 16;
#pragma unroll
                for (uint32_t u = 0; u < CU_MX_SPAN; u++) /* every other four rows' chunks lie as the first four's, or all */
                    copy16_there((j % 2 ? odd : even) + u * UNIT + j * FOUR, row + u * 128);
            }
            return;
        }
#pragma unroll 1
        for (uint32_t u = 0; u < CU_MX_SPAN; u++) {
            const uint32_t c = first / 8 + u * 8, chunk = (c + lane % 8) * 8 < k ? c + lane % 8 : lane % 4;
#pragma unroll
            for (uint32_t j = 0; j < LINES / 4; j++)
                if (j * 4 < item.count)
                    copy16_there((j % 2 ? odd : even) + u * UNIT + j * FOUR, acts + (uint64_t)(lds4(from + (j * 4 + lane / 8) * 4) + chunk) * 16);
        }
    }
};

/* Bytes of a tile in a stage. */
__device__ __forceinline__ uint32_t batch_mx_size(uint32_t span, uint32_t units)
{
    return min(units - span * CU_MX_SPAN, (uint32_t)CU_MX_SPAN) * CU_MX_BYTES;
}

/* A stage's weights, of every STEP-th tile from `first` on, by one lane. */
template <class Form, uint32_t STEP>
__device__ __forceinline__ void batch_mx_ask(uint32_t stage, uint32_t bar, const batch_mx_item<Form> &item, const uint8_t *matrix, uint32_t units, uint32_t span, uint32_t first,
                                             uint64_t policy)
{
    const uint32_t stride = units * CU_MX_BYTES, size = batch_mx_size(span, units);
    const uint8_t *from = matrix + first * stride + span * CU_MX_STAGE;
    uint32_t to = stage + CU_BATCH_MX_ACTS(item.lines()) + first * CU_MX_STAGE;
#pragma unroll 2
    for (uint32_t i = first; i < item.tiles; i += STEP) {
        copy_bulk(to, from, size, bar, policy);
        to += STEP * CU_MX_STAGE;
        from += STEP * stride;
    }
}

/* Units that the last span lacks become zeros, by one warp. */
__device__ __forceinline__ void batch_mx_fill(uint32_t weights, uint32_t tiles, uint32_t from)
{
#pragma unroll 1
    for (uint32_t tile = 0; tile < tiles; tile++)
#pragma unroll 1
        for (uint32_t i = from + threadIdx.x % 32 * 16; i < CU_MX_STAGE; i += 512)
            sts16(weights + tile * CU_MX_STAGE + i, make_uint4(0, 0, 0, 0));
}

/* A stage's activations as up has left them, by one lane. Blocks that the last span lacks, to which only weights of zero belong, are the last one again. */
template <class Form>
__device__ __forceinline__ void batch_mx_ask_lines(uint32_t to, const uint8_t *list, const batch_mx_item<Form> &item, uint32_t span, uint32_t k, uint32_t bar)
{
    const uint32_t bytes = item.count * CU_BATCH_MX_LINE, step = item.lines() * CU_BATCH_MX_LINE, last = (k / 32 - 1) * bytes;
    uint32_t from = span * CU_MX_SPAN * 2 * bytes;
    bulk_also(bar, CU_MX_SPAN * 2 * bytes);
#pragma unroll
    for (uint32_t i = 0; i < CU_MX_SPAN * 2; i++) {
        copy_bulk(to, list + min(from, last), bytes, bar);
        to += step;
        from += bytes;
    }
}

/* The first stages' weights, by all warps that multiply, as they have nothing else to do: one stage after another, so that the very first is soon there. */
template <class Form>
__device__ __forceinline__ void batch_mx_begin(const batch_mx_ring<Form> &ring, const batch_mx_deal &deal, uint32_t warp, const uint8_t *all, uint64_t bytes, uint32_t k)
{
    batch_mx_walk<Form> walk = {deal, 0, 0};
    batch_mx_item<Form> item = {};
    if (!walk.next(item))
        return;
    const uint32_t units = cu_mx_units(k), spans = CU_DIV_UP(units, CU_MX_SPAN);
    const uint8_t *matrix = all + item.expert * bytes + (uint64_t)item.tile0 * units * CU_MX_BYTES;
    const uint64_t policy = stream_policy();
    __syncwarp();
    if (elect_one())
#pragma unroll 1
        for (uint32_t i = 0; i < min(spans, (uint32_t)CU_BATCH_MX_STAGES); i++)
            batch_mx_ask<Form, CU_BATCH_MX_READERS>(ring.stages + i * Form::STAGE_BYTES, ring.full(i), item, matrix, units, i, warp, policy);
    __syncwarp();
}

/* This warp's stages of all items of this block. from(place): where its row begins, in 16 bytes from `acts`. EARLY: the op before this one may
 * still be writing the rows. */
template <class Form, bool EARLY, class From>
__device__ __forceinline__ void batch_mx_bring(batch_mx_ring<Form> &ring, batch_mx_deal &deal, const uint8_t *all, uint64_t bytes, uint32_t k,
                                               const uint8_t *rows, From from)
{
    constexpr bool LISTS = EARLY && !Form::SHORT; /* rows are places */
    const uint64_t policy = stream_policy();
    const uint32_t units = cu_mx_units(k), spans = CU_DIV_UP(units, CU_MX_SPAN);
    batch_mx_walk<Form> walk = {deal, 0, 0};
    batch_mx_item<Form> item = {};
    batch_mx_acts<Form> acts;
    __shared__ uint32_t places[CU_BATCH_MX_STAGES][Form::ROWS];
    acts.from = smem_at(places[threadIdx.x / 32]);
    acts.list = ~0u;
    ring.slot = threadIdx.x / 32;
    const uint32_t stage = ring.stage(), full = ring.full(ring.slot);
    bool waits = EARLY, asked = ring.slot < spans; /* asked: this stage's weights are (batch_mx_begin) */
    for (uint32_t next = ring.slot; walk.next(item);) { /* stages behind the item's beginning */
        if (!LISTS)
            acts.open(item, from);
        const uint8_t *matrix = all + item.expert * bytes + (uint64_t)item.tile0 * units * CU_MX_BYTES;
#pragma unroll 1
        for (; next < spans; next += CU_BATCH_MX_STAGES) {
            const uint32_t size = batch_mx_size(next, units);
            ring.wait_empty();
            __syncwarp();
            if (elect_one()) {
                bulk_also(full, item.tiles * size);
                if (!asked)
                    batch_mx_ask<Form, 1>(stage, full, item, matrix, units, next, 0, policy);
            }
            __syncwarp();
            asked = false;
            if (size < CU_MX_STAGE)
                batch_mx_fill(stage + CU_BATCH_MX_ACTS(item.lines()), item.tiles, size);
            if (waits) {
                overlap_wait();
                if (LISTS)
                    asm volatile("fence.proxy.async.global;" ::: "memory"); /* the op before wrote them */
            }
            waits = false;
            if constexpr (LISTS) {
                if (elect_one())
                    batch_mx_ask_lines(stage, rows + (uint64_t)item.place * k * 2, item, next, k, full);
                __syncwarp();
            } else if (item.count <= Form::HALF) {
                acts.template ask<Form::HALF>(stage, item, next, rows, k);
            } else if constexpr (Form::HALF < Form::ROWS) {
                acts.template ask<Form::ROWS>(stage, item, next, rows, k);
            }
            if (!LISTS) {
                copy_commit();
                copy_wait<0>();
                asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* products see what was written */
            }
            bulk_arrive(full);
            ring.parity ^= 1;
        }
        next -= spans;
        if (ring.slot == 0 && walk.ends())
            deal.ask(walk.part);
    }
}
