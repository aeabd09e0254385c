/* arch/sm90/wgmma.cuh: matrix products of a warpgroup (PTX ISA, "Asynchronous warpgroup level matrix instructions"): 64 output rows
 * by N tokens by 16 inputs. A, the weights, is in registers, the fragment of mma.m16n8k16 in each of the four warps; B, the
 * activations, is in shared memory: 128 bytes a token, 64 inputs, 16-byte chunks xor-ed by token % 8 (128-byte swizzle).
 *
 * A product runs beside what follows: its registers may be touched, and its shared memory written, only after the wait. */
#pragma once
#include "arch/cuda/base.cuh"

/* What was written to the registers of coming products is seen by them. */
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* All but the newest N groups have ended. */
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* These registers are not read before this, nor written after it. */
template <int N> __device__ __forceinline__ void wgmma_hold(float (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* Descriptor of B: address, 1024 bytes between groups of 8 tokens, 128-byte swizzle. 32 bytes further, 16 inputs, are 2 more. */
__device__ __forceinline__ uint64_t wgmma_tokens(uint32_t shared)
{
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 16 | (shared & 0x3ffff) >> 4;
}

/* The same of 32 inputs in 64 bytes a token, chunks xor-ed by token / 2 % 4: 512 bytes between groups. */
__device__ __forceinline__ uint64_t wgmma_tokens64(uint32_t shared)
{
    return (uint64_t)2 << 62 | (uint64_t)(512 >> 4) << 32 | (uint64_t)1 << 16 | (shared & 0x3ffff) >> 4;
}

// clang-format off
#define WGMMA_T0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_T1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_T2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_T3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7]), \
    "+f"(d[o + 8]), "+f"(d[o + 9]), "+f"(d[o + 10]), "+f"(d[o + 11]), "+f"(d[o + 12]), "+f"(d[o + 13]), "+f"(d[o + 14]), "+f"(d[o + 15])
#define WGMMA_E(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3])
#define WGMMA(n, type, across, d_text, a_text, ...)                                                                 \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" d_text "}, " a_text ", 1, 1, 1, " #across ";" \
                 : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define WGMMA_8(type) WGMMA(8, type, 0, "%0, %1, %2, %3", "{%4, %5, %6, %7}, %8", "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]))
#define WGMMA_16(type) WGMMA(16, type, 0, "%0, %1, %2, %3, %4, %5, %6, %7", "{%8, %9, %10, %11}, %12", \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]))
#define WGMMA_32(type) WGMMA(32, type, 0, WGMMA_T0, "{%16, %17, %18, %19}, %20", WGMMA_D(0))
#define WGMMA_64(type, across) WGMMA(64, type, across, WGMMA_T0 ", " WGMMA_T1, "{%32, %33, %34, %35}, %36", WGMMA_D(0), WGMMA_D(16))
#define WGMMA_88(type) WGMMA(88, type, 0, WGMMA_T0 ", " WGMMA_T1 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43", \
    "{%44, %45, %46, %47}, %48", WGMMA_D(0), WGMMA_D(16), WGMMA_E(32), WGMMA_E(36), WGMMA_E(40))
#define WGMMA_96(type) WGMMA(96, type, 0, WGMMA_T0 ", " WGMMA_T1 ", " WGMMA_T2, "{%48, %49, %50, %51}, %52", WGMMA_D(0), WGMMA_D(16), WGMMA_D(32))
#define WGMMA_128(type) WGMMA(128, type, 0, WGMMA_T0 ", " WGMMA_T1 ", " WGMMA_T2 ", " WGMMA_T3, "{%64, %65, %66, %67}, %68", WGMMA_D(0), WGMMA_D(16), WGMMA_D(32), WGMMA_D(48))
#define WGMMA_T4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_T5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_T6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_T7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_MORE(n, d_text, a_text, more_text, ...)                                                               \
    asm volatile("{\n.reg .pred more;\nsetp.ne.u32 more, " more_text ", 0;\n"                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" d_text "}, " a_text ", more, 1, 1, 0;\n}" \
                 : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((uint32_t)more))
#define WGMMA_MORE_128 WGMMA_MORE(128, WGMMA_T0 ", " WGMMA_T1 ", " WGMMA_T2 ", " WGMMA_T3, "{%64, %65, %66, %67}, %68", "%69", \
    WGMMA_D(0), WGMMA_D(16), WGMMA_D(32), WGMMA_D(48))
#define WGMMA_MORE_256 WGMMA_MORE(256, WGMMA_T0 ", " WGMMA_T1 ", " WGMMA_T2 ", " WGMMA_T3 ", " WGMMA_T4 ", " WGMMA_T5 ", " WGMMA_T6 ", " WGMMA_T7, \
    "{%128, %129, %130, %131}, %132", "%133", WGMMA_D(0), WGMMA_D(16), WGMMA_D(32), WGMMA_D(48), WGMMA_D(64), WGMMA_D(80), WGMMA_D(96), WGMMA_D(112))
// clang-format on

/* Numbers of the weights and the activations. */
struct wgmma_fp16 {};
struct wgmma_bf16 {};

/* d += a b. d[4 n + c] is what c[] of mma.m16n8k16 is for tokens 8 n .. 8 n + 7; as many tokens as d has room for. */
#define WGMMA_OVERLOAD(numbers, count, products)                                                              \
    __device__ __forceinline__ void wgmma(numbers, float (&d)[count], const uint32_t a[4], uint64_t b) \
    {                                                                                                         \
        products;                                                                                             \
    }
WGMMA_OVERLOAD(wgmma_bf16, 4, WGMMA_8("bf16"))
WGMMA_OVERLOAD(wgmma_bf16, 8, WGMMA_16("bf16"))
WGMMA_OVERLOAD(wgmma_fp16, 16, WGMMA_32("f16"))
WGMMA_OVERLOAD(wgmma_bf16, 16, WGMMA_32("bf16"))
WGMMA_OVERLOAD(wgmma_fp16, 32, WGMMA_64("f16", 0))
WGMMA_OVERLOAD(wgmma_bf16, 32, WGMMA_64("bf16", 0))
WGMMA_OVERLOAD(wgmma_bf16, 44, WGMMA_88("bf16"))
WGMMA_OVERLOAD(wgmma_fp16, 48, WGMMA_96("f16"))
WGMMA_OVERLOAD(wgmma_bf16, 48, WGMMA_96("bf16"))
WGMMA_OVERLOAD(wgmma_fp16, 64, WGMMA_128("f16"))
WGMMA_OVERLOAD(wgmma_bf16, 64, WGMMA_128("bf16"))

/* The same; d = a b unless `more`. */
__device__ __forceinline__ void wgmma(wgmma_bf16, float (&d)[64], const uint32_t a[4], uint64_t b, bool more)
{
    WGMMA_MORE_128;
}

__device__ __forceinline__ void wgmma(wgmma_bf16, float (&d)[128], const uint32_t a[4], uint64_t b, bool more)
{
    WGMMA_MORE_256;
}

/* The same, where B lies the other way: 128 bytes an input, 64 tokens; 16 inputs further are 128 more in the descriptor. */
__device__ __forceinline__ void wgmma_across(float (&d)[32], const uint32_t a[4], uint64_t b)
{
    WGMMA_64("bf16", 1);
}
