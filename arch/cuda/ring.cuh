/* arch/cuda/ring.cuh: a warp's ring of stages in shared memory, which weights stream through. The warp alone fills and empties
 * it, in order, so that no barrier of the block is needed: it keeps `depth` - 1 stages asked for ahead of the one it reads.
 *
 * From sm_90 on lane 0 asks for a whole stage (cp.async.bulk) and an mbarrier a stage tells that it came (PTX ISA, "Data movement:
 * cp.async.bulk"); before, every lane copies 16 bytes at a time (cp.async). All lanes call everything. */
#pragma once
#include "arch/cuda/base.cuh"

template <int RING, int STAGE> struct warp_ring {
    uint32_t stages, head, tail; /* shared address; places of the stage to fill and the one to read */
    uint32_t depth;              /* of RING stages those in use: before sm_90 all */
    uint64_t policy;

    __device__ __forceinline__ uint32_t after(uint32_t place) const
    {
        return place + 1 == (NIB_SM >= 90 ? depth : RING) ? 0 : place + 1;
    }

    /* The next stage stays empty: nothing is left to ask for. */
    __device__ __forceinline__ void skip()
    {
        head = after(head);
#if NIB_SM < 90
        copy_commit();
#endif
    }

#if NIB_SM >= 90
    uint32_t full, parity; /* mbarriers of the stages; the phase of the one to read */
    uint32_t asked;        /* stages filled and not yet read */

    /* `barriers`: RING of them, this warp's. */
    __device__ __forceinline__ void open(uint32_t stages_at, uint64_t *barriers, uint32_t depth_at_most)
    {
        stages = stages_at;
        full = smem_at(barriers);
        depth = min(depth_at_most, (uint32_t)RING);
        head = tail = parity = asked = 0;
        policy = stream_policy();
        if (threadIdx.x % 32 == 0) {
            for (int i = 0; i < RING; i++)
                asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(full + 8 * i) : "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        __syncwarp();
    }

    /* The next stage gets `bytes` from there, a multiple of 16. */
    __device__ __forceinline__ void fill(const uint8_t *from, uint32_t bytes)
    {
        if (threadIdx.x % 32 == 0) {
            const uint32_t bar = full + head * 8;
            bulk_expect(bar, bytes);
            copy_bulk(stages + head * STAGE, from, bytes, bar, policy);
        }
        asked++;
        skip();
    }

    /* Shared address of the next filled stage, come whole; the one before it may be filled again. */
    __device__ __forceinline__ uint32_t next()
    {
        const uint32_t now = stages + tail * STAGE;
        bulk_wait(full + tail * 8, parity);
        __syncwarp();
        tail = after(tail);
        parity ^= tail == 0;
        asked--;
        return now;
    }

    /* Every copy has landed: the block may end. */
    __device__ __forceinline__ void close()
    {
        while (asked)
            (void)next();
    }
#else
    __device__ __forceinline__ void open(uint32_t stages_at, uint64_t *, uint32_t)
    {
        stages = stages_at;
        depth = RING;
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
#endif
};
