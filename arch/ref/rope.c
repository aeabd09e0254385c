/* arch/ref/rope.c: rotary position embedding of heads of 64. Owns nothing; any thread; cannot fail.
 * Half-split pairs (i, i + 32), as gpt-oss's PyTorch reference: (a, b) -> (a cos - b sin, b cos + a
 * sin). */
#include "arch/ref/ref.h"

void nib_ref_rope(float *x, uint32_t heads, const float *cos, const float *sin)
{
    for (uint32_t h = 0; h < heads; h++) {
        float *first = x + (uint64_t)h * NIB_HEAD_DIM;
        float *second = first + NIB_HEAD_DIM / 2;
        for (uint32_t i = 0; i < NIB_HEAD_DIM / 2; i++) {
            double a = first[i], b = second[i];
            first[i] = (float)(a * (double)cos[i] - b * (double)sin[i]);
            second[i] = (float)(b * (double)cos[i] + a * (double)sin[i]);
        }
    }
}
