/* core/prompt.c: owns the chunks, carved once, and the list of free ones.
 * Limits: chunks_count. The stepper thread. take fails when chunks run short. */
#include "core/prompt.h"

#include <string.h>

#include "core/arith.h"

#define PROMPT_ALIGN 64u
#define PROMPT_TAKES 2 /* arrays carved, each with at most PROMPT_ALIGN of padding */

uint32_t nib_prompt_chunks_for(uint32_t tokens)
{
    return (uint32_t)nib_div_up(tokens, NIB_PROMPT_CHUNK_TOKENS);
}

size_t nib_prompt_bytes(uint32_t chunks_count)
{
    return (size_t)chunks_count * (NIB_PROMPT_CHUNK_TOKENS + 1) * sizeof(uint32_t) +
           (size_t)PROMPT_TAKES * PROMPT_ALIGN;
}

enum nib_err nib_prompt_init(struct nib_prompt_pool *pool, struct nib_arena *arena, uint32_t chunks_count)
{
    NIB_MUST(chunks_count >= 1 && chunks_count < NIB_PROMPT_NONE);
    uint32_t *next = nib_arena_take(arena, chunks_count * sizeof *next, PROMPT_ALIGN);
    uint32_t *tokens =
        nib_arena_take(arena, (size_t)chunks_count * NIB_PROMPT_CHUNK_TOKENS * sizeof *tokens, PROMPT_ALIGN);
    if (!next || !tokens)
        return NIB_E_NOMEM;
    for (uint32_t i = 0; i < chunks_count; i++)
        next[i] = i + 1 < chunks_count ? i + 1 : NIB_PROMPT_NONE;
    *pool = (struct nib_prompt_pool){
        .chunks_count = chunks_count, .free_count = chunks_count, .free_first = 0, .next = next, .tokens = tokens};
    return NIB_OK;
}

enum nib_err nib_prompt_take(struct nib_prompt_pool *pool, const uint32_t *tokens, uint32_t count,
                             struct nib_prompt *ret_prompt)
{
    uint32_t want = nib_prompt_chunks_for(count);
    if (want > pool->free_count)
        return NIB_E_FULL;
    uint32_t first = pool->free_first, last = first;
    for (uint32_t i = 0; i < want; i++) {
        uint32_t chunk = pool->free_first, done = i * NIB_PROMPT_CHUNK_TOKENS;
        uint32_t part = (uint32_t)nib_min_u64(count - done, NIB_PROMPT_CHUNK_TOKENS);
        memcpy(pool->tokens + (size_t)chunk * NIB_PROMPT_CHUNK_TOKENS, tokens + done, part * sizeof *tokens);
        pool->free_first = pool->next[chunk];
        last = chunk;
    }
    pool->next[last] = NIB_PROMPT_NONE;
    pool->free_count -= want;
    *ret_prompt = (struct nib_prompt){.first = first, .skip = 0, .left = count};
    return NIB_OK;
}

static void put_first(struct nib_prompt_pool *pool, struct nib_prompt *prompt)
{
    uint32_t chunk = prompt->first;
    NIB_MUST(chunk < pool->chunks_count && pool->free_count < pool->chunks_count);
    prompt->first = pool->next[chunk];
    prompt->skip = 0;
    pool->next[chunk] = pool->free_first;
    pool->free_first = chunk;
    pool->free_count++;
}

uint32_t nib_prompt_read(struct nib_prompt_pool *pool, struct nib_prompt *prompt)
{
    NIB_MUST(prompt->left != 0 && prompt->first < pool->chunks_count);
    uint32_t token = pool->tokens[(size_t)prompt->first * NIB_PROMPT_CHUNK_TOKENS + prompt->skip++];
    prompt->left--;
    if (prompt->skip == NIB_PROMPT_CHUNK_TOKENS || prompt->left == 0)
        put_first(pool, prompt);
    return token;
}

_Static_assert(NIB_PROMPT_CHUNK_TOKENS % NIB_KV_PAGE_TOKENS == 0, "a page lies in one chunk");

const uint32_t *nib_prompt_page(const struct nib_prompt_pool *pool, const struct nib_prompt *prompt, uint32_t read,
                                uint32_t page)
{
    const uint32_t at = page * NIB_KV_PAGE_TOKENS;
    uint32_t chunk = prompt->first;
    NIB_MUST(at + NIB_KV_PAGE_TOKENS > read && at + NIB_KV_PAGE_TOKENS <= read + prompt->left);
    for (uint32_t i = read / NIB_PROMPT_CHUNK_TOKENS; i < at / NIB_PROMPT_CHUNK_TOKENS; i++)
        chunk = pool->next[chunk];
    NIB_MUST(chunk < pool->chunks_count);
    return pool->tokens + (size_t)chunk * NIB_PROMPT_CHUNK_TOKENS + at % NIB_PROMPT_CHUNK_TOKENS;
}

void nib_prompt_copy(const struct nib_prompt_pool *pool, const struct nib_prompt *prompt, uint32_t *ret_tokens)
{
    uint32_t chunk = prompt->first, skip = prompt->skip;
    for (uint32_t done = 0; done < prompt->left; skip = 0) {
        const uint32_t part = (uint32_t)nib_min_u64(prompt->left - done, NIB_PROMPT_CHUNK_TOKENS - skip);
        NIB_MUST(chunk < pool->chunks_count);
        memcpy(ret_tokens + done, pool->tokens + (size_t)chunk * NIB_PROMPT_CHUNK_TOKENS + skip,
               part * sizeof *ret_tokens);
        done += part;
        chunk = pool->next[chunk];
    }
}

void nib_prompt_skip(struct nib_prompt_pool *pool, struct nib_prompt *prompt, uint32_t count)
{
    NIB_MUST(count <= prompt->left);
    while (count > 0) {
        uint32_t part = (uint32_t)nib_min_u64(count, NIB_PROMPT_CHUNK_TOKENS - prompt->skip);
        prompt->skip += part;
        prompt->left -= part;
        count -= part;
        if (prompt->skip == NIB_PROMPT_CHUNK_TOKENS || prompt->left == 0)
            put_first(pool, prompt);
    }
}

void nib_prompt_put(struct nib_prompt_pool *pool, struct nib_prompt *prompt)
{
    for (uint32_t i = nib_prompt_chunks(prompt); i > 0; i--)
        put_first(pool, prompt);
    NIB_MUST(prompt->left == 0 || prompt->first == NIB_PROMPT_NONE);
    *prompt = (struct nib_prompt){.first = NIB_PROMPT_NONE, .skip = 0, .left = 0};
}

uint32_t nib_prompt_chunks(const struct nib_prompt *prompt)
{
    return prompt->left ? nib_prompt_chunks_for(prompt->skip + prompt->left) : 0;
}
