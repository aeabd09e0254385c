/* core/harmony_parse.h: what the model answers, one token at a time, to messages and tool calls.
 *
 * There is no error state: every sequence of ids gives well nested events and a finish reason, and
 * the text of a special token is never part of one. Fixed size, no allocation. One thread at a time
 * a parser.
 *
 * Events of one message: one BEGIN, any number of TEXT, one END. What a message is for stands in
 * `kind`: REASONING  channel analysis CONTENT    channel final; no or unknown channel; commentary
 * without a recipient (a preamble, shown to the user) CALL       a message to a tool. `name` of
 * BEGIN is NAME for a recipient functions.NAME, else the whole recipient
 *              ("browser.search", "python"); TEXT are pieces of the arguments, passed on as the
 * model wrote them. Messages that the model writes for another role (an invented tool result, a
 * user turn) give no events, and the parser then reports that the turn is over.
 *
 * Header rules are those of openai-harmony's StreamableParser wherever that one succeeds, with
 * these additions, each for something models are seen to write: a bare word that is a content type
 * is not taken for a recipient; a header that never reaches <|message|> becomes text; <|channel|>,
 * <|start|> inside a message begin the next one; unknown words in a header are dropped. */
#ifndef NIB_CORE_HARMONY_PARSE_H
#define NIB_CORE_HARMONY_PARSE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/harmony_header.h"
#include "core/limits.h"
#include "core/span.h"
#include "core/utf8.h"

struct nib_tokenizer;

enum nib_harmony_kind { NIB_KIND_REASONING, NIB_KIND_CONTENT, NIB_KIND_CALL };

enum nib_harmony_event_type { NIB_EVENT_BEGIN, NIB_EVENT_TEXT, NIB_EVENT_END };

struct nib_harmony_event {
    enum nib_harmony_event_type type;
    enum nib_harmony_kind kind;
    enum nib_harmony_channel channel;
    uint32_t message_index; /* counts the messages of the turn from 0 */
    uint32_t call_index;    /* counts the tool calls of the turn from 0; only meaningful when kind is
                             CALL */
    struct nib_span text;   /* BEGIN of a call: its name; TEXT: valid UTF-8, never empty; else absent.
                             Valid until the next call on this parser. */
};

/* No call gives more events than this: BEGIN, the text of a header that was none, the token's text, END. */
#define NIB_HARMONY_EVENTS_MAX 4

enum nib_harmony_finish {
    NIB_TURN_STOP,       /* the model ended its turn */
    NIB_TURN_TOOL_CALLS, /* it ended its turn and wants a tool's answer */
    NIB_TURN_LENGTH      /* it was cut */
};

#define NIB_HARMONY_TEXT_BYTES                                                                                         \
    (NIB_HARMONY_HEADER_BYTES + NIB_MAX_RECIPIENT_BYTES + NIB_UTF8_PUSH_BYTES(NIB_MAX_TOKEN_BYTES))

/* Private; laid open so that the caller can place it. */
struct nib_harmony_parser {
    const struct nib_tokenizer *tokenizer;
    uint8_t state;
    bool role_given; /* header: the role is known to be the assistant before its first word */
    bool done;       /* the turn is over; later tokens are ignored */
    enum nib_harmony_kind kind;
    enum nib_harmony_channel channel;
    uint32_t messages; /* begun */
    uint32_t calls;    /* begun */
    struct nib_utf8_stream utf8;
    size_t header_len;
    size_t text_len;
    char header[NIB_HARMONY_HEADER_BYTES]; /* text, with mark bytes for <|channel|>, <|constrain|> */
    char text[NIB_HARMONY_TEXT_BYTES];     /* what the events of this call point into */
};

/* Starts at a prompt that ended with <|start|>assistant. */
void nib_harmony_parser_init(struct nib_harmony_parser *parser, const struct nib_tokenizer *tokenizer);

/* Takes one token; returns how many events it wrote to events[NIB_HARMONY_EVENTS_MAX]. Reserved ids, ids past the
 * vocabulary, and everything after the turn is over are ignored. */
size_t nib_harmony_parser_feed(struct nib_harmony_parser *parser, uint32_t id, struct nib_harmony_event *events);

/* The model ended its turn: it wrote <|return|>, <|call|> or <|endoftext|>, or began to write for another role. The
 * caller then stops sampling. */
bool nib_harmony_parser_done(const struct nib_harmony_parser *parser);

/* No more tokens: gives back what is held and ends an open message. `cut` says that the caller stopped the model
 * (token limit). Returns the number of events; *ret_finish is always set. */
size_t nib_harmony_parser_end(struct nib_harmony_parser *parser, bool cut, struct nib_harmony_event *events,
                              enum nib_harmony_finish *ret_finish);

#endif
