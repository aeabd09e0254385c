/* arch/sm90/few_mx.cuh: expert products of few decode rows on Hopper (arch/sm90/BATCH.md). Work is a list of items (list of one expert's rows, tile of 16
 * output rows); a block, one a multiprocessor, takes an even, contiguous part of it. One thread asks for items, each by two bulk copies; teams of CU_MX_SPLIT warps
 * take them in turns, a warp a share of the inputs, and the team's first adds up.
 *
 * Each block of 32 inputs is summed alone, then scaled and added to the sum of its share; the sums of the shares are added in order. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/gemv.cuh"
#include "arch/cuda/mx_units.cuh"
#include "arch/sm90/few_mx.h"

#define FEW_LISTS (CU_GEMV_ROWS * NIB_MAX_EXPERTS_USED) /* at most; a step with prompt rows has more places */
static_assert(sizeof(struct cu_group) == 12 && FEW_LISTS * 3 <= CU_FEW_THREADS, "a thread a word");

/* Where an item's bias lies, CU_FEW_BIAS bytes, and what the lane has of it. */
struct few_up_done : done_up {
    __device__ __forceinline__ few_up_done(const struct nib_gpu_machine *m, uint32_t layer) : done_up(m, layer)
    {
        biases = at<const uint32_t>(read_now(m->layer[layer].up_bias));
        gated = at<__half>(read_now(m->gated));
    }

    __device__ __forceinline__ const void *from(uint32_t expert, uint32_t tile) const
    {
        return biases + (uint64_t)expert * inner + tile * 8;
    }

    __device__ __forceinline__ float2 take(uint32_t at) const
    {
        const uint32_t pair = lds4(at + threadIdx.x % 32 / 4 * 4);
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
};

struct few_down_done : done_down {
    __device__ __forceinline__ few_down_done(const struct nib_gpu_machine *m, uint32_t layer) : done_down(m, layer)
    {
        biases = at<const __nv_bfloat16>(read_now(m->layer[layer].down_bias));
        down = at<float>(read_now(m->down));
    }

    __device__ __forceinline__ const void *from(uint32_t expert, uint32_t tile) const
    {
        return biases + (uint64_t)expert * hidden + tile * CU_TILE;
    }

    __device__ __forceinline__ float2 take(uint32_t at) const
    {
        const uint32_t g = at + threadIdx.x % 32 / 4 * 2;
        return make_float2(__uint_as_float(lds2(g) << 16), __uint_as_float(lds2(g + 16) << 16));
    }
};

/* The ring of stages: one thread fills it, warps empty it in turns, and each keeps where it is. */
struct few_ring {
    uint32_t stages, bytes, depth; /* shared address, of a stage, how many */
    uint32_t full, empty;          /* mbarriers of each */
    uint32_t place, parity;

    __device__ __forceinline__ uint32_t stage() const
    {
        return stages + place * bytes;
    }

    /* To the team's next stage: the ring holds as many of each. */
    __device__ __forceinline__ void next()
    {
        place += CU_FEW_TEAMS;
        if (place >= depth) {
            place -= depth;
            parity ^= 1;
        }
    }
};

/* A value that lies in a register from here on: the compiler would find it anew for each item otherwise. */
__device__ __forceinline__ void keep(uint32_t &value)
{
    asm("" : "+r"(value));
}

/* What a block has to do. */
struct few_work {
    const struct cu_group *groups; /* in shared memory */
    nib_gpu_ptr weights;
    uint64_t bytes; /* of a matrix */
    uint32_t tiles, units, first, last;

    __device__ __forceinline__ void share(uint32_t count)
    {
        const uint32_t items = count * tiles;
        first = items * blockIdx.x / gridDim.x;
        last = items * (blockIdx.x + 1) / gridDim.x;
    }
};

/* By one thread: all of the block's items, `ahead` copies on their way. More would only make what others ask of memory wait. It does little else between one copy and the next:
 * no division, no address from the beginning. */
template <class Done> __device__ __forceinline__ void few_ask(const few_ring &ring, const few_work &work, uint32_t ahead, const Done &done)
{
    static_assert(CU_FEW_PARTS == 2 && CU_FEW_AHEAD > 1, "an item is two copies; what comes with the first is asked for behind the second");
    const uint64_t policy = stream_policy();
    const uint32_t whole = work.units * CU_MX_BYTES, first = cu_mx_first(work.units, 1, CU_FEW_PARTS) * CU_MX_BYTES, rest = whole - first;
    const uint32_t full_end = ring.full + ring.depth * CU_FEW_PARTS * 8;
    uint32_t full = ring.full, empty = ring.empty, stage = ring.stages, parity = 1; /* of the stage to fill */
    uint32_t landed = ring.full, landed_parity = 0, free = ahead;
    uint32_t group = work.first / work.tiles, tile = work.first % work.tiles;
    const uint8_t *from = NULL, *bias = NULL;
    auto wait_landed = [&] {
        if (free > 0) {
            free--;
            return;
        }
        bulk_wait(landed, landed_parity);
        landed += 8;
        if (landed == full_end) {
            landed = ring.full;
            landed_parity ^= 1;
        }
    };
    for (uint32_t left = work.last - work.first; left > 0; left--) {
        if (from == NULL || tile == work.tiles) {
            if (from != NULL) {
                tile = 0;
                group++;
            }
            const uint32_t expert = work.groups[group].expert;
            from = at<const uint8_t>(work.weights, expert * work.bytes) + (uint64_t)tile * whole;
            bias = (const uint8_t *)done.from(expert, tile);
        }
        bulk_wait(empty, parity);
        wait_landed();
        bulk_expect(full, first + CU_FEW_BIAS);
        if (first)
            copy_bulk(stage, from, first, full, policy);
        wait_landed();
        bulk_expect(full + 8, rest);
        if (rest)
            copy_bulk(stage + first, from + first, rest, full + 8, policy);
        copy_bulk(stage + whole, bias, CU_FEW_BIAS, full);
        tile++;
        from += whole;
        bias += CU_FEW_BIAS; /* of the next tile */
        stage += ring.bytes;
        empty += 8;
        full += CU_FEW_PARTS * 8;
        if (full == full_end) {
            full = ring.full;
            empty = ring.empty;
            stage = ring.stages;
            parity ^= 1;
        }
    }
}

/* What a warp knows of its items. */
struct few_share {
    uint32_t u0, per; /* units of its share */
    uint32_t full;    /* mbarrier of its part of the ring's first item */
    uint32_t zeros, stride;
    uint32_t sums, barrier; /* where it leaves its sums, or finds the others'; the first of the team's barriers */
    uint32_t turn;
    bool adds; /* up what the others leave */
};

/* Adds the sums of a team's warps in order; true for the first of them, which gets them all. `turn` counts the calls: places are used in
 * turns, and a barrier says that a place is full, another that it is read, so that the others may be two calls ahead of the first. FEW: odd columns
 * are empty. */
template <bool FEW> __device__ __forceinline__ bool few_gather(few_share &s, float acc[4])
{
    static_assert(CU_FEW_TEAMS * 4 < 15, "four barriers a team");
    constexpr uint32_t TOGETHER = CU_FEW_TEAM * 32;
    const uint32_t turn = s.turn++, full = s.barrier + (turn & 1), read = full + 2;
    uint32_t left = s.sums + (turn & 1) * ((CU_FEW_TEAM - 1) * CU_FEW_LEFT);
    if (!s.adds) {
        if (turn >= 2)
            asm volatile("bar.sync %0, %1;" ::"r"(read), "n"(TOGETHER) : "memory");
        if (FEW)
            asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(left), "f"(acc[0]), "f"(acc[2]) : "memory");
        else
            asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(left), "f"(acc[0]), "f"(acc[1]), "f"(acc[2]), "f"(acc[3]) : "memory");
        asm volatile("bar.arrive %0, %1;" ::"r"(full), "n"(TOGETHER) : "memory");
        return false;
    }
    asm volatile("bar.sync %0, %1;" ::"r"(full), "n"(TOGETHER) : "memory");
#pragma unroll
    for (int p = 0; p < CU_FEW_TEAM - 1; p++, left += CU_FEW_LEFT) {
        if (FEW) {
            const uint2 v = lds8(left);
            acc[0] += __uint_as_float(v.x);
            acc[2] += __uint_as_float(v.y);
        } else {
            const uint4 v = lds16(left);
            acc[0] += __uint_as_float(v.x);
            acc[1] += __uint_as_float(v.y);
            acc[2] += __uint_as_float(v.z);
            acc[3] += __uint_as_float(v.w);
        }
    }
    asm volatile("bar.arrive %0, %1;" ::"r"(read), "n"(TOGETHER) : "memory");
    return true;
}

/* The team's items of a list, from `tile` on and below `end`: this warp's share of the products with its rows, which lie at `acts_at`. What an item
 * does not change is found before: around a warp's products it takes 53 instructions, not 130. bias: where it lies in a stage. */
template <int NT, bool FEW, class Done>
__device__ __forceinline__ void few_list(few_ring &ring, few_share &s, uint32_t acts_at, const struct cu_group &group, uint32_t &tile, uint32_t end,
                                         uint32_t bias, const Done &done)
{
    constexpr int AT_ONCE = NT == 1 ? CU_MX_SPAN : 1; /* units: registers */
    mx_rows<NT, FEW> first(acts_at, s.stride, s.u0, group.count, s.zeros);
    const uint32_t sums = s.sums;
    s.sums += threadIdx.x % 32 * (FEW ? 8 : 16); /* the lane's */
    keep(s.sums);
#pragma unroll
    for (int n = 0; n < NT; n++)
        keep(first.at[n]);
#pragma unroll 1
    for (; tile < end; tile += CU_FEW_TEAMS, ring.next()) {
        mx_rows<NT, FEW> acts = first;
        float acc[NT][4];
#pragma unroll
        for (int n = 0; n < NT; n++)
            for (int i = 0; i < 4; i++)
                acc[n][i] = 0;
        const uint32_t stage = ring.stage();
        uint32_t from = stage + s.u0 * CU_MX_BYTES, left = s.per;
        bulk_wait(s.full + ring.place * (CU_FEW_PARTS * 8), ring.parity);
#pragma unroll 1
        for (; left >= CU_MX_SPAN; left -= CU_MX_SPAN, from += CU_MX_STAGE)
#pragma unroll
            for (uint32_t i = 0; i < CU_MX_SPAN; i += AT_ONCE)
                mx_units<NT, FEW, AT_ONCE>(from, i, acts, acc);
#pragma unroll 1
        for (; left > 0; left--, from += CU_MX_BYTES)
            mx_units<NT, FEW, 1>(from, 0, acts, acc);
        const float2 b = s.adds ? done.take(stage + bias) : make_float2(0, 0);
        bulk_arrive(ring.empty + ring.place * 8);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            if (!few_gather<FEW>(s, acc[n]))
                continue;
            if (FEW)
                mx_spread(acc[n]);
            uint32_t t = tile;
            asm volatile("" : "+r"(t)); /* what follows is this warp's alone */
            done(t, group.place + n * 8 + threadIdx.x % 4 * 2, group.place + group.count, acc[n], b);
        }
    }
    s.sums = sums;
}

/* The items of the block, by the teams, in phases: as many lists as their rows have room in shared memory. from(place): its row. */
template <class From, class Done>
__device__ __forceinline__ void few_multiply(few_ring ring, const few_work &work, few_share s, uint32_t acts_at, uint32_t room, uint32_t came, uint32_t k,
                                             From from, const Done &done)
{
    const uint32_t lane = threadIdx.x % 32, bias = work.units * CU_MX_BYTES;
    ring.place = threadIdx.x / 32 / CU_FEW_TEAM;
    uint32_t g0 = work.first / work.tiles, phase = 0, tile = work.first - g0 * work.tiles + ring.place;
    keep(ring.stages);
    keep(ring.bytes);
    keep(ring.empty);
    keep(s.full);
    for (uint32_t g1; g0 * work.tiles < work.last; g0 = g1, phase ^= 1) {
        uint32_t rows = 0;
        const uint8_t *row = NULL; /* the lane's */
        g1 = g0;
        do {
            const struct cu_group group = work.groups[g1++];
            if (threadIdx.x < 32 && lane - rows < group.count)
                row = from(group.place + lane - rows);
            rows += group.count;
        } while (g1 * work.tiles < work.last && rows + work.groups[g1].count <= room);
        if (g0 * work.tiles > work.first) /* nobody reads the rows before any more */
            asm volatile("bar.sync 15, %0;" ::"n"(CU_FEW_WARPS * 32) : "memory");
        if (threadIdx.x == 0)
            bulk_expect(came, rows * k * 2);
        if (threadIdx.x < 32) {
            __syncwarp();
            if (row)
                copy_bulk(acts_at + lane * s.stride, row, k * 2, came);
        }
        bulk_wait(came, phase);
        uint32_t acts = acts_at;
        for (uint32_t g = g0; g < g1; g++) {
            const struct cu_group group = work.groups[g];
            const uint32_t end = min(work.last - g * work.tiles, work.tiles);
            if (group.count <= 4)
                few_list<1, true>(ring, s, acts, group, tile, end, bias, done);
            else if (group.count <= 8)
                few_list<1, false>(ring, s, acts, group, tile, end, bias, done);
            else
                few_list<2, false>(ring, s, acts, group, tile, end, bias, done);
            acts += group.count * s.stride;
            tile -= work.tiles;
        }
    }
}

/* from(place, row): the activations of a place, whose row of the step is known when the op is not EARLY. EARLY: the op before this one began when the routing was done, so
 * that lists are read first of all and weights asked for while it still runs. lists, rows_of: the routing, and its rows of places. */
template <bool EARLY, class From, class Done>
__device__ __forceinline__ void few_mx(nib_gpu_ptr lists, const uint32_t *rows_of, nib_gpu_ptr w, uint32_t n, uint32_t k, From from, const Done &done)
{
    __shared__ struct cu_group groups[FEW_LISTS];
    __shared__ uint64_t full[CU_FEW_STAGES * CU_FEW_PARTS], empty[CU_FEW_STAGES], came;
    __shared__ uint32_t rows[FEW_LISTS]; /* of the first places */
    const uint32_t tid = threadIdx.x;
    const struct cu_route *route = at<const struct cu_route>(lists);
    uint32_t count, word, row;
    auto read = [&] { /* lists that are not there, too: no load waits for another */
        count = __ldcg(&route->groups);
        word = tid < FEW_LISTS * 3 ? __ldcg((const uint32_t *)route->group + tid) : 0;
        row = tid < FEW_LISTS && !EARLY ? __ldcg(rows_of + tid) : 0;
    };
    if (EARLY) {
        overlap_next();
        read();
    }
    const uint32_t kind = dynamic_shared_bytes() / 16 % 4, units = cu_mx_units(k), stride = cu_row_stride(units * CU_MX_UNIT);
    const struct cu_few_room room = cu_few_room(kind, k);
    const uint32_t base = smem_at(gemv_dynamic), acts = base + room.acts_at;
    if (tid == 0) {
        for (uint32_t i = 0; i < CU_FEW_STAGES * CU_FEW_PARTS; i++)
            bulk_init<1>(smem_at(full + i));
        for (uint32_t i = 0; i < CU_FEW_STAGES; i++)
            bulk_init<CU_FEW_TEAM>(smem_at(empty + i));
        bulk_open(smem_at(&came));
    }
    for (uint32_t i = room.zeros_at + tid * 16; i < room.acts_at; i += CU_FEW_THREADS * 16)
        sts16(base + i, make_uint4(0, 0, 0, 0));
    /* the rest of each row's last unit */
    for (uint32_t r = tid; r < 2u << kind; r += CU_FEW_THREADS)
        for (uint32_t c = k * 2; c < units * CU_MX_UNIT * 2; c += 16)
            sts16(acts + r * stride + c, make_uint4(0, 0, 0, 0));
    if (!EARLY) {
        overlap_wait();
        overlap_next(); /* not before the routing is done: the op after this one may read it */
        read();
    }
    count = min(count, (uint32_t)FEW_LISTS);
    if (tid < FEW_LISTS * 3)
        ((uint32_t *)groups)[tid] = word;
    if (tid < FEW_LISTS)
        rows[tid] = row;
    __syncthreads();
    few_work work = {groups, w, cu_mx_bytes(n, k), cu_tiles(n), units, 0, 0};
    work.share(count);
    const few_ring ring = {base, room.stage_bytes, room.stages, smem_at(full), smem_at(empty), 0, 0};
    if (threadIdx.x >= CU_FEW_WARPS * 32) {
        if (threadIdx.x == CU_FEW_WARPS * 32)
            few_ask(ring, work, kind ? CU_FEW_AHEAD + 1 : CU_FEW_AHEAD, done);
        return;
    }
    if (EARLY)
        overlap_wait();
    const uint32_t team = threadIdx.x / 32 / CU_FEW_TEAM, share = threadIdx.x / 32 % CU_FEW_TEAM, u0 = cu_mx_first(units, share, CU_MX_SPLIT);
    const few_share s = {u0,
                         cu_mx_first(units, share + 1, CU_MX_SPLIT) - u0,
                         smem_at(full + share * CU_FEW_PARTS / CU_FEW_TEAM),
                         base + room.zeros_at,
                         stride,
                         base + room.sums_at + (team * 2 * (CU_FEW_TEAM - 1) + (share ? share - 1 : 0)) * CU_FEW_LEFT,
                         1 + team * 4,
                         0,
                         share == 0};
    few_multiply(
        ring, work, s, acts, 2u << kind, smem_at(&came), k, [&](uint32_t place) { return from(place, EARLY ? 0 : place < FEW_LISTS ? rows[place] : __ldcg(rows_of + place)); }, done);
}

KERNEL(up, CU_FEW_THREADS, 1)
{
    const nib_gpu_ptr acts = read_now(m->acts);
    const uint32_t stride = max(read_now(m->hidden), read_now(m->heads) * NIB_HEAD_DIM) * 2;
    few_mx<false>(
        read_now(m->route), route_array(m, 3), read_now(m->layer[layer].up), 2 * m->intermediate, m->hidden, [&](uint32_t, uint32_t row) { return at<uint8_t>(acts, (uint64_t)row * stride); },
        few_up_done(m, layer));
}

KERNEL(down, CU_FEW_THREADS, 1)
{
    const nib_gpu_ptr gated = read_now(m->gated);
    const uint32_t stride = m->intermediate * 2;
    few_mx<true>(
        read_now(m->route), NULL, read_now(m->layer[layer].down), m->hidden, stride / 2, [&](uint32_t place, uint32_t) { return at<uint8_t>(gated, (uint64_t)place * stride); },
        few_down_done(m, layer));
}
