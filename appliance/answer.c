/* appliance/answer.c: what a token means for the answer. Limits: the buffers of answer.h. Front
 * thread. Never fails: any token gives text or nothing; a full buffer sets `overflow`. */
#include "appliance/answer.h"

#include <string.h>

#include "appliance/answer_out.h"

void nib_answer_init(struct nib_answer *a, const struct nib_answer_spec *spec)
{
    const struct nib_params *p = spec->params;
    memset(a, 0, sizeof *a);
    a->tokenizer = spec->tokenizer;
    a->buf = spec->buf;
    a->buf_bytes = spec->buf_bytes;
    a->chat = spec->chat;
    a->stream = p->stream;
    a->usage = p->include_usage;
    a->continuous_usage = p->continuous_usage;
    a->logprobs = spec->chat ? p->logprobs : p->completion_logprobs >= 0;
    a->top_logprobs =
        (uint32_t)(spec->chat ? p->top_logprobs : (p->completion_logprobs > 0 ? p->completion_logprobs : 0));
    a->model = spec->model;
    a->id = spec->id;
    a->created = spec->created;
    a->prompt_tokens = spec->prompt_tokens;
    a->stop = p->stop;
    a->last_record = SIZE_MAX;
    if (spec->chat)
        nib_harmony_parser_init(&a->parser, spec->tokenizer);
}

/* Text that passed the stop strings. */
static void content(void *arg, struct nib_span text)
{
    nib_out_escaped(arg, text);
}

static void feed_content(struct nib_answer *a, struct nib_delta *d, struct nib_span text)
{
    if (a->stop.count == 0)
        content(&d->content, text);
    else
        nib_stop_feed(&a->stop, text, content, &d->content);
    a->stop_hit = a->stop.hit;
    for (size_t i = 0; i < text.len; i++)
        a->text_chars += ((uint8_t)text.ptr[i] & 0xc0) != 0x80;
}

static void take_event(struct nib_answer *a, struct nib_delta *d, const struct nib_harmony_event *e)
{
    if (a->stop_hit)
        return;
    bool call = e->kind == NIB_KIND_CALL;
    if (e->type == NIB_EVENT_TEXT) {
        if (call)
            nib_answer_call_text(a, e->call_index, e->text);
        else if (e->kind == NIB_KIND_REASONING)
            nib_out_escaped(&d->reasoning, e->text);
        else
            feed_content(a, d, e->text);
        return;
    }
    bool begin = e->type == NIB_EVENT_BEGIN;
    if (!begin && e->kind == NIB_KIND_CONTENT) /* a stop string cannot span two messages */
        nib_stop_flush(&a->stop, content, &d->content);
    if (call || !begin)
        nib_answer_flush(a, d); /* keeps the order of text and calls */
    if (call && begin)
        nib_answer_call_begin(a, e->call_index, e->text);
    if (call && !begin)
        nib_answer_call_end(a);
    a->in_reasoning = begin && e->kind == NIB_KIND_REASONING;
    a->in_content = begin && e->kind == NIB_KIND_CONTENT;
}

static bool is_special(const struct nib_answer *a, uint32_t id)
{
    const uint8_t *bytes;
    return nib_tokenizer_decode(a->tokenizer, id, &bytes) == 0;
}

static void chat_token(struct nib_answer *a, struct nib_delta *d, const struct nib_sampled *s)
{
    struct nib_harmony_event events[NIB_HARMONY_EVENTS_MAX];
    bool reasoning = a->in_reasoning;
    bool report = a->logprobs && a->in_content && !is_special(a, s->token);
    size_t n = nib_harmony_parser_feed(&a->parser, s->token, events);
    if (report)
        nib_delta_logprob(d, a, s);
    for (size_t i = 0; i < n; i++)
        take_event(a, d, &events[i]);
    a->reasoning_tokens += reasoning || a->in_reasoning;
    a->turn_over = nib_harmony_parser_done(&a->parser);
}

static void completion_token(struct nib_answer *a, struct nib_delta *d, const struct nib_sampled *s)
{
    const uint8_t *bytes;
    size_t n = nib_tokenizer_decode(a->tokenizer, s->token, &bytes);
    char text[NIB_UTF8_PUSH_BYTES(NIB_MAX_TOKEN_BYTES)];
    if (n == 0)
        return; /* a special token has no text */
    if (a->logprobs)
        nib_delta_logprob(d, a, s);
    size_t len = nib_utf8_push(&a->utf8, bytes, n, text);
    feed_content(a, d, nib_span_of(text, len));
}

void nib_answer_token(struct nib_answer *a, const struct nib_sampled *s)
{
    if (a->finished || a->stop_hit || a->turn_over || a->overflow)
        return;
    struct nib_delta delta;
    nib_delta_reset(&delta);
    a->answer_tokens++;
    if (a->chat)
        chat_token(a, &delta, s);
    else
        completion_token(a, &delta, s);
    nib_answer_flush(a, &delta);
}

void nib_answer_end(struct nib_answer *a, bool cut)
{
    if (a->finished)
        return;
    struct nib_delta delta;
    nib_delta_reset(&delta);
    a->finish_reason = cut ? "length" : "stop";
    a->closing = true;
    if (!a->stream)
        a->overflow = false; /* what is kept is the answer; the reserve is for its end */
    if (a->chat) {
        struct nib_harmony_event events[NIB_HARMONY_EVENTS_MAX];
        enum nib_harmony_finish finish;
        size_t n = nib_harmony_parser_end(&a->parser, cut, events, &finish);
        for (size_t i = 0; i < n; i++)
            take_event(a, &delta, &events[i]);
        if (!cut && !a->stop_hit && finish == NIB_TURN_TOOL_CALLS)
            a->finish_reason = "tool_calls";
        if (!cut && !a->stop_hit && finish == NIB_TURN_LENGTH)
            a->finish_reason = "length";
    } else {
        char text[3];
        size_t len = nib_utf8_flush(&a->utf8, text);
        if (len)
            feed_content(a, &delta, nib_span_of(text, len));
    }
    nib_stop_flush(&a->stop, content, &delta.content);
    nib_answer_flush(a, &delta);
    nib_answer_close(a);
    a->finished = true;
}

void nib_answer_fail(struct nib_answer *a, const char *code, const char *message)
{
    char text[1024];
    struct nib_out out = nib_out_of(text, sizeof text);
    nib_out_text(&out, "data: {\"error\":{\"message\":");
    nib_out_string(&out, nib_span_of(message, strlen(message)));
    nib_out_fmt(&out, ",\"type\":\"server_error\",\"param\":null,\"code\":\"%s\"}}\n\n", code);
    nib_answer_send(a, out.ptr, out.used);
    a->finished = true;
}
