/* arch/cuda/attn.cuh: attention with sinks. A warp holds two rows of 8 query heads that share a KV head: mma's rows g are the
 * heads of the first, g + 8 of the second. Scores are S = Q K^T, 8 keys an mma; probabilities go on as the operand of P V.
 * Softmax over the scores q.k / 8 and the head's sink, whose probability is dropped (gpt-oss model card); base 2 inside. */
#pragma once
#include "arch/cuda/kv8.cuh"
#if NIB_SM >= 90
#include "arch/sm90/batch_acts.cuh"
#endif

#define ATTN_SCALE (0.125f * 1.44269504088896f)
#define LOG2E      1.44269504088896f

#define ATTN_KEY_WARPS (CU_ATTN_KEYS / 32) /* of a decode block: those that take in keys; all merge */

/* Running softmax of the lane's rows g and g + 8: largest score, sum (of this lane's columns), values: dims 8n + 2t, +1. */
struct attn_state {
    float max[2], sum[2];
    float o[8][4];
};

__device__ __forceinline__ void attn_clear(attn_state &s, float max0, float max1)
{
    s.max[0] = max0;
    s.max[1] = max1;
    s.sum[0] = s.sum[1] = 0;
#pragma unroll
    for (int n = 0; n < 8; n++)
        s.o[n][0] = s.o[n][1] = s.o[n][2] = s.o[n][3] = 0;
}

/* Query fragments, two k-steps of 32 dims: from row 0 and row 1 (8 heads of 64 each); NULL is zeros. */
__device__ __forceinline__ void attn_query(const __nv_bfloat16 *row0, const __nv_bfloat16 *row1, uint4 q[2][2])
{
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        q[0][half] = row0 ? *(const uint4 *)(row0 + g * NIB_HEAD_DIM + half * 32 + t * 8) : make_uint4(0, 0, 0, 0);
        q[1][half] = row1 ? *(const uint4 *)(row1 + g * NIB_HEAD_DIM + half * 32 + t * 8) : make_uint4(0, 0, 0, 0);
    }
}

/* s += scores of 8 keys; k[half] is the lane's 16 bytes of key g. */
__device__ __forceinline__ void attn_scores(float s[4], const uint4 q[2][2], const uint4 k[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        mma_bf16(s, q[0][half].x, q[1][half].x, q[0][half].y, q[1][half].y, k[half].x, k[half].y);
        mma_bf16(s, q[0][half].z, q[1][half].z, q[0][half].w, q[1][half].w, k[half].z, k[half].w);
    }
}

/* 2 to the power of x, in one instruction; less than 2^-126 is zero. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
    return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

__device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(~0u, v, 1);
    return v + __shfl_xor_sync(~0u, v, 2);
}

/* Scores in base 2 of N * 8 keys (masked: -inf) of the rows of half h to probabilities. Returns what the sums so far are to be
 * scaled by: a key that is masked for a row leaves its state as it was, bit for bit. FIRST: there are none. */
template <int N, bool FIRST> __device__ __forceinline__ float attn_weigh(float s[N][4], int h, float &max, float &sum)
{
    float most = max, of_keys = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n++)
        of_keys = fmaxf(of_keys, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    most = fmaxf(most, quad_max(of_keys));
    const float keep = exp2_fast(max - most);
    max = most;
    float of_them = 0;
#pragma unroll
    for (int n = 0; n < N; n++) {
        s[n][2 * h] = exp2_fast(s[n][2 * h] - most);
        s[n][2 * h + 1] = exp2_fast(s[n][2 * h + 1] - most);
        of_them += s[n][2 * h] + s[n][2 * h + 1];
    }
    sum = FIRST ? of_them : sum * keep + of_them;
    return keep;
}

/* Four 8 x 8 matrices, transposed. */
__device__ __forceinline__ void ldmatrix_trans(uint32_t b[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(from));
}

/* Takes in N * 8 keys: s[n] are their scores, as attn_weigh has them, values at `v` in shared memory, 128 bytes a key, the 16-byte
 * chunks xor-ed by key % 8. Rows g + 8 are there if HALVES is 2. */
template <int N, int HALVES = 2> __device__ __forceinline__ void attn_take(attn_state &st, float s[N][4], uint32_t v)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < HALVES; h++) {
        const float keep = attn_weigh<N, false>(s, h, st.max[h], st.sum[h]);
#pragma unroll
        for (int n = 0; n < 8; n++) {
            st.o[n][2 * h] *= keep;
            st.o[n][2 * h + 1] *= keep;
        }
    }
#pragma unroll
    for (int kk = 0; kk < N / 2; kk++) {
        const uint32_t a0 = pack_bf16(s[2 * kk][0], s[2 * kk][1]);
        const uint32_t a1 = HALVES == 2 ? pack_bf16(s[2 * kk][2], s[2 * kk][3]) : 0;
        const uint32_t a2 = pack_bf16(s[2 * kk + 1][0], s[2 * kk + 1][1]);
        const uint32_t a3 = HALVES == 2 ? pack_bf16(s[2 * kk + 1][2], s[2 * kk + 1][3]) : 0;
        const uint32_t key = kk * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
        for (int d = 0; d < 4; d++) { /* 16 dims */
            uint32_t b[4];
            ldmatrix_trans(b, v + key * 128 + ((d * 2 + lane / 16) ^ (lane & 7)) * 16);
            mma_bf16(st.o[d * 2], a0, a1, a2, a3, b[0], b[1]);
            mma_bf16(st.o[d * 2 + 1], a0, a1, a2, a3, b[2], b[3]);
        }
    }
}

struct attn_partial {
    float max, sum;
};

/* Where decode split `split` of (row, head) keeps its partial. */
__device__ __forceinline__ float *attn_part(const struct nib_gpu_machine *m, uint32_t row, uint32_t head, uint32_t split)
{
    return at<float>(m->partial) + (((uint64_t)row * m->heads + head) * m->splits_max + split) * CU_ATTN_PART;
}

/* Shared memory of a decode block: values of each warp's 32 keys, then the warps' states. */
struct attn_shared {
    uint4 v[ATTN_KEY_WARPS][32 * 8];
    float o[ATTN_KEY_WARPS][NIB_GQA_GROUP][NIB_HEAD_DIM];
    float max[ATTN_KEY_WARPS][NIB_GQA_GROUP], sum[ATTN_KEY_WARPS][NIB_GQA_GROUP];
    uint32_t last;
};
static_assert(sizeof(attn_shared) <= CU_ATTN_SHARED, "the table says less");

/* 32 keys on their way to a warp: keys to registers, the lane's 16 bytes of key g of each eight; values to shared memory. */
struct attn_keys {
    uint4 key[4][2];
};

/* The same of a page in FP8: the lane's parts of keys and values. */
struct attn_keys8 {
    kv8_chunk key[4][2], value[8];
};

/* What of a layer's KV a block reads, and the positions [begin, end) that its row sees. */
struct attn_span {
    using asked = attn_keys;
    const struct nib_gpu_machine *m;
    nib_gpu_ptr kv;
    uint32_t layer, slot, begin, end;

    __device__ __forceinline__ static uint64_t head_at(uint32_t kv_head)
    {
        return (uint64_t)kv_head * PAGE_HEAD_BYTES;
    }

    /* What was asked for, as bf16: it is. */
    __device__ __forceinline__ const attn_keys &widen(const attn_keys &keys, uint32_t, uint4 *) const
    {
        return keys;
    }

    __device__ __forceinline__ const uint8_t *at_key(uint32_t key0) const
    {
        return at<const uint8_t>(kv, page_at(m, layer, slot, key0 / NIB_KV_PAGE_TOKENS, NIB_GPU_ATTN) +
                                         key0 % NIB_KV_PAGE_TOKENS * 128);
    }

    /* The lane's part of the values of tokens first, first + step, ... below 32; those that no position has written may be
     * NaN: zeros. */
    __device__ __forceinline__ void ask_values(const uint8_t *k, uint32_t key0, uint32_t first, uint32_t step, uint4 *v) const
    {
        const uint32_t chunk = threadIdx.x % 8;
        const uint8_t *from = k + (uint64_t)m->kv_heads * PAGE_HEAD_BYTES + chunk * 16;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t token = first + i * step;
            const bool there = key0 + token < end && key0 + token >= begin;
            if (token < 32)
                copy16(smem_at(v + token * 8 + (chunk ^ token % 8)), from + token * 128, there);
        }
    }

    /* Keys key0 .. key0 + 31, all on one page, at k. */
    __device__ __forceinline__ void ask(const uint8_t *k, uint32_t key0, attn_keys &to, uint4 *v) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                to.key[n][half] = *(const uint4 *)(k + (n * 8 + g) * 128 + half * 64 + t * 16);
        ask_values(k, key0, lane / 8, 4, v);
        copy_commit();
    }

    __device__ __forceinline__ void ask(uint32_t key0, attn_keys &to, uint4 *v) const
    {
        ask(at_key(key0), key0, to, v);
    }

    /* The last position again, if it is among them: it is written by the op before this one. */
    __device__ __forceinline__ void ask_last(const uint8_t *k, uint32_t key0, attn_keys &to, uint4 *v) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, token = end - 1 - key0;
        if (end - 1 < key0 || token >= 32)
            return;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (n * 8 + g == token) /* the first-level cache may hold what was there before */
                    to.key[n][half] = __ldcg((const uint4 *)(k + token * 128 + half * 64 + t * 16));
        copy_wait<0>(); /* nor may an earlier copy come later */
        __syncwarp();
        ask_values(k, key0, lane < 8 ? token : 32, 32, v);
        copy_commit();
    }
};

/* The same of pages in FP8. Values go to shared memory when their keys are taken in. */
struct attn_span8 {
    using asked = attn_keys8;
    const struct nib_gpu_machine *m;
    nib_gpu_ptr kv; /* the layer's first page; the block's x is the KV head */
    uint32_t layer, slot, begin, end;

    __device__ __forceinline__ static uint64_t head_at(uint32_t)
    {
        return 0;
    }

    __device__ __forceinline__ const uint8_t *at_key(uint32_t key0) const /* the page */
    {
        return at<const uint8_t>(kv, page_at(m, layer, slot, key0 / NIB_KV_PAGE_TOKENS, NIB_GPU_ATTN_FP8));
    }

    /* Keys and values of all 32 tokens, or of token `last` alone. */
    __device__ __forceinline__ void ask_tokens(const uint8_t *from, uint32_t key0, uint32_t last, attn_keys8 &to) const
    {
        const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, token0 = key0 % NIB_KV_PAGE_TOKENS;
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (last >= 32 || n * 8 + g == last)
                    to.key[n][half].ask(from, m->kv_heads, blockIdx.x, token0 + n * 8 + g, half * 4 + t);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++)
            if (last >= 32 || i * 4 + lane / 8 == last)
                to.value[i].ask(from, m->kv_heads, m->kv_heads + blockIdx.x, token0 + i * 4 + lane / 8, lane % 8);
    }

    __device__ __forceinline__ void ask(const uint8_t *k, uint32_t key0, attn_keys8 &to, uint4 *) const
    {
        ask_tokens(k, key0, 32, to);
    }

    __device__ __forceinline__ void ask(uint32_t key0, attn_keys8 &to, uint4 *v) const
    {
        ask(at_key(key0), key0, to, v);
    }

    __device__ __forceinline__ void ask_last(const uint8_t *k, uint32_t key0, attn_keys8 &to, uint4 *) const
    {
        if (end - 1 >= key0 && end - 1 - key0 < 32)
            ask_tokens(k, key0, end - 1 - key0, to);
    }

    __device__ __forceinline__ attn_keys widen(const attn_keys8 &keys, uint32_t key0, uint4 *v) const
    {
        const uint32_t lane = threadIdx.x % 32;
        attn_keys wide;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t token = i * 4 + lane / 8;
            const bool there = key0 + token < end && key0 + token >= begin;
            v[token * 8 + (lane % 8 ^ token % 8)] = there ? keys.value[i].wide() : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                wide.key[n][half] = keys.key[n][half].wide();
        return wide;
    }
};

/* Takes in keys key0 .. key0 + 31, which were asked for. */
template <class Span>
__device__ __forceinline__ void attn_step(const Span &span, const uint4 q[2][2], uint32_t key0, const attn_keys &keys,
                                          const uint4 *v, attn_state &st)
{
    const uint32_t t = threadIdx.x % 4;
    float s[4][4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
        attn_scores(s[n], q, keys.key[n]);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const uint32_t j = key0 + n * 8 + t * 2 + c;
            s[n][c] = j >= span.begin && j < span.end ? s[n][c] * ATTN_SCALE : -INFINITY;
        }
    }
    copy_wait<0>();
    __syncwarp();
    attn_take<4, 1>(st, s, smem_at(v));
    __syncwarp();
}

/* A warp's state, for attn_merge_warps. Warps without keys have none. */
template <class Shared> __device__ __forceinline__ void attn_put_state(Shared &sh, const attn_state &st)
{
    const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const float sum = quad_sum(st.sum[0]);
    if (warp >= ATTN_KEY_WARPS)
        return;
    if (t == 0) {
        sh.max[warp][g] = st.max[0];
        sh.sum[warp][g] = sum;
    }
#pragma unroll
    for (int n = 0; n < 8; n++)
        *(float2 *)&sh.o[warp][g][n * 8 + t * 2] = make_float2(st.o[n][0], st.o[n][1]);
}

/* The first of the warp's keys in a split that begins at `base`; a warp that takes none gets one behind all. */
__device__ __forceinline__ uint32_t attn_first_key(uint32_t base)
{
    return threadIdx.x / 32 < ATTN_KEY_WARPS ? base + threadIdx.x / 32 * 32 : ~0u - CU_ATTN_KEYS;
}

/* The warps' states of the block, merged in order: head h of the group, dim d of thread. */
template <class Shared>
__device__ __forceinline__ void attn_merge_warps(const Shared &sh, uint32_t h, uint32_t d, float *ret_max, float *ret_sum,
                                                 float *ret_o)
{
    float most = -INFINITY;
#pragma unroll
    for (int w = 0; w < ATTN_KEY_WARPS; w++)
        most = fmaxf(most, sh.max[w][h]);
    float sum = 0, o = 0;
#pragma unroll
    for (int w = 0; w < ATTN_KEY_WARPS; w++) {
        const float scale = exp2_fast(sh.max[w][h] - most);
        sum += scale * sh.sum[w][h];
        o += scale * sh.o[w][h][d];
    }
    *ret_max = most;
    *ret_sum = sum;
    *ret_o = o;
}

#define ATTN_FOLD 8 /* partials at a time */

/* One output from partials in order and the sink. */
struct attn_fold {
    float most, sum, o;

    __device__ __forceinline__ explicit attn_fold(float sink) : most(sink), sum(1), o(0)
    {
    }

    /* Largest scores, sums, values; of a split that is not there -inf, 0, 0. */
    __device__ __forceinline__ void take(const float v[ATTN_FOLD], const float s[ATTN_FOLD], const float w[ATTN_FOLD])
    {
        float top = most;
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++)
            top = fmaxf(top, v[k]);
        const float keep = exp2_fast(most - top);
        most = top;
        sum *= keep;
        o *= keep;
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            const float scale = exp2_fast(v[k] - most);
            sum += scale * s[k];
            o += scale * w[k];
        }
    }

    __device__ __forceinline__ float value() const
    {
        return o / sum;
    }
};

/* An output of dim d, from its head's `splits` partials in order and the sink. */
__device__ __forceinline__ float attn_finish(const float *part, uint32_t d, uint32_t splits, float sink)
{
    attn_fold all(sink);
    for (uint32_t i = 0; i < splits; i += ATTN_FOLD) {
        float v[ATTN_FOLD], s[ATTN_FOLD], w[ATTN_FOLD];
#pragma unroll
        for (uint32_t k = 0; k < ATTN_FOLD; k++) {
            const float *p = part + (i + k) * CU_ATTN_PART;
            const bool there = i + k < splits;
            v[k] = there ? __ldcg(p) : -INFINITY;
            s[k] = there ? __ldcg(p + 1) : 0;
            w[k] = there ? __ldcg(p + 2 + d) : 0;
        }
        all.take(v, s, w);
    }
    return all.value();
}

/* The row's output of a head and dim when there is one split: as attn_finish does it. */
__device__ __forceinline__ float attn_alone(float most, float sum, float o, float sink)
{
    const float top = fmaxf(sink, most), scale = exp2_fast(most - top), keep = exp2_fast(sink - top);
    return divide_plain(scale * o, keep + scale * sum);
}

/* Output i of a decode row, to where each of the output projections reads it. `batch`: batch_acts of sm_90. */
__device__ __forceinline__ void attn_put(uint8_t *acts, uint8_t *batch, uint32_t row, uint32_t i, float value)
{
    const __nv_bfloat16 v = __float2bfloat16(value);
    ((__nv_bfloat16 *)acts)[i] = v;
#if NIB_SM >= 90
    batch_acts_put(batch, row, i, v);
#endif
}

/* Where the results of a row's KV head go. Found before a fence, which empties the first-level cache: behind it each would be a trip to memory. */
struct attn_to {
    uint8_t *acts, *batch;
    float *parts;      /* of the first head */
    uint32_t *arrived; /* blocks, of splits */
    uint32_t stride;   /* floats of a head's partials */

    __device__ __forceinline__ void find(const struct nib_gpu_machine *m, uint32_t row, uint32_t kv_head)
    {
        acts = acts_row(m, row);
#if NIB_SM >= 90
        batch = batch_acts(m);
#endif
        parts = attn_part(m, row, kv_head * NIB_GQA_GROUP, 0);
        arrived = &at<struct cu_scratch>(m->scratch)->attn[row * m->kv_heads + kv_head];
        stride = m->splits_max * CU_ATTN_PART;
        asm volatile("" : "+l"(acts), "+l"(batch), "+l"(parts), "+l"(arrived), "+r"(stride)); /* here, and so not behind the next barrier */
    }
};

#define ATTN_OUTPUTS (NIB_GQA_GROUP * NIB_HEAD_DIM / CU_ATTN_THREADS) /* of a thread */

/* Grid: x KV heads, y decode rows, z splits (a block takes z, z + gridDim.z, ...): those that have work begin first, one on a multiprocessor.
 *
 * Keys are asked for before the op before this one has ended: all but the last were written by earlier steps. From layer 1 on
 * the step block may be read as early, since the expert products of the layer before wait for all that came before them. */
template <class Span>
__device__ __forceinline__ void attn_row(const struct nib_gpu_machine *m, uint32_t layer, attn_shared &sh)
{
    attn_to to = {};
    const struct nib_gpu_step *step = step_of(m);
    const uint32_t kv_head = blockIdx.x, row = blockIdx.y, warp = threadIdx.x / 32;
    float sinks[ATTN_OUTPUTS]; /* of the thread's outputs */
#pragma unroll
    for (uint32_t k = 0; k < ATTN_OUTPUTS; k++)
        sinks[k] = bf16_at(m->layer[layer].sinks,
                           kv_head * NIB_GQA_GROUP + (threadIdx.x + k * CU_ATTN_THREADS) / NIB_HEAD_DIM) *
                   LOG2E;
    overlap_next();
    if (layer == 0)
        overlap_wait();
    const struct nib_row r = step->rows[row]; /* there, whatever the count */
    const bool windowed = layer % 2 == 0;
    const uint32_t end = r.pos + 1, begin = windowed && end > m->window ? end - m->window : 0;
    const uint32_t keys = windowed ? ~0u : cu_split_keys(r.pos), splits = windowed ? 1 : r.pos / keys + 1;
    const bool mine = row < step->decode_count && blockIdx.z < splits;
    if (NIB_SM >= 90 && !mine && blockIdx.z > 0 && gridDim.y <= CU_DEEP_ROWS) /* makes room for OUT; a row's first block waits in any case */
        return;
    const Span span = {m, m->layer[layer].kv + Span::head_at(kv_head), layer, r.slot, begin, end};
    typename Span::asked ahead;
    uint32_t base = windowed ? begin & ~31u : blockIdx.z * keys, key0 = attn_first_key(base);
    const uint8_t *keys_at = NULL;
    if (mine && key0 < end) {
        keys_at = span.at_key(key0);
        span.ask(keys_at, key0, ahead, sh.v[warp]);
    }
    const nib_gpu_ptr queries = *(const volatile nib_gpu_ptr *)&m->q; /* here; by read_now nothing of the block would be a constant */
    if (layer > 0)
        overlap_wait();
    if (!mine)
        return;
    uint4 q[2][2];
    attn_query(at<const __nv_bfloat16>(queries) + ((uint64_t)row * m->heads + kv_head * NIB_GQA_GROUP) * NIB_HEAD_DIM, NULL, q);
    if (key0 < end)
        span.ask_last(keys_at, key0, ahead, sh.v[warp]);
    auto put = [&](uint32_t i, float value) { attn_put(to.acts, to.batch, row, kv_head * NIB_GQA_GROUP * NIB_HEAD_DIM + i, value); };
    for (uint32_t split = blockIdx.z; split < splits; split += gridDim.z) {
        attn_state st;
        attn_clear(st, -1e30f, -1e30f);
        if (split != blockIdx.z) {
            base = split * keys;
            key0 = attn_first_key(base);
        }
        const uint32_t last = windowed ? end : min(end, base + keys);
        for (bool asked = split == blockIdx.z; key0 < last; key0 += CU_ATTN_KEYS, asked = false) {
            if (!asked)
                span.ask(key0, ahead, sh.v[warp]);
            attn_step(span, q, key0, span.widen(ahead, key0, sh.v[warp]), sh.v[warp], st);
        }
        attn_put_state(sh, st);
        to.find(m, row, kv_head);
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < ATTN_OUTPUTS; k++) {
            const uint32_t i = threadIdx.x + k * CU_ATTN_THREADS, h = i / NIB_HEAD_DIM, d = i % NIB_HEAD_DIM;
            float most, all, o;
            attn_merge_warps(sh, h, d, &most, &all, &o);
            if (splits == 1) {
                put(i, attn_alone(most, all, o, sinks[k]));
                continue;
            }
            float *part = to.parts + h * to.stride + split * CU_ATTN_PART;
            if (d == 0) {
                part[0] = most;
                part[1] = all;
            }
            part[2 + d] = o;
        }
        __syncthreads();
    }
    if (splits == 1)
        return;
    if (threadIdx.x == 0)
        sh.last = counted(to.arrived) == min(splits, gridDim.z);
    __syncthreads();
    if (!sh.last)
        return;
#pragma unroll
    for (uint32_t k = 0; k < ATTN_OUTPUTS; k++) {
        const uint32_t i = threadIdx.x + k * CU_ATTN_THREADS;
        put(i, attn_finish(to.parts + i / NIB_HEAD_DIM * to.stride, i % NIB_HEAD_DIM, splits, sinks[k]));
    }
    if (threadIdx.x == 0)
        *to.arrived = 0;
}

KERNEL(attn, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 attn_dynamic[];
    attn_row<attn_span>(m, layer, *(attn_shared *)attn_dynamic);
}

KERNEL(attn_fp8, CU_ATTN_THREADS, 2)
{
    extern __shared__ uint4 attn_dynamic[];
    attn_row<attn_span8>(m, layer, *(attn_shared *)attn_dynamic);
}

/* How a block copies pages to shared memory: chunk c % 8, of 8 dims, of token c / 8 of its head's keys or values. */
struct attn_wide_page {
    static constexpr enum nib_gpu_op op = NIB_GPU_ATTN_PROMPT;

    /* Where the head's keys lie in the layer's first page, and how much further its values. */
    __device__ __forceinline__ static nib_gpu_ptr keys(const struct nib_gpu_machine *m, uint32_t layer, uint32_t kv_head)
    {
        return m->layer[layer].kv + (uint64_t)kv_head * PAGE_HEAD_BYTES;
    }
    __device__ __forceinline__ static uint64_t values(const struct nib_gpu_machine *m)
    {
        return (uint64_t)m->kv_heads * PAGE_HEAD_BYTES;
    }

    __device__ __forceinline__ static void copy_keys(uint32_t to, const uint8_t *from, uint64_t, uint32_t c, bool there)
    {
        copy16(to, from + c * 16, there);
    }
    __device__ __forceinline__ static void copy_values(uint32_t to, const uint8_t *from, uint64_t values, uint32_t c, bool there)
    {
        copy16(to, from + values + c * 16, there);
    }
};

struct attn_fp8_page {
    static constexpr enum nib_gpu_op op = NIB_GPU_ATTN_PROMPT_FP8;

    /* The layer's first page; the block's x is the part, that of values so many further. */
    __device__ __forceinline__ static nib_gpu_ptr keys(const struct nib_gpu_machine *m, uint32_t layer, uint32_t)
    {
        return m->layer[layer].kv;
    }
    __device__ __forceinline__ static uint64_t values(const struct nib_gpu_machine *m)
    {
        return m->kv_heads;
    }

    __device__ __forceinline__ static void copy(uint32_t to, const uint8_t *page, uint32_t kv_heads, uint32_t part, uint32_t c,
                                                bool there)
    {
        kv8_chunk from = {make_uint2(0, 0), KV8_SCALE_MIN};
        if (there)
            from.ask(page, kv_heads, part, c / 8, c % 8);
        const uint4 v = from.wide();
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    }
    __device__ __forceinline__ static void copy_keys(uint32_t to, const uint8_t *page, uint64_t values, uint32_t c, bool there)
    {
        copy(to, page, (uint32_t)values, blockIdx.x, c, there);
    }
    __device__ __forceinline__ static void copy_values(uint32_t to, const uint8_t *page, uint64_t values, uint32_t c, bool there)
    {
        copy(to, page, (uint32_t)values, (uint32_t)values + blockIdx.x, c, there);
    }
};

/* Each sequence that has some of the prompt rows of this block's tile, the step's rows first .. stop - 1: take(rows, tile, first, stop).
 * Grid: y tiles of 16 prompt rows, the last (which see the most keys) first. */
template <class Take> __device__ __forceinline__ void attn_sequences(const struct nib_gpu_machine *m, Take take)
{
    const struct nib_gpu_step *step = step_of(m);
    overlap_next();
    overlap_wait();
    const uint32_t tile = step->decode_count + (gridDim.y - 1 - blockIdx.y) * CU_ATTN_PROMPT_POS;
    const uint32_t end = min(step->rows_count, tile + CU_ATTN_PROMPT_POS);
    for (uint32_t first = tile; first < end;) {
        uint32_t stop = first + 1;
        while (stop < end && step->rows[stop].slot == step->rows[first].slot)
            stop++;
        take(step->rows, tile, first, stop);
        first = stop;
    }
}
