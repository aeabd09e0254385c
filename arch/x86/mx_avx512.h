/* arch/x86/mx_avx512.h: MXFP4 in lane order (layout.h) to floats, for AVX-512 files. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_MX_AVX512_H
#define NIB_ARCH_X86_MX_AVX512_H

#include "arch/x86/vec.h"

/* E2M1 in the order of its codes */
NIB_INLINE __m512 nib_mx_table(void)
{
    return _mm512_setr_ps(0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f,
                          -4.0f, -6.0f);
}

/* Element e < 8 of each row of a line. The look-up uses the low 4 bits of its index, so the shift needs no mask. */
NIB_INLINE __m512 nib_mx_element(__m512 table, __m512i line, uint32_t e)
{
    const uint32_t shift = e / 2 * 4 + e % 2 * 16;
    return _mm512_permutexvar_ps(shift ? _mm512_srli_epi32(line, shift) : line, table);
}

/* 2^(e - 127) of 16 E8M0 bytes. As the exponent of a float, 0 would read as zero and 255 as infinity; the top bit of
 * the fraction makes them the denormal 2^-127 and NaN. */
NIB_INLINE __m512 nib_mx_scale(const uint8_t *scales)
{
    const __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)scales));
    const __m512i next = _mm512_add_epi32(e, _mm512_set1_epi32(1));
    const __mmask16 ends = _mm512_testn_epi32_mask(next, _mm512_set1_epi32(0xfe)); /* e + 1 is 1 or 256 */
    const __m512i bits = _mm512_slli_epi32(e, 23);
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, ends, bits, _mm512_set1_epi32(0x400000)));
}

#endif
