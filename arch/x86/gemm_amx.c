/* arch/x86/gemm_amx.c: prefill products on AMX tiles (bf16 operands, fp32 sums).
 *
 * Weights are bf16 exactly (an E2M1 value times a power of two is one, unless it is denormal or overflows: those become
 * zero and infinity). An activation is the sum of two bf16 numbers, high and low, each multiplied on its own into the
 * same sum: 16 bits of fraction instead of 8, for twice the tile products.
 *
 * BLOCK_M rows of x at a time are copied into tiles (they may be gathered); for two weight tiles (32 outputs) at a time
 * MXFP4 is decoded into a panel (dense weights are used where they lie: layout.h), and 32 rows x 32 outputs are
 * accumulated over all of k in four tile registers. An output's order of additions is that of k: for each 32 of k the
 * high, then the low part. Rows that do not exist are zero and are not stored.
 *
 * Owns the tile registers of its thread between its start and its end; the caller must have been granted AMX
 * (cpu.h). Any thread, with its own scratch; cannot fail. */
#include <immintrin.h>
#include <string.h>

#include "arch/x86/layout.h"
#include "arch/x86/mx_avx512.h"
#include "arch/x86/rows.h"

#define TILE_M      16u /* rows of a tile */
#define TILE_K      32u /* k of a tile */
#define TILE_BYTES  1024u
#define BLOCK_M     64u /* rows of x whose tiles stay in the second-level cache: 64 x k x 4 bytes */
#define PANEL_TILES 2u
#define PARTS       2u /* high and low */

/* scratch: x tiles [BLOCK_M / 16][k / 32][high, low], panel [2][k / 32], results [32][32] */
struct amx_scratch {
    uint8_t *x;
    uint8_t *panel;
    float *out;
};

static uint64_t x_tiles_bytes(uint32_t k)
{
    return (uint64_t)BLOCK_M / TILE_M * (k / TILE_K) * PARTS * TILE_BYTES;
}

static uint64_t panel_bytes(uint32_t k)
{
    return (uint64_t)k / TILE_K * TILE_BYTES;
}

uint64_t nib_gemm_scratch_bytes_amx(uint32_t k)
{
    return x_tiles_bytes(k) + PANEL_TILES * panel_bytes(k) + 4 * TILE_BYTES;
}

uint64_t nib_acts_bytes_amx(uint32_t k)
{
    return (uint64_t)k * (sizeof(float) + PARTS * sizeof(uint16_t));
}

/* A prepared row: fp32 [k], high bf16 [k], low bf16 [k]. */
void nib_acts_prep_amx(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k)
{
    for (uint32_t i = 0; i < m; i++) {
        float *row = (float *)((uint8_t *)dst + i * nib_acts_bytes_amx(k));
        uint16_t *high = (uint16_t *)(row + k), *low = high + k;
        for (uint32_t j = 0; j < k; j += 16) {
            const __m512 a = _mm512_loadu_ps(x + i * ldx + j);
            const __m256i h = (__m256i)_mm512_cvtneps_pbh(a);
            const __m512 rest = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
            _mm512_store_ps(row + j, a);
            _mm256_store_si256((__m256i *)(high + j), h);
            _mm256_store_si256((__m256i *)(low + j), (__m256i)_mm512_cvtneps_pbh(rest));
        }
    }
}

struct tile_config {
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct tile_config) == 64, "as LDTILECFG reads it");

static const struct tile_config config = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

/* Copies rows m0 .. m0+rows-1 of the product into tiles; missing rows of the last tile become zero. */
static void pack_x(uint8_t *tiles, const struct nib_matmul *mm, uint32_t m0, uint32_t rows)
{
    const uint32_t padded = (rows + TILE_M - 1) / TILE_M * TILE_M, blocks = mm->k / TILE_K;
    for (uint32_t r = 0; r < padded; r++) {
        uint8_t *to = tiles + (uint64_t)(r / TILE_M) * blocks * PARTS * TILE_BYTES + r % TILE_M * NIB_LINE_BYTES;
        if (r >= rows) {
            for (uint32_t b = 0; b < blocks * PARTS; b++)
                _mm512_store_si512(to + (uint64_t)b * TILE_BYTES, _mm512_setzero_si512());
            continue;
        }
        const uint64_t row = mm->rows ? mm->rows[m0 + r] : m0 + r;
        const uint8_t *from = (const uint8_t *)mm->x + row * nib_acts_bytes_amx(mm->k) + mm->k * sizeof(float);
        for (uint32_t part = 0; part < PARTS; part++)
            for (uint32_t b = 0; b < blocks; b++, from += NIB_LINE_BYTES)
                _mm512_store_si512(to + (uint64_t)(b * PARTS + part) * TILE_BYTES, _mm512_load_si512(from));
    }
}

/* E2M1 as bf16, twice: the 16-bit look-up uses 5 bits of its index, the fifth of which is the next nibble's. */
static inline __m512i table16(void)
{
    const __m256i once =
        _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, (short)0x8000, (short)0xbf00,
                          (short)0xbf80, (short)0xbfc0, (short)0xc000, (short)0xc040, (short)0xc080, (short)0xc0c0);
    return _mm512_broadcast_i64x4(once);
}

/* A block whose scales are all within 2..252: the power of two is added to the exponent of what is not zero. */
NIB_INLINE void fill_block(uint8_t *to, const uint8_t *lines, __m512i e)
{
    const __m512i table = table16(), power = _mm512_slli_epi16(_mm512_sub_epi16(e, _mm512_set1_epi16(127)), 7);
#pragma GCC unroll 4
    for (uint32_t l = 0; l < NIB_MX_LINES; l++) {
        const __m512i line = _mm512_load_si512(lines + l * NIB_LINE_BYTES);
#pragma GCC unroll 4
        for (int s = 0; s < 4; s++, to += NIB_LINE_BYTES) {
            const __m512i pair = _mm512_permutexvar_epi16(s ? _mm512_srli_epi16(line, 4 * s) : line, table);
            const __mmask32 some = _mm512_test_epi16_mask(pair, _mm512_set1_epi16(0x7fff));
            _mm512_store_si512(to, _mm512_mask_add_epi16(pair, some, pair, power));
        }
    }
}

/* Any scales: by multiplication. A denormal result is cut, and the tile product reads it as zero. */
static void fill_block_any(uint8_t *to, const uint8_t *lines, __m512 scale)
{
    const __m512i table = table16();
    for (uint32_t i = 0; i < NIB_MX_LINES * 4; i++, to += NIB_LINE_BYTES) {
        const __m512i line = _mm512_load_si512(lines + i / 4 * NIB_LINE_BYTES);
        const __m512i pair =
            _mm512_permutexvar_epi16(_mm512_srl_epi16(line, _mm_cvtsi32_si128((int)(4 * (i % 4)))), table);
        const __m512i even = _mm512_castps_si512(_mm512_mul_ps(nib_v_even(pair), scale));
        const __m512i odd = _mm512_castps_si512(_mm512_mul_ps(nib_v_odd(pair), scale));
        _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(even, 16), nib_v_and_i(odd, 0xffff0000u)));
    }
}

/* Decodes one weight tile: k / 32 AMX tiles. */
static void fill_panel(uint8_t *to, const uint8_t *tile, uint32_t k)
{
    for (uint32_t b = 0; b < k / NIB_MX_BLOCK; b++, to += TILE_BYTES) {
        const uint8_t *scales = tile + nib_x86_mx_scales_at(b), *lines = tile + nib_x86_mx_lines_at(b);
#pragma GCC unroll 5
        for (uint32_t l = 0; l < NIB_MX_LINES + 1; l++)
            _mm_prefetch((const char *)lines + l * NIB_LINE_BYTES + 2048, _MM_HINT_T0);
        const __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)scales));
        const __m512i off = _mm512_sub_epi32(e, _mm512_set1_epi32(2));
        if (_mm512_cmpgt_epu32_mask(off, _mm512_set1_epi32(250)))
            fill_block_any(to, lines, nib_mx_scale(scales));
        else
            fill_block(to, lines, _mm512_or_si512(e, _mm512_slli_epi32(e, 16)));
    }
}

/* Sums of up to 32 rows (x tiles a0, a1) and 32 outputs (weight tiles b0, b1) over `blocks` x 32 of k, into tile
 * registers 0..3: [a][b] in register 2a + b. With one row tile or one weight tile the others are left out. */
static void multiply(const uint8_t *a0, const uint8_t *a1, const uint8_t *b0, const uint8_t *b1, uint32_t blocks)
{
    __asm__ volatile("" ::: "memory"); /* the tile loads do not say that they read what was just packed */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t i = 0; i < blocks; i++) {
        const uint64_t b = (uint64_t)i * TILE_BYTES;
        _tile_loadd(4, b0 + b, NIB_LINE_BYTES);
        if (b1)
            _tile_loadd(5, b1 + b, NIB_LINE_BYTES);
#pragma GCC unroll 2
        for (uint32_t part = 0; part < PARTS; part++) {
            const uint64_t a = (b * PARTS) + part * TILE_BYTES;
            _tile_loadd(6, a0 + a, NIB_LINE_BYTES);
            _tile_dpbf16ps(0, 6, 4);
            if (b1)
                _tile_dpbf16ps(1, 6, 5);
            if (!a1)
                continue;
            _tile_loadd(7, a1 + a, NIB_LINE_BYTES);
            _tile_dpbf16ps(2, 7, 4);
            if (b1)
                _tile_dpbf16ps(3, 7, 5);
        }
    }
}

/* Tile registers 0..3, with the bias, to y. */
static void store(const struct nib_matmul *mm, float *out, uint32_t m0, uint32_t rows, uint32_t n, uint32_t cols)
{
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    if (rows > TILE_M) {
        _tile_stored(2, out + 512, 128);
        _tile_stored(3, out + 528, 128);
    }
    for (uint32_t c = 0; c < cols; c += 16) {
        const uint32_t count = cols - c < 16 ? cols - c : 16;
        const __m512 bias = mm->bias ? nib_v_load_bf16_n(mm->bias + n + c, count) : _mm512_setzero_ps();
        for (uint32_t r = 0; r < rows; r++) {
            const __m512 sum = _mm512_load_ps(out + r * 32 + c);
            nib_v_store_n(mm->y + (m0 + r) * mm->ldy + n + c, mm->bias ? _mm512_add_ps(sum, bias) : sum, count);
        }
    }
}

/* One block of rows against all outputs of the call. */
static void run_block(const struct nib_matmul *mm, const struct amx_scratch *s, uint32_t m0, uint32_t rows, int mx)
{
    const uint32_t blocks = mm->k / TILE_K;
    const uint64_t tile_bytes = mx ? nib_x86_mx_tile_bytes(mm->k) : nib_x86_dense_tile_bytes(mm->k);
    const uint64_t x_tile = (uint64_t)blocks * PARTS * TILE_BYTES;
    pack_x(s->x, mm, m0, rows);
    for (uint32_t n = mm->n0; n < mm->n1; n += PANEL_TILES * NIB_TILE_N) {
        const uint32_t cols = mm->n1 - n < PANEL_TILES * NIB_TILE_N ? mm->n1 - n : PANEL_TILES * NIB_TILE_N;
        const uint8_t *b0 = (const uint8_t *)mm->w + n / NIB_TILE_N * tile_bytes, *b1 = b0 + tile_bytes;
        if (mx) {
            fill_panel(s->panel, b0, mm->k);
            b0 = s->panel;
            if (cols > NIB_TILE_N)
                fill_panel(s->panel + panel_bytes(mm->k), b1, mm->k);
            b1 = s->panel + panel_bytes(mm->k);
        }
        if (cols <= NIB_TILE_N)
            b1 = 0;
        for (uint32_t r = 0; r < rows; r += 2 * TILE_M) {
            const uint8_t *a0 = s->x + r / TILE_M * x_tile;
            const uint32_t some = rows - r < 2 * TILE_M ? rows - r : 2 * TILE_M;
            multiply(a0, some > TILE_M ? a0 + x_tile : 0, b0, b1, blocks);
            store(mm, s->out, m0 + r, some, n, cols);
        }
    }
}

static void run(const struct nib_matmul *mm, void *scratch, int mx)
{
    struct amx_scratch s = {.x = scratch};
    s.panel = s.x + x_tiles_bytes(mm->k);
    s.out = (float *)(s.panel + PANEL_TILES * panel_bytes(mm->k));
    _tile_loadconfig(&config);
    for (uint32_t m0 = 0; m0 < mm->m; m0 += BLOCK_M)
        run_block(mm, &s, m0, mm->m - m0 < BLOCK_M ? mm->m - m0 : BLOCK_M, mx);
    _tile_release();
}

void nib_dense_gemm_amx(const struct nib_matmul *mm, void *scratch)
{
    run(mm, scratch, 0);
}

void nib_mx_gemm_amx(const struct nib_matmul *mm, void *scratch)
{
    run(mm, scratch, 1);
}
