/* core/pace.c: owns nothing but the numbers in struct nib_pace. Limits: NIB_PACE_LEVELS, step_rows_max. The stepper
 * thread. Cannot fail. */
#include "core/pace.h"

#include <string.h>

#include "core/arith.h"
#include "core/err.h"

#define MEASURE_EVERY 64         /* steps with prompt rows until one without is measured again */
#define TRY_EVERY     16         /* of so many long turns one tries again whether few rows fit */
#define LONGEST_US    1000000000 /* longer steps count as this */

_Static_assert(NIB_MAX_SLOTS == 256, "the last level");

uint32_t nib_pace_level(uint32_t decode_rows)
{
    uint32_t level = 0;
    for (uint32_t top = 1; top < decode_rows; level++) {
        const bool power = (top & (top - 1)) == 0;
        top = top == 1 ? 2 : power ? top / 2 * 3 : top / 3 * 4;
    }
    NIB_MUST(decode_rows >= 1 && level < NIB_PACE_LEVELS);
    return level;
}

static struct nib_pace_level *level_of(struct nib_pace *pace, uint32_t decode_rows)
{
    return &pace->levels[nib_pace_level(decode_rows)];
}

void nib_pace_init(struct nib_pace *pace, uint32_t percent, uint32_t step_rows_max)
{
    NIB_MUST(percent >= 1 && percent <= NIB_MAX_GAP_PERCENT && step_rows_max >= 1);
    memset(pace, 0, sizeof *pace);
    pace->percent = percent;
    pace->step_rows_max = step_rows_max;
    pace->rows_min = (uint32_t)nib_div_up(step_rows_max, NIB_PACE_SHARE);
    pace->since_long = NIB_PACE_TURN;
    for (uint32_t i = 0; i < NIB_PACE_LEVELS; i++)
        pace->levels[i].rows = pace->rows_min;
}

static void rest(struct nib_pace *pace)
{
    pace->since_long = 0;
    pace->rest_us = 0;
}

static bool rested(const struct nib_pace *pace, uint32_t prompts)
{
    return (uint64_t)pace->since_long * prompts >= NIB_PACE_TURN ||
           (pace->turn_us != 0 && pace->rest_us * prompts >= NIB_PACE_REST * pace->turn_us);
}

uint32_t nib_pace_rows(struct nib_pace *pace, const struct nib_pace_ask *ask)
{
    struct nib_pace_level *level = level_of(pace, ask->decode_rows);
    pace->turn = false;
    if (!level->measuring && (level->idle_us == 0 || level->since_idle >= MEASURE_EVERY)) {
        level->measuring = true;
        return 0;
    }
    if (level->rows == 0) {
        if (!rested(pace, ask->prompts))
            return ask->finish_rows;
        pace->turn = ++pace->turns % TRY_EVERY != 0;
        if (pace->turn)
            return ask->turn_max;
        level->rows = pace->rows_min;
        rest(pace);
    }
    if (ask->finish_rows == 0)
        return (uint32_t)nib_min_u64(level->rows, ask->fit_max);
    const uint32_t finish = ask->finish_rows + level->rows / 2;
    return (uint32_t)nib_min_u64(finish > level->rows ? finish : level->rows, ask->fit_max);
}

bool nib_pace_begun(struct nib_pace *pace, uint32_t decode_rows, uint32_t prompt_rows)
{
    const bool turn = pace->turn && prompt_rows != 0;
    pace->turn = false;
    if (turn)
        rest(pace);
    else if (decode_rows != 0 && pace->since_long < NIB_PACE_TURN)
        pace->since_long++;
    return turn;
}

static uint32_t bounded_us(uint64_t step_us)
{
    return 1 + (uint32_t)nib_min_u64(step_us, LONGEST_US);
}

uint32_t nib_pace_average(uint32_t average_us, uint64_t step_us)
{
    const uint32_t took_us = bounded_us(step_us);
    if (average_us == 0)
        return took_us;
    if (took_us < average_us)
        return average_us - (average_us - took_us) / 2;
    return average_us + (uint32_t)nib_min_u64(took_us - average_us, average_us) / 8;
}

static void too_long(const struct nib_pace *pace, struct nib_pace_level *level, uint32_t prompt_rows, bool far)
{
    if (prompt_rows > level->rows)
        return;
    level->rows = far ? prompt_rows / 2 : prompt_rows - (prompt_rows + 7) / 8;
    if (level->rows < pace->rows_min)
        level->rows = ++level->over < 2 ? pace->rows_min : 0;
}

static void fits(const struct nib_pace *pace, struct nib_pace_level *level, uint32_t prompt_rows, bool easily)
{
    if (prompt_rows < level->rows)
        return;
    level->over = 0;
    level->rows =
        (uint32_t)nib_min_u64(easily ? 2 * prompt_rows : prompt_rows + prompt_rows / 16 + 1, pace->step_rows_max);
}

void nib_pace_took(struct nib_pace *pace, const struct nib_pace_step *step)
{
    if (step->decode_rows == 0)
        return;
    struct nib_pace_level *level = level_of(pace, step->decode_rows);
    const uint32_t took_us = bounded_us(step->us), prompt_rows = step->prompt_rows;
    pace->rest_us += took_us;
    if (prompt_rows == 0) {
        level->idle_us = nib_pace_average(level->idle_us, step->us);
        level->since_idle = 0;
        level->measuring = false;
        return;
    }
    level->since_idle++;
    if (level->idle_us == 0)
        return;
    const uint64_t more_us = took_us > level->idle_us ? took_us - level->idle_us : 0;
    if (step->turn) {
        pace->turn_us = more_us;
        pace->rest_us = 0;
    }
    const uint64_t most_us = pace->percent > 100 ? level->idle_us * (pace->percent - 100ull) * 3 / 400 : 0;
    if (more_us > most_us)
        too_long(pace, level, prompt_rows, more_us > 2 * most_us);
    else
        fits(pace, level, prompt_rows, more_us <= most_us / 2);
}
