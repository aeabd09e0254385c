/* arch/sm90/token_feed.cuh: the warp that asks for a step's weights, layer by layer in the order in which they are multiplied. Only
 * the experts' places must be waited for: this warp puts the router's sums together and chooses, in every block alike. */
#pragma once
#include "arch/cuda/route.cuh"
#include "arch/sm90/token_first.cuh"
#include "arch/sm90/token_packet.cuh"
#include "arch/sm90/token_ring.cuh"

/* The layer's experts and their weights, to shared memory; returns the lane's choice. The experts' first stages are asked for meanwhile; the layer's
 * first stage has the number `base`. The whole warp. */
template <int EACH> __device__ __noinline__ uint32_t feed_choose(uint32_t layer, uint32_t base)
{
    const uint32_t lane = threadIdx.x % 32, experts = room().m.experts, used = room().m.experts_used;
    const uint32_t mine = lane < experts ? (experts - lane - 1) / 32 + 1 : 0;
    float value[NIB_MAX_EXPERTS / 32] = {0}, bias[EACH], weight;
    uint64_t sum[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++)
        bias[i] = i < mine ? bf16_at(room().m.layer[layer].router_bias, lane + 32 * i) : 0;
    const uint32_t epoch = room().epoch + layer, tiles = cu_tiles(room().m.hidden);
    uint64_t *from = room().packets->routed[epoch & 1] + lane, *other = room().packets->routed[~epoch & 1] + lane;
    const uint32_t dense = feed_dense(), firsts = feed_expect(base + dense, dense);
    sums_get<EACH>(mine, tiles, sum, from);
    (void)bar_wait(&room().scale_bar, layer & 1);
    const float scale = room().scale;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        value[i] = i < mine ? route_logit((int64_t)sum[i] >> 8, scale, bias[i]) : 0;
        if (i < mine && blockIdx.x == 0) /* all blocks have read the layer before's */
            sum_clear(other + i * 32);
    }
    __syncwarp();
    auto best_known = [&](const uint32_t *best) { feed_best(min(*best, experts - 1)); };
    const uint32_t chosen = min(route_choose(experts, used, value, &weight, best_known), experts - 1);
    if (lane < used) {
        room().expert[lane] = chosen;
        room().weight[lane] = weight;
    }
    room().asked = base + dense + firsts;
    __syncwarp();
    return chosen;
}

/* Asks for the layer's stages [i, end), the first `now` of them at once as soon as their places are free, the others `step` at a time, then waits
 * until stages below `read` were read; `base`: number of the layer's first stage; `mine`: the matrix that the lane knows. The whole warp, each
 * lane with a stage of 32. False: a wait was in vain. */
__device__ __noinline__ bool feed_stages(uint64_t mine, uint32_t base, uint32_t i, uint32_t end, uint32_t now,
                                         uint32_t step, uint32_t read)
{
    const uint32_t lane = threadIdx.x % 32;
    token_feed feed;
    for (; i < end; i += 32) {
        const token_ask a = room().ask[min(i + lane, end - 1)];
        const uint64_t from = __shfl_sync(~0u, mine, a.offset & TOKEN_ASK_LOW) + (a.offset & ~TOKEN_ASK_LOW);
        const uint32_t bytes = a.bytes & ~TOKEN_ASK_LOW, own = base + i + lane,
                       landed = own - (a.bytes & TOKEN_ASK_LOW);
#pragma unroll 1
        for (uint32_t k = 0, next; k < min(end - i, 32u); k = next, now = 0) {
            next = now ? now : min(k + step, min(end - i, 32u));
            const uint32_t after = __shfl_sync(~0u, (uint32_t)a.after, next - 1), behind = __shfl_sync(~0u, landed, next - 1);
            if (!feed.wait(base + after, now ? TOKEN_NONE : behind)) {
                feed.leave(base + i + k);
                return false;
            }
            if (k <= lane && lane < next)
                feed.ask(own, from, a.to, bytes);
        }
    }
    const bool good = feed.wait(read, TOKEN_NONE);
    feed.leave(base + end);
    return good;
}

/* Of the first matrix as much as the empty ring holds, asked for before the step is known. The warp that asks for weights; it learns how
 * many stages these are. */
__device__ __noinline__ uint32_t token_feed_early()
{
    const uint32_t lane = threadIdx.x % 32;
    const bool free = lane < room().listed[CU_TOKEN_QKV] && room().ask[lane].after <= 0;
    const uint32_t n = __popc(__ballot_sync(~0u, free)); /* `after` grows with the stage */
    (void)feed_stages(room().m.layer[0].qkv, 0, 0, n, n, 1, 0);
    return n;
}

/* Asks for everything; `early` stages of the first matrix were asked for. The whole warp. A step without work: waits only until these
 * have come. */
template <class Form> __device__ __noinline__ void token_feeder(bool works, uint32_t early)
{
    const uint32_t dense = feed_dense(), qkv = room().listed[CU_TOKEN_QKV], asks = room().asks,
                   held = early; /* so many of QKV does the ring hold */
    bool good = true;
    uint32_t base = 0;
    if (!works) {
        for (uint32_t i = 0; i < early; i++)
            (void)bar_wait(&room().full[i], 0);
        return;
    }
#pragma unroll 1
    for (uint32_t layer = 0; layer < room().m.layers; layer++, base += asks, early = 0) {
        const feed_matrices matrices(layer);
        good = good && feed_stages(matrices.from, base, early, held, 0, Form::step_qkv, 0) &&
               feed_stages(matrices.from, base, held, qkv, qkv - held, 1, 0) && /* needed at once */
               feed_stages(matrices.from, base, qkv, dense, 0, 1,
                           base + dense); /* read before the router's sums can be there */
        if (!good) {
            feed_best(TOKEN_NONE);
            break;
        }
        const uint32_t chosen =
            room().m.experts <= 32 ? feed_choose<1>(layer, base) : feed_choose<NIB_MAX_EXPERTS / 32>(layer, base);
        const uint64_t from = matrices.from + (uint64_t)__shfl_sync(~0u, chosen, matrices.choice) * matrices.each;
        feed_chosen();
        good = feed_stages(from, base, room().asked - base, asks, 0, 2, base + dense);
    }
    token_feed().close();
}
