/* arch/cpu_moe.c: owns the routing of a step's rows and the expert products.
 * Limits: NIB_MAX_EXPERTS, NIB_MAX_EXPERTS_USED. Every worker. Cannot fail.
 *
 * Router: the experts_used largest logits, ties to the lowest index; weights are the softmax over
 * those only (gpt-oss model card; transformers' GptOssTopKRouter). Assignments are sorted by expert
 * and inside an expert by row, so that an expert's decode rows come first, then its prefill rows,
 * each one product. */
#include <math.h>

#include "arch/cpu_state.h"

/* A NaN among the logits never wins a comparison, but still leaves experts_used different experts.
 */
static void choose(const struct nib_shape *s, const float *logits, uint32_t *ret_expert, float *ret_weight)
{
    bool taken[NIB_MAX_EXPERTS] = {false};
    for (uint32_t c = 0; c < s->experts_used; c++) {
        uint32_t best = s->experts;
        for (uint32_t e = 0; e < s->experts; e++)
            if (!taken[e] && (best == s->experts || logits[e] > logits[best]))
                best = e;
        taken[best] = true;
        ret_expert[c] = best;
    }
    double sum = 0, weight[NIB_MAX_EXPERTS_USED] = {0};
    for (uint32_t c = 0; c < s->experts_used; c++) {
        weight[c] = exp((double)logits[ret_expert[c]] - (double)logits[ret_expert[0]]);
        sum += weight[c];
    }
    for (uint32_t c = 0; c < s->experts_used; c++)
        ret_weight[c] = (float)(weight[c] / sum);
}

/* Counting sort of (row, choice) by expert; rows are walked in order, so decode rows come first. */
static void group(struct nib_cpu *cpu)
{
    const struct nib_shape *s = cpu->base.shape;
    struct nib_cpu_route *r = &cpu->route;
    const uint32_t picks = cpu->rows * s->experts_used, decode_picks = cpu->decode_rows * s->experts_used;
    uint32_t total[NIB_MAX_EXPERTS] = {0}, next[NIB_MAX_EXPERTS] = {0};
    for (uint32_t i = 0; i < picks; i++)
        total[r->expert[i]]++;
    uint32_t at = 0;
    r->active_count = 0;
    for (uint32_t e = 0; e < s->experts; e++) {
        r->begin[e] = next[e] = at;
        at += total[e];
        if (total[e])
            r->active[r->active_count++] = e;
    }
    r->begin[s->experts] = at;
    for (uint32_t i = 0; i < decode_picks; i++)
        r->place[i] = next[r->expert[i]]++;
    for (uint32_t e = 0; e < s->experts; e++)
        r->prefill[e] = next[e];
    for (uint32_t i = decode_picks; i < picks; i++)
        r->place[i] = next[r->expert[i]]++;
    for (uint32_t i = 0; i < picks; i++)
        r->row[r->place[i]] = i / s->experts_used;
}

static void route(struct nib_cpu *cpu, uint32_t worker, const struct nib_cpu_layer *layer)
{
    const struct nib_shape *s = cpu->base.shape;
    struct nib_matmul mm = {.w = layer->router, .x = cpu->a.input, .bias = layer->router_bias, .y = cpu->route.logits};
    mm.ldy = mm.n = s->experts;
    mm.k = s->hidden;
    mm.m = cpu->rows;
    nib_cpu_dense(cpu, worker, &mm, cpu->decode_rows, NULL);
    nib_pool_barrier(&cpu->pool);
    if (worker == 0) {
        for (uint64_t i = 0; i < cpu->rows; i++)
            choose(s, cpu->route.logits + i * s->experts, cpu->route.expert + i * s->experts_used,
                   cpu->route.weight + i * s->experts_used);
        group(cpu);
    }
    nib_pool_barrier(&cpu->pool);
}

/* One expert matrix for outputs [n0, n1) of all its rows. mm has w, bias, n and k; x and y of place
 * 0. `gather` says that x is by row, else by place. */
static void expert_range(struct nib_cpu *cpu, uint32_t worker, uint32_t expert, struct nib_matmul mm, bool gather)
{
    const struct nib_cpu_route *r = &cpu->route;
    const uint32_t bounds[3] = {r->begin[expert], r->prefill[expert], r->begin[expert + 1]};
    const uint8_t *x = mm.x;
    float *y = mm.y;
    for (int kind = 0; kind < 2; kind++) {
        uint32_t first = bounds[kind];
        mm.m = bounds[kind + 1] - first;
        if (mm.m == 0)
            continue;
        mm.rows = gather ? r->row + first : NULL;
        mm.x = gather ? x : x + first * cpu->k->acts_bytes(mm.k);
        mm.y = y + first * mm.ldy;
        if (kind == 0)
            cpu->k->mx_gemv(&mm);
        else
            cpu->k->mx_gemm(&mm, cpu->thread + worker * cpu->thread_bytes);
    }
}

/* All experts' products of one kind; mm has x and y of place 0, w and bias of expert 0. Items are
 * (expert, range). */
static void experts(struct nib_cpu *cpu, uint32_t worker, struct nib_matmul mm, bool gather)
{
    const struct nib_cpu_route *r = &cpu->route;
    const uint64_t row_bytes = (uint64_t)mm.k / 2 + mm.k / NIB_MX_BLOCK;
    const struct nib_cpu_share share = nib_cpu_share_outputs(cpu, mm.n, row_bytes, r->active_count);
    const uint8_t *w = mm.w;
    const uint16_t *bias = mm.bias;
    uint32_t item;
    while ((item = nib_pool_take(&cpu->pool)) < share.items * r->active_count) {
        uint32_t e = r->active[item / share.items];
        mm.n0 = item % share.items * share.per;
        mm.n1 = (uint32_t)nib_min_u64(mm.n, (uint64_t)mm.n0 + share.per);
        mm.w = w + e * (cpu->up_bytes + cpu->down_bytes);
        mm.bias = bias + (uint64_t)e * mm.n;
        expert_range(cpu, worker, e, mm, gather);
    }
    nib_pool_barrier(&cpu->pool);
}

static void activate(struct nib_cpu *cpu)
{
    const uint32_t n = cpu->base.shape->intermediate;
    const uint32_t places = cpu->rows * cpu->base.shape->experts_used;
    struct nib_cpu_share share = nib_cpu_share_rows(cpu, places);
    uint32_t first, end;
    while (nib_cpu_take(cpu, share, places, &first, &end)) {
        for (uint32_t p = first; p < end; p++)
            cpu->k->swiglu(cpu->a.gated + (uint64_t)p * n, cpu->a.up + (uint64_t)p * 2 * n, n);
        cpu->k->acts_prep(cpu->a.input + first * cpu->k->acts_bytes(n), cpu->a.gated + (uint64_t)first * n, n,
                          end - first, n);
    }
    nib_pool_barrier(&cpu->pool);
}

void nib_cpu_moe(struct nib_cpu *cpu, uint32_t worker, const struct nib_cpu_layer *layer)
{
    const struct nib_shape *s = cpu->base.shape;
    route(cpu, worker, layer);
    struct nib_matmul up = {.w = layer->experts, .x = cpu->a.input, .bias = layer->up_bias, .y = cpu->a.up};
    up.ldy = up.n = 2 * s->intermediate;
    up.k = s->hidden;
    experts(cpu, worker, up, true);
    activate(cpu);
    struct nib_matmul down = {.x = cpu->a.input, .bias = layer->down_bias, .y = cpu->a.down};
    down.w = layer->experts + cpu->up_bytes;
    down.ldy = down.n = s->hidden;
    down.k = s->intermediate;
    experts(cpu, worker, down, false);
}

void nib_cpu_combine(struct nib_cpu *cpu, uint32_t row)
{
    const struct nib_shape *s = cpu->base.shape;
    const struct nib_cpu_route *r = &cpu->route;
    float *x = cpu->a.x + (uint64_t)row * s->hidden;
    const float *y[NIB_MAX_EXPERTS_USED] = {0};
    float weight[NIB_MAX_EXPERTS_USED] = {0};
    for (uint32_t c = 0; c < s->experts_used; c++) {
        y[c] = cpu->a.down + (uint64_t)r->place[row * s->experts_used + c] * s->hidden;
        weight[c] = r->weight[row * s->experts_used + c];
    }
    for (uint32_t i = 0; i < s->hidden; i++) {
        float sum = 0;
        for (uint32_t c = 0; c < s->experts_used; c++)
            sum += weight[c] * y[c][i];
        x[i] += sum;
    }
}
