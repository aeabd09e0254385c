/* arch/sm90/token_attn_long.cuh: attention of the fused decode kernel in full layers behind many keys, where each block has some units. Two teams of five
 * warps take units in turns; a warp has every fifth 32 keys of its team's unit. Keys and values come to registers: the values of these 32 keys and the
 * next keys are on their way at once, also from one unit to the next; what follows is fetched to the second-level cache. The parts of a head are put together
 * by any block. */
#pragma once
#include "arch/sm90/token_attn.cuh"

#define ATTN_LONG         (16 * CU_ATTN_KEYS) /* from this position on */
#define ATTN_LONG_THREADS (ATTN_TEAMS * ATTN_KEY_WARPS * 32)
static_assert(ATTN_LONG <= CU_ATTN_SPLITS * CU_ATTN_KEYS, "before it a warp has no more than 32 keys of a unit");

__device__ __forceinline__ bool attn_is_long()
{
    return room().layer % 2 && room().row.pos >= ATTN_LONG;
}

/* A team: its warps have left a unit's states, or read them. */
__device__ __forceinline__ void attn_team_sync(uint32_t team)
{
    asm volatile("bar.sync %0, %1;" ::"r"(4 + team), "n"(ATTN_KEY_WARPS * 32) : "memory");
}

/* All teams. */
__device__ __forceinline__ void attn_long_sync()
{
    asm volatile("bar.sync %0, %1;" ::"n"(4 + ATTN_TEAMS), "n"(ATTN_LONG_THREADS) : "memory");
}

/* Found anew each time, so that what follows from it is not kept in registers. */
__device__ __forceinline__ uint32_t attn_lane()
{
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}

/* From a head's keys to its values. */
__device__ __forceinline__ uint64_t attn_values()
{
    return (uint64_t)room().m.kv_heads * PAGE_HEAD_BYTES;
}

/* The lane's part of 32 keys, or of their values: 16 bytes of token g of each eight, twice. */
struct attn_half {
    uint4 of[4][2];

    /* The eights [first, end) of these tokens. */
    __device__ __forceinline__ void ask(const uint8_t *from, int first = 0, int end = 4)
    {
        const uint32_t lane = attn_lane();
        from += lane / 4 * 128 + lane % 4 * 16;
#pragma unroll
        for (int n = first; n < end; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                             : "=r"(of[n][half].x), "=r"(of[n][half].y), "=r"(of[n][half].z), "=r"(of[n][half].w)
                             : "l"(from + n * 1024 + half * 64)
                             : "memory");
    }

    /* Tokens from `end` on become zeros: nobody has written them. */
    __device__ __forceinline__ void clear(uint32_t end)
    {
        const uint32_t g = attn_lane() / 4;
#pragma unroll
        for (uint32_t n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                of[n][half] = n * 8 + g >= end ? make_uint4(0, 0, 0, 0) : of[n][half];
    }
};

/* 32 keys and their values to the second-level cache. */
__device__ __forceinline__ void attn_fetch(const uint8_t *from)
{
    if (attn_lane() == 0) {
        prefetch_bulk(from, 32 * 128);
        prefetch_bulk(from + attn_values(), 32 * 128);
    }
    __syncwarp();
}

/* The warp's way through its team's units: 32 keys of a unit, and the id of their page. */
struct attn_walk {
    uint32_t units, keys; /* all; of a split */
    uint32_t u, key, last, id;
    nib_gpu_ptr kv; /* of the unit's KV head in the layer's first page */

    __device__ __forceinline__ attn_walk(const attn_splits &splits, uint32_t team) : units(room().m.kv_heads * splits.count), keys(splits.keys)
    {
        const token_units all(units);
        u = all.first + team * all.step;
        open();
    }

    __device__ __forceinline__ bool there() const
    {
        return u < units;
    }

    /* The warp's first keys of the unit, if it has any. */
    __device__ __forceinline__ void open()
    {
        const uint32_t kv_heads = room().m.kv_heads, split = u / kv_heads, base = split * keys;
        key = base + threadIdx.x / 32 % ATTN_KEY_WARPS * 32;
        last = min(room().row.pos + 1, base + keys);
        kv = room().m.layer[room().layer].kv + (uint64_t)(u - split * kv_heads) * PAGE_HEAD_BYTES;
    }

    /* The team's next unit. */
    __device__ __forceinline__ void next_unit()
    {
        u += ATTN_TEAMS * min(units, gridDim.x);
        open();
    }

    /* On to keys that are there, or behind all units; asks for the id of their page. */
    __device__ __forceinline__ void find()
    {
        while (key >= last && there())
            next_unit();
        if (there())
            id = layer_pages(&room().m, room().layer).id(room().row.slot, key / NIB_KV_PAGE_TOKENS);
    }

    __device__ __forceinline__ void next()
    {
        key += CU_ATTN_KEYS;
        find();
    }

    __device__ __forceinline__ const uint8_t *at() const
    {
        return ::at<const uint8_t>(kv, layer_pages(&room().m, room().layer).from(id, NIB_GPU_TOKEN) + key % NIB_KV_PAGE_TOKENS * 128);
    }
};

/* The lane's part of the query of a KV head; asked for, and once more until it is there. */
struct attn_query_part {
    uint4 q[2];

    __device__ __forceinline__ void ask(uint32_t kv_head)
    {
        const uint32_t lane = attn_lane(), *from = room().packets->qkv[(room().epoch + room().layer) & 1] +
                                                   (kv_head * NIB_GQA_GROUP + lane / 4) * (NIB_HEAD_DIM / 2) + lane % 4 * 4;
        q[0] = eight_ask(from);
        q[1] = eight_ask(from + 16);
    }

    __device__ __forceinline__ void wait(uint32_t kv_head)
    {
        for (uint32_t turn = 0; !(q[0].x && q[1].x) && !token_late(turn); turn++)
            ask(kv_head);
        __syncwarp();
        q[0].x = ~q[0].x;
        q[1].x = ~q[1].x;
    }
};

/* The last position's key and value, which QKV has made, to their page, among keys `key` on: each lane writes what it asks for behind this. */
__device__ __noinline__ void attn_long_last(uint32_t kv_head, uint32_t key)
{
    const uint32_t lane = threadIdx.x % 32, t = lane % 4, head = NIB_HEAD_DIM / 2, kv_heads = room().m.kv_heads, token = room().row.pos - key;
    const uint32_t *k = room().packets->qkv[(room().epoch + room().layer) & 1] + (room().m.heads + kv_head) * head + t * 4, *v = k + kv_heads * head;
    const uint64_t page = page_at(&room().m, room().layer, room().row.slot, key / NIB_KV_PAGE_TOKENS, NIB_GPU_TOKEN);
    uint4 *to = at<uint4>(room().m.layer[room().layer].kv,
                          page + (uint64_t)kv_head * PAGE_HEAD_BYTES + (key % NIB_KV_PAGE_TOKENS + token) * 128 + t * 16);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        uint4 new_k, new_v;
        for (uint32_t turn = 0;; turn++) {
            new_k = eight_ask(k + half * 16);
            new_v = eight_ask(v + half * 16);
            if ((new_k.x && new_v.x) || token_late(turn))
                break;
        }
        new_k.x = ~new_k.x;
        new_v.x = ~new_v.x;
        if (lane / 4 == token % 8) {
            to[half * 4] = new_k;
            to[half * 4 + attn_values() / 16] = new_v;
        }
    }
    __syncwarp();
}

/* Transposed. */
__device__ __forceinline__ uint32_t attn_turned(uint32_t v)
{
    uint32_t r;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
    return r;
}

/* To half of the warp's sums, which lie at `own` in shared memory between two steps and are scaled first, the values of 32 keys with these probabilities. Dims are
 * the rows of the product: the lane has of heads 2t and 2t + 1 in its number d of four words dims d / 2 * 32 + d % 2 * 4 + g / 2 * 8 + g % 2, and that + 2. */
__device__ __forceinline__ void attn_long_add(int half, uint32_t own, float keep0, float keep1, uint4 p, const attn_half &v)
{
#pragma unroll
    for (int d = half * 2; d < half * 2 + 2; d++) {
        const uint32_t at = own + d * 512 + attn_lane() * 16;
        const uint4 was = lds16(at);
        float o[4] = {__uint_as_float(was.x) * keep0, __uint_as_float(was.y) * keep1, __uint_as_float(was.z) * keep0, __uint_as_float(was.w) * keep1};
#pragma unroll
        for (int kk = 0; kk < 4; kk += 2) {
            const uint4 lo = v.of[kk][d / 2], hi = v.of[kk + 1][d / 2];
            mma_bf16(o, attn_turned(d % 2 ? lo.z : lo.x), attn_turned(d % 2 ? lo.w : lo.y), attn_turned(d % 2 ? hi.z : hi.x), attn_turned(d % 2 ? hi.w : hi.y),
                     kk ? p.z : p.x, kk ? p.w : p.y);
        }
        sts16(at, make_uint4(__float_as_uint(o[0]), __float_as_uint(o[1]), __float_as_uint(o[2]), __float_as_uint(o[3])));
    }
}

/* Where dim d of a head lies among a warp's outputs: lanes that write do not meet in banks. */
__device__ __forceinline__ uint32_t attn_long_at(uint32_t h, uint32_t d)
{
    return d ^ h / 2 % 4 * 2;
}

/* The warp's state of a unit, for its team. */
__device__ __forceinline__ void attn_long_keep(uint32_t own, float most, float sum)
{
    token_attn_room &sh = room().attn;
    const uint32_t warp = threadIdx.x / 32, lane = attn_lane(), g = lane / 4, t = lane % 4;
    uint32_t (*to)[NIB_HEAD_DIM] = (uint32_t (*)[NIB_HEAD_DIM])sh.long_o[warp] + t * 2;
    uint4 o[4];
    if (t == 0)
        sh.long_state[warp][g] = make_float2(most, sum);
#pragma unroll
    for (uint32_t d = 0; d < 4; d++)
        o[d] = lds16(own + d * 512 + lane * 16);
    __syncwarp();
#pragma unroll
    for (uint32_t d = 0; d < 4; d++) {
        const uint32_t dim = d / 2 * 32 + d % 2 * 4 + g / 2 * 8 + g % 2, lo = attn_long_at(t * 2, dim), hi = attn_long_at(t * 2, dim + 2);
        to[0][lo] = o[d].x;
        to[1][lo] = o[d].y;
        to[0][hi] = o[d].z;
        to[1][hi] = o[d].w;
    }
}

/* The team's states of a unit become the split's part: a head a warp, in turns, two outputs a lane. */
__device__ __forceinline__ void attn_long_leave(uint32_t team, uint32_t u)
{
    const token_attn_room &sh = room().attn;
    const uint32_t lane = attn_lane(), kv_heads = room().m.kv_heads, epoch = room().epoch + room().layer;
#pragma unroll 1
    for (uint32_t h = threadIdx.x / 32 % ATTN_KEY_WARPS; h < NIB_GQA_GROUP; h += ATTN_KEY_WARPS) {
        float2 state[ATTN_KEY_WARPS], value[ATTN_KEY_WARPS], o;
        float most, all;
#pragma unroll
        for (int w = 0; w < ATTN_KEY_WARPS; w++) {
            state[w] = sh.long_state[team * ATTN_KEY_WARPS + w][h];
            value[w] = *(const float2 *)&sh.long_o[team * ATTN_KEY_WARPS + w][h][attn_long_at(h, lane * 2)];
        }
        attn_merge(state, value, &most, &all, &o);
        eight_store(room().packets->part[u % kv_heads * NIB_GQA_GROUP + h][u / kv_heads][lane],
                    make_uint4(epoch, __float_as_uint(lane % 2 ? all : most), __float_as_uint(o.x), __float_as_uint(o.y)));
    }
}

/* The team's units. */
__device__ __noinline__ void attn_long_units(uint32_t team)
{
    attn_walk ahead(attn_splits(room().layer), team), now = ahead;
    attn_half k, v;
    const uint8_t *from = NULL;
    ahead.find();
    if (ahead.there()) {
        from = ahead.at();
        k.ask(from);
        ahead.next();
    }
    const uint32_t own = smem_at(&room().attn.long_o[threadIdx.x / 32]);
    for (; now.there(); now.next_unit()) {
        attn_query_part query;
        const uint32_t kv_head = now.u % room().m.kv_heads;
        query.ask(kv_head);
        float most = -1e30f, sum = 0;
#pragma unroll
        for (int d = 0; d < 4; d++)
            sts16(own + d * 512 + attn_lane() * 16, make_uint4(0, 0, 0, 0));
        query.wait(kv_head);
        const uint4 none = make_uint4(0, 0, 0, 0), q[2][2] = {{query.q[0], query.q[1]}, {none, none}};
        for (; now.key < now.last; now.key += CU_ATTN_KEYS) {
            const uint32_t seen = room().row.pos + 1 - now.key; /* so many of the keys, at least */
            if (seen <= 32) {
                attn_long_last(kv_head, now.key);
                k.ask(from);
            }
            const bool more = ahead.there();
            const uint8_t *next = from; /* of the last step the same again, for nothing */
            if (more) {
                next = ahead.at();
                attn_fetch(next);
            }
            float s[4][4];
            const uint32_t first = attn_lane() % 4 * 2;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
                attn_scores(s[n], q, k.of[n]);
#pragma unroll
                for (int c = 0; c < 2; c++) /* a product of its own, which is not fused with what follows */
                    s[n][c] = __fmul_rn(s[n][c], ATTN_SCALE);
            }
            if (seen < 32)
#pragma unroll
                for (int n = 0; n < 4; n++)
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        s[n][c] = first + n * 8 + c < seen ? s[n][c] : -INFINITY;
            v.ask(from + attn_values()); /* not earlier: registers */
            const float keep = attn_weigh<4, false>(s, 0, most, sum), keep0 = __shfl_sync(~0u, keep, first * 4), keep1 = __shfl_sync(~0u, keep, first * 4 + 4);
            const uint4 p = make_uint4(pack_bf16(s[0][0], s[0][1]), pack_bf16(s[1][0], s[1][1]), pack_bf16(s[2][0], s[2][1]), pack_bf16(s[3][0], s[3][1]));
            if (seen < 32)
                v.clear(seen);
            from = next;
            k.ask(from, 2, 4); /* in parts, as values leave registers */
            if (more)
                ahead.next();
            attn_long_add(0, own, keep0, keep1, p, v);
            k.ask(from, 1, 2);
            attn_long_add(1, own, keep0, keep1, p, v);
            k.ask(from, 0, 1);
        }
        sum = quad_sum(sum);
        attn_long_keep(own, most, sum);
        attn_team_sync(team);
        attn_long_leave(team, now.u);
        attn_team_sync(team);
    }
}

/* As attn_join, of a head. Parts come to shared memory, eight by a warp, where one warp puts them together. */
__device__ __noinline__ void attn_long_join(uint32_t head)
{
    static_assert(CU_ATTN_SPLITS <= ATTN_LONG_THREADS / 32 * ATTN_FOLD && sizeof room().attn.long_o >= CU_ATTN_SPLITS * 32 * sizeof(float2) &&
                      sizeof room().attn.long_state >= CU_ATTN_SPLITS * sizeof(float2),
                  "all parts of a head");
    const token_at b(CU_TOKEN_QKV);
    float2 (*const values)[32] = (float2 (*)[32])room().attn.long_o, *const states = room().attn.long_state[0];
    const uint32_t splits = attn_splits(b.layer).count, lane = threadIdx.x % 32, first = threadIdx.x / 32 * ATTN_FOLD;
    const float sink = bf16_at(room().m.layer[b.layer].sinks, head) * LOG2E;
    attn_long_sync(); /* what lay there was read */
    if (first < splits) {
        uint4 got[ATTN_FOLD];
        attn_parts(b, head, first, splits, got);
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            values[first + k][lane] = make_float2(__uint_as_float(got[k].z), __uint_as_float(got[k].w));
            if (lane < 2)
                ((float *)&states[first + k])[lane] = __uint_as_float(got[k].y);
        }
    }
    attn_long_sync();
    if (threadIdx.x >= 32)
        return;
    attn_fold all[2] = {attn_fold(sink), attn_fold(sink)};
#pragma unroll 1
    for (uint32_t i = 0; i < splits; i += ATTN_FOLD) {
        float v[ATTN_FOLD], s[ATTN_FOLD], o[2][ATTN_FOLD];
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            v[k] = states[i + k].x;
            s[k] = states[i + k].y;
            o[0][k] = values[i + k][lane].x;
            o[1][k] = values[i + k][lane].y;
        }
        all[0].take(v, s, o[0]);
        all[1].take(v, s, o[1]);
    }
    attn_give(b, head / NIB_GQA_GROUP, head % NIB_GQA_GROUP * NIB_HEAD_DIM + lane * 2, attn_bits(all[0].value()), attn_bits(all[1].value()));
}

/* Ten warps call it. */
__device__ __noinline__ void token_attention_long()
{
    attn_long_units(threadIdx.x / 32 / ATTN_KEY_WARPS);
    const token_units heads(room().m.heads);
    for (uint32_t head = heads.first; head < heads.all; head += heads.step)
        attn_long_join(head);
}
