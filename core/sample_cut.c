/* core/sample_cut.c: top-k, top-p and min-p without sorting the vocabulary.
 *
 * A head of the order (the largest logits) is gathered into a list, then cut where its count or its
 * mass reaches the target: a radix descent over the 32 bits of the logit, 11, 11 and 10 bits at a
 * time, three passes over the list whatever its values are. Owns nothing, any thread, cannot fail.
 */
#include <float.h>

#include "core/sample_impl.h"

/* Where an order is cut: ids with a larger key stay, and of those with this key the first few. */
struct cut {
    uint32_t key;
    uint64_t left; /* of the target, after all larger keys */
};

/* values[0..count), or values[list[i]]; each weighs 1 or, with `mass`, its weight. The target must
 * not exceed the sum. */
static struct cut find_cut(const struct sample_work *work, const float *values, const uint32_t *list, uint32_t count,
                           bool mass, uint64_t target)
{
    static const uint32_t shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    struct cut cut = {.key = 0, .left = target};
    for (int level = 0; level < 3; level++) {
        uint32_t shift = shifts[level], mask = (1u << widths[level]) - 1;
        uint64_t above = (uint64_t)cut.key >> (shift + widths[level]);
        memset(work->bucket, 0, SAMPLE_BUCKETS * sizeof *work->bucket);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t at = list ? list[i] : i;
            uint32_t key = sample_key(values[at]);
            if ((uint64_t)key >> (shift + widths[level]) == above)
                work->bucket[key >> shift & mask] += mass ? (uint64_t)(int64_t)work->e[at] : 1;
        }
        uint32_t b = mask;
        for (; work->bucket[b] < cut.left; b--) {
            NIB_MUST(b > 0);
            cut.left -= work->bucket[b];
        }
        cut.key |= b << shift;
    }
    return cut;
}

static float value_of(uint32_t key)
{
    uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Keeps what is above the cut, and the first `ties` at it. */
static void apply_cut(struct sample_work *work, uint32_t key, uint64_t ties)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < work->list_count; i++) {
        uint32_t k = sample_key(work->z[work->list[i]]);
        if (k < key || (k == key && ties == 0))
            continue;
        ties -= k == key;
        work->list[kept++] = work->list[i];
    }
    work->list_count = kept;
}

/* The ids with z >= floor, ascending. */
static void gather(struct sample_work *work, float floor)
{
    uint32_t count = 0;
    for (uint32_t b = 0; b < work->blocks; b++) {
        if (work->block_max[b] < floor)
            continue;
        for (uint32_t i = b * SAMPLE_BLOCK; i < (b + 1) * SAMPLE_BLOCK; i++)
            if (work->z[i] >= floor)
                work->list[count++] = i;
    }
    work->list_count = count;
}

static uint64_t mass_list(const struct sample_work *work)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < work->list_count; i++)
        sum += (uint64_t)(int64_t)work->e[work->list[i]];
    return sum;
}

uint64_t nib_sample_mass_all(struct sample_work *work)
{
    uint64_t sum = 0;
    for (uint32_t b = 0; b < work->blocks; b++) {
        const float *z = work->z + (size_t)b * SAMPLE_BLOCK;
        float e[SAMPLE_BLOCK];
        for (uint32_t i = 0; i < SAMPLE_BLOCK; i++)
            e[i] = sample_e(work, z[i]);
        for (uint32_t i = 0; i < SAMPLE_BLOCK; i++)
            sum += (uint64_t)(int64_t)e[i];
        memcpy(work->e + (size_t)b * SAMPLE_BLOCK, e, sizeof e);
    }
    return sum;
}

/* Each block has an id at its maximum, so the k-th largest maximum has k ids at or above it. */
static void keep_top_k(struct sample_work *work, uint32_t k)
{
    float floor = -FLT_MAX;
    if (k <= work->blocks) {
        struct cut cut = find_cut(work, work->block_max, NULL, work->blocks, false, k);
        floor = value_of(cut.key) > floor ? value_of(cut.key) : floor;
    }
    gather(work, floor);
    if (work->list_count <= k)
        return;
    struct cut cut = find_cut(work, work->z, work->list, work->list_count, false, k);
    apply_cut(work, cut.key, cut.left);
}

/* Gathers a head of the order with at least that mass. Most of the mass is near the maximum: short
 * heads are tried first. */
static void gather_mass(struct sample_work *work, uint64_t target)
{
    static const float reach[] = {3.0f, 6.0f, 9.0f, 13.0f};
    for (size_t i = 0; i < sizeof reach / sizeof reach[0]; i++) {
        float floor = work->max - reach[i] / work->inv_t;
        gather(work, floor > -FLT_MAX ? floor : -FLT_MAX);
        if (mass_list(work) >= target)
            return;
    }
    gather(work, -FLT_MAX);
}

static void keep_top_p(struct sample_work *work, float top_p, bool have_list)
{
    for (uint32_t i = 0; have_list && i < work->list_count; i++)
        work->e[work->list[i]] = sample_e(work, work->z[work->list[i]]);
    uint64_t total = have_list ? mass_list(work) : nib_sample_mass_all(work);
    uint64_t target = (uint64_t)ceil((double)top_p * (double)total);
    if (target > total)
        target = total;
    if (!have_list)
        gather_mass(work, target);
    struct cut cut = find_cut(work, work->z, work->list, work->list_count, true, target);
    uint64_t weight = (uint64_t)(int64_t)sample_e(work, value_of(cut.key));
    NIB_MUST(weight > 0);
    apply_cut(work, cut.key, (cut.left + weight - 1) / weight);
}

static void keep_min_p(struct sample_work *work, float min_p, bool have_list)
{
    float least = (float)log((double)min_p);
    if (!have_list) {
        /* a little wider than exact; the list is then cut exactly */
        float floor = work->max + (least * 1.001f - 0.001f) / work->inv_t;
        floor -= fabsf(work->max) * 1e-5f;
        gather(work, floor > -FLT_MAX ? floor : -FLT_MAX);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < work->list_count; i++)
        if (sample_d(work, work->z[work->list[i]]) >= least)
            work->list[kept++] = work->list[i];
    work->list_count = kept;
}

bool nib_sample_truncate(struct sample_work *work, const struct nib_sampling *sampling)
{
    bool have_list = false;
    if (sampling->top_k != 0 && sampling->top_k < work->blocks * SAMPLE_BLOCK) {
        keep_top_k(work, sampling->top_k);
        have_list = true;
    }
    if (sampling->top_p < 1.0f) {
        keep_top_p(work, sampling->top_p, have_list);
        have_list = true;
    }
    if (sampling->min_p > 0.0f) {
        keep_min_p(work, sampling->min_p, have_list);
        have_list = true;
    }
    return have_list;
}
