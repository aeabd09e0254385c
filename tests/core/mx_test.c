/* tests/core/mx_test.c: number formats, exhaustively over codes, against digests of independent references
 * (tests/vectors/mx_full.py: ml_dtypes, numpy, gguf, the MX 1.0 text), and the values that OCP prints. */
#include "core/mx.h"

#include <math.h>

#include "core/hash.h"
#include "tests/harness.h"
#include "tests/vectors/mx_vectors.h"

/* One element format, codes as 16 bits; how random values in its range are made; what a NaN settles to. */
struct element {
    const char *name;
    uint32_t codes;
    uint32_t code_bytes;
    bool has_sign;
    uint32_t exponent_low, exponent_high; /* of fp32, for random values */
    uint16_t nan_code;
    float (*decode)(uint16_t code);
    uint16_t (*encode)(float x);
    const char *decode_sha256, *input_sha256, *encode_sha256;
    size_t inputs;
};

static float dec_bf16(uint16_t c)
{
    return nib_bf16_decode(c);
}
static float dec_e2m1(uint16_t c)
{
    return nib_e2m1_decode((uint8_t)c);
}
static float dec_e8m0(uint16_t c)
{
    return nib_e8m0_decode((uint8_t)c);
}
static float dec_e4m3(uint16_t c)
{
    return nib_e4m3_decode((uint8_t)c);
}
static uint16_t enc_e2m1(float x)
{
    return nib_e2m1_encode(x);
}
static uint16_t enc_e8m0(float x)
{
    return nib_e8m0_encode(x);
}
static uint16_t enc_e4m3(float x)
{
    return nib_e4m3_encode(x);
}

static const struct element elements[] = {
    {"bf16", 65536, 2, true, 1, 254, 0x7fc0, dec_bf16, nib_bf16_encode, MX_BF16_DECODE, MX_BF16_INPUT_BITS,
     MX_BF16_ENCODE, MX_BF16_INPUTS},
    {"fp16", 65536, 2, true, 100, 143, 0x7e00, nib_fp16_decode, nib_fp16_encode, MX_FP16_DECODE, MX_FP16_INPUT_BITS,
     MX_FP16_ENCODE, MX_FP16_INPUTS},
    {"e2m1", 16, 1, true, 123, 131, 0, dec_e2m1, enc_e2m1, MX_E2M1_DECODE, MX_E2M1_INPUT_BITS, MX_E2M1_ENCODE,
     MX_E2M1_INPUTS},
    {"e8m0", 256, 1, false, 1, 254, 255, dec_e8m0, enc_e8m0, MX_E8M0_DECODE, MX_E8M0_INPUT_BITS, MX_E8M0_ENCODE,
     MX_E8M0_INPUTS},
    {"e4m3", 256, 1, true, 115, 137, 0x7f, dec_e4m3, enc_e4m3, MX_E4M3_DECODE, MX_E4M3_INPUT_BITS, MX_E4M3_ENCODE,
     MX_E4M3_INPUTS},
};

#define ELEMENTS (sizeof elements / sizeof elements[0])

static void expect_digest(const char *what, const char *name, const void *bytes, size_t n, const char *expected)
{
    uint8_t digest[NIB_SHA256_BYTES];
    char text[2 * NIB_SHA256_BYTES + 1];
    nib_sha256(bytes, n, digest);
    nib_hex_print(digest, sizeof digest, text);
    if (strcmp(text, expected) != 0)
        ck_abort_msg("%s of %s differ from the reference's", what, name);
}

START_TEST(every_code_decodes_as_the_reference)
{
    float *x = malloc(65536 * sizeof *x);
    for (size_t e = 0; e < ELEMENTS; e++) {
        for (uint32_t c = 0; c < elements[e].codes; c++) {
            x[c] = elements[e].decode((uint16_t)c);
            if (isnan(x[c]))
                x[c] = nib_f32_from_bits(0x7fc00000u);
        }
        expect_digest("values", elements[e].name, x, elements[e].codes * sizeof *x, elements[e].decode_sha256);
        printf("%s: all %u codes decoded\n", elements[e].name, elements[e].codes);
    }
    free(x);
}
END_TEST

/* The inputs of tests/vectors/mx_full.py: each finite value, the midpoint above it and the midpoint's neighbours, with both
 * signs; special values; random bits; random values in range. Returns their count. */
static size_t make_inputs(const struct element *e, float *out)
{
    static const uint32_t special[] = {0,           0x80000000u, 0x7f800000u, 0xff800000u, 1,
                                       0x80000001u, 0x7f7fffffu, 0xff7fffffu, 0x00800000u, 0x007fffffu,
                                       0x7fc00000u, 0xffc00000u, 0x7f800001u};
    size_t n = 0;
    uint32_t values = 0;
    while (values < (e->has_sign ? e->codes / 2 : e->codes) && isfinite(e->decode((uint16_t)values)))
        values++;
    for (uint32_t c = 0; c < values; c++) {
        float v = e->decode((uint16_t)c);
        float step = c + 1 < values ? e->decode((uint16_t)(c + 1)) - v : v - e->decode((uint16_t)(c - 1));
        float middle = v + step / 2;
        const float edge[] = {v, middle, nextafterf(middle, INFINITY), nextafterf(middle, 0)};
        for (int i = 0; i < 4; i++) {
            out[n++] = edge[i];
            out[n++] = -edge[i];
        }
    }
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++)
        out[n++] = nib_f32_from_bits(special[i]);
    uint64_t state = MX_SEED;
    for (int i = 0; i < MX_RANDOMS; i++)
        out[n++] = nib_f32_from_bits((uint32_t)(nib_test_rand(&state) >> 32));
    for (int i = 0; i < MX_RANDOMS; i++) {
        uint64_t w = nib_test_rand(&state);
        uint32_t exponent = e->exponent_low + (uint32_t)((w >> 32) % (e->exponent_high - e->exponent_low + 1));
        out[n++] = nib_f32_from_bits(((uint32_t)w & 0x807fffffu) | exponent << 23);
    }
    return n;
}

START_TEST(encoding_rounds_as_the_reference)
{
    float *x = malloc((65536 * 4 + 64 + 2 * MX_RANDOMS) * sizeof *x);
    for (size_t i = 0; i < ELEMENTS; i++) {
        const struct element *e = &elements[i];
        size_t n = make_inputs(e, x);
        ck_assert_uint_eq(n, e->inputs);
        expect_digest("inputs", e->name, x, n * sizeof *x, e->input_sha256);
        uint8_t *codes = malloc(2 * n);
        for (size_t k = 0; k < n; k++) {
            uint16_t code = isnan(x[k]) ? e->nan_code : e->encode(x[k]);
            codes[k * e->code_bytes] = (uint8_t)code;
            if (e->code_bytes == 2)
                codes[k * 2 + 1] = (uint8_t)(code >> 8);
        }
        expect_digest("codes", e->name, codes, n * e->code_bytes, e->encode_sha256);
        printf("%s: %zu values encoded\n", e->name, n);
        free(codes);
    }
    free(x);
}
END_TEST

START_TEST(nan_stays_nan_where_the_format_has_one)
{
    static const uint32_t nans[] = {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu, 0x7fa5a5a5u};
    for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++) {
        float x = nib_f32_from_bits(nans[i]);
        ck_assert(isnan(nib_bf16_decode(nib_bf16_encode(x))));
        ck_assert(isnan(nib_fp16_decode(nib_fp16_encode(x))));
        ck_assert(isnan(nib_e4m3_decode(nib_e4m3_encode(x))));
        ck_assert(isnan(nib_e8m0_decode(nib_e8m0_encode(x))));
        ck_assert_float_eq(nib_e2m1_decode(nib_e2m1_encode(x)), 0.0f);
        ck_assert_int_eq(nib_bf16_encode(x) >> 15, (int)(nans[i] >> 31));
    }
}
END_TEST

START_TEST(every_code_survives_a_round_trip)
{
    for (size_t i = 0; i < ELEMENTS; i++)
        for (uint32_t c = 0; c < elements[i].codes; c++) {
            float x = elements[i].decode((uint16_t)c);
            if (!isnan(x))
                ck_assert_uint_eq(elements[i].encode(x), c);
        }
}
END_TEST

/* A 3-bit integer over 8, as the formula that was first proposed for this project reads a code. */
static float eighths(uint8_t code)
{
    float magnitude = (float)(code & 7) / 8.0f;
    return code & 8 ? -magnitude : magnitude;
}

START_TEST(e2m1_is_ocps_and_not_eighths)
{
    static const float ocp[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6}; /* MX 1.0, table 5 */
    int different = 0;
    for (uint8_t code = 0; code < 16; code++) {
        float expected = code & 8 ? -ocp[code & 7] : ocp[code & 7];
        ck_assert_float_eq(nib_e2m1_decode(code), expected);
        different += nib_e2m1_decode(code) != eighths(code);
    }
    ck_assert_int_eq(different, 14); /* all but the two zeros */
    /* no common factor repairs it: OCP's steps grow, those of eighths do not */
    ck_assert_float_eq(nib_e2m1_decode(7) / nib_e2m1_decode(1), 12.0f);
    ck_assert_float_eq(eighths(7) / eighths(1), 7.0f);
}
END_TEST

/* Blocks as tests/vectors/mx_full.py makes them. */
static float *make_blocks(size_t width)
{
    float *x = malloc(MX_BLOCKS * width * sizeof *x);
    uint64_t state = MX_SEED + width;
    for (size_t b = 0; b < MX_BLOCKS; b++)
        for (size_t i = 0; i < width; i++) {
            uint64_t w = nib_test_rand(&state);
            int32_t sum = (int32_t)((w & 0xffff) + (w >> 16 & 0xffff) + (w >> 32 & 0xffff) + (w >> 48)) - 131070;
            bool zero = b % 97 == 0 || (b % 97 == 1 && i > 0);
            x[b * width + i] = zero ? 0.0f : ldexpf((float)sum, (int)(b % 48) - 40);
        }
    return x;
}

START_TEST(mx_blocks_encode_as_the_reference)
{
    float *x = make_blocks(32);
    uint8_t *four = malloc(MX_BLOCKS * 17);
    uint8_t *eight = malloc(MX_BLOCKS * 33);
    for (size_t b = 0; b < MX_BLOCKS; b++) {
        nib_mxfp4_encode(x + b * 32, four + b * 17, four + b * 17 + 1);
        nib_mxfp8_encode(x + b * 32, eight + b * 33, eight + b * 33 + 1);
    }
    expect_digest("blocks", "mxfp4", four, MX_BLOCKS * 17, MX_MXFP4_BLOCKS);
    expect_digest("blocks", "mxfp8", eight, MX_BLOCKS * 33, MX_MXFP8_BLOCKS);
    free(x);
    free(four);
    free(eight);
}
END_TEST

START_TEST(mxfp4_decodes_every_scale_and_code)
{
    float x[32];
    uint8_t codes[16];
    for (int i = 0; i < 16; i++)
        codes[i] = (uint8_t)(i | (15 - i) << 4);
    for (int scale = 0; scale < 256; scale++) {
        nib_mxfp4_decode((uint8_t)scale, codes, x);
        for (int i = 0; i < 16; i++) {
            if (scale == 255) {
                ck_assert(isnan(x[2 * i]) && isnan(x[2 * i + 1]));
                continue;
            }
            ck_assert_float_eq(x[2 * i], ldexpf(nib_e2m1_values[i], scale - 127));
            ck_assert_float_eq(x[2 * i + 1], ldexpf(nib_e2m1_values[15 - i], scale - 127));
        }
    }
}
END_TEST

/* An E4M3 code by the text of OFP8 1.0: sign, 4 bits of exponent with bias 7, 3 of fraction; S.1111.111 is NaN. */
static double e4m3_of(unsigned code)
{
    const int exponent = (int)(code >> 3 & 15), fraction = (int)(code & 7);
    const double magnitude = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
    return (code & 0x7f) == 0x7f ? NAN : code & 0x80 ? -magnitude : magnitude;
}

/* x to bf16 in double arithmetic: to the nearest multiple of its last place, ties to even; too large is infinite. */
static double bf16_of(double x)
{
    int exponent;
    if (x == 0 || !isfinite(x))
        return x;
    (void)frexp(x, &exponent);
    const int last = exponent - 8 < -133 ? -133 : exponent - 8;
    const double rounded = ldexp(rint(ldexp(x, -last)), last);
    return fabs(rounded) >= 0x1p128 ? copysign(INFINITY, x) : rounded;
}

START_TEST(mxfp8_decodes_every_scale_and_code)
{
    for (unsigned scale = 0; scale < 256; scale++)
        for (unsigned first = 0; first < 256; first += 32) {
            uint8_t codes[32];
            float x[32];
            uint16_t narrow[32];
            for (unsigned i = 0; i < 32; i++)
                codes[i] = (uint8_t)(first + i);
            nib_mxfp8_decode((uint8_t)scale, codes, x);
            nib_mxfp8_decode_bf16((uint8_t)scale, codes, narrow);
            for (unsigned i = 0; i < 32; i++) {
                const double want = scale == 255 ? NAN : ldexp(e4m3_of(first + i), (int)scale - 127);
                const double got = (double)nib_bf16_decode(narrow[i]);
                ck_assert(isnan(want) ? isnan(x[i]) && isnan(got) : (double)x[i] == (double)(float)want);
                ck_assert_msg(isnan(want) || got == bf16_of(want), "scale %u code %u: %a, not %a", scale, first + i,
                              got, bf16_of(want));
                if (!isnan(want) && scale >= 3 && scale <= 246)
                    ck_assert(got == want && signbit(got) == signbit(want));
            }
        }
}
END_TEST

/* The scale is the power of two of the largest element, divided by that of 448 (MX 1.0, 6.3): what then lies above 448 is
 * cut to it. */
START_TEST(mxfp8_scales_follow_the_specification)
{
    static const struct {
        float max;
        uint8_t scale, code;
    } cases[] = {{448.0f, 127, 0x7e}, {256.0f, 127, 0x78},     {511.0f, 127, 0x7e}, {512.0f, 128, 0x78},
                 {1.0f, 119, 0x78},   {-1.75f, 119, 0xfe},     {-1.99f, 119, 0xfe}, {0x1p-120f, 0, 0x70},
                 {0, 0, 0},           {0x1.fep127f, 246, 0x7e}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float x[32] = {0};
        uint8_t scale, codes[32];
        x[i] = cases[i].max;
        nib_mxfp8_encode(x, &scale, codes);
        ck_assert_msg(scale == cases[i].scale && codes[i] == cases[i].code, "%a: scale %u, code %#x",
                      (double)cases[i].max, scale, codes[i]);
    }
}
END_TEST

START_TEST(mx_blocks_decode_what_they_encode)
{
    float x[32];
    float y[32];
    uint8_t scale;
    uint8_t codes[32];
    uint64_t state = nib_test_seed();
    for (int round = 0; round < 1000; round++) {
        int exponent = (int)(nib_test_rand(&state) % 200) - 100;
        for (int i = 0; i < 32; i++)
            x[i] = ldexpf(nib_e2m1_values[nib_test_rand(&state) % 16], exponent);
        x[0] = ldexpf(6.0f, exponent); /* the scale is then 2^exponent, and every value is one of the format's */
        nib_mxfp4_encode(x, &scale, codes);
        nib_mxfp4_decode(scale, codes, y);
        for (int i = 0; i < 32; i++)
            ck_assert_float_eq(x[i], y[i]);
        nib_mxfp8_encode(x, &scale, codes);
        nib_mxfp8_decode(scale, codes, y);
        for (int i = 0; i < 32; i++)
            ck_assert_float_eq(x[i], y[i]);
    }
}
END_TEST

START_TEST(a_block_with_nan_or_infinity_is_nan)
{
    static const float bad[] = {INFINITY, -INFINITY, NAN};
    for (size_t k = 0; k < 3; k++) {
        float x[32] = {1.0f, 2.0f};
        float y[32];
        uint8_t scale;
        uint8_t codes[32];
        x[17] = bad[k];
        nib_mxfp4_encode(x, &scale, codes);
        ck_assert_uint_eq(scale, 255);
        nib_mxfp4_decode(scale, codes, y);
        ck_assert(isnan(y[0]) && isnan(y[31]));
        nib_mxfp8_encode(x, &scale, codes);
        ck_assert_uint_eq(scale, 255);
        nib_kv8_encode(x, &scale, codes);
        ck_assert_uint_eq(scale, 255);
        nib_mxfp8_decode(scale, codes, y);
        ck_assert(isnan(y[0]) && isnan(y[17]) && isnan(y[31]));
    }
}
END_TEST

/* Every finite code under every scale comes back to itself, and is exact as bf16. */
START_TEST(kv8_keeps_what_it_can_hold)
{
    for (unsigned scale = NIB_KV8_SCALE_MIN; scale <= NIB_KV8_SCALE_MAX; scale++)
        for (unsigned first = 0; first < 256; first += 31) {
            float x[32], y[32];
            uint8_t codes[32], got, back[32];
            codes[0] = 0x7e; /* 448: this scale and no other */
            for (unsigned i = 1; i < 32; i++)
                codes[i] = (first + i - 1) % 128 == 127 ? 0 : (uint8_t)(first + i - 1);
            nib_mxfp8_decode((uint8_t)scale, codes, x);
            nib_kv8_encode(x, &got, back);
            ck_assert_uint_eq(got, scale);
            ck_assert_mem_eq(back, codes, sizeof codes);
            nib_mxfp8_decode(got, back, y);
            for (unsigned i = 0; i < 32; i++)
                ck_assert(nib_f32_bits(nib_bf16_decode(nib_bf16_encode(y[i]))) == nib_f32_bits(x[i]));
        }
}
END_TEST

/* Elements are bf16 before they are anything else. */
START_TEST(kv8_goes_by_bf16)
{
    uint64_t state = nib_test_seed();
    for (int round = 0; round < 20000; round++) {
        float x[32], narrow[32];
        uint8_t scale, codes[32], want_scale, want[32];
        for (int i = 0; i < 32; i++) {
            x[i] = (float)(int64_t)(nib_test_rand(&state) >> 40) * 0x1p-23f - 1;
            narrow[i] = nib_bf16_decode(nib_bf16_encode(x[i]));
        }
        nib_kv8_encode(x, &scale, codes);
        nib_kv8_encode(narrow, &want_scale, want);
        ck_assert(scale == want_scale && memcmp(codes, want, sizeof codes) == 0);
    }
}
END_TEST

/* The smallest scale by which nothing is cut off, within its bounds. */
START_TEST(kv8_scales_do_not_cut)
{
    static const struct {
        float max;
        uint8_t scale, code;
    } cases[] = {{448.0f, 127, 0x7e},
                 {450.0f, 128, 0x76},
                 {224.0f, 126, 0x7e},
                 {225.0f, 127, 0x76},
                 {-1.75f, 119, 0xfe},
                 {-1.99f, 120, 0xf8},
                 {0, 7, 0},
                 {-0.0f, 7, 0x80},
                 {57344.0f, 134, 0x7e},
                 {60000.0f, 134, 0x7e},
                 {-0x1.fep127f, 134, 0xfe},
                 {0x1p-149f, 7, 0},
                 {0x1p-120f, 7, 0x38},
                 {0x1p-129f, 7, 1},
                 {0x1p-130f, 7, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        float x[32] = {0};
        uint8_t scale, codes[32];
        x[i] = cases[i].max;
        nib_kv8_encode(x, &scale, codes);
        ck_assert_msg(scale == cases[i].scale && codes[i] == cases[i].code, "%a: scale %u, code %#x",
                      (double)cases[i].max, scale, codes[i]);
    }
}
END_TEST

/* Half a unit of three binary places of each element, or of the block's smallest code. */
START_TEST(kv8_rounds_to_nearest)
{
    uint64_t state = nib_test_seed();
    for (int round = 0; round < 20000; round++) {
        float x[32], y[32], max = 0;
        uint8_t scale, codes[32];
        const int exponent = (int)(nib_test_rand(&state) % 100) - 108;
        for (int i = 0; i < 32; i++) {
            x[i] = ldexpf((float)(int64_t)(nib_test_rand(&state) >> 40) - 0x1p23f,
                          exponent - (int)(nib_test_rand(&state) % 12));
            x[i] = nib_bf16_decode(nib_bf16_encode(x[i]));
            max = fmaxf(max, fabsf(x[i]));
        }
        nib_kv8_encode(x, &scale, codes);
        nib_mxfp8_decode(scale, codes, y);
        ck_assert(max <= 448 * nib_e8m0_decode(scale) &&
                  (max > 224 * nib_e8m0_decode(scale) || scale == NIB_KV8_SCALE_MIN));
        for (int i = 0; i < 32; i++)
            ck_assert(fabsf(x[i] - y[i]) <= fmaxf(fabsf(x[i]) / 16, nib_e8m0_decode(scale) * 0x1p-10f));
    }
}
END_TEST

START_TEST(nvfp4_encodes_as_the_reference_and_decodes_back)
{
    float *x = make_blocks(16);
    uint8_t *out = malloc(MX_BLOCKS * 9);
    for (size_t b = 0; b < MX_BLOCKS; b++)
        for (int i = 0; i < 16; i++)
            x[b * 16 + (size_t)i] = ldexpf(x[b * 16 + (size_t)i], 40 - (int)(b % 48) + (int)(b % 9));
    float tensor = nib_nvfp4_tensor_scale(x, MX_BLOCKS * 16);
    for (size_t b = 0; b < MX_BLOCKS; b++) {
        float y[16];
        float max = 0;
        nib_nvfp4_encode(x + b * 16, tensor, out + b * 9, out + b * 9 + 1);
        nib_nvfp4_decode(tensor, out[b * 9], out + b * 9 + 1, y);
        for (int i = 0; i < 16; i++)
            max = fmaxf(max, fabsf(x[b * 16 + (size_t)i]));
        for (int i = 0; i < 16; i++) /* half the widest step of E2M1 is a sixth of 6; the scale may be 1/16 off */
            ck_assert_float_le(fabsf(x[b * 16 + (size_t)i] - y[i]), max * 0.24f);
    }
    expect_digest("blocks", "nvfp4", out, MX_BLOCKS * 9, MX_NVFP4_BLOCKS);
    float zeros[16] = {0};
    ck_assert_float_eq(nib_nvfp4_tensor_scale(zeros, 16), 1.0f);
    free(x);
    free(out);
}
END_TEST

START_TEST(nf4_encodes_as_the_reference)
{
    float *x = make_blocks(64);
    uint8_t *out = malloc(MX_BLOCKS * 36);
    float *absmax = malloc(MX_BLOCKS * sizeof *absmax);
    for (size_t b = 0; b < MX_BLOCKS; b++) {
        float y[64];
        nib_nf4_encode(x + b * 64, &absmax[b], out + b * 36 + 4);
        memcpy(out + b * 36, &absmax[b], 4);
        nib_nf4_decode(absmax[b], out + b * 36 + 4, y);
        for (size_t i = 0; i < 64; i++) /* half the widest step, between -1 and -0.696 */
            ck_assert_float_le(fabsf(x[b * 64 + i] - y[i]), absmax[b] * 0.152f);
    }
    expect_digest("blocks", "nf4", out, MX_BLOCKS * 36, MX_NF4_BLOCKS);
    uint8_t *groups = malloc(MX_BLOCKS / 256 * 260);
    for (size_t g = 0; g < MX_BLOCKS / 256; g++) {
        float scale;
        float back[256];
        nib_nf4_scales_encode(absmax + g * 256, 256, 0.25f, &scale, groups + g * 260 + 4);
        memcpy(groups + g * 260, &scale, 4);
        nib_nf4_scales_decode(0.25f, scale, groups + g * 260 + 4, 256, back);
        for (size_t i = 0; i < 256; i++)
            ck_assert_float_le(fabsf(back[i] - absmax[g * 256 + i]), scale * 0.02f);
    }
    expect_digest("groups", "nf4", groups, MX_BLOCKS / 256 * 260, MX_NF4_SCALES_BLOCKS);
    free(x);
    free(out);
    free(absmax);
    free(groups);
}
END_TEST

START_TEST(nf4_map_is_the_dynamic_map)
{
    float map[256];
    for (int c = 0; c < 256; c++)
        map[c] = nib_nf4_map_value((uint8_t)c);
    for (int c = 1; c < 256; c++)
        ck_assert_float_gt(map[c], map[c - 1]);
    expect_digest("values", "the dynamic map", map, sizeof map, MX_NF4_MAP);
}
END_TEST

START_TEST(q8_0_encodes_as_gguf)
{
    float *x = make_blocks(32);
    uint8_t *out = malloc(MX_BLOCKS * 34);
    for (size_t b = 0; b < MX_BLOCKS; b++) {
        uint16_t scale;
        int8_t codes[32];
        float y[32];
        nib_q8_0_encode(x + b * 32, &scale, codes);
        memcpy(out + b * 34, &scale, 2);
        memcpy(out + b * 34 + 2, codes, 32);
        nib_q8_0_decode(scale, codes, y);
        ck_assert_float_eq(y[5], (float)codes[5] * nib_fp16_decode(scale));
    }
    expect_digest("blocks", "q8_0", out, MX_BLOCKS * 34, MX_Q8_0_BLOCKS);
    free(x);
    free(out);
}
END_TEST

NIB_SUITE(mx, every_code_decodes_as_the_reference, encoding_rounds_as_the_reference,
          nan_stays_nan_where_the_format_has_one, every_code_survives_a_round_trip, e2m1_is_ocps_and_not_eighths,
          mx_blocks_encode_as_the_reference, mxfp4_decodes_every_scale_and_code, mxfp8_decodes_every_scale_and_code,
          mxfp8_scales_follow_the_specification, mx_blocks_decode_what_they_encode, a_block_with_nan_or_infinity_is_nan,
          kv8_keeps_what_it_can_hold, kv8_goes_by_bf16, kv8_scales_do_not_cut, kv8_rounds_to_nearest,
          nvfp4_encodes_as_the_reference_and_decodes_back, nf4_encodes_as_the_reference, nf4_map_is_the_dynamic_map,
          q8_0_encodes_as_gguf)
