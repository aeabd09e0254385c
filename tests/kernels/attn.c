/* tests/kernels/attn.c: KV pages and attention against ref, and independence of cuts and pages. */
#include <math.h>

#include "core/mx.h"
#include "tests/harness.h"
#include "tests/kernels/kernels.h"

enum { PAGES_MAX = 24, PAD = 32 };

/* One sequence of `tokens` positions in the pages of one row of the table. Pages not of the sequence, and tokens the
 * queries must not see, hold NaN. */
struct sequence {
    const struct nib_kernels *row;
    enum nib_kv_form form;
    uint32_t kv_heads, tokens, pages_count;
    uint32_t pages[PAGES_MAX];
    uint64_t stride;
    struct kt_buf memory;
};

struct inputs {
    uint32_t kv_heads, tokens;
    struct kt_buf k, v, q, sinks; /* [tokens][kv_heads * 64], [tokens][kv_heads * 512], [kv_heads * 8] */
};

/* For pages in bf16 a bf16 number, so that ref's fp32 pages hold the same; any number for FP8, which all rows encode alike:
 * blocks of very different sizes, and some too large or too small for it. */
static float stored(enum nib_kv_form form, uint64_t *seed)
{
    const uint64_t kind = nib_test_rand(seed) % 256;
    if (form == NIB_KV_BF16)
        return nib_bf16_decode(kt_bf16(seed));
    return kt_normal(seed) * (kind == 0 ? 0.0f : kind == 1 ? 1e-5f : kind == 2 ? 20.0f : 1.0f);
}

static struct inputs take_inputs(enum nib_kv_form form, uint32_t kv_heads, uint32_t tokens, uint64_t *seed)
{
    const size_t kv = (size_t)tokens * kv_heads * NIB_HEAD_DIM;
    struct inputs in = {.kv_heads = kv_heads,
                        .tokens = tokens,
                        .k = kt_take(kv * sizeof(float)),
                        .v = kt_take(kv * sizeof(float)),
                        .q = kt_take(kv * NIB_GQA_GROUP * sizeof(float)),
                        .sinks = kt_take(kv_heads * NIB_GQA_GROUP * sizeof(uint16_t))};
    for (size_t i = 0; i < kv; i++) {
        ((float *)in.k.p)[i] = stored(form, seed);
        ((float *)in.v.p)[i] = stored(form, seed);
    }
    for (size_t i = 0; i < kv * NIB_GQA_GROUP; i++)
        ((float *)in.q.p)[i] = kt_normal(seed) * 2;
    for (uint32_t h = 0; h < kv_heads * NIB_GQA_GROUP; h++)
        ((uint16_t *)in.sinks.p)[h] = kt_bf16(seed);
    return in;
}

static void free_inputs(struct inputs *in)
{
    kt_free(&in->k);
    kt_free(&in->v);
    kt_free(&in->q);
    kt_free(&in->sinks);
}

/* Stores positions 0 .. tokens-1 in random pages, `pages_count` of them used as a ring. */
static struct sequence store(const struct nib_kernels *row, enum nib_kv_form form, const struct inputs *in,
                             uint32_t pages_count, uint64_t *seed)
{
    const bool fp8 = form == NIB_KV_FP8;
    struct sequence s = {
        .row = row, .form = form, .kv_heads = in->kv_heads, .tokens = in->tokens, .pages_count = pages_count};
    s.stride = nib_kernels_ref.kv_page_bytes(in->kv_heads) + 4096; /* any stride that is large enough */
    ck_assert_uint_le((fp8 ? row->kv8_page_bytes : row->kv_page_bytes)(in->kv_heads), s.stride);
    s.memory = kt_take(PAGES_MAX * s.stride);
    uint32_t order[PAGES_MAX];
    for (uint32_t i = 0; i < PAGES_MAX; i++)
        order[i] = i;
    for (uint32_t i = PAGES_MAX - 1; i > 0; i--) {
        const uint32_t j = (uint32_t)(nib_test_rand(seed) % (i + 1)), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    memcpy(s.pages, order, pages_count * sizeof order[0]);
    for (uint32_t t = 0; t < in->tokens; t++) {
        uint8_t *page = (uint8_t *)s.memory.p + s.pages[t / NIB_KV_PAGE_TOKENS % pages_count] * s.stride;
        const size_t at = (size_t)t * in->kv_heads * NIB_HEAD_DIM;
        (fp8 ? row->kv8_put : row->kv_put)(page, in->kv_heads, t % NIB_KV_PAGE_TOKENS, (float *)in->k.p + at,
                                           (float *)in->v.p + at);
    }
    return s;
}

/* Queries pos0 .. pos0+rows-1, heads [h0, h1), into out [rows][heads * 64 + PAD]. */
static void attend(const struct sequence *s, const struct inputs *in, float *out, uint32_t pos0, uint32_t rows,
                   uint32_t window, uint32_t h0, uint32_t h1)
{
    const uint64_t width = (uint64_t)in->kv_heads * NIB_GQA_GROUP * NIB_HEAD_DIM;
    struct kt_buf scratch = kt_take(s->row->attn_scratch_bytes(in->tokens));
    const struct nib_attn a = {.q = (float *)in->q.p + pos0 * width,
                               .out = out,
                               .kv = s->memory.p,
                               .pages = s->pages,
                               .sinks = in->sinks.p,
                               .scratch = scratch.p,
                               .page_stride = s->stride,
                               .ldq = width,
                               .ldo = width + PAD,
                               .pages_count = s->pages_count,
                               .rows = rows,
                               .pos0 = pos0,
                               .window = window,
                               .kv_heads = in->kv_heads,
                               .h0 = h0,
                               .h1 = h1,
                               .form = s->form};
    s->row->attn(&a);
    kt_free(&scratch);
}

static struct kt_buf take_out(const struct inputs *in, uint32_t rows)
{
    return kt_take((size_t)rows * (in->kv_heads * NIB_GQA_GROUP * NIB_HEAD_DIM + PAD) * sizeof(float));
}

/* The last `rows` positions of the sequence: equal to ref; and the same bits query by query, in chunks, by head, and in
 * other pages. */
static double check_attn(const struct nib_kernels *row, enum nib_kv_form form, uint32_t kv_heads, uint32_t tokens,
                         uint32_t rows, uint32_t window, uint32_t pages_count, uint64_t *seed)
{
    struct inputs in = take_inputs(form, kv_heads, tokens, seed);
    struct sequence ref = store(kt_ref, form, &in, pages_count, seed), got = store(row, form, &in, pages_count, seed);
    const uint32_t pos0 = tokens - rows, width = kv_heads * NIB_GQA_GROUP * NIB_HEAD_DIM;
    const uint64_t ld = width + PAD;
    struct kt_buf want = take_out(&in, rows), have = take_out(&in, rows), cut = take_out(&in, rows);
    attend(&ref, &in, want.p, pos0, rows, window, 0, kv_heads);
    attend(&got, &in, have.p, pos0, rows, window, 0, kv_heads);
    const double error = kt_error(have.p, ld, want.p, ld, rows, width);
    ck_assert_msg(error < 2e-6, "%s %s: %u tokens, %u rows, window %u: error %g", row->name, nib_kv_form_name(form),
                  tokens, rows, window, error);

    struct sequence other = store(row, form, &in, pages_count, seed);
    for (uint32_t r = 0, step; r < rows; r += step) {
        step = 1 + (uint32_t)(nib_test_rand(seed) % (rows - r));
        for (uint32_t h = 0; h < kv_heads; h++)
            attend(&other, &in, (float *)cut.p + r * ld, pos0 + r, step, window, h, h + 1);
    }
    for (uint32_t r = 0; r < rows; r++) {
        ck_assert(kt_same_bits((float *)cut.p + r * ld, (float *)have.p + r * ld, width));
        for (uint32_t j = width; j < ld; j++)
            ck_assert_uint_eq(nib_f32_bits(((float *)have.p)[r * ld + j]), 0xffffffffu);
    }
    kt_free(&ref.memory);
    kt_free(&got.memory);
    kt_free(&other.memory);
    kt_free(&want);
    kt_free(&have);
    kt_free(&cut);
    free_inputs(&in);
    return error;
}

static void try_attention_equals_ref(enum nib_kv_form form)
{
    uint64_t seed = nib_test_seed();
    const uint32_t tokens[] = {1, 2, 3, 63, 64, 65, 127, 128, 129, 130, 191, 257, 300};
    for (size_t r = 0; r < kt_rows_count; r++) {
        double worst = 0;
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            const uint32_t t = tokens[i];
            const uint32_t rows = 1 + (uint32_t)(nib_test_rand(&seed) % (t < 40 ? t : 40));
            worst = fmax(worst, check_attn(kt_rows[r], form, 1 + i % 2, t, rows, 0, 6, &seed));
            worst = fmax(worst, check_attn(kt_rows[r], form, 1 + i % 2, t, rows, 128, 6, &seed));
            worst = fmax(worst, check_attn(kt_rows[r], form, 1, t, 1, 5, 6, &seed));
        }
        /* past the ring of a window layer: 3 or more pages hold window + rows - 1 positions */
        worst = fmax(worst, check_attn(kt_rows[r], form, 1, 500, 30, 128, 4, &seed));
        worst = fmax(worst, check_attn(kt_rows[r], form, 1, 705, 1, 128, 3, &seed));
        worst = fmax(worst, check_attn(kt_rows[r], form, 2, 1217, 20, 0, 20, &seed));
        printf("%s %s: largest error of attention %.2g\n", kt_rows[r]->name, nib_kv_form_name(form), worst);
    }
}

START_TEST(attention_equals_ref)
{
    for (enum nib_kv_form form = 0; form < NIB_KV_FORMS; form++)
        try_attention_equals_ref(form);
}
END_TEST

/* Tokens out of a query's range are NaN in memory: nothing of them may be seen. */
static void try_unseen_tokens_do_not_matter(enum nib_kv_form form)
{
    uint64_t seed = nib_test_seed();
    const uint32_t tokens = 200, kv_heads = 1;
    for (size_t r = 0; r < kt_rows_count; r++) {
        struct inputs in = take_inputs(form, kv_heads, tokens, &seed);
        struct sequence clean = store(kt_rows[r], form, &in, 4, &seed);
        struct kt_buf want = take_out(&in, 1), have = take_out(&in, 1);
        const size_t width = kv_heads * NIB_GQA_GROUP * NIB_HEAD_DIM;
        for (uint32_t pos = 0; pos < tokens; pos += 1 + (uint32_t)(nib_test_rand(&seed) % 9)) {
            const uint32_t window = pos % 3 == 0 ? 0 : pos % 3 == 1 ? 128 : 1 + pos % 7;
            const uint32_t begin = window > 0 && pos + 1 > window ? pos + 1 - window : 0;
            struct inputs dirty_in = take_inputs(form, kv_heads, tokens, &seed); /* then the seen tokens of `in` */
            for (uint32_t t = 0; t < tokens; t++)
                for (uint32_t d = 0; d < NIB_HEAD_DIM; d++) {
                    const size_t at = t * NIB_HEAD_DIM + d;
                    const bool seen = t >= begin && t <= pos;
                    ((float *)dirty_in.k.p)[at] = seen ? ((float *)in.k.p)[at] : NAN;
                    ((float *)dirty_in.v.p)[at] = seen ? ((float *)in.v.p)[at] : NAN;
                }
            struct sequence dirty = store(kt_rows[r], form, &dirty_in, 4, &seed);
            attend(&clean, &in, want.p, pos, 1, window, 0, kv_heads);
            attend(&dirty, &in, have.p, pos, 1, window, 0, kv_heads);
            (void)kt_error(have.p, width, want.p, width, 1, (uint32_t)width); /* finite */
            ck_assert(kt_same_bits(have.p, want.p, width));
            free_inputs(&dirty_in);
            kt_free(&dirty.memory);
        }
        kt_free(&want);
        kt_free(&have);
        kt_free(&clean.memory);
        free_inputs(&in);
    }
}

START_TEST(unseen_tokens_do_not_matter)
{
    for (enum nib_kv_form form = 0; form < NIB_KV_FORMS; form++)
        try_unseen_tokens_do_not_matter(form);
}
END_TEST

/* A page that was stored in another order of tokens is the same page, and each token's bytes are its own. */
static void try_tokens_are_stored_apart(enum nib_kv_form form)
{
    uint64_t seed = nib_test_seed();
    const uint32_t kv_heads = 3, width = kv_heads * NIB_HEAD_DIM;
    for (size_t r = 0; r < kt_rows_count; r++) {
        const struct nib_kernels *row = kt_rows[r];
        void (*put)(void *, uint32_t, uint32_t, const float *, const float *) =
            form == NIB_KV_FP8 ? row->kv8_put : row->kv_put;
        const uint64_t bytes = (form == NIB_KV_FP8 ? row->kv8_page_bytes : row->kv_page_bytes)(kv_heads);
        struct kt_buf a = kt_take(bytes), b = kt_take(bytes);
        memset(b.p, 0, bytes); /* every byte of a page is some token's */
        struct kt_buf kv = kt_take((size_t)2 * NIB_KV_PAGE_TOKENS * width * sizeof(float));
        float *k = kv.p, *v = k + NIB_KV_PAGE_TOKENS * width;
        for (uint32_t i = 0; i < NIB_KV_PAGE_TOKENS * width; i++) {
            k[i] = kt_normal(&seed);
            v[i] = kt_normal(&seed);
        }
        for (uint32_t t = 0; t < NIB_KV_PAGE_TOKENS; t++)
            put(a.p, kv_heads, t, k + t * width, v + t * width);
        for (uint32_t i = 0; i < NIB_KV_PAGE_TOKENS; i++) {
            const uint32_t t = i * 37 % NIB_KV_PAGE_TOKENS;
            put(b.p, kv_heads, t, k + t * width, v + t * width);
        }
        ck_assert(memcmp(a.p, b.p, a.bytes) == 0);
        kt_free(&a);
        kt_free(&b);
        kt_free(&kv);
    }
}

START_TEST(tokens_are_stored_apart)
{
    for (enum nib_kv_form form = 0; form < NIB_KV_FORMS; form++)
        try_tokens_are_stored_apart(form);
}
END_TEST

KT_TESTS(kt_attn_tests, attention_equals_ref, unseen_tokens_do_not_matter, tokens_are_stored_apart)
