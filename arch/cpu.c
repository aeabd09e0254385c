/* arch/cpu.c: owns the CPU engine: open, submit, collect, close.
 * Limits: the plan's dims. Boot opens; the stepper thread submits and collects. A step that breaks
 * a rule is refused before anything runs; otherwise a step cannot fail. */
#include "arch/cpu.h"

#include <string.h>

#include "arch/cpu_state.h"

static enum nib_err cpu_submit(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    struct nib_cpu *cpu = (struct nib_cpu *)(void *)engine;
    enum nib_err err = nib_step_check(engine, step, msg);
    if (err)
        return err;
    if (cpu->ready)
        return nib_fail(msg, NIB_E_STATE, "step %llu was not collected yet", (unsigned long long)cpu->out.serial);
    nib_cpu_kv_load(cpu, step);
    nib_cpu_step_begin(cpu, step);
    nib_pool_run(&cpu->pool, nib_cpu_forward, cpu);
    nib_cpu_took(cpu);
    nib_cpu_kv_save(cpu, step);
    cpu->step = NULL;
    cpu->ready = true;
    return NIB_OK;
}

static enum nib_err cpu_collect(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg)
{
    struct nib_cpu *cpu = (struct nib_cpu *)(void *)engine;
    if (!cpu->ready)
        return nib_fail(msg, NIB_E_STATE, "no step is under way");
    ret_out->serial = cpu->out.serial;
    ret_out->count = cpu->out.count;
    memcpy(ret_out->sampled, cpu->out.sampled, cpu->out.count * sizeof cpu->out.sampled[0]);
    cpu->ready = false;
    return NIB_OK;
}

static void cpu_close(struct nib_engine *engine)
{
    struct nib_cpu *cpu = (struct nib_cpu *)(void *)engine;
    nib_pool_close(&cpu->pool);
}

static const struct nib_engine_ops cpu_ops = {.submit = cpu_submit, .collect = cpu_collect, .close = cpu_close};

static enum nib_err check(const struct nib_cpu_open *open, struct nib_msg *msg)
{
    const struct nib_plan *plan = open->plan;
    const struct nib_kernels *k = open->kernels;
    if (open->image->shape != plan->shape)
        return nib_fail(msg, NIB_E_ARG, "the image holds the shape %s, the plan is for %s", open->image->shape->name,
                        plan->shape->name);
    if (open->image->dense != plan->dense)
        return nib_fail(msg, NIB_E_ARG, "the image's dense matrices are %s, the plan is for %s",
                        nib_dense_name(open->image->dense), nib_dense_name(plan->dense));
    if (plan->row->dense_bytes != k->dense_bytes || plan->row->mx_bytes != k->mx_bytes)
        return nib_fail(msg, NIB_E_ARG, "the plan is for the row %s, the kernels are %s", plan->row->name, k->name);
    return NIB_OK;
}

enum nib_err nib_cpu_engine_open(const struct nib_cpu_open *open, struct nib_engine **ret_engine, struct nib_msg *msg)
{
    enum nib_err err = check(open, msg);
    if (err)
        return err;
    const struct nib_plan *plan = open->plan;
    struct nib_cpu *cpu = nib_plan_carve(plan, NIB_R_ENGINE, -1, open->base);
    NIB_MUST(nib_plan_region(plan, NIB_R_ENGINE, -1)->bytes >= sizeof *cpu);
    memset(cpu, 0, sizeof *cpu);
    cpu->base =
        (struct nib_engine){.ops = &cpu_ops, .row = open->kernels->name, .shape = plan->shape, .dims = plan->dims};
    cpu->k = open->kernels;
    cpu->plan = plan;
    nib_cpu_bind(cpu, open);
    err = nib_pool_open(&cpu->pool, plan->threads, msg);
    if (err)
        return err;
    err = nib_cpu_load(cpu, open, msg);
    if (err) {
        nib_pool_close(&cpu->pool);
        return err;
    }
    *ret_engine = &cpu->base;
    return NIB_OK;
}
