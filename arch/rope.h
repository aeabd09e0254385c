/* arch/rope.h: YaRN's frequencies and one position's cos and sin (arXiv:2309.00071; constants in
 * core/model.h). Computed in fp32 step by step as the model's PyTorch code does, since at large
 * positions a last-bit difference in a frequency is a visible angle. Pure; any thread; cannot fail.
 */
#ifndef NIB_ARCH_ROPE_H
#define NIB_ARCH_ROPE_H

#include <stdint.h>

#include "core/model.h"

#define NIB_ROPE_PAIRS (NIB_HEAD_DIM / 2)

/* Radians per position of each pair. */
void nib_rope_frequencies(float ret_freq[NIB_ROPE_PAIRS]);

/* YaRN's attention factor: 0.1 ln(factor) + 1. */
float nib_rope_factor(void);

/* cos and sin of pos * freq, times the attention factor. */
void nib_rope_table(const float freq[NIB_ROPE_PAIRS], uint32_t pos, float ret_cos[NIB_ROPE_PAIRS],
                    float ret_sin[NIB_ROPE_PAIRS]);

#endif
