/* tests/gpu/each.c: every kernel in its decode and prompt forms, in a few small steps: what tests/gpu/sanitize.sh runs under
 * compute-sanitizer. Answers are looked at only so far that a step which did nothing shows; ops.c compares them. One thread. */
#include <stdlib.h>

#include "core/sample.h"
#include "tests/gpu/model.h"
#include "tests/gpu/random.h"

/* The sum of words that the loader compares with its own. */
static int test_sum(struct rig *rig)
{
    enum { WORDS = 5003 };
    uint64_t words[WORDS], seed = 5, want = 77, got = 77;
    for (uint32_t i = 0; i < WORDS; i++) {
        words[i] = random_next(&seed);
        want += NIB_GPU_SUM_WORD(words[i], i);
    }
    const nib_cu_ptr src = rig_take(rig, sizeof words), sum = rig_take(rig, sizeof got);
    const struct nib_gpu_repack r = {.src = src, .sum_bytes = sizeof words, .sum = sum};
    rig_up(rig, src, words, sizeof words);
    rig_up(rig, sum, &got, sizeof got);
    rig_up(rig, rig->m.repack, &r, sizeof r);
    (void)rig_launch(rig, NIB_GPU_SUM, 0, (struct rig_bucket){0});
    rig_down(rig, &got, sum, sizeof got);
    printf("%s sum of %d words\n", got == want ? "ok    " : "FAILED", WORDS);
    return got != want;
}

/* One way of drawing a slot. */
static void ask(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->m.slots; i++) {
        struct nib_sampling *s = &rig->host_sampling[i];
        nib_sample_defaults(s);
        s->seed = i;
        s->temperature = i == 1 ? 0 : 1;
        s->top_p = i == 2 ? 0.9f : 1;
        s->top_k = i == 2 ? 40 : 0;
        s->min_p = i == 3 ? 0.01f : 0;
        s->repetition_penalty = i == 3 ? 1.2f : 1;
        s->logprobs = i == 1 || i == 3;
        s->top_logprobs = i == 3 ? 5 : 0;
        s->bias_count = i == 3 ? 2 : 0;
        s->bias[0] = s->bias[1] = (struct nib_bias){.token = 7, .bias = 1};
    }
}

static int run(struct rig *rig, const struct model *model, const struct model_run *runs, uint32_t count)
{
    uint64_t serial = 0;
    rig_down(rig, &serial, rig->m.next_serial, 8);
    const struct rig_bucket b = model_send(rig, model, runs, count);
    rig_step(rig, b);
    rig_wait(rig);
    const struct nib_gpu_result *out = &rig->outbox[serial % NIB_GPU_MAILBOX];
    bool good = out->serial == serial && out->count == b.want && out->fault == 0;
    for (uint32_t i = 0; good && i < b.want; i++)
        good = out->sampled[i].token < model->shape->vocab && !out->sampled[i].failed;
    printf("%s each kernel: %u decode rows, %u prompt rows\n", good ? "ok    " : "FAILED", b.decode, b.prompt);
    return !good;
}

static int test_form(struct rig *rig)
{
    enum { SLOTS = 20, CTX = 1024, ROWS = 48 };
    struct model model;
    rig_separate(rig);
    model_open(rig, &model, "tiny", SLOTS, CTX, ROWS, SLOTS * CTX / 64, 51);
    ask(rig);
    model_tables_even(rig, &model, CTX, SLOTS);
    int failures = test_sum(rig);
    /* prompts of four sequences, one of them across a page's edge and two in one tile; then decode beside a prompt: one row over
     * several splits; then more decode rows than a pass over the weights takes */
    const struct model_run prompts[] = {{.slot = 0, .count = 3, .fresh = true},
                                        {.slot = 1, .count = 1, .fresh = true},
                                        {.slot = 2, .pos = 60, .count = 9},
                                        {.slot = 3, .count = 20, .fresh = true}};
    const struct model_run mixed[] = {{.slot = 0, .pos = 700, .count = 1, .decode = true},
                                      {.slot = 1, .pos = 1, .count = 1, .decode = true},
                                      {.slot = 2, .pos = 69, .count = 5}};
    struct model_run decode[SLOTS];
    for (uint32_t i = 0; i < SLOTS; i++)
        decode[i] = (struct model_run){.slot = i, .pos = 20 + 50 * i, .count = 1, .decode = true};
    failures += run(rig, &model, prompts, 4) + run(rig, &model, mixed, 3) + run(rig, &model, decode, SLOTS);
    model_close(&model);
    rig_together(rig);
    return failures;
}

int rig_test_each(struct rig *rig)
{
    int failures = 0;
    for (rig->dense = 0; rig->dense < NIB_DENSE_COUNT; rig->dense++)
        failures += test_form(rig);
    rig->dense = NIB_DENSE_BF16;
    rig->kv = NIB_KV_FP8;
    failures += test_form(rig);
    rig->kv = NIB_KV_BF16;
    return failures;
}
