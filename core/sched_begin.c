/* core/sched_begin.c: owns where a prompt begins: behind which pages, when, and what later prompts will need of it.
 * Limits: the loads and saves of a step; what finds no room there is computed. The stepper thread. Cannot fail. */
#include <string.h>

#include "core/arith.h"
#include "core/sched.h"
#include "core/sched_impl.h"

#define PAGE NIB_KV_PAGE_TOKENS

/* The engine counts prompt tokens for a repetition penalty: it must see all of them. */
static struct nib_prefix_prompt prompt_of(const struct nib_sched *sched, uint32_t at)
{
    const struct sched_entry *entry = &sched->entries[sched->slots[at].entry];
    return (struct nib_prefix_prompt){.pool = &sched->prompts,
                                      .prompt = &entry->prompt,
                                      .uid = entry->uid,
                                      .reuse = sched->sampling[at].repetition_penalty == 1.0f};
}

/* The slot's first row moves behind begin->pages. */
static void begin_behind(struct nib_sched *sched, uint32_t at, const struct nib_prefix_begin *begin,
                         struct nib_step *step)
{
    struct sched_slot *slot = &sched->slots[at];
    struct sched_entry *entry = &sched->entries[slot->entry];
    const uint32_t more = begin->pages * PAGE - slot->first_pos;
    NIB_MUST(step->loads_count + begin->windows_count <= NIB_MAX_KV_LOADS);
    for (uint32_t i = 0; i < begin->windows_count; i++)
        step->loads[step->loads_count++] = (struct nib_kv_copy){
            .page = begin->windows[i], .index = begin->pages - begin->windows_count + i, .slot = (uint16_t)at};
    nib_prompt_skip(&sched->prompts, &entry->prompt, more);
    sched->stats.tokens_reused += more;
    slot->next_pos = slot->first_pos = entry->reused_tokens = begin->pages * PAGE;
}

void nib_sched_take(struct nib_sched *sched, uint32_t at, struct nib_step *step)
{
    const struct sched_entry *entry = &sched->entries[sched->slots[at].entry];
    const struct nib_prefix_prompt prompt = prompt_of(sched, at);
    struct nib_prefix_begin begin;
    enum nib_err err =
        nib_prefix_take(&sched->prefix, at, entry->prompt_tokens + entry->answer_tokens_max, &prompt, &begin);
    NIB_MUST(err == NIB_OK);
    begin_behind(sched, at, &begin, step);
}

/* No row was run, and none is in this step. */
static bool fresh(const struct sched_slot *slot)
{
    return slot->state == SLOT_RUNNING && slot->begun == 0 && slot->next_pos == slot->first_pos;
}

/* Tokens of a page of the slot's prompt, run or not. */
static const uint32_t *page_tokens(const struct nib_sched *sched, uint32_t at, uint32_t page)
{
    const struct sched_slot *slot = &sched->slots[at];
    if ((page + 1) * PAGE <= slot->next_pos)
        return nib_prefix_page_tokens(&sched->prefix, at, page);
    return nib_prompt_page(&sched->prompts, &sched->entries[slot->entry].prompt, slot->next_pos, page);
}

/* Goes on comparing the slot's prompt with the oldest one's, as far as that one may come in this step and the next. Where
 * they part, the oldest's window pages are worth keeping. */
static void compare(struct nib_sched *sched, uint32_t at, uint32_t oldest)
{
    struct sched_slot *slot = &sched->slots[at], *old = &sched->slots[oldest];
    const uint32_t most =
        (uint32_t)nib_min_u64(sched->entries[old->entry].prompt_tokens, sched->entries[slot->entry].prompt_tokens - 1) /
        PAGE;
    const uint32_t ahead = (old->next_pos + 2 * sched->config.dims.step_rows_max) / PAGE + 1;
    if (slot->same_as != old->admitted) {
        slot->same_as = old->admitted;
        slot->same_pages = 0;
        slot->same_ends = false;
    }
    while (!slot->same_ends && slot->same_pages < ahead) {
        const uint32_t page = slot->same_pages;
        if (page < most &&
            memcmp(page_tokens(sched, at, page), page_tokens(sched, oldest, page), PAGE * sizeof(uint32_t)) == 0) {
            slot->same_pages++;
            continue;
        }
        slot->same_ends = true;
        nib_prefix_part(&sched->prefix, oldest, page);
    }
}

void nib_sched_wait(struct nib_sched *sched, uint32_t oldest)
{
    if (!sched->config.prefix.on || oldest == SCHED_NONE)
        return;
    const struct sched_slot *old = &sched->slots[oldest];
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        struct sched_slot *slot = &sched->slots[at];
        if (at == oldest || !fresh(slot) || !prompt_of(sched, at).reuse ||
            (!sched->config.prefix.shared && sched->entries[slot->entry].uid != sched->entries[old->entry].uid))
            continue;
        compare(sched, at, oldest);
        const uint32_t same = slot->same_pages * PAGE;
        slot->waits =
            same >= old->next_pos && same > slot->next_pos; /* the row at `same` saves the windows before it */
    }
}

bool nib_sched_begin(struct nib_sched *sched, uint32_t at, bool oldest, struct nib_step *step)
{
    struct sched_slot *slot = &sched->slots[at];
    if (!sched->config.prefix.on || !fresh(slot))
        return true;
    if (step->loads_count + NIB_MAX_WINDOW_PAGES > NIB_MAX_KV_LOADS) {
        slot->waits = !oldest;
        return oldest;
    }
    const struct nib_prefix_prompt prompt = prompt_of(sched, at);
    struct nib_prefix_begin begin;
    nib_prefix_again(&sched->prefix, at, &prompt, &begin);
    begin_behind(sched, at, &begin, step);
    return true;
}

/* Window pages of the pages before `page` are filled after this step, as far as the slot's nodes lack them. */
static void save_windows(struct nib_sched *sched, uint32_t at, uint32_t page, struct nib_step *step)
{
    const uint32_t window = sched->prefix.window_pages;
    for (uint32_t index = page > window ? page - window : 0; index < page; index++) {
        if (step->saves_count == NIB_MAX_KV_SAVES)
            return; /* a later prompt computes a little more */
        uint32_t kept = nib_prefix_save(&sched->prefix, at, index);
        if (kept != NIB_PREFIX_NONE)
            step->saves[step->saves_count++] = (struct nib_kv_copy){.page = kept, .index = index, .slot = (uint16_t)at};
    }
}

void nib_sched_note(struct nib_sched *sched, const struct nib_row *row, bool last, struct nib_step *step)
{
    const uint32_t page = row->pos / PAGE;
    nib_prefix_token(&sched->prefix, row->slot, row->pos, row->token);
    if (last || row->token == sched->config.prefix.begin_token ||
        (row->pos % PAGE == 0 && nib_prefix_parts(&sched->prefix, row->slot, page)))
        save_windows(sched, row->slot, page, step);
}
