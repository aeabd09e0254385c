/* Generation defaults: canonical text, the missing <|call|> of old checkpoints, refusals. */
#include "core/generation.h"

#include "tests/harness.h"

static enum nib_err parse(const char *text, struct nib_generation *ret, uint32_t *added)
{
    struct nib_msg msg = {""};
    enum nib_err err =
        nib_generation_parse(text, strlen(text), "generation_config.json", nib_shape_find("20b"), ret, added, &msg);
    ck_assert((err == NIB_OK) == (msg.text[0] == '\0'));
    return err;
}

START_TEST(defaults_print_canonically)
{
    struct nib_generation g;
    char text[NIB_GENERATION_TEXT_BYTES];
    nib_generation_default(nib_shape_find("20b"), &g);
    size_t n = nib_generation_print(&g, text);
    ck_assert_str_eq(text, "{\"bos_token_id\":199998,\"do_sample\":true,\"eos_token_id\":[200002,"
                           "199999,200012],\"pad_token_id\":199999,\"temperature\":1,\"top_p\":1}");
    ck_assert_uint_eq(n, strlen(text));
}
END_TEST

START_TEST(text_survives_a_round_trip)
{
    struct nib_generation g, back;
    char text[NIB_GENERATION_TEXT_BYTES], again[NIB_GENERATION_TEXT_BYTES];
    ck_assert_int_eq(parse("{\"eos_token_id\":[200007,200012,199999,200002,200002,7,8,9,10],"
                           "\"temperature\":0.7,\"top_p\":0.95,\"do_sample\":false,"
                           "\"transformers_version\":\"5.0\"}",
                           &g, NULL),
                     NIB_OK);
    ck_assert_uint_eq(g.eos_count, 8);
    ck_assert_uint_eq(g.eos[0], 200002);
    ck_assert_uint_eq(g.eos[1], 199999);
    ck_assert_uint_eq(g.eos[2], 200012);
    ck_assert_uint_eq(g.eos[3], 200007);
    nib_generation_print(&g, text);
    ck_assert_int_eq(parse(text, &back, NULL), NIB_OK);
    nib_generation_print(&back, again);
    ck_assert_str_eq(text, again);
}
END_TEST

START_TEST(missing_call_is_added)
{
    struct nib_generation g;
    uint32_t added = 9;
    ck_assert_int_eq(parse("{\"eos_token_id\":[200002,199999]}", &g, &added), NIB_OK);
    ck_assert_uint_eq(added, 1);
    ck_assert_uint_eq(g.eos[2], 200012);
    ck_assert_int_eq(parse("{\"eos_token_id\":199999}", &g, &added), NIB_OK);
    ck_assert_uint_eq(added, 2);
    ck_assert_int_eq(parse("{}", &g, &added), NIB_OK);
    ck_assert_uint_eq(added, 0);
    ck_assert_uint_eq(g.eos_count, 3);
}
END_TEST

START_TEST(bad_members_are_refused)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{\"eos_token_id\":}",
        "{\"eos_token_id\":201088}",
        "{\"eos_token_id\":-1}",
        "{\"eos_token_id\":1.0}",
        "{\"eos_token_id\":[1,2,3,4,5,6]}",
        "{\"eos_token_id\":[[1]]}",
        "{\"eos_token_id\":\"200002\"}",
        "{\"pad_token_id\":300000}",
        "{\"bos_token_id\":true}",
        "{\"temperature\":2.5}",
        "{\"temperature\":\"1\"}",
        "{\"top_p\":0}",
        "{\"do_sample\":1}",
        "{\"top_p\":1,\"top_p\":1}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct nib_generation g = {.bos = 77};
        uint32_t added = 9;
        ck_assert_int_eq(parse(bad[i], &g, &added), NIB_E_FORMAT);
        ck_assert_uint_eq(g.bos, 77);
        ck_assert_uint_eq(added, 9);
    }
}
END_TEST

NIB_SUITE(generation, defaults_print_canonically, text_survives_a_round_trip, missing_call_is_added,
          bad_members_are_refused)
