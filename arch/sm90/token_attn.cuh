/* arch/sm90/token_attn.cuh: attention of the fused decode kernel. The work is (KV head, split of the keys), as in the attn kernel and
 * with its arithmetic; a few blocks have one such unit each, in long contexts all have some. Eight warps of a block do it, while
 * the ring fills with the next matrix. Keys but the last are asked for before q is there. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/sm90/token_packet.cuh"

#define ATTN_WARPS (CU_ATTN_THREADS / 32)

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
    packets_get<2>(count, b.epoch, got, [&](uint32_t i) {
        const uint32_t kv = (tid < NIB_HEAD_DIM / 2 ? k_at : v_at) + tid % (NIB_HEAD_DIM / 2) * 2;
        return room().packets->qkv + (i == 0 ? kv_head * group + tid * 2 : kv);
    });
    ((uint32_t *)room().attn.q)[tid] = got[0][0] | got[0][1] << 16;
    if (count == 2)
        ((uint32_t *)room().attn.last_key)[tid] = got[1][0] | got[1][1] << 16;
    attn_sync();
    if (count == 2) {
        uint8_t *key = (uint8_t *)span.at_key(span.end - 1) +
                       (tid < NIB_HEAD_DIM / 2 ? 0 : (uint64_t)m->kv_heads * PAGE_HEAD_BYTES);
        ((uint32_t *)key)[tid % (NIB_HEAD_DIM / 2)] = got[1][0] | got[1][1] << 16;
    }
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

/* Of output i of the head group. */
__device__ __forceinline__ float sink_of(uint32_t i)
{
    return room().attn.sink[i / NIB_HEAD_DIM];
}

/* Two outputs of this head group, dims d and d + 1 of neighbouring threads, as a packet. */
__device__ __forceinline__ void attn_give(const token_at &b, uint32_t kv_head, uint32_t i, float value)
{
    const uint32_t bits = __bfloat16_as_ushort(__float2bfloat16(value)), next = __shfl_down_sync(~0u, bits, 1);
    if (i % 2 == 0)
        packet_put(room().packets->attn + (kv_head * NIB_GQA_GROUP * NIB_HEAD_DIM + i) / 2, bits | next << 16, b.epoch);
}

/* The split's part of an output to `partial`; the unit that is last of its head puts the parts together. */
__device__ __forceinline__ void attn_join(const token_at &b, uint32_t kv_head, uint32_t splits)
{
    const struct nib_gpu_machine *m = &room().m;
    uint32_t *arrived = &at<struct cu_scratch>(m->scratch)->attn[kv_head];
    if (threadIdx.x == 0) {
        __threadfence();
        room().attn.last = atomicAdd(arrived, 1u) + 1 == splits;
        __threadfence();
    }
    attn_sync();
    if (!room().attn.last)
        return;
    if (threadIdx.x == 0)
        *arrived = 0;
#pragma unroll 1
    for (uint32_t k = 0; k < ATTN_OUTPUTS; k++) {
        const uint32_t i = threadIdx.x + k * CU_ATTN_THREADS, head = kv_head * NIB_GQA_GROUP + i / NIB_HEAD_DIM;
        attn_give(b, kv_head, i, attn_finish(m, 0, head, i % NIB_HEAD_DIM, splits, sink_of(i)));
    }
}

/* The warps' states, merged, become outputs or the split's part. */
__device__ __forceinline__ void attn_leave(const token_at &b, const attn_state &st, uint32_t kv_head, uint32_t split,
                                           uint32_t splits)
{
    token_attn_room &sh = room().attn;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float sum = quad_sum(st.sum[0]);
    attn_sync(); /* o lies where the values lay */
    if (lane % 4 == 0) {
        sh.max[warp][lane / 4] = st.max[0];
        sh.sum[warp][lane / 4] = sum;
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
        *(float2 *)&sh.o[warp][lane / 4][n * 8 + lane % 4 * 2] = make_float2(st.o[n][0], st.o[n][1]);
    attn_sync();
#pragma unroll 1
    for (uint32_t k = 0; k < ATTN_OUTPUTS; k++) {
        const uint32_t i = threadIdx.x + k * CU_ATTN_THREADS, h = i / NIB_HEAD_DIM, d = i % NIB_HEAD_DIM;
        float most, all, o;
        attn_merge_warps(sh, h, d, &most, &all, &o);
        if (splits == 1) {
            attn_give(b, kv_head, i, attn_alone(most, all, o, sink_of(i)));
            continue;
        }
        float *part = attn_part(&room().m, 0, kv_head * NIB_GQA_GROUP + h, split);
        if (d == 0) {
            part[0] = most;
            part[1] = all;
        }
        part[2 + d] = o;
    }
    attn_sync();
    if (splits > 1)
        attn_join(b, kv_head, splits);
}

__device__ __forceinline__ void attn_unit(const token_at &b, uint32_t kv_head, uint32_t split, uint32_t splits,
                                          uint32_t keys)
{
    const struct nib_gpu_machine *m = &room().m;
    token_attn_room &sh = room().attn;
    const bool windowed = b.layer % 2 == 0;
    const uint32_t end = room().row.pos + 1, begin = windowed && end > m->window ? end - m->window : 0,
                   warp = threadIdx.x / 32;
    const attn_span span = {
        m, room().m.layer[b.layer].kv + (uint64_t)kv_head * PAGE_HEAD_BYTES, b.layer, room().row.slot, begin, end};
    const uint32_t base = windowed ? begin & ~31u : split * keys, last = windowed ? end : min(end, base + keys);
    uint32_t key0 = base + warp * 32;
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

/* The block's units of a layer; eight warps call it. */
__device__ __noinline__ void token_attention(const token_at b)
{
    const bool windowed = b.layer % 2 == 0;
    const uint32_t keys = windowed ? ~0u : cu_split_keys(room().row.pos),
                   splits = windowed ? 1 : room().row.pos / keys + 1;
    const uint32_t kv_heads = room().m.kv_heads;
    const token_units units(kv_heads * splits);
    for (uint32_t u = units.first; u < units.all; u += units.step) {
        attn_unit(b, u % kv_heads, u / kv_heads, splits, keys);
        attn_sync(); /* the next one's sinks */
    }
}
