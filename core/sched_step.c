/* core/sched_step.c: turns running requests into steps and results into events.
 * Limits: step_rows_max, prefill_rows_max, gap_percent, steps_ahead. The stepper thread. Fails only on misuse:
 * too many steps in flight, or a result that is not the oldest step's. */
#include <string.h>

#include "core/arith.h"
#include "core/sched.h"
#include "core/sched_impl.h"

/* Ends what was cancelled or is late. */
static void sweep(struct nib_sched *sched, uint64_t now_ms, struct sched_events *events)
{
    for (uint32_t i = 0; i < sched->entries_count; i++) {
        const struct sched_entry *entry = &sched->entries[i];
        if (entry->state == ENTRY_FREE)
            continue;
        if (entry->cancel)
            nib_sched_end(sched, i, NIB_FINISH_CANCELLED, NULL, now_ms, events);
        else if (entry->deadline_ms != 0 && now_ms >= entry->deadline_ms)
            nib_sched_end(sched, i, NIB_FINISH_DEADLINE, NULL, now_ms, events);
    }
}

static struct nib_prompt *prompt_of(struct nib_sched *sched, uint32_t slot)
{
    return &sched->entries[sched->slots[slot].entry].prompt;
}

/* Writes `count` rows of one slot, its prompt's or its last token's and a draft's, and notes them in the flight. */
static void put_rows(struct nib_sched *sched, uint32_t at, uint32_t count, uint16_t flags, struct nib_step *step,
                     struct sched_flight *flight)
{
    struct sched_slot *slot = &sched->slots[at];
    struct nib_prompt *prompt = prompt_of(sched, at);
    bool decode = flags & NIB_ROW_DECODE;
    for (uint32_t i = 0; i < count; i++) {
        struct nib_row *row = &step->rows[step->rows_count++];
        row->token = !decode  ? nib_prompt_read(&sched->prompts, prompt)
                     : i == 0 ? slot->last_token
                              : slot->draft[i - 1];
        row->pos = slot->next_pos++;
        row->slot = (uint16_t)at;
        row->flags = flags;
        if (row->pos == slot->first_pos)
            row->flags |= NIB_ROW_FIRST;
        if (!decode && sched->config.prefix.on)
            nib_sched_note(sched, row, prompt->left == 0, step);
    }
    const uint32_t wanted = decode ? count : prompt->left == 0;
    for (uint32_t i = 0; i < wanted; i++)
        step->rows[step->rows_count - 1 - i].flags |= NIB_ROW_LOGITS;
    slot->begun += wanted;
    slot->refs++;
    flight->slot[flight->count] = (uint16_t)at;
    flight->wanted[flight->count++] = (uint16_t)wanted;
    *(decode ? &sched->stats.rows_decode : &sched->stats.rows_prompt) += count;
}

/* One row, and its draft, of each slot whose prompt is fed and whose answer may still grow. */
static void put_decode_rows(struct nib_sched *sched, struct nib_step *step, struct sched_flight *flight)
{
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        const struct sched_slot *slot = &sched->slots[at];
        if (slot->state != SLOT_RUNNING || slot->begun == 0)
            continue;
        const struct sched_entry *entry = &sched->entries[slot->entry];
        if (slot->begun == entry->answer_tokens_max)
            continue;
        bool known = slot->begun == entry->answer_tokens;
        put_rows(sched, at, 1 + slot->draft_tokens, known ? NIB_ROW_DECODE : NIB_ROW_DECODE | NIB_ROW_FEEDBACK, step,
                 flight);
        sched->stats.tokens_drafted += slot->draft_tokens;
        flight->drafts |= slot->draft_tokens != 0;
    }
}

/* The prefilling slot with the least left beyond take[], or with `oldest` the one admitted first;
 * ties to the one admitted first. None that waits. */
static uint32_t pick_prefill(struct nib_sched *sched, const uint32_t *take, bool oldest)
{
    uint32_t best = SCHED_NONE, best_left = 0;
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        const struct sched_slot *slot = &sched->slots[at];
        if (slot->state != SLOT_RUNNING || slot->waits)
            continue;
        uint32_t left = prompt_of(sched, at)->left - take[at];
        if (left == 0)
            continue;
        bool earlier = best == SCHED_NONE || slot->admitted < sched->slots[best].admitted;
        if (best == SCHED_NONE || (oldest && earlier) || (!oldest && left < best_left) ||
            (!oldest && left == best_left && earlier)) {
            best = at;
            best_left = left;
        }
    }
    return best;
}

/* Prompt rows of a step, and how many of them the oldest prompt has before others have any. */
struct deal {
    uint32_t rows, oldest;
};

static struct deal half_to_oldest(uint32_t rows)
{
    return (struct deal){.rows = rows, .oldest = (rows + 1) / 2};
}

/* A prompt is short when half a step finishes it. */
static uint32_t short_max(const struct nib_sched *sched)
{
    return (uint32_t)nib_min_u64(sched->config.prefill_rows_max, (sched->config.dims.step_rows_max + 1) / 2);
}

/* What core/pace.h is asked. Ret: rows that all short prompts need which do not wait. */
static uint64_t count_prompts(struct nib_sched *sched, struct nib_pace_ask *ask)
{
    uint64_t rows = 0;
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        const uint32_t left = sched->slots[at].state == SLOT_RUNNING ? prompt_of(sched, at)->left : 0;
        ask->prompts += left != 0;
        if (left <= short_max(sched) && !sched->slots[at].waits)
            rows += left;
    }
    return rows;
}

/* The prompt rows of this step, after its decode rows. A long prompt gives way to those that are finished, but for an eighth. */
static struct deal prefill_room(struct nib_sched *sched, uint32_t decode_rows, uint32_t oldest)
{
    const struct nib_sched_config *config = &sched->config;
    const uint32_t room = config->dims.step_rows_max - decode_rows;
    if (decode_rows == 0)
        return half_to_oldest(room);
    struct nib_pace_ask ask = {
        .decode_rows = decode_rows, .fit_max = (uint32_t)nib_min_u64(room, config->prefill_rows_max), .turn_max = room};
    const uint64_t finish = count_prompts(sched, &ask);
    if (config->gap_percent == 0 || ask.prompts == 0 || ask.prompts > decode_rows || room == 0)
        return half_to_oldest(ask.fit_max);
    const bool gives_way = finish != 0 && prompt_of(sched, oldest)->left > short_max(sched);
    ask.finish_rows = (uint32_t)nib_min_u64(ask.fit_max, gives_way ? finish + finish / 7 + 1 : finish);
    const uint32_t rows = nib_pace_rows(&sched->pace, &ask);
    if (!gives_way || sched->pace.turn)
        return half_to_oldest(rows);
    const uint32_t eighth = (rows + 7) / 8, over = rows > finish ? rows - (uint32_t)finish : 0;
    return (struct deal){.rows = rows, .oldest = over > eighth ? over : eighth};
}

static void put_prefill_rows(struct nib_sched *sched, struct nib_step *step, struct sched_flight *flight)
{
    const struct nib_sched_config *config = &sched->config;
    flight->decode_rows = step->rows_count;
    uint32_t take[NIB_MAX_SLOTS] = {0};
    for (uint32_t at = 0; at < config->dims.slots; at++)
        sched->slots[at].waits = false;
    const uint32_t first = pick_prefill(sched, take, true);
    nib_sched_wait(sched, first);
    const struct deal deal = prefill_room(sched, step->rows_count, first);
    uint32_t room = deal.rows;
    for (bool oldest = true; room > 0; oldest = false) {
        uint32_t at = pick_prefill(sched, take, oldest);
        if (at == SCHED_NONE)
            break;
        if (!nib_sched_begin(sched, at, oldest, step))
            continue;
        uint32_t left = prompt_of(sched, at)->left - take[at];
        uint32_t give = (uint32_t)nib_min_u64(left, oldest ? deal.oldest : room);
        take[at] += give;
        room -= give;
    }
    for (uint32_t at = 0; at < config->dims.slots; at++)
        if (take[at] != 0)
            put_rows(sched, at, take[at], 0, step, flight);
    flight->prompt_rows = step->rows_count - flight->decode_rows;
    if (config->gap_percent != 0)
        flight->turn = nib_pace_begun(&sched->pace, flight->decode_rows, flight->prompt_rows);
}

enum nib_err nib_sched_next_step(struct nib_sched *sched, uint64_t now_ms, struct nib_step *ret_step,
                                 struct nib_sched_event *ret_events, uint32_t *ret_events_count)
{
    if (sched->flights_count == sched->config.dims.steps_ahead)
        return NIB_E_STATE;
    struct sched_events events = {.list = ret_events, .count = 0};
    sweep(sched, now_ms, &events);
    ret_step->serial = 0;
    ret_step->rows_count = ret_step->loads_count = ret_step->saves_count = 0;
    *ret_events_count = events.count;
    if (sched->flights_count != 0 && sched->flights[sched->flights_count - 1].drafts)
        return NIB_OK;
    nib_sched_admit(sched, now_ms, ret_step);
    if (nib_sched_draft_plan(sched) && sched->flights_count != 0)
        return NIB_OK; /* nothing was admitted, as no prompt is to be fed */
    ret_step->tables = sched->kv.tables;
    ret_step->sampling = sched->sampling;
    ret_step->logits = NULL;
    struct sched_flight *flight = &sched->flights[sched->flights_count];
    flight->count = 0;
    flight->drafts = false;
    put_decode_rows(sched, ret_step, flight);
    put_prefill_rows(sched, ret_step, flight);
    if (ret_step->rows_count != 0) {
        ret_step->serial = flight->serial = ++sched->serial;
        sched->flights_count++;
    }
    return NIB_OK;
}

enum nib_err nib_sched_took(struct nib_sched *sched, uint64_t step_us)
{
    if (sched->flights_count == 0)
        return NIB_E_STATE;
    const struct sched_flight *flight = &sched->flights[0];
    if (sched->config.gap_percent != 0)
        nib_pace_took(&sched->pace, &(struct nib_pace_step){.decode_rows = flight->decode_rows,
                                                            .prompt_rows = flight->prompt_rows,
                                                            .turn = flight->turn,
                                                            .us = step_us});
    if (sched->config.draft_tokens != 0 && flight->decode_rows != 0 && flight->prompt_rows == 0)
        nib_draft_took(&sched->cost, flight->decode_rows, step_us);
    return NIB_OK;
}

static bool result_matches(const struct nib_sched *sched, const struct sched_flight *flight,
                           const struct nib_step_out *out)
{
    uint32_t count = 0;
    if (out->serial != flight->serial || out->count > NIB_MAX_SLOTS)
        return false;
    for (uint32_t i = 0; i < flight->count; i++) {
        if (flight->wanted[i] > out->count - count)
            return false;
        for (uint32_t end = count + flight->wanted[i]; count < end; count++) {
            const struct nib_sampled *sampled = &out->sampled[count];
            if (sampled->slot != flight->slot[i] || (!sampled->failed && sampled->token >= sched->config.vocab))
                return false;
        }
    }
    return count == out->count;
}

static enum nib_finish finish_of(const struct sched_entry *entry, uint32_t token)
{
    for (uint32_t i = 0; i < entry->stop_count; i++)
        if (entry->stop[i] == token)
            return NIB_FINISH_STOP;
    return entry->answer_tokens == entry->answer_tokens_max ? NIB_FINISH_LENGTH : NIB_FINISH_NONE;
}

/* Gives a sampled token to the slot's request, if it has not ended. */
static void take_token(struct nib_sched *sched, uint32_t at, const struct nib_sampled *sampled, uint64_t now_ms,
                       struct sched_events *events)
{
    struct sched_slot *slot = &sched->slots[at];
    if (slot->state == SLOT_CLOSING) {
        sched->stats.tokens_dropped++;
        return;
    }
    NIB_MUST(slot->state == SLOT_RUNNING);
    if (sampled->failed) {
        nib_sched_end(sched, slot->entry, NIB_FINISH_FAILED, NULL, now_ms, events);
        return;
    }
    struct sched_entry *entry = &sched->entries[slot->entry];
    slot->last_token = sampled->token;
    entry->answer_tokens++;
    sched->stats.tokens++;
    NIB_MUST(entry->answer_tokens <= slot->begun);
    enum nib_finish finish = finish_of(entry, sampled->token);
    if (finish != NIB_FINISH_NONE) {
        nib_sched_end(sched, slot->entry, finish, sampled, now_ms, events);
        return;
    }
    nib_sched_draft_token(sched, at, sampled->token);
    NIB_MUST(events->count < nib_sched_events_max(sched));
    events->list[events->count++] = (struct nib_sched_event){
        .handle = {.index = slot->entry, .generation = entry->generation},
        .tag = entry->tag,
        .finish = NIB_FINISH_NONE,
        .sampled = sampled,
        .answer_tokens = entry->answer_tokens,
        .reused_tokens = entry->reused_tokens,
    };
}

/* Gives a slot's tokens to its request, a draft's as far as they were guessed right and the request goes on. */
static void take_tokens(struct nib_sched *sched, uint32_t at, const struct nib_sampled *sampled, uint32_t wanted,
                        uint64_t now_ms, struct sched_events *events)
{
    struct sched_slot *slot = &sched->slots[at];
    const uint32_t kept = nib_sched_draft_kept(sched, at, sampled, wanted);
    take_token(sched, at, &sampled[0], now_ms, events);
    for (uint32_t i = 1; i < kept && slot->state == SLOT_RUNNING; i++) {
        take_token(sched, at, &sampled[i], now_ms, events);
        sched->stats.tokens_accepted += !sampled[i].failed;
    }
    if (slot->state == SLOT_RUNNING)
        nib_sched_draft_back(sched, at, wanted - kept);
}

enum nib_err nib_sched_finish_step(struct nib_sched *sched, uint64_t now_ms, const struct nib_step_out *out,
                                   struct nib_sched_event *ret_events, uint32_t *ret_events_count)
{
    if (sched->flights_count == 0)
        return NIB_E_STATE;
    const struct sched_flight *flight = &sched->flights[0];
    if (!result_matches(sched, flight, out))
        return NIB_E_ARG;
    struct sched_events events = {.list = ret_events, .count = 0};
    uint32_t next = 0;
    for (uint32_t i = 0; i < flight->count; i++) {
        uint32_t at = flight->slot[i];
        struct sched_slot *slot = &sched->slots[at];
        NIB_MUST(slot->refs > 0);
        slot->refs--;
        if (flight->wanted[i] != 0)
            take_tokens(sched, at, &out->sampled[next], flight->wanted[i], now_ms, &events);
        next += flight->wanted[i];
        if (slot->state == SLOT_CLOSING && slot->refs == 0)
            nib_sched_slot_free(sched, at);
    }
    sched->stats.steps++;
    sched->flights_count--;
    memmove(&sched->flights[0], &sched->flights[1], sched->flights_count * sizeof sched->flights[0]);
    *ret_events_count = events.count;
    return NIB_OK;
}

void nib_sched_abort(struct nib_sched *sched, struct nib_sched_event *ret_events, uint32_t *ret_events_count)
{
    struct sched_events events = {.list = ret_events, .count = 0};
    sched->lost = true;
    sched->flights_count = 0;
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        sched->slots[at].refs = 0;
        if (sched->slots[at].state == SLOT_CLOSING)
            nib_sched_slot_free(sched, at);
    }
    for (uint32_t i = 0; i < sched->entries_count; i++)
        if (sched->entries[i].state != ENTRY_FREE)
            nib_sched_end(sched, i, NIB_FINISH_FAILED, NULL, 0, &events);
    nib_prefix_clear(&sched->prefix);
    *ret_events_count = events.count;
}
