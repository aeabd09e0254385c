/* arch/gpu_abi.c: owns the names of the kernels, what a machine takes from its model, and the sizes of what host and device
 * exchange. Any thread. Cannot fail. */
#include "arch/gpu_abi.h"

#include "arch/rope.h"
#include "core/arith.h"
#include "core/err.h"

static const char *const symbols[NIB_GPU_OP_COUNT] = {
    [NIB_GPU_REPACK_DENSE] = "nib_gpu_repack_dense",
    [NIB_GPU_REPACK_MX] = "nib_gpu_repack_mx",
    [NIB_GPU_REPACK_MXFP8] = "nib_gpu_repack_mxfp8",
    [NIB_GPU_REPACK_HEAD] = "nib_gpu_repack_head",
    [NIB_GPU_SUM] = "nib_gpu_sum",
    [NIB_GPU_BEGIN] = "nib_gpu_begin",
    [NIB_GPU_EMBED] = "nib_gpu_embed",
    [NIB_GPU_QKV] = "nib_gpu_qkv",
    [NIB_GPU_QKV_BATCH] = "nib_gpu_qkv_batch",
    [NIB_GPU_QKV_PROMPT] = "nib_gpu_qkv_prompt",
    [NIB_GPU_KV_FP8] = "nib_gpu_kv_fp8",
    [NIB_GPU_ATTN_FP8] = "nib_gpu_attn_fp8",
    [NIB_GPU_ATTN_BATCH_FP8] = "nib_gpu_attn_batch_fp8",
    [NIB_GPU_ATTN_PROMPT_FP8] = "nib_gpu_attn_prompt_fp8",
    [NIB_GPU_ATTN] = "nib_gpu_attn",
    [NIB_GPU_ATTN_BATCH] = "nib_gpu_attn_batch",
    [NIB_GPU_ATTN_PROMPT] = "nib_gpu_attn_prompt",
    [NIB_GPU_OUT] = "nib_gpu_out",
    [NIB_GPU_OUT_BATCH] = "nib_gpu_out_batch",
    [NIB_GPU_OUT_PROMPT] = "nib_gpu_out_prompt",
    [NIB_GPU_ROUTE] = "nib_gpu_route",
    [NIB_GPU_UP] = "nib_gpu_up",
    [NIB_GPU_UP_BATCH] = "nib_gpu_up_batch",
    [NIB_GPU_UP_SHORT] = "nib_gpu_up_short",
    [NIB_GPU_UP_PROMPT] = "nib_gpu_up_prompt",
    [NIB_GPU_DOWN] = "nib_gpu_down",
    [NIB_GPU_DOWN_BATCH] = "nib_gpu_down_batch",
    [NIB_GPU_DOWN_SHORT] = "nib_gpu_down_short",
    [NIB_GPU_DOWN_PROMPT] = "nib_gpu_down_prompt",
    [NIB_GPU_COMBINE] = "nib_gpu_combine",
    [NIB_GPU_TOKEN] = "nib_gpu_token",
    [NIB_GPU_HEAD] = "nib_gpu_head",
    [NIB_GPU_HEAD_BATCH] = "nib_gpu_head_batch",
    [NIB_GPU_SCAN] = "nib_gpu_scan",
    [NIB_GPU_SAMPLE] = "nib_gpu_sample",
    [NIB_GPU_QKV_MXFP8] = "nib_gpu_qkv_mxfp8",
    [NIB_GPU_QKV_BATCH_MXFP8] = "nib_gpu_qkv_batch_mxfp8",
    [NIB_GPU_QKV_PROMPT_MXFP8] = "nib_gpu_qkv_prompt_mxfp8",
    [NIB_GPU_OUT_MXFP8] = "nib_gpu_out_mxfp8",
    [NIB_GPU_OUT_BATCH_MXFP8] = "nib_gpu_out_batch_mxfp8",
    [NIB_GPU_OUT_PROMPT_MXFP8] = "nib_gpu_out_prompt_mxfp8",
    [NIB_GPU_TOKEN_MXFP8] = "nib_gpu_token_mxfp8",
    [NIB_GPU_HEAD_MXFP8] = "nib_gpu_head_mxfp8",
    [NIB_GPU_HEAD_BATCH_MXFP8] = "nib_gpu_head_batch_mxfp8",
};

/* In the order of NIB_GPU_QKV_MXFP8 and on. */
static const enum nib_gpu_op plain[] = {NIB_GPU_QKV,   NIB_GPU_QKV_BATCH, NIB_GPU_QKV_PROMPT,
                                        NIB_GPU_OUT,   NIB_GPU_OUT_BATCH, NIB_GPU_OUT_PROMPT,
                                        NIB_GPU_TOKEN, NIB_GPU_HEAD,      NIB_GPU_HEAD_BATCH};
_Static_assert(sizeof plain / sizeof plain[0] == NIB_GPU_OP_COUNT - NIB_GPU_QKV_MXFP8, "ops of MXFP8");

enum nib_gpu_op nib_gpu_op_in(enum nib_gpu_op op, enum nib_dense dense)
{
    for (int i = 0; dense == NIB_DENSE_MXFP8 && NIB_GPU_QKV_MXFP8 + i < NIB_GPU_OP_COUNT; i++)
        if (plain[i] == op)
            return (enum nib_gpu_op)(NIB_GPU_QKV_MXFP8 + i);
    return op;
}

enum nib_gpu_op nib_gpu_op_plain(enum nib_gpu_op op)
{
    return op >= NIB_GPU_QKV_MXFP8 && op < NIB_GPU_OP_COUNT ? plain[op - NIB_GPU_QKV_MXFP8] : op;
}

enum nib_gpu_op nib_gpu_op_few(enum nib_gpu_op op)
{
    switch (op) {
    case NIB_GPU_QKV_BATCH:
    case NIB_GPU_ATTN_BATCH_FP8:
    case NIB_GPU_ATTN_BATCH:
    case NIB_GPU_OUT_BATCH:
    case NIB_GPU_UP_BATCH:
    case NIB_GPU_DOWN_BATCH:
    case NIB_GPU_HEAD_BATCH:
    case NIB_GPU_QKV_BATCH_MXFP8:
    case NIB_GPU_OUT_BATCH_MXFP8:
    case NIB_GPU_HEAD_BATCH_MXFP8:
        return (enum nib_gpu_op)(op - 1); /* they follow each other */
    case NIB_GPU_UP_SHORT:
    case NIB_GPU_DOWN_SHORT:
        return (enum nib_gpu_op)(op - 2);
    default:
        return op;
    }
}

const char *nib_gpu_op_symbol(enum nib_gpu_op op)
{
    NIB_MUST((unsigned)op < NIB_GPU_OP_COUNT);
    return symbols[op];
}

void nib_gpu_machine_model(struct nib_gpu_machine *m, const struct nib_shape *shape)
{
    m->layers = shape->layers;
    m->experts = shape->experts;
    m->experts_used = shape->experts_used;
    m->hidden = shape->hidden;
    m->intermediate = shape->intermediate;
    m->heads = shape->heads;
    m->kv_heads = shape->kv_heads;
    m->vocab = shape->vocab;
    m->window = shape->window;
    nib_rope_frequencies(m->rope_freq);
    m->rope_factor = nib_rope_factor();
}

static uint64_t piece(uint64_t bytes)
{
    return nib_round_up(bytes, NIB_GPU_PIECE_ALIGN);
}

static uint64_t tables_bytes(uint32_t slots, uint32_t ctx_tokens)
{
    return (uint64_t)slots * nib_div_up(ctx_tokens, NIB_KV_PAGE_TOKENS) * sizeof(uint32_t);
}

uint64_t nib_gpu_step_bytes(uint32_t slots, uint32_t ctx_tokens)
{
    return piece(sizeof(struct nib_gpu_machine)) + piece(sizeof(struct nib_gpu_step)) +
           piece(slots * sizeof(struct nib_sampling)) + piece(slots * sizeof(uint32_t)) +
           piece(tables_bytes(slots, ctx_tokens)) + piece(sizeof(struct nib_gpu_repack)) + piece(sizeof(uint64_t));
}

uint64_t nib_gpu_mailbox_bytes(uint32_t slots, uint32_t ctx_tokens)
{
    return piece(NIB_GPU_MAILBOX * sizeof(struct nib_gpu_step)) +
           piece(NIB_GPU_MAILBOX * sizeof(struct nib_gpu_result)) + piece(tables_bytes(slots, ctx_tokens)) +
           piece(slots * sizeof(struct nib_sampling));
}
