/* arch/sm90/token_ring.cuh: a block's ring of weights in shared memory. One warp asks for stages in order (cp.async.bulk), as far
 * ahead as the ring's bytes allow, whatever the other warps are doing; a stage is read by one of them or, each a half, two. Stages have
 * different sizes and lie one behind the other; their mbarriers (full: the bytes are there; empty: they were read) are taken in turns
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
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_at(&room().gated_bar[c])), "n"(CU_TOKEN_WARPS) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* The side that asks: a warp, all lanes alike, of which lane 0 does it. */
struct token_feed {
    uint32_t head, used;   /* offset of the next stage; bytes that stages not yet read take */
    uint32_t asked, freed; /* stages */
    uint32_t ring, bytes;
    uint64_t policy;

    __device__ __forceinline__ token_feed()
        : head(0), used(0), asked(0), freed(0), ring(room().ring), bytes(room().ring_bytes), policy(stream_policy())
    {
    }

    __device__ __forceinline__ void push(uint64_t from, uint32_t n)
    {
        const bool wraps = head + n > bytes;
        const uint32_t skip = wraps ? bytes - head : 0, slot = asked % CU_TOKEN_SLOTS;
        while (asked - freed == CU_TOKEN_SLOTS || used + n + skip > bytes) {
            const uint32_t oldest = freed % CU_TOKEN_SLOTS;
            (void)bar_wait(&room().empty[oldest], freed / CU_TOKEN_SLOTS & 1);
            used -= *(volatile uint32_t *)&room().cost[oldest];
            freed++;
        }
        if (__any_sync(~0u, *(volatile uint32_t *)&room().late))
            return; /* what was waited for may still be read */
        const uint32_t at = wraps ? 0 : head, bar = smem_at(&room().full[slot]), to = ring + at;
        head = at + n;
        used += n + skip;
        asked++;
        if (threadIdx.x % 32 != 0)
            return;
        room().cost[slot] = n + skip;
        room().stage[slot] = to;
        bulk_expect(bar, n);
        if (n)
            copy_bulk(to, (const void *)from, n, bar, policy);
    }

    /* Every copy has landed: the block may end. A launch that gave up has copies that nobody read. */
    __device__ __forceinline__ void close()
    {
        for (; freed < asked; freed++) {
            (void)bar_wait(&room().empty[freed % CU_TOKEN_SLOTS], freed / CU_TOKEN_SLOTS & 1);
            while (!bar_done(&room().full[freed % CU_TOKEN_SLOTS], freed / CU_TOKEN_SLOTS & 1))
                ;
        }
    }
};

/* The side that reads: each warp knows the number of its stage. Shared address of the stage; after a wait in vain some other. */
__device__ __forceinline__ uint32_t stage_wait(uint32_t number)
{
    const uint32_t slot = number % CU_TOKEN_SLOTS;
    const bool there = bar_wait(&room().full[slot], number / CU_TOKEN_SLOTS & 1);
    __syncwarp();
    return there ? room().stage[slot] : room().ring;
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
