/* arch/cuda/products.cuh: the matrix ops of decode rows, and the head. Grids: any number of blocks. */
#pragma once
#include "arch/cuda/done.cuh"
#include "arch/cuda/gemv.cuh"

/* Where rows of activations lie. Read before the op before this one has ended: behind the wait it would be a trip to memory more. */
struct acts_rows {
    const uint8_t *first;
    uint32_t stride;

    __device__ __forceinline__ explicit acts_rows(const struct nib_gpu_machine *m)
        : first(at<const uint8_t>(m->acts)), stride(acts_stride16(m) * 16)
    {
        asm volatile("" : "+l"(first), "+r"(stride));
    }

    __device__ __forceinline__ const uint8_t *row(uint32_t r) const
    {
        return first + (uint64_t)r * stride;
    }
};

/* What the products' ends need is read beforehand. From layer 1 on the step block, what BEGIN and EMBED made of it, may be read before the op before
 * this one has ended, since the expert products of the layer before wait for all that came before them. Not for the head: the fused kernel lets it
 * begin at once, before BEGIN has ended. */
template <int RING, class Form> __device__ __forceinline__ void qkv_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    __shared__ uint64_t kv[CU_GEMV_ROWS];
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t n = (m->heads + 2 * m->kv_heads) * NIB_HEAD_DIM;
    const struct done_qkv done = {m, step->rows, layer, kv, CU_GEMV_ROWS};
    const acts_rows acts(m);
    dense_gemv<CU_GEMV_WARPS, RING, Form>(
        {gridDim.x}, m->layer[layer].qkv, n, m->hidden, layer > 0, [&] { return step->decode_count; }, [&](uint32_t r) { return acts.row(r); }, done,
        [&](uint32_t all) {
            const uint32_t rows = min(all, (uint32_t)CU_GEMV_ROWS), tile = blockIdx.x + threadIdx.x / 32 * gridDim.x, lane = threadIdx.x % 32;
            if (threadIdx.x < rows && !m->kv_new)
                kv[threadIdx.x] = done.kv_at(threadIdx.x);
            if (tile >= cu_tiles(n))
                return;
            const uint32_t dim = tile % 4 * 8;
            if (lane < 2)
                touch(at<const __nv_bfloat16>(m->layer[layer].qkv_bias) + tile / 4 * NIB_HEAD_DIM + dim + lane * 32);
            if (lane / 2 < rows)
                touch(at<const float>(m->rope) + (lane % 2 * m->step_rows_max + lane / 2) * 32 + dim);
        });
}

template <int RING, class Form> __device__ __forceinline__ void out_rows(const struct nib_gpu_machine *m, uint32_t layer)
{
    const struct nib_gpu_step *step = step_of(m);
    const done_out done(m, layer);
    const acts_rows acts(m);
    dense_gemv<CU_OUT_WARPS, RING, Form>(
        {gridDim.x}, m->layer[layer].out, m->hidden, m->heads * NIB_HEAD_DIM, layer > 0, [&] { return step->decode_count; },
        [&](uint32_t r) { return acts.row(r); }, done, [](uint32_t) {});
}

template <class Form> __device__ __forceinline__ void head_rows(const struct nib_gpu_machine *m)
{
    const struct nib_gpu_step *step = step_of(m);
    const struct done_head done = {m};
    gemv_tiles dealing = {gridDim.x};
#if NIB_SM >= 90
    __shared__ uint32_t taken[2];
    if (CU_DIV_UP(m->hidden / CU_DENSE_UNIT, Form::span) / CU_GEMV_WARPS >= Form::ring) /* a warp asks for no more than a tile ahead */
        dealing = {gridDim.x, &at<struct cu_scratch>(m->scratch)->head, taken};
#endif
    dense_gemv<CU_GEMV_WARPS, Form::ring, Form>(
        dealing, m->lm_head, m->vocab, m->hidden, false, [&] { return step->want_count; },
        [&](uint32_t r) { return acts_row(m, min((uint32_t)step->want[r], m->step_rows_max - 1)); }, done, [](uint32_t) {});
}

/* The launch says by its shared memory which rings a block has. Deep ones are functions of their own, so that they take no registers from the others. */
template <class Form> __device__ __noinline__ void qkv_deep(const struct nib_gpu_machine *__restrict__ m, uint32_t layer)
{
    qkv_rows<CU_DEEP_QKV / (Form::span * Form::unit_bytes), Form>(m, layer);
}

template <class Form> __device__ __noinline__ void out_deep(const struct nib_gpu_machine *__restrict__ m, uint32_t layer)
{
    out_rows<CU_DEEP_OUT / (Form::span * Form::unit_bytes), Form>(m, layer);
}

template <class Form> __device__ __forceinline__ void qkv_any(const struct nib_gpu_machine *m, uint32_t layer)
{
    if constexpr (CU_DEEP_ROWS > 0)
        if (dynamic_shared_bytes() == cu_deep_bytes(CU_GEMV_WARPS, CU_DEEP_QKV, Form::span * Form::unit_bytes, m->hidden))
            return qkv_deep<Form>(m, layer);
    qkv_rows<Form::ring, Form>(m, layer);
}

template <class Form> __device__ __forceinline__ void out_any(const struct nib_gpu_machine *m, uint32_t layer)
{
    if constexpr (CU_DEEP_ROWS > 0)
        if (dynamic_shared_bytes() == cu_deep_bytes(CU_OUT_WARPS, CU_DEEP_OUT, Form::span * Form::unit_bytes, m->heads * NIB_HEAD_DIM))
            return out_deep<Form>(m, layer);
    out_rows<Form::ring, Form>(m, layer);
}

KERNEL(qkv, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    qkv_any<weights_bf16>(m, layer);
}

KERNEL(qkv_mxfp8, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    qkv_any<weights_mxfp8>(m, layer);
}

KERNEL(out, CU_OUT_WARPS * 32, CU_DENSE_BLOCKS)
{
    out_any<weights_bf16>(m, layer);
}

KERNEL(out_mxfp8, CU_OUT_WARPS * 32, CU_DENSE_BLOCKS)
{
    out_any<weights_mxfp8>(m, layer);
}

KERNEL(head, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    head_rows<weights_bf13>(m);
}

KERNEL(head_mxfp8, CU_GEMV_THREADS, CU_DENSE_BLOCKS)
{
    head_rows<weights_mxfp8>(m);
}
