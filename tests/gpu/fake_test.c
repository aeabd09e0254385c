/* tests/gpu/fake_test.c: the stand-in itself: it must be as late, as strict and as broken as a GPU, or the tests that run
 * on it prove nothing. */
#include "gpu/driver.h"

#include <time.h>

#include "tests/gpu/fake_env.h"

static struct nib_cuda cuda;
static struct CUstream_st *stream;

#define FINE(call) ck_assert_int_eq((call), NIB_CU_SUCCESS)

static void start(const char *profile, const char *fault)
{
    struct nib_msg msg = {""};
    struct CUctx_st *ctx;
    fake_env(profile, fault);
    ck_assert_msg(nib_cuda_open(&cuda, &msg) == NIB_OK, "%s", msg.text);
    FINE(cuda.cuDevicePrimaryCtxRetain(&ctx, 0));
    FINE(cuda.cuCtxSetCurrent(ctx));
    FINE(cuda.cuStreamCreate(&stream, NIB_CU_STREAM_NON_BLOCKING));
    (void)fake_env_report();
}

static int settle(struct CUstream_st *s)
{
    const struct timespec nap = {.tv_nsec = 100000};
    int result;
    for (int i = 0; (result = cuda.cuStreamQuery(s)) == NIB_CU_NOT_READY && i < 100000; i++)
        nanosleep(&nap, NULL);
    return result;
}

/* A kernel that only needs a machine block: the sum over 64 bytes. */
struct sum {
    struct CUfunc_st *function;
    nib_cu_ptr device;
    uint8_t *host;
};
enum { SUM_REPACK = sizeof(struct nib_gpu_machine), SUM_WORDS = SUM_REPACK + 256, SUM_TOTAL = SUM_WORDS + 64 };
enum { SUM_BYTES = SUM_TOTAL + 64 };

static void sum_open(struct sum *s)
{
    static struct nib_gpu_machine machine;
    struct CUmod_st *module;
    void *host = NULL;
    FINE(cuda.cuModuleLoadDataEx(&module, "nib_gpu_sum nib_gpu_begin", 0, NULL, NULL));
    FINE(cuda.cuModuleGetFunction(&s->function, module, "nib_gpu_sum"));
    FINE(cuda.cuMemAlloc(&s->device, SUM_BYTES));
    FINE(cuda.cuMemHostAlloc(&host, SUM_BYTES, NIB_CU_HOST_MAPPED));
    s->host = host;
    machine.repack = s->device + SUM_REPACK;
    const struct nib_gpu_repack repack = {.src = s->device + SUM_WORDS, .sum_bytes = 64, .sum = s->device + SUM_TOTAL};
    memset(s->host, 0, SUM_BYTES);
    memcpy(s->host, &machine, sizeof machine);
    memcpy(s->host + SUM_REPACK, &repack, sizeof repack);
    for (int i = 0; i < 64; i++)
        s->host[SUM_WORDS + i] = (uint8_t)(i * 7);
    FINE(cuda.cuMemcpyHtoDAsync(s->device, s->host, SUM_BYTES, stream));
}

static int sum_launch(struct sum *s)
{
    uint32_t layer = 0;
    void *arguments[] = {&s->device, &layer};
    const struct nib_cu_launch_config config = {.grid = {1, 1, 1}, .block = {32, 1, 1}, .stream = stream};
    return cuda.cuLaunchKernelEx(&config, s->function, arguments, NULL);
}

static uint64_t sum_read(struct sum *s)
{
    uint64_t total;
    FINE(cuda.cuMemcpyDtoHAsync(s->host + SUM_TOTAL, s->device + SUM_TOTAL, sizeof total, stream));
    ck_assert_int_eq(settle(stream), NIB_CU_SUCCESS);
    memcpy(&total, s->host + SUM_TOTAL, sizeof total);
    return total;
}

static uint64_t sum_wanted(const struct sum *s)
{
    uint64_t total = 0, word;
    for (uint64_t i = 0; i < 8; i++) {
        memcpy(&word, s->host + SUM_WORDS + 8 * i, sizeof word);
        total += NIB_GPU_SUM_WORD(word, i);
    }
    return total;
}

START_TEST(work_runs_in_order_and_later)
{
    struct sum s;
    start("h200", "nib_gpu_sum:1:late:200");
    sum_open(&s);
    FINE(sum_launch(&s));
    FINE(sum_launch(&s));
    ck_assert_int_eq(cuda.cuStreamQuery(stream), NIB_CU_NOT_READY);
    ck_assert_uint_eq(sum_read(&s), 2 * sum_wanted(&s));
    ck_assert_uint_eq(fake_env_report()->fired, 1);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

START_TEST(graphs_replay)
{
    struct sum s;
    struct CUgraph_st *graph;
    struct CUgraphExec_st *exec;
    start("h200", "");
    sum_open(&s);
    FINE(cuda.cuStreamBeginCapture(stream, NIB_CU_CAPTURE_RELAXED));
    FINE(sum_launch(&s));
    FINE(sum_launch(&s));
    FINE(cuda.cuStreamEndCapture(stream, &graph));
    FINE(cuda.cuGraphInstantiateWithFlags(&exec, graph, 0));
    FINE(cuda.cuGraphDestroy(graph));
    ck_assert_uint_eq(sum_read(&s), 0);
    for (int i = 0; i < 3; i++)
        FINE(cuda.cuGraphLaunch(exec, stream));
    ck_assert_uint_eq(sum_read(&s), 6 * sum_wanted(&s));
}
END_TEST

START_TEST(a_flipped_bit_shows_in_the_sum)
{
    struct sum s;
    start("h200", "cuMemcpyHtoDAsync:2:flip");
    sum_open(&s);
    FINE(cuda.cuMemcpyHtoDAsync(s.device + SUM_WORDS, s.host + SUM_WORDS, 64, stream));
    FINE(sum_launch(&s));
    ck_assert_uint_ne(sum_read(&s), sum_wanted(&s));
}
END_TEST

START_TEST(a_spoilt_kernel_is_wrong)
{
    struct sum s;
    start("h200", "nib_gpu_sum:1:wrong");
    sum_open(&s);
    FINE(sum_launch(&s));
    ck_assert_uint_ne(sum_read(&s), sum_wanted(&s));
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

START_TEST(memory_starts_as_poison_and_is_out_of_reach)
{
    nib_cu_ptr at;
    uint8_t bytes[16] = {0};
    start("h200", "");
    FINE(cuda.cuMemAlloc(&at, 4096));
    FINE(cuda.cuMemcpyDtoHAsync(bytes, at + 4080, 16, stream));
    FINE(settle(stream));
    for (int i = 0; i < 16; i++)
        ck_assert_uint_eq(bytes[i], 0xff);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
    ck_assert_int_eq(cuda.cuMemcpyDtoHAsync(bytes, at + 4081, 16, stream), NIB_CU_INVALID_VALUE);
    ck_assert_int_eq(cuda.cuMemcpyDtoHAsync(bytes, (uintptr_t)bytes, 16, stream), NIB_CU_INVALID_VALUE);
    ck_assert_uint_eq(fake_env_report()->violations, 2);
}
END_TEST

START_TEST(the_host_faults_on_a_device_address)
{
    nib_cu_ptr at;
    start("h200", "");
    FINE(cuda.cuMemAlloc(&at, 4096));
    ck_assert_int_eq(*(volatile uint8_t *)(uintptr_t)at, 0);
}
END_TEST

START_TEST(an_illegal_address_is_sticky)
{
    struct sum s;
    nib_cu_ptr at;
    start("h200", "");
    sum_open(&s);
    struct nib_gpu_repack repack = {.src = s.device + SUM_BYTES, .sum_bytes = 64, .sum = s.device + SUM_TOTAL};
    FINE(cuda.cuMemcpyHtoDAsync(s.device + SUM_REPACK, &repack, sizeof repack, stream));
    FINE(sum_launch(&s));
    ck_assert_int_eq(settle(stream), NIB_CU_ILLEGAL_ADDRESS);
    ck_assert_int_eq(cuda.cuMemAlloc(&at, 64), NIB_CU_ILLEGAL_ADDRESS);
    ck_assert_int_eq(sum_launch(&s), NIB_CU_ILLEGAL_ADDRESS);
    ck_assert_uint_eq(fake_env_report()->violations, 1);
}
END_TEST

START_TEST(injected_codes_poison_or_not)
{
    nib_cu_ptr at;
    start("h200", "cuMemAlloc:1:2,cuMemAlloc:3:719");
    ck_assert_int_eq(cuda.cuMemAlloc(&at, 64), NIB_CU_OUT_OF_MEMORY);
    FINE(cuda.cuMemAlloc(&at, 64));
    ck_assert_int_eq(cuda.cuMemAlloc(&at, 64), NIB_CU_LAUNCH_FAILED);
    ck_assert_int_eq(cuda.cuStreamQuery(stream), NIB_CU_LAUNCH_FAILED);
    ck_assert_uint_eq(fake_env_report()->fired, 2);
}
END_TEST

START_TEST(a_hang_never_ends)
{
    struct sum s;
    const struct timespec nap = {.tv_nsec = 100000000};
    start("h200", "nib_gpu_sum:1:hang");
    sum_open(&s);
    FINE(settle(stream));
    FINE(sum_launch(&s));
    nanosleep(&nap, NULL);
    ck_assert_int_eq(cuda.cuStreamQuery(stream), NIB_CU_NOT_READY);
}
END_TEST

START_TEST(memory_is_as_large_as_the_profile_says)
{
    nib_cu_ptr at;
    size_t free_bytes, total_bytes, left;
    start("t4", "");
    FINE(cuda.cuMemGetInfo(&free_bytes, &total_bytes));
    ck_assert_uint_gt(free_bytes, 8ull << 30);
    ck_assert_uint_lt(total_bytes, 17ull << 30);
    ck_assert_int_eq(cuda.cuMemAlloc(&at, free_bytes + 1), NIB_CU_OUT_OF_MEMORY);
    FINE(cuda.cuMemAlloc(&at, free_bytes - 4096));
    FINE(cuda.cuMemGetInfo(&left, &total_bytes));
    ck_assert_uint_eq(left, 4096);
    FINE(cuda.cuMemFree(at));
    FINE(cuda.cuMemGetInfo(&left, &total_bytes));
    ck_assert_uint_eq(left, free_bytes);
}
END_TEST

START_TEST(images_for_another_device_are_refused)
{
    struct CUmod_st *module;
    struct CUfunc_st *function;
    start("a100-80", "");
    ck_assert_int_eq(cuda.cuModuleLoadDataEx(&module, ".target sm_90a\n", 0, NULL, NULL), NIB_CU_NO_BINARY_FOR_GPU);
    ck_assert_int_eq(cuda.cuModuleLoadDataEx(&module, ".target sm_90\n", 0, NULL, NULL), NIB_CU_NO_BINARY_FOR_GPU);
    FINE(cuda.cuModuleLoadDataEx(&module, ".target sm_80\n.visible .entry nib_gpu_up_prompt(", 0, NULL, NULL));
    FINE(cuda.cuModuleGetFunction(&function, module, "nib_gpu_up_prompt"));
    ck_assert_int_eq(cuda.cuModuleGetFunction(&function, module, "nib_gpu_up"), NIB_CU_NOT_FOUND);
}
END_TEST

START_TEST(geometry_is_checked)
{
    struct sum s;
    uint32_t layer = 0;
    start("t4", "");
    sum_open(&s);
    void *arguments[] = {&s.device, &layer};
    struct nib_cu_launch_config config = {
        .grid = {1, 1, 1}, .block = {32, 1, 1}, .stream = stream, .shared_bytes = 60000};
    ck_assert_int_eq(cuda.cuLaunchKernelEx(&config, s.function, arguments, NULL), NIB_CU_INVALID_VALUE);
    FINE(cuda.cuFuncSetAttribute(s.function, NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, 60000));
    FINE(cuda.cuLaunchKernelEx(&config, s.function, arguments, NULL));
    ck_assert_int_eq(cuda.cuFuncSetAttribute(s.function, NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, 232448),
                     NIB_CU_INVALID_VALUE);
    config.block[0] = 1025;
    ck_assert_int_eq(cuda.cuLaunchKernelEx(&config, s.function, arguments, NULL), NIB_CU_INVALID_VALUE);
}
END_TEST

/* The harness runs tests that must end well; this one must die. */
int main(void)
{
    Suite *suite = suite_create("fake");
    TCase *fine = tcase_create("fine"), *dies = tcase_create("dies");
    tcase_set_timeout(fine, NIB_TEST_TIMEOUT_S);
    tcase_add_test(fine, work_runs_in_order_and_later);
    tcase_add_test(fine, graphs_replay);
    tcase_add_test(fine, a_flipped_bit_shows_in_the_sum);
    tcase_add_test(fine, a_spoilt_kernel_is_wrong);
    tcase_add_test(fine, memory_starts_as_poison_and_is_out_of_reach);
    tcase_add_test(fine, an_illegal_address_is_sticky);
    tcase_add_test(fine, injected_codes_poison_or_not);
    tcase_add_test(fine, a_hang_never_ends);
    tcase_add_test(fine, memory_is_as_large_as_the_profile_says);
    tcase_add_test(fine, images_for_another_device_are_refused);
    tcase_add_test(fine, geometry_is_checked);
    suite_add_tcase(suite, fine);
#if defined(__SANITIZE_ADDRESS__)
    tcase_add_exit_test(dies, the_host_faults_on_a_device_address, 1);
#else
    tcase_add_test_raise_signal(dies, the_host_faults_on_a_device_address, 11);
#endif
    suite_add_tcase(suite, dies);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
