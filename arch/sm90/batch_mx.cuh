/* arch/sm90/batch_mx.cuh: expert products of many decode rows on Hopper (arch/sm90/BATCH.md). One block a multiprocessor: a warpgroup brings
 * stages, three multiply, each warp one or two weight tiles of 16 output rows for all rows of a list: up to 16 by mma.sync, more by wgmma. A
 * form without wgmma, `up_short` and `down_short`, is launched for steps whose lists are all short.
 *
 * Bits are those of arch/sm90/few_mx.cuh: each block of 32 inputs is summed alone, then scaled and added to the sum of its share of the inputs; the sums of
 * the CU_MX_SPLIT shares are added in order. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/sm90/batch_mx_ring.cuh"

extern __shared__ uint4 batch_mx_dynamic[];

// clang-format off
#define BATCH_MX_T4 "%0, %1, %2, %3"
#define BATCH_MX_T8 BATCH_MX_T4 ", %4, %5, %6, %7"
#define BATCH_MX_T12 BATCH_MX_T8 ", %8, %9, %10, %11"
#define BATCH_MX_T16 BATCH_MX_T12 ", %12, %13, %14, %15"
#define BATCH_MX_T20 BATCH_MX_T16 ", %16, %17, %18, %19"
#define BATCH_MX_T24 BATCH_MX_T20 ", %20, %21, %22, %23"
#define BATCH_MX_T28 BATCH_MX_T24 ", %24, %25, %26, %27"
#define BATCH_MX_T32 BATCH_MX_T28 ", %28, %29, %30, %31"
#define BATCH_MX_D4(o) "=f"(d[o]), "=f"(d[o + 1]), "=f"(d[o + 2]), "=f"(d[o + 3])
#define BATCH_MX_D8(o) BATCH_MX_D4(o), BATCH_MX_D4(o + 4)
#define BATCH_MX_WGMMA(n, d_text, a0_text, a1_text, ...)                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" d_text "}, " a0_text ", 0, 1, 1, 0;\n"  \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" d_text "}, " a1_text ", 1, 1, 1, 0;"    \
                 : __VA_ARGS__                                                                                      \
                 : "r"(a[0][0]), "r"(a[0][1]), "r"(a[0][2]), "r"(a[0][3]), "l"(b),                                  \
                   "r"(a[1][0]), "r"(a[1][1]), "r"(a[1][2]), "r"(a[1][3]), "l"(b + 2))
// clang-format on

/* d = a b over a block of 32 inputs, from zero. */
__device__ __forceinline__ void batch_mx_products(float (&d)[12], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(24, BATCH_MX_T12, "{%12, %13, %14, %15}, %16", "{%17, %18, %19, %20}, %21", BATCH_MX_D8(0), BATCH_MX_D4(8));
}

__device__ __forceinline__ void batch_mx_products(float (&d)[20], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(40, BATCH_MX_T20, "{%20, %21, %22, %23}, %24", "{%25, %26, %27, %28}, %29", BATCH_MX_D8(0), BATCH_MX_D8(8), BATCH_MX_D4(16));
}

__device__ __forceinline__ void batch_mx_products(float (&d)[16], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(32, BATCH_MX_T16, "{%16, %17, %18, %19}, %20", "{%21, %22, %23, %24}, %25", BATCH_MX_D8(0), BATCH_MX_D8(8));
}

__device__ __forceinline__ void batch_mx_products(float (&d)[24], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(48, BATCH_MX_T24, "{%24, %25, %26, %27}, %28", "{%29, %30, %31, %32}, %33", BATCH_MX_D8(0), BATCH_MX_D8(8),
                   BATCH_MX_D8(16));
}

__device__ __forceinline__ void batch_mx_products(float (&d)[28], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(56, BATCH_MX_T28, "{%28, %29, %30, %31}, %32", "{%33, %34, %35, %36}, %37", BATCH_MX_D8(0), BATCH_MX_D8(8), BATCH_MX_D8(16),
                   BATCH_MX_D4(24));
}

__device__ __forceinline__ void batch_mx_products(float (&d)[32], const uint32_t a[2][4], uint64_t b)
{
    BATCH_MX_WGMMA(64, BATCH_MX_T32, "{%32, %33, %34, %35}, %36", "{%37, %38, %39, %40}, %41", BATCH_MX_D8(0), BATCH_MX_D8(8), BATCH_MX_D8(16),
                   BATCH_MX_D8(24));
}

/* acc += scale block */
template <int M> __device__ __forceinline__ void batch_mx_add(float (&acc)[M], float (&block)[M], const float scale[2])
{
    wgmma_hold(block);
#pragma unroll
    for (int i = 0; i < M; i++)
        acc[i] = __fmaf_rn(scale[i / 2 % 2], block[i], acc[i]);
}

/* This lane's codes and scales of a unit. */
__device__ __forceinline__ void batch_mx_take(uint32_t unit, uint4 &codes, uint32_t &scales)
{
    codes = lds16(unit + threadIdx.x % 32 * 16);
    scales = lds4(unit + CU_MX_CODES + threadIdx.x % 32 / 4 * 4);
}

/* A stage: this warp's tiles at `tile` and 12 tiles further, rows at `acts`. While the products of a unit run, the next one's fragments are decoded. */
template <int N, int TILES>
__device__ __forceinline__ void batch_mx_stage(uint32_t tile, uint64_t acts, float (&acc)[TILES][N / 2])
{
    constexpr int LINES = N <= CU_BATCH_MX_HALF ? CU_BATCH_MX_HALF : CU_BATCH_MX_ROWS, UNITS = CU_MX_SPAN * TILES;
    uint4 codes[TILES];
    uint32_t scales[TILES], a[2][2][2][4];
    float block[2][N / 2], scale[2][2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        batch_mx_take(tile + t * CU_BATCH_MX_READERS * CU_MX_STAGE, codes[t], scales[t]);
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        const int u = i / TILES, t = i % TILES;
        mx_fragment(codes[t].x, a[i % 2][0][0]);
        mx_fragment(codes[t].y, a[i % 2][0][1]);
        mx_fragment(codes[t].z, a[i % 2][1][0]);
        mx_fragment(codes[t].w, a[i % 2][1][1]);
        if (i > 0) {
            wgmma_wait<0>();
#pragma unroll
            for (int half = 0; half < 2; half++)
                batch_mx_add(acc[(i - 1) % TILES], block[half], scale[half]);
        }
        wgmma_fence();
#pragma unroll
        for (int half = 0; half < 2; half++)
            batch_mx_products(block[half], a[i % 2][half], acts + (u * 2 + half) * (LINES * CU_BATCH_MX_LINE >> 4));
        wgmma_commit();
#pragma unroll
        for (int half = 0; half < 2; half++)
            mx_scales(scales[t], half, scale[half]);
        if (u + 1 < CU_MX_SPAN)
            batch_mx_take(tile + t * CU_BATCH_MX_READERS * CU_MX_STAGE + (u + 1) * CU_MX_BYTES, codes[t], scales[t]);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int half = 0; half < 2; half++)
        batch_mx_add(acc[TILES - 1], block[half], scale[half]);
}

/* The same with half of a unit's products under way at a time: for more than CU_BATCH_MX_UNIT or CU_BATCH_MX_ONE rows there are no registers for more. */
template <int N, int TILES>
__device__ __forceinline__ void batch_mx_stage_halves(uint32_t tile, uint64_t acts, float (&acc)[TILES][N / 2])
{
    constexpr int LINES = N <= CU_BATCH_MX_HALF ? CU_BATCH_MX_HALF : CU_BATCH_MX_ROWS, HALVES = CU_MX_SPAN * TILES * 2;
    uint4 codes[TILES];
    uint32_t scales[TILES], a[2][2][4];
    float block[N / 2], scale[2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        batch_mx_take(tile + t * CU_BATCH_MX_READERS * CU_MX_STAGE, codes[t], scales[t]);
#pragma unroll
    for (int i = 0; i < HALVES; i++) {
        const int half = i % 2, t = i / 2 % TILES, u = i / 2 / TILES;
        mx_fragment(half ? codes[t].z : codes[t].x, a[half][0]);
        mx_fragment(half ? codes[t].w : codes[t].y, a[half][1]);
        if (i > 0) {
            wgmma_wait<0>();
            batch_mx_add(acc[(i - 1) / 2 % TILES], block, scale);
        }
        wgmma_fence();
        batch_mx_products(block, a[half], acts + (u * 2 + half) * (LINES * CU_BATCH_MX_LINE >> 4));
        wgmma_commit();
        mx_scales(scales[t], half, scale);
        if (half && u + 1 < CU_MX_SPAN)
            batch_mx_take(tile + t * CU_BATCH_MX_READERS * CU_MX_STAGE + (u + 1) * CU_MX_BYTES, codes[t], scales[t]);
    }
    wgmma_wait<0>();
    batch_mx_add(acc[TILES - 1], block, scale);
}

/* A lane's words of row lane / 4 of eight lines: what it needs of a block of 32 inputs. at: line lane % 8, chunk lane / 8. */
__device__ __forceinline__ uint4 batch_mx_four(uint32_t at)
{
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

/* The same of up to CU_BATCH_MX_FEW rows, by mma.sync: a warp waits for no other. */
template <class Form, int N, int TILES>
__device__ __forceinline__ void batch_mx_stage_few(uint32_t tile, uint32_t acts, float (&acc)[TILES][N / 2])
{
    const uint32_t lane = threadIdx.x % 32, first = acts + (Form::SHORT ? lane * 16 : batch_mx_chunk<Form>(lane % 8, lane / 8));
#pragma unroll
    for (int u = 0; u < CU_MX_SPAN; u++) {
        uint4 codes[TILES], b[2][N / 8];
        uint32_t scales[TILES];
#pragma unroll
        for (int t = 0; t < TILES; t++)
            batch_mx_take(tile + t * CU_BATCH_MX_READERS * CU_MX_STAGE + u * CU_MX_BYTES, codes[t], scales[t]);
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                const uint32_t at = first + ((u * 2 + half) * Form::HALF + n * 8) * CU_BATCH_MX_LINE;
                b[half][n] = Form::SHORT ? lds16(at) : batch_mx_four(at);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                uint32_t a[2][4];
                float scale[2];
                mx_fragment(half ? codes[t].z : codes[t].x, a[0]);
                mx_fragment(half ? codes[t].w : codes[t].y, a[1]);
                mx_scales(scales[t], half, scale);
#pragma unroll
                for (int n = 0; n < N / 8; n++) {
                    float block[4];
                    mma_fp16_zero(block, a[0], b[half][n].x, b[half][n].y);
                    mma_fp16(block, a[1], b[half][n].z, b[half][n].w);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        acc[t][4 * n + i] = __fmaf_rn(scale[i / 2], block[i], acc[t][4 * n + i]);
                }
            }
    }
}

/* done_up of all sums of a tile at once, with the bits of swiglu (arch/cuda/done.cuh). early(): the bias as it lies, so that nothing waits for it. */
template <class Form> struct batch_mx_up_done : done_up {
    using done_up::done_up;

    __device__ __forceinline__ uint2 early(uint32_t expert, uint32_t tile) const
    {
        const uint32_t i = tile * 8 + threadIdx.x % 32 / 4;
        return make_uint2(i < inner ? __ldg(biases + (uint64_t)expert * inner + i) : 0, 0);
    }

    /* 2 M rows of the item's list, from `first` on. */
    template <int M> __device__ __forceinline__ void some(uint32_t tile, const batch_mx_item<Form> &item, uint32_t first, const float *c, uint2 early) const
    {
        const float2 b = make_float2(__uint_as_float(early.x << 16), __uint_as_float(early.x & 0xffff0000u));
        float gate[M / 2], up[M / 2], below[M / 2], a[M / 2];
        bool plain = true;
#pragma unroll
        for (int i = 0; i < M / 2; i++) {
            const int at = i / 2 * 4 + i % 2;
            gate[i] = min_nan(mx_finish(c[at]) + b.x, NIB_SWIGLU_LIMIT);
            up[i] = max_nan(min_nan(mx_finish(c[at + 2]) + b.y, NIB_SWIGLU_LIMIT), -NIB_SWIGLU_LIMIT);
            below[i] = 1.0f + expf(-NIB_SWIGLU_ALPHA * gate[i]);
            a[i] = divide_plain(gate[i], below[i]);
            plain &= fabsf(gate[i]) > 0x1p-40f && below[i] < 0x1p40f;
        }
        if (!plain)
#pragma unroll
            for (int i = 0; i < M / 2; i++)
                a[i] = gate[i] / below[i];
        /* transposed, a lane has two elements of place lane / 4 of eight */
        const uint32_t row = first + threadIdx.x % 32 / 4, word = tile * 4 + threadIdx.x % 4, step = Form::SHORT ? inner * 2 : CU_BATCH_MX_LINE;
        uint8_t *to = (uint8_t *)(gated + (uint64_t)item.place * inner) + (Form::SHORT ? row * step + word * 4 : cu_batch_mx_word(row, item.count, word));
        __syncwarp();
#pragma unroll
        for (int n = 0; n < M / 4; n++) {
            uint32_t v = pack_fp16(a[2 * n] * (up[2 * n] + 1.0f), a[2 * n + 1] * (up[2 * n + 1] + 1.0f));
            asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(v));
            if (row + n * 8 < item.count && tile * 8 < inner)
                *(uint32_t *)to = v;
            to += 8 * step;
        }
    }
};

struct batch_mx_down_done : done_down {
    using done_down::done_down;

    __device__ __forceinline__ float2 early(uint32_t expert, uint32_t tile) const
    {
        return bias(expert, tile);
    }

    template <int M, class Item> __device__ __forceinline__ void some(uint32_t tile, const Item &item, uint32_t first, const float *c, float2 b) const
    {
        const uint32_t place = item.place + first + threadIdx.x % 4 * 2;
#pragma unroll
        for (int n = 0; n < M / 4; n++)
            (*this)(tile, place + n * 8, item.place + item.count, c + 4 * n, b);
    }
};

/* An item by one warp: TILES tiles, N columns. */
template <class Form, int N, int TILES, class Done>
__device__ __forceinline__ void batch_mx_multiply(batch_mx_ring<Form> &ring, const batch_mx_item<Form> &item, uint32_t warp, uint32_t spans,
                                                  const Done &done)
{
    constexpr uint32_t LINES = N <= Form::HALF ? Form::HALF : Form::ROWS;
    float sum[TILES][N / 2];
    decltype(done.early(0, 0)) bias[TILES]; /* read now, used at the end */
#pragma unroll
    for (int t = 0; t < TILES; t++)
        bias[t] = done.early(item.expert, item.tile0 + min(warp + t * CU_BATCH_MX_READERS, item.tiles - 1));
#pragma unroll
    for (int i = 0; i < TILES * N / 2; i++)
        sum[i / (N / 2)][i % (N / 2)] = 0;
    uint32_t span = 0;
#pragma unroll 1
    for (uint32_t part = 1; part <= CU_MX_SPLIT; part++) {
        float acc[TILES][N / 2];
#pragma unroll
        for (int i = 0; i < TILES * N / 2; i++)
            acc[i / (N / 2)][i % (N / 2)] = 0;
#pragma unroll 1
        for (; span < spans * part / CU_MX_SPLIT; span++) {
            ring.wait_full();
            const uint32_t stage = ring.stage(), tile = stage + CU_BATCH_MX_ACTS(LINES) + warp * CU_MX_STAGE;
            if constexpr (N <= CU_BATCH_MX_FEW)
                batch_mx_stage_few<Form, N, TILES>(tile, stage, acc);
            else if constexpr (N > (TILES > 1 ? CU_BATCH_MX_UNIT : CU_BATCH_MX_ONE))
                batch_mx_stage_halves<N, TILES>(tile, wgmma_tokens64(__shfl_sync(~0u, stage, 0)), acc);
            else
                batch_mx_stage<N, TILES>(tile, wgmma_tokens64(__shfl_sync(~0u, stage, 0)), acc);
            ring.leave();
        }
#pragma unroll
        for (int i = 0; i < TILES * N / 2; i++)
            sum[i / (N / 2)][i % (N / 2)] += acc[i / (N / 2)][i % (N / 2)];
    }
    /* A small loop, for which the sums move up: a long program that runs once an item would wait for its instructions. The short form's is not long. */
    constexpr int STEP = Form::SHORT ? N / 2 : 4;
#pragma unroll 1
    for (uint32_t first = 0; first < N; first += 2 * STEP) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            const uint32_t mine = warp + t * CU_BATCH_MX_READERS;
            if (mine < item.tiles)
                done.template some<STEP>(item.tile0 + mine, item, first, sum[t], bias[t]);
#pragma unroll
            for (int i = 0; i + STEP < N / 2; i++)
                sum[t][i] = sum[t][i + STEP];
        }
    }
}

/* How many of its tiles a warpgroup has, 0 to 2, decides; for few rows, how many a warp has. */
template <class Form, int N, class Done>
__device__ __forceinline__ void batch_mx_one(batch_mx_ring<Form> &ring, const batch_mx_item<Form> &item, uint32_t warp, uint32_t spans, const Done &done)
{
    const uint32_t first = N <= CU_BATCH_MX_FEW ? warp : warp / 4 * 4;
    if (N <= Form::HALF && CU_BATCH_MX_READERS + first < item.tiles) {
        batch_mx_multiply<Form, N <= Form::HALF ? N : 8, 2>(ring, item, warp, spans, done);
    } else if (first < item.tiles) {
        batch_mx_multiply<Form, N, 1>(ring, item, warp, spans, done);
    } else {
        for (uint32_t span = 0; span < spans; span++) {
            ring.wait_full();
            ring.leave();
        }
    }
}

/* EARLY, from(place, row): as in arch/sm90/few_mx.cuh. */
template <class Form, bool EARLY, class From, class Done>
__device__ __forceinline__ void batch_mx(const struct nib_gpu_machine *m, nib_gpu_ptr all, uint32_t n, uint32_t k, const uint8_t *acts, From from,
                                         const Done &done)
{
    __shared__ uint32_t rows[EARLY ? 1 : CU_BATCH_MX_THREADS]; /* of the first places */
    __shared__ batch_mx_deal deal;
    static_assert(CU_GROUPS_MAX <= CU_BATCH_MX_THREADS, "a thread a list");
    const nib_gpu_ptr routing = read_now(m->route);
    const struct cu_route *route = at<const struct cu_route>(routing);
    const uint32_t most = EARLY ? 0 : read_now(m->step_rows_max), experts = EARLY ? 0 : read_now(m->experts), used = EARLY ? 0 : read_now(m->experts_used);
    const uint32_t *rows_of = at<const uint32_t>(routing, cu_route_expert_at(most, experts) + 3 * cu_route_array(most));
    batch_mx_ring<Form> ring;
    ring.open(batch_mx_dynamic);
    const nib_gpu_ptr scratch = read_now(m->scratch);
    if (!EARLY)
        overlap_wait();
    overlap_next();
    if (!EARLY && threadIdx.x < most * used)
        rows[threadIdx.x] = __ldcg(rows_of + threadIdx.x);
    const uint32_t lists = min(__ldcg(&route->groups), (uint32_t)CU_GROUPS_MAX);
    struct cu_group group = {};
    if (threadIdx.x < CU_GROUPS_MAX) { /* lists that are not there, too: no load waits */
        const uint32_t *from = (const uint32_t *)(route->group + threadIdx.x);
        group = {__ldcg(from), __ldcg(from + 1), __ldcg(from + 2)};
    }
    deal.open(group, lists, cu_tiles(n), &at<struct cu_scratch>(scratch)->parts);
    if (threadIdx.x < CU_BATCH_MX_STAGES * 32) {
        if (!Form::SHORT)
            asm volatile("setmaxnreg.dec.sync.aligned.u32 32;");
        else
            asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        batch_mx_bring<Form, EARLY>(ring, deal, at<const uint8_t>(all), cu_mx_bytes(n, k), k, acts,
                                      [&](uint32_t place) { return from(place, EARLY ? 0 : place < CU_BATCH_MX_THREADS ? rows[place] : __ldcg(rows_of + place)); });
    } else {
        if (Form::SHORT)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 104;");
        else
            asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
        const uint32_t spans = CU_DIV_UP(cu_mx_units(k), CU_MX_SPAN), warp = threadIdx.x / 32 - CU_BATCH_MX_STAGES;
        batch_mx_begin<Form>(ring, deal, warp, at<const uint8_t>(all), cu_mx_bytes(n, k), k);
        if (EARLY)
            overlap_wait();
        batch_mx_walk<Form> walk = {deal, 0, 0};
        batch_mx_item<Form> item = {};
        while (walk.next(item)) {
            if (item.count <= 8)
                batch_mx_one<Form, 8>(ring, item, warp, spans, done);
            else if (Form::SHORT || item.count <= 16)
                batch_mx_one<Form, 16>(ring, item, warp, spans, done);
            else if constexpr (!Form::SHORT) {
                if (item.count <= 24)
                    batch_mx_one<Form, 24>(ring, item, warp, spans, done);
                else if (item.count <= 32)
                    batch_mx_one<Form, 32>(ring, item, warp, spans, done);
                else if (item.count <= CU_BATCH_MX_HALF)
                    batch_mx_one<Form, CU_BATCH_MX_HALF>(ring, item, warp, spans, done);
                else if (item.count <= 48)
                    batch_mx_one<Form, 48>(ring, item, warp, spans, done);
                else if (item.count <= 56)
                    batch_mx_one<Form, 56>(ring, item, warp, spans, done);
                else
                    batch_mx_one<Form, CU_BATCH_MX_ROWS>(ring, item, warp, spans, done);
            }
        }
    }
}

template <class Form> __device__ __forceinline__ void batch_mx_up(const struct nib_gpu_machine *m, uint32_t layer)
{
    const uint32_t stride = Form::SHORT ? acts_stride16(m) : m->hidden / 8;
    batch_mx<Form, false>(
        m, m->layer[layer].up, 2 * m->intermediate, m->hidden, Form::SHORT ? at<const uint8_t>(m->acts) : batch_acts(m),
        [&](uint32_t, uint32_t row) { return row * stride; }, batch_mx_up_done<Form>(m, layer));
}

template <class Form> __device__ __forceinline__ void batch_mx_down(const struct nib_gpu_machine *m, uint32_t layer)
{
    const uint32_t inner = m->intermediate;
    batch_mx<Form, true>(
        m, m->layer[layer].down, m->hidden, inner, at<const uint8_t>(m->gated), [&](uint32_t place, uint32_t) { return place * (inner / 8); },
        batch_mx_down_done(m, layer));
}

KERNEL(up_batch, CU_BATCH_MX_THREADS, 1)
{
    batch_mx_up<batch_mx_any>(m, layer);
}

KERNEL(down_batch, CU_BATCH_MX_THREADS, 1)
{
    batch_mx_down<batch_mx_any>(m, layer);
}

/* Bounds of a warp more than is launched: of 96 registers, where it may have 104 otherwise, the compiler puts none on the stack. */
KERNEL(up_short, CU_BATCH_MX_THREADS + 32, 1)
{
    batch_mx_up<batch_mx_short>(m, layer);
}

KERNEL(down_short, CU_BATCH_MX_THREADS + 32, 1)
{
    batch_mx_down<batch_mx_short>(m, layer);
}
