/* arch/sm90/route_few.h: sizes of the router of few rows (arch/sm90/route_few.cuh), for the kernel and the row's table. Pure. */
#ifndef NIB_ARCH_SM90_ROUTE_FEW_H
#define NIB_ARCH_SM90_ROUTE_FEW_H

#include "arch/cuda/layout.h"

#define CU_ROUTE_BLOCKS 8                          /* of the cluster: one a row, one a share of the inputs */
#define CU_ROUTE_UNITS  12                         /* of a share, at most */
#define CU_ROUTE_STRIDE (CU_ROUTE_UNITS * 64 + 64) /* bytes of a row's share: an odd multiple of 64 */

/* Whether a step of so many rows, decode and prompt, is routed by the cluster. */
NIB_BOTH bool cu_route_few(const struct nib_gpu_machine *m, uint32_t rows)
{
    return rows <= CU_ROUTE_ROWS && rows * m->experts_used <= 32 && cu_tiles(m->experts) <= CU_ROUTE_BLOCKS &&
           m->hidden <= CU_ROUTE_BLOCKS * CU_ROUTE_UNITS * CU_DENSE_UNIT;
}

/* Dynamic shared memory of a block: rows' shares, weights. */
NIB_BOTH uint32_t cu_route_few_bytes(uint32_t experts)
{
    return CU_ROUTE_ROWS * CU_ROUTE_STRIDE + cu_tiles(experts) * CU_ROUTE_UNITS * CU_DENSE_BYTES;
}

#endif
