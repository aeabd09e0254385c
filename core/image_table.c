/* core/image_table.c: owns the table of an image's tensors and the layout it makes for a shape.
 * Every size comes from core/model.h; the two blobs' sizes are capped. Any thread. Fails only on a
 * blob size or a source text that is not allowed. */
#include <stdio.h>
#include <string.h>

#include "core/arith.h"
#include "core/image_header.h"

/* A dimension by name; its size follows from the shape. */
enum dim {
    DIM_NONE,
    DIM_V,
    DIM_H,
    DIM_QKV,
    DIM_Q,
    DIM_HEADS,
    DIM_E,
    DIM_2I,
    DIM_H_BLOCKS,
    DIM_I_BLOCKS,
    DIM_Q_BLOCKS,
    DIM_BLOCK_BYTES,
    DIM_TOKENIZER,
    DIM_GENERATION,
};

struct row {
    const char *name;
    enum nib_dtype dtype;
    enum dim dims[NIB_MAX_TENSOR_DIMS];
};

static const struct row rows[NIB_T_COUNT] = {
    [NIB_T_EMBED] = {"embed", NIB_DTYPE_BF16, {DIM_V, DIM_H}},
    [NIB_T_ATTN_NORM] = {"attn_norm", NIB_DTYPE_BF16, {DIM_H}},
    [NIB_T_QKV_WEIGHT] = {"qkv.weight", NIB_DTYPE_BF16, {DIM_QKV, DIM_H}},
    [NIB_T_QKV_BIAS] = {"qkv.bias", NIB_DTYPE_BF16, {DIM_QKV}},
    [NIB_T_SINKS] = {"sinks", NIB_DTYPE_BF16, {DIM_HEADS}},
    [NIB_T_OUT_WEIGHT] = {"out.weight", NIB_DTYPE_BF16, {DIM_H, DIM_Q}},
    [NIB_T_OUT_BIAS] = {"out.bias", NIB_DTYPE_BF16, {DIM_H}},
    [NIB_T_MLP_NORM] = {"mlp_norm", NIB_DTYPE_BF16, {DIM_H}},
    [NIB_T_ROUTER_WEIGHT] = {"router.weight", NIB_DTYPE_BF16, {DIM_E, DIM_H}},
    [NIB_T_ROUTER_BIAS] = {"router.bias", NIB_DTYPE_BF16, {DIM_E}},
    [NIB_T_UP_BLOCKS] = {"up.blocks", NIB_DTYPE_U8, {DIM_E, DIM_2I, DIM_H_BLOCKS, DIM_BLOCK_BYTES}},
    [NIB_T_UP_SCALES] = {"up.scales", NIB_DTYPE_U8, {DIM_E, DIM_2I, DIM_H_BLOCKS}},
    [NIB_T_UP_BIAS] = {"up.bias", NIB_DTYPE_BF16, {DIM_E, DIM_2I}},
    [NIB_T_DOWN_BLOCKS] = {"down.blocks", NIB_DTYPE_U8, {DIM_E, DIM_H, DIM_I_BLOCKS, DIM_BLOCK_BYTES}},
    [NIB_T_DOWN_SCALES] = {"down.scales", NIB_DTYPE_U8, {DIM_E, DIM_H, DIM_I_BLOCKS}},
    [NIB_T_DOWN_BIAS] = {"down.bias", NIB_DTYPE_BF16, {DIM_E, DIM_H}},
    [NIB_T_FINAL_NORM] = {"final_norm", NIB_DTYPE_BF16, {DIM_H}},
    [NIB_T_LM_HEAD] = {"lm_head", NIB_DTYPE_BF16, {DIM_V, DIM_H}},
    [NIB_T_TOKENIZER] = {"tokenizer", NIB_DTYPE_U8, {DIM_TOKENIZER}},
    [NIB_T_GENERATION] = {"generation", NIB_DTYPE_U8, {DIM_GENERATION}},
    [NIB_T_QKV_SCALES] = {"qkv.scales", NIB_DTYPE_U8, {DIM_QKV, DIM_H_BLOCKS}},
    [NIB_T_OUT_SCALES] = {"out.scales", NIB_DTYPE_U8, {DIM_H, DIM_Q_BLOCKS}},
    [NIB_T_LM_HEAD_SCALES] = {"lm_head.scales", NIB_DTYPE_U8, {DIM_V, DIM_H_BLOCKS}},
};

/* In file order; what only some images have is left out by `has`. */
static const enum nib_tensor_id layer_ids[] = {
    NIB_T_ATTN_NORM,  NIB_T_QKV_WEIGHT, NIB_T_QKV_SCALES,  NIB_T_QKV_BIAS,      NIB_T_SINKS,       NIB_T_OUT_WEIGHT,
    NIB_T_OUT_SCALES, NIB_T_OUT_BIAS,   NIB_T_MLP_NORM,    NIB_T_ROUTER_WEIGHT, NIB_T_ROUTER_BIAS, NIB_T_UP_BLOCKS,
    NIB_T_UP_SCALES,  NIB_T_UP_BIAS,    NIB_T_DOWN_BLOCKS, NIB_T_DOWN_SCALES,   NIB_T_DOWN_BIAS,
};
static const enum nib_tensor_id tail_ids[] = {NIB_T_FINAL_NORM, NIB_T_LM_HEAD, NIB_T_LM_HEAD_SCALES, NIB_T_TOKENIZER,
                                              NIB_T_GENERATION};
enum { LAYER_IDS = sizeof layer_ids / sizeof layer_ids[0], TAIL_IDS = sizeof tail_ids / sizeof tail_ids[0] };

_Static_assert(1 + NIB_MAX_LAYERS * LAYER_IDS + TAIL_IDS <= NIB_MAX_TENSORS, "tensor cap");

enum nib_tensor_id nib_image_scales_of(enum nib_tensor_id id)
{
    return id == NIB_T_QKV_WEIGHT   ? NIB_T_QKV_SCALES
           : id == NIB_T_OUT_WEIGHT ? NIB_T_OUT_SCALES
           : id == NIB_T_LM_HEAD    ? NIB_T_LM_HEAD_SCALES
                                    : NIB_T_COUNT;
}

static bool is_dense(enum nib_tensor_id id)
{
    return nib_image_scales_of(id) != NIB_T_COUNT;
}

static bool has(enum nib_dense dense, enum nib_tensor_id id)
{
    return id < NIB_T_QKV_SCALES || dense == NIB_DENSE_MXFP8;
}

/* Place of id among those of ids[0..n) that the image has, or how many it has when id is not there. */
static uint32_t place_of(const enum nib_tensor_id *ids, uint32_t n, enum nib_dense dense, enum nib_tensor_id id)
{
    uint32_t place = 0;
    for (uint32_t i = 0; i < n && ids[i] != id; i++)
        place += has(dense, ids[i]);
    return place;
}

/* The id at that place. */
static enum nib_tensor_id id_at(const enum nib_tensor_id *ids, enum nib_dense dense, uint32_t place)
{
    while (!has(dense, *ids) || place-- > 0)
        ids++;
    return *ids;
}

static uint32_t layer_count(enum nib_dense dense)
{
    return place_of(layer_ids, LAYER_IDS, dense, NIB_T_COUNT);
}

static bool in_layer(enum nib_tensor_id id)
{
    return (id >= NIB_T_ATTN_NORM && id <= NIB_T_DOWN_BIAS) || id == NIB_T_QKV_SCALES || id == NIB_T_OUT_SCALES;
}

static uint64_t dim_size(const struct nib_shape *s, enum dim dim, uint64_t tokenizer_bytes, uint64_t generation_bytes)
{
    switch (dim) {
    case DIM_NONE:
        return 1;
    case DIM_V:
        return s->vocab;
    case DIM_H:
        return s->hidden;
    case DIM_QKV:
        return nib_qkv_dim(s);
    case DIM_Q:
        return nib_q_dim(s);
    case DIM_HEADS:
        return s->heads;
    case DIM_E:
        return s->experts;
    case DIM_2I:
        return 2 * (uint64_t)s->intermediate;
    case DIM_H_BLOCKS:
        return s->hidden / NIB_MX_BLOCK;
    case DIM_I_BLOCKS:
        return s->intermediate / NIB_MX_BLOCK;
    case DIM_Q_BLOCKS:
        return nib_q_dim(s) / NIB_MX_BLOCK;
    case DIM_BLOCK_BYTES:
        return NIB_MX_BLOCK / 2;
    case DIM_TOKENIZER:
        return tokenizer_bytes;
    case DIM_GENERATION:
        return generation_bytes;
    }
    NIB_MUST(!"dimension of the table");
}

static uint32_t index_of(const struct nib_image *image, enum nib_tensor_id id, uint32_t layer)
{
    const enum nib_dense dense = image->dense;
    if (id == NIB_T_EMBED)
        return 0;
    if (in_layer(id))
        return 1 + layer * layer_count(dense) + place_of(layer_ids, LAYER_IDS, dense, id);
    return 1 + image->shape->layers * layer_count(dense) + place_of(tail_ids, TAIL_IDS, dense, id);
}

uint32_t nib_image_tensor_count(const struct nib_shape *shape, enum nib_dense dense)
{
    return 1 + shape->layers * layer_count(dense) + place_of(tail_ids, TAIL_IDS, dense, NIB_T_COUNT);
}

void nib_image_tensor_at(const struct nib_shape *s, enum nib_dense dense, uint64_t tokenizer_bytes,
                         uint64_t generation_bytes, uint32_t index, struct nib_tensor *ret_tensor)
{
    struct nib_tensor t = {0};
    const uint32_t of_layer = layer_count(dense), layers_end = 1 + s->layers * of_layer;
    NIB_MUST(index < nib_image_tensor_count(s, dense));
    if (index == 0) {
        t.id = NIB_T_EMBED;
    } else if (index < layers_end) {
        t.id = id_at(layer_ids, dense, (index - 1) % of_layer);
        t.layer = (index - 1) / of_layer;
    } else {
        t.id = id_at(tail_ids, dense, index - layers_end);
    }
    const struct row *row = &rows[t.id];
    if (index > 0 && index < layers_end)
        (void)snprintf(t.name, sizeof t.name, "layers.%u.%s", t.layer, row->name);
    else
        (void)snprintf(t.name, sizeof t.name, "%s", row->name);
    t.dtype = dense == NIB_DENSE_MXFP8 && is_dense(t.id) ? NIB_DTYPE_E4M3 : row->dtype;
    t.bytes = nib_dtype_bytes(t.dtype);
    for (uint32_t i = 0; i < NIB_MAX_TENSOR_DIMS && row->dims[i] != DIM_NONE; i++) {
        t.dims[i] = dim_size(s, row->dims[i], tokenizer_bytes, generation_bytes);
        t.bytes *= t.dims[i]; /* below 2^64 by the limits of a shape and the caps of the blobs */
        t.dim_count = i + 1;
    }
    *ret_tensor = t;
}

const struct nib_tensor *nib_image_tensor(const struct nib_image *image, enum nib_tensor_id id, uint32_t layer)
{
    NIB_MUST((unsigned)id < NIB_T_COUNT && has(image->dense, id) && layer < (in_layer(id) ? image->shape->layers : 1));
    return &image->tensors[index_of(image, id, layer)];
}

const char *nib_dtype_name(enum nib_dtype dtype)
{
    return dtype == NIB_DTYPE_BF16 ? "BF16" : dtype == NIB_DTYPE_E4M3 ? "F8_E4M3" : "U8";
}

uint64_t nib_dtype_bytes(enum nib_dtype dtype)
{
    return dtype == NIB_DTYPE_BF16 ? 2 : 1;
}

bool nib_image_source_allowed(const char *source, size_t n)
{
    if (n >= NIB_MAX_SOURCE_BYTES)
        return false;
    for (size_t i = 0; i < n; i++)
        if (source[i] < 0x20 || source[i] > 0x7e || source[i] == '"' || source[i] == '\\')
            return false;
    return true;
}

enum nib_err nib_image_layout(const struct nib_shape *shape, enum nib_dense dense, const char *source,
                              uint64_t tokenizer_bytes, uint64_t generation_bytes, struct nib_image *ret_image,
                              struct nib_msg *msg)
{
    if (!nib_image_source_allowed(source, strlen(source)))
        return nib_fail(msg, NIB_E_ARG,
                        "the image's source text may have up to %d printable ASCII characters, "
                        "without \" and \\",
                        NIB_MAX_SOURCE_BYTES - 1);
    if (tokenizer_bytes == 0 || tokenizer_bytes > NIB_MAX_TOKENIZER_BYTES)
        return nib_fail(msg, NIB_E_ARG, "the tokenizer has %llu bytes; allowed are 1 to %u",
                        (unsigned long long)tokenizer_bytes, NIB_MAX_TOKENIZER_BYTES);
    if (generation_bytes == 0 || generation_bytes > NIB_MAX_GENERATION_BYTES)
        return nib_fail(msg, NIB_E_ARG, "the generation defaults have %llu bytes; allowed are 1 to %u",
                        (unsigned long long)generation_bytes, NIB_MAX_GENERATION_BYTES);
    memset(ret_image, 0, sizeof *ret_image);
    ret_image->shape = shape;
    ret_image->dense = dense;
    (void)snprintf(ret_image->source, sizeof ret_image->source, "%s", source);
    ret_image->tensor_count = nib_image_tensor_count(shape, dense);
    for (uint32_t i = 0; i < ret_image->tensor_count; i++)
        nib_image_tensor_at(shape, dense, tokenizer_bytes, generation_bytes, i, &ret_image->tensors[i]);
    ret_image->header_bytes = nib_image_header_print(ret_image, NULL);
    NIB_MUST(ret_image->header_bytes <= NIB_MAX_HEADER_BYTES);
    uint64_t at = ret_image->header_bytes;
    for (uint32_t i = 0; i < ret_image->tensor_count; i++) {
        ret_image->tensors[i].offset = at;
        at += nib_round_up(ret_image->tensors[i].bytes, NIB_IMAGE_ALIGN);
    }
    ret_image->file_bytes = at;
    return NIB_OK;
}
