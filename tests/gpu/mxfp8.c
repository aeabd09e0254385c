/* tests/gpu/mxfp8.c: the repacking and the products of dense matrices in MXFP8 on every code and scale: inputs that are 1 at one
 * place and 0 elsewhere give back the weight there, to the bit. A block that cannot be held gives NaN, to its own outputs only.
 * One thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NIB_SM 90
#include "arch/sm90/batch_dense.h"
#include "core/mx.h"
#include "tests/gpu/check.h"
#include "tests/gpu/random.h"

enum { SLOTS = 20, CTX = 512, ROWS = 320, ROUNDS = 16, SCALE_MAX = 134 };

/* The attention output's matrix [n][k], MXFP8 as it lies in an image. */
struct matrix {
    uint32_t n, k;
    uint8_t *codes, *scales;
};

static void *take(uint64_t bytes)
{
    void *p = malloc(bytes);
    if (!p)
        rig_die("out of host memory");
    return p;
}

static struct matrix make(uint32_t n, uint32_t k, uint64_t *seed)
{
    struct matrix w = {.n = n, .k = k, .codes = take((uint64_t)n * k), .scales = take((uint64_t)n * k / NIB_MX_BLOCK)};
    for (uint64_t i = 0; i < (uint64_t)n * k; i++) {
        const uint8_t code = (uint8_t)(random_next(seed) >> 40);
        w.codes[i] = (code & 0x7f) == 0x7f ? 0x80 : code;
    }
    for (uint64_t b = 0; b < (uint64_t)n * k / NIB_MX_BLOCK; b++)
        w.scales[b] = (uint8_t)(random_next(seed) % (SCALE_MAX + 1));
    /* outputs that are NaN: by a code of either sign at a block's ends, by the scale NaN, by scales beyond the largest */
    w.codes[5 * k + 96] = 0x7f;
    w.codes[14 * k + k - 1] = 0xff;
    w.scales[9 * (k / NIB_MX_BLOCK) + 3] = 255;
    w.scales[23 * (k / NIB_MX_BLOCK)] = SCALE_MAX + 1;
    w.scales[(n - 1) * (k / NIB_MX_BLOCK) + 1] = 246;
    return w;
}

static bool is_nan_row(const struct matrix *w, uint32_t j)
{
    return j == 5 || j == 14 || j == 9 || j == 23 || j == w->n - 1;
}

/* In two pieces, the later first, as the loader may. */
static void repack(struct rig *rig, const struct matrix *w)
{
    const uint32_t cut = 64, blocks = w->k / NIB_MX_BLOCK;
    const nib_cu_ptr codes = rig_take(rig, (uint64_t)w->n * w->k), scales = rig_take(rig, (uint64_t)w->n * blocks);
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? w->n : cut;
        const struct nib_gpu_repack r = {
            .dst = rig->m.layer[0].out, .src = codes, .scales = scales, .n = w->n, .k = w->k, .n0 = n0, .n1 = n1};
        rig_up(rig, codes, w->codes + (uint64_t)n0 * w->k, (uint64_t)(n1 - n0) * w->k);
        rig_up(rig, scales, w->scales + (uint64_t)n0 * blocks, (uint64_t)(n1 - n0) * blocks);
        rig_up(rig, rig->m.repack, &r, sizeof r);
        (void)rig_launch(rig, NIB_GPU_REPACK_MXFP8, 0, (struct rig_bucket){0});
        rig_wait(rig);
    }
}

/* A weight below the smallest normal fp32 may be lost, or keep its sign alone. */
static bool same(float got, float want)
{
    return got == want || (fabsf(want) < 0x1p-126f && fabsf(got - want) <= 0x1p-126f);
}

void check_send_acts(struct check *c, const uint16_t *acts, uint32_t k)
{
    const uint32_t wide = (uint32_t)check_acts_wide(c);
    const uint64_t bytes = cu_batch_acts_bytes(k);
    rig_up(c->rig, c->rig->m.acts, acts, (uint64_t)check_rows(c) * wide * 2);
    if (!c->rig->k->has(NIB_GPU_OUT_BATCH))
        return;
    uint8_t *all = take(bytes);
    memset(all, 0xff, bytes);
    for (uint32_t r = 0; r < c->bucket.decode; r++)
        for (uint32_t w = 0; w < k / 2; w++)
            memcpy(all + cu_batch_acts_word(r, w), acts + (uint64_t)r * wide + w * 2, 4);
    rig_up(c->rig, c->rig->m.scratch + cu_batch_acts_at(), all, bytes);
    free(all);
}

/* x += W e(k), for a k of each row's own. Returns the wrong outputs. */
static uint32_t run_round(struct check *c, const struct matrix *w, uint32_t round, uint16_t *acts, float *x)
{
    const uint32_t rows = check_rows(c), wide = (uint32_t)check_acts_wide(c);
    uint32_t wrong = 0;
    memset(acts, 0, (uint64_t)rows * wide * 2);
    for (uint32_t r = 0; r < rows; r++)
        acts[(uint64_t)r * wide + (r * 61 + round * 67) % w->k] = 0x3f80; /* 1 */
    check_send_acts(c, acts, w->k);
    rig_fill(c->rig, c->rig->m.x, 0, (uint64_t)rows * w->n * 4);
    (void)rig_launch(c->rig, NIB_GPU_OUT, 0, c->bucket);
    (void)rig_launch(c->rig, NIB_GPU_OUT_BATCH, 0, c->bucket);
    (void)rig_launch(c->rig, NIB_GPU_OUT_PROMPT, 0, c->bucket);
    rig_down(c->rig, x, c->rig->m.x, (uint64_t)rows * w->n * 4);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < w->n; j++) {
            const uint64_t at = (uint64_t)j * w->k + (r * 61 + round * 67) % w->k;
            const float got = x[(uint64_t)r * w->n + j];
            const float want = nib_e4m3_decode(w->codes[at]) * nib_e8m0_decode(w->scales[at / NIB_MX_BLOCK]);
            const bool good = is_nan_row(w, j) ? isnan(got) : same(got, want);
            if (!good && wrong++ < 5)
                printf("row %u%s, output %u, code %#x, scale %u: %a, not %a\n", r,
                       r < c->bucket.decode ? "" : " (prompt)", j, w->codes[at], w->scales[at / NIB_MX_BLOCK],
                       (double)got, is_nan_row(w, j) ? (double)NAN : (double)want);
        }
    return wrong;
}

static int test_counts(struct rig *rig, struct model *model, const struct matrix *w, uint32_t decode, uint32_t prompt)
{
    struct model_run runs[SLOTS + 1];
    uint32_t count = check_decode_runs(runs, decode, CTX), wrong = 0;
    if (prompt)
        runs[count++] = (struct model_run){.slot = SLOTS - 1, .pos = 0, .count = prompt, .fresh = true};
    uint16_t *acts = take((uint64_t)ROWS * nib_q_dim(model->shape) * 2);
    float *x = take((uint64_t)ROWS * model->shape->hidden * 4);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct check c = check_begin(rig, model, "mxfp8 codes", runs, count);
        wrong += run_round(&c, w, round, acts, x);
    }
    printf("%s mxfp8: every code and scale, %u decode rows, %u prompt rows\n", wrong ? "FAILED" : "ok    ", decode,
           prompt);
    free(acts);
    free(x);
    return wrong != 0;
}

int rig_test_codes(struct rig *rig)
{
    struct model model;
    uint64_t seed = 77;
    rig_arena(rig, 1ull << 30, true);
    model_open(rig, &model, "tiny", SLOTS, CTX, ROWS, SLOTS * CTX / 64, 61);
    model_tables_even(rig, &model, CTX, SLOTS);
    rig_fill(rig, rig->m.layer[0].out_bias, 0, model.shape->hidden * 2ull);
    struct matrix w = make(model.shape->hidden, nib_q_dim(model.shape), &seed);
    repack(rig, &w);
    const int failures =
        test_counts(rig, &model, &w, 1, 0) + test_counts(rig, &model, &w, 9, 1) + test_counts(rig, &model, &w, 17, 300);
    free(w.codes);
    free(w.scales);
    model_close(&model);
    return failures;
}
