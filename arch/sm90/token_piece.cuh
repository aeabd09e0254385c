/* arch/sm90/token_piece.cuh: one stage of one matrix by one warp, and the sums that it leaves in shared memory. A lane with
 * t = lane % 4 = 0 has the sums of rows g = lane / 4 and g + 8 of the tile: column 0 of mma's result; the other columns are empty. */
#pragma once
#include "arch/cuda/weights.cuh"
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

/* What a lane needs of a dense unit at shared address `stage`, in bf16. Of activations only the lanes of column 0 have any. */
struct token_bf16 {
    static constexpr uint32_t unit_bytes = CU_DENSE_BYTES, span = 1, ahead = 1;
    uint4 w0, w1, in;

    __device__ __forceinline__ void load(uint32_t stage, uint32_t acts, bool there)
    {
        w0 = lds16(stage + threadIdx.x % 32 * 16);
        w1 = lds16(stage + threadIdx.x % 32 * 16 + 512);
        if (there)
            in = lds16(acts);
    }

    __device__ __forceinline__ void multiply(float acc[4]) const
    {
        mma_unit(acc, w0, w1, in);
    }
};

/* The same in MXFP8. */
struct token_mxfp8 {
    static constexpr uint32_t unit_bytes = CU_MXFP8_BYTES, span = CU_MXFP8_SPAN, ahead = CU_TOKEN_MXFP8;
    uint4 codes, in;
    uint32_t scales;

    __device__ __forceinline__ void load(uint32_t stage, uint32_t acts, bool there)
    {
        codes = lds16(stage + threadIdx.x % 32 * 16);
        scales = lds2(stage + CU_MXFP8_CODES + threadIdx.x % 32 / 4 * 2);
        if (there)
            in = lds16(acts);
    }

    __device__ __forceinline__ void multiply(float acc[4]) const
    {
        uint4 w0, w1;
        mxfp8_fragments(codes, scales, w0, w1);
        mma_unit(acc, w0, w1, in);
    }
};

/* `units` of 32 inputs at shared address `stage`; activations bf16 from `acts` on. The next unit is loaded while one is multiplied. */
template <class Form> __device__ __forceinline__ float2 dense_piece(uint32_t stage, uint32_t units, uint32_t acts)
{
    const uint32_t lane = threadIdx.x % 32;
    const bool there = lane < 4;
    float acc[4] = {0, 0, 0, 0};
    Form unit[2];
    unit[0].in = unit[1].in = make_uint4(0, 0, 0, 0);
    acts += lane % 4 * 16;
    if (units == 0)
        return make_float2(0, 0);
    unit[0].load(stage, acts, there);
    uint32_t u = 0;
    for (; u + 1 < units; u += 2) {
        unit[1].load(stage + Form::unit_bytes, acts + 64, there);
        unit[0].multiply(acc);
        stage += 2 * Form::unit_bytes;
        acts += 2 * 64;
        unit[0].load(stage, acts, there); /* behind the last: not used (token_behind) */
        unit[1].multiply(acc);
    }
    if (u < units)
        unit[0].multiply(acc);
    return make_float2(acc[0], acc[2]);
}

/* What a lane needs of an expert's unit; of activations only the lanes of column 0 have any. */
struct mx_in {
    uint4 codes, acts[2];
    uint32_t scales;
};

__device__ __forceinline__ void mx_load(uint32_t codes, uint32_t scales, uint32_t acts, bool there, mx_in &in)
{
    in.codes = lds16(codes);
    in.scales = lds4(scales);
    if (there) {
        in.acts[0] = lds16(acts);
        in.acts[1] = lds16(acts + 64);
    }
}

__device__ __forceinline__ void mx_multiply(const mx_in &in, float acc[1][4])
{
    mx_block<1, true>(in.codes.x, in.codes.y, mx_scale<0>(in.scales), mx_scale<2>(in.scales), &in.acts[0], acc);
    mx_block<1, true>(in.codes.z, in.codes.w, mx_scale<1>(in.scales), mx_scale<3>(in.scales), &in.acts[1], acc);
}

/* `units` of an expert's tile at `stage`; activations fp16 from `acts` on. The next unit is loaded while one is multiplied. */
__device__ __forceinline__ float2 mx_piece(uint32_t stage, uint32_t units, uint32_t acts)
{
    const uint32_t lane = threadIdx.x % 32;
    const bool there = lane < 4;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    float acc[1][4] = {{0, 0, 0, 0}};
    mx_in in[2] = {{zero, {zero, zero}, 0}, {zero, {zero, zero}, 0}};
    uint32_t scales = stage + CU_MX_CODES + lane / 4 * 4;
    stage += lane * 16;
    acts += lane % 4 * 16;
    if (units == 0)
        return make_float2(0, 0);
    mx_load(stage, scales, acts, there, in[0]);
    uint32_t u = 0;
#pragma unroll 1
    for (; u + 1 < units; u += 2) {
        mx_load(stage + CU_MX_BYTES, scales + CU_MX_BYTES, acts + 128, there, in[1]);
        mx_multiply(in[0], acc);
        stage += 2 * CU_MX_BYTES;
        scales += 2 * CU_MX_BYTES;
        acts += 2 * 128;
        mx_load(stage, scales, acts, there, in[0]); /* behind the last: not used (token_behind) */
        mx_multiply(in[1], acc);
    }
    if (u < units)
        mx_multiply(in[0], acc);
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
