/* tests/gpu/rig.h: a device, a row's kernels and a machine block to run them in, for the kernel tests and their benchmark.
 *
 * Device memory is one arena that is filled with 0xff (NaN) before each machine, so that what a kernel leaves unwritten
 * shows. Every wait ends after RIG_WAIT_S. A failing call ends the program: a lost device cannot be tested further. */
#ifndef NIB_TESTS_GPU_RIG_H
#define NIB_TESTS_GPU_RIG_H

#include <stdbool.h>
#include <stdio.h>

#include "arch/gpu_abi.h"
#include "gpu/driver.h"

#define RIG_WAIT_S  6.0
#define RIG_OWN_MAX 64

struct rig {
    struct nib_cuda cu;
    struct CUstream_st *stream;
    struct CUevent_st *event[2];
    const struct nib_gpu_kernels *k;
    struct CUmod_st *module, *other; /* the row's image; --image, or NULL */
    struct CUfunc_st *function[NIB_GPU_OP_COUNT];
    uint32_t sms;
    size_t free_bytes;
    nib_cu_ptr arena;
    uint64_t arena_bytes, used;
    bool separate; /* rig_separate */
    nib_cu_ptr own[RIG_OWN_MAX];
    uint32_t own_count;
    uint8_t *pinned; /* mailbox, outbox, host tables, host sampling */
    uint64_t pinned_bytes, pinned_used;
    struct nib_gpu_machine m; /* the host's copy */
    nib_cu_ptr m_at;
    struct nib_gpu_step *mailbox;
    struct nib_gpu_result *outbox;
    uint32_t *host_tables;
    struct nib_sampling *host_sampling;
    enum nib_dense dense;              /* form of the models made from now on; ops are launched in it */
    enum nib_kv_form kv;               /* form of the pages of machines made from now on */
    bool apart;                        /* steps of one decode row op by op, too */
    bool overlap;                      /* launches may overlap where the geometry allows it */
    uint64_t without;                  /* bit n: plain op n is not launched: for measurements */
    uint32_t blocks[NIB_GPU_OP_COUNT]; /* instead of the geometry's grid[0], unless 0: for measurements */
};

/* False, with the reason printed, when there is no device. */
bool rig_open(struct rig *rig);
/* Loads a row's image; kernels that the file `image` has, unless NULL, are used in place of the row's own. False when the device cannot take it. */
bool rig_load(struct rig *rig, const struct nib_gpu_kernels *k, const char *image);
void rig_unload(struct rig *rig);
void rig_close(struct rig *rig);

/* (Re)makes the arena with at least that many bytes, all 0xff. */
void rig_arena(struct rig *rig, uint64_t bytes, bool poison);
nib_cu_ptr rig_take(struct rig *rig, uint64_t bytes);
/* From here on every buffer is an allocation of its own, in which nothing is written yet: for sanitizers, which see neither
 * what lies beside a buffer in an arena nor what was never written after the poison. Until rig_together, which frees them. */
void rig_separate(struct rig *rig);
void rig_together(struct rig *rig);

/* A machine of that shape with `layers` layers; weights and KV not set. */
void rig_machine(struct rig *rig, const struct nib_shape *shape, uint32_t layers, uint32_t slots, uint32_t ctx_tokens,
                 uint32_t rows, uint32_t kv_pages);
void rig_send_machine(struct rig *rig);

void rig_up(struct rig *rig, nib_cu_ptr to, const void *from, uint64_t bytes);
void rig_down(struct rig *rig, void *to, nib_cu_ptr from, uint64_t bytes);
void rig_fill(struct rig *rig, nib_cu_ptr to, uint8_t value, uint64_t bytes);
void rig_wait(struct rig *rig);

struct rig_bucket {
    uint32_t decode, prompt, want;
};
/* The op, or its twin for the rig's form. False when it has nothing to do in the bucket. */
bool rig_launch(struct rig *rig, enum nib_gpu_op plain, uint32_t layer, struct rig_bucket bucket);
/* A whole step's launches: BEGIN to SAMPLE. */
void rig_step(struct rig *rig, struct rig_bucket bucket);
/* Whether one kernel does all its layers. */
bool rig_fused(const struct rig *rig, struct rig_bucket bucket);

double rig_now(void);
void rig_die(const char *what) __attribute__((noreturn));
#define RIG_CU(rig, call, ...)                                                                                         \
    do {                                                                                                               \
        struct nib_msg msg_;                                                                                           \
        if (NIB_CU(&(rig)->cu, &msg_, call, __VA_ARGS__) != NIB_OK)                                                    \
            rig_die(msg_.text);                                                                                        \
    } while (0)

/* Tests; each returns the number of failures. */
int rig_test_ops(struct rig *rig);
int rig_test_head(struct rig *rig);
int rig_test_sizes(struct rig *rig);
int rig_test_contexts(struct rig *rig);
int rig_test_routing(struct rig *rig);
int rig_test_extremes(struct rig *rig);
int rig_test_invariance(struct rig *rig);
/* What an op reads before the one before it has ended, where launches may overlap (late.ptx wants sm_90). */
int rig_test_late(struct rig *rig);
int rig_test_token(struct rig *rig);
int rig_test_stuck(struct rig *rig);
int rig_test_sampler(struct rig *rig);
int rig_test_faults(struct rig *rig);
/* With dense matrices in MXFP8: every code and scale, then steps. */
int rig_test_mxfp8(struct rig *rig);
int rig_test_codes(struct rig *rig);
/* With keys and values in FP8: steps, contexts, the same bits in other batches. */
int rig_test_kv8(struct rig *rig);
/* Each kernel in both forms, once or twice, on buffers of their own: small enough for a sanitizer. */
int rig_test_each(struct rig *rig);
/* batches: of these numbers of decode rows alone, such as "1,64,256"; NULL: everything. spread: how unevenly rows choose experts. */
void rig_bench(struct rig *rig, const char *shape, bool prompt, const char *batches, double spread);

#endif
