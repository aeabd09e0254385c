/* tests/core/vocab_test.c: the blob is exact and whatever is not one is refused: cut at every byte, changed in every
 * bit, built from every kind of wrong source. */
#include "core/vocab.h"
#include "tests/core/tokenizer_fixture.h"

#define VOCAB 288u
#define BASE  256u

static size_t byte_level(uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES])
{
    size_t bytes = 0;
    ck_assert(!nib_vocab_build_bytelevel(VOCAB, BASE, blob, NIB_VOCAB_BYTE_LEVEL_BYTES, &bytes, NULL));
    ck_assert_uint_eq(bytes, NIB_VOCAB_BYTE_LEVEL_BYTES);
    return bytes;
}

/* The blob in a block of exactly its size; true when it opens. */
static bool opens(const uint8_t *blob, size_t bytes, struct nib_msg *msg)
{
    static uint8_t memory[1 << 20];
    uint8_t *copy = memcpy(malloc(bytes ? bytes : 1), blob, bytes);
    struct nib_arena arena;
    const struct nib_tokenizer *tok = NULL;
    size_t arena_bytes = 0;
    nib_arena_init(&arena, memory, sizeof memory);
    enum nib_err plan = nib_tokenizer_plan(copy, bytes, &arena_bytes, msg);
    enum nib_err err = nib_tokenizer_open(&arena, copy, bytes, &tok, msg);
    ck_assert(plan == NIB_OK || err == plan);
    ck_assert(err == NIB_OK || (err == NIB_E_FORMAT && tok == NULL && msg->text[0] != 0));
    ck_assert(err != NIB_OK || arena.used <= arena_bytes);
    free(copy);
    return err == NIB_OK;
}

START_TEST(a_blob_cut_or_lengthened_anywhere_is_refused)
{
    uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES + 1] = {0};
    struct nib_msg msg = {""};
    size_t bytes = byte_level(blob);
    ck_assert(opens(blob, bytes, &msg));
    for (size_t cut = 0; cut < bytes; cut++)
        ck_assert_msg(!opens(blob, cut, &msg), "opened with %zu bytes", cut);
    ck_assert(!opens(blob, bytes + 1, &msg));
}
END_TEST

/* The only bits that may change are those of vocab and special_base, towards other figures that fit: which of these is
 * right, the image's shape says. */
START_TEST(a_changed_bit_is_refused_or_is_another_figure)
{
    uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
    struct nib_msg msg = {""};
    struct nib_vocab v;
    size_t bytes = byte_level(blob), opened = 0;
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        blob[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (opens(blob, bytes, &msg)) {
            opened++;
            ck_assert_msg(bit / 8 >= 16 && bit / 8 < 24, "bit %zu of byte %zu changed unseen", bit % 8, bit / 8);
            ck_assert(!nib_vocab_parse(blob, bytes, &v, &msg));
            ck_assert(v.vocab != VOCAB || v.special_base != BASE);
            ck_assert(v.ordinary <= v.special_base && v.special_base + NIB_SPECIAL_SPAN <= v.vocab);
        }
        blob[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    printf("%zu of %zu bits give another vocabulary\n", opened, 8 * bytes);
    ck_assert_uint_lt(opened, 32);
}
END_TEST

START_TEST(equal_tokens_are_refused_by_their_ids)
{
    static const char *const twins[] = {"ab", "abc", "abcdefgh", "abcdefghijklmnopqrstuvwxyz"};
    for (size_t i = 0; i < sizeof twins / sizeof twins[0]; i++) {
        struct nib_vocab_token tokens[259];
        uint8_t bytes[256], blob[1024];
        struct nib_msg msg;
        size_t used;
        for (uint32_t b = 0; b < 256; b++) {
            bytes[b] = (uint8_t)b;
            tokens[b] = (struct nib_vocab_token){&bytes[b], 1};
        }
        tokens[256] = tokens[258] = (struct nib_vocab_token){(const uint8_t *)twins[i], (uint32_t)strlen(twins[i])};
        tokens[257] = (struct nib_vocab_token){(const uint8_t *)"xyz", 3};
        struct nib_vocab_src src = {.tokens = tokens, .ordinary = 259, .vocab = 320, .special_base = 300};
        ck_assert(!nib_vocab_build(&src, blob, sizeof blob, &used, &msg));
        ck_assert_uint_eq(used, nib_vocab_build_bytes(&src));
        ck_assert(!opens(blob, used, &msg));
        ck_assert_str_eq(msg.text, "vocabulary: tokens 256 and 258 are equal; each may be there once");
        src.ordinary = 258;
        ck_assert(!nib_vocab_build(&src, blob, sizeof blob, &used, &msg));
        ck_assert(opens(blob, used, &msg));
    }
}
END_TEST

START_TEST(figures_that_do_not_fit_are_refused)
{
    static const struct {
        uint32_t vocab, base;
        const char *want;
    } rows[] = {
        {288, 255, "vocabulary: 256 ordinary tokens; 256 to 255 are allowed"},
        {271, 256, "vocabulary: special tokens from id 256 on do not fit in 271 ids"},
        {NIB_MAX_VOCAB + 1, 256, "vocabulary: 262145 ids; at most 262144 are allowed"},
        {288, UINT32_MAX, "vocabulary: special tokens from id 4294967295 on do not fit in 288 ids"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
        struct nib_msg msg;
        size_t bytes = 77;
        ck_assert_int_eq(nib_vocab_build_bytelevel(rows[i].vocab, rows[i].base, blob, sizeof blob, &bytes, &msg),
                         NIB_E_FORMAT);
        ck_assert_str_eq(msg.text, rows[i].want);
        ck_assert_uint_eq(bytes, 77);
    }
    uint8_t small[NIB_VOCAB_BYTE_LEVEL_BYTES - 1];
    size_t bytes;
    ck_assert_int_eq(nib_vocab_build_bytelevel(VOCAB, BASE, small, sizeof small, &bytes, NULL), NIB_E_LIMIT);
    ck_assert(!nib_vocab_build_bytelevel(272, 256, (uint8_t[NIB_VOCAB_BYTE_LEVEL_BYTES]){0}, NIB_VOCAB_BYTE_LEVEL_BYTES,
                                         &bytes, NULL));
}
END_TEST

/* What a source may claim about its special tokens: the first nine rows are right, then one change. */
START_TEST(special_tokens_must_be_harmonys)
{
    static const struct nib_vocab_special right[9] = {
        {"<|startoftext|>", 256}, {"<|endoftext|>", 257}, {"<|return|>", 260},
        {"<|constrain|>", 261},   {"<|channel|>", 263},   {"<|start|>", 264},
        {"<|end|>", 265},         {"<|message|>", 266},   {"<|call|>", 270}};
    static const struct {
        size_t at; /* row that is replaced; 9: added */
        struct nib_vocab_special row;
        const char *want; /* NULL: taken */
    } cases[] = {
        {9, {"<|reserved_258|>", 258}, NULL},
        {9, {"<|anything|>", 287}, NULL},
        {9, {"<|start|>", 264}, NULL},
        {0, {"<|bos|>", 256}, "vocabulary: special token 256 must be <|startoftext|>"},
        {5, {"<|start|>", 258}, "vocabulary: <|start|> has id 258; it must be 264"},
        {5, {"<|start|>", 284}, "vocabulary: <|start|> has id 284; it must be 264"},
        {5, {"<|reserved_258|>", 258}, "vocabulary: the special token <|start|> is missing; it must have id 264"},
        {9, {"<|more|>", 288}, "vocabulary: special token id 288; 256 to 287 are allowed"},
        {9, {"<|less|>", 255}, "vocabulary: special token id 255; 256 to 287 are allowed"},
    };
    uint8_t plain[NIB_VOCAB_BYTE_LEVEL_BYTES], blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
    size_t bytes = byte_level(plain);
    struct nib_vocab_token tokens[256];
    for (uint32_t b = 0; b < 256; b++)
        tokens[b] = (struct nib_vocab_token){plain + bytes - 256 + b, 1};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nib_vocab_special specials[10];
        struct nib_msg msg = {""};
        memcpy(specials, right, sizeof right);
        specials[cases[i].at] = cases[i].row;
        struct nib_vocab_src src = {.tokens = tokens, .ordinary = 256, .vocab = VOCAB, .special_base = BASE};
        src.specials = specials;
        src.specials_count = cases[i].at == 9 ? 10 : 9;
        enum nib_err err = nib_vocab_build(&src, blob, sizeof blob, &bytes, &msg);
        ck_assert_str_eq(msg.text, cases[i].want ? cases[i].want : "");
        ck_assert_int_eq(err, cases[i].want ? NIB_E_FORMAT : NIB_OK);
        ck_assert(err || memcmp(blob, plain, sizeof plain) == 0);
    }
}
END_TEST

START_TEST(token_lists_that_are_not_one_are_refused)
{
    static const uint8_t long_token[NIB_MAX_TOKEN_BYTES + 1];
    uint8_t bytes[256], blob[4096];
    struct nib_vocab_token tokens[257];
    struct nib_msg msg;
    size_t used;
    for (uint32_t b = 0; b < 256; b++) {
        bytes[b] = (uint8_t)b;
        tokens[b] = (struct nib_vocab_token){&bytes[b], 1};
    }
    struct nib_vocab_src src = {.tokens = tokens, .ordinary = 257, .vocab = 320, .special_base = 300};
    tokens[256] = (struct nib_vocab_token){long_token, 0};
    ck_assert_int_eq(nib_vocab_build(&src, blob, sizeof blob, &used, &msg), NIB_E_FORMAT);
    ck_assert_str_eq(msg.text, "vocabulary: token 256 has 0 bytes; 1 to 128 are allowed");
    tokens[256].len = NIB_MAX_TOKEN_BYTES + 1;
    ck_assert_int_eq(nib_vocab_build(&src, blob, sizeof blob, &used, &msg), NIB_E_FORMAT);
    tokens[256].len = NIB_MAX_TOKEN_BYTES;
    ck_assert(!nib_vocab_build(&src, blob, sizeof blob, &used, &msg));
    ck_assert(opens(blob, used, &msg));
    tokens[65] = tokens[66];
    ck_assert_int_eq(nib_vocab_build(&src, blob, sizeof blob, &used, &msg), NIB_E_FORMAT);
    ck_assert_str_eq(msg.text, "vocabulary: no token is the single byte 0x41; each byte needs one");
    src.ordinary = NIB_MAX_VOCAB + 1;
    ck_assert_int_eq(nib_vocab_build(&src, blob, sizeof blob, &used, &msg), NIB_E_FORMAT);
}
END_TEST

/* The byte vocabulary as .tiktoken text, then one line changed. */
static size_t tiktoken_text(char *out, size_t line, const char *instead)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *at = out;
    for (unsigned b = 0; b < 256; b++)
        at += b == line ? sprintf(at, "%s", instead)
                        : sprintf(at, "%c%c== %u\n", digits[b >> 2], digits[(b & 3) << 4], b);
    return (size_t)(at - out);
}

START_TEST(tiktoken_text_is_read_strictly)
{
    static const struct {
        const char *line; /* instead of "BQ== 5\n" */
        bool good;
    } rows[] = {{"BQ== 5\n", true},    {"BQ== 6\n", false}, {"BQ== 05\n", true},  {"BQ== \n", false},
                {"BQ==5\n", false},    {" 5\n", false},     {"BQ= 5\n", false},   {"BQ 5\n", false},
                {"B!== 5\n", false},   {"==== 5\n", false}, {"BQ== 5 \n", false}, {"BQ==  5\n", false},
                {"BQ== 5\r\n", false}, {"\n", false},       {"BQ== -5\n", false}, {"BQ== 4294967301\n", false},
                {"", false},           {"B=== 5\n", false}, {"BQ=Q 5\n", false}};
    uint8_t plain[NIB_VOCAB_BYTE_LEVEL_BYTES], blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
    char text[4096];
    size_t bytes = byte_level(plain), got;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct nib_msg msg = {""};
        size_t used = tiktoken_text(text, 5, rows[i].line);
        char *copy = memcpy(malloc(used), text, used);
        enum nib_err err = nib_vocab_build_tiktoken(copy, used, UINT32_MAX, VOCAB, BASE, blob, sizeof blob, &got, &msg);
        ck_assert_msg((err == NIB_OK) == rows[i].good, "row %zu: %s", i, msg.text);
        ck_assert(err || (got == bytes && memcmp(blob, plain, bytes) == 0));
        ck_assert(!err || strstr(msg.text, "vocabulary: line 6 ") == msg.text);
        free(copy);
    }
    size_t used = tiktoken_text(text, SIZE_MAX, "");
    ck_assert(!nib_vocab_build_tiktoken(text, used - 1, 256, VOCAB, BASE, blob, sizeof blob, &got, NULL));
    ck_assert_int_eq(nib_vocab_build_tiktoken(text, used, 255, VOCAB, BASE, blob, sizeof blob, &got, NULL),
                     NIB_E_FORMAT);
    ck_assert_int_eq(nib_vocab_build_tiktoken(text, 0, 256, VOCAB, BASE, blob, sizeof blob, &got, NULL), NIB_E_FORMAT);
    ck_assert_int_eq(nib_vocab_build_tiktoken(text, used, 256, VOCAB, BASE, blob, 100, &got, NULL), NIB_E_LIMIT);
}
END_TEST

START_TEST(an_arena_too_small_is_refused)
{
    uint8_t blob[NIB_VOCAB_BYTE_LEVEL_BYTES];
    size_t bytes = byte_level(blob), need, refused = 0;
    ck_assert(!nib_tokenizer_plan(blob, bytes, &need, NULL));
    for (size_t have = 0; have <= need; have += need / 64) {
        struct nib_arena arena;
        const struct nib_tokenizer *tok = NULL;
        void *memory = malloc(have ? have : 1);
        nib_arena_init(&arena, memory, have);
        enum nib_err err = nib_tokenizer_open(&arena, blob, bytes, &tok, NULL);
        ck_assert(err == (tok ? NIB_OK : NIB_E_NOMEM));
        refused += err != NIB_OK;
        free(memory);
    }
    ck_assert_uint_ge(refused, 63);
    ck_assert_ptr_nonnull(fixture_open(blob, bytes));
}
END_TEST

NIB_SUITE(vocab, a_blob_cut_or_lengthened_anywhere_is_refused, a_changed_bit_is_refused_or_is_another_figure,
          equal_tokens_are_refused_by_their_ids, figures_that_do_not_fit_are_refused, special_tokens_must_be_harmonys,
          token_lists_that_are_not_one_are_refused, tiktoken_text_is_read_strictly, an_arena_too_small_is_refused)
