/* arch/sm80/table.c: owns the row's image and its table. Constant data. */
#define NIB_SM  80
#define NIB_ROW sm80
#include "arch/cuda/table.h"

const struct nib_gpu_kernels nib_gpu_kernels_sm80 = {CU_KERNELS("sm80"), .geometry = geometry, .has = has};
