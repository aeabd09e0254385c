/* core/sample_draw.c: Gumbel-max over all ids or over the list truncation kept.
 *
 * The word of an id loses without a logarithm when v > exp(d - best), since -log(1 - v) >= v: one
 * bound a block, an integer compare an id. The bound is rounded up, so that the result is the one
 * of evaluating every id. Owns nothing, any thread, cannot fail. */
#include "core/rng.h"
#include "core/sample_impl.h"

struct best {
    double score;
    uint32_t id;
};

/* Words below this may still win at distance d; 2^32: all. */
static uint64_t word_limit(float d, double score)
{
    double x = (double)d - score;
    if (x >= 0)
        return (uint64_t)1 << 32;
    double bound = (double)sample_exp((float)x) * 0x1p32 * 1.0001 + 0.5;
    return bound >= 0x1p32 ? (uint64_t)1 << 32 : (uint64_t)bound;
}

static void try_id(struct best *best, uint32_t id, float d, uint32_t word)
{
    double v = ((double)word + 0.5) * 0x1p-32;
    double score = (double)d - log(-log1p(-v));
    if (score > best->score || (score == best->score && id < best->id)) {
        best->score = score;
        best->id = id;
    }
}

static void try_block(const struct sample_work *work, uint32_t b, uint64_t seed, uint32_t pos, struct best *best)
{
    uint64_t limit = word_limit(sample_d(work, work->block_max[b]), best->score);
    if (limit == 0)
        return;
    uint32_t word[SAMPLE_BLOCK];
    nib_rng_draw32(seed, pos, b, word);
    for (uint32_t i = 0; i < SAMPLE_BLOCK; i++) {
        if (word[i] >= limit)
            continue;
        uint32_t id = b * SAMPLE_BLOCK + i;
        if (work->z[id] != -INFINITY)
            try_id(best, id, sample_d(work, work->z[id]), word[i]);
    }
}

uint32_t nib_sample_draw_all(const struct sample_work *work, uint64_t seed, uint32_t pos)
{
    struct best best = {.score = -INFINITY, .id = UINT32_MAX};
    uint32_t first = 0; /* the block of the maximum sets a high bound */
    while (work->block_max[first] != work->max)
        first++;
    try_block(work, first, seed, pos, &best);
    for (uint32_t b = 0; b < work->blocks; b++)
        if (b != first && work->block_max[b] != -INFINITY)
            try_block(work, b, seed, pos, &best);
    return best.id;
}

uint32_t nib_sample_draw_list(const struct sample_work *work, uint64_t seed, uint32_t pos)
{
    struct best best = {.score = -INFINITY, .id = UINT32_MAX};
    bool dense = work->list_count / 4 >= work->blocks; /* 4 of 32 ids: all 32 words at once cost less */
    uint32_t width = dense ? SAMPLE_BLOCK : 4;
    uint32_t word[SAMPLE_BLOCK], group = UINT32_MAX;
    for (uint32_t i = 0; i < work->list_count; i++) {
        uint32_t id = work->list[i];
        float d = sample_d(work, work->z[id]);
        uint64_t limit = word_limit(d, best.score);
        if (limit == 0)
            continue;
        if (id / width != group) {
            group = id / width;
            if (dense)
                nib_rng_draw32(seed, pos, group, word);
            else
                nib_rng_draw(seed, pos, group, word);
        }
        if (word[id % width] < limit)
            try_id(&best, id, d, word[id % width]);
    }
    return best.id;
}
