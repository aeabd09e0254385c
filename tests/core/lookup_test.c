/* tests/core/lookup_test.c: what is guessed from a sequence's own tokens: against a naive search, and its edges one by one. */
#include "core/lookup.h"

#include "core/arith.h"
#include "tests/harness.h"

enum { CTX = 12000, SLOTS = 2 };

static _Alignas(64) uint8_t memory[1u << 20], prompt_memory[1u << 20];
static struct nib_lookup lookup;
static struct nib_prompt_pool pool;
static uint32_t tokens[CTX];
static uint32_t count;

static void open_lookup(void)
{
    const struct nib_engine_dims dims = {.slots = SLOTS, .ctx_tokens = CTX};
    struct nib_arena arena;
    ck_assert_uint_le(nib_lookup_bytes(&dims), sizeof memory);
    nib_arena_init(&arena, memory, nib_lookup_bytes(&dims) - 4 * 64);
    ck_assert_int_eq(nib_lookup_init(&lookup, &arena, &dims), NIB_OK); /* the last of the padding is not needed */
    nib_arena_init(&arena, memory, nib_lookup_bytes(&dims) / 2);
    ck_assert_int_eq(nib_lookup_init(&lookup, &arena, &dims), NIB_E_NOMEM);
    memset(memory, 0xee, sizeof memory);
    nib_arena_init(&arena, memory, nib_lookup_bytes(&dims));
    ck_assert_int_eq(nib_lookup_init(&lookup, &arena, &dims), NIB_OK);
    nib_arena_init(&arena, prompt_memory, nib_prompt_bytes(100));
    ck_assert_int_eq(nib_prompt_init(&pool, &arena, 100), NIB_OK);
}

/* The slot's sequence begins with tokens[0..n). */
static void begin(uint32_t slot, uint32_t n)
{
    struct nib_prompt prompt;
    ck_assert_int_eq(nib_prompt_take(&pool, tokens, n, &prompt), NIB_OK);
    nib_lookup_begin(&lookup, slot, &pool, &prompt);
    nib_prompt_put(&pool, &prompt);
    count = n;
}

static struct nib_lookup_test take(uint32_t slot, uint32_t token)
{
    tokens[count++] = token;
    return nib_lookup_take(&lookup, slot, token);
}

static void guessed(uint32_t slot, uint32_t match, const uint32_t *want, uint32_t n)
{
    uint32_t got[8];
    ck_assert_uint_eq(nib_lookup_match(&lookup, slot), match);
    nib_lookup_guess(&lookup, slot, n, got);
    for (uint32_t i = 0; i < n; i++)
        ck_assert_uint_eq(got[i], want[i]);
}

START_TEST(what_came_then_comes_again)
{
    const uint32_t text[] = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2};
    open_lookup();
    memcpy(tokens, text, sizeof text);
    begin(0, 10);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0); /* the prompt's next token is not guessed */
    ck_assert_uint_eq(take(0, 3).match, 0);
    guessed(0, 3, (uint32_t[]){4, 5, 6}, 3);
    struct nib_lookup_test test = take(0, 4);
    ck_assert(test.match == 3 && test.hit);
    guessed(0, 4, (uint32_t[]){5, 6, 7, 8, 1, 2, 3, 4}, 8); /* and then it runs into itself */
    test = take(0, 9);
    ck_assert(test.match == 4 && !test.hit);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0); /* 4, 9 never stood before */
    ck_assert_uint_eq(take(0, 9).match, 0);
}
END_TEST

START_TEST(what_repeats_is_guessed_to_repeat)
{
    open_lookup();
    for (uint32_t i = 0; i < 5; i++)
        tokens[i] = 40 + i;
    begin(1, 5);
    take(1, 7);
    take(1, 7);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 1), 0); /* one pair 7, 7, and not before */
    take(1, 7);
    guessed(1, 2, (uint32_t[]){7, 7, 7, 7, 7}, 5);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0); /* the other slot knows nothing of it */
}
END_TEST

START_TEST(the_longest_agreement_of_the_latest)
{
    const uint32_t text[] = {9, 1, 2, 30, 8, 1, 2, 31, 7, 1, 2, 32, 5, 8, 1};
    open_lookup();
    memcpy(tokens, text, sizeof text);
    begin(0, 15);
    take(0, 2); /* 8, 1, 2 stood once; 1, 2 three times */
    guessed(0, 3, (uint32_t[]){31}, 1);
    take(0, 33);
    take(0, 1);
    take(0, 2); /* 1, 2 behind a 33: the latest */
    guessed(0, 2, (uint32_t[]){33}, 1);
}
END_TEST

START_TEST(a_new_sequence_knows_nothing_of_the_last)
{
    open_lookup();
    for (uint32_t i = 0; i < 20; i++)
        tokens[i] = i % 4;
    begin(0, 20);
    take(0, 0);
    ck_assert_uint_gt(nib_lookup_match(&lookup, 0), 2);
    tokens[0] = 0;
    begin(0, 1);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0);
    take(0, 1);
    take(0, 2);
    ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0);
}
END_TEST

/* A long prompt is taken in by parts, so that no step waits for all of it. */
START_TEST(a_long_prompt_is_indexed_by_parts)
{
    open_lookup();
    uint64_t seed = 3;
    for (uint32_t i = 0; i < 10000; i++)
        tokens[i] = (uint32_t)(nib_test_rand(&seed) % 200000);
    begin(0, 10000);
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(nib_lookup_match(&lookup, 0), 0);
        take(0, tokens[100 + i]);
    }
    guessed(0, 3, tokens + 103, 8);
}
END_TEST

/* The longest agreement at the latest NIB_LOOKUP_PROBES places of the last two tokens, found by looking everywhere. */
static uint32_t naive(uint32_t *ret_source)
{
    uint32_t best = 1, probes = 0;
    for (uint32_t at = count - 2; at >= 1 && probes < NIB_LOOKUP_PROBES; at--) {
        uint32_t match = 0;
        while (match <= at && match < NIB_LOOKUP_MATCH && tokens[at - match] == tokens[count - 1 - match])
            match++;
        probes += match >= 2;
        if (match > best) {
            best = match;
            *ret_source = at + 1;
        }
    }
    return best > 1 ? best : 0;
}

START_TEST(every_guess_is_the_naive_one)
{
    uint64_t seed = 11;
    uint32_t goes_on = 0, found = 0, none = 0;
    open_lookup();
    tokens[0] = 1;
    begin(0, 1);
    bool guessing = false;
    while (count < 6000) {
        const uint32_t few = 3 + count / 1500; /* tokens to choose from */
        const struct nib_lookup_test test = take(0, (uint32_t)(nib_test_rand(&seed) % few));
        ck_assert(guessing == (test.match != 0));
        guessing = nib_lookup_match(&lookup, 0) != 0;
        if (test.match != 0 && test.hit) {
            goes_on++;
            continue;
        }
        uint32_t source = 0, guess;
        const uint32_t match = naive(&source);
        ck_assert_uint_eq(nib_lookup_match(&lookup, 0), match);
        found += match != 0;
        none += match == 0;
        if (match != 0) {
            nib_lookup_guess(&lookup, 0, 1, &guess);
            ck_assert_uint_eq(guess, tokens[source]);
        }
    }
    ck_assert(goes_on > 500 && found > 500 && none > 5);
}
END_TEST

NIB_SUITE(lookup, what_came_then_comes_again, what_repeats_is_guessed_to_repeat, the_longest_agreement_of_the_latest,
          a_new_sequence_knows_nothing_of_the_last, a_long_prompt_is_indexed_by_parts, every_guess_is_the_naive_one)
