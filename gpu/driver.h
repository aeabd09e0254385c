/* gpu/driver.h: libcuda, opened at run time, behind one table of entry points.
 *
 * Every call into CUDA goes through NIB_CU, which turns a failing result into one sentence with the call's name and
 * CUDA's own name of the error. The table is the seam of every fault test: a test replaces entries, or the whole library
 * by NIBBLED_LIBCUDA (a path). Boot fills it; then it is constant, and any thread with the context current may use it. */
#ifndef NIB_GPU_DRIVER_H
#define NIB_GPU_DRIVER_H

#include "core/err.h"
#include "gpu/cuda.h"

#define NIB_CUDA_VERSION_MIN 12000 /* CUDA 12.0: cuGetProcAddress_v2 */

struct nib_cuda {
    void *library;
    int version;                                                       /* of the driver, CUDA x 1000 */
#define NIB_CUDA_ENTRY(name, since, parameters) int(*name) parameters; /* NOLINT(bugprone-macro-parentheses) */
    NIB_CUDA_CALLS(NIB_CUDA_ENTRY)
#undef NIB_CUDA_ENTRY
};

/* What a result means for the process. */
enum nib_cuda_class {
    NIB_CUDA_FINE,  /* success */
    NIB_CUDA_AGAIN, /* nothing is broken: not ready yet, or refused for want of memory or a free device */
    NIB_CUDA_USAGE, /* the call or the installation is wrong; the context still works */
    NIB_CUDA_EXIT,  /* the context is lost: every later call fails; a new process works again */
    NIB_CUDA_RESET  /* the hardware reported it: a new process may need a device reset first */
};
enum nib_cuda_class nib_cuda_classify(int result);

/* Opens libcuda, checks the driver's version, resolves every entry and calls cuInit. NIB_E_UNSUPPORTED with what is missing:
 * the library, a driver that is new enough, an entry point, a device. Nothing stays open on failure. */
enum nib_err nib_cuda_open(struct nib_cuda *ret_cuda, struct nib_msg *msg) NIB_CHECKED;
void nib_cuda_close(struct nib_cuda *cuda);

/* NIB_OK for success; else the sentence. NIB_E_NOMEM: out of memory. NIB_E_UNSUPPORTED: the installation cannot do it.
 * NIB_E_DEVICE: everything else. */
enum nib_err nib_cuda_result(const struct nib_cuda *cuda, const char *call, int result,
                             struct nib_msg *msg) NIB_CHECKED;

#define NIB_CU(cuda, msg, call, ...) nib_cuda_result((cuda), #call, (cuda)->call(__VA_ARGS__), (msg))

#endif
