/* arch/sm90/batch_dense.h: sizes of the dense products of many decode rows on Hopper (arch/sm90/BATCH.md); C, included by the
 * kernels and by the row's table. Pure. */
#ifndef NIB_ARCH_SM90_BATCH_DENSE_H
#define NIB_ARCH_SM90_BATCH_DENSE_H

#include "arch/sm90/token.h"

#define CU_BATCH_UNITS 2  /* of inputs in a stage, at most */
#define CU_BATCH_LINE  64 /* bytes of a unit's activations of a row */

/* out: blocks of a cluster share the inputs of a tile, so many shares each. Warpgroups that multiply, rows at a time; a warp has one tile. */
#define CU_BATCH_OUT_PARTS   8
#define CU_BATCH_OUT_MANY    4 /* with more than CU_BATCH_ROWS; half of the clusters have half of the rows */
#define CU_BATCH_OUT_GROUPS  3
#define CU_BATCH_GROUPS      2
#define CU_BATCH_ROWS        128
#define CU_BATCH_FEW         64 /* rows of a bucket up to which a block has no room for more */
#define CU_BATCH_THREADS     ((CU_BATCH_GROUPS + 1) * 128)
#define CU_BATCH_OUT_THREADS ((CU_BATCH_OUT_GROUPS + 1) * 128)
#define CU_BATCH_OUT_TILES   (CU_BATCH_OUT_GROUPS * 4)
/* qkv: a block has all inputs of so many tiles; its warpgroups have the same tiles and other shares. */
#define CU_BATCH_QKV_GROUPS  3
#define CU_BATCH_QKV_THREADS ((CU_BATCH_QKV_GROUPS + 1) * 128)
#define CU_BATCH_QKV_TILES   3
/* Of more than CU_BATCH_FEW rows: of so many tiles, for some of the rows. */
#define CU_BATCH_QKV_MANY  (CU_BATCH_GROUPS * 4)
#define CU_BATCH_QKV_ROWS  64           /* in buckets of up to three times as many */
#define CU_BATCH_QKV_THIRD 88           /* in larger ones: a third of all that there can be */
#define CU_BATCH_GIVEN     (96u * 1024) /* room for sums given to a block, at most; else it reads them */
/* head: up to 64 rows, or more, at a time */
#define CU_BATCH_HEAD_FEW   64
#define CU_BATCH_HEAD_MANY  128
#define CU_BATCH_HEAD_TILES (CU_BATCH_GROUPS * 4) /* with many rows; twice as many with few */

/* Rows of a bucket from which on these kernels do the work. */
#define CU_BATCH_QKV_FROM  17
#define CU_BATCH_OUT_FROM  9
#define CU_BATCH_HEAD_FROM 17

#define CU_BATCH_ROOM   (224u * 1024) /* of a ring, at most; a block has 227 KB */
#define CU_BATCH_SHARED (CU_BATCH_ROOM + 1024)
#define CU_BATCH_LESS   (CU_BATCH_SHARED - 32) /* tells a kernel that the bucket has few rows */
#define CU_BATCH_SOME   (CU_BATCH_SHARED - 16) /* and that it has more of them, but not many */

/* Activations as these products read them, beside those of `acts`: [unit of 32 inputs][place][64 bytes]. Chunk w of 16 bytes has words (two inputs
 * each) w, w + 4, w + 8 and w + 12 of the unit, and lies at w ^ place / 2 % 4, where wgmma looks for it (64-byte swizzle). The place is the decode row's number;
 * after the last layer the row's number among those that want logits. In `scratch`, behind struct cu_token. */
NIB_BOTH uint64_t cu_batch_acts_at(void)
{
    return cu_up(sizeof(struct cu_scratch) + sizeof(struct cu_token), 1024);
}

NIB_BOTH uint64_t cu_batch_acts_bytes(uint32_t k)
{
    return (uint64_t)CU_DIV_UP(k, CU_DENSE_UNIT) * NIB_MAX_SLOTS * CU_BATCH_LINE;
}

/* Where a word lies. */
NIB_BOTH uint32_t cu_batch_acts_word(uint32_t place, uint32_t word)
{
    return (word / 16 * NIB_MAX_SLOTS + place) * CU_BATCH_LINE + ((word ^ place / 2) % 4) * 16 + word % 16 / 4 * 4;
}

#endif
