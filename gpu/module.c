/* gpu/module.c: owns the row's loaded image and the functions in it.
 * Limits: the ops of arch/gpu_abi.h. Boot thread; launching is what graph.c, upload.c and selftest.c do with it. Fails with the
 * name of the op and what the device lacks. */
#include <stdio.h>
#include <string.h>

#include "gpu/state.h"

#define OVERLAP_VERSION_MIN 12030 /* CUDA 12.3: programmatic launches inside captured graphs */

static enum nib_err find(struct nib_gpu *gpu, enum nib_gpu_op op, struct nib_msg *msg)
{
    const char *symbol = nib_gpu_op_symbol(op);
    struct nib_msg why;
    if (!gpu->kernels->has(op))
        return NIB_OK;
    enum nib_err err = NIB_CU(&gpu->cuda, &why, cuModuleGetFunction, &gpu->function[op], gpu->module, symbol);
    return err ? nib_fail(msg, err, "row %s, kernel %s: %s", gpu->kernels->name, symbol, why.text) : NIB_OK;
}

static enum nib_err load(struct nib_gpu *gpu, struct nib_msg *msg)
{
    char log[256] = "";
    int options[] = {NIB_CU_JIT_ERROR_LOG, NIB_CU_JIT_ERROR_LOG_BYTES};
    uintptr_t log_bytes = sizeof log;
    void *values[2] = {log, NULL};
    memcpy(&values[1], &log_bytes, sizeof log_bytes);
    struct nib_msg why;
    enum nib_err err =
        NIB_CU(&gpu->cuda, &why, cuModuleLoadDataEx, &gpu->module, gpu->kernels->image, 2, options, values);
    log[sizeof log - 1] = '\0';
    log[strcspn(log, "\r\n")] = '\0';
    if (err)
        return nib_fail(msg, err, "the kernels of row %s cannot be loaded on %s: %s%s%s", gpu->kernels->name, gpu->name,
                        why.text, *log ? ": " : "", log);
    for (int op = 0; op < NIB_GPU_OP_COUNT && !err; op++)
        err = find(gpu, (enum nib_gpu_op)op, msg);
    return err;
}

enum nib_err nib_gpu_load(struct nib_gpu *gpu, const struct nib_gpu_kernels *kernels, const struct nib_profile *profile,
                          struct nib_msg *msg)
{
    if (gpu->kernels == kernels)
        return NIB_OK;
    nib_gpu_unload(gpu);
    if (kernels->image == kernels->image_end)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "this build has no kernels for the row %s", kernels->name);
    gpu->kernels = kernels;
    gpu->shared_bytes = profile->shared_bytes;
    enum nib_err err = load(gpu, msg);
    if (err)
        nib_gpu_unload(gpu);
    return err;
}

void nib_gpu_unload(struct nib_gpu *gpu)
{
    if (gpu->module && !gpu->lost)
        (void)gpu->cuda.cuModuleUnload(gpu->module);
    gpu->module = NULL;
    gpu->kernels = NULL;
}

static enum nib_err attribute(const struct nib_gpu *gpu, enum nib_gpu_op op, int what, uint64_t *ret,
                              struct nib_msg *msg)
{
    int value = 0;
    enum nib_err err = NIB_CU(&gpu->cuda, msg, cuFuncGetAttribute, &value, what, gpu->function[op]);
    if (!err)
        *ret = (uint64_t)(value > 0 ? value : 0);
    return err;
}

enum nib_err nib_gpu_module_allow(struct nib_gpu *gpu, enum nib_gpu_op op, uint32_t block, uint32_t shared_bytes,
                                  struct nib_msg *msg)
{
    const char *symbol = nib_gpu_op_symbol(op);
    uint64_t threads_max = 0, fixed = 0, allowed = 0;
    enum nib_err err = attribute(gpu, op, NIB_CU_FUNC_MAX_THREADS, &threads_max, msg);
    if (!err)
        err = attribute(gpu, op, NIB_CU_FUNC_SHARED_BYTES, &fixed, msg);
    if (!err)
        err = attribute(gpu, op, NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES, &allowed, msg);
    if (err)
        return err;
    if (block == 0 || block > threads_max)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "row %s, kernel %s: blocks of %u threads, %s allows 1 to %llu",
                        gpu->kernels->name, symbol, block, gpu->name, (unsigned long long)threads_max);
    const unsigned long long needed = fixed + shared_bytes;
    if (needed > gpu->shared_bytes)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "row %s, kernel %s: %llu bytes of shared memory a block, %s has %llu",
                        gpu->kernels->name, symbol, needed, gpu->name, (unsigned long long)gpu->shared_bytes);
    if (shared_bytes <= allowed)
        return NIB_OK;
    return NIB_CU(&gpu->cuda, msg, cuFuncSetAttribute, gpu->function[op], NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES,
                  (int)shared_bytes);
}

enum nib_err nib_gpu_launch(struct nib_gpu *gpu, enum nib_gpu_op op, const struct nib_gpu_geometry *g,
                            struct nib_gpu_target target, struct nib_msg *msg)
{
    struct nib_cu_launch_attribute attributes[2] = {{0}};
    unsigned count = 0;
    if (g->overlap && gpu->cuda.version >= OVERLAP_VERSION_MIN)
        attributes[count++] = (struct nib_cu_launch_attribute){.id = NIB_CU_ATTR_OVERLAP, .value.on = 1};
    if (g->grid[3])
        attributes[count++] =
            (struct nib_cu_launch_attribute){.id = NIB_CU_ATTR_CLUSTER, .value.blocks = {g->grid[3], 1, 1}};
    const struct nib_cu_launch_config config = {.grid = {g->grid[0], g->grid[1], g->grid[2]},
                                                .block = {g->block, 1, 1},
                                                .shared_bytes = g->shared_bytes,
                                                .stream = target.stream,
                                                .attributes = count ? attributes : NULL,
                                                .attributes_count = count};
    void *arguments[] = {&target.machine_at, &target.layer};
    struct nib_msg why;
    enum nib_err err = NIB_CU(&gpu->cuda, &why, cuLaunchKernelEx, &config, gpu->function[op], arguments, NULL);
    return err ? nib_fail(msg, err, "kernel %s: %s", nib_gpu_op_symbol(op), why.text) : NIB_OK;
}
