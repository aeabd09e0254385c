/* tests/kernels/selftest_test.c: the self-test of CPU rows: every row of this machine passes, and each kernel that is broken is
 * found and named. */
#include "arch/selftest.h"
#include "arch/table.h"
#include "tests/harness.h"

static const struct nib_kernels *const ref = &nib_kernels_ref;
static struct nib_kernels broken;
static struct nib_cpu_selftest report;
static struct nib_msg msg;

static enum nib_err prove(const struct nib_kernels *k, const char *shape)
{
    return nib_cpu_selftest(k, nib_shape_find(shape), &report, &msg);
}

START_TEST(every_row_passes)
{
    static const char *const shapes[] = {"nano", "tiny", "small", "20b"};
    struct nib_profile here;
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    ck_assert_int_eq(nib_arch_probe_cpu(&here, &msg), NIB_OK);
    for (size_t i = 0; i < count; i++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++) {
            if (rows[i].gpu || nib_arch_refusal(&rows[i], &here, 0))
                continue;
            ck_assert_msg(prove(rows[i].kernels, shapes[s]) == NIB_OK, "%s, %s: %s", rows[i].name, shapes[s], msg.text);
            ck_assert(!report.struck);
        }
}
END_TEST

/* Each is right but for one output, by a thousandth or so; or leaves one out. */
static void product(const struct nib_matmul *mm, void (*right)(const struct nib_matmul *mm))
{
    right(mm);
    mm->y[(mm->m - 1) * mm->ldy + mm->n1 - 1] *= 1.1f;
}

static void dense_gemv(const struct nib_matmul *mm)
{
    product(mm, nib_kernels_ref.dense_gemv);
}

static void mx_gemv(const struct nib_matmul *mm)
{
    product(mm, nib_kernels_ref.mx_gemv);
}

static void dense_gemm(const struct nib_matmul *mm, void *scratch)
{
    struct nib_matmul less = *mm;
    less.n1--; /* the last output is not written */
    ref->dense_gemm(&less, scratch);
}

static void mx_gemm(const struct nib_matmul *mm, void *scratch)
{
    ref->mx_gemm(mm, scratch);
    mm->y[3] = -mm->y[3];
}

static void rmsnorm(float *y, const float *x, const uint16_t *w, uint32_t n)
{
    ref->rmsnorm(y, x, w, n - 1);
    y[n - 1] = x[n - 1];
}

static void rope(float *x, uint32_t heads, const float *cos, const float *sin)
{
    ref->rope(x, heads, sin, cos);
}

static void swiglu(float *a, const float *h, uint32_t n)
{
    ref->swiglu(a, h, n);
    a[n / 2] *= 1.001f;
}

static void attn(const struct nib_attn *a)
{
    struct nib_attn wide = *a;
    wide.window = a->window ? a->window + 1 : 0; /* one key too many */
    ref->attn(&wide);
}

static void kv_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    ref->kv_put(page, kv_heads, token, k, v);
    if (token == 7)
        ref->kv_put(page, kv_heads, token, v, k);
}

static void kv8_put(void *page, uint32_t kv_heads, uint32_t token, const float *k, const float *v)
{
    ref->kv8_put(page, kv_heads, token, k, v);
    uint8_t *last = (uint8_t *)page + ref->kv8_page_bytes(kv_heads) - 1;
    if (token == NIB_KV_PAGE_TOKENS - 1)
        (*last)++; /* one scale twice as large */
}

static void acts_prep(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k)
{
    ref->acts_prep(dst, x, ldx, m, k);
    ((float *)dst)[k / 2] = 0;
}

static void dense_repack(void *dst, const uint16_t *src, uint32_t n, uint32_t k, uint32_t n0, uint32_t n1)
{
    ref->dense_repack(dst, src, n, k, n0, n1 - 1);
}

static void mxfp8_repack(void *dst, const uint8_t *codes, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                         uint32_t n1)
{
    ref->mxfp8_repack(dst, codes, scales + 1, n, k, n0, n1 - 1); /* the wrong block's scale */
}

static void mx_repack(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                      uint32_t n1)
{
    ref->mx_repack(dst, blocks, blocks, n, k, n0, n1); /* no scales */
    (void)scales;
}

static void expect_named(const char *name)
{
    ck_assert_int_eq(prove(&broken, "tiny"), NIB_E_UNSUPPORTED);
    ck_assert(report.struck);
    ck_assert_msg(strstr(msg.text, name) != NULL, "%s: %s", name, msg.text);
}

#define BREAK(field, name)                                                                                             \
    do {                                                                                                               \
        broken = nib_kernels_ref;                                                                                      \
        broken.field = field;                                                                                          \
        expect_named("kernel " name " is wrong");                                                                      \
    } while (0)

START_TEST(a_wrong_kernel_is_named)
{
    BREAK(dense_gemv, "dense_gemv");
    BREAK(dense_gemm, "dense_gemm");
    BREAK(mxfp8_repack, "mxfp8_repack");
    BREAK(mx_gemv, "mx_gemv");
    BREAK(mx_gemm, "mx_gemm");
    BREAK(rmsnorm, "rmsnorm");
    BREAK(rope, "rope");
    BREAK(swiglu, "swiglu");
    BREAK(attn, "attn");
    /* what has no output of its own shows in the first kernel that reads it */
    BREAK(kv_put, "attn");
    BREAK(kv8_put, "attn_fp8");
    BREAK(acts_prep, "dense_gemv");
    BREAK(dense_repack, "dense_gemv");
    BREAK(mx_repack, "mx_gemv");
}
END_TEST

NIB_SUITE(cpu_selftest, every_row_passes, a_wrong_kernel_is_named)
