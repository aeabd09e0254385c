/* appliance/answer_out.c: owns the scratch in which one event is built. Limits:
 * NIB_DELTA_BYTES for each part of one event. Front thread. What does not fit sets `overflow`. */
#include "appliance/answer_out.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define NIB_DELTA_BYTES 49152 /* one token with 20 alternatives of 128 bytes, all escaped */
#define NIB_EVENT_BYTES (5 * NIB_DELTA_BYTES)

static char parts[6][NIB_DELTA_BYTES];
static char event_text[NIB_EVENT_BYTES];

void nib_delta_reset(struct nib_delta *d)
{
    struct nib_out *const outs[] = {&d->content, &d->reasoning, &d->logprobs, &d->values, &d->tops, &d->offsets};
    for (size_t i = 0; i < 6; i++)
        *outs[i] = nib_out_of(parts[i], sizeof parts[i]);
}

/* A token's text: its UTF-8, or each byte as \xNN when it is not whole. */
static void token_text(struct nib_out *out, const struct nib_tokenizer *tok, uint32_t id)
{
    const uint8_t *bytes;
    size_t n = nib_tokenizer_decode(tok, id, &bytes);
    char name[64];
    if (n == 0) {
        n = nib_tokenizer_decode_special(tok, id, name, sizeof name);
        nib_out_string(out, nib_span_of(name, n));
        return;
    }
    if (nib_utf8_valid_bytes(bytes, n) == n) {
        nib_out_string(out, nib_span_of((const char *)bytes, n));
        return;
    }
    nib_out_text(out, "\"bytes:");
    for (size_t i = 0; i < n; i++)
        nib_out_fmt(out, "\\\\x%02x", bytes[i]);
    nib_out_text(out, "\"");
}

static void number(struct nib_out *out, float logprob)
{
    if (isfinite(logprob))
        nib_out_fmt(out, "%.7g", (double)logprob);
    else
        nib_out_text(out, "-9999.0");
}

static void chat_entry(struct nib_out *out, const struct nib_tokenizer *tok, uint32_t id, float logprob)
{
    const uint8_t *bytes;
    size_t n = nib_tokenizer_decode(tok, id, &bytes);
    nib_out_text(out, "{\"token\":");
    token_text(out, tok, id);
    nib_out_text(out, ",\"logprob\":");
    number(out, logprob);
    nib_out_text(out, ",\"bytes\":");
    nib_out_text(out, n ? "[" : "null");
    for (size_t i = 0; i < n; i++)
        nib_out_fmt(out, i ? ",%u" : "%u", bytes[i]);
    if (n)
        nib_out_text(out, "]");
}

void nib_delta_logprob(struct nib_delta *d, const struct nib_answer *a, const struct nib_sampled *s)
{
    uint32_t tops = s->top_count < a->top_logprobs ? s->top_count : a->top_logprobs;
    const char *comma = d->logprobs.used ? "," : "";
    nib_out_text(&d->logprobs, comma);
    if (a->chat) {
        chat_entry(&d->logprobs, a->tokenizer, s->token, s->logprob);
        nib_out_text(&d->logprobs, ",\"top_logprobs\":[");
        for (uint32_t i = 0; i < tops; i++) {
            nib_out_text(&d->logprobs, i ? "," : "");
            chat_entry(&d->logprobs, a->tokenizer, s->top[i].token, s->top[i].logprob);
            nib_out_text(&d->logprobs, "}");
        }
        nib_out_text(&d->logprobs, "]}");
        return;
    }
    token_text(&d->logprobs, a->tokenizer, s->token);
    nib_out_text(&d->values, comma);
    number(&d->values, s->logprob);
    nib_out_fmt(&d->offsets, "%s%llu", comma, (unsigned long long)a->text_chars);
    nib_out_text(&d->tops, comma);
    nib_out_text(&d->tops, "{");
    for (uint32_t i = 0; i < tops; i++) {
        nib_out_text(&d->tops, i ? "," : "");
        token_text(&d->tops, a->tokenizer, s->top[i].token);
        nib_out_text(&d->tops, ":");
        number(&d->tops, s->top[i].logprob);
    }
    nib_out_text(&d->tops, "}");
}

static void put(struct nib_out *out, const struct nib_out *text)
{
    nib_out_raw(out, text->ptr, text->used);
    out->full |= text->full;
}

/* "data: {" and what every event of the stream has in common. */
static struct nib_out event_begin(const struct nib_answer *a)
{
    struct nib_out out = nib_out_of(event_text, sizeof event_text);
    nib_out_fmt(&out,
                "data: {\"id\":\"%s-%016llx\",\"object\":\"%s\",\"created\":%llu,\"model\":\"%s\","
                "\"system_fingerprint\":\"nibbled-" NIB_VERSION "\",\"choices\":[",
                a->chat ? "chatcmpl" : "cmpl", (unsigned long long)a->id,
                a->chat ? "chat.completion.chunk" : "text_completion", (unsigned long long)a->created, a->model);
    return out;
}

static void event_end(struct nib_answer *a, struct nib_out *out, const char *tail)
{
    nib_out_text(out, tail);
    if (out->full)
        a->overflow = true;
    else
        nib_answer_send(a, out->ptr, out->used);
}

static void usage_text(const struct nib_answer *a, struct nib_out *out)
{
    nib_out_fmt(out,
                "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
                "\"prompt_tokens_details\":{\"cached_tokens\":%u},"
                "\"completion_tokens_details\":{\"reasoning_tokens\":%u}}",
                a->prompt_tokens, a->answer_tokens, a->prompt_tokens + a->answer_tokens, a->cached_tokens,
                a->reasoning_tokens);
}

/* What follows the choices of an event but the last. */
static void choices_end(struct nib_answer *a, struct nib_out *out)
{
    nib_out_text(out, "]");
    if (a->continuous_usage) {
        nib_out_text(out, ",");
        usage_text(a, out);
    } else if (a->usage) {
        nib_out_text(out, ",\"usage\":null");
    }
    event_end(a, out, "}\n\n");
}

/* One chat event whose delta is the given ready text. */
static void chat_event(struct nib_answer *a, const char *delta, const struct nib_out *more,
                       const struct nib_out *logprobs)
{
    struct nib_out out = event_begin(a);
    nib_out_text(&out, "{\"index\":0,\"delta\":{");
    nib_out_text(&out, delta);
    if (more)
        put(&out, more);
    nib_out_text(&out, more ? "\"},\"logprobs\":" : "},\"logprobs\":");
    if (logprobs && logprobs->used) {
        nib_out_text(&out, "{\"content\":[");
        put(&out, logprobs);
        nib_out_text(&out, "],\"refusal\":null}");
    } else {
        nib_out_text(&out, "null");
    }
    nib_out_text(&out, ",\"finish_reason\":null}");
    choices_end(a, &out);
}

static void begin_stream(struct nib_answer *a)
{
    if (a->begun || !a->chat)
        return;
    a->begun = true;
    chat_event(a, "\"role\":\"assistant\",\"content\":\"\"", NULL, NULL);
}

static void completion_event(struct nib_answer *a, const struct nib_delta *d)
{
    struct nib_out out = event_begin(a);
    nib_out_text(&out, "{\"index\":0,\"text\":\"");
    put(&out, &d->content);
    nib_out_text(&out, "\",\"logprobs\":");
    if (d->logprobs.used) {
        nib_out_text(&out, "{\"tokens\":[");
        put(&out, &d->logprobs);
        nib_out_text(&out, "],\"token_logprobs\":[");
        put(&out, &d->values);
        nib_out_text(&out, "],\"top_logprobs\":[");
        put(&out, &d->tops);
        nib_out_text(&out, "],\"text_offset\":[");
        put(&out, &d->offsets);
        nib_out_text(&out, "]}");
    } else {
        nib_out_text(&out, "null");
    }
    nib_out_text(&out, ",\"finish_reason\":null}");
    choices_end(a, &out);
}

static void keep(struct nib_answer *a, enum nib_section section, const struct nib_out *text, bool list)
{
    if (text->full)
        a->overflow = true;
    if (list && text->used && a->section_bytes[section])
        nib_answer_keep(a, section, ",", 1);
    nib_answer_keep(a, section, text->ptr, text->used);
}

void nib_answer_flush(struct nib_answer *a, struct nib_delta *d)
{
    if (!a->stream) {
        if (!nib_answer_fits(a, d->content.used + d->reasoning.used + d->logprobs.used + d->values.used + d->tops.used +
                                    d->offsets.used + 256))
            return;
        keep(a, NIB_SEC_CONTENT, &d->content, false);
        keep(a, NIB_SEC_REASONING, &d->reasoning, false);
        keep(a, NIB_SEC_LOGPROBS, &d->logprobs, true);
        keep(a, NIB_SEC_LOGPROBS_VALUES, &d->values, true);
        keep(a, NIB_SEC_LOGPROBS_TOPS, &d->tops, true);
        keep(a, NIB_SEC_LOGPROBS_OFFSETS, &d->offsets, true);
    } else if (a->chat) {
        if (d->reasoning.used || d->content.used || d->logprobs.used)
            begin_stream(a);
        if (d->reasoning.used) {
            static char both[2 * NIB_DELTA_BYTES];
            struct nib_out out = nib_out_of(both, sizeof both);
            put(&out, &d->reasoning);
            nib_out_text(&out, "\",\"reasoning_content\":\"");
            put(&out, &d->reasoning);
            chat_event(a, "\"reasoning\":\"", &out, NULL);
        }
        if (d->content.used || d->logprobs.used)
            chat_event(a, "\"content\":\"", &d->content, &d->logprobs);
    } else if (d->content.used || d->logprobs.used) {
        completion_event(a, d);
    }
    nib_delta_reset(d);
}

/* Opening text of a call, up to the arguments' first byte. */
static void call_head(const struct nib_answer *a, struct nib_out *out, uint32_t index, struct nib_span name)
{
    nib_out_fmt(out,
                "\"id\":\"call_%016llx%04x\",\"type\":\"function\",\"function\":{\"name\":", (unsigned long long)a->id,
                index);
    nib_out_string(out, name);
    nib_out_text(out, ",\"arguments\":\"");
}

void nib_answer_call_begin(struct nib_answer *a, uint32_t index, struct nib_span name)
{
    char text[2048];
    struct nib_out out = nib_out_of(text, sizeof text);
    if (a->stream) {
        begin_stream(a);
        nib_out_fmt(&out, "\"tool_calls\":[{\"index\":%u,", index);
        call_head(a, &out, index, name);
        nib_out_text(&out, "\"}}]");
        nib_out_raw(&out, "", 1);
        chat_event(a, text, NULL, NULL);
    } else {
        nib_out_text(&out, a->section_bytes[NIB_SEC_CALLS] ? ",{" : "{");
        call_head(a, &out, index, name);
        nib_answer_keep(a, NIB_SEC_CALLS, text, out.used);
    }
    a->overflow |= out.full;
}

void nib_answer_call_text(struct nib_answer *a, uint32_t index, struct nib_span text)
{
    static char escaped[NIB_DELTA_BYTES];
    struct nib_out out = nib_out_of(escaped, sizeof escaped);
    if (!a->stream) {
        nib_out_escaped(&out, text);
        nib_answer_keep(a, NIB_SEC_CALLS, escaped, out.used);
    } else {
        nib_out_fmt(&out, "\"tool_calls\":[{\"index\":%u,\"function\":{\"arguments\":", index);
        nib_out_string(&out, text);
        nib_out_text(&out, "}}]");
        nib_out_raw(&out, "", 1);
        chat_event(a, escaped, NULL, NULL);
    }
    a->overflow |= out.full;
}

void nib_answer_call_end(struct nib_answer *a)
{
    if (!a->stream)
        nib_answer_keep(a, NIB_SEC_CALLS, "\"}}", 3);
}

static void close_stream(struct nib_answer *a)
{
    begin_stream(a);
    struct nib_out out = event_begin(a);
    nib_out_fmt(&out, "{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"%s\"}",
                a->chat ? "\"delta\":{}" : "\"text\":\"\"", a->finish_reason);
    choices_end(a, &out);
    if (a->usage) {
        out = event_begin(a);
        nib_out_text(&out, "],");
        usage_text(a, &out);
        event_end(a, &out, "}\n\n");
    }
    nib_answer_send(a, "data: [DONE]\n\n", 14);
}

/* Ends the fixed text that was being written, and adds the section after it. */
static void piece(struct nib_answer *a, struct nib_out *frame, int section)
{
    NIB_MUST(a->pieces_count + 2 <= NIB_ANSWER_PIECES && !frame->full);
    a->pieces[a->pieces_count++] =
        (struct nib_piece){.at = (uint32_t)a->frame_used, .len = frame->used - a->frame_used};
    a->total_bytes += frame->used - a->frame_used;
    a->frame_used = frame->used;
    if (section < 0)
        return;
    uint64_t len = a->section_bytes[section];
    a->pieces[a->pieces_count++] = (struct nib_piece){.is_section = true, .at = (uint32_t)section, .len = len};
    a->total_bytes += len;
}

static void chat_pieces(struct nib_answer *a, struct nib_out *f)
{
    const uint64_t *n = a->section_bytes;
    nib_out_text(f, "{\"index\":0,\"message\":{\"role\":\"assistant\",\"refusal\":null,\"content\":");
    if (n[NIB_SEC_CONTENT] || !n[NIB_SEC_CALLS]) {
        nib_out_text(f, "\"");
        piece(a, f, NIB_SEC_CONTENT);
        nib_out_text(f, "\"");
    } else {
        nib_out_text(f, "null");
    }
    if (n[NIB_SEC_REASONING]) {
        nib_out_text(f, ",\"reasoning\":\"");
        piece(a, f, NIB_SEC_REASONING);
        nib_out_text(f, "\",\"reasoning_content\":\"");
        piece(a, f, NIB_SEC_REASONING);
        nib_out_text(f, "\"");
    }
    if (n[NIB_SEC_CALLS]) {
        nib_out_text(f, ",\"tool_calls\":[");
        piece(a, f, NIB_SEC_CALLS);
        nib_out_text(f, "]");
    }
    nib_out_text(f, "},\"logprobs\":");
    if (a->logprobs) {
        nib_out_text(f, "{\"content\":[");
        piece(a, f, NIB_SEC_LOGPROBS);
        nib_out_text(f, "],\"refusal\":null}");
    } else {
        nib_out_text(f, "null");
    }
}

static void completion_pieces(struct nib_answer *a, struct nib_out *f)
{
    nib_out_text(f, "{\"index\":0,\"text\":\"");
    piece(a, f, NIB_SEC_CONTENT);
    if (!a->logprobs) {
        nib_out_text(f, "\",\"logprobs\":null");
        return;
    }
    nib_out_text(f, "\",\"logprobs\":{\"tokens\":[");
    piece(a, f, NIB_SEC_LOGPROBS);
    nib_out_text(f, "],\"token_logprobs\":[");
    piece(a, f, NIB_SEC_LOGPROBS_VALUES);
    nib_out_text(f, "],\"top_logprobs\":[");
    piece(a, f, NIB_SEC_LOGPROBS_TOPS);
    nib_out_text(f, "],\"text_offset\":[");
    piece(a, f, NIB_SEC_LOGPROBS_OFFSETS);
    nib_out_text(f, "]}");
}

void nib_answer_close(struct nib_answer *a)
{
    if (a->stream) {
        close_stream(a);
        return;
    }
    struct nib_out f = nib_out_of(a->frame, sizeof a->frame);
    nib_out_fmt(&f,
                "{\"id\":\"%s-%016llx\",\"object\":\"%s\",\"created\":%llu,\"model\":\"%s\","
                "\"system_fingerprint\":\"nibbled-" NIB_VERSION "\",\"choices\":[",
                a->chat ? "chatcmpl" : "cmpl", (unsigned long long)a->id,
                a->chat ? "chat.completion" : "text_completion", (unsigned long long)a->created, a->model);
    if (a->chat)
        chat_pieces(a, &f);
    else
        completion_pieces(a, &f);
    nib_out_fmt(&f, ",\"finish_reason\":\"%s\"}],", a->finish_reason);
    usage_text(a, &f);
    nib_out_text(&f, "}\n");
    piece(a, &f, -1);
}
