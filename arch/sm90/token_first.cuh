/* arch/sm90/token_first.cuh: the best expert's first stages, asked for by the courier as soon as the warp that asks for all else knows
 * which it is. */
#pragma once
#include "arch/sm90/token_order.cuh"
#include "arch/sm90/token_ring.cuh"

/* Where the matrices of a layer begin (struct token_kind): lane `matrix` knows. Of an expert's, where the first expert's begins, how long
 * one is and whose choice. */
struct feed_matrices {
    uint64_t from;
    uint32_t each, choice;

    __device__ __forceinline__ explicit feed_matrices(uint32_t layer)
    {
        const struct nib_gpu_machine &m = room().m;
        const struct nib_gpu_layer &l = m.layer[layer];
        const uint32_t lane = threadIdx.x % 32, order = CU_TOKEN_ORDER >> 4 * ((lane - CU_TOKEN_UP) & 7);
        const bool down = order & 4;
        choice = order & 3;
        each = lane < CU_TOKEN_UP ? 0
               : down             ? (uint32_t)cu_mx_bytes(m.hidden, m.intermediate)
                                  : (uint32_t)cu_mx_bytes(2 * m.intermediate, m.hidden);
        from = lane == CU_TOKEN_QKV   ? l.qkv
               : lane == CU_TOKEN_OUT ? l.out
               : down                 ? l.down
                                      : l.up;
    }
};

/* Stages of the dense matrices. */
__device__ __forceinline__ uint32_t feed_dense()
{
    return room().listed[CU_TOKEN_QKV] + room().listed[CU_TOKEN_OUT];
}

/* Of the best expert's first stages those that are asked for as soon as it is known: their places are free by then. The whole warp. */
__device__ __forceinline__ uint32_t feed_firsts(uint32_t dense)
{
    const uint32_t lane = threadIdx.x % 32, most = min((uint32_t)CU_TOKEN_AHEAD_FIRST, room().chosen[0][1]);
    const bool free = lane < most && room().ask[dense + (lane < most ? lane : 0)].after <= (int32_t)dense;
    return __popc(__ballot_sync(~0u, free)); /* `after` grows with the stage */
}

/* The first stages of the best expert, those whose places are free. What can be done beforehand is, so that they are asked for as soon as it
 * is known. A lane each. */
struct feed_first {
    uint64_t from, policy;
    uint32_t to, bytes, bar, each, count;

    __device__ __forceinline__ feed_first(uint32_t layer, uint32_t number, uint32_t dense) : policy(stream_policy())
    {
        static_assert((CU_TOKEN_ORDER & 7) == 0, "up of the best expert comes first");
        const feed_matrices of(layer);
        const uint32_t lane = threadIdx.x % 32;
        count = feed_firsts(dense);
        const token_ask a = room().ask[dense + (lane < count ? lane : 0)];
        from = __shfl_sync(~0u, of.from, CU_TOKEN_UP) + (a.offset & ~TOKEN_ASK_LOW);
        each = __shfl_sync(~0u, of.each, CU_TOKEN_UP);
        to = a.to;
        bytes = a.bytes & ~TOKEN_ASK_LOW;
        bar = smem_at(&room().full[(number + lane) % CU_TOKEN_SLOTS]);
    }

    __device__ __forceinline__ void ask(uint32_t expert) const
    {
        if (threadIdx.x % 32 < count)
            copy_bulk(to, (const void *)(from + (uint64_t)expert * each), bytes, bar, policy);
    }
};

/* The courier asks for them, since who asks for several at once waits until memory has taken the requests, and the warp that asks for all
 * else still has to choose the other experts. False: there are none. The whole warp. */
__device__ __noinline__ bool courier_first(uint32_t layer)
{
    const uint32_t dense = feed_dense();
    const feed_first first(layer, layer * room().asks + dense, dense);
    while (!bar_done(&room().best_bar, layer & 1)) /* the warp that asks ends this wait always */
        ;
    const uint32_t best = *(volatile uint32_t *)&room().best;
    if (best != TOKEN_NONE)
        first.ask(best);
    return best != TOKEN_NONE;
}

/* Stages from `number` on are the best expert's first ones: their mbarriers are told what comes. Returns how many. The whole warp. */
__device__ __forceinline__ uint32_t feed_expect(uint32_t number, uint32_t dense)
{
    const uint32_t lane = threadIdx.x % 32, count = feed_firsts(dense);
    if (lane < count)
        bulk_expect(smem_at(&room().full[(number + lane) % CU_TOKEN_SLOTS]),
                    room().ask[dense + lane].bytes & ~TOKEN_ASK_LOW);
    return count;
}

/* The layer's best expert, or none. The whole warp: what it did before is seen by who waits for this. */
__device__ __forceinline__ void feed_best(uint32_t best)
{
    if (threadIdx.x % 32 == 0) {
        *(volatile uint32_t *)&room().best = best;
        bulk_arrive_one(smem_at(&room().best_bar));
    }
}

/* All of the layer's experts. The whole warp. */
__device__ __forceinline__ void feed_chosen()
{
    if (threadIdx.x % 32 == 0)
        bulk_arrive_one(smem_at(&room().chosen_bar));
}
