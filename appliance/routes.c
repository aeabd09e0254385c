/* appliance/routes.c: the paths of the server and the small ones' answers. Exact match against a
 * table. Owns the scratch of /metrics. Front thread. */
#include <stdio.h>
#include <string.h>

#include "appliance/front.h"
#include "appliance/json_in.h"
#include "appliance/machine.h"

#define NIB_PAGE_BYTES (24u << 10) /* /metrics and the other small pages */

static char page[NIB_PAGE_BYTES];

static enum MHD_Result serve_models(struct nib_front *front, struct nib_conn *conn)
{
    struct nib_out out = nib_out_of(page, sizeof page);
    const struct nib_front_mem *m = &front->mem;
    nib_out_fmt(&out,
                "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":%llu,"
                "\"owned_by\":\"nibbled\",\"context_length\":%u,\"max_model_len\":%u,"
                "\"max_output_tokens\":%u,\"slots\":%u,\"queue\":%u,\"vocab\":%u,\"text_ids\":%u}]}\n",
                m->model, (unsigned long long)front->started_s, m->ctx_tokens, m->ctx_tokens, m->ctx_tokens - 1,
                m->slots, m->jobs_count - m->slots, m->vocab, m->text_ids);
    return nib_respond_text(front, conn, 200, "application/json", &out, true);
}

static enum MHD_Result serve_health(struct nib_front *front, struct nib_conn *conn)
{
    struct nib_out out = nib_out_of(page, sizeof page);
    struct nib_stepper *s = front->stepper;
    const struct nib_front_mem *m = &front->mem;
    unsigned long long done = atomic_load(&s->boot_done);
    unsigned long long total = atomic_load(&s->boot_total);
    int status = 503;
    if (front->failed) {
        nib_out_text(&out, "{\"status\":\"failed\"}\n");
    } else if (front->draining) {
        nib_out_text(&out, "{\"status\":\"draining\"}\n");
    } else if (!front->attached) {
        nib_out_fmt(&out, "{\"status\":\"loading\",\"loaded_bytes\":%llu,\"total_bytes\":%llu}\n", done, total);
    } else {
        uint64_t age_ms = nib_now_ms() - front->moved_ms;
        bool stalled = front->jobs_active > 0 && age_ms >= front->config->stall_ms_max;
        status = stalled ? 503 : 200;
        nib_out_fmt(&out,
                    "{\"status\":\"%s\",\"model\":\"%s\",\"active\":%u,\"row\":\"%s\","
                    "\"last_step_age_ms\":%llu,\"struck\":[",
                    stalled ? "stalled" : "ready", m->model, front->jobs_active, s->engine->row,
                    (unsigned long long)(front->jobs_active ? age_ms : 0));
        for (uint32_t i = 0; i < m->struck_count; i++)
            nib_out_fmt(&out, "%s\"%s\"", i ? "," : "", m->struck[i].row);
        nib_out_text(&out, "]}\n");
    }
    return nib_respond_text(front, conn, status, "application/json", &out, true);
}

static void gauges(struct nib_out *out, struct nib_stepper *s)
{
    static const struct {
        const char *name, *type, *help;
    } rows[NIB_G_COUNT] = {
        {"sched_submitted_total", "counter", "Requests given to the scheduler, self-tests too."},
        {"sched_finished_total", "counter", "Ended by a stop token or the length."},
        {"sched_refused_total", "counter", "Refused by the scheduler."},
        {"sched_cancelled_total", "counter", "Cancelled; a stop string counts here."},
        {"sched_failed_total", "counter", "Ended by a failure."},
        {"sched_queued", "gauge", "Waiting for a slot now."},
        {"sched_running", "gauge", "In slots now."},
        {"kv_pages_used", "gauge", "KV pages in use."},
        {"kv_pages", "gauge", "KV pages of the pool."},
        {"steps_total", "counter", "Steps of the engine."},
        {"rows_prompt_total", "counter", "Prompt tokens run."},
        {"rows_decode_total", "counter", "Answer tokens run."},
        {"tokens_total", "counter", "Tokens sampled and given out."},
        {"prompt_tokens_reused_total", "counter", "Prompt tokens that were computed for an earlier prompt."},
        {"kv_pages_idle", "gauge", "KV pages kept for prompts to come, free for whoever needs them."},
        {"kv_pages_evicted_total", "counter", "Kept KV pages that others needed."},
        {"draft_tokens_total", "counter", "Answer tokens guessed and verified in a step."},
        {"draft_accepted_total", "counter", "Of them, right: given out without a step of their own."},
        {"retry_ms", "gauge", "Estimate until a queue place is free."},
        {"self_tests_total", "counter", "Self-tests passed, the one at boot included."},
    };
    for (size_t i = 0; i < NIB_G_COUNT; i++)
        nib_metric_out(out, rows[i].name, rows[i].type, rows[i].help, (double)atomic_load(&s->gauges[i]));
}

static enum MHD_Result serve_metrics(struct nib_front *front, struct nib_conn *conn)
{
    struct nib_out out = nib_out_of(page, sizeof page);
    nib_metric_out(&out, "ready", "gauge", "1 when requests are served.",
                   front->attached && !front->draining && !front->failed);
    nib_metric_out(&out, "json_pool_peak_bytes", "gauge", "Most bytes of the JSON pool in use.",
                   (double)nib_json_pool_peak());
    nib_metrics_out(&out, &front->metrics);
    gauges(&out, front->stepper);
    return nib_respond_text(front, conn, 200, "text/plain; version=0.0.4", &out, true);
}

static bool parse_body(struct nib_front *front, struct nib_conn *conn, json_t **ret_root, struct nib_refusal *r)
{
    struct nib_msg why;
    size_t room;
    const char *body = nib_conn_body(front, conn, &room);
    enum nib_err err = nib_json_parse(body, conn->body_used, ret_root, &why);
    if (err == NIB_OK)
        return true;
    if (err == NIB_E_FULL)
        return nib_refuse(r, 413, "request_too_large", NULL, "%s", why.text);
    return nib_refuse(r, 400, "invalid_json", NULL, "%s", why.text);
}

/* The body's own buffer takes the response: the text was copied into the JSON pool. */
static enum MHD_Result serve_tokenize(struct nib_front *front, struct nib_conn *conn)
{
    struct nib_refusal r;
    json_t *root = NULL;
    size_t n = 0;
    uint32_t *ids = NULL;
    size_t ids_max = 0;
    if (!nib_conn_grow_body(front, conn, &r) || !parse_body(front, conn, &root, &r))
        return nib_respond_error(front, conn, &r);
    const json_t *text = json_object_get(root, "text");
    if (!text)
        text = json_object_get(root, "prompt");
    bool ok = json_is_string(text);
    if (!ok)
        nib_refuse(&r, 400, "invalid_type", "text", "'text' must be a string");
    if (ok) {
        ids_max = json_string_length(text) + 1;
        ids = nib_json_take(ids_max * sizeof ids[0]);
        ok =
            ids ? nib_prompt_text(&front->env, nib_span_of(json_string_value(text), json_string_length(text)), "text",
                                  ids, ids_max, &n, &r)
                : nib_refuse(&r, 413, "request_too_large", "text", "the text needs more memory than limits.json_bytes");
    }
    if (!ok)
        return nib_respond_error(front, conn, &r);
    size_t room;
    char *to = nib_conn_body(front, conn, &room);
    struct nib_out out = nib_out_of(to, room);
    nib_out_fmt(&out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", n, front->mem.ctx_tokens);
    for (size_t i = 0; i < n && !out.full; i++)
        nib_out_fmt(&out, i ? ",%u" : "%u", ids[i]);
    nib_out_text(&out, "]}\n");
    return nib_respond_text(front, conn, 200, "application/json", &out, false);
}

static void detokenize_into(struct nib_front *front, const json_t *tokens, struct nib_out *out)
{
    struct nib_utf8_stream utf8 = {0};
    char text[NIB_UTF8_PUSH_BYTES(NIB_MAX_TOKEN_BYTES)];
    nib_out_text(out, "{\"text\":\"");
    for (size_t i = 0; i < json_array_size(tokens) && !out->full; i++) {
        const uint8_t *bytes;
        uint32_t id = (uint32_t)json_integer_value(json_array_get(tokens, i));
        size_t n = nib_tokenizer_decode(front->env.tokenizer, id, &bytes);
        if (n) {
            n = nib_utf8_push(&utf8, bytes, n, text);
        } else {
            n = nib_utf8_flush(&utf8, text);
            n += nib_tokenizer_decode_special(front->env.tokenizer, id, text + n, sizeof text - n);
        }
        nib_out_escaped(out, nib_span_of(text, n));
    }
    size_t n = nib_utf8_flush(&utf8, text);
    nib_out_escaped(out, nib_span_of(text, n));
    nib_out_text(out, "\"}\n");
}

static enum MHD_Result serve_detokenize(struct nib_front *front, struct nib_conn *conn)
{
    struct nib_refusal r;
    json_t *root = NULL;
    if (!nib_conn_grow_body(front, conn, &r) || !parse_body(front, conn, &root, &r))
        return nib_respond_error(front, conn, &r);
    const json_t *tokens = json_object_get(root, "tokens");
    bool ok = json_is_array(tokens);
    for (size_t i = 0; ok && i < json_array_size(tokens); i++) {
        const json_t *v = json_array_get(tokens, i);
        ok = json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < front->mem.vocab;
    }
    if (!ok) {
        nib_refuse(&r, 400, "invalid_value", "tokens", "'tokens' must be a list of token ids from 0 to %u",
                   front->mem.vocab - 1);
        return nib_respond_error(front, conn, &r);
    }
    size_t room;
    char *to = nib_conn_body(front, conn, &room);
    struct nib_out out = nib_out_of(to, room);
    detokenize_into(front, tokens, &out);
    return nib_respond_text(front, conn, 200, "application/json", &out, false);
}

static const struct nib_route routes[] = {
    {"/v1/chat/completions", "POST", true, false, nib_generate_chat},
    {"/v1/completions", "POST", true, false, nib_generate_completion},
    {"/v1/models", "GET", false, false, serve_models},
    {"/health", "GET", false, true, serve_health},
    {"/metrics", "GET", false, true, serve_metrics},
    {"/tokenize", "POST", false, false, serve_tokenize},
    {"/detokenize", "POST", false, false, serve_detokenize},
};

const struct nib_route *nib_route_find(const char *path)
{
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++)
        if (!strcmp(path, routes[i].path))
            return &routes[i];
    return NULL;
}
