/* core/draft.c: owns nothing but the numbers of its callers' structs. Limits: NIB_DRAFT_ROWS, NIB_MAX_SLOTS. The stepper
 * thread. Cannot fail. */
#include "core/draft.h"

#include <stddef.h>

#include "core/arith.h"
#include "core/err.h"

#define FORGET_AT  64    /* tries of a class; then half of them are forgotten */
#define CHANCE_MIN 0.05f /* a row that counts less often is not looked at */
#define PRIOR      4     /* tries that are taken for granted */

/* Of PRIOR tries, those that were right, by class. */
static const float prior[NIB_DRAFT_CLASSES] = {1.0f, 2.0f, 3.0f, 3.5f};

static uint32_t class_of(uint32_t match)
{
    return match < 3 ? 0 : match < 5 ? 1 : match < 10 ? 2 : 3;
}

void nib_draft_learn(struct nib_draft_trust *trust, uint32_t match, bool right)
{
    const uint32_t c = class_of(match);
    trust->tried[c]++;
    trust->right[c] = (uint16_t)(trust->right[c] + right);
    if (trust->tried[c] == FORGET_AT) {
        trust->tried[c] /= 2;
        trust->right[c] /= 2;
    }
}

static float chance_of(const struct nib_draft_trust *trust, uint32_t match)
{
    const uint32_t c = class_of(match);
    return ((float)trust->right[c] + prior[c]) / (float)(trust->tried[c] + PRIOR);
}

void nib_draft_took(struct nib_draft_cost *cost, uint32_t rows, uint64_t step_us)
{
    const uint32_t level = nib_pace_level(rows);
    cost->steps++;
    cost->when[level] = cost->steps;
    cost->us[level] = nib_pace_average(cost->us[level], step_us);
}

/* 0: not known. */
static uint32_t time_of(const struct nib_draft_cost *cost, uint32_t level)
{
    return cost->steps - cost->when[level] < NIB_DRAFT_FRESH_STEPS ? cost->us[level] : 0;
}

static struct nib_draft_ask *best_of(struct nib_draft_ask *asks, uint32_t count)
{
    struct nib_draft_ask *best = NULL;
    for (uint32_t i = 0; i < count; i++)
        if (asks[i].take < asks[i].most && (!best || asks[i].chance > best->chance))
            best = &asks[i];
    return best && best->chance >= CHANCE_MIN ? best : NULL;
}

uint32_t nib_draft_share(const struct nib_draft_cost *cost, struct nib_draft_ask *asks, uint32_t count, uint32_t rows,
                         uint32_t room)
{
    struct nib_draft_ask *order[NIB_DRAFT_ROWS];
    for (uint32_t i = 0; i < count; i++) {
        asks[i].take = 0;
        asks[i].chance = chance_of(asks[i].trust, asks[i].match);
    }
    uint32_t step_us = time_of(cost, nib_pace_level(rows)), best = 0, level = nib_pace_level(rows);
    if (step_us == 0)
        return 0; /* what it costs without is measured first */
    float tokens = (float)rows, rate = tokens / (float)step_us * (1.0f + NIB_DRAFT_GAIN_PERCENT / 100.0f);
    for (uint32_t n = 0; n < NIB_DRAFT_ROWS && n < room; n++) {
        struct nib_draft_ask *ask = best_of(asks, count);
        if (!ask)
            break;
        order[n] = ask;
        tokens += ask->chance;
        ask->take++;
        ask->chance *= chance_of(ask->trust, ask->match + ask->take);
        for (; level < nib_pace_level(rows + n + 1); level++) {
            const uint32_t us = time_of(cost, level + 1);
            step_us = us > step_us ? us : step_us;
        }
        if (tokens / (float)step_us > rate) {
            rate = tokens / (float)step_us;
            best = n + 1;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        asks[i].take = 0;
    for (uint32_t n = 0; n < best; n++)
        order[n]->take++;
    return best;
}
