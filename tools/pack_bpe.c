/* tools/pack_bpe.c: owns a source's vocabulary while it is checked. Limits: the shape's ids,
 * NIB_MAX_TOKEN_BYTES a token. One thread. Fails with one sentence that names the file and the id.
 */
#include "tools/pack_bpe.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS (2u * NIB_MAX_VOCAB) /* power of two; at most half full */
_Static_assert((SLOTS & (SLOTS - 1)) == 0, "the hash masks");

void nib_bpe_init(struct nib_bpe *bpe, const struct nib_shape *shape, const char *label, size_t text_bytes_max)
{
    *bpe = (struct nib_bpe){.shape = shape, .label = label, .bytes_cap = text_bytes_max};
    bpe->tokens = calloc(shape->special_base, sizeof bpe->tokens[0]);
    bpe->specials = calloc(shape->vocab - shape->special_base, sizeof bpe->specials[0]);
    bpe->slots = calloc(SLOTS, sizeof bpe->slots[0]);
    bpe->bytes = malloc(text_bytes_max);
    NIB_MUST(bpe->tokens && bpe->specials && bpe->slots && bpe->bytes);
}

void nib_bpe_done(struct nib_bpe *bpe)
{
    if (bpe->specials)
        for (uint32_t i = 0; i < bpe->shape->vocab - bpe->shape->special_base; i++)
            free((char *)bpe->specials[i].name);
    free(bpe->tokens);
    free(bpe->specials);
    free(bpe->slots);
    free(bpe->bytes);
    *bpe = (struct nib_bpe){0};
}

/* GPT-2's alphabet: the 188 visible Latin-1 characters stand for themselves; the other 68 bytes,
 * in order, are U+0100 and up. */
static bool visible(uint32_t c)
{
    return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

static bool byte_of(uint32_t cp, uint8_t *ret)
{
    if (cp < 256) {
        *ret = (uint8_t)cp;
        return visible(cp);
    }
    for (uint32_t c = 0, hidden = 256; c < 256; c++) {
        if (visible(c))
            continue;
        if (hidden++ == cp) {
            *ret = (uint8_t)c;
            return true;
        }
    }
    return false;
}

/* Text in the alphabet (one- and two-byte UTF-8 only) to bytes; 0 when it is not that, is empty or
 * is longer than out. */
static size_t decode(const char *text, size_t bytes, uint8_t out[NIB_MAX_TOKEN_BYTES])
{
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        uint32_t cp = (uint8_t)text[i++];
        if (cp >= 0x80) {
            if (cp < 0xC2 || cp > 0xDF || i == bytes || ((uint8_t)text[i] & 0xC0) != 0x80)
                return 0;
            cp = (cp & 31) << 6 | ((uint8_t)text[i++] & 63);
        }
        if (n == NIB_MAX_TOKEN_BYTES || !byte_of(cp, &out[n]))
            return 0;
        n++;
    }
    return n;
}

/* The slot that holds these bytes, or the free one where they belong (FNV-1a, linear). */
static uint32_t *find_slot(const struct nib_bpe *bpe, const uint8_t *bytes, size_t n)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    hash ^= hash >> 15;
    for (uint32_t at = hash & (SLOTS - 1);; at = (at + 1) & (SLOTS - 1)) {
        uint32_t *slot = &bpe->slots[at];
        if (*slot == 0)
            return slot;
        const struct nib_vocab_token *t = &bpe->tokens[*slot - 1];
        if (t->len == n && memcmp(t->bytes, bytes, n) == 0)
            return slot;
    }
}

static enum nib_err add_special(struct nib_bpe *bpe, const char *text, size_t bytes, uint32_t id, struct nib_msg *msg)
{
    struct nib_vocab_special *special = &bpe->specials[id - bpe->shape->special_base];
    if (bytes == 0 || memchr(text, '\0', bytes))
        return nib_fail(msg, NIB_E_FORMAT, "%s: the name of token %" PRIu32 " is empty or has a NUL", bpe->label, id);
    if (special->name) {
        if (strlen(special->name) == bytes && memcmp(special->name, text, bytes) == 0)
            return NIB_OK;
        return nib_fail(msg, NIB_E_FORMAT, "%s gives token %" PRIu32 " two names", bpe->label, id);
    }
    special->name = strndup(text, bytes);
    special->id = id;
    NIB_MUST(special->name != NULL);
    return NIB_OK;
}

enum nib_err nib_bpe_add(struct nib_bpe *bpe, const char *text, size_t bytes, uint64_t id, struct nib_msg *msg)
{
    if (id >= bpe->shape->vocab)
        return nib_fail(msg, NIB_E_FORMAT, "%s has a token with id %" PRIu64 "; shape %s has ids 0 to %" PRIu32,
                        bpe->label, id, bpe->shape->name, bpe->shape->vocab - 1);
    if (id >= bpe->shape->special_base)
        return add_special(bpe, text, bytes, (uint32_t)id, msg);
    uint8_t raw[NIB_MAX_TOKEN_BYTES];
    size_t n = decode(text, bytes, raw);
    if (n == 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s: token %" PRIu64 " is not 1 to %d characters of the byte alphabet",
                        bpe->label, id, NIB_MAX_TOKEN_BYTES);
    struct nib_vocab_token *token = &bpe->tokens[id];
    uint32_t *slot = find_slot(bpe, raw, n);
    if (token->len != 0 || *slot != 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s: token %" PRIu64 " or its text comes twice", bpe->label, id);
    NIB_MUST(n <= bpe->bytes_cap - bpe->bytes_used); /* a token's text is never shorter */
    memcpy(bpe->bytes + bpe->bytes_used, raw, n);
    *token = (struct nib_vocab_token){bpe->bytes + bpe->bytes_used, (uint32_t)n};
    bpe->bytes_used += n;
    bpe->count++;
    *slot = (uint32_t)id + 1;
    return NIB_OK;
}

enum nib_err nib_bpe_merge(struct nib_bpe *bpe, const char *left, size_t left_bytes, const char *right,
                           size_t right_bytes, struct nib_msg *msg)
{
    uint8_t raw[2 * NIB_MAX_TOKEN_BYTES];
    size_t l = decode(left, left_bytes, raw);
    size_t r = decode(right, right_bytes, raw + l);
    uint32_t joined = 0;
    if (l != 0 && r != 0 && *find_slot(bpe, raw, l) != 0 && *find_slot(bpe, raw + l, r) != 0)
        joined = *find_slot(bpe, raw, l + r);
    if (joined == 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s: merge %" PRIu64 " does not join two tokens into a third", bpe->label,
                        bpe->merges);
    uint32_t id = joined - 1;
    if (bpe->merges == 0 || id != bpe->merge_id)
        memset(bpe->split_seen, 0, sizeof bpe->split_seen);
    if (bpe->merges != 0 && id < bpe->merge_id)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s: merge %" PRIu64 " makes token %" PRIu32 " after token %" PRIu32
                        "; merges must come in the order of the ids they make",
                        bpe->label, bpe->merges, id, bpe->merge_id);
    if (bpe->split_seen[l])
        return nib_fail(msg, NIB_E_FORMAT, "%s: merge %" PRIu64 " comes twice", bpe->label, bpe->merges);
    bpe->split_seen[l] = 1;
    bpe->merge_id = id;
    bpe->merges++;
    return NIB_OK;
}

/* Ways to split a token into two tokens, over all tokens. */
static uint64_t count_splits(const struct nib_bpe *bpe)
{
    uint64_t splits = 0;
    for (uint32_t id = 0; id < bpe->count; id++) {
        const struct nib_vocab_token *t = &bpe->tokens[id];
        for (uint32_t l = 1; l < t->len; l++)
            splits += *find_slot(bpe, t->bytes, l) != 0 && *find_slot(bpe, t->bytes + l, t->len - l) != 0;
    }
    return splits;
}

/* Moves the special tokens that are there to the front; returns how many. */
static uint32_t squeeze_specials(struct nib_bpe *bpe)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < bpe->shape->vocab - bpe->shape->special_base; i++) {
        struct nib_vocab_special special = bpe->specials[i];
        bpe->specials[i].name = NULL;
        if (special.name)
            bpe->specials[n++] = special;
    }
    return n;
}

enum nib_err nib_bpe_blob(struct nib_bpe *bpe, uint8_t **ret_blob, size_t *ret_bytes, struct nib_msg *msg)
{
    for (uint32_t id = 0; id < bpe->count; id++)
        if (bpe->tokens[id].len == 0)
            return nib_fail(msg, NIB_E_FORMAT, "%s has %" PRIu32 " tokens, but none with id %" PRIu32, bpe->label,
                            bpe->count, id);
    uint64_t splits = count_splits(bpe);
    if (splits != bpe->merges)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s has %" PRIu64 " merges where its tokens allow %" PRIu64
                        "; a tokenizer that merges by token id needs all of them",
                        bpe->label, bpe->merges, splits);
    struct nib_vocab_src src = {.tokens = bpe->tokens,
                                .ordinary = bpe->count,
                                .vocab = bpe->shape->vocab,
                                .special_base = bpe->shape->special_base,
                                .specials = bpe->specials,
                                .specials_count = squeeze_specials(bpe)};
    if (src.specials_count == 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s names no special tokens", bpe->label);
    uint64_t bytes = nib_vocab_build_bytes(&src);
    uint8_t *blob = malloc(bytes);
    if (!blob)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for the vocabulary of %s", bpe->label);
    enum nib_err err = nib_vocab_build(&src, blob, bytes, ret_bytes, msg);
    if (err)
        free(blob);
    else
        *ret_blob = blob;
    return err;
}
