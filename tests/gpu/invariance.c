/* tests/gpu/invariance.c: the bits of a row's result do not depend on the rows beside it, on how a prompt was cut, or on which pages
 * it was given. One thread. */
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/model.h"

enum { SLOTS = 20, CTX = 2048, ROWS = 320, MANY = NIB_MAX_SLOTS, MANY_CTX = 192 };

/* What a step left of its wanted rows. */
struct outcome {
    float *x;      /* [rows][H] */
    float *logits; /* [want][V] */
    uint32_t token[MANY];
};

/* A step, in a bucket with room for `decode` decode rows, as many wanted ones more, or just its own. */
static void run_in(struct rig *rig, const struct model *model, const struct model_run *runs, uint32_t count,
                   uint32_t decode, struct outcome *ret)
{
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    const struct rig_bucket b = model_send(rig, model, runs, count);
    struct rig_bucket bucket = b;
    bucket.decode = decode > b.decode ? decode : b.decode;
    bucket.want = decode > b.want ? decode : b.want;
    rig_step(rig, bucket);
    rig_wait(rig);
    const uint32_t rows = b.decode + b.prompt;
    ret->x = malloc((uint64_t)rows * model->shape->hidden * 4);
    ret->logits = malloc((uint64_t)b.want * model->shape->vocab * 4);
    if (!ret->x || !ret->logits)
        rig_die("out of host memory");
    rig_down(rig, ret->x, rig->m.x, (uint64_t)rows * model->shape->hidden * 4);
    rig_down(rig, ret->logits, rig->m.logits, (uint64_t)b.want * model->shape->vocab * 4);
    const struct nib_gpu_result *out = &rig->outbox[serial % NIB_GPU_MAILBOX];
    if (out->serial != serial || out->count != b.want || out->fault)
        rig_die("a step of the invariance test failed");
    for (uint32_t i = 0; i < b.want; i++)
        ret->token[i] = out->sampled[i].token;
}

static void run(struct rig *rig, const struct model *model, const struct model_run *runs, uint32_t count,
                struct outcome *ret)
{
    run_in(rig, model, runs, count, 0, ret);
}

static void drop(struct outcome *o)
{
    free(o->x);
    free(o->logits);
}

static bool same(const struct model *model, const struct outcome *a, uint32_t row_a, uint32_t want_a,
                 const struct outcome *b, uint32_t row_b, uint32_t want_b)
{
    const uint64_t h = model->shape->hidden, v = model->shape->vocab;
    return memcmp(a->x + row_a * h, b->x + row_b * h, h * 4) == 0 &&
           memcmp(a->logits + want_a * v, b->logits + want_b * v, v * 4) == 0 && a->token[want_a] == b->token[want_b];
}

/* Rows of 17 against each alone, in pairs, and beside a prompt. */
static int test_decode(struct rig *rig, struct model *model)
{
    enum { N = 17 };
    int failures = 0;
    struct model_run runs[N + 1];
    struct outcome all, some;
    for (uint32_t i = 0; i < N; i++)
        runs[i] = (struct model_run){.slot = i, .pos = i * 117 + 3, .count = 1, .decode = true};
    run(rig, model, runs, N, &all);
    for (uint32_t i = 0; i < N; i++) {
        run(rig, model, &runs[i], 1, &some);
        failures += !same(model, &all, i, i, &some, 0, 0);
        drop(&some);
    }
    for (uint32_t n = 2; n < N; n += 4) {
        struct model_run mixed[N + 1];
        for (uint32_t i = 0; i < n; i++)
            mixed[i] = runs[(i * 5 + n) % N];
        mixed[n] = (struct model_run){.slot = 18, .pos = 0, .count = 70, .fresh = true};
        run(rig, model, mixed, n + 1, &some);
        for (uint32_t i = 0; i < n; i++)
            failures += !same(model, &all, (i * 5 + n) % N, (i * 5 + n) % N, &some, i, i);
        drop(&some);
    }
    drop(&all);
    return failures;
}

/* Some of 250 rows: alone, with others in every number that kernels may treat in their own way, and in a bucket with room for
 * more; a prompt in such a bucket is the same with and without decode rows. */
static int test_many(struct rig *rig, struct model *model)
{
    enum { N = 250 };
    static const uint32_t some_rows[] = {1, 2, 4, 7, 8, 9, 16, 31, 64, 65, 127, 130, 200};
    int failures = 0;
    struct model_run runs[N], mixed[N + 1];
    struct outcome all, some;
    for (uint32_t i = 0; i < N; i++)
        runs[i] = (struct model_run){.slot = i, .pos = i * 37 % (MANY_CTX - 1), .count = 1, .decode = true};
    run(rig, model, runs, N, &all);
    for (size_t k = 0; k < sizeof some_rows / sizeof some_rows[0]; k++) {
        const uint32_t n = some_rows[k];
        for (uint32_t i = 0; i < n; i++)
            mixed[i] = runs[(i * 7 + n) % N];
        for (uint32_t room = 0; room <= MANY; room += MANY) {
            if (room && n > 9)
                continue;
            run_in(rig, model, mixed, n, room, &some);
            for (uint32_t i = 0; i < n; i++)
                failures += !same(model, &all, (i * 7 + n) % N, (i * 7 + n) % N, &some, i, i);
            drop(&some);
        }
    }
    drop(&all);
    mixed[1] = (struct model_run){.slot = N, .pos = 0, .count = 40, .fresh = true};
    mixed[0] = runs[3];
    run_in(rig, model, mixed, 2, MANY, &all);
    run_in(rig, model, mixed + 1, 1, MANY, &some);
    failures += !same(model, &all, 40, 1, &some, 39, 0);
    drop(&some);
    drop(&all);
    return failures;
}

/* A prompt of 300 in one step, in chunks, beside others, and in another slot's pages. */
static int test_prompt(struct rig *rig, struct model *model)
{
    static const uint32_t cuts[][6] = {{300}, {1, 64, 65, 170}, {130, 7, 100, 63}, {64, 64, 64, 64, 44}};
    int failures = 0;
    struct outcome whole = {0}, some;
    uint32_t whole_row = 0;
    for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
        uint32_t pos = 0;
        for (int i = 0; i < 6 && cuts[c][i]; i++) {
            struct model_run runs[3];
            uint32_t n = 0, before = 0;
            if (c == 2) { /* neighbours */
                runs[n++] = (struct model_run){.slot = 2, .pos = 500, .count = 1, .decode = true};
                runs[n++] = (struct model_run){.slot = 17, .pos = 200, .count = 19};
                before = 20;
            }
            /* tokens are a function of the slot: always slot 5, whose pages change */
            runs[n++] = (struct model_run){.slot = 5, .pos = pos, .count = cuts[c][i], .fresh = pos == 0};
            run(rig, model, runs, n, &some);
            pos += cuts[c][i];
            if (pos < 300) {
                drop(&some);
                continue;
            }
            const uint32_t row = before + cuts[c][i] - 1;
            if (c == 0) {
                whole = some;
                whole_row = row;
            } else {
                failures += !same(model, &whole, whole_row, 0, &some, row, n - 1);
                drop(&some);
            }
        }
        model_tables_even(rig, model, CTX, SLOTS);
    }
    drop(&whole);
    return failures;
}

int rig_test_invariance(struct rig *rig)
{
    static const char *const shapes[] = {"tiny", "20b-slice", "demo"};
    int failures = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct model model;
        rig_arena(rig, 2ull << 30, true);
        model_open(rig, &model, shapes[i], SLOTS, CTX, ROWS, SLOTS * CTX / 64, 11);
        model_tables_even(rig, &model, CTX, SLOTS);
        const int decode = test_decode(rig, &model), prompt = test_prompt(rig, &model);
        printf("%s invariance %s: decode rows %d differ, prompt rows %d differ\n",
               decode + prompt ? "FAILED" : "ok    ", shapes[i], decode, prompt);
        failures += decode + prompt;
        model_close(&model);
    }
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof shapes[0]; i++) {
        struct model model;
        rig->dense = i % 2 ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16;
        rig_arena(rig, 4ull << 30, true);
        model_open(rig, &model, shapes[i / 2], MANY, MANY_CTX, ROWS, MANY * MANY_CTX / 64, 12);
        model_tables_even(rig, &model, MANY_CTX, MANY);
        const int many = test_many(rig, &model);
        printf("%s invariance %s%s: of many decode rows %d differ\n", many ? "FAILED" : "ok    ", shapes[i / 2],
               i % 2 ? " mxfp8" : "", many);
        failures += many;
        model_close(&model);
    }
    rig->dense = NIB_DENSE_BF16;
    return failures;
}
