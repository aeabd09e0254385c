/* core/plan.c: owns nothing; decides every byte before one is taken.
 *
 * The search: at the largest context and batch asked for, everything resident; where that does not fit, in this fixed
 * order: the embedding table to pinned memory, then (only for values left to us) the context down to 32k, the slots
 * down to 8, the context down to 4k, the slots down to 1, then experts to pinned memory, last layer first. What is
 * left over becomes KV pages. Limits: NIB_MAX_REGIONS. Any thread. Fails with the two numbers that disagree. */
#include "core/plan.h"

#include <string.h>

#include "core/arith.h"
#include "core/plan_layout.h"

enum {
    CTX_COMFORT = 32768, /* tokens; contexts shrink to this before slots do */
    CTX_FLOOR = 4096,    /* tokens; experts are spilled rather than going below */
    SLOTS_COMFORT = 8
};

static enum nib_err check_range(const char *what, uint64_t value, uint64_t max, struct nib_msg *msg)
{
    if (value <= max)
        return NIB_OK;
    return nib_fail(msg, NIB_E_ARG, "%s is %llu, allowed is 1 to %llu, or 0 for automatic", what,
                    (unsigned long long)value, (unsigned long long)max);
}

static enum nib_err check_request(const struct nib_plan_request *r, struct nib_msg *msg)
{
    enum nib_err err = check_range("context_tokens", r->ctx_tokens, r->shape->ctx_max, msg);
    if (!err)
        err = check_range("slots", r->slots, NIB_MAX_SLOTS, msg);
    if (!err)
        err = check_range("step_rows", r->step_rows_max, NIB_MAX_STEP_ROWS, msg);
    if (!err)
        err = check_range("queue", r->queue_max, NIB_MAX_QUEUE, msg);
    if (!err)
        err = check_range("prefill_rows", r->prefill_rows_max, NIB_MAX_STEP_ROWS, msg);
    if (!err && r->draft_tokens > NIB_MAX_DRAFT_TOKENS)
        err = nib_fail(msg, NIB_E_ARG, "draft_tokens is %u, allowed is 0 to %d", r->draft_tokens, NIB_MAX_DRAFT_TOKENS);
    if (!err && (r->threads == 0 || r->threads > NIB_MAX_THREADS))
        err = nib_fail(msg, NIB_E_ARG, "threads is %u, allowed is 1 to %d", r->threads, NIB_MAX_THREADS);
    return err;
}

/* What each space may hold. On a CPU all is host; an integrated GPU has one memory, counted as the device's. */
static void set_budgets(const struct nib_plan_request *r, struct nib_plan *plan)
{
    const struct nib_profile *p = r->profile;
    uint64_t own = p->memory_bytes - p->reserved_bytes;
    plan->driver_bytes = r->row->gpu ? p->reserved_bytes : 0;
    if (r->memory_limit_bytes) {
        const uint64_t driver = nib_min_u64(plan->driver_bytes, NIB_PLAN_DRIVER_BYTES);
        const uint64_t limit = r->memory_limit_bytes > driver ? r->memory_limit_bytes - driver : 0;
        own = nib_min_u64(own, limit);
    }
    if (!r->row->gpu) {
        plan->budget_bytes[NIB_SPACE_HOST] = own;
        return;
    }
    plan->budget_bytes[NIB_SPACE_DEVICE] = own;
    plan->budget_bytes[NIB_SPACE_PINNED] = p->integrated ? own : p->host_bytes / 4 * 3;
    plan->budget_bytes[NIB_SPACE_HOST] = p->integrated ? own : p->host_bytes / 4;
}

/* An integrated GPU's three spaces are one memory: their sum is what must fit. */
static bool fits(const struct nib_plan_request *r, const struct nib_plan *plan)
{
    if (r->row->gpu && r->profile->integrated) {
        uint64_t sum = 0;
        for (int s = 0; s < NIB_SPACE_COUNT; s++)
            sum += plan->arena_bytes[s];
        return sum <= plan->budget_bytes[NIB_SPACE_DEVICE];
    }
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        if (plan->arena_bytes[s] > plan->budget_bytes[s])
            return false;
    return true;
}

static uint32_t pages_of(uint32_t tokens)
{
    return (uint32_t)nib_div_up(tokens, NIB_KV_PAGE_TOKENS);
}

static bool try_pages(const struct nib_plan_request *r, struct nib_plan *plan, uint32_t pages)
{
    plan->dims.kv_pages = pages;
    nib_plan_layout(r, plan);
    return fits(r, plan);
}

/* Takes the next step down of the fixed order; false when there is none left. */
static bool shrink(const struct nib_plan_request *r, struct nib_plan *plan)
{
    bool may_spill = r->row->gpu && !r->profile->integrated;
    struct nib_engine_dims *d = &plan->dims;
    if (may_spill && !plan->embed_spilled)
        plan->embed_spilled = true;
    else if (!r->ctx_tokens && d->ctx_tokens > CTX_COMFORT)
        d->ctx_tokens /= 2;
    else if (!r->slots && d->slots > SLOTS_COMFORT)
        d->slots /= 2;
    else if (!r->ctx_tokens && d->ctx_tokens > CTX_FLOOR)
        d->ctx_tokens /= 2;
    else if (!r->slots && d->slots > 1)
        d->slots /= 2;
    else if (may_spill && plan->spilled_layers < plan->shape->layers)
        plan->spilled_layers++;
    else
        return false;
    return true;
}

/* Spilling goes by whole layers; what the last one freed beyond the need goes back to context, then to slots. */
static void regrow(const struct nib_plan_request *r, struct nib_plan *plan)
{
    struct nib_engine_dims *d = &plan->dims;
    for (bool grew = plan->spilled_layers > 0; grew;) {
        struct nib_engine_dims before = *d;
        if (!r->ctx_tokens && d->ctx_tokens < CTX_COMFORT)
            d->ctx_tokens *= 2;
        else if (!r->slots && d->slots < SLOTS_COMFORT)
            d->slots *= 2;
        else
            break;
        grew = try_pages(r, plan, pages_of(d->ctx_tokens));
        if (!grew)
            *d = before;
    }
}

/* The most pages that fit and are of use, at least `lowest`, which is known to. */
static void grow_pages(const struct nib_plan_request *r, struct nib_plan *plan, uint32_t lowest)
{
    uint32_t low = lowest;
    uint32_t high = plan->dims.slots * pages_of(plan->dims.ctx_tokens);
    if (plan->sched.prefix.on)
        high += NIB_PREFIX_PAGES + plan->dims.slots * NIB_PREFIX_SLOT_PAGES;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (try_pages(r, plan, middle))
            low = middle;
        else
            high = middle - 1;
    }
    (void)try_pages(r, plan, low);
}

static enum nib_err refuse(const struct nib_plan_request *r, const struct nib_plan *plan, struct nib_msg *msg)
{
    enum nib_space space = r->row->gpu ? NIB_SPACE_DEVICE : NIB_SPACE_HOST;
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        if (plan->arena_bytes[s] > plan->budget_bytes[s])
            space = (enum nib_space)s;
    return nib_fail(msg, NIB_E_LIMIT,
                    "%s with a context of %u tokens and %u slots needs %llu bytes of %s memory, and %s has %llu for it",
                    plan->shape->name, plan->dims.ctx_tokens, plan->dims.slots,
                    (unsigned long long)plan->arena_bytes[space], nib_space_name(space), r->profile->name,
                    (unsigned long long)plan->budget_bytes[space]);
}

enum nib_err nib_plan_make(const struct nib_plan_request *r, struct nib_plan *ret_plan, struct nib_msg *msg)
{
    enum nib_err err = check_request(r, msg);
    if (err)
        return err;
    if (r->dense == NIB_DENSE_MXFP8 && !r->row->mxfp8_bytes)
        return nib_fail(msg, NIB_E_UNSUPPORTED, "the row %s has no kernels for dense weights in MXFP8", r->row->name);
    if (r->kv == NIB_KV_FP8 && !r->row->kv8_page_bytes)
        return nib_fail(msg, NIB_E_UNSUPPORTED,
                        "the row %s has no kernels for keys and values in FP8 (memory.kv: fp8); it runs with bf16",
                        r->row->name);
    struct nib_plan plan = {
        .shape = r->shape, .dense = r->dense, .kv = r->kv, .row = r->row, .threads = r->row->gpu ? 1 : r->threads};
    plan.dims.slots = r->slots ? r->slots : r->row->slots;
    plan.dims.step_rows_max = r->step_rows_max ? r->step_rows_max : r->row->step_rows_max;
    plan.dims.ctx_tokens = r->ctx_tokens ? r->ctx_tokens : r->shape->ctx_max;
    plan.dims.steps_ahead = r->row->steps_ahead;
    if (plan.dims.step_rows_max < plan.dims.slots)
        return nib_fail(msg, NIB_E_ARG, "step_rows is %u, allowed is at least the %u slots", plan.dims.step_rows_max,
                        plan.dims.slots);
    if (r->prefill_rows_max > plan.dims.step_rows_max)
        return nib_fail(msg, NIB_E_ARG, "prefill_rows is %u, allowed is at most the %u rows of a step",
                        r->prefill_rows_max, plan.dims.step_rows_max);
    set_budgets(r, &plan);
    while (!try_pages(r, &plan, pages_of(plan.dims.ctx_tokens)))
        if (!shrink(r, &plan))
            return refuse(r, &plan, msg);
    regrow(r, &plan);
    grow_pages(r, &plan, pages_of(plan.dims.ctx_tokens));
    nib_plan_predict(r, &plan);
    *ret_plan = plan;
    return NIB_OK;
}

const struct nib_region *nib_plan_region(const struct nib_plan *plan, enum nib_region_kind kind, int32_t layer)
{
    for (uint32_t i = 0; i < plan->regions_count; i++)
        if (plan->regions[i].kind == kind && plan->regions[i].layer == layer)
            return &plan->regions[i];
    return NULL;
}

void *nib_plan_carve(const struct nib_plan *plan, enum nib_region_kind kind, int32_t layer,
                     void *const base[NIB_SPACE_COUNT])
{
    const struct nib_region *region = nib_plan_region(plan, kind, layer);
    return region ? (uint8_t *)base[region->space] + region->offset : NULL;
}

const char *nib_space_name(enum nib_space space)
{
    static const char *const names[NIB_SPACE_COUNT] = {"device", "pinned", "host"};
    return (unsigned)space < NIB_SPACE_COUNT ? names[space] : "unknown";
}
