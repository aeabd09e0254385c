/* arch/sm90/batch_attn.cuh: attention of many decode rows (arch/sm90/BATCH.md), with the arithmetic, and so the bits, of
 * arch/cuda/attn.cuh: a split of the keys is five groups of 32, each with a softmax of its own.
 *
 * One block a multiprocessor. The step's splits, in the order of (row, KV head, split), are dealt to the blocks in runs of like
 * numbers of keys. Eight warps take a block's groups in turns; a warp's keys and values come through a ring of its own. Four warps put the groups
 * of a split together, and the splits of a head, and write what comes out. Splits of a head that two blocks share go through m->partial. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/sm90/batch_attn.h"

struct batch_attn_stage {
    uint4 keys[32 * 8], values[32 * 8]; /* 128 bytes each; chunks of 16 xor-ed: of keys by key % 2 * 4, of values by key % 8 */
};

/* A split's groups. Dim d of a head h lies at d ^ batch_attn_turn(h). */
struct batch_attn_part {
    float o[ATTN_KEY_WARPS][NIB_GQA_GROUP][NIB_HEAD_DIM];
    float max[ATTN_KEY_WARPS][NIB_GQA_GROUP], sum[ATTN_KEY_WARPS][NIB_GQA_GROUP];
};

__device__ __forceinline__ uint32_t batch_attn_turn(uint32_t h)
{
    return h % 4 * 8;
}

struct batch_attn_row {
    uint32_t pos;
    uint16_t slot;
    uint8_t splits, doublings; /* of the keys of a split */
};

/* The first split of a block: `at` is its number among all. */
struct batch_attn_cut {
    uint32_t row, head, split, at;
};

struct batch_attn_shared {
    batch_attn_stage ring[CU_BATCH_ATTN_WARPS][CU_BATCH_ATTN_RING];
    batch_attn_part part[CU_BATCH_ATTN_PARTS];
    uint64_t full[CU_BATCH_ATTN_PARTS], empty[CU_BATCH_ATTN_PARTS]; /* mbarriers */
    batch_attn_row row[NIB_MAX_SLOTS];
    uint2 sum[CU_BATCH_ATTN_THREADS / 32]; /* of a warp's rows: weights, splits of a head */
    batch_attn_cut cut[2];
    uint32_t last;
};
static_assert(sizeof(batch_attn_shared) <= CU_BATCH_ATTN_SHARED, "the table says less");
static_assert(CU_BATCH_ATTN_THREADS >= NIB_MAX_SLOTS, "a thread a row");

__device__ __forceinline__ void batch_attn_wait(const uint64_t &bar, uint32_t parity)
{
    asm volatile("{\n.reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" ::"r"(smem_at(&bar)),
                 "r"(parity)
                 : "memory");
}

/* By one warp, all lanes. */
__device__ __forceinline__ void batch_attn_arrive(const uint64_t &bar)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_at(&bar)) : "memory");
}

/* What of a layer a block reads; of the machine block, whose cache line may be gone, only once. */
struct batch_attn_view {
    const struct nib_gpu_machine *m;
    uint32_t layer, kv_heads, heads, window;
    layer_pages pages;
    nib_gpu_ptr kv, q;
    uint64_t policy; /* keys and values are read once a step */

    __device__ __forceinline__ batch_attn_view(const struct nib_gpu_machine *machine, uint32_t of_layer)
        : m(machine), layer(of_layer), kv_heads(machine->kv_heads), heads(machine->heads), window(machine->window), pages(machine, of_layer),
          kv(machine->layer[of_layer].kv), q(machine->q), policy(stream_policy())
    {
    }

    __device__ __forceinline__ bool windowed() const
    {
        return layer % 2 == 0;
    }

    __device__ __forceinline__ uint32_t begin(uint32_t end) const
    {
        return windowed() && end > window ? end - window : 0;
    }
};

/* A row's splits; weight: steps of a block's groups through its keys. */
__device__ __forceinline__ batch_attn_row batch_attn_measure(const batch_attn_view &view, const nib_row &r, uint32_t *ret_weight)
{
    batch_attn_row row = {r.pos, r.slot, 1, 0};
    *ret_weight = 1;
    if (view.windowed())
        return row;
    const uint32_t keys = cu_split_keys(r.pos);
    row.splits = (uint8_t)(r.pos / keys + 1);
    row.doublings = (uint8_t)(31 - __clz(keys / CU_ATTN_KEYS));
    *ret_weight = r.pos / CU_ATTN_KEYS + 1;
    return row;
}

/* The row's split at or after a weight that lies in it. `before`: weights and splits of the rows before it, a head each. */
__device__ __forceinline__ batch_attn_cut batch_attn_cut_at(const batch_attn_row &r, uint32_t row, uint32_t kv_heads, uint32_t weight,
                                                            uint2 before, uint32_t at)
{
    const uint32_t head = at / weight, split = (at % weight + (1u << r.doublings) - 1) >> r.doublings;
    batch_attn_cut cut = {row, head, split, before.y * kv_heads + head * r.splits + split};
    if (cut.split == r.splits) {
        cut.split = 0;
        cut.head++;
    }
    if (cut.head == kv_heads) {
        cut.head = 0;
        cut.row++;
    }
    return cut;
}

/* The rows, and the two ends of this block's run of splits, to shared memory. */
__device__ __forceinline__ void batch_attn_plan(const batch_attn_view &view, batch_attn_shared &sh)
{
    const struct nib_gpu_step *step = step_of(view.m);
    const uint32_t tid = threadIdx.x, lane = tid % 32, warp = tid / 32, kv_heads = view.kv_heads;
    const uint32_t rows = min(step->decode_count, (uint32_t)NIB_MAX_SLOTS);
    batch_attn_row r = {0, 0, 0, 0};
    uint32_t weight = 0;
    if (tid < rows) {
        r = batch_attn_measure(view, step->rows[tid], &weight);
        sh.row[tid] = r;
    }
    uint2 sum = make_uint2(weight, r.splits);
#pragma unroll
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(~0u, sum.x, d), y = __shfl_up_sync(~0u, sum.y, d);
        sum.x += lane >= d ? x : 0;
        sum.y += lane >= d ? y : 0;
    }
    if (lane == 31)
        sh.sum[warp] = sum;
    __syncthreads();
    uint2 before = make_uint2(sum.x - weight, sum.y - r.splits), all = make_uint2(0, 0);
#pragma unroll
    for (uint32_t w = 0; w < CU_BATCH_ATTN_THREADS / 32; w++) {
        const uint2 of = sh.sum[w];
        before.x += w < warp ? of.x : 0;
        before.y += w < warp ? of.y : 0;
        all.x += of.x;
        all.y += of.y;
    }
    const uint32_t total = all.x * kv_heads, first = before.x * kv_heads;
#pragma unroll
    for (uint32_t side = 0; side < 2; side++) {
        const uint32_t at = (uint32_t)((uint64_t)total * (blockIdx.x + side) / gridDim.x);
        if (at >= first && at < first + weight * kv_heads)
            sh.cut[side] = batch_attn_cut_at(r, tid, kv_heads, weight, before, at - first);
        if (at == total && tid == 0)
            sh.cut[side] = {rows, 0, 0, all.y * kv_heads};
    }
    __syncthreads();
}

/* A split of the block's run. What the block shares with the next one comes first, so that neither waits for the other at its end. */
struct batch_attn_place {
    uint32_t at, turn, count; /* of the run; the one at which its beginning follows; all */
    uint32_t row, head, split;
    batch_attn_row of;

    __device__ __forceinline__ void open(const batch_attn_shared &sh)
    {
        const batch_attn_cut &a = sh.cut[0], &b = sh.cut[1];
        const bool turned = b.split != 0 && (a.row != b.row || a.head != b.head);
        at = 0;
        count = b.at - a.at;
        turn = turned ? b.split : 0;
        go(sh, turned ? b.row : a.row, turned ? b.head : a.head, turned ? 0 : a.split);
    }

    __device__ __forceinline__ void go(const batch_attn_shared &sh, uint32_t to_row, uint32_t to_head, uint32_t to_split)
    {
        row = to_row;
        head = to_head;
        split = to_split;
        if (at < count)
            of = sh.row[row];
    }

    __device__ __forceinline__ bool there() const
    {
        return at < count;
    }

    /* Splits of the same row and head that follow each other here, from this one on. */
    __device__ __forceinline__ uint32_t run() const
    {
        return min(of.splits - split, (at < turn ? turn : count) - at);
    }

    /* On by `n` splits, of this row and head. */
    __device__ __forceinline__ void next(const batch_attn_shared &sh, uint32_t kv_heads, uint32_t n)
    {
        at += n;
        split += n;
        if (at == turn)
            go(sh, sh.cut[0].row, sh.cut[0].head, sh.cut[0].split);
        else if (split == of.splits)
            go(sh, head + 1 == kv_heads ? row + 1 : row, head + 1 == kv_heads ? 0 : head + 1, 0);
    }
};

/* What is left to know of 32 keys that were asked for. */
struct batch_attn_asked {
    uint32_t seen; /* of the 32, from the low byte's up to the next one's */
    uint32_t what; /* the split's number in the run, * 32; group * 4; 2: the group's first; 1: its last. NONE: nothing was asked for */
    uint4 q[2];    /* the lane's part of the query */

    static constexpr uint32_t NONE = ~0u;

    __device__ __forceinline__ bool there() const
    {
        return what != NONE;
    }
    __device__ __forceinline__ uint32_t split() const
    {
        return what / 32;
    }
    __device__ __forceinline__ uint32_t group() const
    {
        return what / 4 % 8;
    }
    __device__ __forceinline__ bool begins() const
    {
        return what & 2;
    }
    __device__ __forceinline__ bool ends() const
    {
        return what & 1;
    }
};

/* 32 keys: a step of a group. A warp has every CU_BATCH_ATTN_WARPS-th group of the block's. */
struct batch_attn_piece {
    batch_attn_place place;
    uint32_t group, key, begin, end, last; /* keys up to `last` are the split's */
    bool begins;                           /* the group's first */
    uint32_t id;                           /* of its page */

    __device__ __forceinline__ void open(const batch_attn_view &view, const batch_attn_shared &sh)
    {
        place.open(sh);
        group = threadIdx.x / 32;
        settle(view, sh);
        find(view);
    }

    __device__ __forceinline__ bool there() const
    {
        return place.there();
    }

    /* The position that the step itself writes is among them. */
    __device__ __forceinline__ bool newest() const
    {
        return end - 1 - key < 32;
    }

    __device__ __forceinline__ void settle(const batch_attn_view &view, const batch_attn_shared &sh)
    {
        for (; group >= ATTN_KEY_WARPS && place.there(); group -= ATTN_KEY_WARPS)
            place.next(sh, view.kv_heads, 1);
        if (!place.there())
            return;
        end = place.of.pos + 1;
        begin = view.begin(end);
        const uint32_t keys = CU_ATTN_KEYS << place.of.doublings, base = view.windowed() ? begin & ~31u : place.split * keys;
        last = view.windowed() ? end : min(end, base + keys);
        key = base + group * 32;
        begins = true;
    }

    __device__ __forceinline__ void next(const batch_attn_view &view, const batch_attn_shared &sh)
    {
        key += CU_ATTN_KEYS;
        begins = false;
        if (key >= last) {
            group += CU_BATCH_ATTN_WARPS;
            settle(view, sh);
        }
        find(view);
    }

    /* Its page, which the next call of ask() needs; of a group without keys the row's last. */
    __device__ __forceinline__ void find(const batch_attn_view &view)
    {
        if (there())
            id = view.pages.id(place.of.slot, min(key, end - 1) / NIB_KV_PAGE_TOKENS);
    }

    /* Asks for keys and values. Positions that the row does not see are zeros: what no one has written may be NaN. */
    __device__ __forceinline__ void ask(const batch_attn_view &view, batch_attn_stage &to, batch_attn_asked *ret) const
    {
        const uint32_t lane = threadIdx.x % 32, token = lane / 8, chunk = lane % 8;
        const uint8_t *k = at<const uint8_t>(view.kv, view.pages.from(id, NIB_GPU_ATTN) + place.head * PAGE_HEAD_BYTES +
                                                          key % NIB_KV_PAGE_TOKENS * 128 + lane * 16);
        const uint8_t *v = k + view.kv_heads * PAGE_HEAD_BYTES;
        const uint32_t to_key = smem_at(to.keys + token * 8 + (chunk ^ token % 2 * 4));
        const uint32_t to_value = smem_at(to.values + token * 8 + (chunk ^ token)), odd = to_value ^ 64;
        const uint32_t low = begin > key ? min(begin - key, 32u) : 0, high = end > key ? min(end - key, 32u) : 0;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const bool seen = i * 4 + token - low < high - low;
            copy16_stream(to_key + i * 512, k + i * 512, view.policy, seen);
            copy16_stream((i % 2 ? odd : to_value) + i * 512, v + i * 512, view.policy, seen);
        }
        ret->seen = low | high << 8;
        ret->what = place.at * 32 + group * 4 + begins * 2 + (key + CU_ATTN_KEYS >= last);
    }

    /* The query of its row and head group: written by the op before this one. */
    __device__ __forceinline__ void query(const batch_attn_view &view, batch_attn_asked *ret) const
    {
        const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        const __nv_bfloat16 *from = at<const __nv_bfloat16>(view.q) +
                                    (place.row * view.heads + place.head * NIB_GQA_GROUP + g) * NIB_HEAD_DIM + t * 8;
        ret->q[0] = *(const uint4 *)from;
        ret->q[1] = *(const uint4 *)(from + 32);
    }
};

/* The lane's 16 bytes, twice, of key g of eight n: the one place where what lies in a stage becomes a fragment of bf16. */
__device__ __forceinline__ void batch_attn_key(const batch_attn_stage &stage, uint32_t n, uint4 k[2])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const uint32_t from = smem_at(stage.keys + g * 8 + (t ^ g % 2 * 4));
    k[0] = lds16(from + n * 1024);
    k[1] = lds16((from ^ 64) + n * 1024);
}

__device__ __forceinline__ void batch_attn_take(const batch_attn_asked &p, const batch_attn_stage &stage, attn_state &st)
{
    const uint4 none = make_uint4(0, 0, 0, 0), rows[2][2] = {{p.q[0], p.q[1]}, {none, none}};
    const uint32_t low = p.seen & 0xff, count = (p.seen >> 8) - low, first = threadIdx.x % 4 * 2 - low;
    float s[4][4];
#pragma unroll
    for (uint32_t n = 0; n < 4; n++) {
        uint4 k[2];
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        batch_attn_key(stage, n, k);
        attn_scores(s[n], rows, k);
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) { /* a product of its own, which is not fused with what follows */
            const float score = __fmul_rn(s[n][c], ATTN_SCALE);
            s[n][c] = first + n * 8 + c < count ? score : -INFINITY;
        }
    }
    if (p.begins()) {
        attn_clear(st, -1e30f, -1e30f);
        attn_take<4, 1, true>(st, s, smem_at(stage.values));
    } else {
        attn_take<4, 1>(st, s, smem_at(stage.values));
    }
}

/* The group's state, to where the split's groups lie. */
__device__ __forceinline__ void batch_attn_put(const attn_state &st, batch_attn_part &to, uint32_t group)
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float sum = quad_sum(st.sum[0]);
    if (t == 0) {
        to.max[group][g] = st.max[0];
        to.sum[group][g] = sum;
    }
#pragma unroll
    for (uint32_t n = 0; n < 8; n++)
        *(float2 *)&to.o[group][g][(n * 8 ^ batch_attn_turn(g)) + t * 2] = make_float2(st.o[n][0], st.o[n][1]);
}

/* A warp that takes keys in. All but the newest key were written by earlier steps, and may be asked for before the op before this one
 * has ended. */
__device__ __forceinline__ void batch_attn_stream(const batch_attn_view &view, batch_attn_shared &sh)
{
    constexpr uint32_t RING = CU_BATCH_ATTN_RING;
    batch_attn_stage *ring = sh.ring[threadIdx.x / 32];
    batch_attn_asked asked[RING]; /* the one to take in, and those that follow it */
    batch_attn_piece piece, before[RING - 1];
    piece.open(view, sh);
#pragma unroll
    for (uint32_t i = 0; i + 1 < RING; i++) {
        asked[i + 1].what = asked->NONE;
        before[i] = piece;
        if (piece.there()) {
            if (piece.newest())
                overlap_wait();
            piece.ask(view, ring[i], &asked[i + 1]);
            piece.next(view, sh);
        }
        copy_commit();
    }
    overlap_wait();
#pragma unroll
    for (uint32_t i = 0; i + 1 < RING; i++)
        if (before[i].there())
            before[i].query(view, &asked[i + 1]);
    attn_state st;
    for (uint32_t stage = 0, free = RING - 1;;) {
#pragma unroll
        for (uint32_t i = 0; i + 1 < RING; i++)
            asked[i] = asked[i + 1];
        if (!asked[0].there())
            return;
        asked[RING - 1].what = asked->NONE;
        if (piece.there()) {
            piece.ask(view, ring[free], &asked[RING - 1]);
            piece.query(view, &asked[RING - 1]);
            piece.next(view, sh);
        }
        copy_commit();
        copy_wait<RING - 1>();
        __syncwarp();
        batch_attn_take(asked[0], ring[stage], st);
        if (asked[0].ends()) {
            const uint32_t split = asked[0].split(), slot = split % CU_BATCH_ATTN_PARTS;
            batch_attn_wait(sh.empty[slot], (split / CU_BATCH_ATTN_PARTS & 1) ^ 1);
            batch_attn_put(st, sh.part[slot], asked[0].group());
            batch_attn_arrive(sh.full[slot]);
        }
        __syncwarp();
        free = stage;
        stage = stage + 1 == RING ? 0 : stage + 1;
    }
}

/* Which outputs a lane of a joiner has: a head of the eight, dims dim(0) to dim(3), so that a warp reads from 32 banks. */
struct batch_attn_lane {
    static constexpr uint32_t DIMS = NIB_HEAD_DIM / 16;

    uint32_t head, lane;

    __device__ __forceinline__ batch_attn_lane() : head(threadIdx.x / 16 - CU_BATCH_ATTN_WARPS * 2), lane(threadIdx.x % 16)
    {
    }

    __device__ __forceinline__ uint32_t dim(uint32_t i) const
    {
        return (i ^ head % 2) * 16 + lane;
    }
};

/* Eight splits of a lane's outputs. */
struct batch_attn_eight {
    float max[ATTN_FOLD], sum[ATTN_FOLD], o[batch_attn_lane::DIMS][ATTN_FOLD];

    __device__ __forceinline__ void none(uint32_t k)
    {
        max[k] = -INFINITY;
        sum[k] = 0;
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            o[i][k] = 0;
    }

    /* From a split's groups. */
    __device__ __forceinline__ void merge(uint32_t k, const batch_attn_part &part, const batch_attn_lane &my)
    {
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            attn_merge_warps(part, my.head, my.dim(i) ^ batch_attn_turn(my.head), &max[k], &sum[k], &o[i][k]);
    }

    /* To m->partial. */
    __device__ __forceinline__ void put(uint32_t k, float *part, const batch_attn_lane &my) const
    {
        if (my.lane == 0) {
            part[0] = max[k];
            part[1] = sum[k];
        }
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            part[2 + my.dim(i)] = o[i][k];
    }

    /* All eight, from split `first` on. */
    __device__ __forceinline__ void get(const float *parts, uint32_t first, uint32_t splits, const batch_attn_lane &my)
    {
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            const float *part = parts + (first + k) * CU_ATTN_PART;
            none(k);
            if (first + k >= splits)
                continue;
            max[k] = __ldcg(part);
            sum[k] = __ldcg(part + 1);
#pragma unroll
            for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
                o[i][k] = __ldcg(part + 2 + my.dim(i));
        }
    }
};

/* A lane's outputs of a row. */
struct batch_attn_out {
    attn_fold all[batch_attn_lane::DIMS];

    __device__ __forceinline__ explicit batch_attn_out(float sink) : all{attn_fold(sink), attn_fold(sink), attn_fold(sink), attn_fold(sink)}
    {
    }

    __device__ __forceinline__ void take(const batch_attn_eight &e)
    {
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            all[i].take(e.max, e.sum, e.o[i]);
    }
};

__device__ __forceinline__ void batch_attn_join_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"(CU_BATCH_ATTN_JOINERS * 32) : "memory");
}

/* The block's splits of a row and KV head are in m->partial: whether all blocks' are, and it is for this one to put them together. */
__device__ __forceinline__ bool batch_attn_arrived(const struct nib_gpu_machine *m, batch_attn_shared &sh, uint32_t row, uint32_t kv_head,
                                                   uint32_t mine, uint32_t splits)
{
    batch_attn_join_sync();
    if (threadIdx.x == CU_BATCH_ATTN_WARPS * 32) {
        uint32_t *arrived = &at<struct cu_scratch>(m->scratch)->attn[row * m->kv_heads + kv_head];
        __threadfence();
        sh.last = atomicAdd(arrived, mine) + mine == splits;
        __threadfence();
        if (sh.last)
            *arrived = 0;
    }
    batch_attn_join_sync();
    return sh.last;
}

/* The warps that put splits together, and write what comes out. */
__device__ __forceinline__ void batch_attn_join(const batch_attn_view &view, batch_attn_shared &sh)
{
    const struct nib_gpu_machine *m = view.m;
    const batch_attn_lane my;
    batch_attn_place place;
    overlap_wait();
    for (place.open(sh); place.there();) {
        const uint32_t row = place.row, kv_head = place.head, head = kv_head * NIB_GQA_GROUP + my.head;
        const uint32_t run = place.run(), splits = place.of.splits;
        const float sink = bf16_at(m->layer[view.layer].sinks, head) * LOG2E;
        float *parts = attn_part(m, row, head, 0), *part = parts + place.split * CU_ATTN_PART;
        batch_attn_out out(sink);
        batch_attn_eight e;
        for (uint32_t i = 0; i < run; i += ATTN_FOLD) {
#pragma unroll
            for (uint32_t k = 0; k < ATTN_FOLD; k++) {
                e.none(k);
                if (i + k >= run)
                    continue;
                const uint32_t at = place.at + i + k, slot = at % CU_BATCH_ATTN_PARTS;
                batch_attn_wait(sh.full[slot], at / CU_BATCH_ATTN_PARTS & 1);
                e.merge(k, sh.part[slot], my);
                batch_attn_arrive(sh.empty[slot]);
                if (run < splits)
                    e.put(k, part + (i + k) * CU_ATTN_PART, my);
            }
            if (splits > 1)
                out.take(e);
        }
        place.next(sh, view.kv_heads, run);
        if (run < splits) {
            if (!batch_attn_arrived(m, sh, row, kv_head, run, splits))
                continue;
            out = batch_attn_out(sink);
            for (uint32_t i = 0; i < splits; i += 2 * ATTN_FOLD) { /* both are on their way at once */
                batch_attn_eight next;
                e.get(parts, i, splits, my);
                next.get(parts, i + ATTN_FOLD, splits, my);
                out.take(e);
                if (i + ATTN_FOLD < splits)
                    out.take(next);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            attn_put(m, row, head * NIB_HEAD_DIM + my.dim(i),
                     splits > 1 ? out.all[i].value() : attn_alone(e.max[0], e.sum[0], e.o[i][0], sink));
    }
}

KERNEL(attn_batch, CU_BATCH_ATTN_THREADS, 1)
{
    extern __shared__ uint4 attn_dynamic[];
    batch_attn_shared &sh = *(batch_attn_shared *)attn_dynamic;
    const batch_attn_view view(m, layer);
    overlap_next();
    if (threadIdx.x < CU_BATCH_ATTN_PARTS) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(&sh.full[threadIdx.x])), "n"(ATTN_KEY_WARPS) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(&sh.empty[threadIdx.x])), "n"(CU_BATCH_ATTN_JOINERS)
                     : "memory");
    }
    if (layer == 0) /* later the step block may be read early: see attn */
        overlap_wait();
    batch_attn_plan(view, sh);
    if (threadIdx.x / 32 < CU_BATCH_ATTN_WARPS)
        batch_attn_stream(view, sh);
    else
        batch_attn_join(view, sh);
}
