/* tests/core/arch_table_test.c: every profile gets the row made for it, and a mask reaches every slower one. */
#include "arch/table.h"
#include "tests/harness.h"
#include "tools/profiles.h"

static const struct {
    const char *profile, *row;
} expected[] = {
    {"b200", "sm100"},    {"b100", "sm100"},   {"h200", "sm90"},   {"h100", "sm90"},       {"a100-40", "sm80"},
    {"a100-80", "sm80"},  {"l40s", "sm80"},    {"l4", "sm80"},     {"a10g", "sm80"},       {"t4", "sm75"},
    {"rtx5090", "sm120"}, {"rtx4090", "sm80"}, {"orin64", "sm80"}, {"dgx-spark", "sm120"},
};

START_TEST(each_profile_gets_its_row)
{
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        struct nib_profile profile;
        const struct nib_arch_row *row;
        struct nib_msg msg;
        ck_assert_msg(nib_profile_load(expected[i].profile, &profile, &msg) == NIB_OK, "%s", msg.text);
        ck_assert_int_eq(nib_arch_select(&profile, 0, &row, &msg), NIB_OK);
        ck_assert_str_eq(row->name, expected[i].row);
    }
}
END_TEST

START_TEST(a_mask_walks_down_the_rows)
{
    struct nib_profile profile;
    const struct nib_arch_row *row;
    struct nib_msg msg;
    uint32_t mask;
    ck_assert_int_eq(nib_profile_load("h200", &profile, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_mask_parse("sm90", &mask, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_select(&profile, mask, &row, &msg), NIB_OK);
    ck_assert_str_eq(row->name, "sm80");
    ck_assert_int_eq(nib_arch_mask_parse("sm90,sm80", &mask, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_select(&profile, mask, &row, &msg), NIB_OK);
    ck_assert_str_eq(row->name, "sm75");
    ck_assert_int_eq(nib_arch_mask_parse("sm90,sm80,sm75", &mask, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_select(&profile, mask, &row, &msg), NIB_E_UNSUPPORTED);
    ck_assert_int_eq(nib_arch_mask_parse("sm90,warp9", &mask, &msg), NIB_E_ARG);
    ck_assert_ptr_nonnull(strstr(msg.text, "warp9"));
    ck_assert_ptr_nonnull(strstr(msg.text, "sm120"));
}
END_TEST

START_TEST(a_cpu_without_features_gets_the_reference)
{
    struct nib_profile bare = {.name = "bare"}, here;
    const struct nib_arch_row *row;
    struct nib_msg msg;
    ck_assert_int_eq(nib_arch_select(&bare, 0, &row, &msg), NIB_OK);
    ck_assert_str_eq(row->name, "ref");
    ck_assert_int_eq(nib_arch_probe_cpu(&here, &msg), NIB_OK);
    ck_assert_uint_ge(here.sms, 1);
    ck_assert_uint_gt(here.memory_bytes, here.reserved_bytes);
    ck_assert_int_eq(nib_arch_select(&here, 0, &row, &msg), NIB_OK);
    ck_assert(!row->gpu);
}
END_TEST

START_TEST(fallbacks_are_rows)
{
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    for (size_t i = 0; i < count; i++) {
        if (rows[i].fallback)
            ck_assert_ptr_nonnull(nib_arch_find(rows[i].fallback));
        ck_assert_int_eq(rows[i].gpu, rows[i].kernels == NULL);
        ck_assert(!rows[i].gpu_kernels || rows[i].gpu);
        ck_assert_int_eq(nib_arch_unbuilt_mask() >> i & 1, !rows[i].kernels && !rows[i].gpu_kernels);
    }
}
END_TEST

START_TEST(bad_profiles_are_refused)
{
    static const char *const bad[] = {
        "", "[]", "{}", "{\"name\": 3}", "{\"name\":\"x\",\"gpu\":1}",
    };
    struct nib_profile profile = {.sms = 77};
    struct nib_msg msg;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ck_assert_int_eq(nib_profile_parse(bad[i], strlen(bad[i]), &profile, &msg), NIB_E_FORMAT);
    ck_assert_uint_eq(profile.sms, 77);
    ck_assert_int_eq(nib_profile_load("no-such-card", &profile, &msg), NIB_E_ARG);
}
END_TEST

NIB_SUITE(arch_table, each_profile_gets_its_row, a_mask_walks_down_the_rows, a_cpu_without_features_gets_the_reference,
          fallbacks_are_rows, bad_profiles_are_refused)
