/* tests/kernels/rows_test.c: whole forward passes of every row this machine can run, against ref: a prompt past the window in
 * chunks, then an answer fed token by token, both to the same tokens. Differences come from KV pages in bf16 (2^-9 an
 * element). They may also tip a router's near tie, after which that row has another expert and other logits: therefore the
 * median over rows is held, of the relative error of the logits and of the divergence of the distributions.
 *
 * NIB_TEST_SHAPE, NIB_TEST_PROMPT and NIB_TEST_ANSWER choose another shape and other lengths, for larger comparisons by
 * hand (ref takes about a second a token on 20b-slice). */
#include <math.h>

#include "tests/engine_fixture.h"

enum { ANSWER_MAX = 256, TOKENS_MAX = 4096 };

static struct fixture f;

struct plan_of_test {
    const char *shape;
    uint32_t prompt, answer;
    uint32_t tokens[TOKENS_MAX];
};

/* Of each row of logits: ||a - b|| / ||b||, and KL(ref || row) in nats. */
struct distance {
    double error[ANSWER_MAX + 1], kl[ANSWER_MAX + 1];
    uint32_t same_top, rows;
};

static uint32_t number(const char *name, uint32_t otherwise, uint32_t most)
{
    const char *text = getenv(name);
    const unsigned long value = text ? strtoul(text, NULL, 10) : otherwise;
    ck_assert_msg(value >= 1 && value <= most, "%s is %lu, allowed is 1 to %u", name, value, most);
    return (uint32_t)value;
}

/* Logits of the prompt's last row and of each row of the answer: [answer + 1][vocab]. */
static float *run(const struct nib_kernels *kernels, enum nib_kv_form kv, const struct plan_of_test *t)
{
    const struct fixture_options o = {.shape = t->shape,
                                      .kernels = kernels,
                                      .kv = kv,
                                      .seed = 5,
                                      .ctx_tokens = t->prompt + t->answer + 64,
                                      .slots = 1,
                                      .step_rows_max = 128,
                                      .threads = 2};
    fixture_open(&f, &o);
    const uint32_t vocab = f.image.shape->vocab;
    float *logits = malloc((size_t)(t->answer + 1) * vocab * sizeof *logits);
    ck_assert_ptr_nonnull(logits);
    fixture_prefill(&f, 0, t->tokens, 0, t->prompt, 100, logits);
    for (uint32_t i = 0; i < t->answer; i++)
        (void)fixture_decode(&f, 0, t->prompt + i, t->tokens[t->prompt + i], logits + (size_t)(i + 1) * vocab);
    fixture_close(&f);
    return logits;
}

static double log_sum(const float *x, uint32_t n)
{
    double top = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        top = fmax(top, (double)x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    return top + log(sum);
}

static void compare_row(const float *a, const float *b, uint32_t n, struct distance *d)
{
    const double la = log_sum(a, n), lb = log_sum(b, n);
    double difference = 0, norm = 0, kl = 0;
    uint32_t top_a = 0, top_b = 0;
    for (uint32_t i = 0; i < n; i++) {
        const double x = (double)a[i], y = (double)b[i];
        difference += (x - y) * (x - y);
        norm += y * y;
        kl += exp(y - lb) * ((y - lb) - (x - la));
        top_a = a[i] > a[top_a] ? i : top_a;
        top_b = b[i] > b[top_b] ? i : top_b;
    }
    d->error[d->rows] = sqrt(difference / norm);
    d->kl[d->rows++] = kl;
    d->same_top += top_a == top_b;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void expect_close(const char *shape, const char *row, double error_max, double kl_max, struct distance *d)
{
    qsort(d->error, d->rows, sizeof d->error[0], ascending);
    qsort(d->kl, d->rows, sizeof d->kl[0], ascending);
    const uint32_t last = d->rows - 1;
    const double error = d->error[d->rows / 2], kl = d->kl[d->rows / 2];
    printf("%s %s: relative error median %.2g largest %.2g, KL median %.2g largest %.2g, same argmax %u of %u\n", shape,
           row, error, d->error[last], kl, d->kl[last], d->same_top, d->rows);
    ck_assert_msg(error < error_max && kl < kl_max, "%s: median relative error %g, KL %g", row, error, kl);
    ck_assert_uint_ge(d->same_top * 10, d->rows * 8);
}

static void expect_rows(const struct plan_of_test *t, const float *have, const float *want, const char *row,
                        double error_max, double kl_max)
{
    static struct distance d;
    const uint32_t vocab = nib_shape_find(t->shape)->vocab;
    d.rows = d.same_top = 0;
    for (uint32_t r = 0; r <= t->answer; r++)
        compare_row(have + (size_t)r * vocab, want + (size_t)r * vocab, vocab, &d);
    expect_close(t->shape, row, error_max, kl_max, &d);
}

START_TEST(rows_equal_ref)
{
    static struct plan_of_test t;
    const uint64_t seed = nib_test_seed();
    t.shape = getenv("NIB_TEST_SHAPE") ? getenv("NIB_TEST_SHAPE") : "tiny";
    t.prompt = number("NIB_TEST_PROMPT", 300, TOKENS_MAX - ANSWER_MAX);
    t.answer = number("NIB_TEST_ANSWER", 48, ANSWER_MAX);
    const struct nib_shape *shape = nib_shape_find(t.shape);
    ck_assert_ptr_nonnull(shape);
    fixture_tokens(shape, seed, t.tokens, t.prompt + t.answer);
    struct nib_profile here;
    struct nib_msg msg;
    ck_assert_int_eq(nib_arch_probe_cpu(&here, &msg), NIB_OK);
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    float *want = run(&nib_kernels_ref, NIB_KV_BF16, &t), *want_fp8 = run(&nib_kernels_ref, NIB_KV_FP8, &t);
    expect_rows(&t, want_fp8, want, "ref with FP8 keys and values", 1e-1, 2e-2);
    for (size_t i = 0; i < count; i++) {
        if (!rows[i].kernels || rows[i].kernels == &nib_kernels_ref || nib_arch_refusal(&rows[i], &here, 0))
            continue;
        for (enum nib_kv_form kv = 0; kv < NIB_KV_FORMS; kv++) {
            float *have = run(rows[i].kernels, kv, &t);
            char name[64];
            (void)snprintf(name, sizeof name, "%s %s", rows[i].name, nib_kv_form_name(kv));
            expect_rows(&t, have, kv == NIB_KV_FP8 ? want_fp8 : want, name, 1e-2, 1e-4);
            free(have);
        }
    }
    free(want);
    free(want_fp8);
}
END_TEST

NIB_SUITE(rows, rows_equal_ref)
