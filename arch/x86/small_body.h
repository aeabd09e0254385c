/* arch/x86/small_body.h: the element-wise operations. Compiled per instruction set (vec.h).
 * Their data is a few tens of KiB in the caches; they cost little beside the products. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_SMALL_BODY_H
#define NIB_ARCH_X86_SMALL_BODY_H

#include <math.h>
#include <string.h>

#include "arch/kernels.h"
#include "arch/x86/vec.h"

#define NIB_SUMS 4 /* independent chains of the sum of squares */

void NIB_ISA(nib_rmsnorm)(float *y, const float *x, const uint16_t *w, uint32_t n)
{
    NIB_VF sum[NIB_SUMS] = {nib_v_zero(), nib_v_zero(), nib_v_zero(), nib_v_zero()};
    uint32_t i = 0;
    for (; i + NIB_SUMS * NIB_LANES <= n; i += NIB_SUMS * NIB_LANES)
#pragma GCC unroll 4
        for (uint32_t s = 0; s < NIB_SUMS; s++) {
            const NIB_VF a = nib_v_load(x + i + s * NIB_LANES);
            sum[s] = nib_v_fma(a, a, sum[s]);
        }
    for (; i < n; i += NIB_LANES) {
        const NIB_VF a = nib_v_load_n(x + i, n - i < NIB_LANES ? n - i : NIB_LANES);
        sum[0] = nib_v_fma(a, a, sum[0]);
    }
    const float squares = nib_v_sum(nib_v_add(nib_v_add(sum[0], sum[1]), nib_v_add(sum[2], sum[3])));
    const NIB_VF scale = nib_v_set1(1.0f / sqrtf(squares / (float)n + NIB_RMS_EPS));
    for (i = 0; i + NIB_LANES <= n; i += NIB_LANES)
        nib_v_store(y + i, nib_v_mul(nib_v_mul(nib_v_load(x + i), scale), nib_v_load_bf16(w + i)));
    if (i < n) {
        const NIB_VF a = nib_v_mul(nib_v_load_n(x + i, n - i), scale);
        nib_v_store_n(y + i, nib_v_mul(a, nib_v_load_bf16_n(w + i, n - i)), n - i);
    }
}

void NIB_ISA(nib_rope)(float *x, uint32_t heads, const float *cos, const float *sin)
{
    for (uint32_t h = 0; h < heads; h++, x += NIB_HEAD_DIM)
        for (uint32_t i = 0; i < NIB_HEAD_DIM / 2; i += NIB_LANES) {
            const NIB_VF c = nib_v_load(cos + i), s = nib_v_load(sin + i);
            const NIB_VF a = nib_v_load(x + i), b = nib_v_load(x + NIB_HEAD_DIM / 2 + i);
            nib_v_store(x + i, nib_v_fnma(b, s, nib_v_mul(a, c)));
            nib_v_store(x + NIB_HEAD_DIM / 2 + i, nib_v_fma(a, s, nib_v_mul(b, c)));
        }
}

/* One vector of outputs from 2 x NIB_LANES inputs. A NaN of either half stays: constants come first in min and max. */
NIB_INLINE NIB_VF nib_swiglu_vec(const float *h)
{
    const NIB_VF limit = nib_v_set1(NIB_SWIGLU_LIMIT), one = nib_v_set1(1.0f);
    NIB_VF gate, up;
    nib_v_deinterleave(h, &gate, &up);
    gate = nib_v_min(limit, gate);
    up = nib_v_max(nib_v_set1(-NIB_SWIGLU_LIMIT), nib_v_min(limit, up));
    const NIB_VF e = nib_v_exp(nib_v_mul(gate, nib_v_set1(-NIB_SWIGLU_ALPHA)));
    return nib_v_mul(nib_v_div(gate, nib_v_add(one, e)), nib_v_add(up, one));
}

void NIB_ISA(nib_swiglu)(float *a, const float *h, uint32_t n)
{
    uint32_t i = 0;
    for (; i + NIB_LANES <= n; i += NIB_LANES)
        nib_v_store(a + i, nib_swiglu_vec(h + 2 * i));
    if (i < n) {
        float rest[2 * NIB_LANES] = {0};
        memcpy(rest, h + 2 * i, 2 * (n - i) * sizeof(float));
        nib_v_store_n(a + i, nib_swiglu_vec(rest), n - i);
    }
}

#endif
