/* tests/gpu/engine_test.c: the GPU engine's host half on tests/fake's libcuda: answers equal to the reference's, steps
 * ahead, the promises of core/engine.h that the host keeps. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#include "gpu/state.h"
#include "tests/gpu/gpu_fixture.h"

enum { VOCAB = 288 };

static const struct fixture_options nano = {.shape = "nano",
                                            .kernels = &nib_kernels_ref,
                                            .seed = 11,
                                            .ctx_tokens = 512,
                                            .slots = 3,
                                            .step_rows_max = 64,
                                            .threads = 1};
static struct gpu_fixture g; /* large: not on the stack */
static struct fixture ref;
static uint32_t tokens[2048];
static float want[NIB_MAX_SLOTS * 512], got[NIB_MAX_SLOTS * 512];

static float difference(const float *a, const float *b, uint32_t n)
{
    float worst = 0;
    for (uint32_t i = 0; i < n; i++) {
        ck_assert(isfinite(a[i]));
        worst = fmaxf(worst, fabsf(a[i] - b[i]));
    }
    return worst;
}

/* Prompt and answer, greedy, on the reference and on the GPU; the reference's token goes on in both. Logits have deviation
 * 3; what the GPU keeps in bf16 moves them by about 0.1, and by more where it moves a row to another expert: at most in one
 * step of ten. A token may differ only where the reference's own margin is below twice that step's difference. */
static void compare(const char *shape, enum nib_dense dense, enum nib_kv_form kv, uint64_t seed, uint32_t prompt,
                    uint32_t answer)
{
    struct fixture_options o = nano;
    uint32_t same = 0, far = 0;
    o.shape = shape;
    o.dense = dense;
    o.kv = kv;
    o.seed = seed;
    fake_env("h200", "");
    fixture_open(&ref, &o);
    gpu_fixture_open(&g, &o);
    const uint32_t vocab = g.f.image.shape->vocab;
    fixture_tokens(g.f.image.shape, seed, tokens, prompt);
    fixture_prefill(&ref, 1, tokens, 0, prompt, 33, want);
    fixture_prefill(&g.f, 1, tokens, 0, prompt, 33, got);
    for (uint32_t p = prompt; p < prompt + answer; p++) {
        const float apart = difference(got, want, vocab);
        const uint32_t token = ref.out.sampled[0].token, other = g.f.out.sampled[0].token;
        far += apart > 0.5f;
        same += other == token;
        ck_assert_msg(other == token || want[token] - want[other] < 2 * apart, "token %u, not %u, at %u", other, token,
                      p);
        fixture_decode(&ref, 1, p, token, want);
        fixture_decode(&g.f, 1, p, token, got);
    }
    printf("%s, %s, keys and values in %s: %u of %u tokens the same, %u steps far\n", shape, nib_dense_name(dense),
           nib_kv_form_name(kv), same, answer, far);
    ck_assert_uint_le(far * 10, answer);
    ck_assert_uint_ge(same * 10, answer * 9);
    gpu_fixture_close(&g);
    fixture_close(&ref);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
    ck_assert_uint_eq(fake_env_report()->device_bytes + fake_env_report()->pinned_bytes, 0);
}

START_TEST(answers_are_the_reference_s)
{
    for (enum nib_kv_form kv = 0; kv < NIB_KV_FORMS; kv++) {
        compare("nano", NIB_DENSE_BF16, kv, 11, 200, 60);
        compare("tiny", NIB_DENSE_BF16, kv, 5, 150, 40);
        compare("nano", NIB_DENSE_MXFP8, kv, 11, 200, 60);
        compare("tiny", NIB_DENSE_MXFP8, kv, 5, 150, 40);
    }
}
END_TEST

/* Two steps under way, tokens fed back on the device: the same answer as one step at a time. */
START_TEST(steps_ahead_change_nothing)
{
    enum { ANSWER = 40 };
    uint32_t one[ANSWER], two[ANSWER];
    struct nib_msg msg = {""};
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    struct nib_engine *engine = g.f.engine;
    ck_assert_uint_eq(engine->dims.steps_ahead, 2);
    fixture_tokens(g.f.image.shape, 1, tokens, 70);
    fixture_prefill(&g.f, 0, tokens, 0, 70, 64, NULL);
    one[0] = g.f.out.sampled[0].token;
    for (uint32_t i = 1; i < ANSWER; i++)
        one[i] = fixture_decode(&g.f, 0, 69 + i, one[i - 1], NULL);

    fixture_prefill(&g.f, 2, tokens, 0, 70, 50, NULL);
    two[0] = g.f.out.sampled[0].token;
    uint32_t collected = 1;
    for (uint32_t i = 1; i < ANSWER; i++) {
        fixture_begin(&g.f);
        fixture_row(&g.f, 2, 69 + i, 0xffffffff, NIB_ROW_DECODE | NIB_ROW_LOGITS | NIB_ROW_FEEDBACK);
        ck_assert_msg(engine->ops->submit(engine, &g.f.step, &msg) == NIB_OK, "%s", msg.text);
        if (i == 1)
            continue;
        if (i == 2)
            ck_assert_int_eq(engine->ops->submit(engine, &g.f.step, &msg), NIB_E_STATE);
        ck_assert_int_eq(engine->ops->collect(engine, &g.f.out, &msg), NIB_OK);
        ck_assert_uint_eq(g.f.out.serial, g.f.step.serial - 1);
        two[collected++] = g.f.out.sampled[0].token;
    }
    ck_assert_int_eq(engine->ops->collect(engine, &g.f.out, &msg), NIB_OK);
    two[collected++] = g.f.out.sampled[0].token;
    ck_assert_int_eq(engine->ops->collect(engine, &g.f.out, &msg), NIB_E_STATE);
    ck_assert_uint_eq(collected, ANSWER);
    ck_assert_mem_eq(one, two, sizeof one);
    gpu_fixture_close(&g);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

/* A draft of as many rows as there are slots: the bits of rows that come one by one. */
START_TEST(a_draft_changes_nothing)
{
    enum { FROM = 130 };
    struct nib_msg msg = {""};
    struct fixture_options o = nano;
    o.draft_tokens = 2;
    fake_env("h200", "");
    gpu_fixture_open(&g, &o);
    ck_assert_uint_eq(g.f.engine->dims.want_rows_max, 3);
    fixture_tokens(g.f.image.shape, 4, tokens, 200);
    for (uint32_t s = 0; s < 3; s++)
        g.f.sampling[s] = (struct nib_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};
    uint32_t drawn[6];
    fixture_prefill(&g.f, 0, tokens, 0, FROM, 64, NULL);
    for (uint32_t i = 0; i < 6; i++)
        drawn[i] = fixture_decode(&g.f, 0, FROM + i, tokens[FROM + i], want + i * VOCAB);
    fixture_prefill(&g.f, 1, tokens, 0, FROM, 64, NULL);
    const uint32_t wrong[3] = {tokens[FROM], tokens[FROM + 1] ^ 1, 9};
    fixture_draft(&g.f, 1, FROM, wrong, 3, got);
    ck_assert_uint_eq(g.f.out.sampled[0].token, drawn[0]);
    ck_assert_mem_eq(got, want, VOCAB * sizeof(float));
    for (uint32_t i = 1; i < 6; i += 3) {
        fixture_draft(&g.f, 1, FROM + i, tokens + FROM + i, i == 1 ? 3 : 2, got);
        for (uint32_t k = 0; k < g.f.out.count; k++)
            ck_assert_uint_eq(g.f.out.sampled[k].token, drawn[i + k]);
        ck_assert_mem_eq(got, want + i * VOCAB, g.f.out.count * VOCAB * sizeof(float));
    }
    fixture_begin(&g.f);
    for (uint32_t i = 0; i < 4; i++)
        fixture_row(&g.f, 1, FROM + i, tokens[FROM + i], NIB_ROW_DECODE | NIB_ROW_LOGITS);
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_ARG);
    gpu_fixture_close(&g);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

/* Graphs for drafts are made when the plan has drafts: their attention waits for the keys of this step. */
START_TEST(a_draft_needs_its_graphs)
{
    struct nib_msg msg = {""};
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    fixture_tokens(g.f.image.shape, 4, tokens, 40);
    fixture_prefill(&g.f, 1, tokens, 0, 30, 30, NULL);
    fixture_begin(&g.f);
    for (uint32_t i = 0; i < 2; i++)
        fixture_row(&g.f, 1, 30 + i, tokens[30 + i], NIB_ROW_DECODE | NIB_ROW_LOGITS);
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_ARG);
    ck_assert_str_eq(msg.text, "a step with a draft, and the plan has none");
    ck_assert_int_eq(g.f.engine->ops->collect(g.f.engine, &g.f.out, &msg), NIB_E_STATE);
    (void)fixture_decode(&g.f, 1, 30, tokens[30], NULL); /* nothing was run or lost */
    gpu_fixture_close(&g);
}
END_TEST

/* Rows of both kinds in any order of slots; results come back in the caller's order. */
START_TEST(results_keep_the_caller_s_order)
{
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    fixture_tokens(g.f.image.shape, 2, tokens, 100);
    fixture_prefill(&g.f, 2, tokens, 0, 30, 30, NULL);
    fixture_decode(&g.f, 2, 30, 9, want + VOCAB);
    fixture_prefill(&g.f, 0, tokens, 0, 20, 20, want);
    fixture_prefill(&g.f, 1, tokens, 0, 40, 40, want + 2 * VOCAB);
    fixture_prefill(&g.f, 2, tokens, 0, 30, 30, NULL);
    fixture_begin(&g.f);
    for (uint32_t p = 0; p < 20; p++)
        fixture_row(&g.f, 0, p, tokens[p], p == 19 ? NIB_ROW_LOGITS : 0);
    fixture_row(&g.f, 2, 30, 9, NIB_ROW_DECODE | NIB_ROW_LOGITS);
    for (uint32_t p = 0; p < 40; p++)
        fixture_row(&g.f, 1, p, tokens[p], p == 39 ? NIB_ROW_LOGITS : 0);
    fixture_run(&g.f, got);
    ck_assert_uint_eq(g.f.out.count, 3);
    ck_assert_uint_eq(g.f.out.sampled[0].slot, 0);
    ck_assert_uint_eq(g.f.out.sampled[1].slot, 2);
    ck_assert_uint_eq(g.f.out.sampled[2].slot, 1);
    ck_assert_mem_eq(got, want, 3 * VOCAB * sizeof(float));
    gpu_fixture_close(&g);
}
END_TEST

START_TEST(bad_steps_change_nothing)
{
    struct nib_msg msg = {""};
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    const uint64_t launches = fake_env_count("cuGraphLaunch");
    fixture_begin(&g.f);
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_ARG);
    fixture_row(&g.f, 0, 5, VOCAB, 0);
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_ARG);
    ck_assert_int_eq(g.f.engine->ops->collect(g.f.engine, &g.f.out, &msg), NIB_E_STATE);
    ck_assert_uint_eq(fake_env_count("cuGraphLaunch"), launches);
    fixture_begin(&g.f);
    fixture_row(&g.f, 0, 0, 1, 0); /* nobody wants a token */
    fixture_run(&g.f, NULL);
    ck_assert_uint_eq(g.f.out.count, 0);
    gpu_fixture_close(&g);
}
END_TEST

static uint64_t progress_last;

static void note_progress(void *arg, uint64_t done, uint64_t total)
{
    ck_assert_ptr_eq(arg, &g);
    ck_assert_uint_ge(done, progress_last);
    ck_assert_uint_le(done, total);
    progress_last = done;
}

/* Any wrong byte of any tensor is named; nothing is left on the device. */
static void try_load(enum nib_dense dense)
{
    struct fixture_options o = nano;
    o.dense = dense;
    progress_last = 0;
    struct nib_msg msg = {""};
    struct nib_engine *engine = NULL;
    fake_env("h200", "");
    ck_assert_int_eq(gpu_fixture_plan(&g, &o, 1024ull << 20, &msg), NIB_OK);
    ck_assert_msg(gpu_fixture_take(&g, &msg) == NIB_OK, "%s", msg.text);
    struct nib_gpu_engine_open open = gpu_fixture_args(&g);
    open.progress = note_progress;
    open.progress_arg = &g;
    ck_assert_msg(nib_gpu_engine_open(&open, &engine, &msg) == NIB_OK, "%s", msg.text);
    engine->ops->close(engine);
    uint64_t weights = 0;
    for (uint32_t i = 0; i < g.f.image.tensor_count; i++)
        weights += g.f.image.tensors[i].bytes;
    ck_assert_uint_eq(progress_last, weights - 2); /* all but the two blobs of one byte */
    open.progress = NULL;
    for (uint32_t i = 0; i < g.f.image.tensor_count - 2; i++) {
        const struct nib_tensor *t = &g.f.image.tensors[i];
        uint8_t *last = g.f.image_base + t->offset + t->bytes - 1;
        *last ^= 1;
        engine = NULL;
        ck_assert_msg(nib_gpu_engine_open(&open, &engine, &msg) == NIB_E_HASH, "%s", msg.text);
        ck_assert_ptr_null(engine);
        ck_assert_msg(strstr(msg.text, t->name) != NULL, "%s: %s", t->name, msg.text);
        *last ^= 1;
    }
    gpu_fixture_close(&g);
    ck_assert_uint_eq(fake_env_report()->device_bytes + fake_env_report()->pinned_bytes, 0);
}

START_TEST(load_reports_and_checks)
{
    try_load(NIB_DENSE_BF16);
    try_load(NIB_DENSE_MXFP8);
}
END_TEST

/* The plan of one form does not load an image of the other. */
START_TEST(an_image_of_another_form_is_refused)
{
    struct nib_msg msg = {""};
    struct nib_engine *engine = NULL;
    struct fixture_options o = nano;
    o.dense = NIB_DENSE_MXFP8;
    fake_env("h200", "");
    ck_assert_int_eq(gpu_fixture_plan(&g, &nano, 1024ull << 20, &msg), NIB_OK);
    ck_assert_msg(gpu_fixture_take(&g, &msg) == NIB_OK, "%s", msg.text);
    fixture_image(&ref, &o);
    struct nib_gpu_engine_open open = gpu_fixture_args(&g);
    open.image = &ref.image;
    ck_assert_int_eq(nib_gpu_engine_open(&open, &engine, &msg), NIB_E_ARG);
    ck_assert_str_eq(msg.text, "the image's dense matrices are mxfp8, the plan is for bf16");
    free(ref.image_base);
    gpu_fixture_close(&g);
}
END_TEST

/* Logits of a prompt and of some answer tokens, under a limit on the memory. */
static void run_limited(uint64_t limit_bytes, float *ret_logits, uint32_t steps)
{
    struct nib_msg msg = {""};
    fake_env("h200", "");
    ck_assert_msg(gpu_fixture_plan(&g, &nano, limit_bytes, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_msg(gpu_fixture_take(&g, &msg) == NIB_OK, "%s", msg.text);
    const struct nib_gpu_engine_open open = gpu_fixture_args(&g);
    ck_assert_msg(nib_gpu_engine_open(&open, &g.f.engine, &msg) == NIB_OK, "%s", msg.text);
    fixture_tables(&g.f);
    fixture_tokens(g.f.image.shape, 3, tokens, 40);
    fixture_prefill(&g.f, 0, tokens, 0, 40, 17, ret_logits);
    for (uint32_t i = 1; i < steps; i++)
        fixture_decode(&g.f, 0, 39 + i, g.f.out.sampled[0].token, ret_logits + (size_t)i * VOCAB);
}

/* The smallest limit that can be planned: everything that may leave the device has left it. */
static uint64_t least_limit(void)
{
    static struct nib_plan plan;
    uint64_t low = 0, high = 1024ull << 20;
    while (high - low > 4096) {
        const struct nib_plan_request request = {.profile = &g.profile,
                                                 .row = &g.f.facts,
                                                 .shape = g.f.image.shape,
                                                 .ctx_tokens = nano.ctx_tokens,
                                                 .slots = nano.slots,
                                                 .step_rows_max = nano.step_rows_max,
                                                 .threads = 1,
                                                 .memory_limit_bytes = low + (high - low) / 2};
        if (nib_plan_make(&request, &plan, NULL) == NIB_OK)
            high = request.memory_limit_bytes;
        else
            low = request.memory_limit_bytes;
    }
    return high;
}

START_TEST(experts_in_host_memory_give_the_same_bits)
{
    enum { STEPS = 6 };
    static float near[STEPS * VOCAB], far[STEPS * VOCAB];
    run_limited(1024ull << 20, near, STEPS);
    ck_assert(!g.f.plan.embed_spilled && g.f.plan.spilled_layers == 0);
    const uint64_t limit = least_limit();
    gpu_fixture_close(&g);
    run_limited(limit, far, STEPS);
    ck_assert(g.f.plan.embed_spilled);
    ck_assert_uint_gt(g.f.plan.spilled_layers, 0);
    gpu_fixture_close(&g);
    ck_assert_int_eq(memcmp(near, far, sizeof near), 0);
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

static pthread_t first_reader;
static atomic_uint chunks_by_others, chunks_of_embed;

/* Counts which threads read the embedding table. */
static enum nib_err read_watched(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n,
                                 struct nib_msg *msg)
{
    if (t == nib_image_tensor(&g.f.image, NIB_T_EMBED, 0)) {
        if (atomic_fetch_add(&chunks_of_embed, 1) == 0)
            first_reader = pthread_self();
        else if (!pthread_equal(first_reader, pthread_self()))
            atomic_fetch_add(&chunks_by_others, 1);
    }
    return gpu_read_memory(arg, t, at, buf, n, msg);
}

/* The tables of the small shape have some fifty chunks each. */
START_TEST(two_readers_share_the_largest_tensors)
{
    static const struct fixture_options small = {.shape = "small",
                                                 .kernels = &nib_kernels_ref,
                                                 .seed = 12,
                                                 .ctx_tokens = 512,
                                                 .slots = 2,
                                                 .step_rows_max = 32,
                                                 .threads = 1};
    struct nib_msg msg = {""};
    struct nib_engine *engine = NULL;
    fake_env("h200", "");
    ck_assert_int_eq(gpu_fixture_plan(&g, &small, 2816ull << 20, &msg), NIB_OK);
    ck_assert_msg(gpu_fixture_take(&g, &msg) == NIB_OK, "%s", msg.text);
    struct nib_gpu_engine_open open = gpu_fixture_args(&g);
    open.source.read = read_watched;
    open.readers = 5;
    ck_assert_msg(nib_gpu_engine_open(&open, &engine, &msg) == NIB_OK, "%s", msg.text);
    engine->ops->close(engine);
    ck_assert_uint_gt(atomic_load(&chunks_by_others), 0);
    const struct nib_tensor *t = nib_image_tensor(&g.f.image, NIB_T_EMBED, 0);
    for (uint64_t at = 1; at < t->bytes; at += t->bytes / 3) {
        g.f.image_base[t->offset + at] ^= 4;
        engine = NULL;
        ck_assert_msg(nib_gpu_engine_open(&open, &engine, &msg) == NIB_E_HASH, "%s", msg.text);
        ck_assert_msg(strstr(msg.text, t->name) != NULL, "%s", msg.text);
        g.f.image_base[t->offset + at] ^= 4;
    }
    gpu_fixture_close(&g);
}
END_TEST

/* A sequence behind pages of another slot, window pages by copies on the stream: the same logits as from its start. */
START_TEST(a_warm_begin_changes_nothing)
{
    const uint32_t spare[] = {21, 22, 23};
    for (uint32_t count = 1; count <= 6; count++) {
        const uint32_t keep = count * NIB_KV_PAGE_TOKENS, end = keep + 20;
        fake_env("h200", "");
        gpu_fixture_open(&g, &nano);
        for (uint32_t s = 0; s < 3; s++)
            g.f.tables[s].pages_count = 7;
        fixture_tokens(g.f.image.shape, 6, tokens, 600);
        fixture_prefill(&g.f, 0, tokens, 0, end, 64, want);
        fixture_prefill(&g.f, 1, tokens + 50, 0, 300, 64, NULL);
        fixture_prefill(&g.f, 0, tokens, 0, keep, 64, NULL);
        fixture_prefill(&g.f, 0, tokens + 70, keep, keep + 64, 64, NULL);
        const uint64_t before = fake_env_count("cuMemcpyDtoDAsync");
        fixture_begin_warm(&g.f, 0, 1, count, spare, tokens, end, got);
        ck_assert_mem_eq(got, want, VOCAB * sizeof *got);
        ck_assert_uint_eq(fake_env_count("cuMemcpyDtoDAsync") - before, count < 2 ? 2 : 4);
        gpu_fixture_close(&g);
    }
    ck_assert_uint_eq(fake_env_report()->violations, 0);
}
END_TEST

/* A copy that fails loses the engine. */
static void fail_a_copy(bool save)
{
    struct nib_msg msg = {""};
    fake_env("h200", "cuMemcpyDtoDAsync:1:700");
    gpu_fixture_open(&g, &nano);
    fixture_begin(&g.f);
    fixture_row(&g.f, 0, 0, 1, NIB_ROW_LOGITS);
    *(save ? &g.f.step.saves_count : &g.f.step.loads_count) = 1;
    *(save ? g.f.step.saves : g.f.step.loads) = (struct nib_kv_copy){.page = 2, .index = 1, .slot = 1};
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_DEVICE);
    ck_assert_msg(strstr(msg.text, "cuMemcpyDtoDAsync") != NULL, "%s", msg.text);
    ck_assert_int_eq(g.f.engine->ops->submit(g.f.engine, &g.f.step, &msg), NIB_E_DEVICE);
    gpu_fixture_close(&g);
}

START_TEST(a_load_that_fails_loses_the_engine)
{
    fail_a_copy(false);
}
END_TEST

START_TEST(a_save_that_fails_loses_the_engine)
{
    fail_a_copy(true);
}
END_TEST

/* After open, steps make no call but launches and looks at the stream. */
START_TEST(steps_allocate_nothing)
{
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    static const char *const never[] = {
        "cuMemAlloc",   "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuGraphInstantiateWithFlags",
        "cuEventCreate"};
    enum { KERNELS = 5 }; /* BEGIN, the layers, HEAD, SCAN, SAMPLE */
    const uint64_t launches = fake_env_count("cuLaunchKernelEx");
    uint64_t before[sizeof never / sizeof never[0]];
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
        before[i] = fake_env_count(never[i]);
    fixture_tokens(g.f.image.shape, 3, tokens, 10);
    fixture_prefill(&g.f, 0, tokens, 0, 10, 10, NULL);
    uint32_t token = g.f.out.sampled[0].token;
    for (uint32_t i = 10; i < 510; i++)
        token = fixture_decode(&g.f, 0, i, token, NULL);
    for (size_t i = 0; i < sizeof never / sizeof never[0]; i++)
        ck_assert_msg(fake_env_count(never[i]) == before[i], "%s was called in a step", never[i]);
    ck_assert_uint_eq(fake_env_count("cuGraphLaunch"), 1);
    ck_assert_uint_eq(fake_env_count("cuLaunchKernelEx") - launches, 500 * KERNELS);
    gpu_fixture_close(&g);
}
END_TEST

/* A region of the device through the start of the read ring, which nothing else uses after loading. */
static const uint8_t *read_back(enum nib_region_kind kind, uint64_t *ret_bytes)
{
    const struct nib_cuda *cuda = &g.gpu.cuda;
    const struct nib_region *r = nib_plan_region(&g.f.plan, kind, -1),
                            *ring = nib_plan_region(&g.f.plan, NIB_R_READ_RING, -1);
    struct CUstream_st *stream;
    uint8_t *to = g.gpu.pinned + ring->offset;
    ck_assert_uint_le(r->bytes, ring->bytes);
    ck_assert_int_eq(cuda->cuStreamCreate(&stream, NIB_CU_STREAM_NON_BLOCKING), 0);
    memset(to, 0xff, r->bytes);
    ck_assert_int_eq(cuda->cuMemcpyDtoHAsync(to, g.gpu.base[r->space] + r->offset, r->bytes, stream), 0);
    while (cuda->cuStreamQuery(stream) == NIB_CU_NOT_READY)
        ;
    ck_assert_int_eq(cuda->cuStreamDestroy(stream), 0);
    *ret_bytes = r->bytes;
    return to;
}

/* Staging lies on the same bytes as the kernels' scratch: after loading it must be zeros again. */
START_TEST(scratch_is_zero_before_the_first_step)
{
    static const enum nib_region_kind kinds[] = {NIB_R_THREAD, NIB_R_ROUTE};
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    const struct nib_region *staging = nib_plan_region(&g.f.plan, NIB_R_STAGING, -1);
    for (size_t k = 0; k < sizeof kinds / sizeof kinds[0]; k++) {
        const struct nib_region *r = nib_plan_region(&g.f.plan, kinds[k], -1);
        ck_assert_uint_lt(r->offset, staging->offset + staging->bytes);
        uint64_t bytes;
        const uint8_t *at = read_back(kinds[k], &bytes);
        for (uint64_t i = 0; i < bytes; i++)
            ck_assert_msg(at[i] == 0, "%s: byte %llu is %u", nib_region_name(kinds[k]), (unsigned long long)i, at[i]);
    }
    gpu_fixture_close(&g);
}
END_TEST

/* Who waits for a step naps, but not about when it is due; and a step leaves how long such a step takes. */
START_TEST(no_nap_is_begun_when_a_step_is_due)
{
    ck_assert(!nib_gpu_near(1000, 2000));
    ck_assert(nib_gpu_near(1950, 2000));
    ck_assert(nib_gpu_near(2050, 2000));
    ck_assert(!nib_gpu_near(3000, 2000));
    fake_env("h200", "");
    gpu_fixture_open(&g, &nano);
    struct nib_gpu_engine *e = (struct nib_gpu_engine *)(void *)g.f.engine;
    const uint64_t before = nib_gpu_now_us();
    fixture_tokens(g.f.image.shape, 1, tokens, 8);
    fixture_prefill(&g.f, 0, tokens, 0, 8, 8, got);
    const uint64_t after = nib_gpu_now_us(), took = nib_gpu_bucket_for(e, 0, 8, false)->took_us;
    ck_assert_uint_gt(took, 0);
    ck_assert_uint_le(took, after - before);
    ck_assert(e->ended_us >= before && e->ended_us <= after);
    gpu_fixture_close(&g);
}
END_TEST

NIB_SUITE(gpu_engine, a_warm_begin_changes_nothing, a_load_that_fails_loses_the_engine,
          a_save_that_fails_loses_the_engine, scratch_is_zero_before_the_first_step, answers_are_the_reference_s,
          steps_ahead_change_nothing, a_draft_changes_nothing, a_draft_needs_its_graphs,
          results_keep_the_caller_s_order, bad_steps_change_nothing, load_reports_and_checks,
          an_image_of_another_form_is_refused, two_readers_share_the_largest_tensors,
          experts_in_host_memory_give_the_same_bits, steps_allocate_nothing, no_nap_is_begun_when_a_step_is_due)
