/* tools/pack_resolve.c: owns the names that the three layouts give the tensors. Sources: the
 * published Hugging Face checkpoints and transformers' GptOss; OpenAI's PyTorch reference; the
 * gpt-oss architecture of llama.cpp (query and key rows are not permuted there). One thread. Fails
 * with one sentence that names the tensor. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/pack.h"

struct row {
    enum nib_pack_how how;
    const char *names[NIB_PACK_PARTS_MAX]; /* without the layer's prefix */
};

static const char *const layer_prefix[NIB_PACK_KIND_COUNT] = {
    [NIB_PACK_HF] = "model.layers.", [NIB_PACK_OPENAI] = "block.", [NIB_PACK_GGUF] = "blk."};

static const struct row rows[NIB_PACK_KIND_COUNT][NIB_T_TOKENIZER] = {
    [NIB_PACK_HF] =
        {
            [NIB_T_EMBED] = {NIB_PACK_ROWS, {"model.embed_tokens.weight"}},
            [NIB_T_ATTN_NORM] = {NIB_PACK_ROWS, {"input_layernorm.weight"}},
            [NIB_T_QKV_WEIGHT] = {NIB_PACK_ROWS,
                                  {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"}},
            [NIB_T_QKV_BIAS] = {NIB_PACK_ROWS,
                                {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"}},
            [NIB_T_SINKS] = {NIB_PACK_ROWS, {"self_attn.sinks"}},
            [NIB_T_OUT_WEIGHT] = {NIB_PACK_ROWS, {"self_attn.o_proj.weight"}},
            [NIB_T_OUT_BIAS] = {NIB_PACK_ROWS, {"self_attn.o_proj.bias"}},
            [NIB_T_MLP_NORM] = {NIB_PACK_ROWS, {"post_attention_layernorm.weight"}},
            [NIB_T_ROUTER_WEIGHT] = {NIB_PACK_ROWS, {"mlp.router.weight"}},
            [NIB_T_ROUTER_BIAS] = {NIB_PACK_ROWS, {"mlp.router.bias"}},
            [NIB_T_UP_BLOCKS] = {NIB_PACK_BYTES, {"mlp.experts.gate_up_proj_blocks"}},
            [NIB_T_UP_SCALES] = {NIB_PACK_BYTES, {"mlp.experts.gate_up_proj_scales"}},
            [NIB_T_UP_BIAS] = {NIB_PACK_ROWS, {"mlp.experts.gate_up_proj_bias"}},
            [NIB_T_DOWN_BLOCKS] = {NIB_PACK_BYTES, {"mlp.experts.down_proj_blocks"}},
            [NIB_T_DOWN_SCALES] = {NIB_PACK_BYTES, {"mlp.experts.down_proj_scales"}},
            [NIB_T_DOWN_BIAS] = {NIB_PACK_ROWS, {"mlp.experts.down_proj_bias"}},
            [NIB_T_FINAL_NORM] = {NIB_PACK_ROWS, {"model.norm.weight"}},
            [NIB_T_LM_HEAD] = {NIB_PACK_ROWS, {"lm_head.weight"}},
        },
    [NIB_PACK_OPENAI] =
        {
            [NIB_T_EMBED] = {NIB_PACK_ROWS, {"embedding.weight"}},
            [NIB_T_ATTN_NORM] = {NIB_PACK_ROWS, {"attn.norm.scale"}},
            [NIB_T_QKV_WEIGHT] = {NIB_PACK_ROWS, {"attn.qkv.weight"}},
            [NIB_T_QKV_BIAS] = {NIB_PACK_ROWS, {"attn.qkv.bias"}},
            [NIB_T_SINKS] = {NIB_PACK_ROWS, {"attn.sinks"}},
            [NIB_T_OUT_WEIGHT] = {NIB_PACK_ROWS, {"attn.out.weight"}},
            [NIB_T_OUT_BIAS] = {NIB_PACK_ROWS, {"attn.out.bias"}},
            [NIB_T_MLP_NORM] = {NIB_PACK_ROWS, {"mlp.norm.scale"}},
            [NIB_T_ROUTER_WEIGHT] = {NIB_PACK_ROWS, {"mlp.gate.weight"}},
            [NIB_T_ROUTER_BIAS] = {NIB_PACK_ROWS, {"mlp.gate.bias"}},
            [NIB_T_UP_BLOCKS] = {NIB_PACK_BYTES, {"mlp.mlp1_weight.blocks"}},
            [NIB_T_UP_SCALES] = {NIB_PACK_BYTES, {"mlp.mlp1_weight.scales"}},
            [NIB_T_UP_BIAS] = {NIB_PACK_ROWS, {"mlp.mlp1_bias"}},
            [NIB_T_DOWN_BLOCKS] = {NIB_PACK_BYTES, {"mlp.mlp2_weight.blocks"}},
            [NIB_T_DOWN_SCALES] = {NIB_PACK_BYTES, {"mlp.mlp2_weight.scales"}},
            [NIB_T_DOWN_BIAS] = {NIB_PACK_ROWS, {"mlp.mlp2_bias"}},
            [NIB_T_FINAL_NORM] = {NIB_PACK_ROWS, {"norm.scale"}},
            [NIB_T_LM_HEAD] = {NIB_PACK_ROWS, {"unembedding.weight"}},
        },
    [NIB_PACK_GGUF] =
        {
            [NIB_T_EMBED] = {NIB_PACK_ROWS, {"token_embd.weight"}},
            [NIB_T_ATTN_NORM] = {NIB_PACK_ROWS, {"attn_norm.weight"}},
            [NIB_T_QKV_WEIGHT] = {NIB_PACK_ROWS, {"attn_q.weight", "attn_k.weight", "attn_v.weight"}},
            [NIB_T_QKV_BIAS] = {NIB_PACK_ROWS, {"attn_q.bias", "attn_k.bias", "attn_v.bias"}},
            [NIB_T_SINKS] = {NIB_PACK_ROWS, {"attn_sinks.weight"}},
            [NIB_T_OUT_WEIGHT] = {NIB_PACK_ROWS, {"attn_output.weight"}},
            [NIB_T_OUT_BIAS] = {NIB_PACK_ROWS, {"attn_output.bias"}},
            [NIB_T_MLP_NORM] = {NIB_PACK_ROWS, {"post_attention_norm.weight"}},
            [NIB_T_ROUTER_WEIGHT] = {NIB_PACK_ROWS, {"ffn_gate_inp.weight"}},
            [NIB_T_ROUTER_BIAS] = {NIB_PACK_ROWS, {"ffn_gate_inp.bias"}},
            [NIB_T_UP_BLOCKS] = {NIB_PACK_PAIR_BLOCKS, {"ffn_gate_exps.weight", "ffn_up_exps.weight"}},
            [NIB_T_UP_SCALES] = {NIB_PACK_SCALES, {NULL}},
            [NIB_T_UP_BIAS] = {NIB_PACK_PAIR, {"ffn_gate_exps.bias", "ffn_up_exps.bias"}},
            [NIB_T_DOWN_BLOCKS] = {NIB_PACK_BLOCKS, {"ffn_down_exps.weight"}},
            [NIB_T_DOWN_SCALES] = {NIB_PACK_SCALES, {NULL}},
            [NIB_T_DOWN_BIAS] = {NIB_PACK_ROWS, {"ffn_down_exps.bias"}},
            [NIB_T_FINAL_NORM] = {NIB_PACK_ROWS, {"output_norm.weight"}},
            [NIB_T_LM_HEAD] = {NIB_PACK_ROWS, {"output.weight"}},
        },
};

static bool in_layer(enum nib_tensor_id id)
{
    return id >= NIB_T_ATTN_NORM && id <= NIB_T_DOWN_BIAS;
}

/* The shape that part i of a tensor must have; returns the number of dimensions. */
static uint32_t part_dims(const struct nib_pack *p, const struct nib_tensor *t, const struct nib_pack_origin *origin,
                          uint32_t i, uint64_t dims[NIB_MAX_TENSOR_DIMS])
{
    uint32_t count = t->dim_count;
    memcpy(dims, t->dims, sizeof t->dims);
    if (origin->count == 3) /* query, key, value */
        dims[0] = i == 0 ? nib_q_dim(p->shape) : nib_kv_dim(p->shape);
    if (origin->how == NIB_PACK_PAIR || origin->how == NIB_PACK_PAIR_BLOCKS) /* gate, up */
        dims[1] /= 2;
    if (origin->how == NIB_PACK_BLOCKS || origin->how == NIB_PACK_PAIR_BLOCKS) {
        count = 3; /* blocks and their bytes are one dimension of elements */
        dims[2] *= NIB_MX_BLOCK;
    }
    return count;
}

static bool type_fits(enum nib_pack_how how, enum nib_weight_type type)
{
    switch (how) {
    case NIB_PACK_BYTES:
        return type == NIB_W_U8;
    case NIB_PACK_BLOCKS:
    case NIB_PACK_PAIR_BLOCKS:
        return type == NIB_W_MXFP4;
    default:
        return type == NIB_W_BF16 || type == NIB_W_F32 || type == NIB_W_F16 || type == NIB_W_Q8_0;
    }
}

static const char *types_text(enum nib_pack_how how)
{
    switch (how) {
    case NIB_PACK_BYTES:
        return "U8";
    case NIB_PACK_BLOCKS:
    case NIB_PACK_PAIR_BLOCKS:
        return "MXFP4";
    default:
        return "BF16, F32, F16 or Q8_0";
    }
}

static void print_dims(char *out, size_t cap, const uint64_t *dims, uint32_t count)
{
    size_t used = 0;
    for (uint32_t i = 0; i < count && used < cap; i++)
        used += (size_t)snprintf(out + used, cap - used, "%s%" PRIu64, i ? ", " : "", dims[i]);
}

static enum nib_err check_part(const struct nib_pack *p, const struct nib_tensor *t,
                               const struct nib_pack_origin *origin, uint32_t i, struct nib_msg *msg)
{
    const struct nib_weight *part = origin->parts[i];
    uint64_t dims[NIB_MAX_TENSOR_DIMS];
    uint32_t count = part_dims(p, t, origin, i, dims);
    if (!type_fits(origin->how, part->type))
        return nib_fail(msg, NIB_E_FORMAT, "tensor %s has type %s, but must be %s", part->name,
                        nib_weight_type_name(part->type), types_text(origin->how));
    if (count == part->dim_count && memcmp(dims, part->dims, count * sizeof dims[0]) == 0)
        return NIB_OK;
    char has[96], needs[96];
    print_dims(has, sizeof has, part->dims, part->dim_count);
    print_dims(needs, sizeof needs, dims, count);
    return nib_fail(msg, NIB_E_FORMAT, "tensor %s has shape [%s], but shape %s needs [%s]", part->name, has,
                    p->shape->name, needs);
}

static enum nib_err resolve_tensor(struct nib_pack *p, const struct nib_tensor *t, struct nib_pack_origin *origin,
                                   bool *used, struct nib_msg *msg)
{
    static const struct row scales = {NIB_PACK_SCALES, {NULL}};
    const struct row *row = t->id < NIB_T_TOKENIZER ? &rows[p->kind][t->id] : &scales;
    *origin = (struct nib_pack_origin){.how = row->how};
    for (; origin->count < NIB_PACK_PARTS_MAX && row->names[origin->count]; origin->count++) {
        char name[NIB_MAX_TENSOR_NAME];
        if (in_layer(t->id))
            snprintf(name, sizeof name, "%s%" PRIu32 ".%s", layer_prefix[p->kind], t->layer, row->names[origin->count]);
        else
            snprintf(name, sizeof name, "%s", row->names[origin->count]);
        const struct nib_weight *part = nib_weights_find(p->weights, name);
        if (!part)
            return nib_fail(msg, NIB_E_FORMAT, "tensor %s is missing from the source", name);
        origin->parts[origin->count] = part;
        used[part - p->weights->list] = true;
    }
    for (uint32_t i = 0; i < origin->count; i++) {
        enum nib_err err = check_part(p, t, origin, i, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

enum nib_err nib_pack_resolve(struct nib_pack *p, const struct nib_image *image, struct nib_msg *msg)
{
    bool used[NIB_MAX_SRC_TENSORS] = {false};
    for (uint32_t i = 0; i < image->tensor_count; i++) {
        const struct nib_tensor *t = &image->tensors[i];
        if (t->id == NIB_T_TOKENIZER || t->id == NIB_T_GENERATION)
            continue;
        enum nib_err err = resolve_tensor(p, t, &p->origins[i], used, msg);
        if (err)
            return err;
    }
    for (uint32_t i = 0; i < p->weights->count; i++)
        if (!used[i])
            return nib_fail(msg, NIB_E_FORMAT,
                            "the source has a tensor %s, which a gpt-oss model of shape %s does "
                            "not have",
                            p->weights->list[i].name, p->shape->name);
    return NIB_OK;
}
