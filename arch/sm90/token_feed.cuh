/* arch/sm90/token_feed.cuh: the warp that asks for a step's weights, layer by layer in the order in which they are multiplied. Only
 * the experts' places must be waited for: this warp puts the router's sums together and chooses, in every block alike. */
#pragma once
#include "arch/cuda/route.cuh"
#include "arch/sm90/token_order.cuh"
#include "arch/sm90/token_packet.cuh"
#include "arch/sm90/token_ring.cuh"

/* The layer's experts and their weights, to shared memory. The whole warp. */
__device__ __noinline__ void feed_choose(uint32_t layer)
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
    const uint32_t chosen = min(route_choose(experts, used, value, &weight), experts - 1);
    if (lane < used) {
        room().expert[lane] = chosen;
        room().weight[lane] = weight;
    }
    __syncwarp();
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
        const nib_gpu_ptr from = m.layer[layer].up_bias + ((uint64_t)room().expert[s.choice] * m.intermediate + s.tile * 8) * 4;
        bias_copy(room().up_bias[of], from);
        bias_copy(room().up_bias[of] + 4, from + 16);
    }
    if (lane >= 16 && tile * per < share.hi) {
        const nib_gpu_ptr from = m.layer[layer].down_bias + ((uint64_t)room().expert[c] * m.hidden + tile * CU_TILE) * 2;
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

/* Asks for the layer's stages [i, end) of the matrix at `from`, with `ahead` on their way at most; `base`: number of the layer's
 * first stage. One thread. */
__device__ __forceinline__ bool feed_stages(token_feed &feed, uint64_t from, uint32_t ahead, uint32_t base, uint32_t i,
                                            uint32_t end)
{
    for (; i < end; i++) {
        const token_ask a = room().ask[i];
        if (!feed.wait_read(base + a.after) || !feed.wait_landed(ahead))
            return false;
        feed.ask(from, a);
    }
    return true;
}

/* Of the first matrix as much as the empty ring holds, asked for before the step is known. The warp that asks for weights; its first
 * thread learns how many stages these are. */
template <class Form> __device__ __noinline__ uint32_t token_feed_early()
{
    uint32_t n = 0;
    if (threadIdx.x % 32 == 0) {
        token_feed feed(0);
        order_stages<Form>();
        while (n < room().listed[CU_TOKEN_QKV] && room().ask[n].after <= 0)
            n++;
        (void)feed_stages(feed, room().m.layer[0].qkv, CU_TOKEN_AHEAD_UP * Form::ahead, 0, 0, n);
    }
    __syncwarp();
    return n;
}

/* A layer's dense matrices, from ask number i on. The ring takes `early` stages of the first before it is multiplied; what is left of
 * it is needed at once. Returns false when a wait was in vain. */
template <class Form>
__device__ __forceinline__ bool feed_dense(token_feed &feed, const struct nib_gpu_layer &l, uint32_t early, uint32_t base, uint32_t i)
{
    uint32_t end = room().listed[CU_TOKEN_QKV];
    bool good = feed_stages(feed, l.qkv, CU_TOKEN_AHEAD_QKV * Form::ahead, base, i, early) &&
                feed_stages(feed, l.qkv, CU_TOKEN_AHEAD_LATE * Form::ahead, base, early, end);
#pragma unroll 1
    for (uint32_t op = CU_TOKEN_OUT; op <= CU_TOKEN_ROUTER && good; op++) {
        i = end;
        end += room().listed[op];
        good = feed_stages(feed, op == CU_TOKEN_OUT ? l.out : l.router, CU_TOKEN_AHEAD_OUT * Form::ahead, base, i, end);
    }
    return good;
}

__device__ __forceinline__ bool feed_experts(token_feed &feed, const struct nib_gpu_layer &l, uint32_t base, uint32_t i)
{
    const struct nib_gpu_machine &m = room().m;
    bool good = true;
#pragma unroll 1
    for (uint32_t phase = 0; phase < CU_TOKEN_PHASES && good; phase++) {
        const token_phase p(phase);
        const uint64_t expert = room().expert[p.choice], up = cu_mx_bytes(2 * m.intermediate, m.hidden),
                       down = cu_mx_bytes(m.hidden, m.intermediate), from = p.down ? l.down + expert * down : l.up + expert * up;
        good = feed_stages(feed, from, p.down ? CU_TOKEN_AHEAD_DOWN : CU_TOKEN_AHEAD_UP, base, i, i + p.end - p.first);
        i += p.end - p.first;
    }
    return good;
}

/* Asks for everything; `early` stages of the first matrix were asked for. The whole warp; one thread of it asks. A step without
 * work: waits only until these have come. */
template <class Form> __device__ __noinline__ void token_feeder(bool works, uint32_t early)
{
    const bool asks = threadIdx.x % 32 == 0;
    const uint32_t dense = room().listed[CU_TOKEN_QKV] + room().listed[CU_TOKEN_OUT] + room().listed[CU_TOKEN_ROUTER];
    token_feed feed(early);
    bool good = true;
    uint32_t base = 0;
    if (!works) {
        for (uint32_t i = 0; i < early; i++)
            (void)bar_wait(&room().full[i], 0);
        return;
    }
#pragma unroll 1
    for (uint32_t layer = 0; layer < room().m.layers; layer++, base += room().asks) {
        feed_small(layer);
        feed_dense_biases(layer);
        if (asks) /* all of it is read before the router's sums can be there */
            good = good && feed_dense<Form>(feed, room().m.layer[layer], early, base, layer ? 0 : early) && feed.wait_read(base + dense);
        __syncwarp();
        feed_choose(layer);
        feed_biases(layer);
        if (asks)
            good = good && feed_experts(feed, room().m.layer[layer], base, dense);
        __syncwarp();
    }
    if (asks)
        feed.close();
}
