/* arch/cuda/cut.cuh: truncation (top-k, top-p, min-p: step 5 of core/sample.h) of a row by a block. */
#pragma once
#include "arch/cuda/draw.cuh"

/* What truncation keeps: keys above `key`, of that key ids up to `last`; and d >= least. */
struct draw_cut {
    uint32_t key, last;
    float least;
};

__device__ __forceinline__ bool cut_keeps(const draw_row &d, const draw_cut &cut, uint32_t id, float z)
{
    const uint32_t key = draw_key(z);
    return z != -INFINITY && (key > cut.key || (key == cut.key && id <= cut.last)) && draw_d(d, z) >= cut.least;
}

/* Calls seen(id, z) for the ids that `cut` keeps, of the whole row, by all threads. */
template <class Seen> __device__ __forceinline__ void cut_walk(const draw_row &d, const draw_cut &cut, Seen seen)
{
    draw_walk(d, 0, d.vocab, [&](uint32_t id, const float z0[4]) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            if (id + i >= d.vocab)
                continue;
            const float z = draw_penalised(d, id + i, z0[i]);
            if (cut_keeps(d, cut, id + i, z))
                seen(id + i, z);
        }
    });
}

#define BUCKETS 2048
#define STEPS   5 /* distances from the maximum at which the kept ids are first parted */

/* Keys low .. last of the kept ids, among which a target in count or mass is reached; the target less what is above them. */
struct cut_span {
    uint32_t low, last;
    uint64_t target;
};

/* What the kept ids sum to, in count or mass, and where target(sum) is reached, roughly: so that the search meets few ids. The target is
 * 1 .. the sum, or 0: nothing is searched for. Block-uniform. */
template <class Target>
__device__ __forceinline__ cut_span cut_narrow(const draw_row &row, const draw_cut &of, bool mass, Target target)
{
    const draw_row d = row;
    const draw_cut cut = of;
    const float far[STEPS] = {0.5f, 2, 5, 9, 15};
    uint32_t key[STEPS];
    uint64_t above[STEPS] = {}, all = 0;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
        key[i] = draw_key(__fsub_rn(d.max, __fdiv_rn(far[i], d.inv_t)));
    cut_walk(d, cut, [&](uint32_t, float z) {
        const uint32_t k = draw_key(z);
        const uint64_t w = mass ? draw_weight(d, z) : 1;
        all += w;
#pragma unroll
        for (int i = 0; i < STEPS; i++)
            above[i] += k >= key[i] ? w : 0;
    });
    cut_span span = {0, ~0u, target(draw_sum(all))};
    uint64_t over = 0;
    bool found = false;
#pragma unroll
    for (int i = 0; i < STEPS; i++) { /* the keys fall, the sums rise */
        const uint64_t sum = draw_sum(above[i]);
        if (found)
            continue;
        found = sum >= span.target;
        if (found) {
            span.low = key[i];
        } else {
            span.last = key[i] - 1;
            over = sum;
        }
    }
    span.target -= min(over, span.target);
    return span;
}

/* Two additions of 32 bits: many threads meet in a bucket, and those of 64 are tried again and again then. */
__device__ __forceinline__ void bucket_add(unsigned long long *bucket, uint64_t w)
{
    const uint32_t low = (uint32_t)w, before = atomicAdd((uint32_t *)bucket, low);
    const uint32_t high = (uint32_t)(w >> 32) + (before + low < low ? 1 : 0);
    if (high)
        atomicAdd((uint32_t *)bucket + 1, high);
}

/* The bucket in which *left is reached from the last of `count`, a multiple of 32, down; less what is in those behind it. One warp. */
__device__ __forceinline__ void bucket_pick(const unsigned long long *bucket, uint32_t count, uint64_t *left, uint32_t *ret_picked)
{
    const uint32_t lane = threadIdx.x % 32;
    uint64_t rest = *left;
    uint32_t picked = 0; /* were it in none */
    for (uint32_t end = count; end > 0; end -= 32) {
        const uint64_t mine = bucket[end - 1 - lane];
        uint64_t sum = mine;
#pragma unroll
        for (int k = 1; k < 32; k *= 2) {
            const uint64_t other = __shfl_up_sync(~0u, sum, k);
            sum += (int)lane >= k ? other : 0;
        }
        const uint32_t reached = __ballot_sync(~0u, sum >= rest);
        if (reached) {
            const uint32_t by = __ffs(reached) - 1;
            picked = end - 1 - by;
            rest -= __shfl_sync(~0u, sum - mine, by);
            break;
        }
        rest -= __shfl_sync(~0u, sum, 31);
    }
    __syncwarp();
    if (lane == 0) {
        *left = rest;
        *ret_picked = picked;
    }
}

/* The key at which the kept ids of a span, from the largest down, reach its target in count or mass: a radix descent, 11, 11 and 10 bits.
 * *ret_left: what of the target is left for the ids at that key. */
__device__ __noinline__ uint32_t cut_find(const draw_row &row, const draw_cut &of, bool mass, const cut_span &in, uint64_t *ret_left)
{
    const draw_row d = row; /* in registers: the walk would read it from the stack for every id */
    const draw_cut cut = of;
    const cut_span span = in;
    __shared__ unsigned long long bucket[BUCKETS];
    __shared__ uint64_t left;
    __shared__ uint32_t picked;
    uint32_t key = 0;
    if (threadIdx.x == 0)
        left = span.target;
    for (int level = 0; level < 3; level++) {
        const uint32_t shift = level == 0 ? 21 : level == 1 ? 10 : 0, bits = level == 2 ? 10 : 11, mask = (1u << bits) - 1;
        for (uint32_t i = threadIdx.x; i < BUCKETS; i += THREADS)
            bucket[i] = 0;
        __syncthreads();
        const uint64_t above = (uint64_t)key >> (shift + bits);
        cut_walk(d, cut, [&](uint32_t, float z) {
            const uint32_t k = draw_key(z);
            if (k >= span.low && k <= span.last && (uint64_t)k >> (shift + bits) == above)
                bucket_add(&bucket[k >> shift & mask], mass ? draw_weight(d, z) : 1);
        });
        __syncthreads();
        if (threadIdx.x < 32)
            bucket_pick(bucket, mask + 1, &left, &picked);
        __syncthreads();
        key |= picked << shift;
    }
    *ret_left = left;
    __syncthreads();
    return key;
}

/* The id of the `ties`-th kept id with this key, in order of ids; ~0 when there are no more than that. */
__device__ __noinline__ uint32_t cut_tie(const draw_row &row, const draw_cut &of, uint32_t key, uint64_t ties)
{
    const draw_row d = row;
    const draw_cut cut = of;
    uint64_t n = 0;
    cut_walk(d, cut, [&](uint32_t, float z) { n += draw_key(z) == key; });
    if (draw_sum(n) <= ties)
        return ~0u;
    __shared__ uint32_t flags[THREADS / 32], found;
    uint64_t before = 0;
    for (uint32_t base = 0; base < d.vocab; base += THREADS) {
        const uint32_t id = base + threadIdx.x;
        bool is = false;
        if (id < d.vocab) {
            const float z = draw_penalised(d, id, draw_z(d, id));
            is = draw_key(z) == key && cut_keeps(d, cut, id, z);
        }
        const uint32_t ballot = __ballot_sync(~0u, is);
        if (threadIdx.x % 32 == 0)
            flags[threadIdx.x / 32] = ballot;
        __syncthreads();
        uint64_t mine = before, all = before;
        for (uint32_t w = 0; w < THREADS / 32; w++) {
            mine += w < threadIdx.x / 32 ? __popc(flags[w]) : 0;
            all += __popc(flags[w]);
        }
        mine += __popc(ballot & ((2u << threadIdx.x % 32) - 1));
        if (is && mine == ties)
            found = id;
        __syncthreads();
        if (all >= ties)
            return found;
        before = all;
    }
    return ~0u;
}

/* Step 5. Block-uniform. */
__device__ __noinline__ draw_cut draw_truncate(const draw_row &d)
{
    const struct nib_sampling *s = d.sampling;
    draw_cut cut = {0, ~0u, -INFINITY};
    uint64_t left;
    if (s->top_k != 0 && s->top_k < d.vocab) {
        const cut_span span = cut_narrow(d, cut, false, [&](uint64_t all) { return all > s->top_k ? (uint64_t)s->top_k : 0; });
        if (span.target) {
            const uint32_t key = cut_find(d, cut, false, span, &left);
            const uint32_t last = cut_tie(d, cut, key, left);
            cut.key = key;
            cut.last = last;
        }
    }
    if (s->top_p < 1.0f) {
        const cut_span span =
            cut_narrow(d, cut, true, [&](uint64_t all) { return min((uint64_t)ceil((double)s->top_p * (double)all), all); });
        const uint32_t key = cut_find(d, cut, true, span, &left);
        const uint64_t weight = max(draw_weight(d, draw_value(key)), (uint64_t)1);
        const uint32_t last = cut_tie(d, cut, key, (left + weight - 1) / weight);
        cut.last = key == cut.key ? min(cut.last, last) : last;
        cut.key = key;
    }
    if (s->min_p > 0.0f)
        cut.least = (float)log((double)s->min_p);
    return cut;
}
