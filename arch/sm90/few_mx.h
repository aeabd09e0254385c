/* arch/sm90/few_mx.h: sizes of the expert products of few decode rows on Hopper (arch/sm90/BATCH.md); C, included by the kernels and by the
 * row's table. Pure. */
#ifndef NIB_ARCH_SM90_FEW_MX_H
#define NIB_ARCH_SM90_FEW_MX_H

#include "arch/cuda/layout.h"

#define CU_FEW_TEAM    CU_MX_SPLIT /* warps that share an item, a share of its inputs each */
#define CU_FEW_TEAMS   2
#define CU_FEW_WARPS   (CU_FEW_TEAM * CU_FEW_TEAMS)
#define CU_FEW_THREADS ((CU_FEW_WARPS + 1) * 32) /* and one that asks for weights */
#define CU_FEW_STAGES  8                         /* items that the ring holds at most */
#define CU_FEW_PARTS   2                         /* copies of an item, each of some shares */
#define CU_FEW_AHEAD   3                         /* copies on their way with two rows; with more rows one more */
#define CU_FEW_BIAS    32                        /* bytes behind an item */
#define CU_FEW_LEFT    512                       /* bytes that a warp leaves of 8 rows */
#define CU_FEW_SHARED  (220u * 1024)

/* A block: ring, sums that all but the first warp of a team leave, zeros in place of rows that are not there (mx_rows), rows of activations. A stage is always
 * the same team's, which has waited for what was in it before when it waits again: an mbarrier tells one turn from the next, not from the one after. */
struct cu_few_room {
    uint32_t stages, stage_bytes, sums_at, zeros_at, acts_at, bytes;
};

/* Rows that a launch for `decode` rows has room for, at least a whole list: 2 << kind. A block's size of shared memory says which kind it is: all else of
 * it is a multiple of 64. */
NIB_BOTH uint32_t cu_few_kind(uint32_t decode)
{
    uint32_t kind = 0;
    while (2u << kind < decode && 2u << kind < CU_GEMV_ROWS)
        kind++;
    return kind;
}

/* Room for 2 << kind rows of k inputs. */
NIB_BOTH struct cu_few_room cu_few_room(uint32_t kind, uint32_t k)
{
    const uint32_t acts = (2u << kind) * cu_row_stride(cu_mx_units(k) * CU_MX_UNIT);
    const uint32_t sums = 2 * CU_FEW_TEAMS * (CU_FEW_TEAM - 1) * CU_FEW_LEFT;
    const uint32_t stage = (cu_mx_units(k) * CU_MX_BYTES + CU_FEW_BIAS + 127) / 128 * 128;
    const uint32_t zeros =
        (CU_DIV_UP(CU_DIV_UP(cu_mx_units(k), CU_MX_SPAN), CU_MX_SPLIT) * CU_MX_SPAN + 1) * CU_MX_UNIT * 2;
    const uint32_t fit = (CU_FEW_SHARED - sums - zeros - acts) / stage / CU_FEW_TEAMS * CU_FEW_TEAMS;
    const uint32_t stages = fit < CU_FEW_STAGES ? fit : CU_FEW_STAGES;
    const uint32_t sums_at = stages * stage, zeros_at = sums_at + sums, acts_at = zeros_at + zeros;
    const struct cu_few_room room = {stages, stage, sums_at, zeros_at, acts_at, acts_at + acts + kind * 16};
    return room;
}

#endif
