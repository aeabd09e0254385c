/* tests/gpu/selftest_test.c: the self-test on tests/fake's libcuda: right kernels pass, and each kernel that is broken is
 * found and named. */
#include "gpu/selftest.h"
#include "tests/gpu/gpu_fixture.h"

static struct nib_gpu gpu;
static struct nib_profile profile;
static struct nib_gpu_selftest report;
static struct nib_msg msg;

static enum nib_err prove(const char *shape, const char *fault)
{
    struct nib_profile host;
    fake_env("h200", fault);
    gpu_make_kernels();
    ck_assert_int_eq(nib_arch_probe_cpu(&host, &msg), NIB_OK);
    ck_assert_msg(nib_gpu_open(&gpu, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_msg(nib_gpu_probe(&gpu, &host, &profile, &msg) == NIB_OK, "%s", msg.text);
    return nib_gpu_selftest(&gpu, &gpu_kernels, &profile, nib_shape_find(shape), &report, &msg);
}

static void print_report(void)
{
    for (int op = 0; op < NIB_GPU_OP_COUNT; op++)
        printf("%-22s %-12s %.2e of %.0e\n", nib_gpu_op_symbol((enum nib_gpu_op)op), report.op[op].what,
               report.op[op].error, report.op[op].bound);
    printf("%llu us\n", (unsigned long long)report.us);
}

START_TEST(right_kernels_pass)
{
    static const char *const shapes[] = {"nano", "tiny", "small"};
    enum nib_err err = prove(shapes[_i], "");
    print_report();
    ck_assert_msg(err == NIB_OK, "%s", msg.text);
    ck_assert(!report.struck && !gpu.lost);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
    nib_gpu_close(&gpu);
    ck_assert_int_eq((int)fake_env_report()->objects, 0);
    ck_assert_uint_eq(fake_env_report()->device_bytes + fake_env_report()->pinned_bytes, 0);
}
END_TEST

/* Every kernel of the contract, one at a time. */
START_TEST(a_wrong_kernel_is_named)
{
    char fault[64];
    const char *symbol = nib_gpu_op_symbol((enum nib_gpu_op)_i);
    snprintf(fault, sizeof fault, "%s:1+:wrong", symbol);
    enum nib_err err = prove("tiny", fault);
    ck_assert_int_eq(err, NIB_E_UNSUPPORTED);
    ck_assert(report.struck && !gpu.lost);
    ck_assert_msg(strstr(msg.text, symbol) && strstr(msg.text, symbol)[strlen(symbol)] == ' ', "%s: %s", symbol,
                  msg.text);
    nib_gpu_close(&gpu);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("selftest");
    TCase *t = tcase_create("selftest");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, right_kernels_pass, 0, 3);
    tcase_add_loop_test(t, a_wrong_kernel_is_named, 0, NIB_GPU_OP_COUNT);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
