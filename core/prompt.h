/* core/prompt.h: the tokens of prompts that were accepted and not yet fed, in a fixed pool of
 * chunks.
 *
 * A prompt is a chain of chunks of NIB_PROMPT_CHUNK_TOKENS, so that prompts of any length share the
 * pool without gaps to search for; a chunk goes back as soon as its last token is fed. One thread.
 */
#ifndef NIB_CORE_PROMPT_H
#define NIB_CORE_PROMPT_H

#include "core/arena.h"
#include "core/err.h"

#define NIB_PROMPT_NONE UINT32_MAX /* no chunk */

struct nib_prompt_pool {
    uint32_t chunks_count;
    uint32_t free_count;
    uint32_t free_first; /* chunk or NIB_PROMPT_NONE */
    uint32_t *next;      /* [chunks_count] the chunk after this one */
    uint32_t *tokens;    /* [chunks_count][NIB_PROMPT_CHUNK_TOKENS] */
};

struct nib_prompt {
    uint32_t first; /* chunk or NIB_PROMPT_NONE */
    uint32_t skip;  /* tokens of the first chunk already read */
    uint32_t left;  /* tokens not yet read */
};

/* Chunks that hold that many tokens. */
uint32_t nib_prompt_chunks_for(uint32_t tokens);

/* Bytes nib_prompt_init takes from the arena, padding included. */
size_t nib_prompt_bytes(uint32_t chunks_count);

/* All chunks free. NIB_E_NOMEM: the arena is too small. */
enum nib_err nib_prompt_init(struct nib_prompt_pool *pool, struct nib_arena *arena, uint32_t chunks_count) NIB_CHECKED;

/* Copies tokens[0..count) in, count >= 1. NIB_E_FULL: not enough free chunks; nothing changed. */
enum nib_err nib_prompt_take(struct nib_prompt_pool *pool, const uint32_t *tokens, uint32_t count,
                             struct nib_prompt *ret_prompt) NIB_CHECKED;

/* The next token; left must not be 0. Gives back the chunk after its last token. */
uint32_t nib_prompt_read(struct nib_prompt_pool *pool, struct nib_prompt *prompt);

/* Page number `page` of a prompt of which `read` tokens were read or passed over: NIB_KV_PAGE_TOKENS tokens, all in the
 * prompt, not all of them read. O(chunks up to it). */
const uint32_t *nib_prompt_page(const struct nib_prompt_pool *pool, const struct nib_prompt *prompt, uint32_t read,
                                uint32_t page);

/* The tokens not yet read, [left], into ret_tokens. */
void nib_prompt_copy(const struct nib_prompt_pool *pool, const struct nib_prompt *prompt, uint32_t *ret_tokens);

/* Passes over the next `count` tokens, at most left. Gives back the chunks behind it. */
void nib_prompt_skip(struct nib_prompt_pool *pool, struct nib_prompt *prompt, uint32_t count);

/* Gives back what is left. A prompt read to its end, or put before, is left as it is. */
void nib_prompt_put(struct nib_prompt_pool *pool, struct nib_prompt *prompt);

/* Chunks a prompt still holds. */
uint32_t nib_prompt_chunks(const struct nib_prompt *prompt);

#endif
