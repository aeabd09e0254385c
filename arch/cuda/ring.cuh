/* arch/cuda/ring.cuh: a warp's ring of stages in shared memory, which weights stream through. The warp alone fills and empties
 * it, in order, so that no barrier of the block is needed: it keeps RING - 1 stages asked for ahead of the one it reads. Every lane copies 16 bytes at a
 * time (cp.async). All lanes call everything. */
#pragma once
#include "arch/cuda/base.cuh"

template <int RING, int STAGE> struct warp_ring {
    uint32_t stages, head, tail; /* shared address; places of the stage to fill and the one to read */
    uint64_t policy;

    __device__ __forceinline__ uint32_t after(uint32_t place) const
    {
        return place + 1 == RING ? 0 : place + 1;
    }

    /* The next stage stays empty: nothing is left to ask for. */
    __device__ __forceinline__ void skip()
    {
        head = after(head);
        copy_commit();
    }

    __device__ __forceinline__ void open(uint32_t stages_at)
    {
        stages = stages_at;
        head = tail = 0;
        policy = stream_policy();
    }

    __device__ __forceinline__ void fill(const uint8_t *from, uint32_t bytes)
    {
        const uint32_t lane = threadIdx.x % 32 * 16;
#pragma unroll
        for (uint32_t i = 0; i < STAGE; i += 512)
            if (i + lane < bytes)
                copy16_stream(stages + head * STAGE + i + lane, from + i + lane, policy);
        skip();
    }

    __device__ __forceinline__ uint32_t next()
    {
        copy_wait<RING - 2>();
        __syncwarp(); /* lanes read what other lanes copied */
        const uint32_t now = stages + tail * STAGE;
        tail = after(tail);
        return now;
    }

    __device__ __forceinline__ void close()
    {
        copy_wait<0>();
    }
};
