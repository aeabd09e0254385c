/* tests/core/sched_draft_test.c: steps that verify guesses: their rows, what is kept of them, and when there are none, with
 * results made by hand. That the tokens are those of plain decoding is in sim_test, and on engines in engine_test. */
#include "core/sample.h"
#include "core/sched.h"
#include "tests/harness.h"

#define VOCAB 1000u
#define STOP  999u
#define DRAFT 4u

static _Alignas(64) uint8_t memory[1u << 20];
static struct nib_sched *sched;
static struct nib_sched_config config;
static struct nib_sampling sampling;
static struct nib_step step;
static struct nib_step_out out;
static struct nib_sched_event events[NIB_MAX_QUEUE + NIB_MAX_SLOTS];
static uint32_t events_count;
static uint64_t step_us;

static void begin_sched(uint32_t slots, uint32_t steps_ahead)
{
    config = (struct nib_sched_config){.dims = {.slots = slots,
                                                .ctx_tokens = 256,
                                                .kv_pages = 16,
                                                .step_rows_max = 64,
                                                .steps_ahead = steps_ahead,
                                                .want_rows_max = slots + DRAFT},
                                       .vocab = VOCAB,
                                       .queue_max = 8,
                                       .prompt_tokens_max = 4 * NIB_PROMPT_CHUNK_TOKENS,
                                       .prefill_rows_max = 64,
                                       .draft_tokens = DRAFT};
    struct nib_arena arena;
    nib_arena_init(&arena, memory, nib_sched_bytes(&config));
    ck_assert_uint_le(nib_sched_bytes(&config), sizeof memory);
    ck_assert_int_eq(nib_sched_init(&arena, &config, &sched, NULL), NIB_OK);
    nib_sample_defaults(&sampling);
    step_us = 1000;
}

/* A prompt 10, 11, ... 19, 10, 11: what follows is easily guessed. */
static struct nib_handle submit(uint32_t answer_tokens)
{
    uint32_t prompt[12];
    struct nib_handle handle;
    for (uint32_t i = 0; i < 12; i++)
        prompt[i] = 10 + i % 10;
    const struct nib_request request = {.prompt = prompt,
                                        .prompt_tokens = 12,
                                        .answer_tokens_max = answer_tokens,
                                        .stop_count = 1,
                                        .stop = {STOP},
                                        .sampling = &sampling};
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    return handle;
}

static void next(void)
{
    ck_assert_int_eq(nib_sched_next_step(sched, 0, &step, events, &events_count), NIB_OK);
    ck_assert(nib_sched_check(sched));
}

/* Results for `from`: its rows that want one get tokens[0], tokens[1], ... */
static void finish(const struct nib_step *from, const uint32_t *tokens)
{
    out.serial = from->serial;
    out.count = 0;
    for (uint32_t i = 0; i < from->rows_count; i++)
        if (from->rows[i].flags & NIB_ROW_LOGITS) {
            const uint32_t token = tokens[out.count];
            out.sampled[out.count++] =
                (struct nib_sampled){.token = token, .slot = from->rows[i].slot, .failed = token >= VOCAB};
        }
    ck_assert_int_eq(nib_sched_took(sched, step_us), NIB_OK);
    ck_assert_int_eq(nib_sched_finish_step(sched, 0, &out, events, &events_count), NIB_OK);
    ck_assert(nib_sched_check(sched));
}

static struct nib_sched_stats stats(void)
{
    struct nib_sched_stats s;
    nib_sched_stats(sched, &s);
    return s;
}

/* The prompt and a plain step of one request; then 12, 13 are known and 14, 15, ... guessed. */
static void two_tokens(void)
{
    next();
    finish(&step, (uint32_t[]){12});
    next();
    ck_assert_uint_eq(step.rows_count, 1); /* what a plain step takes is measured first */
    finish(&step, (uint32_t[]){13});
}

static void expect_rows(const uint32_t *tokens, uint32_t count, uint32_t pos)
{
    ck_assert_uint_eq(step.rows_count, count);
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_eq(step.rows[i].token, tokens[i]);
        ck_assert_uint_eq(step.rows[i].pos, pos + i);
        ck_assert_uint_eq(step.rows[i].slot, 0);
        ck_assert_uint_eq(step.rows[i].flags, NIB_ROW_DECODE | NIB_ROW_LOGITS);
    }
}

static void expect_tokens(const uint32_t *tokens, uint32_t count, uint32_t answer_tokens)
{
    ck_assert_uint_eq(events_count, count);
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_eq(events[i].sampled->token, tokens[i]);
        ck_assert_uint_eq(events[i].answer_tokens, answer_tokens - count + 1 + i);
    }
}

START_TEST(right_guesses_are_kept_and_wrong_ones_computed_again)
{
    begin_sched(2, 1);
    submit(100);
    two_tokens();
    next();
    expect_rows((uint32_t[]){13, 14, 15, 16, 17}, 5, 13);
    finish(&step, (uint32_t[]){14, 15, 16, 17, 18});
    expect_tokens((uint32_t[]){14, 15, 16, 17, 18}, 5, 7);
    ck_assert(stats().tokens_drafted == 4 && stats().tokens_accepted == 4);
    next();
    expect_rows((uint32_t[]){18, 19, 10, 11, 12}, 5, 18);
    finish(&step, (uint32_t[]){19, 77, 11, 12, 13}); /* what follows 77 is of no meaning */
    expect_tokens((uint32_t[]){19, 77}, 2, 9);
    ck_assert(stats().tokens_drafted == 8 && stats().tokens_accepted == 5 && stats().tokens_dropped == 0);
    next();
    expect_rows((uint32_t[]){77}, 1, 20); /* never stood before */
    finish(&step, (uint32_t[]){5});
    expect_tokens((uint32_t[]){5}, 1, 10);
    ck_assert_uint_eq(stats().rows_decode, 1 + 5 + 5 + 1);
}
END_TEST

START_TEST(a_stop_inside_a_draft_ends_the_answer)
{
    begin_sched(2, 1);
    uint32_t prompt[8] = {10, 11, STOP, 13, 14, 10, 11, STOP};
    struct nib_handle handle;
    const struct nib_request request = {.prompt = prompt,
                                        .prompt_tokens = 6,
                                        .answer_tokens_max = 50,
                                        .stop_count = 1,
                                        .stop = {STOP},
                                        .sampling = &sampling};
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    next();
    finish(&step, (uint32_t[]){11});
    next();
    finish(&step, (uint32_t[]){10});
    next();
    ck_assert_uint_eq(step.rows_count, 1); /* 11, 10 never stood before */
    finish(&step, (uint32_t[]){11});
    next();
    ck_assert_uint_gt(step.rows_count, 2);
    const uint64_t drafted = stats().tokens_drafted;
    ck_assert_uint_eq(step.rows[1].token, 10);
    finish(&step, (uint32_t[]){10, STOP, 13, 14, 10});
    expect_tokens((uint32_t[]){10, STOP}, 2, 5);
    ck_assert_int_eq(events[1].finish, NIB_FINISH_STOP);
    ck_assert(drafted >= 2 && stats().tokens_accepted == 1 && stats().running == 0 && stats().closing == 0);
    next();
    ck_assert_uint_eq(step.rows_count, 0);
}
END_TEST

START_TEST(a_draft_ends_with_the_length)
{
    begin_sched(1, 1);
    submit(5);
    two_tokens();
    next();
    expect_rows((uint32_t[]){13, 14, 15}, 3, 13); /* 5 tokens: 12, 13 and what these give */
    finish(&step, (uint32_t[]){14, 15, 16});
    expect_tokens((uint32_t[]){14, 15, 16}, 3, 5);
    ck_assert_int_eq(events[2].finish, NIB_FINISH_LENGTH);
    ck_assert_int_eq(events[1].finish, NIB_FINISH_NONE);
}
END_TEST

START_TEST(a_failed_row_counts_when_its_guess_was_right)
{
    begin_sched(1, 1);
    submit(100);
    two_tokens();
    next();
    finish(&step, (uint32_t[]){50, VOCAB, VOCAB, VOCAB, VOCAB});
    expect_tokens((uint32_t[]){50}, 1, 3);
    next();
    finish(&step, (uint32_t[]){15});
    next();
    finish(&step, (uint32_t[]){16});
    next();
    ck_assert_uint_ge(step.rows_count, 3);
    finish(&step, (uint32_t[]){17, VOCAB, 16, 17, 18});
    ck_assert_uint_eq(events_count, 2);
    ck_assert(events[0].sampled->token == 17 && events[1].finish == NIB_FINISH_FAILED && !events[1].sampled);
    ck_assert(stats().failed == 1 && stats().running == 0);
}
END_TEST

START_TEST(a_cancel_drops_a_draft)
{
    begin_sched(1, 2);
    struct nib_handle handle = submit(100);
    struct nib_step before;
    two_tokens();
    next();
    before = step;
    ck_assert_uint_eq(step.rows_count, 5);
    ck_assert_int_eq(nib_sched_cancel(sched, handle), NIB_OK);
    next();
    ck_assert(events_count == 1 && events[0].finish == NIB_FINISH_CANCELLED && step.rows_count == 0);
    ck_assert_uint_eq(stats().closing, 1);
    finish(&before, (uint32_t[]){14, 15, 16, 17, 18});
    ck_assert(events_count == 0 && stats().closing == 0 && stats().pages_used == 0);
}
END_TEST

/* While guesses pay, a step begins when the one before has ended; else the next begins before. */
START_TEST(a_guess_waits_for_the_token_before_it)
{
    begin_sched(1, 2);
    submit(100);
    struct nib_step first, second;
    next();
    first = step;
    next();
    second = step;
    ck_assert(second.rows_count == 1 && (second.rows[0].flags & NIB_ROW_FEEDBACK));
    finish(&first, (uint32_t[]){12}); /* 10, 11, 12: 13 is guessed, but what a plain step takes is not known */
    next();
    ck_assert(step.rows_count == 1 && (step.rows[0].flags & NIB_ROW_FEEDBACK));
    first = step;
    finish(&second, (uint32_t[]){13});
    next();
    ck_assert_uint_eq(step.rows_count, 0); /* 14 is on its way */
    finish(&first, (uint32_t[]){14});
    next();
    expect_rows((uint32_t[]){14, 15, 16, 17, 18}, 5, 14);
    first = step;
    next();
    ck_assert_uint_eq(step.rows_count, 0);
    finish(&first, (uint32_t[]){15, 16, 90, 0, 0});
    next();
    expect_rows((uint32_t[]){90}, 1, 17);
    first = step;
    next();
    ck_assert(step.rows_count == 1 && (step.rows[0].flags & NIB_ROW_FEEDBACK)); /* no guess: two ahead again */
}
END_TEST

START_TEST(no_draft_beside_a_prompt)
{
    begin_sched(2, 1);
    submit(100);
    two_tokens();
    submit(100);
    next();
    ck_assert_uint_eq(step.rows_count, 1 + 12);
    finish(&step, (uint32_t[]){14, 12});
    next();
    ck_assert_uint_eq(step.rows_count, 2); /* of two answers: measured first */
    finish(&step, (uint32_t[]){15, 13});
    next();
    ck_assert_uint_eq(step.rows_count, 2 + DRAFT); /* of both together no more than want_rows_max */
    ck_assert(step.rows[1].slot == 0 && step.rows[step.rows_count - 1].slot == 1);
}
END_TEST

START_TEST(no_draft_with_a_penalty)
{
    begin_sched(1, 1);
    sampling.presence_penalty = 0.1f;
    submit(100);
    two_tokens();
    for (uint32_t token = 14; token < 19; token++) {
        next();
        ck_assert_uint_eq(step.rows_count, 1);
        finish(&step, &token);
    }
}
END_TEST

/* Guesses that always fail, and an engine where a row costs a step: both are plain decoding soon. */
START_TEST(drafts_turn_themselves_off)
{
    begin_sched(1, 1);
    submit(200);
    two_tokens();
    uint32_t tokens[1 + DRAFT] = {0}, late = 0;
    for (uint32_t i = 0; i < 180; i++) {
        next();
        late += i >= 60 ? step.rows_count - 1 : 0;
        tokens[0] = i % 3 == 2 ? 100 + i : 10 + i % 3; /* 10, 11, then what never came */
        finish(&step, tokens);
    }
    ck_assert_uint_eq(late, 0);
    ck_assert(stats().tokens_drafted > 0 && stats().tokens_accepted < 10);

    begin_sched(1, 1);
    submit(200);
    two_tokens();
    late = 0;
    for (uint32_t at = 14, i = 0; i < 100; i++) {
        next();
        late += i >= 30 ? step.rows_count - 1 : 0;
        for (uint32_t k = 0; k < step.rows_count; k++)
            tokens[k] = 10 + (at - 10 + k) % 10;
        at += step.rows_count;
        step_us = 1000ull * step.rows_count;
        finish(&step, tokens);
    }
    ck_assert_uint_eq(late, 0);
    ck_assert_uint_gt(stats().tokens_accepted, 0);
}
END_TEST

START_TEST(a_config_out_of_range_is_refused)
{
    begin_sched(2, 1);
    struct nib_sched_config bad[3] = {config, config, config};
    bad[0].draft_tokens = NIB_MAX_DRAFT_TOKENS + 1;
    bad[1].dims.want_rows_max = 1;
    bad[2].dims.want_rows_max = NIB_MAX_SLOTS + 1;
    struct nib_arena arena;
    for (uint32_t i = 0; i < 3; i++) {
        nib_arena_init(&arena, memory, sizeof memory);
        ck_assert_int_eq(nib_sched_init(&arena, &bad[i], &sched, NULL), NIB_E_ARG);
        ck_assert_uint_eq(nib_sched_bytes(&bad[i]), 0);
    }
    nib_arena_init(&arena, memory, nib_sched_bytes(&config) / 4 * 3);
    ck_assert_int_eq(nib_sched_init(&arena, &config, &sched, NULL), NIB_E_NOMEM);
}
END_TEST

NIB_SUITE(sched_draft, right_guesses_are_kept_and_wrong_ones_computed_again, a_stop_inside_a_draft_ends_the_answer,
          a_draft_ends_with_the_length, a_failed_row_counts_when_its_guess_was_right, a_cancel_drops_a_draft,
          a_guess_waits_for_the_token_before_it, no_draft_beside_a_prompt, no_draft_with_a_penalty,
          drafts_turn_themselves_off, a_config_out_of_range_is_refused)
