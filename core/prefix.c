/* core/prefix.c: owns the nodes and window pages among the pool's pages, the list of idle ones and what each slot holds.
 * Limits: the pool; NIB_MAX_PREFIX_PROBES nodes looked at for one page. The stepper thread. take fails when pages run
 * short, as nib_kv_take; what cannot be kept is not kept. */
#include "core/prefix.h"

#include <string.h>

#include "core/prefix_impl.h"

#define PREFIX_ALIGN 64u
#define PREFIX_TAKES 7 /* arrays carved, each with at most PREFIX_ALIGN of padding */

static uint32_t buckets_for(uint32_t pages)
{
    uint32_t buckets = 1;
    while (buckets < pages)
        buckets *= 2;
    return buckets;
}

/* Of one slot's bits: one a page, and one behind its last. */
static uint32_t words_for(uint32_t ctx_tokens)
{
    return nib_kv_pages_for(ctx_tokens) / 64 + 1;
}

size_t nib_prefix_bytes(const struct nib_engine_dims *dims, const struct nib_prefix_config *config)
{
    if (!config->on)
        return 0;
    size_t page = sizeof(struct nib_prefix_page) + PAGE * sizeof(uint32_t);
    size_t slot =
        (nib_kv_pages_for(dims->ctx_tokens) + 2) * sizeof(uint32_t) + words_for(dims->ctx_tokens) * sizeof(uint64_t);
    return dims->kv_pages * page + buckets_for(dims->kv_pages) * sizeof(uint32_t) + dims->slots * slot +
           (size_t)PREFIX_TAKES * PREFIX_ALIGN;
}

uint32_t nib_prefix_spare(const struct nib_engine_dims *dims, const struct nib_prefix_config *config)
{
    const uint32_t longest = nib_kv_pages_for(dims->ctx_tokens);
    if (!config->on || dims->kv_pages <= longest)
        return 0;
    const uint32_t wanted = dims->slots * (config->window / PAGE);
    return wanted < dims->kv_pages - longest ? wanted : dims->kv_pages - longest;
}

bool nib_prefix_allowed(const struct nib_prefix_config *config)
{
    return !config->on ||
           (config->window % PAGE == 0 && config->window / PAGE >= 1 && config->window / PAGE <= NIB_MAX_WINDOW_PAGES);
}

enum nib_err nib_prefix_init(struct nib_prefix *p, struct nib_arena *arena, const struct nib_engine_dims *dims,
                             const struct nib_prefix_config *config, struct nib_kv *kv)
{
    if (!nib_prefix_allowed(config))
        return NIB_E_ARG;
    *p = (struct nib_prefix){.config = *config, .kv = kv, .newest = NONE, .oldest = NONE};
    if (!config->on)
        return NIB_OK;
    const uint32_t pages = dims->kv_pages, slots = dims->slots;
    p->window_pages = config->window / PAGE;
    p->buckets = buckets_for(pages);
    p->bucket = nib_arena_take(arena, p->buckets * sizeof *p->bucket, PREFIX_ALIGN);
    p->pages = nib_arena_take(arena, pages * sizeof *p->pages, PREFIX_ALIGN);
    p->tokens = nib_arena_take(arena, (size_t)pages * PAGE * sizeof *p->tokens, PREFIX_ALIGN);
    p->path = nib_arena_take(arena, (size_t)slots * kv->table_pages * sizeof *p->path, PREFIX_ALIGN);
    p->path_count = nib_arena_take(arena, slots * sizeof *p->path_count, PREFIX_ALIGN);
    p->owner = nib_arena_take(arena, slots * sizeof *p->owner, PREFIX_ALIGN);
    p->part_words = words_for(dims->ctx_tokens);
    p->parts = nib_arena_take(arena, (size_t)slots * p->part_words * sizeof *p->parts, PREFIX_ALIGN);
    if (!p->bucket || !p->pages || !p->tokens || !p->path || !p->path_count || !p->owner || !p->parts)
        return NIB_E_NOMEM;
    for (uint32_t i = 0; i < p->buckets; i++)
        p->bucket[i] = NONE;
    memset(p->pages, 0, pages * sizeof *p->pages);
    memset(p->path_count, 0, slots * sizeof *p->path_count);
    memset(p->owner, 0, slots * sizeof *p->owner);
    memset(p->parts, 0, (size_t)slots * p->part_words * sizeof *p->parts);
    return NIB_OK;
}

uint32_t nib_prefix_available(const struct nib_prefix *p)
{
    return p->kv->free_count + p->idle_count;
}

/* ---- the idle list ---- */

static void idle_add(struct nib_prefix *p, uint32_t page)
{
    struct nib_prefix_page *at = &p->pages[page];
    at->newer = NONE;
    at->older = p->newest;
    *(p->newest == NONE ? &p->oldest : &p->pages[p->newest].newer) = page;
    p->newest = page;
    p->idle_count++;
}

static void idle_remove(struct nib_prefix *p, uint32_t page)
{
    const struct nib_prefix_page *at = &p->pages[page];
    *(at->newer == NONE ? &p->newest : &p->pages[at->newer].older) = at->older;
    *(at->older == NONE ? &p->oldest : &p->pages[at->older].newer) = at->newer;
    NIB_MUST(p->idle_count > 0);
    p->idle_count--;
}

static void idle_touch(struct nib_prefix *p, uint32_t page)
{
    idle_remove(p, page);
    idle_add(p, page);
}

/* ---- nodes ---- */

/* The owner's live node of these tokens behind `parent`, or NONE. Bounded: one too far down its chain is not found. */
static uint32_t find(const struct nib_prefix *p, uint32_t parent, uint32_t owner, const uint32_t *tokens)
{
    const uint32_t hash = nib_prefix_hash(p, parent, owner, tokens);
    uint32_t page = p->bucket[hash & (p->buckets - 1)];
    for (uint32_t i = 0; i < NIB_MAX_PREFIX_PROBES && page != NONE; i++) {
        const struct nib_prefix_page *at = &p->pages[page];
        if (at->hash == hash && at->parent == parent && at->owner == owner &&
            memcmp(nib_prefix_tokens(p, page), tokens, PAGE * sizeof *tokens) == 0)
            return page;
        page = at->next;
    }
    return NONE;
}

static void chain(struct nib_prefix *p, uint32_t page)
{
    uint32_t *first = &p->bucket[p->pages[page].hash & (p->buckets - 1)];
    p->pages[page].next = *first;
    *first = page;
}

static void unchain(struct nib_prefix *p, uint32_t page)
{
    uint32_t *link = &p->bucket[p->pages[page].hash & (p->buckets - 1)];
    while (*link != page) {
        NIB_MUST(*link != NONE);
        link = &p->pages[*link].next;
    }
    *link = p->pages[page].next;
}

static void drop(struct nib_prefix *p, uint32_t page)
{
    p->pages[page].kind = NIB_PREFIX_OTHER;
    nib_kv_drop(p->kv, page);
}

static void drop_window(struct nib_prefix *p, uint32_t node)
{
    const uint32_t window = p->pages[node].window;
    if (window == NONE)
        return;
    p->pages[node].window = NONE;
    idle_remove(p, window);
    drop(p, window);
}

/* A live node that nobody holds. */
static void drop_node(struct nib_prefix *p, uint32_t node)
{
    unchain(p, node);
    drop_window(p, node);
    idle_remove(p, node);
    drop(p, node);
}

/* Frees the page that was used least recently. */
static void evict(struct nib_prefix *p)
{
    const uint32_t page = p->oldest;
    NIB_MUST(page != NONE);
    p->evicted++;
    if (p->pages[page].kind == NIB_PREFIX_WINDOW)
        drop_window(p, p->pages[page].parent);
    else
        drop_node(p, page);
}

static void hold(struct nib_prefix *p, uint32_t slot, uint32_t node)
{
    if (p->pages[node].holders++ == 0)
        idle_remove(p, node);
    nib_prefix_path(p, slot)[p->path_count[slot]++] = node;
}

static void release(struct nib_prefix *p, uint32_t node)
{
    struct nib_prefix_page *at = &p->pages[node];
    NIB_MUST(at->kind == NIB_PREFIX_NODE && at->holders > 0);
    if (--at->holders > 0)
        return;
    if (at->dead)
        drop(p, node);
    else
        idle_add(p, node);
}

/* ---- slots ---- */

/* Window pages at the end of what the slot holds, as far as they matter. */
static uint32_t windows_held(const struct nib_prefix *p, uint32_t slot)
{
    uint32_t count = 0;
    for (uint32_t i = p->path_count[slot]; i-- > 0 && count < p->window_pages; count++)
        if (p->pages[nib_prefix_path(p, slot)[i]].window == NONE)
            break;
    return count;
}

/* Lists in the slot's path, behind what it holds, the nodes that the prompt begins with; ret->pages can be begun behind. */
static void match(const struct nib_prefix *p, uint32_t slot, const struct nib_prefix_prompt *prompt,
                  struct nib_prefix_begin *ret)
{
    const uint32_t held = p->path_count[slot], most = held + (prompt->prompt->left - 1) / PAGE;
    uint32_t node = held ? nib_prefix_path(p, slot)[held - 1] : NONE, windows = windows_held(p, slot);
    *ret = (struct nib_prefix_begin){.pages = held, .known = held};
    if (!prompt->reuse)
        return;
    for (uint32_t i = held; i < most; i++) {
        node = find(p, node, p->owner[slot], nib_prompt_page(prompt->pool, prompt->prompt, held * PAGE, i));
        if (node == NONE)
            return;
        nib_prefix_path(p, slot)[i] = node;
        windows = p->pages[node].window == NONE ? 0 : windows + 1;
        ret->known = i + 1;
        if (windows >= p->window_pages || windows == ret->known)
            ret->pages = ret->known;
    }
}

/* The first page whose window page is needed to begin behind `pages` pages. */
static uint32_t first_window(const struct nib_prefix *p, uint32_t pages)
{
    return pages > p->window_pages ? pages - p->window_pages : 0;
}

/* Holds what match has listed and lists the window pages that must be loaded. */
static void hold_begin(struct nib_prefix *p, uint32_t slot, struct nib_prefix_begin *begin)
{
    const uint32_t held = p->path_count[slot];
    if (begin->known > begin->pages)
        nib_prefix_part(p, slot, begin->known);
    if (begin->pages == held)
        return;
    for (uint32_t i = held; i < begin->pages; i++)
        hold(p, slot, nib_prefix_path(p, slot)[i]);
    for (uint32_t i = first_window(p, begin->pages); i < begin->pages; i++) {
        const uint32_t window = p->pages[nib_prefix_path(p, slot)[i]].window;
        idle_touch(p, window);
        begin->windows[begin->windows_count++] = window;
    }
}

enum nib_err nib_prefix_take(struct nib_prefix *p, uint32_t slot, uint32_t tokens,
                             const struct nib_prefix_prompt *prompt, struct nib_prefix_begin *ret_begin)
{
    struct nib_prefix_begin begin = {.pages = 0};
    if (!p->config.on) {
        enum nib_err err = nib_kv_take(p->kv, slot, tokens, NULL, 0);
        if (!err)
            *ret_begin = begin;
        return err;
    }
    if (slot >= p->kv->slots || tokens == 0)
        return NIB_E_ARG;
    const uint32_t want = nib_kv_pages_for(tokens);
    if (want > p->kv->table_pages)
        return NIB_E_LIMIT;
    if (p->kv->tables[slot].pages_count != 0)
        return NIB_E_STATE;
    if (want > nib_prefix_available(p))
        return NIB_E_FULL;
    NIB_MUST(p->path_count[slot] == 0);
    p->owner[slot] = p->config.shared ? 0 : prompt->uid;
    memset(p->parts + (size_t)slot * p->part_words, 0, p->part_words * sizeof *p->parts);
    match(p, slot, prompt, &begin);
    NIB_MUST(begin.known <= want);
    hold_begin(p, slot, &begin);
    while (p->kv->free_count < want - begin.pages)
        evict(p);
    enum nib_err err = nib_kv_take(p->kv, slot, tokens, nib_prefix_path(p, slot), begin.pages);
    NIB_MUST(err == NIB_OK);
    *ret_begin = begin;
    return NIB_OK;
}

void nib_prefix_again(struct nib_prefix *p, uint32_t slot, const struct nib_prefix_prompt *prompt,
                      struct nib_prefix_begin *ret_begin)
{
    *ret_begin = (struct nib_prefix_begin){.pages = 0};
    if (!p->config.on)
        return;
    const uint32_t held = p->path_count[slot];
    match(p, slot, prompt, ret_begin);
    hold_begin(p, slot, ret_begin);
    for (uint32_t i = held; i < ret_begin->pages; i++)
        nib_kv_share(p->kv, slot, i, nib_prefix_path(p, slot)[i]);
}

void nib_prefix_part(struct nib_prefix *p, uint32_t slot, uint32_t index)
{
    NIB_MUST(index < p->part_words * 64);
    p->parts[(size_t)slot * p->part_words + index / 64] |= 1uLL << index % 64;
}

bool nib_prefix_parts(const struct nib_prefix *p, uint32_t slot, uint32_t index)
{
    return p->parts[(size_t)slot * p->part_words + index / 64] >> index % 64 & 1;
}

const uint32_t *nib_prefix_page_tokens(const struct nib_prefix *p, uint32_t slot, uint32_t index)
{
    return nib_prefix_tokens(p, p->kv->tables[slot].pages[index]);
}

/* The slot's next page holds prompt tokens only and is complete. */
static void add_node(struct nib_prefix *p, uint32_t slot)
{
    const uint32_t index = p->path_count[slot];
    const uint32_t parent = index ? nib_prefix_path(p, slot)[index - 1] : NONE;
    if (parent != NONE && p->pages[parent].dead)
        return;
    const uint32_t own = p->kv->tables[slot].pages[index];
    uint32_t node = find(p, parent, p->owner[slot], nib_prefix_tokens(p, own));
    if (node == NONE) {
        node = nib_kv_keep(p->kv, slot, index);
        p->pages[node] =
            (struct nib_prefix_page){.kind = NIB_PREFIX_NODE,
                                     .owner = p->owner[slot],
                                     .hash = nib_prefix_hash(p, parent, p->owner[slot], nib_prefix_tokens(p, own)),
                                     .parent = parent,
                                     .window = NONE};
        chain(p, node);
        idle_add(p, node); /* until held, now */
    }
    hold(p, slot, node);
}

void nib_prefix_token(struct nib_prefix *p, uint32_t slot, uint32_t pos, uint32_t token)
{
    if (!p->config.on)
        return;
    nib_prefix_tokens(p, p->kv->tables[slot].pages[pos / PAGE])[pos % PAGE] = token;
    if (pos % PAGE == PAGE - 1 && pos / PAGE == p->path_count[slot])
        add_node(p, slot);
}

uint32_t nib_prefix_save(struct nib_prefix *p, uint32_t slot, uint32_t index)
{
    if (!p->config.on || index >= p->path_count[slot])
        return NONE;
    const uint32_t node = nib_prefix_path(p, slot)[index];
    uint32_t window = p->pages[node].window;
    if (window != NONE)
        idle_touch(p, window);
    if (window != NONE || p->pages[node].dead || nib_prefix_available(p) == 0)
        return NONE;
    if (p->kv->free_count == 0)
        evict(p);
    enum nib_err err = nib_kv_keep_free(p->kv, &window);
    NIB_MUST(err == NIB_OK);
    p->pages[window] = (struct nib_prefix_page){.kind = NIB_PREFIX_WINDOW, .parent = node, .window = NONE};
    p->pages[node].window = window;
    idle_add(p, window);
    return window;
}

enum nib_err nib_prefix_put(struct nib_prefix *p, uint32_t slot)
{
    enum nib_err err = nib_kv_put(p->kv, slot);
    if (err || !p->config.on)
        return err;
    const uint32_t count = p->path_count[slot];
    for (uint32_t i = count; i-- > 0;)
        release(p, nib_prefix_path(p, slot)[i]);
    for (uint32_t i = first_window(p, count); i < count; i++) {
        const struct nib_prefix_page *node = &p->pages[nib_prefix_path(p, slot)[i]];
        if (node->kind == NIB_PREFIX_NODE && node->window != NONE)
            idle_touch(p, node->window);
    }
    p->path_count[slot] = 0;
    return NIB_OK;
}

void nib_prefix_forget(struct nib_prefix *p, uint32_t uid)
{
    const uint32_t owner = p->config.shared ? 0 : uid;
    if (!p->config.on)
        return;
    for (uint32_t page = 0; page < p->kv->pages_count; page++) {
        struct nib_prefix_page *at = &p->pages[page];
        if (at->kind != NIB_PREFIX_NODE || at->owner != owner || at->dead)
            continue;
        if (at->holders == 0) {
            drop_node(p, page);
            continue;
        }
        unchain(p, page);
        drop_window(p, page);
        at->dead = true;
    }
}

void nib_prefix_clear(struct nib_prefix *p)
{
    if (!p->config.on)
        return;
    while (p->oldest != NONE)
        evict(p);
    NIB_MUST(p->kv->kept_count == 0);
}
