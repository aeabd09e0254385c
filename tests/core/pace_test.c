/* tests/core/pace_test.c: prompts beside answers, with made-up costs of a step: what fits is found, what does not fit moves
 * in turns, and neither side starves. */
#include "core/pace.h"

#include "tests/harness.h"

#define STEP_ROWS 2048u

/* What a step costs. */
struct cost {
    uint32_t idle_us;  /* without prompt rows */
    uint32_t fixed_us; /* any prompt row */
    uint32_t row_us;   /* each */
};

struct seen {
    uint32_t steps, dry, dry_most; /* without prompt rows; in a row */
    uint32_t over;                 /* more than twice as long as idle */
    uint32_t rows_most;
    uint64_t rows, us;
};

static struct nib_pace pace;

static struct nib_pace_ask ask(uint32_t decode_rows, uint32_t prompts)
{
    return (struct nib_pace_ask){
        .decode_rows = decode_rows, .prompts = prompts, .fit_max = STEP_ROWS / 2, .turn_max = STEP_ROWS - decode_rows};
}

static uint64_t cost_us(const struct cost *cost, uint32_t rows)
{
    return cost->idle_us + (rows ? cost->fixed_us + (uint64_t)cost->row_us * rows : 0);
}

static void took(uint32_t decode_rows, uint32_t prompt_rows, bool turn, uint64_t us)
{
    nib_pace_took(
        &pace, &(struct nib_pace_step){.decode_rows = decode_rows, .prompt_rows = prompt_rows, .turn = turn, .us = us});
}

/* One step whose result comes before the next begins; its prompt rows. */
static uint32_t one(const struct nib_pace_ask *a, const struct cost *cost)
{
    const uint32_t rows = nib_pace_rows(&pace, a);
    const bool turn = nib_pace_begun(&pace, a->decode_rows, rows);
    took(a->decode_rows, rows, turn, cost_us(cost, rows));
    return rows;
}

static struct seen run(uint32_t steps, const struct nib_pace_ask *a, const struct cost *cost)
{
    struct seen seen = {.steps = steps};
    uint32_t dry = 0;
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t rows = one(a, cost);
        ck_assert_uint_le(rows, a->turn_max);
        dry = rows ? 0 : dry + 1;
        seen.dry += rows == 0;
        seen.dry_most = dry > seen.dry_most ? dry : seen.dry_most;
        seen.over += cost_us(cost, rows) > 2ull * cost->idle_us;
        seen.rows_most = rows > seen.rows_most ? rows : seen.rows_most;
        seen.rows += rows;
        seen.us += cost_us(cost, rows);
    }
    return seen;
}

START_TEST(what_is_not_known_is_measured_first)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct nib_pace_ask a = ask(5, 1);
    ck_assert_uint_eq(nib_pace_rows(&pace, &a), 0);
    ck_assert(!nib_pace_begun(&pace, 5, 0));
    ck_assert_uint_eq(nib_pace_rows(&pace, &a), STEP_ROWS / NIB_PACE_SHARE); /* its result is not there yet */
    took(5, 0, false, 1000);
    const struct nib_pace_ask near = ask(6, 1), far = ask(7, 1);
    ck_assert_uint_gt(nib_pace_rows(&pace, &near), 0); /* of the same level */
    ck_assert_uint_eq(nib_pace_rows(&pace, &far), 0);
    for (uint32_t rows = 1; rows <= NIB_MAX_SLOTS; rows++) {
        const struct nib_pace_ask any = ask(rows, 1);
        (void)nib_pace_rows(&pace, &any);
        ck_assert_uint_gt(nib_pace_rows(&pace, &any), 0);
    }
}
END_TEST

START_TEST(rows_that_fit_are_found)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cost = {
        .idle_us = 12000, .fixed_us = 3000, .row_us = 20}; /* 300 rows in three quarters of 12 ms */
    const struct nib_pace_ask a = ask(64, 1);
    (void)run(100, &a, &cost);
    const struct seen seen = run(2000, &a, &cost);
    ck_assert_uint_eq(seen.over, 0);
    ck_assert_uint_le(seen.dry, 2000 / 60); /* only to measure */
    ck_assert_uint_eq(seen.dry_most, 1);
    ck_assert_uint_ge(seen.rows, 1900u * 240u);
    ck_assert_uint_le(seen.rows_most, 330);
}
END_TEST

START_TEST(rows_never_pass_their_bounds)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost free_rows = {.idle_us = 1000};
    const struct nib_pace_ask a = ask(1, 1);
    ck_assert_uint_eq(run(500, &a, &free_rows).rows_most, a.fit_max);
    nib_pace_init(&pace, NIB_MAX_GAP_PERCENT, 1);
    const struct nib_pace_ask tiny = {.decode_rows = 1, .prompts = 1, .fit_max = 1, .turn_max = 1};
    ck_assert_uint_eq(run(500, &tiny, &free_rows).rows_most, 1);
}
END_TEST

START_TEST(rows_follow_a_cost_that_changes)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cheap = {.idle_us = 10000, .row_us = 10}, dear = {.idle_us = 10000, .row_us = 40};
    const struct nib_pace_ask a = ask(32, 1);
    ck_assert_uint_ge(run(200, &a, &cheap).rows_most, 600);
    (void)run(20, &a, &dear);
    const struct seen seen = run(500, &a, &dear);
    ck_assert_uint_eq(seen.over, 0);
    ck_assert_uint_ge(seen.rows, 500u * 140u);
    (void)run(200, &a, &cheap);
    ck_assert_uint_ge(run(200, &a, &cheap).rows_most, 600);
}
END_TEST

START_TEST(where_nothing_fits_prompts_take_long_turns)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cost = {.idle_us = 1500, .fixed_us = 10000, .row_us = 27};
    const struct nib_pace_ask a = ask(1, 1);
    ck_assert_uint_eq(one(&a, &cost), 0); /* measures */
    (void)run(10, &a, &cost);             /* tries few rows, twice */
    const struct seen seen = run(16000, &a, &cost);
    ck_assert_uint_le(seen.over, 16000 / 100);
    ck_assert_uint_ge(seen.over, 16000 / 200);
    ck_assert_uint_le(seen.dry_most, NIB_PACE_TURN + NIB_PACE_LEVELS);
    ck_assert_uint_eq(seen.rows_most, a.turn_max);
    ck_assert_uint_ge(seen.rows * 1000000 / seen.us, 5000); /* prompt tokens a second */
}
END_TEST

/* As measured on an H200, eight answers beside a prompt of 32,768 tokens. */
START_TEST(one_gap_in_a_hundred_is_long_at_most)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cost = {.idle_us = 3000, .fixed_us = 5000, .row_us = 11};
    const struct nib_pace_ask a = ask(8, 1);
    (void)run(20, &a, &cost);
    const struct seen seen = run(16000, &a, &cost);
    ck_assert_uint_le(seen.over, 16000 / 100);
    ck_assert_uint_ge(seen.rows * 1000000 / seen.us, 4000);
}
END_TEST

START_TEST(long_turns_have_a_thirteenth_of_the_time)
{
    nib_pace_init(&pace, 200, 256);
    const struct cost cost = {.idle_us = 32000, .fixed_us = 40000, .row_us = 1000};
    const struct nib_pace_ask a = {.decode_rows = 4, .prompts = 1, .fit_max = 128, .turn_max = 252};
    const struct seen seen = run(8000, &a, &cost);
    const uint64_t prompts_us = seen.us - 8000ull * cost.idle_us;
    ck_assert_uint_ge(prompts_us * 14, seen.us);
    ck_assert_uint_le(prompts_us * 12, seen.us);
}
END_TEST

START_TEST(more_prompts_rest_less)
{
    const struct cost cost = {.idle_us = 1500, .fixed_us = 10000, .row_us = 27};
    uint64_t rows[2];
    for (uint32_t i = 0; i < 2; i++) {
        nib_pace_init(&pace, 200, STEP_ROWS);
        const struct nib_pace_ask a = ask(8, i ? 4 : 1);
        rows[i] = run(4000, &a, &cost).rows;
    }
    ck_assert_uint_ge(rows[1], 3 * rows[0]);
}
END_TEST

START_TEST(a_short_prompt_does_not_wait_for_the_rest)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cost = {.idle_us = 1500, .fixed_us = 10000, .row_us = 27};
    struct nib_pace_ask a = ask(1, 1);
    (void)run(20, &a, &cost);
    ck_assert_uint_eq(one(&a, &cost), 0);
    a.prompts = 2;
    a.finish_rows = 60;
    ck_assert_uint_eq(one(&a, &cost), 60);
    a.finish_rows = 0;
    a.prompts = 1;
    ck_assert_uint_eq(one(&a, &cost), 0);
    const struct cost cheap = {.idle_us = 12000, .row_us = 20};
    struct nib_pace_ask b = ask(64, 1);
    (void)run(50, &b, &cheap);
    ck_assert_uint_le(one(&b, &cheap), 500); /* what fits, and then more than that */
    b.finish_rows = 700;
    const uint32_t rows = one(&b, &cheap);
    ck_assert_uint_ge(rows, 700 + 150); /* and half of what fits */
    ck_assert_uint_lt(rows, b.fit_max);
    b.finish_rows = 1000;
    ck_assert_uint_eq(one(&b, &cheap), b.fit_max);
    b.finish_rows = 1;
    ck_assert_uint_ge(one(&b, &cheap), 300);
}
END_TEST

/* Short prompts that come all the time hold no long one up, nor does it come more often for them. */
START_TEST(finished_prompts_are_no_turns)
{
    const struct cost cost = {.idle_us = 3000, .fixed_us = 5000, .row_us = 11};
    nib_pace_init(&pace, 200, STEP_ROWS);
    struct nib_pace_ask a = ask(8, 1);
    (void)run(20, &a, &cost);
    for (uint32_t every = 7; every <= 70; every *= 3) {
        uint32_t turns = 0;
        for (uint32_t i = 0; i < 8000; i++) {
            a.finish_rows = i % every == 0 ? 512 : 0;
            turns += one(&a, &cost) == a.turn_max;
        }
        ck_assert_uint_ge(turns, 8000 / (NIB_PACE_TURN + 20));
        ck_assert_uint_le(turns, 8000 / 40); /* steps that finish are rest, too, and a longer one */
    }
}
END_TEST

START_TEST(few_rows_are_tried_again)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost dear = {.idle_us = 1500, .fixed_us = 10000, .row_us = 27},
                      cheap = {.idle_us = 12000, .row_us = 20};
    const struct nib_pace_ask a = ask(1, 1);
    (void)run(1000, &a, &dear);
    (void)run(20 * NIB_PACE_TURN, &a, &cheap);
    ck_assert_uint_le(run(1000, &a, &cheap).dry, 20);
}
END_TEST

START_TEST(one_slow_step_changes_little)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct cost cost = {.idle_us = 12000, .fixed_us = 3000, .row_us = 20};
    const struct nib_pace_ask a = ask(64, 1);
    (void)run(200, &a, &cost);
    took(64, 0, false, 1u << 30);
    took(64, 200, false, UINT64_MAX);
    (void)run(500, &a, &cost);
    const struct seen seen = run(1000, &a, &cost);
    ck_assert_uint_eq(seen.over, 0);
    ck_assert_uint_ge(seen.rows, 1000u * 200u);
}
END_TEST

START_TEST(a_ratio_of_one_leaves_only_turns)
{
    nib_pace_init(&pace, 100, STEP_ROWS);
    const struct cost cost = {.idle_us = 1500, .row_us = 1};
    const struct nib_pace_ask a = ask(1, 1);
    (void)run(20, &a, &cost);
    const struct seen seen = run(2000, &a, &cost);
    ck_assert_uint_ge(seen.dry, 1800);
    ck_assert_uint_gt(seen.rows, 0);
}
END_TEST

START_TEST(steps_without_answers_say_nothing)
{
    nib_pace_init(&pace, 200, STEP_ROWS);
    const struct nib_pace before = pace;
    ck_assert(!nib_pace_begun(&pace, 0, STEP_ROWS));
    took(0, STEP_ROWS, false, 66000);
    ck_assert_mem_eq(&before, &pace, sizeof pace);
}
END_TEST

NIB_SUITE(pace, what_is_not_known_is_measured_first, rows_that_fit_are_found, rows_never_pass_their_bounds,
          rows_follow_a_cost_that_changes, where_nothing_fits_prompts_take_long_turns,
          one_gap_in_a_hundred_is_long_at_most, long_turns_have_a_thirteenth_of_the_time, more_prompts_rest_less,
          a_short_prompt_does_not_wait_for_the_rest, finished_prompts_are_no_turns, few_rows_are_tried_again,
          one_slow_step_changes_little, a_ratio_of_one_leaves_only_turns, steps_without_answers_say_nothing)
