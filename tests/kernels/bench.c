/* tests/kernels/bench.c: the bench of kernels_test: what this machine can do, and what each operation makes of it.
 *
 * The read rate is that of a sweep over 1 GiB in huge pages by all threads; the peak is a loop of independent FMAs (or tile products)
 * in registers. Weights of an operation are cycled through more memory than the caches hold, as a model's layers are. The
 * best of several runs counts, since a shared machine only ever makes a run slower. */
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/err.h"
#include "tests/harness.h"
#include "tests/kernels/kernels.h"
#include "tools/memrate.h"

enum { THREADS_MAX = 64, RUNS = 5, H = 2880, QKV = 5120, I2 = 5760, KV_HEADS = 8, HEADS = 64 };
#define SWEEP_BYTES (1ull << 30)

static uint32_t threads;
static double read_bytes_s;
static double peak_flops;
static const char *only_op;

static bool wanted(const char *op)
{
    return !only_op || strstr(op, only_op) != NULL;
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *take_huge(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NIB_MUST(p != MAP_FAILED);
    (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

/* ---- all threads at once ---- */

struct job {
    void (*work)(void *arg, uint32_t thread);
    void *arg;
    pthread_barrier_t *start;
    uint32_t thread;
    double begin_s, end_s;
};

static void *job_main(void *arg)
{
    struct job *job = arg;
    (void)pthread_barrier_wait(job->start);
    job->begin_s = now_s();
    job->work(job->arg, job->thread);
    job->end_s = now_s();
    return NULL;
}

/* Best time of RUNS, from the first start to the last end. */
static double time_s(void (*work)(void *, uint32_t), void *arg)
{
    double best = 1e30;
    for (int run = 0; run < RUNS; run++) {
        pthread_t ids[THREADS_MAX];
        struct job jobs[THREADS_MAX];
        pthread_barrier_t start;
        NIB_MUST(pthread_barrier_init(&start, NULL, threads) == 0);
        for (uint32_t t = 0; t < threads; t++) {
            jobs[t] = (struct job){.work = work, .arg = arg, .start = &start, .thread = t};
            NIB_MUST(pthread_create(&ids[t], NULL, job_main, &jobs[t]) == 0);
        }
        double begin = 1e30, end = 0;
        for (uint32_t t = 0; t < threads; t++) {
            (void)pthread_join(ids[t], NULL);
            begin = fmin(begin, jobs[t].begin_s);
            end = fmax(end, jobs[t].end_s);
        }
        (void)pthread_barrier_destroy(&start);
        best = fmin(best, end - begin);
    }
    return best;
}

/* ---- the machine ---- */

#if defined(__x86_64__)
#include "core/profile.h"
#include <immintrin.h>

enum { PEAK_ITERATIONS = 3000000, PEAK_CHAINS = 12 };

__attribute__((target("avx512f"))) static void fma_512(void *arg, uint32_t thread)
{
    (void)arg, (void)thread;
    for (int i = 0; i < PEAK_ITERATIONS; i++)
        __asm__ volatile("vfmadd231ps %%zmm0,%%zmm0,%%zmm1\nvfmadd231ps %%zmm0,%%zmm0,%%zmm2\n"
                         "vfmadd231ps %%zmm0,%%zmm0,%%zmm3\nvfmadd231ps %%zmm0,%%zmm0,%%zmm4\n"
                         "vfmadd231ps %%zmm0,%%zmm0,%%zmm5\nvfmadd231ps %%zmm0,%%zmm0,%%zmm6\n"
                         "vfmadd231ps %%zmm0,%%zmm0,%%zmm7\nvfmadd231ps %%zmm0,%%zmm0,%%zmm8\n"
                         "vfmadd231ps %%zmm0,%%zmm0,%%zmm9\nvfmadd231ps %%zmm0,%%zmm0,%%zmm10\n"
                         "vfmadd231ps %%zmm0,%%zmm0,%%zmm11\nvfmadd231ps %%zmm0,%%zmm0,%%zmm12\n" ::
                             : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                               "xmm12");
}

__attribute__((target("avx2,fma"))) static void fma_256(void *arg, uint32_t thread)
{
    (void)arg, (void)thread;
    for (int i = 0; i < PEAK_ITERATIONS; i++)
        __asm__ volatile("vfmadd231ps %%ymm0,%%ymm0,%%ymm1\nvfmadd231ps %%ymm0,%%ymm0,%%ymm2\n"
                         "vfmadd231ps %%ymm0,%%ymm0,%%ymm3\nvfmadd231ps %%ymm0,%%ymm0,%%ymm4\n"
                         "vfmadd231ps %%ymm0,%%ymm0,%%ymm5\nvfmadd231ps %%ymm0,%%ymm0,%%ymm6\n"
                         "vfmadd231ps %%ymm0,%%ymm0,%%ymm7\nvfmadd231ps %%ymm0,%%ymm0,%%ymm8\n"
                         "vfmadd231ps %%ymm0,%%ymm0,%%ymm9\nvfmadd231ps %%ymm0,%%ymm0,%%ymm10\n"
                         "vfmadd231ps %%ymm0,%%ymm0,%%ymm11\nvfmadd231ps %%ymm0,%%ymm0,%%ymm12\n" ::
                             : "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                               "xmm12");
}

/* Tile products on registers configured as 16 x 64 bytes; the tiles are zero. */
__attribute__((target("amx-tile,amx-bf16"))) static void tiles(void *arg, uint32_t thread)
{
    (void)arg, (void)thread;
    _Alignas(64) uint8_t config[64] = {1};
    for (int t = 0; t < 8; t++) {
        config[16 + 2 * t] = 64;
        config[48 + t] = 16;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    for (int i = 0; i < PEAK_ITERATIONS / 12; i++)
        __asm__ volatile("tdpbf16ps %tmm7,%tmm6,%tmm0\ntdpbf16ps %tmm7,%tmm6,%tmm1\n"
                         "tdpbf16ps %tmm7,%tmm6,%tmm2\ntdpbf16ps %tmm7,%tmm6,%tmm3\n");
    __asm__ volatile("tilerelease");
}

static double measure_peak(const char *row)
{
    if (strcmp(row, "amx") == 0)
        return threads * (PEAK_ITERATIONS / 12) * 4.0 * 16 * 16 * 32 * 2 / time_s(tiles, NULL);
    if (strcmp(row, "avx512") == 0)
        return threads * (double)PEAK_ITERATIONS * PEAK_CHAINS * 32 / time_s(fma_512, NULL);
    return threads * (double)PEAK_ITERATIONS * PEAK_CHAINS * 16 / time_s(fma_256, NULL);
}
#else
static double measure_peak(const char *row)
{
    (void)row;
    return 0;
}
#endif

static void print_line(const char *row, const char *op, double bytes, double flops, double seconds, bool memory_bound)
{
    const double share = memory_bound ? bytes / seconds / read_bytes_s : flops / seconds / peak_flops;
    printf("%-7s %-34s %9.3f ms %8.2f GB/s %9.1f GFLOP/s   %5.1f %% of %s\n", row, op, seconds * 1e3,
           bytes / seconds / 1e9, flops / seconds / 1e9, share * 100, memory_bound ? "read rate" : "peak");
    fflush(stdout);
}

/* ---- products ---- */

struct product_bench {
    const struct nib_kernels *row;
    bool mx, gemm;
    uint32_t m, n, k, copies;
    uint8_t *w;
    uint64_t w_bytes; /* of one matrix */
    void *x;
    float *y;
    uint8_t *scratch;
    uint64_t scratch_bytes;
};

static void product_work(void *arg, uint32_t thread)
{
    const struct product_bench *b = arg;
    const uint32_t tiles_count = b->n / b->row->tile_n;
    struct nib_matmul mm = {.x = b->x, .y = b->y, .ldy = b->n, .m = b->m, .n = b->n, .k = b->k};
    mm.n0 = (uint32_t)((uint64_t)tiles_count * thread / threads) * b->row->tile_n;
    mm.n1 = (uint32_t)((uint64_t)tiles_count * (thread + 1) / threads) * b->row->tile_n;
    void *scratch = b->scratch + thread * b->scratch_bytes;
    for (uint32_t c = 0; c < b->copies; c++) {
        mm.w = b->w + c * b->w_bytes;
        if (b->gemm)
            (b->mx ? b->row->mx_gemm : b->row->dense_gemm)(&mm, scratch);
        else
            (b->mx ? b->row->mx_gemv : b->row->dense_gemv)(&mm);
    }
}

static void fill_weights(struct product_bench *b, uint64_t *seed)
{
    struct kt_matrix w = kt_matrix_random(b->mx, b->n, b->k, seed);
    struct kt_buf packed = kt_repack(b->row, &w);
    b->w_bytes = nib_round_up(packed.bytes, 64);
    b->w = take_huge(b->copies * b->w_bytes);
    for (uint32_t c = 0; c < b->copies; c++)
        memcpy(b->w + c * b->w_bytes, packed.p, packed.bytes);
    kt_free(&packed);
    kt_matrix_free(&w);
}

static void bench_product(const struct nib_kernels *row, bool mx, bool gemm, const uint32_t *ms, uint32_t n, uint32_t k)
{
    uint64_t seed = 1;
    char name[64];
    (void)snprintf(name, sizeof name, "%s_%s", mx ? "mx" : "dense", gemm ? "gemm" : "gemv");
    if (!wanted(name))
        return;
    struct product_bench b = {.row = row, .mx = mx, .gemm = gemm, .n = n, .k = k};
    b.copies = (uint32_t)(SWEEP_BYTES / (mx ? row->mx_bytes(n, k) : row->dense_bytes(n, k))) + 1;
    if (gemm)
        b.copies = b.copies / (mx ? 1 : 8) + 1; /* enough work as it is */
    fill_weights(&b, &seed);
    b.scratch_bytes = nib_round_up(row->gemm_scratch_bytes(k), 4096);
    b.scratch = take_huge(threads * b.scratch_bytes);
    for (; *ms; ms++) {
        b.m = *ms;
        struct kt_buf x = kt_take((size_t)b.m * k * sizeof(float)), y = kt_take((size_t)b.m * n * sizeof(float));
        for (size_t i = 0; i < (size_t)b.m * k; i++)
            ((float *)x.p)[i] = kt_normal(&seed);
        struct kt_buf prepared = kt_prep(row, x.p, b.m, k);
        b.x = prepared.p;
        b.y = y.p;
        const double seconds = time_s(product_work, &b) / b.copies;
        (void)snprintf(name, sizeof name, "%s_%s m %u n %u k %u", mx ? "mx" : "dense", gemm ? "gemm" : "gemv", b.m, n,
                       k);
        print_line(row->name, name, (double)b.w_bytes, 2.0 * b.m * n * k, seconds, !gemm);
        kt_free(&x);
        kt_free(&y);
        kt_free(&prepared);
    }
    (void)munmap(b.w, b.copies * b.w_bytes);
    (void)munmap(b.scratch, threads * b.scratch_bytes);
}

/* ---- attention ---- */

struct attn_bench {
    const struct nib_kernels *row;
    struct nib_attn a;
    uint8_t *scratch;
    uint64_t scratch_bytes, layer_bytes;
    uint32_t layers;
};

static void attn_work(void *arg, uint32_t thread)
{
    const struct attn_bench *b = arg;
    struct nib_attn a = b->a;
    a.h0 = KV_HEADS * thread / threads;
    a.h1 = KV_HEADS * (thread + 1) / threads;
    a.scratch = b->scratch + thread * b->scratch_bytes;
    for (uint32_t layer = 0; layer < b->layers; layer++) {
        a.kv = b->a.kv + layer * b->layer_bytes;
        b->row->attn(&a);
    }
}

/* `rows` queries at the end of `tokens` positions, over enough layers' pages to leave the caches. */
static void bench_attn(const struct nib_kernels *row, enum nib_kv_form form, uint32_t tokens, uint32_t rows)
{
    uint64_t seed = 2;
    if (!wanted("attn"))
        return;
    struct attn_bench b = {.row = row};
    const uint32_t pages = (uint32_t)nib_div_up(tokens, NIB_KV_PAGE_TOKENS);
    const bool fp8 = form == NIB_KV_FP8;
    const uint64_t page_bytes = (fp8 ? row->kv8_page_bytes : row->kv_page_bytes)(KV_HEADS),
                   width = HEADS * NIB_HEAD_DIM;
    b.layer_bytes = pages * page_bytes;
    b.layers = rows > 1 ? 1 : (uint32_t)(SWEEP_BYTES / b.layer_bytes) + 1;
    uint8_t *kv = take_huge(b.layers * b.layer_bytes);
    float k[KV_HEADS * NIB_HEAD_DIM];
    for (size_t i = 0; i < sizeof k / sizeof k[0]; i++)
        k[i] = kt_normal(&seed);
    for (uint32_t t = 0; t < b.layers * pages * NIB_KV_PAGE_TOKENS; t++)
        (fp8 ? row->kv8_put : row->kv_put)(kv + t / NIB_KV_PAGE_TOKENS * page_bytes, KV_HEADS, t % NIB_KV_PAGE_TOKENS,
                                           k, k);
    struct kt_buf q = kt_take(rows * width * sizeof(float)), out = kt_take(rows * width * sizeof(float));
    for (size_t i = 0; i < rows * width; i++)
        ((float *)q.p)[i] = kt_normal(&seed);
    struct kt_buf table = kt_take(pages * sizeof(uint32_t)), sinks = kt_take(HEADS * sizeof(uint16_t));
    for (uint32_t i = 0; i < pages; i++)
        ((uint32_t *)table.p)[i] = i;
    memset(sinks.p, 0, sinks.bytes);
    b.scratch_bytes = nib_round_up(row->attn_scratch_bytes(tokens), 4096);
    b.scratch = take_huge(threads * b.scratch_bytes);
    b.a = (struct nib_attn){.q = q.p,
                            .out = out.p,
                            .kv = kv,
                            .pages = table.p,
                            .sinks = sinks.p,
                            .page_stride = page_bytes,
                            .ldq = width,
                            .ldo = width,
                            .pages_count = pages,
                            .rows = rows,
                            .pos0 = tokens - rows,
                            .kv_heads = KV_HEADS,
                            .form = form};
    const double seconds = time_s(attn_work, &b) / b.layers;
    char name[64];
    (void)snprintf(name, sizeof name, "attn%s rows %u context %u", fp8 ? " fp8" : "", rows, tokens);
    const double keys = rows * (tokens - (rows - 1) / 2.0);
    print_line(row->name, name, (double)b.layer_bytes, keys * HEADS * NIB_HEAD_DIM * 4, seconds, rows == 1);
    (void)munmap(kv, b.layers * b.layer_bytes);
    (void)munmap(b.scratch, threads * b.scratch_bytes);
    kt_free(&q);
    kt_free(&out);
    kt_free(&table);
    kt_free(&sinks);
}

/* ---- the rest: one row, one thread, in cache ---- */

static void bench_small(const struct nib_kernels *row)
{
    enum { TIMES = 20000 };
    static _Alignas(64) float x[I2], y[I2];
    static _Alignas(64) uint16_t w[I2];
    static _Alignas(64) uint8_t acts[I2 * 16], page[KV_HEADS * 2 * 64 * 64 * 4];
    uint64_t seed = 3;
    for (int i = 0; i < I2; i++) {
        x[i] = kt_normal(&seed);
        w[i] = kt_bf16(&seed);
    }
    for (int op = 0; op < 5; op++) {
        static const char *const names[] = {"rmsnorm 2880", "rope 64 heads", "swiglu 2880", "acts_prep 2880",
                                            "kv_put 8 heads"};
        double best = 1e30;
        if (!wanted(names[op]))
            continue;
        for (int run = 0; run < RUNS; run++) {
            const double begin = now_s();
            for (int i = 0; i < TIMES; i++) {
                if (op == 0)
                    row->rmsnorm(y, x, w, H);
                else if (op == 1)
                    row->rope(y, 64, x, x + 32);
                else if (op == 2)
                    row->swiglu(y, x, H);
                else if (op == 3)
                    row->acts_prep(acts, x, H, 1, H);
                else
                    row->kv_put(page, KV_HEADS, (uint32_t)i % 64, x, x + 512);
            }
            best = fmin(best, (now_s() - begin) / TIMES);
            memset(y, 0, sizeof y);
        }
        printf("%-7s %-34s %9.3f us\n", row->name, names[op], best * 1e6);
    }
}

static void bench_row(const struct nib_kernels *row)
{
    static const uint32_t decode[] = {1, 4, 16, 0}, expert[] = {8, 32, 64, 0}, prompt[] = {256, 0};
    peak_flops = measure_peak(row->name);
    printf("%-7s peak of %u threads %.0f GFLOP/s\n", row->name, threads, peak_flops / 1e9);
    bench_product(row, true, false, decode, I2, H);
    bench_product(row, false, false, decode, QKV, H);
    bench_product(row, true, true, expert, I2, H);
    bench_product(row, false, true, prompt, QKV, H);
    for (enum nib_kv_form form = 0; form < NIB_KV_FORMS; form++) {
        bench_attn(row, form, 128, 1);
        bench_attn(row, form, 4096, 1);
        bench_attn(row, form, 256, 256);
        bench_attn(row, form, 4096, 256);
    }
    bench_small(row);
}

int kt_bench(const char *op)
{
    only_op = op;
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    threads = cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : (uint32_t)cpus;
    void *memory = take_huge(SWEEP_BYTES);
    memset(memory, 1, SWEEP_BYTES);
    struct nib_msg msg;
    NIB_MUST(nib_memrate(memory, SWEEP_BYTES, threads, RUNS, &read_bytes_s, &msg) == NIB_OK);
    (void)munmap(memory, SWEEP_BYTES);
    printf("%u threads, read rate %.2f GB/s\n", threads, read_bytes_s / 1e9);
    for (size_t i = 0; i < kt_rows_count; i++)
        bench_row(kt_rows[i]);
    return 0;
}
