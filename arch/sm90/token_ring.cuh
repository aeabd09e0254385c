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
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(smem_at(&room().full[i])) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], 2;" ::"r"(smem_at(&room().empty[i])) : "memory");
    }
    for (int c = 0; c < NIB_MAX_EXPERTS_USED; c++)
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(&room().gated_bar[c])), "n"(1) : "memory");
    for (int i = 0; i < 2; i++)
        asm volatile("mbarrier.init.shared.b64 [%0], 32;" ::"r"(smem_at(&room().bias_bar[i])) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The side that asks: one thread. Numbers count a launch's stages. */
struct token_feed {
    uint32_t asked, freed;
    uint64_t policy;

    __device__ __forceinline__ explicit token_feed(uint32_t already) : asked(already), freed(0), policy(stream_policy())
    {
    }

    /* Waits until stages below `number` were read. False: in vain; they may still be read, so nothing more may be asked for. */
    __device__ __forceinline__ bool wait_read(uint32_t number)
    {
        for (; (int32_t)(number - freed) > 0; freed++)
            if (!bar_wait(&room().empty[freed % CU_TOKEN_SLOTS], freed / CU_TOKEN_SLOTS & 1))
                return false;
        return true;
    }

    /* Waits until fewer than `ahead` are on their way. */
    __device__ __forceinline__ bool wait_landed(uint32_t ahead)
    {
        const uint32_t number = asked - ahead;
        return (int32_t)number < 0 || bar_wait(&room().full[number % CU_TOKEN_SLOTS], number / CU_TOKEN_SLOTS & 1);
    }

    __device__ __forceinline__ void ask(uint64_t from, const token_ask &a)
    {
        const uint32_t bar = smem_at(&room().full[asked++ % CU_TOKEN_SLOTS]);
        bulk_expect(bar, a.bytes);
        if (a.bytes)
            copy_bulk(a.to, (const void *)(from + a.offset), a.bytes, bar, policy);
    }

    /* Every copy has landed: the block may end. A launch that gave up has copies that nobody read. */
    __device__ __forceinline__ void close()
    {
        (void)wait_read(asked);
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
