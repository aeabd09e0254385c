/* tests/gpu/selftest_test.c: the self-test on tests/fake's libcuda: right kernels pass, and each kernel that is broken is
 * found and named. */
#include <sys/wait.h>

#include "gpu/selftest.h"
#include "tests/gpu/gpu_fixture.h"

static struct nib_gpu gpu;
static struct nib_profile profile;
static struct nib_gpu_selftest report;
static struct nib_msg msg;
static enum nib_dense form;
static enum nib_kv_form kv;

static enum nib_err prove(const char *shape, const char *fault)
{
    struct nib_profile host;
    fake_env("h200", fault);
    gpu_make_kernels();
    ck_assert_int_eq(nib_arch_probe_cpu(&host, &msg), NIB_OK);
    ck_assert_msg(nib_gpu_open(&gpu, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_msg(nib_gpu_probe(&gpu, &host, &profile, &msg) == NIB_OK, "%s", msg.text);
    return nib_gpu_selftest(&gpu, &gpu_kernels, &profile, nib_shape_find(shape), form, kv, &report, &msg);
}

START_TEST(right_kernels_pass)
{
    static const char *const shapes[] = {"nano", "tiny", "small"};
    form = (enum nib_dense)(_i % NIB_DENSE_COUNT);
    kv = (enum nib_kv_form)(_i / NIB_DENSE_COUNT % NIB_KV_FORMS);
    enum nib_err err = prove(shapes[_i / NIB_DENSE_COUNT / NIB_KV_FORMS], "");
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
    form = strstr(symbol, "_mxfp8") ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
    kv = strstr(symbol, "_fp8") ? NIB_KV_FP8 : NIB_KV_BF16;
    enum nib_err err = prove("tiny", fault);
    ck_assert_int_eq(err, NIB_E_UNSUPPORTED);
    ck_assert(report.struck && !gpu.lost);
    ck_assert_msg(strstr(msg.text, symbol) && strstr(msg.text, symbol)[strlen(symbol)] == ' ', "%s: %s", symbol,
                  msg.text);
    nib_gpu_close(&gpu);
}
END_TEST

/* A kernel of the other form is not run: its fault does not strike the row. */
START_TEST(kernels_of_the_other_form_are_not_asked)
{
    static const char *const faults[NIB_DENSE_COUNT] = {"nib_gpu_out_mxfp8:1+:wrong,nib_gpu_repack_mxfp8:1+:wrong",
                                                        "nib_gpu_qkv:1+:wrong,nib_gpu_head:1+:wrong"};
    form = (enum nib_dense)_i;
    ck_assert_msg(prove("nano", faults[form]) == NIB_OK, "%s", msg.text);
    ck_assert(report.op[NIB_GPU_QKV].ran == (form == NIB_DENSE_BF16));
    ck_assert(report.op[NIB_GPU_QKV_MXFP8].ran == (form == NIB_DENSE_MXFP8));
    nib_gpu_close(&gpu);
}
END_TEST

/* What a life of the self-test with one fault came to; in memory shared with the process that lived it. */
struct life {
    int err;
    bool struck, lost, done;
    struct nib_msg msg;
    struct fake_report report;
};

static struct life live(const char *fault)
{
    struct life *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(shared, MAP_FAILED);
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        shared->err = prove("nano", fault);
        shared->struck = report.struck;
        shared->lost = gpu.lost;
        shared->msg = msg;
        nib_gpu_close(&gpu);
        shared->report = *fake_env_report();
        shared->done = true;
        _exit(0);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    struct life life = *shared;
    ck_assert_int_eq(munmap(shared, sizeof *shared), 0);
    ck_assert_msg(life.done && WIFEXITED(status), "%s: status %#x", fault, (unsigned)status);
    return life;
}

/* Of calls before the self-test, which fail the opening, and of giving back, whose failure shows later or never. */
static bool passed_over(const char *site)
{
    static const char *const others[] = {"cuInit", "cuDriverGetVersion", "cuGetErrorName",  "cuDevice",
                                         "cuCtx",  "cuMemFree",          "cuStreamDestroy", "cuModuleUnload",
                                         "kernel", "cuMemGetInfo"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strncmp(site, others[i], strlen(others[i])) == 0)
            return true;
    return false;
}

START_TEST(every_call_may_fail)
{
    static const int codes[] = {NIB_CU_OUT_OF_MEMORY, NIB_CU_INVALID_VALUE, NIB_CU_ILLEGAL_ADDRESS,
                                NIB_CU_ECC_UNCORRECTABLE};
    const struct life golden = live("");
    unsigned lives = 0;
    ck_assert_int_eq(golden.err, NIB_OK);
    for (uint32_t i = 0; i < golden.report.sites; i++) {
        const char *site = golden.report.site[i].name;
        const uint64_t count = golden.report.site[i].count, at[3] = {1, count / 2, count};
        for (int k = 0; k < 12 && !passed_over(site); k++) {
            const int code = codes[k % 4];
            char fault[80];
            if (strncmp(site, "nib_gpu", 7) == 0 && code < NIB_CU_INVALID_IMAGE)
                continue; /* no kernel ends so */
            if (at[k / 4] == 0 || (k / 4 && at[k / 4] == at[k / 4 - 1]))
                continue;
            snprintf(fault, sizeof fault, "%s:%llu:%d", site, (unsigned long long)at[k / 4], code);
            const struct life life = live(fault);
            if (life.report.fired == 0) /* fewer looks at the stream were needed this time */
                continue;
            lives++;
            ck_assert_msg(life.err != NIB_OK && strlen(life.msg.text) > 20, "%s: passed", fault);
            ck_assert_msg(!life.lost || life.err == NIB_E_DEVICE, "%s: %d, lost %d", fault, life.err, life.lost);
            ck_assert_msg(life.err != NIB_E_DEVICE || life.lost || !life.struck, "%s: struck by a refusal", fault);
            ck_assert_msg(!life.struck || life.err != NIB_E_NOMEM, "%s: struck for want of memory", fault);
            ck_assert_msg(!life.struck || code != NIB_CU_ECC_UNCORRECTABLE, "%s: struck for the hardware", fault);
            ck_assert_msg(life.report.violations == 0, "%s", fault);
            ck_assert_msg(life.lost || (life.report.objects == 0 && life.report.device_bytes == 0), "%s: leaves things",
                          fault);
        }
    }
    printf("%u lives\n", lives);
    ck_assert_uint_gt(lives, 200);
}
END_TEST

START_TEST(a_kernel_that_does_not_end_is_named)
{
    const struct life life = live("nib_gpu_route:2:hang");
    ck_assert(life.err == NIB_E_DEVICE && life.struck && life.lost);
    ck_assert_ptr_nonnull(strstr(life.msg.text, "kernel nib_gpu_route: the GPU did not end its work in 5000 ms"));
}
END_TEST

START_TEST(memory_that_is_not_there_strikes_no_row)
{
    const struct life life = live("cuMemAlloc:1:2");
    ck_assert(life.err == NIB_E_NOMEM && !life.struck && !life.lost);
}
END_TEST

/* Each built row's image names every kernel that its table says it has: text of PTX, or names in a cubin. */
START_TEST(images_have_the_kernels_of_their_tables)
{
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    for (size_t i = 0; i < count; i++) {
        const struct nib_gpu_kernels *k = rows[i].gpu_kernels;
        for (int op = 0; k && op < NIB_GPU_OP_COUNT; op++) {
            char name[64]; /* whole: what follows ends it */
            const int n = snprintf(name, sizeof name, "%s", nib_gpu_op_symbol((enum nib_gpu_op)op));
            const size_t bytes = (size_t)(k->image_end - k->image);
            bool found = false;
            for (const unsigned char *at = k->image; !found && at < k->image_end; at++) {
                at = memmem(at, (size_t)(k->image_end - at), name, (size_t)n);
                if (!at)
                    break;
                found = (size_t)(at - k->image) + (size_t)n < bytes && (at[n] == '\0' || at[n] == '(');
            }
            ck_assert_msg(found || !k->has((enum nib_gpu_op)op), "row %s lacks %s", rows[i].name, name);
        }
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("selftest");
    TCase *t = tcase_create("selftest");
    tcase_set_timeout(t, 300);
    tcase_add_loop_test(t, right_kernels_pass, 0, 3 * NIB_DENSE_COUNT * NIB_KV_FORMS);
    tcase_add_loop_test(t, a_wrong_kernel_is_named, 0, NIB_GPU_OP_COUNT);
    tcase_add_loop_test(t, kernels_of_the_other_form_are_not_asked, 0, NIB_DENSE_COUNT);
    tcase_add_test(t, every_call_may_fail);
    tcase_add_test(t, a_kernel_that_does_not_end_is_named);
    tcase_add_test(t, memory_that_is_not_there_strikes_no_row);
    tcase_add_test(t, images_have_the_kernels_of_their_tables);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
