/* arch/sm90/cluster.cuh: the blocks of a cluster and each other's shared memory (PTX ISA, "Data movement: mapa", "barrier.cluster"). */
#pragma once
#include "arch/cuda/base.cuh"

/* Blocks of the cluster, along x; 1 of a launch without any. */
__device__ __forceinline__ uint32_t cluster_blocks()
{
    uint32_t blocks;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(blocks));
    return blocks;
}

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of the cluster's blocks. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* The same by those who have written nothing that others read; what they read from others has come. */
__device__ __forceinline__ void cluster_sync_read()
{
    asm volatile("fence.acq_rel.cta;\nbarrier.cluster.arrive.relaxed;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

/* The two halves of it, for those who have written nothing that others read. */
__device__ __forceinline__ void cluster_arrive()
{
    __syncwarp();
    asm volatile("fence.acq_rel.cta;\nbarrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void cluster_begun()
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

/* A shared address of this block in the block of that rank. */
__device__ __forceinline__ uint32_t cluster_at(uint32_t shared, uint32_t rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared), "r"(rank));
    return there;
}
