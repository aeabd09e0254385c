/* core/rng.c: Philox4x32-10; constants from the paper named in core/rng.h. No state, any thread,
 * cannot fail. */
#include "core/rng.h"

#include <stddef.h>

#define PHILOX_ROUNDS 10
#define PHILOX_M0     0xd2511f53u
#define PHILOX_M1     0xcd9e8d57u
#define PHILOX_W0     0x9e3779b9u /* golden ratio */
#define PHILOX_W1     0xbb67ae85u /* sqrt(3) - 1 */

void nib_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t p0 = (uint64_t)PHILOX_M0 * c0, p1 = (uint64_t)PHILOX_M1 * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    ret_words[0] = c0;
    ret_words[1] = c1;
    ret_words[2] = c2;
    ret_words[3] = c3;
}

void nib_rng_draw(uint64_t seed, uint32_t pos, uint32_t block, uint32_t ret_words[4])
{
    const uint32_t counter[4] = {block, pos, 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    nib_philox(counter, key, ret_words);
}

/* The same rounds with one lane a block, so that the compiler can use vector multiplications. */
void nib_rng_draw32(uint64_t seed, uint32_t pos, uint32_t group, uint32_t ret_words[32])
{
    uint32_t c0[8], c1[8], c2[8], c3[8];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (uint32_t i = 0; i < 8; i++) {
        c0[i] = 8 * group + i;
        c1[i] = pos;
        c2[i] = 0;
        c3[i] = 0;
    }
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        for (uint32_t i = 0; i < 8; i++) {
            uint64_t p0 = (uint64_t)PHILOX_M0 * c0[i], p1 = (uint64_t)PHILOX_M1 * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
            c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1;
            c3[i] = (uint32_t)p0;
        }
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    for (size_t i = 0; i < 8; i++) {
        ret_words[4 * i] = c0[i];
        ret_words[4 * i + 1] = c1[i];
        ret_words[4 * i + 2] = c2[i];
        ret_words[4 * i + 3] = c3[i];
    }
}
