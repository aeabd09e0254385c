/* tests/core/sim_test.c: many seeded lives of scheduler, KV pool and prompt pool (tests/sim/sim.h).
 *
 * NIB_SIM_SEEDS=N runs N seeds instead of the usual 2,000; NIB_SIM_SEED=S replays one. */
#include "tests/sim/sim.h"

#include "tests/harness.h"

#define SIM_SEEDS 2000

static struct sim sim;
static _Alignas(64) uint8_t memory[SIM_MEMORY_BYTES];

static void print_totals(const struct sim_totals *t)
{
    printf("%llu runs, %llu steps, %llu rows, %llu tokens (%llu rows fed back, %llu tokens "
           "dropped)\n",
           (unsigned long long)t->runs, (unsigned long long)t->steps, (unsigned long long)t->rows,
           (unsigned long long)t->tokens, (unsigned long long)t->fed_back, (unsigned long long)t->dropped);
    printf("%llu requests: %llu finished, %llu refused, %llu cancelled (%llu late), %llu failed; "
           "%llu overtaken, longest wait %llu turns, %llu aborts\n",
           (unsigned long long)t->requests, (unsigned long long)t->finished, (unsigned long long)t->refused,
           (unsigned long long)t->cancelled, (unsigned long long)t->expired, (unsigned long long)t->failed,
           (unsigned long long)t->overtaken, (unsigned long long)t->waits_max, (unsigned long long)t->aborts);
    printf("%llu prompt tokens reused, %llu requests on another uid's pages; %llu window pages saved, %llu loaded; "
           "%llu pages evicted, %llu waits; beside answers %llu steps with prompt rows, %llu without; %llu tokens "
           "guessed, %llu "
           "right, held up %llu times\n",
           (unsigned long long)t->reused, (unsigned long long)t->lent, (unsigned long long)t->saves,
           (unsigned long long)t->loads, (unsigned long long)t->evicted, (unsigned long long)t->waited,
           (unsigned long long)t->few, (unsigned long long)t->dry, (unsigned long long)t->drafted,
           (unsigned long long)t->accepted, (unsigned long long)t->held);
}

START_TEST(every_seed_agrees_with_the_oracle)
{
    const char *one = getenv("NIB_SIM_SEED"), *many = getenv("NIB_SIM_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one ? 1 : many ? strtoull(many, NULL, 10) : SIM_SEEDS;
    struct sim_totals totals = {0};
    for (uint64_t i = 0; i < count; i++)
        sim_run(&sim, first + i, memory, &totals);
    print_totals(&totals);
    if (count < SIM_SEEDS)
        return;
    /* the load reached every corner */
    ck_assert(totals.finished > 0 && totals.refused > 0 && totals.cancelled > totals.expired);
    ck_assert(totals.expired > 0 && totals.failed > 0 && totals.overtaken > 0);
    ck_assert(totals.dropped > 0 && totals.fed_back > 0 && totals.aborts > 0);
    ck_assert(totals.reused > 0 && totals.evicted > 0 && totals.lent > 0 && totals.waited > 0);
    ck_assert(totals.dry > 0 && totals.few > 0);
    ck_assert(totals.drafted > totals.accepted && totals.accepted > 0 && totals.held > 0);
}
END_TEST

/* The same life twice: same events, same counts. */
START_TEST(a_seed_replays_exactly)
{
    for (uint64_t seed = 1000; seed < 1020; seed++) {
        struct sim_totals a = {0}, b = {0};
        sim_run(&sim, seed, memory, &a);
        sim_run(&sim, seed, memory, &b);
        ck_assert_mem_eq(&a, &b, sizeof a);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sim");
    TCase *tcase = tcase_create("sim");
    tcase_set_timeout(tcase, 0); /* as long as the seeds asked for take */
    tcase_add_test(tcase, every_seed_agrees_with_the_oracle);
    tcase_add_test(tcase, a_seed_replays_exactly);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
