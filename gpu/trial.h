/* gpu/trial.h: the model, the step and the memory that the self-test runs kernels in. Private to gpu/selftest.c and
 * gpu/trial*.c; see gpu/selftest.h.
 *
 * Weights are windows into short random patterns that lie in pinned memory, so that nothing large is made or kept on the
 * host: element i of a matrix is element (salt + i) modulo the pattern's length, which is prime. The first failure stays in
 * `err`, and everything after it does nothing. Boot thread. */
#ifndef NIB_GPU_TRIAL_H
#define NIB_GPU_TRIAL_H

#include "gpu/selftest.h"
#include "gpu/state.h"

enum {
    NIB_TRIAL_SLOTS = 4,
    NIB_TRIAL_CTX_TOKENS = 512,
    NIB_TRIAL_PAGES = NIB_TRIAL_CTX_TOKENS / NIB_KV_PAGE_TOKENS,
    NIB_TRIAL_ROWS = 32, /* room */
    NIB_TRIAL_DECODE = 3,
    NIB_TRIAL_PROMPT = 21,
    NIB_TRIAL_EXPERTS = 8,
    NIB_TRIAL_VOCAB = 1024,          /* of embedding and head */
    NIB_TRIAL_SAMPLER_VOCAB = 40000, /* of the sampler */
    NIB_TRIAL_WEIGHTS = 262147,      /* elements of the patterns: primes */
    NIB_TRIAL_ACTS = 65537,
    NIB_TRIAL_CODES = 1048583,
    NIB_TRIAL_SCALES = 65537,
    NIB_TRIAL_LETTERS = 64, /* repack blocks under way */
    NIB_TRIAL_HOST_BYTES = 32 << 20
};

enum nib_trial_matrix {
    NIB_TRIAL_QKV,
    NIB_TRIAL_OUT,
    NIB_TRIAL_ROUTER,
    NIB_TRIAL_HEAD,
    NIB_TRIAL_UP,
    NIB_TRIAL_DOWN,
    NIB_TRIAL_EMBED
};

/* A repack block on its way, and the sum that NIB_GPU_SUM adds to. */
struct nib_trial_letter {
    struct nib_gpu_repack repack;
    uint64_t sum;
};

/* Small tensors, on the host (pinned) as on the device. */
struct nib_trial_vectors {
    uint16_t *attn_norm, *qkv_bias, *sinks, *out_bias, *mlp_norm, *router_bias, *up_bias, *down_bias, *final_norm;
};

struct nib_trial {
    struct nib_gpu *gpu;
    const struct nib_gpu_kernels *k;
    struct nib_shape shape; /* of the test's model */
    enum nib_dense dense;   /* of its QKV, attention output and LM head */
    enum nib_kv_form kv;    /* of its pages */
    struct CUstream_st *stream;
    struct nib_gpu_selftest *report;
    enum nib_err err;
    struct nib_msg *msg;
    bool launched;
    enum nib_gpu_op op; /* launched last */

    nib_gpu_ptr arena;
    uint64_t arena_used;
    uint8_t *pinned; /* NULL while sizes are counted */
    nib_gpu_ptr pinned_at;
    uint64_t pinned_used, back_used, back_bytes;
    uint8_t *back; /* pinned: what was fetched */
    uint8_t *host; /* scratch of a check */
    uint64_t host_used;

    uint16_t *weights, *acts; /* patterns: bf16, about normal: spread 1/sqrt(hidden), spread 1 */
    uint8_t *codes, *scales;  /* patterns: MXFP4 */
    uint8_t *e4m3, *e8m0;     /* patterns: MXFP8 of about the spread of `weights`, as long as `weights` and `scales` */
    struct nib_trial_letter *letters;
    uint32_t letters_used;
    struct nib_trial_vectors v;
    nib_gpu_ptr staging;
    uint64_t staging_bytes;

    struct nib_gpu_machine m, sampler; /* as on the device; the sampler's has another vocabulary */
    struct nib_gpu_machine *machines;  /* [2], pinned, on their way */
    nib_gpu_ptr m_at, sampler_at;
    struct nib_gpu_step *mailbox;
    struct nib_gpu_result *outbox;
    uint32_t *host_tables;
    struct nib_sampling *host_sampling;
    uint64_t *serial;               /* pinned words on their way */
    uint32_t *last, *banned, *seen; /* pinned: [slots]; bitmap; [slots][sampler.vocab] */
    float *logits;                  /* pinned: [slots][sampler.vocab] */

    /* the step at hand */
    const struct nib_gpu_step *step;
    uint32_t decode, prompt, want, layer;
    uint32_t many; /* bound on decode rows that kernels are launched for, when more than there are; or 0 */
};

/* trial.c: memory and work. Close gives everything back, unless the device is lost. */
void nib_trial_open(struct nib_trial *t, const struct nib_profile *profile, const struct nib_shape *shape);
void nib_trial_close(struct nib_trial *t);
void nib_trial_send(struct nib_trial *t, nib_gpu_ptr to, const void *pinned, uint64_t bytes);
void nib_trial_fill(struct nib_trial *t, nib_gpu_ptr to, uint8_t value, uint64_t bytes);
/* Brings bytes back to pinned memory, there at the next wait; valid until nib_trial_forget. */
const void *nib_trial_fetch(struct nib_trial *t, nib_gpu_ptr from, uint64_t bytes);
/* Scratch on the host, valid until nib_trial_forget. */
void *nib_trial_take(struct nib_trial *t, uint64_t bytes);
void nib_trial_forget(struct nib_trial *t);
void nib_trial_wait(struct nib_trial *t);
/* Whether an op is launched for the step at hand. */
bool nib_trial_due(const struct nib_trial *t, enum nib_gpu_op op);
/* Launches an op for the step at hand, if it has rows in it. */
bool nib_trial_start(struct nib_trial *t, enum nib_gpu_op op);
/* Launches an op for the step at hand and waits for it. False: it failed, or has no rows in this step. */
bool nib_trial_launch(struct nib_trial *t, enum nib_gpu_op op);

/* trial_model.c: room of the machine block, the weights in it, and rows of them in canonical form. */
void nib_trial_lay_out(struct nib_trial *t);
void nib_trial_load(struct nib_trial *t);
/* As bf16, whatever the form. */
void nib_trial_dense_rows(const struct nib_trial *t, enum nib_trial_matrix matrix, uint32_t k, uint32_t first,
                          uint32_t count, uint16_t *ret);
/* Blocks [count][k/32][16], then scales [count][k/32]. */
void nib_trial_mx_rows(const struct nib_trial *t, enum nib_trial_matrix matrix, uint32_t expert, uint32_t k,
                       uint32_t first, uint32_t count, uint8_t *ret);

/* trial_checks.c and trial_rows.c: run an op and say how far it is off. */
typedef void nib_trial_check(struct nib_trial *t, enum nib_gpu_op op);
nib_trial_check nib_trial_sum, nib_trial_begin, nib_trial_embed, nib_trial_route, nib_trial_combine, nib_trial_token,
    nib_trial_scan, nib_trial_sample, nib_trial_qkv, nib_trial_kv8, nib_trial_attn, nib_trial_out, nib_trial_up,
    nib_trial_down, nib_trial_head;

/* ||out - ref||, ||ref||, and what differs although it must not. */
struct nib_trial_error {
    double diff, norm;
    uint64_t bad;
};
void nib_trial_add(struct nib_trial_error *e, double out, double ref);
void nib_trial_expect(struct nib_trial *t, enum nib_gpu_op op, const char *what, const struct nib_trial_error *e,
                      double bound);

/* Rows of the step that an op works on: its decode rows, its prompt rows, or all. */
struct nib_trial_range {
    uint32_t first, end;
};
struct nib_trial_range nib_trial_rows(const struct nib_trial *t, enum nib_gpu_op op);
/* Whether a row is compared: all decode rows, and some of the prompt. */
bool nib_trial_compared(const struct nib_trial *t, uint32_t row);
/* Whether products of a compared row are, in this layer: each form's in one layer of a step, since they cost the most. */
bool nib_trial_multiplied(const struct nib_trial *t, uint32_t row);

#endif
