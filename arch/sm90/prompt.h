/* arch/sm90/prompt.h: sizes of the prompt products on Hopper (arch/sm90/PROMPT.md); C, included by the kernels and by the row's
 * table. Pure. */
#ifndef NIB_ARCH_SM90_PROMPT_H
#define NIB_ARCH_SM90_PROMPT_H

#include "arch/cuda/layout.h"

#define CU_PROMPT_TILES   16  /* weight tiles of an item: 256 output rows, 128 a consumer warpgroup */
#define CU_PROMPT_TOKENS  128 /* of an item, at most */
#define CU_PROMPT_K       64  /* inputs of a stage */
#define CU_PROMPT_THREADS 384 /* a warpgroup that brings stages, two that multiply */

#define CU_PROMPT_ACTS (CU_PROMPT_TOKENS * CU_PROMPT_K * 2)
#define CU_PROMPT_MX_BYTES                                                                                             \
    (CU_PROMPT_TILES * (CU_MX_BYTES + CU_TILE)) /* of a stage's weights: units, then references */
#define CU_PROMPT_DENSE_BYTES  (CU_PROMPT_TILES * 2 * CU_DENSE_BYTES)
#define CU_PROMPT_MXFP8_BYTES  (CU_PROMPT_TILES * 2 * CU_MXFP8_BYTES)
#define CU_PROMPT_MX_STAGES    8
#define CU_PROMPT_DENSE_STAGES 4
#define CU_PROMPT_MXFP8_STAGES 6

#define CU_PROMPT_PAGES       4 /* of 64 keys and values, in the ring of attention */
#define CU_PROMPT_ATTN_SHARED (CU_PROMPT_PAGES * 2 * 8192 + 1024)

/* A ring of `stages`, and what aligns it to 1024 bytes. */
#define CU_PROMPT_SHARED(stages, weights) ((stages) * (CU_PROMPT_ACTS + (weights)) + 1024)

#endif
