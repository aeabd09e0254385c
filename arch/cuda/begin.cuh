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

/* The head of a step, and the row and the want of this thread's number, needed or not: read at once, since a trip to the host's
 * memory takes many microseconds. */
struct begin_head {
    uint64_t serial;
    uint32_t rows, decode, want;
    struct nib_row row;
    uint16_t want_row;
};

__device__ __forceinline__ begin_head begin_read(const struct nib_gpu_step *in)
{
    const volatile uint64_t *words = (const volatile uint64_t *)in;
    const uint32_t i = min(threadIdx.x, (uint32_t)NIB_MAX_SLOTS - 1);
    const uint64_t w0 = words[0], w1 = words[1], w2 = words[2];
    const struct nib_row row = in->rows[i];
    const uint16_t want_row = in->want[i];
    return {w0, (uint32_t)w1, (uint32_t)(w1 >> 32), (uint32_t)w2, row, want_row};
}

__device__ __forceinline__ bool counts_good(const struct nib_gpu_machine *m, const begin_head &h, uint64_t serial)
{
    return h.serial == serial && h.rows <= min(m->step_rows_max, (uint32_t)NIB_MAX_STEP_ROWS) && h.decode <= h.rows &&
           h.decode <= m->slots && h.want <= min(m->slots, h.rows) && m->slots <= NIB_MAX_SLOTS;
}

/* Block 0: the device's copy of the step. */
__device__ __forceinline__ void copy_step(const struct nib_gpu_machine *m, const struct nib_gpu_step *in, const begin_head &h,
                                          uint64_t serial, bool good)
{
    struct nib_gpu_step *out = step_of(m);
    static_assert(NIB_MAX_SLOTS <= CU_BEGIN_THREADS, "a thread a want");
    const uint32_t i = threadIdx.x;
    if (i < h.want) {
        const uint16_t row = h.want_row;
        good &= row < h.rows;
        out->want[i] = row;
    }
    for (uint32_t n = i; n < h.rows; n += CU_BEGIN_THREADS) {
        const struct nib_row r = n < NIB_MAX_SLOTS ? h.row : in->rows[n];
        good &= row_good(m, r, n < h.decode);
        out->rows[n] = r;
    }
    good = __syncthreads_and(good);
    if (threadIdx.x == 0) {
        out->serial = serial;
        out->rows_count = good ? h.rows : 0;
        out->decode_count = good ? h.decode : 0;
        out->want_count = good ? h.want : 0;
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
    begin_head h = begin_read(in);
    const bool good = counts_good(m, h, serial);
    if (!good)
        h.rows = h.decode = h.want = 0;
    if (threadIdx.x == 0)
        fresh_count = 0;
    __syncthreads();
    for (uint32_t i = h.decode + threadIdx.x; i < h.rows; i += CU_BEGIN_THREADS) {
        const struct nib_row r = in->rows[i];
        if (!(r.flags & NIB_ROW_FIRST) || r.slot >= m->slots)
            continue;
        const uint32_t n = atomicAdd(&fresh_count, 1);
        if (n < NIB_MAX_SLOTS)
            fresh[n] = r.slot;
    }
    if (blockIdx.x == 0)
        copy_step(m, in, h, serial, good);
    __syncthreads();
    for (uint32_t i = 0; i < min(fresh_count, (uint32_t)NIB_MAX_SLOTS); i++)
        begin_slot(m, fresh[i]);
}
