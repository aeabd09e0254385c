/* arch/sm90/route_marks.cuh: assignments of a step of up to NIB_MAX_SLOTS rows grouped by expert, rows in order, in a block's shared memory: a row is a bit of its
 * experts' words. A row has an expert once. */
#pragma once
#include "arch/cuda/base.cuh"

static_assert(NIB_MAX_EXPERTS_USED == 4 && NIB_MAX_EXPERTS < 255, "a row's experts, plus 1, are a word");

struct route_marks {
    uint32_t has[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS];   /* which of 32 rows have chosen the expert */
    uint32_t place[NIB_MAX_SLOTS / 32][NIB_MAX_EXPERTS]; /* of the first of them */

    /* All threads of the block. */
    __device__ __forceinline__ void clear(uint32_t threads)
    {
        for (uint32_t i = threadIdx.x; i < sizeof has / 16; i += threads)
            ((uint4 *)has)[i] = make_uint4(0, 0, 0, 0);
    }

    /* The row's experts of a word. */
    __device__ __forceinline__ void mark(uint32_t row, uint32_t picks, uint32_t used)
    {
#pragma unroll
        for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++)
            if (c < used)
                atomicOr(&has[row / 32][(picks >> 8 * c & 255) - 1], 1u << row % 32);
    }

    /* The expert's rows, 0 where it is not `there`, and how many of them are below `decode`. before: those of earlier words. */
    __device__ __forceinline__ uint32_t count(uint32_t expert, bool there, uint32_t decode, uint32_t (&before)[NIB_MAX_SLOTS / 32],
                                              uint32_t *ret_of_decode) const
    {
        uint32_t all = 0, of_decode = 0;
#pragma unroll
        for (uint32_t w = 0; w < NIB_MAX_SLOTS / 32; w++) {
            const uint32_t rows = there ? has[w][expert] : 0;
            before[w] = all;
            all += __popc(rows);
            of_decode += __popc(rows & (decode >= w * 32 + 32 ? ~0u : decode <= w * 32 ? 0 : (1u << decode % 32) - 1));
        }
        *ret_of_decode = of_decode;
        return all;
    }

    /* The expert's places begin there. */
    __device__ __forceinline__ void put(uint32_t expert, uint32_t begin, const uint32_t (&before)[NIB_MAX_SLOTS / 32])
    {
#pragma unroll
        for (uint32_t w = 0; w < NIB_MAX_SLOTS / 32; w++)
            place[w][expert] = begin + before[w];
    }

    __device__ __forceinline__ uint32_t place_of(uint32_t row, uint32_t expert) const
    {
        return place[row / 32][expert] + __popc(has[row / 32][expert] & ((1u << row % 32) - 1));
    }
};
