/* core/sched_stats.c: reads the scheduler: counters, and whether all that is counted twice agrees.
 * Changes nothing, cannot fail. The stepper thread. */
#include "core/sched.h"
#include "core/sched_impl.h"

void nib_sched_stats(const struct nib_sched *sched, struct nib_sched_stats *ret_stats)
{
    struct nib_sched_stats stats = sched->stats;
    for (uint32_t i = 0; i < sched->entries_count; i++)
        stats.queued += sched->entries[i].state == ENTRY_QUEUED;
    for (uint32_t i = 0; i < sched->config.dims.slots; i++) {
        stats.running += sched->slots[i].state == SLOT_RUNNING;
        stats.closing += sched->slots[i].state == SLOT_CLOSING;
    }
    stats.admitted = sched->admissions;
    stats.pages_count = sched->kv.pages_count;
    stats.pages_used = sched->kv.pages_count - nib_prefix_available(&sched->prefix);
    stats.pages_idle = sched->prefix.idle_count;
    stats.pages_evicted = sched->prefix.evicted;
    stats.prompt_tokens_held = (sched->prompts.chunks_count - sched->prompts.free_count) * NIB_PROMPT_CHUNK_TOKENS;
    stats.steps_in_flight = sched->flights_count;
    *ret_stats = stats;
}

static bool ledger_agrees(const struct nib_sched *sched)
{
    struct nib_sched_stats s;
    nib_sched_stats(sched, &s);
    return s.submitted == s.finished + s.refused + s.cancelled + s.failed + s.queued + s.running &&
           s.expired <= s.cancelled && s.queued <= sched->config.queue_max &&
           s.queued + s.running + sched->free_count == sched->entries_count;
}

static bool slot_agrees(const struct nib_sched *sched, uint32_t at)
{
    const struct sched_slot *slot = &sched->slots[at];
    uint32_t refs = 0;
    for (uint32_t f = 0; f < sched->flights_count; f++)
        for (uint32_t i = 0; i < sched->flights[f].count; i++)
            refs += sched->flights[f].slot[i] == at;
    if (slot->refs != refs)
        return false;
    uint32_t pages = sched->kv.tables[at].pages_count;
    if (slot->state == SLOT_IDLE)
        return pages == 0 && refs == 0;
    if (slot->state == SLOT_CLOSING)
        return pages != 0 && refs != 0;
    if (slot->entry >= sched->entries_count)
        return false;
    const struct sched_entry *entry = &sched->entries[slot->entry];
    return entry->state == ENTRY_RUNNING && entry->slot == at &&
           pages == nib_kv_pages_for(entry->prompt_tokens + entry->answer_tokens_max) &&
           entry->answer_tokens <= slot->begun && slot->begun <= entry->answer_tokens_max;
}

bool nib_sched_check(const struct nib_sched *sched)
{
    if (!ledger_agrees(sched) || !nib_kv_check(&sched->kv) || !nib_prefix_check(&sched->prefix))
        return false;
    for (uint32_t at = 0; at < sched->config.dims.slots; at++)
        if (!slot_agrees(sched, at))
            return false;
    uint32_t chunks = sched->prompts.free_count;
    for (uint32_t i = 0; i < sched->entries_count; i++)
        if (sched->entries[i].state != ENTRY_FREE)
            chunks += nib_prompt_chunks(&sched->entries[i].prompt);
    return chunks == sched->prompts.chunks_count;
}

const struct nib_kv *nib_sched_kv(const struct nib_sched *sched)
{
    return &sched->kv;
}

const struct nib_prefix *nib_sched_prefix(const struct nib_sched *sched)
{
    return &sched->prefix;
}

const char *nib_finish_name(enum nib_finish finish)
{
    static const char *const names[NIB_FINISH_COUNT] = {"none", "stop", "length", "cancelled", "deadline", "failed"};
    return (unsigned)finish < NIB_FINISH_COUNT ? names[finish] : "none";
}
