/* core/harmony_header.h: what stands between <|start|>assistant and <|message|>, as the model wrote it.
 *
 * Total: any bytes give some header. Where openai-harmony's StreamableParser accepts the header, role, channel,
 * recipient and content type are its own, but for these: a bare word (no "to=") is a recipient only when it names a
 * tool ("functions.f", "browser.search", "python"), else a content type; <|constrain|> is never part of a field; a
 * role word that begins with "assistant", or is a channel's name, is the assistant; "to=" in the place of the role is
 * a recipient. Pure; any thread. */
#ifndef NIB_CORE_HARMONY_HEADER_H
#define NIB_CORE_HARMONY_HEADER_H

#include "core/limits.h"
#include "core/span.h"

/* Longest header looked at, in bytes; a longer one cannot be a header and becomes text. */
#define NIB_HARMONY_HEADER_BYTES 512

/* The header's bytes are whole UTF-8, and these two, which UTF-8 never has, for the special tokens. */
#define NIB_MARK_CHANNEL   '\xfe'
#define NIB_MARK_CONSTRAIN '\xff'

enum nib_harmony_channel {
    NIB_CHANNEL_NONE, /* none, or one that has no meaning here */
    NIB_CHANNEL_ANALYSIS,
    NIB_CHANNEL_COMMENTARY,
    NIB_CHANNEL_FINAL
};

/* All spans point into the bytes that were parsed; absent when there is none. */
struct nib_harmony_header {
    bool foreign;                 /* written for a role that is not the assistant's */
    bool role_unknown;            /* the role is none of the known ones; foreign if anything follows it */
    bool constrain;               /* <|constrain|> was there */
    bool is_text;                 /* no <|message|> could make this a header any more: too many words */
    struct nib_span channel;      /* the last one of several */
    struct nib_span recipient;    /* without "to=" */
    struct nib_span content_type; /* without <|constrain|> */
    size_t words;                 /* besides role and channel */
    size_t text_at; /* where the text begins if <|message|> was forgotten: past role, recipient, content type */
};

/* `role_given`: the role is the assistant whatever the first word is. */
void nib_harmony_header_parse(const char *bytes, size_t len, bool role_given, struct nib_harmony_header *ret);

/* Puts bytes[from..len) without the marks, the channel names and the constrained words to out[len - from]; returns
 * its length. Leading white space is left out. */
size_t nib_harmony_header_text(const char *bytes, size_t from, size_t len, char *out);

/* What a channel name means: a name that only contains one of the three, as models sometimes write it, counts. */
enum nib_harmony_channel nib_harmony_channel_of(struct nib_span name);

#endif
