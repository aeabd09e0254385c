/* arch/cuda/gemv.cuh: matrix products of decode rows. Weights stream once, at memory speed, whatever the number of rows.
 *
 * A block takes tiles of 16 output rows; its warps share a tile's inputs, each a fixed range of units, and walk the block's
 * tiles as one stream: every warp keeps a ring of units in flight in shared memory (cp.async; of bf16 and bf13 a lane copies
 * and reads only its own bytes, so that the ring needs no barrier), also across tiles. Sums of the warps are added in the order of the
 * warps. An output depends on its own row of activations only: not on the other rows, the grid or the ring.
 *
 * Warps of a block share: activations [rows][stride], partial sums [2][warps][NT][32 lanes] float4, rings. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/cuda/weights.cuh"

/* One pass: up to 8 * NT rows. Lane layout of a result, as mma has it: c[0], c[1] output row g, activation rows 2t, 2t+1;
 * c[2], c[3] output row g + 8. */
struct gemv_shared {
    uint32_t acts;   /* shared address of row 0 */
    uint32_t stride; /* bytes of a row */
    float4 *sums;    /* [2][warps][NT][32], behind the rows */
    uint32_t ring;   /* this warp's */
    uint32_t came;   /* sm_90: the mbarrier that rows come to */
};

extern __shared__ __align__(128) uint4 gemv_dynamic[]; /* a lane's 16 bytes beside its neighbours' in the same lines */

template <int WARPS> __device__ __forceinline__ uint32_t unit_first(uint32_t units, uint32_t warp)
{
    return units * warp / WARPS;
}

/* Which tiles a block takes of one dense matrix: first, first + step, ... below its end; with tickets only the first two of these, and behind them whichever is
 * next when it comes to it, since memory does not serve all blocks alike. Of a tile taken so the number is asked for two tiles before, by one thread, and handed
 * on by the barrier of the tile before. */
struct gemv_tiles {
    static constexpr uint32_t dealt = 2;
    uint32_t step;
    struct cu_tickets *tickets = NULL; /* 0 when a launch begins */
    uint32_t *taken = NULL;            /* shared, two */
    uint32_t asked = 0;

    /* The tile behind `tile`, which is the block's tile number `turn`. */
    __device__ __forceinline__ uint32_t next(uint32_t turn, uint32_t tile) const
    {
        return tickets && turn + 1 >= dealt ? *(volatile uint32_t *)&taken[turn % 2] : tile + step;
    }

    __device__ __forceinline__ void ask()
    {
        if (tickets && threadIdx.x == 0)
            asked = dealt * step + atomicAdd(&tickets->taken, 1u);
    }

    __device__ __forceinline__ void keep(uint32_t turn) const
    {
        if (tickets && threadIdx.x == 0)
            *(volatile uint32_t *)&taken[(turn + 1) % 2] = asked;
    }

    /* The last block to end sets the tickets back. */
    __device__ __forceinline__ void close() const
    {
        if (tickets && threadIdx.x == 0 && atomicAdd(&tickets->ended, 1u) + 1 == step)
            tickets->taken = tickets->ended = 0;
    }
};

/* The tiles a block takes of one dense matrix: first, first + step, ... below end. */
template <int WARPS, int RING, class Form = weights_bf16> struct dense_stream {
    static constexpr uint32_t span = Form::span, stage_bytes = span * Form::unit_bytes;

    const uint8_t *from; /* next stage to copy, this lane's bytes */
    uint64_t policy, jump; /* bytes from the last stage of a tile to the first of the block's next one */
    uint32_t per, stage, left; /* stages of a tile, the next one of it, stages not yet copied */
    uint32_t whole; /* of a tile's stages those that have all their units */
    uint32_t ring, head, tail; /* ring positions in bytes */
    Form form;

    /* Of these tiles no more than `most`: others follow by more(). */
    __device__ __forceinline__ void open(nib_gpu_ptr w, uint32_t units, uint32_t first, uint32_t step, uint32_t end,
                                         uint32_t ring_at, uint32_t most = ~0u)
    {
        const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, stages = CU_DIV_UP(units, span);
        const uint32_t s0 = unit_first<WARPS>(stages, warp);
        per = unit_first<WARPS>(stages, warp + 1) - s0;
        whole = units / span - s0;
        const uint32_t tiles = first < end ? (end - first + step - 1) / step : 0;
        left = min(tiles, most) * per;
        from = at<const uint8_t>(w, ((uint64_t)first * Form::stored(units) + s0 * span) * Form::unit_bytes + lane * 16);
        jump = ((uint64_t)step * Form::stored(units) - per * span) * Form::unit_bytes;
        form.open(w, units, first, end, s0);
        stage = 0;
        ring = ring_at + lane * 16;
        head = tail = 0;
        policy = stream_policy();
#pragma unroll
        for (int i = 0; i < RING - 1; i++) { /* few at a time: what others ask for waits behind them */
            push();
            if (NIB_SM >= 90 && i >= CU_DENSE_PACE)
                copy_wait<CU_DENSE_PACE>();
        }
    }

    /* Behind `tile` comes `next`. To be said before the last stage of `tile` is asked for. */
    __device__ __forceinline__ void more(uint32_t units, uint32_t tile, uint32_t next)
    {
        jump = ((uint64_t)(next - tile) * Form::stored(units) - per * span) * Form::unit_bytes;
        left += per;
    }

    __device__ __forceinline__ void push()
    {
        if (left) {
            Form::copy(ring + head, from, policy, span == 1 || stage < whole);
            from += stage_bytes;
            left--;
            if (++stage == per) {
                stage = 0;
                from += jump;
            }
        }
        head = head == (RING - 1) * stage_bytes ? 0 : head + stage_bytes;
        copy_commit();
    }

    /* The next stage's fragments; its place is filled again. */
    __device__ __forceinline__ void pop(uint4 w[span][2])
    {
        copy_wait<RING - 2>();
        Form::read(ring + tail, w);
        tail = tail == (RING - 1) * stage_bytes ? 0 : tail + stage_bytes;
        push();
    }
};

/* This warp's share of one tile. */
template <int NT, int WARPS, int RING, class Form>
__device__ __forceinline__ void dense_tile(dense_stream<WARPS, RING, Form> &s, uint32_t units, const gemv_shared &sh,
                                           uint32_t rows, float acc[NT][4])
{
    constexpr uint32_t span = Form::span;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t b_at = sh.acts + g * sh.stride + unit_first<WARPS>(CU_DIV_UP(units, span), threadIdx.x / 32) * span * 64 + t * 16;
#pragma unroll
    for (int n = 0; n < NT; n++)
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    for (uint32_t u = 0; u < s.per; u++) {
        uint4 w[span][2];
        s.pop(w);
        s.form.widen(u, w);
#pragma unroll
        for (uint32_t i = 0; i < span; i++, b_at += 64) {
            if (span > 1 && i + 1 == span && u >= s.whole)
                continue;
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (n * 8 + g < rows)
                    b = lds16(b_at + n * 8 * sh.stride);
                mma_unit(acc[n], w[i][0], w[i][1], b);
            }
        }
    }
}

/* Adds the warps' sums of a tile; warp `n` gets those of rows 8n .. 8n+7, the others false. Every thread of the block
 * calls it, for one tile after another. */
template <int NT, int WARPS>
__device__ __forceinline__ bool gather_sums(const gemv_shared &sh, uint32_t turn, const float acc[NT][4], float c[4])
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float4 *sums = sh.sums + (turn & 1) * WARPS * NT * 32;
#pragma unroll
    for (int n = 0; n < NT; n++)
        sums[(warp * NT + n) * 32 + lane] = make_float4(acc[n][0], acc[n][1], acc[n][2], acc[n][3]);
    __syncthreads();
    const uint32_t mine = (warp + WARPS - turn * NT % WARPS) % WARPS; /* another pair of warps each turn */
    if (mine >= NT)
        return false;
    float4 sum = sums[mine * 32 + lane];
#pragma unroll
    for (int w = 1; w < WARPS; w++) {
        const float4 v = sums[(w * NT + mine) * 32 + lane];
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    }
    c[0] = sum.x;
    c[1] = sum.y;
    c[2] = sum.z;
    c[3] = sum.w;
    return true;
}

template <int NT, int WARPS> __device__ __forceinline__ uint32_t gathered_row(uint32_t turn)
{
    return (threadIdx.x / 32 + WARPS - turn * NT % WARPS) % WARPS * 8;
}

/* Copies rows first .. rows - 1 of activations (k 16-bit numbers each, k a multiple of 32) to shared memory: row i from from(i).
 * All threads, then a barrier of the block, then the same of acts_wait. */
template <class From>
__device__ __forceinline__ void load_acts(const gemv_shared &sh, uint32_t first, uint32_t rows, uint32_t k, From from)
{
#if NIB_SM >= 90
    if (threadIdx.x >= 32 || first >= rows)
        return;
    if (threadIdx.x == 0)
        bulk_expect(sh.came, (rows - first) * k * 2);
    for (uint32_t r = first + threadIdx.x; r < rows; r += 32)
        copy_bulk(sh.acts + r * sh.stride, from(r), k * 2, sh.came);
#else
    const uint32_t chunks = k / 8;
    for (uint32_t r = first; r < rows; r++) {
        const uint8_t *src = (const uint8_t *)from(r);
        for (uint32_t c = threadIdx.x; c < chunks; c += blockDim.x)
            sts16(sh.acts + r * sh.stride + c * 16, *(const uint4 *)(src + c * 16));
    }
#endif
}

/* When rows are `coming`; `turn`: how often they were waited for before. */
__device__ __forceinline__ void acts_wait(const gemv_shared &sh, bool coming, uint32_t &turn)
{
#if NIB_SM >= 90
    if (coming)
        bulk_wait(sh.came, turn++ & 1);
#endif
}

/* Dynamic shared memory of a gemv block: rings, rows of activations, sums. */
template <int WARPS> __device__ __forceinline__ gemv_shared gemv_carve(uint32_t k, uint32_t ring_bytes)
{
    gemv_shared sh;
    sh.ring = smem_at(gemv_dynamic) + threadIdx.x / 32 * ring_bytes;
    sh.acts = smem_at(gemv_dynamic) + WARPS * ring_bytes;
    sh.stride = cu_row_stride(k);
    sh.sums = NULL;
    return sh;
}

/* The sums' place when there are `rows` rows. */
template <int WARPS> __device__ __forceinline__ void gemv_rows(gemv_shared &sh, uint32_t rows, uint32_t ring_bytes)
{
    sh.sums = (float4 *)((uint8_t *)gemv_dynamic + WARPS * ring_bytes + rows * sh.stride);
}

/* One pass: done(tile, first row, c) for each tile of the block and each 8 rows; ask(tile, first row), by the same warp, before the tile's products. */
template <int NT, int WARPS, int RING, class Form, class Ask, class Done>
__device__ __forceinline__ void dense_pass(dense_stream<WARPS, RING, Form> &s, const gemv_shared &sh, uint32_t units,
                                           uint32_t first, gemv_tiles tiles, uint32_t end, uint32_t rows, Ask ask, Done done)
{
    uint32_t turn = 0;
    for (uint32_t tile = first, next; tile < end; tile = next, turn++) {
        float acc[NT][4], c[4];
        next = tiles.next(turn, tile);
        if (tiles.tickets && turn + 1 >= tiles.dealt && next < end)
            s.more(units, tile, next);
        tiles.ask();
        s.form.step(next);
        if (gathered_row<NT, WARPS>(turn) < NT * 8)
            ask(tile, gathered_row<NT, WARPS>(turn));
        dense_tile<NT>(s, units, sh, rows, acc);
        tiles.keep(turn);
        if (!gather_sums<NT, WARPS>(sh, turn, acc, c))
            continue;
        s.form.finish(c);
        done(tile, gathered_row<NT, WARPS>(turn), c);
    }
    tiles.close();
    __syncthreads();
}

#define GEMV_AHEAD (NIB_SM >= 90) /* the registers for it are there */
#define GEMV_PARTS 2              /* 16 bytes a thread each: 2880 and 4096 inputs */

/* A row of activations on its way to shared memory; asked for before it is known that it is needed. */
template <uint32_t THREADS> struct gemv_row {
    const uint8_t *from;
    uint4 v[GEMV_PARTS];

    __device__ __forceinline__ void ask(const uint8_t *row, uint32_t k)
    {
        from = row;
#pragma unroll
        for (uint32_t p = 0; p < GEMV_PARTS; p++) {
            const uint32_t c = threadIdx.x + p * THREADS;
            v[p] = c < k / 8 ? *(const uint4 *)(from + c * 16) : make_uint4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ void keep(uint32_t to, uint32_t k) const
    {
#pragma unroll
        for (uint32_t p = 0; p < GEMV_PARTS; p++)
            if (threadIdx.x + p * THREADS < k / 8)
                sts16(to + (threadIdx.x + p * THREADS) * 16, v[p]);
        for (uint32_t c = threadIdx.x + GEMV_PARTS * THREADS; c < k / 8; c += THREADS)
            sts16(to + c * 16, *(const uint4 *)(from + c * 16));
    }
};

/* Brings what is read at the end to the first-level cache. */
__device__ __forceinline__ void touch(const void *p)
{
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p));
}

/* y = x W^T of `rows` rows, RING stages a warp; from(row) is a row of activations, from(0) one that may be read whatever count() is; done.ask(tile, row, end), then done(tile, row,
 * end, c) gets the sums of the lane's rows row and row + 1 below end, as in arch/cuda/done.cuh. `dealing`: of the first pass's tiles. `early`: the step block may be read before
 * the op before this one has ended. before(rows) is called as soon as it may. Every block of the grid, WARPS warps, calls it once. */
template <int WARPS, int RING, class Form, class Count, class From, class Done, class Before>
__device__ __forceinline__ void dense_gemv(gemv_tiles dealing, nib_gpu_ptr w, uint32_t n, uint32_t k, bool early, Count count, From from,
                                           Done done, Before before)
{
    constexpr uint32_t ring_bytes = RING * Form::span * Form::unit_bytes;
    constexpr bool deep = RING != Form::ring; /* up to CU_DEEP_ROWS rows */
    __shared__ uint64_t came;
    gemv_shared sh = gemv_carve<WARPS>(k, ring_bytes);
    sh.came = smem_at(&came);
#if NIB_SM >= 90
    if (threadIdx.x == 0)
        bulk_open(sh.came);
    __syncwarp();
#endif
    const uint32_t units = k / CU_DENSE_UNIT, tiles = cu_tiles(n), first = blockIdx.x, step = gridDim.x;
    dense_stream<WARPS, RING, Form> s;
    overlap_next();
    s.open(w, units, first, step, tiles, sh.ring, dealing.tickets ? dealing.dealt : ~0u);
    uint32_t all = 0;
    if (early) {
        all = count();
        before(all);
    }
    overlap_wait();
    gemv_row<WARPS * 32> row0;
    if (GEMV_AHEAD)
        row0.ask((const uint8_t *)from(0), k);
    if (!early) {
        all = count();
        before(all);
    }
    uint32_t turn = 0;
    for (uint32_t r0 = 0; r0 < all; r0 += CU_GEMV_ROWS) {
        const uint32_t rows = min(all - r0, (uint32_t)CU_GEMV_ROWS), known = GEMV_AHEAD && r0 == 0;
        if (r0 > 0) {
            dealing = {step};
            s.open(w, units, first, step, tiles, sh.ring);
        }
        gemv_rows<WARPS>(sh, rows, ring_bytes);
        load_acts(sh, known, rows, k, [&](uint32_t r) { return from(r0 + r); });
        if (known)
            row0.keep(sh.acts, k);
        __syncthreads();
        acts_wait(sh, known < rows, turn);
        auto ask = [&](uint32_t tile, uint32_t row) { done.ask(tile, r0 + row + threadIdx.x % 4 * 2, r0 + rows); };
        auto place = [&](uint32_t tile, uint32_t row, const float c[4]) { done(tile, r0 + row + threadIdx.x % 4 * 2, r0 + rows, c); };
        if (CU_GEMV_ROWS <= 8 || deep || rows <= 8)
            dense_pass<1>(s, sh, units, first, dealing, tiles, rows, ask, place);
        else
            dense_pass<2>(s, sh, units, first, dealing, tiles, rows, ask, place);
    }
    copy_wait<0>();
}
