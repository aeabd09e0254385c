/* tests/core/kv_test.c: no page is lost, shared or put twice; errors change nothing; a broken table
 * stops the process. */
#include "core/kv.h"

#include <signal.h>

#include "tests/harness.h"

static _Alignas(64) uint8_t block[1 << 16];
static struct nib_kv kv;

static void make(uint32_t slots, uint32_t ctx_tokens, uint32_t pages)
{
    struct nib_engine_dims dims = {.slots = slots, .ctx_tokens = ctx_tokens, .kv_pages = pages, .step_rows_max = slots};
    struct nib_arena arena;
    nib_arena_init(&arena, block + 8, nib_kv_bytes(&dims));
    ck_assert_int_eq(nib_kv_init(&kv, &arena, &dims, NULL), NIB_OK);
    ck_assert(nib_kv_check(&kv));
}

START_TEST(pages_round_up)
{
    ck_assert_uint_eq(nib_kv_pages_for(1), 1);
    ck_assert_uint_eq(nib_kv_pages_for(NIB_KV_PAGE_TOKENS), 1);
    ck_assert_uint_eq(nib_kv_pages_for(NIB_KV_PAGE_TOKENS + 1), 2);
}
END_TEST

START_TEST(errors_change_nothing)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 5);
    ck_assert_int_eq(nib_kv_take(&kv, 2, 1, NULL, 0), NIB_E_ARG);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 0, NULL, 0), NIB_E_ARG);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 4 * NIB_KV_PAGE_TOKENS + 1, NULL, 0), NIB_E_LIMIT);
    ck_assert_int_eq(nib_kv_put(&kv, 0), NIB_E_STATE);
    ck_assert_int_eq(nib_kv_put(&kv, 2), NIB_E_ARG);
    ck_assert_uint_eq(kv.free_count, 5);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 4 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 1, NULL, 0), NIB_E_STATE);
    ck_assert_int_eq(nib_kv_take(&kv, 1, 2 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_E_FULL);
    ck_assert_uint_eq(kv.tables[1].pages_count, 0);
    ck_assert_int_eq(nib_kv_take(&kv, 1, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_uint_eq(kv.free_count, 0);
    ck_assert(nib_kv_check(&kv));
    ck_assert_int_eq(nib_kv_put(&kv, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_put(&kv, 0), NIB_E_STATE);
    ck_assert_uint_eq(kv.free_count, 4);
    ck_assert(nib_kv_check(&kv));
}
END_TEST

START_TEST(every_page_has_one_owner)
{
    enum { SLOTS = 7, PAGES = 40 };
    uint64_t seed = nib_test_seed();
    make(SLOTS, 16 * NIB_KV_PAGE_TOKENS, PAGES);
    uint32_t full = 0;
    for (int i = 0; i < 5000; i++) {
        uint32_t slot = (uint32_t)(nib_test_rand(&seed) % SLOTS);
        if (kv.tables[slot].pages_count) {
            ck_assert_int_eq(nib_kv_put(&kv, slot), NIB_OK);
        } else {
            uint32_t tokens = 1 + (uint32_t)(nib_test_rand(&seed) % (16 * NIB_KV_PAGE_TOKENS));
            bool fits = nib_kv_pages_for(tokens) <= kv.free_count;
            full += !fits;
            ck_assert_int_eq(nib_kv_take(&kv, slot, tokens, NULL, 0), fits ? NIB_OK : NIB_E_FULL);
        }
        uint32_t owners[PAGES] = {0}, owned = 0;
        for (uint32_t s = 0; s < SLOTS; s++)
            for (uint32_t k = 0; k < kv.tables[s].pages_count; k++) {
                ck_assert_uint_lt(kv.tables[s].pages[k], PAGES);
                ck_assert_uint_eq(owners[kv.tables[s].pages[k]]++, 0);
                owned++;
            }
        ck_assert_uint_eq(owned + kv.free_count, PAGES);
        ck_assert(nib_kv_check(&kv));
    }
    ck_assert_uint_gt(full, 100);
}
END_TEST

/* A kept page outlives its slot, may be in several tables, and is free only when it is dropped. */
START_TEST(kept_pages_are_shared)
{
    make(3, 4 * NIB_KV_PAGE_TOKENS, 6);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 2 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    const uint32_t shared[] = {nib_kv_keep(&kv, 0, 0), kv.tables[0].pages[1]};
    ck_assert_int_eq(nib_kv_take(&kv, 1, 3 * NIB_KV_PAGE_TOKENS, shared, 2), NIB_E_ARG); /* one is not kept */
    ck_assert_int_eq(nib_kv_take(&kv, 1, NIB_KV_PAGE_TOKENS, shared, 2), NIB_E_ARG);     /* more than it takes */
    ck_assert_int_eq(nib_kv_take(&kv, 1, 3 * NIB_KV_PAGE_TOKENS, shared, 1), NIB_OK);
    ck_assert_uint_eq(kv.tables[1].pages[0], shared[0]);
    ck_assert_uint_eq(kv.free_count, 2);
    ck_assert(nib_kv_check(&kv));
    uint32_t page = 77;
    ck_assert_int_eq(nib_kv_take(&kv, 2, 4 * NIB_KV_PAGE_TOKENS, shared, 1), NIB_E_FULL);
    ck_assert_int_eq(nib_kv_keep_free(&kv, &page), NIB_OK);
    ck_assert_uint_ne(page, 77);
    ck_assert_int_eq(nib_kv_put(&kv, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_put(&kv, 1), NIB_OK);
    ck_assert_uint_eq(kv.free_count, 4);
    ck_assert_uint_eq(kv.kept_count, 2);
    ck_assert(nib_kv_check(&kv));
    nib_kv_drop(&kv, page);
    nib_kv_drop(&kv, shared[0]);
    ck_assert_uint_eq(kv.free_count, 6);
    ck_assert(nib_kv_check(&kv));
    while (nib_kv_keep_free(&kv, &page) == NIB_OK)
        ck_assert(nib_kv_check(&kv));
    ck_assert_uint_eq(kv.kept_count, 6);
}
END_TEST

/* A slot's own page gives way to a kept one. */
START_TEST(a_kept_page_takes_a_place_in_a_table)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 6);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 2 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_take(&kv, 1, 3 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    const uint32_t page = nib_kv_keep(&kv, 0, 0);
    nib_kv_share(&kv, 1, 0, page);
    ck_assert_uint_eq(kv.tables[1].pages[0], page);
    ck_assert_uint_eq(kv.free_count, 2);
    ck_assert(nib_kv_check(&kv));
    ck_assert_int_eq(nib_kv_put(&kv, 1), NIB_OK);
    ck_assert_int_eq(nib_kv_put(&kv, 0), NIB_OK);
    ck_assert_uint_eq(kv.free_count, 5);
}
END_TEST

START_TEST(sharing_a_page_of_a_slot_stops_the_process)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 6);
    ck_assert_int_eq(nib_kv_take(&kv, 0, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_take(&kv, 1, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    nib_kv_share(&kv, 1, 0, kv.tables[0].pages[0]);
}
END_TEST

START_TEST(dropping_a_page_in_use_stops_the_process)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 8);
    ck_assert_int_eq(nib_kv_take(&kv, 0, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    nib_kv_drop(&kv, kv.tables[0].pages[0]);
}
END_TEST

START_TEST(keeping_a_foreign_page_stops_the_process)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 8);
    ck_assert_int_eq(nib_kv_take(&kv, 0, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    (void)nib_kv_keep(&kv, 0, 0);
    (void)nib_kv_keep(&kv, 0, 0);
}
END_TEST

/* Each single corruption of the pool is seen by nib_kv_check. */
START_TEST(check_sees_every_corruption)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 8);
    ck_assert_int_eq(nib_kv_take(&kv, 0, 3 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_take(&kv, 1, 2 * NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    uint32_t *cells[] = {&kv.free_count,
                         &kv.tables[0].pages_count,
                         &kv.tables[1].pages_count,
                         &kv.kept_count,
                         &kv.free[0],
                         &kv.free[2],
                         &kv.ids[0],
                         &kv.ids[1],
                         &kv.ids[4],
                         &kv.place[0],
                         &kv.place[4],
                         &kv.place[7]};
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++)
        for (uint32_t value = 0; value < 12; value++) {
            uint32_t was = *cells[i];
            if (value == was)
                continue;
            *cells[i] = value == 11 ? UINT32_MAX : value;
            ck_assert_msg(!nib_kv_check(&kv), "cell %zu = %u not seen", i, value);
            *cells[i] = was;
        }
    ck_assert(nib_kv_check(&kv));
}
END_TEST

START_TEST(putting_a_foreign_page_stops_the_process)
{
    make(2, 4 * NIB_KV_PAGE_TOKENS, 8);
    ck_assert_int_eq(nib_kv_take(&kv, 0, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    ck_assert_int_eq(nib_kv_take(&kv, 1, NIB_KV_PAGE_TOKENS, NULL, 0), NIB_OK);
    kv.ids[0] = kv.tables[1].pages[0];
    (void)!nib_kv_put(&kv, 0);
}
END_TEST

START_TEST(dimensions_out_of_range_are_refused)
{
    const struct nib_engine_dims good = {.slots = 2, .ctx_tokens = 64, .kv_pages = 4};
    struct nib_engine_dims bad[6] = {good, good, good, good, good, good};
    bad[0].slots = 0;
    bad[1].slots = NIB_MAX_SLOTS + 1;
    bad[2].ctx_tokens = 0;
    bad[3].ctx_tokens = NIB_MAX_CTX_TOKENS + 1;
    bad[4].kv_pages = 0;
    bad[5].kv_pages = NIB_MAX_KV_PAGES + 1;
    struct nib_arena arena;
    nib_arena_init(&arena, block, sizeof block);
    for (int i = 0; i < 6; i++) {
        struct nib_msg msg = {""};
        ck_assert_int_eq(nib_kv_init(&kv, &arena, &bad[i], &msg), NIB_E_ARG);
        ck_assert(msg.text[0] != '\0');
        ck_assert_uint_eq(nib_kv_bytes(&bad[i]), 0);
    }
    nib_arena_init(&arena, block, 16);
    ck_assert_int_eq(nib_kv_init(&kv, &arena, &good, NULL), NIB_E_NOMEM);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kv");
    TCase *tcase = tcase_create("kv");
    tcase_add_test(tcase, pages_round_up);
    tcase_add_test(tcase, errors_change_nothing);
    tcase_add_test(tcase, every_page_has_one_owner);
    tcase_add_test(tcase, check_sees_every_corruption);
    tcase_add_test(tcase, kept_pages_are_shared);
    tcase_add_test(tcase, a_kept_page_takes_a_place_in_a_table);
    tcase_add_test_raise_signal(tcase, sharing_a_page_of_a_slot_stops_the_process, SIGABRT);
    tcase_add_test_raise_signal(tcase, dropping_a_page_in_use_stops_the_process, SIGABRT);
    tcase_add_test_raise_signal(tcase, keeping_a_foreign_page_stops_the_process, SIGABRT);
    tcase_add_test_raise_signal(tcase, putting_a_foreign_page_stops_the_process, SIGABRT);
    tcase_add_test(tcase, dimensions_out_of_range_are_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
