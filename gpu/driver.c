/* gpu/driver.c: owns the handle of libcuda and the table of its entry points.
 * Limits: the list in gpu/cuda.h. Boot thread opens; results are judged on any thread. Fails with what is missing. */
#include "gpu/driver.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum nib_cuda_class nib_cuda_classify(int result)
{
    switch (result) {
    case NIB_CU_SUCCESS:
        return NIB_CUDA_FINE;
    case NIB_CU_NOT_READY:
    case NIB_CU_OUT_OF_MEMORY:
    case NIB_CU_DEVICE_UNAVAILABLE:
    case NIB_CU_SYSTEM_NOT_READY:
        return NIB_CUDA_AGAIN;
    case NIB_CU_ECC_UNCORRECTABLE:
    case NIB_CU_NVLINK_UNCORRECTABLE:
    case NIB_CU_CONTAINED:
    case NIB_CU_HARDWARE_STACK_ERROR:
        return NIB_CUDA_RESET;
    default:
        break;
    }
    /* 700 to 799 are failures of running kernels, which no context survives */
    if ((result >= NIB_CU_ILLEGAL_ADDRESS && result < NIB_CU_NOT_PERMITTED &&
         result != NIB_CU_LAUNCH_OUT_OF_RESOURCES) ||
        result == NIB_CU_UNKNOWN)
        return NIB_CUDA_EXIT;
    return NIB_CUDA_USAGE;
}

static enum nib_err err_of(int result)
{
    switch (result) {
    case NIB_CU_OUT_OF_MEMORY:
        return NIB_E_NOMEM;
    case NIB_CU_STUB_LIBRARY:
    case NIB_CU_DEVICE_UNAVAILABLE:
    case NIB_CU_NO_DEVICE:
    case NIB_CU_INVALID_IMAGE:
    case NIB_CU_NO_BINARY_FOR_GPU:
    case NIB_CU_INVALID_PTX:
    case NIB_CU_JIT_COMPILER_NOT_FOUND:
    case NIB_CU_UNSUPPORTED_PTX_VERSION:
    case NIB_CU_NOT_PERMITTED:
    case NIB_CU_SYSTEM_NOT_READY:
    case NIB_CU_SYSTEM_DRIVER_MISMATCH:
    case NIB_CU_COMPAT_NOT_SUPPORTED:
        return NIB_E_UNSUPPORTED;
    default:
        return NIB_E_DEVICE;
    }
}

enum nib_err nib_cuda_result(const struct nib_cuda *cuda, const char *call, int result, struct nib_msg *msg)
{
    static const char *const meaning[] = {[NIB_CUDA_FINE] = "",
                                          [NIB_CUDA_AGAIN] = "",
                                          [NIB_CUDA_USAGE] = "",
                                          [NIB_CUDA_EXIT] = "; the GPU context is lost, a restart is needed",
                                          [NIB_CUDA_RESET] =
                                              "; the GPU reported a hardware error, it may need a reset"};
    if (result == NIB_CU_SUCCESS)
        return NIB_OK;
    const char *name = NULL;
    if (!cuda->cuGetErrorName || cuda->cuGetErrorName(result, &name) != NIB_CU_SUCCESS || !name)
        name = "an unnamed error";
    return nib_fail(msg, err_of(result), "%s failed with %s (%d)%s", call, name, result,
                    meaning[nib_cuda_classify(result)]);
}

static enum nib_err resolve(struct nib_cuda *cuda, nib_cu_get_proc *get, const char *name, int since, void **ret_entry,
                            struct nib_msg *msg)
{
    int status = 0;
    void *entry = NULL;
    int result = get(name, &entry, since, 0, &status);
    if (result != NIB_CU_SUCCESS || status != 0 || !entry)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "the CUDA driver (%d.%d) has no %s of CUDA %d.%d", cuda->version / 1000,
                        cuda->version % 1000 / 10, name, since / 1000, since % 1000 / 10);
    *ret_entry = entry;
    return NIB_OK;
}

static enum nib_err resolve_all(struct nib_cuda *cuda, nib_cu_get_proc *get, struct nib_msg *msg)
{
    enum nib_err err;
    void *entry;
#define NIB_CUDA_RESOLVE(name, since, parameters)                                                                      \
    err = resolve(cuda, get, #name, since, &entry, msg);                                                               \
    if (err)                                                                                                           \
        return err;                                                                                                    \
    memcpy(&cuda->name, &entry, sizeof entry); /* C has no cast between object and function pointers */
    NIB_CUDA_CALLS(NIB_CUDA_RESOLVE)
#undef NIB_CUDA_RESOLVE
    return NIB_OK;
}

/* The version is asked for before anything that an old driver lacks. */
static enum nib_err check_version(struct nib_cuda *cuda, struct nib_msg *msg)
{
    int (*get_version)(int *) = NULL;
    void *entry = dlsym(cuda->library, "cuDriverGetVersion");
    memcpy(&get_version, &entry, sizeof entry);
    const int result = get_version ? get_version(&cuda->version) : NIB_CU_NOT_FOUND;
    if (result != NIB_CU_SUCCESS)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "libcuda does not say its version (%d)", result);
    if (cuda->version < NIB_CUDA_VERSION_MIN)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "the GPU driver speaks CUDA %d.%d, allowed is %d.%d or later",
                        cuda->version / 1000, cuda->version % 1000 / 10, NIB_CUDA_VERSION_MIN / 1000,
                        NIB_CUDA_VERSION_MIN % 1000 / 10);
    return NIB_OK;
}

static enum nib_err start(struct nib_cuda *cuda, struct nib_msg *msg)
{
    enum nib_err err = check_version(cuda, msg);
    if (err)
        return err;
    nib_cu_get_proc *get = NULL;
    void *entry = dlsym(cuda->library, NIB_CUDA_GET_PROC);
    memcpy(&get, &entry, sizeof entry);
    if (!get)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "libcuda has no " NIB_CUDA_GET_PROC);
    err = resolve_all(cuda, get, msg);
    if (!err)
        err = NIB_CU(cuda, msg, cuInit, 0);
    return err;
}

enum nib_err nib_cuda_open(struct nib_cuda *ret_cuda, struct nib_msg *msg)
{
    struct nib_cuda cuda = {0};
    const char *path = secure_getenv("NIBBLED_LIBCUDA");
    if (!path || !*path)
        path = "libcuda.so.1";
    /* kernels are loaded when the module is, not at their first launch */
    (void)setenv("CUDA_MODULE_LOADING", "EAGER", 1);
    cuda.library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); /* it may have threads */
    if (!cuda.library)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "no GPU driver: %s", dlerror());
    enum nib_err err = start(&cuda, msg);
    if (err) {
        nib_cuda_close(&cuda);
        return err;
    }
    *ret_cuda = cuda;
    return NIB_OK;
}

void nib_cuda_close(struct nib_cuda *cuda)
{
    if (cuda->library)
        (void)dlclose(cuda->library);
    *cuda = (struct nib_cuda){0};
}
