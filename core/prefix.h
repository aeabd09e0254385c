/* core/prefix.h: pages of prompts that were computed, kept for prompts that begin the same.
 *
 * A node is a full page of a prompt: keys and values of the full-attention layers, found by all tokens up to its end,
 * which are compared one by one. Nodes hang on the node before them, so they form trees, one forest an owner: what one
 * owner computed never serves another. Only prompt rows make nodes: an answer's keys and values come from decode
 * kernels, which round differently, and a sequence must give the same bits warm as cold.
 *
 * Window layers keep no pages but a ring a slot. To begin behind a node, a slot's rings need the last window of it:
 * window pages, copies of the rings at one page's positions, also from the pool, one for a node at most
 * (struct nib_kv_copy). They are made where prompts are likely to part: see core/sched.h.
 *
 * A node that a slot began behind or made is held by it. Nodes that nobody holds, and all window pages, are idle: they
 * stay until the pool runs short, then the one not used for longest goes, always before the node it hangs on. So idle
 * pages are as good as free ones, and nothing is refused because of them.
 *
 * Storage is the caller's. With `on` false all this is nib_kv_take and nib_kv_put. One thread (the stepper). */
#ifndef NIB_CORE_PREFIX_H
#define NIB_CORE_PREFIX_H

#include "core/kv.h"
#include "core/prompt.h"

#define NIB_PREFIX_NONE UINT32_MAX /* no page */

struct nib_prefix_config {
    bool on;
    bool shared;          /* all uids are one owner; else each is its own */
    uint32_t window;      /* tokens a window layer sees: NIB_KV_PAGE_TOKENS x 1..NIB_MAX_WINDOW_PAGES */
    uint32_t begin_token; /* begins a message; an id that no prompt has: none does */
    uint64_t key;         /* of the hash, so that chains cannot be made long on purpose; any number */
};

enum nib_prefix_kind { NIB_PREFIX_OTHER, NIB_PREFIX_NODE, NIB_PREFIX_WINDOW };

/* What a page of the pool is here. */
struct nib_prefix_page {
    uint8_t kind; /* enum nib_prefix_kind; OTHER: free, or a slot's own */
    bool dead;    /* node: forgotten, and held by a slot still */
    uint32_t owner;
    uint32_t hash;
    uint32_t parent;       /* node: the node before it or NONE. Window page: its node */
    uint32_t window;       /* node: its window page or NONE */
    uint32_t holders;      /* node: slots */
    uint32_t next;         /* node: in its bucket */
    uint32_t newer, older; /* idle list */
};

struct nib_prefix {
    struct nib_prefix_config config;
    struct nib_kv *kv;
    uint32_t window_pages;         /* that the first rows behind a node still see */
    uint32_t buckets;              /* power of two */
    uint32_t *bucket;              /* [buckets] first node or NONE */
    struct nib_prefix_page *pages; /* [pages of the pool] */
    uint32_t *tokens;              /* [pages of the pool][NIB_KV_PAGE_TOKENS] */
    uint32_t *path;                /* [slots][table_pages] nodes a slot holds, from the first page of its prompt */
    uint32_t *path_count;          /* [slots] */
    uint32_t *owner;               /* [slots] */
    uint64_t *parts;               /* [slots][part_words] bit i: other prompts leave this one at page i */
    uint32_t part_words;
    uint32_t newest, oldest; /* idle list */
    uint32_t idle_count;
    uint64_t evicted; /* idle pages that had to go */
};

/* Whose prompt, and what of it is known already. */
struct nib_prefix_prompt {
    const struct nib_prompt_pool *pool;
    const struct nib_prompt *prompt; /* of it, what the slot begins behind is passed over, nothing else is read */
    uint32_t uid;
    bool reuse; /* false: begins at position 0, whatever is kept */
};

struct nib_prefix_begin {
    uint32_t pages; /* the slot's table begins with that many nodes: their positions need not be computed */
    uint32_t known; /* pages of the prompt that are kept, >= pages: behind `pages` window pages lack */
    uint32_t windows_count;
    uint32_t windows[NIB_MAX_WINDOW_PAGES]; /* [windows_count] window pages of the last `pages`, in order: to be copied
                                               to the slot's rings before its first rows; good for the step under way */
};

/* Bytes nib_prefix_init takes from the arena, padding included; 0 when off. */
size_t nib_prefix_bytes(const struct nib_engine_dims *dims, const struct nib_prefix_config *config);

/* Pages worth keeping out of slots' hands: the window of each slot's prompt; never so many that the longest sequence would
 * find too few. 0 when off. */
uint32_t nib_prefix_spare(const struct nib_engine_dims *dims, const struct nib_prefix_config *config);

bool nib_prefix_allowed(const struct nib_prefix_config *config);

/* Nothing kept. NIB_E_ARG: the window is no size that is allowed. NIB_E_NOMEM: the arena is too small. */
enum nib_err nib_prefix_init(struct nib_prefix *prefix, struct nib_arena *arena, const struct nib_engine_dims *dims,
                             const struct nib_prefix_config *config, struct nib_kv *kv) NIB_CHECKED;

/* Pages that a slot may take now: free or idle. */
uint32_t nib_prefix_available(const struct nib_prefix *prefix);

/* nib_kv_take for a prompt and its answer, `tokens` together: the longest known beginning first that leaves a token of
 * the prompt to compute, held until nib_prefix_put; then other pages. Errors as nib_kv_take; NIB_E_FULL never when the
 * pages for `tokens` are at most nib_prefix_available. */
enum nib_err nib_prefix_take(struct nib_prefix *prefix, uint32_t slot, uint32_t tokens,
                             const struct nib_prefix_prompt *prompt, struct nib_prefix_begin *ret_begin) NIB_CHECKED;

/* The same once more for a slot that has run no row yet: what became known since is taken instead of its own pages, which
 * become free. ret_begin->pages is then all that it begins behind; no windows when nothing was won. */
void nib_prefix_again(struct nib_prefix *prefix, uint32_t slot, const struct nib_prefix_prompt *prompt,
                      struct nib_prefix_begin *ret_begin);

/* Another prompt will leave the slot's at page `index`: window pages are worth making there. */
void nib_prefix_part(struct nib_prefix *prefix, uint32_t slot, uint32_t index);
bool nib_prefix_parts(const struct nib_prefix *prefix, uint32_t slot, uint32_t index);

/* Tokens of page `index` of the slot's sequence: of a prompt, all run or known. */
const uint32_t *nib_prefix_page_tokens(const struct nib_prefix *prefix, uint32_t slot, uint32_t index);

/* A step has a row with the prompt's token at `pos`, for all from the slot's first on. The last of a page makes a node
 * of it, unless one is there: then the slot holds that one and its own page stays its own. */
void nib_prefix_token(struct nib_prefix *prefix, uint32_t slot, uint32_t pos, uint32_t token);

/* A new window page for page `index` of the slot, to be filled by the step under way. NONE: it has one (used now), or
 * is no node of the slot, or there is no page. */
uint32_t nib_prefix_save(struct nib_prefix *prefix, uint32_t slot, uint32_t index);

/* Gives back the slot's pages; its nodes stay, idle, the first page used last. NIB_E_STATE: it has none. */
enum nib_err nib_prefix_put(struct nib_prefix *prefix, uint32_t slot) NIB_CHECKED;

/* Nothing the uid's owner has computed so far is found again; slots that hold it keep it until they end. O(pages). */
void nib_prefix_forget(struct nib_prefix *prefix, uint32_t uid);

/* Every kept page is free; no slot may hold any. */
void nib_prefix_clear(struct nib_prefix *prefix);

/* True when nodes, holders, chains, idle list and pool agree. O(pages x longest chain). */
bool nib_prefix_check(const struct nib_prefix *prefix);

#endif
