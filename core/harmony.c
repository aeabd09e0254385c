/* core/harmony.c: owns the order of tokens in a prompt.
 *
 * Text is put together in scratch and encoded run by run: the ids depend on where a run ends, so every call of
 * put_run below stands where openai-harmony starts a new one. Any thread. Fails when something does not fit, or on
 * text that is not UTF-8. */
#include "core/harmony.h"

#include "core/arith.h"
#include "core/harmony_text.h"
#include "core/tokenizer.h"

struct render {
    const struct nib_tokenizer *tokenizer;
    struct nib_harmony_scratch scratch;
    uint32_t *ids; /* [ids_max] */
    size_t ids_max;
    size_t n;         /* tokens so far; past ids_max they are only counted */
    enum nib_err err; /* the first failure but a full ids; later puts do nothing */
    struct nib_msg *msg;
};

static const struct nib_span default_channels[] = {NIB_SPAN_INIT("analysis"), NIB_SPAN_INIT("commentary"),
                                                   NIB_SPAN_INIT("final")};

void nib_harmony_system_init(struct nib_harmony_system *system)
{
    *system = (struct nib_harmony_system){
        .identity = NIB_SPAN(NIB_HARMONY_IDENTITY),
        .cutoff = NIB_SPAN(NIB_HARMONY_CUTOFF),
        .effort = NIB_EFFORT_MEDIUM,
        .channels = default_channels,
        .channels_count = sizeof default_channels / sizeof default_channels[0],
        .channel_required = true,
    };
}

static void put_special(struct render *r, enum nib_special special)
{
    if (r->n < r->ids_max)
        r->ids[r->n] = nib_tokenizer_special(r->tokenizer, special);
    r->n++;
}

static size_t encode(struct render *r, struct nib_span text, uint32_t *ids, size_t ids_max)
{
    size_t count = 0;
    r->err = nib_tokenizer_encode(r->tokenizer, r->scratch.bpe, r->scratch.bpe_bytes, text.ptr, text.len, ids, ids_max,
                                  &count, r->msg);
    return count;
}

/* Tokens of a run that did not fit, for the error sentence. The ids given so far are lost anyway, so their place
 * takes the rubbish. Exact unless the run alone exceeds ids_max: then it is counted in pieces. */
static size_t count_tokens(struct render *r, struct nib_span text)
{
    size_t count = encode(r, text, r->ids, r->ids_max);
    if (r->err != NIB_E_LIMIT)
        return count;
    size_t at = 0;
    do {
        size_t len = nib_min_u64(text.len - at, r->ids_max);
        while (at + len < text.len && len > 1 && (text.ptr[at + len] & 0xc0) == 0x80)
            len--;
        count += encode(r, nib_span_of(text.ptr + at, len), r->ids, r->ids_max);
        at += len;
    } while (r->err == NIB_OK && at < text.len);
    return count;
}

/* One run of text: the encoder never merges across two calls. */
static void put_run(struct render *r, struct nib_span text)
{
    if (r->err != NIB_OK || text.len == 0)
        return;
    if (r->n < r->ids_max) {
        size_t room = r->ids_max - r->n;
        r->n += encode(r, text, r->ids + r->n, room);
        if (r->err != NIB_E_LIMIT || room >= text.len)
            return;
    }
    r->n += count_tokens(r, text);
}

static struct nib_out begin_run(const struct render *r)
{
    return (struct nib_out){.ptr = r->scratch.text, .cap = r->scratch.text_bytes};
}

static void end_run(struct render *r, const struct nib_out *out)
{
    if (r->err != NIB_OK)
        return;
    if (out->len > out->cap)
        r->err = nib_fail(r->msg, NIB_E_LIMIT, "a text of the prompt takes %zu bytes and the scratch memory holds %zu",
                          out->len, out->cap);
    else
        put_run(r, nib_span_of(out->ptr, out->len));
}

/* A run made of a fixed start and a field. */
static void put_run2(struct render *r, struct nib_span start, struct nib_span field)
{
    struct nib_out out = begin_run(r);
    nib_out_put(&out, start);
    nib_out_put(&out, field);
    end_run(r, &out);
}

static void put_author(struct render *r, const struct nib_harmony_message *m)
{
    static const struct nib_span roles[] = {[NIB_ROLE_USER] = NIB_SPAN_INIT("user"),
                                            [NIB_ROLE_ASSISTANT] = NIB_SPAN_INIT("assistant"),
                                            [NIB_ROLE_DEVELOPER] = NIB_SPAN_INIT("developer")};
    if (m->role == NIB_ROLE_TOOL) {
        put_run(r, m->name);
        return;
    }
    put_run(r, roles[m->role]);
    if (m->name.ptr)
        put_run2(r, NIB_SPAN(":"), m->name);
}

static void put_header(struct render *r, const struct nib_harmony_message *m)
{
    put_special(r, NIB_TOK_START);
    put_author(r, m);
    if (m->recipient.ptr && !nib_span_eq(m->recipient, NIB_SPAN("all")))
        put_run2(r, NIB_SPAN(" to="), m->recipient);
    if (m->channel.ptr) {
        put_special(r, NIB_TOK_CHANNEL);
        put_run(r, m->channel);
    }
    if (m->constrain) {
        put_run(r, NIB_SPAN(" "));
        put_special(r, NIB_TOK_CONSTRAIN);
        put_run(r, m->content_type);
    } else if (m->content_type.ptr) {
        put_run2(r, NIB_SPAN(" "), m->content_type);
    }
    put_special(r, NIB_TOK_MESSAGE);
}

static void put_message(struct render *r, const struct nib_harmony_message *m)
{
    put_header(r, m);
    if (m->role == NIB_ROLE_DEVELOPER) {
        struct nib_out out = begin_run(r);
        nib_out_lit(&out, "# Instructions\n\n");
        for (size_t i = 0; i < m->parts_count; i++)
            nib_out_put(&out, m->parts[i]);
        end_run(r, &out);
    } else {
        for (size_t i = 0; i < m->parts_count; i++)
            put_run(r, m->parts[i]);
    }
    bool call = m->role == NIB_ROLE_ASSISTANT && m->recipient.ptr;
    put_special(r, call ? NIB_TOK_CALL : NIB_TOK_END);
}

static void put_preamble(struct render *r, const struct nib_harmony_conversation *conv)
{
    struct nib_out out = begin_run(r);
    if (conv->system) {
        bool has_functions = conv->developer && conv->developer->tools_count > 0;
        nib_harmony_put_system(&out, conv->system, has_functions);
        put_special(r, NIB_TOK_START);
        put_run(r, NIB_SPAN("system"));
        put_special(r, NIB_TOK_MESSAGE);
        end_run(r, &out);
        put_special(r, NIB_TOK_END);
    }
    if (conv->developer && r->err == NIB_OK) {
        out = begin_run(r);
        r->err = nib_harmony_put_developer(&out, conv->developer, r->msg);
        put_special(r, NIB_TOK_START);
        put_run(r, NIB_SPAN("developer"));
        put_special(r, NIB_TOK_MESSAGE);
        end_run(r, &out);
        put_special(r, NIB_TOK_END);
    }
}

static bool on_channel(const struct nib_harmony_message *m, struct nib_span channel)
{
    return m->channel.ptr && nib_span_eq(m->channel, channel);
}

/* Number of leading messages whose analysis is dropped: those before the first `final`, if the last assistant message
 * is on `final`; none while a tool loop goes on. */
static size_t dropping_before(const struct nib_harmony_conversation *conv)
{
    size_t last = conv->messages_count, first = 0;
    while (last > 0 && conv->messages[last - 1].role != NIB_ROLE_ASSISTANT)
        last--;
    if (conv->keep_analysis || last == 0 || !on_channel(&conv->messages[last - 1], NIB_SPAN("final")))
        return 0;
    while (!on_channel(&conv->messages[first], NIB_SPAN("final")))
        first++;
    return first;
}

static void put_tail(struct render *r, const struct nib_harmony_conversation *conv)
{
    if (conv->tail == NIB_TAIL_COMPLETION) {
        put_special(r, NIB_TOK_START);
        put_run(r, NIB_SPAN("assistant"));
    } else if (conv->tail == NIB_TAIL_TRAINING && conv->messages_count > 0 && r->n <= r->ids_max) {
        const struct nib_harmony_message *last = &conv->messages[conv->messages_count - 1];
        if (last->role == NIB_ROLE_ASSISTANT && on_channel(last, NIB_SPAN("final")))
            r->ids[r->n - 1] = nib_tokenizer_special(r->tokenizer, NIB_TOK_RETURN);
    }
}

static enum nib_err check_message(const struct nib_harmony_message *m, struct nib_msg *msg)
{
    const struct {
        const char *what;
        size_t len;
    } fields[] = {{"name", m->name.len},
                  {"recipient", m->recipient.len},
                  {"channel", m->channel.len},
                  {"content type", m->content_type.len}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (fields[i].len > NIB_MAX_RECIPIENT_BYTES)
            return nib_fail(msg, NIB_E_LIMIT, "the %s of a message has %zu bytes; at most %d are allowed",
                            fields[i].what, fields[i].len, NIB_MAX_RECIPIENT_BYTES);
    if (m->role == NIB_ROLE_TOOL && m->name.len == 0)
        return nib_fail(msg, NIB_E_ARG, "a tool's message must have the tool's name");
    return NIB_OK;
}

static enum nib_err check(const struct nib_harmony_conversation *conv, size_t ids_max, struct nib_msg *msg)
{
    size_t tools = conv->developer ? conv->developer->tools_count : 0;
    if (ids_max < NIB_HARMONY_IDS_MIN)
        return nib_fail(msg, NIB_E_LIMIT, "room for %zu tokens is less than the %d needed", ids_max,
                        NIB_HARMONY_IDS_MIN);
    if (conv->messages_count > NIB_MAX_MESSAGES)
        return nib_fail(msg, NIB_E_LIMIT, "%zu messages are more than the %d allowed", conv->messages_count,
                        NIB_MAX_MESSAGES);
    if (tools > NIB_MAX_TOOLS)
        return nib_fail(msg, NIB_E_LIMIT, "%zu tools are more than the %d allowed", tools, NIB_MAX_TOOLS);
    for (size_t i = 0; i < conv->messages_count; i++) {
        enum nib_err err = check_message(&conv->messages[i], msg);
        if (err != NIB_OK)
            return err;
    }
    return NIB_OK;
}

enum nib_err nib_harmony_render(const struct nib_tokenizer *tokenizer, struct nib_harmony_scratch scratch,
                                const struct nib_harmony_conversation *conv, uint32_t *ids, size_t ids_max,
                                size_t *ret_n, struct nib_msg *msg)
{
    struct render r = {.tokenizer = tokenizer, .scratch = scratch, .ids = ids, .ids_max = ids_max, .msg = msg};
    enum nib_err err = check(conv, ids_max, msg);
    if (err != NIB_OK)
        return err;
    put_preamble(&r, conv);
    size_t dropping = dropping_before(conv);
    for (size_t i = 0; i < conv->messages_count && r.err == NIB_OK; i++)
        if (i >= dropping || !on_channel(&conv->messages[i], NIB_SPAN("analysis")))
            put_message(&r, &conv->messages[i]);
    put_tail(&r, conv);
    if (r.err == NIB_OK && r.n > ids_max)
        return nib_fail(msg, NIB_E_LIMIT, "the prompt has %zu tokens and at most %zu are allowed", r.n, ids_max);
    if (r.err == NIB_OK)
        *ret_n = r.n;
    return r.err;
}
