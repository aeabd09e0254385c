/* arch/cuda/products.cuh: the matrix ops of decode rows, and the head. Grids: any number of blocks. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/moe_gemv.cuh"

template <class Form> __device__ __forceinline__ void qkv_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct nib_gpu_step *step = step_of(m);
    const struct done_qkv done = {m, step->rows, layer};
    dense_gemv<CU_GEMV_WARPS, Form>(
        m->layer[layer].qkv, (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM, m->hidden,
        [&] { return step->decode_count; }, [&](uint32_t r) { return acts_row(m, r); }, done);
}

template <class Form> __device__ __forceinline__ void out_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct done_out done = {m, layer};
    dense_gemv<CU_OUT_WARPS, Form>(
        m->layer[layer].out, m->hidden, m->heads * NIB_HEAD_DIM, [&] { return step_of(m)->decode_count; },
        [&](uint32_t r) { return acts_row(m, r); }, done);
}

template <class Form> __device__ __forceinline__ void head_rows(const struct nib_gpu_machine *m)
{
    const struct nib_gpu_step *step = step_of(m);
    const struct done_head done = {m};
    dense_gemv<CU_GEMV_WARPS, Form>(
        m->lm_head, m->vocab, m->hidden, [&] { return step->want_count; },
        [&](uint32_t r) { return acts_row(m, min((uint32_t)step->want[r], m->step_rows_max - 1)); }, done);
}

KERNEL(qkv, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    qkv_rows<weights_bf16>(m, layer);
}

KERNEL(qkv_mxfp8, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    qkv_rows<weights_mxfp8>(m, layer);
}

KERNEL(out, CU_OUT_WARPS * 32, CU_DENSE_BLOCKS)
{
    out_rows<weights_bf16>(m, layer);
}

KERNEL(out_mxfp8, CU_OUT_WARPS * 32, CU_DENSE_BLOCKS)
{
    out_rows<weights_mxfp8>(m, layer);
}

KERNEL(head, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    head_rows<weights_bf16>(m);
}

KERNEL(head_mxfp8, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    head_rows<weights_mxfp8>(m);
}

KERNEL(up, CU_MX_THREADS, CU_MX_BLOCKS)
{
    const uint32_t *rows = route_array(m, 3);
    moe_gemv<CU_MX_TEAM, false>(
        m, m->layer[layer].up, 2 * m->intermediate, m->hidden, acts_row(m, 0),
        [&](uint32_t place) { return acts_row(m, rows[place]); },
        done_up(m, layer));
}

KERNEL(down, CU_MX_THREADS, CU_MX_BLOCKS)
{
    const uint32_t inner = m->intermediate;
    moe_gemv<CU_MX_TEAM, true>(
        m, m->layer[layer].down, m->hidden, inner, NULL,
        [&](uint32_t place) { return at<uint8_t>(m->gated, (uint64_t)place * inner * 2); }, done_down(m, layer));
}
