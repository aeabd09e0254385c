/* arch/cpu_forward.c: owns the order of a step's phases, layer by layer (gpt-oss model card,
 * arXiv:2508.10925). Every worker runs nib_cpu_forward. A barrier ends each phase; inside a phase
 * workers take items of rows or outputs, and no element depends on how they were cut or who took
 * them. Cannot fail. */
#include "arch/cpu_state.h"
#include "core/mx.h"

static const struct nib_row *step_row(const struct nib_cpu *cpu, uint32_t row)
{
    return &cpu->step->rows[cpu->order[row]];
}

static void embed(struct nib_cpu *cpu, uint32_t row)
{
    const uint32_t hidden = cpu->base.shape->hidden;
    const uint16_t *from = cpu->embed + (uint64_t)nib_cpu_token(cpu, step_row(cpu, row)) * hidden;
    float *x = cpu->a.x + (uint64_t)row * hidden;
    for (uint32_t i = 0; i < hidden; i++)
        x[i] = nib_bf16_decode(from[i]);
    uint64_t at = (uint64_t)row * NIB_ROPE_PAIRS;
    nib_rope_table(cpu->freq, step_row(cpu, row)->pos, cpu->a.cos + at, cpu->a.sin + at);
}

void nib_cpu_norm_rows(struct nib_cpu *cpu, const uint16_t *w, uint32_t first, uint32_t end, uint32_t to)
{
    const uint32_t hidden = cpu->base.shape->hidden;
    float *normed = cpu->a.normed + (uint64_t)first * hidden;
    for (uint32_t r = first; r < end; r++)
        cpu->k->rmsnorm(normed + (uint64_t)(r - first) * hidden, cpu->a.x + (uint64_t)r * hidden, w, hidden);
    cpu->k->acts_prep(cpu->a.input + to * cpu->k->acts_bytes(hidden), normed, hidden, end - first, hidden);
}

/* x = embedding, or x += experts of the layer before; then the layer's normed input. */
static void begin_layer(struct nib_cpu *cpu, uint32_t layer)
{
    struct nib_cpu_share share = nib_cpu_share_rows(cpu, cpu->rows);
    uint32_t first, end;
    while (nib_cpu_take(cpu, share, cpu->rows, &first, &end)) {
        for (uint32_t r = first; r < end; r++) {
            if (layer == 0)
                embed(cpu, r);
            else
                nib_cpu_combine(cpu, r);
        }
        nib_cpu_norm_rows(cpu, cpu->layer[layer].attn_norm, first, end, first);
    }
    nib_pool_barrier(&cpu->pool);
}

static void qkv(struct nib_cpu *cpu, uint32_t worker, const struct nib_cpu_layer *layer)
{
    const struct nib_shape *s = cpu->base.shape;
    struct nib_matmul mm = {.w = layer->qkv, .x = cpu->a.input, .bias = layer->qkv_bias, .y = cpu->a.qkv};
    mm.ldy = mm.n = nib_qkv_dim(s);
    mm.k = s->hidden;
    mm.m = cpu->rows;
    nib_cpu_dense(cpu, worker, &mm, cpu->decode_rows, NULL);
    nib_pool_barrier(&cpu->pool);
}

/* Where a slot's keys and values of one layer lie. Even layers keep a ring of pages a slot, odd
 * ones use the pages of the slot's table; layer / 2 counts the layers of either kind. */
struct kv_place {
    uint8_t *first; /* page 0 of the layer */
    const uint32_t *pages;
    uint32_t pages_count;
    uint64_t stride; /* bytes between pages */
};

static struct kv_place find_kv(const struct nib_cpu *cpu, uint32_t layer, uint32_t slot)
{
    const uint32_t full_layers = cpu->base.shape->layers / 2;
    const uint32_t window_layers = cpu->base.shape->layers - full_layers;
    const struct nib_kv_table *table = &cpu->step->tables[slot];
    if (!nib_layer_windowed(layer))
        return (struct kv_place){.first = cpu->kv_full + layer / 2 * cpu->page_bytes,
                                 .pages = table->pages,
                                 .pages_count = table->pages_count,
                                 .stride = full_layers * cpu->page_bytes};
    uint64_t rings = (uint64_t)slot * window_layers + layer / 2;
    return (struct kv_place){.first = cpu->kv_window + rings * cpu->plan->ring_pages * cpu->page_bytes,
                             .pages = cpu->ring,
                             .pages_count = cpu->plan->ring_pages,
                             .stride = cpu->page_bytes};
}

/* Rotates a row's queries and keys and stores its keys and values. */
static void rotate_row(struct nib_cpu *cpu, uint32_t layer, uint32_t row)
{
    const struct nib_shape *s = cpu->base.shape;
    const struct nib_row *at = step_row(cpu, row);
    const float *cos = cpu->a.cos + (uint64_t)row * NIB_ROPE_PAIRS, *sin = cpu->a.sin + (uint64_t)row * NIB_ROPE_PAIRS;
    float *q = cpu->a.qkv + (uint64_t)row * nib_qkv_dim(s);
    float *k = q + nib_q_dim(s), *v = k + nib_kv_dim(s);
    cpu->k->rope(q, s->heads, cos, sin);
    cpu->k->rope(k, s->kv_heads, cos, sin);
    struct kv_place kv = find_kv(cpu, layer, at->slot);
    uint64_t page = kv.pages[at->pos / NIB_KV_PAGE_TOKENS % kv.pages_count];
    cpu->kv_put(kv.first + page * kv.stride, s->kv_heads, at->pos % NIB_KV_PAGE_TOKENS, k, v);
}

static void rotate(struct nib_cpu *cpu, uint32_t layer)
{
    struct nib_cpu_share share = nib_cpu_share_rows(cpu, cpu->rows);
    uint32_t first, end;
    while (nib_cpu_take(cpu, share, cpu->rows, &first, &end))
        for (uint32_t r = first; r < end; r++)
            rotate_row(cpu, layer, r);
    nib_pool_barrier(&cpu->pool);
}

/* Items are (span, KV head), last spans first: in a prefill they see the most keys. */
static void attend(struct nib_cpu *cpu, uint32_t worker, uint32_t layer)
{
    const struct nib_shape *s = cpu->base.shape;
    const uint32_t items = cpu->spans_count * s->kv_heads;
    uint32_t item;
    while ((item = nib_pool_take(&cpu->pool)) < items) {
        const struct nib_cpu_span *span = &cpu->spans[cpu->spans_count - 1 - item / s->kv_heads];
        const struct nib_row *at = step_row(cpu, span->row);
        struct kv_place kv = find_kv(cpu, layer, at->slot);
        struct nib_attn attn = {.q = cpu->a.qkv + (uint64_t)span->row * nib_qkv_dim(s),
                                .out = cpu->a.attn + (uint64_t)span->row * nib_q_dim(s),
                                .kv = kv.first,
                                .pages = kv.pages,
                                .sinks = cpu->layer[layer].sinks,
                                .scratch = cpu->thread + worker * cpu->thread_bytes,
                                .page_stride = kv.stride,
                                .ldq = nib_qkv_dim(s),
                                .ldo = nib_q_dim(s),
                                .pages_count = kv.pages_count,
                                .rows = span->rows,
                                .pos0 = at->pos,
                                .window = nib_layer_windowed(layer) ? s->window : 0,
                                .kv_heads = s->kv_heads,
                                .h0 = item % s->kv_heads,
                                .h1 = item % s->kv_heads + 1,
                                .form = cpu->plan->kv};
        cpu->k->attn(&attn);
    }
    nib_pool_barrier(&cpu->pool);
}

/* x += attention output W^T + b. The product's own output passes through a.normed. */
static void attn_out(struct nib_cpu *cpu, uint32_t worker, const struct nib_cpu_layer *layer)
{
    const struct nib_shape *s = cpu->base.shape;
    const uint32_t q_dim = nib_q_dim(s);
    struct nib_cpu_share share = nib_cpu_share_rows(cpu, cpu->rows);
    uint32_t first, end;
    while (nib_cpu_take(cpu, share, cpu->rows, &first, &end))
        cpu->k->acts_prep(cpu->a.input + first * cpu->k->acts_bytes(q_dim), cpu->a.attn + (uint64_t)first * q_dim,
                          q_dim, end - first, q_dim);
    nib_pool_barrier(&cpu->pool);
    struct nib_matmul mm = {.w = layer->out, .x = cpu->a.input, .bias = layer->out_bias, .y = cpu->a.normed};
    mm.ldy = mm.n = s->hidden;
    mm.k = q_dim;
    mm.m = cpu->rows;
    nib_cpu_dense(cpu, worker, &mm, cpu->decode_rows, cpu->a.x);
    nib_pool_barrier(&cpu->pool);
}

static void norm_mlp(struct nib_cpu *cpu, const struct nib_cpu_layer *layer)
{
    struct nib_cpu_share share = nib_cpu_share_rows(cpu, cpu->rows);
    uint32_t first, end;
    while (nib_cpu_take(cpu, share, cpu->rows, &first, &end))
        nib_cpu_norm_rows(cpu, layer->mlp_norm, first, end, first);
    nib_pool_barrier(&cpu->pool);
}

void nib_cpu_forward(void *arg, uint32_t worker)
{
    struct nib_cpu *cpu = arg;
    for (uint32_t l = 0; l < cpu->base.shape->layers; l++) {
        const struct nib_cpu_layer *layer = &cpu->layer[l];
        begin_layer(cpu, l);
        qkv(cpu, worker, layer);
        rotate(cpu, l);
        attend(cpu, worker, l);
        attn_out(cpu, worker, layer);
        norm_mlp(cpu, layer);
        nib_cpu_moe(cpu, worker, layer);
    }
    if (cpu->wanted)
        nib_cpu_head(cpu, worker);
}
