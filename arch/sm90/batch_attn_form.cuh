/* arch/sm90/batch_attn_form.cuh: what attention of many decode rows (arch/sm90/BATCH.md) knows of pages in bf16 and in FP8: how 32 keys, or
 * their values, come to shared memory, and how they become operands. From there on both forms are the same. */
#pragma once
#include "arch/cuda/attn.cuh"
#include "arch/sm90/batch_attn.h"

/* What of a layer a block reads; of the machine block, whose cache line may be gone, only once. */
struct batch_attn_view {
    const struct nib_gpu_machine *m;
    uint32_t layer, kv_heads, heads, window;
    layer_pages pages;
    nib_gpu_ptr kv, q, scratch;
    uint64_t policy; /* keys and values are read once a step */

    __device__ __forceinline__ batch_attn_view(const struct nib_gpu_machine *machine, uint32_t of_layer)
        : m(machine), layer(of_layer), kv_heads(machine->kv_heads), heads(machine->heads), window(machine->window),
          pages(machine, of_layer), kv(machine->layer[of_layer].kv), q(machine->q), scratch(machine->scratch), policy(stream_policy())
    {
    }

    __device__ __forceinline__ bool windowed() const
    {
        return layer % 2 == 0;
    }

    /* Of what a row before position `end` sees in a window layer. */
    __device__ __forceinline__ uint32_t begin(uint32_t end) const
    {
        return end > window ? end - window : 0;
    }
};

/* Where in a line of eight chunks of 16 bytes chunk 0 of a key lies; the others are xor-ed likewise. No two lanes meet in a bank, neither
 * of four that read 64 bytes of two keys beside each other, nor those of ldmatrix. */
__device__ __forceinline__ uint32_t batch_attn_turn(uint32_t key)
{
    return key % 2 * 4 + key / 2 % 4;
}

/* 32 keys, or their values, of a page from position `token` of it on: which, and which of them the row sees: [low, high). */
struct batch_attn_some {
    const uint8_t *page;
    uint32_t part, token, low, high; /* part: the KV head; of values so many heads further */

    __device__ __forceinline__ bool seen(uint32_t i) const
    {
        return i - low < high - low;
    }
};

/* Pages in bf16. */
struct batch_attn_wide {
    static constexpr enum nib_gpu_op OP = NIB_GPU_ATTN;
    static constexpr uint32_t BYTES = 32 * 128, ROOM = 0; /* in shared memory: of 32 keys; of a warp, besides */
    static constexpr uint32_t RING = CU_BATCH_ATTN_RING, WINDOW_RING = CU_BATCH_WINDOW_RING;

    /* Positions that the row does not see are zeros: what no one has written may be NaN. */
    __device__ __forceinline__ static void ask(uint32_t to, const batch_attn_view &view, const batch_attn_some &some)
    {
        const uint32_t lane = threadIdx.x % 32, token = lane / 8;
        const uint8_t *from = some.page + some.part * PAGE_HEAD_BYTES + some.token * 128 + lane * 16;
        const uint32_t even = to + token * 128 + (lane % 8 ^ batch_attn_turn(token)) * 16, odd = even ^ 32;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            copy16_stream((i % 2 ? odd : even) + i * 512, from + i * 512, view.policy, some.seen(i * 4 + token));
    }

    /* The lane's 16 bytes, twice, of key g of each eight: of n * 8 + g the n-th. */
    struct keys {
        uint32_t at;

        __device__ __forceinline__ explicit keys(uint32_t from)
        {
            const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
            at = from + g * 128 + (t ^ batch_attn_turn(g)) * 16;
        }

        __device__ __forceinline__ void read(uint32_t n, uint4 k[2]) const
        {
            k[0] = lds16(at + n * 1024);
            k[1] = lds16((at ^ 64) + n * 1024);
        }
    };

    /* Where values lie as bf16. */
    __device__ __forceinline__ static uint32_t values(uint32_t from, uint32_t, uint32_t, uint32_t)
    {
        return from;
    }
};

/* Pages in FP8: codes, a line of 64 bytes a token, whose chunks of 16 are xor-ed by token / 2 % 2 * 2; then its two scales. */
struct batch_attn_fp8 {
    static constexpr enum nib_gpu_op OP = NIB_GPU_ATTN_FP8;
    static constexpr uint32_t CODES = 32 * NIB_HEAD_DIM, BYTES = CODES + 32 * 2, ROOM = 32 * 128;
    static constexpr uint32_t RING = CU_BATCH_ATTN8_RING, WINDOW_RING = CU_BATCH_WINDOW8_RING;

    __device__ __forceinline__ static void ask(uint32_t to, const batch_attn_view &view, const batch_attn_some &some)
    {
        const uint32_t lane = threadIdx.x % 32, token = lane / 4;
        const uint8_t *from = some.page + some.part * KV8_PART_BYTES + some.token * NIB_HEAD_DIM + lane * 16;
        const uint32_t at = to + token * NIB_HEAD_DIM + (lane % 4 ^ token / 2 % 2 * 2) * 16;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            copy16_stream(at + i * 512, from + i * 512, view.policy, some.seen(i * 8 + token));
        if (lane < 4)
            copy16_stream(to + CODES + lane * 16,
                          some.page + view.kv_heads * 2 * KV8_PART_BYTES + some.part * KV8_PART_SCALES +
                              some.token * 2 + lane * 16,
                          view.policy);
    }

    /* All that a lane needs is read before any of it is widened, so that it waits once. */
    struct keys {
        uint2 codes[4][2];
        uint32_t scales[4];

        __device__ __forceinline__ explicit keys(uint32_t from)
        {
            const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
            const uint32_t at = from + g * NIB_HEAD_DIM + (t / 2 ^ g / 2 % 2 * 2) * 16 + t % 2 * 8;
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
                scales[n] = lds2(from + CODES + g * 2 + n * 16);
                codes[n][0] = lds8(at + n * 512);
                codes[n][1] = lds8((at ^ 32) + n * 512);
            }
        }

        __device__ __forceinline__ void read(uint32_t n, uint4 k[2]) const
        {
            const kv8_chunk chunk[2] = {{codes[n][0], scales[n] & 0xff}, {codes[n][1], scales[n] >> 8}};
            k[0] = chunk[0].wide();
            k[1] = chunk[1].wide();
        }
    };

    /* To the warp's room. Of positions that the row does not see the scale may be anything. */
    __device__ __forceinline__ static uint32_t values(uint32_t from, uint32_t room, uint32_t low, uint32_t high)
    {
        const uint32_t lane = threadIdx.x % 32, token = lane / 8, chunk = lane % 8;
        const uint32_t even = from + token * NIB_HEAD_DIM + (chunk / 2 ^ token / 2 * 2) * 16 + chunk % 2 * 8;
        const uint32_t to = room + token * 128 + (chunk ^ batch_attn_turn(token)) * 16;
        uint2 codes[8];
        uint32_t scales[8];
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            scales[i] = lds2(from + CODES + token * 2 + i * 8);
            codes[i] = lds8(even + i * 256);
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const kv8_chunk wide = {codes[i], scales[i] >> chunk / 4 * 8 & 0xff};
            const uint4 v = wide.wide();
            sts16((i % 2 ? to ^ 32 : to) + i * 512, i * 4 + token - low < high - low ? v : make_uint4(0, 0, 0, 0));
        }
        __syncwarp();
        return room;
    }
};

/* Scores in base 2 of 32 keys at `from`, for head g; -inf where the row does not see the key. */
template <class Form>
__device__ __forceinline__ void batch_attn_scores(const uint4 q[2], uint32_t from, uint32_t low, uint32_t high,
                                                  float s[4][4])
{
    const uint4 none = make_uint4(0, 0, 0, 0), rows[2][2] = {{q[0], q[1]}, {none, none}};
    const uint32_t first = threadIdx.x % 4 * 2 - low;
    const typename Form::keys keys(from);
#pragma unroll
    for (uint32_t n = 0; n < 4; n++) {
        uint4 k[2];
        keys.read(n, k);
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        attn_scores(s[n], rows, k);
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) { /* a product of its own, which is not fused with what follows */
            const float score = __fmul_rn(s[n][c], ATTN_SCALE);
            s[n][c] = first + n * 8 + c < high - low ? score : -INFINITY;
        }
    }
}

/* The lane's part of the probabilities of 32 keys, as bf16: keys 2t, 2t + 1 of each eight, of head g. */
__device__ __forceinline__ uint4 batch_attn_packed(const float s[4][4])
{
    return make_uint4(pack_bf16(s[0][0], s[0][1]), pack_bf16(s[1][0], s[1][1]), pack_bf16(s[2][0], s[2][1]),
                      pack_bf16(s[3][0], s[3][1]));
}

/* o += the values at `from`, as bf16, of 32 keys with these probabilities. Here dims are the rows of the product, so that none is empty: a lane
 * has dims 16d + g and + 8 of heads 2t and 2t + 1. */
__device__ __forceinline__ void batch_attn_add(float o[4][4], uint4 p, uint32_t from)
{
    const uint32_t lane = threadIdx.x % 32, line = from + lane % 16 * 128, turn = batch_attn_turn(lane);
#pragma unroll
    for (uint32_t kk = 0; kk < 2; kk++)
#pragma unroll
        for (uint32_t d = 0; d < 4; d++) {
            uint32_t b[4];
            ldmatrix_trans(b, line + kk * 2048 + ((d * 2 + lane / 16) ^ turn) * 16);
            mma_bf16(o[d], b[0], b[2], b[1], b[3], kk ? p.z : p.x, kk ? p.w : p.y);
        }
}

/* What the lanes of heads 2t and 2t + 1 have of their own. */
__device__ __forceinline__ float2 batch_attn_pair(float own)
{
    const uint32_t from = threadIdx.x % 4 * 8;
    return make_float2(__shfl_sync(~0u, own, from), __shfl_sync(~0u, own, from + 4));
}
