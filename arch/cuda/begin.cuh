/* arch/cuda/begin.cuh: a step comes in. Every index a later op uses is checked here: a step that breaks a bound becomes an empty
 * one with `fault` set. All blocks read the mailbox; block 0 checks it and copies it to the device; they share the pages'
 * tables and token counts of new sequences. */
#pragma once
#include "arch/cuda/base.cuh"

/* A row the later ops can take. */
__device__ __forceinline__ bool row_good(const struct nib_gpu_machine *m, struct nib_row r, bool decode)
{
    return r.slot < m->slots && r.pos / NIB_KV_PAGE_TOKENS < m->ctx_pages &&
           (r.token < m->vocab || r.flags & NIB_ROW_FEEDBACK) && !(r.flags & NIB_ROW_DECODE) == !decode;
}

__device__ __forceinline__ bool counts_good(const struct nib_gpu_machine *m, const struct nib_gpu_step *in, uint64_t serial)
{
    return in->serial == serial && in->rows_count <= min(m->step_rows_max, (uint32_t)NIB_MAX_STEP_ROWS) &&
           in->decode_count <= in->rows_count && in->decode_count <= m->slots &&
           in->want_count <= min(m->slots, in->rows_count) && m->slots <= NIB_MAX_SLOTS;
}

/* Block 0: the device's copy of the step. */
__device__ __forceinline__ void copy_step(const struct nib_gpu_machine *m, const struct nib_gpu_step *in, uint64_t serial,
                                          bool good)
{
    struct nib_gpu_step *out = step_of(m);
    const uint32_t rows = good ? in->rows_count : 0, decode = good ? in->decode_count : 0;
    const uint32_t want = good ? in->want_count : 0;
    for (uint32_t i = threadIdx.x; i < rows; i += CU_BEGIN_THREADS) {
        const struct nib_row r = in->rows[i];
        good &= row_good(m, r, i < decode);
        out->rows[i] = r;
    }
    for (uint32_t i = threadIdx.x; i < want; i += CU_BEGIN_THREADS) {
        good &= in->want[i] < rows;
        out->want[i] = in->want[i];
    }
    good = __syncthreads_and(good);
    if (threadIdx.x == 0) {
        out->serial = serial;
        out->rows_count = good ? rows : 0;
        out->decode_count = good ? decode : 0;
        out->want_count = good ? want : 0;
        out->fault = good ? 0 : NIB_GPU_BEGIN;
    }
}

/* A slot's table and sampling from the host, its token counts to zero; shared by the blocks. */
__device__ __forceinline__ void begin_slot(const struct nib_gpu_machine *m, uint32_t slot)
{
    const uint32_t first = blockIdx.x * CU_BEGIN_THREADS + threadIdx.x, step = gridDim.x * CU_BEGIN_THREADS;
    const uint64_t table = (uint64_t)slot * m->ctx_pages, seen = (uint64_t)slot * m->vocab;
    for (uint32_t i = first; i < m->ctx_pages; i += step)
        at<uint32_t>(m->tables)[table + i] = at<const uint32_t>(m->host_tables)[table + i];
    for (uint32_t i = first; i < m->vocab; i += step)
        at<uint32_t>(m->seen)[seen + i] = 0;
    const uint32_t words = sizeof(struct nib_sampling) / 4;
    for (uint32_t i = first; i < words; i += step)
        at<uint32_t>(m->sampling)[(uint64_t)slot * words + i] = at<const uint32_t>(m->host_sampling)[(uint64_t)slot * words + i];
}

KERNEL(begin, CU_BEGIN_THREADS, 1)
{
    __shared__ uint32_t fresh[NIB_MAX_SLOTS], fresh_count;
    overlap_next();
    overlap_wait();
    const uint64_t serial = *at<const uint64_t>(m->next_serial);
    const struct nib_gpu_step *in = at<const struct nib_gpu_step>(m->mailbox) + serial % NIB_GPU_MAILBOX;
    const bool good = counts_good(m, in, serial);
    if (threadIdx.x == 0)
        fresh_count = 0;
    __syncthreads();
    const uint32_t rows = good ? in->rows_count : 0;
    for (uint32_t i = in->decode_count + threadIdx.x; i < rows; i += CU_BEGIN_THREADS) {
        const struct nib_row r = in->rows[i];
        if (!(r.flags & NIB_ROW_FIRST) || r.slot >= m->slots)
            continue;
        const uint32_t n = atomicAdd(&fresh_count, 1);
        if (n < NIB_MAX_SLOTS)
            fresh[n] = r.slot;
    }
    if (blockIdx.x == 0)
        copy_step(m, in, serial, good);
    __syncthreads();
    for (uint32_t i = 0; i < min(fresh_count, (uint32_t)NIB_MAX_SLOTS); i++)
        begin_slot(m, fresh[i]);
}
