/* gpu/engine.c: owns the GPU engine: open and close. Steps are in gpu/step.c.
 * Limits: the plan's dims, steps_ahead 2. Boot thread. On failure nothing of the engine is left on the device. */
#include <string.h>
#include <sys/prctl.h>

#include "gpu/step.h"

static void release(struct nib_gpu_engine *e)
{
    if (e->gpu->lost)
        return;
    nib_gpu_graphs_free(e);
    nib_gpu_unload(e->gpu);
    if (e->stream)
        (void)e->cuda->cuStreamDestroy(e->stream);
    e->stream = NULL;
}

/* A step may still be under way: it is given its time, then the device counts as lost. */
static void gpu_close(struct nib_engine *engine)
{
    struct nib_gpu_engine *e = (struct nib_gpu_engine *)(void *)engine;
    struct nib_msg msg;
    if (!e->gpu->lost && nib_gpu_idle(e, e->step_us_max, &msg) != NIB_OK)
        e->gpu->lost = true;
    release(e);
}

static const struct nib_engine_ops gpu_ops = {.submit = nib_gpu_submit, .collect = nib_gpu_collect, .close = gpu_close};

static enum nib_err check(const struct nib_gpu_engine_open *o, struct nib_msg *msg)
{
    const struct nib_plan *plan = o->plan;
    const struct nib_gpu_kernels *k = o->kernels;
    if (o->image->shape != plan->shape)
        return nib_fail(msg, NIB_E_ARG, "the image holds the shape %s, the plan is for %s", o->image->shape->name,
                        plan->shape->name);
    if (o->image->dense != plan->dense)
        return nib_fail(msg, NIB_E_ARG, "the image's dense matrices are %s, the plan is for %s",
                        nib_dense_name(o->image->dense), nib_dense_name(plan->dense));
    if (plan->row->dense_bytes != k->dense_bytes || plan->row->mx_bytes != k->mx_bytes)
        return nib_fail(msg, NIB_E_ARG, "the plan is for the row %s, the kernels are %s", plan->row->name, k->name);
    if (k->image == k->image_end)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "this build has no kernels for the row %s", k->name);
    return NIB_OK;
}

static enum nib_err start(struct nib_gpu_engine *e, const struct nib_gpu_engine_open *o, struct nib_msg *msg)
{
    const uint64_t begin = nib_gpu_now_us();
    enum nib_err err = NIB_CU(e->cuda, msg, cuStreamCreate, &e->stream, NIB_CU_STREAM_NON_BLOCKING);
    if (!err)
        err = nib_gpu_load(e->gpu, o->kernels, o->profile, msg);
    const uint64_t kernels = nib_gpu_now_us();
    if (!err)
        err = nib_gpu_bind_upload(e, o->banned, msg);
    if (!err)
        err = nib_gpu_upload(e, o, msg);
    if (!err)
        err = nib_gpu_bind_zero(e, msg);
    const uint64_t weights = nib_gpu_now_us();
    if (!err)
        err = nib_gpu_graphs_make(e, msg);
    if (!err && o->times) {
        o->times->kernels_us = kernels - begin;
        o->times->weights_us = weights - kernels;
        o->times->graphs_us = nib_gpu_now_us() - weights;
    }
    return err;
}

enum nib_err nib_gpu_engine_open(const struct nib_gpu_engine_open *o, struct nib_engine **ret_engine,
                                 struct nib_msg *msg)
{
    enum nib_err err = check(o, msg);
    if (err)
        return err;
    const struct nib_plan *plan = o->plan;
    const struct nib_region *region = nib_plan_region(plan, NIB_R_ENGINE, -1);
    NIB_MUST(region && region->space == NIB_SPACE_HOST && region->bytes >= sizeof(struct nib_gpu_engine));
    struct nib_gpu_engine *e = (struct nib_gpu_engine *)(void *)((uint8_t *)o->host + region->offset);
    memset(e, 0, sizeof *e);
    e->base = (struct nib_engine){.ops = &gpu_ops, .row = o->kernels->name, .shape = plan->shape, .dims = plan->dims};
    e->gpu = o->gpu;
    e->cuda = &o->gpu->cuda;
    e->k = o->kernels;
    e->plan = plan;
    e->step_us_max = 1000ull * (o->step_ms_max ? o->step_ms_max : NIB_MAX_STEP_MS);
    /* naps of gpu/wait.c as short as asked for; of this thread, which will wait for steps */
    (void)prctl(PR_SET_TIMERSLACK, 1000UL);
    nib_gpu_bind(e);
    e->machine.sms = o->profile->sms;
    memset(e->mailbox, 0, nib_gpu_mailbox_bytes(plan->dims.slots, plan->dims.ctx_tokens));
    err = start(e, o, msg);
    if (err) {
        if (err == NIB_E_DEVICE)
            e->gpu->lost = true;
        release(e);
        return err;
    }
    *ret_engine = &e->base;
    return NIB_OK;
}
