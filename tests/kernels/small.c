/* tests/kernels/small.c: rmsnorm, rope, swiglu against ref. */
#include <math.h>

#include "core/mx.h"
#include "tests/harness.h"
#include "tests/kernels/kernels.h"

static struct kt_buf take_floats(uint32_t n, double scale, uint64_t *seed)
{
    struct kt_buf b = kt_take(n * sizeof(float));
    for (uint32_t i = 0; i < n; i++)
        ((float *)b.p)[i] = (float)((double)kt_normal(seed) * scale);
    return b;
}

START_TEST(rmsnorm_equals_ref)
{
    uint64_t seed = nib_test_seed();
    const uint32_t sizes[] = {1, 7, 32, 40, 96, 100, 2880};
    const double scales[] = {1e-4, 1, 3000};
    for (size_t r = 0; r < kt_rows_count; r++)
        for (size_t i = 0; i < 21; i++) {
            const uint32_t n = sizes[i % 7];
            struct kt_buf x = take_floats(n, scales[i / 7], &seed), w = kt_take(n * sizeof(uint16_t));
            for (uint32_t j = 0; j < n; j++)
                ((uint16_t *)w.p)[j] = kt_bf16(&seed);
            struct kt_buf want = kt_take(n * sizeof(float)), have = kt_take(n * sizeof(float));
            kt_ref->rmsnorm(want.p, x.p, w.p, n);
            kt_rows[r]->rmsnorm(have.p, x.p, w.p, n);
            ck_assert_double_lt(kt_error(have.p, n, want.p, n, 1, n), 5e-7);
            kt_free(&x);
            kt_free(&w);
            kt_free(&want);
            kt_free(&have);
        }
}
END_TEST

START_TEST(rope_equals_ref)
{
    uint64_t seed = nib_test_seed();
    for (size_t r = 0; r < kt_rows_count; r++)
        for (uint32_t heads = 1; heads <= 9; heads += 4) {
            const uint32_t n = heads * NIB_HEAD_DIM;
            struct kt_buf have = take_floats(n, 1, &seed), want = kt_take(n * sizeof(float));
            struct kt_buf cosines = take_floats(NIB_HEAD_DIM / 2, 1, &seed);
            struct kt_buf sines = take_floats(NIB_HEAD_DIM / 2, 1, &seed);
            memcpy(want.p, have.p, n * sizeof(float));
            kt_ref->rope(want.p, heads, cosines.p, sines.p);
            kt_rows[r]->rope(have.p, heads, cosines.p, sines.p);
            ck_assert_double_lt(kt_error(have.p, n, want.p, n, 1, n), 2e-7);
            kt_free(&have);
            kt_free(&want);
            kt_free(&cosines);
            kt_free(&sines);
        }
}
END_TEST

START_TEST(swiglu_equals_ref)
{
    uint64_t seed = nib_test_seed();
    const uint32_t sizes[] = {1, 5, 8, 15, 16, 17, 64, 333, 2880};
    const double scales[] = {0.01, 3, 40};
    for (size_t r = 0; r < kt_rows_count; r++) {
        double worst = 0;
        for (size_t i = 0; i < 27; i++) {
            const uint32_t n = sizes[i % 9];
            struct kt_buf h = take_floats(2 * n, scales[i / 9], &seed);
            struct kt_buf want = kt_take(n * sizeof(float)), have = kt_take(n * sizeof(float));
            kt_ref->swiglu(want.p, h.p, n);
            kt_rows[r]->swiglu(have.p, h.p, n);
            for (uint32_t j = 0; j < n; j++) { /* each element, not only the large ones */
                const double a = (double)((float *)have.p)[j], b = (double)((float *)want.p)[j];
                const double error = fabs(a - b) / (fabs(b) + 1e-30);
                worst = fmax(worst, error);
                ck_assert_msg(error < 1e-5, "%s: swiglu gave %g, ref has %g", kt_rows[r]->name, a, b);
            }
            ck_assert_double_lt(kt_error(have.p, n, want.p, n, 1, n), n < 64 ? 1e-5 : 5e-7);
            kt_free(&h);
            kt_free(&want);
            kt_free(&have);
        }
        printf("%s: largest relative error of one swiglu element %.2g\n", kt_rows[r]->name, worst);
    }
}
END_TEST

START_TEST(swiglu_keeps_nan_and_clamps)
{
    for (size_t r = 0; r < kt_rows_count; r++)
        for (uint32_t n = 3; n <= 35; n += 16) {
            struct kt_buf h = kt_take(2 * n * sizeof(float)), a = kt_take(n * sizeof(float));
            float *x = h.p, *y = a.p;
            for (uint32_t i = 0; i < 2 * n; i++)
                x[i] = 1.0f;
            x[0] = NAN;
            x[3] = NAN;
            x[4] = INFINITY, x[5] = INFINITY;
            x[2 * n - 2] = -2000.0f; /* the last, unless n is 3: the gate is not clamped below */
            if (n == 3)
                x[4] = INFINITY;
            kt_rows[r]->swiglu(y, x, n);
            ck_assert(isnan(y[0]) && isnan(y[1]));
            ck_assert_double_eq_tol((double)y[2], 56.0, 1e-3);
            if (n > 3)
                ck_assert(fabsf(y[n - 1]) < 1e-30f);
            kt_free(&h);
            kt_free(&a);
        }
}
END_TEST

KT_TESTS(kt_small_tests, rmsnorm_equals_ref, rope_equals_ref, swiglu_equals_ref, swiglu_keeps_nan_and_clamps)
