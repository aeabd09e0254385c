/* core/tokenizer.h: text to token ids and back, exact to o200k_harmony.
 *
 * Ordinary text and special tokens are two sets of calls: nib_tokenizer_encode can only give
 * ordinary ids, whatever the text says; a special token is made only by nib_tokenizer_special,
 * which harmony alone calls.
 *
 * Ids of a shape with V = vocab and S = special_base:
 *     0 .. ordinary-1     byte strings, their id is their merge rank
 *     ordinary .. S-1     no token (small shapes only); the embedding has a row, nothing makes or
 * yields it S + enum nib_special the nine named special tokens other S .. V-1      reserved; never
 * made, never sampled V and more          do not exist (201,088 for the real models)
 *
 * A tokenizer is read-only once open: any thread, each with its own scratch. */
#ifndef NIB_CORE_TOKENIZER_H
#define NIB_CORE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/arena.h"
#include "core/err.h"
#include "core/model.h"

struct nib_tokenizer;

/* Bytes that nib_tokenizer_open takes from the arena for this blob (see core/vocab.h). Reads the
 * blob's header only. NIB_E_FORMAT for a header that is not a vocabulary's. */
NIB_CHECKED enum nib_err nib_tokenizer_plan(const void *blob, size_t bytes, size_t *ret_arena_bytes,
                                            struct nib_msg *msg);

/* Checks the whole blob and builds the token table. The blob is not copied: it must outlive the
 * tokenizer. NIB_E_FORMAT for any malformed blob, NIB_E_NOMEM when the arena is too small. Boot
 * thread. */
NIB_CHECKED enum nib_err nib_tokenizer_open(struct nib_arena *arena, const void *blob, size_t bytes,
                                            const struct nib_tokenizer **ret, struct nib_msg *msg);

/* Vocabulary's own figures, to be compared with the model shape's. */
uint32_t nib_tokenizer_vocab(const struct nib_tokenizer *tok);
uint32_t nib_tokenizer_special_base(const struct nib_tokenizer *tok);

/* Bytes of scratch (aligned to 8) with which any text of up to text_bytes_max bytes encodes. */
size_t nib_tokenizer_scratch_bytes(size_t text_bytes_max);

/* Encodes ordinary text. At most `bytes` ids come out; *ret_count of them are stored in
 * ids[0..ids_max). NIB_E_FORMAT: not valid UTF-8, the sentence names the byte offset. NIB_E_LIMIT:
 * more ids than ids_max, or an unbroken run (one pre-token) longer than the scratch was sized for.
 * On failure ids[] holds nothing of use. Time is O(n log n) in the worst case, linear on ordinary
 * text; stack is fixed. */
NIB_CHECKED enum nib_err nib_tokenizer_encode(const struct nib_tokenizer *tok, void *scratch, size_t scratch_bytes,
                                              const char *text, size_t bytes, uint32_t *ids, size_t ids_max,
                                              size_t *ret_count, struct nib_msg *msg);

/* The bytes of one ordinary id (not always whole UTF-8: see core/utf8.h); 0 and NULL for every
 * other id. At most NIB_MAX_TOKEN_BYTES. */
size_t nib_tokenizer_decode(const struct nib_tokenizer *tok, uint32_t id, const uint8_t **ret_bytes);

/* For harmony only: the id of a named special token. */
uint32_t nib_tokenizer_special(const struct nib_tokenizer *tok, enum nib_special special);

/* True when id is one of the nine; *ret_special says which. */
bool nib_tokenizer_is_special(const struct nib_tokenizer *tok, uint32_t id, enum nib_special *ret_special);

/* "<|start|>" and so on; NULL for a distance that has no name. */
const char *nib_special_name(uint32_t distance);

/* For /detokenize only: the text of a special or reserved id ("<|start|>", "<|reserved_200013|>")
 * into out[0..out_max), with NUL. Returns its bytes without NUL; 0 when the id is neither or out is
 * too small (32 always suffice). */
size_t nib_tokenizer_decode_special(const struct nib_tokenizer *tok, uint32_t id, char *out, size_t out_max);

/* id < vocab: the embedding has a row for it. Every id from outside must pass this. */
bool nib_tokenizer_id_valid(const struct nib_tokenizer *tok, uint32_t id);

/* The id may be sampled: ordinary or one of the nine. Reserved ids and gaps may not. */
bool nib_tokenizer_id_generable(const struct nib_tokenizer *tok, uint32_t id);

/* Fills words[0 .. ceil(vocab / 32)): bit id % 32 of word id / 32 is set when id may not be
 * sampled. Bits past the vocabulary are set too. */
void nib_tokenizer_fill_banned(const struct nib_tokenizer *tok, uint32_t *words);

#endif
