/* arch/x86/mx_avx2.h: MXFP4 in byte order (layout.h) to bf16 pairs, for AVX2 files. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_MX_AVX2_H
#define NIB_ARCH_X86_MX_AVX2_H

#include "arch/x86/vec.h"

/* Half a line (8 rows x 8 k): pair j has (k 2j, k 2j+1) of each row as bf16. E2M1 in bf16 is two byte look-ups. */
NIB_INLINE void nib_mx_pairs(const uint8_t *half_line, __m256i pair[4])
{
    const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                                   (char)0x80, (char)0xbf, (char)0xbf, (char)0xbf,
                                                                   (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0));
    const __m256i low =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, (char)0x80, (char)0xc0, 0, 0x40, (char)0x80, (char)0xc0, 0, 0,
                                                  (char)0x80, (char)0xc0, 0, 0x40, (char)0x80, (char)0xc0));
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i line = _mm256_load_si256((const __m256i *)half_line);
    const __m256i a = _mm256_and_si256(line, nibble), b = _mm256_and_si256(_mm256_srli_epi16(line, 4), nibble);
    const __m256i ah = _mm256_shuffle_epi8(high, a), al = _mm256_shuffle_epi8(low, a);
    const __m256i bh = _mm256_shuffle_epi8(high, b), bl = _mm256_shuffle_epi8(low, b);
    pair[0] = _mm256_unpacklo_epi8(al, ah);
    pair[1] = _mm256_unpackhi_epi8(al, ah);
    pair[2] = _mm256_unpacklo_epi8(bl, bh);
    pair[3] = _mm256_unpackhi_epi8(bl, bh);
}

/* 2^(e - 127) of 8 E8M0 bytes; 0 is the denormal 2^-127, 255 is NaN (see mx_avx512.h). */
NIB_INLINE __m256 nib_mx_scale(const uint8_t *scales)
{
    const __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)scales));
    const __m256i next = _mm256_add_epi32(e, _mm256_set1_epi32(1));
    const __m256i ends = _mm256_cmpeq_epi32(_mm256_and_si256(next, _mm256_set1_epi32(0xfe)), _mm256_setzero_si256());
    const __m256i fix = _mm256_and_si256(ends, _mm256_set1_epi32(0x400000));
    return _mm256_castsi256_ps(_mm256_or_si256(_mm256_slli_epi32(e, 23), fix));
}

#endif
