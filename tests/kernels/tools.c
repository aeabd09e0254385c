/* tests/kernels/tools.c: guarded memory, random inputs, matrices for kernels_test. */
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "core/arith.h"
#include "core/err.h"
#include "core/mx.h"
#include "tests/harness.h"
#include "tests/kernels/kernels.h"

#define PAGE  4096u
#define GUARD 0xa5 /* of bytes around a buffer */

const struct nib_kernels *kt_rows[KT_MAX_ROWS];
size_t kt_rows_count;

struct kt_buf kt_take(size_t bytes)
{
    const size_t padded = nib_round_up(bytes, 64), whole = nib_round_up(padded + PAGE, PAGE);
    struct kt_buf b = {.bytes = bytes, .map_bytes = whole + PAGE};
    b.map = mmap(NULL, b.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NIB_MUST(b.map != MAP_FAILED && mprotect(b.map + whole, PAGE, PROT_NONE) == 0);
    memset(b.map, GUARD, whole);
    b.p = b.map + whole - padded;
    kt_poison(&b);
    return b;
}

void kt_poison(const struct kt_buf *b)
{
    memset(b->p, 0xff, b->bytes);
}

void kt_free(struct kt_buf *b)
{
    if (!b->map)
        return;
    const uint8_t *p = b->p, *end = b->map + b->map_bytes - PAGE;
    for (const uint8_t *c = b->map; c < end; c++)
        if ((c < p || c >= p + b->bytes) && *c != GUARD)
            ck_abort_msg("a byte was written %td bytes from the start of a buffer of %zu", c - p, b->bytes);
    (void)munmap(b->map, b->map_bytes);
    *b = (struct kt_buf){0};
}

double kt_uniform(uint64_t *seed)
{
    return (double)(nib_test_rand(seed) >> 11) * 0x1p-53;
}

float kt_normal(uint64_t *seed)
{
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += kt_uniform(seed);
    return (float)sum;
}

uint16_t kt_bf16(uint64_t *seed)
{
    return nib_bf16_encode(kt_normal(seed));
}

double kt_error(const float *a, uint64_t lda, const float *b, uint64_t ldb, uint32_t rows, uint32_t cols)
{
    double error = 0, norm = 0;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < cols; j++) {
            const double x = (double)a[i * lda + j], y = (double)b[i * ldb + j];
            ck_assert_msg(isfinite(x) && isfinite(y), "[%u][%u] is %g, ref has %g", i, j, x, y);
            error += (x - y) * (x - y);
            norm += y * y;
        }
    ck_assert(norm > 0);
    return sqrt(error / norm);
}

bool kt_same_bits(const float *a, const float *b, size_t count)
{
    return memcmp(a, b, count * sizeof *a) == 0;
}

struct kt_matrix kt_matrix_random(bool mx, uint32_t n, uint32_t k, uint64_t *seed)
{
    struct kt_matrix m = {.mx = mx, .n = n, .k = k, .bias = kt_take(n * sizeof(uint16_t))};
    for (uint32_t i = 0; i < n; i++)
        ((uint16_t *)m.bias.p)[i] = kt_bf16(seed);
    if (!mx) {
        m.dense = kt_take((size_t)n * k * sizeof(uint16_t));
        for (size_t i = 0; i < (size_t)n * k; i++)
            ((uint16_t *)m.dense.p)[i] = kt_bf16(seed);
        return m;
    }
    m.blocks = kt_take((size_t)n * k / 2);
    m.scales = kt_take((size_t)n * k / NIB_MX_BLOCK);
    for (size_t i = 0; i < m.blocks.bytes; i++)
        ((uint8_t *)m.blocks.p)[i] = (uint8_t)nib_test_rand(seed);
    for (size_t i = 0; i < m.scales.bytes; i++)
        ((uint8_t *)m.scales.p)[i] = (uint8_t)(120 + nib_test_rand(seed) % 8);
    return m;
}

void kt_matrix_free(struct kt_matrix *m)
{
    kt_free(&m->dense);
    kt_free(&m->blocks);
    kt_free(&m->scales);
    kt_free(&m->bias);
}

/* In two ranges, the later first, as loading threads may. */
struct kt_buf kt_repack(const struct nib_kernels *row, const struct kt_matrix *m)
{
    struct kt_buf to = kt_take(m->mx ? row->mx_bytes(m->n, m->k) : row->dense_bytes(m->n, m->k));
    const uint32_t cut = m->n / 2 / row->tile_n * row->tile_n;
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? m->n : cut;
        if (m->mx)
            row->mx_repack(to.p, m->blocks.p, m->scales.p, m->n, m->k, n0, n1);
        else
            row->dense_repack(to.p, m->dense.p, m->n, m->k, n0, n1);
    }
    return to;
}

struct kt_buf kt_prep(const struct nib_kernels *row, const float *x, uint32_t m, uint32_t k)
{
    struct kt_buf to = kt_take(m * row->acts_bytes(k));
    row->acts_prep(to.p, x, k, m, k);
    return to;
}

void kt_multiply(const struct nib_kernels *row, bool mx, bool gemm, const struct nib_matmul *mm)
{
    if (!gemm) {
        (mx ? row->mx_gemv : row->dense_gemv)(mm);
        return;
    }
    struct kt_buf scratch = kt_take(row->gemm_scratch_bytes(mm->k));
    (mx ? row->mx_gemm : row->dense_gemm)(mm, scratch.p);
    kt_free(&scratch);
}
