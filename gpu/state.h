/* gpu/state.h: the GPU engine's own struct, private to gpu/. It lies at the start of region NIB_R_ENGINE.
 *
 * Steps have serials of the engine's own, from 1, so that the device's count never depends on the caller's. */
#ifndef NIB_GPU_STATE_H
#define NIB_GPU_STATE_H

#include "gpu/gpu.h"

#define NIB_GPU_MAX_BUCKETS 48 /* 9 of decode rows, 12 of prompt rows, 12 of both, 8 of drafts, and room */

/* Upper bounds of the steps a graph can run. */
struct nib_gpu_bucket {
    uint32_t decode, prompt, want;
    bool draft;                  /* decode rows may be of one sequence */
    struct CUgraphExec_st *exec; /* NULL: its kernels are launched one by one */
    uint64_t took_us;            /* the last such step, behind the one before it; 0: there was none */
};

/* A step that was submitted and not yet collected. */
struct nib_gpu_flight {
    uint64_t caller_serial;
    struct nib_gpu_bucket *bucket;
    uint64_t sent_us; /* when it was submitted */
    uint32_t want_count;
    uint16_t slot[NIB_MAX_SLOTS]; /* [want_count] in the device's order */
    uint16_t out[NIB_MAX_SLOTS];  /* [want_count] place in the caller's order */
    float *logits;                /* the caller's, filled at collect; or NULL */
};

struct nib_gpu_engine {
    struct nib_engine base; /* first: the engine contract */
    struct nib_gpu *gpu;
    const struct nib_cuda *cuda;
    const struct nib_gpu_kernels *k;
    const struct nib_plan *plan;
    uint64_t step_us_max;

    struct nib_gpu_machine machine; /* as it lies on the device at machine_at */
    nib_gpu_ptr machine_at;
    /* host addresses of the pinned pieces */
    struct nib_gpu_step *mailbox;  /* [NIB_GPU_MAILBOX] */
    struct nib_gpu_result *outbox; /* [NIB_GPU_MAILBOX] */
    uint32_t *tables;              /* [slots][ctx_pages] */
    float *logits; /* [NIB_MAX_STEPS_AHEAD][logits_rows][vocab]: the read ring after loading, for tests */
    uint32_t logits_rows;
    struct nib_sampling *sampling; /* [slots] */

    struct CUstream_st *stream;
    uint32_t buckets_count;
    struct nib_gpu_bucket
        buckets[NIB_GPU_MAX_BUCKETS]; /* decode, then prompt, then mixed, then drafts; each kind ascending */

    uint64_t submitted, collected; /* serials */
    uint64_t ended_us;             /* when the last step that was waited for was seen to have ended */
    uint64_t
        first[NIB_MAX_SLOTS]; /* serial of the slot's last NIB_ROW_FIRST: its tables are read until that step ends */
    struct nib_gpu_flight flight[NIB_GPU_MAILBOX];
};

/* bind.c: the machine block, from the plan's regions; and its way to the device with everything that starts as zeros.
 * The order inside the regions is decided here; their sizes are core/plan_layout.c's. */
void nib_gpu_bind(struct nib_gpu_engine *e);
enum nib_err nib_gpu_bind_upload(struct nib_gpu_engine *e, const uint32_t *banned, struct nib_msg *msg) NIB_CHECKED;

/* Zeroes what the kernels count in. After the weights are loaded: these regions share bytes with the load's staging. */
enum nib_err nib_gpu_bind_zero(struct nib_gpu_engine *e, struct nib_msg *msg) NIB_CHECKED;

/* module.c: nib_gpu_load's way back. */
void nib_gpu_unload(struct nib_gpu *gpu);
/* Lets an op use `shared_bytes` of dynamic shared memory in blocks of `block` threads. */
enum nib_err nib_gpu_module_allow(struct nib_gpu *gpu, enum nib_gpu_op op, uint32_t block, uint32_t shared_bytes,
                                  struct nib_msg *msg) NIB_CHECKED;
/* Where and with what an op is launched. */
struct nib_gpu_target {
    struct CUstream_st *stream;
    nib_gpu_ptr machine_at;
    uint32_t layer;
};
enum nib_err nib_gpu_launch(struct nib_gpu *gpu, enum nib_gpu_op op, const struct nib_gpu_geometry *g,
                            struct nib_gpu_target target, struct nib_msg *msg) NIB_CHECKED;

/* upload.c: brings all weights onto the device. */
enum nib_err nib_gpu_upload(struct nib_gpu_engine *e, const struct nib_gpu_engine_open *open,
                            struct nib_msg *msg) NIB_CHECKED;

/* graph.c: a graph a bucket. */
enum nib_err nib_gpu_graphs_make(struct nib_gpu_engine *e, struct nib_msg *msg) NIB_CHECKED;
enum nib_err nib_gpu_graph_launch(struct nib_gpu_engine *e, const struct nib_gpu_bucket *b,
                                  struct nib_msg *msg) NIB_CHECKED;
void nib_gpu_graphs_free(struct nib_gpu_engine *e);
/* The smallest bucket for such a step. There always is one, but for drafts when the plan has none. */
struct nib_gpu_bucket *nib_gpu_bucket_for(struct nib_gpu_engine *e, uint32_t decode, uint32_t prompt, bool draft);

/* wait.c: polling with a deadline. nib_gpu_wait and nib_gpu_idle wait until the stream has done all it was given. */
uint64_t nib_gpu_now_us(void);
void nib_gpu_pause(uint32_t tries);
/* Whether what is due then is so near, or late by so little, that a nap might end too late for it. */
bool nib_gpu_near(uint64_t now_us, uint64_t due_us);
enum nib_err nib_gpu_wait(const struct nib_cuda *cuda, struct CUstream_st *stream, uint64_t us_max,
                          struct nib_msg *msg) NIB_CHECKED;
enum nib_err nib_gpu_idle(struct nib_gpu_engine *e, uint64_t us_max, struct nib_msg *msg) NIB_CHECKED;

#endif
