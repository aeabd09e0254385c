/* appliance/generate.c: requests that become jobs: admission, the events that come back, the end.
 * Limits: the job table, the peers' own limits, the context. Front thread. Fails with a refusal to
 * the client; the ledger counts every request exactly once. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "appliance/front.h"
#include "appliance/json_in.h"
#include "appliance/log.h"

static int32_t find_job(const struct nib_front *front)
{
    for (uint32_t i = 0; i < front->mem.jobs_count; i++)
        if (!front->mem.jobs[i].used)
            return (int32_t)i;
    return -1;
}

/* Whether this user, and the daemon, have room for one more. */
static bool admit(struct nib_front *front, const struct nib_conn *conn, int32_t *ret_job, bool *ret_waiting,
                  struct nib_refusal *r)
{
    struct nib_peer_use use = nib_peer_use_of(&front->peers, conn->peer.uid);
    uint64_t open = (uint64_t)use.running + use.waiting;
    uint64_t retry_ms = atomic_load(&front->stepper->gauges[NIB_G_RETRY_MS]);
    bool waiting = front->jobs_active >= front->mem.slots;
    int32_t job = find_job(front);
    if (job < 0)
        nib_refuse(r, 429, "queue_full", NULL, "all %u slots are busy and all %u queue places taken", front->mem.slots,
                   front->mem.jobs_count - front->mem.slots);
    else if (conn->peer.requests_max && open >= conn->peer.requests_max)
        nib_refuse(r, 429, "user_limit", NULL, "user id %u has %llu requests open; its limit is %llu", conn->peer.uid,
                   (unsigned long long)open, (unsigned long long)conn->peer.requests_max);
    else if (waiting && conn->peer.queue_max && use.waiting >= conn->peer.queue_max)
        nib_refuse(r, 429, "user_limit", NULL, "user id %u has %u requests waiting; its limit is %llu", conn->peer.uid,
                   use.waiting, (unsigned long long)conn->peer.queue_max);
    else {
        *ret_job = job;
        *ret_waiting = waiting;
        return true;
    }
    r->retry_s = retry_ms / 1000 + 1;
    return false;
}

/* Longest answer: what was asked for, bounded by what the context leaves. */
static bool answer_room(const struct nib_front *front, const struct nib_conn *conn, size_t prompt, uint32_t *ret_max,
                        struct nib_refusal *r)
{
    const struct nib_params *p = &front->params;
    uint64_t ctx = front->mem.ctx_tokens;
    if (conn->peer.ctx_tokens && conn->peer.ctx_tokens < ctx)
        ctx = conn->peer.ctx_tokens;
    uint64_t asked = p->max_completion_tokens > 0 ? (uint64_t)p->max_completion_tokens : (uint64_t)p->max_tokens;
    uint64_t least = asked ? asked : 1;
    if (prompt + least > ctx)
        return nib_refuse(r, 400, "context_length_exceeded", conn->route ? "messages" : NULL,
                          "the prompt has %zu tokens and the answer may need %llu; the longest "
                          "context is %llu tokens",
                          prompt, (unsigned long long)least, (unsigned long long)ctx);
    uint64_t most = ctx - prompt;
    if (!asked)
        asked = front->config->answer_tokens ? front->config->answer_tokens : most;
    *ret_max = (uint32_t)(asked < most ? asked : most);
    return true;
}

static void set_sampling(struct nib_front *front, bool chat, struct nib_sampling *s)
{
    const struct nib_params *p = &front->params;
    memset(s, 0, offsetof(struct nib_sampling, bias));
    s->temperature = (float)p->temperature;
    s->top_p = p->top_p > 0 ? (float)p->top_p : 1e-9f; /* 0: only the likeliest token */
    s->min_p = (float)p->min_p;
    s->repetition_penalty = (float)p->repetition_penalty;
    s->frequency_penalty = (float)p->frequency_penalty;
    s->presence_penalty = (float)p->presence_penalty;
    s->top_k = (uint32_t)p->top_k;
    s->logprobs = chat ? p->logprobs : p->completion_logprobs >= 0;
    int64_t tops = chat ? p->top_logprobs : p->completion_logprobs;
    s->top_logprobs = tops > 0 ? (uint32_t)tops : 0;
    s->seed = p->seed_given ? (uint64_t)p->seed : (front->next_id * 0x9e3779b97f4a7c15u) >> 11;
    s->bias_count = p->bias_count;
    memcpy(s->bias, p->bias, p->bias_count * sizeof p->bias[0]);
}

static void start_job(struct nib_front *front, struct nib_conn *conn, int32_t index, bool waiting, bool chat)
{
    struct nib_front_job *job = &front->mem.jobs[index];
    struct nib_job_in *in = &front->mem.inputs[index];
    job->used = true;
    job->ended = job->cancelled = job->started = false;
    job->waiting = waiting;
    job->conn = (int32_t)(conn - front->conns);
    job->uid = conn->peer.uid;
    job->end = NIB_END_NONE;
    job->received_us = conn->received_us;
    job->first_us = job->last_us = 0;
    set_sampling(front, chat, &in->sampling);
    in->uid = conn->peer.uid;
    in->stop_count = front->params.ignore_eos ? 0 : front->mem.stop_count;
    memcpy(in->stop, front->mem.stop, sizeof in->stop);
    struct nib_answer_spec spec = {.tokenizer = front->mem.tokenizer,
                                   .buf = front->mem.answers + (size_t)index * front->config->answer_bytes,
                                   .buf_bytes = front->config->answer_bytes,
                                   .chat = chat,
                                   .params = &front->params,
                                   .model = front->mem.model,
                                   .id = front->next_id++,
                                   .created = (uint64_t)time(NULL),
                                   .prompt_tokens = in->prompt_tokens};
    nib_answer_init(&job->answer, &spec);
    conn->job = index;
    conn->answer = &job->answer;
    front->jobs_active++;
    front->metrics.prompt_tokens += in->prompt_tokens;
    nib_peer_count(&front->peers, job->uid, !waiting, waiting);
    nib_stepper_command(front->stepper, NIB_CMD_SUBMIT, (uint32_t)index);
}

static bool check_model(const struct nib_front *front, const json_t *root, struct nib_refusal *r)
{
    const json_t *model = json_object_get(root, "model");
    if (!model || (json_is_string(model) && !strcmp(json_string_value(model), front->mem.model)))
        return true;
    if (!json_is_string(model))
        return nib_refuse(r, 400, "invalid_type", "model", "'model' must be a string");
    return nib_refuse(r, 404, "model_not_found", "model", "this server has one model, \"%s\"", front->mem.model);
}

static bool decode(struct nib_front *front, struct nib_conn *conn, bool chat, int32_t job, struct nib_refusal *r)
{
    json_t *root = NULL;
    struct nib_msg why;
    size_t room;
    const char *body = nib_conn_body(front, conn, &room);
    enum nib_err err = nib_json_parse(body, conn->body_used, &root, &why);
    if (err)
        return nib_refuse(r, err == NIB_E_FULL ? 413 : 400, err == NIB_E_FULL ? "request_too_large" : "invalid_json",
                          NULL, "%s", why.text);
    const struct nib_field_defaults defaults = {.temperature = front->config->temperature,
                                                .top_p = front->config->top_p,
                                                .effort = (uint32_t)front->config->effort,
                                                .vocab = front->mem.vocab};
    struct nib_job_in *in = &front->mem.inputs[job];
    size_t n = 0;
    size_t most = front->mem.ctx_tokens;
    if (!nib_fields_decode(root, chat ? NIB_API_CHAT : NIB_API_COMPLETIONS, &defaults, &front->params, r) ||
        !check_model(front, root, r))
        return false;
    bool ok = chat ? nib_prompt_chat(&front->env, root, &front->params, in->prompt, most, &n, r)
                   : nib_prompt_completion(&front->env, root, in->prompt, most, &n, r);
    if (!ok || !answer_room(front, conn, n, &in->answer_tokens_max, r))
        return false;
    in->prompt_tokens = (uint32_t)n;
    return true;
}

static enum MHD_Result generate(struct nib_front *front, struct nib_conn *conn, bool chat)
{
    struct nib_refusal r;
    int32_t job = -1;
    bool waiting = false;
    bool ok = admit(front, conn, &job, &waiting, &r) && decode(front, conn, chat, job, &r);
    nib_json_reset();
    nib_conn_release_body(front, conn);
    if (!ok)
        return nib_respond_error(front, conn, &r);
    start_job(front, conn, job, waiting, chat);
    nib_conn_suspend(conn);
    return MHD_YES;
}

enum MHD_Result nib_generate_chat(struct nib_front *front, struct nib_conn *conn)
{
    return generate(front, conn, true);
}

enum MHD_Result nib_generate_completion(struct nib_front *front, struct nib_conn *conn)
{
    return generate(front, conn, false);
}

static void refusal_of(const struct nib_front *front, const struct nib_front_job *job, struct nib_refusal *r)
{
    switch (job->end) {
    case NIB_END_FULL:
        nib_refuse(r, 429, "queue_full", NULL, "the queue is full");
        r->retry_s = job->retry_ms / 1000 + 1;
        break;
    case NIB_END_DRAINING:
    case NIB_END_CANCELLED:
        nib_refuse(r, 503, "shutting_down", NULL, "the server is shutting down");
        r->retry_s = 1;
        break;
    case NIB_END_REFUSED:
        nib_refuse(r, 400, "context_length_exceeded", NULL, "prompt and answer do not fit the memory for %u tokens",
                   front->mem.ctx_tokens);
        break;
    default:
        nib_refuse(r, 500, "engine_failed", NULL, "the engine gave no usable result");
    }
}

/* libmicrohttpd asks again after a resume: answer, or wait on. */
enum MHD_Result nib_generate_resumed(struct nib_front *front, struct nib_conn *conn)
{
    if (conn->job < 0)
        return MHD_NO; /* the client is gone */
    const struct nib_front_job *job = &front->mem.jobs[conn->job];
    const struct nib_answer *a = &job->answer;
    if (a->finished ? a->total_bytes > 0 || (a->stream && a->head > 0) : a->stream && nib_answer_waiting(a) > 0)
        return nib_respond_answer(front, conn);
    if (job->end != NIB_END_NONE) {
        struct nib_refusal r;
        refusal_of(front, job, &r);
        return nib_respond_error(front, conn, &r);
    }
    nib_conn_suspend(conn);
    return MHD_YES;
}

static void free_job(struct nib_front *front, struct nib_front_job *job)
{
    nib_peer_count(&front->peers, job->uid, job->waiting ? 0 : -1, job->waiting ? -1 : 0);
    front->jobs_active--;
    job->used = false;
}

static void cancel(struct nib_front *front, struct nib_front_job *job)
{
    if (job->ended || job->cancelled)
        return;
    job->cancelled = true;
    nib_stepper_command(front->stepper, NIB_CMD_CANCEL, (uint32_t)(job - front->mem.jobs));
}

/* The ledger's entry of the connection's request. */
static void close_entry(struct nib_front *front, struct nib_conn *conn, uint64_t *counter)
{
    if (!conn->counted)
        return;
    conn->counted = false;
    front->metrics.active--;
    (*counter)++;
}

/* The connection's request is over, whatever its state. */
void nib_generate_detach(struct nib_front *front, struct nib_conn *conn)
{
    close_entry(front, conn, &front->metrics.cancelled);
    if (conn->job < 0)
        return;
    struct nib_front_job *job = &front->mem.jobs[conn->job];
    conn->job = -1;
    conn->answer = NULL;
    job->conn = -1;
    if (job->ended)
        free_job(front, job);
    else
        cancel(front, job);
}

static void log_end(const struct nib_front *front, const struct nib_conn *conn, const struct nib_front_job *job)
{
    const struct nib_answer *a = &job->answer;
    if (!front->config->log_requests)
        return;
    uint64_t now = nib_now_us();
    nib_log(NIB_LOG_INFO,
            "uid %u POST %s: %s, %u prompt tokens (%u reused), %u answer tokens, first after %llu ms, all "
            "after %llu ms",
            job->uid, conn->route ? conn->route->path : "-", a->finish_reason ? a->finish_reason : "failed",
            a->prompt_tokens, a->cached_tokens, a->answer_tokens,
            (unsigned long long)(job->first_us ? (job->first_us - job->received_us) / 1000 : 0),
            (unsigned long long)((now - job->received_us) / 1000));
}

/* The answer is complete (or failed): books it. */
static void finish(struct nib_front *front, struct nib_conn *conn, struct nib_front_job *job, bool failed)
{
    struct nib_metrics *m = &front->metrics;
    m->answer_tokens += job->answer.answer_tokens;
    m->reasoning_tokens += job->answer.reasoning_tokens;
    nib_hist_add(&m->total, nib_now_us() - job->received_us);
    log_end(front, conn, job);
    close_entry(front, conn, failed ? &m->failed : &m->finished);
}

static void take_token(struct nib_front *front, struct nib_front_job *job, const struct nib_job_event *event)
{
    uint64_t now = nib_now_us();
    if (!job->started) {
        job->started = true;
        job->first_us = now;
        job->answer.cached_tokens = event->reused_tokens;
        nib_hist_add(&front->metrics.ttft, now - job->received_us);
        if (job->waiting) {
            job->waiting = false;
            nib_peer_count(&front->peers, job->uid, 1, -1);
        }
    } else {
        nib_hist_add(&front->metrics.between, now - job->last_us);
    }
    job->last_us = now;
    nib_answer_token(&job->answer, &event->sampled);
}

/* After a token or an end: what the answer has become. */
static void settle(struct nib_front *front, struct nib_conn *conn, struct nib_front_job *job)
{
    struct nib_answer *a = &job->answer;
    if (a->finished)
        return;
    if (a->overflow && a->stream) { /* the client does not read */
        front->metrics.slow_readers++;
        nib_generate_detach(front, conn);
        nib_conn_kill(conn);
        return;
    }
    bool early = a->stop_hit || a->turn_over || a->overflow;
    bool complete = early || job->end == NIB_END_STOP || job->end == NIB_END_LENGTH;
    if (early)
        cancel(front, job);
    if (complete) {
        nib_answer_end(a, a->overflow || (!early && job->end == NIB_END_LENGTH));
        finish(front, conn, job, false);
    } else if (job->end == NIB_END_FAILED || job->end == NIB_END_CANCELLED) {
        bool failed = job->end == NIB_END_FAILED;
        if (a->stream && a->head > 0) { /* else the status line can still say it */
            nib_answer_fail(a, failed ? "engine_failed" : "shutting_down",
                            failed ? "the engine gave no usable result" : "the server is shutting down");
            close_entry(front, conn, failed ? &front->metrics.failed : &front->metrics.cancelled);
        }
    }
}

void nib_generate_event(struct nib_front *front, const struct nib_job_event *event)
{
    NIB_MUST(event->job < front->mem.jobs_count);
    struct nib_front_job *job = &front->mem.jobs[event->job];
    NIB_MUST(job->used && !job->ended);
    struct nib_conn *conn = job->conn >= 0 ? &front->conns[job->conn] : NULL;
    if (event->has_token && conn && !job->answer.finished)
        take_token(front, job, event);
    if (event->end != NIB_END_NONE) {
        job->ended = true;
        job->end = (enum nib_end)event->end;
        job->retry_ms = event->retry_ms;
    }
    if (conn)
        settle(front, conn, job);
    if (job->conn >= 0)
        nib_conn_resume(front, conn);
    else if (job->ended)
        free_job(front, job);
}
