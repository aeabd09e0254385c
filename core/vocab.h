/* core/vocab.h: the vocabulary blob, the one form in which a model image carries its tokenizer.
 *
 * Layout, little-endian, no padding; the size of the whole is exact:
 *     0   8 bytes   "NIBVOCAB"
 *     8   u32       format version, 1
 *     12  u32       ordinary: tokens whose id is their rank, 0..ordinary-1
 *     16  u32       vocab: rows of the embedding
 *     20  u32       special_base: id of <|startoftext|>; the others keep o200k_harmony's distances
 *     24  u32       token_bytes: sum of all lengths
 *     28  u32       0
 *     32  u8[ordinary]     length of each token, 1..NIB_MAX_TOKEN_BYTES
 *     ..  u8[token_bytes]  the tokens, in rank order, end to end
 * Special tokens are not listed: their names and distances are fixed by enum nib_special, and the
 * builders check that a source agrees. So the same vocabulary gives the same bytes, whatever it was
 * read from.
 *
 * Builders are for tools and tests; they write into the caller's buffer. Pure functions, any
 * thread. */
#ifndef NIB_CORE_VOCAB_H
#define NIB_CORE_VOCAB_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/model.h"

#define NIB_VOCAB_MAGIC        "NIBVOCAB" /* without its NUL */
#define NIB_VOCAB_VERSION      1u
#define NIB_VOCAB_HEADER_BYTES 32u

struct nib_vocab_token {
    const uint8_t *bytes;
    uint32_t len;
};

/* A special token as a source file (tokenizer.json's added_tokens, say) claims it. */
struct nib_vocab_special {
    const char *name; /* NUL-terminated */
    uint32_t id;
};

struct nib_vocab_src {
    const struct nib_vocab_token *tokens; /* [ordinary], by rank */
    uint32_t ordinary;
    uint32_t vocab;
    uint32_t special_base;
    /* NULL and 0: the shape's own. Else all nine named ones must be there with their ids; other
     * names must be at ids special_base..vocab-1 that are reserved, and are left out. */
    const struct nib_vocab_special *specials; /* [specials_count] */
    uint32_t specials_count;
};

/* A blob's header and where its parts lie. */
struct nib_vocab {
    uint32_t ordinary;
    uint32_t vocab;
    uint32_t special_base;
    uint32_t token_bytes;
    const uint8_t *lens;  /* [ordinary] */
    const uint8_t *bytes; /* [token_bytes] */
};

/* Bytes of the blob that nib_vocab_build makes. */
uint64_t nib_vocab_build_bytes(const struct nib_vocab_src *src);

/* Writes the blob. Refuses a token that is empty or too long, a missing single byte, ids that do
 * not fit the shape, a wrong special token (NIB_E_FORMAT), and an out[] too small (NIB_E_LIMIT).
 * Two equal tokens are found by nib_tokenizer_open, not here. out[] holds nothing of use on
 * failure. */
NIB_CHECKED enum nib_err nib_vocab_build(const struct nib_vocab_src *src, uint8_t *out, size_t out_bytes,
                                         size_t *ret_bytes, struct nib_msg *msg);

/* The same from the text of a .tiktoken file ("base64 rank" lines in rank order), of which the
 * first ordinary_max tokens are used (UINT32_MAX: all). The blob is never larger than
 * NIB_VOCAB_HEADER_BYTES + text_bytes. */
NIB_CHECKED enum nib_err nib_vocab_build_tiktoken(const char *text, size_t text_bytes, uint32_t ordinary_max,
                                                  uint32_t vocab, uint32_t special_base, uint8_t *out, size_t out_bytes,
                                                  size_t *ret_bytes, struct nib_msg *msg);

/* The built-in byte vocabulary of small shapes: 256 tokens, id = byte value. */
#define NIB_VOCAB_BYTE_LEVEL_BYTES (NIB_VOCAB_HEADER_BYTES + 256u + 256u)
NIB_CHECKED enum nib_err nib_vocab_build_bytelevel(uint32_t vocab, uint32_t special_base, uint8_t *out,
                                                   size_t out_bytes, size_t *ret_bytes, struct nib_msg *msg);

/* Checks everything about a blob except that its tokens differ from each other (nib_tokenizer_open
 * finds that). NIB_E_FORMAT with one sentence. *ret points into blob. */
NIB_CHECKED enum nib_err nib_vocab_parse(const void *blob, size_t bytes, struct nib_vocab *ret, struct nib_msg *msg);

/* The same for the header and the sizes only. */
NIB_CHECKED enum nib_err nib_vocab_parse_header(const void *blob, size_t bytes, struct nib_vocab *ret,
                                                struct nib_msg *msg);

#endif
