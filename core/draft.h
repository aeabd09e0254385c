/* core/draft.h: how many guessed tokens of which sequences the next step should verify, if any.
 *
 * A pure state machine without a clock: it is told how long each step took, and which guesses came true, whether they were
 * verified in a step or only compared with what came. A guessed row is worth its chance to count: the product of
 * how often guesses of this sequence came true, by how many tokens agreed before them. The rows with the best chances are
 * added as long as tokens for each second grow, by NIB_DRAFT_GAIN_PERCENT at least; where none do, the step goes without.
 * So a sequence whose guesses fail, or an engine for which more rows cost as much as more steps, turns it off by itself,
 * and on again when the guesses that are only compared come true. A number of rows whose time is not known, or was measured
 * long ago, is taken to cost as much as fewer do, and so tried once. One thread. Cannot fail. */
#ifndef NIB_CORE_DRAFT_H
#define NIB_CORE_DRAFT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/limits.h"
#include "core/pace.h"

#define NIB_DRAFT_CLASSES      4    /* 2, 3 to 4, 5 to 9, 10 and more tokens that agree */
#define NIB_DRAFT_ROWS         64   /* guessed rows of a step, of all sequences together */
#define NIB_DRAFT_GAIN_PERCENT 5    /* less is within what measurements err by */
#define NIB_DRAFT_FRESH_STEPS  2048 /* a level's time counts as known for so many steps */

/* What became of a sequence's guesses; all zeros when it begins. */
struct nib_draft_trust {
    uint16_t tried[NIB_DRAFT_CLASSES], right[NIB_DRAFT_CLASSES];
};

/* Of steps without prompt rows, by their decode rows; all zeros at first. */
struct nib_draft_cost {
    uint32_t us[NIB_PACE_LEVELS];   /* of a step; 0: not known */
    uint64_t when[NIB_PACE_LEVELS]; /* `steps` when it was measured last */
    uint64_t steps;
};

/* One sequence that has a guess. */
struct nib_draft_ask {
    uint32_t slot; /* the caller's */
    const struct nib_draft_trust *trust;
    uint32_t match; /* tokens that agree before the guess, from 1 */
    uint32_t most;  /* guessed tokens it may have */
    uint32_t take;  /* out: how many it shall have */
    float chance;   /* scratch: that the next one counts */
};

/* A guess with so many tokens before it met its token. */
void nib_draft_learn(struct nib_draft_trust *trust, uint32_t match, bool right);

/* A step of so many decode rows, 1..NIB_MAX_SLOTS, and none of prompts took so long. */
void nib_draft_took(struct nib_draft_cost *cost, uint32_t rows, uint64_t step_us);

/* Sets take of each of asks[0..count), in a step of `rows` decode rows beside the guessed ones, of which there may be
 * `room`; rows + room <= NIB_MAX_SLOTS. Returns their sum. */
uint32_t nib_draft_share(const struct nib_draft_cost *cost, struct nib_draft_ask *asks, uint32_t count, uint32_t rows,
                         uint32_t room);

#endif
