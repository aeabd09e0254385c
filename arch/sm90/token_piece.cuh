/* arch/sm90/token_piece.cuh: one stage of one matrix by one warp, and the sums that it leaves in shared memory. A lane with
 * t = lane % 4 = 0 has the sums of rows g = lane / 4 and g + 8 of the tile: column 0 of mma's result; the other columns are empty. */
#pragma once
#include "arch/sm90/token_packet.cuh"
#include "arch/sm90/token_ring.cuh"

__device__ __forceinline__ void piece_keep(token_sums &to, float2 rows)
{
    const uint32_t lane = threadIdx.x % 32;
    if (lane % 4 == 0) {
        to[lane / 4] = rows.x;
        to[lane / 4 + 8] = rows.y;
    }
}

__device__ __forceinline__ void dense_load(uint32_t stage, uint32_t acts, bool there, uint4 &w0, uint4 &w1, uint4 &in)
{
    w0 = lds16(stage);
    w1 = lds16(stage + 512);
    if (there)
        in = lds16(acts);
}

/* `units` of 32 inputs at shared address `stage`; activations bf16 from `acts` on. The next unit is loaded while one is multiplied. */
__device__ __forceinline__ float2 dense_piece(uint32_t stage, uint32_t units, uint32_t acts)
{
    const uint32_t lane = threadIdx.x % 32;
    const bool there = lane < 4;
    float acc[4] = {0, 0, 0, 0};
    uint4 w0[2], w1[2], in[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
    stage += lane * 16;
    acts += lane % 4 * 16;
    if (units == 0)
        return make_float2(0, 0);
    dense_load(stage, acts, there, w0[0], w1[0], in[0]);
    uint32_t u = 0;
    for (; u + 1 < units; u += 2) {
        dense_load(stage + CU_DENSE_BYTES, acts + 64, there, w0[1], w1[1], in[1]);
        mma_unit(acc, w0[0], w1[0], in[0]);
        const uint32_t next = u + 2 < units ? 2 : 1; /* the last is read again, and not used */
        stage += next * CU_DENSE_BYTES;
        acts += next * 64;
        dense_load(stage, acts, there, w0[0], w1[0], in[0]);
        mma_unit(acc, w0[1], w1[1], in[1]);
    }
    if (u < units)
        mma_unit(acc, w0[0], w1[0], in[0]);
    return make_float2(acc[0], acc[2]);
}

/* Units u0 .. u0 + n - 1 of an expert's tile at `stage`; activations fp16 at `acts`, of all inputs. */
__device__ __forceinline__ float2 mx_piece(uint32_t stage, uint32_t u0, uint32_t n, uint32_t acts, uint32_t zeros)
{
    float acc[1][4] = {{0, 0, 0, 0}};
    mx_lane<1, true> b(acts, 0, u0, 1, zeros);
    uint32_t u = 0;
    for (; u + CU_MX_SPAN <= n; u += CU_MX_SPAN)
        mx_units<1, true, CU_MX_SPAN>(stage, u, b, acc);
    for (; u < n; u++)
        mx_units<1, true, 1>(stage, u, b, acc);
    return make_float2(acc[0][0], acc[0][2]);
}

/* This warp has left sums of a tile of which the block has `of` stages; true for the last of them to come, in all lanes. No fence: a
 * multiprocessor's shared memory does what its warps ask for in the order in which they ask, and a fence would first wait for
 * what the warp has asked of global memory. */
__device__ __forceinline__ bool tile_last(uint32_t *count, uint32_t of)
{
    uint32_t before = 0;
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        asm volatile("atom.relaxed.cta.shared.add.u32 %0, [%1], 1;" : "=r"(before) : "r"(smem_at(count)) : "memory");
        if (before + 1 == of)
            *(volatile uint32_t *)count = 0;
    }
    return __shfl_sync(~0u, before, 0) + 1 == of;
}
