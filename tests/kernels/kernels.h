/* tests/kernels/kernels.h: what the files of kernels_test share: rows under test, guarded memory, random inputs, the
 * measure of error. */
#ifndef NIB_TESTS_KERNELS_KERNELS_H
#define NIB_TESTS_KERNELS_KERNELS_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "arch/kernels.h"
#include "core/limits.h"

#define KT_MAX_ROWS 8

/* The rows of the capability table this machine can run, but ref; with --row NAME only that one. */
extern const struct nib_kernels *kt_rows[KT_MAX_ROWS];
extern size_t kt_rows_count;
#define kt_ref (&nib_kernels_ref)

/* Memory whose end lies against an unmapped page (64-byte alignment may leave a gap, which is checked), filled with
 * 0xff: NaN as float and as bf16. kt_free fails the test when a byte beside the buffer was written. */
struct kt_buf {
    void *p;
    size_t bytes;
    uint8_t *map;
    size_t map_bytes;
};
struct kt_buf kt_take(size_t bytes);
void kt_poison(const struct kt_buf *b);
void kt_free(struct kt_buf *b);

/* random numbers: uniform in [0, 1), about normal, a bf16 code about normal */
double kt_uniform(uint64_t *seed);
float kt_normal(uint64_t *seed);
uint16_t kt_bf16(uint64_t *seed);

/* ||a - b|| / ||b|| over [rows][cols] of two matrices with leading dimensions; fails the test on a NaN */
double kt_error(const float *a, uint64_t lda, const float *b, uint64_t ldb, uint32_t rows, uint32_t cols);
bool kt_same_bits(const float *a, const float *b, size_t count);

/* A matrix in canonical form and repacked for two rows of the table. */
struct kt_matrix {
    bool mx;
    uint32_t n, k;
    struct kt_buf dense, blocks, scales, bias; /* canonical; dense or blocks and scales */
};
struct kt_matrix kt_matrix_random(bool mx, uint32_t n, uint32_t k, uint64_t *seed);
void kt_matrix_free(struct kt_matrix *m);
struct kt_buf kt_repack(const struct nib_kernels *row, const struct kt_matrix *m);
struct kt_buf kt_prep(const struct nib_kernels *row, const float *x, uint32_t m, uint32_t k);
void kt_multiply(const struct nib_kernels *row, bool mx, bool gemm, const struct nib_matmul *mm);

/* Each file's tests: appended at `to`, their number returned. */
size_t kt_matmul_tests(const TTest **to);
size_t kt_attn_tests(const TTest **to);
size_t kt_small_tests(const TTest **to);
#define KT_TESTS(function, ...)                                                                                        \
    size_t function(const TTest **to)                                                                                  \
    {                                                                                                                  \
        const TTest *const all[] = {__VA_ARGS__};                                                                      \
        for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)                                                        \
            to[i] = all[i];                                                                                            \
        return sizeof all / sizeof all[0];                                                                             \
    }

int kt_bench(const char *op); /* only operations whose name holds `op`, unless NULL */

#endif
