/* arch/sm90/token_ring.cuh: a block's ring of weights in shared memory. One thread asks for stages in order (cp.async.bulk), as far
 * ahead as the ring's bytes allow, whatever the other warps are doing; a stage is read by one of them or, each a half, two. Where each lies
 * is known beforehand (token_order.cuh); their mbarriers (full: the bytes are there; empty: they were read) are taken in turns
 * (PTX ISA, "Data movement: cp.async.bulk", "mbarrier"). */
#pragma once
#include "arch/sm90/token_room.cuh"

__device__ __forceinline__ bool bar_done(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(smem_at(bar)), "r"(parity)
                 : "memory");
    return done;
}

/* The same without a wait. */
__device__ __forceinline__ bool bar_ended(uint64_t *bar, uint32_t parity)
{
    uint32_t ended;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(ended)
                 : "r"(smem_at(bar)), "r"(parity)
                 : "memory");
    return ended;
}

/* False: given up. */
__device__ __forceinline__ bool bar_wait(uint64_t *bar, uint32_t parity)
{
    for (uint32_t turn = 0; !bar_done(bar, parity); turn++)
        if (token_late(turn))
            return false;
    return true;
}

/* One thread of the block. */
__device__ __forceinline__ void bars_open()
{
    for (int i = 0; i < CU_TOKEN_SLOTS; i++) {
        bulk_init<1>(smem_at(&room().full[i]));
        bulk_init<2>(smem_at(&room().empty[i]));
    }
    for (int i = 0; i < CUTS; i++)
        bulk_init<32>(smem_at(&room().cut_bar[i]));
    bulk_init<1>(smem_at(&room().best_bar));
    bulk_init<1>(smem_at(&room().chosen_bar));
    bulk_init<1>(smem_at(&room().scale_bar));
    bulk_init<32>(smem_at(&room().route_bar));
    for (int i = 0; i < CU_TOKEN_DENSE; i++)
        bulk_init<1>(smem_at(&room().x_bar[i]));
    for (int i = 0; i < 2; i++)
        bulk_init<32>(smem_at(&room().bias_bar[i]));
    bulk_inited();
}

#define TOKEN_NONE (~0u) /* no stage has this number */

/* The side that asks: a warp, whose lanes all know the same; one of them asks. Numbers count a launch's stages. What lasts lies in shared
 * memory. */
struct token_feed {
    uint32_t freed; /* stages below were read */
    uint64_t policy;

    __device__ __forceinline__ token_feed() : freed(room().freed), policy(stream_policy())
    {
    }

    /* Stages below `number` were asked for. */
    __device__ __forceinline__ void leave(uint32_t number) const
    {
        __syncwarp();
        room().freed = freed;
        room().asked = number;
        __syncwarp();
    }

    /* Waits until stages below `read` were read and stage `landed`, if there is such, has come: a lane each. False: in vain; they may still be read, so
     * nothing more may be asked for. */
    __device__ __forceinline__ bool wait(uint32_t read, uint32_t landed)
    {
        const bool last = threadIdx.x % 32 == 31;
        for (;; freed += 31) {
            const uint32_t number = last ? landed : freed + threadIdx.x % 32;
            const bool wants = last ? (int32_t)landed >= 0 : (int32_t)(read - number) > 0;
            uint64_t *bar = (last ? room().full : room().empty) + number % CU_TOKEN_SLOTS;
            for (uint32_t turn = 0; !__all_sync(~0u, !wants || bar_done(bar, number / CU_TOKEN_SLOTS & 1)); turn++)
                if (__any_sync(~0u, token_late(turn)))
                    return false;
            if ((int32_t)(read - freed) <= 31)
                break;
        }
        freed = (int32_t)(read - freed) > 0 ? read : freed;
        return true;
    }

    __device__ __forceinline__ void ask(uint32_t number, uint64_t from, uint32_t to, uint32_t bytes) const
    {
        const uint32_t bar = smem_at(&room().full[number % CU_TOKEN_SLOTS]);
        bulk_expect(bar, bytes);
        if (bytes)
            copy_bulk(to, (const void *)from, bytes, bar, policy);
    }

    /* Every copy has landed: the block may end. A launch that gave up has copies that nobody read. */
    __device__ __forceinline__ void close()
    {
        const uint32_t asked = room().asked;
        (void)wait(asked, TOKEN_NONE);
        for (uint32_t n = asked > CU_TOKEN_SLOTS ? asked - CU_TOKEN_SLOTS : 0; n < asked; n++)
            while (!bar_done(&room().full[n % CU_TOKEN_SLOTS], n / CU_TOKEN_SLOTS & 1))
                ;
    }
};

/* The side that reads: each warp knows the number of its stage. */
__device__ __forceinline__ void stage_wait(uint32_t number)
{
    (void)bar_wait(&room().full[number % CU_TOKEN_SLOTS], number / CU_TOKEN_SLOTS & 1);
    __syncwarp();
}

/* HALVES of the stage were read. */
template <int HALVES> __device__ __forceinline__ void stage_free(uint32_t number)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;" ::"r"(smem_at(&room().empty[number % CU_TOKEN_SLOTS])),
                     "n"(HALVES)
                     : "memory");
}
