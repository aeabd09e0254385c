/* core/kv.h: the fixed pool of KV pages of the full-attention layers, and each slot's page table.
 *
 * A page holds NIB_KV_PAGE_TOKENS positions. A slot takes all pages its sequence can ever need at
 * once, so that an admitted sequence never runs out, and gives all of them back at once. Every page
 * is either free or owned by exactly one slot; nib_kv_check proves it. One thread (the stepper). */
#ifndef NIB_CORE_KV_H
#define NIB_CORE_KV_H

#include "core/arena.h"
#include "core/engine.h"

#define NIB_KV_FREE 0x80000000u /* in place: a free page; the low bits index the free stack */

struct nib_kv {
    uint32_t slots;
    uint32_t pages_count; /* of the pool */
    uint32_t table_pages; /* pages of the longest sequence */
    uint32_t free_count;
    uint32_t *free;              /* [pages_count] stack; the last put is the first taken */
    uint32_t *place;             /* [pages_count] index into ids, or NIB_KV_FREE + index into free */
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

/* Gives an empty slot the pages for `tokens` positions. Nothing changes on error.
 * NIB_E_ARG: no such slot, or 0 tokens. NIB_E_LIMIT: more than a table holds. NIB_E_STATE: the slot
 * has pages already. NIB_E_FULL: not enough free pages now. */
enum nib_err nib_kv_take(struct nib_kv *kv, uint32_t slot, uint32_t tokens) NIB_CHECKED;

/* Gives back every page of the slot. NIB_E_ARG: no such slot. NIB_E_STATE: it has none (a double
 * put). A table that names a page the slot does not own is a broken invariant: the process stops.
 */
enum nib_err nib_kv_put(struct nib_kv *kv, uint32_t slot) NIB_CHECKED;

/* True when every page is free once or in one table once, and the counts agree. O(pages). */
bool nib_kv_check(const struct nib_kv *kv);

#endif
