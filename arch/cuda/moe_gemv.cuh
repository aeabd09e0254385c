/* arch/cuda/moe_gemv.cuh: expert products of decode rows before sm_90. Work is a list of items (group of one expert's rows, tile); a block
 * takes an even, contiguous part of it. CU_MX_TEAM warps beside each other take an item at a time, each two of CU_MX_SPLIT shares of its inputs,
 * and one of them adds up. A warp streams its items through a ring of its own in shared memory, across items, with no barrier.
 * An output depends on its own row only: the order of its sum is fixed. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/gemv.cuh"
#include "arch/cuda/mx_units.cuh"
#include "arch/cuda/ring.cuh"

static_assert(CU_GEMV_ROWS <= 4, "a row has two columns");

/* A stage of the ring is a span: CU_MX_SPAN units of an item. */
struct mx_stream {
    static constexpr uint32_t STEP = CU_MX_WARPS / CU_MX_TEAM;
    nib_gpu_ptr weights;
    const struct cu_group *groups; /* in shared memory */
    uint64_t bytes;                 /* of a matrix */
    const uint8_t *from;            /* next span to ask for */
    uint32_t tiles, units, u0, per; /* this warp's units of an item: u0 .. u0 + per - 1 */
    uint32_t middle;                /* units of the first of its two shares */
    uint32_t item, last, unit;      /* of the next span */
    warp_ring<CU_MX_RING, CU_MX_STAGE> ring;

    __device__ __forceinline__ void seek()
    {
        from = at<const uint8_t>(weights, groups[item / tiles].expert * bytes +
                                              ((uint64_t)(item % tiles) * units + u0) * CU_MX_BYTES);
    }

    __device__ __forceinline__ void open(uint32_t first, uint32_t end)
    {
        const uint32_t share = threadIdx.x / 32 % CU_MX_TEAM * 2, spans = CU_DIV_UP(units, CU_MX_SPAN);
        static_assert(CU_MX_TEAM * 2 == CU_MX_SPLIT, "two shares a warp");
        u0 = spans * share / CU_MX_SPLIT * CU_MX_SPAN;
        middle = spans * (share + 1) / CU_MX_SPLIT * CU_MX_SPAN - u0;
        per = min(spans * (share + 2) / CU_MX_SPLIT * CU_MX_SPAN, units) - u0;
        item = first + threadIdx.x / 32 / CU_MX_TEAM;
        last = per ? end : 0;
        unit = 0;
        if (item < last)
            seek();
        for (uint32_t i = 1; i < CU_MX_RING; i++)
            push();
    }

    __device__ __forceinline__ void push()
    {
        if (item >= last) {
            ring.skip();
            return;
        }
        const uint32_t n = min(per - unit, (uint32_t)CU_MX_SPAN);
        ring.fill(from, n * CU_MX_BYTES);
        from += CU_MX_STAGE;
        unit += n;
        if (unit == per) {
            unit = 0;
            item += STEP;
            if (item < last)
                seek();
        }
    }

    /* Shared address of the next span; the place of the one before is filled again. */
    __device__ __forceinline__ uint32_t pop()
    {
        const uint32_t now = ring.next();
        push();
        return now;
    }
};

/* Adds the sums of the CU_MX_TEAM warps that share an item, `first` and `acc` of each warp's two shares, in order; true for the first warp,
 * which gets them all in acc. `turn` counts the calls: places are used in turns, and a barrier says that a place is full, another that
 * it is read, so that the others may be two calls ahead of the first. Odd columns are empty. */
__device__ __forceinline__ bool mx_gather(float4 *sums, uint32_t turn, const float first[4], float acc[4])
{
    static_assert(CU_MX_WARPS / CU_MX_TEAM * 4 < 16, "four barriers of each warps that share");
    constexpr uint32_t LEFT = CU_MX_LEFT / 16;
    const uint32_t warp = threadIdx.x / 32, part = warp % CU_MX_TEAM, full = 1 + warp / CU_MX_TEAM * 4 + (turn & 1), read = full + 2;
    float4 *left = sums + ((turn & 1) * (CU_MX_WARPS / CU_MX_TEAM) + warp / CU_MX_TEAM) * (CU_MX_TEAM - 1) * LEFT + threadIdx.x % 32;
    if (part != 0) {
        if (turn >= 2)
            asm volatile("bar.sync %0, %1;" ::"r"(read), "n"(CU_MX_TEAM * 32) : "memory");
        left[(part - 1) * LEFT] = make_float4(first[0], acc[0], first[2], acc[2]);
        asm volatile("bar.arrive %0, %1;" ::"r"(full), "n"(CU_MX_TEAM * 32) : "memory");
        return false;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        acc[i] = first[i] + acc[i];
    asm volatile("bar.sync %0, %1;" ::"r"(full), "n"(CU_MX_TEAM * 32) : "memory");
#pragma unroll
    for (int p = 1; p < CU_MX_TEAM; p++) {
        const float4 v = left[(p - 1) * LEFT];
        acc[0] = acc[0] + v.x + v.y;
        acc[2] = acc[2] + v.z + v.w;
    }
    asm volatile("bar.arrive %0, %1;" ::"r"(read), "n"(CU_MX_TEAM * 32) : "memory");
    return true;
}

/* One item: this warp's shares of the products of `tile` with the rows of `group`, which lie at `acts`. */
template <class Done>
__device__ __forceinline__ void mx_item(mx_stream &s, const gemv_shared &sh, uint32_t acts_at, uint32_t &turn,
                                        const struct cu_group &group, uint32_t tile, uint32_t zeros, const Done &done)
{
    const float2 bias = done.bias(group.expert, tile);
    mx_lane<1, true> acts(acts_at, sh.stride, s.u0, group.count, zeros);
    float first[4], acc[1][4];
    for (int i = 0; i < 4; i++)
        first[i] = acc[0][i] = 0;
    for (uint32_t u = 0; u < s.per; u += CU_MX_SPAN) {
        const uint32_t span = s.pop();
        if (u == s.middle)
            for (int i = 0; i < 4; i++) {
                first[i] = acc[0][i];
                acc[0][i] = 0;
            }
        if (u + CU_MX_SPAN <= s.per) {
            mx_units<1, true, CU_MX_SPAN>(span, 0, acts, acc);
        } else {
            for (uint32_t i = 0; u + i < s.per; i++)
                mx_units<1, true, 1>(span, i, acts, acc);
        }
    }
    if (!mx_gather(sh.sums, turn++, first, acc[0]))
        return;
    mx_spread(acc[0]);
    done(tile, group.place + threadIdx.x % 4 * 2, group.place + group.count, acc[0], bias);
}

/* A row that is likely the one: read before it is known to be. */
struct mx_guess {
    const uint8_t *row; /* NULL: none */
    uint4 v;            /* the thread's 16 bytes, the first CU_MX_THREADS of the row */

    __device__ __forceinline__ mx_guess(const uint8_t *from, uint32_t k) : row(from)
    {
        v = row && threadIdx.x < k / 8 ? *(const uint4 *)(row + threadIdx.x * 16) : make_uint4(0, 0, 0, 0);
    }
};

/* Activations of `rows` rows from src[], k 16-bit numbers each, and zeros up to a whole unit; then a barrier of the block. */
__device__ __forceinline__ void mx_acts(const gemv_shared &sh, const uint8_t *const *src, uint32_t rows, uint32_t k,
                                        const mx_guess &guess)
{
    const uint32_t chunks = cu_mx_units(k) * 8, there = k / 8;
    for (uint32_t r = 0; r < rows; r++) {
        const uint8_t *from = src[r];
        const bool guessed = from == guess.row;
        const uint32_t to = sh.acts + r * sh.stride;
        uint32_t c = threadIdx.x;
        if (guessed) {
            if (c < chunks)
                sts16(to + c * 16, guess.v);
            c += CU_MX_THREADS;
        }
        for (; c < chunks; c += CU_MX_THREADS)
            sts16(to + c * 16, c < there ? *(const uint4 *)(from + c * 16) : make_uint4(0, 0, 0, 0));
    }
}

/* Items [first, last) of this block, in phases: as many groups as their rows have room in shared memory. */
template <class From, class Done>
__device__ __forceinline__ void mx_phases(mx_stream &s, const gemv_shared &sh, const struct cu_group *groups,
                                          uint32_t first, uint32_t last, uint32_t k, const mx_guess &guess,
                                          From from, const Done &done)
{
    __shared__ uint4 zeros;
    __shared__ const uint8_t *rows_from[CU_MX_ROWS_MAX]; /* of a phase */
    if (threadIdx.x == 0)
        zeros = make_uint4(0, 0, 0, 0);
    const uint32_t room = min((dynamic_shared_bytes() - (sh.acts - smem_at(gemv_dynamic))) / sh.stride, (uint32_t)CU_MX_ROWS_MAX);
    uint32_t item = first + threadIdx.x / 32 / CU_MX_TEAM, turn = 0;
    for (uint32_t g0 = first / s.tiles; g0 * s.tiles < last;) {
        uint32_t g1 = g0, rows = 0;
        do { /* the threads below the group's count look where its rows lie */
            const struct cu_group group = groups[g1++];
            if (threadIdx.x < group.count)
                rows_from[rows + threadIdx.x] = (const uint8_t *)from(group.place + threadIdx.x);
            rows += group.count;
        } while (g1 * s.tiles < last && rows + groups[g1].count <= room);
        __syncthreads();
        mx_acts(sh, rows_from, rows, k, guess);
        __syncthreads();
        const uint32_t end = min(last, g1 * s.tiles);
        uint32_t at_group = g0, acts = sh.acts;
        for (; item < end; item += s.STEP) {
            while ((at_group + 1) * s.tiles <= item)
                acts += groups[at_group++].count * sh.stride;
            const struct cu_group group = groups[at_group];
            const uint32_t tile = item - at_group * s.tiles;
            mx_item(s, sh, acts, turn, group, tile, smem_at(&zeros), done);
        }
        __syncthreads();
        g0 = g1;
    }
}

/* from(place): its row of activations; `likely` one that may be read whatever the step is, or NULL. */
template <class From, class Done>
__device__ __forceinline__ void moe_gemv(const struct nib_gpu_machine *m, nib_gpu_ptr w, uint32_t n, uint32_t k,
                                         const uint8_t *likely, From from, const Done &done)
{
    __shared__ struct cu_group groups[CU_GROUPS_MAX];
    gemv_shared sh;
    sh.stride = cu_row_stride(cu_mx_units(k) * CU_MX_UNIT);
    struct cu_mx_room room = cu_mx_room(cu_mx_rows(1), k);
    if (dynamic_shared_bytes() != room.bytes)
        room = cu_mx_room(CU_GEMV_ROWS, k);
    sh.sums = (float4 *)gemv_dynamic;
    sh.acts = smem_at(gemv_dynamic) + room.acts_at;
    mx_stream s;
    s.weights = w;
    s.groups = groups;
    s.tiles = cu_tiles(n);
    s.units = cu_mx_units(k);
    s.bytes = cu_mx_bytes(n, k);
    s.ring.open(smem_at(gemv_dynamic) + CU_MX_SUMS + threadIdx.x / 32 * room.depth * CU_MX_STAGE);
    const mx_guess guess(likely, k);
    const struct cu_route *route = route_head(m);
    /* the groups that one row makes are there in any step: they are read with the number of all, not after it */
    const uint32_t *words = (const uint32_t *)route->group, sure = m->experts_used * (uint32_t)(sizeof *groups / 4);
    const uint32_t early = threadIdx.x < sure ? __ldcg(words + threadIdx.x) : 0;
    const uint32_t count = min(__ldcg(&route->groups), (uint32_t)CU_GROUPS_MAX), all = count * (sizeof *groups / 4);
    if (threadIdx.x < sure)
        ((uint32_t *)groups)[threadIdx.x] = early;
    for (uint32_t i = sure + threadIdx.x; i < all; i += CU_MX_THREADS)
        ((uint32_t *)groups)[i] = __ldcg(words + i);
    __syncthreads();
    const uint32_t items = count * s.tiles;
    const uint32_t first = (uint32_t)((uint64_t)items * blockIdx.x / gridDim.x);
    const uint32_t last = (uint32_t)((uint64_t)items * (blockIdx.x + 1) / gridDim.x);
    s.open(first, last);
    mx_phases(s, sh, groups, first, last, k, guess, from, done);
    s.ring.close();
}

KERNEL(up, CU_MX_THREADS, CU_MX_BLOCKS)
{
    const uint32_t *rows = route_array(m, 3);
    moe_gemv(
        m, m->layer[layer].up, 2 * m->intermediate, m->hidden, acts_row(m, 0),
        [&](uint32_t place) { return acts_row(m, __ldcg(rows + place)); },
        done_up(m, layer));
}

KERNEL(down, CU_MX_THREADS, CU_MX_BLOCKS)
{
    const uint32_t inner = m->intermediate;
    moe_gemv(
        m, m->layer[layer].down, m->hidden, inner, NULL,
        [&](uint32_t place) { return at<uint8_t>(m->gated, (uint64_t)place * inner * 2); }, done_down(m, layer));
}
