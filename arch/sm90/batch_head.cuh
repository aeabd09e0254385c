/* arch/sm90/batch_head.cuh: the head of many decode rows (arch/sm90/BATCH.md), with the sums of arch/sm90/batch_dense.cuh, which does it up to 64 rows, or
 * where a share is not HEAD_SPANS spans of 64 inputs. Here a share is written out: the compiler knows every stage's place.
 *
 * A block has eight tiles of 16 output rows, a warp each, for all rows of activations, so that weights are decoded once. Two warpgroups multiply, three warps ask
 * for weights, a stage a span, and one for activations, a stage a unit. A cluster's two blocks have other tiles for the same rows: each asks for half of the rows, for both. */
#pragma once
#include "arch/sm90/batch_dense.cuh"

#define HEAD_SPANS 5 /* of a share */
#define HEAD_UNITS (2 * HEAD_SPANS)
#define HEAD_TILES 8

/* As copy_bulk, to the same place in both blocks of a cluster, and to the mbarrier of each. */
__device__ __forceinline__ void copy_bulk_both(uint32_t dst, const void *src, uint32_t bytes, uint32_t bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1], "
                 "%2, [%3], %4, %5;" ::"r"(dst),
                 "l"(src), "r"(bytes), "r"(bar), "h"((uint16_t)3), "l"(policy)
                 : "memory");
}

/* A lane's fragments of a span, those of its first unit, then those of its second; `at` is where the lane's first 16 bytes of it are. */
template <class Form> struct head_span {
    __device__ __forceinline__ static void unit(uint32_t at, uint32_t a[8])
    {
        const uint32_t lane = threadIdx.x % 32;
        uint4 v, w;
        mxfp8_fragments(lds16(at), lds2(at + CU_MXFP8_CODES - lane * 16 + lane / 4 * 2), v, w);
        const uint32_t all[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            a[i] = all[i];
    }

    __device__ __forceinline__ void first(uint32_t at, uint32_t a[8])
    {
        unit(at, a);
    }

    __device__ __forceinline__ void second(uint32_t at, uint32_t a[8])
    {
        unit(at + Form::unit_bytes, a);
    }
};

template <> struct head_span<weights_bf13> {
    uint32_t carried[2]; /* words 13 and 14 but for their signs */

    __device__ __forceinline__ void first(uint32_t at, uint32_t a[8])
    {
#pragma unroll
        for (uint32_t q = 0; q < 2; q++) {
            const uint4 v = lds16(at + q * CU_BF13_PIECE);
            const uint32_t c[4] = {v.x, v.y, v.z, v.w};
            carried[q] = bf13_carried(c);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                a[4 * q + i] = bf13_own(c[i]);
        }
    }

    __device__ __forceinline__ void second(uint32_t at, uint32_t a[8])
    {
        const uint4 v = lds16(at + 2 * CU_BF13_PIECE);
        const uint32_t c[4] = {v.x, v.y, v.z, v.w}, last = lds4(at + 3 * CU_BF13_PIECE - threadIdx.x % 32 * 12);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            a[i] = bf13_own(c[i]);
        a[4] = bf13_own(last);
        a[5] = bf13_signed(carried[0], last, 0);
        a[6] = bf13_signed(carried[1], last, 1);
        a[7] = bf13_signed(bf13_carried(c), last, 2);
    }
};

__device__ __forceinline__ void add_float4(uint4 &to, const float v[4])
{
    to.x = __float_as_uint(__uint_as_float(to.x) + v[0]);
    to.y = __float_as_uint(__uint_as_float(to.y) + v[1]);
    to.z = __float_as_uint(__uint_as_float(to.z) + v[2]);
    to.w = __float_as_uint(__uint_as_float(to.w) + v[3]);
}

/* Up to ROWS rows; ACTS stages of activations. Of a lane's sums the last OUT have their totals in shared memory, as there are not registers enough. */
template <class Form, uint32_t ROWS, uint32_t ACTS, uint32_t OUT> struct head_block {
    static constexpr uint32_t SUMS = ROWS / 2, IN = SUMS - OUT, TILE = 2 * Form::unit_bytes, STAGE = HEAD_TILES * TILE, UNIT = ROWS * CU_BATCH_LINE;
    static constexpr int FOURS = OUT / 4; /* 0, perhaps */
    /* Where things are: activations, weights, totals, what a warp needs again when an item is done, mbarriers. */
    static constexpr uint32_t WEIGHTS = ACTS * UNIT, TOTALS = WEIGHTS + HEAD_SPANS * STAGE, KEPT = TOTALS + OUT * 1024,
                              WEIGHTS_FULL = KEPT + HEAD_TILES * 16, WEIGHTS_EMPTY = WEIGHTS_FULL + HEAD_SPANS * 8,
                              ACTS_FULL = WEIGHTS_EMPTY + HEAD_SPANS * 8, ACTS_EMPTY = ACTS_FULL + ACTS * 8, END = ACTS_EMPTY + ACTS * 8;
    static_assert(END <= CU_BATCH_ROOM && HEAD_UNITS % ACTS == 0, "room");

    const struct nib_gpu_machine *m;
    uint32_t rows, tiles;

    __device__ __forceinline__ static uint32_t room()
    {
        return (smem_at(batch_dense_dynamic) + 1023) & ~1023u;
    }

    /* By the whole block. */
    __device__ __forceinline__ static void open()
    {
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < HEAD_SPANS; i++) {
                bulk_init<BATCH_WEIGHTS_WARPS>(room() + WEIGHTS_FULL + i * 8);
                bulk_init<HEAD_TILES>(room() + WEIGHTS_EMPTY + i * 8);
            }
            for (uint32_t i = 0; i < ACTS; i++) {
                bulk_init<1>(room() + ACTS_FULL + i * 8);
                bulk_init<2 * HEAD_TILES>(room() + ACTS_EMPTY + i * 8);
            }
            bulk_inited();
        }
        cluster_sync();
    }

    /* A cluster's blocks have as many items, the last one maybe of tiles that are not there. */
    __device__ __forceinline__ static uint32_t first_tile(uint32_t item)
    {
        return (item * 2 + cluster_rank()) * HEAD_TILES;
    }

    /* take(first tile) for each item. */
    template <class Take> __device__ __forceinline__ void items(Take take) const
    {
#pragma unroll 1
        for (uint32_t item = blockIdx.x / 2; item * 2 * HEAD_TILES < tiles; item += gridDim.x / 2)
            take(first_tile(item));
    }

    /* Parity of a unit's stage in the block's share-th share. */
    __device__ __forceinline__ static uint32_t turn(uint32_t unit, uint32_t share)
    {
        return ACTS == HEAD_UNITS ? share & 1 : unit / ACTS & 1;
    }

    /* A warp that asks for weights. */
    __device__ __forceinline__ void ask(uint32_t which) const
    {
        constexpr uint32_t EACH = CU_DIV_UP(HEAD_TILES, BATCH_WEIGHTS_WARPS), ALL = CU_GEMV_WARPS * HEAD_SPANS * TILE;
        const uint8_t *w = at<const uint8_t>(m->lm_head);
        const uint64_t policy = stream_policy();
        uint32_t share = 0;
        items([&](uint32_t tile0) {
            const uint32_t first = tile0 + which * EACH, there = min(tiles - min(first, tiles), min(HEAD_TILES - which * EACH, EACH));
            const uint8_t *from = w + (uint64_t)first * ALL;
#pragma unroll 1
            for (uint32_t end = share + CU_GEMV_WARPS; share < end; share++)
#pragma unroll 1
                for (uint32_t i = 0; i < HEAD_SPANS; i++, from += TILE) {
                    const uint32_t full = room() + WEIGHTS_FULL + i * 8, to = room() + WEIGHTS + i * STAGE + which * EACH * TILE;
                    bulk_wait(room() + WEIGHTS_EMPTY + i * 8, ~share & 1);
                    batch_copy<EACH>(full, to, TILE, from, ALL, TILE, there, policy);
                }
        });
    }

    /* The warp that asks for activations. */
    __device__ __forceinline__ void bring() const
    {
        const uint32_t own = cluster_rank() * (ROWS / 2) * CU_BATCH_LINE, bytes = min(rows * CU_BATCH_LINE - own, UNIT / 2);
        const uint64_t policy = shared_policy();
        uint32_t share = 0;
        asm volatile("fence.proxy.async.global;" ::: "memory"); /* the op before wrote them */
        items([&](uint32_t) {
            const uint8_t *from = batch_acts(m) + own;
#pragma unroll 1
            for (uint32_t end = share + CU_GEMV_WARPS; share < end; share++)
#pragma unroll 1
                for (uint32_t u = 0; u < HEAD_UNITS; u++, from += NIB_MAX_SLOTS * CU_BATCH_LINE) {
                    const uint32_t full = room() + ACTS_FULL + u % ACTS * 8;
                    bulk_wait(room() + ACTS_EMPTY + u % ACTS * 8, turn(u, share) ^ 1);
                    __syncwarp();
                    if (elect_one()) {
                        bulk_expect(full, rows * CU_BATCH_LINE);
                        copy_bulk_both(room() + u % ACTS * UNIT + own, from, bytes, full, policy);
                    }
                    __syncwarp();
                }
        });
    }

    /* The products of a share's unit. */
    __device__ __forceinline__ static void multiply(float (&acc)[SUMS], const uint32_t a[8], uint32_t unit, uint32_t share)
    {
        const uint64_t rows = wgmma_tokens64(room() + unit % ACTS * UNIT);
        bulk_wait(room() + ACTS_FULL + unit % ACTS * 8, turn(unit, share));
        wgmma_fence();
        wgmma(wgmma_bf16(), acc, a, rows, unit > 0);
        wgmma(wgmma_bf16(), acc, a + 4, rows + 2, true);
        wgmma_commit();
    }

    /* All but the newest LEFT units have been multiplied; `unit` is the newest of these, and read. other: the other block's room. */
    template <int LEFT> __device__ __forceinline__ static void leave(uint32_t unit, uint32_t other)
    {
        const uint32_t empty = ACTS_EMPTY + unit % ACTS * 8;
        wgmma_wait<LEFT>();
        if (threadIdx.x % 32 == 0) {
            bulk_arrive_one(room() + empty);
            asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(other + empty) : "memory");
        }
    }

    /* The sum of a share; own: where this lane's first bytes of the first stage of weights are. While products run the next ones' fragments are read. */
    __device__ __forceinline__ static void sum(uint32_t own, uint32_t other, uint32_t share, float (&acc)[SUMS])
    {
        uint32_t a[8], b[8];
        head_span<Form> span;
        bulk_wait(room() + WEIGHTS_FULL, share & 1);
        span.first(own, a);
#pragma unroll
        for (uint32_t i = 0; i < HEAD_SPANS; i++) {
            multiply(acc, a, 2 * i, share);
            if (i > 0)
                leave<1>(2 * i - 1, other);
            span.second(own + i * STAGE, b);
            bulk_arrive(room() + WEIGHTS_EMPTY + i * 8);
            multiply(acc, b, 2 * i + 1, share);
            if (i + 1 < HEAD_SPANS)
                bulk_wait(room() + WEIGHTS_FULL + (i + 1) * 8, share & 1);
            leave<1>(2 * i, other);
            if (i + 1 < HEAD_SPANS)
                span.first(own + (i + 1) * STAGE, a);
        }
        leave<0>(HEAD_UNITS - 1, other);
        wgmma_hold(acc);
    }

    /* A warp that multiplies. */
    __device__ __forceinline__ void take() const
    {
        const uint32_t warp = threadIdx.x / 32 - 4, own = room() + WEIGHTS + warp * TILE + threadIdx.x % 32 * 16;
        const uint32_t totals = room() + TOTALS + (threadIdx.x - 128) * 16, kept = room() + KEPT + warp * 16, other = cluster_at(room(), cluster_rank() ^ 1);
        const batch_head_done<Form> done = {m};
        uint32_t share = 0;
        items([&](uint32_t tile0) {
            float acc[SUMS], total[IN];
            sts16(kept, make_uint4(tile0 + warp, 0, rows, done.know(tile0 + warp)));
#pragma unroll
            for (uint32_t i = 0; i < IN; i++)
                total[i] = 0;
#pragma unroll
            for (int i = 0; i < FOURS; i++)
                sts16(totals + i * 4096, make_uint4(0, 0, 0, 0));
#pragma unroll 1
            for (uint32_t end = share + CU_GEMV_WARPS; share < end; share++) {
                sum(own, other, share, acc);
#pragma unroll
                for (uint32_t i = 0; i < IN; i++)
                    total[i] += acc[i];
#pragma unroll
                for (int i = 0; i < FOURS; i++) {
                    uint4 v = lds16(totals + i * 4096);
                    add_float4(v, acc + IN + 4 * i);
                    sts16(totals + i * 4096, v);
                }
            }
            const uint4 of = lds16(kept);
            const auto tile = done.open(of.x, of.y, of.w);
            const uint32_t row0 = of.y + threadIdx.x % 4 * 2;
            __syncwarp();
#pragma unroll
            for (uint32_t n = 0; n < IN / 4; n++)
                tile.put({}, row0 + n * 8, of.z, total + 4 * n);
#pragma unroll
            for (int n = 0; n < FOURS; n++) {
                const uint4 v = lds16(totals + n * 4096);
                const float c[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
                tile.put({}, row0 + (IN / 4 + n) * 8, of.z, c);
            }
            done.end(of.x, of.y, of.z, of.w);
        });
    }
};

template <class Block> __device__ __forceinline__ void head_run(const struct nib_gpu_machine *m, uint32_t rows)
{
    const Block block = {m, rows, cu_tiles(m->vocab)};
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    block.open();
    overlap_next();
    overlap_wait();
    if (warp >= 4) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        block.take();
        cluster_sync(); /* nobody leaves before the other has read all */
        return;
    }
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (warp < BATCH_WEIGHTS_WARPS)
        block.ask(warp);
    else
        block.bring();
}

template <class Shape> __device__ __forceinline__ void head_batch_run(const struct nib_gpu_machine *m)
{
    const struct nib_gpu_step *step = step_of(m);
    const batch_head_done<typename Shape::Form> done = {m};
    batch_run<Shape>(
        m, m->lm_head, m->vocab, m->hidden, true, [&] { return step->want_count; }, done);
}

/* How many rows there are says how a block's registers are used; the step block is there since the first layer. */
template <class Form> __device__ __forceinline__ void head_batch_rows(const struct nib_gpu_machine *m)
{
    const uint32_t count = min(step_of(m)->want_count, (uint32_t)NIB_MAX_SLOTS);
    const bool whole = m->hidden == CU_GEMV_WARPS * HEAD_UNITS * CU_DENSE_UNIT;
    if (count <= CU_BATCH_HEAD_FEW)
        head_batch_run<batch_shape<Form, CU_BATCH_GROUPS, 2, CU_BATCH_HEAD_FEW, 1, CU_GEMV_WARPS>>(m);
    else if (!whole)
        head_batch_run<batch_shape<Form, CU_BATCH_GROUPS, 1, CU_BATCH_HEAD_MANY, 1, CU_GEMV_WARPS>>(m);
    else if (count <= CU_BATCH_HEAD_MANY)
        head_run<head_block<Form, CU_BATCH_HEAD_MANY, HEAD_UNITS, 0>>(m, count);
    else
        head_run<head_block<Form, 2 * CU_BATCH_HEAD_MANY, HEAD_UNITS / 2, 72>>(m, count);
}

#define CLUSTER_KERNEL(name, threads, blocks)                                                                          \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads, 1)                            \
        nib_gpu_##name(const struct nib_gpu_machine *__restrict__ m, uint32_t layer)

CLUSTER_KERNEL(head_batch, CU_BATCH_THREADS, 2)
{
    head_batch_rows<weights_bf13>(m);
}

CLUSTER_KERNEL(head_batch_mxfp8, CU_BATCH_THREADS, 2)
{
    head_batch_rows<weights_mxfp8>(m);
}
