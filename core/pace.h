/* core/pace.h: how many prompt rows a step may carry beside answers, so that answers keep their pace.
 *
 * A pure state machine without a clock: it is told how long each step took. For every number of rows that decode
 * (levels, half an octave wide) it keeps how long a step without prompt rows takes, and grows or shrinks what
 * prompts may add, so that a step with both takes at most `ratio` times as long, with a quarter of the addition left
 * over for noise. What was not measured yet is measured first: one step without prompt rows.
 *
 * Where not even step_rows_max / NIB_PACE_SHARE rows fit, since reading the experts for few rows takes as long as
 * for many, prompts move in long turns: a step with all rows that it may have, then a rest without, of NIB_PACE_TURN
 * steps, so that fewer than one gap in a hundred is long, or of NIB_PACE_REST times the turn's time if that is less, so
 * that one prompt has a thirteenth of the time at least. With more prompts the rest is shorter, by their number.
 *
 * The bound is for long prompts. Short ones are finished, as many as a step holds, whatever fits: waiting would cost their first
 * token more than the others' next, and where answers are many, few rows in every step are the slowest way to read prompts. Such a step
 * is no long turn: those come as often as they would.
 *
 * Prompts never starve: of any NIB_PACE_TURN + NIB_PACE_LEVELS + 1 steps in which they may have rows one has. One thread. Cannot fail. */
#ifndef NIB_CORE_PACE_H
#define NIB_CORE_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/limits.h"

#define NIB_PACE_LEVELS 16  /* up to 1, 2, 3, 4, 6, 8, 12, 16, ... 192, 256 rows */
#define NIB_PACE_SHARE  16  /* of a step: fewer prompt rows in each step are slower than long turns */
#define NIB_PACE_TURN   160 /* steps of the longest rest */
#define NIB_PACE_REST   12  /* times the time of a long turn */

struct nib_pace_level {
    uint32_t idle_us;    /* of a step that only decodes; 0: not known */
    uint32_t rows;       /* of prompts, that fit; 0: none do */
    uint32_t over;       /* times in a row that the fewest took too long */
    uint32_t since_idle; /* steps with prompt rows since idle_us was measured */
    bool measuring;      /* a step without prompt rows was asked for */
};

struct nib_pace {
    uint32_t percent; /* 100 x the ratio */
    uint32_t step_rows_max;
    uint32_t rows_min;
    uint32_t since_long; /* steps that decode; stays at NIB_PACE_TURN */
    uint32_t turns;      /* long ones */
    uint64_t rest_us;    /* since the last of them */
    uint64_t turn_us;    /* what its prompt rows took; 0: none was measured */
    bool turn;           /* what was given last is a long turn */
    struct nib_pace_level levels[NIB_PACE_LEVELS];
};

/* The level of a number of decode rows, 1..NIB_MAX_SLOTS. */
uint32_t nib_pace_level(uint32_t decode_rows);

/* An average, 0 when there is none yet, and one more step. What is faster counts at once by half. What is slower counts by
 * an eighth, and as twice as slow at most: something else may have held that step up. Never 0. */
uint32_t nib_pace_average(uint32_t average_us, uint64_t step_us);

/* percent: at most NIB_MAX_GAP_PERCENT, not 0. */
void nib_pace_init(struct nib_pace *pace, uint32_t percent, uint32_t step_rows_max);

/* What may be given: */
struct nib_pace_ask {
    uint32_t decode_rows; /* of the next step, from 1 */
    uint32_t prompts;     /* that are fed, from 1 */
    uint32_t fit_max;     /* rows at most */
    uint32_t turn_max;    /* in a long turn */
    uint32_t finish_rows; /* with which short prompts are finished, at most fit_max; 0: there is none */
};

/* Prompt rows that the next step may have: those that fit, a long turn's, or those that finish short prompts and half of what fits. */
uint32_t nib_pace_rows(struct nib_pace *pace, const struct nib_pace_ask *ask);

/* A step was begun with so many rows. Whether it is a long turn. */
bool nib_pace_begun(struct nib_pace *pace, uint32_t decode_rows, uint32_t prompt_rows);

/* What a step was begun with, and how long it took. */
struct nib_pace_step {
    uint32_t decode_rows, prompt_rows;
    bool turn;
    uint64_t us;
};

void nib_pace_took(struct nib_pace *pace, const struct nib_pace_step *step);

#endif
