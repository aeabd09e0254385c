/* appliance/prompt.h: the messages, tools or prompt of a request, to token ids.
 *
 * Decoded structs live in the JSON pool beside the tree. Text of a request can only become ordinary
 * tokens; special tokens come from harmony's renderer. Front thread. */
#ifndef NIB_APPLIANCE_PROMPT_H
#define NIB_APPLIANCE_PROMPT_H

#include "appliance/fields.h"
#include "core/harmony.h"
#include "core/tokenizer.h"

/* What the front keeps for this. */
struct nib_prompt_env {
    const struct nib_tokenizer *tokenizer;
    void *encode_scratch; /* nib_tokenizer_scratch_bytes */
    size_t encode_scratch_bytes;
    struct nib_harmony_scratch scratch;
    const char *date; /* "" : none */
};

/* A chat request. ids[0..*ret_n) is the prompt, at most ids_max (the longest allowed context; a
 * longer one is refused as context_length_exceeded). *ret_has_tools: the model may call functions.
 */
bool nib_prompt_chat(const struct nib_prompt_env *env, const json_t *root, const struct nib_params *params,
                     uint32_t *ids, size_t ids_max, size_t *ret_n, struct nib_refusal *ret_refusal) NIB_CHECKED;

/* A completions request: a string, or token ids, or a list with one of them. */
bool nib_prompt_completion(const struct nib_prompt_env *env, const json_t *root, uint32_t *ids, size_t ids_max,
                           size_t *ret_n, struct nib_refusal *ret_refusal) NIB_CHECKED;

/* Ordinary text; field `param` in refusals. */
bool nib_prompt_text(const struct nib_prompt_env *env, struct nib_span text, const char *param, uint32_t *ids,
                     size_t ids_max, size_t *ret_n, struct nib_refusal *ret_refusal) NIB_CHECKED;

#endif
