/* arch/sm90/token_attn.cuh: attention of the fused decode kernel. The work is (KV head, split of the keys), as in the attn kernel and
 * with its arithmetic; a few blocks have one such unit each, in long contexts all have some. Eight warps of a block do it, five of
 * them with keys, while the ring fills with the next matrix. Keys but the last are asked for before q is there. A split's part goes to the
 * units of the same KV head as packets; each puts some heads together. */
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

/* q of the unit's heads to shared memory; the new key and value to their page, by the unit that reads them. */
__device__ __forceinline__ void attn_take_in(const token_at &b, const attn_span &span, uint32_t kv_head, bool has_last)
{
    const struct nib_gpu_machine *m = &room().m;
    const uint32_t tid = threadIdx.x, group = NIB_GQA_GROUP * NIB_HEAD_DIM;
    const uint32_t k_at = (m->heads + kv_head) * NIB_HEAD_DIM, v_at = k_at + m->kv_heads * NIB_HEAD_DIM;
    uint32_t got[2][2];
    if (tid < NIB_GQA_GROUP)
        room().attn.sink[tid] = bf16_at(m->layer[b.layer].sinks, kv_head * NIB_GQA_GROUP + tid) * LOG2E;
    static_assert(NIB_GQA_GROUP * NIB_HEAD_DIM == 2 * CU_ATTN_THREADS, "a pair of q a thread");
    const uint32_t count = has_last && tid < NIB_HEAD_DIM ? 2 : 1; /* the first threads: a pair of k or v, too */
    uint8_t *key = NULL; /* where it goes: found while q is on its way */
    if (count == 2)
        key = (uint8_t *)span.at_key(span.end - 1) + (tid < NIB_HEAD_DIM / 2 ? 0 : (uint64_t)m->kv_heads * PAGE_HEAD_BYTES);
    packets_get<2>(count, b.epoch, got, [&](uint32_t i) {
        const uint32_t kv = (tid < NIB_HEAD_DIM / 2 ? k_at : v_at) + tid % (NIB_HEAD_DIM / 2) * 2;
        return room().packets->qkv + (i == 0 ? kv_head * group + tid * 2 : kv);
    });
    ((uint32_t *)room().attn.q)[tid] = got[0][0] | got[0][1] << 16;
    if (count == 2)
        ((uint32_t *)room().attn.last_key)[tid] = got[1][0] | got[1][1] << 16;
    attn_sync();
    if (count == 2)
        ((uint32_t *)key)[tid % (NIB_HEAD_DIM / 2)] = got[1][0] | got[1][1] << 16;
}

/* The last position's key and value, where they are among those asked for: what was there before is replaced. */
__device__ __forceinline__ void attn_put_last(const token_attn_room &sh, uint32_t token, attn_keys &keys, uint4 *v)
{
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    if (token >= 32)
        return;
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (n * 8 + g == token)
                keys.key[n][half] = sh.last_key[half * 4 + t];
    copy_wait<0>(); /* nor may an earlier copy come later */
    __syncwarp();
    if (lane < 8)
        v[token * 8 + (lane ^ token % 8)] = sh.last_key[8 + lane];
    __syncwarp();
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

/* Where a head's part of a split lies. */
__device__ __forceinline__ cu_packet *attn_packets(uint32_t head, uint32_t split)
{
    return room().packets->part[head][split];
}

/* The heads [first, end) of a group that the unit of this split puts together: each split some. */
__device__ __forceinline__ uint32_t attn_first_head(uint32_t split, uint32_t splits)
{
    return CU_DIV_UP(split * NIB_GQA_GROUP, splits);
}

/* Puts the splits' parts of such heads together, as attn_finish does. */
__device__ __noinline__ void attn_join(uint32_t kv_head, uint32_t split, uint32_t splits)
{
    const token_at b(CU_TOKEN_QKV);
    const uint32_t d = threadIdx.x % NIB_HEAD_DIM, end = attn_first_head(split + 1, splits);
#pragma unroll 1
    for (uint32_t h = attn_first_head(split, splits) + threadIdx.x / NIB_HEAD_DIM; h < end; h += CU_ATTN_THREADS / NIB_HEAD_DIM) {
        const uint32_t head = kv_head * NIB_GQA_GROUP + h;
        const float sink = bf16_at(room().m.layer[b.layer].sinks, head) * LOG2E;
        attn_fold all(sink);
        for (uint32_t first = 0; first < splits; first += ATTN_FOLD) {
            const uint32_t there = min(splits - first, (uint32_t)ATTN_FOLD);
            uint32_t got[3 * ATTN_FOLD];
            packets_each<3 * ATTN_FOLD>(3 * there, b.epoch, got, [&](uint32_t i) {
                return attn_packets(head, first + i / 3) + (i % 3 < 2 ? i % 3 : 2 + d);
            });
            float v[ATTN_FOLD], s[ATTN_FOLD], w[ATTN_FOLD];
#pragma unroll
            for (uint32_t k = 0; k < ATTN_FOLD; k++) {
                v[k] = k < there ? __uint_as_float(got[3 * k]) : -INFINITY;
                s[k] = k < there ? __uint_as_float(got[3 * k + 1]) : 0;
                w[k] = k < there ? __uint_as_float(got[3 * k + 2]) : 0;
            }
            all.take(v, s, w);
        }
        const uint32_t bits = attn_bits(all.value()), next = __shfl_down_sync(~0u, bits, 1);
        if (d % 2 == 0)
            attn_give(b, kv_head, h * NIB_HEAD_DIM + d, bits, next);
    }
}

/* The warps' states, merged, become outputs or the split's part. */
__device__ __forceinline__ void attn_leave(const token_at &b, const attn_state &st, uint32_t kv_head, uint32_t split,
                                           uint32_t splits)
{
    token_attn_room &sh = room().attn;
    attn_put_state(sh, st); /* o lies where the warp's own values lay */
    attn_sync();
    static_assert(ATTN_OUTPUTS == 2 && CU_ATTN_THREADS == 32 * NIB_GQA_GROUP, "a head a warp, two outputs a thread");
    const uint32_t h = threadIdx.x / 32, d = threadIdx.x % 32 * 2;
    float most, all, o[2];
    attn_merge_warps(sh, h, d, &most, &all, &o[0]);
    attn_merge_warps(sh, h, d + 1, &most, &all, &o[1]); /* the same but for o */
    if (splits == 1) {
        const float sink = sh.sink[h];
        attn_give(b, kv_head, h * NIB_HEAD_DIM + d, attn_bits(attn_alone(most, all, o[0], sink)), attn_bits(attn_alone(most, all, o[1], sink)));
        return;
    }
    cu_packet *part = attn_packets(kv_head * NIB_GQA_GROUP + h, split);
    if (d == 0) {
        packet_put(part, __float_as_uint(most), b.epoch);
        packet_put(part + 1, __float_as_uint(all), b.epoch);
    }
    packet_put(part + 2 + d, __float_as_uint(o[0]), b.epoch);
    packet_put(part + 2 + d + 1, __float_as_uint(o[1]), b.epoch);
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

__device__ __forceinline__ void attn_unit(const token_at &b, uint32_t kv_head, uint32_t split, uint32_t splits,
                                          uint32_t keys)
{
    const struct nib_gpu_machine *m = &room().m;
    token_attn_room &sh = room().attn;
    const attn_keys_of of(b.layer % 2 == 0, split, keys);
    const uint32_t end = of.end, last = of.last, warp = threadIdx.x / 32;
    const attn_span span = attn_span_of(b.layer, kv_head, of);
    uint32_t key0 = attn_first_key(of.base);
    attn_keys ahead;
    if (key0 < last)
        span.ask(key0, ahead, sh.v[warp]);
    attn_take_in(b, span, kv_head, split + 1 == splits);
    uint4 q[2][2];
    attn_query(sh.q, NULL, q);
    if (key0 < last && last == end)
        attn_put_last(sh, end - 1 - key0, ahead, sh.v[warp]);
    attn_state st;
    attn_clear(st, -1e30f, -1e30f);
    for (bool asked = true; key0 < last; key0 += CU_ATTN_KEYS, asked = false) {
        if (!asked) {
            span.ask(key0, ahead, sh.v[warp]);
            if (last == end)
                attn_put_last(sh, end - 1 - key0, ahead, sh.v[warp]);
        }
        attn_step(span, q, key0, ahead, sh.v[warp], st);
    }

    attn_leave(b, st, kv_head, split, splits);
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

/* The block's units of a layer; eight warps call it. Parts are put together when it has left all of its own. */
__device__ __noinline__ void token_attention()
{
    const token_at b(CU_TOKEN_QKV);
    const attn_splits splits(b.layer);
    const uint32_t kv_heads = room().m.kv_heads;
    const token_units units(kv_heads * splits.count);
    for (uint32_t u = units.first; u < units.all; u += units.step) {
        attn_unit(b, u % kv_heads, u / kv_heads, splits.count, splits.keys);
        attn_sync(); /* the next one's sinks */
    }
    if (splits.count == 1)
        return;
    for (uint32_t u = units.first; u < units.all; u += units.step)
        attn_join(u % kv_heads, u / kv_heads, splits.count);
}
