/* tools/hf_tokenizer.h: Hugging Face's tokenizer.json to the image's vocabulary blob.
 *
 * Reads model.vocab, model.merges (strings or pairs) and added_tokens; model.type must be BPE. What
 * the merges must be, and why, is in pack_bpe.h. Unknown members are passed over. One thread;
 * heap. */
#ifndef NIB_TOOLS_HF_TOKENIZER_H
#define NIB_TOOLS_HF_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/model.h"

/* json[0..bytes) is the file's text, `label` its name for messages. *ret_blob is heap, freed by the
 * caller. */
enum nib_err nib_hf_tokenizer_blob(const char *json, size_t bytes, const char *label, const struct nib_shape *shape,
                                   uint8_t **ret_blob, size_t *ret_bytes, struct nib_msg *msg) NIB_CHECKED;

#endif
