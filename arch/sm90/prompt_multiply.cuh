/* arch/sm90/prompt_multiply.cuh: what a consumer warpgroup of a prompt product does with a stage, and with an item. An item's 256 output rows are
 * two warpgroups' 128 each, for all of its tokens; a warpgroup has two products of 64 rows under way for every 16 inputs.
 *
 * An output is the sum over its inputs in their order, 16 at a time, whatever the item: it depends on its own token only. */
#pragma once
#include "arch/sm90/prompt_ring.cuh"

/* Block HALF of a stage: a[mma][tile]. */
template <class Form, int HALF, int N>
__device__ __forceinline__ void prompt_products(const uint32_t a[2][2][4], uint64_t tokens, float (&acc)[2][N / 2])
{
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            wgmma(typename Form::numbers(), acc[i], a[i][j], tokens + HALF * 4 + j * 2);
    wgmma_commit();
}

/* Stages of an item. */
template <class Form, int N>
__device__ __forceinline__ void prompt_stages(prompt_ring<Form> &ring, uint32_t steps, uint32_t group, uint32_t units,
                                              const typename Form::rows &rows, float (&acc)[2][N / 2])
{
    ring.wait_full();
    typename Form::held held = Form::take(ring.weights_at(), group);
    uint64_t tokens = wgmma_tokens(ring.acts_at());
    uint32_t a[2][2][2][4];
    Form::template fragments<0>(held, rows, true, a[0]);
    wgmma_hold(acc[0]);
    wgmma_hold(acc[1]);
    wgmma_fence();
    prompt_products<Form, 0, N>(a[0], tokens, acc);
    Form::template fragments<1>(held, rows, units > 1, a[1]);
    wgmma_fence();
    prompt_products<Form, 1, N>(a[1], tokens, acc);
    uint32_t before = ring.empty + 8 * ring.slot;
    ring.next();
#pragma unroll 1
    for (uint32_t step = 1; step < steps; step++) {
        ring.wait_full();
        held = Form::take(ring.weights_at(), group);
        tokens = wgmma_tokens(ring.acts_at());
        wgmma_wait<1>();
        Form::template fragments<0>(held, rows, true, a[0]);
        wgmma_fence();
        prompt_products<Form, 0, N>(a[0], tokens, acc);
        wgmma_wait<1>();
        bulk_arrive(before);
        Form::template fragments<1>(held, rows, 2 * step + 1 < units, a[1]);
        wgmma_fence();
        prompt_products<Form, 1, N>(a[1], tokens, acc);
        before = ring.empty + 8 * ring.slot;
        ring.next();
    }
    wgmma_wait<0>();
    bulk_arrive(before);
}

/* Words of token g of tokens 8 n .. 8 n + 7 that a lane of mma.m16n8k16 has for the 16 inputs `which` of a stage. */
__device__ __forceinline__ uint2 prompt_words(uint32_t acts, int n, uint32_t which)
{
    const uint32_t g = threadIdx.x % 32 / 4, at = acts + (n * 8 + g) * 128 + threadIdx.x % 4 * 4;
    return make_uint2(lds4(at + ((which * 2) ^ g) * 16), lds4(at + ((which * 2 + 1) ^ g) * 16));
}

/* The same where scales do not fit in the weights: the sum of each block of 32 inputs is scaled. All 128 tokens, there or not. */
__device__ __forceinline__ void prompt_wild(prompt_ring<prompt_mx> &ring, uint32_t steps, uint32_t group,
                                            float (&acc)[2][CU_PROMPT_TOKENS / 2])
{
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++) {
        ring.wait_full();
        const prompt_mx::held held = prompt_mx::take(ring.weights_at(), group);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t a[2][2][4];
            float scale[2][2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                mx_fragment(half ? held.codes[i].z : held.codes[i].x, a[i][0]);
                mx_fragment(half ? held.codes[i].w : held.codes[i].y, a[i][1]);
                mx_scales(held.scales[i], half, scale[i]);
            }
#pragma unroll
            for (int n = 0; n < CU_PROMPT_TOKENS / 8; n++) {
                const uint2 b0 = prompt_words(ring.acts_at(), n, half * 2), b1 = prompt_words(ring.acts_at(), n, half * 2 + 1);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float block[4];
                    mma_fp16_zero(block, a[i][0], b0.x, b0.y);
                    mma_fp16(block, a[i][1], b1.x, b1.y);
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        acc[i][n * 4 + c] += scale[i][c / 2] * block[c];
                }
            }
        }
        bulk_arrive(ring.empty + 8 * ring.slot);
        ring.next();
    }
}

/* One item by one warpgroup, `group`. done.open(item, tile, scale) gives what takes the sums of a tile of weights; `scale` is what those of
 * its rows g and g + 8 are still to be multiplied with. */
template <class Form, int N, bool WILD, class Done>
__device__ __forceinline__ void prompt_multiply(const Form &w, const prompt_item &item, uint32_t steps, uint32_t units,
                                                prompt_ring<Form> &ring, uint32_t group, const typename Form::rows &rows,
                                                const Done &done)
{
    float acc[2][N / 2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int n = 0; n < N / 2; n++)
            acc[i][n] = 0;
    if constexpr (WILD) {
        prompt_wild(ring, steps, group, acc);
    } else {
        prompt_stages<Form, N>(ring, steps, group, units, rows, acc);
        wgmma_hold(acc[0]);
        wgmma_hold(acc[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t tile = item.tile0 + group * 8 + i * 4 + threadIdx.x / 32 % 4;
        if (tile >= w.tiles)
            continue;
        const auto take = done.open(item, tile, WILD ? make_float2(MX_UNSCALE, MX_UNSCALE) : Form::rest(rows, i));
        take(acc[i]);
    }
}

/* One item by one warpgroup. */
template <class Form, class Done>
__device__ __forceinline__ void prompt_take(const Form &w, const prompt_item &item, uint32_t steps, uint32_t units,
                                            prompt_ring<Form> &ring, uint32_t group, const Done &done)
{
    const uint32_t first = item.tile0 + group * 8, have = first < w.tiles ? min(w.tiles - first, 8u) : 0;
    ring.wait_full();
    const typename Form::rows rows = Form::begin(ring.weights_at(), group, have);
    if (have == 0) {
        for (uint32_t step = 0; step < steps; step++) {
            ring.wait_full();
            bulk_arrive(ring.empty + 8 * ring.slot);
            ring.next();
        }
        return;
    }
    if constexpr (std::is_same<Form, prompt_mx>::value)
        if (rows.wild) {
            prompt_multiply<Form, CU_PROMPT_TOKENS, true>(w, item, steps, units, ring, group, rows, done);
            return;
        }
    if (item.tokens <= 32)
        prompt_multiply<Form, 32, false>(w, item, steps, units, ring, group, rows, done);
    else if (item.tokens <= 64)
        prompt_multiply<Form, 64, false>(w, item, steps, units, ring, group, rows, done);
    else if (item.tokens <= 96)
        prompt_multiply<Form, 96, false>(w, item, steps, units, ring, group, rows, done);
    else
        prompt_multiply<Form, CU_PROMPT_TOKENS, false>(w, item, steps, units, ring, group, rows, done);
}
