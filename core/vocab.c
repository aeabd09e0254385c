/* core/vocab.c: owns the form of the vocabulary blob: checks it. Limits: NIB_MAX_VOCAB ids,
 * NIB_MAX_TOKEN_BYTES a token. Any thread; boot and tools use it. Fails on malformed input with one
 * sentence. */
#include "core/vocab.h"

#include <stdbool.h>
#include <string.h>

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The ids have places: 256 bytes at least, then the specials, all inside the embedding. */
static enum nib_err check_ids(uint64_t ordinary, uint64_t vocab, uint64_t special_base, struct nib_msg *msg)
{
    if (vocab > NIB_MAX_VOCAB)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: %llu ids; at most %d are allowed", (unsigned long long)vocab,
                        NIB_MAX_VOCAB);
    if (ordinary < 256 || ordinary > special_base)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: %llu ordinary tokens; 256 to %llu are allowed",
                        (unsigned long long)ordinary, (unsigned long long)special_base);
    if (special_base + NIB_SPECIAL_SPAN > vocab)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: special tokens from id %llu on do not fit in %llu ids",
                        (unsigned long long)special_base, (unsigned long long)vocab);
    return NIB_OK;
}

static enum nib_err check_tokens(const struct nib_vocab *v, struct nib_msg *msg)
{
    bool single[256] = {false};
    uint64_t at = 0;
    for (uint32_t id = 0; id < v->ordinary; id++) {
        if (v->lens[id] == 0 || v->lens[id] > NIB_MAX_TOKEN_BYTES)
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: token %u has %u bytes; 1 to %d are allowed", id,
                            v->lens[id], NIB_MAX_TOKEN_BYTES);
        if (at + v->lens[id] > v->token_bytes)
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: token %u ends past the %u bytes of all tokens", id,
                            v->token_bytes);
        if (v->lens[id] == 1)
            single[v->bytes[at]] = true;
        at += v->lens[id];
    }
    if (at != v->token_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: its tokens have %llu bytes and its header says %u",
                        (unsigned long long)at, v->token_bytes);
    for (int b = 0; b < 256; b++)
        if (!single[b])
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: no token is the single byte 0x%02x; each byte needs one",
                            (unsigned)b);
    return NIB_OK;
}

enum nib_err nib_vocab_parse_header(const void *blob, size_t bytes, struct nib_vocab *ret, struct nib_msg *msg)
{
    const uint8_t *p = blob;
    if (bytes < NIB_VOCAB_HEADER_BYTES || memcmp(p, NIB_VOCAB_MAGIC, 8) != 0)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: it does not start with a vocabulary's header");
    if (get_u32(p + 8) != NIB_VOCAB_VERSION || get_u32(p + 28) != 0)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: format version %u; this program reads version %u",
                        get_u32(p + 8), NIB_VOCAB_VERSION);
    struct nib_vocab v = {.ordinary = get_u32(p + 12),
                          .vocab = get_u32(p + 16),
                          .special_base = get_u32(p + 20),
                          .token_bytes = get_u32(p + 24)};
    enum nib_err err = check_ids(v.ordinary, v.vocab, v.special_base, msg);
    if (err)
        return err;
    uint64_t want = (uint64_t)NIB_VOCAB_HEADER_BYTES + v.ordinary + v.token_bytes;
    if (want != bytes)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: it has %zu bytes and its header says %llu", bytes,
                        (unsigned long long)want);
    v.lens = p + NIB_VOCAB_HEADER_BYTES;
    v.bytes = v.lens + v.ordinary;
    *ret = v;
    return NIB_OK;
}

enum nib_err nib_vocab_parse(const void *blob, size_t bytes, struct nib_vocab *ret, struct nib_msg *msg)
{
    struct nib_vocab v = {0};
    enum nib_err err = nib_vocab_parse_header(blob, bytes, &v, msg);
    if (!err)
        err = check_tokens(&v, msg);
    if (!err)
        *ret = v;
    return err;
}
