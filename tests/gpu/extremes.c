/* tests/gpu/extremes.c: inputs at the ends of their formats against arch/ref: every E8M0 scale and E2M1 code, activations that are
 * zero, tiny, huge or have one large element, and queries that make a softmax flat or a single one. One thread.
 *
 * Promised, and so tested: E8M0 codes 1 to 254 are 2^-126 to 2^127, as long as a sum stays inside fp32 (a larger one
 * becomes NaN, and its request fails); a block of code 0, 2^-127, counts as zeros; 255 makes NaN what it touches and nothing else (nibble pack refuses it). fp16 inputs of
 * experts lose what is below 2^-25. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"
#include "tests/gpu/check.h"
#include "tests/gpu/random.h"

enum { SLOTS = 40, CTX = 256, ROWS = 160 };

/* What an expert's scales are, by its number; at least 8 experts. */
static const struct scales {
    uint8_t low, high; /* codes, evenly */
    uint8_t codes;     /* mask of the elements: a weight of 2 or more at 254, of 4 at 253, is no fp32 */
    bool sparse;       /* only every 7th block has low..high, the others 121 */
    bool nan;
    double down; /* magnitude of the activations of the down product, so that its sums are in fp32's range */
} scales_of[8] = {
    {.low = 0, .high = 0, .codes = 0xff, .down = 0x1p9},
    {.low = 1, .high = 1, .codes = 0xff, .down = 0x1p9},
    {.low = 0, .high = 12, .codes = 0xff, .down = 0x1p9},
    {.low = 254, .high = 254, .codes = 0xbb, .down = 0x1p-12},
    {.low = 240, .high = 252, .codes = 0xff, .down = 0x1p-12},
    {.low = 0, .high = 252, .codes = 0xff, .down = 0x1p-12},
    {.low = 255, .high = 255, .codes = 0xff, .sparse = true, .nan = true, .down = 1},
    {.low = 0, .high = 0, .codes = 0xff, .sparse = true, .down = 1},
};

static void set_scales(struct model *model, uint8_t *matrix, uint64_t bytes, uint32_t n, uint32_t k)
{
    const uint64_t blocks = (uint64_t)n * k / 2, count = (uint64_t)n * k / 32;
    const uint32_t groups = k / 32, special = groups > 6 ? 6 : 0;
    for (uint32_t e = 0; e < model->shape->experts; e++) {
        const struct scales *s = &scales_of[e % 8];
        uint8_t *codes = matrix + e * bytes, *to = codes + blocks;
        for (uint64_t i = 0; i < blocks; i++)
            codes[i] &= s->codes;
        for (uint64_t i = 0; i < count; i++) {
            const uint32_t any = (uint32_t)(random_next(&model->seed) % (uint32_t)(s->high - s->low + 1));
            to[i] = (uint8_t)(s->sparse && i % groups % 7 != special ? 121 : s->low + any);
        }
    }
}

/* Blocks of scale code 0 become zeros in the reference's copy. */
static void zero_blocks(const struct model *model, uint8_t *matrix, uint64_t bytes, uint32_t n, uint32_t k)
{
    const uint64_t blocks = (uint64_t)n * k / 2, count = (uint64_t)n * k / 32;
    for (uint32_t e = 0; e < model->shape->experts; e++) {
        uint8_t *codes = matrix + e * bytes;
        for (uint64_t i = 0; i < count; i++)
            if (codes[blocks + i] == 0)
                memset(codes + i * 16, 0, 16);
    }
}

/* Every expert in turn: the router's biases choose four. */
static void choose_experts(struct rig *rig, struct model *model, uint32_t first)
{
    uint16_t *bias = model->layer.router_bias;
    const uint32_t experts = model->shape->experts;
    for (uint32_t e = 0; e < experts; e++)
        bias[e] = nib_bf16_encode(e >= first && e < first + 4 ? 50.0f : 0);
    rig_up(rig, rig->m.layer[0].router_bias, bias, experts * 2ull);
}

/* fp16 rows of random numbers of that magnitude. */
static void send_fp16(struct rig *rig, struct model *model, nib_gpu_ptr to, uint64_t count, double magnitude)
{
    uint16_t *p = malloc(count * 2);
    if (!p)
        rig_die("out of host memory");
    for (uint64_t i = 0; i < count; i++)
        p[i] = nib_fp16_encode((float)magnitude * model_normal(&model->seed));
    rig_up(rig, to, p, count * 2);
    free(p);
}

/* Rows that have one 1 and otherwise zeros: the product is one column of the weights. */
static void send_units(struct check *c, struct model *model, nib_gpu_ptr to, uint32_t rows, uint64_t stride, uint32_t k)
{
    uint16_t *p = calloc(rows * stride, 2);
    if (!p)
        rig_die("out of host memory");
    for (uint32_t r = 0; r < rows; r++)
        p[r * stride + random_next(&model->seed) % k] = nib_fp16_encode(1);
    check_order_gated(c, p, false);
    rig_up(c->rig, to, p, rows * stride * 2);
    free(p);
}

static struct check open_step(struct rig *rig, struct model *model, const char *what, uint32_t decode, uint32_t prompt)
{
    struct model_run runs[SLOTS];
    uint32_t n = check_decode_runs(runs, decode, CTX);
    if (prompt)
        runs[n++] = (struct model_run){.slot = SLOTS - 1, .pos = 0, .count = prompt, .fresh = true};
    struct check c = check_begin(rig, model, what, runs, n);
    check_embed(&c);
    return c;
}

static int test_scales(struct rig *rig, struct model *model, uint32_t decode, uint32_t prompt)
{
    const struct nib_shape *s = model->shape;
    const uint32_t rows = decode + prompt;
    int failures = 0;
    for (uint32_t first = 0; first < 8; first += 4) {
        choose_experts(rig, model, first);
        struct check c = open_step(rig, model, "scales", decode, prompt);
        check_route(&c);
        for (c.expert = first; c.expert < first + 4; c.expert++) {
            const struct scales *of = &scales_of[c.expert];
            char what[48];
            (void)snprintf(what, sizeof what, "scales %u..%u%s", of->low, of->high, of->sparse ? ", few" : "");
            c.what = what;
            c.nan = of->nan;
            send_fp16(rig, model, rig->m.acts, rows * check_acts_wide(&c), 0x1p-12);
            check_order_acts(&c);
            check_experts(&c, true);
            send_fp16(rig, model, rig->m.gated, (uint64_t)rows * s->experts_used * s->intermediate, of->down);
            check_experts(&c, false);
        }
        c.what = "scales";
        failures += check_report(&c);
    }
    return failures;
}

/* Products with one input 1 and no bias are the weights, to the bit. */
static int test_codes(struct rig *rig, struct model *model, uint32_t decode, uint32_t prompt)
{
    const struct nib_shape *s = model->shape;
    struct check c = open_step(rig, model, "codes", decode, prompt);
    check_route(&c);
    send_units(&c, model, rig->m.gated, (decode + prompt) * s->experts_used, s->intermediate, s->intermediate);
    c.bound = 1e-300;
    check_experts(&c, false);
    return check_report(&c);
}

static int test_experts(struct rig *rig, const char *shape, bool scales)
{
    struct model model;
    int failures = 0;
    const struct nib_shape *s = nib_shape_find(shape);
    rig_arena(rig, 2ull << 30, true);
    model_make(rig, &model, s, SLOTS, CTX, ROWS, SLOTS * CTX / 64, 41);
    memset(model.layer.up_bias, 0, (uint64_t)s->experts * 2 * s->intermediate * 2);
    memset(model.layer.down_bias, 0, (uint64_t)s->experts * s->hidden * 2);
    if (scales) {
        set_scales(&model, model.layer.up, model.up_bytes, 2 * s->intermediate, s->hidden);
        set_scales(&model, model.layer.down, model.down_bytes, s->hidden, s->intermediate);
    }
    model_load(rig, &model);
    if (scales) {
        zero_blocks(&model, model.layer.up, model.up_bytes, 2 * s->intermediate, s->hidden);
        zero_blocks(&model, model.layer.down, model.down_bytes, s->hidden, s->intermediate);
    }
    model_tables_even(rig, &model, CTX, SLOTS);
    static const uint32_t rows[][2] = {{1, 0}, {9, 0}, {33, 0}, {0, 3}, {0, 140}, {6, 70}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        failures += (scales ? test_scales : test_codes)(rig, &model, rows[i][0], rows[i][1]);
    model_close(&model);
    return failures;
}

/* Kinds of activations. */
enum kind { ZERO, SUBNORMAL, TINY, SMALL, LARGE, ONE_LARGE, KIND_COUNT };
static const char *const kind_name[KIND_COUNT] = {"zeros", "subnormals", "tiny", "small", "large", "one large"};

static float kind_of(enum kind kind, uint64_t i, uint64_t *seed)
{
    const float v = model_normal(seed);
    switch (kind) {
    case ZERO:
        return 0;
    case SUBNORMAL:
        return v * 0x1p-130f;
    case TINY:
        return v * 1e-30f;
    case SMALL:
        return v * 1e-3f; /* the norm's scale is near its largest */
    case LARGE:
        return v * 1e15f; /* the sum of squares stays inside fp32 */
    default:
        return i % 37 == 5 ? 1e4f : v;
    }
}

/* Steps whose residual stream is of one kind, then one whose products' inputs are, then one whose queries are. */
static int test_kind(struct rig *rig, struct model *model, enum kind kind, uint32_t decode, uint32_t prompt)
{
    const struct nib_shape *s = model->shape;
    const uint32_t rows = decode + prompt;
    struct check c = open_step(rig, model, kind_name[kind], decode, prompt);
    const uint64_t wide = check_acts_wide(&c), x_count = (uint64_t)rows * s->hidden, q_count = rows * nib_q_dim(s);
    const float less = kind == LARGE ? 1e-9f : 1; /* the router's parts stay below ROUTE_MOST */
    float *x = malloc(x_count * 4);
    uint16_t *acts = malloc(rows * wide * 2), *q = malloc(q_count * 2);
    if (!x || !acts || !q)
        rig_die("out of host memory");
    for (uint64_t i = 0; i < x_count; i++)
        x[i] = kind_of(kind, i, &model->seed) * less;
    for (uint64_t i = 0; i < rows * wide; i++)
        acts[i] = nib_bf16_encode(kind_of(kind, i, &model->seed));
    for (uint64_t i = 0; i < q_count; i++) /* one large: each head's scores are, and one key has all the weight */
        q[i] = nib_bf16_encode(kind_of(kind, i, &model->seed));
    for (c.layer = 0; c.layer < 2; c.layer++) {
        rig_up(rig, rig->m.acts, acts, rows * wide * 2);
        check_qkv(&c);
        rig_up(rig, rig->m.q, q, q_count * 2);
        check_attn(&c);
        rig_up(rig, rig->m.acts, acts, rows * wide * 2);
        rig_up(rig, rig->m.x, x, x_count * 4);
        check_out(&c);
        rig_up(rig, rig->m.x, x, x_count * 4);
        check_route(&c);
        check_experts(&c, true);
        check_experts(&c, false);
        check_combine(&c);
    }
    c.layer = 0;
    rig_up(rig, rig->m.acts, acts, rows * wide * 2);
    check_head(&c);
    free(x);
    free(acts);
    free(q);
    return check_report(&c);
}

static int test_activations(struct rig *rig, const char *shape)
{
    struct model model;
    int failures = 0;
    rig_arena(rig, 2ull << 30, true);
    model_open(rig, &model, shape, SLOTS, CTX, ROWS, SLOTS * CTX / 64, 43);
    model_tables_even(rig, &model, CTX, SLOTS);
    for (int kind = 0; kind < KIND_COUNT; kind++)
        failures += test_kind(rig, &model, (enum kind)kind, 5, 0) + test_kind(rig, &model, (enum kind)kind, 3, 30);
    model_close(&model);
    return failures;
}

int rig_test_extremes(struct rig *rig)
{
    return test_experts(rig, "tiny", true) + test_experts(rig, "20b-slice", true) + test_experts(rig, "tiny", false) +
           test_experts(rig, "20b-slice", false) + test_activations(rig, "tiny") + test_activations(rig, "20b-slice");
}
