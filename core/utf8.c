/* core/utf8.c: owns nothing; checks UTF-8 and mends broken streams. Limits: a stream holds back at
 * most NIB_MAX_UTF8_HELD bytes. Any thread. Cannot fail: what is invalid becomes U+FFFD or a
 * shorter valid length. */
#include "core/utf8.h"

#include <string.h>

enum shape {
    WHOLE,   /* a valid character */
    PARTIAL, /* valid so far; its rest is not here */
    BROKEN,  /* a maximal invalid part: one U+FFFD */
};

/* The character at p[0..left), left > 0; *ret_len is its length, or that of the part. */
static enum shape look(const uint8_t *p, size_t left, size_t *ret_len)
{
    uint8_t lead = p[0], low = 0x80, high = 0xbf;
    *ret_len = 1;
    if (lead < 0x80)
        return WHOLE;
    if (lead < 0xc2 || lead > 0xf4)
        return BROKEN;
    if (lead == 0xe0)
        low = 0xa0; /* below: overlong */
    else if (lead == 0xed)
        high = 0x9f; /* above: surrogates */
    else if (lead == 0xf0)
        low = 0x90; /* below: overlong */
    else if (lead == 0xf4)
        high = 0x8f; /* above: past U+10FFFF */
    size_t need = nib_utf8_len(lead);
    for (size_t i = 1; i < need; i++) {
        *ret_len = i;
        if (i == left)
            return PARTIAL;
        if (p[i] < low || p[i] > high)
            return BROKEN;
        low = 0x80;
        high = 0xbf;
    }
    *ret_len = need;
    return WHOLE;
}

size_t nib_utf8_valid_bytes(const uint8_t *text, size_t bytes)
{
    size_t at = 0, len;
    while (at < bytes) {
        uint64_t word;
        if (bytes - at >= sizeof word) {
            memcpy(&word, text + at, sizeof word);
            if (!(word & 0x8080808080808080u)) {
                at += sizeof word;
                continue;
            }
        }
        if (look(text + at, bytes - at, &len) != WHOLE)
            return at;
        at += len;
    }
    return at;
}

static size_t put_replacement(char *out)
{
    static const char replacement[] = {'\xef', '\xbf', '\xbd'}; /* U+FFFD */
    memcpy(out, replacement, sizeof replacement);
    return sizeof replacement;
}

size_t nib_utf8_push(struct nib_utf8_stream *stream, const uint8_t *in, size_t bytes, char *out)
{
    size_t used = 0, at = 0, len;
    while (at < bytes) {
        uint8_t joined[4]; /* what was held, then as much of the input as one character can need */
        size_t held = stream->held_bytes;
        size_t fresh = bytes - at < sizeof joined - held ? bytes - at : sizeof joined - held;
        memcpy(joined, stream->held, held);
        memcpy(joined + held, in + at, fresh);
        enum shape shape = look(joined, held + fresh, &len);
        at += len - held; /* what is held is a valid start, so len >= held */
        stream->held_bytes = 0;
        if (shape == PARTIAL) {
            memcpy(stream->held, joined, len);
            stream->held_bytes = (uint8_t)len;
        } else if (shape == BROKEN) {
            used += put_replacement(out + used);
        } else {
            memcpy(out + used, joined, len);
            used += len;
        }
    }
    return used;
}

size_t nib_utf8_flush(struct nib_utf8_stream *stream, char out[3])
{
    if (stream->held_bytes == 0)
        return 0;
    stream->held_bytes = 0;
    return put_replacement(out);
}
