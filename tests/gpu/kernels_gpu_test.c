/* tests/gpu/kernels_gpu_test.c: the kernels of every GPU row of this build against arch/ref, on the device of this machine; with
 * --bench SHAPE their speed at a model's true shape.
 *
 *     kernels_gpu_test [--row NAME] [--image FILE] [--only TEST] [--bench 20b|120b|... [--batches LIST] [--spread N]] [--no-prompt]
 *                      [--mxfp8] [--kv8]
 *
 * TEST is one of each, ops, head, mxfp8, sizes, kv8, contexts, routing, extremes, invariance, late, token, stuck, sampler, faults.
 * --image: a cubin or PTX whose kernels are used in place of the row's own, all or some, to compare kernels whose sizes, launches, layouts
 * of weights and places in scratch are the same; --batches: the bench of so many decode rows alone, such as 1,64,256; --spread: how unevenly its
 * rows choose experts, the deviation of the logarithm of how likely one is: 0 unless said, about 1.5 in the engine with made-up weights.
 * --mxfp8: the bench's dense matrices are in MXFP8; --kv8: its keys and values in FP8. Without a device it says so and passes. VERBOSE=1 prints every comparison. */
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/check.h"

extern const struct nib_gpu_kernels nib_gpu_kernels_sm90, nib_gpu_kernels_sm80;

static const struct nib_gpu_kernels *const rows[] = {&nib_gpu_kernels_sm90, &nib_gpu_kernels_sm80};

static const struct {
    const char *name;
    int (*run)(struct rig *rig);
} tests[] = {
    {"each", rig_test_each},         {"ops", rig_test_ops},
    {"head", rig_test_head},         {"mxfp8", rig_test_mxfp8},
    {"sizes", rig_test_sizes},       {"kv8", rig_test_kv8},
    {"contexts", rig_test_contexts}, {"routing", rig_test_routing},
    {"extremes", rig_test_extremes}, {"invariance", rig_test_invariance},
    {"late", rig_test_late},         {"token", rig_test_token},
    {"stuck", rig_test_stuck},       {"sampler", rig_test_sampler},
    {"faults", rig_test_faults},
};

enum { ROWS = sizeof rows / sizeof rows[0], TESTS = sizeof tests / sizeof tests[0] };

/* There is such a row and such a test, where one is named: else nothing would be run, and that be good. */
static bool names_known(const char *row, const char *only)
{
    bool row_known = !row, only_known = !only;
    for (size_t i = 0; i < ROWS; i++)
        row_known = row_known || strcmp(row, rows[i]->name) == 0;
    for (size_t i = 0; i < TESTS; i++)
        only_known = only_known || strcmp(only, tests[i].name) == 0;
    if (!row_known) {
        fprintf(stderr, "no row is called '%s'; there are:", row);
        for (size_t i = 0; i < ROWS; i++)
            fprintf(stderr, " %s", rows[i]->name);
    } else if (!only_known) {
        fprintf(stderr, "no test is called '%s'; there are:", only);
        for (size_t i = 0; i < TESTS; i++)
            fprintf(stderr, " %s", tests[i].name);
    }
    if (!row_known || !only_known)
        fprintf(stderr, "\n");
    return row_known && only_known;
}

static int test_row(struct rig *rig, const char *only)
{
    int failures = 0;
    for (size_t i = 0; i < TESTS; i++) {
        if (only && strcmp(only, tests[i].name) != 0)
            continue;
        const double start = rig_now();
        failures += tests[i].run(rig);
        printf("%s, %s: %.1f s\n", rig->k->name, tests[i].name, rig_now() - start);
        (void)fflush(stdout);
    }
    check_print_worst();
    return failures;
}

int main(int argc, char **argv)
{
    const char *row = NULL, *image = NULL, *only = NULL, *bench = NULL, *batches = NULL, *spread = NULL;
    bool prompt = true, mxfp8 = false, kv8 = false;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--no-prompt") == 0) {
            prompt = false;
            continue;
        }
        if (strcmp(argv[i], "--mxfp8") == 0) {
            mxfp8 = true;
            continue;
        }
        if (strcmp(argv[i], "--kv8") == 0) {
            kv8 = true;
            continue;
        }
        const char **to = strcmp(argv[i], "--row") == 0       ? &row
                          : strcmp(argv[i], "--image") == 0   ? &image
                          : strcmp(argv[i], "--only") == 0    ? &only
                          : strcmp(argv[i], "--bench") == 0   ? &bench
                          : strcmp(argv[i], "--batches") == 0 ? &batches
                          : strcmp(argv[i], "--spread") == 0  ? &spread
                                                              : NULL;
        if (!to || !value) {
            fprintf(stderr,
                    "usage: kernels_gpu_test [--row NAME] [--image FILE] [--only TEST] [--bench SHAPE [--batches LIST] "
                    "[--spread N]] "
                    "[--no-prompt] [--mxfp8] [--kv8]\n");
            return 2;
        }
        *to = value;
        i++;
    }
    if ((image && !row) || ((batches || spread) && !bench)) {
        fprintf(stderr, "--image wants a --row, --batches and --spread a --bench\n");
        return 2;
    }
    if (!names_known(row, only))
        return 2;
    static struct rig rig;
    if (!rig_open(&rig))
        return 0;
    int failures = 0;
    for (size_t i = 0; i < ROWS; i++) {
        if ((row && strcmp(row, rows[i]->name) != 0) || !rig_load(&rig, rows[i], image))
            continue;
        rig.dense = bench && mxfp8 ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
        rig.kv = bench && kv8 ? NIB_KV_FP8 : NIB_KV_BF16;
        if (bench)
            rig_bench(&rig, bench, prompt, batches, spread ? strtod(spread, NULL) : 0);
        else
            failures += test_row(&rig, only);
        rig_unload(&rig);
    }
    rig_close(&rig);
    printf(failures ? "FAILED: %d\n" : "all good\n", failures);
    return failures ? 1 : 0;
}
