/* arch/sm90/token_courier.cuh: the warp that waits for what the block needs later, while others multiply: the experts' activations and the block
 * before's sums of a cut tile come to shared memory, and the keys and values that attention reads first to the second-level cache. */
#pragma once
#include "arch/sm90/token_attn.cuh"
#include "arch/sm90/token_first.cuh"
#include "arch/sm90/token_ring.cuh"

/* What the block's first unit of a layer reads first. */
__device__ __forceinline__ void courier_keys(uint32_t layer)
{
    const attn_splits splits(layer);
    const uint32_t kv_heads = room().m.kv_heads, kv_head_bytes = kv_heads * PAGE_HEAD_BYTES;
    const token_units units(kv_heads * splits.count);
    if (units.first >= units.all)
        return;
    const attn_keys_of of(layer % 2 == 0, units.first / kv_heads, splits.keys);
    const attn_span span = attn_span_of(layer, units.first % kv_heads, of);
    const uint32_t lines = min(of.last - of.base, (uint32_t)CU_ATTN_KEYS) * 2;
    for (uint32_t i = threadIdx.x % 32; i < lines; i += 32)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(span.at_key(of.base + i / 2) + i % 2 * kv_head_bytes));
}

#define COURIER_WORDS CU_DIV_UP(CU_TOKEN_INNER / 8, 32) /* by fours: a lane's */

/* How a lane takes in its words of a choice: they are copied as they lie, looked at, and turned into values when all are there. */
struct courier {
    uint32_t lane, all, there; /* 16 bytes of a choice; those of the lane */

    __device__ __forceinline__ courier()
        : lane(threadIdx.x % 32), all(room().m.intermediate / 8), there(lane < all ? (all - lane - 1) / 32 + 1 : 0)
    {
    }

    __device__ __forceinline__ void ask(uint32_t to, const uint32_t *from, bool asks) const
    {
#pragma unroll
        for (uint32_t i = 0; i < COURIER_WORDS; i++)
            if (asks && i < there)
                copy16(to + i * 512, from + i * 128, true);
        copy_commit();
    }

    /* What has come, if it is all. */
    __device__ __forceinline__ bool take(uint32_t to) const
    {
        uint4 got[COURIER_WORDS];
        bool good = true;
#pragma unroll
        for (uint32_t i = 0; i < COURIER_WORDS; i++) {
            got[i] = make_uint4(1, 1, 1, 1);
            if (i < there)
                got[i] = lds16(to + i * 512);
        }
#pragma unroll
        for (uint32_t i = 0; i < COURIER_WORDS; i++)
            good &= words_there(got[i]);
        if (!good)
            return false;
#pragma unroll
        for (uint32_t i = 0; i < COURIER_WORDS; i++)
            if (i < there)
                sts16(to + i * 512, words_value(got[i]));
        return true;
    }
};

/* The activations of the experts, choice by choice, which lie in whole units. A lane first looks for its last words of the first choice: when they are
 * there, the block needs no more what else lies here. Those of a choice are asked for before the choice before is looked at, and again
 * by the lanes that miss some: what has long been there takes no trip to memory of its own. */
__device__ __forceinline__ void courier_gated(uint32_t epoch)
{
    const courier c;
    const uint32_t row = cu_mx_units(room().m.intermediate) * (CU_MX_UNIT / 8); /* in 16 bytes */
    const uint32_t *from = room().packets->gated[epoch & 1] + c.lane * 4;
    uint32_t to = smem_at(room().gated) + c.lane * 16;
    uint4 look[1];
    words_get<1>(min(c.there, 1u), look, [&](uint32_t) { return from + (c.there - 1) * 128; });
    __syncwarp();
    c.ask(to, from, true);
#pragma unroll 1
    for (uint32_t choice = 0; choice < NIB_MAX_EXPERTS_USED; choice++, from += c.all * 4, to += row * 16) {
        c.ask(to + row * 16, from + c.all * 4, choice + 1 < NIB_MAX_EXPERTS_USED);
        copy_wait<1>();
        bool good = false;
        for (uint32_t turn = 0;; turn++) {
            if (!good)
                good = c.take(to);
            if (__all_sync(~0u, good || token_late(turn)))
                break;
            c.ask(to, from, !good);
            copy_wait<0>();
        }
        if (row > c.all && c.lane < row - c.all)
            sts16(to + c.all * 16, make_uint4(0, 0, 0, 0));
        bulk_arrive(smem_at(&room().gated_bar[choice]));
    }
}

/* What the block before has of a tile that this one ends. Whoever ends it may not have to wait for memory. */
__device__ __noinline__ void courier_cut(enum cu_token_op op, int which, uint32_t per, uint32_t layer)
{
    const uint32_t lane = threadIdx.x % 32, wants = room().share[op].lo % per ? (which == CUT_DOWN ? 2 : 1) * CU_TILE : 0;
    if (lane < wants)
        room().cut[lane] = __uint_as_float(packet_get(&room().packets->cut[which][blockIdx.x - 1][lane], room().epoch + layer));
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_at(&room().cut_bar[which])) : "memory");
}

__device__ __noinline__ void token_courier()
{
#pragma unroll 1
    for (uint32_t layer = 0; layer < room().m.layers; layer++) {
        courier_keys(layer);
        courier_cut(CU_TOKEN_QKV, CUT_QKV, CU_GEMV_WARPS, layer);
        courier_cut(CU_TOKEN_OUT, CUT_OUT, CU_OUT_WARPS, layer);
        if (!courier_first(layer))
            return;
        courier_gated(room().epoch + layer);
        courier_cut(CU_TOKEN_DOWN, CUT_DOWN, 2 * NIB_MAX_EXPERTS_USED, layer);
    }
}
