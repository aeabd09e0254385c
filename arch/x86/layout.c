/* arch/x86/layout.c: owns the repacking of canonical weights into the tiles of layout.h.
 * Boot only, any thread, ranges of whole tiles in parallel. Cannot fail. */
#include "arch/x86/layout.h"

#include <string.h>

#include "core/mx.h"

uint64_t nib_x86_dense_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)((n + NIB_TILE_N - 1) / NIB_TILE_N) * nib_x86_dense_tile_bytes(k);
}

uint64_t nib_x86_mx_bytes(uint32_t n, uint32_t k)
{
    return (uint64_t)((n + NIB_TILE_N - 1) / NIB_TILE_N) * nib_x86_mx_tile_bytes(k);
}

void nib_x86_dense_repack(void *dst, const uint16_t *src, uint32_t n, uint32_t k, uint32_t n0, uint32_t n1)
{
    for (uint32_t t = n0; t < n1; t += NIB_TILE_N) {
        uint8_t *tile = (uint8_t *)dst + t / NIB_TILE_N * nib_x86_dense_tile_bytes(k);
        const uint32_t rows = n - t < NIB_TILE_N ? n - t : NIB_TILE_N;
        if (rows < NIB_TILE_N)
            memset(tile, 0, nib_x86_dense_tile_bytes(k));
        for (uint32_t p = 0; p < k / 2; p++)
            for (uint32_t r = 0; r < rows; r++)
                memcpy(tile + p * NIB_LINE_BYTES + r * 4, src + (uint64_t)(t + r) * k + 2 * p, 4);
    }
}

void nib_x86_mxfp8_repack(void *dst, const uint8_t *codes, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                          uint32_t n1)
{
    const uint64_t blocks = k / NIB_MX_BLOCK;
    for (uint32_t t = n0; t < n1; t += NIB_TILE_N) {
        uint8_t *tile = (uint8_t *)dst + t / NIB_TILE_N * nib_x86_dense_tile_bytes(k);
        const uint32_t rows = n - t < NIB_TILE_N ? n - t : NIB_TILE_N;
        if (rows < NIB_TILE_N)
            memset(tile, 0, nib_x86_dense_tile_bytes(k));
        for (uint64_t b = 0; b < blocks; b++)
            for (uint32_t r = 0; r < rows; r++) {
                const uint64_t at = (t + r) * blocks + b;
                uint8_t *line = tile + b * (NIB_MX_BLOCK / 2) * NIB_LINE_BYTES + r * 4;
                uint16_t x[NIB_MX_BLOCK];
                nib_mxfp8_decode_bf16(scales[at], codes + at * NIB_MX_BLOCK, x);
                for (uint32_t p = 0; p < NIB_MX_BLOCK / 2; p++)
                    memcpy(line + p * NIB_LINE_BYTES, x + 2 * p, 4);
            }
    }
}

/* The 8 nibbles of 4 source bytes, element e in bits 4e and up, in lane order: even elements, then odd ones. */
static uint32_t lane_order(uint32_t x)
{
    uint32_t even = x & 0x0f0f0f0fu, odd = x >> 4 & 0x0f0f0f0fu;
    even = (even | even >> 4) & 0x00ff00ffu;
    odd = (odd | odd >> 4) & 0x00ff00ffu;
    even = (even | even >> 8) & 0xffffu;
    odd = (odd | odd >> 8) & 0xffffu;
    return even | odd << 16;
}

static void put_lane(uint8_t *line, uint32_t row, uint32_t x)
{
    const uint32_t word = lane_order(x);
    memcpy(line + row * 4, &word, 4);
}

static void put_byte(uint8_t *line, uint32_t row, uint32_t x)
{
    uint8_t *quarter = line + row / 4 * 16 + row % 4 * 2;
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t low = x >> 4 * e & 15, high = x >> (16 + 4 * e) & 15;
        quarter[e / 2 * 8 + e % 2] = (uint8_t)(low | high << 4);
    }
}

/* The 16 bytes of one block of one row, to its 4 lines. */
static void put_block(uint8_t *lines, uint32_t row, const uint8_t *src, void (*put)(uint8_t *, uint32_t, uint32_t))
{
    for (uint32_t i = 0; i < NIB_MX_LINES; i++) {
        uint32_t x;
        memcpy(&x, src + 4 * i, 4);
        put(lines + i * NIB_LINE_BYTES, row, x);
    }
}

static inline __attribute__((always_inline)) void repack_mx(void *dst, const uint8_t *blocks, const uint8_t *scales,
                                                            uint32_t n, uint32_t k, uint32_t n0, uint32_t n1,
                                                            void (*put)(uint8_t *, uint32_t, uint32_t))
{
    const uint64_t count = k / NIB_MX_BLOCK;
    for (uint32_t t = n0; t < n1; t += NIB_TILE_N) {
        uint8_t *tile = (uint8_t *)dst + t / NIB_TILE_N * nib_x86_mx_tile_bytes(k);
        const uint32_t rows = n - t < NIB_TILE_N ? n - t : NIB_TILE_N;
        if (rows < NIB_TILE_N || count % NIB_MX_GROUP != 0)
            memset(tile, 0, nib_x86_mx_tile_bytes(k));
        for (uint32_t r = 0; r < rows; r++) {
            const uint64_t first = (t + r) * count;
            for (uint32_t b = 0; b < count; b++) {
                tile[nib_x86_mx_scales_at(b) + r] = scales[first + b];
                put_block(tile + nib_x86_mx_lines_at(b), r, blocks + (first + b) * NIB_MX_BLOCK / 2, put);
            }
        }
    }
}

void nib_x86_mx_repack_lane(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k,
                            uint32_t n0, uint32_t n1)
{
    repack_mx(dst, blocks, scales, n, k, n0, n1, put_lane);
}

void nib_x86_mx_repack_byte(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k,
                            uint32_t n0, uint32_t n1)
{
    repack_mx(dst, blocks, scales, n, k, n0, n1, put_byte);
}
