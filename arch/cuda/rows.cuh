/* arch/cuda/rows.cuh: a block a row of the step: embedding, the sum of experts, and the norm that the next op reads. */
#pragma once
#include "arch/cuda/base.cuh"
#if NIB_SM >= 90
#include "arch/sm90/batch_acts.cuh"
#endif

#define ROW_NOWHERE (~0u)

/* The row's place among the activations of sm_90's products of many rows (arch/sm90/batch_dense.h), or ROW_NOWHERE. By the whole block. */
__device__ __forceinline__ uint32_t row_place(const struct nib_gpu_step *step, uint32_t row, bool last_layer)
{
    __shared__ uint32_t place;
    if (NIB_SM < 90 || !last_layer)
        return NIB_SM >= 90 && row < min(step->decode_count, (uint32_t)NIB_MAX_SLOTS) ? row : ROW_NOWHERE;
    if (threadIdx.x == 0)
        place = ROW_NOWHERE;
    __syncthreads();
    if (threadIdx.x < min(step->want_count, (uint32_t)NIB_MAX_SLOTS) && step->want[threadIdx.x] == row)
        place = threadIdx.x;
    __syncthreads();
    return place;
}

/* acts = bf16(x / sqrt(mean(x^2) + 1e-5) * w); thread i of the block's THREADS holds x[4 (i + THREADS p) ..] in v[p], and so w. The order
 * of the sum is that of a block of CU_ROW_THREADS, of which a thread here stands for some: the same for every row. place: as row_place has it. */
template <uint32_t THREADS, uint32_t PARTS>
__device__ __forceinline__ void norm_row(const struct nib_gpu_machine *m, uint32_t row, uint32_t place, const uint2 w[PARTS],
                                         const float4 v[PARTS])
{
    constexpr uint32_t STANDS = CU_ROW_THREADS / THREADS;
    __shared__ float sums[CU_ROW_THREADS / 32];
    const uint32_t hidden = m->hidden;
    float sum[STANDS] = {};
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++)
        sum[p % STANDS] = __fadd_rn(sum[p % STANDS], square4(v[p]));
#pragma unroll
    for (uint32_t p = 0; p < STANDS; p++) {
        const float of_warp = warp_sum(sum[p]);
        if (threadIdx.x % 32 == 0)
            sums[p * (THREADS / 32) + threadIdx.x / 32] = of_warp;
    }
    __syncthreads();
    const float all = warp_sum(threadIdx.x % 32 < CU_ROW_THREADS / 32 ? sums[threadIdx.x % 32] : 0);
    const float scale = norm_scale(all, hidden);
    uint2 *to = (uint2 *)acts_row(m, row);
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++) {
        const uint32_t i = threadIdx.x + p * THREADS;
        if (i * 4 >= hidden)
            continue;
        const uint2 g = w[p];
        const uint2 y = make_uint2(
            pack_bf16(v[p].x * scale * __uint_as_float(g.x << 16), v[p].y * scale * __uint_as_float(g.x & 0xffff0000u)),
            pack_bf16(v[p].z * scale * __uint_as_float(g.y << 16), v[p].w * scale * __uint_as_float(g.y & 0xffff0000u)));
        to[i] = y;
#if NIB_SM >= 90
        if (place != ROW_NOWHERE)
            batch_acts_put(m, place, i * 2, y);
#endif
    }
}

/* cos and sin of a position, dims i and i + 32. sincospi reduces its argument exactly, so that no table of pi is needed. */
__device__ __forceinline__ void rope_angle(const struct nib_gpu_machine *m, uint32_t pos, uint32_t i, float *ret_cos,
                                           float *ret_sin)
{
    const float angle = __fmul_rn((float)pos, m->rope_freq[i]);
    double sin, cos;
    sincospi((double)angle / 3.14159265358979323846, &sin, &cos);
    *ret_cos = __fmul_rn((float)cos, m->rope_factor);
    *ret_sin = __fmul_rn((float)sin, m->rope_factor);
}

__device__ __forceinline__ void rope_row(const struct nib_gpu_machine *m, uint32_t row, uint32_t pos)
{
    const uint32_t i = threadIdx.x;
    float *rope = at<float>(m->rope);
    if (i < NIB_HEAD_DIM / 2)
        rope_angle(m, pos, i, &rope[row * 32 + i], &rope[(m->step_rows_max + row) * 32 + i]);
}

KERNEL(embed, CU_ROW_THREADS, 1)
{
    const struct nib_gpu_step *step = step_of(m);
    overlap_next();
    overlap_wait();
    const uint32_t row = blockIdx.x, hidden = m->hidden;
    if (row >= step->rows_count)
        return;
    const struct nib_row r = step->rows[row];
    uint32_t token = r.flags & NIB_ROW_FEEDBACK ? at<const uint32_t>(m->last)[r.slot] : r.token;
    if (token >= m->vocab) {
        fault(m, NIB_GPU_EMBED);
        token = 0;
    }
    if (threadIdx.x == 0 && !(r.flags & NIB_ROW_DECODE))
        atomicOr(at<uint32_t>(m->seen) + (uint64_t)r.slot * m->vocab + token, 0x80000000u);
    rope_row(m, row, r.pos);
    const uint2 *from = at<const uint2>(m->embed, (uint64_t)token * hidden * 2);
    float4 *x = at<float4>(m->x, (uint64_t)row * hidden * 4);
    float4 v[CU_ROW_PARTS];
    uint2 w[CU_ROW_PARTS];
#pragma unroll
    for (int p = 0; p < CU_ROW_PARTS; p++) {
        const uint32_t i = threadIdx.x + p * CU_ROW_THREADS;
        v[p] = make_float4(0, 0, 0, 0);
        w[p] = make_uint2(0, 0);
        if (i * 4 >= hidden)
            continue;
        v[p] = bf16_four(from[i]);
        w[p] = at<const uint2>(m->layer[0].attn_norm)[i];
        x[i] = v[p];
    }
    norm_row<CU_ROW_THREADS, CU_ROW_PARTS>(m, row, row_place(step, row, false), w, v);
}

/* A block of THREADS a row, which PARTS parts hold. All but the experts' sums is there before the op before this one has ended: from sm_90 on
 * the expert products begin when the routing is done, and the op after them not before. */
template <uint32_t THREADS, uint32_t PARTS>
__device__ __forceinline__ void combine_row(const struct nib_gpu_machine *m, nib_gpu_ptr norm, bool last_layer)
{
    const uint32_t row = blockIdx.x, hidden = m->hidden, used = m->experts_used;
    float weight[NIB_MAX_EXPERTS_USED];
    const float4 *down[NIB_MAX_EXPERTS_USED];
#pragma unroll
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) { /* there, whatever the count */
        const uint32_t i = row * used + min(c, used - 1);
        weight[c] = __uint_as_float(__ldcg(route_array(m, 1) + i));
        down[c] = at<const float4>(m->down, (uint64_t)__ldcg(route_array(m, 2) + i) * hidden * 4);
    }
    const struct nib_gpu_step *step = step_of(m);
    const bool none = row >= step->rows_count;
    float4 *x = at<float4>(m->x, (uint64_t)row * hidden * 4);
    float4 v[PARTS], y[PARTS][NIB_MAX_EXPERTS_USED];
    uint2 w[PARTS];
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++) {
        const uint32_t i = threadIdx.x + p * THREADS;
        const bool there = !none && i * 4 < hidden;
        v[p] = there ? __ldcg(x + i) : make_float4(0, 0, 0, 0);
        w[p] = there ? __ldg(at<const uint2>(norm) + i) : make_uint2(0, 0);
    }
    const uint32_t place = none ? ROW_NOWHERE : row_place(step, row, last_layer);
    overlap_wait();
    if (none)
        return;
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++) { /* everything is loaded before anything is stored */
        const uint32_t i = threadIdx.x + p * THREADS;
#pragma unroll
        for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++)
            y[p][c] = i * 4 < hidden && c < used ? __ldcg(down[c] + i) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++) {
        const uint32_t i = threadIdx.x + p * THREADS;
        if (i * 4 >= hidden)
            continue;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++) {
            if (c >= used)
                break;
            sum.x = __fmaf_rn(weight[c], y[p][c].x, sum.x);
            sum.y = __fmaf_rn(weight[c], y[p][c].y, sum.y);
            sum.z = __fmaf_rn(weight[c], y[p][c].z, sum.z);
            sum.w = __fmaf_rn(weight[c], y[p][c].w, sum.w);
        }
        v[p].x += sum.x;
        v[p].y += sum.y;
        v[p].z += sum.z;
        v[p].w += sum.w;
        x[i] = v[p];
    }
    norm_row<THREADS, PARTS>(m, row, place, w, v);
}

/* Many rows whose parts fit in CU_MANY_PARTS come in smaller blocks: more of them on a multiprocessor. */
KERNEL(combine, CU_ROW_THREADS, 1)
{
    const bool last = layer + 1 == m->layers;
    const nib_gpu_ptr norm = last ? m->final_norm : m->layer[layer + 1].attn_norm;
    overlap_next();
    if (blockDim.x == CU_ROW_THREADS)
        combine_row<CU_ROW_THREADS, CU_ROW_PARTS>(m, norm, last);
    else
        combine_row<CU_MANY_THREADS, CU_MANY_PARTS>(m, norm, last);
}
