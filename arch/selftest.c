/* arch/selftest.c: owns the test's input, which it makes and frees. See arch/selftest.h.
 * Limits: WORK_BYTES. Boot thread. Fails with the name of the kernel that is wrong. */
#include "arch/selftest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"

enum { ROWS = 5, OUTPUTS = 104, KV_HEADS = 2, TOKENS = 150, PAGES = 3, QUERIES = 3, WINDOW = 128 };
#define WORK_BYTES (32u << 20)

struct work {
    const struct nib_kernels *k; /* the row under test, or the reference */
    const struct nib_shape *shape;
    uint8_t *base;
    uint64_t used;
    uint64_t seed;
};

static const struct {
    const char *name;
    double bound;
} kernels[NIB_CPU_KERNEL_COUNT] = {
    [NIB_CPU_DENSE_GEMV] = {"dense_gemv", 4e-6},
    [NIB_CPU_DENSE_GEMM] = {"dense_gemm", 1e-4},
    [NIB_CPU_MXFP8] = {"mxfp8_repack", 4e-6},
    [NIB_CPU_MX_GEMV] = {"mx_gemv", 3e-4},
    [NIB_CPU_MX_GEMM] = {"mx_gemm", 3e-4},
    [NIB_CPU_RMSNORM] = {"rmsnorm", 1e-6},
    [NIB_CPU_ROPE] = {"rope", 1e-6},
    [NIB_CPU_SWIGLU] = {"swiglu", 2e-6},
    [NIB_CPU_ATTN] = {"attn", 5e-6},
    [NIB_CPU_ATTN_FP8] = {"attn_fp8", 5e-6},
};

const char *nib_cpu_kernel_name(enum nib_cpu_kernel kernel)
{
    NIB_MUST((unsigned)kernel < NIB_CPU_KERNEL_COUNT);
    return kernels[kernel].name;
}

/* Poisoned: NaN until it is written. */
static void *take(struct work *w, uint64_t bytes)
{
    uint8_t *at = w->base + w->used;
    bytes = nib_round_up(bytes, 64);
    NIB_MUST(bytes <= WORK_BYTES - w->used);
    w->used += bytes;
    memset(at, 0xff, bytes);
    return at;
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next(struct work *w)
{
    uint64_t z = (w->seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* -2..2, with a bf16's digits when stored as one */
static float value(struct work *w)
{
    return (float)(int64_t)(next(w) >> 32) * 0x1p-30f - 2.0f;
}

static uint16_t *bf16s(struct work *w, uint64_t count)
{
    uint16_t *p = take(w, count * 2);
    for (uint64_t i = 0; i < count; i++)
        p[i] = nib_bf16_encode(value(w));
    return p;
}

static float *floats(struct work *w, uint64_t count)
{
    float *p = take(w, count * 4);
    for (uint64_t i = 0; i < count; i++)
        p[i] = nib_bf16_decode(nib_bf16_encode(value(w)));
    return p;
}

static uint8_t *bytes(struct work *w, uint64_t count, uint8_t first, uint8_t range)
{
    uint8_t *p = take(w, count);
    for (uint64_t i = 0; i < count; i++)
        p[i] = (uint8_t)(first + (next(w) >> 40) % range);
    return p;
}

/* Each of these makes its input anew from the same seed, runs one kernel of w->k, and returns *ret_count outputs. */

static bool is_mx(enum nib_cpu_kernel kernel)
{
    return kernel == NIB_CPU_MX_GEMV || kernel == NIB_CPU_MX_GEMM;
}

/* In two ranges, the later first, as loading threads may. */
static const void *repack(struct work *w, enum nib_cpu_kernel kernel, uint32_t n, uint32_t k)
{
    const bool mx = is_mx(kernel), mxfp8 = kernel == NIB_CPU_MXFP8;
    const uint16_t *dense = mx || mxfp8 ? NULL : bf16s(w, (uint64_t)n * k);
    const uint8_t *blocks = mx ? bytes(w, (uint64_t)n * k / 2, 0, 255) : NULL;
    const uint8_t *codes = mxfp8 ? bytes(w, (uint64_t)n * k, 0, 127) : NULL;
    const uint8_t *scales = mx || mxfp8 ? bytes(w, (uint64_t)n * k / NIB_MX_BLOCK, 120, 8) : NULL;
    void *to = take(w, mx ? w->k->mx_bytes(n, k) : w->k->dense_bytes(n, k));
    const uint32_t cut = n / 2 / w->k->tile_n * w->k->tile_n;
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? n : cut;
        if (mx)
            w->k->mx_repack(to, blocks, scales, n, k, n0, n1);
        else if (mxfp8)
            w->k->mxfp8_repack(to, codes, scales, n, k, n0, n1);
        else
            w->k->dense_repack(to, dense, n, k, n0, n1);
    }
    return to;
}

static const float *product(struct work *w, enum nib_cpu_kernel kernel, uint64_t *ret_count)
{
    const bool mx = is_mx(kernel);
    const uint32_t k = w->shape->hidden;
    const float *x = floats(w, (uint64_t)ROWS * k);
    const uint16_t *bias = bf16s(w, OUTPUTS);
    const void *matrix = repack(w, kernel, OUTPUTS, k);
    void *acts = take(w, ROWS * w->k->acts_bytes(k)), *scratch = take(w, w->k->gemm_scratch_bytes(k));
    float *y = take(w, ROWS * OUTPUTS * 4);
    w->k->acts_prep(acts, x, k, ROWS, k);
    const struct nib_matmul mm = {
        .w = matrix, .x = acts, .bias = bias, .y = y, .ldy = OUTPUTS, .m = ROWS, .n = OUTPUTS, .k = k, .n1 = OUTPUTS};
    if (kernel != NIB_CPU_DENSE_GEMM && kernel != NIB_CPU_MX_GEMM)
        (mx ? w->k->mx_gemv : w->k->dense_gemv)(&mm);
    else
        (mx ? w->k->mx_gemm : w->k->dense_gemm)(&mm, scratch);
    *ret_count = ROWS * OUTPUTS;
    return y;
}

static const float *small(struct work *w, enum nib_cpu_kernel kernel, uint64_t *ret_count)
{
    const uint32_t n = w->shape->hidden;
    float *x = floats(w, 2ull * n), *y = take(w, n * 4ull);
    const uint16_t *weight = bf16s(w, n);
    *ret_count = n;
    if (kernel == NIB_CPU_RMSNORM)
        w->k->rmsnorm(y, x, weight, n);
    else if (kernel == NIB_CPU_SWIGLU)
        w->k->swiglu(y, x, n);
    else {
        const float *turn = floats(w, NIB_HEAD_DIM);
        *ret_count = n / NIB_HEAD_DIM ? n / NIB_HEAD_DIM * NIB_HEAD_DIM : NIB_HEAD_DIM;
        w->k->rope(x, (uint32_t)(*ret_count / NIB_HEAD_DIM), turn, turn + NIB_HEAD_DIM / 2);
        return x;
    }
    return y;
}

/* The last positions of a sequence, with and without a window, one after the other. */
static const float *attention(struct work *w, enum nib_kv_form form, uint64_t *ret_count)
{
    static const uint32_t order[PAGES] = {2, 0, 1};
    const uint32_t kv = KV_HEADS * NIB_HEAD_DIM, width = kv * NIB_GQA_GROUP, first = TOKENS - QUERIES;
    const bool fp8 = form == NIB_KV_FP8;
    const uint64_t stride = (fp8 ? w->k->kv8_page_bytes : w->k->kv_page_bytes)(KV_HEADS);
    const float *keys = floats(w, TOKENS * kv), *values = floats(w, TOKENS * kv), *q = floats(w, QUERIES * width);
    const uint16_t *sinks = bf16s(w, KV_HEADS * NIB_GQA_GROUP);
    uint8_t *pages = take(w, PAGES * stride);
    float *out = take(w, 2ull * QUERIES * width * 4);
    void *scratch = take(w, w->k->attn_scratch_bytes(TOKENS));
    for (uint32_t t = 0; t < TOKENS; t++)
        (fp8 ? w->k->kv8_put : w->k->kv_put)(pages + order[t / NIB_KV_PAGE_TOKENS] * stride, KV_HEADS,
                                             t % NIB_KV_PAGE_TOKENS, keys + (uint64_t)t * kv,
                                             values + (uint64_t)t * kv);
    for (uint32_t i = 0; i < 2; i++) {
        const struct nib_attn a = {.q = q,
                                   .out = out + (uint64_t)i * QUERIES * width,
                                   .kv = pages,
                                   .pages = order,
                                   .sinks = sinks,
                                   .scratch = scratch,
                                   .page_stride = stride,
                                   .ldq = width,
                                   .ldo = width,
                                   .pages_count = PAGES,
                                   .rows = QUERIES,
                                   .pos0 = first,
                                   .window = i ? WINDOW : 0,
                                   .kv_heads = KV_HEADS,
                                   .h1 = KV_HEADS,
                                   .form = form};
        w->k->attn(&a);
    }
    *ret_count = 2ull * QUERIES * width;
    return out;
}

static const float *run(struct work *w, enum nib_cpu_kernel kernel, uint64_t *ret_count)
{
    w->seed = (uint64_t)kernel + 1;
    if (kernel <= NIB_CPU_MX_GEMM)
        return product(w, kernel, ret_count);
    if (kernel == NIB_CPU_ATTN || kernel == NIB_CPU_ATTN_FP8)
        return attention(w, kernel == NIB_CPU_ATTN ? NIB_KV_BF16 : NIB_KV_FP8, ret_count);
    return small(w, kernel, ret_count);
}

/* ||out - ref|| / ||ref||; infinite when an output is no number */
static double error_of(const float *out, const float *ref, uint64_t count)
{
    double diff = 0, norm = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(out[i]))
            return INFINITY;
        diff += ((double)out[i] - (double)ref[i]) * ((double)out[i] - (double)ref[i]);
        norm += (double)ref[i] * (double)ref[i];
    }
    return sqrt(diff / norm);
}

static enum nib_err judge(struct nib_cpu_selftest *r, struct nib_msg *msg)
{
    for (int i = 0; i < NIB_CPU_KERNEL_COUNT; i++) {
        if (r->kernel[i].error <= r->kernel[i].bound)
            continue;
        r->struck = true;
        return nib_fail(msg, NIB_E_UNSUPPORTED, "kernel %s is wrong: off by %.2g, allowed is %.2g", kernels[i].name,
                        r->kernel[i].error, r->kernel[i].bound);
    }
    return NIB_OK;
}

enum nib_err nib_cpu_selftest(const struct nib_kernels *k, const struct nib_shape *shape,
                              struct nib_cpu_selftest *report, struct nib_msg *msg)
{
    uint8_t *base = aligned_alloc(64, WORK_BYTES);
    if (!base)
        return nib_fail(msg, NIB_E_NOMEM, "the self-test needs %u bytes and the system does not have them", WORK_BYTES);
    *report = (struct nib_cpu_selftest){0};
    for (int i = 0; i < NIB_CPU_KERNEL_COUNT; i++) {
        struct work w = {.k = k, .shape = shape, .base = base};
        uint64_t count = 0;
        const float *out = run(&w, (enum nib_cpu_kernel)i, &count);
        w.k = &nib_kernels_ref;
        const float *ref = run(&w, (enum nib_cpu_kernel)i, &count);
        report->kernel[i].bound = kernels[i].bound;
        report->kernel[i].error = error_of(out, ref, count);
    }
    free(base);
    return judge(report, msg);
}
