/* tools/synth_weights.c: owns the generator of random weights and the pipeline that makes them a chunk ahead.
 * Holds two chunks of NIB_MAX_IO_CHUNK_BYTES. Main thread and one thread of its own. */
#include "tools/synth_weights.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/arith.h"
#include "core/mx.h"

#define LANE_SUM_MEAN  131070   /* mean of the sum of four 16-bit words */
#define LANE_SUM_SIGMA 37837.2f /* its deviation: sqrt(4 (65536^2 - 1) / 12) */
#define E2M1_MEAN_SQ   8.5625   /* of the eight magnitudes */
#define SCALE_MEAN_SQ  1.5625   /* of the scale's jitter: 1/2, 1, 1, 2 */

/* splitmix64's output function (Steele, Lea, Flood 2014), used on a counter. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t word(uint64_t key, uint64_t index)
{
    return mix(key + (index + 1) * 0x9e3779b97f4a7c15u);
}

struct spread {
    float mean;
    float sigma;
    bool nonzero; /* no zeros, which one in 95,000 would be: a tile of the head with one is slow on a GPU */
};

static float inverse_sqrt(uint32_t n)
{
    return 1.0f / sqrtf((float)n);
}

static struct spread spread_of(const struct nib_shape *s, enum nib_tensor_id id)
{
    switch (id) {
    case NIB_T_EMBED:
    case NIB_T_SINKS:
        return (struct spread){.mean = 0.0f, .sigma = 1.0f};
    case NIB_T_ATTN_NORM:
    case NIB_T_MLP_NORM:
    case NIB_T_FINAL_NORM:
        return (struct spread){.mean = 1.0f, .sigma = 0.1f};
    case NIB_T_QKV_WEIGHT:
        return (struct spread){.mean = 0.0f, .sigma = inverse_sqrt(s->hidden)};
    case NIB_T_OUT_WEIGHT:
        return (struct spread){.mean = 0.0f, .sigma = inverse_sqrt(nib_q_dim(s))};
    case NIB_T_ROUTER_WEIGHT:
        return (struct spread){.mean = 0.0f, .sigma = 2.0f * inverse_sqrt(s->hidden)};
    case NIB_T_LM_HEAD:
        return (struct spread){.mean = 0.0f, .sigma = 3.0f * inverse_sqrt(s->hidden), .nonzero = true};
    default:
        return (struct spread){.mean = 0.0f, .sigma = 0.1f}; /* biases */
    }
}

/* E8M0 code for which E2M1 codes, all equally likely, have deviation nearest 1 / sqrt(inputs) on a log scale. */
static uint8_t scale_code(uint32_t inputs)
{
    double wanted = E2M1_MEAN_SQ * SCALE_MEAN_SQ * inputs / 2; /* 4^k must reach this */
    uint8_t k = 0;
    for (double power = 1; power < wanted; power *= 4)
        k++;
    return (uint8_t)(127 - k);
}

static void fill_bf16(uint64_t key, struct spread spread, uint64_t begin, uint64_t count, uint8_t *out)
{
    float step = spread.sigma / LANE_SUM_SIGMA;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t w = word(key, begin + i);
        int32_t sum = (int32_t)((w & 0xffff) + (w >> 16 & 0xffff) + (w >> 32 & 0xffff) + (w >> 48));
        sum += spread.nonzero && sum == LANE_SUM_MEAN;
        uint16_t code = nib_bf16_encode((float)(sum - LANE_SUM_MEAN) * step + spread.mean);
        out[2 * i] = (uint8_t)code;
        out[2 * i + 1] = (uint8_t)(code >> 8);
    }
}

static void fill_blocks(uint64_t key, uint64_t begin, uint64_t count, uint8_t *out)
{
    for (uint64_t i = 0; i < count; i += 8) {
        uint64_t w = word(key, (begin + i) / 8);
        uint64_t n = nib_min_u64(8, count - i);
        for (uint64_t b = 0; b < n; b++)
            out[i + b] = (uint8_t)(w >> (8 * b));
    }
}

static void fill_scales(uint64_t key, uint8_t code, uint64_t begin, uint64_t count, uint8_t *out)
{
    static const int8_t jitter[4] = {-1, 0, 0, 1};
    fill_blocks(key, begin, count, out);
    for (uint64_t i = 0; i < count; i++)
        out[i] = (uint8_t)(code + jitter[out[i] & 3]);
}

/* Blocks [begin, begin + count) of a dense matrix as MXFP8: their codes, or their scales. */
static void fill_mxfp8(uint64_t key, struct spread spread, uint64_t begin, uint64_t count, bool scales, uint8_t *out)
{
    for (uint64_t b = 0; b < count; b++) {
        uint8_t bf16[2 * NIB_MX_BLOCK], codes[NIB_MX_BLOCK], scale;
        float x[NIB_MX_BLOCK];
        fill_bf16(key, spread, (begin + b) * NIB_MX_BLOCK, NIB_MX_BLOCK, bf16);
        for (uint32_t i = 0; i < NIB_MX_BLOCK; i++)
            x[i] = nib_bf16_decode((uint16_t)(bf16[2 * i] | bf16[2 * i + 1] << 8));
        nib_mxfp8_encode(x, &scale, codes);
        if (scales)
            out[b] = scale;
        else
            memcpy(out + b * NIB_MX_BLOCK, codes, sizeof codes);
    }
}

/* The matrix that these are the scales of; other ids as they are. */
static enum nib_tensor_id matrix_of(enum nib_tensor_id id)
{
    return id == NIB_T_QKV_SCALES       ? NIB_T_QKV_WEIGHT
           : id == NIB_T_OUT_SCALES     ? NIB_T_OUT_WEIGHT
           : id == NIB_T_LM_HEAD_SCALES ? NIB_T_LM_HEAD
                                        : id;
}

void nib_synth_fill(const struct nib_shape *shape, uint64_t seed, const struct nib_synth_piece *piece, uint8_t *out)
{
    const enum nib_tensor_id id = matrix_of(piece->id);
    uint64_t key = mix(mix(seed + 0x9e3779b97f4a7c15u) + ((uint64_t)id << 32 | piece->layer));
    if (piece->dense == NIB_DENSE_MXFP8 && nib_image_scales_of(id) != NIB_T_COUNT) {
        const bool scales = piece->id != id;
        const uint64_t block = scales ? 1 : NIB_MX_BLOCK;
        NIB_MUST(piece->begin_byte % block == 0 && piece->bytes % block == 0);
        fill_mxfp8(key, spread_of(shape, id), piece->begin_byte / block, piece->bytes / block, scales, out);
        return;
    }
    switch (piece->id) {
    case NIB_T_UP_BLOCKS:
    case NIB_T_DOWN_BLOCKS:
        NIB_MUST(piece->begin_byte % 8 == 0);
        fill_blocks(key, piece->begin_byte, piece->bytes, out);
        return;
    case NIB_T_UP_SCALES:
    case NIB_T_DOWN_SCALES:
        NIB_MUST(piece->begin_byte % 8 == 0);
        fill_scales(key, scale_code(piece->id == NIB_T_UP_SCALES ? shape->hidden : shape->intermediate),
                    piece->begin_byte, piece->bytes, out);
        return;
    default:
        NIB_MUST(piece->begin_byte % 2 == 0 && piece->bytes % 2 == 0);
        fill_bf16(key, spread_of(shape, piece->id), piece->begin_byte / 2, piece->bytes / 2, out);
    }
}

/* The chunk being made. */
struct job {
    const struct nib_shape *shape;
    uint64_t seed;
    uint32_t index;
    struct nib_synth_piece part;
    uint8_t *out;
};

static void *make_chunk(void *arg)
{
    const struct job *job = arg;
    nib_synth_fill(job->shape, job->seed, &job->part, job->out);
    return NULL;
}

/* The chunk after *job; false after the last. */
static bool next_chunk(struct job *job, const struct nib_synth_piece *pieces, uint32_t count)
{
    const struct nib_synth_piece *piece = &pieces[job->index];
    uint64_t done = job->part.begin_byte + job->part.bytes - piece->begin_byte;
    if (done == piece->bytes) {
        if (++job->index == count)
            return false;
        piece++;
        done = 0;
    }
    job->part = *piece;
    job->part.begin_byte += done;
    job->part.bytes = nib_min_u64(piece->bytes - done, NIB_MAX_IO_CHUNK_BYTES);
    return true;
}

enum nib_err
nib_synth_stream(const struct nib_shape *shape, uint64_t seed, const struct nib_synth_piece *pieces, uint32_t count,
                 enum nib_err (*sink)(void *arg, uint32_t index, const uint8_t *bytes, size_t n, struct nib_msg *msg),
                 void *arg, struct nib_msg *msg)
{
    uint8_t *buffers = malloc(2 * (size_t)NIB_MAX_IO_CHUNK_BYTES);
    if (!buffers)
        return nib_fail(msg, NIB_E_NOMEM, "no memory for two chunks of %u bytes", NIB_MAX_IO_CHUNK_BYTES);
    struct job now = {.shape = shape, .seed = seed, .part = pieces[0], .out = buffers};
    now.part.bytes = 0;
    bool more = next_chunk(&now, pieces, count);
    if (more)
        make_chunk(&now);
    enum nib_err err = NIB_OK;
    while (more && !err) {
        struct job ahead = now;
        pthread_t thread;
        bool threaded = false;
        ahead.out = now.out == buffers ? buffers + NIB_MAX_IO_CHUNK_BYTES : buffers;
        more = next_chunk(&ahead, pieces, count);
        if (more)
            threaded = ahead.part.bytes > 65536 && pthread_create(&thread, NULL, make_chunk, &ahead) == 0;
        err = sink(arg, now.index, now.out, now.part.bytes, msg);
        if (threaded)
            NIB_MUST(pthread_join(thread, NULL) == 0);
        else if (more)
            make_chunk(&ahead); /* small, or no thread to be had */
        now = ahead;
    }
    free(buffers);
    return err;
}

static enum nib_err make_up(void *arg, const struct nib_tensor *t, uint64_t at, void *buf, size_t n,
                            struct nib_msg *msg)
{
    const bool mxfp8 = t->dtype == NIB_DTYPE_E4M3 || t->id >= NIB_T_QKV_SCALES;
    const struct nib_synth_piece piece = {.id = t->id,
                                          .layer = t->layer,
                                          .dense = mxfp8 ? NIB_DENSE_MXFP8 : NIB_DENSE_BF16,
                                          .begin_byte = at,
                                          .bytes = n};
    (void)msg;
    nib_synth_fill(arg, 1, &piece, buf);
    return NIB_OK;
}

struct nib_gpu_source nib_synth_source(const struct nib_shape *shape)
{
    struct nib_gpu_source source = {.read = make_up};
    const void *arg = shape;
    memcpy(&source.arg, &arg, sizeof arg); /* read only */
    return source;
}
