/* core/profile.h: the facts of a machine that decide a plan: one GPU, or the CPU.
 *
 * A profile comes from the probe (this machine) or from a JSON file in etc/profiles/. Any thread. */
#ifndef NIB_CORE_PROFILE_H
#define NIB_CORE_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"

#define NIB_MAX_PROFILE_NAME  64          /* bytes with NUL */
#define NIB_MAX_PROFILE_BYTES (16u << 10) /* a profile file */

/* CPU features a row may require, as bits. */
enum nib_cpu_feature {
    NIB_CPU_AVX2 = 1 << 0,   /* AVX2, FMA and F16C, enabled by the OS */
    NIB_CPU_AVX512 = 1 << 1, /* AVX-512 F, BW, VL, DQ */
    NIB_CPU_AVX512_BF16 = 1 << 2,
    NIB_CPU_AVX512_VNNI = 1 << 3,
    NIB_CPU_AMX_BF16 = 1 << 4 /* tiles enabled for this process */
};

struct nib_profile {
    char name[NIB_MAX_PROFILE_NAME];
    bool gpu;
    bool integrated;             /* GPU and CPU share one memory: nothing can be spilled */
    uint32_t compute_capability; /* 90 for sm_90; 0 on a CPU */
    uint32_t sms;                /* streaming multiprocessors, or CPU cores */
    uint32_t cpu_features;       /* enum nib_cpu_feature */
    uint64_t memory_bytes;       /* GPU memory (or the CPU's) */
    uint64_t reserved_bytes;     /* of it, kept for the driver's context, or for the rest of the system */
    uint64_t host_bytes;         /* host memory that may be pinned (GPU) */
    uint64_t shared_bytes;       /* shared memory a block may use */
    uint64_t l2_bytes;
    double read_bytes_s; /* sustained read rate of the memory */
    double link_bytes_s; /* host to device, pinned */
    double flops_bf16_s; /* sustained dense bf16 rate, for the prefill roof */
};

/* Parses a profile file's text. NIB_E_FORMAT names the key and what is allowed. */
enum nib_err nib_profile_parse(const char *json, size_t bytes, struct nib_profile *ret_profile,
                               struct nib_msg *msg) NIB_CHECKED;

#endif
