/* arch/gpu_abi.h: what the host engine (gpu/) and the kernels (arch/smNN/) agree on. Plain C, included by both.
 *
 * Every kernel has one signature, void op(const struct nib_gpu_machine *m, uint32_t layer), and finds everything in the
 * machine block, which lies in device memory and is written once at boot. So launches and graphs never change. Names are
 * nib_gpu_<op> in every architecture folder; launch geometry is nib_gpu_geometry of that folder's table.
 *
 * A step: the host writes struct nib_gpu_step into the pinned mailbox, place serial % NIB_GPU_MAILBOX; `begin` copies it to
 * the device; the layers run; `sample` writes the results into the pinned outbox, same place, its `serial` last (release at
 * system scope). Rows lie decode rows first (NIB_ROW_DECODE), then prompt rows, as the scheduler orders them. The result of
 * a row depends only on its own sequence: decode rows take the decode path and prompt rows the prompt path of an op,
 * whatever their number, and every reduction has a fixed order. No float atomics. */
#ifndef NIB_ARCH_GPU_ABI_H
#define NIB_ARCH_GPU_ABI_H

#include <stdbool.h>
#include <stdint.h>

#include "core/engine.h"
#include "core/limits.h"
#include "core/model.h"

#define NIB_GPU_MAILBOX 4 /* steps the pinned rings hold */

/* Device address. */
typedef uint64_t nib_gpu_ptr;

/* In the order of a step: BEGIN, EMBED; a layer: QKV .. COMBINE, or TOKEN for all this; HEAD, SCAN, SAMPLE. An op with _PROMPT does for prompt
 * rows what the op without it does for decode rows; one with _BATCH does the same for decode rows, with the same bits, in buckets of many, one with
 * _SHORT where no expert's list of them is long: a row of the capability table may lack these (has). An op of which a bucket has no rows, or that is another's there, is not launched (grid 0). */
enum nib_gpu_op {
    /* boot: canonical weights in `staging` to the row's layout; the repack block says what */
    NIB_GPU_REPACK_DENSE,
    NIB_GPU_REPACK_MX,
    NIB_GPU_REPACK_MXFP8,
    NIB_GPU_REPACK_HEAD, /* the head's matrix in bf16 */
    NIB_GPU_SUM,         /* *repack.sum += the sum of repack.sum_bytes bytes at repack.src (NIB_GPU_SUM_WORD) */
    /* a step */
    NIB_GPU_BEGIN, /* mailbox -> step block, checked; page tables and sampling of new sequences; their seen forgotten */
    NIB_GPU_EMBED, /* tokens, rope, seen; x = embedding; acts = rmsnorm(x) of layer 0 */
    NIB_GPU_QKV,   /* acts -> q (rotated) and the KV pages (k rotated, v) */
    NIB_GPU_QKV_BATCH,
    NIB_GPU_QKV_PROMPT,
    /* where kv_new is set, and then in place of those without the ending; TOKEN is not used there */
    NIB_GPU_KV_FP8, /* all rows: kv_new -> the KV pages */
    NIB_GPU_ATTN_FP8,
    NIB_GPU_ATTN_BATCH_FP8,
    NIB_GPU_ATTN_PROMPT_FP8,
    NIB_GPU_ATTN, /* q, KV, sinks -> acts; through partials of key splits, which the last block of a head merges */
    NIB_GPU_ATTN_BATCH,
    NIB_GPU_ATTN_PROMPT,
    NIB_GPU_OUT, /* x += acts Wo^T + b */
    NIB_GPU_OUT_BATCH,
    NIB_GPU_OUT_PROMPT,
    NIB_GPU_ROUTE, /* all rows: acts = rmsnorm(x), router, top-4, weights; groups assignments by expert (stable) */
    NIB_GPU_UP,    /* acts -> gated, one row an assignment */
    NIB_GPU_UP_BATCH,
    NIB_GPU_UP_SHORT,
    NIB_GPU_UP_PROMPT,
    NIB_GPU_DOWN, /* gated -> down, one row an assignment */
    NIB_GPU_DOWN_BATCH,
    NIB_GPU_DOWN_SHORT,
    NIB_GPU_DOWN_PROMPT,
    NIB_GPU_COMBINE, /* all rows: x += sum of weight * down over a row's assignments, in order of choice; then acts =
                        rmsnorm(x) by the next layer's attn_norm, after the last layer by final_norm */
    NIB_GPU_TOKEN, /* steps of one decode row: EMBED to COMBINE of all layers in one launch, with the same bits in x and acts. A
                        row's kernels may lack it (has) */
    NIB_GPU_HEAD, /* logits of the rows that want them */
    NIB_GPU_HEAD_BATCH,
    NIB_GPU_SCAN,   /* logits of ids with a bias get it; parts of the maximum and of the sums */
    NIB_GPU_SAMPLE, /* -> token, log-probabilities; last token and seen of the slot; outbox; next_serial */
    /* in place of those without the ending, when the dense matrices are NIB_DENSE_MXFP8 */
    NIB_GPU_QKV_MXFP8,
    NIB_GPU_QKV_BATCH_MXFP8,
    NIB_GPU_QKV_PROMPT_MXFP8,
    NIB_GPU_OUT_MXFP8,
    NIB_GPU_OUT_BATCH_MXFP8,
    NIB_GPU_OUT_PROMPT_MXFP8,
    NIB_GPU_TOKEN_MXFP8,
    NIB_GPU_HEAD_MXFP8,
    NIB_GPU_HEAD_BATCH_MXFP8,
    NIB_GPU_OP_COUNT
};

/* Which matrix is repacked: a row's layout may order the output rows by it. */
enum nib_gpu_matrix {
    NIB_GPU_M_PLAIN,
    NIB_GPU_M_QKV, /* rows are heads of 64, whose pairs (i, i + 32) are rotated together */
    NIB_GPU_M_UP   /* rows 2i and 2i + 1 are gate and up */
};

struct nib_gpu_layer {
    nib_gpu_ptr attn_norm; /* bf16 [H] */
    nib_gpu_ptr qkv, qkv_bias;
    nib_gpu_ptr sinks; /* bf16 [heads] */
    nib_gpu_ptr out, out_bias;
    nib_gpu_ptr mlp_norm; /* bf16 [H] */
    nib_gpu_ptr router, router_bias;
    nib_gpu_ptr up, up_bias; /* [E] matrices of mx_bytes(2I, H); bf16 [E][2I] */
    nib_gpu_ptr down, down_bias;
    nib_gpu_ptr kv; /* this layer's first page: see page_stride */
};

/* What the host sends for one step. */
struct nib_gpu_step {
    uint64_t serial;
    uint32_t rows_count;
    uint32_t decode_count; /* rows [0, decode_count) are decode rows */
    uint32_t want_count;
    uint32_t fault; /* 0 from the host; the device's copy keeps the op that found its input impossible */
    struct nib_row rows[NIB_MAX_STEP_ROWS];
    uint16_t want[NIB_MAX_SLOTS]; /* [want_count] index of the row, ascending */
};

/* What comes back. Written by the device, polled by the host. */
struct nib_gpu_result {
    struct nib_sampled sampled[NIB_MAX_SLOTS]; /* [count] */
    uint32_t count;
    uint32_t fault;  /* 0, or the op that found its input impossible (a bound broken): the step is void */
    uint64_t serial; /* written last */
};

/* Argument of the repack ops: in device memory, rewritten by the host before each launch on the same stream. */
struct nib_gpu_repack {
    nib_gpu_ptr dst;
    nib_gpu_ptr src;    /* bf16 [n][k], or blocks [n][k/32][16], or E4M3 [n][k] */
    nib_gpu_ptr scales; /* [n][k/32] */
    uint32_t n, k;
    uint32_t n0, n1;    /* rows that src holds, multiples of 64 except at the end; dst is the whole matrix */
    uint32_t matrix;    /* enum nib_gpu_matrix */
    uint64_t sum_bytes; /* NIB_GPU_SUM only: multiple of 8 */
    nib_gpu_ptr sum;    /* uint64_t the terms are added to; the host zeroes it before a tensor's first piece */
};

/* What the copy brought must be what the host hashed: the host adds up the same words of its pinned buffer. Term i of the
 * sum over 64-bit words, modulo 2^64; any order gives the same bits, and as the factors are odd one wrong bit always shows. */
#define NIB_GPU_SUM_WORD(word, i) ((uint64_t)(word) * (2 * (uint64_t)(i) + 1))

struct nib_gpu_machine {
    /* shape */
    uint32_t layers, experts, experts_used, hidden, intermediate, heads, kv_heads, vocab, window;
    /* sizes */
    uint32_t slots, ctx_pages, ring_pages, step_rows_max, splits_max;
    uint32_t kv_pages; /* ids in tables are below it */
    uint32_t sms;
    float rope_freq[NIB_HEAD_DIM / 2]; /* nib_rope_frequencies */
    float rope_factor;                 /* 0.1 ln(NIB_ROPE_FACTOR) + 1 */
    /* weights */
    nib_gpu_ptr embed; /* bf16 [V][H], canonical; pinned host memory when spilled */
    nib_gpu_ptr lm_head;
    nib_gpu_ptr final_norm; /* bf16 [H] */
    /* KV: a page is [K, V][kv_heads][64 tokens][64] bf16. Full layers: page id p of the layer lies at layer.kv + p *
     * page_stride, ids in tables[slot][pos / 64]. Window layers: id slot * ring_pages + (pos / 64) % ring_pages, the same
     * stride. */
    uint64_t page_stride;
    /* Set: pages are in FP8 (nib_kv8_encode of core/mx.h): codes [K, V][kv_heads][64 tokens][64], then scale codes [K, V][kv_heads][64
     * tokens][2], and QKV leaves keys, rotated, and values here for KV_FP8: bf16 [R][K, V][kv_heads][64]. 0: as above */
    nib_gpu_ptr kv_new;
    nib_gpu_ptr tables; /* uint32_t [slots][ctx_pages] */
    /* step state, device */
    nib_gpu_ptr step;     /* struct nib_gpu_step */
    nib_gpu_ptr sampling; /* struct nib_sampling [slots] */
    nib_gpu_ptr last;     /* uint32_t [slots]: token last sampled in the slot */
    nib_gpu_ptr seen;     /* uint32_t [slots][V]: token counts, as core/sample.h keeps them */
    nib_gpu_ptr banned;   /* uint32_t [ceil(V/32)] */
    nib_gpu_ptr repack;   /* struct nib_gpu_repack */
    /* activations: R = step_rows_max rows, A = R * experts_used */
    nib_gpu_ptr x;       /* fp32 [R][H] */
    nib_gpu_ptr acts;    /* 16-bit floats of the row's choice [R][max(H, q_dim)] */
    nib_gpu_ptr q;       /* bf16 [R][q_dim] */
    nib_gpu_ptr partial; /* decode attention, fp32 [min(slots, R)][heads][splits_max] of (max, sum, 64 values) */
    nib_gpu_ptr rope;    /* fp32 cos [R][32], sin [R][32] */
    nib_gpu_ptr route;   /* the row's own layout: choices, weights, grouping */
    nib_gpu_ptr gated;   /* 16-bit floats of the row's choice [A][I] */
    nib_gpu_ptr down;    /* fp32 [A][H] */
    nib_gpu_ptr logits;  /* fp32 [slots][V]; row i is that of want[i]. scan adds biases in place */
    nib_gpu_ptr scratch; /* sampler and split-K scratch */
    uint64_t scratch_bytes;
    /* pinned, mapped */
    nib_gpu_ptr mailbox;       /* struct nib_gpu_step [NIB_GPU_MAILBOX] */
    nib_gpu_ptr outbox;        /* struct nib_gpu_result [NIB_GPU_MAILBOX] */
    nib_gpu_ptr host_tables;   /* uint32_t [slots][ctx_pages]: read by begin for rows with NIB_ROW_FIRST */
    nib_gpu_ptr host_sampling; /* struct nib_sampling [slots]; likewise */
    nib_gpu_ptr next_serial;   /* device uint64_t: serial that begin expects; it picks the place; sample adds 1 */
    struct nib_gpu_layer layer[NIB_MAX_LAYERS]; /* last: a kernel's own copy may end with the model's last layer */
};

struct nib_gpu_geometry {
    uint32_t grid[4]; /* x, y, z; blocks of a cluster, along x, 0: what the kernel was made for */
    uint32_t block;
    uint32_t shared_bytes; /* dynamic */
    uint32_t overlap;      /* 1: may start before the op before it has ended (programmatic dependent launch): the kernel
                              waits by itself (griddepcontrol.wait) before it writes, or reads anything but weights and
                              what ops that have surely ended left */
};

/* One choice of a row's router. */
struct nib_gpu_choice {
    uint32_t expert, place; /* place: of this assignment in `gated` and `down` */
    float weight;
};

/* How a row keeps what its kernels hand to each other, for whoever compares them with arch/ref (gpu/selftest.h). Pure. */
struct nib_gpu_forms {
    /* k values of a row of `acts`, as the op has left them */
    void (*acts)(const struct nib_gpu_machine *m, enum nib_gpu_op left_by, const void *acts, uint32_t row, uint32_t k,
                 float *ret);
    /* the I values at a place of `gated` as `op` leaves or reads it, of one of the op's rows, with `route` as it was */
    void (*gated)(const struct nib_gpu_machine *m, enum nib_gpu_op op, const void *route, const void *gated,
                  uint32_t place, float *ret);
    /* choice c, best first, of a row, from `route` */
    void (*choice)(const struct nib_gpu_machine *m, const void *route, uint32_t row, uint32_t c,
                   struct nib_gpu_choice *ret);
};

/* One a folder. decode, prompt and want are a bucket's upper bounds: a graph made for 64 decode and 128 prompt rows runs any
 * step with no more of either; blocks beyond the step's own counts leave at once. A bucket may have no decode or no prompt
 * rows at all. */
struct nib_gpu_kernels {
    const char *name;           /* of the capability-table row */
    const unsigned char *image; /* cubin or PTX, embedded */
    const unsigned char *image_end;
    uint64_t (*dense_bytes)(uint32_t n, uint32_t k);
    uint64_t (*mxfp8_bytes)(uint32_t n, uint32_t k); /* of a dense matrix in MXFP8 */
    uint64_t (*mx_bytes)(uint32_t n, uint32_t k);
    uint64_t (*head_bytes)(uint32_t n, uint32_t k); /* of the head's matrix in bf16 */
    uint64_t (*route_bytes)(uint32_t rows, uint32_t experts);
    /* Zeroed by the host once, before the first step. */
    uint64_t (*scratch_bytes)(const struct nib_shape *shape, uint32_t slots, uint32_t rows);
    uint32_t (*splits_max)(uint32_t ctx_tokens);
    /* Fills *ret; grid[0] 0 when the op has nothing to do in this bucket. The boot ops get 0, 0, 0 and run for any matrix. */
    void (*geometry)(enum nib_gpu_op op, const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                     uint32_t want, struct nib_gpu_geometry *ret);
    struct nib_gpu_forms forms;
    /* Whether the row has the op's kernel: all have those of a step but TOKEN and _BATCH. The geometry never asks for one it lacks. */
    bool (*has)(enum nib_gpu_op op);
};

/* Sets what of a machine follows from the model alone: shape, angles of the rotation. The rest stays as it is. */
void nib_gpu_machine_model(struct nib_gpu_machine *m, const struct nib_shape *shape);

/* The op that does `op`'s work when the dense matrices are of that form; and the op whose work one of them does. */
enum nib_gpu_op nib_gpu_op_in(enum nib_gpu_op op, enum nib_dense dense);
enum nib_gpu_op nib_gpu_op_plain(enum nib_gpu_op op);

/* The op that does an op's work for few decode rows: of one with _BATCH or _SHORT that without, of others the same. Forms stay. */
enum nib_gpu_op nib_gpu_op_few(enum nib_gpu_op op);

/* "nib_gpu_begin", ...: symbol of an op in every image. */
const char *nib_gpu_op_symbol(enum nib_gpu_op op);

/* What lies in NIB_R_STEP (device) and NIB_R_MAILBOX (pinned), piece by piece in this order, each padded to 256 bytes:
 * machine, step, sampling, last, tables, repack, next_serial; mailbox, outbox, host_tables, host_sampling. */
#define NIB_GPU_PIECE_ALIGN 256
uint64_t nib_gpu_step_bytes(uint32_t slots, uint32_t ctx_tokens);
uint64_t nib_gpu_mailbox_bytes(uint32_t slots, uint32_t ctx_tokens);

#endif
