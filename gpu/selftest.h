/* gpu/selftest.h: a row's kernels against known answers, on the device, before anything is planned for the row.
 *
 * A model of two layers with seeded weights, as wide as the model that will run but with few experts, ids and tokens, is
 * laid out in memory of the test's own, which is given back. Each kernel runs alone on what the device itself had before
 * it, its output poisoned, and is compared with arch/ref on the same input: products on ranges of outputs, the rest whole.
 * Weights go through the row's own repacking: when both the decode and the prompt form of a product are wrong, the
 * repacking is. Boot thread, with the context current. */
#ifndef NIB_GPU_SELFTEST_H
#define NIB_GPU_SELFTEST_H

#include "gpu/gpu.h"

struct nib_gpu_selftest {
    struct nib_gpu_verdict {
        bool ran;
        double error, bound; /* relative, of the worst comparison; an exact one counts what differs, bound 0 */
        const char *what;    /* that was compared there */
    } op[NIB_GPU_OP_COUNT];
    uint64_t us; /* all of it, loading the row's image included */
    bool struck; /* the row is to blame: it cannot be loaded, or a kernel is wrong, stops the device or does not end */
};

/* Loads the row and tests its kernels for dense matrices and KV pages of these forms. *report is filled as far as it came, whatever is returned.
 *     NIB_OK             each of them is right
 *     NIB_E_UNSUPPORTED  report->struck; the context works, another row may be tried
 *     NIB_E_DEVICE       with gpu->lost the process must end, and report->struck tells whether the row did it, or the
 *                        hardware; without it the driver refused a call, and nothing is known of the row
 *     NIB_E_NOMEM        the memory for the test is not there; nothing is known of the row */
enum nib_err nib_gpu_selftest(struct nib_gpu *gpu, const struct nib_gpu_kernels *kernels,
                              const struct nib_profile *profile, const struct nib_shape *shape, enum nib_dense dense,
                              enum nib_kv_form kv, struct nib_gpu_selftest *report, struct nib_msg *msg) NIB_CHECKED;

#endif
