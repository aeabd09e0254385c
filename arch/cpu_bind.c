/* arch/cpu_bind.c: owns where everything of the CPU engine lies inside the plan's regions.
 * The order inside NIB_R_SMALL, NIB_R_ROUTE and NIB_R_SAMPLER_STATE is decided here; their sizes
 * are core/plan_layout.c's, and a disagreement stops the process. Boot thread. */
#include <string.h>

#include "arch/cpu_state.h"
#include "core/sample.h"

/* Hands out the pieces of one region. */
struct carver {
    uint8_t *at, *end;
};

static struct carver carver_of(const struct nib_cpu *cpu, enum nib_region_kind kind, int32_t layer, void *const *base)
{
    const struct nib_region *region = nib_plan_region(cpu->plan, kind, layer);
    NIB_MUST(region != NULL);
    uint8_t *start = nib_plan_carve(cpu->plan, kind, layer, base);
    return (struct carver){.at = start, .end = start + region->bytes};
}

static void *piece(struct carver *c, uint64_t bytes)
{
    void *start = c->at;
    bytes = nib_round_up(bytes, 64);
    NIB_MUST(bytes <= (uint64_t)(c->end - c->at));
    c->at += bytes;
    return start;
}

static void *whole(const struct nib_cpu *cpu, enum nib_region_kind kind, void *const *base, uint64_t bytes)
{
    struct carver c = carver_of(cpu, kind, -1, base);
    return piece(&c, bytes);
}

static void bind_vectors(struct nib_cpu *cpu, void *const *base)
{
    const struct nib_shape *s = cpu->base.shape;
    struct carver c = carver_of(cpu, NIB_R_SMALL, -1, base);
    for (uint32_t l = 0; l < s->layers; l++) {
        struct nib_cpu_layer *layer = &cpu->layer[l];
        layer->attn_norm = piece(&c, s->hidden * 2ull);
        layer->qkv_bias = piece(&c, nib_qkv_dim(s) * 2ull);
        layer->sinks = piece(&c, s->heads * 2ull);
        layer->out_bias = piece(&c, s->hidden * 2ull);
        layer->mlp_norm = piece(&c, s->hidden * 2ull);
        layer->router_bias = piece(&c, s->experts * 2ull);
        layer->up_bias = piece(&c, s->experts * 4ull * s->intermediate);
        layer->down_bias = piece(&c, 2ull * s->experts * s->hidden);
    }
    cpu->final_norm = piece(&c, s->hidden * 2ull);
}

static void bind_matrices(struct nib_cpu *cpu, void *const *base)
{
    const struct nib_shape *s = cpu->base.shape;
    const struct nib_kernels *k = cpu->k;
    cpu->up_bytes = k->mx_bytes(2 * s->intermediate, s->hidden);
    cpu->down_bytes = k->mx_bytes(s->hidden, s->intermediate);
    cpu->embed = whole(cpu, NIB_R_EMBED, base, (uint64_t)s->vocab * s->hidden * 2);
    cpu->lm_head = whole(cpu, NIB_R_LM_HEAD, base, k->dense_bytes(s->vocab, s->hidden));
    struct carver qkv = carver_of(cpu, NIB_R_QKV, -1, base), out = carver_of(cpu, NIB_R_OUT, -1, base);
    struct carver router = carver_of(cpu, NIB_R_ROUTER, -1, base);
    for (uint32_t l = 0; l < s->layers; l++) {
        struct carver experts = carver_of(cpu, NIB_R_EXPERTS, (int32_t)l, base);
        cpu->layer[l].qkv = piece(&qkv, k->dense_bytes(nib_qkv_dim(s), s->hidden));
        cpu->layer[l].out = piece(&out, k->dense_bytes(s->hidden, nib_q_dim(s)));
        cpu->layer[l].router = piece(&router, k->dense_bytes(s->experts, s->hidden));
        cpu->layer[l].experts = piece(&experts, s->experts * (cpu->up_bytes + cpu->down_bytes));
    }
}

static void bind_kv(struct nib_cpu *cpu, void *const *base)
{
    const struct nib_shape *s = cpu->base.shape;
    const uint32_t full_layers = s->layers / 2, window_layers = s->layers - full_layers;
    NIB_MUST(cpu->plan->ring_pages <= NIB_CPU_RING_PAGES);
    for (uint32_t i = 0; i < cpu->plan->ring_pages; i++)
        cpu->ring[i] = i;
    cpu->page_bytes = nib_plan_page_bytes(cpu->plan->row, cpu->plan->kv, s->kv_heads);
    cpu->kv_put = cpu->plan->kv == NIB_KV_FP8 ? cpu->k->kv8_put : cpu->k->kv_put;
    cpu->kv_full = whole(cpu, NIB_R_KV_FULL, base, (uint64_t)cpu->base.dims.kv_pages * full_layers * cpu->page_bytes);
    cpu->kv_window = whole(cpu, NIB_R_KV_WINDOW, base,
                           (uint64_t)cpu->base.dims.slots * window_layers * cpu->plan->ring_pages * cpu->page_bytes);
}

static void bind_activations(struct nib_cpu *cpu, void *const *base)
{
    const struct nib_shape *s = cpu->base.shape;
    struct nib_cpu_acts *a = &cpu->a;
    const uint64_t rows = cpu->base.dims.step_rows_max, picks = rows * s->experts_used;
    a->x = whole(cpu, NIB_R_X, base, rows * s->hidden * 4);
    a->normed = whole(cpu, NIB_R_NORMED, base, rows * s->hidden * 4);
    uint64_t input = rows * cpu->k->acts_bytes(s->hidden);
    if (input < rows * cpu->k->acts_bytes(nib_q_dim(s)))
        input = rows * cpu->k->acts_bytes(nib_q_dim(s));
    if (input < picks * cpu->k->acts_bytes(s->intermediate))
        input = picks * cpu->k->acts_bytes(s->intermediate);
    a->input = whole(cpu, NIB_R_ACTS, base, input);
    a->qkv = whole(cpu, NIB_R_QKV_OUT, base, rows * nib_qkv_dim(s) * 4);
    a->attn = whole(cpu, NIB_R_ATTN, base, rows * nib_q_dim(s) * 4);
    a->up = whole(cpu, NIB_R_UP, base, picks * s->intermediate * 8);
    a->gated = whole(cpu, NIB_R_GATED, base, picks * s->intermediate * 4);
    a->down = whole(cpu, NIB_R_DOWN, base, picks * s->hidden * 4);
    a->logits = whole(cpu, NIB_R_LOGITS, base, nib_min_u64(nib_want_rows_max(&cpu->base.dims), rows) * s->vocab * 4);
    struct carver rope = carver_of(cpu, NIB_R_ROPE, -1, base);
    a->cos = piece(&rope, rows * NIB_ROPE_PAIRS * 4);
    a->sin = piece(&rope, rows * NIB_ROPE_PAIRS * 4);
}

static void bind_route(struct nib_cpu *cpu, void *const *base)
{
    const struct nib_shape *s = cpu->base.shape;
    const uint64_t rows = cpu->base.dims.step_rows_max, picks = rows * s->experts_used;
    struct carver c = carver_of(cpu, NIB_R_ROUTE, -1, base);
    cpu->route.logits = piece(&c, rows * s->experts * 4);
    cpu->route.expert = piece(&c, picks * 4);
    cpu->route.weight = piece(&c, picks * 4);
    cpu->route.place = piece(&c, picks * 4);
    cpu->route.row = piece(&c, picks * 4);
}

static void bind_threads(struct nib_cpu *cpu, void *const *base)
{
    const uint32_t threads = cpu->plan->threads;
    const struct nib_region *scratch = nib_plan_region(cpu->plan, NIB_R_THREAD, -1);
    NIB_MUST(scratch != NULL);
    cpu->thread_bytes = scratch->bytes / threads / 64 * 64;
    cpu->thread = whole(cpu, NIB_R_THREAD, base, cpu->thread_bytes * threads);
    cpu->sample_bytes = nib_round_up(nib_sample_scratch_bytes(cpu->base.shape->vocab), 64);
    cpu->sample = whole(cpu, NIB_R_SAMPLE, base, cpu->sample_bytes * threads);
}

static void bind_sampler(struct nib_cpu *cpu, const struct nib_cpu_open *open)
{
    const uint32_t vocab = cpu->base.shape->vocab, slots = cpu->base.dims.slots;
    const uint64_t banned_bytes = nib_sample_banned_words(vocab) * 4ull;
    cpu->seen_bytes = nib_round_up(nib_sample_state_bytes(vocab), 64);
    struct carver c = carver_of(cpu, NIB_R_SAMPLER_STATE, -1, open->base);
    cpu->seen = piece(&c, slots * cpu->seen_bytes);
    cpu->banned = piece(&c, banned_bytes);
    if (open->banned)
        memcpy(cpu->banned, open->banned, banned_bytes);
    else
        memset(cpu->banned, 0, banned_bytes);
    for (uint32_t slot = 0; slot < slots; slot++)
        nib_sample_reset(nib_cpu_seen(cpu, slot), vocab);
}

void nib_cpu_bind(struct nib_cpu *cpu, const struct nib_cpu_open *open)
{
    bind_vectors(cpu, open->base);
    bind_matrices(cpu, open->base);
    bind_kv(cpu, open->base);
    bind_activations(cpu, open->base);
    bind_route(cpu, open->base);
    bind_threads(cpu, open->base);
    bind_sampler(cpu, open);
    nib_rope_frequencies(cpu->freq);
}
