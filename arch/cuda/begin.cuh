/* arch/cuda/begin.cuh: a step comes in. Every index a later op uses is checked here: a step that breaks a bound becomes an empty
 * one with `fault` set. Block 0 reads the mailbox, checks it and copies it to the device; new sequences' page tables and token
 * counts are the work of the block that has their row in its share. */
#pragma once
#include "arch/cuda/base.cuh"
#include <stddef.h>

/* A row the later ops can take. */
__device__ __forceinline__ bool row_good(const struct nib_gpu_machine *m, struct nib_row r, bool decode)
{
    return r.slot < m->slots && r.pos / NIB_KV_PAGE_TOKENS < m->ctx_pages &&
           (r.token < m->vocab || r.flags & NIB_ROW_FEEDBACK) && !(r.flags & NIB_ROW_DECODE) == !decode;
}

/* A trip to the host's memory takes microseconds, and so does every ten or so of its lines: words are read together, whole, and no
 * more of them than a step has but for the first ones, which come before the counts are known. */
#define BEGIN_WORDS CU_DIV_UP(offsetof(struct nib_gpu_step, want), 8) /* head and rows */
#define BEGIN_WANTS CU_DIV_UP(NIB_MAX_SLOTS, 4)
#define BEGIN_AHEAD 32 /* words: of 19 rows */
#define BEGIN_WANTS_AHEAD 5

/* A thread's part of the words that come before the counts are known. Where the step before has not ended yet its own and the next one's are read,
 * before it is known which is wanted: what the host has launched this kernel for it wrote before. */
struct begin_words {
    uint64_t word, want;

    __device__ __forceinline__ explicit begin_words(const struct nib_gpu_step *in)
    {
        const volatile uint64_t *from = (const volatile uint64_t *)in;
        const uint32_t i = threadIdx.x, w = CU_BEGIN_THREADS - 1 - i;
        want = i < BEGIN_WANTS_AHEAD ? from[BEGIN_WORDS + i] : 0;
        word = w < BEGIN_AHEAD ? from[w] : 0;
    }
};

struct begin_step {
    uint64_t words[BEGIN_WORDS], want[BEGIN_WANTS]; /* as they lie in struct nib_gpu_step, the front of it */

    __device__ __forceinline__ struct nib_row row(uint32_t i) const
    {
        return ((const struct nib_gpu_step *)words)->rows[i];
    }

    __device__ __forceinline__ void take(const begin_words &ahead)
    {
        const uint32_t i = threadIdx.x, w = CU_BEGIN_THREADS - 1 - i;
        if (i < BEGIN_WANTS_AHEAD)
            want[i] = ahead.want;
        if (w < BEGIN_AHEAD)
            words[w] = ahead.word;
    }

    /* Words first .. end - 1, and those of the wants. All threads, then a barrier. */
    __device__ __forceinline__ void read(const struct nib_gpu_step *in, uint32_t first, uint32_t end, uint32_t wants_first,
                                         uint32_t wants)
    {
        const volatile uint64_t *from = (const volatile uint64_t *)in;
        const uint32_t i = threadIdx.x + wants_first;
        const uint64_t other = i < wants ? from[BEGIN_WORDS + i] : 0;
        for (uint32_t w = first + (CU_BEGIN_THREADS - 1 - threadIdx.x); w < end; w += CU_BEGIN_THREADS)
            words[w] = from[w];
        if (i < wants)
            want[i] = other;
    }
};
static_assert(offsetof(struct nib_gpu_step, want) % 8 == 0 && sizeof(struct nib_gpu_step) % 8 == 0 && BEGIN_WANTS <= CU_BEGIN_THREADS,
              "words of 8 bytes");

struct begin_head {
    uint64_t serial;
    uint32_t rows, decode, want;
};

__device__ __forceinline__ bool counts_good(const struct nib_gpu_machine *m, const begin_head &h, uint64_t serial)
{
    return h.serial == serial && h.rows <= min(m->step_rows_max, (uint32_t)NIB_MAX_STEP_ROWS) && h.decode <= h.rows &&
           h.decode <= m->slots && h.want <= min(m->slots, h.rows) && m->slots <= NIB_MAX_SLOTS;
}

/* Block 0: the device's copy of the step. */
__device__ __forceinline__ void copy_step(const struct nib_gpu_machine *m, const begin_step &in, const begin_head &h,
                                          uint64_t serial, bool good)
{
    struct nib_gpu_step *out = step_of(m);
    static_assert(NIB_MAX_SLOTS <= CU_BEGIN_THREADS, "a thread a want");
    const uint32_t i = threadIdx.x;
    if (i < h.want) {
        const uint16_t row = ((const uint16_t *)in.want)[i];
        good &= row < h.rows;
        out->want[i] = row;
    }
    for (uint32_t n = i; n < h.rows; n += CU_BEGIN_THREADS) {
        const struct nib_row r = in.row(n);
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

/* A slot's table and sampling from the host, its token counts to zero. By one block. */
__device__ __forceinline__ void begin_slot(const struct nib_gpu_machine *m, uint32_t slot)
{
    const uint64_t table = (uint64_t)slot * m->ctx_pages;
    uint32_t *seen = at<uint32_t>(m->seen) + (uint64_t)slot * m->vocab;
    for (uint32_t i = threadIdx.x; i < m->ctx_pages; i += CU_BEGIN_THREADS)
        at<uint32_t>(m->tables)[table + i] = at<const uint32_t>(m->host_tables)[table + i];
    const uint32_t fours = m->vocab % 4 == 0 ? m->vocab / 4 : 0;
    for (uint32_t i = threadIdx.x; i < fours; i += CU_BEGIN_THREADS)
        ((uint4 *)seen)[i] = make_uint4(0, 0, 0, 0);
    for (uint32_t i = fours * 4 + threadIdx.x; i < m->vocab; i += CU_BEGIN_THREADS)
        seen[i] = 0;
    const uint32_t words = sizeof(struct nib_sampling) / 4;
    for (uint32_t i = threadIdx.x; i < words; i += CU_BEGIN_THREADS)
        at<uint32_t>(m->sampling)[(uint64_t)slot * words + i] = at<const uint32_t>(m->host_sampling)[(uint64_t)slot * words + i];
}

KERNEL(begin, CU_BEGIN_THREADS, 1)
{
    __shared__ begin_step in;
    __shared__ uint32_t fresh[NIB_MAX_SLOTS], fresh_count;
    overlap_next();
    const struct nib_gpu_step *const mailbox = at<const struct nib_gpu_step>(m->mailbox);
    const volatile uint64_t *const next = at<const volatile uint64_t>(m->next_serial);
    const uint64_t early = *next;
    const begin_words ended = begin_words(mailbox + early % NIB_GPU_MAILBOX), ends = begin_words(mailbox + (early + 1) % NIB_GPU_MAILBOX);
    overlap_wait();
    const uint64_t serial = *next;
    const struct nib_gpu_step *from = mailbox + serial % NIB_GPU_MAILBOX;
    in.take(serial == early ? ended : serial == early + 1 ? ends : begin_words(from));
    if (threadIdx.x == 0)
        fresh_count = 0;
    __syncthreads();
    begin_head h = {in.words[0], (uint32_t)in.words[1], (uint32_t)(in.words[1] >> 32), (uint32_t)in.words[2]};
    const bool good = counts_good(m, h, serial);
    if (!good)
        h.rows = h.decode = h.want = 0;
    const uint32_t prompt = h.rows - h.decode; /* this block looks for new sequences among rows first .. end - 1 */
    const uint32_t first = h.decode + prompt * blockIdx.x / gridDim.x, end = h.decode + prompt * (blockIdx.x + 1) / gridDim.x;
    constexpr uint32_t head = offsetof(struct nib_gpu_step, rows), each = sizeof(struct nib_row);
    if (blockIdx.x == 0)
        in.read(from, BEGIN_AHEAD, CU_DIV_UP(head + h.rows * each, 8), BEGIN_WANTS_AHEAD, CU_DIV_UP(h.want, 4));
    else if (first < end)
        in.read(from, max((head + first * each) / 8, (uint32_t)BEGIN_AHEAD), CU_DIV_UP(head + end * each, 8), 0, 0);
    __syncthreads();
    for (uint32_t i = first + threadIdx.x; i < end; i += CU_BEGIN_THREADS) {
        const struct nib_row r = in.row(i);
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
