/* core/sched.h: continuous batching over fixed slots: which rows the next step runs.
 *
 * A pure state machine: no clock (time is passed in), no thread, no allocation after init, no
 * engine. One thread calls it (the stepper). Every call checks first and changes nothing on error;
 * a broken invariant stops the process.
 *
 * A request waits in the queue, then is admitted: it gets a slot and, at once, the KV pages of
 * prompt and longest answer, so that it can never run out. Its prompt is fed in chunks, then its
 * answer one token a step, until a stop id, the length, cancel, deadline or failure. Each step
 * holds first one row of every slot that decodes, then prompt chunks.
 *
 * Order of admission: rounds. A request joins the round after the current one, or the round after
 * its own uid's last waiting request; rounds are served in order, and first come first served
 * inside. So every uid has one request a round, and nothing submitted later than a whole round
 * overtakes. A request whose pages are not free yet is overtaken by ones that fit at most
 * NIB_MAX_OVERTAKEN times; then pages are kept for it.
 *
 * Prompts: half of the prompt rows of a step go to the sequence admitted first, the rest to those
 * with the least left, so that a short prompt need not wait for a long one and the long one moves
 * on. Beside answers prompts have few rows, as core/pace.h says, unless more prompts are fed than answers go on:
 * then what most wait for goes first. Prompts that half a step finishes are finished there, and a longer one gives way to
 * them but for an eighth, since their rows are what the answers wait for.
 *
 * A prompt that begins as one before it of the same owner did begins behind the pages which that one
 * computed (core/prefix.h), as far as they are known when it is admitted. Window pages are saved where
 * prompts are likely to part: before each message's first token, before a prompt's last, and where this
 * prompt left what was known. So the next turn computes what is new, what is left of a page, and after
 * an unlikely parting what lies behind the last message's beginning. A prompt that has not begun
 * waits while the oldest one under way is still to compute pages of the same beginning, so that what
 * comes together is computed once too; the oldest moves on in every step with prompt rows. A request with a repetition
 * penalty computes all: the penalty needs the engine to see every prompt token.
 *
 * With draft_tokens the scheduler guesses what comes next from each sequence's own tokens (core/lookup.h), and where it pays
 * (core/draft.h) a step verifies guesses as further rows of the sequence. The tokens given out are those of plain
 * decoding: a row's result does not depend on the rows beside it, and what follows a wrong guess is dropped. Guesses need
 * the tokens before them, so that while steps have any only one is in flight; and none are made while prompts are
 * fed, nor for a request with a penalty.
 *
 * Promises about rows, on top of core/engine.h: NIB_ROW_DECODE is set on exactly the rows that
 * carry an answer token; a sequence's first row, and no other, has NIB_ROW_FIRST; NIB_ROW_FEEDBACK
 * is set only while the token is not known yet (steps_ahead 2). A slot gets a new sequence only
 * when no step in flight has rows of the old one. */
#ifndef NIB_CORE_SCHED_H
#define NIB_CORE_SCHED_H

#include "core/arena.h"
#include "core/engine.h"
#include "core/kv.h"
#include "core/prefix.h"

enum nib_finish {
    NIB_FINISH_NONE = 0,  /* goes on */
    NIB_FINISH_STOP,      /* the token is one of the stop ids */
    NIB_FINISH_LENGTH,    /* answer_tokens_max reached */
    NIB_FINISH_CANCELLED, /* nib_sched_cancel */
    NIB_FINISH_DEADLINE,  /* the deadline passed, in the queue or in a slot */
    NIB_FINISH_FAILED,    /* logits without a usable value, or the engine is lost */
    NIB_FINISH_COUNT
};

struct nib_sched_config {
    struct nib_engine_dims dims; /* step_rows_max >= slots */
    uint32_t vocab;
    uint32_t queue_max;         /* requests that wait: 1..NIB_MAX_QUEUE */
    uint32_t prompt_tokens_max; /* prompt tokens held for all requests together; one request uses
                                   whole chunks of NIB_PROMPT_CHUNK_TOKENS */
    uint32_t prefill_rows_max;  /* prompt rows of a step that also decodes: 1..step_rows_max, but for
                                   long turns (core/pace.h).
                                   Smaller:  steadier answers; larger: faster prompts */
    uint32_t gap_percent;       /* of the time of a step that only decodes, which one with prompts beside it may
                                   take (core/pace.h), while no more prompts than answers go on: 1..NIB_MAX_GAP_PERCENT;
                                   0: no bound. Steps must then be timed */
    uint32_t draft_tokens;      /* guessed tokens of one sequence that a step may verify: 0..NIB_MAX_DRAFT_TOKENS. Steps
                                        must then be timed */
    struct nib_prefix_config prefix; /* all zero: every prompt is computed from its start */
};

/* Names one request until its final event; stale afterwards. */
struct nib_handle {
    uint32_t index;
    uint32_t generation; /* from 1: an all-zero handle names nothing */
};

/* All is copied by nib_sched_submit. */
struct nib_request {
    const uint32_t *prompt;     /* [prompt_tokens], ids < vocab */
    uint32_t prompt_tokens;     /* 1.. */
    uint32_t answer_tokens_max; /* 1..; prompt_tokens + answer_tokens_max <= ctx_tokens */
    uint32_t uid;               /* whose turn it uses */
    uint32_t stop_count;
    uint32_t stop[NIB_MAX_STOP_TOKENS];  /* token ids that end the answer */
    uint64_t deadline_ms;                /* on the clock of now_ms; 0: none */
    uint64_t tag;                        /* the caller's; comes back in every event */
    const struct nib_sampling *sampling; /* submit runs nib_sample_check on it */
};

/* One token of a request, or its end, or both. Each submitted request gets exactly one event with
 * finish set, its last. */
struct nib_sched_event {
    struct nib_handle handle;
    uint64_t tag;
    enum nib_finish finish;
    const struct nib_sampled *sampled; /* the token, inside the step_out of this call; NULL: none.
                                          With NIB_FINISH_STOP it is the stop id itself */
    uint32_t answer_tokens;            /* so far, this one and a stop id included */
    uint32_t reused_tokens;            /* of the prompt, computed before it came */
};

/* Counters count from init. submitted == finished + refused + cancelled + failed + queued +
 * running. */
struct nib_sched_stats {
    uint64_t submitted; /* calls of nib_sched_submit */
    uint64_t admitted;  /* got a slot */
    uint64_t finished;  /* stop or length */
    uint64_t refused;   /* submit gave an error */
    uint64_t cancelled; /* cancel or deadline */
    uint64_t expired;   /* the part of cancelled that the deadline ended */
    uint64_t failed;
    uint32_t queued;     /* now */
    uint32_t running;    /* now: requests in slots */
    uint32_t closing;    /* now: slots whose request ended, held by a step in flight */
    uint32_t pages_used; /* now: by slots, shared ones once */
    uint32_t pages_idle; /* now: kept, and free for whoever needs them */
    uint32_t pages_count;
    uint32_t prompt_tokens_held; /* in whole chunks */
    uint32_t steps_in_flight;
    uint64_t steps;       /* finished */
    uint64_t rows_prompt; /* of all steps begun */
    uint64_t rows_decode;
    uint64_t tokens;          /* given out in events */
    uint64_t tokens_dropped;  /* sampled past the end of their request */
    uint64_t overtaken;       /* admissions past a request that waited for pages */
    uint64_t tokens_reused;   /* of prompts: computed before they came */
    uint64_t tokens_drafted;  /* guessed, and rows of a step */
    uint64_t tokens_accepted; /* of them, given out in events */
    uint64_t pages_evicted;   /* kept pages that others needed */
};

struct nib_sched;

/* Bytes nib_sched_init takes from the arena, padding included; 0 when the config is refused. */
size_t nib_sched_bytes(const struct nib_sched_config *config);

/* NIB_E_ARG: a number is outside its range. NIB_E_NOMEM: the arena is too small. Boot thread. */
enum nib_err nib_sched_init(struct nib_arena *arena, const struct nib_sched_config *config,
                            struct nib_sched **ret_sched, struct nib_msg *msg) NIB_CHECKED;

/* Events one call of next_step, finish_step or abort can yield at most. */
uint32_t nib_sched_events_max(const struct nib_sched *sched);

/* Queues a request. NIB_E_ARG: a field is outside its range. NIB_E_LIMIT: prompt and answer are
 * longer than the context or the pool, or the prompt than prompt_tokens_max: it can never run.
 * NIB_E_FULL: no place in the queue, or no room for the prompt, now (429). NIB_E_STATE: draining
 * (503). Each call counts in the ledger; an error counts as refused. */
enum nib_err nib_sched_submit(struct nib_sched *sched, const struct nib_request *request, struct nib_handle *ret_handle,
                              struct nib_msg *msg) NIB_CHECKED;

/* For Retry-After: milliseconds until a queue place is likely free, from how often requests ended
 * lately; 1,000 before any has. */
uint64_t nib_sched_retry_ms(const struct nib_sched *sched);

/* Marks the request; the next next_step ends it, and gives its pages back unless a step in flight
 * has rows of it: then when that step is finished. NIB_E_STATE: the handle is stale. */
enum nib_err nib_sched_cancel(struct nib_sched *sched, struct nib_handle handle) NIB_CHECKED;

/* From now on submit is refused; what is queued and running goes on. */
void nib_sched_drain(struct nib_sched *sched);

/* Ends marked and late requests (events), admits, and fills *ret_step. rows_count 0: nothing to run
 * now (serial is then 0 and the step must not be submitted); else the step counts as in flight
 * until nib_sched_finish_step. ret_events: [events_max]. NIB_E_STATE: steps_ahead steps are in
 * flight; nothing changed. */
enum nib_err nib_sched_next_step(struct nib_sched *sched, uint64_t now_ms, struct nib_step *ret_step,
                                 struct nib_sched_event *ret_events, uint32_t *ret_events_count) NIB_CHECKED;

/* Takes the result of the oldest step in flight. NIB_E_STATE: none is. NIB_E_ARG: it is not the
 * result of that step (serial, count, slots, ids); nothing changed. */
enum nib_err nib_sched_finish_step(struct nib_sched *sched, uint64_t now_ms, const struct nib_step_out *out,
                                   struct nib_sched_event *ret_events, uint32_t *ret_events_count) NIB_CHECKED;

/* With gap_percent or draft_tokens, before the oldest step in flight is finished: how long the engine ran it, the time not counted
 * that it waited for the one before. NIB_E_STATE: none is in flight. */
enum nib_err nib_sched_took(struct nib_sched *sched, uint64_t step_us) NIB_CHECKED;

/* The engine is lost: every request ends as NIB_FINISH_FAILED, steps in flight are forgotten, all
 * pages are free, and submit is refused from now on. */
void nib_sched_abort(struct nib_sched *sched, struct nib_sched_event *ret_events, uint32_t *ret_events_count);

void nib_sched_stats(const struct nib_sched *sched, struct nib_sched_stats *ret_stats);

/* True when the ledger, the pages, the prompt chunks and the slots agree. O(pages + slots + queue).
 */
bool nib_sched_check(const struct nib_sched *sched);

/* The page pool, to look at; and what is kept in it. */
const struct nib_kv *nib_sched_kv(const struct nib_sched *sched);
const struct nib_prefix *nib_sched_prefix(const struct nib_sched *sched);

/* "stop", "length", "cancelled", "deadline", "failed"; "none". */
const char *nib_finish_name(enum nib_finish finish);

#endif
