/* arch/sm90/token_piece.cuh: one stage of one matrix by one warp, and the sums that it leaves in shared memory. A lane with
 * t = lane % 4 = 0 has the sums of rows g = lane / 4 and g + 8 of the tile: column 0 of mma's result; the other columns are empty. */
#pragma once
#include "arch/cuda/weights.cuh"
#include "arch/sm90/token_packet.cuh"
#include "arch/sm90/token_ring.cuh"

/* A lane's rows lane / 4 and lane / 4 + 8 to token_sums at a shared address. */
__device__ __forceinline__ void sums_put(uint32_t sums, float2 rows)
{
    sums += threadIdx.x % 32 / 4 * 4;
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(sums), "f"(rows.x) : "memory");
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(sums + 32), "f"(rows.y) : "memory");
}

__device__ __forceinline__ void piece_keep(uint32_t sums, float2 rows)
{
    if (threadIdx.x % 4 == 0)
        sums_put(sums, rows);
}

/* What a lane needs of a dense unit at shared address `stage`, in bf16. */
struct token_bf16 {
    static constexpr uint32_t unit_bytes = CU_DENSE_BYTES, span = 1;
    static constexpr uint32_t ahead_qkv = CU_TOKEN_AHEAD_QKV, ahead_out = CU_TOKEN_AHEAD_OUT, ahead = CU_TOKEN_AHEAD;
    static constexpr uint32_t step_qkv = CU_TOKEN_STEP_QKV, early_qkv = 0, more_qkv = ahead_qkv;
    static constexpr bool holds = true; /* warps hold stages (dense_hold) */
    static constexpr uint32_t x_takers = 256, attn_takers = 192; /* threads that take vectors in; warps behind them hold */
    uint4 w0, w1;

    __device__ __forceinline__ void load(uint32_t stage)
    {
        w0 = lds16(stage + threadIdx.x % 32 * 16);
        w1 = lds16(stage + threadIdx.x % 32 * 16 + 512);
    }

    __device__ __forceinline__ void multiply(float acc[4], uint4 in) const
    {
        mma_unit(acc, w0, w1, in);
    }
};

/* The same in MXFP8. */
struct token_mxfp8 {
    static constexpr uint32_t unit_bytes = CU_MXFP8_BYTES, span = CU_MXFP8_SPAN;
    static constexpr uint32_t ahead_qkv = CU_TOKEN_MXFP8_QKV, ahead_out = CU_TOKEN_MXFP8_OUT, ahead = CU_TOKEN_MXFP8;
    static constexpr uint32_t step_qkv = CU_TOKEN_MXFP8_STEP, early_qkv = CU_TOKEN_MXFP8_EARLY, more_qkv = CU_TOKEN_MXFP8_MORE;
    static constexpr bool holds = false; /* all of QKV fits the ring */
    static constexpr uint32_t x_takers = 384, attn_takers = CU_TOKEN_WARPS * 32;
    uint4 codes;
    uint32_t scales;

    __device__ __forceinline__ void load(uint32_t stage)
    {
        codes = lds16(stage + threadIdx.x % 32 * 16);
        scales = lds2(stage + CU_MXFP8_CODES + threadIdx.x % 32 / 4 * 2);
    }

    __device__ __forceinline__ void multiply(float acc[4], uint4 in) const
    {
        uint4 w0, w1;
        mxfp8_fragments(codes, scales, w0, w1);
        mma_unit(acc, w0, w1, in);
    }
};

/* Activations of a unit: only the lanes of column 0 have any. */
struct token_inputs {
    uint4 in = {0, 0, 0, 0};

    __device__ __forceinline__ void load(uint32_t acts)
    {
        if (threadIdx.x % 32 < 4)
            in = lds16(acts);
    }
};

/* `units` of 32 inputs at shared address `stage`; activations bf16 from `acts` on. The next unit is loaded while one is multiplied. */
template <class Form> __device__ __forceinline__ float2 dense_piece(uint32_t stage, uint32_t units, uint32_t acts)
{
    float acc[4] = {0, 0, 0, 0};
    Form unit[2];
    token_inputs x[2];
    acts += threadIdx.x % 4 * 16;
    if (units == 0)
        return make_float2(0, 0);
    unit[0].load(stage);
    x[0].load(acts);
    uint32_t u = 0;
    for (; u + 1 < units; u += 2) {
        unit[1].load(stage + Form::unit_bytes);
        x[1].load(acts + 64);
        unit[0].multiply(acc, x[0].in);
        stage += 2 * Form::unit_bytes;
        acts += 2 * 64;
        unit[0].load(stage); /* behind the last: not used (token_behind) */
        x[0].load(acts);
        unit[1].multiply(acc, x[1].in);
    }
    if (u < units)
        unit[0].multiply(acc, x[0].in);
    return make_float2(acc[0], acc[2]);
}

/* A stage of UNITS or one less. Its first units are taken into registers at once, which can be done before their activations are there; the rest when
 * these registers are free. */
template <class Form, uint32_t UNITS> struct dense_fixed {
    static constexpr uint32_t held = UNITS < 10 ? UNITS : 10, rest = UNITS - held;
    static_assert(rest <= held, "twice");
    Form unit[held];

    __device__ __forceinline__ static bool fits(uint32_t units)
    {
        return units == UNITS || units + 1 == UNITS;
    }

    __device__ __forceinline__ void load(uint32_t stage)
    {
#pragma unroll
        for (uint32_t u = 0; u < held; u++)
            unit[u].load(stage + u * Form::unit_bytes); /* behind the stage: not used (token_behind) */
    }

    /* As dense_piece. read() is called when nothing of the stage is needed any more. */
    template <class Read> __device__ __forceinline__ float2 multiply(uint32_t stage, uint32_t units, uint32_t acts, Read read)
    {
        float acc[4] = {0, 0, 0, 0};
        token_inputs x[2];
        acts += threadIdx.x % 4 * 16;
        x[0].load(acts);
#pragma unroll
        for (uint32_t u = 0; u < UNITS; u++) {
            if (u + 1 < UNITS)
                x[(u + 1) % 2].load(acts + (u + 1) * 64);
            if (u + 1 < UNITS || units == UNITS)
                unit[u % held].multiply(acc, x[u % 2].in);
            if (u + held < UNITS)
                unit[u].load(stage + (u + held) * Form::unit_bytes);
            if (u + 1 == rest)
                read();
        }
        return make_float2(acc[0], acc[2]);
    }
};

/* A warp multiplies two shares of an expert's inputs at once, unit by unit. Of mma's columns 0 and 1 are for the first share, 2 and 3 for the second, one for each of a
 * unit's two blocks of 32 inputs: so one load brings both blocks' activations, and lane (g, t) = (lane / 4, lane % 4) has the sums of rows g and g + 8 of share
 * t, of each product in its own column. A share's products have activations in its own columns only: that they are added to the other's sum, too, as zeros,
 * changes no bit of it. Lanes of other columns have nothing. */
struct mx_shares {
    uint4 codes[2], acts[2];
    uint32_t scales;            /* of the lane's share */
    uint32_t codes_at[2];       /* shared addresses of what is loaded next */
    uint32_t scales_at, acts_at;

    __device__ __forceinline__ mx_shares(uint32_t stage, uint32_t first, uint32_t acts_first)
    {
        const uint32_t lane = threadIdx.x % 32, behind = first * CU_MX_BYTES;
        codes_at[0] = stage + lane * 16;
        codes_at[1] = codes_at[0] + behind;
        scales_at = stage + CU_MX_CODES + lane / 4 * 4 + (lane % 2 ? behind : 0);
        acts_at = acts_first + lane % 8 * 16 + (lane / 8 == 1 ? first * 128 : 0);
        acts[0] = acts[1] = make_uint4(0, 0, 0, 0);
    }

    /* Of share C. */
    template <int C> __device__ __forceinline__ void load()
    {
        codes[C] = lds16(codes_at[C]);
        codes_at[C] += CU_MX_BYTES;
        if (threadIdx.x % 32 / 8 == C)
            acts[C] = lds16(acts_at);
    }

    __device__ __forceinline__ void load_scales()
    {
        scales = lds4(scales_at);
        scales_at += CU_MX_BYTES;
        acts_at += 128;
    }

    /* The products of a unit's two blocks of 32 inputs. */
    template <int C, bool FIRST> __device__ __forceinline__ void multiply(float even[4], float odd[4]) const
    {
        chain<FIRST>(even, codes[C].x, codes[C].y, acts[C]);
        chain<FIRST>(odd, codes[C].z, codes[C].w, acts[C]);
    }

    /* Adds them, if the lane's share has this unit. */
    __device__ __forceinline__ void add(float2 &acc, const float even[4], const float odd[4], bool has) const
    {
        float2 sum = acc;
        sum.x = __fmaf_rn(mx_scale<0>(scales), even[0], sum.x);
        sum.y = __fmaf_rn(mx_scale<2>(scales), even[2], sum.y);
        sum.x = __fmaf_rn(mx_scale<1>(scales), odd[1], sum.x);
        sum.y = __fmaf_rn(mx_scale<3>(scales), odd[3], sum.y);
        acc.x = has ? sum.x : acc.x;
        acc.y = has ? sum.y : acc.y;
    }

  private:
    template <bool FIRST> static __device__ __forceinline__ void chain(float d[4], uint32_t w0, uint32_t w1, uint4 b)
    {
        uint32_t a[4];
        mx_fragment(w0, a);
        if (FIRST)
            mma_fp16_zero(d, a, b.x, b.y);
        else
            mma_fp16(d, a, b.x, b.y);
        mx_fragment(w1, a);
        mma_fp16(d, a, b.z, b.w);
    }
};

/* Two shares of an expert's tile, of `first` and `last` units behind each other at `stage`; activations fp16 from `acts` on. A unit's
 * words are asked for as soon as those of the unit before are used. A share that has ended is multiplied on, with what lies behind it (token_behind), but not
 * added: its columns are its own. */
__device__ __forceinline__ float2 mx_piece(uint32_t stage, uint32_t first, uint32_t last, uint32_t acts)
{
    const uint32_t mine = threadIdx.x % 2 ? last : first;
    float2 acc = make_float2(0, 0);
    float even[4], odd[4];
    mx_shares in(stage, first, acts);
    in.load<0>();
    in.load<1>();
    in.load_scales();
#pragma unroll 1
    for (uint32_t u = 0; u < max(first, last); u++) {
        in.multiply<0, true>(even, odd);
        in.load<0>();
        in.multiply<1, false>(even, odd);
        in.load<1>();
        in.add(acc, even, odd, u < mine);
        in.load_scales();
    }
    return acc;
}

/* This lane's sums of a piece to token_sums at shared address `leaves`, a share's each. */
__device__ __forceinline__ void mx_keep(uint32_t leaves, float2 rows)
{
    if (threadIdx.x % 4 < 2)
        sums_put(leaves + threadIdx.x % 4 * (uint32_t)sizeof(token_sums), rows);
}

/* This warp has left sums of a tile of which the block has `of` pieces; true for the last of them to come, in all lanes. No fence: a
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

/* `sum` and N leaves behind it. */
template <int N> __device__ __forceinline__ float leaves_sum(float sum, const token_sums *leaves, uint32_t row)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        sum += leaves[i][row];
    return sum;
}
