/* core/kv.h: the fixed pool of KV pages of the full-attention layers, and each slot's page table.
 *
 * A page holds NIB_KV_PAGE_TOKENS positions. A slot takes all pages its sequence can ever need at
 * once, so that an admitted sequence never runs out, and gives all of them back at once. Every page
 * is free, or owned by exactly one slot, or kept (core/prefix.h, which alone keeps pages and drops
 * them); tables may share kept pages, which nobody writes. nib_kv_check proves it. One thread (the
 * stepper). */
#ifndef NIB_CORE_KV_H
#define NIB_CORE_KV_H

#include "core/arena.h"
#include "core/engine.h"

#define NIB_KV_FREE 0x80000000u /* in place: a free page; the low bits index the free stack */
#define NIB_KV_KEPT 0x7fffffffu /* in place: a kept page */

struct nib_kv {
    uint32_t slots;
    uint32_t pages_count; /* of the pool */
    uint32_t table_pages; /* pages of the longest sequence */
    uint32_t free_count;
    uint32_t kept_count;
    uint32_t *free;              /* [pages_count] stack; the last put is the first taken */
    uint32_t *place;             /* [pages_count] index into ids, NIB_KV_KEPT, or NIB_KV_FREE + index into free */
    uint32_t *ids;               /* [slots][table_pages] */
    struct nib_kv_table *tables; /* [slots], what a struct nib_step points at */
};

/* Pages that hold that many tokens. */
uint32_t nib_kv_pages_for(uint32_t tokens);

/* Pages of a window layer's ring, of one slot: what a step's first row still sees, and all of its rows, wherever a page begins. */
uint32_t nib_kv_ring_pages(uint32_t window, uint32_t step_rows);

/* Bytes nib_kv_init takes from the arena, padding included. */
size_t nib_kv_bytes(const struct nib_engine_dims *dims);

/* All pages free, all tables empty. NIB_E_ARG: a dimension is 0 or above its NIB_MAX_*.
 * NIB_E_NOMEM: the arena is too small. */
enum nib_err nib_kv_init(struct nib_kv *kv, struct nib_arena *arena, const struct nib_engine_dims *dims,
                         struct nib_msg *msg) NIB_CHECKED;

/* Gives an empty slot the pages for `tokens` positions: the kept pages shared[0..shared_count)
 * first, then free ones. Nothing changes on error. NIB_E_ARG: no such slot, 0 tokens, more shared
 * pages than pages, or one that is not kept. NIB_E_LIMIT: more than a table holds. NIB_E_STATE: the
 * slot has pages already. NIB_E_FULL: not enough free pages now. */
enum nib_err nib_kv_take(struct nib_kv *kv, uint32_t slot, uint32_t tokens, const uint32_t *shared,
                         uint32_t shared_count) NIB_CHECKED;

/* Gives back every page the slot owns; kept ones stay kept. NIB_E_ARG: no such slot. NIB_E_STATE:
 * it has none (a double put). A table that names a page of another slot, or a free one, is a broken
 * invariant: the process stops. */
enum nib_err nib_kv_put(struct nib_kv *kv, uint32_t slot) NIB_CHECKED;

/* The slot's page number `index`, which it owns, is kept from now on; its table names it still. */
uint32_t nib_kv_keep(struct nib_kv *kv, uint32_t slot, uint32_t index);

/* The slot's page number `index`, which it owns, becomes free; a kept page takes its place in the table. */
void nib_kv_share(struct nib_kv *kv, uint32_t slot, uint32_t index, uint32_t page);

/* A free page is kept from now on, in no table. NIB_E_FULL: none is free. */
enum nib_err nib_kv_keep_free(struct nib_kv *kv, uint32_t *ret_page) NIB_CHECKED;

/* A kept page, which no table names any more, becomes free. */
void nib_kv_drop(struct nib_kv *kv, uint32_t page);

/* True when every page is free once, in one table once, or kept, and the counts agree. O(pages). */
bool nib_kv_check(const struct nib_kv *kv);

#endif
