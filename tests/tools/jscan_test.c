/* The JSON scanner: what is JSON and what is not, decoding of strings, depth, and input that ends against the end of
 * its heap block (the sanitizer sees one byte too far). */
#include "tools/jscan.h"

#include "tests/harness.h"

/* A copy without a NUL, so that reading on is seen. */
static char *exact(const char *text, size_t bytes)
{
    char *copy = malloc(bytes ? bytes : 1);
    ck_assert_ptr_nonnull(copy);
    memcpy(copy, text, bytes);
    return copy;
}

static bool accepts(const char *text, size_t bytes)
{
    char *copy = exact(text, bytes);
    struct nib_jscan scan;
    enum nib_jevent event;
    size_t events = 0;
    nib_jscan_init(&scan, copy, bytes);
    do {
        event = nib_jscan_next(&scan);
        ck_assert_uint_le(++events, 2 * bytes + 2);
    } while (event != NIB_J_BAD && event != NIB_J_DONE);
    if (event == NIB_J_BAD)
        ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_BAD);
    free(copy);
    return event == NIB_J_DONE;
}

START_TEST(json_is_told_from_other_text)
{
    static const char *const good[] = {
        "0",         "-0",
        "10",        "-1.5e+10",
        "1E5",       "0.0",
        "\"\"",      "\"a\\u0041\\n\"",
        "true",      "false",
        "null",      "[]",
        "{}",        " [ ] ",
        "[1,2]",     "[[],{}]",
        "{\"a\":1}", "{\"a\":{\"b\":[1,\"x\",null]},\"c\":true}",
        "\t\r\n1\n", "{\"\":0}",
    };
    static const char *const bad[] = {
        "",
        " ",
        "01",
        "-",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "0x1",
        "NaN",
        "tru",
        "truee",
        "nulll",
        "'a'",
        "\"",
        "\"\\",
        "\"a",
        "\"\t\"",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "}",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":}",
        "{\"a\":1",
        "{\"a\":1,}",
        "{,}",
        "{a:1}",
        "{1:1}",
        "{\"a\" 1}",
        "[}",
        "{]",
        "[1}",
        "{\"a\":1]",
        "1 2",
        "[]]",
        "{}{}",
        "// x\n1",
        "\"\\\"",
        "[\"a\\\\\\\"]",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        ck_assert_msg(accepts(good[i], strlen(good[i])), "refused: %s", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(!accepts(bad[i], strlen(bad[i])), "accepted: %s", bad[i]);
}
END_TEST

START_TEST(every_prefix_of_a_value_is_refused)
{
    static const char text[] = "{\"a\":[1.5e3,\"\\u00e9\\\\\",{\"b\":null}],\"c\":false}";
    for (size_t n = 0; n + 1 < sizeof text; n++)
        ck_assert_msg(accepts(text, n) == (n == sizeof text - 1), "prefix of %zu", n);
    ck_assert(accepts(text, sizeof text - 1));
}
END_TEST

START_TEST(depth_is_capped)
{
    char text[2 * NIB_MAX_JSON_DEPTH + 2];
    for (size_t depth = NIB_MAX_JSON_DEPTH; depth <= NIB_MAX_JSON_DEPTH + 1; depth++) {
        memset(text, '[', depth);
        memset(text + depth, ']', depth);
        ck_assert(accepts(text, 2 * depth) == (depth == NIB_MAX_JSON_DEPTH));
    }
}
END_TEST

static bool decode(const char *literal, char *out, size_t cap, size_t *ret_bytes)
{
    struct nib_jscan scan;
    char *copy = exact(literal, strlen(literal));
    nib_jscan_init(&scan, copy, strlen(literal));
    bool ok = nib_jscan_next(&scan) == NIB_J_STRING && nib_jscan_text(&scan, out, cap, ret_bytes);
    free(copy);
    return ok;
}

START_TEST(strings_decode)
{
    static const struct {
        const char *literal, *text;
        size_t bytes;
    } good[] = {
        {"\"\"", "", 0},
        {"\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "a\"\\/\b\f\n\r\t", 9},
        {"\"\\u0120x\"", "\xC4\xA0x", 3},
        {"\"\\u20AC\\ud83D\\uDE00\"", "\xE2\x82\xAC\xF0\x9F\x98\x80", 7},
        {"\"\xC4\xA0\xF4\x8F\xBF\xBF\"", "\xC4\xA0\xF4\x8F\xBF\xBF", 6},
        {"\"a\\u0000b\"", "a\0b", 3},
    };
    static const char *const bad[] = {
        "\"\\x\"",      "\"\\u12\"",        "\"\\u12G4\"",
        "\"\\ud800\"",  "\"\\udc00\"",      "\"\\ud800\\u0041\"",
        "\"\xC0\x80\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\"",
        "\"\xE2\x82\"", "\"\x80\"",         "\"\xF5\x80\x80\x80\"",
    };
    char out[16];
    size_t n = 99;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        ck_assert(decode(good[i].literal, out, sizeof out, &n));
        ck_assert_uint_eq(n, good[i].bytes);
        ck_assert_mem_eq(out, good[i].text, n + 1);
        ck_assert(decode(good[i].literal, out, n + 1, &n));
        ck_assert(!decode(good[i].literal, out, n, &n));
    }
    n = 99;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_msg(!decode(bad[i], out, sizeof out, &n), "decoded %s", bad[i]);
    ck_assert_uint_eq(n, 99);
}
END_TEST

START_TEST(numbers_are_whole_or_refused)
{
    static const struct {
        const char *text;
        bool ok;
        uint64_t value;
    } cases[] = {{"0", true, 0},
                 {"18446744073709551615", true, UINT64_MAX},
                 {"18446744073709551616", false, 0},
                 {"99999999999999999999999", false, 0},
                 {"-1", false, 0},
                 {"1.0", false, 0},
                 {"1e3", false, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct nib_jscan scan;
        uint64_t value = 7;
        nib_jscan_init(&scan, cases[i].text, strlen(cases[i].text));
        ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_NUMBER);
        ck_assert(nib_jscan_u64(&scan, &value) == cases[i].ok);
        ck_assert_uint_eq(value, cases[i].ok ? cases[i].value : 7);
    }
}
END_TEST

START_TEST(skip_passes_over_one_value)
{
    static const char text[] = "{\"a\":[[1,{\"b\":2}],3],\"c\":4}";
    struct nib_jscan scan;
    nib_jscan_init(&scan, text, sizeof text - 1);
    ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_OBJECT);
    ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_KEY);
    ck_assert(nib_jscan_is(&scan, "a"));
    ck_assert(!nib_jscan_is(&scan, "ab"));
    ck_assert(nib_jscan_skip(&scan, nib_jscan_next(&scan)));
    ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_KEY);
    ck_assert(nib_jscan_is(&scan, "c"));
    ck_assert(nib_jscan_skip(&scan, nib_jscan_next(&scan)));
    ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_OBJECT_END);
    ck_assert_int_eq(nib_jscan_next(&scan), NIB_J_DONE);
    nib_jscan_init(&scan, text, 10);
    ck_assert(!nib_jscan_skip(&scan, nib_jscan_next(&scan)));
}
END_TEST

NIB_SUITE(jscan, json_is_told_from_other_text, every_prefix_of_a_value_is_refused, depth_is_capped, strings_decode,
          numbers_are_whole_or_refused, skip_passes_over_one_value)
