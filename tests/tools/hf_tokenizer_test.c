/* tokenizer.json to the vocabulary blob: the byte alphabet, both forms of merges, and every way in which merges can
 * differ from what a tokenizer that merges by id would do. */
#include "tools/hf_tokenizer.h"

#include "core/tokenizer.h"
#include "core/vocab.h"
#include "tests/harness.h"

/* Text that grows. */
struct text {
    char bytes[1 << 16];
    size_t used;
};

static void add(struct text *t, const char *s)
{
    size_t n = strlen(s);
    ck_assert_uint_lt(t->used + n, sizeof t->bytes);
    memcpy(t->bytes + t->used, s, n + 1);
    t->used += n;
}

/* The character of GPT-2's alphabet for a byte, as a JSON escape. */
static void add_byte(struct text *t, unsigned byte)
{
    unsigned cp = byte;
    char escape[8];
    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174)) {
        cp = 256;
        for (unsigned b = 0; b < byte; b++)
            cp += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
    }
    (void)snprintf(escape, sizeof escape, "\\u%04x", cp);
    add(t, escape);
}

static const char base_added[] =
    "[{\"id\":480,\"content\":\"<|startoftext|>\"},{\"id\":481,\"content\":\"<|endoftext|>\"},"
    "{\"id\":484,\"content\":\"<|return|>\"},{\"id\":485,\"content\":\"<|constrain|>\"},"
    "{\"id\":487,\"content\":\"<|channel|>\"},{\"id\":488,\"content\":\"<|start|>\",\"special\":true},"
    "{\"id\":489,\"content\":\"<|end|>\"},{\"content\":\"<|message|>\",\"id\":490},"
    "{\"id\":494,\"content\":\"<|call|>\"},{\"id\":500,\"content\":\"<|reserved_500|>\"}]";

/* A file of shape tiny: 256 bytes, then these tokens and merges. */
static void compose(struct text *t, const char *tokens, const char *merges, const char *added)
{
    t->used = 0;
    add(t, "{\"version\":\"1.0\",\"model\":{\"type\":\"BPE\",\"dropout\":null,\"vocab\":{");
    for (unsigned b = 0; b < 256; b++) {
        char id[16];
        add(t, b ? ",\"" : "\"");
        add_byte(t, b);
        (void)snprintf(id, sizeof id, "\":%u", b);
        add(t, id);
    }
    add(t, tokens);
    add(t, "},\"merges\":");
    add(t, merges);
    add(t, "},\"added_tokens\":");
    add(t, added);
    add(t, "}");
}

static enum nib_err build(const struct text *t, uint8_t **blob, size_t *bytes, struct nib_msg *msg)
{
    char *copy = malloc(t->used);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, t->bytes, t->used);
    msg->text[0] = '\0';
    enum nib_err err = nib_hf_tokenizer_blob(copy, t->used, "tokenizer.json", nib_shape_find("tiny"), blob, bytes, msg);
    ck_assert((err == NIB_OK) == (msg->text[0] == '\0'));
    free(copy);
    return err;
}

/* ab = 256, bc = 257, abc = 258: it splits as a+bc and as ab+c */
#define TOKENS ",\"ab\":256,\"bc\":257,\"abc\":258"

START_TEST(both_forms_of_merges_give_one_blob)
{
    static struct text t;
    struct nib_msg msg;
    uint8_t *blob = NULL, *other = NULL;
    size_t bytes = 0, other_bytes = 0;
    compose(&t, TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab c\"]", base_added);
    ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_OK);
    compose(&t, TOKENS, "[[\"a\",\"b\"],[\"b\",\"c\"],[\"ab\",\"c\"],[\"a\",\"bc\"]]", base_added);
    ck_assert_int_eq(build(&t, &other, &other_bytes, &msg), NIB_OK);
    ck_assert_uint_eq(bytes, other_bytes);
    ck_assert_mem_eq(blob, other, bytes);

    struct nib_vocab vocab;
    ck_assert_int_eq(nib_vocab_parse(blob, bytes, &vocab, &msg), NIB_OK);
    ck_assert_uint_eq(vocab.ordinary, 259);
    for (unsigned b = 0; b < 256; b++) {
        ck_assert_uint_eq(vocab.lens[b], 1);
        ck_assert_uint_eq(vocab.bytes[b], b);
    }
    ck_assert_mem_eq(vocab.bytes + 256, "abbcabc", 7);
    free(blob);
    free(other);
}
END_TEST

START_TEST(merges_that_ranks_cannot_express_are_refused)
{
    static struct text t;
    static const struct {
        const char *tokens, *merges, *wanted;
    } cases[] = {
        {TOKENS, "[\"b c\",\"a b\",\"a bc\",\"ab c\"]", "in the order of the ids"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\"]", "has 3 merges where its tokens allow 4"},
        {TOKENS, "[]", "has 0 merges"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab c\",\"ab c\"]", "comes twice"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab d\"]", "does not join"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab\"]", "must hold"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab  c\"]", "does not join"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",[\"ab\"]]", "must hold"},
        {TOKENS, "[\"a b\",\"b c\",\"a bc\",[\"ab\",\"c\",\"d\"]]", "must hold"},
        {TOKENS, "{}", "must be an array"},
        {",\"ab\":256,\"bc\":257,\"abc\":257", "[]", "comes twice"},
        {",\"ab\":256,\"ab\":257", "[]", "comes twice"},
        {",\"ab\":257", "[\"a b\"]", "none with id 256"},
        {",\"ab\":512", "[]", "ids 0 to 511"},
        {",\"ab\":18446744073709551615", "[]", "ids 0 to 511"},
        {",\"ab\":-1", "[]", "whole numbers"},
        {",\"a b\":256", "[]", "byte alphabet"},
        {",\"\":256", "[]", "byte alphabet"},
        {",\"\\u20ac\":256", "[]", "byte alphabet"},
        {",\"\\ud800\":256", "[]", "whole numbers"},
        {",\"ab\":480", "[]", "two names"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nib_msg msg;
        uint8_t *blob = NULL;
        size_t bytes = 77;
        compose(&t, cases[i].tokens, cases[i].merges, base_added);
        ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_E_FORMAT);
        ck_assert_msg(strstr(msg.text, cases[i].wanted) != NULL, "%zu: %s", i, msg.text);
        ck_assert_ptr_null(blob);
        ck_assert_uint_eq(bytes, 77);
    }
}
END_TEST

START_TEST(special_tokens_must_be_harmonys)
{
    static struct text t;
    static const char *const bad[] = {
        "[]",
        "{}",
        "[1]",
        "[{\"id\":494}]",
        "[{\"content\":\"<|call|>\"}]",
        "[{\"id\":494,\"content\":\"\"}]",
        "[{\"id\":3,\"content\":\"<|call|>\"}]",
        "[{\"id\":494,\"content\":\"<|call|>\"}]",
        "[{\"id\":\"494\",\"content\":\"<|call|>\"}]",
    };
    struct nib_msg msg;
    uint8_t *blob = NULL;
    size_t bytes;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        compose(&t, "", "[]", bad[i]);
        ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_E_FORMAT);
    }
    char moved[sizeof base_added];
    memcpy(moved, base_added, sizeof moved);
    memcpy(strstr(moved, "494"), "495", 3);
    compose(&t, "", "[]", moved);
    ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(msg.text, "<|call|>"));
    compose(&t, "", "[]", base_added);
    ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_OK);
    free(blob);
}
END_TEST

START_TEST(every_prefix_is_refused)
{
    static struct text t;
    struct nib_msg msg;
    uint8_t *blob = NULL;
    size_t bytes;
    compose(&t, TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab c\"]", base_added);
    size_t whole = t.used;
    for (t.used = 0; t.used < whole; t.used += t.used < 200 ? 1 : 13)
        ck_assert_int_eq(build(&t, &blob, &bytes, &msg), NIB_E_FORMAT);
}
END_TEST

START_TEST(mutated_files_never_crash)
{
    static struct text good, t;
    uint64_t seed = nib_test_seed();
    compose(&good, TOKENS, "[\"a b\",\"b c\",\"a bc\",\"ab c\"]", base_added);
    unsigned accepted = 0;
    for (unsigned round = 0; round < 1500; round++) {
        struct nib_msg msg;
        uint8_t *blob = NULL;
        size_t bytes;
        memcpy(&t, &good, sizeof t);
        for (uint64_t edits = 1 + nib_test_rand(&seed) % 3; edits > 0; edits--)
            t.bytes[nib_test_rand(&seed) % t.used] = (char)nib_test_rand(&seed);
        if (build(&t, &blob, &bytes, &msg) == NIB_OK)
            accepted++;
        free(blob);
    }
    printf("%u of 1500 mutations still read\n", accepted);
    ck_assert_uint_lt(accepted, 1500);
}
END_TEST

NIB_SUITE(hf_tokenizer, both_forms_of_merges_give_one_blob, merges_that_ranks_cannot_express_are_refused,
          special_tokens_must_be_harmonys, every_prefix_is_refused, mutated_files_never_crash)
