/* arch/x86/vec.h: one name for the vector operations that AVX2 and AVX-512 files share.
 *
 * A *_body.h file is written against these and compiled twice, from X_avx2.c and X_avx512.c; NIB_ISA(f) gives its
 * functions the suffix of the instruction set. A vector holds NIB_LANES floats. Reductions add in a fixed tree, so a
 * result never depends on anything but its inputs. min and max return the second operand when one is NaN: pass the
 * constant first to keep NaNs. Any thread; nothing here can fail. */
#ifndef NIB_ARCH_X86_VEC_H
#define NIB_ARCH_X86_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define NIB_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

#define NIB_LANES  16
#define NIB_ISA(f) f##_avx512
#define NIB_VF     __m512
#define NIB_VI     __m512i

NIB_INLINE NIB_VF nib_v_zero(void)
{
    return _mm512_setzero_ps();
}
NIB_INLINE NIB_VF nib_v_set1(float x)
{
    return _mm512_set1_ps(x);
}
NIB_INLINE NIB_VF nib_v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
NIB_INLINE void nib_v_store(float *p, NIB_VF a)
{
    _mm512_storeu_ps(p, a);
}
/* The first n <= NIB_LANES lanes; the others read as zero and are not touched in memory. */
NIB_INLINE NIB_VF nib_v_load_n(const float *p, uint32_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
NIB_INLINE void nib_v_store_n(float *p, NIB_VF a, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), a);
}
NIB_INLINE NIB_VF nib_v_add(NIB_VF a, NIB_VF b)
{
    return _mm512_add_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_sub(NIB_VF a, NIB_VF b)
{
    return _mm512_sub_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_mul(NIB_VF a, NIB_VF b)
{
    return _mm512_mul_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_div(NIB_VF a, NIB_VF b)
{
    return _mm512_div_ps(a, b);
}
/* a * b + c */
NIB_INLINE NIB_VF nib_v_fma(NIB_VF a, NIB_VF b, NIB_VF c)
{
    return _mm512_fmadd_ps(a, b, c);
}
/* c - a * b */
NIB_INLINE NIB_VF nib_v_fnma(NIB_VF a, NIB_VF b, NIB_VF c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
NIB_INLINE NIB_VF nib_v_min(NIB_VF a, NIB_VF b)
{
    return _mm512_min_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_max(NIB_VF a, NIB_VF b)
{
    return _mm512_max_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_round(NIB_VF a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
NIB_INLINE NIB_VF nib_v_abs(NIB_VF a)
{
    return _mm512_abs_ps(a);
}
/* rounded to nearest and stored as NIB_LANES 16-bit integers, saturated */
NIB_INLINE void nib_v_store_i16(int16_t *p, NIB_VF a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
}
/* a * 2^n for a in [0.5, 2], n integral in [-126, 127] */
NIB_INLINE NIB_VF nib_v_ldexp(NIB_VF a, NIB_VF n)
{
    return _mm512_scalef_ps(a, n);
}
NIB_INLINE NIB_VI nib_v_load_i(const void *p)
{
    return _mm512_loadu_si512(p);
}
NIB_INLINE NIB_VI nib_v_and_i(NIB_VI a, uint32_t mask)
{
    return _mm512_and_si512(a, _mm512_set1_epi32((int)mask));
}
/* bf16 pairs, one pair a lane: the even (low) and odd (high) element of each as floats */
NIB_INLINE NIB_VF nib_v_even(NIB_VI a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
}
NIB_INLINE NIB_VF nib_v_odd(NIB_VI a)
{
    return _mm512_castsi512_ps(nib_v_and_i(a, 0xffff0000u));
}
/* NIB_LANES pairs of E4M3 codes, one pair a lane; the even (low) and odd (high) element as floats of 2^-120 of its value: the
 * exponent's bits stand where a float has its lowest four, and codes without an exponent are floats without one */
NIB_INLINE NIB_VI nib_v_load_e4m3(const void *p)
{
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
}
NIB_INLINE NIB_VF nib_v_e4m3_even(NIB_VI a)
{
    const __m512i sign = nib_v_and_i(_mm512_slli_epi32(a, 24), 0x80000000u);
    return _mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_slli_epi32(nib_v_and_i(a, 0x7fu), 20)));
}
NIB_INLINE NIB_VF nib_v_e4m3_odd(NIB_VI a)
{
    const __m512i sign = nib_v_and_i(_mm512_slli_epi32(a, 16), 0x80000000u);
    return _mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_slli_epi32(nib_v_and_i(a, 0x7f00u), 12)));
}
/* 2^120 times the scales of NIB_LANES codes of E8M0 up to 134; NaN for those above */
NIB_INLINE NIB_VF nib_v_load_scales(const uint8_t *p)
{
    const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(120)), 23);
    const __mmask16 bad = _mm512_cmpgt_epi32_mask(code, _mm512_set1_epi32(134));
    return _mm512_castsi512_ps(_mm512_mask_blend_epi32(bad, power, _mm512_set1_epi32(0x7fc00000)));
}
/* floats that are bf16 numbers, stored as pairs */
NIB_INLINE void nib_v_store_pairs(void *p, NIB_VF even, NIB_VF odd)
{
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
    _mm512_storeu_si512(p, _mm512_or_si512(low, nib_v_and_i(_mm512_castps_si512(odd), 0xffff0000u)));
}
/* NIB_LANES consecutive bf16 */
NIB_INLINE NIB_VF nib_v_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
/* the first n <= NIB_LANES of them */
NIB_INLINE NIB_VF nib_v_load_bf16_n(const uint16_t *p, uint32_t n)
{
    __m256i half = _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
/* lane l of a where lo <= l < hi, else b */
NIB_INLINE NIB_VF nib_v_select(NIB_VF a, NIB_VF b, int32_t lo, int32_t hi)
{
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 in =
        _mm512_cmpge_epi32_mask(iota, _mm512_set1_epi32(lo)) & _mm512_cmplt_epi32_mask(iota, _mm512_set1_epi32(hi));
    return _mm512_mask_blend_ps(in, b, a);
}
/* splits 2 x NIB_LANES interleaved floats */
NIB_INLINE void nib_v_deinterleave(const float *p, NIB_VF *even, NIB_VF *odd)
{
    const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    NIB_VF a = nib_v_load(p), b = nib_v_load(p + NIB_LANES);
    *even = _mm512_permutex2var_ps(a, e, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_or_si512(e, _mm512_set1_epi32(1)), b);
}
NIB_INLINE float nib_v_sum(NIB_VF a)
{
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
NIB_INLINE float nib_v_top(NIB_VF a)
{
    __m256 s = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

#elif defined(__AVX2__)

#define NIB_LANES  8
#define NIB_ISA(f) f##_avx2
#define NIB_VF     __m256
#define NIB_VI     __m256i

/* all ones in the first n lanes */
NIB_INLINE __m256i nib_v_first(uint32_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
NIB_INLINE NIB_VF nib_v_zero(void)
{
    return _mm256_setzero_ps();
}
NIB_INLINE NIB_VF nib_v_set1(float x)
{
    return _mm256_set1_ps(x);
}
NIB_INLINE NIB_VF nib_v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
NIB_INLINE void nib_v_store(float *p, NIB_VF a)
{
    _mm256_storeu_ps(p, a);
}
NIB_INLINE NIB_VF nib_v_load_n(const float *p, uint32_t n)
{
    return _mm256_maskload_ps(p, nib_v_first(n));
}
NIB_INLINE void nib_v_store_n(float *p, NIB_VF a, uint32_t n)
{
    _mm256_maskstore_ps(p, nib_v_first(n), a);
}
NIB_INLINE NIB_VF nib_v_add(NIB_VF a, NIB_VF b)
{
    return _mm256_add_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_sub(NIB_VF a, NIB_VF b)
{
    return _mm256_sub_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_mul(NIB_VF a, NIB_VF b)
{
    return _mm256_mul_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_div(NIB_VF a, NIB_VF b)
{
    return _mm256_div_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_fma(NIB_VF a, NIB_VF b, NIB_VF c)
{
    return _mm256_fmadd_ps(a, b, c);
}
NIB_INLINE NIB_VF nib_v_fnma(NIB_VF a, NIB_VF b, NIB_VF c)
{
    return _mm256_fnmadd_ps(a, b, c);
}
NIB_INLINE NIB_VF nib_v_min(NIB_VF a, NIB_VF b)
{
    return _mm256_min_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_max(NIB_VF a, NIB_VF b)
{
    return _mm256_max_ps(a, b);
}
NIB_INLINE NIB_VF nib_v_round(NIB_VF a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
NIB_INLINE NIB_VF nib_v_abs(NIB_VF a)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
NIB_INLINE void nib_v_store_i16(int16_t *p, NIB_VF a)
{
    const __m256i i = _mm256_cvtps_epi32(a);
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)));
}
NIB_INLINE NIB_VF nib_v_ldexp(NIB_VF a, NIB_VF n)
{
    __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
}
NIB_INLINE NIB_VI nib_v_load_i(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}
NIB_INLINE NIB_VI nib_v_and_i(NIB_VI a, uint32_t mask)
{
    return _mm256_and_si256(a, _mm256_set1_epi32((int)mask));
}
NIB_INLINE NIB_VF nib_v_even(NIB_VI a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16));
}
NIB_INLINE NIB_VF nib_v_odd(NIB_VI a)
{
    return _mm256_castsi256_ps(nib_v_and_i(a, 0xffff0000u));
}
NIB_INLINE NIB_VI nib_v_load_e4m3(const void *p)
{
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
}
NIB_INLINE NIB_VF nib_v_e4m3_even(NIB_VI a)
{
    const __m256i sign = nib_v_and_i(_mm256_slli_epi32(a, 24), 0x80000000u);
    return _mm256_castsi256_ps(_mm256_or_si256(sign, _mm256_slli_epi32(nib_v_and_i(a, 0x7fu), 20)));
}
NIB_INLINE NIB_VF nib_v_e4m3_odd(NIB_VI a)
{
    const __m256i sign = nib_v_and_i(_mm256_slli_epi32(a, 16), 0x80000000u);
    return _mm256_castsi256_ps(_mm256_or_si256(sign, _mm256_slli_epi32(nib_v_and_i(a, 0x7f00u), 12)));
}
NIB_INLINE NIB_VF nib_v_load_scales(const uint8_t *p)
{
    const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(code, _mm256_set1_epi32(120)), 23);
    const __m256i bad = _mm256_cmpgt_epi32(code, _mm256_set1_epi32(134));
    return _mm256_castsi256_ps(_mm256_blendv_epi8(power, _mm256_set1_epi32(0x7fc00000), bad));
}
NIB_INLINE void nib_v_store_pairs(void *p, NIB_VF even, NIB_VF odd)
{
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(even), 16);
    const __m256i pair = _mm256_or_si256(low, nib_v_and_i(_mm256_castps_si256(odd), 0xffff0000u));
    _mm256_storeu_si256((__m256i *)p, pair);
}
NIB_INLINE NIB_VF nib_v_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
NIB_INLINE NIB_VF nib_v_load_bf16_n(const uint16_t *p, uint32_t n)
{
    uint16_t part[NIB_LANES] = {0};
    for (uint32_t i = 0; i < n && i < NIB_LANES; i++)
        part[i] = p[i];
    return nib_v_load_bf16(part);
}
NIB_INLINE NIB_VF nib_v_select(NIB_VF a, NIB_VF b, int32_t lo, int32_t hi)
{
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(lo), iota);
    __m256i in = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(hi), iota));
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(in));
}
NIB_INLINE void nib_v_deinterleave(const float *p, NIB_VF *even, NIB_VF *odd)
{
    NIB_VF a = nib_v_load(p), b = nib_v_load(p + NIB_LANES);
    NIB_VF lo = _mm256_permute2f128_ps(a, b, 0x20), hi = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(lo, hi, 0x88);
    *odd = _mm256_shuffle_ps(lo, hi, 0xdd);
}
NIB_INLINE float nib_v_sum(NIB_VF a)
{
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
NIB_INLINE float nib_v_top(NIB_VF a)
{
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}

#else
#error "compiled without an instruction set: see ISA.* in the Makefile"
#endif

/* e^x to about 2 units in the last place, for x in [-87, 88]; smaller x gives about 1e-38, larger about 1e38. NaN stays.
 * x = n ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 (error below 2^-28). */
NIB_INLINE NIB_VF nib_v_exp(NIB_VF x)
{
    x = nib_v_max(nib_v_set1(-87.0f), nib_v_min(nib_v_set1(88.0f), x));
    NIB_VF n = nib_v_round(nib_v_mul(x, nib_v_set1(0x1.715476p+0f)));
    NIB_VF r = nib_v_fnma(n, nib_v_set1(0x1.62e4p-1f), x); /* ln 2, high bits: n times it is exact */
    r = nib_v_fnma(n, nib_v_set1(0x1.7f7d1cp-20f), r);     /* and the rest */
    NIB_VF p = nib_v_set1(1.0f / 5040);
    p = nib_v_fma(p, r, nib_v_set1(1.0f / 720));
    p = nib_v_fma(p, r, nib_v_set1(1.0f / 120));
    p = nib_v_fma(p, r, nib_v_set1(1.0f / 24));
    p = nib_v_fma(p, r, nib_v_set1(1.0f / 6));
    p = nib_v_fma(p, r, nib_v_set1(0.5f));
    p = nib_v_fma(p, r, nib_v_set1(1.0f));
    p = nib_v_fma(p, r, nib_v_set1(1.0f));
    return nib_v_ldexp(p, n);
}

#endif
