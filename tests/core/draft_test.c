/* tests/core/draft_test.c: how many guessed rows a step gets, with made-up costs and made-up luck: as many as pay, none where
 * none do, and what was off comes back when guesses come true. */
#include "core/draft.h"

#include "tests/harness.h"

static struct nib_draft_cost cost;
static struct nib_draft_trust trust[4];

static uint32_t share(uint32_t match, uint32_t most, uint32_t rows, uint32_t room)
{
    struct nib_draft_ask ask = {.trust = &trust[0], .match = match, .most = most};
    const uint32_t sum = nib_draft_share(&cost, &ask, 1, rows, room);
    ck_assert_uint_eq(sum, ask.take);
    return sum;
}

static void start(void)
{
    memset(&cost, 0, sizeof cost);
    memset(trust, 0, sizeof trust);
}

/* Steps of one sequence whose guesses come true `right` times of `of`; a step takes fixed_us and row_us a row. What the
 * last 100 steps had. */
struct luck {
    uint32_t right, of, fixed_us, row_us;
};

static uint32_t live(const struct luck *luck, uint32_t steps, uint64_t *seed)
{
    uint32_t late = 0;
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t rows = 1 + share(6, 15, 1, 63);
        nib_draft_took(&cost, rows, luck->fixed_us + rows * luck->row_us);
        bool goes_on = true;
        for (uint32_t r = 0; r < rows && goes_on; r++) {
            goes_on = nib_test_rand(seed) % luck->of < luck->right;
            nib_draft_learn(&trust[0], 6, goes_on);
        }
        late += i + 100 >= steps ? rows - 1 : 0;
    }
    return late;
}

START_TEST(nothing_before_a_plain_step_was_measured)
{
    start();
    ck_assert_uint_eq(share(10, 15, 1, 63), 0);
    nib_draft_took(&cost, 1, 1000);
    ck_assert_uint_eq(share(10, 15, 1, 63), 15); /* nothing known against it */
    ck_assert_uint_eq(share(10, 15, 2, 63), 0);  /* steps of two rows were not measured */
}
END_TEST

START_TEST(most_and_room_are_kept)
{
    start();
    nib_draft_took(&cost, 1, 1000);
    ck_assert_uint_eq(share(10, 4, 1, 63), 4);
    ck_assert_uint_eq(share(10, 15, 1, 3), 3);
    ck_assert_uint_eq(share(10, 15, 1, 0), 0);
    ck_assert_uint_eq(share(10, 0, 1, 63), 0);
    nib_draft_took(&cost, 256, 1000);
    ck_assert_uint_eq(share(10, 15, 256, 0), 0);
}
END_TEST

START_TEST(the_best_chances_come_first)
{
    start();
    nib_draft_took(&cost, 3, 1000);
    for (uint32_t i = 0; i < 20; i++) {
        nib_draft_learn(&trust[0], 6, false);
        nib_draft_learn(&trust[1], 6, true);
        nib_draft_learn(&trust[2], 6, i % 2 == 0);
    }
    struct nib_draft_ask asks[3];
    for (uint32_t i = 0; i < 3; i++)
        asks[i] = (struct nib_draft_ask){.slot = i, .trust = &trust[i], .match = 6, .most = 4};
    ck_assert_uint_eq(nib_draft_share(&cost, asks, 3, 3, 5), 5);
    ck_assert_uint_eq(asks[0].take, 0);
    ck_assert_uint_eq(asks[1].take, 4);
    ck_assert_uint_eq(asks[2].take, 1);
}
END_TEST

START_TEST(rows_are_added_as_long_as_they_pay)
{
    uint64_t seed = 1;
    start();
    const struct luck free_rows = {9, 10, 1000, 0}, dear = {9, 10, 0, 1000}, half = {9, 10, 1000, 200};
    ck_assert_uint_ge(live(&free_rows, 500, &seed), 1400);
    start();
    ck_assert_uint_eq(live(&dear, 500, &seed), 0); /* a row costs what a step costs */
    start();
    const uint32_t some = live(&half, 500, &seed);
    ck_assert(some > 200 && some < 1400);
}
END_TEST

START_TEST(what_fails_is_turned_off_and_comes_back)
{
    uint64_t seed = 2;
    start();
    const struct luck good = {19, 20, 1000, 100}, bad = {1, 20, 1000, 100};
    ck_assert_uint_gt(live(&good, 300, &seed), 300);
    ck_assert_uint_eq(live(&bad, 300, &seed), 0);
    ck_assert_uint_gt(live(&good, 300, &seed), 300);
}
END_TEST

/* Where drafts lose, trying them again costs little: a level once in NIB_DRAFT_FRESH_STEPS. */
START_TEST(losing_costs_little)
{
    start();
    uint32_t tried = 0;
    const uint32_t steps = 4 * NIB_DRAFT_FRESH_STEPS;
    for (uint32_t i = 0; i < steps; i++) {
        const uint32_t rows = 1 + share(10, 15, 1, 63);
        nib_draft_took(&cost, rows, 1000 * rows);
        nib_draft_learn(&trust[0], 10, true);
        tried += rows > 1;
    }
    ck_assert(tried >= 4 && tried <= 5 * 8);
}
END_TEST

/* A plain step is measured again and again too, however well drafts do. */
START_TEST(a_plain_step_is_not_forgotten)
{
    start();
    uint32_t plain = 0;
    for (uint32_t i = 0; i < 3 * NIB_DRAFT_FRESH_STEPS; i++) {
        const uint32_t rows = 1 + share(10, 15, 1, 63);
        nib_draft_took(&cost, rows, 1000);
        plain += rows == 1;
    }
    ck_assert(plain >= 3 && plain <= 4);
}
END_TEST

NIB_SUITE(draft, nothing_before_a_plain_step_was_measured, most_and_room_are_kept, the_best_chances_come_first,
          rows_are_added_as_long_as_they_pay, what_fails_is_turned_off_and_comes_back, losing_costs_little,
          a_plain_step_is_not_forgotten)
