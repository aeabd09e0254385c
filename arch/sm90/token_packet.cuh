/* arch/sm90/token_packet.cuh: values that carry their own flag from block to block (struct cu_token). A store and a load of 64 bits
 * are single (PTX ISA, "Memory consistency model: vector data types and packed data types"), so that whoever sees a packet's
 * number sees its value. */
#pragma once
#include "arch/sm90/token_room.cuh"

__device__ __forceinline__ void packet_put(cu_packet *to, uint32_t value, uint32_t epoch)
{
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"((uint64_t)epoch << 32 | value) : "memory");
}

__device__ __forceinline__ uint32_t packet_get(const cu_packet *from, uint32_t epoch)
{
    for (uint32_t turn = 0;; turn++) {
        cu_packet p;
        asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(p) : "l"(from) : "memory");
        if ((uint32_t)(p >> 32) == epoch || token_late(turn))
            return (uint32_t)p;
    }
}

/* A word of a vector that every block reads (struct cu_token), and what clears the other buffer's. */
__device__ __forceinline__ void word_store(uint32_t *to, uint32_t *clear, uint32_t value)
{
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(~value) : "memory");
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(clear), "r"(0) : "memory");
}

template <int N> __device__ __forceinline__ void word_put(uint32_t (*to)[N], uint32_t i, uint32_t value, uint32_t epoch)
{
    word_store(&to[epoch & 1][i], &to[~epoch & 1][i], value);
}

/* A word of 128 bits, which is there when its first 32 bits are not zero (struct cu_token). */
__device__ __forceinline__ void eight_store(uint32_t *to, uint4 v)
{
    asm volatile("{\n.reg .b64 lo, hi;\n.reg .b128 v;\n"
                 "mov.b64 lo, {%1, %2};\n"
                 "mov.b64 hi, {%3, %4};\n"
                 "mov.b128 v, {lo, hi};\n"
                 "st.relaxed.gpu.global.b128 [%0], v;\n}" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

template <int N> __device__ __forceinline__ void eight_put(uint32_t (*to)[N], uint32_t i, uint4 v, uint32_t epoch)
{
    eight_store(&to[epoch & 1][i], v);
    eight_store(&to[~epoch & 1][i], make_uint4(0, 0, 0, 0));
}

/* Eight activations of an expert, two fp16 a word, and what clears the other buffer's. A zero in front becomes one with a sign, which no product tells from it. */
__device__ __forceinline__ void eight_fp16_store(uint32_t *to, uint32_t *clear, uint4 v)
{
    v.x = v.x ? v.x : 0x80000000u;
    eight_store(to, v);
    eight_store(clear, make_uint4(0, 0, 0, 0));
}

/* Eight bf16, of which the first 32 bits go as a word's do. */
template <int N> __device__ __forceinline__ void eight_bf16_put(uint32_t (*to)[N], uint32_t i, uint4 v, uint32_t epoch)
{
    v.x = ~v.x;
    eight_put(to, i, v, epoch);
}

/* A word of 128 bits. */
__device__ __forceinline__ uint4 eight_ask(const uint32_t *from)
{
    uint4 v;
    asm volatile("{\n.reg .b64 lo, hi;\n.reg .b128 v;\n"
                 "ld.relaxed.gpu.global.b128 v, [%4];\n"
                 "mov.b128 {lo, hi}, v;\n"
                 "mov.b64 {%0, %1}, lo;\n"
                 "mov.b64 {%2, %3}, hi;\n}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint4 words_ask(const uint32_t *from, bool asks)
{
    uint4 v = make_uint4(1, 1, 1, 1);
    if (asks)
        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

__device__ __forceinline__ bool words_there(uint4 v)
{
    return v.x && v.y && v.z && v.w;
}

__device__ __forceinline__ uint4 words_value(uint4 v)
{
    return make_uint4(~v.x, ~v.y, ~v.z, ~v.w);
}

/* Four words at from(i) each, i below `count`. All are asked for at once, and again until all are there. */
template <int N, class From>
__device__ __forceinline__ void words_get(uint32_t count, uint4 ret[N], From from)
{
    for (uint32_t turn = 0;; turn++) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < N; i++)
            ret[i] = words_ask(from(i), (uint32_t)i < count);
#pragma unroll
        for (int i = 0; i < N; i++)
            all &= words_there(ret[i]);
        if (all || token_late(turn))
            break;
    }
#pragma unroll
    for (int i = 0; i < N; i++)
        ret[i] = words_value(ret[i]);
}

/* The router's sums (struct cu_token): a tile of x adds its part of one. */
__device__ __forceinline__ void sum_add(uint64_t *to, int64_t part)
{
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(((uint64_t)part << 8) + 1) : "memory");
}

__device__ __forceinline__ void sum_clear(uint64_t *sum)
{
    asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(sum), "l"(0ull) : "memory");
}

/* This lane's `count` of them, 32 apart, until each has all of `tiles`. */
template <int N> __device__ __forceinline__ void sums_get(uint32_t count, uint32_t tiles, uint64_t ret[N], const uint64_t *from)
{
    static_assert(CU_DIV_UP(CU_TOKEN_HIDDEN, CU_TILE) < 256, "tiles are counted in eight bits");
    for (uint32_t turn = 0;; turn++) {
        bool all = true;
#pragma unroll
        for (int i = 0; i < N; i++) {
            ret[i] = tiles;
            if ((uint32_t)i < count)
                asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(ret[i]) : "l"(from + i * 32) : "memory");
            all &= (ret[i] & 255) == tiles;
        }
        if (all || token_late(turn))
            return;
    }
}
