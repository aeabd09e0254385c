/* core/sched_draft.c: owns when steps verify guessed tokens, and what becomes of them.
 * Limits: draft_tokens of a sequence, want_rows_max of a step. The stepper thread. Cannot fail. */
#include "core/arith.h"
#include "core/sched.h"
#include "core/sched_impl.h"

static bool drafts(const struct nib_sched *sched, uint32_t at)
{
    return sched->config.draft_tokens != 0 && !nib_sampling_penalises(&sched->sampling[at]);
}

void nib_sched_draft_begin(struct nib_sched *sched, uint32_t at)
{
    if (drafts(sched, at))
        nib_lookup_begin(&sched->lookup, at, &sched->prompts, &sched->entries[sched->slots[at].entry].prompt);
}

void nib_sched_draft_token(struct nib_sched *sched, uint32_t at, uint32_t token)
{
    if (!drafts(sched, at))
        return;
    const struct nib_lookup_test test = nib_lookup_take(&sched->lookup, at, token);
    if (test.match != 0)
        nib_draft_learn(&sched->slots[at].trust, test.match, test.hit);
}

/* What the slot asks for in asks[0..*ret_count), if it has a guess. */
static void ask(const struct nib_sched *sched, uint32_t at, uint32_t left, struct nib_draft_ask *asks,
                uint32_t *ret_count)
{
    const uint32_t match = drafts(sched, at) ? nib_lookup_match(&sched->lookup, at) : 0;
    if (match != 0)
        asks[(*ret_count)++] =
            (struct nib_draft_ask){.slot = at,
                                   .trust = &sched->slots[at].trust,
                                   .match = match,
                                   .most = (uint32_t)nib_min_u64(left - 1, sched->config.draft_tokens)};
}

bool nib_sched_draft_plan(struct nib_sched *sched)
{
    const struct nib_engine_dims *dims = &sched->config.dims;
    struct nib_draft_ask asks[NIB_MAX_SLOTS];
    uint32_t count = 0, rows = 0;
    for (uint32_t at = 0; at < dims->slots; at++)
        sched->slots[at].draft_tokens = 0;
    for (uint32_t at = 0; at < dims->slots && sched->config.draft_tokens != 0; at++) {
        const struct sched_slot *slot = &sched->slots[at];
        if (slot->state != SLOT_RUNNING)
            continue;
        const struct sched_entry *entry = &sched->entries[slot->entry];
        if (entry->prompt.left != 0)
            return false;
        if (slot->begun == entry->answer_tokens_max)
            continue;
        rows++;
        ask(sched, at, entry->answer_tokens_max - slot->begun, asks, &count);
    }
    const uint32_t most = (uint32_t)nib_min_u64(nib_want_rows_max(dims), dims->step_rows_max);
    if (count == 0 || nib_draft_share(&sched->cost, asks, count, rows, most - rows) == 0)
        return false;
    for (uint32_t i = 0; i < count && sched->flights_count == 0; i++) {
        struct sched_slot *slot = &sched->slots[asks[i].slot];
        slot->draft_tokens = asks[i].take;
        nib_lookup_guess(&sched->lookup, asks[i].slot, asks[i].take, slot->draft);
    }
    return true;
}

uint32_t nib_sched_draft_kept(const struct nib_sched *sched, uint32_t at, const struct nib_sampled *sampled,
                              uint32_t wanted)
{
    const struct sched_slot *slot = &sched->slots[at];
    uint32_t kept = 1;
    while (kept < wanted && !sampled[kept - 1].failed && sampled[kept - 1].token == slot->draft[kept - 1])
        kept++;
    return kept;
}

void nib_sched_draft_back(struct nib_sched *sched, uint32_t at, uint32_t wrong)
{
    sched->slots[at].begun -= wrong;
    sched->slots[at].next_pos -= wrong;
}
