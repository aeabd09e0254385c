/* core/sched.c: owns the requests, queued and running: init, submit, cancel, end, admission.
 * Limits: queue_max, slots, prompt_tokens_max, the page pool. The stepper thread. Submit fails when
 * a limit is reached; nothing here fails once a request is accepted. Steps are in sched_step.c. */
#include "core/sched.h"

#include <string.h>

#include "core/arith.h"
#include "core/sample.h"
#include "core/sched_impl.h"

#define SCHED_ALIGN 64u
#define SCHED_TAKES                                                                                                    \
    6 /* structs and arrays carved here, each with at most SCHED_ALIGN of padding                  \
       */
#define RETRY_FIRST_MS 1000 /* before any request has ended */

static bool config_allowed(const struct nib_sched_config *config)
{
    const struct nib_engine_dims *dims = &config->dims;
    return dims->slots >= 1 && dims->slots <= NIB_MAX_SLOTS && dims->ctx_tokens >= 2 &&
           dims->ctx_tokens <= NIB_MAX_CTX_TOKENS && dims->kv_pages >= 1 && dims->kv_pages <= NIB_MAX_KV_PAGES &&
           dims->step_rows_max >= dims->slots && dims->step_rows_max <= NIB_MAX_STEP_ROWS && dims->steps_ahead >= 1 &&
           dims->steps_ahead <= NIB_MAX_STEPS_AHEAD && config->vocab >= 1 && config->vocab <= NIB_MAX_VOCAB &&
           config->queue_max >= 1 && config->queue_max <= NIB_MAX_QUEUE &&
           config->prompt_tokens_max >= NIB_PROMPT_CHUNK_TOKENS &&
           config->prompt_tokens_max <= NIB_MAX_PROMPT_POOL_TOKENS && config->prefill_rows_max >= 1 &&
           config->prefill_rows_max <= dims->step_rows_max && config->gap_percent <= NIB_MAX_GAP_PERCENT &&
           config->draft_tokens <= NIB_MAX_DRAFT_TOKENS && nib_want_rows_max(dims) >= dims->slots &&
           nib_want_rows_max(dims) <= NIB_MAX_SLOTS && nib_prefix_allowed(&config->prefix);
}

static uint32_t chunks_of(const struct nib_sched_config *config)
{
    return config->prompt_tokens_max / NIB_PROMPT_CHUNK_TOKENS;
}

size_t nib_sched_bytes(const struct nib_sched_config *config)
{
    if (!config_allowed(config))
        return 0;
    const struct nib_engine_dims *dims = &config->dims;
    size_t entry = sizeof(struct sched_entry) + sizeof(struct nib_sampling) + sizeof(uint32_t);
    size_t slot = sizeof(struct sched_slot) + sizeof(struct nib_sampling);
    return sizeof(struct nib_sched) + (config->queue_max + dims->slots) * entry + dims->slots * slot +
           (size_t)SCHED_TAKES * SCHED_ALIGN + nib_kv_bytes(dims) + nib_prefix_bytes(dims, &config->prefix) +
           nib_prompt_bytes(chunks_of(config)) + (config->draft_tokens ? nib_lookup_bytes(dims) : 0);
}

static enum nib_err carve(struct nib_sched *sched, struct nib_arena *arena)
{
    uint32_t slots = sched->config.dims.slots, entries = sched->entries_count;
    sched->entries = nib_arena_take(arena, entries * sizeof *sched->entries, SCHED_ALIGN);
    sched->waiting = nib_arena_take(arena, entries * sizeof *sched->waiting, SCHED_ALIGN);
    sched->free = nib_arena_take(arena, entries * sizeof *sched->free, SCHED_ALIGN);
    sched->slots = nib_arena_take(arena, slots * sizeof *sched->slots, SCHED_ALIGN);
    sched->sampling = nib_arena_take(arena, slots * sizeof *sched->sampling, SCHED_ALIGN);
    if (!sched->entries || !sched->waiting || !sched->free || !sched->slots || !sched->sampling)
        return NIB_E_NOMEM;
    sched->spare_pages = nib_prefix_spare(&sched->config.dims, &sched->config.prefix);
    enum nib_err err = nib_kv_init(&sched->kv, arena, &sched->config.dims, NULL);
    if (!err)
        err = nib_prefix_init(&sched->prefix, arena, &sched->config.dims, &sched->config.prefix, &sched->kv);
    if (!err)
        err = nib_prompt_init(&sched->prompts, arena, chunks_of(&sched->config));
    if (!err && sched->config.draft_tokens != 0)
        err = nib_lookup_init(&sched->lookup, arena, &sched->config.dims);
    return err;
}

enum nib_err nib_sched_init(struct nib_arena *arena, const struct nib_sched_config *config,
                            struct nib_sched **ret_sched, struct nib_msg *msg)
{
    if (!config_allowed(config))
        return nib_fail(msg, NIB_E_ARG,
                        "scheduler of %u slots, %u context tokens, %u pages, %u rows a step (%u for "
                        "prompts, %u %% of a step's time, %u that want a token), %u steps ahead, queue %u, %u prompt "
                        "tokens, window "
                        "%u, drafts of %u: a number is outside its range, or there are fewer rows than slots",
                        config->dims.slots, config->dims.ctx_tokens, config->dims.kv_pages, config->dims.step_rows_max,
                        config->prefill_rows_max, config->gap_percent, nib_want_rows_max(&config->dims),
                        config->dims.steps_ahead, config->queue_max, config->prompt_tokens_max, config->prefix.window,
                        config->draft_tokens);
    struct nib_sched *sched = nib_arena_take(arena, sizeof *sched, SCHED_ALIGN);
    if (!sched)
        return nib_fail(msg, NIB_E_NOMEM, "the scheduler does not fit the arena");
    memset(sched, 0, sizeof *sched);
    sched->config = *config;
    sched->entries_count = config->queue_max + config->dims.slots;
    if (config->gap_percent != 0)
        nib_pace_init(&sched->pace, config->gap_percent, config->dims.step_rows_max);
    if (carve(sched, arena) != NIB_OK)
        return nib_fail(msg, NIB_E_NOMEM, "the scheduler needs %zu bytes of arena", nib_sched_bytes(config));
    memset(sched->entries, 0, sched->entries_count * sizeof *sched->entries);
    memset(sched->slots, 0, config->dims.slots * sizeof *sched->slots);
    for (uint32_t i = 0; i < sched->entries_count; i++) {
        sched->entries[i].generation = 1;
        sched->free[i] = sched->entries_count - 1 - i;
    }
    sched->free_count = sched->entries_count;
    for (uint32_t i = 0; i < config->dims.slots; i++)
        nib_sample_defaults(&sched->sampling[i]);
    *ret_sched = sched;
    return NIB_OK;
}

uint32_t nib_sched_events_max(const struct nib_sched *sched)
{
    const uint32_t wanted = nib_want_rows_max(&sched->config.dims);
    return sched->entries_count > wanted ? sched->entries_count : wanted;
}

static enum nib_err check_ids(const struct nib_sched *sched, const char *what, const uint32_t *ids, uint32_t count,
                              struct nib_msg *msg)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] >= sched->config.vocab)
            return nib_fail(msg, NIB_E_ARG, "%s token %u is id %u; ids end at %u", what, i, ids[i],
                            sched->config.vocab - 1);
    return NIB_OK;
}

static enum nib_err check_request(const struct nib_sched *sched, const struct nib_request *request, struct nib_msg *msg)
{
    uint32_t prompt = request->prompt_tokens, answer = request->answer_tokens_max;
    uint32_t ctx = sched->config.dims.ctx_tokens;
    if (prompt == 0 || answer == 0)
        return nib_fail(msg, NIB_E_ARG, "%u prompt tokens and %u answer tokens: both need 1 or more", prompt, answer);
    if (prompt > ctx || answer > ctx - prompt)
        return nib_fail(msg, NIB_E_LIMIT, "%u prompt tokens and %u answer tokens: the context is %u tokens", prompt,
                        answer, ctx);
    if (nib_kv_pages_for(prompt + answer) > sched->kv.pages_count)
        return nib_fail(msg, NIB_E_LIMIT, "%u prompt tokens and %u answer tokens: KV memory holds %llu tokens", prompt,
                        answer, (unsigned long long)sched->kv.pages_count * NIB_KV_PAGE_TOKENS);
    if (nib_prompt_chunks_for(prompt) > sched->prompts.chunks_count)
        return nib_fail(msg, NIB_E_LIMIT, "%u prompt tokens: waiting prompts may hold %u", prompt,
                        sched->prompts.chunks_count * NIB_PROMPT_CHUNK_TOKENS);
    if (request->stop_count > NIB_MAX_STOP_TOKENS)
        return nib_fail(msg, NIB_E_ARG, "%u stop tokens: at most %u", request->stop_count, NIB_MAX_STOP_TOKENS);
    enum nib_err err = check_ids(sched, "stop", request->stop, request->stop_count, msg);
    if (!err)
        err = check_ids(sched, "prompt", request->prompt, prompt, msg);
    return err ? err : nib_sample_check(request->sampling, sched->config.vocab, msg);
}

static uint32_t queued_count(const struct nib_sched *sched)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < sched->entries_count; i++)
        count += sched->entries[i].state == ENTRY_QUEUED;
    return count;
}

/* The round after the current one, or after the last that the uid waits in. */
static uint64_t round_for(const struct nib_sched *sched, uint32_t uid)
{
    uint64_t last = sched->round;
    for (uint32_t i = 0; i < sched->entries_count; i++) {
        const struct sched_entry *entry = &sched->entries[i];
        if (entry->state == ENTRY_QUEUED && entry->uid == uid && entry->round > last)
            last = entry->round;
    }
    return last + 1;
}

static enum nib_err submit(struct nib_sched *sched, const struct nib_request *request, struct nib_handle *ret_handle,
                           struct nib_msg *msg)
{
    if (sched->lost || sched->draining)
        return nib_fail(msg, NIB_E_STATE, "no new requests are taken: %s",
                        sched->lost ? "the engine is lost" : "shutting down");
    enum nib_err err = check_request(sched, request, msg);
    if (err)
        return err;
    if (queued_count(sched) >= sched->config.queue_max)
        return nib_fail(msg, NIB_E_FULL, "the queue holds %u requests, all places are taken", sched->config.queue_max);
    struct nib_prompt prompt;
    err = nib_prompt_take(&sched->prompts, request->prompt, request->prompt_tokens, &prompt);
    if (err)
        return nib_fail(msg, err, "%u prompt tokens: %u of %u places for waiting prompts are free",
                        request->prompt_tokens, sched->prompts.free_count * NIB_PROMPT_CHUNK_TOKENS,
                        sched->prompts.chunks_count * NIB_PROMPT_CHUNK_TOKENS);
    NIB_MUST(sched->free_count > 0);
    uint32_t index = sched->free[--sched->free_count];
    struct sched_entry *entry = &sched->entries[index];
    NIB_MUST(entry->state == ENTRY_FREE);
    *entry = (struct sched_entry){.state = ENTRY_QUEUED,
                                  .generation = entry->generation,
                                  .uid = request->uid,
                                  .tag = request->tag,
                                  .deadline_ms = request->deadline_ms,
                                  .round = round_for(sched, request->uid),
                                  .arrival = sched->arrivals++,
                                  .prompt_tokens = request->prompt_tokens,
                                  .answer_tokens_max = request->answer_tokens_max,
                                  .stop_count = request->stop_count,
                                  .prompt = prompt};
    memcpy(entry->stop, request->stop, sizeof entry->stop);
    sched->waiting[index] = *request->sampling;
    *ret_handle = (struct nib_handle){.index = index, .generation = entry->generation};
    return NIB_OK;
}

enum nib_err nib_sched_submit(struct nib_sched *sched, const struct nib_request *request, struct nib_handle *ret_handle,
                              struct nib_msg *msg)
{
    enum nib_err err = submit(sched, request, ret_handle, msg);
    sched->stats.submitted++;
    if (err)
        sched->stats.refused++;
    return err;
}

uint64_t nib_sched_retry_ms(const struct nib_sched *sched)
{
    uint32_t running = 0;
    for (uint32_t i = 0; i < sched->config.dims.slots; i++)
        running += sched->slots[i].state == SLOT_RUNNING;
    if (sched->stats.finished == 0)
        return RETRY_FIRST_MS;
    return nib_div_up(sched->held_ms_x8, 8 * (uint64_t)(running ? running : 1));
}

enum nib_err nib_sched_cancel(struct nib_sched *sched, struct nib_handle handle)
{
    if (handle.index >= sched->entries_count)
        return NIB_E_STATE;
    struct sched_entry *entry = &sched->entries[handle.index];
    if (entry->state == ENTRY_FREE || entry->generation != handle.generation)
        return NIB_E_STATE;
    entry->cancel = true;
    return NIB_OK;
}

void nib_sched_drain(struct nib_sched *sched)
{
    sched->draining = true;
}

void nib_sched_slot_free(struct nib_sched *sched, uint32_t slot)
{
    struct sched_slot *s = &sched->slots[slot];
    NIB_MUST(s->refs == 0 && s->state != SLOT_IDLE);
    enum nib_err err = nib_prefix_put(&sched->prefix, slot);
    NIB_MUST(err == NIB_OK);
    s->state = SLOT_IDLE;
}

static void count_end(struct nib_sched_stats *stats, enum nib_finish finish)
{
    switch (finish) {
    case NIB_FINISH_STOP:
    case NIB_FINISH_LENGTH:
        stats->finished++;
        return;
    case NIB_FINISH_DEADLINE:
        stats->expired++;
        stats->cancelled++;
        return;
    case NIB_FINISH_CANCELLED:
        stats->cancelled++;
        return;
    case NIB_FINISH_FAILED:
        stats->failed++;
        return;
    case NIB_FINISH_NONE:
    case NIB_FINISH_COUNT:
        break;
    }
    NIB_MUST(!"a request ended without a reason");
}

void nib_sched_end(struct nib_sched *sched, uint32_t index, enum nib_finish finish, const struct nib_sampled *sampled,
                   uint64_t now_ms, struct sched_events *events)
{
    struct sched_entry *entry = &sched->entries[index];
    NIB_MUST(entry->state != ENTRY_FREE && events->count < nib_sched_events_max(sched));
    events->list[events->count++] = (struct nib_sched_event){
        .handle = {.index = index, .generation = entry->generation},
        .tag = entry->tag,
        .finish = finish,
        .sampled = sampled,
        .answer_tokens = entry->answer_tokens,
        .reused_tokens = entry->reused_tokens,
    };
    count_end(&sched->stats, finish);
    if (finish == NIB_FINISH_FAILED && !sched->lost) /* what it read may be what is wrong */
        nib_prefix_forget(&sched->prefix, entry->uid);
    nib_prompt_put(&sched->prompts, &entry->prompt);
    if (entry->state == ENTRY_RUNNING) {
        struct sched_slot *slot = &sched->slots[entry->slot];
        NIB_MUST(slot->state == SLOT_RUNNING && slot->entry == index);
        uint64_t held = now_ms > slot->admitted_ms ? now_ms - slot->admitted_ms : 0;
        sched->held_ms_x8 += held - sched->held_ms_x8 / 8;
        slot->state = SLOT_CLOSING;
        slot->entry = SCHED_NONE;
        if (slot->refs == 0)
            nib_sched_slot_free(sched, entry->slot);
    }
    entry->state = ENTRY_FREE;
    entry->generation = entry->generation == UINT32_MAX ? 1 : entry->generation + 1;
    sched->free[sched->free_count++] = index;
}

/* First in order among the queued requests that need at most pages_max pages. */
static uint32_t first_queued(const struct nib_sched *sched, uint32_t pages_max)
{
    uint32_t best = SCHED_NONE;
    for (uint32_t i = 0; i < sched->entries_count; i++) {
        const struct sched_entry *entry = &sched->entries[i];
        if (entry->state != ENTRY_QUEUED ||
            nib_kv_pages_for(entry->prompt_tokens + entry->answer_tokens_max) > pages_max)
            continue;
        const struct sched_entry *b = best == SCHED_NONE ? NULL : &sched->entries[best];
        if (!b || entry->round < b->round || (entry->round == b->round && entry->arrival < b->arrival))
            best = i;
    }
    return best;
}

static void admit_one(struct nib_sched *sched, uint32_t index, uint32_t at, uint64_t now_ms, struct nib_step *step)
{
    struct sched_entry *entry = &sched->entries[index];
    entry->state = ENTRY_RUNNING;
    entry->slot = at;
    sched->slots[at] = (struct sched_slot){.state = SLOT_RUNNING,
                                           .entry = index,
                                           .same_as = UINT64_MAX,
                                           .admitted = sched->admissions++,
                                           .admitted_ms = now_ms};
    sched->sampling[at] = sched->waiting[index];
    nib_sched_draft_begin(sched, at);
    nib_sched_take(sched, at, step);
}

void nib_sched_admit(struct nib_sched *sched, uint64_t now_ms, struct nib_step *step)
{
    for (uint32_t at = 0; at < sched->config.dims.slots; at++) {
        if (sched->slots[at].state != SLOT_IDLE)
            continue;
        if (step->loads_count + NIB_MAX_WINDOW_PAGES > NIB_MAX_KV_LOADS)
            return;
        uint32_t head = first_queued(sched, UINT32_MAX);
        if (head == SCHED_NONE)
            return;
        sched->round = sched->entries[head].round;
        uint32_t available = nib_prefix_available(&sched->prefix);
        uint32_t pick = first_queued(sched, available - (uint32_t)nib_min_u64(available, sched->spare_pages));
        if (pick == SCHED_NONE)
            return;
        if (pick != head) {
            if (sched->entries[head].overtaken == NIB_MAX_OVERTAKEN)
                return;
            sched->entries[head].overtaken++;
            sched->stats.overtaken++;
        }
        admit_one(sched, pick, at, now_ms, step);
    }
}
