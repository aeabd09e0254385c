/* arch/sm90/token_courier.cuh: the warp that waits for what the block needs later, while others multiply: the experts' activations
 * come to shared memory, and the keys and values that attention reads first to the second-level cache. */
#pragma once
#include "arch/sm90/token_attn.cuh"
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

/* The activations of the experts, choice by choice, which lie in whole units. A lane first looks for its last words of a choice, till much of it is
 * likely there, then asks for all of them; with these it asks for its last words of the next choice, so that a choice takes one trip to memory
 * when it has long been there. */
__device__ __forceinline__ void courier_gated(uint32_t epoch)
{
    const uint32_t lane = threadIdx.x % 32, all = room().m.intermediate / 8;
    const uint32_t row = cu_mx_units(room().m.intermediate) * (CU_MX_UNIT / 8); /* in 16 bytes */
    const uint32_t *from = room().packets->gated[epoch & 1] + lane * 4;
    const uint32_t there = lane < all ? (all - lane - 1) / 32 + 1 : 0;
    bool seen = false; /* the last words of this choice */
#pragma unroll 1
    for (uint32_t choice = 0; choice < NIB_MAX_EXPERTS_USED; choice++, from += all * 4) {
        uint4 *to = room().gated + choice * row, got[COURIER_WORDS];
        const bool more = choice + 1 < NIB_MAX_EXPERTS_USED;
        if (!seen)
            words_get<1>(min(there, 1u), got, [&](uint32_t) { return from + (there - 1) * 128; });
        seen = words_also<COURIER_WORDS>(
            there, got, [&](uint32_t i) { return from + i * 128; }, more && there, from + (all + (there - 1) * 32) * 4);
#pragma unroll
        for (uint32_t i = 0; i < COURIER_WORDS; i++)
            if (i < there)
                to[lane + i * 32] = got[i];
        if (row > all && lane < row - all)
            to[all + lane] = make_uint4(0, 0, 0, 0);
        __syncwarp();
        if (lane == 0)
            asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_at(&room().gated_bar[choice])) : "memory");
    }
}

__device__ __noinline__ void token_courier()
{
#pragma unroll 1
    for (uint32_t layer = 0; layer < room().m.layers; layer++) {
        courier_keys(layer);
        courier_gated(room().epoch + layer);
    }
}
