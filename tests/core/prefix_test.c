/* tests/core/prefix_test.c: what is kept, found, held, evicted and forgotten, one promise at a time; and a random life of
 * the pages. Long lives with an engine are in sim_test. */
#include "core/prefix.h"

#include "tests/harness.h"

#define PAGE NIB_KV_PAGE_TOKENS
#define NONE NIB_PREFIX_NONE

enum { SLOTS = 4, TABLE = 8, CHUNKS = 64 };

static _Alignas(64) uint8_t memory[1 << 18];
static struct nib_kv kv;
static struct nib_prefix prefix;
static struct nib_prompt_pool pool;
static uint32_t tokens[TABLE * PAGE];

static void make(uint32_t pages, bool shared)
{
    const struct nib_engine_dims dims = {.slots = SLOTS, .ctx_tokens = TABLE * PAGE, .kv_pages = pages};
    const struct nib_prefix_config config = {.on = true, .shared = shared, .window = 2 * PAGE, .key = 5};
    struct nib_arena arena;
    nib_arena_init(&arena, memory, sizeof memory);
    ck_assert_int_eq(nib_kv_init(&kv, &arena, &dims, NULL), NIB_OK);
    ck_assert_int_eq(nib_prompt_init(&pool, &arena, CHUNKS), NIB_OK);
    struct nib_arena own;
    void *at = nib_arena_take(&arena, nib_prefix_bytes(&dims, &config), 64);
    ck_assert_ptr_nonnull(at);
    nib_arena_init(&own, at, nib_prefix_bytes(&dims, &config)); /* exactly what was planned */
    ck_assert_int_eq(nib_prefix_init(&prefix, &own, &dims, &config, &kv), NIB_OK);
    for (uint32_t i = 0; i < TABLE * PAGE; i++)
        tokens[i] = i;
}

static void check(void)
{
    ck_assert(nib_kv_check(&kv));
    ck_assert(nib_prefix_check(&prefix));
}

static enum nib_err take(uint32_t slot, uint32_t uid, uint32_t prompt_tokens, uint32_t all_tokens, bool reuse,
                         struct nib_prefix_begin *ret)
{
    struct nib_prompt prompt;
    ck_assert_int_eq(nib_prompt_take(&pool, tokens, prompt_tokens, &prompt), NIB_OK);
    const struct nib_prefix_prompt p = {.pool = &pool, .prompt = &prompt, .uid = uid, .reuse = reuse};
    enum nib_err err = nib_prefix_take(&prefix, slot, all_tokens, &p, ret);
    nib_prompt_put(&pool, &prompt);
    check();
    return err;
}

/* A slot takes a prompt and its rows are run; window pages are made of the last two pages. What it began behind. */
static struct nib_prefix_begin run(uint32_t slot, uint32_t uid, uint32_t prompt_tokens)
{
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(slot, uid, prompt_tokens, prompt_tokens, true, &begin), NIB_OK);
    for (uint32_t pos = begin.pages * PAGE; pos < prompt_tokens; pos++)
        nib_prefix_token(&prefix, slot, pos, tokens[pos]);
    const uint32_t end = prompt_tokens / PAGE;
    for (uint32_t i = end > 2 ? end - 2 : 0; i < end; i++)
        (void)nib_prefix_save(&prefix, slot, i);
    check();
    return begin;
}

static void put(uint32_t slot)
{
    ck_assert_int_eq(nib_prefix_put(&prefix, slot), NIB_OK);
    check();
}

static uint32_t pages_found(uint32_t uid, uint32_t prompt_tokens)
{
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(3, uid, prompt_tokens, prompt_tokens, true, &begin), NIB_OK);
    put(3);
    return begin.pages;
}

START_TEST(the_next_turn_begins_behind_the_last)
{
    make(24, false);
    struct nib_prefix_begin begin = run(0, 1, 3 * PAGE + 5);
    ck_assert_uint_eq(begin.pages, 0);
    const uint32_t first = kv.tables[0].pages[0], third = kv.tables[0].pages[2];
    put(0);
    ck_assert_uint_eq(kv.kept_count, 5); /* 3 pages, 2 window pages; the begun page is free */
    ck_assert_uint_eq(nib_prefix_available(&prefix), 24);
    begin = run(1, 1, 6 * PAGE);
    ck_assert_uint_eq(begin.pages, 3);
    ck_assert_uint_eq(begin.known, 3);
    ck_assert_uint_eq(begin.windows_count, 2);
    ck_assert_uint_eq(kv.tables[1].pages[0], first);
    ck_assert_uint_eq(kv.tables[1].pages[2], third);
    put(1);
}
END_TEST

/* At least one token is left to compute, whatever is known. */
START_TEST(a_whole_prompt_is_never_taken_as_known)
{
    make(24, false);
    run(0, 1, 4 * PAGE);
    ck_assert_uint_eq(pages_found(1, 4 * PAGE + 1), 4);
    ck_assert_uint_eq(prefix.pages[kv.tables[0].pages[1]].window, NONE);
    ck_assert_uint_eq(pages_found(1, 4 * PAGE), 0); /* 3 are known, but the window of page 1 is not */
    ck_assert_uint_ne(nib_prefix_save(&prefix, 0, 1), NONE);
    ck_assert_uint_eq(pages_found(1, 4 * PAGE), 3);
    put(0);
}
END_TEST

/* Without window pages there is no beginning there; where they lack is told, so that they can be made. */
START_TEST(windows_decide_where_one_can_begin)
{
    make(24, false);
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(0, 1, 6 * PAGE, 6 * PAGE, true, &begin), NIB_OK);
    for (uint32_t pos = 0; pos < 6 * PAGE; pos++)
        nib_prefix_token(&prefix, 0, pos, tokens[pos]);
    ck_assert_int_eq(take(1, 1, 6 * PAGE, 6 * PAGE, true, &begin), NIB_OK);
    ck_assert(begin.pages == 0 && begin.known == 5 && begin.windows_count == 0);
    put(1);
    ck_assert_uint_ne(nib_prefix_save(&prefix, 0, 0), NONE);
    ck_assert_uint_eq(nib_prefix_save(&prefix, 0, 0), NONE); /* it has one */
    ck_assert_uint_eq(pages_found(1, 6 * PAGE), 1);          /* nothing lies before page 0 */
    ck_assert_uint_ne(nib_prefix_save(&prefix, 0, 2), NONE);
    ck_assert_uint_eq(pages_found(1, 6 * PAGE), 1);
    ck_assert_uint_ne(nib_prefix_save(&prefix, 0, 3), NONE);
    ck_assert_uint_eq(pages_found(1, 6 * PAGE), 4);
    ck_assert_uint_eq(pages_found(1, 4 * PAGE), 1);
    ck_assert_uint_eq(nib_prefix_save(&prefix, 0, 6), NONE); /* no node of the slot */
    put(0);
}
END_TEST

START_TEST(owners_do_not_share_unless_told)
{
    make(24, false);
    run(0, 1, 3 * PAGE + 1);
    ck_assert_uint_eq(pages_found(1, 3 * PAGE + 1), 3);
    ck_assert_uint_eq(pages_found(2, 3 * PAGE + 1), 0);
    put(0);
    make(24, true);
    run(0, 1, 3 * PAGE + 1);
    ck_assert_uint_eq(pages_found(2, 3 * PAGE + 1), 3);
    put(0);
}
END_TEST

/* Equal hashes are not enough: tokens, owner and the node before must be the same. */
START_TEST(a_collision_finds_nothing)
{
    make(24, false);
    run(0, 1, 3 * PAGE + 1);
    const uint32_t node = kv.tables[0].pages[1], other = kv.tables[0].pages[2];
    put(0);
    ck_assert_uint_eq(pages_found(1, 3 * PAGE + 1), 3);
    uint32_t *cells[] = {&prefix.tokens[node * PAGE], &prefix.tokens[node * PAGE + PAGE - 1], &prefix.pages[node].owner,
                         &prefix.pages[node].parent};
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        struct nib_prompt prompt;
        struct nib_prefix_begin begin;
        const uint32_t was = *cells[i];
        *cells[i] = other;
        ck_assert_int_eq(nib_prompt_take(&pool, tokens, 3 * PAGE + 1, &prompt), NIB_OK);
        const struct nib_prefix_prompt p = {.pool = &pool, .prompt = &prompt, .uid = 1, .reuse = true};
        ck_assert_int_eq(nib_prefix_take(&prefix, 3, 3 * PAGE + 1, &p, &begin), NIB_OK);
        ck_assert_uint_eq(begin.known, 1);
        ck_assert_int_eq(nib_prefix_put(&prefix, 3), NIB_OK);
        nib_prompt_put(&pool, &prompt);
        *cells[i] = was;
    }
    check();
}
END_TEST

START_TEST(a_request_may_ask_for_nothing_kept)
{
    make(24, false);
    run(0, 1, 3 * PAGE + 1);
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(1, 1, 3 * PAGE + 1, 4 * PAGE, false, &begin), NIB_OK);
    ck_assert(begin.pages == 0 && begin.known == 0);
    const uint32_t used = nib_prefix_available(&prefix);
    for (uint32_t pos = 0; pos < 3 * PAGE; pos++)
        nib_prefix_token(&prefix, 1, pos, tokens[pos]);
    check();
    /* it computes its own pages and holds the nodes that are there: no second ones */
    ck_assert_uint_eq(prefix.path_count[1], 3);
    ck_assert_uint_ne(kv.tables[1].pages[0], kv.tables[0].pages[0]);
    ck_assert_uint_eq(nib_prefix_available(&prefix), used);
    put(1);
    put(0);
    ck_assert_uint_eq(kv.kept_count, 5);
}
END_TEST

/* A held page is never evicted; idle ones go oldest first, leaves before what they hang on. */
START_TEST(the_pool_is_never_short_because_of_what_is_kept)
{
    make(8, false);
    struct nib_prefix_begin begin;
    run(0, 1, 2 * PAGE + 1); /* 3 pages, 2 window pages */
    ck_assert_int_eq(take(1, 2, 5 * PAGE + 1, 5 * PAGE + 1, true, &begin), NIB_E_FULL);
    ck_assert_uint_eq(prefix.evicted, 0);
    ck_assert_int_eq(take(1, 2, 4 * PAGE + 1, 4 * PAGE + 1, true, &begin), NIB_OK); /* over both window pages */
    ck_assert_uint_eq(prefix.evicted, 2);
    ck_assert_uint_eq(nib_prefix_available(&prefix), 0);
    ck_assert_uint_eq(nib_prefix_save(&prefix, 0, 0), NONE); /* nothing left */
    put(1);
    put(0);
    const uint32_t root = kv.tables[0].pages[0];
    ck_assert_int_eq(take(1, 2, 7 * PAGE, 7 * PAGE, true, &begin), NIB_OK); /* one page is left: the root */
    ck_assert_uint_eq(prefix.oldest, root);
    ck_assert_uint_eq(prefix.newest, root);
    put(1);
    ck_assert_int_eq(take(1, 2, 8 * PAGE, 8 * PAGE, true, &begin), NIB_OK);
    ck_assert_uint_eq(kv.kept_count, 0);
    put(1);
}
END_TEST

/* Window pages that were used now, saved again, or end a prompt that ended now, go after others. */
START_TEST(window_pages_go_least_recently_used_first)
{
    make(24, false);
    run(0, 1, 3 * PAGE + 1);
    const uint32_t first = prefix.pages[kv.tables[0].pages[1]].window, end = prefix.pages[kv.tables[0].pages[2]].window;
    ck_assert_uint_eq(prefix.oldest, first);
    ck_assert_uint_eq(nib_prefix_save(&prefix, 0, 1), NONE);
    ck_assert_uint_eq(prefix.oldest, end);
    tokens[0] = 5; /* of another text, meanwhile */
    run(1, 1, 3 * PAGE + 1);
    const uint32_t other = prefix.pages[kv.tables[1].pages[1]].window;
    tokens[0] = 0;
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(2, 1, 4 * PAGE, 4 * PAGE, true, &begin), NIB_OK);
    ck_assert_uint_eq(begin.pages, 3);
    ck_assert_uint_eq(prefix.oldest, other);
    put(2);
    put(1); /* its window pages are the newest now, before them its nodes */
    ck_assert_uint_eq(prefix.oldest, first);
    put(0);
    ck_assert_uint_eq(prefix.oldest, prefix.pages[prefix.oldest].kind == NIB_PREFIX_NODE ? prefix.oldest : NONE);
}
END_TEST

/* Its own beginning is held before others' pages are evicted for the rest. */
START_TEST(a_prompt_does_not_evict_its_own_beginning)
{
    make(8, false);
    run(0, 1, 4 * PAGE);
    put(0);
    ck_assert_uint_eq(kv.free_count, 2);
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(1, 1, 5 * PAGE, 8 * PAGE, true, &begin), NIB_OK);
    ck_assert_uint_eq(begin.pages, 4);
    ck_assert_uint_eq(begin.windows_count, 2);
    ck_assert_uint_eq(kv.free_count, 0); /* 4 held; the window pages are read, then become the slot's */
    bool own = false;
    for (uint32_t i = 4; i < 8; i++)
        own |= kv.tables[1].pages[i] == begin.windows[0];
    ck_assert(own);
    put(1);
}
END_TEST

/* Two slots on one beginning; each ends when it likes, in the middle of its prompt too. */
START_TEST(holders_are_counted)
{
    make(32, false);
    run(0, 1, 4 * PAGE + 1);
    const uint32_t root = kv.tables[0].pages[0];
    struct nib_prefix_begin begin;
    ck_assert_int_eq(take(1, 1, 6 * PAGE, 7 * PAGE, true, &begin), NIB_OK);
    ck_assert_uint_eq(begin.pages, 4);
    ck_assert_uint_eq(prefix.pages[root].holders, 2);
    for (uint32_t pos = 4 * PAGE; pos < 5 * PAGE + 9; pos++)
        nib_prefix_token(&prefix, 1, pos, tokens[pos]);
    put(0);
    ck_assert_uint_eq(prefix.pages[root].holders, 1);
    put(1); /* cancelled: one more page was complete */
    ck_assert_uint_eq(prefix.pages[root].holders, 0);
    ck_assert_int_eq(take(2, 1, 6 * PAGE, 6 * PAGE, true, &begin), NIB_OK);
    ck_assert(begin.pages == 4 && begin.known == 5);
    put(2);
    ck_assert_int_eq(nib_prefix_put(&prefix, 2), NIB_E_STATE);
}
END_TEST

/* What becomes known between a slot's admission and its first row is taken instead of its own pages. */
START_TEST(a_slot_that_has_not_begun_looks_again)
{
    make(24, false);
    struct nib_prefix_begin begin;
    struct nib_prompt prompt;
    const struct nib_prefix_prompt p = {.pool = &pool, .prompt = &prompt, .uid = 1, .reuse = true};
    run(0, 1, 2 * PAGE + 1);
    put(0);
    ck_assert_int_eq(nib_prompt_take(&pool, tokens, 7 * PAGE, &prompt), NIB_OK);
    ck_assert_int_eq(nib_prefix_take(&prefix, 1, 8 * PAGE, &p, &begin), NIB_OK);
    ck_assert_uint_eq(begin.pages, 2);
    nib_prompt_skip(&pool, &prompt, 2 * PAGE);
    nib_prefix_again(&prefix, 1, &p, &begin);
    ck_assert(begin.pages == 2 && begin.known == 2 && begin.windows_count == 0);
    run(0, 1, 5 * PAGE + 1); /* makes window pages of pages 3 and 4 */
    const uint32_t have = nib_prefix_available(&prefix), fifth = kv.tables[0].pages[4];
    nib_prefix_again(&prefix, 1, &p, &begin);
    check();
    ck_assert(begin.pages == 5 && begin.windows_count == 2);
    ck_assert_uint_eq(begin.windows[1], prefix.pages[fifth].window);
    ck_assert_uint_eq(kv.tables[1].pages[4], fifth);
    ck_assert_uint_eq(nib_prefix_available(&prefix), have + 3);
    nib_prompt_skip(&pool, &prompt, 3 * PAGE);
    run(2, 1, 6 * PAGE);
    nib_prefix_again(&prefix, 1, &p, &begin); /* by the window pages of page 4, which it holds, and page 5 */
    check();
    ck_assert(begin.pages == 6 && begin.known == 6 && begin.windows_count == 2);
    nib_prompt_skip(&pool, &prompt, PAGE);
    nib_prefix_forget(&prefix, 1);
    nib_prefix_again(&prefix, 1, &p, &begin);
    ck_assert(begin.pages == 6 && begin.known == 6 && begin.windows_count == 0);
    put(0);
    put(2);
    put(1);
    ck_assert_uint_eq(kv.free_count, 24);
    nib_prompt_put(&pool, &prompt);
}
END_TEST

/* After a failure nothing of that owner is found; who holds it goes on, makes no more of it, and frees it at its end. */
START_TEST(what_may_be_wrong_is_forgotten)
{
    make(32, false);
    run(0, 1, 3 * PAGE + 1);
    tokens[0] = 77;
    run(1, 2, 3 * PAGE + 1);
    put(1);
    tokens[0] = 78;
    run(2, 1, 3 * PAGE + 1);
    put(2);
    struct nib_prefix_begin begin;
    tokens[0] = 0;
    ck_assert_int_eq(take(2, 1, 6 * PAGE, 6 * PAGE, true, &begin), NIB_OK);
    ck_assert_uint_eq(begin.pages, 3);
    nib_prefix_forget(&prefix, 1);
    check();
    ck_assert_uint_eq(kv.kept_count, 3 + 5); /* held ones, and the other owner's */
    for (uint32_t pos = 3 * PAGE; pos < 6 * PAGE; pos++)
        nib_prefix_token(&prefix, 2, pos, tokens[pos]);
    ck_assert_uint_eq(prefix.path_count[2], 3);
    ck_assert_uint_eq(nib_prefix_save(&prefix, 2, 2), NONE);
    ck_assert_uint_eq(pages_found(1, 6 * PAGE), 0);
    put(0);
    put(2);
    ck_assert_uint_eq(kv.kept_count, 5);
    tokens[0] = 77;
    ck_assert_uint_eq(pages_found(2, 3 * PAGE + 1), 3);
    nib_prefix_clear(&prefix);
    check();
    ck_assert_uint_eq(kv.free_count, 32);
}
END_TEST

/* A long chain of one bucket ends the search, not the daemon. */
START_TEST(searches_are_bounded)
{
    make(400, false);
    prefix.buckets = 1;
    run(0, 1, 3 * PAGE + 1);
    put(0);
    for (uint32_t i = 0; i < NIB_MAX_PREFIX_PROBES - 3; i++) {
        tokens[0] = 1000 + i;
        run(0, 1, PAGE);
        put(0);
    }
    tokens[0] = 0;
    ck_assert_uint_eq(pages_found(1, 3 * PAGE + 1), 3);
    tokens[0] = 999;
    run(0, 1, PAGE); /* now the first page is one too far down */
    put(0);
    tokens[0] = 0;
    ck_assert_uint_eq(pages_found(1, 3 * PAGE + 1), 0);
    run(0, 1, 3 * PAGE + 1); /* and is kept once more, to be found again */
    put(0);
    ck_assert_uint_eq(pages_found(1, 3 * PAGE + 1), 3);
}
END_TEST

START_TEST(off_is_the_pool_alone)
{
    const struct nib_engine_dims dims = {.slots = SLOTS, .ctx_tokens = TABLE * PAGE, .kv_pages = 8};
    struct nib_prefix_config config = {.on = false, .window = 3};
    struct nib_arena arena;
    make(8, false);
    ck_assert_uint_eq(nib_prefix_bytes(&dims, &config), 0);
    nib_arena_init(&arena, memory, 0);
    ck_assert_int_eq(nib_prefix_init(&prefix, &arena, &dims, &config, &kv), NIB_OK);
    run(0, 1, 4 * PAGE);
    put(0);
    ck_assert_uint_eq(kv.free_count, 8);
    ck_assert_uint_eq(pages_found(1, 4 * PAGE), 0);
    nib_prefix_forget(&prefix, 1);
    nib_prefix_clear(&prefix);
    /* and sizes that cannot be */
    config.on = true;
    const uint32_t windows[] = {0, 3, PAGE - 1, PAGE + 1, (NIB_MAX_WINDOW_PAGES + 1) * PAGE};
    for (size_t i = 0; i < sizeof windows / sizeof windows[0]; i++) {
        config.window = windows[i];
        ck_assert_int_eq(nib_prefix_init(&prefix, &arena, &dims, &config, &kv), NIB_E_ARG);
    }
    config.window = PAGE;
    ck_assert_int_eq(nib_prefix_init(&prefix, &arena, &dims, &config, &kv), NIB_E_NOMEM);
}
END_TEST

/* Each single corruption of what is kept is seen by the check. */
START_TEST(check_sees_corruptions)
{
    make(24, false);
    run(0, 1, 4 * PAGE + 1);
    put(0);
    run(1, 1, 3 * PAGE + 1);
    const uint32_t a = prefix.path[TABLE], b = prefix.path[TABLE + 2], w = prefix.pages[b].window;
    ck_assert_uint_ne(w, NONE);
    uint32_t *cells[] = {&prefix.pages[a].holders, &prefix.pages[b].holders, &prefix.pages[b].parent,
                         &prefix.pages[b].window,  &prefix.pages[w].parent,  &prefix.pages[w].newer,
                         &prefix.newest,           &prefix.oldest,           &prefix.idle_count,
                         &prefix.path_count[1],    &prefix.path[TABLE],      &prefix.pages[a].hash};
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++)
        for (uint32_t value = 0; value < 24; value++) {
            const uint32_t was = *cells[i];
            if (value == was)
                continue;
            *cells[i] = value;
            ck_assert_msg(!nib_prefix_check(&prefix), "cell %zu = %u not seen", i, value);
            *cells[i] = was;
        }
    check();
    put(1);
}
END_TEST

/* Random takes, rows, saves, ends and failures of a small pool: all agrees after every call, and what a slot begins
 * behind has its tokens. */
START_TEST(random_lives_lose_no_page)
{
    uint64_t seed = nib_test_seed();
    uint32_t fed[SLOTS] = {0}, length[SLOTS] = {0}, reused = 0, full = 0;
    uint32_t texts[SLOTS][TABLE * PAGE];
    make(20, false);
    for (int i = 0; i < 20000; i++) {
        const uint32_t slot = (uint32_t)(nib_test_rand(&seed) % SLOTS), what = (uint32_t)(nib_test_rand(&seed) % 16);
        if (length[slot] == 0) {
            const uint32_t common = (uint32_t)(nib_test_rand(&seed) % (TABLE * PAGE)), text = what % 3;
            length[slot] = 1 + (uint32_t)(nib_test_rand(&seed) % (TABLE * PAGE));
            for (uint32_t t = 0; t < TABLE * PAGE; t++)
                texts[slot][t] = tokens[t] = t < common ? text : (uint32_t)nib_test_rand(&seed) % 50000;
            struct nib_prefix_begin begin;
            const uint32_t have = nib_prefix_available(&prefix);
            enum nib_err err = take(slot, text % 2, length[slot], length[slot], what != 9, &begin);
            ck_assert_int_eq(err, nib_kv_pages_for(length[slot]) <= have ? NIB_OK : NIB_E_FULL);
            full += err == NIB_E_FULL;
            if (err) {
                length[slot] = 0;
                continue;
            }
            fed[slot] = begin.pages * PAGE;
            reused += begin.pages;
            for (uint32_t p = 0; p < begin.pages; p++)
                ck_assert_mem_eq(&prefix.tokens[kv.tables[slot].pages[p] * PAGE], texts[slot] + p * PAGE, PAGE * 4);
        } else if (what == 0) {
            put(slot);
            length[slot] = 0;
        } else if (what == 1 && i % 50 == 0) {
            nib_prefix_forget(&prefix, slot % 2);
        } else if (what < 6) {
            (void)nib_prefix_save(&prefix, slot, (uint32_t)(nib_test_rand(&seed) % TABLE));
        } else {
            for (uint32_t n = 0; n < 40 && fed[slot] < length[slot]; n++, fed[slot]++)
                nib_prefix_token(&prefix, slot, fed[slot], texts[slot][fed[slot]]);
        }
        check();
    }
    ck_assert_uint_gt(reused, 100);
    ck_assert_uint_gt(full, 100);
    ck_assert_uint_gt(prefix.evicted, 100);
}
END_TEST

NIB_SUITE(prefix, the_next_turn_begins_behind_the_last, a_whole_prompt_is_never_taken_as_known,
          windows_decide_where_one_can_begin, owners_do_not_share_unless_told, a_collision_finds_nothing,
          a_request_may_ask_for_nothing_kept, the_pool_is_never_short_because_of_what_is_kept,
          window_pages_go_least_recently_used_first, a_slot_that_has_not_begun_looks_again,
          a_prompt_does_not_evict_its_own_beginning, holders_are_counted, what_may_be_wrong_is_forgotten,
          searches_are_bounded, off_is_the_pool_alone, check_sees_corruptions, random_lives_lose_no_page)
