/* arch/sm90/batch_mx.h: sizes of the expert products of many decode rows on Hopper (arch/sm90/BATCH.md); C, included by the kernels and
 * by the row's table. Pure. */
#ifndef NIB_ARCH_SM90_BATCH_MX_H
#define NIB_ARCH_SM90_BATCH_MX_H

#include "arch/cuda/layout.h"

#define CU_BATCH_MX_FROM                                                                                               \
    (CU_GEMV_ROWS +                                                                                                    \
     1) /* decode rows of a bucket; no list of one with fewer is longer than arch/sm90/few_mx.cuh takes */
#define CU_BATCH_MX_ROWS    CU_LIST_ROWS
#define CU_BATCH_MX_HALF    40 /* rows up to which a multiplying warp has two weight tiles of an item */
#define CU_BATCH_MX_UNIT    32 /* rows up to which a whole unit's products of two tiles are under way at a time; */
#define CU_BATCH_MX_ONE     48 /* of one tile */
#define CU_BATCH_MX_FEW     16 /* rows up to which a warp multiplies by itself, by mma.sync */
#define CU_BATCH_MX_READERS 12 /* multiplying warps */
#define CU_BATCH_MX_STAGES  4  /* and as many warps that bring, each the stages of its place in the ring */
#define CU_BATCH_MX_THREADS ((CU_BATCH_MX_READERS + CU_BATCH_MX_STAGES) * 32)

/* A stage is CU_MX_SPAN units of an item: for each block of 32 inputs a line of 64 bytes a row, 40 or 64 of them; then the weights of 24 or 12 tiles. But in the short
 * form word w of a line's chunk c, 16 bytes, lies as word c of chunk w, as products read them. */
#define CU_BATCH_MX_LINE 64
/* So up leaves a list's places in `gated` for down: from the first place on block after block, in each the lines of the list's `count` rows, chunks where the
 * 64-byte swizzle looks for them. Where word `word` of a row lies, in bytes. */
NIB_BOTH uint32_t cu_batch_mx_word(uint32_t row, uint32_t count, uint32_t word)
{
    return (word / 16 * count + row) * CU_BATCH_MX_LINE + ((word ^ row / 2) % 4) * 16 + word % 16 / 4 * 4;
}

/* And the router what up reads, where dense products have theirs (cu_batch_acts_at): a row after another, chunks in order. */
NIB_BOTH uint32_t cu_batch_mx_acts_word(uint32_t row, uint32_t hidden, uint32_t word)
{
    return row * hidden * 2 + cu_batch_mx_word(0, 1, word);
}

#define CU_BATCH_MX_ACTS(rows) (CU_MX_SPAN * (rows)*CU_MX_UNIT * 2)
#define CU_BATCH_MX_STAGE_BYTES                                                                                        \
    ((CU_BATCH_MX_ACTS(CU_BATCH_MX_HALF) + 2 * CU_BATCH_MX_READERS * CU_MX_STAGE + 1023) / 1024 * 1024)
#define CU_BATCH_MX_SHARED (CU_BATCH_MX_STAGES * CU_BATCH_MX_STAGE_BYTES + 1024 + 128) /* mbarriers, too */

/* The form for steps whose lists are all short (cu_lists_short): no lines but for CU_BATCH_MX_FEW rows. */
#define CU_MX_SHORT_STAGE_BYTES                                                                                        \
    ((CU_BATCH_MX_ACTS(CU_BATCH_MX_FEW) + 2 * CU_BATCH_MX_READERS * CU_MX_STAGE + 1023) / 1024 * 1024)
#define CU_MX_SHORT_SHARED (CU_BATCH_MX_STAGES * CU_MX_SHORT_STAGE_BYTES + 1024 + 128)

#endif
