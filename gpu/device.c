/* gpu/device.c: owns the CUDA context and the two arenas of one GPU, and reads its facts.
 * Limits: the plan's arenas. Boot thread. Fails with the sentence of the call that failed. */
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "gpu/state.h"

#define DRAM_EFFICIENCY 0.92 /* of the bus's rate, what long reads reach */

static enum nib_err choose_device(struct nib_gpu *gpu, struct nib_msg *msg)
{
    const struct nib_cuda *cuda = &gpu->cuda;
    int count = 0;
    enum nib_err err = NIB_CU(cuda, msg, cuDeviceGetCount, &count);
    if (err)
        return err;
    if (count < 1)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "the GPU driver lists no device");
    err = NIB_CU(cuda, msg, cuDeviceGet, &gpu->device, 0);
    if (!err)
        err = NIB_CU(cuda, msg, cuDeviceGetName, gpu->name, (int)sizeof gpu->name, gpu->device);
    if (!err)
        err = NIB_CU(cuda, msg, cuDeviceGetPCIBusId, gpu->bus, (int)sizeof gpu->bus, gpu->device);
    gpu->name[sizeof gpu->name - 1] = gpu->bus[sizeof gpu->bus - 1] = '\0';
    return err;
}

/* The driver's own waits give up the processor: nothing here waits in the driver but loading. */
static enum nib_err make_context(struct nib_gpu *gpu, struct nib_msg *msg)
{
    const struct nib_cuda *cuda = &gpu->cuda;
    struct CUctx_st *ctx = NULL;
    enum nib_err err = NIB_CU(cuda, msg, cuDevicePrimaryCtxSetFlags, gpu->device, NIB_CU_CTX_SCHED_YIELD);
    if (!err)
        err = NIB_CU(cuda, msg, cuDevicePrimaryCtxRetain, &ctx, gpu->device);
    if (err)
        return err;
    gpu->context = true;
    return NIB_CU(cuda, msg, cuCtxSetCurrent, ctx);
}

enum nib_err nib_gpu_open(struct nib_gpu *ret_gpu, struct nib_msg *msg)
{
    struct nib_gpu gpu = {.device = -1};
    enum nib_err err = nib_cuda_open(&gpu.cuda, msg);
    if (!err)
        err = choose_device(&gpu, msg);
    if (!err)
        err = make_context(&gpu, msg);
    if (err) {
        nib_gpu_close(&gpu);
        return err;
    }
    *ret_gpu = gpu;
    return NIB_OK;
}

enum nib_err nib_gpu_probe(struct nib_gpu *gpu, const struct nib_profile *host, struct nib_profile *ret_profile,
                           struct nib_msg *msg)
{
    enum { SMS, INTEGRATED, CLOCK, BUS, L2, MAJOR, MINOR, SHARED, COUNT };
    static const int wanted[COUNT] = {
        NIB_CU_DEV_SMS,      NIB_CU_DEV_INTEGRATED, NIB_CU_DEV_MEMORY_CLOCK_KHZ, NIB_CU_DEV_MEMORY_BUS_BITS,
        NIB_CU_DEV_L2_BYTES, NIB_CU_DEV_CC_MAJOR,   NIB_CU_DEV_CC_MINOR,         NIB_CU_DEV_SHARED_OPTIN_BYTES};
    int value[COUNT] = {0};
    size_t free_bytes = 0, total_bytes = 0;
    enum nib_err err = NIB_CU(&gpu->cuda, msg, cuMemGetInfo, &free_bytes, &total_bytes);
    for (int i = 0; i < COUNT && !err; i++) {
        err = NIB_CU(&gpu->cuda, msg, cuDeviceGetAttribute, &value[i], wanted[i], gpu->device);
        if (!err && value[i] < 0)
            err = nib_fail(msg, NIB_E_DEVICE, "the GPU driver gives %d for attribute %d", value[i], wanted[i]);
    }
    if (err)
        return err;
    struct nib_profile p = {.gpu = true,
                            .integrated = value[INTEGRATED] != 0,
                            .compute_capability = (uint32_t)(value[MAJOR] * 10 + value[MINOR]),
                            .sms = (uint32_t)value[SMS],
                            .memory_bytes = total_bytes,
                            .host_bytes = host->memory_bytes - host->reserved_bytes,
                            .shared_bytes = (uint64_t)value[SHARED],
                            .l2_bytes = (uint64_t)value[L2]};
    memcpy(p.name, gpu->name, sizeof p.name);
    p.reserved_bytes =
        nib_min_u64(total_bytes, total_bytes - nib_min_u64(free_bytes, total_bytes) + NIB_GPU_GROWTH_BYTES);
    /* double data rate: two transfers a clock */
    p.read_bytes_s = 2e3 * value[CLOCK] * value[BUS] / 8 * DRAM_EFFICIENCY;
    gpu->free_bytes = free_bytes;
    *ret_profile = p;
    return NIB_OK;
}

enum nib_err nib_gpu_growth(const struct nib_gpu *gpu, const struct nib_plan *plan, uint64_t *ret_bytes,
                            struct nib_msg *msg)
{
    size_t free_bytes = 0, total_bytes = 0;
    enum nib_err err = NIB_CU(&gpu->cuda, msg, cuMemGetInfo, &free_bytes, &total_bytes);
    if (err)
        return err;
    const uint64_t left = free_bytes + plan->arena_bytes[NIB_SPACE_DEVICE];
    *ret_bytes = gpu->free_bytes > left ? gpu->free_bytes - left : 0;
    return NIB_OK;
}

static enum nib_err take_pinned(struct nib_gpu *gpu, uint64_t bytes, struct nib_msg *msg)
{
    void *host = NULL;
    nib_cu_ptr at = 0;
    enum nib_err err = NIB_CU(&gpu->cuda, msg, cuMemHostAlloc, &host, bytes, NIB_CU_HOST_PORTABLE | NIB_CU_HOST_MAPPED);
    if (err)
        return err;
    gpu->pinned = host;
    err = NIB_CU(&gpu->cuda, msg, cuMemHostGetDevicePointer, &at, host, 0);
    if (err)
        return err;
    gpu->base[NIB_SPACE_PINNED] = at;
    return NIB_OK;
}

enum nib_err nib_gpu_take(struct nib_gpu *gpu, const struct nib_plan *plan, struct nib_msg *msg)
{
    NIB_MUST(gpu->base[NIB_SPACE_DEVICE] == 0 && !gpu->pinned);
    uint64_t bytes = plan->arena_bytes[NIB_SPACE_DEVICE];
    nib_cu_ptr at = 0;
    struct nib_msg why;
    enum nib_err err = NIB_CU(&gpu->cuda, &why, cuMemAlloc, &at, bytes);
    gpu->base[NIB_SPACE_DEVICE] = at;
    if (!err) {
        bytes = plan->arena_bytes[NIB_SPACE_PINNED];
        err = take_pinned(gpu, bytes, &why);
    }
    if (err)
        return nib_fail(msg, err, "the plan needs %llu bytes of %s memory and the GPU driver refuses them: %s",
                        (unsigned long long)bytes, at ? "pinned" : "device", why.text);
    return NIB_OK;
}

/* What fails here cannot be mended: the process is ending or starting anew. */
static void drop(int result)
{
    (void)result;
}

void nib_gpu_close(struct nib_gpu *gpu)
{
    const struct nib_cuda *cuda = &gpu->cuda;
    if (gpu->lost)
        return;
    nib_gpu_unload(gpu);
    if (gpu->pinned)
        drop(cuda->cuMemFreeHost(gpu->pinned));
    if (gpu->base[NIB_SPACE_DEVICE])
        drop(cuda->cuMemFree(gpu->base[NIB_SPACE_DEVICE]));
    if (gpu->context)
        drop(cuda->cuDevicePrimaryCtxRelease(gpu->device));
    nib_cuda_close(&gpu->cuda);
    *gpu = (struct nib_gpu){0};
}
