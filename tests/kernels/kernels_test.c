/* tests/kernels/kernels_test.c: every operation of every x86 row against ref, and the bench of the same operations.
 *
 *     kernels_test [--row NAME]            the tests: ||out - ref|| / ||ref|| on fresh random inputs, batch invariance bit
 *                                          for bit, guard bytes, NaN scales
 *     kernels_test --bench [--row NAME] [--op TEXT]    this machine's read rate and peak, and the share of them of each
 *                                          operation whose name holds TEXT
 *
 * Rows the machine cannot run are named and left out. NIB_TEST_SEED replays. */
#include "tests/harness.h"

#include "arch/table.h"
#include "tests/kernels/kernels.h"

static bool find_rows(const char *only)
{
    struct nib_profile here;
    struct nib_msg msg;
    if (nib_arch_probe_cpu(&here, &msg) != NIB_OK) {
        fprintf(stderr, "%s\n", msg.text);
        return false;
    }
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    for (size_t i = 0; i < count; i++) {
        if (!rows[i].kernels || rows[i].kernels == kt_ref || (only && strcmp(rows[i].name, only) != 0))
            continue;
        const char *refusal = nib_arch_refusal(&rows[i], &here, 0);
        printf("row %s: %s\n", rows[i].name, refusal ? refusal : "tested");
        if (!refusal && kt_rows_count < KT_MAX_ROWS)
            kt_rows[kt_rows_count++] = rows[i].kernels;
    }
    if (only && kt_rows_count == 0)
        fprintf(stderr, "no row '%s' runs on this machine\n", only);
    return !only || kt_rows_count > 0;
}

int main(int argc, char **argv)
{
    bool bench = false;
    const char *only = NULL, *op = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0) {
            bench = true;
        } else if (strcmp(argv[i], "--row") == 0 && i + 1 < argc) {
            only = argv[++i];
        } else if (strcmp(argv[i], "--op") == 0 && i + 1 < argc) {
            op = argv[++i];
        } else {
            fprintf(stderr, "usage: kernels_test [--row NAME] [--bench [--op TEXT]]\n");
            return 2;
        }
    }
    if (!find_rows(only))
        return 2;
    fflush(stdout);
    if (bench)
        return kt_bench(op);
    const TTest *tests[64];
    size_t count = kt_matmul_tests(tests);
    count += kt_attn_tests(tests + count);
    count += kt_small_tests(tests + count);
    return nib_suite_run("kernels", tests, count);
}
