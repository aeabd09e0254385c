/* arch/sm90/batch_mx.h: sizes of the expert products of many decode rows on Hopper (arch/sm90/BATCH.md); C, included by the kernels and
 * by the row's table. Pure. */
#ifndef NIB_ARCH_SM90_BATCH_MX_H
#define NIB_ARCH_SM90_BATCH_MX_H

#include "arch/cuda/layout.h"

#define CU_BATCH_MX_FROM                                                                                               \
    (CU_GEMV_ROWS +                                                                                                    \
     1) /* decode rows of a bucket; no list of one with fewer is longer than arch/sm90/few_mx.cuh takes */
#define CU_BATCH_MX_ROWS    CU_LIST_ROWS
#define CU_BATCH_MX_HALF    32 /* rows up to which a multiplying warp has two weight tiles of an item */
#define CU_BATCH_MX_FEW     16 /* rows up to which a warp multiplies by itself, by mma.sync */
#define CU_BATCH_MX_READERS 12 /* multiplying warps */
#define CU_BATCH_MX_STAGES  4  /* and as many warps that bring, each the stages of its place in the ring */
#define CU_BATCH_MX_THREADS ((CU_BATCH_MX_READERS + CU_BATCH_MX_STAGES) * 32)
#define CU_BATCH_MX_SNAP    4 /* tiles: a block's share does not begin or end so close to the border of two lists */

/* What a tile takes for a list of up to 8, 16, 24, 32, 40 and 48 rows, and what a list's beginning takes beside; measured, in 25 cycles. */
#define CU_BATCH_MX_COSTS                                                                                              \
    {                                                                                                                  \
        63, 80, 90, 100, 142, 157                                                                                      \
    }
#define CU_BATCH_MX_COST_LIST 480

/* A stage is CU_MX_SPAN units of an item: for each unit a line of 128 bytes a row, 32 or 48 of them; then the weights of 24 or 12 tiles. */
#define CU_BATCH_MX_ACTS(rows) (CU_MX_SPAN * (rows)*CU_MX_UNIT * 2)
#define CU_BATCH_MX_STAGE_BYTES                                                                                        \
    ((CU_BATCH_MX_ACTS(CU_BATCH_MX_HALF) + 2 * CU_BATCH_MX_READERS * CU_MX_STAGE + 1023) / 1024 * 1024)
#define CU_BATCH_MX_SHARED (CU_BATCH_MX_STAGES * CU_BATCH_MX_STAGE_BYTES + 1024 + 128) /* mbarriers, too */

/* The form for steps whose lists are all short (cu_lists_short): no lines but for CU_BATCH_MX_FEW rows. */
#define CU_MX_SHORT_STAGE_BYTES                                                                                        \
    ((CU_BATCH_MX_ACTS(CU_BATCH_MX_FEW) + 2 * CU_BATCH_MX_READERS * CU_MX_STAGE + 1023) / 1024 * 1024)
#define CU_MX_SHORT_SHARED (CU_BATCH_MX_STAGES * CU_MX_SHORT_STAGE_BYTES + 1024 + 128)

#endif
