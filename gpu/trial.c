/* gpu/trial.c: owns the self-test's memory, its stream, and every call into the driver that the test makes.
 * Limits: NIB_TRIAL_*; a kernel has NIB_MAX_SELFTEST_MS. Boot thread. The first failure stays: which call or kernel it was,
 * and whether the row, the hardware or the want of memory is to blame. */
#include "gpu/trial.h"

#include <string.h>
#include <sys/mman.h>

#include "core/arith.h"

static void fail(struct nib_trial *t, enum nib_err err, const char *text)
{
    if (!t->err)
        t->err = nib_fail(t->msg, err, "%s", text);
}

/* What stopped the device: the kernel that ran last, unless the hardware reports itself. */
static void blame(struct nib_trial *t, int result, const struct nib_msg *why)
{
    struct nib_msg text = *why;
    if (t->launched)
        (void)nib_fail(&text, NIB_E_DEVICE, "kernel %s: %s", nib_gpu_op_symbol(t->op), why->text);
    t->gpu->lost = true;
    t->report->struck = t->launched && nib_cuda_classify(result) != NIB_CUDA_RESET;
    fail(t, NIB_E_DEVICE, text.text);
}

/* What a call said. A failure of an earlier kernel shows in any call. */
static void call(struct nib_trial *t, int result, const char *name)
{
    struct nib_msg why;
    enum nib_err err = nib_cuda_result(&t->gpu->cuda, name, result, &why);
    if (err && nib_cuda_classify(result) >= NIB_CUDA_EXIT)
        blame(t, result, &why);
    else if (err)
        fail(t, err, why.text);
}
#define CALL(t, call_, ...)                                                                                            \
    do {                                                                                                               \
        if (!(t)->err)                                                                                                 \
            call((t), (t)->gpu->cuda.call_(__VA_ARGS__), #call_);                                                      \
    } while (0)

void nib_trial_send(struct nib_trial *t, nib_gpu_ptr to, const void *pinned, uint64_t bytes)
{
    CALL(t, cuMemcpyHtoDAsync, to, pinned, bytes, t->stream);
}

void nib_trial_fill(struct nib_trial *t, nib_gpu_ptr to, uint8_t value, uint64_t bytes)
{
    CALL(t, cuMemsetD8Async, to, value, bytes, t->stream);
}

const void *nib_trial_fetch(struct nib_trial *t, nib_gpu_ptr from, uint64_t bytes)
{
    uint8_t *to = t->back + t->back_used;
    NIB_MUST(bytes <= t->back_bytes - t->back_used);
    t->back_used += nib_round_up(bytes, 64);
    CALL(t, cuMemcpyDtoHAsync, to, from, bytes, t->stream);
    return to;
}

void *nib_trial_take(struct nib_trial *t, uint64_t bytes)
{
    uint8_t *at = t->host + t->host_used;
    NIB_MUST(bytes <= NIB_TRIAL_HOST_BYTES - t->host_used);
    t->host_used += nib_round_up(bytes, 64);
    return at;
}

void nib_trial_forget(struct nib_trial *t)
{
    t->back_used = t->host_used = 0;
}

void nib_trial_wait(struct nib_trial *t)
{
    struct nib_msg why;
    if (!t->err && nib_gpu_wait(&t->gpu->cuda, t->stream, NIB_MAX_SELFTEST_MS * 1000ull, &why) != NIB_OK)
        blame(t, t->gpu->cuda.cuStreamQuery(t->stream), &why);
}

static bool samples(enum nib_gpu_op op)
{
    return op == NIB_GPU_SCAN || op == NIB_GPU_SAMPLE;
}

static struct nib_gpu_geometry geometry(const struct nib_trial *t, enum nib_gpu_op op)
{
    struct nib_gpu_geometry g = {0};
    t->k->geometry(op, samples(op) ? &t->sampler : &t->m, t->many ? t->many : t->decode, t->prompt,
                   t->many ? t->many : t->want, &g);
    return g;
}

bool nib_trial_due(const struct nib_trial *t, enum nib_gpu_op op)
{
    return geometry(t, op).grid[0] != 0;
}

bool nib_trial_start(struct nib_trial *t, enum nib_gpu_op op)
{
    const struct nib_gpu_target target = {t->stream, samples(op) ? t->sampler_at : t->m_at, t->layer};
    const struct nib_gpu_geometry g = geometry(t, op);
    struct nib_msg why;
    if (t->err || g.grid[0] == 0)
        return false;
    t->op = op;
    t->launched = true;
    enum nib_err err = nib_gpu_module_allow(t->gpu, op, g.block, g.shared_bytes, &why);
    if (!err)
        err = nib_gpu_launch(t->gpu, op, &g, target, &why);
    if (!err)
        return true;
    /* refused, or the device has stopped before */
    const int result = t->gpu->cuda.cuStreamQuery(t->stream);
    if (nib_cuda_classify(result) >= NIB_CUDA_EXIT)
        blame(t, result, &why);
    else
        t->report->struck = true;
    fail(t, NIB_E_UNSUPPORTED, why.text);
    return false;
}

bool nib_trial_launch(struct nib_trial *t, enum nib_gpu_op op)
{
    nib_trial_wait(t);
    const bool started = nib_trial_start(t, op);
    nib_trial_wait(t);
    return started && !t->err;
}

static void take_memory(struct nib_trial *t)
{
    void *pinned = NULL;
    nib_trial_lay_out(t); /* counts */
    const uint64_t device_bytes = t->arena_used, back_bytes = t->back_bytes;
    const uint64_t pinned_bytes = t->pinned_used + back_bytes;
    CALL(t, cuMemAlloc, &t->arena, device_bytes);
    CALL(t, cuMemHostAlloc, &pinned, pinned_bytes, NIB_CU_HOST_PORTABLE | NIB_CU_HOST_MAPPED);
    t->pinned = pinned;
    CALL(t, cuMemHostGetDevicePointer, &t->pinned_at, pinned, 0);
    if (t->err)
        return;
    memset(pinned, 0, t->pinned_used);
    nib_trial_lay_out(t);
    NIB_MUST(t->arena_used == device_bytes);
    t->back = t->pinned + t->pinned_used;
}

void nib_trial_open(struct nib_trial *t, const struct nib_profile *profile, const struct nib_shape *shape)
{
    struct nib_shape *s = &t->shape;
    *s = *shape;
    s->layers = 2;
    s->experts = (uint32_t)nib_min_u64(s->experts, NIB_TRIAL_EXPERTS);
    s->vocab = (uint32_t)nib_min_u64(s->vocab, NIB_TRIAL_VOCAB);
    t->m.sms = profile->sms;
    t->sampler.vocab = (uint32_t)nib_min_u64(shape->vocab, NIB_TRIAL_SAMPLER_VOCAB);
    void *host = mmap(NULL, NIB_TRIAL_HOST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host == MAP_FAILED)
        fail(t, NIB_E_NOMEM, "the self-test has no memory for its answers");
    else
        t->host = host;
    CALL(t, cuStreamCreate, &t->stream, NIB_CU_STREAM_NON_BLOCKING);
    take_memory(t);
    if (!t->err)
        nib_trial_load(t);
}

/* What fails here cannot be mended, and shows in the next call. */
static void drop(int result)
{
    (void)result;
}

void nib_trial_close(struct nib_trial *t)
{
    const struct nib_cuda *cuda = &t->gpu->cuda;
    if (t->host)
        (void)munmap(t->host, NIB_TRIAL_HOST_BYTES);
    if (t->gpu->lost)
        return;
    if (t->pinned)
        drop(cuda->cuMemFreeHost(t->pinned));
    if (t->arena)
        drop(cuda->cuMemFree(t->arena));
    if (t->stream)
        drop(cuda->cuStreamDestroy(t->stream));
}
