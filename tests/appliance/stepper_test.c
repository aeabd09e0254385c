/* The stepper with an engine that does what the test says: requests to their ends, cancel, an engine
 * that breaks at any step, a self-test that changes its mind. The test is the front thread. */
#include "appliance/stepper.h"

#include <poll.h>
#include <unistd.h>

#include "core/sched_impl.h"
#include "tests/harness.h"

#define JOBS    12u
#define SLOTS   4u
#define CTX     512u
#define STOP_ID 250u
#define NOTHING UINT64_MAX

/* ---- an engine of no model: the token at a position is a function of position and prompt ---- */

struct fake {
    struct nib_engine engine;
    struct nib_step_out out[NIB_MAX_STEPS_AHEAD];
    uint32_t first, count;
    uint64_t steps;
    uint64_t fail_submit_at, fail_collect_at; /* steps so far; NOTHING: never */
    uint64_t unusable_at;                     /* a step whose logits are not usable */
    uint64_t differ_at;                       /* from here on it gives other tokens */
    uint64_t lonely_collects; /* waits with no other step under way: the device then has nothing to do */
    bool closed;
};

static enum nib_err fake_submit(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg)
{
    struct fake *f = (struct fake *)(void *)engine;
    enum nib_err err = nib_step_check(engine, step, msg);
    ck_assert_msg(err == NIB_OK, "%s", msg->text);
    if (f->steps == f->fail_submit_at)
        return nib_fail(msg, NIB_E_DEVICE, "the fake engine broke at submit");
    struct nib_step_out *out = &f->out[(f->first + f->count++) % NIB_MAX_STEPS_AHEAD];
    out->serial = step->serial;
    out->count = 0;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct nib_row *row = &step->rows[i];
        if (!(row->flags & NIB_ROW_LOGITS))
            continue;
        struct nib_sampled *s = &out->sampled[out->count++];
        *s = (struct nib_sampled){.slot = row->slot, .token = row->pos % 200 + 1};
        s->token += f->steps >= f->differ_at;
        s->failed = f->steps == f->unusable_at;
        if (s->failed)
            s->token = 0;
    }
    f->steps++;
    return NIB_OK;
}

static enum nib_err fake_collect(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg)
{
    struct fake *f = (struct fake *)(void *)engine;
    ck_assert_uint_gt(f->count, 0);
    if (f->steps == f->fail_collect_at)
        return nib_fail(msg, NIB_E_DEVICE, "the fake engine broke at collect");
    f->lonely_collects += f->count == 1;
    *ret_out = f->out[f->first];
    f->first = (f->first + 1) % NIB_MAX_STEPS_AHEAD;
    f->count--;
    return NIB_OK;
}

static void fake_close(struct nib_engine *engine)
{
    ((struct fake *)(void *)engine)->closed = true;
}

static const struct nib_engine_ops fake_ops = {fake_submit, fake_collect, fake_close};

/* ---- the world around the stepper ---- */

static struct fake fake;
static struct nib_stepper stepper;
static struct nib_shape shape;
static struct nib_job_in jobs[JOBS];
static uint32_t prompts[JOBS][CTX];
static struct nib_handle handles[JOBS];
static struct nib_step step;
static struct nib_step_out step_out;
static struct nib_sched_event sched_events[SLOTS + JOBS];
static uint8_t memory[16 << 20] __attribute__((aligned(64)));
static bool boot_fails;
static uint64_t canary_ms = 1 << 30;

static enum nib_err boot(void *arg, struct nib_stepper *s, struct nib_msg *msg)
{
    (void)arg;
    if (boot_fails)
        return nib_fail(msg, NIB_E_FORMAT, "the image is not one");
    struct nib_arena arena;
    nib_arena_init(&arena, memory, sizeof memory);
    struct nib_sched_config config = {.dims = fake.engine.dims,
                                      .vocab = shape.vocab,
                                      .queue_max = JOBS,
                                      .prompt_tokens_max = JOBS * CTX,
                                      .prefill_rows_max = 16,
                                      .gap_percent = 200};
    enum nib_err err = nib_sched_init(&arena, &config, &s->sched, msg);
    if (!err)
        err = nib_ring_init(&s->commands, &arena, 64, sizeof(struct nib_cmd), msg);
    if (!err)
        err = nib_ring_init(&s->events, &arena, 64, sizeof(struct nib_job_event), msg);
    s->engine = &fake.engine;
    s->jobs = jobs;
    s->jobs_count = JOBS;
    s->handles = handles;
    s->sched_events = sched_events;
    s->step = &step;
    s->out = &step_out;
    return err;
}

static void start(uint32_t steps_ahead)
{
    shape = *nib_shape_find("nano");
    memset(&stepper, 0, sizeof stepper);
    fake.engine = (struct nib_engine){.ops = &fake_ops,
                                      .row = "fake",
                                      .shape = &shape,
                                      .dims = {.slots = SLOTS,
                                               .ctx_tokens = CTX,
                                               .kv_pages = SLOTS * CTX / NIB_KV_PAGE_TOKENS,
                                               .step_rows_max = 32,
                                               .steps_ahead = steps_ahead}};
    stepper.boot = boot;
    stepper.canary_ms = canary_ms;
    struct nib_msg msg;
    ck_assert_int_eq(nib_stepper_start(&stepper, &msg), NIB_OK);
}

static void defaults(void)
{
    memset(&fake, 0, sizeof fake);
    fake.fail_submit_at = fake.fail_collect_at = fake.unusable_at = fake.differ_at = NOTHING;
}

static int wait_state(void)
{
    while (atomic_load(&stepper.state) == NIB_STATE_LOADING)
        (void)usleep(200);
    return atomic_load(&stepper.state);
}

static void submit(uint32_t job, uint32_t prompt_tokens, uint32_t answer_tokens)
{
    struct nib_job_in *in = &jobs[job];
    memset(in, 0, sizeof *in);
    in->prompt = prompts[job];
    for (uint32_t i = 0; i < prompt_tokens && i < CTX; i++)
        in->prompt[i] = i % 200;
    in->prompt_tokens = prompt_tokens;
    in->answer_tokens_max = answer_tokens;
    in->stop_count = 1;
    in->stop[0] = STOP_ID;
    in->sampling.top_p = in->sampling.repetition_penalty = 1;
    nib_stepper_command(&stepper, NIB_CMD_SUBMIT, job);
}

struct seen {
    uint32_t tokens;
    enum nib_end end;
};
static struct seen seen[JOBS];

/* Takes events until `count` jobs ended. */
static void collect_ends(uint32_t count)
{
    struct nib_job_event e;
    uint32_t ended = 0;
    while (ended < count) {
        if (!nib_ring_pop(&stepper.events, &e)) {
            struct pollfd p = {.fd = stepper.wake_front, .events = POLLIN};
            uint64_t n;
            (void)poll(&p, 1, 100);
            ssize_t got = read(stepper.wake_front, &n, sizeof n);
            (void)got;
            continue;
        }
        struct seen *s = &seen[e.job];
        ck_assert_int_eq(s->end, NIB_END_NONE); /* nothing after the end */
        if (e.has_token) {
            ck_assert_uint_eq(e.sampled.token, (jobs[e.job].prompt_tokens - 1 + s->tokens) % 200 + 1);
            ck_assert_int_eq(e.started, s->tokens == 0);
            s->tokens++;
        }
        if (e.end == NIB_END_FAILED && fake.unusable_at == NOTHING) /* who sees it knows that the engine is lost */
            ck_assert_int_eq(atomic_load(&stepper.state), NIB_STATE_FAILED);
        s->end = (enum nib_end)e.end;
        ended += e.end != NIB_END_NONE;
    }
}

static void forget(void)
{
    memset(seen, 0, sizeof seen);
}

static uint64_t gauge(enum nib_gauge g)
{
    return atomic_load(&stepper.gauges[g]);
}

START_TEST(test_requests)
{
    for (uint32_t ahead = 1; ahead <= NIB_MAX_STEPS_AHEAD; ahead++) {
        defaults();
        forget();
        start(ahead);
        ck_assert_int_eq(wait_state(), NIB_STATE_READY);
        ck_assert_uint_eq(gauge(NIB_G_CANARIES), 1);
        for (uint32_t j = 0; j < JOBS; j++)
            submit(j, 1 + 37 * j, 3 + j);
        collect_ends(JOBS);
        for (uint32_t j = 0; j < JOBS; j++) {
            ck_assert_uint_eq(seen[j].tokens, 3 + j);
            ck_assert_int_eq(seen[j].end, NIB_END_LENGTH);
        }
        ck_assert(nib_stepper_stop(&stepper));
        ck_assert(fake.closed);
        ck_assert(nib_sched_check(stepper.sched));
        ck_assert_uint_gt(stepper.sched->pace.levels[0].idle_us, 0); /* steps are timed */
        ck_assert_uint_eq(gauge(NIB_G_FINISHED), gauge(NIB_G_SUBMITTED));
    }
}
END_TEST

/* While an answer grows and its tokens are handed on, the next step is under way already. */
START_TEST(test_steps_stay_in_flight)
{
    defaults();
    forget();
    start(2);
    ck_assert_int_eq(wait_state(), NIB_STATE_READY);
    fake.lonely_collects = 0; /* the self-test takes one step after the other */
    submit(0, 10, 400);
    submit(1, 70, 300);
    collect_ends(2);
    ck_assert(nib_stepper_stop(&stepper));
    ck_assert_uint_eq(fake.lonely_collects, 1); /* the last */
}
END_TEST

START_TEST(test_refusals)
{
    defaults();
    forget();
    start(1);
    ck_assert_int_eq(wait_state(), NIB_STATE_READY);
    submit(0, CTX, 10); /* longer than the context */
    collect_ends(1);
    ck_assert_int_eq(seen[0].end, NIB_END_REFUSED);
    nib_stepper_command(&stepper, NIB_CMD_DRAIN, 0);
    submit(1, 5, 5);
    collect_ends(1);
    ck_assert_int_eq(seen[1].end, NIB_END_DRAINING);
    ck_assert(nib_stepper_stop(&stepper));
}
END_TEST

START_TEST(test_cancel)
{
    defaults();
    forget();
    start(1);
    ck_assert_int_eq(wait_state(), NIB_STATE_READY);
    for (uint32_t j = 0; j < JOBS; j++) /* some run, some wait */
        submit(j, 10, 400);
    for (uint32_t j = 0; j < JOBS; j++)
        nib_stepper_command(&stepper, NIB_CMD_CANCEL, j);
    collect_ends(JOBS);
    for (uint32_t j = 0; j < JOBS; j++)
        ck_assert(seen[j].end == NIB_END_CANCELLED && seen[j].tokens < 400);
    nib_stepper_command(&stepper, NIB_CMD_CANCEL, 3); /* stale: nothing happens */
    forget();
    submit(3, 10, 2);
    collect_ends(1);
    ck_assert_int_eq(seen[3].end, NIB_END_LENGTH);
    ck_assert(nib_stepper_stop(&stepper));
    ck_assert(nib_sched_check(stepper.sched));
}
END_TEST

/* The engine breaks at every early step, at submit and at collect: every job gets exactly one end,
 * the state says failed, later jobs fail at once, and nothing hangs. */
START_TEST(test_engine_breaks)
{
    for (uint64_t at = 9; at < 60; at++) { /* the self-test takes the first 8 steps */
        defaults();
        forget();
        if (at % 2)
            fake.fail_submit_at = at;
        else
            fake.fail_collect_at = at;
        start(1 + at / 2 % NIB_MAX_STEPS_AHEAD);
        ck_assert_int_eq(wait_state(), NIB_STATE_READY);
        for (uint32_t j = 0; j < JOBS - 1; j++)
            submit(j, 30, 100);
        collect_ends(JOBS - 1);
        for (uint32_t j = 0; j < JOBS - 1; j++)
            ck_assert_int_eq(seen[j].end, NIB_END_FAILED);
        submit(JOBS - 1, 5, 5);
        collect_ends(1);
        ck_assert_int_eq(seen[JOBS - 1].end, NIB_END_FAILED);
        ck_assert_int_eq(atomic_load(&stepper.state), NIB_STATE_FAILED);
        ck_assert_int_eq(stepper.failure_err, NIB_E_DEVICE);
        ck_assert_ptr_nonnull(strstr(stepper.failure.text, "broke"));
        ck_assert(nib_stepper_stop(&stepper));
        ck_assert(nib_sched_check(stepper.sched));
    }
}
END_TEST

/* One step without usable values ends the requests in it, not the daemon. */
START_TEST(test_unusable_values)
{
    defaults();
    forget();
    fake.unusable_at = 15;
    start(1);
    ck_assert_int_eq(wait_state(), NIB_STATE_READY);
    submit(0, 5, 100);
    collect_ends(1);
    ck_assert_int_eq(seen[0].end, NIB_END_FAILED);
    submit(1, 5, 10);
    collect_ends(1);
    ck_assert_int_eq(seen[1].end, NIB_END_LENGTH);
    ck_assert_int_eq(atomic_load(&stepper.state), NIB_STATE_READY);
    ck_assert(nib_stepper_stop(&stepper));
}
END_TEST

START_TEST(test_boot_failures)
{
    defaults();
    boot_fails = true;
    start(1);
    ck_assert_int_eq(wait_state(), NIB_STATE_FAILED);
    ck_assert_int_eq(stepper.failure_err, NIB_E_FORMAT);
    ck_assert(nib_stepper_stop(&stepper));
    boot_fails = false;
    const uint64_t at[] = {0, 3};
    for (int i = 0; i < 2; i++) { /* no READY without a token from the engine */
        defaults();
        fake.fail_submit_at = at[i];
        start(1);
        ck_assert_int_eq(wait_state(), NIB_STATE_FAILED);
        ck_assert(nib_stepper_stop(&stepper));
    }
    defaults();
    fake.unusable_at = 5;
    start(1);
    ck_assert_int_eq(wait_state(), NIB_STATE_FAILED);
    ck_assert(nib_stepper_stop(&stepper));
}
END_TEST

/* Idle, the self-test runs again; tokens other than those at boot end the daemon. */
START_TEST(test_self_test_notices_a_change)
{
    defaults();
    fake.differ_at = 40;
    canary_ms = 0;
    start(1);
    while (atomic_load(&stepper.state) != NIB_STATE_FAILED)
        (void)usleep(1000);
    ck_assert_ptr_nonnull(strstr(stepper.failure.text, "differ"));
    ck_assert_uint_ge(gauge(NIB_G_CANARIES), 2);
    ck_assert(nib_stepper_stop(&stepper));
}
END_TEST

NIB_SUITE(stepper, test_requests, test_steps_stay_in_flight, test_refusals, test_cancel, test_engine_breaks,
          test_unusable_values, test_boot_failures, test_self_test_notices_a_change)
