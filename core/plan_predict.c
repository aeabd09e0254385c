/* core/plan_predict.c: owns the roofline arithmetic. Any thread. Cannot fail.
 *
 * Decode at batch B reads every dense weight once and, in each layer, the distinct experts that B tokens pick. With
 * uniform routing of k out of E that is E (1 - (1 - k/E)^B) in expectation (real routing is more skewed: fewer). */
#include <math.h>

#include "core/plan_layout.h"

struct layer_cost {
    double dense;  /* bytes */
    double expert; /* bytes of one expert */
};

static struct layer_cost layer_cost(const struct nib_plan *plan)
{
    const struct nib_shape *s = plan->shape;
    const struct nib_row_facts *row = plan->row;
    uint64_t dense = nib_plan_dense_bytes(row, plan->dense, nib_qkv_dim(s), s->hidden) +
                     nib_plan_dense_bytes(row, plan->dense, s->hidden, nib_q_dim(s)) +
                     row->dense_bytes(s->experts, s->hidden);
    uint64_t expert = row->mx_bytes(2 * s->intermediate, s->hidden) + row->mx_bytes(s->hidden, s->intermediate);
    return (struct layer_cost){.dense = (double)dense, .expert = (double)expert};
}

static double distinct_experts(const struct nib_shape *s, double batch)
{
    double miss = 1.0 - (double)s->experts_used / s->experts;
    return s->experts * (1.0 - pow(miss, batch));
}

/* Seconds of one decode step of `batch` tokens; *ret_bytes as read from the row's own memory and over the link. */
static double step_seconds(const struct nib_plan_request *r, const struct nib_plan *plan, double batch,
                           double *ret_bytes)
{
    const struct nib_shape *s = plan->shape;
    struct layer_cost cost = layer_cost(plan);
    double experts = distinct_experts(s, batch) * cost.expert;
    double head = (double)nib_plan_dense_bytes(plan->row, plan->dense, s->vocab, s->hidden);
    double near = s->layers * cost.dense + (s->layers - plan->spilled_layers) * experts + head;
    double far = plan->spilled_layers * experts;
    *ret_bytes = near + far;
    double seconds = near / r->profile->read_bytes_s;
    if (far > 0)
        seconds += far / r->profile->link_bytes_s;
    return seconds;
}

void nib_plan_predict(const struct nib_plan_request *r, struct nib_plan *plan)
{
    const struct nib_shape *s = plan->shape;
    double bytes, batch_bytes;
    double one = step_seconds(r, plan, 1, &bytes);
    double all = step_seconds(r, plan, plan->dims.slots, &batch_bytes);
    plan->decode_bytes = (uint64_t)bytes;
    bool known = r->profile->read_bytes_s > 0 && (plan->spilled_layers == 0 || r->profile->link_bytes_s > 0);
    plan->decode_tokens_s = known ? 1.0 / one : 0;
    plan->batch_decode_tokens_s = known ? plan->dims.slots / all : 0;

    double active = ((double)nib_qkv_dim(s) + nib_q_dim(s) + s->experts) * s->hidden +
                    3.0 * s->experts_used * s->hidden * s->intermediate;
    plan->prefill_tokens_s = r->profile->flops_bf16_s / (2.0 * s->layers * active);
}
