/* tools/load.c: owns the clients of one load, the times of what ended, and the loop that waits for all of them.
 * Limits: NIB_LOAD_MAX_*. One thread. Fails when the daemon is gone or silent; a single request that goes wrong is counted. */
#include "tools/load.h"

#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/rng.h"
#include "tools/load_conn.h"

#define CALL_AGAIN_S 0.001       /* between two tries to connect */
#define TURN_S       0.2         /* the stop flag is looked at this often */
#define ARRIVALS     0x61727269u /* the arrivals' place among the draws of the seed */

struct run {
    const struct nib_load *load;
    struct nib_load_result *result;
    struct nib_load_conn *conns; /* [conns_count], and the one beside */
    uint32_t conns_count;
    char *requests; /* [conns_count][request_max] */
    float *times;   /* [3][requests]: first, token, whole; then [2][requests * answer_tokens]: the gaps, by tokens */
    uint32_t first_count, token_count, whole_count, gaps_count;
    uint32_t ended;
    struct nib_load beside_load;  /* requests of the client beside */
    struct nib_load_conn *beside; /* NULL: there is none */
    char *beside_request;
    float *beside_times; /* [NIB_LOAD_MAX_BESIDE] */
    uint32_t beside_sent, beside_count;
    uint32_t arrived; /* open loop: requests that have arrived, sent or not */
    double begin_s, heard_s;
    double due_s, arrival_s; /* open loop: arrival of request number `sent`, and of number `arrived` */
    struct nib_msg gone;     /* why the daemon cannot be reached any more; else "" */
};

double nib_load_now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

const char *nib_load_error_name(enum nib_load_error error)
{
    static const char *const names[] = {"refused", "failed", "broken", "short", "late"};
    return error < NIB_LOAD_ERROR_COUNT ? names[error] : "none";
}

static int by_size(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

struct nib_load_spread nib_load_spread_of(float *times, uint32_t count)
{
    struct nib_load_spread s = {.count = count};
    if (count == 0)
        return s;
    qsort(times, count, sizeof *times, by_size);
    double *const to[] = {&s.p50, &s.p90, &s.p99, &s.max};
    static const uint32_t percents[] = {50, 90, 99, 100};
    for (size_t i = 0; i < 4; i++) /* rank: the percentage of count, rounded up */
        *to[i] = (double)times[((uint64_t)count * percents[i] + 99) / 100 - 1];
    return s;
}

static void count_error(struct run *r, const struct nib_load_conn *c, enum nib_load_error error)
{
    r->result->errors[error]++;
    r->ended++;
    if (r->result->why.text[0] == '\0')
        r->result->why = c->why;
}

static void book(struct run *r, struct nib_load_conn *c)
{
    struct nib_load_result *result = r->result;
    const uint32_t n = r->load->requests, answer = c->answer_tokens;
    const enum nib_load_error error = nib_load_conn_error(c);
    if (error != NIB_LOAD_ERROR_COUNT) {
        count_error(r, c, error);
        return;
    }
    r->ended++;
    result->finished++;
    result->tokens_in += c->prompt_tokens;
    result->tokens_out += answer;
    result->tokens_cached += c->cached_tokens;
    if (c->first_s > 0)
        r->times[r->first_count++] = (float)(c->first_s - c->due_s);
    if (c->first_s > 0 && answer > 1)
        r->times[n + r->token_count++] = (float)((c->end_s - c->first_s) / (answer - 1));
    r->times[2 * (size_t)n + r->whole_count++] = (float)(c->end_s - c->due_s);
}

static void settle_beside(struct run *r, struct nib_load_conn *c, enum nib_load_step step)
{
    const bool right = step == NIB_LOAD_ENDED && nib_load_conn_error(c) == NIB_LOAD_ERROR_COUNT;
    if (right && r->beside_count < NIB_LOAD_MAX_BESIDE)
        r->beside_times[r->beside_count++] = (float)(c->end_s - c->due_s);
    if (step == NIB_LOAD_GONE)
        r->gone = c->why;
    else if (!right)
        r->result->beside_errors++;
    if (!right && r->result->why.text[0] == '\0')
        r->result->why = c->why;
    if (step != NIB_LOAD_ENDED)
        nib_load_conn_drop(c);
}

static void settle(struct run *r, struct nib_load_conn *c, enum nib_load_step step)
{
    if (step == NIB_LOAD_GOES_ON)
        return;
    if (c == r->beside) {
        settle_beside(r, c, step);
        return;
    }
    if (step == NIB_LOAD_ENDED) {
        book(r, c);
    } else if (step == NIB_LOAD_BROKE) {
        count_error(r, c, NIB_LOAD_BROKEN);
        nib_load_conn_drop(c);
    } else if (step == NIB_LOAD_GONE) { /* this one was never sent */
        r->gone = c->why;
        r->result->sent--;
        nib_load_conn_drop(c);
    }
}

static struct nib_load_conn *idle_conn(struct run *r)
{
    for (uint32_t i = 0; i < r->conns_count; i++)
        if (r->conns[i].state == NIB_LOAD_IDLE)
            return &r->conns[i];
    return NULL;
}

/* The time from one arrival to the next: exponential, so that the arrivals are a Poisson process. */
static double pause_s(const struct run *r, uint32_t index)
{
    uint32_t words[4];
    nib_rng_draw(r->load->seed, ARRIVALS, index, words);
    return -log(((double)words[0] + 1) * 0x1p-32) / r->load->rate_s;
}

static void arrive(struct run *r)
{
    r->arrival_s += pause_s(r, ++r->arrived);
}

/* Begins what is due and has a client to send it. */
static void begin_due(struct run *r)
{
    const struct nib_load *load = r->load;
    struct nib_load_conn *c;
    while (!r->gone.text[0] && r->result->sent < load->requests && (c = idle_conn(r))) {
        double due_s = nib_load_now_s();
        if (load->clients == 0) {
            if (r->due_s > due_s)
                return;
            due_s = r->due_s;
            r->due_s += pause_s(r, r->result->sent + 1);
        }
        if (r->arrived == r->result->sent)
            arrive(r);
        const uint32_t index = r->result->sent++;
        settle(r, c, nib_load_conn_begin(c, index, due_s));
    }
}

static void begin_beside(struct run *r)
{
    struct nib_load_conn *c = r->beside;
    if (c && c->state == NIB_LOAD_IDLE && !r->gone.text[0])
        settle(r, c, nib_load_conn_begin(c, r->beside_sent++, nib_load_now_s()));
}

/* Counts the arrivals that find no client free. */
static void count_waiting(struct run *r)
{
    const struct nib_load *load = r->load;
    if (load->clients || idle_conn(r))
        return;
    for (const double now = nib_load_now_s(); r->arrived < load->requests && r->arrival_s <= now; arrive(r))
        r->result->waited++;
}

/* All clients, the one beside too. */
static uint32_t clients_of(const struct run *r)
{
    return r->conns_count + (r->beside != NULL);
}

/* How long the loop may sleep. */
static double sleep_s(const struct run *r)
{
    double s = TURN_S;
    bool idle = false;
    for (uint32_t i = 0; i < clients_of(r); i++) {
        idle |= i < r->conns_count && r->conns[i].state == NIB_LOAD_IDLE;
        if (r->conns[i].state == NIB_LOAD_CALLING)
            s = CALL_AGAIN_S;
    }
    const double due = r->due_s - nib_load_now_s();
    if (r->load->clients == 0 && idle && r->result->sent < r->load->requests && due < s)
        s = due > 0 ? due : 0;
    return s;
}

static void wait_and_read(struct run *r)
{
    struct pollfd polls[NIB_LOAD_MAX_CONNS + 1];
    const uint32_t count = clients_of(r);
    for (uint32_t i = 0; i < count; i++) {
        const struct nib_load_conn *c = &r->conns[i];
        const bool asks = c->state == NIB_LOAD_SENDING || c->state == NIB_LOAD_READING;
        polls[i] = (struct pollfd){.fd = asks ? c->fd : -1, .events = c->state == NIB_LOAD_SENDING ? POLLOUT : POLLIN};
    }
    const double s = sleep_s(r);
    const struct timespec ts = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - floor(s)) * 1e9)};
    if (ppoll(polls, count, &ts, NULL) < 0)
        return; /* a signal: the stop flag is looked at next */
    for (uint32_t i = 0; i < count; i++) {
        struct nib_load_conn *c = &r->conns[i];
        if (!polls[i].revents && c->state != NIB_LOAD_CALLING)
            continue;
        if (polls[i].revents)
            r->heard_s = nib_load_now_s();
        settle(r, c, nib_load_conn_go_on(c));
    }
}

static void give_up(struct run *r, const char *why)
{
    for (uint32_t i = 0; i < r->conns_count; i++) {
        struct nib_load_conn *c = &r->conns[i];
        if (c->state == NIB_LOAD_IDLE)
            continue;
        (void)nib_fail(&c->why, NIB_E_STATE, "%s", why);
        count_error(r, c, NIB_LOAD_LATE);
        nib_load_conn_drop(c);
    }
}

static enum nib_err loop(struct run *r, const volatile sig_atomic_t *stop, struct nib_msg *msg)
{
    const struct nib_load *load = r->load;
    r->begin_s = r->due_s = r->heard_s = nib_load_now_s();
    if (load->clients == 0)
        r->arrival_s = r->due_s += pause_s(r, 0);
    while (r->ended < load->requests) {
        begin_due(r);
        begin_beside(r);
        if (r->gone.text[0] && r->ended == r->result->sent)
            return nib_fail(msg, NIB_E_IO, "%s", r->gone.text);
        count_waiting(r);
        const bool active = r->ended < r->result->sent;
        if (!active)
            r->heard_s = nib_load_now_s();
        if (stop && *stop) {
            give_up(r, "stopped");
            return nib_fail(msg, NIB_E_STATE, "stopped");
        }
        if (nib_load_now_s() - r->heard_s >= load->stall_s) {
            give_up(r, "nothing came from the daemon any more");
            return nib_fail(msg, NIB_E_STATE, "nothing came from the daemon for %.0f s", load->stall_s);
        }
        if (r->ended < load->requests)
            wait_and_read(r);
    }
    return NIB_OK;
}

static enum nib_err take_beside(struct run *r, struct nib_msg *msg)
{
    if (r->load->beside_tokens == 0)
        return NIB_OK;
    r->beside_load = *r->load;
    r->beside_load.prompt_tokens = r->load->beside_tokens;
    r->beside_load.answer_tokens = 1;
    r->beside_load.seed ^= 1ull << 63; /* prompts of its own */
    r->beside_times = malloc(NIB_LOAD_MAX_BESIDE * sizeof *r->beside_times);
    r->beside_request = malloc(nib_load_request_max(&r->beside_load));
    if (!r->beside_times || !r->beside_request)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for prompts of %u tokens", r->load->beside_tokens);
    r->beside = &r->conns[r->conns_count];
    *r->beside = (struct nib_load_conn){.load = &r->beside_load,
                                        .fd = -1,
                                        .request = r->beside_request,
                                        .request_max = nib_load_request_max(&r->beside_load),
                                        .gaps_count = &r->gaps_count}; /* no place for a gap: it adds none */
    return NIB_OK;
}

static enum nib_err take_memory(struct run *r, struct nib_msg *msg)
{
    const struct nib_load *load = r->load;
    const size_t n = load->requests, gaps = n * load->answer_tokens, bytes = nib_load_request_max(load);
    r->conns_count = load->clients ? load->clients : NIB_LOAD_MAX_CONNS;
    r->conns = calloc(r->conns_count + 1, sizeof *r->conns);
    r->requests = malloc(r->conns_count * bytes);
    r->times = malloc((3 * n + 2 * gaps) * sizeof *r->times);
    if (!r->conns || !r->requests || !r->times)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for %u clients and %zu times", r->conns_count, 3 * n + 2 * gaps);
    for (uint32_t i = 0; i < r->conns_count; i++) {
        struct nib_load_conn *c = &r->conns[i];
        c->load = load;
        c->fd = -1;
        c->request = r->requests + i * bytes;
        c->request_max = bytes;
        c->gaps = r->times + 3 * n;
        c->token_gaps = c->gaps + gaps;
        c->gaps_max = (uint32_t)gaps;
        c->gaps_count = &r->gaps_count;
    }
    return take_beside(r, msg);
}

static void sum_up(struct run *r)
{
    struct nib_load_result *result = r->result;
    const size_t n = r->load->requests;
    result->seconds = nib_load_now_s() - r->begin_s;
    result->first = nib_load_spread_of(r->times, r->first_count);
    result->token = nib_load_spread_of(r->times + n, r->token_count);
    result->whole = nib_load_spread_of(r->times + 2 * n, r->whole_count);
    result->beside = nib_load_spread_of(r->beside_times, r->beside_count);
    result->gap = nib_load_spread_of(r->times + 3 * n, r->gaps_count);
    result->token_gap = nib_load_spread_of(r->times + 3 * n + n * r->load->answer_tokens, r->gaps_count);
}

enum nib_err nib_load_run(const struct nib_load *load, const volatile sig_atomic_t *stop,
                          struct nib_load_result *ret_result, struct nib_msg *msg)
{
    struct run r = {.load = load, .result = ret_result};
    *ret_result = (struct nib_load_result){0};
    enum nib_err err = take_memory(&r, msg);
    if (!err) {
        err = loop(&r, stop, msg);
        sum_up(&r);
        for (uint32_t i = 0; i < clients_of(&r); i++)
            nib_load_conn_drop(&r.conns[i]);
    }
    free(r.beside_times);
    free(r.beside_request);
    free(r.times);
    free(r.requests);
    free(r.conns);
    return err;
}
