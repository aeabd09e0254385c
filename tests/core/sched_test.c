/* tests/core/sched_test.c: the scheduler's promises one at a time, with results made by hand. Long
 * random lives are in sim_test. */
#include "core/sched.h"

#include "core/pace.h"
#include "core/sample.h"
#include "tests/harness.h"

#define VOCAB 1000u
#define STOP  999u

static _Alignas(64) uint8_t memory[4u << 20];
static struct nib_sched *sched;
static struct nib_sched_config config;
static struct nib_step step;
static struct nib_step_out out;
static struct nib_sched_event events[NIB_MAX_QUEUE + NIB_MAX_SLOTS];
static uint32_t events_count;
static uint32_t prompt[4096];
static uint64_t now_ms;

static void open_sched(uint32_t slots, uint32_t pages, uint32_t rows, uint32_t steps_ahead)
{
    config = (struct nib_sched_config){.dims = {.slots = slots,
                                                .ctx_tokens = 4096,
                                                .kv_pages = pages,
                                                .step_rows_max = rows,
                                                .steps_ahead = steps_ahead},
                                       .vocab = VOCAB,
                                       .queue_max = 32,
                                       .prompt_tokens_max = 64 * NIB_PROMPT_CHUNK_TOKENS,
                                       .prefill_rows_max = rows};
    for (uint32_t i = 0; i < 4096; i++)
        prompt[i] = i % VOCAB;
}

static void begin_sched(void)
{
    struct nib_arena arena;
    size_t bytes = nib_sched_bytes(&config);
    ck_assert_uint_le(bytes, sizeof memory);
    nib_arena_init(&arena, memory, bytes); /* exactly what was planned */
    ck_assert_int_eq(nib_sched_init(&arena, &config, &sched, NULL), NIB_OK);
}

static enum nib_err try_submit(uint32_t uid, uint32_t prompt_tokens, uint32_t answer_tokens, struct nib_handle *ret)
{
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    struct nib_request request = {.prompt = prompt,
                                  .prompt_tokens = prompt_tokens,
                                  .answer_tokens_max = answer_tokens,
                                  .uid = uid,
                                  .stop_count = 1,
                                  .stop = {STOP},
                                  .tag = 7,
                                  .sampling = &sampling};
    return nib_sched_submit(sched, &request, ret, NULL);
}

static struct nib_handle submit(uint32_t uid, uint32_t prompt_tokens, uint32_t answer_tokens)
{
    struct nib_handle handle;
    ck_assert_int_eq(try_submit(uid, prompt_tokens, answer_tokens, &handle), NIB_OK);
    return handle;
}

static void next(void)
{
    ck_assert_int_eq(nib_sched_next_step(sched, now_ms, &step, events, &events_count), NIB_OK);
    ck_assert(nib_sched_check(sched));
}

/* Results for `from`: every wanted token is `token`. */
static void finish(const struct nib_step *from, uint32_t token)
{
    out.serial = from->serial;
    out.count = 0;
    for (uint32_t i = 0; i < from->rows_count; i++)
        if (from->rows[i].flags & NIB_ROW_LOGITS)
            out.sampled[out.count++] = (struct nib_sampled){.token = token, .slot = from->rows[i].slot};
    ck_assert_int_eq(nib_sched_finish_step(sched, now_ms, &out, events, &events_count), NIB_OK);
    ck_assert(nib_sched_check(sched));
}

static struct nib_sched_stats stats(void)
{
    struct nib_sched_stats s;
    nib_sched_stats(sched, &s);
    return s;
}

static uint32_t rows_of(uint32_t slot)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < step.rows_count; i++)
        count += step.rows[i].slot == slot;
    return count;
}

/* Runs until the next request ends; its handle. */
static struct nib_handle run_to_end(void)
{
    for (int i = 0; i < 1000; i++) {
        next();
        ck_assert_uint_eq(events_count, 0);
        finish(&step, 1);
        for (uint32_t k = 0; k < events_count; k++)
            if (events[k].finish != NIB_FINISH_NONE)
                return events[k].handle;
    }
    ck_abort_msg("nothing ended");
    return (struct nib_handle){0};
}

/* ---- rows ---- */

START_TEST(one_request_is_fed_and_decoded)
{
    open_sched(2, 8, 4, 1);
    begin_sched();
    struct nib_handle handle = submit(1, 6, 3);
    next();
    ck_assert_uint_eq(step.rows_count, 4);
    ck_assert_uint_eq(step.serial, 1);
    for (uint32_t i = 0; i < 4; i++) {
        ck_assert_uint_eq(step.rows[i].token, i);
        ck_assert_uint_eq(step.rows[i].pos, i);
        ck_assert_uint_eq(step.rows[i].flags, i == 0 ? NIB_ROW_FIRST : 0);
    }
    finish(&step, 0);
    ck_assert_uint_eq(events_count, 0);
    next();
    ck_assert_uint_eq(step.rows_count, 2);
    ck_assert_uint_eq(step.rows[1].flags, NIB_ROW_LOGITS); /* a prompt row, however few there are */
    finish(&step, 40);
    ck_assert_uint_eq(events_count, 1);
    ck_assert(events[0].sampled->token == 40 && events[0].answer_tokens == 1);
    ck_assert(events[0].handle.index == handle.index && events[0].tag == 7);
    for (uint32_t i = 0; i < 2; i++) {
        next();
        ck_assert_uint_eq(step.rows_count, 1);
        ck_assert_uint_eq(step.rows[0].token, 40 + i);
        ck_assert_uint_eq(step.rows[0].pos, 6 + i);
        ck_assert_uint_eq(step.rows[0].flags, NIB_ROW_LOGITS | NIB_ROW_DECODE);
        finish(&step, 41 + i);
        ck_assert_int_eq(events[0].finish, i == 1 ? NIB_FINISH_LENGTH : NIB_FINISH_NONE);
    }
    next();
    ck_assert_uint_eq(step.rows_count, 0);
    ck_assert_uint_eq(step.serial, 0);
    ck_assert_uint_eq(stats().pages_used, 0);
    ck_assert_uint_eq(stats().finished, 1);
}
END_TEST

START_TEST(a_step_ahead_feeds_back_and_drops_what_follows_a_stop)
{
    open_sched(1, 8, 8, 2);
    begin_sched();
    submit(1, 2, 10);
    struct nib_step first, second;
    next();
    first = step;
    next();
    second = step;
    ck_assert_uint_eq(second.rows[0].flags, NIB_ROW_LOGITS | NIB_ROW_DECODE | NIB_ROW_FEEDBACK);
    ck_assert_uint_eq(second.rows[0].pos, 2);
    ck_assert_int_eq(nib_sched_next_step(sched, 0, &step, events, &events_count), NIB_E_STATE);
    finish(&first, 5);
    next();
    struct nib_step third = step;
    ck_assert(third.rows[0].flags & NIB_ROW_FEEDBACK);
    finish(&second, STOP);
    ck_assert_uint_eq(events_count, 1);
    ck_assert_int_eq(events[0].finish, NIB_FINISH_STOP);
    ck_assert_uint_eq(events[0].sampled->token, STOP);
    ck_assert_uint_eq(events[0].answer_tokens, 2);
    ck_assert_uint_eq(stats().closing, 1); /* the third step still has rows of the slot */
    ck_assert_uint_gt(stats().pages_used, 0);
    submit(1, 2, 10);
    next();
    ck_assert_uint_eq(step.rows_count, 0);
    finish(&third, 6);
    ck_assert_uint_eq(events_count, 0);
    ck_assert_uint_eq(stats().tokens_dropped, 1);
    ck_assert_uint_eq(stats().pages_used, 0);
    next();
    ck_assert_uint_eq(step.rows[0].flags, NIB_ROW_FIRST);
}
END_TEST

START_TEST(two_ahead_never_begin_a_token_past_the_length)
{
    open_sched(1, 8, 8, 2);
    begin_sched();
    submit(1, 2, 2);
    struct nib_step first, second;
    next();
    first = step;
    next();
    second = step;
    finish(&first, 5);
    next();
    ck_assert_uint_eq(step.rows_count, 0);
    finish(&second, 5);
    ck_assert_int_eq(events[0].finish, NIB_FINISH_LENGTH);
    ck_assert_uint_eq(stats().tokens_dropped, 0);
}
END_TEST

START_TEST(decode_comes_first_and_prompts_keep_to_their_share)
{
    open_sched(4, 64, 40, 1);
    config.prefill_rows_max = 10;
    begin_sched();
    submit(1, 4, 100);
    submit(2, 4, 100);
    next();
    finish(&step, 1);
    submit(3, 300, 5);
    submit(4, 3, 5);
    next();
    ck_assert_uint_eq(step.rows_count, 12);
    ck_assert(step.rows[0].flags & NIB_ROW_DECODE && step.rows[1].flags & NIB_ROW_DECODE);
    ck_assert_uint_eq(rows_of(3), 3); /* the short prompt is not held up by the long one */
    ck_assert_uint_eq(rows_of(2), 7); /* which has its half, and what is left over */
    finish(&step, 1);
    next();
    ck_assert_uint_eq(rows_of(2), 10);
    ck_assert_uint_eq(step.rows_count, 13);
}
END_TEST

START_TEST(without_decode_prompts_fill_the_step)
{
    open_sched(3, 64, 40, 1);
    config.prefill_rows_max = 10;
    begin_sched();
    submit(1, 100, 5);
    submit(1, 50, 5);
    submit(1, 12, 5);
    next();
    ck_assert_uint_eq(step.rows_count, 40);
    ck_assert_uint_eq(rows_of(0), 20);
    ck_assert_uint_eq(rows_of(2), 12);
    ck_assert_uint_eq(rows_of(1), 8);
}
END_TEST

/* Steps of 10 ms, and 0.2 ms for each prompt row. */
static void timed(void)
{
    next();
    uint32_t prompt_rows = 0;
    for (uint32_t i = 0; i < step.rows_count; i++)
        prompt_rows += !(step.rows[i].flags & NIB_ROW_DECODE);
    ck_assert_int_eq(nib_sched_took(sched, 10000 + 200ull * prompt_rows), NIB_OK);
    finish(&step, 1);
}

START_TEST(prompts_leave_answers_their_pace)
{
    open_sched(3, 192, 256, 1);
    config.prefill_rows_max = 128;
    config.gap_percent = 200;
    begin_sched();
    ck_assert_int_eq(nib_sched_took(sched, 1), NIB_E_STATE);
    submit(1, 300, 900);
    timed();
    ck_assert_uint_eq(step.rows_count, 256); /* alone: full steps */
    timed();
    ck_assert_uint_eq(step.rows_count, 44);
    submit(2, 2000, 900);
    timed();
    ck_assert_uint_eq(step.rows_count, 1); /* how long is it alone? */
    for (int i = 0; i < 20; i++)
        timed();
    for (int i = 0; i < 20; i++) {
        timed();
        if (step.rows_count == 1)
            continue; /* measured again */
        ck_assert_uint_ge(step.rows_count, 28);
        ck_assert_uint_le(step.rows_count, 42); /* 37 rows fit three quarters of 10 ms */
    }
}
END_TEST

START_TEST(what_most_wait_for_goes_first)
{
    open_sched(3, 192, 256, 1);
    config.prefill_rows_max = 128;
    config.gap_percent = 200;
    begin_sched();
    submit(1, 10, 900);
    timed();
    submit(2, 1000, 900);
    submit(3, 1000, 900);
    timed();
    ck_assert_uint_eq(step.rows_count, 129);
}
END_TEST

START_TEST(a_short_prompt_goes_between)
{
    open_sched(3, 192, 256, 1);
    config.prefill_rows_max = 128;
    config.gap_percent = 100; /* nothing fits beside an answer */
    begin_sched();
    submit(1, 10, 900);
    timed();
    submit(2, 3000, 900);
    submit(1, 10, 900);
    for (int i = 0; i < 20; i++)
        timed();
    ck_assert_uint_eq(step.rows_count, 2); /* two answers, and the long prompt rests */
    ck_assert_uint_gt(stats().rows_prompt, 20);
    for (int i = 0; i < NIB_PACE_TURN + 2 && step.rows_count == 2; i++)
        timed();
    ck_assert_uint_gt(step.rows_count, 2);
}
END_TEST

/* Three answers, a long prompt, then two short ones: these are finished together, and the long one has an eighth. */
START_TEST(short_prompts_are_finished_and_a_long_one_gives_way)
{
    open_sched(6, 192, 256, 1);
    config.prefill_rows_max = 256;
    config.gap_percent = 100; /* nothing fits beside an answer */
    begin_sched();
    for (uint32_t uid = 1; uid <= 3; uid++)
        submit(uid, 10, 900);
    timed();
    submit(4, 3000, 900);
    for (int i = 0; i < 10; i++)
        timed();
    ck_assert_uint_eq(step.rows_count, 3);
    submit(1, 60, 900);
    submit(2, 70, 900);
    timed();
    ck_assert_uint_eq(rows_of(4), 60);
    ck_assert_uint_eq(rows_of(5), 70);
    ck_assert_uint_eq(rows_of(3), 19);
    ck_assert_uint_eq(step.rows_count, 152);
    timed();
    ck_assert_uint_eq(step.rows_count, 5);
}
END_TEST

/* ---- order ---- */

START_TEST(uids_take_turns)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    struct nib_handle a[4], b[2], c;
    for (int i = 0; i < 4; i++)
        a[i] = submit(1, 2, 1);
    for (int i = 0; i < 2; i++)
        b[i] = submit(2, 2, 1);
    c = submit(3, 2, 1);
    const struct nib_handle want[] = {a[0], b[0], c, a[1], b[1], a[2], a[3]};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        struct nib_handle got = run_to_end();
        ck_assert_msg(got.index == want[i].index, "turn %zu", i);
    }
}
END_TEST

START_TEST(a_newcomer_waits_one_turn_of_each_other_uid_at_most)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    for (int i = 0; i < 20; i++)
        submit(1, 2, 1);
    for (int i = 0; i < 5; i++)
        run_to_end();
    struct nib_handle late = submit(2, 2, 1);
    uint32_t before = 0;
    while (run_to_end().index != late.index)
        before++;
    ck_assert_uint_le(before, 2);
}
END_TEST

START_TEST(newcomers_cannot_starve_a_waiting_uid)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    submit(100, 2, 1);
    struct nib_handle waiting = submit(100, 2, 1); /* second of its uid: next round */
    bool served = false;
    for (uint32_t i = 0; i < 6 && !served; i++) {
        submit(i, 2, 1); /* always another uid, each with its first request */
        served = run_to_end().index == waiting.index;
    }
    ck_assert(served);
}
END_TEST

START_TEST(a_big_request_is_overtaken_a_bounded_number_of_times)
{
    open_sched(2, 8, 8, 1);
    begin_sched();
    submit(1, 2, 400); /* 7 of 8 pages, for long */
    next();
    finish(&step, 1);
    struct nib_handle big = submit(2, 2, 200); /* 4 pages: must wait */
    for (uint32_t i = 0; i < NIB_MAX_OVERTAKEN; i++) {
        struct nib_handle small = submit(3, 2, 1);
        ck_assert_uint_eq(run_to_end().index, small.index);
    }
    ck_assert_uint_eq(stats().overtaken, NIB_MAX_OVERTAKEN);
    struct nib_handle late = submit(3, 2, 1);
    uint32_t ended = 0;
    for (int i = 0; i < 450 && ended == 0; i++) {
        next();
        ck_assert_uint_eq(rows_of(1), 0); /* the page stays free for the big one */
        finish(&step, 1);
        for (uint32_t k = 0; k < events_count; k++)
            ended += events[k].finish != NIB_FINISH_NONE;
    }
    ck_assert_uint_eq(ended, 1);
    next();
    ck_assert_uint_eq(stats().running, 2);
    ck_assert_int_eq(nib_sched_cancel(sched, big), NIB_OK);
    ck_assert_int_eq(nib_sched_cancel(sched, late), NIB_OK);
}
END_TEST

/* ---- ends ---- */

START_TEST(cancel_takes_effect_at_the_next_step)
{
    open_sched(1, 8, 2, 1);
    begin_sched();
    struct nib_handle running = submit(1, 5, 5), queued = submit(1, 300, 5);
    next();
    ck_assert_int_eq(nib_sched_cancel(sched, queued), NIB_OK);
    ck_assert_int_eq(nib_sched_cancel(sched, queued), NIB_OK);
    finish(&step, 1);
    ck_assert_int_eq(nib_sched_cancel(sched, running), NIB_OK); /* in mid-prompt */
    next();
    ck_assert_uint_eq(events_count, 2);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(events[i].finish, NIB_FINISH_CANCELLED);
        ck_assert_ptr_null(events[i].sampled);
    }
    ck_assert_uint_eq(step.rows_count, 0);
    ck_assert(stats().pages_used == 0 && stats().prompt_tokens_held == 0);
    ck_assert_uint_eq(stats().cancelled, 2);
    ck_assert_int_eq(nib_sched_cancel(sched, running), NIB_E_STATE);
    ck_assert_int_eq(nib_sched_cancel(sched, (struct nib_handle){0}), NIB_E_STATE);
    ck_assert_int_eq(nib_sched_cancel(sched, (struct nib_handle){.index = 5000, .generation = 1}), NIB_E_STATE);
    struct nib_handle again = submit(1, 5, 5); /* the same place, another generation */
    ck_assert(again.index == running.index || again.index == queued.index);
    ck_assert_int_eq(nib_sched_cancel(sched, running), NIB_E_STATE);
    ck_assert_int_eq(nib_sched_cancel(sched, queued), NIB_E_STATE);
}
END_TEST

/* 64 slots, each cancelled once at every answer length from 0 to 255: 16,384 points, one step ahead. Pages
 * are back when the step that was in flight is finished. */
START_TEST(cancel_at_every_token_of_every_slot)
{
    enum { SLOTS = 64, LENGTHS = 256 };
    static struct nib_handle handle[SLOTS];
    static uint32_t length[SLOTS], tokens[SLOTS];
    open_sched(SLOTS, SLOTS * 5, 256, 2);
    config.queue_max = SLOTS;
    begin_sched();
    for (uint32_t i = 0; i < SLOTS; i++)
        handle[i] = submit(i, 1, LENGTHS + 2);
    struct nib_step flight = {.serial = 0};
    uint32_t points = 0;
    for (uint32_t turn = 0; points < SLOTS * LENGTHS; turn++) {
        ck_assert_uint_lt(turn, 100000);
        ck_assert_int_eq(nib_sched_next_step(sched, 0, &step, events, &events_count), NIB_OK);
        for (uint32_t k = 0; k < events_count; k++) {
            ck_assert_int_eq(events[k].finish, NIB_FINISH_CANCELLED);
            for (uint32_t i = 0; i < SLOTS; i++)
                if (handle[i].index == events[k].handle.index && handle[i].generation == events[k].handle.generation) {
                    ck_assert_uint_eq(events[k].answer_tokens, length[i]);
                    tokens[i] = UINT32_MAX; /* submitted again below */
                }
            points++;
        }
        if (flight.serial)
            finish(&flight, 1);
        for (uint32_t k = 0; k < events_count && flight.serial; k++)
            for (uint32_t i = 0; i < SLOTS; i++)
                if (handle[i].index == events[k].handle.index)
                    tokens[i] = events[k].answer_tokens;
        ck_assert_uint_le(stats().closing, SLOTS);
        for (uint32_t i = 0; i < SLOTS; i++) {
            if (tokens[i] == UINT32_MAX && ++length[i] < LENGTHS) {
                tokens[i] = 0;
                handle[i] = submit(i, 1, LENGTHS + 2);
            }
            if (tokens[i] == length[i])
                ck_assert_int_eq(nib_sched_cancel(sched, handle[i]), NIB_OK);
        }
        flight = step;
    }
    if (flight.serial)
        finish(&flight, 1);
    ck_assert_uint_eq(stats().cancelled, SLOTS * LENGTHS);
    ck_assert(stats().pages_used == 0 && stats().running == 0 && stats().queued == 0);
}
END_TEST

START_TEST(a_deadline_ends_waiting_and_running_requests)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    struct nib_request request = {
        .prompt = prompt, .prompt_tokens = 2, .answer_tokens_max = 50, .deadline_ms = 100, .sampling = &sampling};
    struct nib_handle handle;
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    now_ms = 99;
    next();
    ck_assert_uint_eq(events_count, 0);
    finish(&step, 1);
    now_ms = 100;
    next();
    ck_assert_uint_eq(events_count, 2);
    ck_assert_int_eq(events[0].finish, NIB_FINISH_DEADLINE);
    ck_assert_int_eq(events[1].finish, NIB_FINISH_DEADLINE);
    ck_assert(stats().cancelled == 2 && stats().expired == 2 && stats().pages_used == 0);
}
END_TEST

START_TEST(failed_logits_end_their_request_only)
{
    open_sched(2, 8, 8, 1);
    begin_sched();
    struct nib_handle bad = submit(1, 2, 5);
    submit(1, 2, 5);
    next();
    out.serial = step.serial;
    out.count = 2;
    out.sampled[0] = (struct nib_sampled){.slot = 0, .failed = true};
    out.sampled[1] = (struct nib_sampled){.slot = 1, .token = 3};
    ck_assert_int_eq(nib_sched_finish_step(sched, 0, &out, events, &events_count), NIB_OK);
    ck_assert_uint_eq(events_count, 2);
    ck_assert(events[0].finish == NIB_FINISH_FAILED && events[0].handle.index == bad.index);
    ck_assert_ptr_null(events[0].sampled);
    ck_assert(events[1].finish == NIB_FINISH_NONE && events[1].sampled->token == 3);
    ck_assert(stats().failed == 1 && stats().running == 1);
}
END_TEST

START_TEST(a_lost_engine_fails_everything)
{
    open_sched(2, 8, 8, 2);
    begin_sched();
    for (uint32_t i = 0; i < 5; i++)
        submit(i, 2, 5);
    next();
    next();
    nib_sched_abort(sched, events, &events_count);
    ck_assert_uint_eq(events_count, 5);
    for (uint32_t i = 0; i < 5; i++)
        ck_assert_int_eq(events[i].finish, NIB_FINISH_FAILED);
    ck_assert(nib_sched_check(sched));
    ck_assert(stats().failed == 5 && stats().pages_used == 0 && stats().steps_in_flight == 0);
    struct nib_handle handle;
    ck_assert_int_eq(try_submit(1, 2, 2, &handle), NIB_E_STATE);
}
END_TEST

START_TEST(draining_finishes_what_was_accepted)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    submit(1, 2, 2);
    submit(1, 2, 2);
    nib_sched_drain(sched);
    struct nib_handle handle;
    ck_assert_int_eq(try_submit(1, 2, 2, &handle), NIB_E_STATE);
    run_to_end();
    run_to_end();
    ck_assert(stats().finished == 2 && stats().refused == 1 && stats().submitted == 3);
}
END_TEST

/* ---- refusals ---- */

START_TEST(submit_names_what_is_wrong_and_changes_nothing)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    const struct nib_request good = {
        .prompt = prompt, .prompt_tokens = 10, .answer_tokens_max = 10, .sampling = &sampling};
    uint32_t bad_prompt[10] = {0, 1, VOCAB};
    struct nib_request cases[9];
    const enum nib_err want[9] = {NIB_E_ARG,   NIB_E_ARG, NIB_E_LIMIT, NIB_E_LIMIT, NIB_E_LIMIT,
                                  NIB_E_LIMIT, NIB_E_ARG, NIB_E_ARG,   NIB_E_ARG};
    const char *words[9] = {"0 prompt",  "0 answer", "context", "context",       "context",
                            "KV memory", "stop",     "stop",    "prompt token 2"};
    for (int i = 0; i < 9; i++)
        cases[i] = good;
    cases[0].prompt_tokens = 0;
    cases[1].answer_tokens_max = 0;
    cases[2].answer_tokens_max = 4087;
    cases[3].prompt_tokens = UINT32_MAX;
    cases[4].answer_tokens_max = UINT32_MAX;
    cases[5].answer_tokens_max = 8 * NIB_KV_PAGE_TOKENS - 9;
    cases[6].stop_count = NIB_MAX_STOP_TOKENS + 1;
    cases[7].stop_count = 1;
    cases[7].stop[0] = VOCAB;
    cases[8].prompt = bad_prompt;
    for (int i = 0; i < 9; i++) {
        struct nib_handle handle = {.index = 77, .generation = 88};
        struct nib_msg msg = {""};
        ck_assert_int_eq(nib_sched_submit(sched, &cases[i], &handle, &msg), want[i]);
        ck_assert_msg(strstr(msg.text, words[i]), "case %d: %s", i, msg.text);
        ck_assert(handle.index == 77 && handle.generation == 88);
        ck_assert(nib_sched_check(sched) && stats().prompt_tokens_held == 0);
    }
    sampling.temperature = -1.0f;
    struct nib_handle handle;
    ck_assert_int_eq(nib_sched_submit(sched, &good, &handle, NULL), NIB_E_ARG);
    sampling.temperature = 0.0f;
    ck_assert_int_eq(nib_sched_submit(sched, &good, &handle, NULL), NIB_OK);
    ck_assert(stats().refused == 10 && stats().submitted == 11 && stats().queued == 1);
}
END_TEST

START_TEST(a_full_queue_and_full_prompt_memory_refuse)
{
    open_sched(1, 64, 8, 1);
    config.queue_max = 3;
    config.prompt_tokens_max = 4 * NIB_PROMPT_CHUNK_TOKENS;
    begin_sched();
    struct nib_handle handle, first = submit(1, 2, 2);
    submit(1, 2, 2);
    ck_assert_int_eq(try_submit(1, 3 * NIB_PROMPT_CHUNK_TOKENS, 2, &handle), NIB_E_FULL);
    ck_assert_int_eq(try_submit(1, 5 * NIB_PROMPT_CHUNK_TOKENS, 2, &handle), NIB_E_LIMIT);
    submit(1, 2, 2);
    ck_assert_int_eq(try_submit(1, 2, 2, &handle), NIB_E_FULL);
    ck_assert_uint_eq(nib_sched_retry_ms(sched), 1000);
    next(); /* the first gets its slot */
    ck_assert_int_eq(try_submit(1, 2, 2, &handle), NIB_OK);
    ck_assert_int_eq(nib_sched_cancel(sched, first), NIB_OK);
}
END_TEST

START_TEST(retry_follows_how_long_slots_are_held)
{
    open_sched(1, 8, 8, 1);
    begin_sched();
    for (int i = 0; i < 30; i++)
        submit(1, 2, 1);
    for (int i = 0; i < 30; i++) {
        next();
        now_ms += 250;
        finish(&step, 1);
    }
    uint64_t retry = nib_sched_retry_ms(sched);
    ck_assert(retry > 200 && retry <= 250);
}
END_TEST

START_TEST(a_config_out_of_range_is_refused)
{
    open_sched(4, 8, 8, 1);
    struct nib_sched_config good = config, bad[13];
    for (int i = 0; i < 13; i++)
        bad[i] = good;
    bad[0].dims.slots = 0;
    bad[1].dims.slots = NIB_MAX_SLOTS + 1;
    bad[2].dims.step_rows_max = 3;
    bad[3].dims.steps_ahead = 0;
    bad[4].dims.steps_ahead = NIB_MAX_STEPS_AHEAD + 1;
    bad[5].queue_max = 0;
    bad[6].queue_max = NIB_MAX_QUEUE + 1;
    bad[7].prompt_tokens_max = NIB_PROMPT_CHUNK_TOKENS - 1;
    bad[8].prefill_rows_max = 9;
    bad[9].vocab = 0;
    bad[10].dims.kv_pages = 0;
    bad[11].dims.ctx_tokens = 1;
    bad[12].gap_percent = NIB_MAX_GAP_PERCENT + 1;
    struct nib_arena arena;
    for (int i = 0; i < 13; i++) {
        struct nib_msg msg = {""};
        nib_arena_init(&arena, memory, sizeof memory);
        ck_assert_int_eq(nib_sched_init(&arena, &bad[i], &sched, &msg), NIB_E_ARG);
        ck_assert(msg.text[0] != '\0' && nib_sched_bytes(&bad[i]) == 0);
    }
    for (size_t bytes = 0; bytes < nib_sched_bytes(&good) - 512; bytes += 4096) {
        nib_arena_init(&arena, memory, bytes);
        ck_assert_int_eq(nib_sched_init(&arena, &good, &sched, NULL), NIB_E_NOMEM);
    }
}
END_TEST

START_TEST(finish_reasons_have_names)
{
    ck_assert_str_eq(nib_finish_name(NIB_FINISH_STOP), "stop");
    ck_assert_str_eq(nib_finish_name(NIB_FINISH_LENGTH), "length");
    ck_assert_str_eq(nib_finish_name(NIB_FINISH_FAILED), "failed");
    ck_assert_str_eq(nib_finish_name(NIB_FINISH_COUNT), "none");
}
END_TEST

/* ---- prompts that begin alike ---- */

#define BEGIN 990u /* begins a message */
#define PAGE  NIB_KV_PAGE_TOKENS

static void begin_reusing(uint32_t slots, uint32_t pages, uint32_t rows, uint32_t steps_ahead)
{
    open_sched(slots, pages, rows, steps_ahead);
    config.prompt_tokens_max = 256 * NIB_PROMPT_CHUNK_TOKENS;
    config.prefix = (struct nib_prefix_config){.on = true, .window = 2 * PAGE, .begin_token = BEGIN};
    for (uint32_t i = 0; i < 4096; i++)
        prompt[i] = i % 900;
    begin_sched();
}

/* Runs a prompt of one answer token to its end; what of it was fed. */
static uint32_t fed(uint32_t uid, uint32_t prompt_tokens, uint32_t *ret_reused)
{
    const uint64_t before = stats().rows_prompt;
    submit(uid, prompt_tokens, 1);
    for (events_count = 0; events_count == 0;) {
        next();
        ck_assert_uint_gt(step.rows_count, 0);
        finish(&step, 1);
    }
    ck_assert_int_eq(events[0].finish, NIB_FINISH_LENGTH);
    *ret_reused = events[0].reused_tokens;
    return (uint32_t)(stats().rows_prompt - before);
}

START_TEST(the_next_turn_feeds_what_is_new)
{
    uint32_t reused;
    begin_reusing(2, 64, 100, 2);
    ck_assert_uint_eq(fed(1, 700, &reused), 700);
    ck_assert_uint_eq(reused, 0);
    ck_assert_uint_eq(fed(1, 760, &reused), 760 - 640);
    ck_assert_uint_eq(reused, 640);
    ck_assert_uint_eq(fed(2, 760, &reused), 760); /* another user */
    ck_assert(stats().tokens_reused == 640 && stats().pages_used == 0 && stats().pages_idle > 0);
    ck_assert_uint_eq(fed(1, 760, &reused), 760 - 704);
    ck_assert_uint_eq(fed(1, 500, &reused), 500); /* ends where nothing was saved */
    ck_assert_uint_eq(fed(1, 500, &reused), 500 - 448);
}
END_TEST

/* A common beginning of two prompts: the second parts inside the first, behind a message's begin, or anywhere, where it
 * is the third that gains. */
START_TEST(window_pages_lie_where_prompts_part)
{
    uint32_t reused;
    begin_reusing(2, 128, 256, 1);
    prompt[500] = BEGIN;
    ck_assert_uint_eq(fed(1, 900, &reused), 900);
    prompt[501] = 3; /* behind the begin */
    ck_assert_uint_eq(fed(1, 900, &reused), 900 - 448);
    prompt[300] = 4; /* inside a message */
    ck_assert_uint_eq(fed(1, 900, &reused), 900);
    prompt[300] = 5;
    ck_assert_uint_eq(fed(1, 900, &reused), 900 - 256);
}
END_TEST

/* The engine counts prompt tokens for a repetition penalty, so it must see them all. */
START_TEST(a_repetition_penalty_feeds_all)
{
    uint32_t reused;
    struct nib_handle handle;
    begin_reusing(1, 64, 256, 1);
    fed(1, 300, &reused);
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    sampling.repetition_penalty = 1.1f;
    const struct nib_request request = {
        .prompt = prompt, .prompt_tokens = 300, .answer_tokens_max = 1, .uid = 1, .sampling = &sampling};
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    next();
    ck_assert_uint_eq(step.rows[0].pos, 0);
    ck_assert_uint_eq(step.loads_count, 0);
}
END_TEST

/* The step that takes a slot loads its rings and begins with its first row behind the known pages. */
START_TEST(a_warm_prompt_loads_then_begins)
{
    uint32_t reused;
    begin_reusing(1, 64, 256, 1);
    fed(1, 300, &reused);
    submit(1, 310, 2);
    next();
    ck_assert_uint_eq(step.loads_count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        ck_assert_uint_eq(step.loads[i].index, 2 + i);
        ck_assert_uint_eq(step.loads[i].slot, 0);
    }
    ck_assert_uint_eq(step.rows_count, 310 - 256);
    ck_assert_uint_eq(step.rows[0].pos, 256);
    ck_assert_uint_eq(step.rows[0].token, prompt[256]);
    ck_assert_uint_eq(step.rows[0].flags, NIB_ROW_FIRST);
    ck_assert_uint_eq(step.rows[1].flags, 0);
    finish(&step, 1);
    next();
    ck_assert_uint_eq(step.loads_count, 0);
    ck_assert_uint_eq(step.rows[0].flags, NIB_ROW_DECODE | NIB_ROW_LOGITS);
}
END_TEST

/* Cancelled in the middle of its prompt: what was complete is kept, the rest is free. */
START_TEST(a_cancelled_prompt_leaves_its_pages)
{
    uint32_t reused;
    begin_reusing(1, 64, 100, 1);
    prompt[190] = BEGIN;
    struct nib_handle handle = submit(1, 1000, 1);
    for (int i = 0; i < 3; i++) {
        next();
        finish(&step, 1);
    }
    ck_assert_int_eq(nib_sched_cancel(sched, handle), NIB_OK);
    next();
    ck_assert(step.rows_count == 0 && stats().pages_used == 0);
    ck_assert_uint_eq(stats().pages_idle, 4 + 2); /* of 300 tokens; 2 window pages */
    ck_assert_uint_eq(fed(1, 1000, &reused), 1000 - 128);
}
END_TEST

/* A NaN may come from what was kept: the user's next try computes all again. */
START_TEST(a_failed_request_leaves_nothing)
{
    uint32_t reused;
    begin_reusing(2, 64, 256, 1);
    fed(1, 200, &reused);
    fed(2, 200, &reused);
    submit(1, 200, 4);
    next();
    ck_assert_uint_eq(step.rows[0].pos, 192);
    out.serial = step.serial;
    out.count = 1;
    out.sampled[0] = (struct nib_sampled){.slot = 0, .failed = true};
    ck_assert_int_eq(nib_sched_finish_step(sched, 0, &out, events, &events_count), NIB_OK);
    ck_assert_int_eq(events[0].finish, NIB_FINISH_FAILED);
    ck_assert(nib_sched_check(sched));
    ck_assert_uint_eq(fed(1, 200, &reused), 200);
    ck_assert_uint_eq(fed(2, 200, &reused), 8);
}
END_TEST

/* Prompts that come together: the common beginning is fed once, whatever it ends in, by the first; the others wait. */
static uint64_t fed_together(uint32_t uids, uint32_t part, uint32_t *ret_steps)
{
    enum { MANY = 20, LONG = 1200 };
    begin_reusing(MANY, 1024, 256, 2);
    prompt[600] = BEGIN;
    for (uint32_t i = 0; i < MANY; i++) {
        prompt[part] = 901 + i;
        submit(1 + i % uids, LONG, 1);
    }
    for (*ret_steps = 0; stats().finished < MANY; ++*ret_steps) {
        next();
        ck_assert_uint_gt(step.rows_count, 0);
        finish(&step, 1);
    }
    return stats().rows_prompt;
}

START_TEST(a_common_beginning_is_fed_once)
{
    uint32_t steps;
    /* behind the begin of a message; and inside one, where only those that part know where */
    ck_assert_uint_eq(fed_together(1, 610, &steps), 1200 + 19 * (1200 - 576));
    ck_assert_uint_eq(fed_together(1, 1000, &steps), 1200 + 19 * (1200 - 960));
    ck_assert_uint_le(steps, 1 + (1200 + 19 * 240) / 256 + 8); /* waits leave room in few steps */
    ck_assert_uint_eq(fed_together(2, 1000, &steps), 2 * (1200 + 9 * (1200 - 960)));
    ck_assert_uint_eq(fed_together(20, 1000, &steps), 20 * 1200); /* each user for himself */
}
END_TEST

/* A prompt begins as soon as the one before it has computed what they share, or when it has that already. */
START_TEST(a_wait_ends_where_prompts_part)
{
    uint32_t steps = 1, reused;
    begin_reusing(2, 256, 64, 1);
    submit(1, 3000, 1);
    prompt[200] = 901;
    submit(1, 400, 1);
    for (next(); rows_of(1) == 0; next(), steps++)
        finish(&step, 1);
    ck_assert_uint_eq(steps, 5); /* behind the row at 192, where window pages are saved; 64 a step */
    for (uint32_t i = 0; i < step.rows_count; i++)
        if (step.rows[i].flags & NIB_ROW_FIRST)
            ck_assert_uint_eq(step.rows[i].pos, 192);

    begin_reusing(2, 256, 64, 1);
    fed(1, 300, &reused);
    struct nib_handle handle;
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    sampling.repetition_penalty = 1.1f;
    const struct nib_request all = {
        .prompt = prompt, .prompt_tokens = 1000, .answer_tokens_max = 1, .uid = 1, .sampling = &sampling};
    ck_assert_int_eq(nib_sched_submit(sched, &all, &handle, NULL), NIB_OK);
    submit(1, 280, 1); /* knows all that the first, from position 0, is about to compute */
    next();
    ck_assert_uint_eq(rows_of(1), 280 - 256);
}
END_TEST

/* Nobody waits for another user's prompt, which would tell of it; nor who computes all anyway. */
START_TEST(only_who_will_reuse_waits)
{
    begin_reusing(3, 256, 64, 1);
    submit(1, 1000, 1);
    submit(2, 900, 1);
    next();
    ck_assert(rows_of(0) == 32 && rows_of(1) == 32);
    begin_reusing(2, 128, 64, 1);
    struct nib_handle handle;
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    sampling.repetition_penalty = 1.1f;
    const struct nib_request request = {
        .prompt = prompt, .prompt_tokens = 900, .answer_tokens_max = 1, .uid = 1, .sampling = &sampling};
    submit(1, 1000, 1);
    ck_assert_int_eq(nib_sched_submit(sched, &request, &handle, NULL), NIB_OK);
    next();
    ck_assert(rows_of(0) == 32 && rows_of(1) == 32);
}
END_TEST

/* Who waits does not wait for one that ended. */
START_TEST(a_wait_ends_with_the_one_waited_for)
{
    begin_reusing(2, 128, 64, 1);
    struct nib_handle handle = submit(1, 1000, 1);
    submit(1, 1000, 1);
    next();
    ck_assert_uint_eq(rows_of(0), 64);
    ck_assert_uint_eq(rows_of(1), 0);
    finish(&step, 1);
    ck_assert_int_eq(nib_sched_cancel(sched, handle), NIB_OK);
    next();
    ck_assert_uint_eq(rows_of(0), 0);
    ck_assert_uint_eq(rows_of(1), 64);
    ck_assert_uint_eq(step.rows[0].pos, 0);
}
END_TEST

/* Requests that take all they may leave room for the windows of their prompts, in a pool with more than one sequence. */
START_TEST(the_longest_answers_leave_room_for_windows)
{
    uint32_t reused;
    for (uint32_t more = 0; more <= 2; more++) {
        begin_reusing(1, 4096 / PAGE + more, 256, 1);
        for (uint32_t turn = 0; turn < 2; turn++) {
            struct nib_handle handle = submit(1, 1000 + 50 * turn, 4096 - 1000 - 50 * turn);
            for (events_count = 0; events_count == 0;) {
                next();
                finish(&step, 1);
            }
            reused = events[0].reused_tokens;
            ck_assert_int_eq(nib_sched_cancel(sched, handle), NIB_OK);
            next();
        }
        ck_assert_uint_eq(reused, more == 2 ? 960 : 0);
    }
}
END_TEST

/* More warm prompts than one step may load for: the others come with the next steps. */
START_TEST(loads_of_a_step_are_bounded)
{
    enum { MANY = NIB_MAX_KV_LOADS };
    uint32_t reused, admitted = 0;
    begin_reusing(MANY, 256, 256, 1);
    fed(1, 200, &reused);
    for (uint32_t i = 0; i < MANY; i++)
        submit(1, 200, 8);
    for (uint32_t i = 0; i < 3; i++) {
        next();
        ck_assert_uint_le(step.loads_count, NIB_MAX_KV_LOADS);
        ck_assert_uint_eq(step.loads_count % 2, 0);
        admitted += step.loads_count / 2;
        finish(&step, 1);
    }
    ck_assert_uint_eq(admitted, MANY);
}
END_TEST

NIB_SUITE(sched, the_next_turn_feeds_what_is_new, window_pages_lie_where_prompts_part, a_repetition_penalty_feeds_all,
          a_warm_prompt_loads_then_begins, a_cancelled_prompt_leaves_its_pages, a_failed_request_leaves_nothing,
          the_longest_answers_leave_room_for_windows, loads_of_a_step_are_bounded, a_common_beginning_is_fed_once,
          a_wait_ends_with_the_one_waited_for, a_wait_ends_where_prompts_part, only_who_will_reuse_waits,
          one_request_is_fed_and_decoded, a_step_ahead_feeds_back_and_drops_what_follows_a_stop,
          two_ahead_never_begin_a_token_past_the_length, decode_comes_first_and_prompts_keep_to_their_share,
          without_decode_prompts_fill_the_step, prompts_leave_answers_their_pace, what_most_wait_for_goes_first,
          a_short_prompt_goes_between, short_prompts_are_finished_and_a_long_one_gives_way, uids_take_turns,
          a_newcomer_waits_one_turn_of_each_other_uid_at_most, newcomers_cannot_starve_a_waiting_uid,
          a_big_request_is_overtaken_a_bounded_number_of_times, cancel_takes_effect_at_the_next_step,
          cancel_at_every_token_of_every_slot, a_deadline_ends_waiting_and_running_requests,
          failed_logits_end_their_request_only, a_lost_engine_fails_everything, draining_finishes_what_was_accepted,
          submit_names_what_is_wrong_and_changes_nothing, a_full_queue_and_full_prompt_memory_refuse,
          retry_follows_how_long_slots_are_held, a_config_out_of_range_is_refused, finish_reasons_have_names)
