/* core/engine.h: the contract between the scheduler and anything that can run the model.
 *
 * A row is one token at one position of one sequence. A step is a fixed-size array of rows, decode rows and prefill
 * chunks mixed, of the sequences that sit in slots. The engine runs the step and yields, for each row that wants
 * logits, the sampled token. arch/ref, the x86 rows and the GPU engine implement this one contract.
 *
 * Promises of every engine:
 * - The result for a row depends only on its own sequence and sampling parameters, never on the other rows of the
 *   step, on how the prompt was cut into chunks, or on which pages it was given: the bits are the same.
 * - It allocates nothing between open and close.
 * - submit and collect are called by one thread, the stepper. Steps complete in the order of submission. */
#ifndef NIB_CORE_ENGINE_H
#define NIB_CORE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/err.h"
#include "core/limits.h"
#include "core/model.h"

enum nib_row_flag {
    NIB_ROW_LOGITS = 1, /* sample a token after this row */
    NIB_ROW_DECODE =
        2, /* carries an answer token (decode kernels), already counted when it was sampled: the only row of
                             its slot in this step, or the first of a draft. Rows without it carry prompt tokens */
    NIB_ROW_FEEDBACK = 4, /* `token` is ignored: use the token this slot's last NIB_ROW_LOGITS row sampled; that was no
                             row of a draft */
    NIB_ROW_FIRST = 8 /* first row of a new sequence in this slot: forget the slot's sampler state. At position 0, or at
                             the first position after the pages that were computed before (see nib_kv_copy) */
};

struct nib_row {
    uint32_t token; /* id, < shape.vocab */
    uint32_t pos;   /* position in its sequence, from 0 */
    uint16_t slot;  /* < slots of the engine */
    uint16_t flags; /* enum nib_row_flag */
};

struct nib_bias {
    uint32_t token;
    float bias; /* added to the logit */
};

/* How a slot samples. Order of application: banned ids to -inf, logit bias, penalties, temperature, top-k, top-p,
 * min-p; log-probabilities are those of the logits before temperature and truncation, after bias and bans. */
struct nib_sampling {
    float temperature;        /* 0 = greedy (ties: lowest id) */
    float top_p;              /* (0, 1] */
    float min_p;              /* [0, 1) */
    float repetition_penalty; /* 1 = off; prompt and answer tokens */
    float frequency_penalty;  /* answer tokens */
    float presence_penalty;   /* answer tokens */
    uint32_t top_k;           /* 0 = off */
    uint32_t top_logprobs;    /* 0..NIB_MAX_TOP_LOGPROBS alternatives to report */
    bool logprobs;            /* report the chosen token's log-probability */
    uint64_t seed;            /* the draw at position p uses a counter-based generator keyed by (seed, p) */
    uint32_t bias_count;
    struct nib_bias bias[NIB_MAX_LOGIT_BIAS];
};

/* A slot's KV pages for full-attention layers: position p lives in page pages[p / NIB_KV_PAGE_TOKENS]. Window layers
 * use a ring the engine keeps per slot and need no table. */
struct nib_kv_table {
    const uint32_t *pages; /* [pages_count], page ids < kv_pages of the engine */
    uint32_t pages_count;
};

/* Keys and values of all window layers at the positions of one page, copied between a slot's rings and a page of the
 * pool, which has room for them since every shape has as many full layers as window layers. So a sequence can begin
 * behind pages that an earlier one computed: its table names them, and its rings get what its first rows still see. */
struct nib_kv_copy {
    uint32_t page;  /* of the pool */
    uint32_t index; /* of the page in its sequence: positions index * NIB_KV_PAGE_TOKENS and on */
    uint16_t slot;
};

/* A draft: several NIB_ROW_DECODE rows of one slot, all with NIB_ROW_LOGITS. The first carries the answer's last token,
 * each other the token that the row before it is guessed to sample. Every row gives a token, as if all guesses before it
 * were right; the caller keeps those up to the first wrong guess, and computes the positions behind it again. Only slots
 * without penalties may have one, since a penalty looks at what was sampled before, and a step with one has no prompt rows. */
struct nib_step {
    uint64_t serial;                        /* counts from 1 */
    uint32_t rows_count;                    /* 1..step_rows_max of the engine */
    struct nib_row rows[NIB_MAX_STEP_ROWS]; /* a slot's rows are consecutive, positions ascending by 1; the last of them
                                             may want logits, others only in a draft */
    const struct nib_kv_table *tables;      /* [slots]; must stay valid until the step is collected */
    const struct nib_sampling *sampling;    /* [slots]; likewise */
    uint32_t loads_count, saves_count;
    struct nib_kv_copy loads[NIB_MAX_KV_LOADS]; /* before the rows, in order: page to ring */
    struct nib_kv_copy saves[NIB_MAX_KV_SAVES]; /* after the rows, in order: ring to page */
    float *logits; /* tests: [rows that want logits][vocab] raw logits, row order; else NULL */
};

struct nib_top {
    uint32_t token;
    float logprob;
};

struct nib_sampled {
    uint32_t token;
    uint16_t slot;
    bool failed;   /* the logits held a NaN or only -inf: the request must end with an error */
    float logprob; /* natural log; 0 unless asked */
    uint32_t top_count;
    struct nib_top top[NIB_MAX_TOP_LOGPROBS]; /* descending */
};

struct nib_step_out {
    uint64_t serial;
    uint32_t count;                            /* rows that wanted logits, in row order */
    struct nib_sampled sampled[NIB_MAX_SLOTS]; /* [count] */
};

/* Sizes an engine was opened with; the scheduler obeys them. */
struct nib_engine_dims {
    uint32_t slots;         /* sequences at once */
    uint32_t ctx_tokens;    /* longest sequence */
    uint32_t kv_pages;      /* pages of the full-attention pool */
    uint32_t step_rows_max; /* rows of one step */
    uint32_t steps_ahead;   /* steps that may be submitted and not yet collected: 1..NIB_MAX_STEPS_AHEAD */
    uint32_t want_rows_max; /* rows of one step that decode or want logits: slots..NIB_MAX_SLOTS; 0 = slots */
};

static inline uint32_t nib_want_rows_max(const struct nib_engine_dims *dims)
{
    return dims->want_rows_max ? dims->want_rows_max : dims->slots;
}

/* Whether what a slot samples depends on what it sampled before. */
static inline bool nib_sampling_penalises(const struct nib_sampling *sampling)
{
    return sampling->repetition_penalty != 1.0f || sampling->frequency_penalty != 0.0f ||
           sampling->presence_penalty != 0.0f;
}

struct nib_engine;

struct nib_engine_ops {
    /* Starts a step. The step is copied or not used after return, except tables, sampling and logits.
     * NIB_E_ARG: the step breaks a rule above (nothing was run). NIB_E_DEVICE: the engine is lost. */
    enum nib_err (*submit)(struct nib_engine *engine, const struct nib_step *step, struct nib_msg *msg);
    /* Waits for the oldest submitted step. NIB_E_STATE: none is under way. NIB_E_DEVICE: the engine is lost. */
    enum nib_err (*collect)(struct nib_engine *engine, struct nib_step_out *ret_out, struct nib_msg *msg);
    /* Stops threads; memory belongs to the plan's arenas. */
    void (*close)(struct nib_engine *engine);
};

/* First member of every engine's own struct. */
struct nib_engine {
    const struct nib_engine_ops *ops;
    const char *row; /* name of the capability-table row that runs */
    const struct nib_shape *shape;
    struct nib_engine_dims dims;
};

/* Whether the step has a draft. */
bool nib_step_drafts(const struct nib_step *step);

/* Checks a step against the rules above; engines call it first. */
enum nib_err nib_step_check(const struct nib_engine *engine, const struct nib_step *step,
                            struct nib_msg *msg) NIB_CHECKED;

#endif
