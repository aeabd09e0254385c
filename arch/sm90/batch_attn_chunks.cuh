/* arch/sm90/batch_attn_chunks.cuh: how the keys of full layers are cut into chunks: a KV head of a row, or, of rows with many keys or of too few rows, some of
 * its splits. That is the same for all full layers of a step, so layer 0 leaves it for them in m->scratch, and a block reads its first chunk at once.
 * Splits of a head that blocks share go through m->partial, and that takes longest at a block's end, so such chunks come first. */
#pragma once
#include "arch/sm90/batch_attn_form.cuh"

#define BATCH_CHUNKS_THREADS (CU_BATCH_ATTN_JOINERS * 32)
#define BATCH_CHUNKS_ROWS    (NIB_MAX_SLOTS / BATCH_CHUNKS_THREADS) /* of a thread */

/* The sum of what the threads up to this one have, and of what all have. All threads call it. */
__device__ __forceinline__ uint2 batch_chunks_sums(uint32_t mine, uint32_t *sums)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x % BATCH_CHUNKS_THREADS / 32;
    uint2 sum = make_uint2(mine, 0);
#pragma unroll
    for (uint32_t d = 1; d < 32; d *= 2) {
        const uint32_t x = __shfl_up_sync(~0u, sum.x, d);
        sum.x += lane >= d ? x : 0;
    }
    if (lane == 31)
        sums[warp] = sum.x;
    asm volatile("bar.sync 1, %0;" ::"n"(BATCH_CHUNKS_THREADS) : "memory");
#pragma unroll
    for (uint32_t w = 0; w < BATCH_CHUNKS_THREADS / 32; w++) {
        sum.x += w < warp ? sums[w] : 0;
        sum.y += sums[w];
    }
    return sum;
}

/* By a block's last warps; row: pos and slot of each; sums: room to add up, no static shared memory, which would move the dynamic one's lines. */
__device__ __forceinline__ void batch_chunks(const batch_attn_view &view, const uint2 *row, uint32_t rows_count,
                                             uint32_t (*sums)[BATCH_CHUNKS_THREADS / 32])
{
    constexpr uint32_t ROWS = BATCH_CHUNKS_ROWS;
    struct cu_scratch *to = at<struct cu_scratch>(view.scratch);
    const uint32_t tid = threadIdx.x % BATCH_CHUNKS_THREADS, blocks = gridDim.x, heads = view.kv_heads;
    uint32_t weight[ROWS], splits[ROWS], parts[ROWS], all = 0; /* weight: steps of a block's groups through a row's keys */
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
        const uint32_t r = tid * ROWS + i, pos = row[r].x;
        const bool there = r < rows_count;
        weight[i] = there ? pos / CU_ATTN_KEYS + 1 : 0;
        splits[i] = there ? pos / cu_split_keys(pos) + 1 : 0;
        all += weight[i];
    }
    const uint32_t share = batch_chunks_sums(all, sums[0]).y * heads / blocks, most = max(share / 16, (uint32_t)CU_BATCH_ATTN_WHOLE);
    uint32_t few = 0; /* rows with so few keys */
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++)
        few += weight[i] - 1 < most;
    const uint2 little = batch_chunks_sums(few, sums[1]);
    /* As many of them stay whole as give every block a head, or some; what is left is cut so that every block has a part of it. */
    const uint32_t turns = (little.y * heads + blocks / 6) / blocks, left = little.y - min(turns * blocks / heads, little.y);
    uint32_t nth = little.x - few, cut = 0;
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
        const bool is = weight[i] - 1 < most;
        parts[i] = CU_DIV_UP(weight[i], is ? max(share / 3, 8u) : most);
        if (is && turns > 0)
            parts[i] = nth >= left ? 0 : max(blocks / (left * heads), 1u);
        parts[i] = min(parts[i], splits[i]);
        nth += is;
        cut += parts[i] * heads;
    }
    const uint2 before = batch_chunks_sums(cut, sums[2]);
    nth = little.x - few;
    cut = before.x - cut;
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
        const bool is = weight[i] - 1 < most, whole = is && parts[i] == 0;
        const uint32_t r = tid * ROWS + i, pos = row[r].x, each = whole ? 1 : parts[i], first = whole ? before.y + (nth - left) * heads : cut;
        for (uint32_t n = 0; n < each * heads; n++) {
            const uint32_t head = n / each, part = n % each, split = part * splits[i] / each, end = (part + 1) * splits[i] / each;
            union {
                cu_attn_chunk chunk;
                uint4 words;
            } what = {{pos, (uint16_t)row[r].y, (uint8_t)splits[i], (uint8_t)(31 - __clz(cu_split_keys(pos) / CU_ATTN_KEYS)), (uint8_t)r, (uint8_t)head,
                       (uint8_t)split, (uint8_t)(end - split), 0}};
            if (first + n < CU_ATTN_CHUNKS)
                *(uint4 *)&to->chunk[first + n] = what.words;
        }
        nth += is;
        cut += parts[i] * heads;
    }
    if (tid == 0)
        to->chunks = min(before.y + (little.y - left) * heads, (uint32_t)CU_ATTN_CHUNKS);
}
