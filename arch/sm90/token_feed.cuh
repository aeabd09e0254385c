/* arch/sm90/token_feed.cuh: the warp that asks for a step's weights, layer by layer in the order in which they are multiplied. Only
 * the experts' places must be waited for: this warp puts the router's sums together and chooses, in every block alike. */
#pragma once
#include "arch/cuda/route.cuh"
#include "arch/sm90/token_packet.cuh"
#include "arch/sm90/token_ring.cuh"

/* Where a stage of a layer lies. */
__device__ __forceinline__ const uint8_t *feed_from(enum cu_token_op op, const struct nib_gpu_layer &l,
                                                    const struct cu_token_stage &s)
{
    const struct nib_gpu_machine &m = room().m;
    if (op <= CU_TOKEN_ROUTER)
        return at<const uint8_t>(op == CU_TOKEN_QKV ? l.qkv : op == CU_TOKEN_OUT ? l.out : l.router, s.offset);
    const uint64_t expert = room().expert[s.choice];
    if (op == CU_TOKEN_UP)
        return at<const uint8_t>(l.up, expert * cu_mx_bytes(2 * m.intermediate, m.hidden) + s.offset);
    return at<const uint8_t>(l.down, expert * cu_mx_bytes(m.hidden, m.intermediate) + s.offset);
}

/* Asks for stages [first, end) of an op. The warp finds them together, a lane a stage. */
__device__ __forceinline__ void feed_op(token_feed &feed, enum cu_token_op op, uint32_t layer, uint32_t first,
                                        uint32_t end)
{
    static_assert(CU_TOKEN_LIST == 32, "a lane a stage");
    const struct cu_token_stage s = room().list[op][threadIdx.x % 32];
    const uint64_t from = (uint64_t)feed_from(op, room().m.layer[layer], s);
    const uint32_t bytes = s.units * (op <= CU_TOKEN_ROUTER ? CU_DENSE_BYTES : CU_MX_BYTES);
#pragma unroll 1
    for (uint32_t i = first; i < end; i++)
        feed.push(__shfl_sync(~0u, from, i), __shfl_sync(~0u, bytes, i));
}

/* The layer's experts and their weights, to shared memory. The whole warp. */
__device__ __noinline__ void feed_choose(uint32_t layer, uint32_t epoch)
{
    enum { EACH = NIB_MAX_EXPERTS / 32, PARTS = CU_TOKEN_ROUTE_PARTS };
    const uint32_t lane = threadIdx.x % 32, experts = room().m.experts, used = room().m.experts_used;
    const uint32_t mine = lane < experts ? (experts - lane - 1) / 32 + 1 : 0;
    float value[EACH], bias[EACH], weight;
    uint32_t part[EACH * PARTS];
#pragma unroll
    for (int i = 0; i < EACH; i++)
        bias[i] = i < mine ? bf16_at(room().m.layer[layer].router_bias, lane + 32 * i) : 0;
    const struct cu_token *t = room().packets;
    packets_each<EACH * PARTS>(mine * PARTS, epoch, part, [&](uint32_t i) {
        const uint32_t e = lane + i / PARTS * 32;
        return &t->logits[e / CU_TILE][i % PARTS][e % CU_TILE];
    });
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        float sum = __uint_as_float(part[i * PARTS]);
#pragma unroll
        for (int p = 1; p < PARTS; p++)
            sum += __uint_as_float(part[i * PARTS + p]);
        value[i] = i < mine ? sum + bias[i] : 0;
    }
    __syncwarp();
    const uint32_t chosen = min(route_choose(experts, used, value, &weight), experts - 1);
    if (lane < used) {
        room().expert[lane] = chosen;
        room().weight[lane] = weight;
    }
    __syncwarp();
}

/* Stages that surely fit the empty ring: asked for before the step is known. */
__device__ __forceinline__ uint32_t feed_early()
{
    return min(min(room().listed[CU_TOKEN_QKV], room().ring_bytes / CU_TOKEN_STAGE - 1), (uint32_t)CU_TOKEN_SLOTS);
}

/* What the layer reads besides, to the cache: each block a part. */
__device__ __forceinline__ void feed_small(uint32_t layer)
{
    const struct nib_gpu_machine &m = room().m;
    const struct nib_gpu_layer &l = m.layer[layer];
    const uint32_t lane = threadIdx.x % 32, qkv = (m.heads + 2 * m.kv_heads) * NIB_HEAD_DIM * 2;
    const nib_gpu_ptr from = lane == 1 ? l.attn_norm : lane == 2 ? l.out_bias : lane == 3 ? l.mlp_norm : l.qkv_bias;
    const uint32_t bytes = lane == 0 || lane > 4 ? 0 : lane == 4 ? qkv : m.hidden * 2;
    for (uint32_t line = blockIdx.x * 128; line < bytes; line += gridDim.x * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + line));
}

/* Brings stages of a dense op that the ring cannot hold to the cache: a lane a stage. */
__device__ __forceinline__ void feed_ahead(enum cu_token_op op, uint32_t layer)
{
    const uint32_t lane = threadIdx.x % 32,
                   first = room().ring_bytes / (max(room().list[op][0].units, 1u) * CU_DENSE_BYTES);
    const struct cu_token_stage s = room().list[op][lane];
    if (lane >= first && lane < room().listed[op] && s.units)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(feed_from(op, room().m.layer[layer], s)),
                     "r"(s.units * CU_DENSE_BYTES)
                     : "memory");
}

/* Asks for everything; `early` stages of the first matrix were asked for. The whole warp. */
__device__ __forceinline__ void token_feed_step(token_feed &feed, uint32_t early, uint32_t epoch)
{
    const uint32_t layers = room().m.layers;
    for (uint32_t layer = 0; layer < layers; layer++, epoch++) {
        feed_small(layer);
        feed_op(feed, CU_TOKEN_QKV, layer, layer == 0 ? early : 0, room().listed[CU_TOKEN_QKV]);
        feed_ahead(CU_TOKEN_OUT, layer);
        feed_op(feed, CU_TOKEN_OUT, layer, 0, room().listed[CU_TOKEN_OUT]);
        feed_op(feed, CU_TOKEN_ROUTER, layer, 0, room().listed[CU_TOKEN_ROUTER]);
        if (layer + 1 < layers)
            feed_ahead(CU_TOKEN_QKV, layer + 1);
        feed_choose(layer, epoch);
#pragma unroll 1
        for (uint32_t order = CU_TOKEN_ORDER, i = 0; i < CU_TOKEN_PHASES; i++, order >>= 4) {
            const uint32_t down = order >> 2 & 1, *first = &room().chosen[down][order & 3];
            feed_op(feed, down ? CU_TOKEN_DOWN : CU_TOKEN_UP, layer, first[0], first[1]);
        }
    }
    feed.close();
}
