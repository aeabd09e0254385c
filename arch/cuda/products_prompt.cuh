/* arch/cuda/products_prompt.cuh: the matrix ops of prompt rows, of rows that have none of their own. Grids: x the tiles of 128 output
 * rows, y the tiles of 128 tokens or the groups of one expert. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/gemm.cuh"

/* Tokens of this block's tile of prompt rows, and the row of its first. */
__device__ __forceinline__ bool prompt_tile(const struct nib_gpu_step *step, uint32_t *ret_row, struct gemm_place *ret_place)
{
    const uint32_t first = step->decode_count + blockIdx.y * CU_GEMM_M;
    if (first >= step->rows_count)
        return false;
    *ret_row = first;
    ret_place->tile0 = blockIdx.x * (CU_GEMM_N / CU_TILE);
    ret_place->tokens = min(step->rows_count - first, (uint32_t)CU_GEMM_M);
    return true;
}

template <class Form> __device__ __forceinline__ void qkv_tiles(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct nib_gpu_step *step = step_of(m);
    overlap_next();
    overlap_wait();
    struct gemm_place place;
    uint32_t row;
    if (!prompt_tile(step, &row, &place))
        return;
    const uint32_t k = m->hidden;
    const Form w = {at<const uint8_t>(m->layer[layer].qkv),
                                 cu_tiles((m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM), k / CU_DENSE_UNIT};
    const struct done_qkv done = {m, step->rows, layer, NULL, 0};
    const uint32_t stride = acts_stride16(m);
    gemm_block(w, place, k, at<const uint8_t>(m->acts), [&](uint32_t i) { return (row + i) * stride; },
               [&](uint32_t tile, uint32_t i, uint32_t end, const float c[4]) { done(tile, row + i, row + end, c); });
}

template <class Form> __device__ __forceinline__ void out_tiles(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct nib_gpu_step *step = step_of(m);
    overlap_next();
    overlap_wait();
    struct gemm_place place;
    uint32_t row;
    if (!prompt_tile(step, &row, &place))
        return;
    const uint32_t k = m->heads * NIB_HEAD_DIM;
    const Form w = {at<const uint8_t>(m->layer[layer].out), cu_tiles(m->hidden), k / CU_DENSE_UNIT};
    done_out done(m, layer);
    const uint32_t stride = acts_stride16(m);
    gemm_block(w, place, k, at<const uint8_t>(m->acts), [&](uint32_t i) { return (row + i) * stride; },
               [&](uint32_t tile, uint32_t i, uint32_t end, const float c[4]) {
                   done.ask(tile, row + i, row + end);
                   done(tile, row + i, row + end, c);
               });
}

KERNEL(qkv_prompt, CU_GEMM_THREADS, 2)
{
    qkv_tiles<gemm_dense>(m, layer);
}

KERNEL(qkv_prompt_mxfp8, CU_GEMM_THREADS, 2)
{
    qkv_tiles<gemm_mxfp8>(m, layer);
}

KERNEL(out_prompt, CU_GEMM_THREADS, 2)
{
    out_tiles<gemm_dense>(m, layer);
}

KERNEL(out_prompt_mxfp8, CU_GEMM_THREADS, 2)
{
    out_tiles<gemm_mxfp8>(m, layer);
}

__device__ __forceinline__ struct gemm_mx moe_weights(nib_gpu_ptr all, uint32_t expert, uint32_t n, uint32_t k)
{
    return {at<const uint8_t>(all, expert * cu_mx_bytes(n, k)), cu_tiles(n), cu_mx_units(k)};
}

KERNEL(up_prompt, CU_GEMM_THREADS, 2)
{
    overlap_next();
    overlap_wait();
    const struct cu_route *route = route_head(m);
    if (blockIdx.y >= route->groups_prompt)
        return;
    const struct cu_group group = route->group_prompt[blockIdx.y];
    const uint32_t *rows = route_array(m, 3) + group.place, stride = acts_stride16(m);
    const done_up done(m, layer);
    gemm_block(moe_weights(m->layer[layer].up, group.expert, 2 * m->intermediate, m->hidden),
               gemm_place{blockIdx.x * (CU_GEMM_N / CU_TILE), group.count}, m->hidden, at<const uint8_t>(m->acts),
               [&](uint32_t i) { return rows[i] * stride; },
               [&](uint32_t tile, uint32_t i, uint32_t end, const float c[4]) {
                   done(tile, group.place + i, group.place + end, c, done.bias(group.expert, tile));
               });
}

KERNEL(down_prompt, CU_GEMM_THREADS, 2)
{
    overlap_next();
    overlap_wait();
    const struct cu_route *route = route_head(m);
    if (blockIdx.y >= route->groups_prompt)
        return;
    const struct cu_group group = route->group_prompt[blockIdx.y];
    const uint32_t inner = m->intermediate;
    const done_down done(m, layer);
    gemm_block(moe_weights(m->layer[layer].down, group.expert, m->hidden, inner),
               gemm_place{blockIdx.x * (CU_GEMM_N / CU_TILE), group.count}, inner, at<const uint8_t>(m->gated),
               [&](uint32_t i) { return (group.place + i) * (inner / 8); },
               [&](uint32_t tile, uint32_t i, uint32_t end, const float c[4]) {
                   done(tile, group.place + i, group.place + end, c, done.bias(group.expert, tile));
               });
}
