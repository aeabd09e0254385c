/* arch/sm90/prompt_ring.cuh: the ring of stages of a prompt product, and the warpgroup that fills it. A stage is 64 inputs of up to
 * 128 tokens and of 256 output rows. Weights come by bulk copies. Activations pass through registers: in the order in which weights lie (arch/cuda/layout.h)
 * a product of 16 inputs takes the pairs at 8t + 2q of each 32, so the four words of 16 bytes go to four chunks of the token's line.
 *
 * An mbarrier `full` a stage counts the copies' bytes and the four warps that asked for them and wrote activations; `empty` the eight
 * warps that have read it. */
#pragma once
#include <type_traits>

#include "arch/sm90/prompt_forms.cuh"

struct prompt_bars {
    uint64_t full[CU_PROMPT_MX_STAGES], empty[CU_PROMPT_MX_STAGES]; /* the form with the most stages */
};

/* What a block does next: weight tiles tile0 .. of the matrix `w` for `tokens` tokens. */
struct prompt_item {
    const uint8_t *w;
    uint32_t tile0, tokens;
    uint32_t first, expert; /* row or place of the first token; experts only */
};

template <class Form> struct prompt_ring {
    uint32_t acts, weights, full, empty; /* shared addresses */
    uint32_t slot, parity;

    __device__ __forceinline__ void open(const void *dynamic, prompt_bars &bars)
    {
        acts = (smem_at(dynamic) + 1023) & ~1023u;
        weights = acts + Form::stages * CU_PROMPT_ACTS;
        full = smem_at(bars.full);
        empty = smem_at(bars.empty);
        slot = parity = 0;
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < Form::stages; i++) {
                bulk_init<4>(full + 8 * i);
                bulk_init<8>(empty + 8 * i);
            }
            bulk_inited();
        }
        __syncthreads();
    }

    __device__ __forceinline__ uint32_t acts_at() const
    {
        return acts + slot * CU_PROMPT_ACTS;
    }

    __device__ __forceinline__ uint32_t weights_at() const
    {
        return weights + slot * Form::bytes;
    }

    __device__ __forceinline__ void next()
    {
        if (++slot == Form::stages) {
            slot = 0;
            parity ^= 1;
        }
    }

    /* What was written before is seen by products, too. The writers do not fence, as that would wait for what they have asked of
     * global memory for the next stages. */
    __device__ __forceinline__ void wait_full() const
    {
        bulk_wait(full + 8 * slot, parity);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }

    __device__ __forceinline__ void wait_empty() const
    {
        bulk_wait(empty + 8 * slot, parity ^ 1);
    }
};

/* Activations of an item on their way. A lane brings 8 inputs, chunk c, of the tokens row, row + 16, ...: of every 32 tokens that there are. */
struct prompt_acts {
    static constexpr uint32_t EACH = CU_PROMPT_TOKENS / 16;

    const uint8_t *base;
    uint32_t from[EACH]; /* chunk c of a token's first stage, in 16 bytes; tokens that are not there are the last one again */
    uint32_t to;         /* where a lane's line of stmatrix lies in a stage */
    uint32_t each;       /* of `from` in use */

    template <class At> __device__ __forceinline__ prompt_acts(const uint8_t *all, uint32_t tokens, At at) : base(all)
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        each = CU_DIV_UP(__shfl_sync(~0u, tokens, 0), 32) * 2;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            from[i] = at(min(i * 16 + threadIdx.x / 8, tokens - 1)) + lane % 8;
        const uint32_t row = warp * 4 + lane % 8 / 2, chunk = lane % 2 * 4 + lane / 8;
        to = row * 128 + (chunk ^ (row & 7)) * 16;
    }

    /* Inputs from k on, to which only weights of zero belong, are some others of the token. */
    __device__ __forceinline__ void load(uint4 v[EACH], uint32_t step, uint32_t k) const
    {
        const uint32_t beyond = step * CU_PROMPT_K + threadIdx.x % 8 * 8 >= k, at = step * 8 - beyond * 4;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i / 2 * 2 < each)
                v[i] = __ldcg((const uint4 *)(base + (from[i] + at) * 16ull));
    }

    /* Word w of the lanes 4 i .. 4 i + 3 of a token, which have 32 inputs, becomes chunk w of them (the file's head). */
    __device__ __forceinline__ void store(uint32_t stage, const uint4 v[EACH]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i / 2 * 2 < each)
                asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(stage + to + i * 2048),
                         "r"(v[i].x), "r"(v[i].y), "r"(v[i].z), "r"(v[i].w)
                         : "memory");
    }
};

__device__ __forceinline__ void bulk_also(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

/* Weights of an item on their way: each warp asks for four tiles. What is the same in all lanes is said to be, for copies are asked for by the
 * warp. */
template <class Form> struct prompt_weights {
    static constexpr uint32_t EACH = CU_PROMPT_TILES / 4;

    const Form &w;
    const uint8_t *from, *refs;
    uint32_t stride, first, tiles, there; /* of this warp; of the item */
    uint64_t policy;

    __device__ __forceinline__ prompt_weights(const Form &form, const prompt_item &item, uint64_t l2_policy) : w(form), policy(l2_policy)
    {
        const uint32_t tile0 = __shfl_sync(~0u, item.tile0, 0);
        const uint64_t at = (uint64_t)item.w;
        const uint32_t low = __shfl_sync(~0u, (uint32_t)at, 0), high = __shfl_sync(~0u, (uint32_t)(at >> 32), 0);
        const uint8_t *all = (const uint8_t *)((uint64_t)high << 32 | low);
        first = __shfl_sync(~0u, threadIdx.x / 32, 0) * EACH;
        there = min(w.tiles - tile0, (uint32_t)CU_PROMPT_TILES);
        tiles = first < there ? min(there - first, EACH) : 0;
        stride = w.units * Form::unit_bytes;
        from = all + (uint64_t)(tile0 + first) * stride;
        refs = all + (uint64_t)w.tiles * stride + tile0 * CU_TILE;
    }

    __device__ __forceinline__ void ask(uint32_t to, uint32_t step, uint32_t bar) const
    {
        const uint32_t bytes = w.stage_bytes(step);
        const uint8_t *now = from + step * Form::tile_bytes;
        if (tiles)
            bulk_also(bar, tiles * bytes);
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i < tiles)
                copy_bulk(to + (first + i) * Form::tile_bytes, now + i * stride, bytes, bar, policy);
        if constexpr (std::is_same<Form, prompt_mx>::value)
            if (step == 0 && first == 0) {
                bulk_also(bar, there * CU_TILE);
                copy_bulk(to + Form::refs_at, refs, there * CU_TILE, bar, policy);
            }
    }
};

__device__ __forceinline__ bool elect_one()
{
    uint32_t mine;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(mine));
    return mine;
}

/* One stage: weights asked for, activations written. */
template <class Form>
__device__ __forceinline__ void prompt_fill(const prompt_weights<Form> &weights, prompt_ring<Form> &ring, const prompt_acts &acts,
                                            const uint4 v[prompt_acts::EACH], uint32_t step)
{
    const uint32_t bar = ring.full + 8 * ring.slot;
    ring.wait_empty();
    __syncwarp();
    if (elect_one())
        weights.ask(ring.weights_at(), step, bar);
    __syncwarp();
    acts.store(ring.acts_at(), v);
    bulk_arrive(bar);
    ring.next();
}

/* All stages of an item; the activations of two are on their way. at(token): where its row begins, in 16 bytes from `base`. */
template <class Form, class At>
__device__ __forceinline__ void prompt_bring(const Form &w, const prompt_item &item, uint32_t k, prompt_ring<Form> &ring,
                                             uint64_t policy, const uint8_t *base, At at)
{
    const uint32_t steps = CU_DIV_UP(k, CU_PROMPT_K);
    const prompt_weights<Form> weights(w, item, policy);
    const prompt_acts acts(base, item.tokens, at);
    uint4 v[2][prompt_acts::EACH];
    acts.load(v[0], 0, k);
    if (steps > 1)
        acts.load(v[1], 1, k);
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step += 2) {
        prompt_fill(weights, ring, acts, v[0], step);
        if (step + 2 < steps)
            acts.load(v[0], step + 2, k);
        if (step + 1 < steps)
            prompt_fill(weights, ring, acts, v[1], step + 1);
        if (step + 3 < steps)
            acts.load(v[1], step + 3, k);
    }
}
