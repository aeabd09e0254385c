/* tools/pack_write.c: owns the buffers through which tensors stream from the source to the image.
 * Limits: CHUNK elements at a time, and the scales of one expert tensor (66 MB for 120b). One
 * thread. Fails with one sentence that names the tensor. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/mx.h"
#include "tools/pack.h"

#define CHUNK           ((size_t)1 << 20) /* elements of a dense chunk; a multiple of every block */
#define CODE_BYTES      ((size_t)NIB_MX_BLOCK / 2)
#define GGUF_BLOCK      (1 + CODE_BYTES) /* scale, codes */
#define MXFP8_SCALE_MAX 134 /* of a dense matrix: beyond it the GPU rows' arithmetic overflows (arch/cuda/layout.h) */

struct stream {
    struct nib_pack *p;
    struct nib_image_writer *w;
    void (*progress)(void *arg, uint64_t bytes);
    void *arg;
    struct nib_msg *msg;
    uint8_t *in;        /* CHUNK of the widest type */
    uint16_t *dense[2]; /* CHUNK of bf16 */
    uint8_t *out;       /* 4 * CHUNK bytes */
    uint8_t *scales;    /* of the MX tensor written last */
    uint64_t scales_used, scales_cap;
};

static enum nib_err put(struct stream *s, const void *bytes, size_t n)
{
    if (s->p->stop && *s->p->stop)
        return nib_fail(s->msg, NIB_E_STATE, "stopped by signal %d; nothing was left behind", (int)*s->p->stop);
    enum nib_err err = nib_image_write(s->w, bytes, n, s->msg);
    if (!err && s->progress)
        s->progress(s->arg, n);
    return err;
}

static uint16_t load16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static float load_f32(const uint8_t *at)
{
    return nib_f32_from_bits((uint32_t)load16(at) | (uint32_t)load16(at + 2) << 16);
}

/* Rounds n values to bf16 and counts those that were not bf16 before. */
static uint64_t round_values(const float *x, size_t n, uint16_t *out)
{
    uint64_t inexact = 0;
    for (size_t i = 0; i < n; i++) {
        out[i] = nib_bf16_encode(x[i]);
        inexact += nib_f32_bits(x[i]) << 16 != 0;
    }
    return inexact;
}

/* n elements (whole blocks) of a dense type to bf16. */
static void convert(struct stream *s, enum nib_weight_type type, const uint8_t *in, size_t n, uint16_t *out)
{
    float x[NIB_Q8_0_BLOCK] = {0};
    for (size_t at = 0; at < n; at += NIB_Q8_0_BLOCK) {
        size_t step = n - at < NIB_Q8_0_BLOCK ? n - at : NIB_Q8_0_BLOCK;
        if (type == NIB_W_Q8_0) {
            const uint8_t *block = in + at / NIB_Q8_0_BLOCK * 34;
            nib_q8_0_decode(load16(block), (const int8_t *)block + 2, x);
        }
        for (size_t i = 0; type == NIB_W_F16 && i < step; i++)
            x[i] = nib_fp16_decode(load16(in + 2 * (at + i)));
        for (size_t i = 0; type == NIB_W_F32 && i < step; i++)
            x[i] = load_f32(in + 4 * (at + i));
        s->p->values_inexact += round_values(x, step, out + at);
    }
    s->p->values_converted += n;
}

static bool all_finite(const uint16_t *x, size_t n)
{
    unsigned bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (x[i] & 0x7f80u) == 0x7f80u;
    return bad == 0;
}

/* Elements [at, at + n) of a dense source tensor as bf16. */
static enum nib_err read_dense(struct stream *s, const struct nib_weight *t, uint64_t at, size_t n, uint16_t *out)
{
    uint64_t per = nib_weight_block(t->type), bytes = nib_weight_block_bytes(t->type);
    void *to = t->type == NIB_W_BF16 ? (void *)out : (void *)s->in;
    enum nib_err err = nib_weights_read(s->p->weights, t, at / per * bytes, to, (size_t)(n / per * bytes), s->msg);
    if (err)
        return err;
    if (t->type != NIB_W_BF16)
        convert(s, t->type, s->in, n, out);
    if (!all_finite(out, n))
        return nib_fail(s->msg, NIB_E_FORMAT,
                        "tensor %s has a value among elements %" PRIu64 " to %" PRIu64
                        " that is not a finite bf16 number",
                        t->name, at, at + n - 1);
    return NIB_OK;
}

static uint64_t elements(const struct nib_weight *t)
{
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static enum nib_err write_rows(struct stream *s, const struct nib_weight *t)
{
    uint64_t total = elements(t);
    for (uint64_t at = 0; at < total; at += CHUNK) {
        size_t n = (size_t)(total - at < CHUNK ? total - at : CHUNK);
        enum nib_err err = read_dense(s, t, at, n, s->dense[0]);
        if (!err)
            err = put(s, s->dense[0], n * 2);
        if (err)
            return err;
    }
    return NIB_OK;
}

/* n elements, whole blocks, to codes in s->out and scales behind those of the tensor so far. */
static enum nib_err encode_mxfp8(struct stream *s, const struct nib_weight *t, const uint16_t *in, size_t n)
{
    NIB_MUST(n / NIB_MX_BLOCK <= s->scales_cap - s->scales_used);
    for (size_t at = 0; at < n; at += NIB_MX_BLOCK) {
        float x[NIB_MX_BLOCK], back[NIB_MX_BLOCK];
        uint8_t *scale = &s->scales[s->scales_used++];
        for (size_t i = 0; i < NIB_MX_BLOCK; i++)
            x[i] = nib_bf16_decode(in[at + i]);
        nib_mxfp8_encode(x, scale, s->out + at);
        if (*scale > MXFP8_SCALE_MAX)
            return nib_fail(s->msg, NIB_E_FORMAT,
                            "tensor %s has a value of 65536 or more, which is too large for dense weights in MXFP8",
                            t->name);
        nib_mxfp8_decode(*scale, s->out + at, back);
        for (size_t i = 0; i < NIB_MX_BLOCK; i++) {
            s->p->mxfp8_error += ((double)x[i] - (double)back[i]) * ((double)x[i] - (double)back[i]);
            s->p->mxfp8_norm += (double)x[i] * (double)x[i];
        }
    }
    s->p->mxfp8_values += n;
    return NIB_OK;
}

/* The codes of a dense matrix in MXFP8; its scales are kept. */
static enum nib_err write_rows_mxfp8(struct stream *s, const struct nib_weight *t)
{
    uint64_t total = elements(t);
    for (uint64_t at = 0; at < total; at += CHUNK) {
        size_t n = (size_t)(total - at < CHUNK ? total - at : CHUNK);
        enum nib_err err = read_dense(s, t, at, n, s->dense[0]);
        if (!err)
            err = encode_mxfp8(s, t, s->dense[0], n);
        if (!err)
            err = put(s, s->out, n);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err write_pair(struct stream *s, const struct nib_weight *const parts[2])
{
    uint64_t total = elements(parts[0]);
    for (uint64_t at = 0; at < total; at += CHUNK) {
        size_t n = (size_t)(total - at < CHUNK ? total - at : CHUNK);
        enum nib_err err = read_dense(s, parts[0], at, n, s->dense[0]);
        if (!err)
            err = read_dense(s, parts[1], at, n, s->dense[1]);
        for (size_t i = 0; !err && i < n; i++) {
            memcpy(s->out + 4 * i, &s->dense[0][i], 2);
            memcpy(s->out + 4 * i + 2, &s->dense[1][i], 2);
        }
        if (!err)
            err = put(s, s->out, 4 * n);
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err check_scales(struct stream *s, const struct nib_weight *t, const uint8_t *scales, size_t n)
{
    if (!memchr(scales, 255, n))
        return NIB_OK;
    return nib_fail(s->msg, NIB_E_FORMAT, "tensor %s has a scale of 255, which means NaN", t->name);
}

static enum nib_err write_bytes(struct stream *s, const struct nib_weight *t, bool are_scales)
{
    for (uint64_t at = 0; at < t->bytes; at += 4 * CHUNK) {
        size_t n = (size_t)(t->bytes - at < 4 * CHUNK ? t->bytes - at : 4 * CHUNK);
        enum nib_err err = nib_weights_read(s->p->weights, t, at, s->out, n, s->msg);
        if (!err && are_scales)
            err = check_scales(s, t, s->out, n);
        if (!err)
            err = put(s, s->out, n);
        if (err)
            return err;
    }
    return NIB_OK;
}

/* One GGUF block (low nibbles elements 0..15, high 16..31) to a checkpoint's (low even, high odd). */
static void repack(const uint8_t *in, uint8_t *out)
{
    for (size_t i = 0; i < CODE_BYTES / 2; i++) {
        out[i] = (uint8_t)((in[2 * i] & 15) | (in[2 * i + 1] & 15) << 4);
        out[i + CODE_BYTES / 2] = (uint8_t)(in[2 * i] >> 4 | (in[2 * i + 1] & 0xF0));
    }
}

/* One or two MXFP4 tensors [E, R, K]: codes go out row by row, the parts' rows in turn; scales are
 * kept in the same order. */
static enum nib_err write_blocks(struct stream *s, const struct nib_pack_origin *origin)
{
    uint64_t row_blocks = origin->parts[0]->dims[2] / NIB_MX_BLOCK;
    uint64_t rows = origin->parts[0]->dims[0] * origin->parts[0]->dims[1];
    uint64_t chunk_rows = CHUNK / (row_blocks * GGUF_BLOCK);
    NIB_MUST(chunk_rows > 0 && rows * row_blocks * origin->count <= s->scales_cap);
    s->scales_used = 0;
    for (uint64_t row = 0; row < rows; row += chunk_rows) {
        uint64_t n = rows - row < chunk_rows ? rows - row : chunk_rows;
        size_t in_bytes = (size_t)(n * row_blocks * GGUF_BLOCK);
        enum nib_err err = NIB_OK;
        for (uint32_t part = 0; !err && part < origin->count; part++)
            err = nib_weights_read(s->p->weights, origin->parts[part], row * row_blocks * GGUF_BLOCK,
                                   s->in + part * in_bytes, in_bytes, s->msg);
        if (err)
            return err;
        uint8_t *out = s->out, *scale = s->scales + s->scales_used;
        for (uint64_t r = 0; r < n; r++)
            for (uint32_t part = 0; part < origin->count; part++) {
                const uint8_t *in = s->in + part * in_bytes + r * row_blocks * GGUF_BLOCK;
                for (uint64_t b = 0; b < row_blocks; b++, in += GGUF_BLOCK, out += CODE_BYTES) {
                    *scale++ = in[0];
                    repack(in + 1, out);
                }
            }
        size_t new_scales = (size_t)(n * row_blocks * origin->count);
        err = check_scales(s, origin->parts[0], s->scales + s->scales_used, new_scales);
        s->scales_used += new_scales;
        if (!err)
            err = put(s, s->out, (size_t)(out - s->out));
        if (err)
            return err;
    }
    return NIB_OK;
}

static enum nib_err write_tensor(struct stream *s, const struct nib_tensor *t, const struct nib_pack_origin *origin)
{
    enum nib_err err = NIB_OK;
    switch (origin->how) {
    case NIB_PACK_ROWS:
        if (t->dtype == NIB_DTYPE_E4M3)
            s->scales_used = 0;
        for (uint32_t i = 0; !err && i < origin->count; i++)
            err = (t->dtype == NIB_DTYPE_E4M3 ? write_rows_mxfp8 : write_rows)(s, origin->parts[i]);
        return err;
    case NIB_PACK_PAIR:
        return write_pair(s, origin->parts);
    case NIB_PACK_BYTES:
        return write_bytes(s, origin->parts[0], t->id == NIB_T_UP_SCALES || t->id == NIB_T_DOWN_SCALES);
    case NIB_PACK_BLOCKS:
    case NIB_PACK_PAIR_BLOCKS:
        return write_blocks(s, origin);
    case NIB_PACK_SCALES:
        NIB_MUST(s->scales_used == t->bytes);
        return put(s, s->scales, (size_t)s->scales_used);
    }
    NIB_MUST(!"a way to make a tensor");
}

static enum nib_err write_all(struct stream *s)
{
    enum nib_err err = NIB_OK;
    for (uint32_t i = 0; !err && i < s->w->image.tensor_count; i++) {
        const struct nib_tensor *t = &s->w->image.tensors[i];
        if (t->id == NIB_T_TOKENIZER)
            err = put(s, s->p->tokenizer, s->p->tokenizer_bytes);
        else if (t->id == NIB_T_GENERATION)
            err = put(s, s->p->generation, s->p->generation_bytes);
        else
            err = write_tensor(s, t, &s->p->origins[i]);
    }
    return err ? err : nib_weights_check_unchanged(s->p->weights, s->msg);
}

/* Bytes of the largest tensor of scales. */
static uint64_t most_scales(const struct nib_image *image)
{
    uint64_t most = 0;
    for (uint32_t i = 0; i < image->tensor_count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        const bool scales = t->id == NIB_T_UP_SCALES || t->id == NIB_T_DOWN_SCALES || t->id >= NIB_T_QKV_SCALES;
        if (scales && t->bytes > most)
            most = t->bytes;
    }
    NIB_MUST(most > 0);
    return most;
}

enum nib_err nib_pack_write(struct nib_pack *p, struct nib_image_writer *w, void (*progress)(void *arg, uint64_t bytes),
                            void *arg, struct nib_msg *msg)
{
    struct stream s = {.p = p, .w = w, .progress = progress, .arg = arg, .msg = msg};
    s.scales_cap = most_scales(&w->image);
    s.in = malloc(4 * CHUNK);
    s.out = malloc(4 * CHUNK);
    s.dense[0] = malloc(2 * CHUNK);
    s.dense[1] = malloc(2 * CHUNK);
    s.scales = malloc(s.scales_cap);
    enum nib_err err;
    if (s.in && s.out && s.dense[0] && s.dense[1] && s.scales)
        err = write_all(&s);
    else
        err = nib_fail(msg, NIB_E_NOMEM, "no memory for the buffers");
    free(s.in);
    free(s.out);
    free(s.dense[0]);
    free(s.dense[1]);
    free(s.scales);
    return err;
}
