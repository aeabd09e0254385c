/* arch/sm90/route_cluster.h: sizes of the router of few and many decode rows (arch/sm90/route_cluster.cuh), for the kernel and the row's table. Pure. */
#ifndef NIB_ARCH_SM90_ROUTE_CLUSTER_H
#define NIB_ARCH_SM90_ROUTE_CLUSTER_H

#include "arch/cuda/layout.h"

#define CU_ROUTE_BLOCKS  8   /* of a cluster: so many rows, or twice as many, and a share of the inputs each */
#define CU_ROUTE_UNITS   12  /* of a share, at most */
#define CU_ROUTE_EACH    2   /* rows of a block, at most */
#define CU_ROUTE_SINGLES 128 /* rows of a step up to which a block has one */

/* Rows of a block when the clusters route a step of so many rows, decode and prompt; 0: they do not. */
NIB_BOTH uint32_t cu_route_each(const struct nib_gpu_machine *m, uint32_t rows)
{
    if (m->hidden > CU_ROUTE_BLOCKS * CU_ROUTE_UNITS * CU_DENSE_UNIT || cu_tiles(m->experts) > CU_ROUTE_BLOCKS)
        return 0;
    if (rows <= CU_ROUTE_SINGLES)
        return 1;
    return rows <= NIB_MAX_SLOTS && cu_tiles(m->experts) <= 2 ? 2 : 0; /* two blocks of a multiprocessor have room */
}

/* A tile's units that a block with `each` rows has room for: of its share, and where these were a warp has for 8 rows sums as long as a unit. */
NIB_BOTH uint32_t cu_route_room(uint32_t each)
{
    return each * CU_ROUTE_BLOCKS > CU_ROUTE_UNITS ? each * CU_ROUTE_BLOCKS : CU_ROUTE_UNITS;
}

/* Dynamic shared memory of a block with `each` rows: weights, all shares' sums of its rows, the norm's weights. */
NIB_BOTH uint32_t cu_route_cluster_bytes(uint32_t each, uint32_t experts)
{
    return cu_tiles(experts) * (cu_route_room(each) * CU_DENSE_BYTES + each * CU_ROUTE_BLOCKS * CU_TILE * 8) +
           CU_ROUTE_BLOCKS * CU_ROUTE_UNITS * CU_DENSE_UNIT * 2;
}

#endif
