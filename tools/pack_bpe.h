/* tools/pack_bpe.h: a byte-pair vocabulary as a source file gives it, checked and turned into the
 * image's blob (core/vocab.h).
 *
 * Sources write tokens in GPT-2's byte alphabet (each byte is one printable character) and a list
 * of merges. Our encoder, like tiktoken, knows no list: it joins the neighbours whose joined token
 * has the lowest id. The two agree when the merges are exactly all splits of a token into two
 * tokens, ordered by the id of the joined token; anything else is refused. One thread; heap. */
#ifndef NIB_TOOLS_PACK_BPE_H
#define NIB_TOOLS_PACK_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/model.h"
#include "core/vocab.h"

struct nib_bpe {
    const struct nib_shape *shape;
    const char *label;              /* file, for messages */
    struct nib_vocab_token *tokens; /* [special_base]; len 0 is not set */
    uint32_t count;                 /* set */
    uint8_t *bytes;                 /* of all tokens */
    size_t bytes_used, bytes_cap;
    struct nib_vocab_special *specials; /* [vocab - special_base] by distance; name NULL: not set */
    uint32_t *slots;                    /* hash of tokens: id + 1, or 0 */
    uint64_t merges;                    /* accepted */
    uint32_t merge_id;                  /* token that the last merge makes */
    uint8_t split_seen[NIB_MAX_TOKEN_BYTES];
};

/* text_bytes_max bounds the bytes of all tokens together (the source's own size will do). */
void nib_bpe_init(struct nib_bpe *bpe, const struct nib_shape *shape, const char *label, size_t text_bytes_max);
void nib_bpe_done(struct nib_bpe *bpe);

/* One entry of the vocabulary, UTF-8. An id below special_base is a token in the byte alphabet;
 * one from special_base on is a special token's name, which may come again unchanged. */
enum nib_err nib_bpe_add(struct nib_bpe *bpe, const char *text, size_t bytes, uint64_t id,
                         struct nib_msg *msg) NIB_CHECKED;

/* The next merge, after all tokens. */
enum nib_err nib_bpe_merge(struct nib_bpe *bpe, const char *left, size_t left_bytes, const char *right,
                           size_t right_bytes, struct nib_msg *msg) NIB_CHECKED;

/* Checks that ids have no gap and no merge is missing, and builds the blob. *ret_blob is heap. */
enum nib_err nib_bpe_blob(struct nib_bpe *bpe, uint8_t **ret_blob, size_t *ret_bytes, struct nib_msg *msg) NIB_CHECKED;

#endif
