/* core/sched_impl.h: what sched.c and sched_step.c share. Not a contract; nobody else includes it.
 */
#ifndef NIB_CORE_SCHED_IMPL_H
#define NIB_CORE_SCHED_IMPL_H

#include "core/draft.h"
#include "core/lookup.h"
#include "core/pace.h"
#include "core/prompt.h"
#include "core/sched.h"

#define SCHED_NONE UINT32_MAX /* no entry */

enum entry_state { ENTRY_FREE, ENTRY_QUEUED, ENTRY_RUNNING };

/* A request, queued or running. */
struct sched_entry {
    enum entry_state state;
    uint32_t generation;
    bool cancel; /* ends at the next next_step */
    uint32_t uid;
    uint64_t tag;
    uint64_t deadline_ms;
    uint64_t round;     /* order of admission: round, then arrival */
    uint64_t arrival;   /* counts submits */
    uint32_t overtaken; /* times it was passed while it waited for pages */
    uint32_t slot;      /* when running */
    uint32_t prompt_tokens;
    uint32_t reused_tokens; /* of the prompt; when running */
    uint32_t answer_tokens_max;
    uint32_t answer_tokens; /* given out */
    uint32_t stop_count;
    uint32_t stop[NIB_MAX_STOP_TOKENS];
    struct nib_prompt prompt; /* not yet fed */
};

/* IDLE: no pages, no refs. RUNNING: entry valid. CLOSING: its request ended, pages are held until
 * refs is 0. */
enum slot_state { SLOT_IDLE, SLOT_RUNNING, SLOT_CLOSING };

struct sched_slot {
    enum slot_state state;
    uint32_t entry;
    uint32_t refs;       /* steps in flight with rows of this slot */
    uint32_t next_pos;   /* of the next row */
    uint32_t first_pos;  /* of the first row: behind the pages that were there */
    bool waits;          /* begins in a later step: see nib_sched_wait */
    bool same_ends;      /* same_pages is all, not only as far as was looked */
    uint32_t same_pages; /* that the prompt has in common with that of `same_as`, an admission */
    uint64_t same_as;
    uint32_t begun;        /* rows with LOGITS put into steps */
    uint32_t last_token;   /* sampled last; valid when all begun are collected */
    uint32_t draft_tokens; /* guessed tokens behind the last row of the step that begins or is under way */
    uint32_t draft[NIB_MAX_DRAFT_TOKENS]; /* [draft_tokens] */
    struct nib_draft_trust trust;
    uint64_t admitted; /* counts admissions */
    uint64_t admitted_ms;
};

/* A step in flight. */
struct sched_flight {
    uint64_t serial;
    uint32_t decode_rows, prompt_rows;
    bool turn;   /* long: core/pace.h */
    bool drafts; /* some rows are guessed: nothing begins before its tokens are known */
    uint32_t count;
    uint16_t slot[NIB_MAX_SLOTS];   /* [count] row order */
    uint16_t wanted[NIB_MAX_SLOTS]; /* [count] tokens it wants: 0, 1, or one for each row of a draft */
};

struct nib_sched {
    struct nib_sched_config config;
    struct nib_kv kv;
    struct nib_prefix prefix;
    uint32_t spare_pages; /* that no admission takes, so that window pages have room; 0 in a pool for one sequence */
    struct nib_prompt_pool prompts;
    struct nib_pace pace;         /* with gap_percent */
    struct nib_lookup lookup;     /* with draft_tokens */
    struct nib_draft_cost cost;   /* likewise */
    uint32_t entries_count;       /* queue_max + slots */
    struct sched_entry *entries;  /* [entries_count] */
    struct nib_sampling *waiting; /* [entries_count] of queued requests */
    uint32_t *free;               /* [entries_count] stack of free entries */
    uint32_t free_count;
    struct sched_slot *slots;                         /* [slots] */
    struct nib_sampling *sampling;                    /* [slots] what steps point at */
    struct sched_flight flights[NIB_MAX_STEPS_AHEAD]; /* oldest first */
    uint32_t flights_count;
    uint64_t serial; /* of the last step begun */
    uint64_t round;  /* of the request that was next at the last admission */
    uint64_t arrivals;
    uint64_t admissions;
    uint64_t held_ms_x8; /* 8 x the moving average of the time a request holds its slot */
    bool draining;
    bool lost;                    /* after abort */
    struct nib_sched_stats stats; /* counters only; the rest is filled on reading */
};

/* Appends an event to an array; the caller's array holds entries_count. */
struct sched_events {
    struct nib_sched_event *list;
    uint32_t count;
};

/* Ends a request: ledger, prompt chunks, slot, pages (unless refs), entry; appends its last event.
 */
void nib_sched_end(struct nib_sched *sched, uint32_t index, enum nib_finish finish, const struct nib_sampled *sampled,
                   uint64_t now_ms, struct sched_events *events);

/* Gives the slot's pages back and makes it idle; refs must be 0. */
void nib_sched_slot_free(struct nib_sched *sched, uint32_t slot);

/* sched_begin.c, where prompts begin. A slot's pages, when it is admitted; loads of window pages go into the step, prompt
 * tokens that need not be fed are passed over. */
void nib_sched_take(struct nib_sched *sched, uint32_t at, struct nib_step *step);

/* Marks the slots that should not begin yet, since the `oldest` prefilling one (or SCHED_NONE) is about to compute what
 * they begin with too. */
void nib_sched_wait(struct nib_sched *sched, uint32_t oldest);

/* Before a slot's first row: begins behind what became known since it was admitted. False: it waits, for room for loads. */
bool nib_sched_begin(struct nib_sched *sched, uint32_t at, bool oldest, struct nib_step *step);

/* A row with a prompt token, the last or not: it is noted; where prompts are likely to part, what leads there is saved. */
void nib_sched_note(struct nib_sched *sched, const struct nib_row *row, bool last, struct nib_step *step);

/* sched_draft.c. Before the slot's prompt is read: its tokens are noted; and one more of its answer. */
void nib_sched_draft_begin(struct nib_sched *sched, uint32_t at);
void nib_sched_draft_token(struct nib_sched *sched, uint32_t at, uint32_t token);

/* Sets draft_tokens and draft of all slots for the next step. True: some have any, or would have if no step were in flight. */
bool nib_sched_draft_plan(struct nib_sched *sched);

/* Of the tokens that a slot's rows gave, those whose row was guessed right: 1..wanted. */
uint32_t nib_sched_draft_kept(const struct nib_sched *sched, uint32_t at, const struct nib_sampled *sampled,
                              uint32_t wanted);

/* The last `wrong` rows of the slot were never there. */
void nib_sched_draft_back(struct nib_sched *sched, uint32_t at, uint32_t wrong);

/* Moves queued requests into idle slots, in order, as pages and the step's loads allow; adds to these. */
void nib_sched_admit(struct nib_sched *sched, uint64_t now_ms, struct nib_step *step);

#endif
