/* tests/gpu/gpu_fixture.h: the GPU engine on tests/fake's libcuda, with a seeded model made in memory.
 *
 * The row is one of this test: its image is text that names the kernels, its layouts are the fake's (canonical). */
#ifndef NIB_TESTS_GPU_FIXTURE_H
#define NIB_TESTS_GPU_FIXTURE_H

#define NIB_SM 90 /* what is used of the layout is the same in every row */
#include "arch/cuda/forms.h"
#include "arch/ref/ref.h"
#include "gpu/gpu.h"
#include "tests/engine_fixture.h"
#include "tests/gpu/fake_env.h"

struct gpu_fixture {
    struct fixture f; /* image, plan, tables, step; its engine is the GPU's */
    struct nib_gpu gpu;
    struct nib_profile profile;
};

#define GPU_BATCH_FROM 4 /* decode rows from which on a bucket has the _BATCH ops */

static char gpu_image[4096];
static struct nib_gpu_kernels gpu_kernels;

static inline uint64_t gpu_dense_bytes(uint32_t n, uint32_t k)
{
    return nib_round_up(2ull * n * k, 256);
}

static inline uint64_t gpu_mxfp8_bytes(uint32_t n, uint32_t k)
{
    return nib_round_up((uint64_t)n * (k + k / NIB_MX_BLOCK), 256);
}

static inline uint64_t gpu_mx_bytes(uint32_t n, uint32_t k)
{
    return nib_round_up(nib_ref_mx_bytes(n, k), 256);
}

/* More than the matrix, as a row may want for the head. */
static inline uint64_t gpu_head_bytes(uint32_t n, uint32_t k)
{
    return gpu_dense_bytes(n, k) + 256;
}

static inline uint64_t gpu_route_bytes(uint32_t rows, uint32_t experts)
{
    return cu_route_expert_at(rows, experts) + 4 * cu_route_array(rows);
}

static inline uint64_t gpu_scratch_bytes(const struct nib_shape *shape, uint32_t slots, uint32_t rows)
{
    return 4ull * shape->vocab * slots + rows;
}

static inline uint32_t gpu_splits_max(uint32_t ctx_tokens)
{
    return ctx_tokens / 256 + 1;
}

static inline void gpu_geometry(enum nib_gpu_op form, const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                                uint32_t want, struct nib_gpu_geometry *ret)
{
    const enum nib_gpu_op plain = nib_gpu_op_plain(form), op = nib_gpu_op_few(plain);
    bool none = false;
    if (op == NIB_GPU_QKV || op == NIB_GPU_ATTN || op == NIB_GPU_OUT || op == NIB_GPU_UP || op == NIB_GPU_DOWN)
        none = decode == 0;
    if (op == NIB_GPU_QKV_PROMPT || op == NIB_GPU_ATTN_PROMPT || op == NIB_GPU_OUT_PROMPT || op == NIB_GPU_UP_PROMPT ||
        op == NIB_GPU_DOWN_PROMPT)
        none = prompt == 0;
    if (plain != op)
        none = (op == NIB_GPU_HEAD ? want : decode) < GPU_BATCH_FROM;
    else if (op == NIB_GPU_HEAD)
        none = want >= GPU_BATCH_FROM;
    else if (op == NIB_GPU_QKV || op == NIB_GPU_ATTN || op == NIB_GPU_OUT || op == NIB_GPU_UP || op == NIB_GPU_DOWN)
        none = none || decode >= GPU_BATCH_FROM;
    if (op == NIB_GPU_TOKEN)
        none = decode != 1 || prompt != 0 || m->kv_new;
    if (op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_PROMPT) /* ATTN_BATCH too */
        none = none || m->kv_new;
    if (op == NIB_GPU_KV_FP8)
        none = !m->kv_new;
    if (op == NIB_GPU_ATTN_FP8)
        none = !m->kv_new || decode == 0 || (plain != op) != (decode >= GPU_BATCH_FROM);
    if (op == NIB_GPU_ATTN_PROMPT_FP8)
        none = !m->kv_new || prompt == 0;
    *ret = (struct nib_gpu_geometry){.grid = {none ? 0 : 1, 1, 1},
                                     .block = 128,
                                     .shared_bytes = op == NIB_GPU_UP ? 100000 : 0,
                                     .overlap = op % 2 || op == NIB_GPU_ATTN || op == NIB_GPU_ATTN_FP8};
}

static inline bool gpu_has(enum nib_gpu_op op)
{
    return op < NIB_GPU_OP_COUNT;
}

static inline void gpu_make_kernels(void)
{
    size_t used = 0;
    for (int op = 0; op < NIB_GPU_OP_COUNT; op++)
        used +=
            (size_t)snprintf(gpu_image + used, sizeof gpu_image - used, "%s\n", nib_gpu_op_symbol((enum nib_gpu_op)op));
    gpu_kernels = (struct nib_gpu_kernels){.name = "test",
                                           .image = (const unsigned char *)gpu_image,
                                           .image_end = (const unsigned char *)gpu_image + used,
                                           .dense_bytes = gpu_dense_bytes,
                                           .mxfp8_bytes = gpu_mxfp8_bytes,
                                           .mx_bytes = gpu_mx_bytes,
                                           .head_bytes = gpu_head_bytes,
                                           .route_bytes = gpu_route_bytes,
                                           .scratch_bytes = gpu_scratch_bytes,
                                           .splits_max = gpu_splits_max,
                                           .geometry = gpu_geometry,
                                           .has = gpu_has,
                                           .forms = {cu_read_acts, cu_read_gated, cu_read_choice}};
}

static inline enum nib_err gpu_read_memory(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n,
                                           struct nib_msg *msg)
{
    const struct fixture *f = arg;
    (void)msg;
    memcpy(buf, f->image_base + t->offset + at, n);
    return NIB_OK;
}

/* Probes, plans and makes the image; takes nothing yet. */
static inline enum nib_err gpu_fixture_plan(struct gpu_fixture *g, const struct fixture_options *o,
                                            uint64_t limit_bytes, struct nib_msg *msg)
{
    struct nib_profile host;
    memset(g, 0, sizeof *g);
    gpu_make_kernels();
    fixture_image(&g->f, o);
    const struct nib_arch_row row = {.name = "test", .gpu = true, .gpu_kernels = &gpu_kernels};
    g->f.facts = nib_arch_facts(&row);
    enum nib_err err = nib_arch_probe_cpu(&host, msg);
    if (!err)
        err = nib_gpu_open(&g->gpu, msg);
    if (!err)
        err = nib_gpu_probe(&g->gpu, &host, &g->profile, msg);
    const struct nib_plan_request request = {.profile = &g->profile,
                                             .row = &g->f.facts,
                                             .shape = g->f.image.shape,
                                             .dense = g->f.image.dense,
                                             .kv = o->kv,
                                             .ctx_tokens = o->ctx_tokens,
                                             .slots = o->slots,
                                             .step_rows_max = o->step_rows_max,
                                             .threads = 1,
                                             .draft_tokens = o->draft_tokens,
                                             .prefix_off = true,
                                             .memory_limit_bytes = limit_bytes};
    return err ? err : nib_plan_make(&request, &g->f.plan, msg);
}

static inline struct nib_gpu_engine_open gpu_fixture_args(struct gpu_fixture *g)
{
    return (struct nib_gpu_engine_open){.gpu = &g->gpu,
                                        .plan = &g->f.plan,
                                        .host = g->f.base[NIB_SPACE_HOST],
                                        .kernels = &gpu_kernels,
                                        .profile = &g->profile,
                                        .image = &g->f.image,
                                        .source = {.read = gpu_read_memory, .arg = &g->f, .hashed = true},
                                        .readers = 3,
                                        .step_ms_max = 60000}; /* no test waits for it; the stand-in may be slow */
}

static inline enum nib_err gpu_fixture_take(struct gpu_fixture *g, struct nib_msg *msg)
{
    g->f.base[NIB_SPACE_HOST] = fixture_alloc(g->f.plan.arena_bytes[NIB_SPACE_HOST]);
    memset(g->f.base[NIB_SPACE_HOST], 0xff, g->f.plan.arena_bytes[NIB_SPACE_HOST]);
    return nib_gpu_take(&g->gpu, &g->f.plan, msg);
}

/* 256 MiB beside the driver's part are enough for the shapes of tests and keep the pool of pages small. */
static inline void gpu_fixture_open(struct gpu_fixture *g, const struct fixture_options *o)
{
    struct nib_msg msg = {""};
    ck_assert_msg(gpu_fixture_plan(g, o, 1024ull << 20, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_msg(gpu_fixture_take(g, &msg) == NIB_OK, "%s", msg.text);
    const struct nib_gpu_engine_open open = gpu_fixture_args(g);
    ck_assert_msg(nib_gpu_engine_open(&open, &g->f.engine, &msg) == NIB_OK, "%s", msg.text);
    fixture_tables(&g->f);
}

static inline void gpu_fixture_close(struct gpu_fixture *g)
{
    if (g->f.engine)
        g->f.engine->ops->close(g->f.engine);
    nib_gpu_close(&g->gpu);
    for (uint32_t s = 0; s < g->f.plan.dims.slots; s++)
        free(g->f.pages[s]);
    free(g->f.base[NIB_SPACE_HOST]);
    free(g->f.image_base);
}

#endif
