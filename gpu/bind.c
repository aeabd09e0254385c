/* gpu/bind.c: owns where everything of the GPU engine lies inside the plan's regions: the machine block.
 * Sizes are core/plan_layout.c's; a disagreement stops the process. Boot thread. */
#include <string.h>

#include "core/arith.h"
#include "core/sample.h"
#include "gpu/state.h"

/* Hands out the pieces of one region, by offset from the region's start. */
struct carver {
    nib_gpu_ptr at, end;
    uint64_t align;
};

static struct carver carver_of(const struct nib_gpu_engine *e, enum nib_region_kind kind, int32_t layer, uint64_t align)
{
    const struct nib_region *region = nib_plan_region(e->plan, kind, layer);
    NIB_MUST(region != NULL && region->space != NIB_SPACE_HOST);
    nib_gpu_ptr start = e->gpu->base[region->space] + region->offset;
    return (struct carver){.at = start, .end = start + region->bytes, .align = align};
}

static nib_gpu_ptr piece(struct carver *c, uint64_t bytes)
{
    nib_gpu_ptr start = c->at;
    bytes = nib_round_up(bytes, c->align);
    NIB_MUST(bytes <= c->end - c->at);
    c->at += bytes;
    return start;
}

static nib_gpu_ptr whole(const struct nib_gpu_engine *e, enum nib_region_kind kind, uint64_t bytes)
{
    if (bytes == 0)
        return 0;
    struct carver c = carver_of(e, kind, -1, 64);
    return piece(&c, bytes);
}

static void bind_shape(struct nib_gpu_engine *e)
{
    const struct nib_engine_dims *d = &e->base.dims;
    struct nib_gpu_machine *m = &e->machine;
    nib_gpu_machine_model(m, e->base.shape);
    m->slots = d->slots;
    m->ctx_pages = (uint32_t)nib_div_up(d->ctx_tokens, NIB_KV_PAGE_TOKENS);
    m->ring_pages = e->plan->ring_pages;
    m->step_rows_max = d->step_rows_max;
    m->splits_max = e->k->splits_max(d->ctx_tokens);
    m->kv_pages = d->kv_pages;
}

static void bind_vectors(struct nib_gpu_engine *e)
{
    const struct nib_shape *s = e->base.shape;
    struct carver c = carver_of(e, NIB_R_SMALL, -1, 64);
    for (uint32_t l = 0; l < s->layers; l++) {
        struct nib_gpu_layer *layer = &e->machine.layer[l];
        layer->attn_norm = piece(&c, s->hidden * 2ull);
        layer->qkv_bias = piece(&c, nib_qkv_dim(s) * 2ull);
        layer->sinks = piece(&c, s->heads * 2ull);
        layer->out_bias = piece(&c, s->hidden * 2ull);
        layer->mlp_norm = piece(&c, s->hidden * 2ull);
        layer->router_bias = piece(&c, s->experts * 2ull);
        layer->up_bias = piece(&c, s->experts * 4ull * s->intermediate);
        layer->down_bias = piece(&c, 2ull * s->experts * s->hidden);
    }
    e->machine.final_norm = piece(&c, s->hidden * 2ull);
}

static uint64_t dense_bytes(const struct nib_gpu_engine *e, uint32_t n, uint32_t k)
{
    return nib_plan_dense_bytes(e->plan->row, e->plan->dense, n, k);
}

static void bind_matrices(struct nib_gpu_engine *e)
{
    const struct nib_shape *s = e->base.shape;
    const struct nib_gpu_kernels *k = e->k;
    struct nib_gpu_machine *m = &e->machine;
    m->embed = whole(e, NIB_R_EMBED, (uint64_t)s->vocab * s->hidden * 2);
    m->lm_head = whole(e, NIB_R_LM_HEAD, nib_plan_head_bytes(e->plan->row, e->plan->dense, s->vocab, s->hidden));
    struct carver qkv = carver_of(e, NIB_R_QKV, -1, 1), out = carver_of(e, NIB_R_OUT, -1, 1);
    struct carver router = carver_of(e, NIB_R_ROUTER, -1, 1);
    for (uint32_t l = 0; l < s->layers; l++) {
        struct carver experts = carver_of(e, NIB_R_EXPERTS, (int32_t)l, 1);
        m->layer[l].qkv = piece(&qkv, dense_bytes(e, nib_qkv_dim(s), s->hidden));
        m->layer[l].out = piece(&out, dense_bytes(e, s->hidden, nib_q_dim(s)));
        m->layer[l].router = piece(&router, k->dense_bytes(s->experts, s->hidden));
        m->layer[l].up = piece(&experts, s->experts * k->mx_bytes(2 * s->intermediate, s->hidden));
        m->layer[l].down = piece(&experts, s->experts * k->mx_bytes(s->hidden, s->intermediate));
    }
}

static void bind_kv(struct nib_gpu_engine *e)
{
    const struct nib_shape *s = e->base.shape;
    const struct nib_engine_dims *d = &e->base.dims;
    struct nib_gpu_machine *m = &e->machine;
    m->page_stride = nib_plan_page_bytes(e->plan->row, e->plan->kv, s->kv_heads);
    struct carver full = carver_of(e, NIB_R_KV_FULL, -1, 1), window = carver_of(e, NIB_R_KV_WINDOW, -1, 1);
    for (uint32_t l = 0; l < s->layers; l++)
        m->layer[l].kv = nib_layer_windowed(l) ? piece(&window, (uint64_t)d->slots * m->ring_pages * m->page_stride)
                                               : piece(&full, d->kv_pages * m->page_stride);
}

static void bind_activations(struct nib_gpu_engine *e)
{
    const struct nib_shape *s = e->base.shape;
    const struct nib_engine_dims *d = &e->base.dims;
    struct nib_gpu_machine *m = &e->machine;
    const uint64_t rows = d->step_rows_max, picks = rows * s->experts_used;
    const uint64_t widest = s->hidden > nib_q_dim(s) ? s->hidden : nib_q_dim(s);
    m->x = whole(e, NIB_R_X, rows * s->hidden * 4);
    m->acts = whole(e, NIB_R_ACTS, rows * widest * 2);
    m->q = whole(e, NIB_R_QKV_OUT, rows * nib_q_dim(s) * 2);
    if (e->plan->kv == NIB_KV_FP8)
        m->kv_new = whole(e, NIB_R_KV_NEW, rows * 2 * nib_kv_dim(s) * 2);
    m->partial = whole(e, NIB_R_ATTN, (uint64_t)d->slots * s->heads * m->splits_max * (2 + NIB_HEAD_DIM) * 4);
    m->rope = whole(e, NIB_R_ROPE, rows * NIB_HEAD_DIM * 4);
    m->route = whole(e, NIB_R_ROUTE, e->k->route_bytes(d->step_rows_max, s->experts));
    m->gated = whole(e, NIB_R_GATED, picks * s->intermediate * 2);
    m->down = whole(e, NIB_R_DOWN, picks * s->hidden * 4);
    m->logits = whole(e, NIB_R_LOGITS, nib_min_u64(d->slots, rows) * s->vocab * 4);
    m->scratch_bytes = e->k->scratch_bytes(s, d->slots, d->step_rows_max);
    m->scratch = whole(e, NIB_R_THREAD, m->scratch_bytes);
}

static void bind_control(struct nib_gpu_engine *e)
{
    struct nib_gpu_machine *m = &e->machine;
    const uint64_t tables = (uint64_t)m->slots * m->ctx_pages * sizeof(uint32_t);
    struct carver step = carver_of(e, NIB_R_STEP, -1, NIB_GPU_PIECE_ALIGN);
    e->machine_at = piece(&step, sizeof *m);
    m->step = piece(&step, sizeof(struct nib_gpu_step));
    m->sampling = piece(&step, m->slots * sizeof(struct nib_sampling));
    m->last = piece(&step, m->slots * sizeof(uint32_t));
    m->tables = piece(&step, tables);
    m->repack = piece(&step, sizeof(struct nib_gpu_repack));
    m->next_serial = piece(&step, sizeof(uint64_t));
    struct carver state = carver_of(e, NIB_R_SAMPLER_STATE, -1, 4);
    m->seen = piece(&state, m->slots * nib_sample_state_bytes(m->vocab));
    m->banned = piece(&state, nib_sample_banned_words(m->vocab) * 4ull);

    struct carver pinned = carver_of(e, NIB_R_MAILBOX, -1, NIB_GPU_PIECE_ALIGN);
    m->mailbox = piece(&pinned, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_step));
    m->outbox = piece(&pinned, NIB_GPU_MAILBOX * sizeof(struct nib_gpu_result));
    m->host_tables = piece(&pinned, tables);
    m->host_sampling = piece(&pinned, m->slots * sizeof(struct nib_sampling));
    uint8_t *host = e->gpu->pinned;
    const nib_gpu_ptr base = e->gpu->base[NIB_SPACE_PINNED];
    e->mailbox = (struct nib_gpu_step *)(void *)(host + (m->mailbox - base));
    e->outbox = (struct nib_gpu_result *)(void *)(host + (m->outbox - base));
    e->tables = (uint32_t *)(void *)(host + (m->host_tables - base));
    e->sampling = (struct nib_sampling *)(void *)(host + (m->host_sampling - base));
    const struct nib_region *ring = nib_plan_region(e->plan, NIB_R_READ_RING, -1);
    NIB_MUST(ring != NULL);
    e->logits = (float *)(void *)(host + ring->offset);
    e->logits_rows = (uint32_t)(ring->bytes / NIB_MAX_STEPS_AHEAD / m->vocab / sizeof(float));
}

void nib_gpu_bind(struct nib_gpu_engine *e)
{
    e->machine = (struct nib_gpu_machine){0};
    bind_shape(e);
    bind_vectors(e);
    bind_matrices(e);
    bind_kv(e);
    bind_activations(e);
    bind_control(e);
}

static enum nib_err zero_region(struct nib_gpu_engine *e, enum nib_region_kind kind, struct nib_msg *msg)
{
    const struct nib_region *r = nib_plan_region(e->plan, kind, -1);
    if (!r)
        return NIB_OK;
    return NIB_CU(e->cuda, msg, cuMemsetD8Async, e->gpu->base[r->space] + r->offset, 0, r->bytes, e->stream);
}

/* A block on its way to the device, through the start of the read ring, since copies want pinned memory. */
struct parcel {
    nib_gpu_ptr to;
    uint64_t bytes;
    uint8_t *sent, *back;
};

static void pack(struct nib_gpu_engine *e, struct parcel *p, nib_gpu_ptr to, const void *from, uint64_t bytes,
                 uint64_t *used)
{
    const struct nib_region *ring = nib_plan_region(e->plan, NIB_R_READ_RING, -1);
    const uint64_t room = nib_round_up(bytes, 64);
    NIB_MUST(ring && *used + 2 * room <= ring->bytes);
    uint8_t *pinned = e->gpu->pinned + ring->offset + *used;
    *p = (struct parcel){.to = to, .bytes = bytes, .sent = pinned, .back = pinned + room};
    memcpy(p->sent, from, bytes);
    memset(p->back, 0, bytes);
    *used += 2 * room;
}

/* There, and back again to see what arrived: everything the kernels do follows from these blocks. */
static enum nib_err deliver(struct nib_gpu_engine *e, const struct parcel *p, uint32_t count, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    for (uint32_t i = 0; i < count && !err; i++) {
        err = NIB_CU(e->cuda, msg, cuMemcpyHtoDAsync, p[i].to, p[i].sent, p[i].bytes, e->stream);
        if (!err)
            err = NIB_CU(e->cuda, msg, cuMemcpyDtoHAsync, p[i].back, p[i].to, p[i].bytes, e->stream);
    }
    if (!err)
        err = nib_gpu_idle(e, e->step_us_max, msg);
    for (uint32_t i = 0; i < count && !err; i++)
        if (memcmp(p[i].sent, p[i].back, p[i].bytes) != 0)
            err = nib_fail(msg, NIB_E_DEVICE, "bytes of block %u of the machine changed on their way to the GPU", i);
    return err;
}

enum nib_err nib_gpu_bind_upload(struct nib_gpu_engine *e, const uint32_t *banned, struct nib_msg *msg)
{
    static const uint64_t first_serial = 1;
    const struct nib_gpu_machine *m = &e->machine;
    struct parcel parcels[3];
    uint32_t count = 0;
    uint64_t used = 0;
    enum nib_err err = zero_region(e, NIB_R_STEP, msg);
    if (!err)
        err = zero_region(e, NIB_R_SAMPLER_STATE, msg);
    if (err)
        return err;
    pack(e, &parcels[count++], e->machine_at, m, sizeof *m, &used);
    pack(e, &parcels[count++], m->next_serial, &first_serial, sizeof first_serial, &used);
    if (banned)
        pack(e, &parcels[count++], m->banned, banned, nib_sample_banned_words(m->vocab) * 4ull, &used);
    return deliver(e, parcels, count, msg);
}

enum nib_err nib_gpu_bind_zero(struct nib_gpu_engine *e, struct nib_msg *msg)
{
    enum nib_err err = zero_region(e, NIB_R_THREAD, msg);
    return err ? err : zero_region(e, NIB_R_ROUTE, msg);
}
