/* arch/table.c: owns the capability table and the choice of a row.
 * Limits: NIB_MAX_ARCH_ROWS. Any thread. Fails with the name of what is missing. */
#include "arch/table.h"

#include <stdio.h>
#include <string.h>

#include "core/arith.h"

/* GPU rows whose kernels this build lacks: figures for a plan. Dense weights bf16, experts as E2M1 with one scale
 * byte a block of 32, KV and activations 2 bytes. */
static uint64_t gpu_dense_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)n * k * 2;
}

static uint64_t gpu_mxfp8_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)n * (k + k / NIB_MX_BLOCK);
}

static uint64_t gpu_mx_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)n * (k / 2 + k / NIB_MX_BLOCK);
}

static uint64_t gpu_kv_page_bytes(uint32_t kv_heads)
{
    return 2ull * kv_heads * NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM * 2;
}

/* The form is all GPU rows' own; so are FP8 pages (arch/gpu_abi.h). */
static uint64_t gpu_kv8_page_bytes(uint32_t kv_heads)
{
    return 2ull * kv_heads * NIB_KV_PAGE_TOKENS * (NIB_HEAD_DIM + NIB_HEAD_DIM / NIB_MX_BLOCK);
}

static uint64_t gpu_route_bytes(uint32_t rows, uint32_t experts)
{
    return rows * (4ull * experts + 16 * NIB_MAX_EXPERTS_USED) + 8ull * (experts + 1);
}

static uint64_t gpu_scratch_bytes(const struct nib_shape *shape, uint32_t slots, uint32_t rows)
{
    (void)rows;
    return (uint64_t)slots * shape->vocab * 4;
}

static uint32_t gpu_splits_max(uint32_t ctx_tokens)
{
    return ctx_tokens >= 8192 ? 32 : ctx_tokens / 256 + 1;
}

static struct nib_row_facts gpu_facts(const struct nib_gpu_kernels *k)
{
    return (struct nib_row_facts){
        .gpu = true,
        .step_rows_max = 2048,
        .slots = 64,
        .steps_ahead = 2,
        .dense_bytes = k ? k->dense_bytes : gpu_dense_bytes,
        .mxfp8_bytes = k ? k->mxfp8_bytes : gpu_mxfp8_bytes,
        .mx_bytes = k ? k->mx_bytes : gpu_mx_bytes,
        .head_bytes = k ? k->head_bytes : gpu_dense_bytes,
        .kv_page_bytes = gpu_kv_page_bytes,
        .kv8_page_bytes = gpu_kv8_page_bytes,
        .route_bytes = k ? k->route_bytes : gpu_route_bytes,
        .scratch_bytes = k ? k->scratch_bytes : gpu_scratch_bytes,
        .splits_max = k ? k->splits_max : gpu_splits_max,
        .step_bytes = nib_gpu_step_bytes,
        .mailbox_bytes = nib_gpu_mailbox_bytes,
    };
}

/* Which kernels this build holds: the Makefile says, by what nvcc made. */
#ifdef NIB_WITH_SM90
extern const struct nib_gpu_kernels nib_gpu_kernels_sm90, nib_gpu_kernels_sm90_ops;
#define SM90     (&nib_gpu_kernels_sm90)
#define SM90_OPS (&nib_gpu_kernels_sm90_ops)
#else
#define SM90     NULL
#define SM90_OPS NULL
#endif
#ifdef NIB_WITH_SM80
extern const struct nib_gpu_kernels nib_gpu_kernels_sm80;
#define SM80 (&nib_gpu_kernels_sm80)
#else
#define SM80 NULL
#endif

/* Shared memory a block may have: of every compute capability that a row is for, the least. */
#define SHARED_75 (64u << 10)
#define SHARED_86 (99u << 10) /* 8.6, 8.9, 12.0, 12.1; 8.0 and 8.7 allow 163 KiB */
#define SHARED_90 (227u << 10)

static const struct nib_arch_row rows[] = {
    {.name = "sm120",
     .numbers = "native FP4, bf16",
     .features = "block-scaled FP4 mma",
     .layout = "as the FP4 mma reads it",
     .tiles = "-",
     .fallback = "sm80",
     .gpu = true,
     .cc_min = 120,
     .cc_max = 121,
     .shared_bytes = SHARED_86},
    {.name = "sm100",
     .numbers = "native FP4, bf16",
     .features = "tcgen05, tensor memory",
     .layout = "as tcgen05 reads it",
     .tiles = "-",
     .fallback = "sm80",
     .gpu = true,
     .cc_min = 100,
     .cc_max = 103,
     .shared_bytes = SHARED_90},
    {.name = "sm90",
     .numbers = "bf16 mma, MXFP8 decoded to bf16, experts to fp16",
     .features =
         "bf16 mma, wgmma, cp.async, bulk copies with mbarriers, programmatic dependent launch, 227 KiB of shared "
         "memory",
     .layout = "mma.m16n8k16 fragments; experts as codes and scales",
     .tiles = "decode 16 x 16 rows, one row in one launch, prompt 256 x 128",
     .module = "cubin sm_90a",
     .fallback = "sm90-ops",
     .gpu = true,
     .cc_min = 90,
     .cc_max = 90,
     .shared_bytes = SHARED_90,
     .gpu_kernels = SM90},
    {.name = "sm90-ops",
     .numbers = "bf16 mma, MXFP8 decoded to bf16, experts to fp16",
     .features = "those of sm90",
     .layout = "that of sm90",
     .tiles = "decode 16 x 16 rows, prompt 256 x 128",
     .module = "cubin sm_90a",
     .fallback = "sm80",
     .gpu = true,
     .cc_min = 90,
     .cc_max = 90,
     .shared_bytes = SHARED_90,
     .gpu_kernels = SM90_OPS},
    {.name = "sm80",
     .numbers = "bf16 mma, MXFP8 decoded to bf16, experts to fp16",
     .features = "bf16 mma, cp.async; 8.0, 8.6, 8.7, 8.9 and what came later",
     .layout = "mma.m16n8k16 fragments; experts as codes and scales",
     .tiles = "decode 16 x 4 rows, prompt 128 x 128",
     .module = "PTX compute_80",
     .fallback = "sm75",
     .gpu = true,
     .cc_min = 80,
     .cc_max = 121,
     .shared_bytes = SHARED_86,
     .gpu_kernels = SM80},
    {.name = "sm75",
     .numbers = "fp16 mma, experts decoded to fp16",
     .features = "fp16 mma of 8 inputs; there is no bf16 and no cp.async",
     .layout = "mma.m16n8k8 fragments",
     .tiles = "-",
     .fallback = NULL,
     .gpu = true,
     .cc_min = 75,
     .cc_max = 121,
     .shared_bytes = SHARED_75},
#if defined(__x86_64__)
    {.name = "amx",
     .numbers = "decode fp32, experts 16-bit integers; prefill bf16 tiles, activations in two parts",
     .features = "AVX-512, VNNI, BF16, AMX",
     .layout = "16 outputs interleaved; experts as codes and scales",
     .tiles = "decode 16 x 8 rows (experts 4), prompt 32 x 32",
     .fallback = "avx512",
     .cpu_features = NIB_CPU_AVX512 | NIB_CPU_AVX512_VNNI | NIB_CPU_AVX512_BF16 | NIB_CPU_AMX_BF16,
     .kernels = &nib_kernels_amx},
    {.name = "avx512",
     .numbers = "fp32, experts in decode 16-bit integers",
     .features = "AVX-512, VNNI",
     .layout = "16 outputs interleaved; experts as codes and scales",
     .tiles = "decode 16 x 8 rows (experts 4), prompt 32 x 12",
     .fallback = "avx2",
     .cpu_features = NIB_CPU_AVX512 | NIB_CPU_AVX512_VNNI,
     .kernels = &nib_kernels_avx512},
    {.name = "avx2",
     .numbers = "fp32, experts in decode 16-bit integers",
     .features = "AVX2, FMA, F16C",
     .layout = "16 outputs interleaved; experts as codes and scales",
     .tiles = "decode 16 x 2 rows (experts 4), prompt 16 x 6",
     .fallback = "ref",
     .cpu_features = NIB_CPU_AVX2,
     .kernels = &nib_kernels_avx2},
#endif
    {.name = "ref",
     .numbers = "fp32, plain C",
     .features = "none",
     .layout = "canonical",
     .tiles = "none",
     .kernels = &nib_kernels_ref},
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };
_Static_assert(ROW_COUNT <= NIB_MAX_ARCH_ROWS, "table is larger than its mask");

const struct nib_arch_row *nib_arch_rows(size_t *ret_count)
{
    *ret_count = ROW_COUNT;
    return rows;
}

const struct nib_arch_row *nib_arch_find(const char *name)
{
    for (size_t i = 0; i < ROW_COUNT; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    return NULL;
}

struct nib_row_facts nib_arch_facts(const struct nib_arch_row *row)
{
    const struct nib_kernels *k = row->kernels;
    struct nib_row_facts facts;
    if (row->gpu)
        facts = gpu_facts(row->gpu_kernels);
    else
        facts = (struct nib_row_facts){
            .step_rows_max = 256,
            .slots = 8,
            .steps_ahead = 1,
            .dense_bytes = k->dense_bytes,
            .mxfp8_bytes = k->dense_bytes, /* decoded while loading */
            .mx_bytes = k->mx_bytes,
            .head_bytes = k->dense_bytes,
            .acts_bytes = k->acts_bytes,
            .gemm_scratch_bytes = k->gemm_scratch_bytes,
            .kv_page_bytes = k->kv_page_bytes,
            .kv8_page_bytes = k->kv8_page_bytes,
            .attn_scratch_bytes = k->attn_scratch_bytes,
        };
    facts.name = row->name;
    return facts;
}

const char *nib_arch_refusal(const struct nib_arch_row *row, const struct nib_profile *profile, uint32_t mask)
{
    if (mask >> (row - rows) & 1)
        return row->kernels || row->gpu_kernels ? "masked"
               : row->module                    ? "this build has no kernels for it"
                                                : "its kernels are not written";
    if (row->gpu != profile->gpu)
        return row->gpu ? "needs a GPU" : "for CPUs";
    if (row->gpu && profile->compute_capability < row->cc_min)
        return "needs a newer compute capability";
    if (row->gpu && profile->compute_capability > row->cc_max)
        return "for older compute capabilities";
    if (row->gpu && profile->shared_bytes < row->shared_bytes)
        return "needs more shared memory a block";
    if (row->cpu_features & ~profile->cpu_features)
        return "needs CPU features this machine lacks";
    return NULL;
}

enum nib_err nib_arch_select(const struct nib_profile *profile, uint32_t mask, const struct nib_arch_row **ret_row,
                             struct nib_msg *msg)
{
    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (!nib_arch_refusal(&rows[i], profile, mask)) {
            *ret_row = &rows[i];
            return NIB_OK;
        }
    }
    return nib_fail(msg, NIB_E_UNSUPPORTED, "no row of the capability table fits %s (compute capability %u, mask %#x)",
                    profile->name, profile->compute_capability, mask);
}

uint32_t nib_arch_unbuilt_mask(void)
{
    uint32_t mask = 0;
    for (uint32_t i = 0; i < ROW_COUNT; i++)
        if (!rows[i].kernels && !rows[i].gpu_kernels)
            mask |= 1u << i;
    return mask;
}

static enum nib_err unknown_row(const char *name, size_t length, struct nib_msg *msg)
{
    char known[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < ROW_COUNT; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", rows[i].name);
    return nib_fail(msg, NIB_E_ARG, "'%.*s' is no row of the capability table; the rows are %s",
                    (int)nib_min_u64(length, 32), name, known);
}

enum nib_err nib_arch_mask_parse(const char *names, uint32_t *ret_mask, struct nib_msg *msg)
{
    uint32_t mask = 0;
    while (*names) {
        size_t length = strcspn(names, ",");
        size_t i = 0;
        while (i < ROW_COUNT && (strlen(rows[i].name) != length || memcmp(rows[i].name, names, length) != 0))
            i++;
        if (i == ROW_COUNT)
            return unknown_row(names, length, msg);
        mask |= 1u << i;
        names += length + (names[length] == ',');
    }
    *ret_mask = mask;
    return NIB_OK;
}
