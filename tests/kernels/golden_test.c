/* tests/kernels/golden_test.c: arch/ref against what Hugging Face transformers' GptOss said in fp32: logits, a greedy
 * answer of 128 tokens, and YaRN's tables. tests/vectors/transformers_full.py writes engine_golden.txt and describes
 * it; `make vectors` compares much more. */
#include <math.h>

#include "arch/rope.h"
#include "tests/engine_fixture.h"

#define GOLDEN "tests/vectors/engine_golden.txt"
#define LIMIT  1e-4 /* ||ours - theirs|| / ||theirs|| of a row of logits */

enum { TOKENS_MAX = 512, VOCAB_MAX = 512, ROWS_MAX = 8 };

struct golden {
    char shape[32];
    uint64_t seed;
    uint32_t prompt_count, answer_count, rows_count;
    uint32_t tokens[TOKENS_MAX]; /* the prompt, then the answer */
    uint32_t positions[ROWS_MAX];
    float rows[ROWS_MAX][VOCAB_MAX];
};

static struct fixture f;
static struct golden golden;

static void read_floats(FILE *file, float *ret, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bits;
        ck_assert_int_eq(fscanf(file, "%x", &bits), 1);
        memcpy(&ret[i], &bits, sizeof bits);
    }
}

/* The next model of the file; false when a line of another kind comes. */
static bool read_model(FILE *file, struct golden *g)
{
    unsigned long long seed;
    memset(g, 0, sizeof *g);
    if (fscanf(file, " model %31s %llu %u %u", g->shape, &seed, &g->prompt_count, &g->answer_count) != 4)
        return false;
    g->seed = seed;
    ck_assert_uint_le(g->prompt_count + g->answer_count, TOKENS_MAX);
    for (uint32_t i = 0; i < g->prompt_count + g->answer_count; i++)
        ck_assert_int_eq(fscanf(file, "%u", &g->tokens[i]), 1);
    const struct nib_shape *shape = nib_shape_find(g->shape);
    ck_assert(shape && shape->vocab <= VOCAB_MAX);
    while (g->rows_count < ROWS_MAX && fscanf(file, " logits %u", &g->positions[g->rows_count]) == 1)
        read_floats(file, g->rows[g->rows_count++], shape->vocab);
    ck_assert_uint_gt(g->rows_count, 0);
    return true;
}

static double relative_error(const float *a, const float *b, uint32_t n)
{
    double difference = 0, norm = 0;
    for (uint32_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / norm);
}

/* Feeds the prompt and follows our own greedy answer; every golden row and every token is compared. */
static double follow(const struct golden *g)
{
    static float logits[VOCAB_MAX];
    const uint32_t total = g->prompt_count + g->answer_count;
    double worst = 0;
    uint32_t row = 0;
    for (uint32_t p = 0; p + 1 < total; p++) {
        fixture_begin(&f);
        fixture_row(&f, 0, p, g->tokens[p], NIB_ROW_LOGITS | (p < g->prompt_count ? 0 : NIB_ROW_DECODE));
        fixture_run(&f, logits);
        if (p + 1 >= g->prompt_count)
            ck_assert_uint_eq(f.out.sampled[0].token, g->tokens[p + 1]);
        if (row < g->rows_count && g->positions[row] == p) {
            double error = relative_error(logits, g->rows[row++], f.image.shape->vocab);
            ck_assert_msg(error <= LIMIT, "%s position %u: error %g", g->shape, p, error);
            worst = error > worst ? error : worst;
        }
    }
    ck_assert_uint_eq(row, g->rows_count);
    return worst;
}

START_TEST(logits_are_those_of_transformers)
{
    FILE *file = fopen(GOLDEN, "r");
    ck_assert_msg(file != NULL, "run me at the root of the tree: %s", GOLDEN);
    int models = 0;
    while (read_model(file, &golden)) {
        const struct fixture_options o = {.shape = golden.shape,
                                          .kernels = &nib_kernels_ref,
                                          .seed = golden.seed,
                                          .ctx_tokens = TOKENS_MAX,
                                          .slots = 1,
                                          .step_rows_max = 16,
                                          .threads = 2};
        fixture_open(&f, &o);
        printf("%s: largest relative error %.1e\n", golden.shape, follow(&golden));
        fixture_close(&f);
        models++;
    }
    ck_assert_int_eq(models, 2);
    fclose(file);
}
END_TEST

/* Frequencies differ by one unit in the last place at most (the power function's), angles by that times the position. */
START_TEST(rope_tables_are_those_of_transformers)
{
    float freq[NIB_ROPE_PAIRS], want[NIB_ROPE_PAIRS], cos[NIB_ROPE_PAIRS], sin[NIB_ROPE_PAIRS];
    char line[16384] = "";
    FILE *file = fopen(GOLDEN, "r");
    ck_assert_ptr_nonnull(file);
    while (strncmp(line, "frequencies", 11) != 0 && fgets(line, sizeof line, file))
        ;
    ck_assert_int_eq(fseek(file, -(long)strlen(line) + 11, SEEK_CUR), 0);
    read_floats(file, want, NIB_ROPE_PAIRS);
    nib_rope_frequencies(freq);
    for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++)
        ck_assert_float_le(fabsf(freq[i] - want[i]), 1.2e-7f * want[i]);
    uint32_t position, count = 0;
    while (fscanf(file, " rope %u", &position) == 1) {
        const float tolerance = 1e-6f + 2.4e-7f * (float)position;
        nib_rope_table(freq, position, cos, sin);
        read_floats(file, want, NIB_ROPE_PAIRS);
        for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++)
            ck_assert_float_le(fabsf(cos[i] - want[i]), tolerance * fminf(1, freq[i] * 4 + 1e-2f));
        read_floats(file, want, NIB_ROPE_PAIRS);
        for (uint32_t i = 0; i < NIB_ROPE_PAIRS; i++)
            ck_assert_float_le(fabsf(sin[i] - want[i]), tolerance * fminf(1, freq[i] * 4 + 1e-2f));
        count++;
    }
    ck_assert_uint_eq(count, 7);
    fclose(file);
}
END_TEST

NIB_SUITE(golden, logits_are_those_of_transformers, rope_tables_are_those_of_transformers)
