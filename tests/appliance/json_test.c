/* The JSON pool and the JSON writer. */
#include "appliance/json_in.h"
#include "appliance/json_out.h"
#include "tests/harness.h"

static uint8_t memory[1 << 16] __attribute__((aligned(64)));
static struct nib_msg msg;

static enum nib_err parse(const char *text)
{
    json_t *root = NULL;
    return nib_json_parse(text, strlen(text), &root, &msg);
}

START_TEST(test_pool_is_reused)
{
    nib_json_pool_init(memory, sizeof memory);
    for (int i = 0; i < 10000; i++) /* far more than the pool without a reset */
        ck_assert_int_eq(parse("{\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}"), NIB_OK);
    ck_assert_uint_lt(nib_json_pool_peak(), sizeof memory);
    ck_assert_uint_gt(nib_json_pool_peak(), 0);
}
END_TEST

/* Every pool size: a tree or a clean refusal, and nothing outside the pool is touched. */
START_TEST(test_every_pool_size)
{
    static const char text[] = "{\"a\":[1,2.5,\"x\\u00e9\",{\"b\":null}],\"long\":\"aaaaaaaaaaaaaaaa\"}";
    bool was_ok = false;
    for (size_t bytes = 0; bytes < 8192; bytes += 16) {
        memset(memory, 0xa5, sizeof memory);
        nib_json_pool_init(memory, bytes);
        enum nib_err err = parse(text);
        ck_assert(err == NIB_OK || err == NIB_E_FULL);
        ck_assert_msg(!was_ok || err == NIB_OK, "a larger pool is too small: %zu", bytes);
        was_ok = err == NIB_OK;
        size_t untouched = bytes;
        while (untouched < sizeof memory && memory[untouched] == 0xa5)
            untouched++;
        ck_assert_uint_eq(untouched, sizeof memory);
    }
    ck_assert(was_ok);
    ck_assert_ptr_null(nib_json_take(sizeof memory));
}
END_TEST

START_TEST(test_full_then_fine)
{
    static char text[40000];
    nib_json_pool_init(memory, sizeof memory);
    size_t n = 0;
    text[n++] = '[';
    while (n < sizeof text - 8)
        n += (size_t)sprintf(text + n, "[],");
    (void)sprintf(text + n, "1]");
    ck_assert_int_eq(parse(text), NIB_E_FULL);
    ck_assert_ptr_nonnull(strstr(msg.text, "65536"));
    ck_assert_int_eq(parse("{}"), NIB_OK);
}
END_TEST

START_TEST(test_depth)
{
    char text[200];
    nib_json_pool_init(memory, sizeof memory);
    for (size_t depth = 1; depth < 80; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        text[2 * depth] = '\0';
        ck_assert_int_eq(parse(text), depth <= NIB_MAX_JSON_DEPTH ? NIB_OK : NIB_E_LIMIT);
    }
    ck_assert_int_eq(parse("[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]"), NIB_OK);
    ck_assert_int_eq(parse("[\"\\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"]"), NIB_OK);
    ck_assert_int_eq(parse("[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["), NIB_E_LIMIT);
}
END_TEST

START_TEST(test_refusals_have_a_place)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"{\n \"a\": tru }", "line 2"},
        {"{\"a\":1,\"a\":2}", "twice"},
        {"{\"a\":\"\xff\"}", "UTF-8"},
        {"[1,2", "too early"},
        {"{} {}", "follows"},
        {"[1e999]", "out of range"},
        {"[99999999999999999999]", "out of range"},
        {"{\"a\\u0000b\":1}", "NUL"},
        {"[\"a\\u0000b\"]", "NUL"},
        {"", "too early"},
        {"[\"\\ud800\"]", "JSON"},
        {"[01]", "JSON"},
        {"[NaN]", "JSON"},
        {"[\"\t\"]", "JSON"},
        {"// c\n[]", "JSON"},
        {"['a']", "JSON"},
    };
    nib_json_pool_init(memory, sizeof memory);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ck_assert_msg(parse(cases[i].text) == NIB_E_FORMAT, "accepted: %s", cases[i].text);
        ck_assert_msg(strstr(msg.text, "line ") && strstr(msg.text, cases[i].says), "%s: %s", cases[i].text, msg.text);
    }
}
END_TEST

static const char *escaped(const char *in, size_t len)
{
    static char text[4096];
    struct nib_out out = nib_out_of(text, sizeof text - 1);
    nib_out_escaped(&out, nib_span_of(in, len));
    ck_assert(!out.full);
    text[out.used] = '\0';
    ck_assert_uint_eq(out.used, nib_out_escaped_bytes(nib_span_of(in, len)));
    return text;
}

/* What the writer escapes, jansson reads back; for every byte and random valid text. */
START_TEST(test_escape_and_back)
{
    char text[600];
    nib_json_pool_init(memory, sizeof memory);
    for (int c = 1; c < 128; c++) {
        char in[3] = {'x', (char)c, 'y'};
        (void)snprintf(text, sizeof text, "[\"%s\"]", escaped(in, 3));
        json_t *root = NULL;
        ck_assert_msg(nib_json_parse(text, strlen(text), &root, &msg) == NIB_OK, "%s", text);
        ck_assert_int_eq(memcmp(json_string_value(json_array_get(root, 0)), in, 3), 0);
    }
    ck_assert_str_eq(escaped("a\"b\\c\n\r\t\b\f\x01\x1f\0z", 14), "a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001f\\u0000z");
    ck_assert_str_eq(escaped("\xc3\xa9\xf0\x9f\x98\x80", 6), "\xc3\xa9\xf0\x9f\x98\x80");
}
END_TEST

START_TEST(test_writer_never_passes_its_end)
{
    for (size_t bytes = 0; bytes < 64; bytes++) {
        char text[80];
        memset(text, 0x7f, sizeof text);
        struct nib_out out = nib_out_of(text, bytes);
        nib_out_text(&out, "{\"a\":");
        nib_out_string(&out, nib_span_of("x\n\"y\"\x01", 6));
        nib_out_fmt(&out, ",\"n\":%d}", 12345);
        ck_assert_int_eq(out.full, bytes < 32);
        ck_assert_uint_le(out.used, bytes);
        for (size_t i = bytes; i < sizeof text; i++)
            ck_assert_int_eq(text[i], 0x7f);
    }
}
END_TEST

NIB_SUITE(json, test_pool_is_reused, test_every_pool_size, test_full_then_fine, test_depth, test_refusals_have_a_place,
          test_escape_and_back, test_writer_never_passes_its_end)
