/* arch/cuda/sample.cuh: from logits to tokens, by the definition in core/sample.h, operation by operation: fp32 without fused
 * multiply-add, weights as integers, Gumbel-max in double. Whatever needs the order of the ids is an integer compare, so
 * that threads may meet them in any order.
 *
 * scan: a block a slice of the vocabulary: biases, the maximum before and after the penalties. sample: slices draw; a
 * row that truncates or reports log-probabilities is drawn by its first block alone. The last block of a row writes its
 * result, the last row hands the step to the host. Slices are as many as fill the card (cu_slices): no result depends on them. */
#pragma once
#include "arch/cuda/cut.cuh"

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

/* The same without penalties. */
__device__ __forceinline__ struct cu_part scan_plain(const draw_row &d, uint32_t first, uint32_t end, draw_ahead &v)
{
    uint32_t at = ~0u;
    float best = -INFINITY;
    bool nan = false;
    draw_walk_plain(d, first, end, v, [&](uint32_t id, const float4 &z, float most) {
        nan |= (z.x != z.x) | (z.y != z.y) | (z.z != z.z) | (z.w != z.w);
        uint32_t lowest = z.z == most ? id + 2 : id + 3; /* each a choice of its own: no branches */
        lowest = z.y == most ? id + 1 : lowest;
        lowest = z.x == most ? id : lowest;
        at = most > best ? lowest : at;
        best = most > best ? most : best;
    });
    best = __fadd_rn(best, 0.0f);
    return {best, best, at, nan || best == INFINITY};
}

/* Grid: x slices, at most CU_SLICES, y rows that want a token. */
KERNEL(scan, THREADS, 2)
{
    static_assert(CU_SLICES == 32 && THREADS / 32 <= 32, "a lane a slice, and a warp");
    __shared__ struct cu_part all[THREADS / 32];
    overlap_next();
    draw_row d = draw_begin(m, blockIdx.y);
    struct cu_part *const to = at<struct cu_scratch>(read_now(m->scratch))->part[d.index];
    const struct nib_gpu_step *const step = at<const struct nib_gpu_step>(read_now(m->step));
    uint32_t first, end;
    slice_of(d.vocab, &first, &end);
    if (!draw_may(m, d.index))
        return;
    overlap_wait();
    draw_ahead ahead; /* of the index's logits, before it is known whose they are */
    ahead.begin(d, first, end);
    if (!draw_open(d, step))
        return;
    if (d.sampling->bias_count) {
        scan_bias(d, first, end);
        __threadfence();
        __syncthreads();
        ahead.begin(d, first, end);
    }
    const struct cu_part none = {-INFINITY, -INFINITY, ~0u, 0};
    struct cu_part p = draw_is_plain(d) ? scan_plain(d, first, end, ahead) : scan_any(d, first, end);
    p = part_reduce(p);
    const uint32_t lane = threadIdx.x % 32;
    if (lane == 0)
        all[threadIdx.x / 32] = p;
    __syncthreads();
    if (threadIdx.x >= 32)
        return;
    p = part_reduce(lane < THREADS / 32 ? all[lane] : none);
    if (lane == 0)
        to[blockIdx.x] = p;
    if (blockIdx.x == 0 && lane >= gridDim.x) /* slices that there are not */
        to[lane] = none;
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

/* The same of all ids, where draw_walk_plain goes, without a score to begin with but that the likeliest id has: -inf where no id reaches it. By floats: what cannot win
 * is left out, and scores of doubles, which take a warp as long as all else, are found of those that win by less than a float can tell. */
__device__ __forceinline__ draw_best draw_range_plain(const draw_row &row, uint32_t first, uint32_t end, uint32_t likeliest, draw_ahead &v)
{
    __shared__ uint32_t reached; /* as in draw_range, rounded down; as draw_key has it */
    const draw_row d = row;
    const uint64_t seed = d.sampling->seed;
    draw_best best = {-INFINITY, ~0u};
    const volatile uint32_t *bar = &reached;
    if (threadIdx.x == 0)
        reached = draw_key(draw_about(0.0f, draw_word(d, likeliest)) - DRAW_ABOUT);
    __syncthreads();
    draw_walk_plain(d, first, end, v, [&](uint32_t id0, const float4 &four, float most) {
        const float begin = draw_value(*bar), limit = __expf(fminf(draw_d(d, most) - begin, 0.0f)) * 4294967296.0f * 1.001f + 0.5f;
        if (!(limit >= 1.0f))
            return;
        const uint32_t last = __float2uint_rz(limit);
        uint32_t word[4];
        draw_noise(seed, d.pos, id0 / 4, word);
        if (min(min(word[0], word[1]), min(word[2], word[3])) > last)
            return;
        const float z[4] = {four.x, four.y, four.z, four.w};
        float about[4], sure = -INFINITY;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            about[i] = word[i] <= last && z[i] != -INFINITY ? draw_about(draw_d(d, __fadd_rn(z[i], 0.0f)), word[i]) : -INFINITY;
            sure = fmaxf(sure, about[i] - DRAW_ABOUT);
        }
        if (sure > begin)
            atomicMax(&reached, draw_key(sure));
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (about[i] + DRAW_ABOUT >= draw_value(*bar))
                draw_better(best, draw_score(draw_d(d, __fadd_rn(z[i], 0.0f)), word[i]), id0 + i);
    });
    return best;
}

/* Score of the likeliest id, to begin with a high bound. */
__device__ __forceinline__ draw_best draw_start(const draw_row &d, uint32_t id)
{
    return {draw_score(0.0f, draw_word(d, id)), id};
}

/* What thread 0 needs when a row is drawn, found before: behind a fence each would be a trip to memory. In shared memory. */
struct sample_end {
    struct nib_gpu_result *out;
    uint64_t *next_serial, serial;
    uint32_t *last;    /* tokens of the slots */
    uint32_t *sampled; /* rows so far */
    uint32_t rows, fault;
};

/* Step 2: the alternatives and log(sum exp z), of z before the penalties. The block's threads; thread 0 writes. */
__device__ __noinline__ double draw_report(draw_row d, float max_z, uint32_t want, const sample_end &end)
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
            struct nib_sampled *const out = &end.out->sampled[d.index];
            out->top[count].token = 0xffffffffu - (uint32_t)best;
            out->top[count].logprob = (float)((double)draw_value((uint32_t)(best >> 32)) - log_sum);
        }
    }
    if (threadIdx.x == 0)
        end.out->sampled[d.index].top_count = count;
    return log_sum;
}

/* The step is done: what the host polls for. Whatever the rows' threads wrote for the host before they were counted is seen before
 * the serial is: what releases it hands on what the counting handed over. */
__device__ __forceinline__ void sample_hand_over(const sample_end &end)
{
    end.out->count = end.rows;
    end.out->fault = end.fault;
    asm volatile("st.release.sys.global.b64 [%0], %1;" ::"l"(&end.out->serial), "l"(end.serial) : "memory");
    *end.next_serial = end.serial + 1;
}

/* One thread: the row's result and the slot's memory of it; the last row ends the step. */
__device__ __forceinline__ void sample_finish(const sample_end &end, const draw_row &d, bool failed, uint32_t token, float logprob, bool reported)
{
    struct nib_sampled *to = &end.out->sampled[d.index];
    token = failed ? 0 : token;
    to->token = token;
    to->slot = (uint16_t)d.slot;
    to->failed = failed;
    to->logprob = failed ? 0 : logprob;
    if (failed || !reported)
        to->top_count = 0;
    bool last = end.rows == 1;
    if (!last) {
        last = counted(end.sampled) == end.rows;
        if (last)
            *end.sampled = 0;
    }
    if (last)
        sample_hand_over(end);
    /* only later steps read these: they need not be there for the host */
    end.last[d.slot] = token;
    if (!failed)
        atomicAdd((uint32_t *)d.seen + token, 1u);
}

/* A row by one block: greedy, truncated, or with log-probabilities. */
__device__ __forceinline__ void sample_alone(const sample_end &end, const draw_row &d, const struct cu_part &p)
{
    const struct nib_sampling *s = d.sampling;
    const bool report = s->logprobs || s->top_logprobs > 0;
    double log_sum = 0;
    if (report)
        log_sum = draw_report(d, p.max, min(s->top_logprobs, (uint32_t)NIB_MAX_TOP_LOGPROBS), end);
    uint32_t token = p.id;
    if (s->temperature >= GREEDY_BELOW) {
        const draw_cut cut = draw_truncate(d);
        token = draw_reduce(draw_range(d, &cut, 0, d.vocab, draw_start(d, p.id))).id;
    }
    __syncthreads();
    if (threadIdx.x == 0)
        sample_finish(end, d, false, token, report ? (float)((double)draw_z(d, token) - log_sum) : 0, report);
}

KERNEL(sample, THREADS, 1)
{
    __shared__ bool last;
    __shared__ sample_end end;
    overlap_next();
    draw_row d = draw_begin(m, blockIdx.y);
    struct cu_scratch *const scratch = at<struct cu_scratch>(read_now(m->scratch));
    const struct nib_gpu_step *const step = at<const struct nib_gpu_step>(read_now(m->step));
    struct nib_gpu_result *const out = at<struct nib_gpu_result>(read_now(m->outbox));
    if (threadIdx.x == 0)
        end = {out, at<uint64_t>(m->next_serial), 0, at<uint32_t>(m->last), &scratch->sampled, 0, 0};
    uint32_t first, stop;
    slice_of(d.vocab, &first, &stop);
    if (!draw_may(m, d.index))
        return;
    overlap_wait();
    draw_ahead ahead;
    ahead.begin(d, first, stop);
    if (threadIdx.x == 0) {
        end.serial = step->serial;
        end.rows = step->want_count;
        end.fault = step->fault;
        end.out += end.serial % NIB_GPU_MAILBOX;
    }
    const struct cu_part part = scratch->part[d.index][threadIdx.x % 32]; /* of a slice; of no use when there is no such row */
    if (!draw_open(d, step)) {
        if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && end.rows == 0)
            sample_hand_over(end);
        return;
    }
    const struct cu_part p = part_reduce(part); /* each warp does it, a lane a slice */
    const struct nib_sampling *s = d.sampling;
    const bool failed = p.bad || p.id >= d.vocab;
    const bool alone = failed | (s->temperature < GREEDY_BELOW) | (s->logprobs != 0) | (s->top_logprobs > 0) |
                       ((s->top_k != 0) & (s->top_k < d.vocab)) | (s->top_p < 1.0f) | (s->min_p > 0.0f);
    if (alone && blockIdx.x > 0)
        return;
    if (failed) {
        if (threadIdx.x == 0)
            sample_finish(end, d, true, 0, 0, false);
        return;
    }
    d.max = p.best;
    d.inv_t = s->temperature < GREEDY_BELOW ? 1.0f : __fdiv_rn(1.0f, s->temperature);
    if (alone) {
        sample_alone(end, d, p);
        return;
    }
    draw_best best = draw_reduce(draw_is_plain(d) ? draw_range_plain(d, first, stop, p.id, ahead)
                                                  : draw_range(d, NULL, first, stop, draw_start(d, p.id)));
    if (threadIdx.x == 0) {
        scratch->draw[d.index][blockIdx.x] = {best.score, best.id, 0};
        last = counted(&scratch->drawn[d.index]) == gridDim.x;
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
        sample_finish(end, d, false, best.id, 0, false);
    }
}
