/* arch/x86/layout.h: how weights lie in memory for the x86 rows.
 *
 * Both kinds are cut in tiles of 16 output rows (n padded with zero rows), one tile after another, so that a thread
 * streams its range of n once, in order. Inside a tile a 64-byte line holds, for each of the 16 rows, one dword.
 *
 * dense (bf16, or MXFP8 decoded to bf16): line p of k / 2 has the pair (W[r][2p], W[r][2p+1]) of row r in dword r. This is also the shape that an
 *   AMX tile wants for its second operand: 16 lines are a tile of 32 k.
 * mx (MXFP4): k is cut in groups of 4 blocks of 32 (the last may be shorter). A group is one line of scales, block b's
 *   16 bytes at 16 b, then 4 lines a block; a line has 8 k of each row. Order of the nibbles inside a line:
 *   - lane (AVX-512, AMX): dword r is row r; element e is bits 4 (e / 2) + 16 (e % 2) and up. A shift by 4 s and a
 *     16-bit table look-up give the bf16 pair (2s, 2s+1); a shift alone and a 32-bit look-up give one float.
 *   - byte (AVX2): in each 16-byte quarter (4 rows) row j has bytes 2j, 2j+1 and 8+2j, 8+2j+1; their low nibbles are
 *     elements 0, 1, 2, 3, the high ones 4, 5, 6, 7. Byte look-ups and a byte unpack give bf16 pairs.
 *
 * Prepared activations of all x86 rows begin with the row in fp32 (for bf16 weights), then hold it as 16-bit integers
 * with one scale a block of 32 (for MXFP4 weights in decode): x = integer * scale, scale = max|block| / 32767, so the
 * error is at most 2^-16 of the block's largest. A block with a NaN or an infinity has the scale NaN.
 *
 * Repacking is done at boot; rows n0..n1 of a call must be whole tiles (n1 may be n). Any thread; cannot fail. */
#ifndef NIB_ARCH_X86_LAYOUT_H
#define NIB_ARCH_X86_LAYOUT_H

#include <stdint.h>

#include "core/model.h"

#define NIB_TILE_N     16u /* output rows of a tile */
#define NIB_LINE_BYTES 64u
#define NIB_MX_LINES   4u /* lines of nibbles a block */
#define NIB_MX_GROUP   4u /* blocks that share a line of scales */

/* bytes of one mx block of a tile, and of a whole group with its scales */
#define NIB_MX_TILE_BLOCK_BYTES (NIB_MX_LINES * NIB_LINE_BYTES)
#define NIB_MX_GROUP_BYTES      (NIB_LINE_BYTES + NIB_MX_GROUP * NIB_MX_TILE_BLOCK_BYTES)

static inline uint64_t nib_x86_dense_tile_bytes(uint32_t k)
{
    return (uint64_t)k / 2 * NIB_LINE_BYTES;
}

static inline uint64_t nib_x86_mx_tile_bytes(uint32_t k)
{
    const uint64_t blocks = k / NIB_MX_BLOCK;
    return (blocks + NIB_MX_GROUP - 1) / NIB_MX_GROUP * NIB_LINE_BYTES + blocks * NIB_MX_TILE_BLOCK_BYTES;
}

/* Where block b of a tile has its 16 scale bytes and its lines, in bytes from the tile. */
static inline uint64_t nib_x86_mx_scales_at(uint32_t b)
{
    return b / NIB_MX_GROUP * (uint64_t)NIB_MX_GROUP_BYTES + b % NIB_MX_GROUP * (uint64_t)NIB_TILE_N;
}

static inline uint64_t nib_x86_mx_lines_at(uint32_t b)
{
    return b / NIB_MX_GROUP * (uint64_t)NIB_MX_GROUP_BYTES + NIB_LINE_BYTES +
           b % NIB_MX_GROUP * (uint64_t)NIB_MX_TILE_BLOCK_BYTES;
}

/* Where a prepared row has its integers and its scales (floats), and its bytes. */
static inline uint64_t nib_x86_acts_ints_at(uint32_t k)
{
    return (uint64_t)k * sizeof(float);
}

static inline uint64_t nib_x86_acts_scales_at(uint32_t k)
{
    return nib_x86_acts_ints_at(k) + (uint64_t)k * sizeof(int16_t);
}

static inline uint64_t nib_x86_acts_bytes(uint32_t k)
{
    return (nib_x86_acts_scales_at(k) + k / NIB_MX_BLOCK * sizeof(float) + NIB_LINE_BYTES - 1) / NIB_LINE_BYTES *
           NIB_LINE_BYTES;
}

uint64_t nib_x86_dense_bytes(uint32_t n, uint32_t k);
void nib_x86_dense_repack(void *dst, const uint16_t *src, uint32_t n, uint32_t k, uint32_t n0, uint32_t n1);
void nib_x86_mxfp8_repack(void *dst, const uint8_t *codes, const uint8_t *scales, uint32_t n, uint32_t k, uint32_t n0,
                          uint32_t n1);
uint64_t nib_x86_mx_bytes(uint32_t n, uint32_t k);
void nib_x86_mx_repack_lane(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k,
                            uint32_t n0, uint32_t n1);
void nib_x86_mx_repack_byte(void *dst, const uint8_t *blocks, const uint8_t *scales, uint32_t n, uint32_t k,
                            uint32_t n0, uint32_t n1);

#endif
