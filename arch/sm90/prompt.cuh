/* arch/sm90/prompt.cuh: the matrix ops of prompt rows on Hopper (arch/sm90/PROMPT.md). One block a multiprocessor takes items in turns,
 * and its first warpgroup brings the next item's stages while the others still finish the one before. */
#pragma once
#include "arch/sm90/prompt_done.cuh"
#include "arch/sm90/prompt_multiply.cuh"

extern __shared__ uint4 prompt_dynamic[];

/* work(i, &item): the i-th item, false when there are no more; from(item, token): where its activations begin, in 16 bytes from
 * `acts`; done.open(item, tile, scale): what takes the sums of a weight tile
 * (arch/sm90/prompt_done.cuh). */
template <class Form, class Work, class From, class Done>
__device__ __forceinline__ void prompt_run(const Form &w, uint32_t k, const uint8_t *acts, Work work, From from, const Done &done)
{
    __shared__ prompt_bars bars;
    prompt_ring<Form> ring;
    ring.open(prompt_dynamic, bars);
    overlap_wait();
    overlap_next();
    const uint32_t steps = CU_DIV_UP(k, CU_PROMPT_K), units = CU_DIV_UP(k, CU_DENSE_UNIT), group = threadIdx.x / 128;
    prompt_item item;
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
        const uint64_t policy = shared_policy();
        for (uint32_t i = blockIdx.x; work(i, item); i += gridDim.x) {
            prompt_bring(w, item, k, ring, policy, acts, [&](uint32_t token) { return from(item, token); });
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
        for (uint32_t i = blockIdx.x; work(i, item); i += gridDim.x)
            prompt_take(w, item, steps, units, ring, group - 1, done);
    }
}

/* Items of the experts' products: an expert's group of places and 16 weight tiles; those of a group follow each other. */
template <class From, class Done>
__device__ __forceinline__ void prompt_experts(const struct nib_gpu_machine *m, nib_gpu_ptr all, uint32_t n, uint32_t k,
                                               const uint8_t *acts, From from, const Done &done)
{
    const prompt_mx w(n, k);
    const struct cu_route *route = route_head(m);
    const uint32_t parts = CU_DIV_UP(w.tiles, CU_PROMPT_TILES);
    const uint64_t bytes = cu_mx_bytes(n, k);
    prompt_run(
        w, k, acts,
        [&](uint32_t i, prompt_item &item) {
            if (i >= min(__ldcg(&route->groups_prompt), (uint32_t)CU_GROUPS_PROMPT_MAX) * parts)
                return false;
            const struct cu_group *group = &route->group_prompt[i / parts];
            item.expert = __ldcg(&group->expert);
            item.first = __ldcg(&group->place);
            item.tokens = __ldcg(&group->count);
            item.tile0 = i % parts * CU_PROMPT_TILES;
            item.w = at<const uint8_t>(all, item.expert * bytes);
            return true;
        },
        [&](const prompt_item &item, uint32_t token) { return from(item.first + token); }, done);
}

KERNEL(up_prompt, CU_PROMPT_THREADS, 1)
{
    const uint32_t *rows = route_array(m, 3), stride = acts_stride16(m);
    prompt_experts(m, m->layer[layer].up, 2 * m->intermediate, m->hidden, at<const uint8_t>(m->acts),
                   [&](uint32_t place) { return __ldcg(rows + place) * stride; }, prompt_up_done(m, layer));
}

KERNEL(down_prompt, CU_PROMPT_THREADS, 1)
{
    const uint32_t inner = m->intermediate;
    prompt_experts(m, m->layer[layer].down, m->hidden, inner, at<const uint8_t>(m->gated),
                   [&](uint32_t place) { return place * (inner / 8); }, prompt_down_done(m, layer));
}

/* Tokens of an item of a dense product: what takes the fewest turns of the blocks. Results do not depend on it. */
__device__ __forceinline__ uint32_t prompt_tokens(uint32_t rows, uint32_t parts)
{
    uint32_t best = CU_PROMPT_TOKENS, least = ~0u;
    for (uint32_t n = CU_PROMPT_TOKENS; n >= 32; n -= 32) {
        const uint32_t cost = CU_DIV_UP(parts * CU_DIV_UP(rows, n), gridDim.x) * (n + 32);
        if (cost < least) {
            least = cost;
            best = n;
        }
    }
    return best;
}

template <class Form, class Done>
__device__ __forceinline__ void prompt_rows(const struct nib_gpu_machine *m, nib_gpu_ptr weights, uint32_t n, uint32_t k,
                                            const Done &done)
{
    const Form w(n, k);
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t parts = CU_DIV_UP(w.tiles, CU_PROMPT_TILES), stride = acts_stride16(m);
    uint32_t row0 = 0, rows = 0, tokens = 0;
    prompt_run(
        w, k, at<const uint8_t>(m->acts),
        [&](uint32_t i, prompt_item &item) {
            if (tokens == 0) { /* the first call: the step is there */
                row0 = step->decode_count;
                rows = step->rows_count - row0;
                tokens = prompt_tokens(rows, parts);
            }
            const uint32_t first = i / parts * tokens;
            item.w = at<const uint8_t>(weights);
            item.tile0 = i % parts * CU_PROMPT_TILES;
            item.first = row0 + first;
            item.tokens = first < rows ? min(rows - first, tokens) : 0;
            return first < rows;
        },
        [&](const prompt_item &item, uint32_t token) { return (item.first + token) * stride; },
        done);
}

template <class Form> __device__ __forceinline__ void qkv_prompt_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const prompt_qkv_done done = {m, step_of(m)->rows, layer};
    prompt_rows<Form>(m, m->layer[layer].qkv, (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM, m->hidden, done);
}

template <class Form> __device__ __forceinline__ void out_prompt_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const prompt_out_done done = {m, layer};
    prompt_rows<Form>(m, m->layer[layer].out, m->hidden, m->heads * NIB_HEAD_DIM, done);
}

KERNEL(qkv_prompt, CU_PROMPT_THREADS, 1)
{
    qkv_prompt_rows<prompt_dense>(m, layer);
}

KERNEL(qkv_prompt_mxfp8, CU_PROMPT_THREADS, 1)
{
    qkv_prompt_rows<prompt_mxfp8>(m, layer);
}

KERNEL(out_prompt, CU_PROMPT_THREADS, 1)
{
    out_prompt_rows<prompt_dense>(m, layer);
}

KERNEL(out_prompt_mxfp8, CU_PROMPT_THREADS, 1)
{
    out_prompt_rows<prompt_mxfp8>(m, layer);
}
