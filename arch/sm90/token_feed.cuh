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
    enum { PARTS = CU_TOKEN_ROUTE_PARTS };
    const uint32_t lane = threadIdx.x % 32, experts = room().m.experts, used = room().m.experts_used;
    const uint32_t mine = lane < experts ? (experts - lane - 1) / 32 + 1 : 0;
    float value[NIB_MAX_EXPERTS / 32] = {0}, bias[EACH], weight;
    uint32_t part[EACH * PARTS];
#pragma unroll
    for (int i = 0; i < EACH; i++)
        bias[i] = i < mine ? bf16_at(room().m.layer[layer].router_bias, lane + 32 * i) : 0;
    const struct cu_token *t = room().packets;
    const uint32_t dense = feed_dense(), firsts = feed_expect(base + dense, dense);
    packets_each<EACH * PARTS>(mine * PARTS, room().epoch + layer, part, [&](uint32_t i) {
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

/* Biases come to shared memory before what is streamed meanwhile: a plain load would wait behind it. All lanes: this one's copies make
 * its arrival at the mbarrier. */
__device__ __forceinline__ void bias_arrive(uint64_t *bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem_at(bar)) : "memory");
}

__device__ __forceinline__ void bias_copy(void *to, nib_gpu_ptr from)
{
    copy16(smem_at(to), (const void *)from, true);
}

/* The chosen experts' biases: the lower lanes a tile of up each, the upper ones a choice of a tile of down. */
__device__ __forceinline__ void feed_biases(uint32_t layer)
{
    const struct nib_gpu_machine &m = room().m;
    const uint32_t lane = threadIdx.x % 32, of = lane % 16, c = of % NIB_MAX_EXPERTS_USED;
    const struct cu_share share = room().share[CU_TOKEN_DOWN];
    const uint32_t per = 2 * NIB_MAX_EXPERTS_USED, t = of / NIB_MAX_EXPERTS_USED, tile = share.lo / per + t;
    static_assert(CU_TOKEN_TILES == 16, "half a warp");
    if (lane < 16 && 2 * of < room().listed[CU_TOKEN_UP]) {
        const struct cu_token_stage s = room().list[CU_TOKEN_UP][2 * of];
        const nib_gpu_ptr from =
            m.layer[layer].up_bias + ((uint64_t)room().expert[s.choice] * m.intermediate + s.tile * 8) * 4;
        bias_copy(room().up_bias[of], from);
        bias_copy(room().up_bias[of] + 4, from + 16);
    }
    if (lane >= 16 && tile * per < share.hi) {
        const nib_gpu_ptr from =
            m.layer[layer].down_bias + ((uint64_t)room().expert[c] * m.hidden + tile * CU_TILE) * 2;
        bias_copy(room().down_bias[t][c], from);
        bias_copy(room().down_bias[t][c] + 8, from + 16);
    }
    bias_arrive(&room().bias_bar[1]);
}

/* Those of QKV and OUT: eight rows a lane, as done_qkv and done_out want them. */
__device__ __forceinline__ void feed_dense_biases(uint32_t layer)
{
    const struct nib_gpu_layer &l = room().m.layer[layer];
    const uint32_t lane = threadIdx.x % 32, out = lane / 16, half = lane % 2, t = lane % 16 / 2;
    const uint32_t per = out ? CU_OUT_WARPS : CU_GEMV_WARPS;
    const struct cu_share share = room().share[out ? CU_TOKEN_OUT : CU_TOKEN_QKV];
    const uint32_t tile = share.lo / per + t;
    static_assert(CU_TOKEN_DENSE == 8, "half a warp");
    if (tile * per < share.hi)
        bias_copy(room().dense_bias[out][t] + half * 8,
                  out ? l.out_bias + (tile * CU_TILE + half * 8) * 2
                      : l.qkv_bias + (tile / 4 * NIB_HEAD_DIM + tile % 4 * 8 + half * 32) * 2);
    bias_arrive(&room().bias_bar[0]);
}

/* What the layer reads besides, to the cache: each block a part. */
__device__ __forceinline__ void feed_small(uint32_t layer)
{
    const struct nib_gpu_machine &m = room().m;
    const struct nib_gpu_layer &l = m.layer[layer];
    const uint32_t lane = threadIdx.x % 32;
    const nib_gpu_ptr from = lane == 1 ? l.attn_norm : l.mlp_norm;
    const uint32_t bytes = lane == 1 || lane == 2 ? m.hidden * 2 : 0;
    for (uint32_t line = blockIdx.x * 128; line < bytes; line += gridDim.x * 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + line));
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
template <class Form> __device__ __noinline__ uint32_t token_feed_early()
{
    uint32_t n = 0;
    if (threadIdx.x % 32 == 0)
        order_stages<Form>();
    __syncwarp();
    while (n < room().listed[CU_TOKEN_QKV] && room().ask[n].after <= 0)
        n++;
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
        feed_small(layer);
        feed_dense_biases(layer);
        const feed_matrices matrices(layer);
        good = good && feed_stages(matrices.from, base, early, held, 0, 1, 0) &&
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
        feed_biases(layer); /* behind the first stages, before the others */
        const uint32_t soon = dense + room().chosen[0][CU_TOKEN_SOON]; /* nobody waits for what is handed over meanwhile */
        good = feed_stages(from, base, room().asked - base, soon, 0, 2, 0) &&
               feed_stages(from, base, soon, asks, 0, 1, base + dense);
    }
    token_feed().close();
}
