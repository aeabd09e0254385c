/* arch/x86/gemm_amx.c: prefill products on AMX tiles (bf16 operands, fp32 sums).
 *
 * Weights are bf16 exactly (an E2M1 value times a power of two is one, unless it is denormal or overflows: those become
 * zero and infinity). An activation is the sum of two bf16 numbers, high and low, each multiplied on its own into the
 * same sum: 16 bits of fraction instead of 8, for twice the tile products.
 *
 * k is cut in chunks of CHUNK_K, rows in blocks of BLOCK_M: the block's part of x stays in the second-level cache while all
 * weights of the chunk pass once. For two weight tiles (32 outputs) at a time MXFP4 is decoded into a panel; dense weights
 * are used where they lie (layout.h). 32 rows x 32 outputs are accumulated over the chunk in four tile registers, while
 * the next weights are asked for. An output's order of additions is that of k: in a chunk for each 32 of k the high, then
 * the low part; chunks are added in y; then the bias. Rows of x are used where they lie, or copied when they are gathered
 * or fewer than a tile's.
 *
 * Owns the tile registers of its thread between its start and its end; the caller must have been granted AMX
 * (cpu.h). Any thread, with its own scratch; cannot fail. */
#include <immintrin.h>
#include <stdbool.h>
#include <stddef.h>

#include "arch/x86/acts_body.h"
#include "arch/x86/layout.h"
#include "arch/x86/mx_avx512.h"
#include "arch/x86/rows.h"

#define TILE_M      16u /* rows of a tile */
#define TILE_K      32u /* k of a tile */
#define TILE_BYTES  1024u
#define BLOCK_M     128u
#define CHUNK_K     1440u /* x of a block and chunk: 128 x 1440 x 2 parts x 2 bytes = 720 KiB */
#define PANEL_TILES 2u
#define PARTS       2u /* high and low */
#define DEPTH       4u /* blocks that are decoded before their use: their stores have left the store buffer by then */

#define X_BYTES     ((uint64_t)BLOCK_M * CHUNK_K * PARTS * sizeof(uint16_t))
#define PANEL_BYTES ((uint64_t)CHUNK_K / TILE_K * TILE_BYTES) /* of one weight tile */

struct amx_scratch {
    uint8_t *x;     /* copied tiles: [BLOCK_M / 16][CHUNK_K / 32][PARTS] */
    uint8_t *panel; /* decoded weights: [PANEL_TILES][CHUNK_K / 32] */
    float *out;     /* results: [32][32] */
};

/* 16 rows of x of one chunk. A line is 32 of k of one part of one row. */
struct x_tile {
    const uint8_t *at;
    uint64_t row_bytes; /* from a row's line to the next row's */
    uint64_t step;      /* from a line to the same row's next: low after high, then the next 32 of k */
};

/* What one chunk of one block of rows is. */
struct amx_chunk {
    const struct nib_matmul *mm;
    const struct amx_scratch *s;
    bool mx;
    uint32_t m0, rows;
    uint32_t k0, blocks; /* 32 of k each */
    struct x_tile x[BLOCK_M / TILE_M];
};

uint64_t nib_gemm_scratch_bytes_amx(uint32_t k)
{
    (void)k;
    return X_BYTES + PANEL_TILES * PANEL_BYTES + 4 * TILE_BYTES;
}

/* A prepared row: as in the other x86 rows, then for each 32 of k a line of high and a line of low parts. */
static uint64_t parts_at(uint32_t k)
{
    return nib_x86_acts_bytes(k);
}

uint64_t nib_acts_bytes_amx(uint32_t k)
{
    return parts_at(k) + (uint64_t)k * PARTS * sizeof(uint16_t);
}

void nib_acts_prep_amx(void *dst, const float *x, uint64_t ldx, uint32_t m, uint32_t k)
{
    for (uint32_t i = 0; i < m; i++) {
        uint8_t *row = (uint8_t *)dst + i * nib_acts_bytes_amx(k), *parts = row + parts_at(k);
        nib_acts_row(row, x + i * ldx, k);
        for (uint32_t j = 0; j < k; j += 16) {
            uint8_t *high = parts + j / TILE_K * PARTS * NIB_LINE_BYTES + j % TILE_K * sizeof(uint16_t);
            const __m512 a = _mm512_loadu_ps(x + i * ldx + j);
            const __m256i h = (__m256i)_mm512_cvtneps_pbh(a);
            const __m512 rest = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
            _mm256_store_si256((__m256i *)high, h);
            _mm256_store_si256((__m256i *)(high + NIB_LINE_BYTES), (__m256i)_mm512_cvtneps_pbh(rest));
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

/* First line of the chunk of row i of the product. */
static const uint8_t *x_line(const struct amx_chunk *c, uint32_t i)
{
    const struct nib_matmul *mm = c->mm;
    const uint64_t row = mm->rows ? mm->rows[i] : i;
    return (const uint8_t *)mm->x + row * nib_acts_bytes_amx(mm->k) + parts_at(mm->k) +
           c->k0 * PARTS * sizeof(uint16_t);
}

/* Copies the rows of tile t, zero for those that do not exist. */
static void copy_x(const struct amx_chunk *c, uint32_t t, uint8_t *to)
{
    const uint32_t lines = c->blocks * PARTS;
    for (uint32_t r = 0; r < TILE_M; r++, to += NIB_LINE_BYTES) {
        const bool exists = t * TILE_M + r < c->rows;
        const uint8_t *from = exists ? x_line(c, c->m0 + t * TILE_M + r) : NULL;
        for (uint32_t i = 0; i < lines; i++)
            _mm512_store_si512(to + (uint64_t)i * TILE_BYTES,
                               exists ? _mm512_load_si512(from + i * NIB_LINE_BYTES) : _mm512_setzero_si512());
    }
}

static void find_x(struct amx_chunk *c)
{
    for (uint32_t t = 0; t * TILE_M < c->rows; t++) {
        if (!c->mm->rows && (t + 1) * TILE_M <= c->rows) {
            c->x[t] = (struct x_tile){x_line(c, c->m0 + t * TILE_M), nib_acts_bytes_amx(c->mm->k), NIB_LINE_BYTES};
            continue;
        }
        uint8_t *to = c->s->x + (uint64_t)t * (CHUNK_K / TILE_K) * PARTS * TILE_BYTES;
        copy_x(c, t, to);
        c->x[t] = (struct x_tile){to, NIB_LINE_BYTES, TILE_BYTES};
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

/* Decodes block b (32 of k) of one weight tile: an AMX tile. */
NIB_INLINE void fill(uint8_t *to, const uint8_t *tile, uint32_t b)
{
    const uint8_t *scales = tile + nib_x86_mx_scales_at(b), *lines = tile + nib_x86_mx_lines_at(b);
    const __m512i e = _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)scales));
    const __m512i off = _mm512_sub_epi32(e, _mm512_set1_epi32(2));
    if (_mm512_cmpgt_epu32_mask(off, _mm512_set1_epi32(250)))
        fill_block_any(to, lines, nib_mx_scale(scales));
    else
        fill_block(to, lines, _mm512_or_si512(e, _mm512_slli_epi32(e, 16)));
}

/* Weights that will be used next: `bytes` of each of two tiles, asked for a line at a time. */
struct ahead {
    const uint8_t *tile[PANEL_TILES];
    uint64_t at, lines_bytes; /* next byte; bytes of each tile to ask for a block */
};

NIB_INLINE void ask(struct ahead *a)
{
    for (uint64_t i = 0; i < a->lines_bytes; i += NIB_LINE_BYTES, a->at += NIB_LINE_BYTES) {
        _mm_prefetch((const char *)a->tile[0] + a->at, _MM_HINT_T1);
        _mm_prefetch((const char *)a->tile[1] + a->at, _MM_HINT_T1);
    }
}

/* Two weight tiles of a chunk (the second may not exist): where the AMX tile of block b is, or will be. */
struct pair {
    const uint8_t *w[PANEL_TILES]; /* whole weight tiles in memory; w[1] is NULL when there is one */
    const uint8_t *b[PANEL_TILES]; /* AMX tiles of the chunk */
    uint8_t *panel;                /* where MXFP4 is decoded to, else NULL; tile t at t * PANEL_BYTES */
    uint32_t ring;                 /* block b is at b % ring */
};

NIB_INLINE void fill_both(const struct amx_chunk *c, const struct pair *p, uint32_t b)
{
    uint8_t *to = p->panel + b % p->ring * TILE_BYTES;
    fill(to, p->w[0], c->k0 / NIB_MX_BLOCK + b);
    if (p->w[1])
        fill(to + PANEL_BYTES, p->w[1], c->k0 / NIB_MX_BLOCK + b);
}

/* Rows of tiles a0 and a1 (may be NULL) with 32 outputs (or 16) over the chunk, into tile registers 0..3: [a][b] in
 * register 2a + b. When `decode` is set the panel is filled on the way, DEPTH blocks before its use: the decoding and
 * the tile products then overlap. */
NIB_INLINE void multiply(const struct amx_chunk *c, const struct pair *p, const struct x_tile *a0,
                         const struct x_tile *a1, bool decode, struct ahead *ahead)
{
    const uint8_t *at0 = a0->at, *at1 = a1 ? a1->at : NULL;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (uint32_t b = 0; decode && b < DEPTH && b < c->blocks; b++)
        fill_both(c, p, b);
    for (uint32_t b = 0; b < c->blocks; b++) {
        if (decode && b + DEPTH < c->blocks)
            fill_both(c, p, b + DEPTH);
        __asm__ volatile("" ::: "memory"); /* the tile loads do not say that they read what was written */
        const uint64_t at = (uint64_t)(b % p->ring) * TILE_BYTES;
        _tile_loadd(4, p->b[0] + at, NIB_LINE_BYTES);
        if (p->w[1])
            _tile_loadd(5, p->b[1] + at, NIB_LINE_BYTES);
        ask(ahead);
#pragma GCC unroll 2
        for (uint32_t part = 0; part < PARTS; part++) {
            _tile_loadd(6, at0, a0->row_bytes);
            at0 += a0->step;
            _tile_dpbf16ps(0, 6, 4);
            if (p->w[1])
                _tile_dpbf16ps(1, 6, 5);
            if (!a1)
                continue;
            _tile_loadd(7, at1, a1->row_bytes);
            at1 += a1->step;
            _tile_dpbf16ps(2, 7, 4);
            if (p->w[1])
                _tile_dpbf16ps(3, 7, 5);
        }
    }
}

/* Adds tile registers 0..3 to y: the first chunk begins it, the last adds the bias. */
static void store(const struct amx_chunk *c, uint32_t m0, uint32_t rows, uint32_t n, uint32_t cols)
{
    const struct nib_matmul *mm = c->mm;
    float *out = c->s->out;
    const bool first = c->k0 == 0, bias = mm->bias && c->k0 + c->blocks * TILE_K == mm->k;
    _tile_stored(0, out, 128);
    _tile_stored(1, out + 16, 128);
    _tile_stored(2, out + 512, 128);
    _tile_stored(3, out + 528, 128);
    for (uint32_t v = 0; v < cols; v += 16) {
        const uint32_t count = cols - v < 16 ? cols - v : 16;
        const __m512 b = bias ? nib_v_load_bf16_n(mm->bias + n + v, count) : _mm512_setzero_ps();
        for (uint32_t r = 0; r < rows; r++) {
            float *y = mm->y + (m0 + r) * mm->ldy + n + v;
            __m512 sum = _mm512_load_ps(out + r * 32 + v);
            if (!first)
                sum = _mm512_add_ps(nib_v_load_n(y, count), sum);
            nib_v_store_n(y, bias ? _mm512_add_ps(sum, b) : sum, count);
        }
    }
}

/* 32 outputs (or 16, w1 NULL) of a chunk, all its rows. The weights after them are asked for: they are next. */
static void run_pair(const struct amx_chunk *c, uint32_t n, uint32_t cols, const uint8_t *w0, const uint8_t *w1)
{
    const uint64_t tile_bytes = c->mx ? nib_x86_mx_tile_bytes(c->mm->k) : nib_x86_dense_tile_bytes(c->mm->k);
    const uint32_t pairs = (c->rows + 2 * TILE_M - 1) / (2 * TILE_M);
    const uint64_t dense_at = c->k0 / 2 * NIB_LINE_BYTES;
    struct pair p = {.w = {w0, w1}, .ring = CHUNK_K / TILE_K};
    struct ahead ahead = {.tile = {w0 + 2 * tile_bytes, w0 + 3 * tile_bytes}};
    uint64_t bytes;
    if (c->mx) {
        p.panel = c->s->panel;
        p.b[0] = c->s->panel;
        p.b[1] = c->s->panel + PANEL_BYTES;
        if (pairs == 1)
            p.ring = 2 * DEPTH; /* used once: it need not leave the first-level cache */
        ahead.at = nib_x86_mx_scales_at(c->k0 / NIB_MX_BLOCK);
        bytes = NIB_MX_GROUP_BYTES / NIB_MX_GROUP;
    } else {
        p.b[0] = w0 + dense_at;
        p.b[1] = w1 ? w1 + dense_at : NULL;
        ahead.at = dense_at;
        bytes = TILE_BYTES;
    }
    ahead.lines_bytes = bytes / pairs;
    for (uint32_t i = 0; i < pairs; i++) {
        const uint32_t r = i * 2 * TILE_M, some = c->rows - r < 2 * TILE_M ? c->rows - r : 2 * TILE_M;
        const struct x_tile *a0 = &c->x[2 * i], *a1 = some > TILE_M ? a0 + 1 : NULL;
        if (c->mx && i == 0)
            multiply(c, &p, a0, a1, true, &ahead);
        else
            multiply(c, &p, a0, a1, false, &ahead);
        store(c, c->m0 + r, some, n, cols);
    }
}

static void run(const struct nib_matmul *mm, void *scratch, bool mx)
{
    struct amx_scratch s = {.x = scratch};
    s.panel = s.x + X_BYTES;
    s.out = (float *)(s.panel + PANEL_TILES * PANEL_BYTES);
    const uint64_t tile_bytes = mx ? nib_x86_mx_tile_bytes(mm->k) : nib_x86_dense_tile_bytes(mm->k);
    struct amx_chunk c = {.mm = mm, .s = &s, .mx = mx};
    _tile_loadconfig(&config);
    for (c.m0 = 0; c.m0 < mm->m; c.m0 += BLOCK_M) {
        c.rows = mm->m - c.m0 < BLOCK_M ? mm->m - c.m0 : BLOCK_M;
        for (c.k0 = 0; c.k0 < mm->k; c.k0 += CHUNK_K) {
            c.blocks = (mm->k - c.k0 < CHUNK_K ? mm->k - c.k0 : CHUNK_K) / TILE_K;
            find_x(&c);
            for (uint32_t n = mm->n0; n < mm->n1; n += PANEL_TILES * NIB_TILE_N) {
                const uint32_t cols = mm->n1 - n < PANEL_TILES * NIB_TILE_N ? mm->n1 - n : PANEL_TILES * NIB_TILE_N;
                const uint8_t *w = (const uint8_t *)mm->w + n / NIB_TILE_N * tile_bytes;
                run_pair(&c, n, cols, w, cols > NIB_TILE_N ? w + tile_bytes : NULL);
            }
        }
    }
    _tile_release();
}

void nib_dense_gemm_amx(const struct nib_matmul *mm, void *scratch)
{
    run(mm, scratch, false);
}

void nib_mx_gemm_amx(const struct nib_matmul *mm, void *scratch)
{
    run(mm, scratch, true);
}
