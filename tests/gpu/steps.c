/* tests/gpu/steps.c: whole steps, op by op against arch/ref: every form of a bucket on small shapes, the true sizes of a layer of
 * 20b and 120b, contexts up to the longest, and every way of routing. One thread. */
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"
#include "tests/gpu/check.h"
#include "tests/gpu/random.h"

static int test_shape(struct rig *rig, const char *shape, uint32_t long_ctx, uint32_t rows)
{
    enum { SLOTS = 20 };
    struct model model;
    uint32_t ctx[SLOTS];
    int failures = 0;
    printf("shape %s\n", shape);
    for (uint32_t i = 0; i < SLOTS; i++)
        ctx[i] = i == 0 ? long_ctx : 2048;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, shape, SLOTS, long_ctx, rows, long_ctx / 64 + SLOTS * 32, 7);
    model_tables(rig, &model, ctx, SLOTS);
    struct model_run runs[SLOTS + 4];
    static const uint32_t decode[] = {1, 2, 7, 9, 17};
    for (size_t i = 0; i < sizeof decode / sizeof decode[0]; i++)
        failures += check_step(rig, &model, shape, runs, check_decode_runs(runs, decode[i], long_ctx));
    static const uint32_t prompt[][2] = {{0, 1}, {0, 65}, {100, 64}, {1000, 300}};
    for (size_t i = 0; i < sizeof prompt / sizeof prompt[0]; i++) {
        if (prompt[i][1] > rows)
            continue;
        runs[0] = (struct model_run){.slot = 3, .pos = prompt[i][0], .count = prompt[i][1], .fresh = prompt[i][0] == 0};
        failures += check_step(rig, &model, shape, runs, 1);
    }
    uint32_t n = check_decode_runs(runs, 7, long_ctx);
    runs[n++] = (struct model_run){.slot = 10, .pos = 0, .count = 7, .fresh = true};
    runs[n++] = (struct model_run){.slot = 11, .pos = 120, .count = 30};
    runs[n++] = (struct model_run){.slot = 12, .pos = 0, .count = 1, .fresh = true};
    failures += check_step(rig, &model, shape, runs, n);
    n = check_decode_runs(runs, 2, long_ctx);
    runs[n++] = (struct model_run){.slot = 10, .pos = 62, .count = 3};
    failures += check_step(rig, &model, shape, runs, n);
    model_close(&model);
    return failures;
}

int rig_test_ops(struct rig *rig)
{
    return test_shape(rig, "tiny", 4096, 320) + test_shape(rig, "nano", 2048, 128) +
           test_shape(rig, "20b-slice", 20480, 320);
}

/* A layer at its true size, the vocabulary cut: more decode rows than a pass over the weights takes, and a prompt of several tiles. */
static int test_true_size(struct rig *rig, const char *shape)
{
    enum { SLOTS = 64, CTX = 2048, ROWS = 512 };
    struct nib_shape s = *nib_shape_find(shape);
    struct model model;
    uint32_t ctx[SLOTS];
    int failures = 0;
    s.vocab = 4096;
    s.special_base = 4064;
    for (uint32_t i = 0; i < SLOTS; i++)
        ctx[i] = i == 0 ? CTX : 1100;
    rig_arena(rig, 5ull << 30, true);
    model_make(rig, &model, &s, SLOTS, CTX, ROWS, CTX / 64 + SLOTS * 18, 23);
    model_load(rig, &model);
    model_tables(rig, &model, ctx, SLOTS);
    struct model_run runs[SLOTS + 2];
    static const uint32_t decode[] = {17, 33, SLOTS};
    for (size_t i = 0; i < sizeof decode / sizeof decode[0]; i++)
        failures += check_step(rig, &model, shape, runs, check_decode_runs(runs, decode[i], 1100));
    uint32_t n = check_decode_runs(runs, 33, 1100);
    runs[n++] = (struct model_run){.slot = 40, .pos = 0, .count = 300, .fresh = true};
    runs[n++] = (struct model_run){.slot = 41, .pos = 500, .count = 100};
    failures += check_step(rig, &model, shape, runs, n);
    model_close(&model);
    return failures;
}

int rig_test_mxfp8(struct rig *rig)
{
    rig->dense = NIB_DENSE_MXFP8;
    const int failures = rig_test_codes(rig) + rig_test_ops(rig);
    rig->dense = NIB_DENSE_BF16;
    return failures;
}

int rig_test_kv8(struct rig *rig)
{
    rig->kv = NIB_KV_FP8;
    const int failures = rig_test_ops(rig) + rig_test_contexts(rig) + rig_test_invariance(rig);
    rig->kv = NIB_KV_BF16;
    return failures;
}

int rig_test_sizes(struct rig *rig)
{
    return test_true_size(rig, "20b") + test_true_size(rig, "120b");
}

/* Attention alone, of random queries over a random cache. */
static void attend(struct check *c)
{
    const uint64_t count = (uint64_t)check_rows(c) * nib_q_dim(c->model->shape);
    uint16_t *q = malloc(count * 2);
    if (!q)
        rig_die("out of host memory");
    for (c->layer = 0; c->layer < 2; c->layer++) {
        for (uint64_t i = 0; i < count; i++)
            q[i] = nib_bf16_encode(model_normal(&c->model->seed));
        rig_up(c->rig, c->rig->m.q, q, count * 2);
        check_attn(c);
    }
    free(q);
}

/* What a step's decode rows have of it. */
static void attend_launch(struct check *c, uint32_t layer)
{
    static const enum nib_gpu_op ops[] = {NIB_GPU_ATTN, NIB_GPU_ATTN_BATCH, NIB_GPU_ATTN_FP8, NIB_GPU_ATTN_BATCH_FP8};
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
        (void)rig_launch(c->rig, ops[i], layer, c->bucket);
}

/* The same rows among many, in a bucket of as many as there may be, and each alone: the same bits. Returns the rows that differ. */
static int attend_alone(struct rig *rig, struct model *model, const struct model_run *runs, uint32_t count)
{
    const uint64_t dim = nib_q_dim(model->shape);
    uint16_t *q = malloc(count * dim * 2), *all = malloc(count * dim * 2), *one = malloc(dim * 2);
    int differ = 0;
    if (!q || !all || !one)
        rig_die("out of host memory");
    for (uint64_t i = 0; i < count * dim; i++)
        q[i] = nib_bf16_encode(model_normal(&model->seed));
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct check c = check_begin(rig, model, "among many", runs, count);
        const uint64_t wide = check_acts_wide(&c) * 2;
        rig_up(rig, rig->m.q, q, count * dim * 2);
        rig_fill(rig, rig->m.acts, 0xff, count * wide);
        c.bucket.decode = NIB_MAX_SLOTS;
        attend_launch(&c, layer);
        for (uint32_t i = 0; i < count; i++)
            rig_down(rig, all + i * dim, rig->m.acts + i * wide, dim * 2);
        for (uint32_t i = 0; i < count; i++) {
            c = check_begin(rig, model, "alone", &runs[i], 1);
            rig_up(rig, rig->m.q, q + i * dim, dim * 2);
            attend_launch(&c, layer);
            rig_down(rig, one, rig->m.acts, dim * 2);
            differ += memcmp(one, all + i * dim, dim * 2) != 0;
        }
    }
    free(q);
    free(all);
    free(one);
    return differ;
}

/* Contexts at the edges of pages (64), of the window (128), of splits (160 keys; from 64 x 160 = 10240 on they grow) and of the model. */
static int test_contexts(struct rig *rig, const char *shape, const uint32_t *ctx, uint32_t slots, uint32_t rows)
{
    struct model model;
    struct model_run runs[NIB_MAX_SLOTS];
    uint32_t pages = 0, most = 0;
    int failures = 0;
    for (uint32_t i = 0; i < slots; i++) {
        pages += (uint32_t)nib_div_up(ctx[i], NIB_KV_PAGE_TOKENS);
        most = ctx[i] > most ? ctx[i] : most;
    }
    rig_arena(rig, 4ull << 30, true);
    model_open(rig, &model, shape, slots, most, rows, pages, 29);
    model_tables(rig, &model, ctx, slots);
    for (uint32_t i = 0; i < slots; i++)
        runs[i] = (struct model_run){.slot = i, .pos = ctx[i] - 1, .count = 1, .decode = true};
    struct check c = check_begin(rig, &model, "contexts, decode", runs, slots);
    attend(&c);
    failures += check_report(&c);
    const int differ = attend_alone(rig, &model, runs, slots);
    printf("%s rows of %s among many and alone: %d differ\n", differ ? "FAILED" : "ok    ", shape, differ);
    failures += differ;
    for (uint32_t i = 0; i < slots; i++) /* prompts that end there; far ones are few, since the ref walks every key */
        for (uint32_t back = ctx[i] < 2048 ? 1 : 3; back <= rows && back <= ctx[i]; back = back * 4 + 1) {
            runs[0] = (struct model_run){.slot = i, .pos = ctx[i] - back, .count = back};
            struct check p = check_begin(rig, &model, "context, prompt", runs, 1);
            attend(&p);
            failures += p.failures;
            if (ctx[i] >= 2048)
                break;
        }
    printf("%s contexts to %u of %s, prompts\n", failures ? "FAILED" : "ok    ", most, shape);
    model_close(&model);
    return failures;
}

int rig_test_contexts(struct rig *rig)
{
    static const uint32_t edges[] = {1,   2,   63,  64,  65,  127, 128, 129, 130, 191, 192,  193,
                                     255, 256, 257, 320, 511, 512, 513, 576, 577, 640, 1023, 1025};
    static const uint32_t far[] = {131072, 65537, 65536, 32769, 32768, 32767, 16449, 16385, 16384, 10241, 10240, 4097};
    static const uint32_t wide[] = {20481, 16385, 16384};
    return test_contexts(rig, "tiny", edges, sizeof edges / sizeof edges[0], 96) +
           test_contexts(rig, "tiny", far, sizeof far / sizeof far[0], 96) +
           test_contexts(rig, "20b-slice", wide, sizeof wide / sizeof wide[0], 96);
}

enum routing { ONE_FOR_ALL, FOUR_FOR_ALL, UNEVEN, ALL_EQUAL, ROUTING_COUNT };

/* Biases of the router that make it choose so. */
static void bias_router(struct rig *rig, struct model *model, enum routing routing)
{
    const uint32_t experts = model->shape->experts;
    uint16_t *bias = model->layer.router_bias;
    for (uint32_t e = 0; e < experts; e++) {
        float b = 0;
        if (routing == ONE_FOR_ALL)
            b = e == experts / 3 ? 100.0f : 0;
        else if (routing == FOUR_FOR_ALL)
            b = e % (experts / 4) == 1 ? 100.0f : 0;
        else if (routing == UNEVEN)
            b = -0.25f * (float)e;
        else
            b = 1e20f; /* nothing that is added to it shows: ties, which the lowest experts win */
        bias[e] = nib_bf16_encode(b);
    }
    rig_up(rig, rig->m.layer[0].router_bias, bias, experts * 2ull); /* both layers' */
}

static int test_routing(struct rig *rig, const char *shape, uint32_t slots, uint32_t rows)
{
    static const char *const name[ROUTING_COUNT] = {"one expert for all rows", "four experts for all rows",
                                                    "uneven routing", "equal logits"};
    enum { CTX = 512 };
    struct model model;
    struct model_run runs[NIB_MAX_SLOTS];
    int failures = 0;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, shape, slots, CTX, rows, slots * CTX / 64, 31);
    model_tables_even(rig, &model, CTX, slots);
    for (uint32_t r = 0; r < ROUTING_COUNT; r++) {
        bias_router(rig, &model, (enum routing)r);
        const uint32_t decode[] = {1, 5, 33, slots};
        for (size_t i = 0; i < sizeof decode / sizeof decode[0]; i++)
            failures += check_step(rig, &model, name[r], runs, check_decode_runs(runs, decode[i], CTX));
        uint32_t n = check_decode_runs(runs, 19, CTX);
        runs[n++] = (struct model_run){.slot = 30, .pos = 0, .count = rows - 19, .fresh = true};
        failures += check_step(rig, &model, name[r], runs, n);
    }
    model_close(&model);
    return failures;
}

int rig_test_routing(struct rig *rig)
{
    return test_routing(rig, "20b-slice", 64, 300) + test_routing(rig, "tiny", NIB_MAX_SLOTS, 300) +
           test_routing(rig, "nano", NIB_MAX_SLOTS, 300);
}
