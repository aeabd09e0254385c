/* arch/sm90/batch_dense.cuh: the dense products of many decode rows on Hopper (arch/sm90/BATCH.md), with the bits of arch/cuda/gemv.cuh: inputs
 * are cut into shares, the sum of each is one chain of products of 16 inputs from zero, and the sums are added in the order of the shares.
 *
 * out: a cluster's blocks have some of the shares each, keep their sums apart and add them up at the end, each block for some of the rows.
 * qkv, head: a block has all shares, and takes items in turns; qkv of up to 64 rows is arch/sm90/batch_qkv.cuh's, head of more arch/sm90/batch_head.cuh's. */
#pragma once
#include "arch/cuda/gemv.cuh"
#include "arch/sm90/batch_dense_done.cuh"
#include "arch/sm90/batch_dense_ring.cuh"

extern __shared__ uint4 batch_dense_dynamic[];

/* Fragment of 16 inputs, the first or the last of a unit at `at` of this warp's part of a stage. */
template <class Form> __device__ __forceinline__ void batch_fragment(uint32_t at, uint32_t half, uint32_t a[4])
{
    const uint32_t lane = threadIdx.x % 32;
    uint4 w, other;
    if constexpr (std::is_same<Form, weights_bf16>::value) {
        w = lds16(at + half * 512 + lane * 16);
    } else {
        const uint2 codes = lds8(at + lane * 16 + half * 8);
        mxfp8_fragments(make_uint4(codes.x, codes.y, 0, 0), lds2(at + CU_MXFP8_CODES + lane / 4 * 2), w, other);
    }
    a[0] = w.x;
    a[1] = w.y;
    a[2] = w.z;
    a[3] = w.w;
}

/* Where of a stage's tiles this warp's i-th is. */
template <class Shape> __device__ __forceinline__ uint32_t batch_tile(uint32_t i)
{
    const uint32_t group = threadIdx.x / 128 - 1, warp = threadIdx.x / 32 % 4;
    return (group * Shape::each + i) * 4 + warp;
}

/* Fragments of COUNT products of 16 inputs, from the first of a unit on; of bf13 from the first of a span on. */
template <class Shape, uint32_t COUNT> __device__ __forceinline__ void batch_read(uint32_t weights, uint32_t first, uint32_t (&a)[COUNT][Shape::each][4])
{
    if constexpr (std::is_same<typename Shape::Form, weights_bf13>::value) {
#pragma unroll
        for (uint32_t i = 0; i < Shape::each; i++) {
            uint4 w[weights_bf13::span][2];
            weights_bf13::read(weights + batch_tile<Shape>(i) * Shape::tile_bytes + threadIdx.x % 32 * 16, w);
#pragma unroll
            for (uint32_t k = 0; k < COUNT; k++) {
                a[k][i][0] = w[k / 2][k % 2].x;
                a[k][i][1] = w[k / 2][k % 2].y;
                a[k][i][2] = w[k / 2][k % 2].z;
                a[k][i][3] = w[k / 2][k % 2].w;
            }
        }
    } else {
#pragma unroll
        for (uint32_t k = 0; k < COUNT; k++)
#pragma unroll
            for (uint32_t i = 0; i < Shape::each; i++)
                batch_fragment<typename Shape::Form>(weights + batch_tile<Shape>(i) * Shape::tile_bytes + k / 2 * Shape::Form::unit_bytes,
                                                     first + k % 2, a[k][i]);
    }
}

/* COUNT products of 16 inputs, from the first of a unit on. */
template <class Shape, int N, uint32_t COUNT>
__device__ __forceinline__ void batch_products(uint32_t weights, uint32_t first, uint64_t rows, float (&acc)[Shape::each][N / 2])
{
    uint32_t a[COUNT][Shape::each][4];
    batch_read<Shape, COUNT>(weights, first, a);
#pragma unroll
    for (uint32_t i = 0; i < Shape::each; i++)
        wgmma_hold(acc[i]);
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < COUNT; k++)
#pragma unroll
        for (uint32_t i = 0; i < Shape::each; i++)
            wgmma(wgmma_bf16(), acc[i], a[k][i], rows + Shape::further(k));
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (uint32_t i = 0; i < Shape::each; i++)
        wgmma_hold(acc[i]);
}

/* Fragments of a stage. */
template <class Shape> struct batch_fragments {
    uint32_t a[2 * CU_BATCH_UNITS][Shape::each][4];

    __device__ __forceinline__ void read(uint32_t weights)
    {
        batch_read<Shape, 2 * CU_BATCH_UNITS>(weights, 0, a);
    }

    template <int N> __device__ __forceinline__ void multiply(uint64_t rows, float (&acc)[Shape::each][N]) const
    {
        wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < 2 * CU_BATCH_UNITS; k++)
#pragma unroll
            for (uint32_t i = 0; i < Shape::each; i++)
                wgmma(wgmma_bf16(), acc[i], a[k][i], rows + Shape::further(k));
        wgmma_commit();
    }
};

template <int A, int B> __device__ __forceinline__ void batch_hold(float (&acc)[A][B])
{
#pragma unroll
    for (int i = 0; i < A; i++)
        wgmma_hold(acc[i]);
}

/* `stages` whole stages, at least one, by twos: while the products of one run the next one's fragments are read. All have ended when the loop begins
 * again: else the compiler makes every product wait. */
template <class Shape, int N> __device__ __forceinline__ void batch_stages_sum(batch_ring<Shape> &ring, uint32_t stages, float (&acc)[Shape::each][N])
{
    batch_fragments<Shape> even, odd;
    const bool single = stages & 1;
    batch_hold(acc);
    stages /= 2;
    ring.wait_full();
    even.read(ring.weights_at());
#pragma unroll 1
    for (; stages > 0; stages--) {
        batch_ring<Shape> ahead = ring;
        ahead.next();
        even.multiply(wgmma_tokens64(ring.acts_at()), acc);
        ahead.wait_full();
        odd.read(ahead.weights_at());
        odd.multiply(wgmma_tokens64(ahead.acts_at()), acc);
        wgmma_wait<1>();
        ring.leave();
        if (single || stages > 1) {
            ahead.next();
            ahead.wait_full();
            even.read(ahead.weights_at());
        }
        wgmma_wait<0>();
        batch_hold(acc);
        ring.leave();
    }
    if (single) {
        batch_hold(acc);
        even.multiply(wgmma_tokens64(ring.acts_at()), acc);
        wgmma_wait<0>();
        batch_hold(acc);
        ring.leave();
    }
}

/* The sum of one share of the inputs, `units` of them, for N rows. */
template <class Shape, int N>
__device__ __forceinline__ void batch_sum(batch_ring<Shape> &ring, uint32_t units, float (&acc)[Shape::each][N / 2])
{
#pragma unroll
    for (uint32_t i = 0; i < Shape::each; i++)
#pragma unroll
        for (int n = 0; n < N / 2; n++)
            acc[i][n] = 0;
    if (Shape::ahead && units >= CU_BATCH_UNITS)
        batch_stages_sum<Shape, N / 2>(ring, units / CU_BATCH_UNITS, acc);
#pragma unroll 1
    for (uint32_t left = Shape::ahead ? units % CU_BATCH_UNITS : units; left > 0; left -= min(left, (uint32_t)CU_BATCH_UNITS)) {
        ring.wait_full();
        const uint32_t weights = ring.weights_at();
        const uint64_t rows = wgmma_tokens64(ring.acts_at());
        if ((Shape::groups == 2 || Shape::each * N < 128) && left > 1) { /* registers for all fragments */
            batch_products<Shape, N, 4>(weights, 0, rows, acc);
        } else if (Shape::groups > 2) { /* registers for one */
#pragma unroll
            for (uint32_t k = 0; k < 2 * CU_BATCH_UNITS; k++)
                if (k < 2 || left > 1)
                    batch_products<Shape, N, 1>(weights + k / 2 * Shape::Form::unit_bytes, k % 2, rows + Shape::further(k), acc);
        } else {
            batch_products<Shape, N, 2>(weights, 0, rows, acc);
            if (Shape::groups != 2 && left > 1)
                batch_products<Shape, N, 2>(weights + Shape::Form::unit_bytes, 0, rows + Shape::further(2), acc);
        }
        ring.leave();
    }
}

/* Units of a share. */
template <class Shape> __device__ __forceinline__ uint32_t batch_units(uint32_t units, uint32_t share)
{
    return Shape::first(units, share + 1) - Shape::first(units, share);
}

__device__ __forceinline__ void add4(float4 &sum, float4 v)
{
    sum.x += v.x;
    sum.y += v.y;
    sum.z += v.z;
    sum.w += v.w;
}

/* To the block of that rank; it comes to its mbarrier. */
__device__ __forceinline__ void cluster_give(uint32_t there, const float v[4], uint32_t bar)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(there), "f"(v[0]), "f"(v[1]), "f"(v[2]),
                 "f"(v[3]), "r"(bar)
                 : "memory");
}

/* Of up to N rows' sums a block adds up this many groups of 8. */
template <class Shape, int N> __device__ __forceinline__ uint32_t batch_adds(uint32_t rank)
{
    return N / 8 > rank ? (N / 8 - rank + Shape::parts - 1) / Shape::parts : 0;
}

/* Where a lane's sums of its tile come to. */
template <class Shape> __device__ __forceinline__ uint32_t batch_given(const batch_ring<Shape> &ring)
{
    return ring.beside() + batch_tile<Shape>(0) * 512 + threadIdx.x % 32 * 16;
}

/* The sum of the block's share, given to those blocks of the cluster that add it up: rows 8n .. 8n + 7 to the one of rank n % parts. There is no other item. */
template <class Shape, int N> __device__ __forceinline__ void batch_give(batch_ring<Shape> &ring, uint32_t units)
{
    constexpr uint32_t PARTS = Shape::parts, LINE = Shape::tiles * 512;
    static_assert(Shape::each == 1, "a warp has one tile");
    const uint32_t rank = cluster_rank(), came = smem_at(&batch_room()->came);
    float sum[1][N / 2];
    if (threadIdx.x == 128)
        bulk_expect(came, batch_adds<Shape, N>(rank) * Shape::slots * LINE);
    cluster_begun();
    batch_sum<Shape, N>(ring, batch_units<Shape>(units, rank), sum);
    const uint32_t to = batch_given(ring) + rank * LINE;
#pragma unroll
    for (uint32_t n = 0; n < N / 8; n++)
        cluster_give(cluster_at(to + n / PARTS * Shape::slots * LINE, n % PARTS), &sum[0][4 * n], cluster_at(came, n % PARTS));
}

/* Adds up what was given to this block. */
template <class Shape, int N, class Done>
__device__ __forceinline__ void batch_add_up(batch_ring<Shape> &ring, const batch_item &item, const Done &done)
{
    constexpr uint32_t PARTS = Shape::parts, LINE = Shape::tiles * 512, SLOTS = Shape::slots, SIDE = CU_DIV_UP(N / 8, PARTS) > 1 ? 2 : 1;
    const uint32_t rank = cluster_rank(), lane = threadIdx.x % 32, came = smem_at(&batch_room()->came);
    const uint32_t room = batch_given(ring), own = batch_adds<Shape, N>(rank);
    if (own == 0)
        return;
    const auto tile = done.open(item.tile0 + batch_tile<Shape>(0), item.first, 0);
    const uint32_t row0 = item.first + lane % 4 * 2 + rank * 8, end = item.first + item.rows;
    typename decltype(done.open(0, 0, 0))::held next[SIDE];
    tile.ask(next, row0, PARTS * 8, end);
    bulk_wait(came, 0);
#pragma unroll 1
    for (uint32_t i0 = 0; i0 < own; i0 += SIDE) {
        typename decltype(done.open(0, 0, 0))::held held[SIDE];
        float4 all[SIDE][SLOTS];
#pragma unroll
        for (uint32_t i = 0; i < SIDE; i++) {
            held[i] = next[i];
#pragma unroll
            for (uint32_t s = 0; s < SLOTS; s++) {
                const uint4 v = lds16(room + (min(i0 + i, own - 1) * SLOTS + s) * LINE);
                all[i][s] = make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
            }
        }
        if (i0 + SIDE < own)
            tile.ask(next, row0 + (i0 + SIDE) * PARTS * 8, PARTS * 8, end);
#pragma unroll
        for (uint32_t i = 0; i < SIDE; i++) {
#pragma unroll
            for (uint32_t s = 1; s < SLOTS; s++)
                add4(all[i][0], all[i][s]);
            const float4 v = all[i][0];
            const float c[4] = {v.x, v.y, v.z, v.w};
            if (i0 + i < own)
                tile.put(held[i], row0 + (i0 + i) * PARTS * 8, end, c);
        }
    }
}

__device__ __forceinline__ float4 cluster_get(uint32_t there)
{
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(there) : "memory");
    return v;
}

/* The same where there is no room for that: each leaves its sums in the ring, which is empty, and reads the others'. */
template <class Shape, int N, class Done>
__device__ __forceinline__ void batch_add_read(batch_ring<Shape> &ring, const batch_item &item, float (&sum)[Shape::held][1][N / 2],
                                             const Done &done)
{
    constexpr uint32_t PARTS = Shape::parts, HELD = Shape::held, WARPS = Shape::groups * 4, SIDE = N / 8 > PARTS ? 2 : 1;
    static_assert(HELD * WARPS * (N / 8) * 512 <= Shape::stages * (Shape::weights_bytes + Shape::acts_bytes), "room");
    const uint32_t rank = cluster_rank(), lane = threadIdx.x % 32, warp = threadIdx.x / 32 - 4;
    const uint32_t room = ring.acts + warp * 512 + lane * 16;
    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
#pragma unroll
    for (uint32_t n = 0; n < N / 8; n++)
#pragma unroll
        for (uint32_t s = 0; s < HELD; s++)
            if (s == 0 || rank > 0) {
                const float *v = &sum[s][0][4 * n];
                sts16(room + (s * (N / 8) + n) * WARPS * 512,
                      make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])));
            }
    const auto tile = done.open(item.tile0 + batch_tile<Shape>(0), item.first, 0);
    const uint32_t row0 = item.first + lane % 4 * 2, end = item.first + item.rows;
    typename decltype(done.open(0, 0, 0))::held next[SIDE];
    tile.ask(next, row0 + rank * 8, PARTS * 8, end);
    cluster_sync();
#pragma unroll 1
    for (uint32_t n0 = rank; n0 < N / 8; n0 += SIDE * PARTS) {
        typename decltype(done.open(0, 0, 0))::held held[SIDE];
        float4 all[SIDE][PARTS][HELD];
#pragma unroll
        for (uint32_t i = 0; i < SIDE; i++)
#pragma unroll
            for (uint32_t r = 0; r < PARTS; r++)
#pragma unroll
                for (uint32_t s = 0; s < (r == 0 ? 1 : HELD); s++)
                    all[i][r][s] = cluster_get(cluster_at(room + (s * (N / 8) + min(n0 + i * PARTS, N / 8 - 1)) * WARPS * 512, r));
#pragma unroll
        for (uint32_t i = 0; i < SIDE; i++)
            held[i] = next[i];
        if (n0 + SIDE * PARTS < N / 8)
            tile.ask(next, row0 + (n0 + SIDE * PARTS) * 8, PARTS * 8, end);
#pragma unroll
        for (uint32_t i = 0; i < SIDE; i++) {
#pragma unroll
            for (uint32_t r = 1; r < PARTS; r++)
#pragma unroll
                for (uint32_t s = 0; s < HELD; s++)
                    add4(all[i][0][0], all[i][r][s]);
            const float4 v = all[i][0][0];
            const float c[4] = {v.x, v.y, v.z, v.w};
            const uint32_t n = n0 + i * PARTS;
            if (n < N / 8)
                tile.put(held[i], row0 + n * 8, end, c);
        }
    }
    cluster_sync_read();
}

/* A block that has all of a row's head leaves it as one line: sums are turned in shared memory. */
template <class Shape, int N, class Done>
__device__ __forceinline__ void batch_lines(batch_ring<Shape> &ring, const batch_item &item, const float (&sum)[N / 2], const Done &done)
{
    const uint32_t lane = threadIdx.x % 32, group = threadIdx.x / 128 - 1, row0 = item.first + lane % 4 * 2, end = item.first + item.rows;
    const uint32_t lines = ring.beside() + group * Shape::tokens * 128, chunk = threadIdx.x / 32 % 4 + lane / 8 % 2 * 4;
    const auto tile = done.open(item.tile0 + batch_tile<Shape>(0), item.first, 0);
    typename decltype(done.open(0, 0, 0))::held held[N / 8];
    tile.ask(held, row0, 8, end);
#pragma unroll
    for (uint32_t n = 0; n < N / 8; n++) {
        const uint2 v = tile.turned(held[n], &sum[4 * n]);
        asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(lines + (n * 8 + lane % 8) * 128 + (chunk ^ lane % 8) * 16),
                     "r"(v.x), "r"(v.y)
                     : "memory");
    }
    asm volatile("bar.sync %0, 128;" ::"r"(group + 4) : "memory");
    tile.leave(lines, item.rows);
    asm volatile("bar.sync %0, 128;" ::"r"(group + 4) : "memory"); /* before the next item's */
}

/* Registers are what sums need: the rest of a warp's state waits in shared memory. */
template <class Shape> __device__ __forceinline__ void batch_keep(const batch_work<Shape> &work, const batch_item &item)
{
    const uint32_t to = smem_at(batch_room()->kept[threadIdx.x / 32 - 4]);
    sts16(to, make_uint4(item.tile0, item.first, item.rows, work.now));
    sts16(to + 16, make_uint4(work.count, work.chunks, work.end, 0));
}

template <class Shape> __device__ __forceinline__ void batch_recall(batch_work<Shape> &work, batch_item &item)
{
    const uint32_t from = smem_at(batch_room()->kept[threadIdx.x / 32 - 4]);
    const uint4 a = lds16(from), b = lds16(from + 16);
    item = {a.x, a.y, a.z};
    work.now = a.w;
    work.count = b.x;
    work.chunks = b.y;
    work.end = b.z;
    __syncwarp();
}

/* One item by one warpgroup, as up to N rows. */
template <class Shape, int N, class Done>
__device__ __forceinline__ void batch_multiply(batch_ring<Shape> &ring, batch_work<Shape> &work, batch_item &item, uint32_t units,
                                               const Done &done)
{
    const uint32_t part = batch_part<Shape>(), share = Shape::share(part), last = Shape::share(part + 1);
    float sum[Shape::held][Shape::each][N / 2]; /* of a block alone: the sum, and the next share's */
    uint32_t known[Shape::each]; /* of its tiles */
#pragma unroll
    for (uint32_t i = 0; i < Shape::each; i++)
        known[i] = done.know(item.tile0 + batch_tile<Shape>(i));
    batch_keep(work, item);
    if constexpr (Shape::gives) {
        batch_give<Shape, N>(ring, units);
    } else if (Shape::parts == 1) {
        batch_sum<Shape, N>(ring, batch_units<Shape>(units, share), sum[0]);
#pragma unroll 1
        for (uint32_t s = share + 1; s < last; s++) {
            batch_sum<Shape, N>(ring, batch_units<Shape>(units, s), sum[1]);
#pragma unroll
            for (uint32_t i = 0; i < Shape::each; i++)
#pragma unroll
                for (int n = 0; n < N / 2; n++)
                    sum[0][i][n] += sum[1][i][n];
        }
    } else {
#pragma unroll
        for (uint32_t s = 0; s < Shape::held; s++)
            batch_sum<Shape, N>(ring, batch_units<Shape>(units, share + s), sum[s]);
        if (part == 0)
#pragma unroll
            for (uint32_t s = 1; s < Shape::held; s++)
#pragma unroll
                for (int n = 0; n < N / 2; n++)
                    sum[0][0][n] += sum[s][0][n];
    }
    batch_recall(work, item);
    if (Done::places)
        batch_meet<Shape>::there(true);
    if constexpr (Shape::gives) {
        batch_add_up<Shape, N>(ring, item, done);
    } else if constexpr (Shape::parts > 1) {
        batch_add_read<Shape, N>(ring, item, sum, done);
    } else if constexpr (Shape::lines > 0) {
        batch_lines<Shape, N>(ring, item, sum[0][0], done);
    } else {
        constexpr uint32_t TOGETHER = N / 8 < 4 ? N / 8 : 4; /* what is read for them comes at once */
#pragma unroll
        for (uint32_t i = 0; i < Shape::each; i++) {
            const auto tile = done.open(item.tile0 + batch_tile<Shape>(i), item.first, known[i]);
            const uint32_t row0 = item.first + threadIdx.x % 4 * 2, end = item.first + item.rows;
            typename decltype(done.open(0, 0, 0))::held held[2][TOGETHER]; /* those that are put, and the next ones */
            tile.ask(held[0], row0, 8, end);
#pragma unroll
            for (uint32_t n = 0; n < N / 8; n += TOGETHER) {
                if (n + TOGETHER < N / 8)
                    tile.ask(held[(n / TOGETHER + 1) % 2], row0 + (n + TOGETHER) * 8, 8, end);
#pragma unroll
                for (uint32_t j = 0; j < TOGETHER; j++)
                    tile.put(held[n / TOGETHER % 2][j], row0 + (n + j) * 8, end, &sum[0][i][4 * (n + j)]);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < Shape::each; i++)
            done.end(item.tile0 + batch_tile<Shape>(i), item.first, item.rows, known[i]);
    }
    if (Done::places)
        batch_meet<Shape>::read(false);
}

/* The warpgroups that multiply. */
template <class Shape, class Done>
__device__ __forceinline__ void batch_take(batch_ring<Shape> &ring, uint32_t all_tiles, uint32_t units, uint32_t count, const Done &done)
{
    batch_work<Shape> work;
    batch_item item;
    work.open(count, all_tiles);
    if (work.now >= work.end)
        for (uint32_t early = batch_early<Shape>(units); early > 0; early--, ring.next())
            ring.wait_full();
    while (work.next(item, all_tiles)) {
        if (item.rows <= 8)
            batch_multiply<Shape, 8>(ring, work, item, units, done);
        else if (item.rows <= 16)
            batch_multiply<Shape, 16>(ring, work, item, units, done);
        else if (item.rows <= 32)
            batch_multiply<Shape, 32>(ring, work, item, units, done);
        else if (item.rows <= 64)
            batch_multiply<Shape, 64>(ring, work, item, units, done);
        else if constexpr (Shape::tokens > 64)
            batch_multiply<Shape, Shape::tokens>(ring, work, item, units, done);
    }
}

/* y = x W^T. count(): rows, after the op before has ended; or, if EARLY, before. */
template <class Shape, class Count, class Done>
__device__ __forceinline__ void batch_run(const struct nib_gpu_machine *m, nib_gpu_ptr weights, uint32_t n, uint32_t k, bool early,
                                          Count count, const Done &done)
{
    const uint32_t units = k / CU_DENSE_UNIT, tiles = cu_tiles(n), warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    batch_ring<Shape> ring;
    ring.open(batch_dense_dynamic);
    overlap_next();
    auto learn = [&] {
        uint32_t rows = early ? count() : 0;
        overlap_wait();
        rows = early ? rows : count();
        return min(rows, (uint32_t)NIB_MAX_SLOTS);
    };
    if (Shape::groups * 4 + 4 <= warp) { /* a warpgroup without work */
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        return;
    }
    if (warp >= 4) {
        if (Shape::groups == 2)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::idle ? 216 : 232));
        else
            asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        batch_take(ring, tiles, units, learn(), done);
        return;
    }
    if (Shape::groups == 2)
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    else
        asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    if (warp < BATCH_WEIGHTS_WARPS) /* weights wait for no op */
        batch_weights(ring, weights, warp, tiles, units, [&] { return early ? min(count(), (uint32_t)NIB_MAX_SLOTS) : learn(); });
    else
        batch_bring(ring, batch_acts(m), tiles, units, early, count, learn, done);
}

template <class Shape> __device__ __forceinline__ void qkv_batch_run(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct nib_gpu_step *step = step_of(m);
    const batch_qkv_done done = {m, step->rows, layer};
    batch_run<Shape>(
        m, m->layer[layer].qkv, (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM, m->hidden, layer > 0, [&] { return step->decode_count; }, done);
}

template <class Shape> __device__ __forceinline__ void out_batch_run(const struct nib_gpu_machine *m, uint32_t layer)
{
    const batch_out_done done = {m, layer};
    batch_run<Shape>(
        m, m->layer[layer].out, m->hidden, m->heads * NIB_HEAD_DIM, layer > 0, [&] { return step_of(m)->decode_count; }, done);
}

template <class Form> __device__ __forceinline__ void out_batch_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const uint32_t bytes = dynamic_shared_bytes();
    if (bytes == CU_BATCH_LESS)
        out_batch_run<batch_shape<Form, CU_BATCH_OUT_GROUPS, 1, CU_BATCH_FEW, CU_BATCH_OUT_PARTS, CU_OUT_WARPS>>(m, layer);
    else if (bytes == CU_BATCH_SOME)
        out_batch_run<batch_shape<Form, CU_BATCH_OUT_GROUPS, 1, CU_BATCH_ROWS, CU_BATCH_OUT_PARTS, CU_OUT_WARPS>>(m, layer);
    else
        out_batch_run<batch_shape<Form, CU_BATCH_OUT_GROUPS, 1, CU_BATCH_ROWS, CU_BATCH_OUT_MANY, CU_OUT_WARPS>>(m, layer);
}

KERNEL(out_batch, CU_BATCH_OUT_THREADS, 1)
{
    out_batch_rows<weights_bf16>(m, layer);
}

KERNEL(out_batch_mxfp8, CU_BATCH_OUT_THREADS, 1)
{
    out_batch_rows<weights_mxfp8>(m, layer);
}
