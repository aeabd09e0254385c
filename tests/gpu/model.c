/* tests/gpu/model.c: owns the random weights of a test machine. One thread; running out of memory ends the program. */
#include "tests/gpu/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"
#include "tests/gpu/random.h"

double model_uniform(uint64_t *seed)
{
    return (double)(random_next(seed) >> 11) * 0x1p-53;
}

/* Sum of four uniforms, variance 1. */
float model_normal(uint64_t *seed)
{
    const uint64_t r = random_next(seed);
    const double sum =
        (double)(r & 0xffff) + (double)(r >> 16 & 0xffff) + (double)(r >> 32 & 0xffff) + (double)(r >> 48);
    return (float)((sum / 65535.0 - 2.0) * 1.7320508);
}

static void *take(uint64_t bytes)
{
    void *p = malloc(bytes);
    if (!p)
        rig_die("out of host memory");
    return p;
}

static uint16_t *random_bf16(uint64_t count, float center, float spread, uint64_t *seed)
{
    uint16_t *p = take(count * 2);
    for (uint64_t i = 0; i < count; i++)
        p[i] = nib_bf16_encode(center + spread * model_normal(seed));
    return p;
}

/* A dense matrix's block to MXFP8. */
static void encode(const uint16_t *block, uint8_t *ret_scale, uint8_t ret_codes[NIB_MX_BLOCK])
{
    float x[NIB_MX_BLOCK];
    for (int i = 0; i < NIB_MX_BLOCK; i++)
        x[i] = nib_bf16_decode(block[i]);
    nib_mxfp8_encode(x, ret_scale, ret_codes);
}

/* Of QKV, attention output or LM head: in the rig's form. */
static uint16_t *random_dense(const struct rig *rig, uint64_t count, float spread, uint64_t *seed)
{
    uint16_t *p = random_bf16(count, 0, spread, seed);
    for (uint64_t i = 0; i < count && rig->dense == NIB_DENSE_MXFP8; i += NIB_MX_BLOCK) {
        uint8_t scale, codes[NIB_MX_BLOCK];
        encode(p + i, &scale, codes);
        nib_mxfp8_decode_bf16(scale, codes, p + i);
    }
    return p;
}

/* [experts] matrices of MXFP4; scales around what makes outputs of order 1. */
static uint8_t *random_mx(uint32_t experts, uint32_t n, uint32_t k, uint64_t *seed)
{
    const uint64_t blocks = (uint64_t)n * k / 2, scales = (uint64_t)n * k / 32;
    uint8_t *p = take(experts * (blocks + scales));
    const int middle = 127 - (int)lround(log2(2.5 * sqrt(k)));
    for (uint32_t e = 0; e < experts; e++) {
        uint8_t *m = p + e * (blocks + scales);
        for (uint64_t i = 0; i < blocks; i += 8) {
            const uint64_t r = random_next(seed);
            memcpy(m + i, &r, 8);
        }
        for (uint64_t i = 0; i < scales; i++)
            m[blocks + i] = (uint8_t)(middle - 2 + (int)(random_next(seed) % 5));
    }
    return p;
}

static nib_cu_ptr send(struct rig *rig, const void *from, uint64_t bytes)
{
    nib_cu_ptr p = rig_take(rig, bytes);
    rig_up(rig, p, from, bytes);
    return p;
}

/* In two pieces, the later first, as the loader may. */
static void repack(struct rig *rig, enum nib_gpu_op op, nib_cu_ptr to, nib_cu_ptr staging, const uint8_t *from,
                   uint32_t n, uint32_t k, enum nib_gpu_matrix matrix)
{
    const uint64_t row = k * 2ull /
                         (op == NIB_GPU_REPACK_MX      ? 4
                          : op == NIB_GPU_REPACK_MXFP8 ? 2
                                                       : 1),
                   scale_row = k / 32;
    const uint32_t cut = n / 2 / 64 * 64;
    const uint8_t *scales = from + n * row;
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? n : cut;
        if (n0 == n1)
            continue;
        const uint64_t scales_at = nib_round_up((n1 - n0) * row, 256);
        rig_up(rig, staging, from + n0 * row, (n1 - n0) * row);
        if (op != NIB_GPU_REPACK_DENSE && op != NIB_GPU_REPACK_HEAD)
            rig_up(rig, staging + scales_at, scales + n0 * scale_row, (n1 - n0) * scale_row);
        const struct nib_gpu_repack r = {.dst = to,
                                         .src = staging,
                                         .scales = staging + scales_at,
                                         .n = n,
                                         .k = k,
                                         .n0 = n0,
                                         .n1 = n1,
                                         .matrix = (uint32_t)matrix};
        rig_up(rig, rig->m.repack, &r, sizeof r);
        (void)rig_launch(rig, op, 0, (struct rig_bucket){0});
        rig_wait(rig);
    }
}

static nib_cu_ptr dense(struct rig *rig, nib_cu_ptr staging, const uint16_t *from, uint32_t n, uint32_t k,
                        enum nib_gpu_matrix matrix)
{
    nib_cu_ptr to = rig_take(rig, rig->k->dense_bytes(n, k));
    repack(rig, NIB_GPU_REPACK_DENSE, to, staging, (const uint8_t *)from, n, k, matrix);
    return to;
}

/* The same in the rig's form: its values are that form's already. */
static nib_cu_ptr formed(struct rig *rig, nib_cu_ptr staging, const uint16_t *from, uint32_t n, uint32_t k,
                         enum nib_gpu_matrix matrix)
{
    const uint64_t count = (uint64_t)n * k;
    if (rig->dense == NIB_DENSE_BF16)
        return dense(rig, staging, from, n, k, matrix);
    uint8_t *packed = take(count + count / NIB_MX_BLOCK);
    for (uint64_t i = 0; i < count; i += NIB_MX_BLOCK)
        encode(from + i, packed + count + i / NIB_MX_BLOCK, packed + i);
    nib_cu_ptr to = rig_take(rig, rig->k->mxfp8_bytes(n, k));
    repack(rig, NIB_GPU_REPACK_MXFP8, to, staging, packed, n, k, matrix);
    free(packed);
    return to;
}

static nib_cu_ptr head(struct rig *rig, nib_cu_ptr staging, const uint16_t *from, uint32_t n, uint32_t k)
{
    if (rig->dense != NIB_DENSE_BF16)
        return formed(rig, staging, from, n, k, NIB_GPU_M_PLAIN);
    nib_cu_ptr to = rig_take(rig, rig->k->head_bytes(n, k));
    repack(rig, NIB_GPU_REPACK_HEAD, to, staging, (const uint8_t *)from, n, k, NIB_GPU_M_PLAIN);
    return to;
}

static nib_cu_ptr experts(struct rig *rig, nib_cu_ptr staging, const uint8_t *from, uint64_t from_bytes, uint32_t count,
                          uint32_t n, uint32_t k, enum nib_gpu_matrix matrix)
{
    const uint64_t bytes = rig->k->mx_bytes(n, k);
    nib_cu_ptr to = rig_take(rig, count * bytes);
    for (uint32_t e = 0; e < count; e++)
        repack(rig, NIB_GPU_REPACK_MX, to + e * bytes, staging, from + e * from_bytes, n, k, matrix);
    return to;
}

static void make_layer(const struct rig *rig, struct model *model)
{
    const struct nib_shape *s = model->shape;
    struct model_layer *l = &model->layer;
    uint64_t *seed = &model->seed;
    const uint32_t h = s->hidden, inner = s->intermediate, q = nib_q_dim(s), qkv = nib_qkv_dim(s);
    l->attn_norm = random_bf16(h, 1.0f, 0.2f, seed);
    l->qkv = random_dense(rig, (uint64_t)qkv * h, 1.0f / sqrtf((float)h), seed);
    l->qkv_bias = random_bf16(qkv, 0, 0.3f, seed);
    l->sinks = random_bf16(s->heads, 0, 1.0f, seed);
    l->out = random_dense(rig, (uint64_t)h * q, 1.0f / sqrtf((float)q), seed);
    l->out_bias = random_bf16(h, 0, 0.3f, seed);
    l->mlp_norm = random_bf16(h, 1.0f, 0.2f, seed);
    l->router = random_bf16((uint64_t)s->experts * h, 0, 1.0f / sqrtf((float)h), seed);
    l->router_bias = random_bf16(s->experts, 0, 0.3f, seed);
    l->up_bias = random_bf16((uint64_t)s->experts * 2 * inner, 0, 0.3f, seed);
    l->down_bias = random_bf16((uint64_t)s->experts * h, 0, 0.3f, seed);
    l->up = random_mx(s->experts, 2 * inner, h, seed);
    l->down = random_mx(s->experts, h, inner, seed);
    model->up_bytes = (uint64_t)2 * inner * h / 2 + (uint64_t)2 * inner * h / 32;
    model->down_bytes = (uint64_t)inner * h / 2 + (uint64_t)inner * h / 32;
}

static void send_layer(struct rig *rig, const struct model *model, nib_cu_ptr staging)
{
    const struct nib_shape *s = model->shape;
    const struct model_layer *l = &model->layer;
    const uint32_t h = s->hidden, inner = s->intermediate, q = nib_q_dim(s), qkv = nib_qkv_dim(s);
    struct nib_gpu_layer *to = &rig->m.layer[0];
    to->attn_norm = send(rig, l->attn_norm, h * 2);
    to->qkv = formed(rig, staging, l->qkv, qkv, h, NIB_GPU_M_QKV);
    to->qkv_bias = send(rig, l->qkv_bias, qkv * 2);
    to->sinks = send(rig, l->sinks, s->heads * 2);
    to->out = formed(rig, staging, l->out, h, q, NIB_GPU_M_PLAIN);
    to->out_bias = send(rig, l->out_bias, h * 2);
    to->mlp_norm = send(rig, l->mlp_norm, h * 2);
    to->router = dense(rig, staging, l->router, s->experts, h, NIB_GPU_M_PLAIN);
    to->router_bias = send(rig, l->router_bias, s->experts * 2);
    to->up = experts(rig, staging, l->up, model->up_bytes, s->experts, 2 * inner, h, NIB_GPU_M_UP);
    to->up_bias = send(rig, l->up_bias, (uint64_t)s->experts * 2 * inner * 2);
    to->down = experts(rig, staging, l->down, model->down_bytes, s->experts, h, inner, NIB_GPU_M_PLAIN);
    to->down_bias = send(rig, l->down_bias, (uint64_t)s->experts * h * 2);
    rig->m.layer[1] = *to;
}

/* A page's elements as codes and scales, which may lie on them or before: no element is read after its bytes are written. */
static void encode_page(const struct nib_gpu_machine *m, const uint16_t *from, uint8_t *to)
{
    const uint64_t count = 2ull * m->kv_heads * NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM, blocks = count / NIB_MX_BLOCK;
    uint8_t *scales = take(blocks);
    for (uint64_t b = 0; b < blocks; b++) {
        float x[NIB_MX_BLOCK];
        for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
            x[i] = nib_bf16_decode(from[b * NIB_MX_BLOCK + i]);
        nib_kv8_encode(x, scales + b, to + b * NIB_MX_BLOCK);
    }
    memcpy(to + count, scales, blocks);
    free(scales);
}

/* Random keys and values in every page of both layers. */
static void fill_kv(struct rig *rig, struct model *model)
{
    struct nib_gpu_machine *m = &rig->m;
    const uint64_t pages[2] = {(uint64_t)m->slots * m->ring_pages, m->kv_pages};
    const uint64_t count = 2ull * m->kv_heads * NIB_KV_PAGE_TOKENS * NIB_HEAD_DIM;
    uint16_t *kv = random_bf16(count * 7, 0, 1.0f, &model->seed); /* seven pages, repeated */
    for (uint64_t p = 0; p < 7 && m->kv_new; p++)
        encode_page(m, kv + p * count, (uint8_t *)kv + p * m->page_stride);
    for (int l = 0; l < 2; l++) {
        m->layer[l].kv = rig_take(rig, pages[l] * m->page_stride);
        for (uint64_t p = 0; p < pages[l]; p += 7) {
            const uint64_t some = pages[l] - p < 7 ? pages[l] - p : 7;
            rig_up(rig, m->layer[l].kv + p * m->page_stride, kv, some * m->page_stride);
        }
    }
    free(kv);
}

void model_make(struct rig *rig, struct model *model, const struct nib_shape *s, uint32_t slots, uint32_t ctx_tokens,
                uint32_t rows, uint32_t kv_pages, uint64_t seed)
{
    *model = (struct model){.shape = s, .seed = seed};
    rig_machine(rig, s, 2, slots, ctx_tokens, rows, kv_pages);
    rig_send_machine(rig); /* for the repack ops */
    make_layer(rig, model);
    model->embed = random_bf16((uint64_t)s->vocab * s->hidden, 0, 1.0f, &model->seed);
    model->lm_head = random_dense(rig, (uint64_t)s->vocab * s->hidden, 2.0f / sqrtf((float)s->hidden), &model->seed);
    model->final_norm = random_bf16(s->hidden, 1.0f, 0.2f, &model->seed);
}

void model_load(struct rig *rig, struct model *model)
{
    const struct nib_shape *s = model->shape;
    uint64_t staging = (uint64_t)s->vocab * s->hidden * 2;
    const uint64_t qkv = (uint64_t)nib_qkv_dim(s) * s->hidden * 2, up = model->up_bytes + 4096;
    staging = staging > qkv ? staging : qkv;
    staging = staging > up ? staging : up;
    const nib_cu_ptr at = rig_take(rig, staging);
    send_layer(rig, model, at);
    rig->m.embed = send(rig, model->embed, (uint64_t)s->vocab * s->hidden * 2);
    rig->m.lm_head = head(rig, at, model->lm_head, s->vocab, s->hidden);
    rig->m.final_norm = send(rig, model->final_norm, s->hidden * 2);
    fill_kv(rig, model);
    rig_send_machine(rig);
}

void model_open(struct rig *rig, struct model *model, const char *shape, uint32_t slots, uint32_t ctx_tokens,
                uint32_t rows, uint32_t kv_pages, uint64_t seed)
{
    model_make(rig, model, nib_shape_find(shape), slots, ctx_tokens, rows, kv_pages, seed);
    model_load(rig, model);
}

void model_close(struct model *model)
{
    struct model_layer *l = &model->layer;
    void *all[] = {l->attn_norm, l->qkv,       l->qkv_bias,    l->sinks,         l->out,       l->out_bias,
                   l->mlp_norm,  l->router,    l->router_bias, l->up_bias,       l->down_bias, l->up,
                   l->down,      model->embed, model->lm_head, model->final_norm};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

void model_tables(struct rig *rig, struct model *model, const uint32_t *ctx_tokens, uint32_t slots)
{
    const struct nib_gpu_machine *m = &rig->m;
    uint32_t *free_pages = take(m->kv_pages * 4ull);
    for (uint32_t i = 0; i < m->kv_pages; i++)
        free_pages[i] = i;
    uint32_t left = m->kv_pages;
    for (uint32_t s = 0; s < slots; s++)
        for (uint32_t p = 0; p < m->ctx_pages; p++) {
            if (p * NIB_KV_PAGE_TOKENS >= ctx_tokens[s]) {
                rig->host_tables[s * m->ctx_pages + p] = 0;
                continue;
            }
            if (left == 0)
                rig_die("the test's KV pool is too small");
            const uint32_t i = (uint32_t)(random_next(&model->seed) % left);
            rig->host_tables[s * m->ctx_pages + p] = free_pages[i];
            free_pages[i] = free_pages[--left];
        }
    free(free_pages);
    rig_up(rig, m->tables, rig->host_tables, (uint64_t)m->slots * m->ctx_pages * 4);
    rig_up(rig, m->sampling, rig->host_sampling, m->slots * sizeof(struct nib_sampling));
}

void model_tables_even(struct rig *rig, struct model *model, uint32_t ctx_tokens, uint32_t slots)
{
    uint32_t ctx[NIB_MAX_SLOTS];
    for (uint32_t s = 0; s < slots; s++)
        ctx[s] = ctx_tokens;
    model_tables(rig, model, ctx, slots);
}

uint32_t model_token(const struct model *model, uint32_t slot, uint32_t pos)
{
    uint64_t seed = slot * 1000003ull + pos;
    return (uint32_t)(random_next(&seed) % model->shape->vocab);
}

struct rig_bucket model_send(struct rig *rig, const struct model *model, const struct model_run *runs,
                             uint32_t runs_count)
{
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    struct nib_gpu_step *step = &rig->mailbox[serial % NIB_GPU_MAILBOX];
    struct rig_bucket b = {0};
    step->serial = serial;
    step->rows_count = step->want_count = 0;
    for (uint32_t i = 0; i < runs_count; i++)
        for (uint32_t j = 0; j < runs[i].count; j++) {
            const struct model_run *r = &runs[i];
            const bool last = j + 1 == r->count;
            const int flags = (r->decode ? NIB_ROW_DECODE : 0) | (last ? NIB_ROW_LOGITS : 0) |
                              (r->fresh && j == 0 ? NIB_ROW_FIRST : 0);
            const uint32_t pos = r->pos + j;
            if (last)
                step->want[step->want_count++] = (uint16_t)step->rows_count;
            step->rows[step->rows_count++] = (struct nib_row){.token = model_token(model, r->slot, pos),
                                                              .pos = pos,
                                                              .slot = (uint16_t)r->slot,
                                                              .flags = (uint16_t)flags};
            b.decode += r->decode;
        }
    step->decode_count = b.decode;
    step->fault = 0;
    b.prompt = step->rows_count - b.decode;
    b.want = step->want_count;
    return b;
}
