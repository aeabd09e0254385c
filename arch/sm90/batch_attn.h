/* arch/sm90/batch_attn.h: sizes of the attention of many decode rows (arch/sm90/BATCH.md); C, included by the kernel and by the row's
 * table. Pure. */
#ifndef NIB_ARCH_SM90_BATCH_ATTN_H
#define NIB_ARCH_SM90_BATCH_ATTN_H

#include "arch/cuda/layout.h"

#define CU_BATCH_ATTN_WARPS   8 /* of a block: those that take keys in */
#define CU_BATCH_ATTN_JOINERS 4 /* and those that put splits together */
#define CU_BATCH_ATTN_THREADS ((CU_BATCH_ATTN_WARPS + CU_BATCH_ATTN_JOINERS) * 32)
#define CU_BATCH_ATTN_RING    3 /* stages of 32 keys and values, a warp */
#define CU_BATCH_ATTN_PARTS   3 /* splits whose groups wait to be put together */
#ifndef CU_BATCH_ATTN_FROM
#define CU_BATCH_ATTN_FROM 9 /* decode rows of a bucket */
#endif

#define CU_BATCH_ATTN_STAGE (32 * 2 * NIB_HEAD_DIM * 2)
#define CU_BATCH_ATTN_PART  (CU_ATTN_KEYS / 32 * NIB_GQA_GROUP * (NIB_HEAD_DIM + 2) * 4)
/* struct batch_attn_shared */
#define CU_BATCH_ATTN_SHARED                                                                                           \
    (CU_BATCH_ATTN_WARPS * CU_BATCH_ATTN_RING * CU_BATCH_ATTN_STAGE + CU_BATCH_ATTN_PARTS * CU_BATCH_ATTN_PART +       \
     NIB_MAX_SLOTS * 8 + 512)

#endif
