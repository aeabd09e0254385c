/* tests/engine_fixture.h: a CPU engine on a seeded model made in memory, for tests of the engine and its kernels.
 *
 * The image never touches a disk: the weights of `nibble synth` are written where nib_image_map would map them. The
 * arena starts as NaNs (all bits set), so what the engine reads before it wrote it shows. */
#ifndef NIB_TESTS_ENGINE_FIXTURE_H
#define NIB_TESTS_ENGINE_FIXTURE_H

#include "arch/cpu.h"
#include "arch/table.h"
#include "core/arith.h"
#include "core/plan.h"
#include "core/sample.h"
#include "tests/harness.h"
#include "tools/synth_weights.h"

struct fixture_options {
    const char *shape;
    const struct nib_kernels *kernels;
    enum nib_dense dense;
    enum nib_kv_form kv;
    uint64_t seed;
    uint32_t ctx_tokens, slots, step_rows_max, threads, draft_tokens;
    /* changes the image's tensors before the hashes are made; or NULL */
    void (*patch)(uint8_t *image_base, const struct nib_image *image);
    bool wrong_hash; /* the hash of the last tensor is not its own */
};

struct fixture {
    struct nib_image image;
    uint8_t *image_base;
    struct nib_row_facts facts;
    struct nib_profile profile;
    struct nib_plan plan;
    void *base[NIB_SPACE_COUNT];
    struct nib_engine *engine;
    struct nib_sampling sampling[NIB_MAX_SLOTS];
    struct nib_kv_table tables[NIB_MAX_SLOTS];
    uint32_t *pages[NIB_MAX_SLOTS]; /* [slots][pages of the context] */
    struct nib_step step;
    struct nib_step_out out;
    uint64_t serial;
    bool poison; /* scratch and free bytes become NaN before each step */
};

static inline void *fixture_alloc(uint64_t bytes)
{
    void *p = aligned_alloc(4096, nib_round_up(bytes, 4096));
    ck_assert_ptr_nonnull(p);
    return p;
}

static inline void fixture_image(struct fixture *f, const struct fixture_options *o)
{
    const struct nib_shape *shape = nib_shape_find(o->shape);
    ck_assert_ptr_nonnull(shape);
    ck_assert_int_eq(nib_image_layout(shape, o->dense, "seeded", 1, 1, &f->image, NULL), NIB_OK);
    f->image_base = fixture_alloc(f->image.file_bytes);
    for (uint32_t i = 0; i < f->image.tensor_count; i++) {
        const struct nib_tensor *t = &f->image.tensors[i];
        const struct nib_synth_piece piece = {.id = t->id, .layer = t->layer, .dense = o->dense, .bytes = t->bytes};
        if (t->id != NIB_T_TOKENIZER && t->id != NIB_T_GENERATION)
            nib_synth_fill(shape, o->seed, &piece, f->image_base + t->offset);
    }
    if (o->patch)
        o->patch(f->image_base, &f->image);
    for (uint32_t i = 0; i < f->image.tensor_count; i++) {
        struct nib_tensor *t = &f->image.tensors[i];
        nib_sha256(f->image_base + t->offset, t->bytes, t->sha256);
    }
}

/* Row facts of kernels that need not be in the capability table of this machine. */
static inline struct nib_row_facts fixture_facts(const struct nib_kernels *k)
{
    const struct nib_arch_row row = {.name = k->name, .kernels = k};
    return nib_arch_facts(&row);
}

/* Makes image, plan and arena; the engine is not opened. */
static inline void fixture_prepare(struct fixture *f, const struct fixture_options *o)
{
    memset(f, 0, sizeof *f);
    fixture_image(f, o);
    f->facts = fixture_facts(o->kernels);
    f->profile =
        (struct nib_profile){.name = "test", .memory_bytes = 20ull << 30, .read_bytes_s = 1e10, .flops_bf16_s = 1e12};
    const struct nib_plan_request request = {.profile = &f->profile,
                                             .row = &f->facts,
                                             .shape = f->image.shape,
                                             .dense = f->image.dense,
                                             .kv = o->kv,
                                             .ctx_tokens = o->ctx_tokens,
                                             .slots = o->slots,
                                             .step_rows_max = o->step_rows_max,
                                             .threads = o->threads,
                                             .draft_tokens = o->draft_tokens,
                                             .prefix_off = true};
    struct nib_msg msg = {""};
    ck_assert_msg(nib_plan_make(&request, &f->plan, &msg) == NIB_OK, "%s", msg.text);
    f->base[NIB_SPACE_HOST] = fixture_alloc(f->plan.arena_bytes[NIB_SPACE_HOST]);
    memset(f->base[NIB_SPACE_HOST], 0xff, f->plan.arena_bytes[NIB_SPACE_HOST]);
}

static inline struct nib_cpu_open fixture_args(struct fixture *f, const struct fixture_options *o)
{
    struct nib_cpu_open open = {
        .plan = &f->plan, .kernels = o->kernels, .image = &f->image, .image_base = f->image_base};
    memcpy(open.base, f->base, sizeof f->base);
    return open;
}

/* Slot s gets pages s, s + slots, s + 2 slots, ...: every slot's pages are spread over the pool. */
static inline void fixture_tables(struct fixture *f)
{
    const uint32_t slots = f->plan.dims.slots, count = f->plan.dims.kv_pages / slots;
    for (uint32_t s = 0; s < slots; s++) {
        f->pages[s] = malloc(count * sizeof(uint32_t));
        ck_assert_ptr_nonnull(f->pages[s]);
        for (uint32_t i = 0; i < count; i++)
            f->pages[s][i] = s + i * slots;
        f->tables[s] = (struct nib_kv_table){.pages = f->pages[s], .pages_count = count};
        nib_sample_defaults(&f->sampling[s]);
    }
}

static inline void fixture_open(struct fixture *f, const struct fixture_options *o)
{
    fixture_prepare(f, o);
    const struct nib_cpu_open open = fixture_args(f, o);
    struct nib_msg msg = {""};
    ck_assert_msg(nib_cpu_engine_open(&open, &f->engine, &msg) == NIB_OK, "%s", msg.text);
    fixture_tables(f);
}

static inline void fixture_close(struct fixture *f)
{
    if (f->engine)
        f->engine->ops->close(f->engine);
    for (uint32_t s = 0; s < f->plan.dims.slots; s++)
        free(f->pages[s]);
    free(f->base[NIB_SPACE_HOST]);
    free(f->image_base);
}

/* Every scratch region, and every page of the pool that no table of `slots_used` slots names. */
static inline void fixture_poison(struct fixture *f, uint32_t slots_used)
{
    for (int kind = NIB_R_X; kind <= NIB_R_ROPE; kind++) {
        const struct nib_region *r = nib_plan_region(&f->plan, (enum nib_region_kind)kind, -1);
        if (r) /* some are a GPU's */
            memset((uint8_t *)f->base[NIB_SPACE_HOST] + r->offset, 0xff, r->bytes);
    }
    const uint32_t pages = f->plan.dims.kv_pages;
    const uint64_t page =
        nib_plan_page_bytes(&f->facts, f->plan.kv, f->image.shape->kv_heads) * (f->image.shape->layers / 2);
    uint8_t *pool = nib_plan_carve(&f->plan, NIB_R_KV_FULL, -1, f->base);
    bool *used = calloc(pages, sizeof *used);
    ck_assert_ptr_nonnull(used);
    for (uint32_t s = 0; s < slots_used; s++)
        for (uint32_t i = 0; i < f->tables[s].pages_count; i++)
            used[f->tables[s].pages[i]] = true;
    for (uint32_t p = 0; p < pages; p++)
        if (!used[p])
            memset(pool + p * page, 0xff, page);
    free(used);
}

static inline void fixture_begin(struct fixture *f)
{
    f->step.serial = ++f->serial;
    f->step.rows_count = f->step.loads_count = f->step.saves_count = 0;
    f->step.tables = f->tables;
    f->step.sampling = f->sampling;
    f->step.logits = NULL;
}

static inline void fixture_row(struct fixture *f, uint32_t slot, uint32_t pos, uint32_t token, uint32_t flags)
{
    if (pos == 0)
        flags |= NIB_ROW_FIRST;
    f->step.rows[f->step.rows_count++] =
        (struct nib_row){.token = token, .pos = pos, .slot = (uint16_t)slot, .flags = (uint16_t)flags};
}

/* Runs the step; logits (or NULL) gets the rows that want them. */
static inline void fixture_run(struct fixture *f, float *logits)
{
    struct nib_msg msg = {""};
    if (f->poison)
        fixture_poison(f, f->plan.dims.slots);
    f->step.logits = logits;
    ck_assert_msg(f->engine->ops->submit(f->engine, &f->step, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_msg(f->engine->ops->collect(f->engine, &f->out, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_uint_eq(f->out.serial, f->step.serial);
}

/* Feeds tokens[from..to) of a slot's sequence in chunks of prompt rows; the last row wants logits. */
static inline void fixture_prefill(struct fixture *f, uint32_t slot, const uint32_t *tokens, uint32_t from, uint32_t to,
                                   uint32_t chunk, float *logits)
{
    while (from < to) {
        uint32_t end = from + chunk < to ? from + chunk : to;
        fixture_begin(f);
        for (; from < end; from++)
            fixture_row(f, slot, from, tokens[from], from + 1 == to ? NIB_ROW_LOGITS : 0);
        fixture_run(f, from == to ? logits : NULL);
    }
}

/* Lets `to` begin behind the first `count` pages of slot `from`, whose rings stand at page `count` or at most a step
 * further: the tables share the pages; window pages go through spare pages of the pool, and the step that loads them is
 * the one that feeds tokens[64 count .. end). */
static inline void fixture_begin_warm(struct fixture *f, uint32_t from, uint32_t to, uint32_t count,
                                      const uint32_t *spare, const uint32_t *tokens, uint32_t end, float *logits)
{
    const uint32_t first = count < 2 ? 0 : count - 2;
    memcpy(f->pages[to], f->pages[from], count * sizeof(uint32_t));
    fixture_begin(f); /* any step of another kind carries the saves */
    for (uint32_t i = first; i < count; i++)
        f->step.saves[f->step.saves_count++] =
            (struct nib_kv_copy){.page = spare[i - first], .index = i, .slot = (uint16_t)from};
    fixture_row(f, to, 0, 0, 0);
    const struct nib_kv_table table = f->tables[to];
    f->tables[to] = (struct nib_kv_table){.pages = spare + 2, .pages_count = 1};
    fixture_run(f, NULL);
    f->tables[to] = table;
    fixture_begin(f);
    for (uint32_t i = first; i < count; i++)
        f->step.loads[f->step.loads_count++] =
            (struct nib_kv_copy){.page = spare[i - first], .index = i, .slot = (uint16_t)to};
    for (uint32_t p = count * NIB_KV_PAGE_TOKENS; p < end; p++)
        fixture_row(f, to, p, tokens[p],
                    (p == count * NIB_KV_PAGE_TOKENS ? NIB_ROW_FIRST : 0) | (p + 1 == end ? NIB_ROW_LOGITS : 0));
    fixture_run(f, logits);
}

/* One decode row. */
static inline uint32_t fixture_decode(struct fixture *f, uint32_t slot, uint32_t pos, uint32_t token, float *logits)
{
    fixture_begin(f);
    fixture_row(f, slot, pos, token, NIB_ROW_DECODE | NIB_ROW_LOGITS);
    fixture_run(f, logits);
    return f->out.sampled[0].token;
}

/* One slot's last token and a draft behind it, as one step; logits of all rows. */
static inline void fixture_draft(struct fixture *f, uint32_t slot, uint32_t pos, const uint32_t *tokens, uint32_t rows,
                                 float *logits)
{
    fixture_begin(f);
    for (uint32_t i = 0; i < rows; i++)
        fixture_row(f, slot, pos + i, tokens[i], NIB_ROW_DECODE | NIB_ROW_LOGITS);
    fixture_run(f, logits);
}

/* `count` ordinary token ids of a seed. */
static inline void fixture_tokens(const struct nib_shape *shape, uint64_t seed, uint32_t *tokens, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(nib_test_rand(&seed) % shape->special_base);
}

#endif
