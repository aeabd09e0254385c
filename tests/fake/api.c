/* tests/fake/api.c: the entry points of gpu/cuda.h: checks of their arguments, and what they do.
 * Any thread with the context current. Each first asks fault.c what is to happen to it. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/fake/fake.h"

struct fake fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
static _Thread_local struct CUctx_st *current;

/* Before anything else in a call. */
#define ENTER(call)                                                                                                    \
    int code_ = 0;                                                                                                     \
    enum fake_act act_ = fake_fault(FAKE_##call, &code_);                                                              \
    if (act_ == FAKE_FAIL)                                                                                             \
        return code_;                                                                                                  \
    (void)act_

/* And in calls that need a context. */
#define ENTER_CTX(call)                                                                                                \
    ENTER(call);                                                                                                       \
    if (!current) {                                                                                                    \
        fake_violation(#call " without a current context");                                                            \
        return FAKE_INVALID_CONTEXT;                                                                                   \
    }                                                                                                                  \
    if (fake_sticky())                                                                                                 \
    return fake_sticky()

static int fake_sticky(void)
{
    return __atomic_load_n(&fake.sticky, __ATOMIC_SEQ_CST);
}

static bool device_busy(void)
{
    bool busy = false;
    pthread_mutex_lock(&fake.lock);
    for (const struct CUstream_st *s = fake.streams; s && !fake.sticky; s = s->next)
        busy |= s->head != s->tail;
    pthread_mutex_unlock(&fake.lock);
    return busy;
}

/* Calls that wait for the device: for ever when it never finishes. */
static void wait_for_device(void)
{
    while (device_busy()) {
        if (__atomic_load_n(&fake.hung, __ATOMIC_SEQ_CST))
            __atomic_store_n(&fake_report->stuck, 1, __ATOMIC_SEQ_CST);
        usleep(100);
    }
}

static int bad(const char *call, const char *why)
{
    fake_violation("%s: %s", call, why);
    return NIB_CU_INVALID_VALUE;
}

FAKE_EXPORT int cuInit(unsigned flags)
{
    ENTER(cuInit);
    if (flags || !fake_read_profile(&fake.profile))
        return flags ? NIB_CU_INVALID_VALUE : NIB_CU_NO_DEVICE;
    fake.inited = true;
    return 0;
}

FAKE_EXPORT int cuDriverGetVersion(int *version)
{
    ENTER(cuDriverGetVersion);
    *version = fake_missing("cuDriverGetVersion", "old") ? 11080 : 13000;
    return 0;
}

FAKE_EXPORT int cuGetErrorName(int result, const char **name)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {{0, "CUDA_SUCCESS"},
                 {1, "CUDA_ERROR_INVALID_VALUE"},
                 {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                 {3, "CUDA_ERROR_NOT_INITIALIZED"},
                 {100, "CUDA_ERROR_NO_DEVICE"},
                 {201, "CUDA_ERROR_INVALID_CONTEXT"},
                 {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
                 {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
                 {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"},
                 {500, "CUDA_ERROR_NOT_FOUND"},
                 {600, "CUDA_ERROR_NOT_READY"},
                 {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                 {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},
                 {719, "CUDA_ERROR_LAUNCH_FAILED"},
                 {800, "CUDA_ERROR_NOT_PERMITTED"},
                 {999, "CUDA_ERROR_UNKNOWN"}};
    ENTER(cuGetErrorName);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].code == result) {
            *name = names[i].name;
            return 0;
        }
    }
    return NIB_CU_INVALID_VALUE;
}

/* ---- the device ---- */

FAKE_EXPORT int cuDeviceGetCount(int *count)
{
    ENTER(cuDeviceGetCount);
    if (!fake.inited)
        return NIB_CU_NOT_INITIALIZED;
    *count = 1;
    return 0;
}

FAKE_EXPORT int cuDeviceGet(int *device, int ordinal)
{
    ENTER(cuDeviceGet);
    if (!fake.inited || ordinal != 0)
        return fake.inited ? 101 : NIB_CU_NOT_INITIALIZED;
    *device = 0;
    return 0;
}

FAKE_EXPORT int cuDeviceGetName(char *name, int bytes, int device)
{
    ENTER(cuDeviceGetName);
    if (device != 0 || bytes < 1)
        return NIB_CU_INVALID_VALUE;
    snprintf(name, (size_t)bytes, "%s", fake.profile.name);
    return 0;
}

FAKE_EXPORT int cuDeviceGetPCIBusId(char *id, int bytes, int device)
{
    ENTER(cuDeviceGetPCIBusId);
    if (device != 0 || bytes < 13)
        return NIB_CU_INVALID_VALUE;
    snprintf(id, (size_t)bytes, "0000:01:00.0");
    return 0;
}

FAKE_EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    const struct nib_profile *p = &fake.profile;
    ENTER(cuDeviceGetAttribute);
    if (device != 0)
        return NIB_CU_INVALID_VALUE;
    switch (attribute) {
    case NIB_CU_DEV_SMS:
        *value = (int)p->sms;
        return 0;
    case NIB_CU_DEV_INTEGRATED:
        *value = p->integrated;
        return 0;
    case NIB_CU_DEV_ECC:
        *value = 1;
        return 0;
    case NIB_CU_DEV_MEMORY_BUS_BITS:
        *value = 4096;
        return 0;
    case NIB_CU_DEV_MEMORY_CLOCK_KHZ: /* two transfers a clock */
        *value = (int)(p->read_bytes_s * 8 / 4096 / 2 / 1000);
        return 0;
    case NIB_CU_DEV_L2_BYTES:
        *value = (int)p->l2_bytes;
        return 0;
    case NIB_CU_DEV_CC_MAJOR:
        *value = (int)p->compute_capability / 10;
        return 0;
    case NIB_CU_DEV_CC_MINOR:
        *value = (int)p->compute_capability % 10;
        return 0;
    case NIB_CU_DEV_SHARED_OPTIN_BYTES:
        *value = (int)p->shared_bytes;
        return 0;
    default:
        return bad("cuDeviceGetAttribute", "an attribute that gpu/cuda.h does not name");
    }
}

FAKE_EXPORT int cuDevicePrimaryCtxSetFlags(int device, unsigned flags)
{
    ENTER(cuDevicePrimaryCtxSetFlags);
    (void)flags;
    return device == 0 ? 0 : NIB_CU_INVALID_VALUE;
}

FAKE_EXPORT int cuDevicePrimaryCtxRetain(struct CUctx_st **ctx, int device)
{
    ENTER(cuDevicePrimaryCtxRetain);
    if (!fake.inited || device != 0)
        return fake.inited ? NIB_CU_INVALID_VALUE : NIB_CU_NOT_INITIALIZED;
    if (fake_sticky())
        return fake_sticky();
    if (!fake_start_worker())
        return NIB_CU_OUT_OF_MEMORY;
    fake.ctx.references++;
    *ctx = &fake.ctx;
    return 0;
}

FAKE_EXPORT int cuDevicePrimaryCtxRelease(int device)
{
    ENTER(cuDevicePrimaryCtxRelease);
    wait_for_device();
    if (device != 0 || fake.ctx.references == 0)
        return bad("cuDevicePrimaryCtxRelease", "not retained");
    fake.ctx.references--;
    return 0;
}

FAKE_EXPORT int cuCtxSetCurrent(struct CUctx_st *ctx)
{
    ENTER(cuCtxSetCurrent);
    if (ctx && (ctx != &fake.ctx || ctx->references == 0))
        return FAKE_INVALID_CONTEXT;
    current = ctx;
    return 0;
}

/* ---- memory ---- */

FAKE_EXPORT int cuMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    ENTER_CTX(cuMemGetInfo);
    uint64_t used = fake.device_bytes + (fake.profile.integrated ? fake.pinned_bytes : 0);
    *total_bytes = fake.profile.memory_bytes;
    *free_bytes = fake.profile.memory_bytes - fake.profile.reserved_bytes - used;
    return 0;
}

FAKE_EXPORT int cuMemAlloc(nib_cu_ptr *ptr, size_t bytes)
{
    ENTER_CTX(cuMemAlloc);
    return fake_alloc(bytes, false, ptr, NULL);
}

FAKE_EXPORT int cuMemFree(nib_cu_ptr ptr)
{
    ENTER_CTX(cuMemFree);
    wait_for_device();
    return ptr ? fake_free_device(ptr) : 0;
}

FAKE_EXPORT int cuMemHostAlloc(void **ptr, size_t bytes, unsigned flags)
{
    ENTER_CTX(cuMemHostAlloc);
    if (flags & ~(NIB_CU_HOST_PORTABLE | NIB_CU_HOST_MAPPED))
        return NIB_CU_INVALID_VALUE;
    return fake_alloc(bytes, true, NULL, ptr);
}

FAKE_EXPORT int cuMemFreeHost(void *ptr)
{
    ENTER_CTX(cuMemFreeHost);
    wait_for_device();
    return fake_free_host(ptr);
}

FAKE_EXPORT int cuMemHostGetDevicePointer(nib_cu_ptr *ptr, void *host, unsigned flags)
{
    ENTER_CTX(cuMemHostGetDevicePointer);
    if (flags || !fake_pinned(host, 1, ptr))
        return bad("cuMemHostGetDevicePointer", "not pinned memory");
    return 0;
}

static int enqueue_copy(const char *call, const struct fake_work *work, struct CUstream_st *stream)
{
    if (!stream || stream->capturing)
        return bad(call, "the default stream, or one that is being captured");
    if (!fake_map(work->device, work->bytes))
        return bad(call, "the device's side is no device memory");
    return fake_enqueue(stream, work);
}

/* From pinned memory the copy reads later; from other memory the driver has read all when it returns. */
FAKE_EXPORT int cuMemcpyHtoDAsync(nib_cu_ptr dst, const void *src, size_t bytes, struct CUstream_st *stream)
{
    ENTER_CTX(cuMemcpyHtoDAsync);
    struct fake_work work = {
        .kind = FAKE_TO_DEVICE, .device = dst, .bytes = bytes, .flip = act_ == FAKE_FLIP ? 1 + (uint64_t)code_ : 0};
    memcpy(&work.host, &src, sizeof src);
    if (!fake_pinned(src, bytes, NULL)) {
        work.staged = fake_new(bytes);
        memcpy(work.staged, src, bytes);
    }
    return enqueue_copy("cuMemcpyHtoDAsync", &work, stream);
}

/* To any memory, but its content counts only when the stream is known to be done. */
FAKE_EXPORT int cuMemcpyDtoHAsync(void *dst, nib_cu_ptr src, size_t bytes, struct CUstream_st *stream)
{
    ENTER_CTX(cuMemcpyDtoHAsync);
    const struct fake_work work = {.kind = FAKE_TO_HOST, .device = src, .host = dst, .bytes = bytes};
    return enqueue_copy("cuMemcpyDtoHAsync", &work, stream);
}

FAKE_EXPORT int cuMemcpyDtoDAsync(nib_cu_ptr dst, nib_cu_ptr src, size_t bytes, struct CUstream_st *stream)
{
    ENTER_CTX(cuMemcpyDtoDAsync);
    if (!fake_map(src, bytes))
        return bad("cuMemcpyDtoDAsync", "the source is no device memory");
    const struct fake_work work = {.kind = FAKE_WITHIN, .device = dst, .from = src, .bytes = bytes};
    return enqueue_copy("cuMemcpyDtoDAsync", &work, stream);
}

FAKE_EXPORT int cuMemsetD8Async(nib_cu_ptr dst, unsigned char value, size_t bytes, struct CUstream_st *stream)
{
    ENTER_CTX(cuMemsetD8Async);
    if (!stream || !fake_map(dst, bytes))
        return bad("cuMemsetD8Async", stream ? "no device memory" : "the default stream is not used");
    const struct fake_work work = {.kind = FAKE_FILL, .device = dst, .bytes = bytes, .value = value};
    return fake_enqueue(stream, &work);
}

/* ---- streams and events ---- */

FAKE_EXPORT int cuStreamCreate(struct CUstream_st **stream, unsigned flags)
{
    ENTER_CTX(cuStreamCreate);
    if (flags & ~NIB_CU_STREAM_NON_BLOCKING)
        return NIB_CU_INVALID_VALUE;
    struct CUstream_st *s = fake_new(sizeof *s);
    pthread_mutex_lock(&fake.lock);
    s->next = fake.streams;
    fake.streams = s;
    pthread_mutex_unlock(&fake.lock);
    *stream = s;
    return 0;
}

FAKE_EXPORT int cuStreamDestroy(struct CUstream_st *stream)
{
    ENTER_CTX(cuStreamDestroy);
    wait_for_device();
    pthread_mutex_lock(&fake.lock);
    struct CUstream_st **at = &fake.streams;
    while (*at && *at != stream)
        at = &(*at)->next;
    bool known = *at != NULL;
    if (known)
        *at = stream->next;
    pthread_mutex_unlock(&fake.lock);
    if (known && !fake_sticky()) /* else the worker may still look at it */
        fake_delete(stream);
    return known ? 0 : bad("cuStreamDestroy", "no stream");
}

FAKE_EXPORT int cuStreamQuery(struct CUstream_st *stream)
{
    ENTER_CTX(cuStreamQuery);
    pthread_mutex_lock(&fake.lock);
    bool busy = stream->head != stream->tail;
    pthread_mutex_unlock(&fake.lock);
    if (stream->capturing)
        return bad("cuStreamQuery", "the stream is being captured");
    return fake_sticky() ? fake_sticky() : busy ? NIB_CU_NOT_READY : 0;
}

FAKE_EXPORT int cuEventCreate(struct CUevent_st **event, unsigned flags)
{
    ENTER_CTX(cuEventCreate);
    *event = fake_new(sizeof **event);
    (*event)->timed = !(flags & NIB_CU_EVENT_NO_TIMING);
    return 0;
}

FAKE_EXPORT int cuEventRecord(struct CUevent_st *event, struct CUstream_st *stream)
{
    ENTER_CTX(cuEventRecord);
    const struct fake_work work = {.kind = FAKE_EVENT, .event = event};
    event->recorded = true;
    __atomic_store_n(&event->done, false, __ATOMIC_SEQ_CST);
    return stream ? fake_enqueue(stream, &work) : bad("cuEventRecord", "the default stream is not used");
}

FAKE_EXPORT int cuEventQuery(struct CUevent_st *event)
{
    ENTER_CTX(cuEventQuery);
    bool done = __atomic_load_n(&event->done, __ATOMIC_SEQ_CST) || !event->recorded;
    return fake_sticky() ? fake_sticky() : done ? 0 : NIB_CU_NOT_READY;
}

FAKE_EXPORT int cuEventElapsedTime(float *ms, struct CUevent_st *from, struct CUevent_st *to)
{
    ENTER_CTX(cuEventElapsedTime);
    if (!from->timed || !to->timed || !from->recorded || !to->recorded)
        return bad("cuEventElapsedTime", "an event without a time");
    if (!from->done || !to->done)
        return NIB_CU_NOT_READY;
    *ms = (float)(to->at.tv_sec - from->at.tv_sec) * 1e3f + (float)(to->at.tv_nsec - from->at.tv_nsec) / 1e6f;
    return 0;
}

FAKE_EXPORT int cuEventDestroy(struct CUevent_st *event)
{
    ENTER_CTX(cuEventDestroy);
    pthread_mutex_lock(&fake.lock);
    event->destroyed = true;
    fake_settle_event(event);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

/* ---- modules and launches ---- */

FAKE_EXPORT int cuModuleLoadDataEx(struct CUmod_st **mod, const void *image, unsigned options_count, int *options,
                                   void **values)
{
    const bool cubin = memcmp(image, ELFMAG, SELFMAG) == 0;
    fake_about(cubin ? FAKE_IMAGE_CUBIN : FAKE_IMAGE_PTX);
    ENTER_CTX(cuModuleLoadDataEx);
    fake_about(FAKE_IMAGE_ANY);
    for (unsigned i = 0; i < options_count; i++)
        if (options[i] == NIB_CU_JIT_ERROR_LOG)
            *(char *)values[i] = '\0';
    return fake_module_open(image, mod);
}

FAKE_EXPORT int cuModuleUnload(struct CUmod_st *mod)
{
    ENTER_CTX(cuModuleUnload);
    wait_for_device();
    fake_delete(mod);
    return 0;
}

FAKE_EXPORT int cuModuleGetFunction(struct CUfunc_st **function, struct CUmod_st *mod, const char *name)
{
    static struct CUfunc_st functions[4096]; /* live as long as the process */
    static unsigned count;
    ENTER_CTX(cuModuleGetFunction);
    if (!fake_module_has(mod, name))
        return NIB_CU_NOT_FOUND;
    if (count == sizeof functions / sizeof functions[0])
        return NIB_CU_OUT_OF_MEMORY;
    struct CUfunc_st *f = &functions[count++];
    f->op = 0;
    while (f->op < NIB_GPU_OP_COUNT && strcmp(nib_gpu_op_symbol(f->op), name) != 0)
        f->op++;
    snprintf(f->name, sizeof f->name, "%s", name);
    f->shared_max = 48 << 10;
    f->image = mod->ptx ? FAKE_IMAGE_PTX : FAKE_IMAGE_CUBIN;
    *function = f;
    return 0;
}

FAKE_EXPORT int cuFuncGetAttribute(int *value, int attribute, struct CUfunc_st *function)
{
    ENTER_CTX(cuFuncGetAttribute);
    switch (attribute) {
    case NIB_CU_FUNC_MAX_THREADS:
        *value = 1024;
        return 0;
    case NIB_CU_FUNC_SHARED_BYTES:
    case NIB_CU_FUNC_LOCAL_BYTES:
        *value = 0;
        return 0;
    case NIB_CU_FUNC_REGS:
        *value = 32;
        return 0;
    case NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES:
        *value = function->shared_max;
        return 0;
    default:
        return NIB_CU_INVALID_VALUE;
    }
}

FAKE_EXPORT int cuFuncSetAttribute(struct CUfunc_st *function, int attribute, int value)
{
    ENTER_CTX(cuFuncSetAttribute);
    if (attribute != NIB_CU_FUNC_MAX_DYNAMIC_SHARED_BYTES || value < 0 || (uint64_t)value > fake.profile.shared_bytes)
        return NIB_CU_INVALID_VALUE;
    function->shared_max = value;
    return 0;
}

static bool geometry_fits(const struct nib_cu_launch_config *c, const struct CUfunc_st *f)
{
    uint64_t threads = 1;
    for (int i = 0; i < 3; i++) {
        threads *= c->block[i];
        if (c->grid[i] == 0 || c->grid[i] > (i ? 65535u : 0x7fffffffu))
            return false;
    }
    return threads >= 1 && threads <= 1024 && c->shared_bytes <= (unsigned)f->shared_max;
}

FAKE_EXPORT int cuLaunchKernelEx(const struct nib_cu_launch_config *config, struct CUfunc_st *function,
                                 void **arguments, void **extra)
{
    ENTER_CTX(cuLaunchKernelEx);
    if (extra || !config->stream)
        return bad("cuLaunchKernelEx", "extra arguments or the default stream");
    if (!geometry_fits(config, function)) {
        fake_violation("%s: grid %u %u %u, block %u %u %u, %u bytes of shared memory (allowed %d)", function->name,
                       config->grid[0], config->grid[1], config->grid[2], config->block[0], config->block[1],
                       config->block[2], config->shared_bytes, function->shared_max);
        return NIB_CU_INVALID_VALUE;
    }
    struct fake_work work = {.kind = FAKE_KERNEL, .function = function};
    for (unsigned i = 0; i < config->attributes_count; i++)
        work.overlap |= config->attributes[i].id == NIB_CU_ATTR_OVERLAP;
    memcpy(&work.machine, arguments[0], sizeof work.machine);
    memcpy(&work.layer, arguments[1], sizeof work.layer);
    return fake_enqueue(config->stream, &work);
}

/* ---- graphs ---- */

FAKE_EXPORT int cuStreamBeginCapture(struct CUstream_st *stream, int mode)
{
    ENTER_CTX(cuStreamBeginCapture);
    (void)mode;
    if (stream->capturing)
        return FAKE_ILLEGAL_STATE;
    stream->graph = fake_new(sizeof *stream->graph);
    stream->capturing = true;
    return 0;
}

FAKE_EXPORT int cuStreamEndCapture(struct CUstream_st *stream, struct CUgraph_st **graph)
{
    ENTER_CTX(cuStreamEndCapture);
    if (!stream->capturing)
        return FAKE_ILLEGAL_STATE;
    stream->capturing = false;
    *graph = stream->graph;
    stream->graph = NULL;
    return 0;
}

FAKE_EXPORT int cuGraphInstantiateWithFlags(struct CUgraphExec_st **exec, struct CUgraph_st *graph,
                                            unsigned long long flags)
{
    ENTER_CTX(cuGraphInstantiateWithFlags);
    (void)flags;
    struct CUgraphExec_st *e = fake_new(sizeof *e);
    *e = (struct CUgraphExec_st){.count = graph->count, .node = fake_new(graph->count * sizeof graph->node[0])};
    memcpy(e->node, graph->node, graph->count * sizeof graph->node[0]);
    *exec = e;
    return 0;
}

FAKE_EXPORT int cuGraphUpload(struct CUgraphExec_st *exec, struct CUstream_st *stream)
{
    ENTER_CTX(cuGraphUpload);
    return exec && stream ? 0 : NIB_CU_INVALID_VALUE;
}

FAKE_EXPORT int cuGraphLaunch(struct CUgraphExec_st *exec, struct CUstream_st *stream)
{
    ENTER_CTX(cuGraphLaunch);
    const struct fake_work work = {.kind = FAKE_GRAPH, .exec = exec};
    return fake_enqueue(stream, &work);
}

FAKE_EXPORT int cuGraphExecDestroy(struct CUgraphExec_st *exec)
{
    ENTER_CTX(cuGraphExecDestroy);
    pthread_mutex_lock(&fake.lock);
    exec->destroyed = true;
    fake_settle_exec(exec);
    pthread_mutex_unlock(&fake.lock);
    return 0;
}

FAKE_EXPORT int cuGraphDestroy(struct CUgraph_st *graph)
{
    ENTER_CTX(cuGraphDestroy);
    fake_delete(graph);
    return 0;
}

/* ---- how they are found ---- */

FAKE_EXPORT int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status)
{
    (void)flags;
    *status = 1;
#define FAKE_FIND(name, since, parameters)                                                                             \
    if (strcmp(symbol, #name) == 0 && !fake_missing(#name, "missing")) {                                               \
        int(*entry) parameters = name;                                                                                 \
        memcpy(function, &entry, sizeof entry);                                                                        \
        *status = version < since ? 2 : 0;                                                                             \
    }
    NIB_CUDA_CALLS(FAKE_FIND)
#undef FAKE_FIND
    return *status ? NIB_CU_NOT_FOUND : 0;
}
