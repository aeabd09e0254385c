/* arch/ref/norm.c: RMSNorm. Owns nothing; any thread; cannot fail.
 * y = x / sqrt(mean(x^2) + eps) * w, eps 1e-5 (Zhang and Sennrich, arXiv:1910.07467; gpt-oss
 * config.json). */
#include <math.h>

#include "arch/ref/ref.h"
#include "core/mx.h"

void nib_ref_rmsnorm(float *y, const float *x, const uint16_t *w, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    double scale = 1.0 / sqrt(sum / n + (double)NIB_RMS_EPS);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (float)((double)x[i] * scale * (double)nib_bf16_decode(w[i]));
}
