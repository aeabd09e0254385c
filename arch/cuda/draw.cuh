/* arch/cuda/draw.cuh: a row that wants a token: its logits walked by a block, the arithmetic of core/sample.h on one of them, and what
 * a block's threads found put together. */
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

/* Where what a row needs lies: read before the op before has ended. */
__device__ __forceinline__ draw_row draw_begin(const struct nib_gpu_machine *m, uint32_t index)
{
    draw_row d;
    d.vocab = read_now(m->vocab);
    d.index = index;
    d.sampling = at<const struct nib_sampling>(read_now(m->sampling));
    d.logits = at<float>(read_now(m->logits)) + (uint64_t)index * d.vocab;
    d.seen = at<const uint32_t>(read_now(m->seen));
    d.banned = at<const uint32_t>(read_now(m->banned));
    d.max = 0;
    d.inv_t = 1.0f;
    return d;
}

/* Whether any step has room for such a row: what of it is read before it is known that it is there. */
__device__ __forceinline__ bool draw_may(const struct nib_gpu_machine *m, uint32_t index)
{
    return index < min(read_now(m->slots), read_now(m->step_rows_max));
}

/* The row itself; false: the step has no such. Its number, how many there are and the row that it is where all rows want one are read at once, and no bound is
 * looked at before all three are there: the compiler would read them one after the other. */
__device__ __forceinline__ bool draw_open(draw_row &d, const struct nib_gpu_step *step)
{
    const uint32_t row = step->want[d.index], count = step->want_count;
    struct nib_row r = step->rows[d.index];
    if ((d.index >= count) | (row >= NIB_MAX_STEP_ROWS) | (r.slot >= NIB_MAX_SLOTS))
        return false;
    if (row != d.index)
        r = step->rows[row];
    d.sampling += r.slot;
    d.seen += (uint64_t)r.slot * d.vocab;
    d.slot = r.slot;
    d.pos = r.pos;
    d.penalties = (d.sampling->repetition_penalty != 1.0f) | (d.sampling->frequency_penalty != 0.0f) | (d.sampling->presence_penalty != 0.0f);
    return true;
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

/* Whether draw_walk_plain may be used. */
__device__ __forceinline__ bool draw_is_plain(const draw_row &d)
{
    return !d.penalties && d.vocab % 4 == 0;
}

/* The thread's next fours of a slice, where rows are whole fours, on their way. */
struct draw_ahead {
    float4 z[AHEAD];
    uint32_t banned[AHEAD];

    /* Four i of the row as number u; below `last`. */
    __device__ __forceinline__ void ask(const draw_row &d, uint32_t i, uint32_t last, uint32_t u)
    {
        z[u] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        banned[u] = 0;
        if (i < last) {
            z[u] = __ldcg((const float4 *)d.logits + i);
            banned[u] = d.banned[i / 8] >> i % 8 * 4;
        }
    }

    /* The first ones of ids [first, end). */
    __device__ __forceinline__ void begin(const draw_row &d, uint32_t first, uint32_t end)
    {
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++)
            ask(d, first / 4 + threadIdx.x + u * THREADS, end / 4, u);
    }
};

/* As draw_walk, where rows are whole fours, without a branch a four: take(id, z, the largest of them). Here -0 may be among them. `v`: begun. */
template <class Take>
__device__ __forceinline__ void draw_walk_plain(const draw_row &d, uint32_t first, uint32_t end, draw_ahead &v, Take take)
{
    for (uint32_t i = first / 4 + threadIdx.x; i < end / 4; i += AHEAD * THREADS) {
#pragma unroll
        for (uint32_t u = 0; u < AHEAD; u++) {
            const float4 z = make_float4(v.banned[u] & 1 ? -INFINITY : v.z[u].x, v.banned[u] & 2 ? -INFINITY : v.z[u].y,
                                         v.banned[u] & 4 ? -INFINITY : v.z[u].z, v.banned[u] & 8 ? -INFINITY : v.z[u].w);
            v.ask(d, i + (AHEAD + u) * THREADS, end / 4, u);
            take((i + u * THREADS) * 4, z, fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w)));
        }
    }
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

/* The word of one id. */
__device__ __forceinline__ uint32_t draw_word(const draw_row &d, uint32_t id)
{
    uint32_t word[4];
    draw_noise(d.sampling->seed, d.pos, id / 4, word);
    return id % 4 == 0 ? word[0] : id % 4 == 1 ? word[1] : id % 4 == 2 ? word[2] : word[3];
}

/* draw_score by floats, no further from it than DRAW_ABOUT for d above -64: v and 1 - v have all their bits, -log(1 - v) is wrong by 6e-6 of it at most (below 1/16 a
 * series, above it a logarithm that is wrong by 4e-7), the outer logarithm by as much, and what is rounded is below 128. */
#define DRAW_ABOUT 1e-4f
__device__ __forceinline__ float draw_about(float d, uint32_t word)
{
    const float v = ((float)word + 0.5f) * 0x1p-32f, rest = ((float)~word + 0.5f) * 0x1p-32f;
    const float u = v < 0.0625f ? v * (1 + v * (0.5f + v * (1.0f / 3 + v * (0.25f + v * 0.2f)))) : -__logf(rest);
    return d - __logf(u);
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
