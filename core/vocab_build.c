/* core/vocab_build.c: owns the writing of vocabulary blobs, from lists, from .tiktoken text, and
 * the byte-level one. Limits: those of nib_vocab_parse, which checks every result. Tools and tests
 * use it, on one thread. Fails on a source that is malformed or does not fit. */
#include "core/vocab.h"

#include <stdbool.h>
#include <string.h>

#include "core/tokenizer.h"

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* Writes the header and checks that all of it fits; the caller then writes lengths and bytes behind
 * it. */
static enum nib_err begin(const struct nib_vocab *v, uint8_t *out, size_t out_bytes, struct nib_msg *msg)
{
    uint64_t want = (uint64_t)NIB_VOCAB_HEADER_BYTES + v->ordinary + v->token_bytes;
    if (want > out_bytes)
        return nib_fail(msg, NIB_E_LIMIT, "vocabulary: it needs %llu bytes and %zu are there", (unsigned long long)want,
                        out_bytes);
    for (size_t i = 0; i < 8; i++)
        out[i] = (uint8_t)NIB_VOCAB_MAGIC[i];
    put_u32(out + 8, NIB_VOCAB_VERSION);
    put_u32(out + 12, v->ordinary);
    put_u32(out + 16, v->vocab);
    put_u32(out + 20, v->special_base);
    put_u32(out + 24, v->token_bytes);
    put_u32(out + 28, 0);
    return NIB_OK;
}

/* Checks what was written, so that no builder can give a blob that open refuses. */
static enum nib_err finish(const uint8_t *out, size_t bytes, size_t *ret_bytes, struct nib_msg *msg)
{
    struct nib_vocab v;
    enum nib_err err = nib_vocab_parse(out, bytes, &v, msg);
    if (!err)
        *ret_bytes = bytes;
    return err;
}

static enum nib_err check_special(const struct nib_vocab_src *src, const struct nib_vocab_special *s, uint32_t *seen,
                                  struct nib_msg *msg)
{
    if (s->id < src->special_base || s->id >= src->vocab)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: special token id %u; %u to %u are allowed", s->id,
                        src->special_base, src->vocab - 1);
    uint32_t distance = s->id - src->special_base;
    const char *name = nib_special_name(distance);
    if (name && strcmp(name, s->name) != 0)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: special token %u must be %s", s->id, name);
    for (uint32_t d = 0; !name && d < NIB_SPECIAL_SPAN; d++)
        if (nib_special_name(d) && strcmp(nib_special_name(d), s->name) == 0)
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: %s has id %u; it must be %u", nib_special_name(d), s->id,
                            src->special_base + d);
    if (name)
        *seen |= 1u << distance;
    return NIB_OK;
}

static enum nib_err check_specials(const struct nib_vocab_src *src, struct nib_msg *msg)
{
    uint32_t seen = 0;
    if (src->specials_count == 0)
        return NIB_OK;
    for (uint32_t i = 0; i < src->specials_count; i++) {
        enum nib_err err = check_special(src, &src->specials[i], &seen, msg);
        if (err)
            return err;
    }
    for (uint32_t d = 0; d < NIB_SPECIAL_SPAN; d++)
        if (nib_special_name(d) && !(seen >> d & 1))
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: the special token %s is missing; it must have id %u",
                            nib_special_name(d), src->special_base + d);
    return NIB_OK;
}

uint64_t nib_vocab_build_bytes(const struct nib_vocab_src *src)
{
    uint64_t bytes = (uint64_t)NIB_VOCAB_HEADER_BYTES + src->ordinary;
    for (uint32_t i = 0; i < src->ordinary; i++)
        bytes += src->tokens[i].len;
    return bytes;
}

enum nib_err nib_vocab_build(const struct nib_vocab_src *src, uint8_t *out, size_t out_bytes, size_t *ret_bytes,
                             struct nib_msg *msg)
{
    if (src->ordinary > NIB_MAX_VOCAB)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: %u ordinary tokens; at most %d are allowed", src->ordinary,
                        NIB_MAX_VOCAB);
    for (uint32_t i = 0; i < src->ordinary; i++)
        if (src->tokens[i].len == 0 || src->tokens[i].len > NIB_MAX_TOKEN_BYTES)
            return nib_fail(msg, NIB_E_FORMAT, "vocabulary: token %u has %u bytes; 1 to %d are allowed", i,
                            src->tokens[i].len, NIB_MAX_TOKEN_BYTES);
    enum nib_err err = check_specials(src, msg);
    if (err)
        return err;
    size_t bytes = (size_t)nib_vocab_build_bytes(src); /* at most 32 + 129 * NIB_MAX_VOCAB */
    struct nib_vocab v = {.ordinary = src->ordinary,
                          .vocab = src->vocab,
                          .special_base = src->special_base,
                          .token_bytes = (uint32_t)(bytes - NIB_VOCAB_HEADER_BYTES - src->ordinary)};
    err = begin(&v, out, out_bytes, msg);
    if (err)
        return err;
    uint8_t *lens = out + NIB_VOCAB_HEADER_BYTES, *at = lens + src->ordinary;
    for (uint32_t i = 0; i < src->ordinary; i++) {
        lens[i] = (uint8_t)src->tokens[i].len;
        memcpy(at, src->tokens[i].bytes, src->tokens[i].len);
        at += src->tokens[i].len;
    }
    return finish(out, bytes, ret_bytes, msg);
}

enum nib_err nib_vocab_build_bytelevel(uint32_t vocab, uint32_t special_base, uint8_t *out, size_t out_bytes,
                                       size_t *ret_bytes, struct nib_msg *msg)
{
    uint8_t bytes[256];
    struct nib_vocab_token tokens[256];
    for (uint32_t b = 0; b < 256; b++) {
        bytes[b] = (uint8_t)b;
        tokens[b] = (struct nib_vocab_token){.bytes = &bytes[b], .len = 1};
    }
    struct nib_vocab_src src = {.tokens = tokens, .ordinary = 256, .vocab = vocab, .special_base = special_base};
    return nib_vocab_build(&src, out, out_bytes, ret_bytes, msg);
}

/* A cursor over the lines of a .tiktoken file. */
struct lines {
    const char *at, *end;
    uint32_t rank;                      /* of the next line */
    uint8_t token[NIB_MAX_TOKEN_BYTES]; /* of the line just read */
    uint32_t len;
};

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes padded base64 in text[0..chars) into l->token; false when it is not that or the token is
 * too long. */
static bool decode_base64(struct lines *l, const char *text, size_t chars)
{
    l->len = 0;
    if (chars == 0 || chars % 4 != 0)
        return false;
    size_t pad = text[chars - 1] != '=' ? 0 : text[chars - 2] != '=' ? 1 : 2;
    if (chars / 4 * 3 - pad > sizeof l->token)
        return false;
    uint32_t bits = 0;
    for (size_t i = 0; i < chars; i++) {
        int value = i < chars - pad ? base64_value(text[i]) : 0;
        if (value < 0)
            return false;
        bits = bits << 6 | (uint32_t)value;
        for (int b = 2; i % 4 == 3 && b >= 0; b--)
            if (l->len < chars / 4 * 3 - pad)
                l->token[l->len++] = (uint8_t)(bits >> 8 * b);
    }
    return true;
}

/* Reads "base64 rank\n" whose rank is the line's number; the last newline may be missing. */
static enum nib_err next_line(struct lines *l, struct nib_msg *msg)
{
    const char *newline = memchr(l->at, '\n', (size_t)(l->end - l->at));
    const char *stop = newline ? newline : l->end;
    const char *space = memchr(l->at, ' ', (size_t)(stop - l->at));
    if (!space || !decode_base64(l, l->at, (size_t)(space - l->at)))
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: line %u is not \"base64 rank\" with a token of 1 to %d bytes",
                        l->rank + 1, NIB_MAX_TOKEN_BYTES);
    uint64_t rank = 0;
    const char *p = space + 1;
    for (; p < stop && *p >= '0' && *p <= '9' && rank <= NIB_MAX_VOCAB; p++)
        rank = rank * 10 + (uint64_t)(*p - '0');
    if (p == space + 1 || p != stop || rank != l->rank)
        return nib_fail(msg, NIB_E_FORMAT, "vocabulary: line %u must have rank %u", l->rank + 1, l->rank);
    l->rank++;
    l->at = newline ? newline + 1 : l->end;
    return NIB_OK;
}

enum nib_err nib_vocab_build_tiktoken(const char *text, size_t text_bytes, uint32_t ordinary_max, uint32_t vocab,
                                      uint32_t special_base, uint8_t *out, size_t out_bytes, size_t *ret_bytes,
                                      struct nib_msg *msg)
{
    struct nib_vocab v = {.vocab = vocab, .special_base = special_base};
    struct lines l = {.at = text, .end = text + text_bytes};
    enum nib_err err = NIB_OK;
    while (l.at < l.end && l.rank < ordinary_max && l.rank < NIB_MAX_VOCAB) {
        err = next_line(&l, msg);
        if (err)
            return err;
        v.token_bytes += l.len;
    }
    v.ordinary = l.rank;
    err = begin(&v, out, out_bytes, msg);
    if (err)
        return err;
    uint8_t *lens = out + NIB_VOCAB_HEADER_BYTES, *at = lens + v.ordinary;
    l = (struct lines){.at = text, .end = text + text_bytes};
    while (l.rank < v.ordinary) {
        err = next_line(&l, msg);
        if (err)
            return err;
        lens[l.rank - 1] = (uint8_t)l.len;
        memcpy(at, l.token, l.len);
        at += l.len;
    }
    return finish(out, (size_t)(at - out), ret_bytes, msg);
}
