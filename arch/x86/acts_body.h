/* arch/x86/acts_body.h: preparation of activations (layout.h). Compiled per instruction set (vec.h).
 * Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_ACTS_BODY_H
#define NIB_ARCH_X86_ACTS_BODY_H

#include <math.h>

#include "arch/x86/layout.h"
#include "arch/x86/vec.h"

#define NIB_ACTS_TOP   32767.0f
#define NIB_ACTS_LEAST 0x1p-110f /* a block below it is zero: its scale's inverse would overflow */
#define NIB_ACTS_VECS  (NIB_MX_BLOCK / NIB_LANES)

/* One row: fp32, integers, scales. */
NIB_INLINE void nib_acts_row(uint8_t *to, const float *x, uint32_t k)
{
    float *copy = (float *)to, *scales = (float *)(to + nib_x86_acts_scales_at(k));
    int16_t *ints = (int16_t *)(to + nib_x86_acts_ints_at(k));
    for (uint32_t j = 0; j < k; j += NIB_MX_BLOCK) {
        NIB_VF a[NIB_ACTS_VECS], top = nib_v_zero(), bad = nib_v_zero();
#pragma GCC unroll 4
        for (uint32_t v = 0; v < NIB_ACTS_VECS; v++) {
            a[v] = nib_v_load(x + j + v * NIB_LANES);
            nib_v_store(copy + j + v * NIB_LANES, a[v]);
            top = nib_v_max(top, nib_v_abs(a[v]));
            bad = nib_v_fma(a[v], nib_v_zero(), bad); /* NaN when an element is NaN or infinite */
        }
        const float largest = nib_v_top(top), nan = nib_v_sum(bad);
        const NIB_VF inverse = nib_v_set1(largest < NIB_ACTS_LEAST ? 0.0f : NIB_ACTS_TOP / largest);
        scales[j / NIB_MX_BLOCK] = (largest < NIB_ACTS_LEAST ? 0.0f : largest / NIB_ACTS_TOP) + nan;
#pragma GCC unroll 4
        for (uint32_t v = 0; v < NIB_ACTS_VECS; v++)
            nib_v_store_i16(ints + j + v * NIB_LANES, nib_v_mul(a[v], inverse));
    }
}

#endif
