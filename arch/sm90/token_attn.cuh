/* arch/sm90/token_attn.cuh: attention of the fused decode kernel. The work is (KV head, split of the keys), as in the attn kernel and
 * with its arithmetic; a few blocks have one such unit each; behind more keys see token_attn_long.cuh. Eight warps of a block do it, five of
 * them with keys, while the ring fills with the next matrix. Keys but the last are asked for before q is there; each warp with keys
 * takes q in by itself. A split's part goes to the units of the same KV head; each puts some heads together. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/sm90/token_packet.cuh"

__device__ __forceinline__ void attn_sync()
{
    asm volatile("bar.sync 2, %0;" ::"n"(CU_ATTN_THREADS) : "memory");
}

/* The first unit of a block, and from one to its next. Fewer units than blocks are spread: unit u belongs to block
 * u * blocks / units, rounded down. */
struct token_units {
    uint32_t first, step, all;

    __device__ __forceinline__ explicit token_units(uint32_t units)
    {
        const uint32_t block = blockIdx.x, blocks = gridDim.x;
        all = units;
        first = block;
        step = blocks;
        if (units >= blocks)
            return;
        first = CU_DIV_UP(block * units, blocks);
        if (first >= units || first * blocks / units != block)
            first = units;
        step = units;
    }
};

#define ATTN_FIRST_WARP 2 /* of those with keys: the first two often have a second stage of QKV */

/* What a lane takes in of what QKV has made: its part of the queries; in the warp that has the row's last key this and its value. */
struct attn_news {
    uint4 q[2], k[2], v;
};

/* All are asked for at once, and again until all are there; `token`: the last key's place among the warp's, if it is below 32. */
__device__ __forceinline__ void attn_take_in(const token_at &b, uint32_t kv_head, uint32_t token, attn_news &ret)
{
    const struct nib_gpu_machine *m = &room().m;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, head = NIB_HEAD_DIM / 2;
    const uint32_t *qkv = room().packets->qkv[b.epoch & 1], *q = qkv + (kv_head * NIB_GQA_GROUP + g) * head + t * 4,
                   *k = qkv + (m->heads + kv_head) * head, *v = k + m->kv_heads * head + lane * 4;
    const bool has_k = token < 32 && token % 8 == g, has_v = token < 32 && lane < 8;
    k += t * 4;
    ret.k[0] = ret.k[1] = ret.v = make_uint4(1, 1, 1, 1);
    for (uint32_t turn = 0;; turn++) {
        ret.q[0] = eight_ask(q);
        ret.q[1] = eight_ask(q + 16);
        if (has_k) {
            ret.k[0] = eight_ask(k);
            ret.k[1] = eight_ask(k + 16);
        }
        if (has_v)
            ret.v = eight_ask(v);
        if ((ret.q[0].x && ret.q[1].x && ret.k[0].x && ret.k[1].x && ret.v.x) || token_late(turn))
            break;
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        ret.q[half].x = ~ret.q[half].x;
        ret.k[half].x = ~ret.k[half].x;
    }
    ret.v.x = ~ret.v.x;
}

/* The last position's key and value to those asked for: what was there before is replaced. */
__device__ __forceinline__ void attn_put_last(uint32_t token, const attn_news &news, attn_keys &keys, uint4 *v)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4;
    if (token >= 32)
        return;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (n * 8 + g == token)
                keys.key[n][half] = news.k[half];
    copy_wait<0>(); /* nor may an earlier copy come later */
    __syncwarp();
    if (lane < 8)
        v[token * 8 + (lane ^ token % 8)] = news.v;
    __syncwarp();
}

/* A warp's softmax of its 32 keys: of head g the largest score and the lane's part of the sum, of heads 2t and 2t + 1 the values: dims 16d + g and + 8. */
struct attn_own {
    float most, sum, o[4][4];
};

/* As attn_step and attn_take of the first keys of all: values are asked for before the scores are weighed. Dims are the rows of the second product, so that none
 * is empty. */
__device__ __forceinline__ void attn_begin(const uint4 q[2], uint32_t low, uint32_t high, const attn_keys &keys, const uint4 *v, attn_own &ret)
{
    const uint32_t lane = threadIdx.x % 32, first = lane % 4 * 2 - low;
    const uint4 none = make_uint4(0, 0, 0, 0), rows[2][2] = {{q[0], q[1]}, {none, none}};
    float s[4][4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        attn_scores(s[n], rows, keys.key[n]);
    }
    copy_wait<0>();
    __syncwarp();
    uint32_t value[2][4][4];
    const uint32_t line = smem_at(v) + (lane / 16 * 8 + lane % 8) * 128;
#pragma unroll
    for (uint32_t kk = 0; kk < 2; kk++)
#pragma unroll
        for (uint32_t d = 0; d < 4; d++)
            ldmatrix_trans(value[kk][d], line + kk * 2048 + ((d * 2 + lane / 8 % 2) ^ (lane & 7)) * 16);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int c = 0; c < 2; c++)
            s[n][c] = first + n * 8 + c < high - low ? s[n][c] * ATTN_SCALE : -INFINITY;
    ret.most = -1e30f;
    (void)attn_weigh<4, true>(s, 0, ret.most, ret.sum);
#pragma unroll
    for (uint32_t kk = 0; kk < 2; kk++) {
        const uint32_t b0 = pack_bf16(s[2 * kk][0], s[2 * kk][1]), b1 = pack_bf16(s[2 * kk + 1][0], s[2 * kk + 1][1]);
#pragma unroll
        for (uint32_t d = 0; d < 4; d++) {
            if (kk == 0)
                ret.o[d][0] = ret.o[d][1] = ret.o[d][2] = ret.o[d][3] = 0;
            mma_bf16(ret.o[d], value[kk][d][0], value[kk][d][1], value[kk][d][2], value[kk][d][3], b0, b1);
        }
    }
}

/* Outputs i and i + 1 of this head group, in bf16, as a word. */
__device__ __forceinline__ void attn_give(const token_at &b, uint32_t kv_head, uint32_t i, uint32_t even, uint32_t odd)
{
    word_put(room().packets->attn, (kv_head * NIB_GQA_GROUP * NIB_HEAD_DIM + i) / 2, even | odd << 16, b.epoch);
}

__device__ __forceinline__ uint32_t attn_bits(float value)
{
    return __bfloat16_as_ushort(__float2bfloat16(value));
}

/* How a layer's keys are split. */
struct attn_splits {
    uint32_t keys, count;

    __device__ __forceinline__ explicit attn_splits(uint32_t layer)
    {
        const bool windowed = layer % 2 == 0;
        keys = windowed ? ~0u : cu_split_keys(room().row.pos);
        count = windowed ? 1 : room().row.pos / keys + 1;
    }
};

/* The heads [first, end) of a group that the unit of this split puts together: each split some. */
__device__ __forceinline__ uint32_t attn_first_head(uint32_t split, uint32_t splits)
{
    return CU_DIV_UP(split * NIB_GQA_GROUP, splits);
}

/* Parts of eight splits of a head from `first` on, as soon as all are there; of splits that are not there such as change nothing. */
__device__ __forceinline__ void attn_parts(const token_at &b, uint32_t head, uint32_t first, uint32_t splits, uint4 ret[ATTN_FOLD])
{
    const uint32_t lane = threadIdx.x % 32, *from = room().packets->part[head][first][lane];
    for (uint32_t turn = 0;; turn++) {
        bool there = true;
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++)
            ret[k] = first + k < splits ? eight_ask(from + k * (NIB_HEAD_DIM * 2))
                                        : make_uint4(b.epoch, lane % 2 ? 0 : __float_as_uint(-INFINITY), 0, 0);
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++)
            there &= ret[k].x == b.epoch;
        if (there || token_late(turn))
            break;
    }
    __syncwarp();
}

/* Puts the splits' parts of such heads together, as attn_finish does: a head a warp, two outputs a lane. */
__device__ __noinline__ void attn_join(uint32_t u)
{
    const token_at b(CU_TOKEN_QKV);
    const uint32_t kv_heads = room().m.kv_heads, kv_head = u % kv_heads, split = u / kv_heads, splits = attn_splits(b.layer).count;
    const uint32_t lane = threadIdx.x % 32, end = attn_first_head(split + 1, splits);
#pragma unroll 1
    for (uint32_t h = attn_first_head(split, splits) + threadIdx.x / 32; h < end; h += CU_ATTN_THREADS / 32) {
        const uint32_t head = kv_head * NIB_GQA_GROUP + h;
        const float sink = bf16_at(room().m.layer[b.layer].sinks, head) * LOG2E;
        attn_fold all[2] = {attn_fold(sink), attn_fold(sink)};
        for (uint32_t first = 0; first < splits; first += ATTN_FOLD) {
            uint4 got[ATTN_FOLD];
            attn_parts(b, head, first, splits, got);
            float v[ATTN_FOLD], s[ATTN_FOLD], o[2][ATTN_FOLD];
#pragma unroll
            for (uint32_t k = 0; k < ATTN_FOLD; k++) {
                const float own = __uint_as_float(got[k].y), other = __shfl_xor_sync(~0u, own, 1);
                v[k] = lane % 2 ? other : own;
                s[k] = lane % 2 ? own : other;
                o[0][k] = __uint_as_float(got[k].z);
                o[1][k] = __uint_as_float(got[k].w);
            }
            all[0].take(v, s, o[0]);
            all[1].take(v, s, o[1]);
        }
        attn_give(b, kv_head, h * NIB_HEAD_DIM + lane * 2, attn_bits(all[0].value()), attn_bits(all[1].value()));
    }
}

#define ATTN_HEAD_AT (NIB_HEAD_DIM + 4) /* from head to head: lanes do not meet in banks */

/* The state of a warp with keys: o lies where its own values lay. */
__device__ __forceinline__ void attn_keep(const attn_own &st, uint32_t warp)
{
    token_attn_room &sh = room().attn;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const float sum = quad_sum(st.sum);
    float *to = sh.o[warp][0] + t * 2 * ATTN_HEAD_AT + g;
#pragma unroll
    for (int d = 0; d < 4; d++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            to[c % 2 * ATTN_HEAD_AT + d * 16 + c / 2 * 8] = st.o[d][c];
    if (t == 0)
        sh.state[warp][g] = make_float2(st.most, sum);
}

/* Two outputs of a head: the warps' states, merged as attn_merge_warps does it. */
__device__ __forceinline__ void attn_merge(const float2 state[ATTN_KEY_WARPS], const float2 value[ATTN_KEY_WARPS], float *ret_most, float *ret_all, float2 *ret_o)
{
    float most = -INFINITY, all = 0;
    float2 o = make_float2(0, 0);
#pragma unroll
    for (int w = 0; w < ATTN_KEY_WARPS; w++)
        most = fmaxf(most, state[w].x);
#pragma unroll
    for (int w = 0; w < ATTN_KEY_WARPS; w++) {
        const float scale = exp2_fast(state[w].x - most);
        all += scale * state[w].y;
        o.x += scale * value[w].x;
        o.y += scale * value[w].y;
    }
    *ret_most = most;
    *ret_all = all;
    *ret_o = o;
}

/* The warps' states, merged, become outputs or the split's part. */
__device__ __forceinline__ void attn_leave(const token_at &b, uint32_t *to, uint32_t *clear, uint32_t splits, float sink)
{
    const token_attn_room &sh = room().attn;
    const uint32_t lane = threadIdx.x % 32;
    static_assert(ATTN_OUTPUTS == 2 && CU_ATTN_THREADS == 32 * NIB_GQA_GROUP, "a head a warp, two outputs a thread");
    const uint32_t h = threadIdx.x / 32, d = lane * 2;
    float2 state[ATTN_KEY_WARPS], value[ATTN_KEY_WARPS], o;
    float most, all;
#pragma unroll
    for (int w = 0; w < ATTN_KEY_WARPS; w++) {
        state[w] = sh.state[w][h];
        value[w] = *(const float2 *)(sh.o[w][0] + h * ATTN_HEAD_AT + d);
    }
    attn_merge(state, value, &most, &all, &o);
    if (splits == 1) {
        word_store(to, clear, pack_bf16(attn_alone(most, all, o.x, sink), attn_alone(most, all, o.y, sink)));
        return;
    }
    eight_store(to, make_uint4(b.epoch, __float_as_uint(lane % 2 ? all : most), __float_as_uint(o.x), __float_as_uint(o.y)));
}

/* What a unit reads: keys [base, last) of the row's [begin, end). */
struct attn_keys_of {
    uint32_t begin, end, base, last;

    __device__ __forceinline__ attn_keys_of(bool windowed, uint32_t split, uint32_t keys)
    {
        end = room().row.pos + 1;
        begin = windowed && end > room().m.window ? end - room().m.window : 0;
        base = windowed ? begin & ~31u : split * keys;
        last = windowed ? end : min(end, base + keys);
    }
};

__device__ __forceinline__ attn_span attn_span_of(uint32_t layer, uint32_t kv_head, const attn_keys_of &of)
{
    const struct nib_gpu_machine *m = &room().m;
    return {m, m->layer[layer].kv + (uint64_t)kv_head * PAGE_HEAD_BYTES, layer, room().row.slot, of.begin, of.end};
}

/* The keys of a warp of a unit, if it has any; its state to shared memory. */
__device__ __forceinline__ void attn_warp(const token_at &b, uint32_t kv_head, const attn_keys_of &of, uint32_t warp)
{
    const attn_span span = attn_span_of(b.layer, kv_head, of);
    const uint32_t key0 = of.base + warp * 32;
    uint4 *v = room().attn.v[warp];
    attn_own st = {};
    st.most = -1e30f;
    if (key0 < of.last) {
        attn_keys ahead;
        attn_news news;
        span.ask(key0, ahead, v);
        const uint32_t token = of.end - 1 - key0;
        attn_take_in(b, kv_head, token, news);
        attn_put_last(token, news, ahead, v);
        attn_begin(news.q, of.begin - key0, of.end - key0, ahead, v, st);
    }
    attn_keep(st, warp);
}

/* The last position's key and value to its page, if they are the unit's. By a warp without keys: 16 bytes a lane. */
__device__ __forceinline__ void attn_page_put(const token_at &b, uint32_t kv_head, const attn_keys_of &of)
{
    const uint32_t lane = threadIdx.x % 32, kv_heads = room().m.kv_heads, half = lane / 8;
    if (of.last != of.end || half > 1)
        return;
    const attn_span span = attn_span_of(b.layer, kv_head, of);
    uint4 *to = (uint4 *)span.at_key(of.end - 1) + half * kv_heads * (PAGE_HEAD_BYTES / 16) + lane % 8;
    const uint32_t *from = room().packets->qkv[b.epoch & 1] + (room().m.heads + half * kv_heads + kv_head) * (NIB_HEAD_DIM / 2) + lane % 8 * 4;
    uint4 got;
    for (uint32_t turn = 0; (got = eight_ask(from), !got.x) && !token_late(turn); turn++)
        ;
    got.x = ~got.x;
    *to = got;
}

/* Unit u of the layer. What it needs is found here and not carried along. */
__device__ __noinline__ void attn_unit(uint32_t u)
{
    const token_at b(CU_TOKEN_QKV);
    const attn_splits splits(b.layer);
    const uint32_t kv_heads = room().m.kv_heads, kv_head = u % kv_heads, split = u / kv_heads, warp = threadIdx.x / 32 - ATTN_FIRST_WARP;
    const float sink = bf16_at(room().m.layer[b.layer].sinks, kv_head * NIB_GQA_GROUP + threadIdx.x / 32) * LOG2E;
    const attn_keys_of of(b.layer % 2 == 0, split, splits.keys);
    const uint32_t h = threadIdx.x / 32, at = (kv_head * NIB_GQA_GROUP + h) * (NIB_HEAD_DIM / 2) + threadIdx.x % 32;
    uint32_t *to = splits.count > 1 ? room().packets->part[kv_head * NIB_GQA_GROUP + h][split][threadIdx.x % 32] : &room().packets->attn[b.epoch & 1][at],
             *clear = &room().packets->attn[~b.epoch & 1][at];
    asm volatile("" : "+l"(to), "+l"(clear)); /* found before q is there */
    if (warp < ATTN_KEY_WARPS)
        attn_warp(b, kv_head, of, warp);
    else if (warp == ATTN_KEY_WARPS)
        attn_page_put(b, kv_head, of);
    attn_sync();
    attn_leave(b, to, clear, splits.count, sink);
}

/* The block's units of a layer; eight warps call it. Parts are put together when it has left all of its own. */
__device__ __noinline__ void token_attention()
{
    const attn_splits splits(room().layer);
    const token_units units(room().m.kv_heads * splits.count);
    for (uint32_t u = units.first; u < units.all; u += units.step) {
        if (u != units.first)
            attn_sync(); /* values lie where the states of the unit before lie */
        attn_unit(u);
    }
    if (splits.count == 1)
        return;
    for (uint32_t u = units.first; u < units.all; u += units.step)
        attn_join(u);
}
