/* tests/core/arena_test.c: takes never overlap, never leave the block, keep their alignment; the
 * seal holds. */
#include "core/arena.h"
#include "tests/harness.h"

static _Alignas(4096) uint8_t block[1 << 16];

START_TEST(takes_are_aligned_and_disjoint)
{
    uint64_t seed = nib_test_seed();
    for (int round = 0; round < 200; round++) {
        struct nib_arena arena;
        size_t skew = nib_test_rand(&seed) % 64, bytes = nib_test_rand(&seed) % (sizeof block - 64);
        nib_arena_init(&arena, block + skew, bytes);
        const uint8_t *floor = block + skew;
        for (int i = 0; i < 100; i++) {
            size_t want = nib_test_rand(&seed) % 3000, align = (size_t)1 << nib_test_rand(&seed) % 13;
            size_t used = arena.used;
            const uint8_t *p = nib_arena_take(&arena, want, align);
            if (!p) {
                ck_assert_uint_eq(arena.used, used);
                uintptr_t at = ((uintptr_t)(block + skew + used) + align - 1) & ~(uintptr_t)(align - 1);
                ck_assert_uint_gt(at + want, (uintptr_t)(block + skew + bytes));
                continue;
            }
            ck_assert_uint_eq((uintptr_t)p % align, 0);
            ck_assert(p >= floor && p + want <= block + skew + bytes);
            floor = p + want;
        }
    }
}
END_TEST

START_TEST(an_exact_fit_fits_and_one_more_does_not)
{
    struct nib_arena arena;
    nib_arena_init(&arena, block, 128);
    ck_assert_ptr_eq(nib_arena_take(&arena, 64, 64), block);
    ck_assert_ptr_null(nib_arena_take(&arena, 65, 1));
    ck_assert_ptr_eq(nib_arena_take(&arena, 64, 64), block + 64);
    ck_assert_ptr_null(nib_arena_take(&arena, 1, 1));
    ck_assert_uint_eq(arena.used, 128);
}
END_TEST

START_TEST(sizes_that_overflow_are_refused)
{
    struct nib_arena arena;
    nib_arena_init(&arena, block, 128);
    (void)nib_arena_take(&arena, 3, 1);
    ck_assert_ptr_null(nib_arena_take(&arena, SIZE_MAX, 1));
    ck_assert_ptr_null(nib_arena_take(&arena, SIZE_MAX - 2, 1));
    ck_assert_ptr_null(nib_arena_take(&arena, 1, (size_t)1 << 63));
    ck_assert_uint_eq(arena.used, 3);
}
END_TEST

START_TEST(an_empty_arena_gives_nothing)
{
    struct nib_arena arena;
    nib_arena_init(&arena, NULL, 0);
    ck_assert_ptr_null(nib_arena_take(&arena, 1, 1));
}
END_TEST

START_TEST(a_sealed_arena_gives_nothing)
{
    struct nib_arena arena;
    nib_arena_init(&arena, block, 128);
    ck_assert_ptr_nonnull(nib_arena_take(&arena, 16, 16));
    nib_arena_seal(&arena);
    ck_assert_ptr_null(nib_arena_take(&arena, 16, 16));
    ck_assert_uint_eq(arena.used, 16);
}
END_TEST

NIB_SUITE(arena, takes_are_aligned_and_disjoint, an_exact_fit_fits_and_one_more_does_not,
          sizes_that_overflow_are_refused, an_empty_arena_gives_nothing, a_sealed_arena_gives_nothing)
