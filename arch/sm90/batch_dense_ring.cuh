/* arch/sm90/batch_dense_ring.cuh: the ring of stages of a batched dense product, and the warps that fill it. A stage is up to 64 inputs of one
 * share (arch/cuda/gemv.cuh) of `tiles` weight tiles and of up to `tokens` rows. Both come by bulk copies: three warps ask for weights, each for some of the tiles, as a
 * thread takes about 140 cycles a copy, and one for activations, which lie as products read them (arch/sm90/batch_dense.h).
 *
 * An mbarrier `full` a stage counts the bytes and the four threads that asked for them; `empty` the warps that have read it. */
#pragma once
#include "arch/cuda/weights.cuh"
#include "arch/sm90/batch_acts.cuh"
#include "arch/sm90/cluster.cuh"
#include "arch/sm90/prompt_ring.cuh"

#define BATCH_WEIGHTS_WARPS 3 /* of the four that bring; the last one has the activations */

/* A stage of TILES tiles and up to TOKENS rows, inputs in SHARES. */
template <class FORM, uint32_t TILES, uint32_t TOKENS, uint32_t SHARES> struct batch_sizes {
    typedef FORM Form;
    static constexpr uint32_t tiles = TILES, tokens = TOKENS, shares = SHARES;
    static constexpr uint32_t tile_bytes = CU_BATCH_UNITS * FORM::unit_bytes, weights_bytes = TILES * tile_bytes;
    static constexpr uint32_t unit_acts = TOKENS * CU_BATCH_LINE, acts_bytes = CU_BATCH_UNITS * unit_acts;

    /* The k-th 16 inputs of a stage's activations, in a descriptor. */
    __host__ __device__ __forceinline__ static constexpr uint32_t further(uint32_t k)
    {
        return (k / 2 * unit_acts >> 4) + k % 2 * 2;
    }

    /* First unit of a share. */
    __device__ __forceinline__ static uint32_t first(uint32_t units, uint32_t share)
    {
        return min(unit_first<SHARES>(CU_DIV_UP(units, FORM::span), share) * FORM::span, units);
    }
};

/* GROUPS warpgroups multiply, a warp EACH tiles; PARTS blocks of a cluster share the SHARES of the inputs. */
template <class FORM, uint32_t GROUPS, uint32_t EACH, uint32_t TOKENS, uint32_t PARTS, uint32_t SHARES, bool IDLE = false>
struct batch_shape : batch_sizes<FORM, GROUPS * 4 * EACH, TOKENS, SHARES> {
    typedef batch_sizes<FORM, GROUPS * 4 * EACH, TOKENS, SHARES> sizes;
    static constexpr bool once = PARTS == 1 && TOKENS == CU_BATCH_HEAD_FEW && EACH == 2; /* the weights are read by one block, and once */
    static constexpr bool idle = IDLE; /* a warpgroup has no work */
    static constexpr uint32_t groups = GROUPS, each = EACH, parts = PARTS;
    static constexpr uint32_t room = CU_BATCH_ROOM;
    static constexpr uint32_t own = SHARES / PARTS; /* shares of a block */
    static constexpr uint32_t held = PARTS == 1 ? 2 : own; /* sums that a warp has at a time, where it does not give them away */
    static constexpr uint32_t slots = SHARES - own + 1; /* sums that come to a block: the first block's are added at once */
    static constexpr uint32_t given = CU_DIV_UP(TOKENS / 8, PARTS) * slots * sizes::tiles * 512;
    static constexpr bool gives = PARTS > 1 && given <= CU_BATCH_GIVEN; /* a block gives its sums to the others, else it reads theirs */
    static constexpr uint32_t lines = IDLE ? GROUPS * TOKENS * 128 : 0; /* what qkv leaves, a line a row and head */
    static constexpr uint32_t beside = gives ? given : lines;           /* bytes behind the ring */
    static constexpr uint32_t stages = (room - beside) / (sizes::weights_bytes + sizes::acts_bytes);
    /* Registers for the fragments of two stages. */
    static constexpr bool ahead = GROUPS == 2 && EACH == 1;
    static_assert(own * PARTS == SHARES && (!gives || own == 1), "all blocks have as many shares; who gives its sum has one");

    /* The first of a block's shares. */
    __host__ __device__ __forceinline__ static constexpr uint32_t share(uint32_t rank)
    {
        return rank * own;
    }
};

#define BATCH_STAGES_MAX 16

/* What a block has beside the ring. */
struct batch_static {
    uint64_t full[BATCH_STAGES_MAX], empty[BATCH_STAGES_MAX];
    uint64_t came; /* the sums of the cluster's blocks */
    uint4 kept[12][2]; /* a warp's, what it needs again when an item is done */
};

__device__ __forceinline__ batch_static *batch_room()
{
    __shared__ batch_static room;
    return &room;
}

template <class Shape> struct batch_ring {
    static_assert(Shape::stages <= BATCH_STAGES_MAX, "barriers");
    uint32_t acts, bars; /* shared addresses; found once: the compiler looks up the block's place in its cluster each time */
    uint32_t slot, parity;

    __device__ __forceinline__ uint32_t full() const
    {
        return bars + slot * 8;
    }

    __device__ __forceinline__ uint32_t empty() const
    {
        return bars + (BATCH_STAGES_MAX + slot) * 8;
    }

    /* By the whole block. */
    __device__ __forceinline__ void open(const void *dynamic)
    {
        asm volatile("mov.u32 %0, %1;" : "=r"(acts) : "r"((smem_at(dynamic) + 1023) & ~1023u));
        asm volatile("mov.u32 %0, %1;" : "=r"(bars) : "r"(smem_at(batch_room())));
        if (threadIdx.x == 0) {
            for (slot = 0; slot < Shape::stages; slot++) {
                bulk_init<BATCH_WEIGHTS_WARPS + 1>(full());
                bulk_init<Shape::groups * 4>(empty());
            }
            bulk_init<1>(smem_at(&batch_room()->came));
            bulk_inited();
        }
        slot = parity = 0;
        __syncthreads();
        if (Shape::gives)
            cluster_arrive();
    }

    /* Behind the stages: where the sums of the cluster's blocks come, or what qkv leaves. */
    __device__ __forceinline__ uint32_t beside() const
    {
        return acts + Shape::stages * (Shape::acts_bytes + Shape::weights_bytes);
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

    __device__ __forceinline__ void wait_full() const
    {
        bulk_wait(full(), parity);
    }

    __device__ __forceinline__ void wait_empty() const
    {
        bulk_wait(empty(), parity ^ 1);
    }

    /* By one warp, all lanes: the stage is read. */
    __device__ __forceinline__ void leave()
    {
        bulk_arrive(empty());
        next();
    }
};

/* What a block does next: weight tiles from tile0 on for `rows` rows from `first` on. */
struct batch_item {
    uint32_t tile0, first, rows;
};

/* What there is to do for a step's rows. A cluster has its tiles for all rows, or, when there are more clusters than tiles need, takes turns with those that
 * have the same tiles; a block alone takes items in turns, those of the same tiles beside each other. */
template <class Shape> struct batch_work {
    uint32_t count, chunks, now, end;

    /* Clusters or blocks of which each has other tiles. */
    __device__ __forceinline__ static uint32_t groups(uint32_t all_tiles)
    {
        return CU_DIV_UP(all_tiles, Shape::tiles);
    }

    __device__ __forceinline__ void open(uint32_t rows, uint32_t all_tiles)
    {
        count = rows;
        chunks = CU_DIV_UP(rows, Shape::tokens);
        now = Shape::parts > 1 ? blockIdx.x / Shape::parts / groups(all_tiles) : blockIdx.x;
        end = Shape::parts > 1 ? chunks : chunks * groups(all_tiles);
    }

    __device__ __forceinline__ static uint32_t own_tile(uint32_t all_tiles)
    {
        return blockIdx.x / Shape::parts % groups(all_tiles) * Shape::tiles;
    }

    __device__ __forceinline__ bool next(batch_item &item, uint32_t all_tiles)
    {
        if (now >= end)
            return false;
        item.tile0 = Shape::parts > 1 ? own_tile(all_tiles) : now / chunks * Shape::tiles;
        item.first = (Shape::parts > 1 ? now : now % chunks) * Shape::tokens;
        item.rows = min(count - item.first, Shape::tokens);
        now += Shape::parts > 1 ? gridDim.x / Shape::parts / groups(all_tiles) : gridDim.x;
        return true;
    }
};

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

/* Stages that a block whose first tiles are known asks for before it knows of any row. They come, and must be waited for. */
template <class Shape> __device__ __forceinline__ uint32_t batch_early(uint32_t units)
{
    uint32_t all = 0, u, have;
    if (Shape::parts == 1 && !Shape::once)
        return 0;
    batch_stages<Shape> stages;
    stages.open(units);
    while (all < Shape::stages && stages.next(u, have))
        all++;
    return all;
}

/* By the warps that fill the ring, at their end: where sums are read they lie in it. */
template <class Shape> __device__ __forceinline__ void batch_added()
{
    if (Shape::gives) {
        cluster_begun();
    } else {
        cluster_sync_read();
        cluster_sync_read();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
}

/* `bytes` of each of `there` tiles, of EACH at most, `stride` apart, to places `step` apart. All lanes of a warp, which asks for copies as one. */
template <uint32_t EACH>
__device__ __forceinline__ void batch_copy(uint32_t bar, uint32_t to, uint32_t step, const uint8_t *from, uint32_t stride, uint32_t bytes, uint32_t there,
                                           uint64_t policy)
{
    __syncwarp();
    if (elect_one()) {
        bulk_expect(bar, there * bytes);
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i < there)
                copy_bulk(to + i * step, from + (uint64_t)i * stride, bytes, bar, policy);
    }
    __syncwarp();
}

/* `have` units of this warp's tiles of those from tile0 on, from unit u on, to the ring's next stage. All lanes of a warp, which asks for copies as one. */
template <class Shape>
__device__ __forceinline__ void batch_ask(batch_ring<Shape> &ring, const uint8_t *w, uint32_t which, uint32_t all_tiles, uint32_t units,
                                          uint32_t tile0, uint32_t u, uint32_t have, uint64_t policy)
{
    constexpr uint32_t unit_bytes = Shape::Form::unit_bytes, EACH = CU_DIV_UP(Shape::tiles, BATCH_WEIGHTS_WARPS);
    const uint32_t first = which * EACH, most = min(Shape::tiles - min(first, Shape::tiles), EACH);
    const uint32_t there = tile0 + first < all_tiles ? min(all_tiles - tile0 - first, most) : 0, stored = Shape::Form::stored(units);
    const uint32_t bytes = Shape::Form::stored(have) * unit_bytes, stride = stored * unit_bytes;
    const uint32_t bar = ring.full(), to = ring.weights_at() + first * Shape::tile_bytes;
    const uint8_t *from = w + ((uint64_t)(tile0 + first) * stored + u) * unit_bytes;
    ring.wait_empty();
    batch_copy<EACH>(bar, to, Shape::tile_bytes, from, stride, bytes, there, policy);
    ring.next();
}

/* A warp that asks for weights, the `which`-th. learn(): the number of rows. */
template <class Shape, class Learn>
__device__ __forceinline__ void batch_weights(batch_ring<Shape> &ring, nib_gpu_ptr weights, uint32_t which, uint32_t all_tiles, uint32_t units, Learn learn)
{
    const uint8_t *w = at<const uint8_t>(weights);
    const uint64_t policy = Shape::once ? stream_policy() : shared_policy();
    batch_stages<Shape> stages;
    stages.open(units);
    uint32_t u, have;
    for (uint32_t early = batch_early<Shape>(units); early > 0 && stages.next(u, have); early--)
        batch_ask(ring, w, which, all_tiles, units, batch_work<Shape>::own_tile(all_tiles), u, have, policy);
    batch_work<Shape> work;
    batch_item item;
    work.open(learn(), all_tiles);
    while (work.next(item, all_tiles)) {
        while (stages.next(u, have))
            batch_ask(ring, w, which, all_tiles, units, item.tile0, u, have, policy);
        if (Shape::parts > 1)
            batch_added<Shape>();
        stages.open(units);
    }
}

/* Where those who multiply and the warp that brings activations meet: what done.begin() leaves for an item is there, which those wait for; and it is not read any
 * more, which this one waits for. */
template <class Shape> struct batch_meet {
    static constexpr uint32_t ALL = Shape::groups * 128 + 32;

    __device__ __forceinline__ static void there(bool wait)
    {
        if (wait)
            asm volatile("bar.sync 2, %0;" ::"n"(ALL) : "memory");
        else
            asm volatile("bar.arrive 2, %0;" ::"n"(ALL) : "memory");
    }

    __device__ __forceinline__ static void read(bool wait)
    {
        if (wait)
            asm volatile("bar.sync 3, %0;" ::"n"(ALL) : "memory");
        else
            asm volatile("bar.arrive 3, %0;" ::"n"(ALL) : "memory");
    }
};

/* The warp that asks for activations, `all` of them. learn(): as in batch_run. Where rows are known early the mbarriers are told beforehand what comes, and what
 * follows the wait is short. */
template <class Shape, class Count, class Learn, class Done>
__device__ __forceinline__ void batch_bring(batch_ring<Shape> &ring, const uint8_t *all, uint32_t all_tiles, uint32_t units, bool early, Count count, Learn learn,
                                            const Done &done)
{
    batch_work<Shape> work;
    batch_stages<Shape> stages;
    batch_item item;
    uint32_t u, have;
    bool before = false, there = false; /* there was an item; there is one */
    uint32_t told = 0; /* stages ahead whose mbarriers know what comes */
    auto open = [&](uint32_t rows) {
        work.open(rows, all_tiles);
        there = work.next(item, all_tiles);
        stages.open(units);
    };
    if (early) {
        open(min(count(), (uint32_t)NIB_MAX_SLOTS));
        batch_ring<Shape> ahead = ring;
        for (batch_stages<Shape> of = stages; there && told < Shape::stages && of.next(u, have); told++, ahead.next())
            if (threadIdx.x % 32 == 0)
                bulk_expect(ahead.full(), have * item.rows * CU_BATCH_LINE);
        __syncwarp();
        overlap_wait();
    } else {
        open(learn());
    }
    asm volatile("fence.proxy.async.global;" ::: "memory"); /* the op before wrote them */
    const bool none = !there;
    for (; there; there = work.next(item, all_tiles), stages.open(units)) {
        const uint32_t bytes = item.rows * CU_BATCH_LINE;
        while (stages.next(u, have)) {
            const uint8_t *from = all + (u * NIB_MAX_SLOTS + item.first) * CU_BATCH_LINE;
            if (!told)
                ring.wait_empty();
            __syncwarp();
            if (elect_one()) {
                if (!told)
                    bulk_expect(ring.full(), have * bytes);
#pragma unroll
                for (uint32_t i = 0; i < CU_BATCH_UNITS; i++)
                    if (i < have)
                        copy_bulk(ring.acts_at() + i * Shape::unit_acts, from + i * NIB_MAX_SLOTS * CU_BATCH_LINE, bytes, ring.full());
            }
            __syncwarp();
            told -= told > 0;
            ring.next();
        }
        if (Done::places) {
            if (before)
                batch_meet<Shape>::read(true);
            before = true;
            done.begin(item.tile0, Shape::tiles, item.first, item.rows);
            __threadfence_block();
            batch_meet<Shape>::there(false);
        }
        if (Shape::parts > 1)
            batch_added<Shape>();
    }
    if (none) /* what was asked for early comes without rows */
        for (uint32_t left = batch_early<Shape>(units); left > 0; left--, ring.next())
            bulk_arrive(ring.full());
    if (before) /* each barrier is arrived at by all */
        batch_meet<Shape>::read(true);
}
