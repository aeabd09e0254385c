/* arch/cpu_state.h: the CPU engine's own struct, private to arch/cpu*.c. It lies at the start of
 * region NIB_R_ENGINE.
 *
 * A step's rows are kept in the engine's order: decode rows first, then prefill rows, each in the
 * step's order; so that every matrix product is one call for each kind. R = step_rows_max, A = R x
 * experts_used. */
#ifndef NIB_ARCH_CPU_STATE_H
#define NIB_ARCH_CPU_STATE_H

#include "arch/cpu.h"
#include "arch/pool.h"
#include "arch/rope.h"
#include "core/arith.h"

/* One layer's weights; bf16 vectors are canonical, matrices in the row's layout. */
struct nib_cpu_layer {
    uint16_t *attn_norm;   /* [H] */
    uint16_t *qkv_bias;    /* [qkv_dim] */
    uint16_t *sinks;       /* [heads] */
    uint16_t *out_bias;    /* [H] */
    uint16_t *mlp_norm;    /* [H] */
    uint16_t *router_bias; /* [E] */
    uint16_t *up_bias;     /* [E][2I] */
    uint16_t *down_bias;   /* [E][H] */
    uint8_t *qkv;          /* [qkv_dim][H] */
    uint8_t *out;          /* [H][q_dim] */
    uint8_t *router;       /* [E][H] */
    uint8_t *experts;      /* [E] of (up [2I][H], down [H][I]) */
};

/* Activations of a step; region kinds of core/plan.h. */
struct nib_cpu_acts {
    float *x;       /* [R][H] residual stream */
    float *normed;  /* [R][H] */
    uint8_t *input; /* prepared inputs of the matrix product at hand */
    float *qkv;     /* [R][qkv_dim] */
    float *attn;    /* [R][q_dim] */
    float *up;      /* [A][2I], by place */
    float *gated;   /* [A][I], by place */
    float *down;    /* [A][H], by place */
    float *logits;  /* [min(W, R)][V], W rows may want them */
    float *cos;     /* [R][32] */
    float *sin;     /* [R][32] */
};

/* Which row goes to which expert. A place is an index into the assignments sorted by (expert, row).
 */
struct nib_cpu_route {
    float *logits;                       /* [R][E] */
    uint32_t *expert;                    /* [R][experts_used], best first */
    float *weight;                       /* [R][experts_used] */
    uint32_t *place;                     /* [R][experts_used] */
    uint32_t *row;                       /* [A] row of each place */
    uint32_t begin[NIB_MAX_EXPERTS + 1]; /* first place of each expert */
    uint32_t prefill[NIB_MAX_EXPERTS];   /* first place of its prefill rows */
    uint32_t active[NIB_MAX_EXPERTS];    /* [active_count] experts that have rows */
    uint32_t active_count;
};

/* Rows of one slot whose positions follow each other, attended together. */
struct nib_cpu_span {
    uint32_t row, rows; /* in the engine's order */
};
#define NIB_CPU_SPAN_ROWS 32 /* enough to reuse a page's keys, few enough to share out */

#define NIB_CPU_RING_PAGES (NIB_MAX_STEP_ROWS / NIB_KV_PAGE_TOKENS + 8) /* a window of 256 and the largest step */

struct nib_cpu {
    struct nib_engine base; /* first: the engine contract */
    const struct nib_kernels *k;
    const struct nib_plan *plan;
    uint64_t up_bytes, down_bytes; /* of one expert */
    uint16_t *embed;               /* [V][H] */
    uint8_t *lm_head;
    uint16_t *final_norm; /* [H] */
    uint8_t *kv_full;
    uint8_t *kv_window;
    uint64_t page_bytes; /* one page of one layer */
    void (*kv_put)(void *page, uint32_t kv_heads, uint32_t token, const float *k,
                   const float *v); /* in the plan's form */
    uint8_t *thread;                /* [threads][thread_bytes] matrix product and attention scratch */
    uint64_t thread_bytes;
    uint8_t *sample; /* [threads][sample_bytes] */
    uint64_t sample_bytes;
    uint8_t *seen; /* [slots][seen_bytes] sampler states */
    uint64_t seen_bytes;
    uint32_t *banned; /* bitmap */
    struct nib_cpu_acts a;
    struct nib_cpu_route route;
    float freq[NIB_ROPE_PAIRS];
    uint32_t ring[NIB_CPU_RING_PAGES]; /* 0, 1, 2, ...: the page table of every window layer */
    struct nib_cpu_layer layer[NIB_MAX_LAYERS];

    /* the step at hand */
    const struct nib_step *step;
    uint32_t rows, decode_rows;
    uint32_t order[NIB_MAX_STEP_ROWS]; /* [rows] step row of each engine row */
    uint32_t spans_count;
    struct nib_cpu_span spans[NIB_MAX_STEP_ROWS];
    uint32_t wanted, decode_wanted;     /* rows that want logits */
    uint32_t wanted_row[NIB_MAX_SLOTS]; /* [wanted] engine row */
    uint32_t wanted_out[NIB_MAX_SLOTS]; /* [wanted] index in the result: the step's order */
    uint32_t last_token[NIB_MAX_SLOTS]; /* [slots] last sampled; of no meaning after a draft */
    bool ready;                         /* a result waits for collect */
    struct nib_step_out out;

    struct nib_pool pool;
};

/* cpu_bind.c: points everything into the plan's regions and sets what is constant but the weights.
 */
void nib_cpu_bind(struct nib_cpu *cpu, const struct nib_cpu_open *open);

/* cpu_load.c: fills the weights from the image, on the pool. */
enum nib_err nib_cpu_load(struct nib_cpu *cpu, const struct nib_cpu_open *open, struct nib_msg *msg) NIB_CHECKED;

static inline uint32_t *nib_cpu_seen(struct nib_cpu *cpu, uint32_t slot)
{
    return (uint32_t *)(void *)(cpu->seen + slot * cpu->seen_bytes);
}

/* The token a row carries. */
static inline uint32_t nib_cpu_token(const struct nib_cpu *cpu, const struct nib_row *row)
{
    return row->flags & NIB_ROW_FEEDBACK ? cpu->last_token[row->slot] : row->token;
}

/* cpu_step.c, one thread: the step's rows in the engine's order, their spans, the sampler's counts
 * of prompt tokens. */
void nib_cpu_step_begin(struct nib_cpu *cpu, const struct nib_step *step);

/* cpu_kv.c, one thread: the step's copies of window layers from kept pages, before the rows; and to them, after. */
void nib_cpu_kv_load(struct nib_cpu *cpu, const struct nib_step *step);
void nib_cpu_kv_save(struct nib_cpu *cpu, const struct nib_step *step);

/* cpu_forward.c: a whole step, run by every worker of the pool. */
void nib_cpu_forward(void *arg, uint32_t worker);

/* Norms rows [first, end) of a.x into a.normed by w and prepares them in a.input, row `to` of it
 * and on. */
void nib_cpu_norm_rows(struct nib_cpu *cpu, const uint16_t *w, uint32_t first, uint32_t end, uint32_t to);

/* cpu_moe.c, all workers: from the prepared rows in a.input to the experts' outputs in a.down; ends
 * at a barrier. Then nib_cpu_combine adds one row's weighted experts to a.x, best expert first. */
void nib_cpu_moe(struct nib_cpu *cpu, uint32_t worker, const struct nib_cpu_layer *layer);
void nib_cpu_combine(struct nib_cpu *cpu, uint32_t row);

/* cpu_head.c, all workers: final norm and logits of the wanted rows, and their tokens. */
void nib_cpu_head(struct nib_cpu *cpu, uint32_t worker);

/* One thread, after the step: the slots' last tokens, and the sampler's counts of answer tokens. A draft's are not
 * counted, as nothing reads them (see struct nib_step). */
void nib_cpu_took(struct nib_cpu *cpu);

/* cpu_share.c: how a phase's work is cut into items, which workers take one after another until
 * none is left. */
struct nib_cpu_share {
    uint32_t per; /* outputs (or rows) of an item but the last */
    uint32_t items;
};

/* n outputs of a matrix whose rows have row_bytes bytes, when `peers` such matrices are shared out
 * together. */
struct nib_cpu_share nib_cpu_share_outputs(const struct nib_cpu *cpu, uint32_t n, uint64_t row_bytes, uint32_t peers);
struct nib_cpu_share nib_cpu_share_rows(const struct nib_cpu *cpu, uint32_t rows);

/* The next item of a phase, as [*ret_first, *ret_end) of n; false when there is none. */
bool nib_cpu_take(struct nib_cpu *cpu, struct nib_cpu_share share, uint32_t n, uint32_t *ret_first, uint32_t *ret_end);

/* y = x W^T + b for all rows of mm, the first decode_rows by gemv, the others by gemm; when add_to
 * is not NULL the result is also added to it, [m][ldy]. All workers; the caller puts barriers
 * around it. */
void nib_cpu_dense(struct nib_cpu *cpu, uint32_t worker, const struct nib_matmul *mm, uint32_t decode_rows,
                   float *add_to);

#endif
