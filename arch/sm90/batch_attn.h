/* arch/sm90/batch_attn.h: sizes of the attention of many decode rows (arch/sm90/BATCH.md); C, included by the kernel and by the row's
 * table. Pure. */
#ifndef NIB_ARCH_SM90_BATCH_ATTN_H
#define NIB_ARCH_SM90_BATCH_ATTN_H

#include "arch/cuda/layout.h"

#define CU_BATCH_ATTN_WARPS   8 /* of a block: those that take keys in */
#define CU_BATCH_ATTN_JOINERS 4 /* and those that put splits together */
#define CU_BATCH_ATTN_THREADS ((CU_BATCH_ATTN_WARPS + CU_BATCH_ATTN_JOINERS) * 32)
/* Rings of a warp: in a full layer of 32 keys and their values, in a window layer of 32 keys or values; of pages in bf16 and in FP8. */
#define CU_BATCH_ATTN_RING    3
#define CU_BATCH_ATTN8_RING   4
#define CU_BATCH_WINDOW_RING  6
#define CU_BATCH_WINDOW8_RING 8
#define CU_BATCH_ATTN_PARTS   3  /* splits whose groups wait to be put together */
#define CU_BATCH_ATTN_CHUNKS  16 /* of a block, that are dealt and that a warp has not come to */
#define CU_BATCH_ATTN_WHOLE                                                                                            \
    24 /* times CU_ATTN_KEYS keys, at most, of a row that is not cut if there are enough of them */
#ifndef CU_BATCH_ATTN_FROM
#define CU_BATCH_ATTN_FROM 9 /* decode rows of a bucket */
#endif

#define CU_BATCH_ATTN_PART (CU_ATTN_KEYS / 32 * NIB_GQA_GROUP * (NIB_HEAD_DIM + 2) * 4)
#define CU_BATCH_ATTN_MEET                                                                                             \
    (CU_BATCH_ATTN_PARTS * CU_BATCH_ATTN_PART + 1280) /* struct batch_attn_shared, and what window layers need more */
/* What the rings of bf16 need in a full layer, and behind them. */
#define CU_BATCH_ATTN_SHARED (CU_BATCH_ATTN_WARPS * CU_BATCH_ATTN_RING * 32 * 2 * NIB_HEAD_DIM * 2 + CU_BATCH_ATTN_MEET)

#endif
