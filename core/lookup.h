/* core/lookup.h: guesses a sequence's next tokens from its own earlier ones: prompt lookup (Saxena 2023, "Prompt lookup
 * decoding"), no second model.
 *
 * Where the last tokens of a sequence stood before, the guess is that what came then comes again. The place is looked for
 * when a token comes and no guess goes on: of the latest NIB_LOOKUP_PROBES places where the last two tokens stood, the one
 * that agrees longest, NIB_LOOKUP_MATCH tokens at most. A guess that comes true goes on behind it; the first token that
 * differs ends it. A guess may run into itself: what repeats is guessed to repeat.
 *
 * Cost of a token: those probes, and NIB_LOOKUP_INDEX_TOKENS tokens of a long prompt taken into the index, until all are.
 * Memory: about 10 bytes for each token of context of each slot. One thread. Allocates nothing after init. */
#ifndef NIB_CORE_LOOKUP_H
#define NIB_CORE_LOOKUP_H

#include "core/arena.h"
#include "core/engine.h"
#include "core/prompt.h"

#define NIB_LOOKUP_PROBES       16   /* places looked at */
#define NIB_LOOKUP_MATCH        16   /* tokens compared of each */
#define NIB_LOOKUP_INDEX_TOKENS 4096 /* of a prompt, at a time */

struct nib_lookup_slot {
    uint32_t count;   /* tokens of the sequence */
    uint32_t indexed; /* of them, those that can be found */
    uint32_t source;  /* where the token stands that is guessed to come next; 0: no guess */
    uint32_t match;   /* tokens before it that agree with the last ones, up to NIB_LOOKUP_MATCH */
};

struct nib_lookup {
    uint32_t ctx_tokens, heads_count; /* heads: a power of two */
    uint32_t *tokens;                 /* [slots][ctx_tokens] */
    uint32_t *before; /* [slots][ctx_tokens] the last place before with the same hash of two tokens; 0: none */
    uint32_t *heads;  /* [slots][heads_count] the last place of each hash; 0: none */
    struct nib_lookup_slot *slots; /* [slots] */
};

/* A guess that met its token. */
struct nib_lookup_test {
    uint32_t match; /* tokens that agreed before it; 0: nothing was guessed */
    bool hit;
};

/* Bytes nib_lookup_init takes from the arena, padding included. */
size_t nib_lookup_bytes(const struct nib_engine_dims *dims);

/* NIB_E_NOMEM: the arena is too small. */
enum nib_err nib_lookup_init(struct nib_lookup *lookup, struct nib_arena *arena,
                             const struct nib_engine_dims *dims) NIB_CHECKED;

/* A sequence begins in the slot with this prompt, of which nothing was read. */
void nib_lookup_begin(struct nib_lookup *lookup, uint32_t slot, const struct nib_prompt_pool *pool,
                      const struct nib_prompt *prompt);

/* The sequence's next token came; it is not longer than ctx_tokens. */
struct nib_lookup_test nib_lookup_take(struct nib_lookup *lookup, uint32_t slot, uint32_t token);

/* Tokens that agreed before the guess that goes on; 0: there is none. */
uint32_t nib_lookup_match(const struct nib_lookup *lookup, uint32_t slot);

/* The guess: the next `count` tokens. There must be one. */
void nib_lookup_guess(const struct nib_lookup *lookup, uint32_t slot, uint32_t count, uint32_t *ret_tokens);

#endif
