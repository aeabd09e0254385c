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
};

#define LAYER_TENSORS (NIB_T_DOWN_BIAS - NIB_T_ATTN_NORM + 1)
#define TAIL_TENSORS  (NIB_T_COUNT - NIB_T_FINAL_NORM)

_Static_assert(1 + NIB_MAX_LAYERS * LAYER_TENSORS + TAIL_TENSORS <= NIB_MAX_TENSORS, "tensor cap");

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
    case DIM_BLOCK_BYTES:
        return NIB_MX_BLOCK / 2;
    case DIM_TOKENIZER:
        return tokenizer_bytes;
    case DIM_GENERATION:
        return generation_bytes;
    }
    NIB_MUST(!"dimension of the table");
}

static uint32_t index_of(const struct nib_shape *s, enum nib_tensor_id id, uint32_t layer)
{
    if (id == NIB_T_EMBED)
        return 0;
    if (id <= NIB_T_DOWN_BIAS)
        return 1 + layer * LAYER_TENSORS + (uint32_t)(id - NIB_T_ATTN_NORM);
    return 1 + s->layers * LAYER_TENSORS + (uint32_t)(id - NIB_T_FINAL_NORM);
}

uint32_t nib_image_tensor_count(const struct nib_shape *shape)
{
    return 1 + shape->layers * LAYER_TENSORS + TAIL_TENSORS;
}

void nib_image_tensor_at(const struct nib_shape *s, uint64_t tokenizer_bytes, uint64_t generation_bytes, uint32_t index,
                         struct nib_tensor *ret_tensor)
{
    struct nib_tensor t = {0};
    uint32_t layers_end = 1 + s->layers * LAYER_TENSORS;
    NIB_MUST(index < nib_image_tensor_count(s));
    if (index == 0) {
        t.id = NIB_T_EMBED;
    } else if (index < layers_end) {
        t.id = (enum nib_tensor_id)(NIB_T_ATTN_NORM + (index - 1) % LAYER_TENSORS);
        t.layer = (index - 1) / LAYER_TENSORS;
    } else {
        t.id = (enum nib_tensor_id)(NIB_T_FINAL_NORM + (index - layers_end));
    }
    const struct row *row = &rows[t.id];
    if (index > 0 && index < layers_end)
        (void)snprintf(t.name, sizeof t.name, "layers.%u.%s", t.layer, row->name);
    else
        (void)snprintf(t.name, sizeof t.name, "%s", row->name);
    t.dtype = row->dtype;
    t.bytes = nib_dtype_bytes(row->dtype);
    for (uint32_t i = 0; i < NIB_MAX_TENSOR_DIMS && row->dims[i] != DIM_NONE; i++) {
        t.dims[i] = dim_size(s, row->dims[i], tokenizer_bytes, generation_bytes);
        t.bytes *= t.dims[i]; /* below 2^64 by the limits of a shape and the caps of the blobs */
        t.dim_count = i + 1;
    }
    *ret_tensor = t;
}

const struct nib_tensor *nib_image_tensor(const struct nib_image *image, enum nib_tensor_id id, uint32_t layer)
{
    bool in_layer = id >= NIB_T_ATTN_NORM && id <= NIB_T_DOWN_BIAS;
    NIB_MUST((unsigned)id < NIB_T_COUNT && layer < (in_layer ? image->shape->layers : 1));
    return &image->tensors[index_of(image->shape, id, layer)];
}

const char *nib_dtype_name(enum nib_dtype dtype)
{
    return dtype == NIB_DTYPE_BF16 ? "BF16" : "U8";
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

enum nib_err nib_image_layout(const struct nib_shape *shape, const char *source, uint64_t tokenizer_bytes,
                              uint64_t generation_bytes, struct nib_image *ret_image, struct nib_msg *msg)
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
    (void)snprintf(ret_image->source, sizeof ret_image->source, "%s", source);
    ret_image->tensor_count = nib_image_tensor_count(shape);
    for (uint32_t i = 0; i < ret_image->tensor_count; i++)
        nib_image_tensor_at(shape, tokenizer_bytes, generation_bytes, i, &ret_image->tensors[i]);
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
