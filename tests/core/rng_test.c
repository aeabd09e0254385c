/* tests/core/rng_test.c: Philox4x32-10 gives the words its authors publish, and all ways to ask for a
 * word give the same word. */
#include "core/rng.h"
#include "tests/harness.h"

/* Known answers of the Random123 distribution (kat_vectors, philox4x32 10). */
START_TEST(known_answers)
{
    static const struct {
        uint32_t counter[4], key[2], words[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
        {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
         {0xa4093822u, 0x299f31d0u},
         {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}},
    };
    for (size_t i = 0; i < sizeof kat / sizeof kat[0]; i++) {
        uint32_t words[4];
        nib_philox(kat[i].counter, kat[i].key, words);
        ck_assert_mem_eq(words, kat[i].words, sizeof words);
    }
}
END_TEST

START_TEST(a_draw_is_philox_of_block_position_and_seed)
{
    uint64_t state = nib_test_seed();
    for (int round = 0; round < 1000; round++) {
        uint64_t seed = nib_test_rand(&state);
        uint32_t pos = (uint32_t)nib_test_rand(&state);
        uint32_t group = (uint32_t)(nib_test_rand(&state) % 8192);
        uint32_t many[32];
        nib_rng_draw32(seed, pos, group, many);
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t counter[4] = {8 * group + i, pos, 0, 0};
            const uint32_t key[2] = {(uint32_t)(seed & 0xffffffffu), (uint32_t)(seed >> 32)};
            uint32_t words[4], draw[4];
            nib_philox(counter, key, words);
            nib_rng_draw(seed, pos, 8 * group + i, draw);
            ck_assert_mem_eq(words, draw, sizeof words);
            ck_assert_mem_eq(words, many + 4 * i, sizeof words);
        }
    }
}
END_TEST

NIB_SUITE(rng, known_answers, a_draw_is_philox_of_block_position_and_seed)
