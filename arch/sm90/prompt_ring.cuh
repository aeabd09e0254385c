/* arch/sm90/prompt_ring.cuh: the ring of stages of a prompt product, and the warpgroup that fills it. A stage is 64 inputs of up to
 * 128 tokens and of 256 output rows. Weights come by bulk copies. Activations pass through registers: in the order in which weights lie (arch/cuda/layout.h)
 * a product of 16 inputs takes the pairs at 8t + 2q of each 32, so a lane's 16 bytes go to four chunks of its token's line.
 *
 * An mbarrier `full` a stage counts the copies' bytes and the four warps that asked for them and wrote activations; `empty` the eight
 * warps that have read it. */
#pragma once
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
                asm volatile("mbarrier.init.shared.b64 [%0], 4;" ::"r"(full + 8 * i) : "memory");
                asm volatile("mbarrier.init.shared.b64 [%0], 8;" ::"r"(empty + 8 * i) : "memory");
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
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

    __device__ __forceinline__ static void wait(uint32_t bar, uint32_t phase)
    {
        asm volatile("{\n.reg .pred done;\n"
                     "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
                     "@!done bra again;\n}" ::"r"(bar),
                     "r"(phase)
                     : "memory");
    }

    /* What was written before is seen by products, too. The writers do not fence, as that would wait for what they have asked of
     * global memory for the next stages. */
    __device__ __forceinline__ void wait_full() const
    {
        wait(full + 8 * slot, parity);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }

    __device__ __forceinline__ void wait_empty() const
    {
        wait(empty + 8 * slot, parity ^ 1);
    }

    /* By one warp, all lanes. */
    __device__ __forceinline__ static void arrive(uint32_t bar)
    {
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(bar) : "memory");
    }
};

/* A thread brings chunk c of the tokens row, row + 16, ...: 8 of the 64 inputs of a stage. */
struct prompt_acts {
    static constexpr uint32_t EACH = CU_PROMPT_TOKENS / 16;

    const uint8_t *base;
    uint32_t chunks;     /* of a row */
    uint32_t src[EACH];  /* where a token's row begins, in 16 bytes */
    uint32_t each;       /* of them used */
    uint32_t to[4];      /* offsets in a stage of the four words */

    __device__ __forceinline__ prompt_acts(const uint8_t *acts, uint32_t k) : base(acts), chunks(k / 8)
    {
        const uint32_t row = threadIdx.x / 8, c = threadIdx.x % 8;
#pragma unroll
        for (uint32_t w = 0; w < 4; w++)
            to[w] = row * 128 + (((c & 4) + w) ^ (row & 7)) * 16 + c % 4 * 4;
    }

    template <class From> __device__ __forceinline__ void begin(uint32_t tokens, From from)
    {
        each = CU_DIV_UP(tokens, 16);
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
            const uint32_t token = i * 16 + threadIdx.x / 8;
            src[i] = from(min(token, tokens - 1)) + threadIdx.x % 8;
        }
    }

    __device__ __forceinline__ void load(uint4 v[EACH], uint32_t step) const
    {
        const bool there = step * (CU_PROMPT_K / 8) + threadIdx.x % 8 < chunks;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            v[i] = there && i < each ? __ldcg((const uint4 *)(base + (src[i] + step * (CU_PROMPT_K / 8)) * 16ull))
                                     : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ void store(uint32_t stage, const uint4 v[EACH]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            if (i < each) {
                const uint32_t word[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
#pragma unroll
                for (uint32_t w = 0; w < 4; w++)
                    asm volatile("st.shared.u32 [%0], %1;" ::"r"(stage + to[w] + i * 2048), "r"(word[w]) : "memory");
            }
    }
};

/* One stage: weights asked for, activations written. */
template <class Form>
__device__ __forceinline__ void prompt_fill(const Form &w, const prompt_item &item, prompt_ring<Form> &ring, const prompt_acts &acts,
                                            const uint4 v[prompt_acts::EACH], uint32_t step, uint64_t policy)
{
    const uint32_t bar = ring.full + 8 * ring.slot;
    ring.wait_empty();
    if (threadIdx.x % 32 == 0)
        w.copy(ring.weights_at(), item.w, item.tile0, step, bar, policy);
    acts.store(ring.acts_at(), v);
    ring.arrive(bar);
    ring.next();
}

/* All stages of an item; the activations of two are on their way. `from` as in prompt_acts. */
template <class Form, class From>
__device__ __forceinline__ void prompt_bring(const Form &w, const prompt_item &item, uint32_t steps, prompt_ring<Form> &ring,
                                             prompt_acts &acts, uint64_t policy, From from)
{
    uint4 v[2][prompt_acts::EACH];
    acts.begin(item.tokens, from);
    acts.load(v[0], 0);
    acts.load(v[1], 1);
    for (uint32_t step = 0; step < steps; step += 2) {
        prompt_fill(w, item, ring, acts, v[0], step, policy);
        acts.load(v[0], step + 2);
        if (step + 1 < steps)
            prompt_fill(w, item, ring, acts, v[1], step + 1, policy);
        acts.load(v[1], step + 3);
    }
}
