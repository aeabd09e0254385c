/* arch/sm80/table.c: owns the row's image and its table. Constant data. */
#define NIB_SM 80
#include "arch/cuda/forms.h"
#include "arch/cuda/geometry.h"

/* the image as nvcc made it: the Makefile says where it lies */
__asm__(".section .rodata\n"
        ".balign 64\n"
        "nib_image_sm80:\n"
        ".incbin \"" NIB_IMAGE "\"\n"
        "nib_image_sm80_end:\n"
        ".byte 0\n" /* PTX is text and ends with a NUL */
        ".previous\n");
extern const unsigned char nib_image_sm80[], nib_image_sm80_end[];

const struct nib_gpu_kernels nib_gpu_kernels_sm80 = {
    .name = "sm80",
    .image = nib_image_sm80,
    .image_end = nib_image_sm80_end,
    .dense_bytes = cu_dense_bytes,
    .mx_bytes = cu_mx_bytes,
    .route_bytes = route_bytes,
    .scratch_bytes = scratch_bytes,
    .splits_max = splits_max,
    .geometry = geometry,
    .forms = {.acts = cu_read_acts, .gated = cu_read_gated, .choice = cu_read_choice},
};
