/* arch/sm90/batch_mx_lists.cuh: the lists of a step of decode rows, found by each block of up itself, from the words that the router leaves in cu_scratch.told while it still groups
 * rows. They are those that it leaves for the ops after it (arch/cuda/route.cuh).
 *
 * A layer's router writes its own words, of even layers or of odd ones, and clears the others. Up of the layer before has read those by then; up of the next layer
 * begins when up of this layer has seen the router's end. So what up finds is 0 or its own layer's; and when a row's word is there, every op before the router has ended. */
#pragma once
#include "arch/cuda/route.cuh"
#include "arch/sm90/batch_mx_deal.cuh"

#define BATCH_MX_TRIES   64 /* reads of a row's word; a router that runs is done before */
#define BATCH_MX_UNKNOWN ~0u

/* Where a step's routing comes from. */
struct batch_mx_told {
    const uint8_t (*told)[NIB_MAX_EXPERTS_USED]; /* a row's experts, plus 1 */
    uint32_t rows, used, experts;

    /* Of this thread's row; 0: they have not come. */
    __device__ __forceinline__ uint32_t await() const
    {
        const volatile uint32_t *from = (const volatile uint32_t *)told[threadIdx.x];
        const uint32_t unused = used < NIB_MAX_EXPERTS_USED ? ~0u << 8 * used : 0;
#pragma unroll 1
        for (uint32_t i = 0; i < BATCH_MX_TRIES; i++) {
            const uint32_t word = *from;
            if (!__vcmpeq4(word | unused, 0))
                return word;
        }
        return 0;
    }
};

/* All lists to group, rows of places to rows; returns how many lists, BATCH_MX_UNKNOWN if not all words have come. All threads call it; what it leaves is seen behind a barrier. */
__device__ __forceinline__ uint32_t batch_mx_lists(const struct batch_mx_told &from, struct cu_group *group, uint32_t *rows)
{
    __shared__ __align__(16) struct route_marks marks;
    const uint32_t row = threadIdx.x, e = threadIdx.x;
    marks.clear(CU_BATCH_MX_THREADS);
    __syncthreads();
    const uint32_t picks = row < from.rows ? from.await() : ~0u;
    if (row < from.rows && picks)
        marks.mark(row, picks, from.used);
    if (!__syncthreads_and(picks != 0))
        return BATCH_MX_UNKNOWN;
    uint32_t before[NIB_MAX_SLOTS / 32], count;
    marks.count(e, e < from.experts, ~0u, before, &count);
    const uint32_t lists = CU_DIV_UP(count, CU_GEMV_ROWS);
    uint64_t total;
    const uint64_t at_list = route_scan(count | (uint64_t)lists << ROUTE_FIELD, &total);
    const uint32_t begin = (uint32_t)at_list & ((1u << ROUTE_FIELD) - 1);
    route_lists(group, (uint32_t)(at_list >> ROUTE_FIELD), CU_GROUPS_MAX, e, begin, count, route_length(count, lists, CU_GEMV_ROWS));
    if (e < from.experts)
        marks.put(e, begin, before);
    __syncthreads();
#pragma unroll
    for (uint32_t c = 0; c < NIB_MAX_EXPERTS_USED; c++)
        if (row < from.rows && c < from.used)
            rows[marks.place_of(row, (picks >> 8 * c & 255) - 1)] = row;
    return (uint32_t)(total >> ROUTE_FIELD);
}
