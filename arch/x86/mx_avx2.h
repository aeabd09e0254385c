/* arch/x86/mx_avx2.h: MXFP4 in byte order (layout.h) to pairs of 16 bits, for AVX2 files. Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_MX_AVX2_H
#define NIB_ARCH_X86_MX_AVX2_H

#include "arch/x86/vec.h"

/* E2M1 as 16 bits by two byte look-ups: as bf16, or twice its value as an integer. */
struct nib_mx_tables {
    __m256i high, low;
};

NIB_INLINE struct nib_mx_tables nib_mx_bf16_tables(void)
{
    return (struct nib_mx_tables){
        .high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40, -0x80, -0x41,
                                                          -0x41, -0x41, -0x40, -0x40, -0x40, -0x40)),
        .low = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40, 0, 0, -0x80, -0x40, 0, 0x40, -0x80, -0x40)),
    };
}

NIB_INLINE struct nib_mx_tables nib_mx_int_tables(void)
{
    return (struct nib_mx_tables){
        .high = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1)),
        .low = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)),
    };
}

/* Half a line (8 rows x 8 k): pair j has (k 2j, k 2j+1) of each row in 16 bits each. */
NIB_INLINE void nib_mx_pairs(struct nib_mx_tables t, const uint8_t *half_line, __m256i pair[4])
{
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i line = _mm256_load_si256((const __m256i *)half_line);
    const __m256i a = _mm256_and_si256(line, nibble), b = _mm256_and_si256(_mm256_srli_epi16(line, 4), nibble);
    const __m256i ah = _mm256_shuffle_epi8(t.high, a), al = _mm256_shuffle_epi8(t.low, a);
    const __m256i bh = _mm256_shuffle_epi8(t.high, b), bl = _mm256_shuffle_epi8(t.low, b);
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
