/* tests/harness.h: the frame of every Check test program.
 *
 *     NIB_SUITE(name, test_a, test_b, ...)   defines main: runs the tests, each in a forked child.
 *
 * NIB_TEST_SEED in the environment replays a randomised test; nib_test_seed() prints what it used. */
#ifndef NIB_TESTS_HARNESS_H
#define NIB_TESTS_HARNESS_H

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NIB_TEST_TIMEOUT_S 300 /* a hang guard, not a measure of speed */

static inline uint64_t nib_test_seed(void)
{
    const char *s = getenv("NIB_TEST_SEED");
    uint64_t seed = s ? strtoull(s, NULL, 10) : 20251122;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

/* splitmix64 (Steele, Lea, Flood 2014): a generator for test inputs. */
static inline uint64_t nib_test_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline int nib_suite_run(const char *name, const TTest *const *tests, size_t count)
{
    Suite *suite = suite_create(name);
    TCase *tcase = tcase_create(name);
    tcase_set_timeout(tcase, NIB_TEST_TIMEOUT_S);
    for (size_t i = 0; i < count; i++)
        tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#define NIB_SUITE(name, ...)                                                                                           \
    int main(void)                                                                                                     \
    {                                                                                                                  \
        const TTest *const tests[] = {__VA_ARGS__};                                                                    \
        return nib_suite_run(#name, tests, sizeof tests / sizeof tests[0]);                                            \
    }

#endif
