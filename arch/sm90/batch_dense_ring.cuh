/* arch/sm90/batch_dense_ring.cuh: the ring of stages of a batched dense product, and the warps that fill it. A stage is up to 64 inputs of one
 * share (arch/cuda/gemv.cuh) of `tiles` weight tiles and of up to `tokens` rows. One warp asks for weights by bulk copies. Three bring activations: copied
 * as they lie (cp.async), and when they have come, brought into the order in which products read them, in place: a warp has whole lines of 4 rows, a lane its
 * own 16 bytes (arch/sm90/prompt_ring.cuh).
 *
 * An mbarrier `full` a stage counts the bytes of weights, the thread that asked for them and the warps that brought activations; `empty`
 * the warps that have read it. */
#pragma once
#include "arch/cuda/weights.cuh"
#include "arch/sm90/batch_dense.h"
#include "arch/sm90/prompt_ring.cuh"

#define BATCH_ACTS_WARPS 3
#define BATCH_ACTS_AHEAD 3 /* stages of activations on their way */

/* GROUPS warpgroups multiply, each WIDE * EACH tiles: a warp has EACH; PARTS blocks of a cluster share the SHARES of the inputs. */
template <class FORM, uint32_t GROUPS, uint32_t WIDE, uint32_t EACH, uint32_t TOKENS, uint32_t PARTS, uint32_t SHARES, bool IDLE = false>
struct batch_shape {
    static constexpr bool even = PARTS > 1 && SHARES % PARTS == 0, idle = IDLE; /* idle: a warpgroup has no work */
    typedef FORM Form;
    static constexpr uint32_t groups = GROUPS, wide = WIDE, each = EACH, tokens = TOKENS, parts = PARTS, shares = SHARES;
    static constexpr uint32_t tiles = GROUPS * WIDE * EACH, tile_bytes = CU_BATCH_UNITS * FORM::unit_bytes;
    static constexpr uint32_t weights_bytes = tiles * tile_bytes, acts_bytes = TOKENS * CU_BATCH_LINE;
    static constexpr uint32_t room = TOKENS > CU_BATCH_FEW || PARTS == 1 ? CU_BATCH_ROOM : CU_BATCH_LESS - 1024;
    static constexpr uint32_t stages = room / (weights_bytes + acts_bytes);
    static constexpr uint32_t held = PARTS == 1 ? 2 : SHARES / PARTS; /* sums that a warp has at a time; a cluster's blocks but the first hand over so many */
    static_assert(held >= 2 && (PARTS == 1 || SHARES % PARTS < 2), "all but the first have as many shares");

    /* The first of a block's shares. The first block has the most: it adds them up at once. */
    __host__ __device__ __forceinline__ static constexpr uint32_t share(uint32_t rank)
    {
        return (SHARES * rank + PARTS - 1) / PARTS;
    }

    /* First unit of a share. */
    __device__ __forceinline__ static uint32_t first(uint32_t units, uint32_t share)
    {
        return min(unit_first<SHARES>(CU_DIV_UP(units, FORM::span), share) * FORM::span, units);
    }
};

#define BATCH_STAGES_MAX 16

/* What a block has beside the ring. */
struct batch_static {
    uint64_t full[BATCH_STAGES_MAX], empty[BATCH_STAGES_MAX];
    uint4 kept[12][2];               /* a warp's, what it needs again when an item is done */
    uint32_t rows_at[NIB_MAX_SLOTS]; /* where the activations of each row begin, in bytes from m->acts */
};

__device__ __forceinline__ batch_static *batch_room()
{
    __shared__ batch_static room;
    return &room;
}

template <class Shape> struct batch_ring {
    static_assert(Shape::stages <= BATCH_STAGES_MAX, "barriers");
    uint32_t acts; /* shared address */
    uint32_t slot, parity;

    __device__ __forceinline__ uint32_t full() const
    {
        return smem_at(&batch_room()->full[slot]);
    }

    __device__ __forceinline__ uint32_t empty() const
    {
        return smem_at(&batch_room()->empty[slot]);
    }

    /* By the whole block. */
    __device__ __forceinline__ void open(const void *dynamic)
    {
        acts = (smem_at(dynamic) + 1023) & ~1023u;
        if (threadIdx.x == 0) {
            for (slot = 0; slot < Shape::stages; slot++) {
                asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(full()), "n"(1 + BATCH_ACTS_WARPS) : "memory");
                asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(empty()), "n"(Shape::groups * 4) : "memory");
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        slot = parity = 0;
        __syncthreads();
    }

    __device__ __forceinline__ uint32_t acts_at() const
    {
        return acts + slot * Shape::acts_bytes;
    }

    __device__ __forceinline__ uint32_t weights_at() const
    {
        return acts + Shape::stages * Shape::acts_bytes + slot * Shape::weights_bytes;
    }

    __device__ __forceinline__ void next()
    {
        if (++slot == Shape::stages) {
            slot = 0;
            parity ^= 1;
        }
    }

    /* As prompt_ring has it: the readers fence. */
    __device__ __forceinline__ void wait_full() const
    {
        prompt_ring<prompt_mx>::wait(full(), parity);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }

    __device__ __forceinline__ void wait_empty() const
    {
        prompt_ring<prompt_mx>::wait(empty(), parity ^ 1);
    }

    /* By one warp, all lanes: the stage is read. */
    __device__ __forceinline__ void leave()
    {
        prompt_ring<prompt_mx>::arrive(empty());
        next();
    }
};

/* What a block does next: weight tiles from tile0 on for `rows` rows from `first` on. */
struct batch_item {
    uint32_t tile0, first, rows;
};

/* What there is to do for a step's rows. A cluster takes its tiles for all rows; a block alone takes items in turns, those of the same tiles
 * beside each other. */
template <class Shape> struct batch_work {
    uint32_t count, chunks, now, end;

    __device__ __forceinline__ void open(uint32_t rows, uint32_t all_tiles)
    {
        count = rows;
        chunks = CU_DIV_UP(rows, Shape::tokens);
        now = Shape::parts > 1 ? 0 : blockIdx.x;
        end = Shape::parts > 1 ? chunks : chunks * CU_DIV_UP(all_tiles, Shape::tiles);
    }

    __device__ __forceinline__ static uint32_t own_tile()
    {
        return blockIdx.x / Shape::parts * Shape::tiles;
    }

    __device__ __forceinline__ bool next(batch_item &item)
    {
        if (now >= end)
            return false;
        item.tile0 = Shape::parts > 1 ? own_tile() : now / chunks * Shape::tiles;
        item.first = (Shape::parts > 1 ? now : now % chunks) * Shape::tokens;
        item.rows = min(count - item.first, Shape::tokens);
        now += Shape::parts > 1 ? 1 : gridDim.x;
        return true;
    }
};

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of the cluster's blocks. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* This block's part of the inputs. */
template <class Shape> __device__ __forceinline__ uint32_t batch_part()
{
    return Shape::parts > 1 ? cluster_rank() : 0;
}

/* The stages of this block's shares, none with inputs of two. */
template <class Shape> struct batch_stages {
    uint32_t units, share, last, u, end;

    __device__ __forceinline__ void open(uint32_t all_units)
    {
        units = all_units;
        share = Shape::share(batch_part<Shape>());
        last = Shape::share(batch_part<Shape>() + 1);
        u = Shape::first(units, share);
        end = Shape::first(units, share + 1);
    }

    /* Units at .. at + have - 1. */
    __device__ __forceinline__ bool next(uint32_t &at, uint32_t &have)
    {
        while (u >= end) {
            if (++share >= last)
                return false;
            end = Shape::first(units, share + 1);
        }
        at = u;
        have = min(end - u, (uint32_t)CU_BATCH_UNITS);
        u += have;
        return true;
    }
};

/* Stages that a block of a cluster, whose tiles are known, asks for before it knows of any row. They come, and must be waited for. */
template <class Shape> __device__ __forceinline__ uint32_t batch_early(uint32_t units)
{
    uint32_t all = 0, u, have;
    if (Shape::parts == 1)
        return 0;
    batch_stages<Shape> stages;
    stages.open(units);
    while (all < Shape::stages && stages.next(u, have))
        all++;
    return all;
}

/* `have` units of the tiles from tile0 on, from unit u on, to the ring's next stage. All lanes of a warp, which asks for copies as one. */
template <class Shape>
__device__ __forceinline__ void batch_ask(batch_ring<Shape> &ring, const uint8_t *w, uint32_t all_tiles, uint32_t units, uint32_t tile0,
                                          uint32_t u, uint32_t have, uint64_t policy)
{
    constexpr uint32_t unit_bytes = Shape::Form::unit_bytes;
    const uint32_t there = tile0 < all_tiles ? min(all_tiles - tile0, Shape::tiles) : 0, bytes = have * unit_bytes;
    const uint32_t bar = ring.full(), to = ring.weights_at(), stride = units * unit_bytes;
    const uint8_t *from = w + ((uint64_t)tile0 * units + u) * unit_bytes;
    ring.wait_empty();
    __syncwarp();
    if (elect_one()) {
        bulk_expect(bar, there * bytes);
#pragma unroll
        for (uint32_t i = 0; i < Shape::tiles; i++)
            if (i < there)
                copy_bulk(to + i * Shape::tile_bytes, from + (uint64_t)i * stride, bytes, bar, policy);
    }
    __syncwarp();
    ring.next();
}

/* The warp that asks for weights. learn(): waits for the op before, then the number of rows. */
template <class Shape, class Learn>
__device__ __forceinline__ void batch_weights(batch_ring<Shape> &ring, nib_gpu_ptr weights, uint32_t all_tiles, uint32_t units, Learn learn)
{
    const uint8_t *w = at<const uint8_t>(weights);
    const uint64_t policy = shared_policy();
    batch_stages<Shape> stages;
    stages.open(units);
    uint32_t u, have;
    for (uint32_t early = batch_early<Shape>(units); early > 0 && stages.next(u, have); early--)
        batch_ask(ring, w, all_tiles, units, batch_work<Shape>::own_tile(), u, have, policy);
    batch_work<Shape> work;
    batch_item item;
    work.open(learn(), all_tiles);
    while (work.next(item)) {
        while (stages.next(u, have))
            batch_ask(ring, w, all_tiles, units, item.tile0, u, have, policy);
        if (Shape::parts > 1) { /* the ring is used to add up */
            cluster_sync();
            cluster_sync();
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        stages.open(units);
    }
}

/* The warps that bring activations. */
template <class Shape> struct batch_acts {
    static_assert(BATCH_ACTS_AHEAD < Shape::stages && BATCH_ACTS_AHEAD < 4, "a stage is handed over before its place is needed");

    const uint8_t *acts;
    uint32_t warp, from, to; /* bytes: of a lane's 16 in a row, and where its line of stmatrix lies, in 4 rows */
    uint32_t groups;         /* of 4 rows, in the stages on their way, the newest in the lowest byte */
    uint32_t waiting;        /* stages on their way */
    batch_ring<Shape> come;  /* the first of them */

    __device__ __forceinline__ batch_acts(const batch_ring<Shape> &ring, const uint8_t *all, uint32_t which) : acts(all), warp(which), come(ring)
    {
        const uint32_t lane = threadIdx.x % 32;
        from = lane % 8 * 16;
        to = lane % 8 / 2 * 128 + (lane % 2 * 4 + lane / 8) * 16;
        groups = waiting = 0;
    }

    __device__ __forceinline__ void ask(batch_ring<Shape> &ring, const batch_item &item, uint32_t u, uint32_t have)
    {
        const uint32_t lane = threadIdx.x % 32, all = CU_DIV_UP(item.rows, 4), *rows_at = batch_room()->rows_at + item.first;
        const bool there = lane % 8 < have * 4;
        const uint8_t *now = acts + u * (CU_DENSE_UNIT * 2) + (there ? from : 0);
        ring.wait_empty();
        const uint32_t stage = ring.acts_at() + lane * 16;
#pragma unroll 2
        for (uint32_t g = warp; g < all; g += BATCH_ACTS_WARPS)
            copy16(stage + g * 4 * CU_BATCH_LINE, now + rows_at[min(g * 4 + lane / 8, item.rows - 1)], there);
        copy_commit();
        ring.next();
        groups = groups << 8 | all;
        waiting++;
    }

    /* The first stage on its way has come: word w of lanes 4i .. 4i + 3, which have 32 inputs of a row, becomes chunk w of them. */
    __device__ __forceinline__ void hand_over()
    {
        const uint32_t all = groups >> 8 * (waiting - 1) & 0xff, stage = come.acts_at(), lane = threadIdx.x % 32;
#pragma unroll 2
        for (uint32_t g = warp; g < all; g += BATCH_ACTS_WARPS) {
            const uint32_t at = stage + g * 4 * CU_BATCH_LINE;
            const uint4 v = lds16(at + lane * 16);
            /* the line's place in 8: the upper 4 rows of them have bit 2 set */
            asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                             at + (to ^ (lane % 8 / 2 + g % 2 * 4) * 16)),
                         "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                         : "memory");
        }
        prompt_ring<prompt_mx>::arrive(come.full());
        come.next();
        waiting--;
    }
};

/* rows_at of the block: where each row's begin, in bytes from `acts`. */
template <class Shape>
__device__ __forceinline__ void batch_bring(batch_ring<Shape> &ring, const uint8_t *all, uint32_t warp, uint32_t all_tiles, uint32_t units,
                                            uint32_t count)
{
    batch_acts<Shape> acts(ring, all, warp);
    batch_work<Shape> work;
    batch_stages<Shape> stages;
    batch_item item;
    uint32_t u, have;
    work.open(count, all_tiles);
    if (work.end == 0) /* what was asked for early comes without rows */
        for (uint32_t early = batch_early<Shape>(units); early > 0; early--, ring.next())
            prompt_ring<prompt_mx>::arrive(ring.full());
    while (work.next(item)) {
        stages.open(units);
        while (stages.next(u, have)) {
            acts.ask(ring, item, u, have);
            if (acts.waiting > BATCH_ACTS_AHEAD) {
                copy_wait<BATCH_ACTS_AHEAD>();
                acts.hand_over();
            }
        }
        if (Shape::parts > 1 || work.now >= work.end) {
            copy_wait<0>();
            while (acts.waiting)
                acts.hand_over();
        }
        if (Shape::parts > 1) {
            cluster_sync();
            cluster_sync();
        }
    }
}
