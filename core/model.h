/* core/model.h: the constant table of model shapes.
 *
 * Nothing reads a dimension from a file: a checkpoint or image is compared with one of these rows, and every
 * size in the product is computed from the row. Pure data; any thread. Source of the figures: the gpt-oss
 * model card (OpenAI, arXiv:2508.10925) and config.json of the published checkpoints. */
#ifndef NIB_CORE_MODEL_H
#define NIB_CORE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NIB_HEAD_DIM  64 /* elements of one attention head, all shapes */
#define NIB_GQA_GROUP 8  /* query heads a KV head, all shapes */
#define NIB_MX_BLOCK  32 /* elements that share one E8M0 scale */

struct nib_shape {
    const char *name;
    uint32_t layers;
    uint32_t experts;      /* E */
    uint32_t experts_used; /* top-k of the router */
    uint32_t hidden;       /* H, multiple of 32 */
    uint32_t intermediate; /* I, multiple of 32 */
    uint32_t heads;        /* query heads, 8 x kv_heads */
    uint32_t kv_heads;
    uint32_t vocab;        /* V: rows of the embedding; valid ids 0..V-1 */
    uint32_t special_base; /* id of <|startoftext|>; the other specials keep o200k_harmony's distances from it */
    uint32_t window;       /* sliding window of even layers, tokens */
    uint32_t ctx_max;      /* tokens */
};

/* The form in which an image keeps its dense matrices: QKV, attention output and LM head. The router, the embedding, norms and
 * biases are bf16 in both. */
enum nib_dense {
    NIB_DENSE_BF16,
    NIB_DENSE_MXFP8, /* E4M3 with one E8M0 scale a block of 32 inputs (core/mx.h) */
    NIB_DENSE_COUNT
};

/* The form in which KV pages keep keys and values; a page's layout is the row's own (arch/kernels.h). */
enum nib_kv_form {
    NIB_KV_BF16, /* arch/ref: fp32 */
    NIB_KV_FP8,  /* E4M3 with one scale a token, KV head and 32 elements: nib_kv8_encode (core/mx.h) */
    NIB_KV_FORMS
};

/* YaRN constants of every shape (arXiv:2309.00071; config.json "rope_scaling"). */
#define NIB_ROPE_THETA     150000.0
#define NIB_ROPE_FACTOR    32.0
#define NIB_ROPE_ORIG_CTX  4096.0
#define NIB_ROPE_BETA_FAST 32.0
#define NIB_ROPE_BETA_SLOW 1.0
#define NIB_RMS_EPS        1e-5f
#define NIB_SWIGLU_ALPHA   1.702f
#define NIB_SWIGLU_LIMIT   7.0f

/* Distances from special_base, as in o200k_harmony (199998 + n). */
enum nib_special {
    NIB_TOK_STARTOFTEXT = 0,
    NIB_TOK_ENDOFTEXT = 1,
    NIB_TOK_RETURN = 4,
    NIB_TOK_CONSTRAIN = 5,
    NIB_TOK_CHANNEL = 7,
    NIB_TOK_START = 8,
    NIB_TOK_END = 9,
    NIB_TOK_MESSAGE = 10,
    NIB_TOK_CALL = 14,
    NIB_SPECIAL_SPAN = 16 /* first distance that has no name: reserved from here to V-1 */
};

/* All shapes, for listing; *ret_count rows. */
const struct nib_shape *nib_shapes(size_t *ret_count);

/* The row of that name, or NULL. */
const struct nib_shape *nib_shape_find(const char *name);

/* The row with exactly these dimensions (name and special_base not compared), or NULL. */
const struct nib_shape *nib_shape_match(const struct nib_shape *dims);

/* "bf16", "mxfp8" */
const char *nib_dense_name(enum nib_dense dense);

/* The form of that name; false when there is none. */
bool nib_dense_find(const char *name, enum nib_dense *ret_dense);

/* "bf16", "fp8" */
const char *nib_kv_form_name(enum nib_kv_form kv);

/* Even layers slide a window; odd layers attend to the whole context. */
static inline bool nib_layer_windowed(uint32_t layer)
{
    return layer % 2 == 0;
}

static inline uint32_t nib_q_dim(const struct nib_shape *s)
{
    return s->heads * NIB_HEAD_DIM;
}

static inline uint32_t nib_kv_dim(const struct nib_shape *s)
{
    return s->kv_heads * NIB_HEAD_DIM;
}

/* Rows of the fused QKV matrix. */
static inline uint32_t nib_qkv_dim(const struct nib_shape *s)
{
    return nib_q_dim(s) + 2 * nib_kv_dim(s);
}

#endif
