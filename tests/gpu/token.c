/* tests/gpu/token.c: one decode row by the fused kernel and op by op: the same bits, step after step, so that what both leave in
 * the KV cache is the same too; and a launch that cannot end gives up. One thread. */
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/model.h"

enum { SLOTS = 2, CTX = 131072, ROWS = 64 };

struct outcome {
    float *x, *logits;
    uint32_t token;
};

/* False: the step came back with a fault. */
static bool run(struct rig *rig, const struct model *model, uint32_t pos, struct outcome *ret)
{
    const struct model_run one = {.slot = 1, .pos = pos, .count = 1, .decode = true};
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    rig_step(rig, model_send(rig, model, &one, 1));
    rig_wait(rig);
    const struct nib_gpu_result *out = &rig->outbox[serial % NIB_GPU_MAILBOX];
    if (out->serial != serial)
        rig_die("a step has no result");
    rig_down(rig, ret->x, rig->m.x, model->shape->hidden * 4ull);
    rig_down(rig, ret->logits, rig->m.logits, model->shape->vocab * 4ull);
    ret->token = out->sampled[0].token;
    return !out->fault && out->count == 1;
}

/* Contexts at the edges of pages, of the window and of splits, each gone on from for some steps. */
static int test_shape(struct rig *rig, const char *shape, enum nib_dense dense)
{
    static const uint32_t from[] = {0, 60, 120, 250, 508, 1020, 2040, 4090, 10234, 16378, 131060};
    struct model model;
    uint32_t differ = 0, steps = 0;
    rig->dense = dense;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, shape, SLOTS, CTX, ROWS, SLOTS * CTX / 64, 37);
    model_tables_even(rig, &model, CTX, SLOTS);
    struct outcome fused = {malloc(model.shape->hidden * 4ull), malloc(model.shape->vocab * 4ull), 0}, apart = fused;
    apart.x = malloc(model.shape->hidden * 4ull);
    apart.logits = malloc(model.shape->vocab * 4ull);
    if (!fused.x || !fused.logits || !apart.x || !apart.logits)
        rig_die("out of host memory");
    for (size_t i = 0; i < sizeof from / sizeof from[0]; i++)
        for (uint32_t pos = from[i]; pos < from[i] + 12; pos++, steps++) {
            /* each way in turn leaves the key and value that the next step reads */
            rig->apart = pos % 2;
            const bool first = run(rig, &model, pos, pos % 2 ? &apart : &fused);
            rig->apart = !rig->apart;
            const bool second = run(rig, &model, pos, pos % 2 ? &fused : &apart);
            differ += !first || !second || fused.token != apart.token ||
                      memcmp(fused.x, apart.x, model.shape->hidden * 4ull) != 0 ||
                      memcmp(fused.logits, apart.logits, model.shape->vocab * 4ull) != 0;
        }
    rig->apart = false;
    rig->dense = NIB_DENSE_BF16;
    printf("%s fused decode %s, dense %s: %u of %u steps differ\n", differ ? "FAILED" : "ok    ", shape,
           nib_dense_name(dense), differ, steps);
    free(fused.x);
    free(fused.logits);
    free(apart.x);
    free(apart.logits);
    model_close(&model);
    return differ > 0;
}

/* More blocks than the card holds at once wait for ones that cannot begin: all give up, and the step says so. The device works on. */
int rig_test_stuck(struct rig *rig)
{
    if (!rig->k->has(NIB_GPU_TOKEN))
        return 0;
    struct model model;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, "20b-slice", SLOTS, CTX, ROWS, SLOTS * CTX / 64, 41);
    model_tables_even(rig, &model, CTX, SLOTS);
    struct nib_gpu_geometry g;
    rig->k->geometry(NIB_GPU_TOKEN, &rig->m, 1, 0, 1, &g);
    if (g.grid[0] == 0) {
        printf("skipped: this card runs no step of 20b-slice in one launch\n");
        model_close(&model);
        return 0;
    }
    struct outcome o = {malloc(model.shape->hidden * 4ull), malloc(model.shape->vocab * 4ull), 0};
    if (!o.x || !o.logits)
        rig_die("out of host memory");
    rig->blocks[NIB_GPU_TOKEN] = rig->sms + 8;
    const double start = rig_now();
    const bool ended = run(rig, &model, 100, &o);
    const double s = rig_now() - start;
    rig->blocks[NIB_GPU_TOKEN] = 0;
    rig->apart = true;
    const bool later = run(rig, &model, 100, &o);
    rig->apart = false;
    const bool good = !ended && later;
    printf("%s fused decode that cannot end: %s after %.1f s, the next step %s\n", good ? "ok    " : "FAILED",
           ended ? "ended" : "refused", s, later ? "works" : "does not");
    free(o.x);
    free(o.logits);
    model_close(&model);
    return !good;
}

int rig_test_token(struct rig *rig)
{
    if (!rig->k->has(NIB_GPU_TOKEN))
        return 0;
    int failures = 0;
    for (enum nib_dense dense = 0; dense < NIB_DENSE_COUNT; dense++)
        failures += test_shape(rig, "demo", dense) + test_shape(rig, "20b-slice", dense);
    return failures;
}
