/* core/harmony_parse.c: owns the state of one answer while the model writes it.
 *
 * Three states: in a header, in a message's content, between messages. Every token has a meaning in each, so there is
 * nothing to fail. Fixed size; a token costs at most one pass over the header (512 bytes). One thread. */
#include "core/harmony_parse.h"

#include "core/tokenizer.h"

enum state { STATE_HEADER, STATE_CONTENT, STATE_BETWEEN };

/* Where a call puts its events. */
struct sink {
    struct nib_harmony_event *events; /* [NIB_HARMONY_EVENTS_MAX] */
    size_t count;
};

void nib_harmony_parser_init(struct nib_harmony_parser *p, const struct nib_tokenizer *tokenizer)
{
    *p = (struct nib_harmony_parser){.tokenizer = tokenizer, .state = STATE_HEADER, .role_given = true};
}

bool nib_harmony_parser_done(const struct nib_harmony_parser *p)
{
    return p->done;
}

static void emit(struct nib_harmony_parser *p, struct sink *sink, enum nib_harmony_event_type type,
                 struct nib_span text)
{
    sink->events[sink->count++] = (struct nib_harmony_event){.type = type,
                                                             .kind = p->kind,
                                                             .channel = p->channel,
                                                             .message_index = p->messages - 1,
                                                             .call_index = p->calls - (p->kind == NIB_KIND_CALL),
                                                             .text = text};
}

/* Room for `len` bytes in p->text, which NIB_HARMONY_TEXT_BYTES always has. */
static char *take_text(struct nib_harmony_parser *p, size_t len)
{
    char *at = p->text + p->text_len;
    p->text_len += len;
    return at;
}

static void emit_text(struct nib_harmony_parser *p, struct sink *sink, const char *text, size_t len)
{
    if (len > 0)
        emit(p, sink, NIB_EVENT_TEXT, nib_span_of(text, len));
}

/* A recipient that is not a tool. */
static bool is_person(struct nib_span recipient)
{
    return recipient.len == 0 || nib_span_eq(recipient, NIB_SPAN("all")) || nib_span_eq(recipient, NIB_SPAN("user")) ||
           nib_span_eq(recipient, NIB_SPAN("assistant"));
}

/* The name the client knows: NAME of functions.NAME, cut at a character to NIB_MAX_RECIPIENT_BYTES. */
static struct nib_span call_name(struct nib_harmony_parser *p, struct nib_span recipient)
{
    static const struct nib_span prefix = NIB_SPAN_INIT("functions.");
    if (recipient.len > prefix.len && nib_span_starts(recipient, prefix))
        recipient = nib_span_of(recipient.ptr + prefix.len, recipient.len - prefix.len);
    if (recipient.len > NIB_MAX_RECIPIENT_BYTES)
        recipient.len = nib_utf8_valid_bytes((const uint8_t *)recipient.ptr, NIB_MAX_RECIPIENT_BYTES);
    char *name = take_text(p, recipient.len);
    memcpy(name, recipient.ptr, recipient.len);
    return nib_span_of(name, recipient.len);
}

/* A message begins with this header: content follows. */
static void begin_message(struct nib_harmony_parser *p, struct sink *sink, const struct nib_harmony_header *header)
{
    struct nib_span name = {0};
    p->channel = nib_harmony_channel_of(header->channel);
    p->kind = p->channel == NIB_CHANNEL_ANALYSIS ? NIB_KIND_REASONING : NIB_KIND_CONTENT;
    if (!is_person(header->recipient)) {
        p->kind = NIB_KIND_CALL;
        p->calls++;
        name = call_name(p, header->recipient);
    }
    p->messages++;
    p->state = STATE_CONTENT;
    emit(p, sink, NIB_EVENT_BEGIN, name);
}

static void end_content(struct nib_harmony_parser *p, struct sink *sink)
{
    char *text = take_text(p, 3);
    emit_text(p, sink, text, nib_utf8_flush(&p->utf8, text));
    emit(p, sink, NIB_EVENT_END, (struct nib_span){0});
    p->state = STATE_BETWEEN;
}

static void begin_header(struct nib_harmony_parser *p, bool role_given)
{
    p->state = STATE_HEADER;
    p->role_given = role_given;
    p->header_len = 0;
    p->utf8 = (struct nib_utf8_stream){0};
}

/* <|message|> after a header. */
static void end_header(struct nib_harmony_parser *p, struct sink *sink)
{
    struct nib_harmony_header header;
    p->header_len += nib_utf8_flush(&p->utf8, p->header + p->header_len);
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    if (header.foreign)
        p->done = true;
    else
        begin_message(p, sink, &header);
}

/* The header was none: <|message|> was forgotten, and what it holds is a message's text. */
static void header_to_text(struct nib_harmony_parser *p, struct sink *sink, struct nib_harmony_header *header)
{
    if (header->role_unknown && header->recipient.len == 0) {
        header->foreign = false;
        header->text_at = 0;
    }
    if (header->foreign) {
        p->done = true;
        return;
    }
    begin_message(p, sink, header);
    char *text = take_text(p, p->header_len - header->text_at);
    emit_text(p, sink, text, nib_harmony_header_text(p->header, header->text_at, p->header_len, text));
}

/* A message ends, or another begins, while the header still waits for <|message|>. What it says besides role and
 * channel is not lost. */
static void abandon_header(struct nib_harmony_parser *p, struct sink *sink)
{
    struct nib_harmony_header header;
    p->header_len += nib_utf8_flush(&p->utf8, p->header + p->header_len);
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    p->state = STATE_BETWEEN;
    if (header.words == 0 && !header.role_unknown)
        return;
    header_to_text(p, sink, &header);
    if (p->state == STATE_CONTENT)
        end_content(p, sink);
}

/* False: no room, and nothing changed. Three bytes stay free for the flush of an incomplete character. */
static bool add_to_header(struct nib_harmony_parser *p, const char *text, size_t len)
{
    if (p->header_len + len + 3 > sizeof p->header)
        return false;
    memcpy(p->header + p->header_len, text, len);
    p->header_len += len;
    return true;
}

/* Puts a mark. It ends the word before it, which may show that the header is a text: then false. */
static bool add_mark(struct nib_harmony_parser *p, struct sink *sink, char mark)
{
    struct nib_harmony_header header;
    char text[4];
    size_t len = nib_utf8_flush(&p->utf8, text);
    text[len++] = mark;
    (void)add_to_header(p, text, len); /* a header full of marks has said all it can */
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    if (header.is_text)
        header_to_text(p, sink, &header);
    return !header.is_text;
}

static void feed_text(struct nib_harmony_parser *p, struct sink *sink, const uint8_t *bytes, size_t count)
{
    if (p->state == STATE_BETWEEN)
        begin_header(p, true);
    char *text = take_text(p, 0);
    size_t len = nib_utf8_push(&p->utf8, bytes, count, text);
    take_text(p, len);
    if (p->state == STATE_CONTENT) {
        emit_text(p, sink, text, len);
        return;
    }
    struct nib_harmony_header header;
    bool added = add_to_header(p, text, len);
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    if (added && !header.is_text)
        return;
    header_to_text(p, sink, &header);
    if (!added && p->state == STATE_CONTENT)
        emit_text(p, sink, text, len);
}

/* A second <|channel|> in a header whose first already has text: that was a message without <|message|>. */
static bool header_has_text(struct nib_harmony_parser *p)
{
    struct nib_harmony_header header;
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    return header.channel.ptr && nib_harmony_header_text(p->header, header.text_at, p->header_len, p->text) > 0;
}

/* The message or header under way is over. */
static void close_message(struct nib_harmony_parser *p, struct sink *sink)
{
    if (p->state == STATE_HEADER)
        abandon_header(p, sink);
    else if (p->state == STATE_CONTENT)
        end_content(p, sink);
}

static void feed_special(struct nib_harmony_parser *p, struct sink *sink, enum nib_special special)
{
    switch (special) {
    case NIB_TOK_START:
        close_message(p, sink);
        begin_header(p, false);
        break;
    case NIB_TOK_CHANNEL:
        if (p->state != STATE_HEADER || header_has_text(p)) {
            close_message(p, sink);
            begin_header(p, true);
        }
        if (!add_mark(p, sink, NIB_MARK_CHANNEL)) {
            close_message(p, sink);
            begin_header(p, true);
            (void)add_mark(p, sink, NIB_MARK_CHANNEL);
        }
        break;
    case NIB_TOK_CONSTRAIN:
        if (p->state == STATE_BETWEEN)
            begin_header(p, true);
        if (p->state == STATE_HEADER)
            (void)add_mark(p, sink, NIB_MARK_CONSTRAIN);
        break;
    case NIB_TOK_MESSAGE:
        if (p->state == STATE_BETWEEN)
            begin_header(p, true);
        if (p->state == STATE_HEADER)
            end_header(p, sink);
        break;
    case NIB_TOK_END:
        close_message(p, sink);
        break;
    case NIB_TOK_RETURN:
    case NIB_TOK_CALL:
    case NIB_TOK_ENDOFTEXT:
        close_message(p, sink);
        p->done = true;
        break;
    default:
        break;
    }
}

size_t nib_harmony_parser_feed(struct nib_harmony_parser *p, uint32_t id, struct nib_harmony_event *events)
{
    struct sink sink = {.events = events};
    enum nib_special special;
    const uint8_t *bytes;
    p->text_len = 0;
    if (p->done)
        return 0;
    if (nib_tokenizer_is_special(p->tokenizer, id, &special)) {
        feed_special(p, &sink, special);
    } else {
        size_t count = nib_tokenizer_decode(p->tokenizer, id, &bytes);
        if (count > 0)
            feed_text(p, &sink, bytes, count);
    }
    return sink.count;
}

/* At the end of the tokens an unfinished header is text only if it does not look like the start of one. */
static bool unfinished_is_text(struct nib_harmony_parser *p)
{
    struct nib_harmony_header header;
    nib_harmony_header_parse(p->header, p->header_len, p->role_given, &header);
    if (header.channel.ptr || header.recipient.ptr || header.constrain || header.role_unknown || header.words == 0)
        return false;
    return header.words > 1 || !nib_span_starts(NIB_SPAN("to="), header.content_type);
}

size_t nib_harmony_parser_end(struct nib_harmony_parser *p, bool cut, struct nib_harmony_event *events,
                              enum nib_harmony_finish *ret_finish)
{
    struct sink sink = {.events = events};
    bool length = cut && !p->done;
    p->text_len = 0;
    if (!p->done && (p->state != STATE_HEADER || unfinished_is_text(p)))
        close_message(p, &sink);
    p->done = true;
    *ret_finish = length ? NIB_TURN_LENGTH : p->calls > 0 ? NIB_TURN_TOOL_CALLS : NIB_TURN_STOP;
    return sink.count;
}
