/* core/plan.h: the memory plan, a pure function of (profile, row facts, model shape, limits).
 *
 * The plan is the allocation: one arena a space, carved by this list. Nothing is summed by hand elsewhere, and what is
 * not in the list does not exist after boot. `nibble plan` prints the same list for machines that are not here.
 * Any thread; allocates nothing; the result is plain data. */
#ifndef NIB_CORE_PLAN_H
#define NIB_CORE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/engine.h"
#include "core/err.h"
#include "core/limits.h"
#include "core/model.h"
#include "core/profile.h"
#include "core/sched.h"

#define NIB_PLAN_QUEUE 64 /* requests that wait, unless asked for otherwise */

/* Of a GPU's memory, what its driver takes by itself: context, kernels, graphs. A limit on the memory includes it. */
#define NIB_PLAN_DRIVER_BYTES (768ull << 20)

enum nib_space {
    NIB_SPACE_DEVICE, /* GPU memory; unused on a CPU row */
    NIB_SPACE_PINNED, /* page-locked host memory the GPU reads; unused on a CPU row */
    NIB_SPACE_HOST,
    NIB_SPACE_COUNT
};

/* What a region holds. Matrices are in the row's layout. R = step_rows_max rows, A = R x experts_used assignments. */
enum nib_region_kind {
    /* weights, whole life */
    NIB_R_EMBED,   /* [V][H] bf16, canonical (rows are looked up) */
    NIB_R_LM_HEAD, /* [V][H] */
    NIB_R_SMALL,   /* norms, biases, sinks of all layers, bf16, canonical */
    NIB_R_QKV,     /* all layers [qkv_dim][H] */
    NIB_R_OUT,     /* all layers [H][q_dim] */
    NIB_R_ROUTER,  /* all layers [E][H] */
    NIB_R_EXPERTS, /* one region a layer: E x (up [2I][H], down [H][I]); may be spilled to pinned memory */
    /* KV cache, whole life */
    NIB_R_KV_FULL,   /* pages of the full-attention layers: [kv_pages][full layers] pages of one layer */
    NIB_R_KV_WINDOW, /* rings of the window layers: [slots][window layers][ring_pages] pages of one layer */
    /* activations, scratch with a lifetime inside the step; where a GPU row differs, its form follows the semicolon */
    NIB_R_X,      /* residual stream [R][H] fp32 */
    NIB_R_NORMED, /* [R][H] fp32; none */
    NIB_R_ACTS,   /* prepared inputs of a product: the largest of [R][H], [R][q_dim], [A][I]; [R][max(H, q_dim)] bf16 */
    NIB_R_QKV_OUT,   /* [R][qkv_dim] fp32; [R][q_dim] bf16 */
    NIB_R_KV_NEW,    /* GPU rows with KV pages in FP8: keys and values on their way to them, [R][2 kv_dim] bf16 */
    NIB_R_ATTN,      /* [R][q_dim] fp32; partial results of decode rows */
    NIB_R_ROUTE,     /* router logits [R][E] fp32, choices and weights, grouping by expert; the row's own form */
    NIB_R_UP,        /* [A][2I] fp32; none */
    NIB_R_GATED,     /* [A][I] fp32; bf16 */
    NIB_R_DOWN,      /* [A][H] fp32 */
    NIB_R_LOGITS,    /* [want_rows_max][V] fp32 */
    NIB_R_SAMPLE,    /* sampler scratch, one a thread that samples; none */
    NIB_R_THREAD,    /* matrix product and attention scratch, one a thread; scratch of all kernels */
    NIB_R_ROPE,      /* cos, sin [R][32] fp32 each */
    NIB_R_STAGING,   /* GPU rows: where weights land on the device before they are repacked; while loading only */
    NIB_R_READ_RING, /* GPU rows: pinned buffers that readers fill from the image; slot for slot as the staging */
    NIB_R_STEP,      /* GPU rows: machine block, step, page tables and sampling of the slots, on the device */
    NIB_R_MAILBOX,   /* GPU rows: steps and results under way, pinned */
    /* control, host, whole life */
    NIB_R_SAMPLER_STATE, /* token counts a slot, banned ids */
    NIB_R_ENGINE,        /* the engine's own structs and lists */
    NIB_R_SCHED,         /* scheduler, page pool, page tables, prompts */
    NIB_R_TOKENIZER,     /* vocabulary tables and encode scratch */
    NIB_R_FRONT,         /* connections, JSON pools, rings, streams */
    NIB_R_KIND_COUNT
};

/* Phases of a step; a scratch region lives from its first to its last phase and shares bytes with others outside it. */
enum nib_phase {
    NIB_PHASE_LOAD, /* boot: weights on their way; nothing of a step lives then */
    NIB_PHASE_QKV,
    NIB_PHASE_ATTN,
    NIB_PHASE_OUT,
    NIB_PHASE_ROUTE,
    NIB_PHASE_UP,
    NIB_PHASE_DOWN,
    NIB_PHASE_HEAD,
    NIB_PHASE_COUNT
};

struct nib_region {
    enum nib_region_kind kind;
    enum nib_space space;
    int32_t layer;       /* of NIB_R_EXPERTS; -1 = all layers */
    uint8_t phase_first; /* enum nib_phase; a whole-life region spans all phases */
    uint8_t phase_last;
    uint64_t bytes;
    uint64_t align;  /* power of two */
    uint64_t offset; /* in its space's arena */
};

/* What a capability-table row says of its memory, as pure functions: see arch/kernels.h for their meaning. */
struct nib_row_facts {
    const char *name;
    bool gpu;
    uint32_t step_rows_max; /* default rows of a step */
    uint32_t slots;         /* default sequences at once */
    uint32_t steps_ahead;
    uint64_t (*dense_bytes)(uint32_t n, uint32_t k);
    uint64_t (*mxfp8_bytes)(uint32_t n, uint32_t k); /* NULL: the row has no kernels for NIB_DENSE_MXFP8 */
    uint64_t (*mx_bytes)(uint32_t n, uint32_t k);
    uint64_t (*head_bytes)(uint32_t n, uint32_t k); /* of the head's matrix in bf16 */
    uint64_t (*acts_bytes)(uint32_t k);
    uint64_t (*gemm_scratch_bytes)(uint32_t k);
    uint64_t (*kv_page_bytes)(uint32_t kv_heads);
    uint64_t (*kv8_page_bytes)(uint32_t kv_heads); /* NULL: the row has no kernels for NIB_KV_FP8 */
    uint64_t (*attn_scratch_bytes)(uint32_t ctx_tokens);
    /* GPU rows only: see arch/gpu_abi.h */
    uint64_t (*route_bytes)(uint32_t rows, uint32_t experts);
    uint64_t (*scratch_bytes)(const struct nib_shape *shape, uint32_t slots, uint32_t rows);
    uint32_t (*splits_max)(uint32_t ctx_tokens);
    uint64_t (*step_bytes)(uint32_t slots, uint32_t ctx_tokens);
    uint64_t (*mailbox_bytes)(uint32_t slots, uint32_t ctx_tokens);
};

struct nib_plan_request {
    const struct nib_profile *profile;
    const struct nib_row_facts *row;
    const struct nib_shape *shape;
    enum nib_dense dense;   /* of the image */
    enum nib_kv_form kv;    /* of the KV pages */
    uint32_t ctx_tokens;    /* longest sequence; 0 = the largest that fits, up to the model's */
    uint32_t slots;         /* sequences at once; 0 = the row's default */
    uint32_t step_rows_max; /* 0 = the row's default */
    uint32_t threads;       /* CPU rows: worker threads, >= 1 */
    uint64_t
        memory_limit_bytes;    /* plan as if the memory were this small, the driver's part of a GPU's included; 0 = the
                                    profile's */
    uint32_t queue_max;        /* requests that wait; 0 = NIB_PLAN_QUEUE */
    uint32_t prefill_rows_max; /* prompt rows of a step that also decodes; 0 = all, on a CPU half of step_rows_max */
    bool prefix_off;           /* every prompt is computed from its start: see core/prefix.h */
    bool prefix_shared;        /* one user's prompts may serve another's */
    uint32_t draft_tokens;     /* guessed tokens of one sequence in a step; 0 = none */
    uint64_t tokenizer_bytes;  /* storage of the image's vocabulary and its scratch */
    uint64_t front_bytes;      /* storage of the front thread */
};

struct nib_plan {
    const struct nib_shape *shape;
    enum nib_dense dense;
    enum nib_kv_form kv;
    const struct nib_row_facts *row;
    struct nib_engine_dims dims;
    struct nib_sched_config sched; /* what nib_sched_init gets; its storage is NIB_R_SCHED */
    uint32_t threads;
    uint32_t ring_pages;     /* pages of a slot's ring in a window layer */
    uint32_t spilled_layers; /* layers whose experts live in pinned memory: the last ones */
    bool embed_spilled;
    uint32_t regions_count;
    struct nib_region regions[NIB_MAX_REGIONS];
    uint64_t arena_bytes[NIB_SPACE_COUNT];
    uint64_t budget_bytes[NIB_SPACE_COUNT]; /* what the profile and the limit allow; 0 = space not used */
    uint64_t driver_bytes;                  /* GPU rows: of the device's memory, kept for the driver and others */
    uint64_t weight_bytes;                  /* of all weights, wherever they are */
    uint64_t kv_bytes;
    uint64_t decode_bytes;  /* read for one token at batch 1, empty context; of a head in bf16 a GPU row reads 13/16 */
    double decode_tokens_s; /* roof at batch 1, empty context */
    double batch_decode_tokens_s; /* roof with every slot decoding, empty context */
    double prefill_tokens_s;      /* roof of the arithmetic */
};

/* Makes the plan. NIB_E_ARG: a request value is out of range. NIB_E_LIMIT: it does not fit; the sentence holds the two
 * numbers that disagree. NIB_E_UNSUPPORTED: the row has no kernels for the image's dense matrices, or for the KV pages.
 * *ret_plan is untouched on failure. */
enum nib_err nib_plan_make(const struct nib_plan_request *request, struct nib_plan *ret_plan,
                           struct nib_msg *msg) NIB_CHECKED;

/* Bytes of a dense matrix [n][k] of an image of that form, in the row's layout. */
uint64_t nib_plan_dense_bytes(const struct nib_row_facts *row, enum nib_dense dense, uint32_t n, uint32_t k);

/* The same of the head's matrix. */
uint64_t nib_plan_head_bytes(const struct nib_row_facts *row, enum nib_dense dense, uint32_t n, uint32_t k);

/* Bytes of one layer's page of keys and values, scales included. */
uint64_t nib_plan_page_bytes(const struct nib_row_facts *row, enum nib_kv_form kv, uint32_t kv_heads);

/* The region of that kind (and layer, for NIB_R_EXPERTS; else -1), or NULL when the plan has none. */
const struct nib_region *nib_plan_region(const struct nib_plan *plan, enum nib_region_kind kind, int32_t layer);

/* Start of a region in an arena that begins at `base` (one base a space). */
void *nib_plan_carve(const struct nib_plan *plan, enum nib_region_kind kind, int32_t layer,
                     void *const base[NIB_SPACE_COUNT]);

const char *nib_region_name(enum nib_region_kind kind);
const char *nib_space_name(enum nib_space space);

#endif
