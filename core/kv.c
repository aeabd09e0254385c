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

/* Takes the page on top of the free stack. */
static uint32_t pop(struct nib_kv *kv, uint32_t place)
{
    uint32_t page = kv->free[--kv->free_count];
    NIB_MUST(page < kv->pages_count && kv->place[page] == NIB_KV_FREE + kv->free_count);
    kv->place[page] = place;
    return page;
}

static void push(struct nib_kv *kv, uint32_t page)
{
    NIB_MUST(kv->free_count < kv->pages_count);
    kv->place[page] = NIB_KV_FREE + kv->free_count;
    kv->free[kv->free_count++] = page;
}

enum nib_err nib_kv_take(struct nib_kv *kv, uint32_t slot, uint32_t tokens, const uint32_t *shared,
                         uint32_t shared_count)
{
    uint32_t want = nib_kv_pages_for(tokens);
    if (slot >= kv->slots || tokens == 0 || shared_count > want)
        return NIB_E_ARG;
    if (want > kv->table_pages)
        return NIB_E_LIMIT;
    for (uint32_t i = 0; i < shared_count; i++)
        if (shared[i] >= kv->pages_count || kv->place[shared[i]] != NIB_KV_KEPT)
            return NIB_E_ARG;
    if (kv->tables[slot].pages_count != 0)
        return NIB_E_STATE;
    if (want - shared_count > kv->free_count)
        return NIB_E_FULL;
    uint32_t *ids = kv->ids + (size_t)slot * kv->table_pages;
    for (uint32_t i = 0; i < want; i++)
        ids[i] = i < shared_count ? shared[i] : pop(kv, slot * kv->table_pages + i);
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
        NIB_MUST(page < kv->pages_count);
        if (kv->place[page] == NIB_KV_KEPT)
            continue;
        NIB_MUST(kv->place[page] == slot * kv->table_pages + i);
        push(kv, page);
    }
    table->pages_count = 0;
    return NIB_OK;
}

/* The slot's page number `index`, which must be its own. */
static uint32_t own_page(const struct nib_kv *kv, uint32_t slot, uint32_t index)
{
    NIB_MUST(slot < kv->slots && index < kv->tables[slot].pages_count);
    uint32_t page = kv->tables[slot].pages[index];
    NIB_MUST(page < kv->pages_count && kv->place[page] == slot * kv->table_pages + index);
    return page;
}

void nib_kv_share(struct nib_kv *kv, uint32_t slot, uint32_t index, uint32_t page)
{
    NIB_MUST(page < kv->pages_count && kv->place[page] == NIB_KV_KEPT);
    push(kv, own_page(kv, slot, index));
    kv->ids[(size_t)slot * kv->table_pages + index] = page;
}

uint32_t nib_kv_keep(struct nib_kv *kv, uint32_t slot, uint32_t index)
{
    uint32_t page = own_page(kv, slot, index);
    kv->place[page] = NIB_KV_KEPT;
    kv->kept_count++;
    return page;
}

enum nib_err nib_kv_keep_free(struct nib_kv *kv, uint32_t *ret_page)
{
    if (kv->free_count == 0)
        return NIB_E_FULL;
    *ret_page = pop(kv, NIB_KV_KEPT);
    kv->kept_count++;
    return NIB_OK;
}

void nib_kv_drop(struct nib_kv *kv, uint32_t page)
{
    NIB_MUST(page < kv->pages_count && kv->place[page] == NIB_KV_KEPT && kv->kept_count > 0);
    kv->kept_count--;
    push(kv, page);
}

bool nib_kv_check(const struct nib_kv *kv)
{
    uint32_t owned = 0, kept = 0;
    if (kv->free_count > kv->pages_count)
        return false;
    for (uint32_t i = 0; i < kv->free_count; i++)
        if (kv->free[i] >= kv->pages_count || kv->place[kv->free[i]] != NIB_KV_FREE + i)
            return false;
    for (uint32_t slot = 0; slot < kv->slots; slot++) {
        const struct nib_kv_table *table = &kv->tables[slot];
        if (table->pages_count > kv->table_pages)
            return false;
        for (uint32_t i = 0; i < table->pages_count; i++) {
            uint32_t page = table->pages[i];
            if (page >= kv->pages_count)
                return false;
            bool own = kv->place[page] == slot * kv->table_pages + i;
            if (!own && kv->place[page] != NIB_KV_KEPT)
                return false;
            owned += own;
        }
    }
    for (uint32_t page = 0; page < kv->pages_count; page++)
        kept += kv->place[page] == NIB_KV_KEPT;
    /* every page has one place, so no page was counted twice; equal sums leave none out */
    return kept == kv->kept_count && owned + kept + kv->free_count == kv->pages_count;
}
