/* arch/sm90/batch_qkv.cuh: qkv of up to 64 decode rows (arch/sm90/BATCH.md). A block has all inputs of few tiles. Three warpgroups multiply, each a share of the inputs
 * in each of three rounds; behind a round they leave their sums in shared memory, and each adds up those of its rows, in the order of the shares.
 *
 * A stage is up to 64 inputs of one share, and one warpgroup's. */
#pragma once
#include "arch/sm90/batch_dense.cuh"

template <class FORM> struct qkv_shape : batch_sizes<FORM, CU_BATCH_QKV_TILES, CU_BATCH_FEW, CU_GEMV_WARPS> {
    typedef batch_sizes<FORM, CU_BATCH_QKV_TILES, CU_BATCH_FEW, CU_GEMV_WARPS> sizes;
    static constexpr uint32_t groups = 1; /* read a stage */
    static constexpr uint32_t teams = CU_BATCH_QKV_GROUPS, rounds = sizes::shares / teams;
    static constexpr uint32_t line = sizes::tiles * 512, given = teams * (CU_BATCH_FEW / 8) * line; /* a round's sums, behind the ring */
    static constexpr uint32_t fit = (CU_BATCH_ROOM - given) / (sizes::weights_bytes + sizes::acts_bytes);
    static constexpr uint32_t stages = (fit < BATCH_STAGES_MAX ? fit : BATCH_STAGES_MAX) / teams * teams;
    static constexpr bool gives = false;
    static_assert(rounds * teams == sizes::shares && sizes::tiles == BATCH_WEIGHTS_WARPS && CU_BATCH_UNITS == 2, "a share a round, a warp a tile");
    static_assert(stages % teams == 0, "a place is one warpgroup's: one that came to it in other laps only could take a lap for the next");

    /* Stages of a share; of a shorter one the last is empty. */
    __device__ __forceinline__ static uint32_t per(uint32_t units)
    {
        return CU_DIV_UP(CU_DIV_UP(CU_DIV_UP(units, FORM::span), sizes::shares) * FORM::span, CU_BATCH_UNITS);
    }
};

/* The stages in their order: those of a round's shares in turns. */
template <class Shape> struct qkv_stages {
    uint32_t units, per, round = 0, step = 0, team = 0;

    __device__ __forceinline__ qkv_stages(uint32_t all_units) : units(all_units), per(Shape::per(all_units))
    {
    }

    __device__ __forceinline__ bool more() const
    {
        return round < Shape::rounds;
    }

    /* Units at .. at + have - 1. */
    __device__ __forceinline__ uint32_t have(uint32_t &at) const
    {
        const uint32_t share = round * Shape::teams + team, end = Shape::first(units, share + 1);
        at = Shape::first(units, share) + step * CU_BATCH_UNITS;
        return at < end ? min(end - at, (uint32_t)CU_BATCH_UNITS) : 0;
    }

    __device__ __forceinline__ void next()
    {
        if (++team < Shape::teams)
            return;
        team = 0;
        if (++step < per)
            return;
        step = 0;
        round++;
    }
};

/* A unit of a stage's activations, the i-th, from unit u on. All lanes. */
template <class Shape> __device__ __forceinline__ void qkv_acts(const batch_ring<Shape> &ring, const uint8_t *acts, uint32_t u, uint32_t i, uint32_t bytes)
{
    __syncwarp();
    if (elect_one())
        copy_bulk(ring.acts_at() + i * Shape::unit_acts, acts + (u + i) * NIB_MAX_SLOTS * CU_BATCH_LINE, bytes, ring.full());
    __syncwarp();
}

/* A warp that asks for a tile's weights, and for the second unit of every third stage's activations. */
template <class Shape, class Learn>
__device__ __forceinline__ void qkv_weights(batch_ring<Shape> ring, const uint8_t *w, const uint8_t *acts, uint32_t tile, bool there, uint32_t units, Learn learn)
{
    constexpr uint32_t unit_bytes = Shape::Form::unit_bytes;
    const uint32_t which = threadIdx.x / 32;
    const uint64_t policy = stream_policy();
    qkv_stages<Shape> stages(units), behind(units);
    batch_ring<Shape> ring_behind = ring;
    uint32_t u;
    w += (uint64_t)tile * units * unit_bytes;
    auto ask = [&] {
        const uint32_t have = stages.have(u);
        ring.wait_empty();
        batch_copy<1>(ring.full(), ring.weights_at() + which * Shape::tile_bytes, 0, w + (uint64_t)u * unit_bytes, 0, have * unit_bytes, there && have, policy);
    };
    auto next = [&] {
        stages.next();
        ring.next();
    };
    uint32_t early = 0;
    for (; early < Shape::stages && stages.more(); early++, next())
        ask();
    const uint32_t bytes = learn() * CU_BATCH_LINE;
    asm volatile("fence.proxy.async.global;" ::: "memory"); /* the op before wrote them */
    for (; early > 0; early--, behind.next(), ring_behind.next())
        if (behind.team == which && behind.have(u) > 1)
            qkv_acts(ring_behind, acts, u, 1, bytes);
    for (; stages.more(); next()) {
        ask();
        if (stages.team == which && stages.have(u) > 1)
            qkv_acts(ring, acts, u, 1, bytes);
    }
}

/* The warp that asks for the first unit of each stage's activations and says how many bytes of them come. */
template <class Shape, class Count, class Learn>
__device__ __forceinline__ void qkv_bring(batch_ring<Shape> ring, const uint8_t *acts, uint32_t units, bool early, Count count, Learn learn)
{
    qkv_stages<Shape> stages(units);
    uint32_t u, told = 0; /* stages ahead whose mbarriers know what comes */
    if (early) {
        const uint32_t bytes = count() * CU_BATCH_LINE;
        batch_ring<Shape> ahead = ring;
        for (qkv_stages<Shape> of = stages; told < Shape::stages && of.more(); told++, of.next(), ahead.next())
            if (threadIdx.x % 32 == 0)
                bulk_expect(ahead.full(), of.have(u) * bytes);
    }
    const uint32_t bytes = learn() * CU_BATCH_LINE;
    asm volatile("fence.proxy.async.global;" ::: "memory"); /* the op before wrote them */
    for (; stages.more(); stages.next(), ring.next()) {
        const uint32_t have = stages.have(u);
        if (told) {
            told--;
        } else {
            ring.wait_empty();
            if (threadIdx.x % 32 == 0)
                bulk_expect(ring.full(), have * bytes);
        }
        if (have)
            qkv_acts(ring, acts, u, 0, bytes);
    }
}

/* COUNT products of 16 inputs. */
template <class Shape, int N, uint32_t COUNT> __device__ __forceinline__ void qkv_products(uint32_t weights, uint64_t rows, float (&acc)[N / 2])
{
    uint32_t a[COUNT][4];
#pragma unroll
    for (uint32_t k = 0; k < COUNT; k++)
        batch_fragment<typename Shape::Form>(weights + k / 2 * Shape::Form::unit_bytes, k % 2, a[k]);
    wgmma_hold(acc);
    wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < COUNT; k++)
        wgmma(wgmma_bf16(), acc, a[k], rows + Shape::further(k));
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(acc);
}

/* A warpgroup that multiplies, for up to N rows. */
template <class Shape, int N>
__device__ __forceinline__ void qkv_multiply(batch_ring<Shape> ring, uint32_t tile0, uint32_t units, uint32_t rows, const batch_qkv_done &done)
{
    constexpr uint32_t TEAMS = Shape::teams, EACH = CU_DIV_UP(N / 8, TEAMS), LINE = Shape::line;
    const uint32_t team = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const uint32_t own = min(warp, Shape::tiles - 1), per = Shape::per(units); /* the last warp has no tile */
    const uint32_t room = ring.beside() + own * 512 + lane * 16, row0 = team * 8 + lane % 4 * 2;
    const auto tile = done.open(tile0 + own, 0, 0);
    batch_qkv_tile::held held[EACH];
    tile.ask(held, row0, TEAMS * 8, max(rows, 1u));
    float total[EACH][4];
    for (uint32_t i = 0; i < team; i++)
        ring.next();
#pragma unroll 1
    for (uint32_t round = 0; round < Shape::rounds; round++) {
        const uint32_t share = round * TEAMS + team;
        uint32_t left = Shape::first(units, share + 1) - Shape::first(units, share);
        float sum[N / 2];
#pragma unroll
        for (int n = 0; n < N / 2; n++)
            sum[n] = 0;
#pragma unroll 1
        for (uint32_t step = 0; step < per; step++, left -= min(left, (uint32_t)CU_BATCH_UNITS)) {
            ring.wait_full();
            const uint32_t weights = ring.weights_at() + own * Shape::tile_bytes;
            const uint64_t acts = wgmma_tokens64(ring.acts_at());
            if (left > 1)
                qkv_products<Shape, N, 4>(weights, acts, sum);
            else if (left)
                qkv_products<Shape, N, 2>(weights, acts, sum);
            ring.leave();
            for (uint32_t i = 1; i < TEAMS; i++)
                ring.next();
        }
        if (round)
            asm volatile("bar.sync 1, %0;" ::"n"(TEAMS * 128) : "memory"); /* the last round's are read */
        if (own == warp)
#pragma unroll
            for (uint32_t n = 0; n < N / 8; n++)
                sts16(room + (team * (N / 8) + n) * LINE, make_uint4(__float_as_uint(sum[4 * n]), __float_as_uint(sum[4 * n + 1]),
                                                                     __float_as_uint(sum[4 * n + 2]), __float_as_uint(sum[4 * n + 3])));
        asm volatile("bar.sync 1, %0;" ::"n"(TEAMS * 128) : "memory");
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++)
#pragma unroll
            for (uint32_t i = 0; i < TEAMS; i++) {
                const uint4 v = lds16(room + (i * (N / 8) + min(team + j * TEAMS, (uint32_t)N / 8 - 1)) * LINE);
                const float c[4] = {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
#pragma unroll
                for (uint32_t k = 0; k < 4; k++)
                    total[j][k] = round || i ? total[j][k] + c[k] : c[k];
            }
    }
    asm volatile("bar.sync 2, %0;" ::"n"(TEAMS * 128 + 32) : "memory"); /* places are there */
    if (own == warp)
#pragma unroll
        for (uint32_t j = 0; j < EACH; j++)
            if (team + j * TEAMS < N / 8)
                tile.put(held[j], row0 + j * TEAMS * 8, rows, total[j]);
}

template <class Form> __device__ __forceinline__ void qkv_few_run(const struct nib_gpu_machine *m, uint32_t layer)
{
    typedef qkv_shape<Form> Shape;
    const struct nib_gpu_step *step = step_of(m);
    const batch_qkv_done done = {m, step->rows, layer};
    const uint32_t units = m->hidden / CU_DENSE_UNIT, tiles = cu_tiles((m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM);
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x / 32, 0), tile0 = blockIdx.x * Shape::tiles;
    const bool early = layer > 0;
    const uint8_t *w = at<const uint8_t>(m->layer[layer].qkv), *acts = batch_acts(m);
    batch_ring<Shape> ring;
    ring.open(batch_dense_dynamic);
    overlap_next();
    auto count = [&] { return min(step->decode_count, (uint32_t)CU_BATCH_FEW); };
    auto learn = [&] {
        uint32_t rows = early ? count() : 0;
        overlap_wait();
        return early ? rows : count();
    };
    if (warp >= 4) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        const uint32_t rows = learn();
        if (rows <= 32)
            qkv_multiply<Shape, 32>(ring, tile0, units, rows, done);
        else
            qkv_multiply<Shape, 64>(ring, tile0, units, rows, done);
        return;
    }
    asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
    auto some = [&] { return max(count(), 1u); }; /* without rows a stage comes, too */
    auto learn_some = [&] { return max(learn(), 1u); };
    if (warp < BATCH_WEIGHTS_WARPS) { /* weights wait for no op */
        qkv_weights<Shape>(ring, w, acts, tile0 + warp, tile0 + warp < tiles, units, learn_some);
    } else {
        qkv_bring<Shape>(ring, acts, units, early, some, learn_some);
        done.begin(tile0, Shape::tiles, 0, count());
        __threadfence_block();
        asm volatile("bar.arrive 2, %0;" ::"n"(Shape::teams * 128 + 32) : "memory");
    }
}

template <class Form> __device__ __forceinline__ void qkv_batch_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const uint32_t bytes = dynamic_shared_bytes();
    if (bytes == CU_BATCH_LESS)
        qkv_few_run<Form>(m, layer);
    else if (bytes == CU_BATCH_SOME)
        qkv_batch_run<batch_shape<Form, CU_BATCH_GROUPS, 1, CU_BATCH_QKV_ROWS, 1, CU_GEMV_WARPS, true>>(m, layer);
    else
        qkv_batch_run<batch_shape<Form, CU_BATCH_GROUPS, 1, CU_BATCH_QKV_THIRD, 1, CU_GEMV_WARPS, true>>(m, layer);
}

KERNEL(qkv_batch, CU_BATCH_QKV_THREADS, 1)
{
    qkv_batch_rows<weights_bf16>(m, layer);
}

KERNEL(qkv_batch_mxfp8, CU_BATCH_QKV_THREADS, 1)
{
    qkv_batch_rows<weights_mxfp8>(m, layer);
}
