/* appliance/stepper.c: owns the engine, the scheduler and the loop that joins them. Limits: the
 * rings' sizes, steps_ahead of the engine. The stepper thread. Fails by ending every request with
 * NIB_END_FAILED and setting NIB_STATE_FAILED; the process then exits. */
#include "appliance/stepper.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define NIB_IDLE_MS 1000 /* longest sleep without a command: keeps `alive` honest */

uint64_t nib_now_us(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

uint64_t nib_now_ms(void)
{
    return nib_now_us() / 1000u;
}

static void wake(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one); /* EAGAIN: already awake */
    (void)n;
}

static void wait_for(int fd, int ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t count;
    if (poll(&p, 1, ms) > 0) {
        ssize_t n = read(fd, &count, sizeof count);
        (void)n;
    }
}

static void publish(struct nib_stepper *s)
{
    struct nib_sched_stats st;
    nib_sched_stats(s->sched, &st);
    const uint64_t values[NIB_G_CANARIES] = {
        st.submitted,
        st.finished,
        st.refused,
        st.cancelled,
        st.failed,
        st.queued,
        st.running,
        st.pages_used,
        st.pages_count,
        st.steps,
        st.rows_prompt,
        st.rows_decode,
        st.tokens,
        st.tokens_reused,
        st.pages_idle,
        st.pages_evicted,
        st.tokens_drafted,
        st.tokens_accepted,
        nib_sched_retry_ms(s->sched),
    };
    for (size_t i = 0; i < NIB_G_CANARIES; i++)
        atomic_store_explicit(&s->gauges[i], values[i], memory_order_relaxed);
}

static void fail(struct nib_stepper *s, enum nib_err err, const struct nib_msg *msg)
{
    s->failure = *msg;
    s->failure_err = err;
    s->lost = true;
    atomic_store(&s->state, NIB_STATE_FAILED);
    wake(s->wake_front);
}

/* Waits for the front when the ring is full: it always empties it. */
static void push(struct nib_stepper *s, const struct nib_job_event *e)
{
    while (!nib_ring_push(&s->events, e)) {
        wake(s->wake_front);
        struct timespec ts = {.tv_nsec = 200000};
        (void)nanosleep(&ts, NULL);
        if (atomic_load(&s->quit))
            return; /* the front reads no more */
    }
}

static enum nib_end end_of(enum nib_finish finish)
{
    switch (finish) {
    case NIB_FINISH_NONE:
        return NIB_END_NONE;
    case NIB_FINISH_STOP:
        return NIB_END_STOP;
    case NIB_FINISH_LENGTH:
        return NIB_END_LENGTH;
    case NIB_FINISH_CANCELLED:
    case NIB_FINISH_DEADLINE:
        return NIB_END_CANCELLED;
    default:
        return NIB_END_FAILED;
    }
}

static void forward(struct nib_stepper *s, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct nib_sched_event *from = &s->sched_events[i];
        struct nib_job_event e = {.job = (uint32_t)from->tag, .end = end_of(from->finish)};
        if (from->sampled) {
            e.has_token = true;
            e.started = from->answer_tokens == 1;
            e.reused_tokens = from->reused_tokens;
            e.sampled = *from->sampled;
        }
        push(s, &e);
    }
    if (count)
        wake(s->wake_front);
}

static void submit(struct nib_stepper *s, uint32_t job)
{
    const struct nib_job_in *in = &s->jobs[job];
    struct nib_request r = {.prompt = in->prompt,
                            .prompt_tokens = in->prompt_tokens,
                            .answer_tokens_max = in->answer_tokens_max,
                            .uid = in->uid,
                            .stop_count = in->stop_count,
                            .tag = job,
                            .sampling = &in->sampling};
    memcpy(r.stop, in->stop, sizeof r.stop);
    struct nib_msg why;
    enum nib_err err = s->lost ? NIB_E_DEVICE : nib_sched_submit(s->sched, &r, &s->handles[job], &why);
    if (!err)
        return;
    struct nib_job_event e = {.job = job, .end = NIB_END_REFUSED};
    if (err == NIB_E_FULL) {
        e.end = NIB_END_FULL;
        e.retry_ms = nib_sched_retry_ms(s->sched);
    } else if (err == NIB_E_STATE) {
        e.end = NIB_END_DRAINING;
    } else if (err == NIB_E_DEVICE) {
        e.end = NIB_END_FAILED;
    }
    push(s, &e);
    wake(s->wake_front);
}

static void read_commands(struct nib_stepper *s)
{
    struct nib_cmd c;
    while (nib_ring_pop(&s->commands, &c)) {
        if (c.type == NIB_CMD_SUBMIT) {
            submit(s, c.job);
        } else if (c.type == NIB_CMD_DRAIN) {
            nib_sched_drain(s->sched);
        } else {
            enum nib_err err = nib_sched_cancel(s->sched, s->handles[c.job]);
            (void)err; /* stale: it ended by itself meanwhile, and its last event is on the way */
        }
    }
}

static void lose(struct nib_stepper *s, enum nib_err err, const struct nib_msg *msg)
{
    uint32_t count = 0;
    nib_sched_abort(s->sched, s->sched_events, &count);
    s->in_flight = 0;
    publish(s);
    fail(s, err, msg); /* first: a front that is draining leaves with the last end */
    forward(s, count);
}

/* A step runs when it was begun and the one before has ended. */
static enum nib_err took(struct nib_stepper *s)
{
    const uint64_t now_us = nib_now_us();
    const uint64_t begun_us = s->begun_us[0] > s->ended_us ? s->begun_us[0] : s->ended_us;
    memmove(&s->begun_us[0], &s->begun_us[1], sizeof s->begun_us - sizeof s->begun_us[0]);
    s->ended_us = now_us;
    return nib_sched_took(s->sched, now_us - begun_us);
}

/* Begins a step if there is one and collects one if it must. False: nothing to do. */
static bool turn(struct nib_stepper *s)
{
    struct nib_msg msg;
    uint32_t count = 0;
    bool begun = false;
    if (s->in_flight < s->engine->dims.steps_ahead) {
        enum nib_err err = nib_sched_next_step(s->sched, nib_now_ms(), s->step, s->sched_events, &count);
        NIB_MUST(err == NIB_OK);
        forward(s, count);
        begun = s->step->rows_count > 0;
        s->begun_us[s->in_flight] = nib_now_us();
        if (begun && (err = s->engine->ops->submit(s->engine, s->step, &msg)) != NIB_OK) {
            lose(s, err, &msg);
            return true;
        }
        s->in_flight += begun;
    }
    if (s->in_flight == 0)
        return false;
    if (begun && s->in_flight < s->engine->dims.steps_ahead)
        return true;
    enum nib_err err = s->engine->ops->collect(s->engine, s->out, &msg);
    if (!err)
        err = took(s);
    if (!err)
        err = nib_sched_finish_step(s->sched, nib_now_ms(), s->out, s->sched_events, &count);
    if (err) {
        lose(s, err, &msg);
        return true;
    }
    s->in_flight--;
    forward(s, count);
    atomic_fetch_add(&s->alive, 1);
    return true;
}

/* The self-test: a fixed prompt through scheduler and engine; every run must give the first run's
 * tokens. Only when nothing else runs. */
static enum nib_err canary(struct nib_stepper *s, struct nib_msg *msg)
{
    uint32_t prompt[16];
    uint32_t ordinary = s->engine->shape->special_base;
    for (uint32_t i = 0; i < 16; i++)
        prompt[i] = (i * 2654435761u >> 8) % (ordinary < 256 ? ordinary : 256u);
    struct nib_sampling greedy = {.top_p = 1, .repetition_penalty = 1};
    uint32_t room = s->engine->dims.ctx_tokens;
    uint32_t prompt_tokens = room > 32 ? 16 : 1;
    struct nib_request r = {.prompt = prompt,
                            .prompt_tokens = prompt_tokens,
                            .answer_tokens_max = NIB_CANARY_TOKENS,
                            .uid = UINT32_MAX,
                            .sampling = &greedy};
    struct nib_handle handle;
    enum nib_err err = nib_sched_submit(s->sched, &r, &handle, msg);
    uint32_t got = 0;
    uint32_t tokens[NIB_CANARY_TOKENS] = {0};
    while (!err && got < NIB_CANARY_TOKENS) {
        uint32_t count = 0;
        err = nib_sched_next_step(s->sched, nib_now_ms(), s->step, s->sched_events, &count);
        if (!err && s->step->rows_count == 0)
            err = nib_fail(msg, NIB_E_DEVICE, "the self-test gave %u of %u tokens", got, NIB_CANARY_TOKENS);
        if (!err)
            err = s->engine->ops->submit(s->engine, s->step, msg);
        if (!err)
            err = s->engine->ops->collect(s->engine, s->out, msg);
        if (!err)
            err = nib_sched_finish_step(s->sched, nib_now_ms(), s->out, s->sched_events, &count);
        atomic_fetch_add(&s->alive, 1);
        for (uint32_t i = 0; !err && i < count; i++)
            if (s->sched_events[i].finish == NIB_FINISH_FAILED)
                err = nib_fail(msg, NIB_E_DEVICE, "the self-test gave no usable value");
            else if (s->sched_events[i].sampled)
                tokens[got++] = s->sched_events[i].sampled->token;
    }
    if (err)
        return err;
    if (s->golden_set && memcmp(tokens, s->golden, sizeof tokens) != 0)
        return nib_fail(msg, NIB_E_DEVICE,
                        "the self-test's tokens differ from those at boot: the hardware is not to "
                        "be trusted");
    memcpy(s->golden, tokens, sizeof tokens);
    s->golden_set = true;
    atomic_fetch_add(&s->gauges[NIB_G_CANARIES], 1);
    return NIB_OK;
}

static void idle(struct nib_stepper *s)
{
    uint64_t now = nib_now_ms();
    if (s->idle_since_ms == 0)
        s->idle_since_ms = now;
    if (!s->lost && now - s->idle_since_ms >= s->canary_ms) {
        struct nib_msg msg;
        enum nib_err err = canary(s, &msg);
        if (err)
            lose(s, err, &msg);
        s->idle_since_ms = 0;
        return;
    }
    if (!s->lost)
        atomic_fetch_add(&s->alive, 1);
    wait_for(s->wake_stepper, (int)(s->idle_ms_max && s->idle_ms_max < NIB_IDLE_MS ? s->idle_ms_max : NIB_IDLE_MS));
}

static void *run(void *arg)
{
    struct nib_stepper *s = arg;
    struct nib_msg msg = {{0}};
    enum nib_err err = s->boot(s->boot_arg, s, &msg);
    if (!err)
        err = canary(s, &msg);
    if (err) {
        fail(s, err, &msg);
        return NULL;
    }
    publish(s);
    atomic_store(&s->state, NIB_STATE_READY);
    wake(s->wake_front);
    while (!atomic_load(&s->quit)) {
        read_commands(s);
        bool busy = !s->lost && turn(s);
        const uint64_t now_ms = nib_now_ms();
        if (!busy || now_ms != s->published_ms) /* reading them all costs as much as the rest of a turn */
            publish(s);
        s->published_ms = now_ms;
        if (busy)
            s->idle_since_ms = 0;
        else
            idle(s);
    }
    publish(s);
    s->engine->ops->close(s->engine);
    return NULL;
}

enum nib_err nib_stepper_start(struct nib_stepper *s, struct nib_msg *msg)
{
    atomic_store(&s->state, NIB_STATE_LOADING);
    s->wake_stepper = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->wake_front = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake_stepper < 0 || s->wake_front < 0)
        return nib_fail(msg, NIB_E_IO, "eventfd: %s", strerror(errno));
    int rc = pthread_create(&s->thread, NULL, run, s);
    if (rc != 0)
        return nib_fail(msg, NIB_E_IO, "cannot start a thread: %s", strerror(rc));
    (void)pthread_setname_np(s->thread, "nib-stepper");
    return NIB_OK;
}

void nib_stepper_command(struct nib_stepper *s, enum nib_cmd_type type, uint32_t job)
{
    struct nib_cmd c = {.type = (uint32_t)type, .job = job};
    NIB_MUST(nib_ring_push(&s->commands, &c));
    wake(s->wake_stepper);
}

bool nib_stepper_stop(struct nib_stepper *s)
{
    atomic_store(&s->quit, true);
    wake(s->wake_stepper);
    if (s->stall_ms_max == 0)
        return pthread_join(s->thread, NULL) == 0;
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += NIB_STOP_MS / 1000;
    return pthread_clockjoin_np(s->thread, NULL, CLOCK_MONOTONIC, &until) == 0;
}
