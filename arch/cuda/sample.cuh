/* arch/cuda/sample.cuh: from logits to tokens, by the definition in core/sample.h, operation by operation: fp32 without fused
 * multiply-add, weights as integers, Gumbel-max in double. Whatever needs the order of the ids is an integer compare, so
 * that threads may meet them in any order.
 *
 * scan: a block a slice of the vocabulary: biases, the maximum before and after the penalties. sample: slices draw; a
 * row that truncates or reports log-probabilities is drawn by its first block alone. The last block of a row writes its
 * result, the last row hands the step to the host. Slices are as many as fill the card (cu_slices): no result depends on them. */
#pragma once
#include "arch/cuda/base.cuh"

#define STATE_PROMPT 0x80000000u
#define MASS         17592186044416.0f /* 2^44 */
#define GREEDY_BELOW 1e-3f             /* NIB_SAMPLE_TEMPERATURE_MIN */
#define THREADS      CU_SAMPLE_THREADS

/* One row that wants a token. */
struct draw_row {
    const struct nib_sampling *sampling;
    float *logits;        /* [vocab], biases added */
    const uint32_t *seen; /* [vocab] */
    const uint32_t *banned;
    uint32_t vocab, index, slot, pos;
    bool penalties;
    float max; /* of what is drawn from */
    float inv_t;
};

__device__ __forceinline__ draw_row draw_open(const struct nib_gpu_machine *m, uint32_t index)
{
    const struct nib_gpu_step *step = step_of(m);
    const struct nib_row r = step->rows[step->want[index]];
    draw_row d;
    d.sampling = at<const struct nib_sampling>(m->sampling) + r.slot;
    d.vocab = m->vocab;
    d.logits = at<float>(m->logits) + (uint64_t)index * d.vocab;
    d.seen = at<const uint32_t>(m->seen) + (uint64_t)r.slot * d.vocab;
    d.banned = at<const uint32_t>(m->banned);
    d.index = index;
    d.slot = r.slot;
    d.pos = r.pos;
    d.penalties = d.sampling->repetition_penalty != 1.0f || d.sampling->frequency_penalty != 0.0f ||
                  d.sampling->presence_penalty != 0.0f;
    d.max = 0;
    d.inv_t = 1.0f;
    return d;
}

/* z of step 1; -inf takes no part. */
__device__ __forceinline__ float draw_z(const draw_row &d, uint32_t id)
{
    const uint32_t banned = d.banned[id / 32];
    const float z = __fadd_rn(d.logits[id], 0.0f); /* read at once with `banned`, not after it */
    return banned >> id % 32 & 1 ? -INFINITY : z;
}

/* Four ids from a multiple of 4 on, on their way. */
struct draw_four {
    float4 logit;
    uint32_t banned; /* bits of the four, and of others above */
};

/* Ids from `end` on, a multiple of 4 or the vocabulary's end, are -inf. */
__device__ __forceinline__ draw_four draw_ask(const draw_row &d, uint32_t id, uint32_t end)
{
    draw_four v = {make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY), 0};
    if (id >= end)
        return v;
    v.banned = d.banned[id / 32] >> id % 32;
    if (d.vocab % 4 == 0) {
        v.logit = __ldcg((const float4 *)(d.logits + id));
        return v;
    }
    v.logit.x = __ldcg(d.logits + id);
    if (id + 1 < end)
        v.logit.y = __ldcg(d.logits + id + 1);
    if (id + 2 < end)
        v.logit.z = __ldcg(d.logits + id + 2);
    if (id + 3 < end)
        v.logit.w = __ldcg(d.logits + id + 3);
    return v;
}

/* Their z of step 1. */
__device__ __forceinline__ void draw_four_z(const draw_four &v, float z[4])
{
    z[0] = v.banned & 1 ? -INFINITY : __fadd_rn(v.logit.x, 0.0f);
    z[1] = v.banned & 2 ? -INFINITY : __fadd_rn(v.logit.y, 0.0f);
    z[2] = v.banned & 4 ? -INFINITY : __fadd_rn(v.logit.z, 0.0f);
    z[3] = v.banned & 8 ? -INFINITY : __fadd_rn(v.logit.w, 0.0f);
}

#define AHEAD 4 /* fours of a thread on their way */

/* The thread's first fours of ids [first, end). */
__device__ __forceinline__ void draw_ask_ahead(const draw_row &d, uint32_t first, uint32_t end, draw_four v[AHEAD])
{
#pragma unroll
    for (uint32_t u = 0; u < AHEAD; u++)
        v[u] = draw_ask(d, first + (u * THREADS + threadIdx.x) * 4, end);
}

/* Calls take(id, z) for all fours of ids [first, end), z of step 1, by all threads; `v` are the first ones. */
template <class Take>
__device__ __forceinline__ void draw_walk_from(const draw_row &d, uint32_t first, uint32_t end, draw_four v[AHEAD], Take take)
{
    for (uint32_t base = first; base < end; base += AHEAD * THREADS * 4) {
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++) {
            const uint32_t id = base + (u * THREADS + threadIdx.x) * 4;
            float z[4];
            draw_four_z(v[u], z);
            v[u] = draw_ask(d, id + AHEAD * THREADS * 4, end);
            if (id < end)
                take(id, z);
        }
    }
}

template <class Take> __device__ __forceinline__ void draw_walk(const draw_row &d, uint32_t first, uint32_t end, Take take)
{
    draw_four v[AHEAD];
    draw_ask_ahead(d, first, end, v);
    draw_walk_from(d, first, end, v, take);
}

/* z of step 3. */
__device__ __forceinline__ float draw_penalised(const draw_row &d, uint32_t id, float z)
{
    if (!d.penalties)
        return z;
    const uint32_t seen = d.seen[id];
    if (seen == 0)
        return z;
    const uint32_t answers = seen & ~STATE_PROMPT;
    const struct nib_sampling *s = d.sampling;
    z = z > 0.0f ? __fdiv_rn(z, s->repetition_penalty) : __fmul_rn(z, s->repetition_penalty);
    z = __fsub_rn(z, __fmul_rn(s->frequency_penalty, (float)answers));
    z = __fsub_rn(z, answers ? s->presence_penalty : 0.0f);
    return __fadd_rn(z, 0.0f);
}

/* exp for x <= 0, as core/sample_impl.h has it. */
__device__ __forceinline__ float draw_exp(float x)
{
    x = __uint_as_float(min(__float_as_uint(x), 0xc2a00000u)); /* not below -80; x = 0 stays */
    const int n = __float2int_rz(__fsub_rn(__fmul_rn(x, 1.44269504f), 0.5f));
    const float k = (float)n;
    float r = __fsub_rn(x, __fmul_rn(k, 0.693359375f));
    r = __fadd_rn(r, __fmul_rn(k, 2.12194440e-4f));
    float p = 1.9875691500e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
    p = __fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r);
    p = __fadd_rn(p, 1.0f);
    return __fmul_rn(p, __uint_as_float((uint32_t)(n + 127) << 23));
}

__device__ __forceinline__ float draw_d(const draw_row &d, float z)
{
    return __fmul_rn(__fsub_rn(z, d.max), d.inv_t);
}

__device__ __forceinline__ uint64_t draw_weight(const draw_row &d, float z)
{
    return (uint64_t)__float2ll_rz(__fmul_rn(draw_exp(draw_d(d, z)), MASS));
}

/* Floats in order as unsigned integers. */
__device__ __forceinline__ uint32_t draw_key(float z)
{
    const uint32_t bits = __float_as_uint(z);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float draw_value(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* Noise words of ids 4 block .. 4 block + 3: core/rng.h. */
__device__ __forceinline__ void draw_noise(uint64_t seed, uint32_t pos, uint32_t block, uint32_t w[4])
{
    uint32_t c0 = block, c1 = pos, c2 = 0, c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
    for (int i = 0; i < 10; i++) {
        const uint32_t h0 = __umulhi(0xd2511f53u, c0), l0 = 0xd2511f53u * c0;
        const uint32_t h1 = __umulhi(0xcd9e8d57u, c2), l1 = 0xcd9e8d57u * c2;
        c0 = h1 ^ c1 ^ k0;
        c2 = h0 ^ c3 ^ k1;
        c1 = l1;
        c3 = l0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    w[0] = c0;
    w[1] = c1;
    w[2] = c2;
    w[3] = c3;
}

/* d + g */
__device__ __noinline__ double draw_score(float d, uint32_t word)
{
    const double v = __dmul_rn(__dadd_rn((double)word, 0.5), 0x1p-32);
    return __dsub_rn((double)d, log(-log1p(-v)));
}

/* Words below this may still beat `score` at distance d; rounded up, so that nothing that could win is left out. */
__device__ __forceinline__ uint64_t draw_limit(float d, double score)
{
    const double x = (double)d - score;
    if (!(x < 0))
        return 1ull << 32;
    const double bound = (double)draw_exp((float)x) * 4294967296.0 * 1.0001 + 0.5;
    return bound >= 4294967296.0 ? 1ull << 32 : (uint64_t)bound;
}

struct draw_best {
    double score;
    uint32_t id;
};

__device__ __forceinline__ void draw_better(draw_best &best, double score, uint32_t id)
{
    if (score > best.score || (score == best.score && id < best.id)) {
        best.score = score;
        best.id = id;
    }
}

/* The best of the block, in every thread. */
__device__ __forceinline__ draw_best draw_reduce(draw_best best)
{
    __shared__ draw_best all[THREADS / 32];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
        const double score = __shfl_xor_sync(~0u, best.score, d);
        const uint32_t id = __shfl_xor_sync(~0u, best.id, d);
        draw_better(best, score, id);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        all[threadIdx.x / 32] = best;
    __syncthreads();
    for (int w = 0; w < THREADS / 32; w++)
        draw_better(best, all[w].score, all[w].id);
    return best;
}

__device__ __forceinline__ uint64_t draw_sum(uint64_t v)
{
    __shared__ uint64_t all[THREADS / 32];
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        all[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < THREADS / 32; w++)
        v += all[w];
    return v;
}

/* Ids [*first, *end) of this block's slice, multiples of 32 but the last. */
__device__ __forceinline__ void slice_of(uint32_t vocab, uint32_t *ret_first, uint32_t *ret_end)
{
    const uint32_t per = CU_DIV_UP(CU_DIV_UP(vocab, gridDim.x), 32) * 32;
    *ret_first = min(blockIdx.x * per, vocab);
    *ret_end = min(*ret_first + per, vocab);
}

/* Biases of the ids of a slice: the first entry of an id adds all of that id, in the order of the list. */
__device__ __forceinline__ void scan_bias(const draw_row &d, uint32_t first, uint32_t end)
{
    const struct nib_sampling *s = d.sampling;
    const uint32_t count = min(s->bias_count, (uint32_t)NIB_MAX_LOGIT_BIAS);
    for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
        const uint32_t id = s->bias[i].token;
        bool mine = id >= first && id < end;
        for (uint32_t j = 0; mine && j < i; j++)
            mine = s->bias[j].token != id;
        if (!mine)
            continue;
        float z = __fadd_rn(d.logits[id], 0.0f);
        for (uint32_t j = i; j < count; j++)
            if (s->bias[j].token == id)
                z = __fadd_rn(z, s->bias[j].bias);
        d.logits[id] = z;
    }
}

/* The parts of a warp's lanes put together, in every lane. */
__device__ __forceinline__ struct cu_part part_reduce(struct cu_part p)
{
#pragma unroll
    for (int k = 16; k > 0; k /= 2) {
        const float best = __shfl_xor_sync(~0u, p.best, k);
        const uint32_t id = __shfl_xor_sync(~0u, p.id, k);
        p.max = fmaxf(p.max, __shfl_xor_sync(~0u, p.max, k));
        p.bad |= __shfl_xor_sync(~0u, p.bad, k);
        if (best > p.best || (best == p.best && id < p.id)) {
            p.best = best;
            p.id = id;
        }
    }
    return p;
}

/* What a thread finds in a slice. */
__device__ __forceinline__ struct cu_part scan_any(const draw_row &d, uint32_t first, uint32_t end)
{
    struct cu_part p = {-INFINITY, -INFINITY, ~0u, 0};
    draw_walk(d, first, end, [&](uint32_t id, const float z[4]) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float after = id + i < end ? draw_penalised(d, id + i, z[i]) : z[i];
            p.bad |= !(z[i] < INFINITY) || !(after < INFINITY);
            p.max = fmaxf(p.max, z[i]);
            if (after > p.best) {
                p.best = after;
                p.id = id + i;
            }
        }
    });
    return p;
}

/* The same without penalties, where rows are whole fours: in few instructions and without a branch a four. */
__device__ __forceinline__ struct cu_part scan_plain(const draw_row &d, uint32_t first, uint32_t end)
{
    const uint32_t last = end / 4;
    float4 z[AHEAD];
    uint32_t banned[AHEAD], at = ~0u;
    float best = -INFINITY;
    bool nan = false;
    const auto ask = [&](uint32_t i, uint32_t u) {
        z[u] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        banned[u] = 0;
        if (i < last) {
            z[u] = __ldcg((const float4 *)d.logits + i);
            banned[u] = d.banned[i / 8] >> i % 8 * 4;
        }
    };
#pragma unroll
    for (uint32_t u = 0; u < AHEAD; u++)
        ask(first / 4 + threadIdx.x + u * THREADS, u);
    for (uint32_t i = first / 4 + threadIdx.x; i < last; i += AHEAD * THREADS) {
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++) {
            const float a = banned[u] & 1 ? -INFINITY : z[u].x, b = banned[u] & 2 ? -INFINITY : z[u].y;
            const float c = banned[u] & 4 ? -INFINITY : z[u].z, e = banned[u] & 8 ? -INFINITY : z[u].w;
            const float most = fmaxf(fmaxf(a, b), fmaxf(c, e));
            ask(i + (AHEAD + u) * THREADS, u);
            nan |= (a != a) | (b != b) | (c != c) | (e != e);
            if (most > best) {
                best = most;
                at = (i + u * THREADS) * 4 + (a == most ? 0 : b == most ? 1 : c == most ? 2 : 3);
            }
        }
    }
    best = __fadd_rn(best, 0.0f);
    return {best, best, at, nan || best == INFINITY};
}

/* Grid: x slices, at most CU_SLICES, y rows that want a token. */
KERNEL(scan, THREADS, 2)
{
    static_assert(CU_SLICES == 32 && THREADS / 32 <= 32, "a lane a slice, and a warp");
    __shared__ struct cu_part all[THREADS / 32];
    overlap_next();
    overlap_wait();
    if (blockIdx.y >= step_of(m)->want_count)
        return;
    const draw_row d = draw_open(m, blockIdx.y);
    uint32_t first, end;
    slice_of(d.vocab, &first, &end);
    if (d.sampling->bias_count) {
        scan_bias(d, first, end);
        __threadfence();
        __syncthreads();
    }
    const struct cu_part none = {-INFINITY, -INFINITY, ~0u, 0};
    struct cu_part p = d.penalties || d.vocab % 4 ? scan_any(d, first, end) : scan_plain(d, first, end);
    p = part_reduce(p);
    const uint32_t lane = threadIdx.x % 32;
    if (lane == 0)
        all[threadIdx.x / 32] = p;
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    struct cu_part *to = at<struct cu_scratch>(m->scratch)->part[d.index];
    p = part_reduce(lane < THREADS / 32 ? all[lane] : none);
    if (lane == 0)
        to[blockIdx.x] = p;
    if (blockIdx.x == 0 && lane >= gridDim.x) /* slices that there are not */
        to[lane] = none;
}

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
__device__ __forceinline__ cut_span cut_narrow(const draw_row &d, const draw_cut &cut, bool mass, Target target)
{
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
__device__ __noinline__ uint32_t cut_find(const draw_row &d, const draw_cut &cut, bool mass, const cut_span &span, uint64_t *ret_left)
{
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
__device__ __noinline__ uint32_t cut_tie(const draw_row &d, const draw_cut &cut, uint32_t key, uint64_t ties)
{
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

/* Gumbel-max over ids [first, end) that the cut keeps, four ids a thread at a time. `start` is one of the ids and its score. */
__device__ __forceinline__ draw_best draw_range(const draw_row &d, const draw_cut *cut, uint32_t first, uint32_t end,
                                                draw_best start)
{
    __shared__ double reached; /* a score that some thread has: what is sure to be below it need not be looked at */
    draw_best best = start;
    const uint64_t seed = d.sampling->seed;
    volatile double *bar = &reached;
    if (threadIdx.x == 0)
        *bar = start.score;
    __syncthreads();
    draw_walk(d, first, end, [&](uint32_t id0, const float z0[4]) {
        float z[4], most = -INFINITY;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            z[i] = id0 + i < end ? draw_penalised(d, id0 + i, z0[i]) : -INFINITY;
            if (cut && !cut_keeps(d, *cut, id0 + i, z[i]))
                z[i] = -INFINITY;
            most = fmaxf(most, z[i]);
        }
        if (most == -INFINITY)
            return;
        const uint64_t limit = draw_limit(draw_d(d, most), *bar); /* no word beyond it beats that, at any of the four */
        if (limit == 0)
            return;
        uint32_t word[4];
        draw_noise(seed, d.pos, id0 / 4, word);
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (word[i] < limit && z[i] != -INFINITY && word[i] < draw_limit(draw_d(d, z[i]), *bar))
                draw_better(best, draw_score(draw_d(d, z[i]), word[i]), id0 + i);
        if (best.score > *bar)
            *bar = best.score;
    });
    return best;
}

/* Score of the likeliest id, to begin with a high bound. */
__device__ __forceinline__ draw_best draw_start(const draw_row &d, uint32_t id)
{
    uint32_t word[4];
    draw_noise(d.sampling->seed, d.pos, id / 4, word);
    const uint32_t w = id % 4 == 0 ? word[0] : id % 4 == 1 ? word[1] : id % 4 == 2 ? word[2] : word[3];
    return {draw_score(0.0f, w), id};
}

/* Step 2: the alternatives and log(sum exp z), of z before the penalties. The block's threads; thread 0 writes. */
__device__ __noinline__ double draw_report(draw_row d, float max_z, uint32_t want, struct nib_sampled *out)
{
    __shared__ unsigned long long top[THREADS / 32];
    d.penalties = false;
    d.max = max_z;
    d.inv_t = 1.0f;
    uint64_t mass = 0;
    draw_walk(d, 0, d.vocab, [&](uint32_t, const float z[4]) { /* as the definition: -inf has exp(-80) too, weight 0 */
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            mass += draw_weight(d, z[i]);
    });
    const double log_sum = (double)max_z + log((double)draw_sum(mass) / (double)MASS);
    unsigned long long bound = ~0ull; /* key, then the id from the end: below the one picked last */
    uint32_t count = 0;
    for (; count < want; count++) {
        unsigned long long best = 0;
        draw_walk(d, 0, d.vocab, [&](uint32_t id, const float z[4]) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const unsigned long long c = (unsigned long long)draw_key(z[i]) << 32 | (0xffffffffu - id - i);
                if (z[i] != -INFINITY && c < bound && c > best)
                    best = c;
            }
        });
#pragma unroll
        for (int k = 16; k > 0; k /= 2)
            best = max(best, __shfl_xor_sync(~0u, best, k));
        __syncthreads();
        if (threadIdx.x % 32 == 0)
            top[threadIdx.x / 32] = best;
        __syncthreads();
        for (int w = 0; w < THREADS / 32; w++)
            best = max(best, top[w]);
        if (best == 0)
            break;
        bound = best;
        if (threadIdx.x == 0) {
            out->top[count].token = 0xffffffffu - (uint32_t)best;
            out->top[count].logprob = (float)((double)draw_value((uint32_t)(best >> 32)) - log_sum);
        }
    }
    if (threadIdx.x == 0)
        out->top_count = count;
    return log_sum;
}

/* The step is done: what the host polls for. Whatever the rows' threads wrote for the host before they were counted is seen before
 * the serial is: the fence hands on what the counting handed over. */
__device__ __forceinline__ void sample_hand_over(const struct nib_gpu_machine *m, struct nib_gpu_result *out)
{
    const struct nib_gpu_step *step = step_of(m);
    const uint64_t serial = step->serial;
    out->count = step->want_count;
    out->fault = *(const volatile uint32_t *)&step->fault;
    __threadfence_system();
    *(volatile uint64_t *)&out->serial = serial;
    *at<uint64_t>(m->next_serial) = serial + 1;
}

/* One thread: the row's result and the slot's memory of it; the last row ends the step. */
__device__ __forceinline__ void sample_finish(const struct nib_gpu_machine *m, const draw_row &d, struct nib_gpu_result *out,
                                              bool failed, uint32_t token, float logprob, bool reported)
{
    struct nib_sampled *to = &out->sampled[d.index];
    token = failed ? 0 : token;
    to->token = token;
    to->slot = (uint16_t)d.slot;
    to->failed = failed;
    to->logprob = failed ? 0 : logprob;
    if (failed || !reported)
        to->top_count = 0;
    struct cu_scratch *scratch = at<struct cu_scratch>(m->scratch);
    __threadfence();
    if (atomicAdd(&scratch->sampled, 1u) + 1 == step_of(m)->want_count) {
        __threadfence();
        scratch->sampled = 0;
        sample_hand_over(m, out);
    }
    /* only later steps read these: they need not be there for the host */
    at<uint32_t>(m->last)[d.slot] = token;
    if (!failed)
        atomicAdd(at<uint32_t>(m->seen) + (uint64_t)d.slot * d.vocab + token, 1u);
}

/* The slices' parts put together; each warp does it, a lane a slice. */
__device__ __forceinline__ struct cu_part sample_parts(const struct nib_gpu_machine *m, uint32_t index)
{
    return part_reduce(at<const struct cu_scratch>(m->scratch)->part[index][threadIdx.x % 32]);
}

/* A row by one block: greedy, truncated, or with log-probabilities. */
__device__ __forceinline__ void sample_alone(const struct nib_gpu_machine *m, const draw_row &d, const struct cu_part &p,
                                             struct nib_gpu_result *out)
{
    const struct nib_sampling *s = d.sampling;
    const bool report = s->logprobs || s->top_logprobs > 0;
    double log_sum = 0;
    if (report)
        log_sum = draw_report(d, p.max, min(s->top_logprobs, (uint32_t)NIB_MAX_TOP_LOGPROBS), &out->sampled[d.index]);
    uint32_t token = p.id;
    if (s->temperature >= GREEDY_BELOW) {
        const draw_cut cut = draw_truncate(d);
        token = draw_reduce(draw_range(d, &cut, 0, d.vocab, draw_start(d, p.id))).id;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        sample_finish(m, d, out, false, token, report ? (float)((double)draw_z(d, token) - log_sum) : 0, report);
}

KERNEL(sample, THREADS, 1)
{
    __shared__ bool last;
    overlap_next();
    overlap_wait();
    const struct nib_gpu_step *step = step_of(m);
    struct nib_gpu_result *out = at<struct nib_gpu_result>(m->outbox) + step->serial % NIB_GPU_MAILBOX;
    if (blockIdx.y >= step->want_count) {
        if (step->want_count == 0 && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
            sample_hand_over(m, out);
        return;
    }
    draw_row d = draw_open(m, blockIdx.y);
    const struct cu_part p = sample_parts(m, d.index);
    const struct nib_sampling *s = d.sampling;
    const bool failed = p.bad || p.id >= d.vocab;
    const bool alone = failed || s->temperature < GREEDY_BELOW || s->logprobs || s->top_logprobs > 0 ||
                       (s->top_k != 0 && s->top_k < d.vocab) || s->top_p < 1.0f || s->min_p > 0.0f;
    if (alone && blockIdx.x > 0)
        return;
    if (failed) {
        if (threadIdx.x == 0)
            sample_finish(m, d, out, true, 0, 0, false);
        return;
    }
    d.max = p.best;
    d.inv_t = s->temperature < GREEDY_BELOW ? 1.0f : __fdiv_rn(1.0f, s->temperature);
    if (alone) {
        sample_alone(m, d, p, out);
        return;
    }
    uint32_t first, end;
    slice_of(d.vocab, &first, &end);
    draw_best best = draw_reduce(draw_range(d, NULL, first, end, draw_start(d, p.id)));
    struct cu_scratch *scratch = at<struct cu_scratch>(m->scratch);
    if (threadIdx.x == 0) {
        scratch->draw[d.index][blockIdx.x] = {best.score, best.id, 0};
        __threadfence();
        last = atomicAdd(&scratch->drawn[d.index], 1u) + 1 == gridDim.x;
        __threadfence();
    }
    __syncthreads();
    if (!last)
        return;
    if (threadIdx.x < gridDim.x) {
        const struct cu_draw *other = &scratch->draw[d.index][threadIdx.x];
        best = {__ldcg(&other->score), __ldcg(&other->id)};
    }
    best = draw_reduce(best);
    if (threadIdx.x == 0) {
        scratch->drawn[d.index] = 0;
        sample_finish(m, d, out, false, best.id, 0, false);
    }
}
