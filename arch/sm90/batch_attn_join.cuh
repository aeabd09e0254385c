/* arch/sm90/batch_attn_join.cuh: the warps that put the groups of a split together, and the splits of a head, and write what comes out. They
 * are the block's first. Splits of a head that two blocks share go through m->partial. */
#pragma once
#include "arch/sm90/batch_attn_plan.cuh"

/* Which outputs a lane of a joiner has: a head of the eight, dims dim(0) to dim(3), so that a warp reads from 32 banks. */
struct batch_attn_lane {
    static constexpr uint32_t DIMS = NIB_HEAD_DIM / 16;

    uint32_t head, lane;

    __device__ __forceinline__ batch_attn_lane() : head(threadIdx.x / 16), lane(threadIdx.x % 16)
    {
    }

    __device__ __forceinline__ uint32_t dim(uint32_t i) const
    {
        return (i ^ head % 2) * 16 + lane;
    }
};

/* Eight splits of a lane's outputs. */
struct batch_attn_eight {
    float max[ATTN_FOLD], sum[ATTN_FOLD], o[batch_attn_lane::DIMS][ATTN_FOLD];

    __device__ __forceinline__ void none(uint32_t k)
    {
        max[k] = -INFINITY;
        sum[k] = 0;
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            o[i][k] = 0;
    }

    /* All forward by one; the last is none then. */
    __device__ __forceinline__ void shift()
    {
#pragma unroll
        for (uint32_t k = 0; k + 1 < ATTN_FOLD; k++) {
            max[k] = max[k + 1];
            sum[k] = sum[k + 1];
#pragma unroll
            for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
                o[i][k] = o[i][k + 1];
        }
        none(ATTN_FOLD - 1);
    }

    /* From a split's groups. */
    __device__ __forceinline__ void merge(uint32_t k, const batch_attn_part &part, const batch_attn_lane &my)
    {
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            attn_merge_warps(part, my.head, my.dim(i) ^ batch_attn_mix(my.head), &max[k], &sum[k], &o[i][k]);
    }

    /* To m->partial. */
    __device__ __forceinline__ void put(uint32_t k, float *part, const batch_attn_lane &my) const
    {
        if (my.lane == 0) {
            part[0] = max[k];
            part[1] = sum[k];
        }
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            part[2 + my.dim(i)] = o[i][k];
    }

    /* All eight, from split `first` on. */
    __device__ __forceinline__ void get(const float *parts, uint32_t first, uint32_t splits, const batch_attn_lane &my)
    {
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            const float *part = parts + (first + k) * CU_ATTN_PART;
            none(k);
            if (first + k >= splits)
                continue;
            max[k] = __ldcg(part);
            sum[k] = __ldcg(part + 1);
#pragma unroll
            for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
                o[i][k] = __ldcg(part + 2 + my.dim(i));
        }
    }
};

/* A lane's outputs of a row. */
struct batch_attn_out {
    attn_fold all[batch_attn_lane::DIMS];

    __device__ __forceinline__ explicit batch_attn_out(float sink)
        : all{attn_fold(sink), attn_fold(sink), attn_fold(sink), attn_fold(sink)}
    {
    }

    __device__ __forceinline__ void take(const batch_attn_eight &e)
    {
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            all[i].take(e.max, e.sum, e.o[i]);
    }
};

__device__ __forceinline__ void batch_attn_join_sync()
{
    asm volatile("bar.sync 1, %0;" ::"n"(CU_BATCH_ATTN_JOINERS * 32) : "memory");
}

/* The block's splits of a row and KV head are in m->partial: whether all blocks' are, and it is for this one to put them together. */
__device__ __forceinline__ bool batch_attn_arrived(const struct nib_gpu_machine *m, batch_attn_shared &sh, uint32_t row,
                                                   uint32_t kv_head, uint32_t mine, uint32_t splits)
{
    batch_attn_join_sync();
    if (threadIdx.x == 0) {
        uint32_t *arrived = &at<struct cu_scratch>(m->scratch)->attn[row * m->kv_heads + kv_head];
        sh.last = counted(arrived, mine) == splits;
        if (sh.last)
            *arrived = 0;
    }
    batch_attn_join_sync();
    return sh.last;
}

/* The warps that put splits together, and write what comes out. The program for one of eight splits is there once, as it has to be fetched beside keys. */
__device__ __forceinline__ void batch_attn_join(const batch_attn_view &view, batch_attn_shared &sh, const cu_attn_chunk &first)
{
    const struct nib_gpu_machine *m = view.m;
    const batch_attn_lane my;
    batch_attn_place<false> place;
    if (threadIdx.x < 32)
        batch_attn_deal(view, sh, 1);
    overlap_wait();
    for (place.open(view, sh, first); place.there();) {
        const uint32_t row = place.of.row, kv_head = place.of.head, head = kv_head * NIB_GQA_GROUP + my.head;
        const uint32_t run = place.run(), splits = place.of.of;
        const float sink = bf16_at(m->layer[view.layer].sinks, head) * LOG2E;
        float *parts = attn_part(m, row, head, 0), *part = parts + place.split * CU_ATTN_PART;
        batch_attn_out out(sink);
        batch_attn_eight e;
        for (uint32_t i = 0; i < run; i += ATTN_FOLD) {
#pragma unroll 1
            for (uint32_t k = 0; k < ATTN_FOLD; k++) {
                e.shift();
                if (i + k >= run)
                    continue;
                const uint32_t at = place.at + i + k, slot = at % CU_BATCH_ATTN_PARTS;
                bulk_wait(smem_at(&sh.full[slot]), at / CU_BATCH_ATTN_PARTS & 1);
                e.merge(ATTN_FOLD - 1, sh.part[slot], my);
                bulk_arrive(smem_at(&sh.empty[slot]));
                if (run < splits)
                    e.put(ATTN_FOLD - 1, part + (i + k) * CU_ATTN_PART, my);
            }
            if (splits > 1)
                out.take(e);
        }
        place.next(view, sh, run);
        if (run < splits) {
            if (!batch_attn_arrived(m, sh, row, kv_head, run, splits))
                continue;
            out = batch_attn_out(sink);
            for (uint32_t i = 0; i < splits; i += 2 * ATTN_FOLD) { /* both are on their way at once */
                batch_attn_eight next;
                e.get(parts, i, splits, my);
                next.get(parts, i + ATTN_FOLD, splits, my);
                out.take(e);
                if (i + ATTN_FOLD < splits)
                    out.take(next);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < batch_attn_lane::DIMS; i++)
            attn_put(acts_row(m, row), batch_acts(m), row, head * NIB_HEAD_DIM + my.dim(i),
                     splits > 1 ? out.all[i].value() : attn_alone(e.max[0], e.sum[0], e.o[i][0], sink));
    }
}

#include "arch/sm90/batch_attn_window.cuh"
