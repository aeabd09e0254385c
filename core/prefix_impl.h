/* core/prefix_impl.h: what prefix.c and prefix_check.c share. Not a contract; nobody else includes it. */
#ifndef NIB_CORE_PREFIX_IMPL_H
#define NIB_CORE_PREFIX_IMPL_H

#include "core/prefix.h"

#define NONE NIB_PREFIX_NONE
#define PAGE NIB_KV_PAGE_TOKENS

/* [PAGE] of a page of the pool. */
static inline uint32_t *nib_prefix_tokens(const struct nib_prefix *p, uint32_t page)
{
    return p->tokens + (size_t)page * PAGE;
}

/* [path_count] of a slot. */
static inline uint32_t *nib_prefix_path(const struct nib_prefix *p, uint32_t slot)
{
    return p->path + (size_t)slot * p->kv->table_pages;
}

static inline uint32_t nib_prefix_hash(const struct nib_prefix *p, uint32_t parent, uint32_t owner,
                                       const uint32_t *tokens)
{
    uint64_t h = p->config.key ^ ((uint64_t)owner << 32 | parent);
    for (uint32_t i = 0; i < PAGE; i += 2) {
        h = (h ^ ((uint64_t)tokens[i + 1] << 32 | tokens[i])) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    h *= 0xbf58476d1ce4e5b9u;
    return (uint32_t)(h >> 32);
}

#endif
