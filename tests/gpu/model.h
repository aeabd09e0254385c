/* tests/gpu/model.h: random weights on both sides, a random KV cache, and steps over them. */
#ifndef NIB_TESTS_GPU_MODEL_H
#define NIB_TESTS_GPU_MODEL_H

#include "tests/gpu/rig.h"

/* Canonical weights of one layer; both layers of a test machine use the same matrices and other vectors. When the rig's form is
 * MXFP8, qkv, out and lm_head hold what such matrices decode to. */
struct model_layer {
    uint16_t *attn_norm, *qkv, *qkv_bias, *sinks, *out, *out_bias, *mlp_norm, *router, *router_bias, *up_bias,
        *down_bias;
    uint8_t *up, *down; /* [E] of blocks [n][k/32][16], then scales [n][k/32] */
};

struct model {
    const struct nib_shape *shape;
    struct model_layer layer;
    uint16_t *embed, *lm_head, *final_norm;
    uint64_t up_bytes, down_bytes; /* of one expert, canonical */
    uint64_t seed;
    uint32_t next_page; /* of the KV pool */
};

/* Makes weights on the host, and the machine; what is then changed of the weights is what model_load sends. */
void model_make(struct rig *rig, struct model *model, const struct nib_shape *shape, uint32_t slots,
                uint32_t ctx_tokens, uint32_t rows, uint32_t kv_pages, uint64_t seed);
/* Repacks the weights on the device and fills the KV cache of two layers (window, full) with random numbers. */
void model_load(struct rig *rig, struct model *model);
/* Both, for a shape by name. */
void model_open(struct rig *rig, struct model *model, const char *shape, uint32_t slots, uint32_t ctx_tokens,
                uint32_t rows, uint32_t kv_pages, uint64_t seed);
void model_close(struct model *model);

double model_uniform(uint64_t *seed);
float model_normal(uint64_t *seed);

/* One sequence's rows in a step: `count` prompt rows from pos on, or one decode row. */
struct model_run {
    uint32_t slot, pos, count;
    bool decode, fresh;
};
/* Writes the next mailbox place; prompt tokens are a function of (slot, pos). Every run's last row wants logits. The bucket
 * has the step's own counts. */
struct rig_bucket model_send(struct rig *rig, const struct model *model, const struct model_run *runs,
                             uint32_t runs_count);
/* Gives every slot pages for `ctx_tokens` tokens, in random order. */
void model_tables(struct rig *rig, struct model *model, const uint32_t *ctx_tokens, uint32_t slots);
/* The same, as many tokens for each. */
void model_tables_even(struct rig *rig, struct model *model, uint32_t ctx_tokens, uint32_t slots);
uint32_t model_token(const struct model *model, uint32_t slot, uint32_t pos);

#endif
