/* tests/kernels/matmul.c: products with bf16 and MXFP4 weights, decode and prefill, against ref. */
#include <math.h>

#include "core/mx.h"
#include "tests/harness.h"
#include "tests/kernels/kernels.h"

enum { PAD = 5 }; /* columns of y beyond n, which nobody may touch */

/* One product, and what it gave. */
struct product {
    const struct nib_kernels *row;
    const struct kt_matrix *w;
    struct kt_buf packed, x;
    bool gemm;
};

static struct nib_matmul describe(const struct product *p, struct kt_buf *y, uint32_t m, const uint32_t *rows)
{
    return (struct nib_matmul){.w = p->packed.p,
                               .x = p->x.p,
                               .rows = rows,
                               .bias = p->w->bias.p,
                               .y = y->p,
                               .ldy = p->w->n + PAD,
                               .m = m,
                               .n = p->w->n,
                               .k = p->w->k,
                               .n0 = 0,
                               .n1 = p->w->n};
}

static struct kt_buf take_y(const struct product *p, uint32_t m)
{
    return kt_take((size_t)m * (p->w->n + PAD) * sizeof(float));
}

static void expect_pad_untouched(const struct nib_matmul *mm)
{
    for (uint32_t i = 0; i < mm->m; i++)
        for (uint32_t j = mm->n; j < mm->ldy; j++)
            ck_assert_uint_eq(nib_f32_bits(mm->y[i * mm->ldy + j]), 0xffffffffu);
}

/* The whole product in one call. */
static struct kt_buf multiply(const struct product *p, uint32_t m, const uint32_t *rows)
{
    struct kt_buf y = take_y(p, m);
    struct nib_matmul mm = describe(p, &y, m, rows);
    kt_multiply(p->row, p->w->mx, p->gemm, &mm);
    expect_pad_untouched(&mm);
    return y;
}

static struct kt_buf take_x(uint32_t m, uint32_t k, uint64_t *seed)
{
    struct kt_buf x = kt_take((size_t)m * k * sizeof(float));
    for (size_t i = 0; i < (size_t)m * k; i++)
        ((float *)x.p)[i] = kt_normal(seed);
    return x;
}

static struct product prepare(const struct nib_kernels *row, const struct kt_matrix *w, const struct kt_buf *x,
                              uint32_t m, bool gemm)
{
    return (struct product){
        .row = row, .w = w, .packed = kt_repack(row, w), .x = kt_prep(row, x->p, m, w->k), .gemm = gemm};
}

static void release(struct product *p)
{
    kt_free(&p->packed);
    kt_free(&p->x);
}

/* bf16 weights and AVX prefill are fp32 throughout. Decode with MXFP4 weights rounds an activation to 2^-16 of its
 * block's largest; the AMX row's prefill keeps 16 bits of its fraction. */
static double allowed(const struct product *p)
{
    if (!p->gemm)
        return p->w->mx ? 1e-4 : 2e-6;
    return strcmp(p->row->name, "amx") == 0 ? 4e-5 : 2e-6;
}

struct worst {
    double error[2][2]; /* [mx][gemm] */
};

static void compare(const struct nib_kernels *row, bool mx, bool gemm, uint32_t m, uint32_t n, uint32_t k,
                    uint64_t *seed, struct worst *worst)
{
    struct kt_matrix w = kt_matrix_random(mx, n, k, seed);
    struct kt_buf x = take_x(m, k, seed);
    struct product ref = prepare(kt_ref, &w, &x, m, gemm), got = prepare(row, &w, &x, m, gemm);
    struct kt_buf want = multiply(&ref, m, NULL), have = multiply(&got, m, NULL);
    const double error = kt_error(have.p, n + PAD, want.p, n + PAD, m, n);
    ck_assert_msg(error <= allowed(&got), "%s %s_%s m %u n %u k %u: error %g", row->name, mx ? "mx" : "dense",
                  gemm ? "gemm" : "gemv", m, n, k, error);
    worst->error[mx][gemm] = fmax(worst->error[mx][gemm], error);
    release(&ref);
    release(&got);
    kt_free(&want);
    kt_free(&have);
    kt_free(&x);
    kt_matrix_free(&w);
}

START_TEST(products_equal_ref)
{
    uint64_t seed = nib_test_seed();
    const uint32_t m[] = {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 65, 70};
    const uint32_t n[] = {16, 17, 24, 40, 48, 33, 96, 23}, k[] = {32, 64, 96, 160, 288, 544};
    for (size_t r = 0; r < kt_rows_count; r++) {
        struct worst worst = {0};
        for (int kind = 0; kind < 4; kind++) {
            for (size_t i = 0; i < sizeof m / sizeof m[0]; i++)
                for (int t = 0; t < 4; t++)
                    compare(kt_rows[r], kind & 1, kind >> 1, m[i], n[nib_test_rand(&seed) % 8],
                            k[nib_test_rand(&seed) % 6], &seed, &worst);
            compare(kt_rows[r], kind & 1, kind >> 1, 3, 48, 2880, &seed, &worst);
        }
        printf("%s: largest error dense gemv %.2g gemm %.2g, mx gemv %.2g gemm %.2g\n", kt_rows[r]->name,
               worst.error[0][0], worst.error[0][1], worst.error[1][0], worst.error[1][1]);
    }
}
END_TEST

/* Any part of a product alone has the bits of the whole. */
static void expect_invariant(const struct nib_kernels *row, bool mx, bool gemm, uint32_t m, uint32_t n, uint32_t k,
                             uint64_t *seed)
{
    struct kt_matrix w = kt_matrix_random(mx, n, k, seed);
    struct kt_buf x = take_x(m, k, seed);
    struct product p = prepare(row, &w, &x, m, gemm);
    struct kt_buf whole = multiply(&p, m, NULL);
    const float *want = whole.p;
    const uint64_t ld = n + PAD;

    uint32_t rows[128];
    ck_assert_uint_le(m, 128);
    for (uint32_t i = 0; i < m; i++)
        rows[i] = (uint32_t)(nib_test_rand(seed) % m);
    for (uint32_t count = 1; count <= m; count = count * 2 + 1) {
        struct kt_buf y = multiply(&p, count, rows); /* gathered, some rows twice */
        for (uint32_t i = 0; i < count; i++)
            ck_assert(kt_same_bits((float *)y.p + i * ld, want + rows[i] * ld, n));
        kt_free(&y);
    }
    struct kt_buf y = take_y(&p, m);
    struct nib_matmul mm = describe(&p, &y, m, NULL);
    for (mm.n0 = 0; mm.n0 < n; mm.n0 = mm.n1) {
        const uint32_t left = (n - mm.n0 + row->tile_n - 1) / row->tile_n;
        const uint32_t tiles = 1 + (uint32_t)(nib_test_rand(seed) % left);
        mm.n1 = tiles == left ? n : mm.n0 + tiles * row->tile_n;
        kt_multiply(row, mx, gemm, &mm);
    }
    for (uint32_t i = 0; i < m; i++)
        ck_assert(kt_same_bits((float *)y.p + i * ld, want + i * ld, n));
    expect_pad_untouched(&mm);
    kt_free(&y);
    kt_free(&whole);
    kt_free(&x);
    release(&p);
    kt_matrix_free(&w);
}

START_TEST(products_do_not_depend_on_their_cut)
{
    uint64_t seed = nib_test_seed();
    for (size_t r = 0; r < kt_rows_count; r++)
        for (int kind = 0; kind < 4; kind++) {
            expect_invariant(kt_rows[r], kind & 1, kind >> 1, 5, 24, 32, &seed);
            expect_invariant(kt_rows[r], kind & 1, kind >> 1, 16, 80, 96, &seed);
            expect_invariant(kt_rows[r], kind & 1, kind >> 1, 29, 70, 544, &seed);
            expect_invariant(kt_rows[r], kind & 1, kind >> 1, 100, 48, 320, &seed);
        }
}
END_TEST

/* MXFP8 weights are repacked as the bf16 matrix that they decode to: all codes, scales at both ends, whole and in parts. */
static void expect_same_as_decoded(const struct nib_kernels *row, uint32_t n, uint32_t k, uint64_t *seed)
{
    const uint32_t blocks = k / NIB_MX_BLOCK;
    struct kt_matrix w = {.n = n, .k = k, .dense = kt_take((size_t)n * k * sizeof(uint16_t))};
    struct kt_buf codes = kt_take((size_t)n * k), scales = kt_take((size_t)n * blocks);
    for (size_t b = 0; b < scales.bytes; b++) {
        uint8_t *scale = (uint8_t *)scales.p + b, *code = (uint8_t *)codes.p + b * NIB_MX_BLOCK;
        *scale = (uint8_t)(nib_test_rand(seed) >> 40);
        for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
            code[i] = (uint8_t)(nib_test_rand(seed) >> 40);
        nib_mxfp8_decode_bf16(*scale, code, (uint16_t *)w.dense.p + b * NIB_MX_BLOCK);
    }
    struct kt_buf want = kt_repack(row, &w), have = kt_take(row->dense_bytes(n, k));
    const uint32_t cut = n / 2 / row->tile_n * row->tile_n;
    row->mxfp8_repack(have.p, codes.p, scales.p, n, k, cut, n);
    row->mxfp8_repack(have.p, codes.p, scales.p, n, k, 0, cut);
    ck_assert_msg(memcmp(have.p, want.p, want.bytes) == 0, "%s n %u k %u", row->name, n, k);
    kt_free(&want);
    kt_free(&have);
    kt_free(&codes);
    kt_free(&scales);
    kt_matrix_free(&w);
}

START_TEST(mxfp8_weights_become_the_bf16_they_decode_to)
{
    uint64_t seed = nib_test_seed();
    const uint32_t n[] = {16, 1, 40, 96, 130}, k[] = {32, 96, 544, 2880};
    expect_same_as_decoded(kt_ref, 33, 96, &seed);
    for (size_t r = 0; r < kt_rows_count; r++)
        for (size_t i = 0; i < 5; i++)
            for (size_t j = 0; j < 4; j++)
                expect_same_as_decoded(kt_rows[r], n[i], k[j], &seed);
}
END_TEST

/* A NaN in one row of x, in one scale or in one dense weight spoils the outputs it belongs to and no others. */
static void expect_contained(const struct nib_kernels *row, bool mx, bool gemm, uint64_t *seed)
{
    const uint32_t m = 19, n = 40, k = 160, bad_row = 7, bad_out = 21;
    struct kt_matrix w = kt_matrix_random(mx, n, k, seed);
    if (mx)
        ((uint8_t *)w.scales.p)[bad_out * (k / NIB_MX_BLOCK) + 3] = 255;
    else
        ((uint16_t *)w.dense.p)[bad_out * k + 99] = 0x7fc0;
    struct kt_buf x = take_x(m, k, seed);
    ((float *)x.p)[bad_row * k + 50] = NAN;
    struct product p = prepare(row, &w, &x, m, gemm);
    struct kt_buf y = multiply(&p, m, NULL);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < n; j++) {
            const bool nan = i == bad_row || j == bad_out;
            ck_assert_msg(!isnan(((float *)y.p)[i * (n + PAD) + j]) == !nan, "%s mx %d gemm %d [%u][%u]", row->name, mx,
                          gemm, i, j);
        }
    release(&p);
    kt_free(&y);
    kt_free(&x);
    kt_matrix_free(&w);
}

START_TEST(a_nan_stays_where_it_is)
{
    uint64_t seed = nib_test_seed();
    for (size_t r = 0; r < kt_rows_count; r++)
        for (int kind = 0; kind < 4; kind++)
            expect_contained(kt_rows[r], kind & 1, kind >> 1, &seed);
}
END_TEST

/* Scales from one end of E8M0 to the other, a row of weights each; x is scaled so that the sums are floats. */
static void expect_scales(const struct nib_kernels *row, bool gemm, uint64_t *seed)
{
    const uint32_t n = 255, k = 64;
    struct kt_matrix w = kt_matrix_random(true, n, k, seed);
    for (uint32_t j = 0; j < n; j++)
        memset((uint8_t *)w.scales.p + j * (k / NIB_MX_BLOCK), (int)j, k / NIB_MX_BLOCK);
    for (size_t i = 0; i < w.blocks.bytes; i++)
        ((uint8_t *)w.blocks.p)[i] &= 0xbb; /* magnitudes 0 .. 1.5: no overflow with 2^127 */
    memset(w.bias.p, 0, w.bias.bytes);
    for (int step = 0; step < 3; step++) {
        /* powers of two that bring scales near 20, 127 and 230 to the middle; what leaves the range of normal floats is
         * not compared */
        const int shift = step == 0 ? 100 : step == 1 ? 0 : -100;
        struct kt_buf x = take_x(1, k, seed);
        double norm = 0;
        for (uint32_t i = 0; i < k; i++) {
            ((float *)x.p)[i] = ldexpf(((float *)x.p)[i], shift);
            norm = hypot(norm, (double)((float *)x.p)[i]);
        }
        struct product ref = prepare(kt_ref, &w, &x, 1, gemm), got = prepare(row, &w, &x, 1, gemm);
        struct kt_buf want = multiply(&ref, 1, NULL), have = multiply(&got, 1, NULL);
        for (uint32_t j = 0; j < n; j++) {
            const int power = (int)j - 127 + shift;
            if (power < -80 || power > 100 || j < 2)
                continue;
            const double a = (double)((float *)have.p)[j], b = (double)((float *)want.p)[j];
            const double error = fabs(a - b) / ldexp(norm, power - shift); /* the sum may cancel */
            ck_assert_msg(error < 1e-4, "%s gemm %d scale %u: %g and %g", row->name, gemm, j, a, b);
        }
        release(&ref);
        release(&got);
        kt_free(&want);
        kt_free(&have);
        kt_free(&x);
    }
    kt_matrix_free(&w);
}

START_TEST(all_scales)
{
    uint64_t seed = nib_test_seed();
    for (size_t r = 0; r < kt_rows_count; r++)
        for (int gemm = 0; gemm < 2; gemm++)
            expect_scales(kt_rows[r], gemm, &seed);
}
END_TEST

/* Scales 0 and 1 (denormal weights): as others in decode and fp32, at most lost in bf16 tiles. */
START_TEST(the_smallest_scales)
{
    uint64_t seed = nib_test_seed();
    const uint32_t n = 32, k = 32;
    for (size_t r = 0; r < kt_rows_count; r++)
        for (int gemm = 0; gemm < 2; gemm++) {
            struct kt_matrix w = kt_matrix_random(true, n, k, &seed);
            for (uint32_t j = 0; j < n; j++)
                ((uint8_t *)w.scales.p)[j] = j % 2;
            memset(w.bias.p, 0, w.bias.bytes);
            struct kt_buf x = take_x(1, k, &seed);
            for (uint32_t i = 0; i < k; i++)
                ((float *)x.p)[i] = ldexpf(((float *)x.p)[i], 100);
            struct product ref = prepare(kt_ref, &w, &x, 1, gemm), got = prepare(kt_rows[r], &w, &x, 1, gemm);
            struct kt_buf want = multiply(&ref, 1, NULL), have = multiply(&got, 1, NULL);
            const double error = kt_error(have.p, n, want.p, n, 1, n);
            const bool tiles = gemm && strcmp(kt_rows[r]->name, "amx") == 0;
            ck_assert_msg(error < (tiles ? 1.0 : 1e-4), "%s gemm %d: error %g", kt_rows[r]->name, gemm, error);
            release(&ref);
            release(&got);
            kt_free(&want);
            kt_free(&have);
            kt_free(&x);
            kt_matrix_free(&w);
        }
}
END_TEST

KT_TESTS(kt_matmul_tests, products_equal_ref, products_do_not_depend_on_their_cut, a_nan_stays_where_it_is, all_scales,
         mxfp8_weights_become_the_bf16_they_decode_to, the_smallest_scales)
