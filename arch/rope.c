/* arch/rope.c: owns nothing; YaRN's formulas. Any thread; cannot fail. */
#include "arch/rope.h"

#include <math.h>

/* Pair index (a real number) whose wavelength makes `turns` turns within the original context
 * (YaRN, section 3.2). */
static double correction_pair(double turns)
{
    const double two_pi = 6.283185307179586;
    return NIB_HEAD_DIM * log(NIB_ROPE_ORIG_CTX / (turns * two_pi)) / (2.0 * log(NIB_ROPE_THETA));
}

void nib_rope_frequencies(float ret_freq[NIB_ROPE_PAIRS])
{
    const double low = fmax(correction_pair(NIB_ROPE_BETA_FAST), 0);
    const double high = fmin(correction_pair(NIB_ROPE_BETA_SLOW), NIB_HEAD_DIM - 1);
    for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++) {
        float wave = (float)pow(NIB_ROPE_THETA, 2.0 * i / NIB_HEAD_DIM);
        float own = 1.0f / wave;                                    /* the frequency as trained on short contexts */
        float stretched = 1.0f / ((float)NIB_ROPE_FACTOR * wave);   /* 32 times slower */
        float ramp = ((float)i - (float)low) / (float)(high - low); /* 0: own, 1: stretched */
        ramp = fminf(fmaxf(ramp, 0), 1);
        float keep = 1.0f - ramp;
        ret_freq[i] = stretched * (1.0f - keep) + own * keep;
    }
}

float nib_rope_factor(void)
{
    return (float)(0.1 * log(NIB_ROPE_FACTOR) + 1.0);
}

void nib_rope_table(const float freq[NIB_ROPE_PAIRS], uint32_t pos, float ret_cos[NIB_ROPE_PAIRS],
                    float ret_sin[NIB_ROPE_PAIRS])
{
    const float factor = nib_rope_factor();
    for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++) {
        float angle = (float)pos * freq[i];
        ret_cos[i] = cosf(angle) * factor;
        ret_sin[i] = sinf(angle) * factor;
    }
}
