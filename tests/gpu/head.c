/* tests/gpu/head.c: the head's matrix in bf16, which loses nothing on its way: what REPACK_HEAD leaves is read back bit by bit as
 * arch/cuda/layout.h describes bf13, and must be every weight as it was; and inputs that are 1 at one place and 0 elsewhere give
 * back the weight there. Tiles are of all kinds: packed ones with exponents anywhere and at the ends of what fits, and wide ones with
 * zeros, subnormals, infinities, NaN, and exponents too far apart; and of nothing but zeros. One thread. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NIB_SM 90 /* what is used of the layout is the same in every row */
#include "arch/cuda/layout.h"
#include "core/mx.h"
#include "tests/gpu/check.h"
#include "tests/gpu/random.h"

enum { CTX = NIB_MAX_SLOTS, ROWS = NIB_MAX_SLOTS, ROUNDS = 32, KINDS = 11, FAR = 31 };

static void *take(uint64_t bytes)
{
    void *p = malloc(bytes);
    if (!p)
        rig_die("out of host memory");
    return p;
}

/* A weight with an exponent of low .. high. */
static uint16_t weight(uint32_t low, uint32_t high, uint64_t *seed)
{
    const uint64_t r = random_next(seed);
    return (uint16_t)((r & 0x807f) | (low + (r >> 32) % (high - low + 1)) << 7);
}

/* The 16 rows of a tile of that kind; count weights. */
static void fill_tile(uint16_t *to, uint32_t count, uint32_t kind, uint64_t *seed)
{
    const uint32_t any = 1 + (uint32_t)(random_next(seed) % (254 - FAR)), one = (uint32_t)(random_next(seed) % count);
    const uint32_t two = (one + 1 + (uint32_t)(random_next(seed) % (count - 1))) % count;
    for (uint32_t i = 0; i < count; i++)
        to[i] = kind == 2   ? weight(1, 1 + FAR, seed)
                : kind == 3 ? weight(CU_BF13_MAX + 7, 254, seed)
                            : weight(any, any + FAR, seed);
    if (kind == 1 || kind == 2 || kind == 4) { /* both ends are there; of kind 4 they are one too far apart */
        const uint32_t low = kind == 2 ? 1 : any;
        to[one] = weight(low, low, seed);
        to[two] = weight(low + FAR + (kind == 4), low + FAR + (kind == 4), seed);
    }
    if (kind == 5)
        to[one] = to[two] & 0x8000; /* a zero */
    if (kind == 6)
        to[one] = weight(0, 0, seed);
    if (kind == 7)
        to[one] = (uint16_t)(0x7f80 | (to[two] & 0x8000)); /* an infinity */
    if (kind == 8)
        to[one] = weight(255, 255, seed);
    for (uint32_t i = 0; i < count && kind == 9; i++)
        to[i] = weight(0, 254, seed);
    for (uint32_t i = 0; i < count && kind == 10; i++)
        to[i] &= 0x8000;
}

static uint16_t *make(uint32_t n, uint32_t k, uint64_t *seed)
{
    uint16_t *w = take((uint64_t)n * k * 2);
    for (uint32_t t = 0; t < cu_tiles(n); t++) {
        const uint32_t rows = n - t * CU_TILE < CU_TILE ? n - t * CU_TILE : CU_TILE;
        fill_tile(w + (uint64_t)t * CU_TILE * k, rows * k, t % KINDS, seed);
    }
    return w;
}

/* Whether the 16 exponents' bits suffice. */
static uint32_t wanted_base(const uint16_t *w, uint32_t n, uint32_t k, uint32_t tile)
{
    uint32_t low = 255, high = 0, rows = n - tile * CU_TILE < CU_TILE ? n - tile * CU_TILE : CU_TILE, any = 0;
    for (uint64_t i = 0; i < (uint64_t)rows * k; i++)
        any |= w[(uint64_t)tile * CU_TILE * k + i] & 0x7fff;
    if (!any)
        return CU_BF13_ZERO;
    if ((tile + 1) * CU_TILE > n)
        return CU_BF13_WIDE;
    for (uint64_t i = (uint64_t)tile * CU_TILE * k; i < (uint64_t)(tile + 1) * CU_TILE * k; i++) {
        const uint32_t e = w[i] >> 7 & 255;
        low = e < low ? e : low;
        high = e > high ? e : high;
    }
    if (low == 0 || high == 255 || high - low > FAR)
        return CU_BF13_WIDE;
    return low < CU_BF13_MAX ? low : CU_BF13_MAX;
}

/* In two pieces, the later first, as the loader may. */
static void repack(struct rig *rig, nib_cu_ptr to, const uint16_t *w, uint32_t n, uint32_t k)
{
    const uint32_t cut = n / 2 / 64 * 64;
    const nib_cu_ptr staging = rig_take(rig, (uint64_t)n * k * 2);
    for (int part = 1; part >= 0; part--) {
        const uint32_t n0 = part ? cut : 0, n1 = part ? n : cut;
        const struct nib_gpu_repack r = {.dst = to, .src = staging, .n = n, .k = k, .n0 = n0, .n1 = n1};
        if (n0 == n1)
            continue;
        rig_up(rig, staging, w + (uint64_t)n0 * k, (uint64_t)(n1 - n0) * k * 2);
        rig_up(rig, rig->m.repack, &r, sizeof r);
        (void)rig_launch(rig, NIB_GPU_REPACK_HEAD, 0, (struct rig_bucket){0});
        rig_wait(rig);
    }
}

/* Half `half` of word `i` of the lanes' words that lie `apart` bytes from one to the next lane. */
static uint32_t half_of(const uint8_t *at, uint32_t half)
{
    return at[half * 2] | (uint32_t)at[half * 2 + 1] << 8;
}

static uint32_t carrier_of(const uint8_t *span, uint32_t lane, uint32_t i, uint32_t half)
{
    return half_of(i < 12 ? span + i / 4 * 512 + lane * 16 + i % 4 * 4 : span + 1536 + lane * 4, half);
}

/* One weight, from the carriers of its span, and its high words when its tile is wide. */
static uint16_t unpack(const uint8_t *span, const uint8_t *high, uint32_t base, uint32_t lane, uint32_t i,
                       uint32_t half)
{
    uint32_t sign, low = 0, upper = 0;
    if (i < 13) {
        sign = carrier_of(span, lane, i, half) >> 15;
        low = carrier_of(span, lane, i, half) & 0xfff;
    } else {
        sign = carrier_of(span, lane, 12, half) >> (14 - (i - 13)) & 1;
        for (uint32_t c = 0; c < 4; c++)
            low = low << 3 | (carrier_of(span, lane, 4 * (i - 13) + c, half) >> 12 & 7);
    }
    if (base != CU_BF13_WIDE)
        return (uint16_t)(sign << 15 | ((low >> 7) + (base == CU_BF13_ZERO ? 0 : base)) << 7 | (low & 127));
    if (i < 15)
        upper = half_of(high + i / 5 * 128 + lane * 4, half) >> i % 5 * 3 & 7;
    else
        for (uint32_t q = 0; q < 3; q++)
            upper |= half_of(high + q * 128 + lane * 4, half) >> 15 << q;
    return (uint16_t)(sign << 15 | upper << 12 | low);
}

/* Where a weight lies: word 0 .. 15 of a lane and span, in the dense order (arch/cuda/layout.h), and half. */
static uint16_t read_back(const uint8_t *packed, uint32_t n, uint32_t k, uint32_t row, uint32_t col)
{
    const uint32_t tile = row / CU_TILE, r = row % CU_TILE, spans = cu_bf13_spans(k), span = col / 64, in = col % 32;
    const uint32_t lane = r % 8 * 4 + in / 8, mma = in % 8 / 4;
    const uint32_t i = col % 64 / 32 * 8 + mma * 4 + in % 4 / 2 * 2 + r / 8;
    const uint64_t at = (uint64_t)tile * spans + span;
    return unpack(packed + at * CU_BF13_BYTES, packed + cu_bf13_high_at(n, k) + at * CU_BF13_HIGH,
                  packed[cu_bf13_bases_at(n, k) + tile], lane, i, in % 2);
}

/* Returns how many weights are not what they were, or tiles not of the kind they should be. */
static uint64_t compare(const uint8_t *packed, const uint16_t *w, uint32_t n, uint32_t k, uint32_t say)
{
    uint64_t wrong = 0;
    for (uint32_t t = 0; t < cu_tiles(n); t++) {
        const uint32_t base = packed[cu_bf13_bases_at(n, k) + t], want = wanted_base(w, n, k, t);
        if (base != want && wrong++ < say)
            printf("tile %u of [%u][%u]: base %u, not %u\n", t, n, k, base, want);
    }
    for (uint32_t row = 0; row < n; row++)
        for (uint32_t col = 0; col < k; col++) {
            const uint16_t got = read_back(packed, n, k, row, col), want = w[(uint64_t)row * k + col];
            if (got != want && wrong++ < say)
                printf("row %u, input %u of [%u][%u]: %#x, not %#x\n", row, col, n, k, got, want);
        }
    return wrong;
}

static int test_repack(struct rig *rig, uint32_t n, uint32_t k, uint64_t *seed)
{
    const uint64_t bytes = rig->k->head_bytes(n, k);
    const nib_cu_ptr to = rig_take(rig, bytes);
    uint16_t *w = make(n, k, seed);
    uint8_t *packed = take(bytes);
    repack(rig, to, w, n, k);
    rig_down(rig, packed, to, bytes);
    uint64_t wrong = compare(packed, w, n, k, 5);
    packed[17] ^= 4; /* that this comparison can fail */
    const bool seen = compare(packed, w, n, k, 0) == wrong + 1;
    printf("%s head: [%u][%u] repacked, every weight read back, %llu wrong\n", wrong || !seen ? "FAILED" : "ok    ", n,
           k, (unsigned long long)wrong);
    free(w);
    free(packed);
    return wrong != 0 || !seen;
}

struct matrix {
    uint16_t *w;    /* [vocab][hidden] */
    uint32_t *wild; /* of an output, weights that are not finite */
};

static bool is_wild(uint16_t w)
{
    return (w & 0x7f80) == 0x7f80;
}

static struct matrix make_matrix(uint32_t n, uint32_t k, uint64_t *seed)
{
    const struct matrix matrix = {make(n, k, seed), take(n * sizeof(uint32_t))};
    for (uint32_t j = 0; j < n; j++) {
        matrix.wild[j] = 0;
        for (uint32_t i = 0; i < k; i++)
            matrix.wild[j] += is_wild(matrix.w[(uint64_t)j * k + i]);
    }
    return matrix;
}

/* A weight below the smallest normal fp32 may be lost, or keep its sign alone. */
static bool same(float got, float want)
{
    return got == want || (isnan(got) && isnan(want)) || (fabsf(want) < 0x1p-126f && fabsf(got - want) <= 0x1p-126f);
}

/* logits = W e(k), for a k of each row's own: that weight, or not a number where another one of its output is not finite. Returns the wrong
 * ones. */
static uint32_t run_round(struct check *c, const struct matrix *matrix, uint32_t round, uint16_t *acts, float *logits)
{
    const struct nib_shape *s = c->model->shape;
    const uint32_t rows = c->bucket.want, wide = (uint32_t)check_acts_wide(c), k = s->hidden;
    uint32_t wrong = 0;
    memset(acts, 0, (uint64_t)rows * wide * 2);
    for (uint32_t r = 0; r < rows; r++)
        acts[(uint64_t)r * wide + (r * 61 + round * 67) % k] = 0x3f80; /* 1 */
    check_send_acts(c, acts, k);
    rig_fill(c->rig, c->rig->m.logits, 0, (uint64_t)rows * s->vocab * 4);
    (void)rig_launch(c->rig, NIB_GPU_HEAD, 0, c->bucket);
    (void)rig_launch(c->rig, NIB_GPU_HEAD_BATCH, 0, c->bucket);
    rig_down(c->rig, logits, c->rig->m.logits, (uint64_t)rows * s->vocab * 4);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t j = 0; j < s->vocab; j++) {
            const uint32_t at = (r * 61 + round * 67) % k;
            const uint16_t bits = matrix->w[(uint64_t)j * k + at];
            const float got = logits[(uint64_t)r * s->vocab + j];
            const float want = matrix->wild[j] > is_wild(bits) ? NAN : nib_bf16_decode(bits);
            if (!same(got, want) && wrong++ < 5)
                printf("row %u, output %u, weight %#x: %a, not %a\n", r, j, bits, (double)got, (double)want);
        }
    return wrong;
}

static int test_counts(struct rig *rig, struct model *model, const struct matrix *matrix, uint32_t decode)
{
    struct model_run runs[NIB_MAX_SLOTS + 1];
    const uint32_t count = check_decode_runs(runs, decode, CTX);
    uint32_t wrong = 0;
    uint16_t *acts = take((uint64_t)ROWS * nib_q_dim(model->shape) * 2);
    float *logits = take((uint64_t)decode * model->shape->vocab * 4);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        struct check c = check_begin(rig, model, "head", runs, count);
        wrong += run_round(&c, matrix, round, acts, logits);
    }
    printf("%s head %s: tiles of every kind, %u decode rows\n", wrong ? "FAILED" : "ok    ", model->shape->name,
           decode);
    free(acts);
    free(logits);
    return wrong != 0;
}

static int test_shape(struct rig *rig, const char *name, uint32_t vocab, uint32_t slots, const uint32_t counts[3],
                      uint64_t *seed)
{
    struct nib_shape shape = *nib_shape_find(name);
    struct model model;
    int failures = 0;
    shape.vocab = vocab;
    rig_arena(rig, 2ull << 30, true);
    model_make(rig, &model, &shape, slots, CTX, ROWS, slots * CTX / 64, 62);
    model_load(rig, &model);
    model_tables_even(rig, &model, CTX, slots);
    const struct matrix matrix = make_matrix(model.shape->vocab, model.shape->hidden, seed);
    repack(rig, rig->m.lm_head, matrix.w, model.shape->vocab, model.shape->hidden);
    for (int i = 0; i < 3; i++)
        failures += test_counts(rig, &model, &matrix, counts[i]);
    free(matrix.w);
    free(matrix.wild);
    model_close(&model);
    return failures;
}

static int test_sizes(struct rig *rig, uint64_t *seed)
{
    static const uint32_t sizes[][2] = {{1024, 2880}, {333, 96}, {160, 32}, {201, 256}};
    struct model model;
    int failures = 0;
    rig_arena(rig, 1ull << 30, true);
    model_open(rig, &model, "tiny", 1, CTX, 1, CTX / 64, 62);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        failures += test_repack(rig, sizes[i][0], sizes[i][1], seed);
    model_close(&model);
    return failures;
}

/* Where the hidden size is the 20b's, blocks of the form for few rows take tiles by tickets when there are more than two for each (a block or two a
 * multiprocessor, by the number of rows); the form for many has ways of its own from 65 and from 129 rows on. */
int rig_test_head(struct rig *rig)
{
    uint64_t seed = 1313;
    return test_sizes(rig, &seed) +
           test_shape(rig, "tiny", nib_shape_find("tiny")->vocab, 20, (const uint32_t[]){1, 9, 17}, &seed) +
           test_shape(rig, "20b-slice", 20480, 20, (const uint32_t[]){1, 5, 16}, &seed) +
           test_shape(rig, "20b-slice", 8192, NIB_MAX_SLOTS, (const uint32_t[]){65, 129, 250}, &seed);
}
