/* tests/gpu/check.h: one op after another on the device, each against arch/ref, given what the device itself had before it.
 *
 * An op's error is ||out - ref|| / ||ref|| over all outputs that are compared; `floor` is what an output may be wrong by
 * besides: half the smallest number of its format. The bounds, and why:
 *   bf16 outputs (acts, q, k, v)      3e-3: rounding to 8 bits is up to 2^-9 = 2.0e-3 an output, 1.1e-3 on average
 *   attention                         5e-3: the probabilities are rounded to bf16 too
 *   fp16 outputs (expert inputs)      4e-4, 5e-4: rounding to 11 bits is up to 2^-12 = 2.4e-4; SwiGLU's exp adds its own
 *   fp32 sums (out, down, logits)     2e-5: products are exact, up to 4096 terms are added in fp32
 *   router logits                     3e-4: parts in steps of 2^-24 are multiplied by a scale of up to 316; the reference
 *                                     has their inputs, bf16(x w)
 *   x after combine                   1e-6: five fp32 operations
 *   weights of experts                1e-6: expf and a division
 *   angles                            2e-7: one fp32 rounding
 *   products with one input that is 1 0: exactly the weight */
#ifndef NIB_TESTS_GPU_CHECK_H
#define NIB_TESTS_GPU_CHECK_H

#include "tests/gpu/model.h"

/* A running ||out - ref|| / ||ref||. */
struct error {
    double diff, norm, count;
    uint64_t bad; /* not finite, or otherwise wrong */
};

struct check {
    struct rig *rig;
    struct model *model;
    const struct nib_gpu_step *step; /* as sent */
    struct rig_bucket bucket;
    uint32_t layer;
    const char *what;
    int failures;
    /* expert products: only the outputs of this expert, unless ~0; what it gives; and instead of the op's bound, unless 0 */
    uint32_t expert;
    bool nan;
    double bound;
};

/* Sends a step and launches BEGIN. */
struct check check_begin(struct rig *rig, struct model *model, const char *what, const struct model_run *runs,
                         uint32_t count);
void check_embed(struct check *c);
void check_qkv(struct check *c);
void check_attn(struct check *c);
void check_out(struct check *c);
void check_route(struct check *c);
void check_experts(struct check *c, bool up);
void check_combine(struct check *c);
void check_head(struct check *c);
/* All of them, in the order of a step; prints a line. Returns the failures. */
int check_step(struct rig *rig, struct model *model, const char *what, const struct model_run *runs, uint32_t count);
int check_report(const struct check *c);
/* Prints the largest error of each kind of output so far, and forgets it. */
void check_print_worst(void);

/* Elements of a row of acts. */
uint64_t check_acts_wide(const struct check *c);
uint32_t check_rows(const struct check *c);

/* All places of `gated`: as they lie in the step's kernels become plain, or plain ones as they lie. */
void check_order_gated(struct check *c, uint16_t *gated, bool plain);
/* Decode rows of acts, fp16, to where `up` of many rows looks for them, too. */
void check_order_acts(struct check *c);

/* All rows' acts of k inputs, also to where a row's kernels read those of many decode rows. */
void check_send_acts(struct check *c, const uint16_t *acts, uint32_t k);

/* `count` decode rows at positions around every boundary of pages, windows and splits; row 0 at the end of ctx. */
uint32_t check_decode_runs(struct model_run *runs, uint32_t count, uint32_t ctx);

#endif
