/* core/prefix_check.c: whether all that core/prefix.c counts twice agrees. Changes nothing, cannot fail. The stepper
 * thread; slow: for tests. */
#include "core/prefix_impl.h"

static bool chained(const struct nib_prefix *p, uint32_t node)
{
    uint32_t page = p->bucket[p->pages[node].hash & (p->buckets - 1)];
    for (uint32_t i = 0; page != NONE && i <= p->kv->pages_count; i++, page = p->pages[page].next)
        if (page == node)
            return true;
    return false;
}

/* A node's own facts, and that the node it hangs on is held where it is. */
static bool node_agrees(const struct nib_prefix *p, uint32_t page)
{
    const struct nib_prefix_page *at = &p->pages[page];
    uint32_t holders = 0;
    for (uint32_t slot = 0; slot < p->kv->slots; slot++)
        for (uint32_t i = 0; i < p->path_count[slot]; i++)
            holders += nib_prefix_path(p, slot)[i] == page;
    if (holders != at->holders || chained(p, page) == at->dead || (at->dead && holders == 0) ||
        at->hash != nib_prefix_hash(p, at->parent, at->owner, nib_prefix_tokens(p, page)))
        return false;
    if (at->window != NONE && (at->dead || at->window >= p->kv->pages_count ||
                               p->pages[at->window].kind != NIB_PREFIX_WINDOW || p->pages[at->window].parent != page))
        return false;
    if (at->dead || at->parent == NONE)
        return true;
    const struct nib_prefix_page *parent = at->parent < p->kv->pages_count ? &p->pages[at->parent] : NULL;
    return parent && parent->kind == NIB_PREFIX_NODE && !parent->dead && parent->owner == at->owner &&
           parent->holders >= at->holders;
}

/* Idle are the window pages and the nodes nobody holds, each once; nodes before the nodes they hang on. */
static bool idle_agrees(const struct nib_prefix *p)
{
    uint32_t count = 0, wanted = 0, newer = NONE;
    for (uint32_t page = 0; page < p->kv->pages_count; page++) {
        const struct nib_prefix_page *at = &p->pages[page];
        wanted += at->kind == NIB_PREFIX_WINDOW || (at->kind == NIB_PREFIX_NODE && at->holders == 0);
    }
    for (uint32_t page = p->newest; page != NONE; newer = page, page = p->pages[page].older) {
        const struct nib_prefix_page *at = &p->pages[page];
        if (++count > p->kv->pages_count || at->newer != newer || at->kind == NIB_PREFIX_OTHER)
            return false;
        if (at->kind == NIB_PREFIX_WINDOW ? p->pages[at->parent].window != page : at->holders != 0)
            return false;
        if (at->kind == NIB_PREFIX_WINDOW)
            continue;
        for (uint32_t other = at->older; other != NONE; other = p->pages[other].older)
            if (other == at->parent)
                return false;
    }
    return newer == p->oldest && count == p->idle_count && count == wanted;
}

bool nib_prefix_check(const struct nib_prefix *p)
{
    if (!p->config.on)
        return p->kv->kept_count == 0;
    for (uint32_t page = 0; page < p->kv->pages_count; page++) {
        const bool kept = p->kv->place[page] == NIB_KV_KEPT;
        if (kept != (p->pages[page].kind != NIB_PREFIX_OTHER))
            return false;
        if (p->pages[page].kind == NIB_PREFIX_NODE && !node_agrees(p, page))
            return false;
    }
    for (uint32_t slot = 0; slot < p->kv->slots; slot++)
        if (p->path_count[slot] > p->kv->tables[slot].pages_count)
            return false;
    return idle_agrees(p);
}
