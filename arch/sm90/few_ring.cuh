/* arch/sm90/few_ring.cuh: a block's ring of stages in shared memory, which one thread fills and warps empty in turns: whoever uses it keeps where it is. */
#pragma once
#include "arch/cuda/base.cuh"

/* A field of the machine block, read here and not where it is used, behind a wait. */
template <class T> __device__ __forceinline__ T few_now(const T &field)
{
    return *(const volatile T *)&field;
}

struct few_ring {
    uint32_t stages, bytes, depth; /* shared address, of a stage, how many */
    uint32_t full, empty;          /* mbarriers of each */
    uint32_t place, parity;

    __device__ __forceinline__ uint32_t stage() const
    {
        return stages + place * bytes;
    }

    __device__ __forceinline__ void next(uint32_t n)
    {
        place += n;
        while (place >= depth) {
            place -= depth;
            parity ^= 1;
        }
    }
};
