/* core/lookup.c: owns the slots' tokens and the index of their pairs, carved once.
 * Limits: dims, the probes of core/lookup.h. The stepper thread. Cannot fail after init. */
#include "core/lookup.h"

#include <string.h>

#include "core/arith.h"

#define LOOKUP_ALIGN 64u
#define LOOKUP_TAKES 4 /* arrays carved, each with at most LOOKUP_ALIGN of padding */
#define HEADS_MIN    64u

/* Half as many as tokens: a place that is passed by costs one probe. */
static uint32_t heads_for(uint32_t ctx_tokens)
{
    uint32_t heads = HEADS_MIN;
    while (heads < ctx_tokens / 2)
        heads *= 2;
    return heads;
}

size_t nib_lookup_bytes(const struct nib_engine_dims *dims)
{
    const size_t words = 2 * (size_t)dims->ctx_tokens + heads_for(dims->ctx_tokens);
    return dims->slots * (words * sizeof(uint32_t) + sizeof(struct nib_lookup_slot)) +
           (size_t)LOOKUP_TAKES * LOOKUP_ALIGN;
}

enum nib_err nib_lookup_init(struct nib_lookup *lookup, struct nib_arena *arena, const struct nib_engine_dims *dims)
{
    const size_t slots = dims->slots, words = slots * dims->ctx_tokens;
    *lookup = (struct nib_lookup){.ctx_tokens = dims->ctx_tokens, .heads_count = heads_for(dims->ctx_tokens)};
    lookup->tokens = nib_arena_take(arena, words * sizeof *lookup->tokens, LOOKUP_ALIGN);
    lookup->before = nib_arena_take(arena, words * sizeof *lookup->before, LOOKUP_ALIGN);
    lookup->heads = nib_arena_take(arena, slots * lookup->heads_count * sizeof *lookup->heads, LOOKUP_ALIGN);
    lookup->slots = nib_arena_take(arena, slots * sizeof *lookup->slots, LOOKUP_ALIGN);
    if (!lookup->tokens || !lookup->before || !lookup->heads || !lookup->slots)
        return NIB_E_NOMEM;
    memset(lookup->slots, 0, slots * sizeof *lookup->slots);
    return NIB_OK;
}

void nib_lookup_begin(struct nib_lookup *lookup, uint32_t slot, const struct nib_prompt_pool *pool,
                      const struct nib_prompt *prompt)
{
    NIB_MUST(prompt->left <= lookup->ctx_tokens);
    nib_prompt_copy(pool, prompt, lookup->tokens + (size_t)slot * lookup->ctx_tokens);
    memset(lookup->heads + (size_t)slot * lookup->heads_count, 0, lookup->heads_count * sizeof *lookup->heads);
    lookup->slots[slot] = (struct nib_lookup_slot){.count = prompt->left, .indexed = 1};
}

/* Where the places of the pair that ends at `at` begin. */
static uint32_t *head_of(const struct nib_lookup *lookup, uint32_t slot, uint32_t at)
{
    const uint32_t *tokens = lookup->tokens + (size_t)slot * lookup->ctx_tokens;
    const uint64_t pair = (uint64_t)tokens[at - 1] << 32 | tokens[at];
    const uint32_t hash = (uint32_t)(pair * 0x9e3779b97f4a7c15u >> 32);
    return lookup->heads + (size_t)slot * lookup->heads_count + (hash & (lookup->heads_count - 1));
}

/* Takes pairs into the index; true when all are. */
static bool catch_up(struct nib_lookup *lookup, uint32_t slot)
{
    struct nib_lookup_slot *s = &lookup->slots[slot];
    uint32_t *before = lookup->before + (size_t)slot * lookup->ctx_tokens;
    const uint32_t end = (uint32_t)nib_min_u64(s->count, (uint64_t)s->indexed + NIB_LOOKUP_INDEX_TOKENS);
    for (; s->indexed < end; s->indexed++) {
        uint32_t *head = head_of(lookup, slot, s->indexed);
        before[s->indexed] = *head;
        *head = s->indexed;
    }
    return s->indexed >= s->count;
}

/* Tokens up to `at` that agree with the last ones. */
static uint32_t agree(const uint32_t *tokens, uint32_t at, uint32_t last)
{
    uint32_t match = 0;
    while (match < NIB_LOOKUP_MATCH && match <= at && tokens[at - match] == tokens[last - match])
        match++;
    return match;
}

static void find(struct nib_lookup *lookup, uint32_t slot)
{
    struct nib_lookup_slot *s = &lookup->slots[slot];
    if (!catch_up(lookup, slot) || s->count < 2)
        return;
    const uint32_t *tokens = lookup->tokens + (size_t)slot * lookup->ctx_tokens;
    const uint32_t *before = lookup->before + (size_t)slot * lookup->ctx_tokens;
    const uint32_t last = s->count - 1;
    uint32_t at = before[last];
    s->match = 1; /* only a hash agrees where fewer tokens do */
    for (uint32_t probe = 0; at != 0 && probe < NIB_LOOKUP_PROBES && s->match < NIB_LOOKUP_MATCH; probe++) {
        NIB_MUST(at < last);
        const uint32_t match = agree(tokens, at, last);
        if (match > s->match) {
            s->match = match;
            s->source = at + 1;
        }
        at = before[at];
    }
}

struct nib_lookup_test nib_lookup_take(struct nib_lookup *lookup, uint32_t slot, uint32_t token)
{
    struct nib_lookup_slot *s = &lookup->slots[slot];
    uint32_t *tokens = lookup->tokens + (size_t)slot * lookup->ctx_tokens;
    struct nib_lookup_test test = {0};
    NIB_MUST(s->count < lookup->ctx_tokens);
    tokens[s->count++] = token;
    if (s->source != 0) {
        test.match = s->match;
        test.hit = tokens[s->source] == token;
        s->source = test.hit ? s->source + 1 : 0;
        s->match += s->match < NIB_LOOKUP_MATCH;
    }
    if (s->source == 0)
        find(lookup, slot);
    return test;
}

uint32_t nib_lookup_match(const struct nib_lookup *lookup, uint32_t slot)
{
    return lookup->slots[slot].source != 0 ? lookup->slots[slot].match : 0;
}

void nib_lookup_guess(const struct nib_lookup *lookup, uint32_t slot, uint32_t count, uint32_t *ret_tokens)
{
    const struct nib_lookup_slot *s = &lookup->slots[slot];
    const uint32_t *tokens = lookup->tokens + (size_t)slot * lookup->ctx_tokens;
    NIB_MUST(s->source != 0 && s->source < s->count);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t at = s->source + i;
        ret_tokens[i] = at < s->count ? tokens[at] : ret_tokens[at - s->count];
    }
}
