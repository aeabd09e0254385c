/* arch/x86/cpu.c: owns nothing; asks CPUID, XGETBV and the kernel which instruction sets may be used.
 * Boot only, any thread. Cannot fail: what is not certain is not reported. */
#include "arch/x86/cpu.h"

#include <cpuid.h>
#include <stdbool.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/profile.h"

/* Intel SDM volume 1, 13.3: components of XCR0 */
#define XCR0_AVX    0x06u    /* SSE, AVX */
#define XCR0_AVX512 0xe6u    /* and mask registers, upper halves, upper registers */
#define XCR0_AMX    0x60000u /* tile configuration, tile data */

/* Intel SDM volume 2, CPUID: leaf 1 ECX, leaf 7 EBX, ECX, EDX, leaf 7.1 EAX */
#define L1C_FMA     (1u << 12)
#define L1C_OSXSAVE (1u << 27)
#define L1C_AVX     (1u << 28)
#define L1C_F16C    (1u << 29)
#define L7B_AVX2    (1u << 5)
#define L7B_AVX512  (1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) /* F, DQ, BW, VL */
#define L7C_VNNI    (1u << 11)
#define L7D_AMX     (1u << 22 | 1u << 24) /* BF16, TILE */
#define L71A_BF16   (1u << 5)

#define XFEATURE_TILE_DATA     18     /* Linux: Documentation/arch/x86/xstate.rst */
#define ARCH_REQ_XCOMP_PERM_NR 0x1023 /* asm/prctl.h of Linux 5.16 and later */

struct leaf {
    uint32_t eax, ebx, ecx, edx;
};

static struct leaf cpuid(uint32_t number, uint32_t sub)
{
    struct leaf l = {0, 0, 0, 0};
    (void)__get_cpuid_count(number, sub, &l.eax, &l.ebx, &l.ecx, &l.edx);
    return l;
}

static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

static bool amx_granted(void)
{
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM_NR, XFEATURE_TILE_DATA) == 0;
}

uint32_t nib_x86_features(void)
{
    const struct leaf one = cpuid(1, 0), seven = cpuid(7, 0);
    const struct leaf seven_one = seven.eax >= 1 ? cpuid(7, 1) : (struct leaf){0, 0, 0, 0};
    if (!has(one.ecx, L1C_OSXSAVE | L1C_AVX))
        return 0;
    const uint64_t saved = xcr0();
    uint32_t features = 0;
    if ((saved & XCR0_AVX) == XCR0_AVX && has(one.ecx, L1C_FMA | L1C_F16C) && has(seven.ebx, L7B_AVX2))
        features |= NIB_CPU_AVX2;
    if (!(features & NIB_CPU_AVX2) || (saved & XCR0_AVX512) != XCR0_AVX512 || !has(seven.ebx, L7B_AVX512))
        return features;
    features |= NIB_CPU_AVX512;
    if (has(seven.ecx, L7C_VNNI))
        features |= NIB_CPU_AVX512_VNNI;
    if (has(seven_one.eax, L71A_BF16))
        features |= NIB_CPU_AVX512_BF16;
    if ((saved & XCR0_AMX) == XCR0_AMX && has(seven.edx, L7D_AMX) && amx_granted())
        features |= NIB_CPU_AMX_BF16;
    return features;
}
