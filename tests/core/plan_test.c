/* tests/core/plan_test.c: the plan of every profile is sound, fits, and says why when it does not. */
#include "arch/table.h"
#include "core/arith.h"
#include "core/plan.h"
#include "tests/harness.h"
#include "tools/profiles.h"
#include "tools/units.h"

static struct nib_profile profiles[NIB_MAX_PROFILES];
static struct nib_plan plan;

static struct nib_plan_request request_for(const struct nib_profile *profile, const char *shape,
                                           struct nib_row_facts *facts)
{
    const struct nib_arch_row *row;
    struct nib_msg msg;
    ck_assert_msg(nib_arch_select(profile, 0, &row, &msg) == NIB_OK, "%s", msg.text);
    *facts = nib_arch_facts(row);
    return (struct nib_plan_request){.profile = profile,
                                     .row = facts,
                                     .shape = nib_shape_find(shape),
                                     .threads = 2,
                                     .tokenizer_bytes = 20u << 20,
                                     .front_bytes = 64u << 20};
}

static struct nib_profile load(const char *name)
{
    struct nib_profile profile;
    struct nib_msg msg;
    ck_assert_msg(nib_profile_load(name, &profile, &msg) == NIB_OK, "%s", msg.text);
    return profile;
}

static struct nib_profile cpu_profile(uint64_t memory_bytes)
{
    return (struct nib_profile){.name = "a CPU", .sms = 2, .memory_bytes = memory_bytes, .reserved_bytes = 1u << 20};
}

static bool lives_meet(const struct nib_region *a, const struct nib_region *b)
{
    return a->phase_first <= b->phase_last && b->phase_first <= a->phase_last;
}

static void assert_sound(const struct nib_plan *p)
{
    uint64_t end[NIB_SPACE_COUNT] = {0};
    for (uint32_t i = 0; i < p->regions_count; i++) {
        const struct nib_region *a = &p->regions[i];
        ck_assert_uint_eq(a->offset % a->align, 0);
        ck_assert_uint_gt(a->bytes, 0);
        if (a->offset + a->bytes > end[a->space])
            end[a->space] = a->offset + a->bytes;
        for (uint32_t j = 0; j < i; j++) {
            const struct nib_region *b = &p->regions[j];
            if (a->space == b->space && lives_meet(a, b))
                ck_assert_msg(a->offset + a->bytes <= b->offset || b->offset + b->bytes <= a->offset,
                              "%s and %s overlap while both live", nib_region_name(a->kind), nib_region_name(b->kind));
        }
    }
    for (int s = 0; s < NIB_SPACE_COUNT; s++) {
        ck_assert_uint_eq(p->arena_bytes[s], end[s]);
        ck_assert_uint_le(p->arena_bytes[s], p->budget_bytes[s]);
    }
    ck_assert_uint_ge(p->dims.kv_pages, (p->dims.ctx_tokens + NIB_KV_PAGE_TOKENS - 1) / NIB_KV_PAGE_TOKENS);
}

START_TEST(every_profile_gets_a_sound_plan)
{
    size_t count;
    struct nib_msg msg;
    ck_assert_msg(nib_profiles_list(profiles, &count, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_uint_eq(count, 14);
    for (size_t i = 0; i < count; i++) {
        for (int s = 0; s < 2; s++) {
            struct nib_row_facts facts;
            struct nib_plan_request r = request_for(&profiles[i], s ? "120b" : "20b", &facts);
            enum nib_err err = nib_plan_make(&r, &plan, &msg);
            if (err) {
                ck_assert_int_eq(err, NIB_E_LIMIT);
                ck_assert_int_eq(s, 1);
            } else {
                assert_sound(&plan);
            }
        }
    }
}
END_TEST

START_TEST(a_big_card_holds_everything_and_a_small_one_spills)
{
    struct nib_row_facts facts;
    struct nib_profile h200 = load("h200"), t4 = load("t4"), rtx4090 = load("rtx4090");
    struct nib_plan_request r = request_for(&h200, "20b", &facts);
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert_uint_eq(plan.spilled_layers, 0);
    ck_assert(!plan.embed_spilled);
    ck_assert_uint_eq(plan.dims.ctx_tokens, 131072);
    ck_assert_str_eq(plan.row->name, "sm90");
    /* 3.71 GB a token, 4.54 TB/s: reference figures of the model and the card */
    ck_assert_double_eq_tol((double)plan.decode_bytes, 3.707e9, 0.02e9);
    ck_assert_double_eq_tol(plan.decode_tokens_s, 1224, 10);

    r = request_for(&t4, "20b", &facts);
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(plan.embed_spilled);
    ck_assert_uint_eq(plan.spilled_layers, 0);

    r = request_for(&rtx4090, "120b", &facts);
    r.profile = &(struct nib_profile){.name = "4090 with host memory",
                                      .gpu = true,
                                      .compute_capability = 89,
                                      .memory_bytes = rtx4090.memory_bytes,
                                      .reserved_bytes = rtx4090.reserved_bytes,
                                      .host_bytes = 128ull << 30,
                                      .read_bytes_s = 1e12,
                                      .link_bytes_s = 25e9};
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert_uint_gt(plan.spilled_layers, 10);
    ck_assert_int_eq(nib_plan_region(&plan, NIB_R_EXPERTS, 0)->space, NIB_SPACE_DEVICE);
    ck_assert_int_eq(nib_plan_region(&plan, NIB_R_EXPERTS, 35)->space, NIB_SPACE_PINNED);
    assert_sound(&plan);
}
END_TEST

/* The arenas and what is around them are those of a card that has no more. */
START_TEST(a_limited_card_is_planned_as_a_small_one)
{
    static struct nib_plan limited;
    struct nib_row_facts facts;
    struct nib_profile h200 = load("h200"), small = h200;
    ck_assert_uint_eq(h200.reserved_bytes, NIB_PLAN_DRIVER_BYTES);
    for (uint64_t bytes = 8ull << 30; bytes <= 64ull << 30; bytes *= 2) {
        struct nib_plan_request r = request_for(&h200, "20b", &facts);
        r.memory_limit_bytes = bytes;
        ck_assert_int_eq(nib_plan_make(&r, &limited, NULL), NIB_OK);
        small.memory_bytes = bytes;
        r = request_for(&small, "20b", &facts);
        ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
        ck_assert_uint_eq(limited.regions_count, plan.regions_count);
        for (uint32_t i = 0; i < plan.regions_count; i++) {
            ck_assert_int_eq(limited.regions[i].space, plan.regions[i].space);
            ck_assert_uint_eq(limited.regions[i].bytes, plan.regions[i].bytes);
            ck_assert_uint_eq(limited.regions[i].offset, plan.regions[i].offset);
        }
    }
}
END_TEST

START_TEST(a_memory_limit_shrinks_in_steps_until_it_refuses)
{
    struct nib_row_facts facts;
    struct nib_profile h200 = load("h200");
    struct nib_plan_request r = request_for(&h200, "20b", &facts);
    struct nib_engine_dims before = {0};
    bool embed_spilled = false;
    uint32_t spilled = 0;
    struct nib_msg msg;
    bool refused = false;
    for (uint64_t limit = 64ull << 30; limit >= 1ull << 30; limit -= 1ull << 29) {
        r.memory_limit_bytes = limit;
        enum nib_err err = nib_plan_make(&r, &plan, &msg);
        if (err) {
            ck_assert_int_eq(err, NIB_E_LIMIT);
            char number[32];
            (void)snprintf(number, sizeof number, "%llu", (unsigned long long)(limit - NIB_PLAN_DRIVER_BYTES));
            ck_assert_msg(strstr(msg.text, number), "%s does not name %s", msg.text, number);
            refused = true;
            continue;
        }
        ck_assert_msg(!refused, "fits in %llu but not in more", (unsigned long long)limit);
        assert_sound(&plan);
        ck_assert_uint_le(plan.arena_bytes[NIB_SPACE_DEVICE] + plan.driver_bytes, limit);
        ck_assert_uint_ge(plan.spilled_layers, spilled);
        if (plan.dims.slots == before.slots && plan.dims.ctx_tokens == before.ctx_tokens &&
            plan.embed_spilled == embed_spilled && !plan.spilled_layers)
            ck_assert_uint_le(plan.dims.kv_pages, before.kv_pages);
        before = plan.dims;
        embed_spilled = plan.embed_spilled;
        spilled = plan.spilled_layers;
    }
    ck_assert(refused);
}
END_TEST

START_TEST(a_cpu_never_spills)
{
    struct nib_row_facts facts;
    struct nib_profile small = cpu_profile(64ull << 20), large = cpu_profile(8ull << 30);
    struct nib_plan_request r = request_for(&large, "tiny", &facts);
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    assert_sound(&plan);
    ck_assert_uint_eq(plan.arena_bytes[NIB_SPACE_DEVICE], 0);
    ck_assert_uint_eq(plan.arena_bytes[NIB_SPACE_PINNED], 0);
    struct nib_msg msg;
    r = request_for(&small, "20b", &facts);
    memset(&plan, 0xa5, sizeof plan);
    uint32_t before = plan.dims.slots;
    ck_assert_int_eq(nib_plan_make(&r, &plan, &msg), NIB_E_LIMIT);
    ck_assert_uint_eq(plan.dims.slots, before);
    ck_assert_ptr_nonnull(strstr(msg.text, "a CPU"));
}
END_TEST

START_TEST(values_asked_for_are_kept_or_refused)
{
    struct nib_row_facts facts;
    struct nib_profile cpu = cpu_profile(8ull << 30);
    struct nib_plan_request good = request_for(&cpu, "tiny", &facts), r = good;
    r.ctx_tokens = 1000;
    r.slots = 3;
    r.step_rows_max = 48;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert_uint_eq(plan.dims.ctx_tokens, 1000);
    ck_assert_uint_eq(plan.dims.slots, 3);
    ck_assert_uint_eq(plan.dims.step_rows_max, 48);
    ck_assert_uint_eq(plan.dims.kv_pages, 3 * 16 + NIB_PREFIX_PAGES + 3 * NIB_PREFIX_SLOT_PAGES);
    ck_assert_uint_ge(plan.ring_pages * NIB_KV_PAGE_TOKENS, 127 + 48);
    ck_assert(plan.sched.prefix.on && !plan.sched.prefix.shared && plan.sched.prefix.window == 128);
    ck_assert_uint_eq(plan.sched.prefix.begin_token, r.shape->special_base + NIB_TOK_START);
    const uint64_t sched_bytes = nib_plan_region(&plan, NIB_R_SCHED, -1)->bytes;
    r.prefix_shared = true;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(plan.sched.prefix.on && plan.sched.prefix.shared);
    r.prefix_off = true;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(!plan.sched.prefix.on);
    ck_assert_uint_eq(plan.dims.kv_pages, 3 * 16);
    ck_assert_uint_lt(nib_plan_region(&plan, NIB_R_SCHED, -1)->bytes, sched_bytes);

    const struct nib_plan_request bad[] = {
        {.ctx_tokens = 131073},           {.slots = NIB_MAX_SLOTS + 1}, {.step_rows_max = NIB_MAX_STEP_ROWS + 1},
        {.queue_max = NIB_MAX_QUEUE + 1}, {.prefill_rows_max = 257},    {.slots = 9, .step_rows_max = 8}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        r = good;
        r.ctx_tokens = bad[i].ctx_tokens;
        r.slots = bad[i].slots;
        r.step_rows_max = bad[i].step_rows_max;
        r.queue_max = bad[i].queue_max;
        r.prefill_rows_max = bad[i].prefill_rows_max;
        struct nib_msg msg;
        ck_assert_int_eq(nib_plan_make(&r, &plan, &msg), NIB_E_ARG);
        ck_assert_ptr_nonnull(strstr(msg.text, "allowed"));
    }
    r = good;
    r.threads = 0;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_E_ARG);
}
END_TEST

/* The CPU has rows for guessed tokens besides those of slots, a GPU none. */
START_TEST(drafts_are_counted)
{
    struct nib_row_facts facts;
    struct nib_profile cpu = cpu_profile(8ull << 30), h200 = load("h200");
    struct nib_plan_request r = request_for(&cpu, "tiny", &facts);
    r.ctx_tokens = 1000;
    r.slots = 3;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(plan.sched.draft_tokens == 0 && plan.dims.want_rows_max == 3);
    const uint64_t sched_bytes = nib_plan_region(&plan, NIB_R_SCHED, -1)->bytes;
    const uint64_t logits_bytes = nib_plan_region(&plan, NIB_R_LOGITS, -1)->bytes;
    r.draft_tokens = 7;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(plan.sched.draft_tokens == 7 && plan.dims.want_rows_max == 10 && plan.sched.dims.want_rows_max == 10);
    ck_assert_uint_gt(nib_plan_region(&plan, NIB_R_SCHED, -1)->bytes, sched_bytes + 3 * 1000 * 8);
    ck_assert_uint_ge(nib_plan_region(&plan, NIB_R_LOGITS, -1)->bytes, logits_bytes + 7 * 4ull * r.shape->vocab - 4096);
    r.slots = NIB_MAX_SLOTS;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert_uint_eq(plan.dims.want_rows_max, NIB_MAX_SLOTS);
    r.draft_tokens = NIB_MAX_DRAFT_TOKENS + 1;
    struct nib_msg msg;
    ck_assert_int_eq(nib_plan_make(&r, &plan, &msg), NIB_E_ARG);
    ck_assert_str_eq(msg.text, "draft_tokens is 16, allowed is 0 to 15");
    r = request_for(&h200, "20b", &facts);
    r.slots = 8;
    r.draft_tokens = NIB_MAX_DRAFT_TOKENS;
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert(plan.sched.draft_tokens == NIB_MAX_DRAFT_TOKENS && plan.dims.want_rows_max == 8);
}
END_TEST

START_TEST(the_plan_is_a_function_of_its_arguments)
{
    static struct nib_plan again;
    struct nib_row_facts facts;
    struct nib_profile l4 = load("l4");
    struct nib_plan_request r = request_for(&l4, "20b", &facts);
    memset(&plan, 0, sizeof plan);
    memset(&again, 0xff, sizeof again);
    ck_assert_int_eq(nib_plan_make(&r, &plan, NULL), NIB_OK);
    ck_assert_int_eq(nib_plan_make(&r, &again, NULL), NIB_OK);
    ck_assert_uint_eq(plan.regions_count, again.regions_count);
    for (uint32_t i = 0; i < plan.regions_count; i++) {
        ck_assert_uint_eq(plan.regions[i].offset, again.regions[i].offset);
        ck_assert_uint_eq(plan.regions[i].bytes, again.regions[i].bytes);
    }
}
END_TEST

START_TEST(sizes_are_parsed)
{
    uint64_t bytes = 7;
    ck_assert(nib_option_size("size", "4096", &bytes) && bytes == 4096);
    ck_assert(nib_option_size("size", "1.5G", &bytes) && bytes == 3ull << 29);
    ck_assert(!nib_option_size("size", "", &bytes) && !nib_option_size("size", "-1", &bytes) &&
              !nib_option_size("size", "1X", &bytes));
    ck_assert(!nib_option_size("size", "1GB", &bytes) && !nib_option_size("size", "9999999T", &bytes) &&
              !nib_option_size("size", "nan", &bytes));
    ck_assert_uint_eq(bytes, 3ull << 29);
    uint32_t count = 5;
    ck_assert(nib_option_count("count", "64", 64, &count) && count == 64);
    ck_assert(!nib_option_count("count", "65", 64, &count) && !nib_option_count("count", "0", 64, &count));
    ck_assert(!nib_option_count("count", "", 64, &count) && !nib_option_count("count", "-1", 64, &count));
    ck_assert(!nib_option_count("count", "1x", 64, &count) &&
              !nib_option_count("count", "99999999999999999999", UINT32_MAX, &count));
    ck_assert_uint_eq(count, 64);
}
END_TEST

/* MXFP8 halves the dense matrices of a GPU row; a CPU row decodes them while loading and keeps bf16. */
START_TEST(mxfp8_is_counted)
{
    static struct nib_plan wide;
    const struct nib_profile h200 = load("h200"), cpu = cpu_profile(64ull << 30);
    const struct nib_shape *s = nib_shape_find("20b");
    const uint64_t dense = 24ull * (5120 * 2880 + 2880 * 4096) + 201088ull * 2880;
    struct nib_row_facts facts;
    struct nib_msg msg;
    struct nib_plan_request r = request_for(&h200, "20b", &facts);
    ck_assert_msg(nib_plan_make(&r, &wide, &msg) == NIB_OK, "%s", msg.text);
    r.dense = NIB_DENSE_MXFP8;
    ck_assert_msg(nib_plan_make(&r, &plan, &msg) == NIB_OK, "%s", msg.text);
    assert_sound(&plan);
    ck_assert_int_eq(plan.dense, NIB_DENSE_MXFP8);
    ck_assert_uint_eq(wide.decode_bytes - plan.decode_bytes, dense * 31 / 32);
    ck_assert_uint_ge(wide.weight_bytes - plan.weight_bytes, dense * 31 / 32 - 4 * 4096);
    ck_assert_uint_le(wide.weight_bytes - plan.weight_bytes, dense * 31 / 32 + 4 * 4096);
    ck_assert_uint_eq(nib_plan_region(&plan, NIB_R_ROUTER, -1)->bytes, nib_plan_region(&wide, NIB_R_ROUTER, -1)->bytes);
    ck_assert_uint_eq(nib_plan_region(&plan, NIB_R_EMBED, -1)->bytes, 2ull * s->vocab * s->hidden);
    ck_assert(plan.decode_tokens_s > 1.3 * wide.decode_tokens_s);

    facts.mxfp8_bytes = NULL;
    ck_assert_int_eq(nib_plan_make(&r, &plan, &msg), NIB_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(msg.text, " has no kernels for dense weights in MXFP8"));

    r = request_for(&cpu, "20b", &facts);
    ck_assert_msg(nib_plan_make(&r, &wide, &msg) == NIB_OK, "%s", msg.text);
    r.dense = NIB_DENSE_MXFP8;
    ck_assert_msg(nib_plan_make(&r, &plan, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_uint_eq(plan.weight_bytes, wide.weight_bytes);
}
END_TEST

/* Pages in FP8 have 33 of 64 bytes on a CPU row: so many more of them fit. A row without kernels for them is refused. */
START_TEST(kv_in_fp8_is_counted)
{
    static struct nib_plan wide;
    const struct nib_profile cpu = cpu_profile(20ull << 30), h200 = load("h200");
    struct nib_row_facts facts;
    struct nib_msg msg;
    struct nib_plan_request r = request_for(&cpu, "20b", &facts);
    ck_assert_msg(nib_plan_make(&r, &wide, &msg) == NIB_OK, "%s", msg.text);
    ck_assert_int_eq(wide.kv, NIB_KV_BF16);
    r.kv = NIB_KV_FP8;
    ck_assert_msg(nib_plan_make(&r, &plan, &msg) == NIB_OK, "%s", msg.text);
    assert_sound(&plan);
    ck_assert_int_eq(plan.kv, NIB_KV_FP8);
    ck_assert_uint_eq(plan.weight_bytes, wide.weight_bytes);
    ck_assert(plan.dims.kv_pages > 1.8 * wide.dims.kv_pages);
    const uint64_t page = nib_plan_page_bytes(&facts, NIB_KV_FP8, 8);
    ck_assert_uint_lt(page, nib_plan_page_bytes(&facts, NIB_KV_BF16, 8) * 53 / 100);
    ck_assert_uint_eq(nib_plan_region(&plan, NIB_R_KV_FULL, -1)->bytes,
                      nib_round_up(plan.dims.kv_pages * 12 * page, 4096));

    r = request_for(&h200, "20b", &facts);
    facts.kv8_page_bytes = NULL;
    ck_assert_msg(nib_plan_make(&r, &plan, &msg) == NIB_OK, "%s", msg.text);
    r.kv = NIB_KV_FP8;
    ck_assert_int_eq(nib_plan_make(&r, &plan, &msg), NIB_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(msg.text, " has no kernels for keys and values in FP8"));
}
END_TEST

NIB_SUITE(plan, mxfp8_is_counted, kv_in_fp8_is_counted, every_profile_gets_a_sound_plan,
          a_big_card_holds_everything_and_a_small_one_spills, a_limited_card_is_planned_as_a_small_one,
          a_memory_limit_shrinks_in_steps_until_it_refuses, a_cpu_never_spills, values_asked_for_are_kept_or_refused,
          drafts_are_counted, the_plan_is_a_function_of_its_arguments, sizes_are_parsed)
