/* tests/kernels/engine_test.c: the promises of core/engine.h, shown bit for bit on every row of the capability table that
 * this machine can run: a row's result does not depend on chunks, neighbours, pages, threads, or on what memory held
 * before. On ref, a token gives the same bits as prompt and as answer. */
#include <math.h>

#include "core/mx.h"
#include "tests/engine_fixture.h"

enum { VOCAB = 288, LONG = 420 };

static const struct fixture_options nano = {.shape = "nano",
                                            .kernels = &nib_kernels_ref,
                                            .seed = 11,
                                            .ctx_tokens = 512,
                                            .slots = 3,
                                            .step_rows_max = 64,
                                            .threads = 2};
static struct fixture f, g; /* large: not on the stack */
static uint32_t tokens[2048];
static float want[VOCAB], got[NIB_MAX_SLOTS * VOCAB];

static void expect_same(const float *a, const float *b)
{
    for (uint32_t i = 0; i < VOCAB; i++)
        ck_assert_msg(isfinite(a[i]) && memcmp(&a[i], &b[i], sizeof a[i]) == 0, "logit %u: %a and %a", i, (double)a[i],
                      (double)b[i]);
}

/* Runs a test with the kernels of each row, in each form of KV pages. */
static void on_every_row(void (*test)(const struct fixture_options *base))
{
    struct nib_profile profile;
    ck_assert_int_eq(nib_arch_probe_cpu(&profile, NULL), NIB_OK);
    size_t count, ran = 0;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    for (size_t i = 0; i < count; i++) {
        if (!rows[i].kernels || nib_arch_refusal(&rows[i], &profile, 0))
            continue;
        for (enum nib_kv_form kv = 0; kv < NIB_KV_FORMS; kv++) {
            struct fixture_options base = nano;
            base.kernels = rows[i].kernels;
            base.kv = kv;
            printf("row %s, %s\n", rows[i].name, nib_kv_form_name(kv));
            test(&base);
        }
        ran++;
    }
    ck_assert_uint_ge(ran, 1);
}

/* Past the window (128), past the ring of the small engine (4 pages, 256 tokens), any chunks, token by token as prompt
 * and as answer: the same bits as one step of all rows. */
static void try_chunks_do_not_matter(const struct fixture_options *base)
{
    struct fixture_options one = *base;
    one.step_rows_max = 512;
    fixture_open(&f, &one);
    fixture_tokens(f.image.shape, 1, tokens, LONG);
    fixture_prefill(&f, 0, tokens, 0, LONG, LONG, want);
    fixture_close(&f);

    fixture_open(&f, base);
    ck_assert_uint_eq(f.plan.ring_pages, 4);
    const uint32_t chunks[] = {64, 63, 17, 5, 1};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        fixture_prefill(&f, (uint32_t)i % 3, tokens, 0, LONG, chunks[i], got);
        expect_same(got, want);
    }
    if (base->kernels == &nib_kernels_ref) {
        fixture_prefill(&f, 1, tokens, 0, 1, 1, NULL);
        for (uint32_t p = 1; p < LONG; p++)
            fixture_decode(&f, 1, p, tokens[p], got);
        expect_same(got, want);
    }
    fixture_close(&f);
}

START_TEST(chunks_do_not_matter)
{
    on_every_row(try_chunks_do_not_matter);
}
END_TEST

/* Slot 1's sequence among a prefill before it and an answer after it, which change all the time. */
static void try_neighbours_do_not_matter(const struct fixture_options *base)
{
    enum { COUNT = 150 };
    fixture_open(&f, base);
    fixture_tokens(f.image.shape, 2, tokens, 512);
    fixture_prefill(&f, 1, tokens, 0, COUNT, 20, want);

    uint32_t other = 0, third = 1;
    fixture_prefill(&f, 2, tokens + 7, 0, 1, 1, NULL);
    for (uint32_t p = 0; p < COUNT;) {
        fixture_begin(&f);
        for (uint32_t n = 1 + p % 13; n > 0; n--, other++)
            fixture_row(&f, 0, other, tokens[511 - other], n == 1 ? NIB_ROW_LOGITS : 0);
        for (uint32_t n = 1 + p % 11; n > 0 && p < COUNT; n--, p++)
            fixture_row(&f, 1, p, tokens[p], p + 1 == COUNT ? NIB_ROW_LOGITS : 0);
        fixture_row(&f, 2, third, tokens[third + 7], NIB_ROW_DECODE | NIB_ROW_LOGITS);
        third++;
        fixture_run(&f, got);
    }
    ck_assert_uint_eq(f.out.count, 3);
    ck_assert_uint_eq(f.out.sampled[1].slot, 1);
    expect_same(got + VOCAB, want);

    /* and as a decode row between them */
    uint32_t answer = fixture_decode(&f, 1, COUNT, 5, want);
    fixture_begin(&f);
    fixture_row(&f, 0, other, 3, NIB_ROW_LOGITS);
    fixture_row(&f, 1, COUNT, 5, NIB_ROW_DECODE | NIB_ROW_LOGITS);
    fixture_row(&f, 2, third, 4, NIB_ROW_DECODE | NIB_ROW_LOGITS);
    fixture_run(&f, got);
    expect_same(got + VOCAB, want);
    ck_assert_uint_eq(f.out.sampled[1].token, answer);
    fixture_close(&f);
}

START_TEST(neighbours_do_not_matter)
{
    on_every_row(try_neighbours_do_not_matter);
}
END_TEST

static void try_pages_do_not_matter(const struct fixture_options *base)
{
    enum { COUNT = 300 };
    fixture_open(&f, base);
    fixture_tokens(f.image.shape, 3, tokens, COUNT);
    fixture_prefill(&f, 0, tokens, 0, COUNT, 64, want);
    uint64_t seed = nib_test_seed();
    for (int round = 0; round < 5; round++) {
        /* a shuffle of the whole pool; slot 0 takes the first pages */
        static uint32_t pool[24];
        ck_assert_uint_eq(f.plan.dims.kv_pages, 24);
        for (uint32_t i = 0; i < 24; i++)
            pool[i] = i;
        for (uint32_t i = 23; i > 0; i--) {
            uint32_t j = (uint32_t)(nib_test_rand(&seed) % (i + 1)), t = pool[i];
            pool[i] = pool[j];
            pool[j] = t;
        }
        f.tables[0] = (struct nib_kv_table){.pages = pool, .pages_count = 5 + (uint32_t)round % 4};
        fixture_prefill(&f, 0, tokens, 0, COUNT, 64, got);
        expect_same(got, want);
    }
    fixture_close(&f);
}

START_TEST(pages_do_not_matter)
{
    on_every_row(try_pages_do_not_matter);
}
END_TEST

/* A sequence that begins behind pages which another slot computed, with window pages copied to kept ones and back: the same
 * bits as computed from its start; and the pages it shares stay as they are. */
static void try_a_warm_begin_changes_nothing(const struct fixture_options *base)
{
    enum { END = 404 };
    for (uint32_t count = 1; count <= 6; count++) {
        const uint32_t keep = count * NIB_KV_PAGE_TOKENS, end = keep + 20;
        const uint32_t spare[] = {21, 22, 23};
        fixture_open(&f, base);
        ck_assert_uint_eq(f.plan.dims.kv_pages, 24);
        fixture_tokens(f.image.shape, 6, tokens, END + 100);
        fixture_prefill(&f, 0, tokens, 0, end, 64, want);      /* cold */
        fixture_prefill(&f, 1, tokens + 50, 0, 300, 64, NULL); /* what slot 1's rings held before */
        /* another sequence with the same first pages goes on differently, up to where the ring still has them */
        fixture_prefill(&f, 0, tokens, 0, keep, 64, NULL);
        fixture_prefill(&f, 0, tokens + 70, keep, keep + 64, 64, NULL);
        for (uint32_t s = 0; s < 2; s++)
            f.tables[s].pages_count = 7;
        fixture_begin_warm(&f, 0, 1, count, spare, tokens, end, got);
        expect_same(got, want);
        fixture_prefill(&f, 2, tokens, 0, end, 64, want);
        fixture_decode(&f, 2, end, 7, want);
        fixture_decode(&f, 1, end, 7, got);
        expect_same(got, want);
        fixture_close(&f);
    }
}

START_TEST(a_warm_begin_changes_nothing)
{
    on_every_row(try_a_warm_begin_changes_nothing);
}
END_TEST

static void try_memory_before_does_not_matter(const struct fixture_options *base)
{
    enum { COUNT = 200 };
    fixture_open(&f, base);
    fixture_open(&g, base);
    fixture_tokens(f.image.shape, 4, tokens, 512);
    fixture_prefill(&f, 0, tokens, 0, COUNT, 64, want);

    /* g: a longer sequence in the same slot before, and NaN in everything that is not live before each step */
    fixture_prefill(&g, 0, tokens + 100, 0, 400, 64, NULL);
    g.poison = true;
    fixture_prefill(&g, 0, tokens, 0, COUNT, 64, got);
    expect_same(got, want);
    fixture_decode(&f, 0, COUNT, 9, want);
    fixture_decode(&g, 0, COUNT, 9, got);
    expect_same(got, want);
    fixture_close(&f);
    fixture_close(&g);
}

START_TEST(memory_before_does_not_matter)
{
    on_every_row(try_memory_before_does_not_matter);
}
END_TEST

static void try_threads_do_not_matter(const struct fixture_options *base)
{
    fixture_tokens(nib_shape_find("tiny"), 5, tokens, 140);
    static float first[512], other[512];
    struct fixture_options o = *base;
    o.shape = "tiny";
    for (uint32_t threads = 1; threads <= 3; threads++) {
        o.threads = threads;
        fixture_open(&f, &o);
        fixture_prefill(&f, 0, tokens, 0, 140, 64, threads == 1 ? first : other);
        if (threads > 1)
            ck_assert_mem_eq(first, other, sizeof first);
        fixture_close(&f);
    }
}

START_TEST(threads_do_not_matter)
{
    on_every_row(try_threads_do_not_matter);
}
END_TEST

static void try_feedback_is_the_last_token(const struct fixture_options *base)
{
    fixture_open(&f, base);
    fixture_tokens(f.image.shape, 6, tokens, 10);
    for (uint32_t s = 0; s < 2; s++)
        fixture_prefill(&f, s, tokens, 0, 10, 10, NULL);
    uint32_t token = f.out.sampled[0].token;
    for (uint32_t p = 10; p < 30; p++) {
        fixture_begin(&f);
        fixture_row(&f, 0, p, token, NIB_ROW_DECODE | NIB_ROW_LOGITS);
        fixture_row(&f, 1, p, 0xffffffff, NIB_ROW_DECODE | NIB_ROW_LOGITS | NIB_ROW_FEEDBACK);
        fixture_run(&f, got);
        expect_same(got, got + VOCAB);
        ck_assert_uint_eq(f.out.sampled[0].token, f.out.sampled[1].token);
        token = f.out.sampled[0].token;
    }
    fixture_close(&f);
}

START_TEST(feedback_is_the_last_token)
{
    on_every_row(try_feedback_is_the_last_token);
}
END_TEST

/* A draft's rows have the bits of rows that come one by one: logits, tokens drawn, with right guesses and with wrong
 * ones, whose keys and values are then computed again; past the end of a ring. */
static void try_a_draft_changes_nothing(const struct fixture_options *base)
{
    enum { FROM = 250, ROWS = 16, ROUNDS = 6 };
    static float alone[ROUNDS * ROWS][VOCAB];
    uint32_t drawn[ROUNDS * ROWS];
    struct fixture_options o = *base;
    o.draft_tokens = NIB_MAX_DRAFT_TOKENS;
    fixture_open(&f, &o);
    ck_assert_uint_eq(f.plan.dims.want_rows_max, 3 + NIB_MAX_DRAFT_TOKENS);
    fixture_tokens(f.image.shape, 9, tokens, 600);
    for (uint32_t s = 0; s < 2; s++)
        f.sampling[s] = (struct nib_sampling){
            .temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .seed = 77, .logprobs = true, .top_logprobs = 2};
    fixture_prefill(&f, 0, tokens, 0, FROM, 64, NULL);
    for (uint32_t i = 0; i < ROUNDS * ROWS; i++)
        drawn[i] = fixture_decode(&f, 0, FROM + i, tokens[FROM + i], alone[i]);
    fixture_prefill(&f, 1, tokens, 0, FROM, 64, NULL);
    fixture_prefill(&f, 2, tokens, 0, 20, 20, NULL);
    for (uint32_t at = 0, good = 1; at < ROUNDS * ROWS; at += good, good = good % ROWS + 5) {
        uint32_t rows[ROWS];
        good = good > ROWS ? ROWS : good;
        good = good > ROUNDS * ROWS - at ? ROUNDS * ROWS - at : good;
        for (uint32_t i = 0; i < ROWS; i++) /* guesses from `good` on are wrong */
            rows[i] = i < good ? tokens[FROM + at + i] : (tokens[FROM + at + i] + 1) % 256;
        fixture_begin(&f);
        fixture_row(&f, 2, 20, 3, NIB_ROW_DECODE | NIB_ROW_LOGITS);
        for (uint32_t i = 0; i < ROWS; i++)
            fixture_row(&f, 1, FROM + at + i, rows[i], NIB_ROW_DECODE | NIB_ROW_LOGITS);
        fixture_run(&f, got);
        ck_assert_uint_eq(f.out.count, 1 + ROWS);
        for (uint32_t i = 0; i < good; i++) {
            expect_same(got + (1 + i) * VOCAB, alone[at + i]);
            ck_assert_uint_eq(f.out.sampled[1 + i].slot, 1);
            ck_assert_uint_eq(f.out.sampled[1 + i].token, drawn[at + i]);
            ck_assert_uint_eq(f.out.sampled[1 + i].top_count, 2);
        }
    }
    fixture_close(&f);
}

START_TEST(a_draft_changes_nothing)
{
    on_every_row(try_a_draft_changes_nothing);
}
END_TEST

static void try_bad(const struct nib_row *row)
{
    struct nib_msg msg = {""};
    fixture_begin(&f);
    f.step.rows[f.step.rows_count++] = *row;
    ck_assert_int_eq(f.engine->ops->submit(f.engine, &f.step, &msg), NIB_E_ARG);
    ck_assert_uint_gt(strlen(msg.text), 0);
    ck_assert_int_eq(f.engine->ops->collect(f.engine, &f.out, &msg), NIB_E_STATE);
}

START_TEST(a_step_that_breaks_a_rule_changes_nothing)
{
    fixture_open(&f, &nano);
    fixture_tokens(f.image.shape, 7, tokens, 40);
    fixture_prefill(&f, 0, tokens, 0, 30, 30, NULL);
    fixture_decode(&f, 0, 30, 1, want);
    fixture_prefill(&f, 0, tokens, 0, 30, 30, NULL);
    const struct nib_row bad[] = {
        {.token = VOCAB, .pos = 5, .slot = 0},            /* no such token */
        {.token = 1, .pos = 5, .slot = 3},                /* no such slot */
        {.token = 1, .pos = 512, .slot = 0},              /* past the context */
        {.token = 1, .pos = 5, .slot = 0, .flags = 0x80}, /* no such flag */
        {.token = 1, .pos = 0, .slot = 0},                /* a beginning without FIRST */
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        try_bad(&bad[i]);
    f.tables[0].pages_count = 1;
    try_bad(&(struct nib_row){.token = 1, .pos = 64, .slot = 0}); /* no page there */
    f.tables[0].pages_count = 8;
    fixture_begin(&f);
    struct nib_msg msg;
    ck_assert_int_eq(f.engine->ops->submit(f.engine, &f.step, &msg), NIB_E_ARG); /* no rows */
    fixture_decode(&f, 0, 30, 1, got);
    expect_same(got, want);
    fixture_close(&f);
}
END_TEST

START_TEST(a_result_is_collected_once)
{
    struct nib_msg msg;
    fixture_open(&f, &nano);
    ck_assert_int_eq(f.engine->ops->collect(f.engine, &f.out, &msg), NIB_E_STATE);
    fixture_begin(&f);
    fixture_row(&f, 0, 0, 1, NIB_ROW_LOGITS);
    ck_assert_int_eq(f.engine->ops->submit(f.engine, &f.step, &msg), NIB_OK);
    ck_assert_int_eq(f.engine->ops->submit(f.engine, &f.step, &msg), NIB_E_STATE);
    ck_assert_int_eq(f.engine->ops->collect(f.engine, &f.out, &msg), NIB_OK);
    ck_assert_uint_eq(f.out.count, 1);
    ck_assert_int_eq(f.engine->ops->collect(f.engine, &f.out, &msg), NIB_E_STATE);
    fixture_begin(&f);
    fixture_row(&f, 0, 1, 1, 0); /* nobody wants a token */
    fixture_run(&f, NULL);
    ck_assert_uint_eq(f.out.count, 0);
    fixture_close(&f);
}
END_TEST

/* Token 7's embedding is a NaN. */
static void spoil_token(uint8_t *base, const struct nib_image *image)
{
    uint8_t *row = base + nib_image_tensor(image, NIB_T_EMBED, 0)->offset + 7ull * image->shape->hidden * 2;
    row[0] = 0xc0;
    row[1] = 0x7f;
}

static void try_a_nan_fails_its_own_row(const struct fixture_options *base)
{
    struct fixture_options o = *base;
    o.patch = spoil_token;
    fixture_open(&f, &o);
    for (uint32_t i = 0; i < 40; i++)
        tokens[i] = 8 + i;
    fixture_prefill(&f, 1, tokens, 0, 20, 20, want);
    ck_assert(!f.out.sampled[0].failed);
    fixture_begin(&f);
    fixture_row(&f, 0, 0, 7, NIB_ROW_LOGITS);
    for (uint32_t p = 0; p < 20; p++)
        fixture_row(&f, 1, p, tokens[p], p == 19 ? NIB_ROW_LOGITS : 0);
    fixture_run(&f, got);
    ck_assert(f.out.sampled[0].failed);
    ck_assert(!f.out.sampled[1].failed);
    expect_same(got + VOCAB, want);
    /* the slot is clean again for the next sequence */
    fixture_prefill(&f, 0, tokens, 0, 20, 20, got);
    ck_assert(!f.out.sampled[0].failed);
    expect_same(got, want);
    fixture_close(&f);
}

START_TEST(a_nan_fails_its_own_row)
{
    on_every_row(try_a_nan_fails_its_own_row);
}
END_TEST

/* The dense matrices become what an MXFP8 image of the same seed decodes to. */
static void round_dense(uint8_t *base, const struct nib_image *image)
{
    for (uint32_t i = 0; i < image->tensor_count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        if (nib_image_scales_of(t->id) == NIB_T_COUNT)
            continue;
        uint16_t *w = (uint16_t *)(void *)(base + t->offset);
        for (uint64_t b = 0; b < t->dims[0] * t->dims[1] / NIB_MX_BLOCK; b++, w += NIB_MX_BLOCK) {
            float x[NIB_MX_BLOCK];
            uint8_t scale, codes[NIB_MX_BLOCK];
            for (uint32_t e = 0; e < NIB_MX_BLOCK; e++)
                x[e] = nib_bf16_decode(w[e]);
            nib_mxfp8_encode(x, &scale, codes);
            nib_mxfp8_decode_bf16(scale, codes, w);
        }
    }
}

/* Relative distance of two rows of logits. */
static double distance(const float *a, const float *b)
{
    double diff = 0, norm = 0;
    for (uint32_t i = 0; i < VOCAB; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(diff / norm);
}

/* An MXFP8 image gives the bits of the bf16 image that holds its decoded weights, as prompt and as answer; and logits near
 * those of the unrounded weights. */
static void try_mxfp8_is_its_decoded_weights(const struct fixture_options *base)
{
    enum { COUNT = 150 };
    static float exact[VOCAB];
    struct fixture_options o = *base;
    fixture_tokens(nib_shape_find("nano"), 9, tokens, COUNT);
    fixture_open(&f, &o);
    fixture_prefill(&f, 0, tokens, 0, COUNT, 64, exact);
    fixture_close(&f);
    o.patch = round_dense;
    fixture_open(&f, &o);
    o.patch = NULL;
    o.dense = NIB_DENSE_MXFP8;
    fixture_open(&g, &o);
    ck_assert_uint_lt(g.image.file_bytes, f.image.file_bytes);
    fixture_prefill(&f, 0, tokens, 0, COUNT, 64, want);
    fixture_prefill(&g, 0, tokens, 0, COUNT, 64, got);
    expect_same(got, want);
    const double off = distance(want, exact);
    printf("%s: logits of MXFP8 are %.3f from those of bf16\n", base->kernels->name, off);
    ck_assert(off > 1e-3 && off < 0.2);
    for (uint32_t p = COUNT; p < COUNT + 20; p++) {
        fixture_decode(&f, 0, p, tokens[p - COUNT], want);
        fixture_decode(&g, 0, p, tokens[p - COUNT], got);
        expect_same(got, want);
    }
    fixture_close(&f);
    fixture_close(&g);
}

START_TEST(mxfp8_is_its_decoded_weights)
{
    on_every_row(try_mxfp8_is_its_decoded_weights);
}
END_TEST

/* A changed byte in the codes or the scales of a dense matrix is found while loading; a plan for the other form is refused. */
START_TEST(damaged_mxfp8_tensors_are_refused)
{
    static const enum nib_tensor_id ids[] = {NIB_T_QKV_WEIGHT, NIB_T_QKV_SCALES, NIB_T_OUT_WEIGHT,
                                             NIB_T_OUT_SCALES, NIB_T_LM_HEAD,    NIB_T_LM_HEAD_SCALES};
    struct fixture_options o = nano;
    struct nib_msg msg;
    o.dense = NIB_DENSE_MXFP8;
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        fixture_prepare(&f, &o);
        const struct nib_tensor *t = nib_image_tensor(&f.image, ids[i], 0);
        f.image_base[t->offset + t->bytes / 2] ^= 4;
        const struct nib_cpu_open open = fixture_args(&f, &o);
        ck_assert_int_eq(nib_cpu_engine_open(&open, &f.engine, &msg), NIB_E_HASH);
        ck_assert_msg(strstr(msg.text, t->name) != NULL, "%s: %s", t->name, msg.text);
        fixture_close(&f);
    }
    fixture_prepare(&f, &nano);
    fixture_image(&g, &o);
    struct nib_cpu_open open = fixture_args(&f, &o);
    open.image = &g.image;
    open.image_base = g.image_base;
    ck_assert_int_eq(nib_cpu_engine_open(&open, &f.engine, &msg), NIB_E_ARG);
    ck_assert_str_eq(msg.text, "the image's dense matrices are mxfp8, the plan is for bf16");
    free(g.image_base);
    fixture_close(&f);
}
END_TEST

START_TEST(prompt_and_answer_tokens_are_counted)
{
    fixture_open(&f, &nano);
    fixture_tokens(f.image.shape, 8, tokens, 40);
    f.sampling[0].presence_penalty = 100; /* no answer token comes twice */
    bool seen[VOCAB] = {false};
    fixture_prefill(&f, 0, tokens, 0, 40, 40, NULL);
    for (uint32_t p = 40; p < 140; p++) {
        uint32_t token = f.out.sampled[0].token;
        ck_assert(!seen[token]);
        seen[token] = true;
        fixture_decode(&f, 0, p, token, NULL);
    }
    /* the same answer again after FIRST: the counts were forgotten */
    fixture_prefill(&f, 0, tokens, 0, 40, 40, NULL);
    uint32_t again = f.out.sampled[0].token;
    f.sampling[1].presence_penalty = 100;
    fixture_prefill(&f, 1, tokens, 0, 40, 40, NULL);
    ck_assert_uint_eq(f.out.sampled[0].token, again);
    /* repetition counts the prompt: bias makes a prompt token win, the penalty takes that away again */
    f.sampling[2].bias_count = 1;
    f.sampling[2].bias[0] = (struct nib_bias){.token = tokens[3], .bias = 100};
    fixture_prefill(&f, 2, tokens, 0, 40, 40, NULL);
    ck_assert_uint_eq(f.out.sampled[0].token, tokens[3]);
    f.sampling[2].repetition_penalty = 100;
    fixture_prefill(&f, 2, tokens, 0, 40, 40, NULL);
    ck_assert_uint_ne(f.out.sampled[0].token, tokens[3]);
    fixture_close(&f);
}
END_TEST

/* All router logits 0, or experts from the fifth on far below: the same four experts, the lowest. */
static void level_router(uint8_t *base, const struct nib_image *image)
{
    for (uint32_t l = 0; l < image->shape->layers; l++) {
        const struct nib_tensor *w = nib_image_tensor(image, NIB_T_ROUTER_WEIGHT, l);
        const struct nib_tensor *b = nib_image_tensor(image, NIB_T_ROUTER_BIAS, l);
        memset(base + w->offset, 0, w->bytes);
        memset(base + b->offset, 0, b->bytes);
    }
}

static void lowest_experts(uint8_t *base, const struct nib_image *image)
{
    level_router(base, image);
    for (uint32_t l = 0; l < image->shape->layers; l++)
        for (uint32_t e = 4; e < image->shape->experts; e++)
            base[nib_image_tensor(image, NIB_T_ROUTER_BIAS, l)->offset + 2ull * e + 1] = 0xc2; /* -32 */
}

START_TEST(router_ties_go_to_the_lowest_expert)
{
    static float tied[512], lowest[512];
    struct fixture_options o = nano;
    o.shape = "tiny";
    fixture_tokens(nib_shape_find("tiny"), 9, tokens, 20);
    o.patch = level_router;
    fixture_open(&f, &o);
    fixture_prefill(&f, 0, tokens, 0, 20, 20, tied);
    fixture_close(&f);
    o.patch = lowest_experts;
    fixture_open(&f, &o);
    fixture_prefill(&f, 0, tokens, 0, 20, 20, lowest);
    fixture_close(&f);
    ck_assert_mem_eq(tied, lowest, sizeof tied);
}
END_TEST

static uint64_t progress_last, progress_calls;

static void note_progress(void *arg, uint64_t done, uint64_t total)
{
    ck_assert_ptr_eq(arg, &f);
    ck_assert_uint_ge(done, progress_last);
    ck_assert_uint_le(done, total);
    progress_last = done;
    progress_calls++;
}

START_TEST(load_reports_and_checks)
{
    struct nib_msg msg = {""};
    struct nib_engine *engine = NULL;
    fixture_prepare(&f, &nano);
    struct nib_cpu_open open = fixture_args(&f, &nano);
    open.progress = note_progress;
    open.progress_arg = &f;
    ck_assert_int_eq(nib_cpu_engine_open(&open, &engine, &msg), NIB_OK);
    engine->ops->close(engine);
    uint64_t weights = 0;
    for (uint32_t i = 0; i < f.image.tensor_count; i++)
        weights += f.image.tensors[i].bytes;
    ck_assert_uint_eq(progress_last, weights - 2); /* all but the two blobs of one byte */

    open.progress = NULL;
    for (uint32_t i = 0; i < f.image.tensor_count - 2; i++) {
        const struct nib_tensor *t = &f.image.tensors[i];
        uint8_t *last = f.image_base + t->offset + t->bytes - 1;
        *last ^= 1;
        engine = NULL;
        ck_assert_int_eq(nib_cpu_engine_open(&open, &engine, &msg), NIB_E_HASH);
        ck_assert_ptr_null(engine);
        ck_assert_msg(strstr(msg.text, t->name) != NULL, "%s: %s", t->name, msg.text);
        *last ^= 1;
    }
    struct nib_plan other = f.plan;
    other.shape = nib_shape_find("tiny");
    open.plan = &other;
    ck_assert_int_eq(nib_cpu_engine_open(&open, &engine, &msg), NIB_E_ARG);
    fixture_close(&f);
}
END_TEST

START_TEST(banned_ids_are_never_sampled)
{
    fixture_prepare(&f, &nano);
    static uint32_t banned[VOCAB / 32];
    struct nib_cpu_open open = fixture_args(&f, &nano);
    memset(banned, 0xff, sizeof banned);
    banned[200 / 32] &= ~(1u << 200 % 32);
    open.banned = banned;
    ck_assert_int_eq(nib_cpu_engine_open(&open, &f.engine, NULL), NIB_OK);
    memset(banned, 0, sizeof banned); /* the engine has its own copy */
    static const uint32_t pages[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    f.tables[0] = (struct nib_kv_table){.pages = pages, .pages_count = 8};
    nib_sample_defaults(&f.sampling[0]);
    fixture_prefill(&f, 0, (const uint32_t[]){1, 2, 3}, 0, 3, 3, NULL);
    ck_assert_uint_eq(f.out.sampled[0].token, 200);
    fixture_close(&f);
}
END_TEST

NIB_SUITE(engine, a_warm_begin_changes_nothing, chunks_do_not_matter, neighbours_do_not_matter, pages_do_not_matter,
          memory_before_does_not_matter, threads_do_not_matter, feedback_is_the_last_token, a_draft_changes_nothing,
          a_step_that_breaks_a_rule_changes_nothing, a_result_is_collected_once, a_nan_fails_its_own_row,
          mxfp8_is_its_decoded_weights, damaged_mxfp8_tensors_are_refused, prompt_and_answer_tokens_are_counted,
          router_ties_go_to_the_lowest_expert, load_reports_and_checks, banned_ids_are_never_sampled)
