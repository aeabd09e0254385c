/* arch/sm90/table.c: owns the row's image and its tables: sm90, and sm90-ops, which is the same image without the fused kernel of
 * decode. Constant data. */
#define NIB_SM  90
#define NIB_ROW sm90
#include "arch/cuda/table.h"

static void geometry_of_ops(enum nib_gpu_op op, const struct nib_gpu_machine *m, uint32_t decode, uint32_t prompt,
                            uint32_t want, struct nib_gpu_geometry *ret)
{
    if (nib_gpu_op_plain(op) == NIB_GPU_TOKEN)
        *ret = (struct nib_gpu_geometry){{0, 1, 1}, 32, 0, 0};
    else
        geometry(op, m, decode, prompt, want, ret);
}

static bool has_of_ops(enum nib_gpu_op op)
{
    return nib_gpu_op_plain(op) != NIB_GPU_TOKEN && has(op);
}

const struct nib_gpu_kernels nib_gpu_kernels_sm90 = {CU_KERNELS("sm90"), .geometry = geometry, .has = has};
const struct nib_gpu_kernels nib_gpu_kernels_sm90_ops = {CU_KERNELS("sm90-ops"), .geometry = geometry_of_ops,
                                                         .has = has_of_ops};
