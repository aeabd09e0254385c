/* arch/sm90/table.c: owns the row's image and its table. Constant data. */
#define NIB_SM 90
#include "arch/cuda/forms.h"
#include "arch/cuda/geometry.h"

/* the image as nvcc made it: the Makefile says where it lies */
__asm__(".section .rodata\n"
        ".balign 64\n"
        "nib_image_sm90:\n"
        ".incbin \"" NIB_IMAGE "\"\n"
        "nib_image_sm90_end:\n"
        ".byte 0\n" /* PTX is text and ends with a NUL */
        ".previous\n");
extern const unsigned char nib_image_sm90[], nib_image_sm90_end[];

const struct nib_gpu_kernels nib_gpu_kernels_sm90 = {
    .name = "sm90",
    .image = nib_image_sm90,
    .image_end = nib_image_sm90_end,
    .dense_bytes = cu_dense_bytes,
    .mx_bytes = cu_mx_bytes,
    .route_bytes = route_bytes,
    .scratch_bytes = scratch_bytes,
    .splits_max = splits_max,
    .geometry = geometry,
    .forms = {.acts = cu_read_acts, .gated = cu_read_gated, .choice = cu_read_choice},
};
