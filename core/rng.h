/* core/rng.h: Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw,
 * "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
 *
 * Stateless: 128 bits of counter and 64 bits of key give four 32-bit words. 32-bit integer
 * multiplications only, so a GPU thread computes the same words. Any thread; cannot fail. */
#ifndef NIB_CORE_RNG_H
#define NIB_CORE_RNG_H

#include <stdint.h>

void nib_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t ret_words[4]);

/* The noise words of ids 4 * block .. 4 * block + 3 of the draw at position `pos` of a sequence
 * with that seed: counter (block, pos, 0, 0), key (low half of seed, high half). */
void nib_rng_draw(uint64_t seed, uint32_t pos, uint32_t block, uint32_t ret_words[4]);

/* The words of ids 32 * group .. 32 * group + 31: blocks 8 * group .. 8 * group + 7 in one pass. */
void nib_rng_draw32(uint64_t seed, uint32_t pos, uint32_t group, uint32_t ret_words[32]);

#endif
