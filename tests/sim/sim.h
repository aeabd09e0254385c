/* tests/sim/sim.h: one seeded life of the scheduler against an oracle.
 *
 * A seed decides the sizes, the load and every event: arrivals, lengths, stop ids, uids, cancels,
 * deadlines, failing logits, late results, the end by drain or by a lost engine. After every call the oracle
 * compares: tokens and finish reasons with its own walk of the sequence; the ledger; pages, owners
 * and slots (nib_sched_check, and poison in every free page); which rows a step must have; how many
 * admissions a request waited for. Any failure prints the seed and stops. */
#ifndef NIB_TESTS_SIM_SIM_H
#define NIB_TESTS_SIM_SIM_H

#include "core/sample.h"
#include "core/sched.h"
#include "core/sched_impl.h"
#include "tests/sim/fake_engine.h"

#define SIM_REQUESTS_MAX 160
#define SIM_PROMPT_MAX   700
#define SIM_UIDS_MAX     4
#define SIM_MEMORY_BYTES (1u << 20)
#define SIM_STREAMS      3 /* sequences that prompts begin as */
#define SIM_BEGIN_TOKEN  7

enum sim_state { SIM_WAITS, SIM_RUNS, SIM_ENDED };

/* What the oracle knows of one accepted request. */
struct sim_request {
    enum sim_state state;
    struct nib_handle handle;
    struct nib_request request;
    uint64_t hash; /* of the prompt and the answer so far */
    uint64_t seed;
    uint32_t answers;
    bool cancelled;
    bool cancel_due; /* must have ended after the next next_step */
    uint64_t turns;  /* admissions in order that may come before its own */
    uint64_t admitted_before;
    uint64_t overtaken_before;
    uint64_t left_before;
    bool penalty;                    /* asked for a repetition penalty */
    uint32_t prompt[SIM_PROMPT_MAX]; /* [request.prompt_tokens] */
};

struct sim_totals {
    uint64_t runs, steps, rows, tokens, requests, finished, refused, cancelled, expired, failed;
    uint64_t overtaken, dropped, fed_back, aborts, waits_max;
    uint64_t reused, evicted, loads, saves, lent, waited; /* lent: reused from another uid */
    uint64_t drafted, accepted, held; /* held: calls in which nothing began, so that a guess can be made */
    uint64_t dry, few; /* steps with answers in which waiting prompts had no row, or some, under gap_percent */
};

struct sim {
    uint64_t seed, rand;
    struct nib_sched_config config;
    struct nib_sched *sched;
    struct fake_engine fake;
    struct nib_step step;
    struct nib_step_out out;
    struct nib_sched_event events[NIB_MAX_QUEUE + NIB_MAX_SLOTS];
    struct sim_request requests[SIM_REQUESTS_MAX];
    uint32_t requests_count;
    uint32_t prompt[SIM_PROMPT_MAX];
    uint32_t uids;
    uint32_t backlog[SIM_UIDS_MAX]; /* rounds a uid's newest waiting request may be away */
    uint32_t cancel_one_in, prompt_tokens_max, answer_tokens_max, arrive_one_in;
    uint64_t now_ms;
    bool page_free[FAKE_PAGES_MAX]; /* and poisoned */
    uint64_t left;                  /* requests that ended while they waited */
    uint64_t submitted, refused, ended[NIB_FINISH_COUNT];
    struct sim_totals *totals;
    uint64_t row_us;    /* of a step, for each prompt row */
    uint64_t decode_us; /* for each decode row */
    uint32_t dry;       /* steps in a row in which prompts had no row */
};

#define MUST(cond) SIM_MUST(sim->seed, cond)

static inline uint64_t sim_rand(struct sim *sim, uint64_t below)
{
    sim->rand += 0x9e3779b97f4a7c15u;
    return fake_mix(sim->rand, 1) % below;
}

static inline uint32_t sim_range(struct sim *sim, uint32_t least, uint32_t most)
{
    return least + (uint32_t)sim_rand(sim, most - least + 1);
}

static inline bool sim_coin(struct sim *sim, uint32_t one_in)
{
    return sim_rand(sim, one_in) == 0;
}

/* ---- checks that hold after every call ---- */

/* A step on its way may still read a page that is free by now; nobody writes it before that step is done. */
static inline bool sim_loads(const struct sim *sim, uint32_t page)
{
    for (uint32_t i = 0; i < sim->fake.count; i++)
        for (uint32_t k = 0; k < sim->fake.steps[i].loads_count; k++)
            if (sim->fake.steps[i].loads[k].page == page)
                return true;
    return false;
}

static inline void sim_poison_free_pages(struct sim *sim)
{
    const struct nib_kv *kv = nib_sched_kv(sim->sched);
    for (uint32_t page = 0; page < kv->pages_count; page++) {
        bool free = kv->place[page] >= NIB_KV_FREE && !sim_loads(sim, page);
        if (free && !sim->page_free[page])
            fake_poison(&sim->fake, page);
        sim->page_free[page] = free;
    }
}

static inline void sim_check(struct sim *sim)
{
    struct nib_sched_stats s;
    nib_sched_stats(sim->sched, &s);
    MUST(nib_sched_check(sim->sched));
    uint32_t waits = 0, runs = 0;
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        waits += sim->requests[i].state == SIM_WAITS;
        runs += sim->requests[i].state == SIM_RUNS;
    }
    MUST(s.queued == waits && s.running == runs);
    MUST(s.submitted == sim->submitted && s.refused == sim->refused);
    MUST(s.finished == sim->ended[NIB_FINISH_STOP] + sim->ended[NIB_FINISH_LENGTH]);
    MUST(s.cancelled == sim->ended[NIB_FINISH_CANCELLED] + sim->ended[NIB_FINISH_DEADLINE]);
    MUST(s.expired == sim->ended[NIB_FINISH_DEADLINE]);
    MUST(s.failed == sim->ended[NIB_FINISH_FAILED]);
    MUST(s.submitted == s.finished + s.refused + s.cancelled + s.failed + s.queued + s.running);
    MUST(s.steps_in_flight == sim->fake.count);
    sim_poison_free_pages(sim);
}

static inline struct sim_request *sim_find(struct sim *sim, struct nib_handle handle)
{
    for (uint32_t i = 0; i < sim->requests_count; i++)
        if (sim->requests[i].handle.index == handle.index && sim->requests[i].handle.generation == handle.generation)
            return &sim->requests[i];
    MUST(!"an event names no request");
    return NULL;
}

/* ---- requests ---- */

static inline void sim_new_request(struct sim *sim, struct nib_request *request, struct nib_sampling *sampling)
{
    uint32_t ctx = sim->config.dims.ctx_tokens;
    uint32_t longest = sim->prompt_tokens_max < ctx - 1 ? sim->prompt_tokens_max : ctx - 1;
    *request = (struct nib_request){.prompt = sim->prompt, .sampling = sampling};
    request->prompt_tokens = sim_range(sim, 1, sim_coin(sim, 3) ? longest : (longest + 7) / 8);
    uint32_t left = ctx - request->prompt_tokens;
    uint32_t most = sim->answer_tokens_max < left ? sim->answer_tokens_max : left;
    request->answer_tokens_max = sim_range(sim, 1, most);
    request->uid = (uint32_t)sim_rand(sim, sim->uids);
    request->stop_count = (uint32_t)sim_rand(sim, NIB_MAX_STOP_TOKENS + 1);
    for (uint32_t i = 0; i < request->stop_count; i++)
        request->stop[i] = (uint32_t)sim_rand(sim, FAKE_VOCAB);
    if (sim_coin(sim, 8))
        request->deadline_ms = sim->now_ms + 1 + sim_rand(sim, 400);
    request->tag = sim->requests_count;
    nib_sample_defaults(sampling);
    sampling->seed = sim_rand(sim, UINT64_MAX - 1);
    if (!sim_coin(sim, 4))
        sampling->seed &= ~1uLL;
    if (sim_coin(sim, 10))
        sampling->repetition_penalty = 1.25f;
    uint64_t stream = fake_mix(sim->seed, sim_rand(sim, SIM_STREAMS));
    uint32_t common = sim_coin(sim, 4) ? 0 : sim_range(sim, 0, 2 * request->prompt_tokens);
    for (uint32_t i = 0; i < request->prompt_tokens; i++) {
        uint64_t h = i < common ? fake_mix(stream, i) : sim_rand(sim, UINT64_MAX);
        sim->prompt[i] = h % 30 == 0 ? SIM_BEGIN_TOKEN : (uint32_t)(h >> 20) % FAKE_VOCAB;
    }
}

/* Whether the request can ever run. */
static inline bool sim_can_run(const struct sim *sim, const struct nib_request *request)
{
    uint32_t chunk = NIB_PROMPT_CHUNK_TOKENS;
    return nib_kv_pages_for(request->prompt_tokens + request->answer_tokens_max) <= sim->config.dims.kv_pages &&
           (request->prompt_tokens + chunk - 1) / chunk <= sim->config.prompt_tokens_max / chunk;
}

static inline void sim_accept(struct sim *sim, const struct nib_request *request, struct nib_handle handle)
{
    struct nib_sched_stats s;
    nib_sched_stats(sim->sched, &s);
    bool waiting = false;
    for (uint32_t i = 0; i < sim->requests_count; i++)
        waiting |= sim->requests[i].state == SIM_WAITS && sim->requests[i].request.uid == request->uid;
    uint32_t *backlog = &sim->backlog[request->uid];
    *backlog = waiting ? *backlog + 1 : 1;
    struct sim_request *r = &sim->requests[sim->requests_count++];
    *r = (struct sim_request){.state = SIM_WAITS,
                              .handle = handle,
                              .request = *request,
                              .hash = FAKE_START,
                              .seed = request->sampling->seed,
                              .turns = (uint64_t)sim->uids * (*backlog + 1), /* and what is left of this round */
                              .admitted_before = s.admitted,
                              .overtaken_before = s.overtaken,
                              .left_before = sim->left,
                              .penalty = request->sampling->repetition_penalty > 1};
    memcpy(r->prompt, sim->prompt, request->prompt_tokens * sizeof r->prompt[0]);
    for (uint32_t i = 0; i < request->prompt_tokens; i++)
        r->hash = fake_mix(r->hash, sim->prompt[i]);
}

static inline void sim_submit(struct sim *sim)
{
    struct nib_request request;
    struct nib_sampling sampling;
    struct nib_handle handle = {0};
    struct nib_msg msg = {""};
    struct nib_sched_stats s;
    sim_new_request(sim, &request, &sampling);
    nib_sched_stats(sim->sched, &s);
    bool room = s.queued < sim->config.queue_max &&
                s.prompt_tokens_held / NIB_PROMPT_CHUNK_TOKENS +
                        (request.prompt_tokens + NIB_PROMPT_CHUNK_TOKENS - 1) / NIB_PROMPT_CHUNK_TOKENS <=
                    sim->config.prompt_tokens_max / NIB_PROMPT_CHUNK_TOKENS;
    enum nib_err want = !sim_can_run(sim, &request) ? NIB_E_LIMIT : room ? NIB_OK : NIB_E_FULL;
    enum nib_err err = nib_sched_submit(sim->sched, &request, &handle, &msg);
    MUST(err == want);
    sim->submitted++;
    if (err) {
        MUST(handle.generation == 0 && msg.text[0] != '\0');
        sim->refused++;
        return;
    }
    MUST(handle.generation != 0);
    sim_accept(sim, &request, handle);
    memset(sim->prompt, 0xff, sizeof sim->prompt); /* submit has copied it */
}

static inline void sim_cancel(struct sim *sim)
{
    if (sim->requests_count == 0)
        return;
    struct sim_request *r = &sim->requests[sim_rand(sim, sim->requests_count)];
    enum nib_err err = nib_sched_cancel(sim->sched, r->handle);
    MUST(err == (r->state == SIM_ENDED ? NIB_E_STATE : NIB_OK));
    if (err == NIB_OK)
        r->cancelled = r->cancel_due = true;
}

/* ---- events ---- */

static inline void sim_end(struct sim *sim, struct sim_request *r, enum nib_finish finish)
{
    sim->left += r->state == SIM_WAITS;
    r->state = SIM_ENDED;
    sim->ended[finish]++;
    MUST(nib_sched_cancel(sim->sched, r->handle) == NIB_E_STATE);
}

/* A token must be the one the sequence alone would give, and end where it would end. */
static inline void sim_token(struct sim *sim, struct sim_request *r, const struct nib_sched_event *event)
{
    bool failed;
    uint32_t token = fake_next(r->hash, r->seed, &failed);
    MUST(r->state == SIM_RUNS && !failed);
    MUST(event->sampled->token == token);
    r->hash = fake_mix(r->hash, token);
    r->answers++;
    MUST(event->answer_tokens == r->answers);
    bool stop = false;
    for (uint32_t i = 0; i < r->request.stop_count; i++)
        stop |= r->request.stop[i] == token;
    enum nib_finish finish = stop                                         ? NIB_FINISH_STOP
                             : r->answers == r->request.answer_tokens_max ? NIB_FINISH_LENGTH
                                                                          : NIB_FINISH_NONE;
    MUST(event->finish == finish);
    if (finish != NIB_FINISH_NONE)
        sim_end(sim, r, finish);
    sim->totals->tokens++;
}

static inline void sim_events(struct sim *sim, uint32_t count, bool aborted)
{
    MUST(count <= nib_sched_events_max(sim->sched));
    for (uint32_t i = 0; i < count; i++) {
        const struct nib_sched_event *event = &sim->events[i];
        struct sim_request *r = sim_find(sim, event->handle);
        MUST(r->state != SIM_ENDED && event->tag == r->request.tag);
        if (event->sampled) {
            sim_token(sim, r, event);
            continue;
        }
        bool failed;
        (void)fake_next(r->hash, r->seed, &failed);
        MUST(event->answer_tokens == r->answers);
        switch (event->finish) {
        case NIB_FINISH_CANCELLED:
            MUST(r->cancelled);
            break;
        case NIB_FINISH_DEADLINE:
            MUST(r->request.deadline_ms != 0 && r->request.deadline_ms <= sim->now_ms);
            break;
        case NIB_FINISH_FAILED:
            MUST(aborted || (failed && r->state == SIM_RUNS));
            break;
        default:
            MUST(!"an end without a reason");
        }
        sim_end(sim, r, event->finish);
    }
}

/* ---- steps ---- */

/* What a request reuses: whole pages, not all of its prompt, and an admitted prompt of the same owner began so. */
static inline void sim_reuse(struct sim *sim, const struct sim_request *r)
{
    uint32_t reused = sim->sched->entries[r->handle.index].reused_tokens;
    MUST(reused % NIB_KV_PAGE_TOKENS == 0 && reused < r->request.prompt_tokens);
    MUST(reused == 0 || (sim->config.prefix.on && !r->penalty));
    bool own = reused == 0, other = false;
    for (uint32_t i = 0; i < sim->requests_count && !own; i++) {
        const struct sim_request *q = &sim->requests[i];
        if (q == r || q->state == SIM_WAITS || q->request.prompt_tokens < reused ||
            memcmp(q->prompt, r->prompt, reused * sizeof r->prompt[0]) != 0)
            continue;
        *(q->request.uid == r->request.uid ? &own : &other) = true;
    }
    MUST(own || (other && sim->config.prefix.shared));
    sim->totals->lent += !own;
    sim->totals->reused += reused;
}

/* Requests that got a slot: none waited for more turns than its round allows. */
static inline void sim_admissions(struct sim *sim)
{
    struct nib_sched_stats s;
    nib_sched_stats(sim->sched, &s);
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        struct sim_request *r = &sim->requests[i];
        if (r->state != SIM_WAITS)
            continue;
        uint64_t overtaken = s.overtaken - r->overtaken_before;
        uint64_t turns = s.admitted - r->admitted_before - overtaken;
        /* its own admission, and those that share its call, are counted too */
        uint64_t same_call = sim->config.dims.slots;
        MUST(turns <= r->turns + same_call);
        /* each request that was next in the meantime: admitted, left, or still there */
        uint64_t heads = turns + (sim->left - r->left_before) + 1;
        MUST(overtaken <= NIB_MAX_OVERTAKEN * heads);
        if (turns > sim->totals->waits_max)
            sim->totals->waits_max = turns;
        if (sim->sched->entries[r->handle.index].state == ENTRY_RUNNING) {
            sim_reuse(sim, r);
            r->state = SIM_RUNS;
        }
    }
}

/* Beside answers prompts may have few rows or none, but not none for long. */
static inline void sim_check_pace(struct sim *sim, bool prompts_left, uint32_t prompt)
{
    sim->dry = prompts_left && prompt == 0 ? sim->dry + 1 : 0;
    MUST(sim->dry <= NIB_PACE_TURN + NIB_PACE_LEVELS);
    sim->totals->dry += sim->dry != 0;
    sim->totals->few += prompts_left && prompt != 0;
}

/* Every slot that may decode does, each once; the prompt admitted first moves on; the step is full
 * while prompts wait, unless answers have their pace. */
static inline void sim_check_step(struct sim *sim, const struct sched_slot *before)
{
    const struct nib_step *step = &sim->step;
    uint32_t rows[FAKE_SLOTS_MAX] = {0}, decode = 0, prompt = 0;
    for (uint32_t i = 0; i < step->rows_count; i++) {
        const struct nib_row *row = &step->rows[i];
        rows[row->slot]++;
        *(row->flags & NIB_ROW_DECODE ? &decode : &prompt) += 1;
        sim->totals->fed_back += (row->flags & NIB_ROW_FEEDBACK) != 0;
        bool first = row->pos == sim->sched->entries[sim->sched->slots[row->slot].entry].reused_tokens;
        MUST(first == ((row->flags & NIB_ROW_FIRST) != 0));
    }
    sim->totals->loads += step->loads_count;
    sim->totals->saves += step->saves_count;
    if (step->rows_count == 0 && sim->fake.count > 0 && sim->config.draft_tokens != 0) {
        MUST(step->loads_count == 0);
        sim->totals->held++;
        return;
    }
    uint32_t oldest = SCHED_NONE;
    bool prompts_left = false;
    for (uint32_t at = 0; at < sim->config.dims.slots; at++) {
        const struct sched_slot *slot = &sim->sched->slots[at];
        if (slot->state != SLOT_RUNNING) {
            MUST(rows[at] == 0);
            continue;
        }
        const struct sched_entry *entry = &sim->sched->entries[slot->entry];
        bool was_running = before[at].state == SLOT_RUNNING && before[at].entry == slot->entry;
        if (was_running && before[at].begun > 0 && before[at].begun < entry->answer_tokens_max)
            MUST(rows[at] == 1 || (prompt == 0 && sim->fake.count == 0 && rows[at] == 1 + slot->draft_tokens &&
                                   slot->draft_tokens <= sim->config.draft_tokens));
        bool prefills = !was_running || before[at].begun == 0;
        if (prefills && (oldest == SCHED_NONE || slot->admitted < sim->sched->slots[oldest].admitted))
            oldest = at;
        prompts_left |= entry->prompt.left != 0 && !slot->waits;
        MUST(!slot->waits || rows[at] == 0);
        sim->totals->waited += slot->waits;
    }
    uint32_t room = sim->config.dims.step_rows_max - decode;
    if (decode > 0 && room > sim->config.prefill_rows_max)
        room = sim->config.prefill_rows_max;
    if (decode > 0 && sim->config.gap_percent != 0) {
        sim_check_pace(sim, prompts_left, prompt);
        room = prompt;
        prompts_left = false;
    }
    MUST(prompt <= room);
    if (oldest != SCHED_NONE && room > 0)
        MUST(rows[oldest] > 0);
    if (prompts_left)
        MUST(prompt == room);
}

static inline void sim_begin(struct sim *sim)
{
    struct sched_slot before[FAKE_SLOTS_MAX];
    memcpy(before, sim->sched->slots, sim->config.dims.slots * sizeof *before);
    uint32_t count = UINT32_MAX;
    enum nib_err err = nib_sched_next_step(sim->sched, sim->now_ms, &sim->step, sim->events, &count);
    if (sim->fake.count == sim->config.dims.steps_ahead) {
        MUST(err == NIB_E_STATE && count == UINT32_MAX);
        return;
    }
    MUST(err == NIB_OK);
    sim_events(sim, count, false);
    sim_admissions(sim);
    for (uint32_t i = 0; i < sim->requests_count; i++) {
        MUST(!sim->requests[i].cancel_due || sim->requests[i].state == SIM_ENDED);
        sim->requests[i].cancel_due = false;
        uint64_t deadline = sim->requests[i].request.deadline_ms;
        MUST(sim->requests[i].state == SIM_ENDED || deadline == 0 || deadline > sim->now_ms);
    }
    sim_check_step(sim, before);
    if (sim->step.rows_count > 0) {
        struct nib_msg msg = {""};
        err = sim->fake.engine.ops->submit(&sim->fake.engine, &sim->step, &msg);
        if (err)
            fprintf(stderr, "%s\n", msg.text);
        MUST(err == NIB_OK);
        sim->totals->steps++;
        sim->totals->rows += sim->step.rows_count;
    } else {
        MUST(sim->step.serial == 0);
    }
}

/* A result that is not the step's is refused and changes nothing. */
static inline void sim_wrong_result(struct sim *sim)
{
    struct nib_step_out wrong = sim->out;
    switch (sim_rand(sim, 5)) {
    case 0:
        wrong.serial++;
        break;
    case 1:
        wrong.sampled[wrong.count++].slot = 0;
        break;
    case 2:
        if (wrong.count == 0)
            return;
        wrong.count--;
        break;
    case 3:
        if (wrong.count == 0)
            return;
        wrong.sampled[wrong.count - 1].slot ^= 1;
        break;
    default:
        if (wrong.count == 0)
            return;
        wrong.sampled[0].failed = false;
        wrong.sampled[0].token = FAKE_VOCAB;
    }
    uint32_t count = UINT32_MAX;
    MUST(nib_sched_finish_step(sim->sched, sim->now_ms, &wrong, sim->events, &count) == NIB_E_ARG);
    MUST(count == UINT32_MAX);
}

static inline void sim_finish(struct sim *sim)
{
    uint32_t count = UINT32_MAX;
    if (sim->fake.count == 0) {
        MUST(nib_sched_finish_step(sim->sched, sim->now_ms, &sim->out, sim->events, &count) == NIB_E_STATE);
        return;
    }
    enum nib_err err = sim->fake.engine.ops->collect(&sim->fake.engine, &sim->out, NULL);
    MUST(err == NIB_OK);
    if (sim_coin(sim, 16))
        sim_wrong_result(sim);
    const struct sched_flight *flight = &sim->sched->flights[0];
    const uint64_t rows_us = sim->row_us * flight->prompt_rows + sim->decode_us * flight->decode_rows;
    MUST(nib_sched_took(sim->sched, 1000 + rows_us + sim_range(sim, 0, 300)) == NIB_OK);
    err = nib_sched_finish_step(sim->sched, sim->now_ms, &sim->out, sim->events, &count);
    MUST(err == NIB_OK);
    sim_events(sim, count, false);
}

/* ---- a life ---- */

static inline void sim_open(struct sim *sim, uint64_t seed, void *memory, struct sim_totals *totals)
{
    memset(sim, 0, sizeof *sim);
    sim->seed = sim->rand = seed;
    sim->totals = totals;
    uint32_t slots = sim_range(sim, 1, sim_coin(sim, 3) ? FAKE_SLOTS_MAX : 3);
    struct nib_engine_dims dims = {.slots = slots,
                                   .ctx_tokens = sim_range(sim, 2, 640),
                                   .kv_pages = sim_range(sim, 1, sim_coin(sim, 3) ? FAKE_PAGES_MAX : 24),
                                   .step_rows_max = slots + sim_range(sim, 0, 80),
                                   .steps_ahead = sim_range(sim, 1, NIB_MAX_STEPS_AHEAD)};
    dims.want_rows_max = sim_coin(sim, 2) ? 0 : slots + sim_range(sim, 0, 20);
    sim->config = (struct nib_sched_config){.dims = dims,
                                            .vocab = FAKE_VOCAB,
                                            .queue_max = sim_range(sim, 1, sim_coin(sim, 2) ? 4 : 12),
                                            .prompt_tokens_max = 256 * sim_range(sim, 1, 12),
                                            .prefill_rows_max = sim_range(sim, 1, dims.step_rows_max)};
    sim->config.prefix = (struct nib_prefix_config){.on = !sim_coin(sim, 4),
                                                    .shared = sim_coin(sim, 4),
                                                    .window = NIB_KV_PAGE_TOKENS * sim_range(sim, 1, 4),
                                                    .begin_token = SIM_BEGIN_TOKEN,
                                                    .key = sim_coin(sim, 2) ? seed : 0};
    sim->config.gap_percent = sim_coin(sim, 2) ? sim_range(sim, 1, 400) : 0;
    sim->row_us = sim_coin(sim, 2) ? sim_range(sim, 1, 200) : sim_range(sim, 200, 4000);
    sim->config.draft_tokens = sim_coin(sim, 2) ? sim_range(sim, 1, NIB_MAX_DRAFT_TOKENS) : 0;
    sim->decode_us = sim_coin(sim, 2) ? sim_range(sim, 0, 100) : sim_range(sim, 100, 2000);
    sim->uids = sim_range(sim, 1, SIM_UIDS_MAX);
    sim->cancel_one_in = sim_range(sim, 8, 200);
    sim->arrive_one_in = sim_range(sim, 1, sim_coin(sim, 2) ? 3 : 40);
    sim->prompt_tokens_max = sim_range(sim, 1, SIM_PROMPT_MAX);
    sim->answer_tokens_max = sim_range(sim, 1, sim_coin(sim, 4) ? 200 : 20);
    struct nib_arena arena;
    MUST(nib_sched_bytes(&sim->config) <= SIM_MEMORY_BYTES - 64);
    nib_arena_init(&arena, memory, nib_sched_bytes(&sim->config));
    MUST(nib_sched_init(&arena, &sim->config, &sim->sched, NULL) == NIB_OK);
    nib_arena_seal(&arena);
    fake_open(&sim->fake, &dims, sim->config.prefix.window, sim_coin(sim, 2), seed);
    memset(sim->page_free, true, sizeof sim->page_free);
}

static inline void sim_abort(struct sim *sim)
{
    uint32_t count = 0;
    nib_sched_abort(sim->sched, sim->events, &count);
    sim->fake.count = 0;
    sim_events(sim, count, true);
    MUST(nib_sched_kv(sim->sched)->kept_count == 0);
    sim->totals->aborts++;
}

static inline bool sim_alive(const struct sim *sim)
{
    for (uint32_t i = 0; i < sim->requests_count; i++)
        if (sim->requests[i].state != SIM_ENDED)
            return true;
    return sim->fake.count > 0;
}

static inline void sim_refused_for_good(struct sim *sim)
{
    struct nib_request request;
    struct nib_sampling sampling;
    struct nib_handle handle;
    sim_new_request(sim, &request, &sampling);
    MUST(nib_sched_submit(sim->sched, &request, &handle, NULL) == NIB_E_STATE);
    sim->submitted++;
    sim->refused++;
}

static inline void sim_close(struct sim *sim)
{
    struct nib_sched_stats s;
    nib_sched_stats(sim->sched, &s);
    MUST(s.pages_used == 0 && s.prompt_tokens_held == 0 && s.closing == 0);
    MUST(s.submitted == s.finished + s.refused + s.cancelled + s.failed);
    struct sim_totals *t = sim->totals;
    t->runs++;
    t->requests += s.submitted;
    t->finished += s.finished;
    t->refused += s.refused;
    t->cancelled += s.cancelled;
    t->expired += s.expired;
    t->failed += s.failed;
    t->overtaken += s.overtaken;
    t->dropped += s.tokens_dropped;
    t->evicted += s.pages_evicted;
    t->drafted += s.tokens_drafted;
    t->accepted += s.tokens_accepted;
    MUST(s.tokens_accepted <= s.tokens_drafted && (s.tokens_drafted == 0 || sim->config.draft_tokens != 0));
    MUST(s.tokens_reused == 0 || sim->config.prefix.on);
    MUST(nib_sched_kv(sim->sched)->free_count + s.pages_idle == s.pages_count);
}

static inline void sim_run(struct sim *sim, uint64_t seed, void *memory, struct sim_totals *totals)
{
    enum { TURNS = 700, TURNS_MAX = 200000 };
    sim_open(sim, seed, memory, totals);
    bool lost = sim_coin(sim, 8), draining = false;
    for (uint32_t turn = 0; !draining || sim_alive(sim); turn++) {
        MUST(turn < TURNS_MAX); /* what is live must end */
        sim->now_ms += sim_rand(sim, 4);
        if (!draining && sim->requests_count < SIM_REQUESTS_MAX && sim_coin(sim, sim->arrive_one_in))
            sim_submit(sim);
        if (sim_coin(sim, sim->cancel_one_in))
            sim_cancel(sim);
        sim_check(sim);
        if (sim_coin(sim, 2))
            sim_begin(sim);
        else
            sim_finish(sim);
        sim_check(sim);
        if (turn == TURNS) {
            if (lost)
                sim_abort(sim);
            else
                nib_sched_drain(sim->sched);
            draining = true;
            sim_refused_for_good(sim);
            sim_check(sim);
        }
    }
    sim_check(sim);
    sim_close(sim);
}

#undef MUST

#endif
