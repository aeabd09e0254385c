/* arch/table.h: the capability table: one row a target, what it needs, and what it falls back to.
 *
 * Compute capability and CPU features are compared here and nowhere else. The choice is made once at boot, by the
 * profile's facts and a mask of rows to pass over. Any thread; constant data. */
#ifndef NIB_ARCH_TABLE_H
#define NIB_ARCH_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arch/gpu_abi.h"
#include "arch/kernels.h"
#include "core/err.h"
#include "core/plan.h"
#include "core/profile.h"

#define NIB_MAX_ARCH_ROWS 16

struct nib_arch_row {
    const char *name;
    const char *numbers;  /* number strategy, for people */
    const char *features; /* what it uses of the machine, for people */
    const char *layout;   /* of the weights, for people */
    const char *tiles;    /* of the products, for people */
    const char *module;   /* GPU rows: the form of its kernels; NULL: nobody has written them */
    const char *fallback; /* next row of the chain, or NULL: after a GPU's last row comes the CPU */
    bool gpu;
    uint32_t cc_min, cc_max;           /* compute capability, inclusive (GPU rows) */
    uint32_t shared_bytes;             /* shared memory that a block must be allowed (GPU rows) */
    uint32_t cpu_features;             /* all of these (CPU rows): enum nib_cpu_feature */
    const struct nib_kernels *kernels; /* CPU rows; NULL on a GPU row */
    const struct nib_gpu_kernels
        *gpu_kernels; /* GPU rows; NULL when this build has none: the row can be planned, not run */
};

/* All rows, best first within a kind; *ret_count of them. */
const struct nib_arch_row *nib_arch_rows(size_t *ret_count);

const struct nib_arch_row *nib_arch_find(const char *name);

/* What the row says of its memory, for the plan. */
struct nib_row_facts nib_arch_facts(const struct nib_arch_row *row);

/* Why a row was not taken, as one phrase; NULL when the machine can run it and the mask lets it. */
const char *nib_arch_refusal(const struct nib_arch_row *row, const struct nib_profile *profile, uint32_t mask);

/* The best row the profile satisfies. `mask` has bit i set to pass over row i of nib_arch_rows.
 * NIB_E_UNSUPPORTED when none is left. */
enum nib_err nib_arch_select(const struct nib_profile *profile, uint32_t mask, const struct nib_arch_row **ret_row,
                             struct nib_msg *msg) NIB_CHECKED;

/* Bit i set: row i of nib_arch_rows has no kernels in this build. For whoever wants to run what it selects. */
uint32_t nib_arch_unbuilt_mask(void);

/* Parses "amx,avx512" into a mask. NIB_E_ARG names the unknown row and the rows there are. */
enum nib_err nib_arch_mask_parse(const char *names, uint32_t *ret_mask, struct nib_msg *msg) NIB_CHECKED;

/* Facts of the CPU this process runs on: cores it may use, memory, features. read_bytes_s and flops_bf16_s are 0: they
 * are measured by `nibble bench`, not looked up. */
enum nib_err nib_arch_probe_cpu(struct nib_profile *ret_profile, struct nib_msg *msg) NIB_CHECKED;

#endif
