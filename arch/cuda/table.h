/* arch/cuda/table.h: a CUDA row's image and its table; included once by each row's table.c, which sets NIB_SM and NIB_ROW, the
 * row's name. The Makefile says in NIB_IMAGE where the image lies, as nvcc made it. Constant data. */
#ifndef NIB_ARCH_CUDA_TABLE_H
#define NIB_ARCH_CUDA_TABLE_H

#include "arch/cuda/forms.h"
#include "arch/cuda/geometry.h"

#define CU_TEXT_(x)    #x
#define CU_TEXT(x)     CU_TEXT_(x)
#define CU_JOIN_(x, y) x##y
#define CU_JOIN(x, y)  CU_JOIN_(x, y)
#define CU_IMAGE       CU_JOIN(nib_image_, NIB_ROW)
#define CU_IMAGE_END   CU_JOIN(CU_IMAGE, _end)

/* clang-format off */
__asm__(".section .rodata\n"
        ".balign 64\n"
        CU_TEXT(CU_IMAGE) ":\n"
        ".incbin \"" NIB_IMAGE "\"\n"
        CU_TEXT(CU_IMAGE_END) ":\n"
        ".byte 0\n" /* PTX is text and ends with a NUL */
        ".previous\n");
/* clang-format on */
extern const unsigned char CU_IMAGE[], CU_IMAGE_END[];

/* clang-format off */
/* What a table of kernels begins with. */
#define CU_KERNELS(row)                                                                                                \
    .name = row, .image = CU_IMAGE, .image_end = CU_IMAGE_END, .dense_bytes = cu_dense_bytes, .mxfp8_bytes = cu_mxfp8_bytes, \
    .mx_bytes = cu_mx_bytes, .head_bytes = cu_bf13_bytes, .route_bytes = route_bytes, .scratch_bytes = scratch_bytes, .splits_max = splits_max,                              \
    .forms = {.acts = cu_read_acts, .gated = cu_read_gated, .choice = cu_read_choice}
/* clang-format on */

#endif
