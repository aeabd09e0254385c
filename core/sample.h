/* core/sample.h: from one row of logits to one token.
 *
 * Pure: the token depends on the logits, the banned ids, the sampling parameters, the tokens the
 * slot has seen and the position; never on the batch, the slot or an earlier draw. Any thread, one
 * scratch a thread. Allocates nothing.
 *
 * The definition, which a GPU can follow operation by operation (fp32 unless said, no fused
 * multiply-add, round to nearest even):
 *  1. z = logit + bias. Banned ids, and logits of -inf, take no further part: nothing below sees
 * them.
 *  2. Log-probabilities are those of z here: z - log(sum exp z).
 *  3. Penalties, in this order. Repetition, for ids in prompt or answer: z / r when z > 0, else z *
 * r. Frequency: z - f * (times in the answer). Presence: z - p when in the answer.
 *  4. Temperature below NIB_SAMPLE_TEMPERATURE_MIN: the largest z, ties to the lowest id. Done.
 *  5. d = (z - max z) * (1 / temperature). Order of ids from here on: z descending, ties by id.
 *     top-k keeps the first k. top-p: weights w = trunc(2^44 * exp(d)), exp as nib_sample_exp; of
 * what top-k kept, the shortest head whose weights sum to at least top_p * (their sum). Sums of
 *     integers do not depend on their order. min-p: keeps d >= log(min_p).
 *  6. Gumbel-max (Gumbel 1954; Maddison, Tarlow, Minka 2014): of the kept ids the one with the
 * largest d + g, ties to the lowest id; g = -log(-log(1 - v)) in double, v = (word + 0.5) / 2^32,
 * word = the id's own noise word, nib_rng_draw(seed, pos, id / 4)[id % 4]. Why Gumbel-max and not
 * one uniform number walked down the cumulative sum: it is an argmax, the same reduction as greedy,
 * so that a GPU needs neither the normaliser nor the logits in memory; it needs no order of
 * summation to be exact; and a change in one id's logit cannot move the draw between two others.
 * The 201,088 noise words cost little, since nearly all of them lose by an integer compare before
 * any logarithm is taken: -log(1 - v) >= v. An id is never drawn when the rest is more than 2^33
 * times likelier. */
#ifndef NIB_CORE_SAMPLE_H
#define NIB_CORE_SAMPLE_H

#include <stddef.h>

#include "core/engine.h"

#define NIB_SAMPLE_TEMPERATURE_MIN 1e-3f /* below: greedy */

/* What one draw reads. */
struct nib_sample_in {
    const float *logits;                 /* [vocab] */
    const uint32_t *banned;              /* [ceil(vocab / 32)]; bit id % 32 of word id / 32 set: banned. NULL: none */
    const uint32_t *state;               /* [vocab] of this slot; NULL: no token seen */
    const struct nib_sampling *sampling; /* passed nib_sample_check */
    uint32_t vocab;                      /* 1..NIB_MAX_VOCAB */
    uint32_t pos;                        /* position of the row the logits belong to */
};

/* Checks the ranges: temperature 0..100, top_p (0, 1], min_p [0, 1), repetition 0.01..100,
 * frequency and presence -100..100, top_logprobs, bias_count, bias ids < vocab, bias -100..100; NaN
 * never. NIB_E_ARG with a sentence. The daemon may allow less. */
enum nib_err nib_sample_check(const struct nib_sampling *sampling, uint32_t vocab, struct nib_msg *msg) NIB_CHECKED;

/* Sets *ret to greedy, nothing else on. */
void nib_sample_defaults(struct nib_sampling *ret);

/* Words of a banned bitmap. */
uint32_t nib_sample_banned_words(uint32_t vocab);

/* Bans every id of the shape that has no name: from special_base on, all but enum nib_special.
 * Leaves the other bits as they are. */
void nib_sample_ban_reserved(const struct nib_shape *shape, uint32_t *banned);

/* The tokens a slot has seen, for the penalties: uint32_t [vocab]. */
size_t nib_sample_state_bytes(uint32_t vocab);

/* Forgets all: at a row with NIB_ROW_FIRST, before that row is counted. */
void nib_sample_reset(uint32_t *state, uint32_t vocab);

/* Counts a prompt token: every row without NIB_ROW_DECODE. */
void nib_sample_seen(uint32_t *state, uint32_t token);

/* Counts an answer token: every sampled token, right after it was sampled; its own NIB_ROW_DECODE
 * row is then not counted again. */
void nib_sample_took(uint32_t *state, uint32_t token);

/* Scratch of one call, any alignment of 64. */
size_t nib_sample_scratch_bytes(uint32_t vocab);

/* Fills all of *ret but slot. failed: an allowed logit is NaN or +inf, or no id is left; then token
 * is 0 and nothing else is set. */
void nib_sample(const struct nib_sample_in *in, void *scratch, struct nib_sampled *ret);

/* exp(x) for x <= 0 as step 5 defines it: about 1e-7 relative; exactly 1 at 0; below -80 as at -80.
 */
float nib_sample_exp(float x);

#endif
