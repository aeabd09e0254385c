/* tests/core/tokenizer_test.c: ids equal to the reference's, ids that exist and that do not, refusals, hostile runs.
 * tests/vectors/tokenizer_small.bin holds (varint bytes, text, varint count, varint ids, varint count, varint
 * bytes of pieces)*; tokenizer_full.py makes it. */
#include "core/hash.h"
#include "core/tokenizer_split.h"
#include "core/utf8.h"
#include "tests/core/tokenizer_fixture.h"

#define IDS_MAX 4096u

static const struct nib_tokenizer *o200k(void)
{
    return fixture_o200k("20b", UINT32_MAX);
}

START_TEST(the_vocabulary_is_the_published_one)
{
    static const char want[] = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d";
    size_t bytes;
    uint8_t *text = fixture_file(O200K_PATH, &bytes), digest[NIB_SHA256_BYTES];
    nib_sha256(text, bytes, digest);
    free(text);
    for (size_t i = 0; i < sizeof digest; i++) {
        char hex[3];
        (void)snprintf(hex, sizeof hex, "%02x", digest[i]);
        ck_assert_mem_eq(hex, want + 2 * i, 2);
    }
}
END_TEST

static uint64_t varint(const uint8_t **at)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return value;
    }
}

/* The text again from its ids, through a stream as the daemon does it. */
static void check_decodes(const struct nib_tokenizer *tok, const uint32_t *ids, size_t count, const char *text,
                          size_t bytes)
{
    struct nib_utf8_stream stream = {0};
    char *out = malloc(4 * bytes + 8);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *token;
        size_t len = nib_tokenizer_decode(tok, ids[i], &token);
        used += nib_utf8_push(&stream, token, len, out + used);
    }
    used += nib_utf8_flush(&stream, out + used);
    ck_assert_uint_eq(used, bytes);
    ck_assert(memcmp(out, text, bytes) == 0);
    free(out);
}

START_TEST(every_vector_gives_the_references_pieces_and_ids)
{
    const struct nib_tokenizer *tok = o200k();
    size_t bytes, strings = 0, wrong = 0, wrong_cuts = 0;
    uint8_t *file = fixture_file("tests/vectors/tokenizer_small.bin", &bytes);
    const uint8_t *at = file;
    for (; at < file + bytes; strings++) {
        uint32_t ids[IDS_MAX], want[IDS_MAX];
        size_t text_bytes = varint(&at);
        const char *text = (const char *)at;
        at += text_bytes;
        size_t want_count = varint(&at);
        ck_assert_uint_le(want_count, IDS_MAX);
        for (size_t i = 0; i < want_count; i++)
            want[i] = (uint32_t)varint(&at);
        size_t count = fixture_encode(tok, text, text_bytes, ids, IDS_MAX), cut = 0;
        for (size_t left = varint(&at); left > 0; left--) {
            size_t end = cut + varint(&at);
            wrong_cuts += nib_split_next((const uint8_t *)text, text_bytes, cut) != end;
            cut = end;
        }
        ck_assert_uint_eq(cut, text_bytes);
        if (count != want_count || memcmp(ids, want, count * sizeof *ids) != 0) {
            wrong++;
            printf("string %zu differs: %.*s\n", strings, (int)text_bytes, text);
        }
        check_decodes(tok, ids, count, text, text_bytes);
    }
    ck_assert_ptr_eq(at, file + bytes);
    free(file);
    ck_assert_uint_ge(strings, 2000);
    ck_assert_uint_eq(wrong, 0);
    ck_assert_uint_eq(wrong_cuts, 0);
}
END_TEST

static void check_ids(const struct nib_tokenizer *tok, const char *text, const uint32_t *want, size_t want_count)
{
    uint32_t ids[64];
    size_t count = fixture_encode(tok, text, strlen(text), ids, 64);
    ck_assert_msg(count == want_count && (count == 0 || memcmp(ids, want, count * sizeof *ids) == 0),
                  "wrong ids for \"%s\"", text);
}

START_TEST(published_examples_hold)
{
    const struct nib_tokenizer *tok = o200k();
    check_ids(tok, "hello world", (const uint32_t[]){24912, 2375}, 2);
    check_ids(tok, "नमस्ते दुनिया", (const uint32_t[]){998, 1637, 14681, 628, 64593}, 5);
    check_ids(tok, "assistant", (const uint32_t[]){173781}, 1);
    check_ids(tok, "", NULL, 0);
}
END_TEST

START_TEST(text_never_makes_a_special_token)
{
    const struct nib_tokenizer *tok = o200k();
    static const char *const around[] = {"", " ", "a", "<", "|>", "\n", "'s", "<|start|>"};
    const size_t arounds = sizeof around / sizeof around[0];
    for (uint32_t id = 199998; id < 200032; id++)
        for (size_t i = 0; i < arounds * arounds; i++) {
            char name[32], text[128];
            uint32_t ids[128];
            ck_assert_uint_gt(nib_tokenizer_decode_special(tok, id, name, sizeof name), 0);
            (void)snprintf(text, sizeof text, "%s%s%s", around[i / arounds], name, around[i % arounds]);
            size_t count = fixture_encode(tok, text, strlen(text), ids, 128);
            for (size_t k = 0; k < count; k++)
                ck_assert_uint_lt(ids[k], 199998);
            check_decodes(tok, ids, count, text, strlen(text));
        }
}
END_TEST

START_TEST(every_id_is_what_the_encoding_says)
{
    const struct nib_tokenizer *tok = o200k();
    static const struct {
        uint32_t id;
        bool valid, generable;
        const char *special; /* text of a special or reserved id */
    } rows[] = {{0, true, true, NULL},
                {199997, true, true, NULL},
                {199998, true, true, "<|startoftext|>"},
                {199999, true, true, "<|endoftext|>"},
                {200000, true, false, "<|reserved_200000|>"},
                {200002, true, true, "<|return|>"},
                {200003, true, true, "<|constrain|>"},
                {200004, true, false, "<|reserved_200004|>"},
                {200005, true, true, "<|channel|>"},
                {200006, true, true, "<|start|>"},
                {200007, true, true, "<|end|>"},
                {200008, true, true, "<|message|>"},
                {200009, true, false, "<|reserved_200009|>"},
                {200012, true, true, "<|call|>"},
                {200013, true, false, "<|reserved_200013|>"},
                {200014, true, false, "<|reserved_200014|>"},
                {201087, true, false, "<|reserved_201087|>"},
                {201088, false, false, NULL},
                {201089, false, false, NULL},
                {UINT32_MAX, false, false, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint32_t id = rows[i].id;
        const uint8_t *bytes;
        char text[32] = "";
        enum nib_special special;
        ck_assert_int_eq(nib_tokenizer_id_valid(tok, id), rows[i].valid);
        ck_assert_int_eq(nib_tokenizer_id_generable(tok, id), rows[i].generable);
        ck_assert_int_eq(nib_tokenizer_decode(tok, id, &bytes) > 0, id < 199998);
        ck_assert_int_eq(bytes != NULL, id < 199998);
        size_t len = nib_tokenizer_decode_special(tok, id, text, sizeof text);
        ck_assert_str_eq(text, rows[i].special ? rows[i].special : "");
        ck_assert_uint_eq(len, strlen(text));
        if (len > 0)
            ck_assert_uint_eq(nib_tokenizer_decode_special(tok, id, text, len), 0);
        bool named = rows[i].special && rows[i].generable;
        ck_assert_int_eq(nib_tokenizer_is_special(tok, id, &special), named);
        if (named)
            ck_assert_uint_eq(nib_tokenizer_special(tok, special), id);
    }
}
END_TEST

START_TEST(the_banned_set_is_what_may_not_be_sampled)
{
    size_t count;
    const struct nib_shape *shapes = nib_shapes(&count);
    for (size_t s = 0; s < count; s++) {
        const struct nib_tokenizer *tok = fixture_o200k(shapes[s].name, shapes[s].special_base);
        size_t words = (shapes[s].vocab + 31) / 32, banned = 0;
        uint32_t *set = malloc(words * sizeof *set);
        nib_tokenizer_fill_banned(tok, set);
        for (uint32_t id = 0; id < 32 * words; id++) {
            bool is = set[id / 32] >> (id % 32) & 1;
            ck_assert_int_eq(is, !nib_tokenizer_id_generable(tok, id));
            banned += is;
        }
        ck_assert_uint_eq(32 * words - banned, shapes[s].special_base + 9u);
        ck_assert_uint_eq(nib_tokenizer_vocab(tok), shapes[s].vocab);
        ck_assert_uint_eq(nib_tokenizer_special_base(tok), shapes[s].special_base);
        free(set);
    }
}
END_TEST

START_TEST(invalid_utf8_is_refused_with_its_place)
{
    const struct nib_tokenizer *tok = o200k();
    static const char *const bad[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe6\x97", "\x80"};
    size_t scratch_bytes = nib_tokenizer_scratch_bytes(64);
    void *scratch = malloc(scratch_bytes);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (int before = 0; before < 20; before++) {
            char text[64], want[64];
            uint32_t ids[64];
            size_t count = 77;
            struct nib_msg msg;
            (void)snprintf(text, sizeof text, "%.*s%s", before, "aaaaaaaaaaaaaaaaaaaa", bad[i]);
            (void)snprintf(want, sizeof want, "the text is not valid UTF-8 at byte %d", before);
            ck_assert_int_eq(
                nib_tokenizer_encode(tok, scratch, scratch_bytes, text, strlen(text), ids, 64, &count, &msg),
                NIB_E_FORMAT);
            ck_assert_str_eq(msg.text, want);
            ck_assert_uint_eq(count, 77);
        }
    free(scratch);
}
END_TEST

START_TEST(too_little_room_is_refused)
{
    const struct nib_tokenizer *tok = o200k();
    struct nib_msg msg;
    uint32_t ids[8];
    size_t count = 77, small = nib_tokenizer_scratch_bytes(100);
    char *scratch = malloc(small), *text = malloc(NIB_MAX_TEXT_BYTES + 1);
    memset(text, 'x', NIB_MAX_TEXT_BYTES + 1);
    ck_assert_int_eq(nib_tokenizer_encode(tok, scratch, small, "hello world", 11, ids, 1, &count, &msg), NIB_E_LIMIT);
    ck_assert_str_eq(msg.text, "the text has more than the 1 tokens allowed");
    memcpy(text, "a ", 2);
    ck_assert_int_eq(nib_tokenizer_encode(tok, scratch, small, text, 102, ids, 8, &count, &msg), NIB_E_LIMIT);
    ck_assert_str_eq(msg.text, "the text has 101 bytes without a break at byte 1; at most 100 are allowed");
    ck_assert_int_eq(nib_tokenizer_encode(tok, NULL, 0, text, 102, ids, 8, &count, &msg), NIB_E_LIMIT);
    ck_assert_int_eq(nib_tokenizer_encode(tok, scratch, small, text, NIB_MAX_TEXT_BYTES + 1, ids, 8, &count, &msg),
                     NIB_E_LIMIT);
    ck_assert_uint_eq(count, 77);
    ck_assert_int_eq(nib_tokenizer_encode(tok, NULL, 0, "hello world", 11, ids, 8, &count, &msg), NIB_OK);
    ck_assert_uint_eq(count, 2);
    free(scratch);
    free(text);
}
END_TEST

START_TEST(a_megabyte_of_one_class_encodes)
{
    static const struct {
        const char *unit;
        size_t ids; /* of 1 MiB, by the reference's longest token of that unit */
    } rows[] = {{"x", 131072}, {" ", 8192}, {"\n", 65536}, {"7", 349526}, {"=", 16384}, {"\xe6\x97\xa5", 174763}};
    const struct nib_tokenizer *tok = o200k();
    size_t bytes = 1u << 20;
    char *text = malloc(bytes);
    uint32_t *ids = malloc(bytes * sizeof *ids);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t unit = strlen(rows[i].unit), used = 0;
        for (; used + unit <= bytes; used += unit)
            memcpy(text + used, rows[i].unit, unit);
        size_t count = fixture_encode(tok, text, used, ids, bytes);
        ck_assert_uint_eq(count, rows[i].ids);
        check_decodes(tok, ids, count, text, used);
    }
    free(text);
    free(ids);
}
END_TEST

NIB_SUITE(tokenizer, the_vocabulary_is_the_published_one, every_vector_gives_the_references_pieces_and_ids,
          published_examples_hold, text_never_makes_a_special_token, every_id_is_what_the_encoding_says,
          the_banned_set_is_what_may_not_be_sampled, invalid_utf8_is_refused_with_its_place, too_little_room_is_refused,
          a_megabyte_of_one_class_encodes)
