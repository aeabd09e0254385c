/* core/kv.c: owns the free stack, the place of each page and the page tables, carved once.
 * Limits: dims. The stepper thread. take fails when pages run short; nothing else fails but misuse.
 */
#include "core/kv.h"

#include "core/arith.h"

#define KV_ALIGN 64u
#define KV_TAKES 4 /* arrays carved, each with at most KV_ALIGN of padding */

uint32_t nib_kv_pages_for(uint32_t tokens)
{
    return (uint32_t)nib_div_up(tokens, NIB_KV_PAGE_TOKENS);
}

uint32_t nib_kv_ring_pages(uint32_t window, uint32_t step_rows)
{
    return nib_kv_pages_for(window - 1 + step_rows) + 1;
}

static bool dims_allowed(const struct nib_engine_dims *dims)
{
    return dims->slots >= 1 && dims->slots <= NIB_MAX_SLOTS && dims->ctx_tokens >= 1 &&
           dims->ctx_tokens <= NIB_MAX_CTX_TOKENS && dims->kv_pages >= 1 && dims->kv_pages <= NIB_MAX_KV_PAGES;
}

size_t nib_kv_bytes(const struct nib_engine_dims *dims)
{
    if (!dims_allowed(dims))
        return 0;
    size_t page = 2 * sizeof(uint32_t); /* a free stack entry, a place */
    size_t slot = (size_t)nib_kv_pages_for(dims->ctx_tokens) * sizeof(uint32_t) + sizeof(struct nib_kv_table);
    return dims->kv_pages * page + dims->slots * slot + (size_t)KV_TAKES * KV_ALIGN;
}

enum nib_err nib_kv_init(struct nib_kv *kv, struct nib_arena *arena, const struct nib_engine_dims *dims,
                         struct nib_msg *msg)
{
    if (!dims_allowed(dims))
        return nib_fail(msg, NIB_E_ARG, "KV pool of %u slots, %u tokens, %u pages: allowed are 1 to %u, %u and %u",
                        dims->slots, dims->ctx_tokens, dims->kv_pages, NIB_MAX_SLOTS, NIB_MAX_CTX_TOKENS,
                        NIB_MAX_KV_PAGES);
    uint32_t table_pages = nib_kv_pages_for(dims->ctx_tokens);
    uint32_t *free = nib_arena_take(arena, dims->kv_pages * sizeof *free, KV_ALIGN);
    uint32_t *place = nib_arena_take(arena, dims->kv_pages * sizeof *place, KV_ALIGN);
    uint32_t *ids = nib_arena_take(arena, (size_t)dims->slots * table_pages * sizeof *ids, KV_ALIGN);
    struct nib_kv_table *tables = nib_arena_take(arena, dims->slots * sizeof *tables, KV_ALIGN);
    if (!free || !place || !ids || !tables)
        return nib_fail(msg, NIB_E_NOMEM, "the KV page tables do not fit the arena");
    *kv = (struct nib_kv){.slots = dims->slots,
                          .pages_count = dims->kv_pages,
                          .table_pages = table_pages,
                          .free_count = dims->kv_pages,
                          .free = free,
                          .place = place,
                          .ids = ids,
                          .tables = tables};
    for (uint32_t i = 0; i < dims->kv_pages; i++) {
        kv->free[i] = dims->kv_pages - 1 - i; /* page 0 is taken first */
        kv->place[dims->kv_pages - 1 - i] = NIB_KV_FREE + i;
    }
    for (uint32_t i = 0; i < dims->slots; i++)
        kv->tables[i] = (struct nib_kv_table){.pages = ids + (size_t)i * table_pages, .pages_count = 0};
    return NIB_OK;
}

enum nib_err nib_kv_take(struct nib_kv *kv, uint32_t slot, uint32_t tokens)
{
    if (slot >= kv->slots || tokens == 0)
        return NIB_E_ARG;
    uint32_t want = nib_kv_pages_for(tokens);
    if (want > kv->table_pages)
        return NIB_E_LIMIT;
    if (kv->tables[slot].pages_count != 0)
        return NIB_E_STATE;
    if (want > kv->free_count)
        return NIB_E_FULL;
    uint32_t *ids = kv->ids + (size_t)slot * kv->table_pages;
    for (uint32_t i = 0; i < want; i++) {
        uint32_t page = kv->free[--kv->free_count];
        NIB_MUST(page < kv->pages_count && kv->place[page] == NIB_KV_FREE + kv->free_count);
        kv->place[page] = slot * kv->table_pages + i;
        ids[i] = page;
    }
    kv->tables[slot].pages_count = want;
    return NIB_OK;
}

enum nib_err nib_kv_put(struct nib_kv *kv, uint32_t slot)
{
    if (slot >= kv->slots)
        return NIB_E_ARG;
    struct nib_kv_table *table = &kv->tables[slot];
    if (table->pages_count == 0)
        return NIB_E_STATE;
    for (uint32_t i = table->pages_count; i-- > 0;) {
        uint32_t page = table->pages[i];
        NIB_MUST(page < kv->pages_count && kv->place[page] == slot * kv->table_pages + i);
        NIB_MUST(kv->free_count < kv->pages_count);
        kv->place[page] = NIB_KV_FREE + kv->free_count;
        kv->free[kv->free_count++] = page;
    }
    table->pages_count = 0;
    return NIB_OK;
}

bool nib_kv_check(const struct nib_kv *kv)
{
    uint32_t owned = 0;
    if (kv->free_count > kv->pages_count)
        return false;
    for (uint32_t i = 0; i < kv->free_count; i++)
        if (kv->free[i] >= kv->pages_count || kv->place[kv->free[i]] != NIB_KV_FREE + i)
            return false;
    for (uint32_t slot = 0; slot < kv->slots; slot++) {
        const struct nib_kv_table *table = &kv->tables[slot];
        if (table->pages_count > kv->table_pages)
            return false;
        for (uint32_t i = 0; i < table->pages_count; i++)
            if (table->pages[i] >= kv->pages_count || kv->place[table->pages[i]] != slot * kv->table_pages + i)
                return false;
        owned += table->pages_count;
    }
    /* every page has one place, so no page was counted twice; equal sums leave none out */
    return owned + kv->free_count == kv->pages_count;
}
