/* core/plan_layout.c: owns the list of regions and the formula of each one's size.
 *
 * Whole-life regions are laid end to end; scratch regions are placed at the lowest offset where no region that lives in
 * one of the same phases lies. Sizes come from the shape table and the row's pure functions, never from a file, and stay
 * far below 2^63 by the caps in core/limits.h. Limits: NIB_MAX_REGIONS. Any thread. Cannot fail. */
#include "core/plan_layout.h"

#include "core/arith.h"
#include "core/kv.h"
#include "core/sample.h"
#include "core/sched.h"

enum { REGION_ALIGN = 4096, PHASE_LAST = NIB_PHASE_COUNT - 1 };

#define STAGING_BYTES (64ull << 20) /* 32 slots of 2 MiB: see gpu/upload.h */
#define ENGINE_BYTES  (2ull << 20)  /* the engine's own structs: step, outputs, lists */

struct builder {
    const struct nib_plan_request *request;
    const struct nib_row_facts *row;
    const struct nib_shape *shape;
    struct nib_plan *plan;
};

static bool phases_meet(const struct nib_region *a, const struct nib_region *b)
{
    return a->phase_first <= b->phase_last && b->phase_first <= a->phase_last;
}

/* Lowest offset >= `from` where `region` touches no placed region of its space that lives at the same time. */
static uint64_t place(const struct nib_plan *plan, const struct nib_region *region)
{
    uint64_t offset = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t i = 0; i < plan->regions_count; i++) {
            const struct nib_region *other = &plan->regions[i];
            if (other->space != region->space || !phases_meet(other, region))
                continue;
            if (offset < other->offset + other->bytes && other->offset < offset + region->bytes) {
                offset = nib_round_up(other->offset + other->bytes, region->align);
                moved = true;
            }
        }
    }
    return offset;
}

static void add(struct builder *b, struct nib_region region)
{
    struct nib_plan *plan = b->plan;
    if (region.bytes == 0)
        return;
    NIB_MUST(plan->regions_count < NIB_MAX_REGIONS);
    region.align = REGION_ALIGN;
    region.bytes = nib_round_up(region.bytes, REGION_ALIGN);
    region.offset = place(plan, &region);
    plan->regions[plan->regions_count++] = region;
    uint64_t end = region.offset + region.bytes;
    if (end > plan->arena_bytes[region.space])
        plan->arena_bytes[region.space] = end;
}

static void add_life(struct builder *b, enum nib_region_kind kind, enum nib_space space, int32_t layer, uint64_t bytes)
{
    add(b, (struct nib_region){.kind = kind, .space = space, .layer = layer, .phase_last = PHASE_LAST, .bytes = bytes});
}

static void add_scratch(struct builder *b, enum nib_region_kind kind, enum nib_phase first, enum nib_phase last,
                        uint64_t bytes)
{
    add(b, (struct nib_region){.kind = kind,
                               .space = b->row->gpu ? NIB_SPACE_DEVICE : NIB_SPACE_HOST,
                               .layer = -1,
                               .phase_first = (uint8_t)first,
                               .phase_last = (uint8_t)last,
                               .bytes = bytes});
}

/* Norms, biases and sinks of one layer, each padded to 64 bytes. */
static uint64_t small_layer_bytes(const struct nib_shape *s)
{
    const uint64_t counts[] = {s->hidden,
                               nib_qkv_dim(s),
                               s->heads,
                               s->hidden,
                               s->hidden,
                               s->experts,
                               (uint64_t)s->experts * 2 * s->intermediate,
                               (uint64_t)s->experts * s->hidden};
    uint64_t bytes = 0;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        bytes += nib_round_up(counts[i] * 2, 64);
    return bytes;
}

uint64_t nib_plan_dense_bytes(const struct nib_row_facts *row, enum nib_dense dense, uint32_t n, uint32_t k)
{
    return dense == NIB_DENSE_MXFP8 ? row->mxfp8_bytes(n, k) : row->dense_bytes(n, k);
}

uint64_t nib_plan_head_bytes(const struct nib_row_facts *row, enum nib_dense dense, uint32_t n, uint32_t k)
{
    return dense == NIB_DENSE_MXFP8 ? row->mxfp8_bytes(n, k) : row->head_bytes(n, k);
}

uint64_t nib_plan_page_bytes(const struct nib_row_facts *row, enum nib_kv_form kv, uint32_t kv_heads)
{
    return kv == NIB_KV_FP8 ? row->kv8_page_bytes(kv_heads) : row->kv_page_bytes(kv_heads);
}

static uint64_t expert_bytes(const struct nib_row_facts *row, const struct nib_shape *s)
{
    return row->mx_bytes(2 * s->intermediate, s->hidden) + row->mx_bytes(s->hidden, s->intermediate);
}

static void add_weights(struct builder *b)
{
    const struct nib_shape *s = b->shape;
    const struct nib_row_facts *row = b->row;
    enum nib_space near = row->gpu ? NIB_SPACE_DEVICE : NIB_SPACE_HOST;
    enum nib_space embed = b->plan->embed_spilled ? NIB_SPACE_PINNED : near;
    uint64_t table = (uint64_t)s->vocab * s->hidden * 2;
    add_life(b, NIB_R_EMBED, embed, -1, table);
    add_life(b, NIB_R_LM_HEAD, near, -1, nib_plan_head_bytes(row, b->plan->dense, s->vocab, s->hidden));
    add_life(b, NIB_R_SMALL, near, -1, s->layers * small_layer_bytes(s) + nib_round_up(s->hidden * 2ull, 64));
    add_life(b, NIB_R_QKV, near, -1, s->layers * nib_plan_dense_bytes(row, b->plan->dense, nib_qkv_dim(s), s->hidden));
    add_life(b, NIB_R_OUT, near, -1, s->layers * nib_plan_dense_bytes(row, b->plan->dense, s->hidden, nib_q_dim(s)));
    add_life(b, NIB_R_ROUTER, near, -1, s->layers * row->dense_bytes(s->experts, s->hidden));
    for (uint32_t layer = 0; layer < s->layers; layer++) {
        bool spilled = layer >= s->layers - b->plan->spilled_layers;
        add_life(b, NIB_R_EXPERTS, spilled ? NIB_SPACE_PINNED : near, (int32_t)layer,
                 s->experts * expert_bytes(row, s));
    }
}

static void add_kv(struct builder *b)
{
    const struct nib_shape *s = b->shape;
    const struct nib_engine_dims *d = &b->plan->dims;
    enum nib_space near = b->row->gpu ? NIB_SPACE_DEVICE : NIB_SPACE_HOST;
    uint64_t page = nib_plan_page_bytes(b->row, b->plan->kv, s->kv_heads);
    uint32_t full_layers = s->layers / 2;
    uint32_t window_layers = s->layers - full_layers;
    b->plan->ring_pages = nib_kv_ring_pages(s->window, d->step_rows_max);
    add_life(b, NIB_R_KV_FULL, near, -1, (uint64_t)d->kv_pages * full_layers * page);
    add_life(b, NIB_R_KV_WINDOW, near, -1, (uint64_t)d->slots * window_layers * b->plan->ring_pages * page);
}

static uint64_t max3(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t most = a > b ? a : b;
    return most > c ? most : c;
}

static void add_cpu_activations(struct builder *b)
{
    const struct nib_shape *s = b->shape;
    const struct nib_row_facts *row = b->row;
    const struct nib_engine_dims *d = &b->plan->dims;
    uint64_t rows = d->step_rows_max;
    uint64_t picks = rows * s->experts_used;
    uint64_t acts = max3(rows * row->acts_bytes(s->hidden), rows * row->acts_bytes(nib_q_dim(s)),
                         picks * row->acts_bytes(s->intermediate));
    uint64_t route =
        nib_round_up(rows * s->experts * 4, 64) + 4 * nib_round_up(picks * 4, 64) + (s->experts + 1) * 8ull;
    uint64_t head_rows = nib_min_u64(nib_want_rows_max(d), rows);
    uint64_t widest = max3(s->hidden, nib_q_dim(s), s->intermediate);
    uint64_t thread = row->gemm_scratch_bytes((uint32_t)widest);
    uint64_t attn = row->attn_scratch_bytes(d->ctx_tokens);
    thread = nib_round_up(thread > attn ? thread : attn, REGION_ALIGN);

    add_scratch(b, NIB_R_X, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * s->hidden * 4);
    add_scratch(b, NIB_R_NORMED, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * s->hidden * 4);
    add_scratch(b, NIB_R_ACTS, NIB_PHASE_QKV, NIB_PHASE_HEAD, acts);
    add_scratch(b, NIB_R_ROPE, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * NIB_HEAD_DIM * 4);
    add_scratch(b, NIB_R_THREAD, NIB_PHASE_QKV, NIB_PHASE_HEAD, b->plan->threads * thread);
    add_scratch(b, NIB_R_QKV_OUT, NIB_PHASE_QKV, NIB_PHASE_ATTN, rows * nib_qkv_dim(s) * 4);
    add_scratch(b, NIB_R_ATTN, NIB_PHASE_ATTN, NIB_PHASE_OUT, rows * nib_q_dim(s) * 4);
    add_scratch(b, NIB_R_ROUTE, NIB_PHASE_ROUTE, NIB_PHASE_DOWN, route);
    add_scratch(b, NIB_R_UP, NIB_PHASE_UP, NIB_PHASE_UP, picks * 2 * s->intermediate * 4);
    add_scratch(b, NIB_R_GATED, NIB_PHASE_UP, NIB_PHASE_DOWN, picks * s->intermediate * 4);
    add_scratch(b, NIB_R_DOWN, NIB_PHASE_DOWN, NIB_PHASE_DOWN, picks * s->hidden * 4);
    add_scratch(b, NIB_R_LOGITS, NIB_PHASE_HEAD, NIB_PHASE_HEAD, head_rows * s->vocab * 4);
    add_scratch(b, NIB_R_SAMPLE, NIB_PHASE_HEAD, NIB_PHASE_HEAD, b->plan->threads * nib_sample_scratch_bytes(s->vocab));
}

/* In the order of arch/gpu_abi.h. Only decode rows, one a slot at most, split their keys. */
static void add_gpu_activations(struct builder *b)
{
    const struct nib_shape *s = b->shape;
    const struct nib_row_facts *row = b->row;
    const struct nib_engine_dims *d = &b->plan->dims;
    uint64_t rows = d->step_rows_max, picks = rows * s->experts_used;
    uint64_t widest = max3(s->hidden, nib_q_dim(s), 0);
    uint64_t splits = (uint64_t)d->slots * s->heads * row->splits_max(d->ctx_tokens);
    uint64_t head_rows = nib_min_u64(d->slots, rows);

    add_scratch(b, NIB_R_STAGING, NIB_PHASE_LOAD, NIB_PHASE_LOAD, STAGING_BYTES);
    add_scratch(b, NIB_R_X, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * s->hidden * 4);
    add_scratch(b, NIB_R_ACTS, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * widest * 2);
    add_scratch(b, NIB_R_ROPE, NIB_PHASE_QKV, NIB_PHASE_HEAD, rows * NIB_HEAD_DIM * 4);
    add_scratch(b, NIB_R_THREAD, NIB_PHASE_QKV, NIB_PHASE_HEAD, row->scratch_bytes(s, d->slots, d->step_rows_max));
    add_scratch(b, NIB_R_QKV_OUT, NIB_PHASE_QKV, NIB_PHASE_ATTN, rows * nib_q_dim(s) * 2);
    if (b->plan->kv == NIB_KV_FP8)
        add_scratch(b, NIB_R_KV_NEW, NIB_PHASE_QKV, NIB_PHASE_ATTN, rows * 2 * nib_kv_dim(s) * 2);
    add_scratch(b, NIB_R_ATTN, NIB_PHASE_ATTN, NIB_PHASE_ATTN, splits * (2 + NIB_HEAD_DIM) * 4);
    /* all phases: it holds a ticket that must find the zero it left */
    add_scratch(b, NIB_R_ROUTE, NIB_PHASE_QKV, NIB_PHASE_HEAD, row->route_bytes(d->step_rows_max, s->experts));
    add_scratch(b, NIB_R_GATED, NIB_PHASE_UP, NIB_PHASE_DOWN, picks * s->intermediate * 2);
    add_scratch(b, NIB_R_DOWN, NIB_PHASE_DOWN, NIB_PHASE_DOWN, picks * s->hidden * 4);
    add_scratch(b, NIB_R_LOGITS, NIB_PHASE_HEAD, NIB_PHASE_HEAD, head_rows * s->vocab * 4);
}

/* Needs a full layer for each window layer and windows of whole pages, as every shape in core/model.c has. */
static struct nib_prefix_config prefix_config(const struct nib_plan_request *r, const struct nib_shape *s)
{
    struct nib_prefix_config config = {.on = !r->prefix_off && s->layers % 2 == 0,
                                       .shared = r->prefix_shared,
                                       .window = s->window,
                                       .begin_token = s->special_base + NIB_TOK_START};
    config.on = config.on && nib_prefix_allowed(&config);
    return config;
}

/* Every slot and one waiting request may hold a prompt of the whole context, every other that waits one of usual length. */
static struct nib_sched_config sched_config(const struct nib_plan_request *r, const struct nib_plan *plan)
{
    const struct nib_engine_dims *d = &plan->dims;
    uint64_t longest = nib_round_up(d->ctx_tokens, NIB_PROMPT_CHUNK_TOKENS);
    uint32_t queue = r->queue_max ? r->queue_max : NIB_PLAN_QUEUE;
    uint64_t prompt_tokens = (d->slots + 1ull) * longest + queue * nib_min_u64(longest, NIB_WAITING_PROMPT_TOKENS);
    /* a GPU reads a whole step's prompt rows faster than two halves, and a CPU's step is long */
    const uint32_t beside = plan->row->gpu || d->step_rows_max == 1 ? d->step_rows_max : d->step_rows_max / 2;
    return (struct nib_sched_config){
        .dims = *d,
        .vocab = plan->shape->vocab,
        .queue_max = queue,
        .prompt_tokens_max = (uint32_t)prompt_tokens,
        .prefill_rows_max = r->prefill_rows_max ? r->prefill_rows_max : beside,
        .draft_tokens = r->draft_tokens,
        .prefix = prefix_config(r, plan->shape),
    };
}

static void add_control(struct builder *b)
{
    const struct nib_engine_dims *d = &b->plan->dims;
    enum nib_space near = b->row->gpu ? NIB_SPACE_DEVICE : NIB_SPACE_HOST;
    uint64_t banned = nib_div_up(b->shape->vocab, 32) * 4;
    add_life(b, NIB_R_SAMPLER_STATE, near, -1, d->slots * nib_sample_state_bytes(b->shape->vocab) + banned);
    add_life(b, NIB_R_ENGINE, NIB_SPACE_HOST, -1, ENGINE_BYTES);
    b->plan->sched = sched_config(b->request, b->plan);
    add_life(b, NIB_R_SCHED, NIB_SPACE_HOST, -1, nib_sched_bytes(&b->plan->sched));
    add_life(b, NIB_R_TOKENIZER, NIB_SPACE_HOST, -1, b->request->tokenizer_bytes);
    add_life(b, NIB_R_FRONT, NIB_SPACE_HOST, -1, b->request->front_bytes);
    if (b->row->gpu) {
        add_life(b, NIB_R_STEP, near, -1, b->row->step_bytes(d->slots, d->ctx_tokens));
        add_life(b, NIB_R_READ_RING, NIB_SPACE_PINNED, -1, STAGING_BYTES);
        add_life(b, NIB_R_MAILBOX, NIB_SPACE_PINNED, -1, b->row->mailbox_bytes(d->slots, d->ctx_tokens));
    }
}

static bool is_weight(enum nib_region_kind kind)
{
    return kind <= NIB_R_EXPERTS;
}

/* A GPU's kernels have room for a row a slot; drafts take those that no sequence needs. */
static uint32_t want_rows(const struct nib_plan_request *r, uint32_t slots)
{
    return r->row->gpu ? slots : (uint32_t)nib_min_u64(NIB_MAX_SLOTS, slots + r->draft_tokens);
}

void nib_plan_layout(const struct nib_plan_request *request, struct nib_plan *plan)
{
    struct builder b = {.request = request, .row = request->row, .shape = request->shape, .plan = plan};
    plan->regions_count = 0;
    plan->weight_bytes = 0;
    plan->kv_bytes = 0;
    plan->dims.want_rows_max = want_rows(request, plan->dims.slots);
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        plan->arena_bytes[s] = 0;
    add_weights(&b);
    add_kv(&b);
    add_control(&b);
    if (b.row->gpu)
        add_gpu_activations(&b);
    else
        add_cpu_activations(&b);
    for (uint32_t i = 0; i < plan->regions_count; i++) {
        const struct nib_region *r = &plan->regions[i];
        if (is_weight(r->kind))
            plan->weight_bytes += r->bytes;
        if (r->kind == NIB_R_KV_FULL || r->kind == NIB_R_KV_WINDOW)
            plan->kv_bytes += r->bytes;
    }
}

const char *nib_region_name(enum nib_region_kind kind)
{
    static const char *const names[NIB_R_KIND_COUNT] = {
        [NIB_R_EMBED] = "embedding",
        [NIB_R_LM_HEAD] = "lm_head",
        [NIB_R_SMALL] = "norms and biases",
        [NIB_R_QKV] = "qkv",
        [NIB_R_OUT] = "attention out",
        [NIB_R_ROUTER] = "router",
        [NIB_R_EXPERTS] = "experts",
        [NIB_R_KV_FULL] = "kv full",
        [NIB_R_KV_WINDOW] = "kv window",
        [NIB_R_X] = "residual",
        [NIB_R_NORMED] = "normed",
        [NIB_R_ACTS] = "matmul input",
        [NIB_R_QKV_OUT] = "qkv out",
        [NIB_R_ATTN] = "attention",
        [NIB_R_ROUTE] = "routing",
        [NIB_R_UP] = "expert up",
        [NIB_R_GATED] = "expert gated",
        [NIB_R_DOWN] = "expert down",
        [NIB_R_LOGITS] = "logits",
        [NIB_R_SAMPLE] = "sampler scratch",
        [NIB_R_THREAD] = "thread scratch",
        [NIB_R_ROPE] = "rope",
        [NIB_R_STAGING] = "staging",
        [NIB_R_READ_RING] = "read ring",
        [NIB_R_STEP] = "step",
        [NIB_R_MAILBOX] = "mailbox",
        [NIB_R_SAMPLER_STATE] = "sampler",
        [NIB_R_ENGINE] = "engine",
        [NIB_R_SCHED] = "scheduler",
        [NIB_R_TOKENIZER] = "tokenizer",
        [NIB_R_FRONT] = "front",
        [NIB_R_KV_NEW] = "new keys and values",
    };
    return (unsigned)kind < NIB_R_KIND_COUNT ? names[kind] : "unknown";
}
