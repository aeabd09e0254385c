/* core/utf8.h: what is UTF-8 (Unicode 16, table 3-7: no overlong forms, no surrogates, nothing past
 * U+10FFFF), and the decoder that turns a stream of token bytes into text that is always whole
 * UTF-8. Any thread; fixed memory. */
#ifndef NIB_CORE_UTF8_H
#define NIB_CORE_UTF8_H

#include <stddef.h>
#include <stdint.h>

#include "core/limits.h"

/* Number of leading bytes that are valid UTF-8 and end on a character boundary; equal to `bytes`
 * for a valid text. */
size_t nib_utf8_valid_bytes(const uint8_t *text, size_t bytes);

/* Bytes of the character that starts with this lead byte of a valid text, 1..4. */
static inline size_t nib_utf8_len(uint8_t lead)
{
    return lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* The code point at `at`, which must be a character boundary of a valid text; *ret_len gets its
 * bytes. */
static inline uint32_t nib_utf8_decode(const uint8_t *at, size_t *ret_len)
{
    uint32_t b = at[0];
    *ret_len = nib_utf8_len(at[0]);
    if (b < 0x80)
        return b;
    if (b < 0xe0)
        return (b & 0x1f) << 6 | (at[1] & 0x3fu);
    if (b < 0xf0)
        return (b & 0x0f) << 12 | (at[1] & 0x3fu) << 6 | (at[2] & 0x3fu);
    return (b & 0x07) << 18 | (at[1] & 0x3fu) << 12 | (at[2] & 0x3fu) << 6 | (at[3] & 0x3fu);
}

/* A stream of bytes that may break anywhere. Zero-initialise; {0} is an empty stream. */
struct nib_utf8_stream {
    uint8_t held[NIB_MAX_UTF8_HELD]; /* start of a character whose rest has not come */
    uint8_t held_bytes;
};

/* Most bytes that one push of `bytes` can give: every byte its own U+FFFD, and one for what was
 * held. */
#define NIB_UTF8_PUSH_BYTES(bytes) (3 * (bytes) + 3)

/* Takes bytes, gives whole characters: valid ones as they are, each maximal invalid part as one
 * U+FFFD (as Unicode chapter 3.9 and the WHATWG decoder do). An incomplete end is held for the next
 * push. Returns the bytes written to out, which has room for NIB_UTF8_PUSH_BYTES(bytes). */
size_t nib_utf8_push(struct nib_utf8_stream *stream, const uint8_t *in, size_t bytes, char *out);

/* Ends the stream: an incomplete character becomes one U+FFFD. Writes 0 or 3 bytes; the stream is
 * empty again. */
size_t nib_utf8_flush(struct nib_utf8_stream *stream, char out[3]);

#endif
