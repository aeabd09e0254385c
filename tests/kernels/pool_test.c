/* tests/kernels/pool_test.c: barriers hold back every worker, items go to one worker each, pools open and close. */
#include "arch/pool.h"

#include "tests/harness.h"

enum { ROUNDS = 2000, ITEMS = 37 };

struct shared {
    struct nib_pool *pool;
    uint64_t cell[NIB_MAX_THREADS]; /* each worker writes its own, all read all: the barrier orders them */
    uint32_t taken[ITEMS];
    atomic_uint bad;
};

static void rounds(void *arg, uint32_t worker)
{
    struct shared *s = arg;
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        s->cell[worker] = round;
        nib_pool_barrier(s->pool);
        for (uint32_t w = 0; w < s->pool->threads; w++)
            if (s->cell[w] != round)
                atomic_fetch_add(&s->bad, 1);
        for (uint32_t i; (i = nib_pool_take(s->pool)) < ITEMS;)
            s->taken[i]++;
        nib_pool_barrier(s->pool);
    }
}

static struct nib_pool pool;

START_TEST(barriers_and_items)
{
    for (uint32_t threads = 1; threads <= 5; threads++) {
        struct shared s = {.pool = &pool};
        ck_assert_int_eq(nib_pool_open(&pool, threads, NULL), NIB_OK);
        for (int run = 0; run < 3; run++)
            nib_pool_run(&pool, rounds, &s);
        nib_pool_close(&pool);
        ck_assert_uint_eq(atomic_load(&s.bad), 0);
        for (uint32_t i = 0; i < ITEMS; i++)
            ck_assert_uint_eq(s.taken[i], 3 * ROUNDS);
    }
}
END_TEST

static void note_worker(void *arg, uint32_t worker)
{
    ((uint32_t *)arg)[worker]++;
}

/* Longer than any spin: the workers are asleep when the next run comes. */
START_TEST(sleeping_workers_wake)
{
    uint32_t ran[3] = {0};
    ck_assert_int_eq(nib_pool_open(&pool, 3, NULL), NIB_OK);
    for (int i = 0; i < 5; i++) {
        const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
        nanosleep(&pause, NULL);
        nib_pool_run(&pool, note_worker, ran);
    }
    nib_pool_close(&pool);
    for (int w = 0; w < 3; w++)
        ck_assert_uint_eq(ran[w], 5);
}
END_TEST

START_TEST(counts_outside_the_range_are_refused)
{
    struct nib_msg msg;
    ck_assert_int_eq(nib_pool_open(&pool, 0, &msg), NIB_E_ARG);
    ck_assert_str_eq(msg.text, "threads is 0, allowed is 1 to 256");
    ck_assert_int_eq(nib_pool_open(&pool, NIB_MAX_THREADS + 1, &msg), NIB_E_ARG);
}
END_TEST

NIB_SUITE(pool, barriers_and_items, sleeping_workers_wake, counts_outside_the_range_are_refused)
