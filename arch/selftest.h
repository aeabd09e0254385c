/* arch/selftest.h: a CPU row's kernels against known answers, those of arch/ref on the same seeded input, with outputs
 * poisoned. Inputs are as wide as the model's; outputs are few. Boot or tools; any thread. */
#ifndef NIB_ARCH_SELFTEST_H
#define NIB_ARCH_SELFTEST_H

#include <stdbool.h>

#include "arch/kernels.h"
#include "core/err.h"

enum nib_cpu_kernel {
    NIB_CPU_DENSE_GEMV, /* with the row's dense_repack and acts_prep */
    NIB_CPU_DENSE_GEMM,
    NIB_CPU_MXFP8,   /* mxfp8_repack, by dense_gemv */
    NIB_CPU_MX_GEMV, /* with mx_repack and acts_prep */
    NIB_CPU_MX_GEMM,
    NIB_CPU_RMSNORM,
    NIB_CPU_ROPE,
    NIB_CPU_SWIGLU,
    NIB_CPU_ATTN,     /* with kv_put */
    NIB_CPU_ATTN_FP8, /* the same on pages of kv8_put */
    NIB_CPU_KERNEL_COUNT
};
const char *nib_cpu_kernel_name(enum nib_cpu_kernel kernel);

struct nib_cpu_selftest {
    struct {
        double error, bound; /* relative; infinite where an output is missing or no number */
    } kernel[NIB_CPU_KERNEL_COUNT];
    bool struck; /* a kernel is wrong */
};

/* Tests every kernel. NIB_E_UNSUPPORTED names the first that is wrong; NIB_E_NOMEM: no memory for the test. */
enum nib_err nib_cpu_selftest(const struct nib_kernels *kernels, const struct nib_shape *shape,
                              struct nib_cpu_selftest *report, struct nib_msg *msg) NIB_CHECKED;

#endif
