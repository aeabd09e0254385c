/* arch/ref/swiglu.c: gpt-oss's clamped SwiGLU. Owns nothing; any thread; cannot fail.
 * Even elements gate, odd elements up; the gate is clamped above only, the up part on both sides,
 * and gets 1 added (gpt-oss model card, arXiv:2508.10925, and its PyTorch reference: alpha 1.702,
 * limit 7). A NaN passes through. */
#include <math.h>

#include "arch/ref/ref.h"

void nib_ref_swiglu(float *a, const float *h, uint32_t n)
{
    const double alpha = (double)NIB_SWIGLU_ALPHA, limit = (double)NIB_SWIGLU_LIMIT;
    for (uint32_t i = 0; i < n; i++) {
        double gate = h[2 * i], up = h[2 * i + 1];
        gate = gate > limit ? limit : gate;
        up = up > limit ? limit : up < -limit ? -limit : up;
        a[i] = (float)(gate / (1.0 + exp(-alpha * gate)) * (up + 1.0));
    }
}
