/* arch/sm90/token_x.cuh: the vectors of the fused decode kernel on their way into a block: the residual stream with its norm, the
 * attention's output, the experts' activations. Sums of squares have the order of the row's other kernels. */
#pragma once
#include "arch/cuda/rows.cuh"
#include "arch/sm90/token_packet.cuh"

/* Threads of the row kernels that a thread stands for. */
template <uint32_t TAKERS> __device__ __forceinline__ constexpr int norm_parts()
{
    static_assert(TAKERS <= CU_TOKEN_WARPS * 32 && TAKERS % 32 == 0 && CU_ROW_THREADS % TAKERS == 0 &&
                      CU_TOKEN_HIDDEN / 4 <= CU_ROW_THREADS,
                  "a float4 a thread");
    return CU_ROW_THREADS / TAKERS;
}

__device__ __forceinline__ float4 float_four(uint4 a)
{
    return make_float4(__uint_as_float(a.x), __uint_as_float(a.y), __uint_as_float(a.z), __uint_as_float(a.w));
}

/* Of `count` things that the first TAKERS threads share, thread by thread: this one's, the first being its own number. */
template <uint32_t TAKERS> __device__ __forceinline__ uint32_t taker_share(uint32_t count)
{
    const uint32_t tid = threadIdx.x;
    return tid < TAKERS && tid < count ? (count - tid - 1) / TAKERS + 1 : 0;
}

/* The sums over the warp of each of N numbers, as warp_sum has them, all a step at a time. */
template <int N> __device__ __forceinline__ void warp_sums(float v[N])
{
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        float other[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            other[i] = __shfl_xor_sync(~0u, v[i], d);
#pragma unroll
        for (int i = 0; i < N; i++)
            v[i] += other[i];
    }
}

__device__ __forceinline__ float4 add_four(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* The sum of all squares, as warp_sum has that of 24 numbers and eight zeros. */
__device__ __forceinline__ float square_sum()
{
    static_assert(CU_ROW_THREADS == 24 * 32, "six fours");
    float4 v[6];
#pragma unroll
    for (uint32_t i = 0; i < 6; i++)
        v[i] = float_four(lds16(smem_at(room().square) + i * 16));
    const float4 sum = add_four(add_four(add_four(v[0], v[4]), v[2]), add_four(add_four(v[1], v[5]), v[3]));
    return sum.x + sum.z + (sum.y + sum.w);
}

enum norm_for { FOR_QKV, FOR_EXPERTS, FOR_HEAD };

/* The warp's sums of squares of x: thread i holds x[4 (i + TAKERS p) ..] in v[p], or anything where there is no such. */
template <uint32_t TAKERS> __device__ __forceinline__ void x_squares(const float4 *v, float *sum)
{
    constexpr int PARTS = norm_parts<TAKERS>();
    const uint32_t mine = taker_share<TAKERS>(room().m.hidden / 4);
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        sum[p] = p < mine ? __fadd_rn(0.0f, square4(v[p])) : 0;
    warp_sums<PARTS>(sum);
}

/* acts = norm(x), with the sum of squares as norm_row has it, of v and sum as x_squares has them. In bf16; for the
 * experts in fp16, and the scale for the router; for the head acts and x of the step. Ends with a barrier. */
template <uint32_t TAKERS>
__device__ __forceinline__ void x_norm(norm_for what, bool next, const float4 *v, const float *sum, const uint2 *w)
{
    constexpr int PARTS = norm_parts<TAKERS>();
    const uint32_t hidden = room().m.hidden, first = room().x_first, tid = threadIdx.x, mine = taker_share<TAKERS>(hidden / 4);
    if (tid < TAKERS && tid % 32 == 0)
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            room().square[(tid + p * TAKERS) / 32] = sum[p];
    token_sync();
    const float scale = norm_scale(square_sum(), hidden);
    if (what == FOR_EXPERTS && tid == 0) {
        room().scale = scale;
        bulk_arrive_one(smem_at(&room().scale_bar));
    }
    uint2 as_bf16[PARTS], as_fp16[PARTS];
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const float4 y = normed(v[p], scale, bf16_four(w[p]));
        as_bf16[p] = make_uint2(pack_bf16(y.x, y.y), pack_bf16(y.z, y.w));
        as_fp16[p] = make_uint2(pack_fp16(y.x, y.y), pack_fp16(y.z, y.w));
    }
    uint2 *const acts = (uint2 *)room().acts + tid;
    if (what == FOR_EXPERTS) {
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p < mine)
                acts[p * TAKERS] = as_fp16[p];
        if (tid < 8 && hidden % CU_MX_UNIT) /* the rest of the last unit */
            ((uint2 *)room().acts)[hidden / 4 + tid] = make_uint2(0, 0);
    } else if (what == FOR_QKV) {
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p < mine)
                acts[p * TAKERS] = as_bf16[p];
        if (tid == 0 && next)
            room().layer++;
    } else {
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (p < mine) {
                ((uint2 *)acts_row(&room().m, 0))[tid + p * TAKERS] = as_bf16[p];
                at<float4>(room().m.x)[tid + p * TAKERS] = v[p];
            }
    }
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const uint32_t own = (tid + p * TAKERS) * 4 - first;
        if (p < mine && own < TOKEN_OWN)
            *(float4 *)&room().x[own] = v[p];
    }
    token_sync();
}

/* This thread's norm weights: read before x is there. */
template <uint32_t TAKERS> __device__ __forceinline__ void x_weights(nib_gpu_ptr norm, uint2 *w)
{
    const uint32_t mine = taker_share<TAKERS>(room().m.hidden / 4);
#pragma unroll
    for (int p = 0; p < norm_parts<TAKERS>(); p++)
        w[p] = p < mine ? __ldg(at<const uint2>(norm) + threadIdx.x + p * TAKERS) : make_uint2(0, 0);
}

/* The token's embedding, normed for the first layer. */
template <uint32_t TAKERS> __device__ __forceinline__ void x_begin(const uint2 *embedding)
{
    const uint32_t mine = taker_share<TAKERS>(room().m.hidden / 4);
    float4 v[norm_parts<TAKERS>()];
    uint2 w[norm_parts<TAKERS>()];
    x_weights<TAKERS>(room().m.layer[0].attn_norm, w);
#pragma unroll
    for (int p = 0; p < norm_parts<TAKERS>(); p++)
        v[p] = p < mine ? bf16_four(embedding[threadIdx.x + p * TAKERS]) : make_float4(0, 0, 0, 0);
    float sum[norm_parts<TAKERS>()];
    x_squares<TAKERS>(v, sum);
    x_norm<TAKERS>(FOR_QKV, false, v, sum, w);
}

/* x as the layer's attention has left it, for its experts, or the layer's experts for the next one's QKV or the head; normed. */
template <uint32_t TAKERS> __device__ __noinline__ void x_take(norm_for what)
{
    const struct nib_gpu_machine &m = room().m;
    const uint32_t fours = m.hidden / 4, layer = room().layer, epoch = room().epoch + layer;
    const uint32_t *from = what == FOR_EXPERTS ? room().packets->x_out[epoch & 1] : room().packets->x_down[epoch & 1];
    float4 v[norm_parts<TAKERS>()];
    uint2 w[norm_parts<TAKERS>()];
    x_weights<TAKERS>(what == FOR_EXPERTS ? m.layer[layer].mlp_norm : what == FOR_QKV ? m.layer[layer + 1].attn_norm : m.final_norm, w);
    float sum[norm_parts<TAKERS>()];
    /* A warp its first word alone first: what asks for all of them slows the stream. */
    const uint32_t *first = from + min(threadIdx.x / 32 * 32, fours - 1) * 4;
    for (uint32_t turn = 0; !words_there(words_ask(first, true)) && !token_late(turn); turn++)
        ;
    /* Squares are summed in each turn, whether all is there or not: what follows the last turn would be instructions that lie in no cache. */
    for (uint32_t turn = 0;; turn++) {
        uint4 got[norm_parts<TAKERS>()];
        bool all = true;
#pragma unroll
        for (int p = 0; p < norm_parts<TAKERS>(); p++) /* who has less takes the last ones in, too */
            got[p] = words_ask(from + min(threadIdx.x + p * TAKERS, fours - 1) * 4, true);
#pragma unroll
        for (int p = 0; p < norm_parts<TAKERS>(); p++) {
            all &= words_there(got[p]);
            v[p] = float_four(words_value(got[p]));
        }
        x_squares<TAKERS>(v, sum);
        if (__all_sync(~0u, all || token_late(turn)))
            break;
    }
    x_norm<TAKERS>(what, true, v, sum, w);
}

/* The attention's output to acts. */
template <uint32_t TAKERS> __device__ __forceinline__ void take_attention()
{
    const uint32_t tid = threadIdx.x, there = taker_share<TAKERS>(room().m.heads * (NIB_HEAD_DIM / 8));
    const uint32_t *from = room().packets->attn[(room().epoch + room().layer) & 1];
    constexpr int words = CU_DIV_UP(CU_TOKEN_Q / 8, TAKERS); /* by fours */
    uint4 got[words];
    qkv_wait(); /* a thread's words say nothing of the heads of others: warps may still read what QKV is made of */
    words_get<words>(there, got, [&](uint32_t i) { return from + (tid + i * TAKERS) * 4; });
#pragma unroll
    for (int i = 0; i < words; i++)
        if (i < there)
            room().acts[tid + i * TAKERS] = got[i];
    token_sync();
}
