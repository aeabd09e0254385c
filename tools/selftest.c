/* tools/selftest.c: `nibble selftest`: the kernels of every row this machine can run, against known answers.
 * A GPU row is tested by a process of its own, which is ended when it takes too long: a kernel that stops the GPU ends the test of
 * its row and no more. One thread. Fails when a kernel is wrong. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "arch/selftest.h"
#include "arch/table.h"
#include "gpu/selftest.h"
#include "tools/commands.h"
#include "tools/here.h"

#define CHILD_S 60 /* loading the driver and compiling a row's PTX included */

enum outcome { PASSED, FAILED, NOT_HERE }; /* exit codes of a child */

struct options {
    const char *device, *row;
    const struct nib_shape *shape;
    bool all; /* every kernel has a line */
};

static bool parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {{"device", required_argument, 0, 'd'},
                                          {"row", required_argument, 0, 'r'},
                                          {"shape", required_argument, 0, 's'},
                                          {"all", no_argument, 0, 'a'},
                                          {0}};
    const char *shape = "20b";
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (option == 'd')
            o->device = optarg;
        else if (option == 'r')
            o->row = optarg;
        else if (option == 's')
            shape = optarg;
        else if (option == 'a')
            o->all = true;
        else
            return false;
    }
    o->shape = nib_shape_find(shape);
    if (!o->shape)
        (void)fprintf(stderr, "nibble selftest: no shape \"%s\"; nibble --help lists them\n", shape);
    if (o->row && !nib_arch_find(o->row))
        (void)fprintf(stderr, "nibble selftest: no row \"%s\"; nibble arch lists them\n", o->row);
    return o->shape && (!o->row || nib_arch_find(o->row)) && nib_here_device("selftest", o->device) && optind == argc;
}

static double now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void print_kernel(const struct options *o, const char *row, const char *kernel, const char *what, double error,
                         double bound)
{
    if (o->all || error > bound)
        (void)printf("  %-8s %-22s %-12s %-9.2g of %-9.2g %s\n", row, kernel, what, error, bound,
                     error > bound ? "WRONG" : "right");
}

static void print_row(const struct nib_arch_row *row, enum nib_err err, unsigned kernels, double ms,
                      const struct nib_msg *msg)
{
    if (err)
        (void)printf("%-8s FAILED  %s\n", row->name, msg->text);
    else
        (void)printf("%-8s passed  %u kernels in %.1f ms\n", row->name, kernels, ms);
    (void)fflush(stdout);
}

static enum outcome test_cpu(const struct options *o, const struct nib_arch_row *row)
{
    struct nib_cpu_selftest r;
    struct nib_msg msg;
    const double begin = now_ms();
    enum nib_err err = nib_cpu_selftest(row->kernels, o->shape, &r, &msg);
    print_row(row, err, NIB_CPU_KERNEL_COUNT, now_ms() - begin, &msg);
    for (int i = 0; i < NIB_CPU_KERNEL_COUNT && (!err || r.struck); i++)
        print_kernel(o, row->name, nib_cpu_kernel_name((enum nib_cpu_kernel)i), "output", r.kernel[i].error,
                     r.kernel[i].bound);
    return err ? FAILED : PASSED;
}

static enum nib_err open_gpu(struct nib_gpu *gpu, struct nib_profile *ret_profile, struct nib_msg *msg)
{
    struct nib_profile host;
    enum nib_err err = nib_arch_probe_cpu(&host, msg);
    if (!err)
        err = nib_gpu_open(gpu, msg);
    return err ? err : nib_gpu_probe(gpu, &host, ret_profile, msg);
}

/* In the child. A GPU that is not there, or that the row is not for, is a failure only when it was asked for. */
static enum outcome test_gpu(const struct options *o, const struct nib_arch_row *row)
{
    static struct nib_gpu gpu;
    struct nib_gpu_selftest r = {0};
    struct nib_profile profile;
    struct nib_msg msg;
    const bool asked = o->row || strcmp(o->device, "gpu") == 0;
    enum nib_err err = open_gpu(&gpu, &profile, &msg);
    const char *why = err ? NULL : nib_arch_refusal(row, &profile, nib_arch_unbuilt_mask());
    if (why)
        err = nib_fail(&msg, NIB_E_UNSUPPORTED, "it cannot run on %s: %s", gpu.name, why);
    if (err == NIB_E_UNSUPPORTED && !asked)
        return NOT_HERE;
    double ms = 0;
    static const struct {
        enum nib_dense dense;
        enum nib_kv_form kv;
    } forms[] = {{NIB_DENSE_BF16, NIB_KV_BF16}, {NIB_DENSE_MXFP8, NIB_KV_BF16}, {NIB_DENSE_BF16, NIB_KV_FP8}};
    for (size_t f = 0; f < sizeof forms / sizeof forms[0] && !err; f++) {
        static struct nib_gpu_selftest one;
        err = nib_gpu_selftest(&gpu, row->gpu_kernels, &profile, o->shape, forms[f].dense, forms[f].kv, &one, &msg);
        ms += (double)one.us / 1e3;
        for (int i = 0; i < NIB_GPU_OP_COUNT; i++)
            if (!r.op[i].ran || one.op[i].error > r.op[i].error)
                r.op[i] = one.op[i];
    }
    unsigned ran = 0;
    for (int i = 0; i < NIB_GPU_OP_COUNT; i++)
        ran += r.op[i].ran;
    print_row(row, err, ran, ms, &msg);
    for (int i = 0; i < NIB_GPU_OP_COUNT; i++)
        if (r.op[i].ran)
            print_kernel(o, row->name, nib_gpu_op_symbol((enum nib_gpu_op)i), r.op[i].what, r.op[i].error,
                         r.op[i].bound);
    return err ? FAILED : PASSED;
}

static enum outcome await(pid_t child, const struct nib_arch_row *row)
{
    const double end = now_ms() + CHILD_S * 1e3;
    const struct timespec nap = {.tv_nsec = 5000000};
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
        (void)nanosleep(&nap, NULL);
        if (now_ms() < end)
            continue;
        (void)kill(child, SIGKILL);
        (void)waitpid(child, &status, 0);
        (void)printf("%-8s FAILED  the test did not end in %d s\n", row->name, CHILD_S);
        return FAILED;
    }
    if (WIFEXITED(status))
        return (enum outcome)WEXITSTATUS(status);
    (void)printf("%-8s FAILED  its process was ended by signal %d\n", row->name, WTERMSIG(status));
    return FAILED;
}

static enum outcome test_apart(const struct options *o, const struct nib_arch_row *row)
{
    (void)fflush(NULL);
    const pid_t child = fork();
    if (child < 0) {
        (void)printf("%-8s FAILED  no process could be made\n", row->name);
        return FAILED;
    }
    if (child == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        const enum outcome outcome = test_gpu(o, row);
        (void)fflush(NULL);
        _exit((int)outcome); /* the driver's own clean-up could wait for a GPU that never answers */
    }
    return await(child, row);
}

/* Rows that were asked for and that this build has. The reference is what others are compared with. */
static bool wanted(const struct options *o, const struct nib_arch_row *row, const struct nib_profile *host)
{
    if (o->row)
        return strcmp(row->name, o->row) == 0;
    if (row->gpu)
        return strcmp(o->device, "cpu") != 0 && row->gpu_kernels;
    return strcmp(o->device, "gpu") != 0 && row->kernels != &nib_kernels_ref && !nib_arch_refusal(row, host, 0);
}

static enum outcome test(const struct options *o, const struct nib_arch_row *row, const struct nib_profile *host)
{
    const char *why = row->gpu ? NULL : nib_arch_refusal(row, host, 0);
    if (row->gpu && !row->gpu_kernels)
        why = "this build has no kernels for it";
    if (row->kernels == &nib_kernels_ref)
        why = "it is the reference that the others are compared with";
    if (!why)
        return row->gpu ? test_apart(o, row) : test_cpu(o, row);
    (void)printf("%-8s not tested: %s\n", row->name, why);
    return FAILED;
}

int nib_cmd_selftest(int argc, char **argv)
{
    struct options o = {.device = "auto"};
    struct nib_profile host;
    struct nib_msg msg;
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    unsigned outcomes[NOT_HERE + 1] = {0};
    if (!parse_args(argc, argv, &o))
        return NIB_EXIT_USAGE;
    enum nib_err err = nib_arch_probe_cpu(&host, &msg);
    for (size_t i = 0; i < count && !err; i++)
        if (wanted(&o, &rows[i], &host))
            outcomes[test(&o, &rows[i], &host)]++;
    if (!err && outcomes[NOT_HERE])
        (void)printf("%u rows are for a GPU that is not here (--device gpu says why)\n", outcomes[NOT_HERE]);
    if (!err && outcomes[PASSED] + outcomes[FAILED] == 0)
        err = nib_fail(&msg, NIB_E_UNSUPPORTED, "this build has no row that can be tested here");
    if (err)
        (void)fprintf(stderr, "nibble selftest: %s\n", msg.text);
    return err || outcomes[FAILED] ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}
