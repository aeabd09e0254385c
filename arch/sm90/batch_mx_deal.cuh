/* arch/sm90/batch_mx_deal.cuh: which parts of all lists' tiles a block of an expert product of many rows gets: the first by its own number, further ones from a counter in
 * global memory, a part ahead, since not all blocks take equally long. A part is of one list. Long lists come first, and behind the whole parts of all lists small ones, of
 * what is left of each, so that blocks end soon after each other. */
#pragma once
#include "arch/cuda/base.cuh"
#include "arch/sm90/batch_mx.h"

/* Tiles tile0 .. of a list; tiles 0: there are no more parts. */
struct __align__(16) batch_mx_part {
    uint32_t list, tile0, tiles, unused;
};

/* In shared memory. A warp that multiplies is no more than the ring's stages behind those that bring, and they no more behind each other. */
struct batch_mx_deal {
    static constexpr uint32_t PARTS = 16, WHOLE = 2 * CU_BATCH_MX_READERS, SMALL = CU_BATCH_MX_READERS; /* PARTS: more than a block is busy with; tiles of a part */
    static_assert(PARTS > 2 * CU_BATCH_MX_STAGES + 1, "of a stage each, and one ahead");
    batch_mx_part part[PARTS];
    uint64_t known[PARTS];                /* mbarriers */
    struct cu_group group[CU_GROUPS_MAX]; /* long ones first */
    uint32_t tiles, lists, whole, small;  /* of a matrix; lists; whole parts of one, small ones */
    uint32_t *asked;                      /* the counter */

    /* All threads call it, a thread a list, of which there are `n`. */
    __device__ __forceinline__ void open(const struct cu_group &mine, uint32_t n, uint32_t matrix_tiles, uint32_t *counter)
    {
        if (threadIdx.x < CU_GROUPS_MAX)
            group[threadIdx.x] = mine;
        if (threadIdx.x < PARTS)
            bulk_init<1>(smem_at(&known[threadIdx.x]));
        __syncthreads();
        uint32_t rank = 0;
        if (threadIdx.x < n)
#pragma unroll 4
            for (uint32_t i = 0; i < n; i++)
                rank += group[i].count + (i < threadIdx.x) > mine.count; /* of like lists the earlier one */
        __syncthreads();
        if (threadIdx.x < n)
            group[rank] = mine;
        if (threadIdx.x == 0) {
            tiles = matrix_tiles;
            lists = n;
            whole = (tiles - min(tiles, SMALL)) / WHOLE;
            small = CU_DIV_UP(tiles - whole * WHOLE, SMALL);
            asked = counter;
            put(0, blockIdx.x);
        }
        __syncthreads();
    }

    /* The block's part `to` is `number` of all; by one thread. */
    __device__ __forceinline__ void put(uint32_t to, uint32_t number)
    {
        batch_mx_part p = {0, 0, 0, 0};
        if (number < lists * whole) {
            p.list = number / whole;
            p.tile0 = number % whole * WHOLE;
            p.tiles = WHOLE;
        } else if ((number -= lists * whole) < lists * small) {
            p.list = number / small;
            p.tile0 = whole * WHOLE + number % small * SMALL;
            p.tiles = min(tiles - p.tile0, SMALL);
        }
        part[to % PARTS] = p;
        bulk_arrive_one(smem_at(&known[to % PARTS]));
    }

    /* For the block's part `to`, by a warp. A block asks once for each part that it gets. */
    __device__ __forceinline__ void ask(uint32_t to)
    {
        if (threadIdx.x % 32 == 0) {
            const uint32_t before = atomicAdd(asked, 1);
            if (before + 1 == lists * (whole + small)) /* the last to ask */
                *asked = 0;
            put(to, gridDim.x + before);
        }
        __syncwarp();
    }

    __device__ __forceinline__ batch_mx_part wait(uint32_t number) const
    {
        bulk_wait(smem_at(&known[number % PARTS]), number / PARTS & 1);
        return part[number % PARTS];
    }
};
