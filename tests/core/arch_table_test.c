/* tests/core/arch_table_test.c: every profile gets the row made for it, and a mask reaches every slower one. */
#include "arch/table.h"
#include "tests/harness.h"
#include "tools/profiles.h"

static const struct {
    const char *profile, *row;
    const char *runs; /* of the rows with kernels, the best; NULL: none, so the CPU's rows */
} expected[] = {
    {"b200", "sm100", "sm80"},  {"b100", "sm100", "sm80"},      {"h200", "sm90", "sm90"},
    {"h100", "sm90", "sm90"},   {"a100-40", "sm80", "sm80"},    {"a100-80", "sm80", "sm80"},
    {"l40s", "sm80", "sm80"},   {"l4", "sm80", "sm80"},         {"a10g", "sm80", "sm80"},
    {"t4", "sm75", NULL},       {"rtx5090", "sm120", "sm80"},   {"rtx4090", "sm80", "sm80"},
    {"orin64", "sm80", "sm80"}, {"dgx-spark", "sm120", "sm80"},
};

START_TEST(each_profile_gets_its_row)
{
    struct nib_profile all[NIB_MAX_PROFILES];
    struct nib_msg msg;
    size_t count;
    ck_assert_int_eq(nib_profiles_list(all, &count, &msg), NIB_OK);
    ck_assert_uint_eq(count, sizeof expected / sizeof expected[0]);
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        struct nib_profile profile;
        const struct nib_arch_row *row;
        ck_assert_msg(nib_profile_load(expected[i].profile, &profile, &msg) == NIB_OK, "%s", msg.text);
        ck_assert_int_eq(nib_arch_select(&profile, 0, &row, &msg), NIB_OK);
        ck_assert_str_eq(row->name, expected[i].row);
        ck_assert_uint_le(row->shared_bytes, profile.shared_bytes);
    }
}
END_TEST

/* What this build can run: sm_90 its own row, every later or earlier card from 8.0 on the portable one, older ones none. */
START_TEST(each_profile_runs_a_row_with_kernels)
{
    if (!nib_arch_find("sm80")->gpu_kernels)
        return; /* built without nvcc */
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        struct nib_profile profile;
        const struct nib_arch_row *row = NULL;
        struct nib_msg msg;
        ck_assert_int_eq(nib_profile_load(expected[i].profile, &profile, &msg), NIB_OK);
        enum nib_err err = nib_arch_select(&profile, nib_arch_unbuilt_mask(), &row, &msg);
        if (!expected[i].runs) {
            ck_assert_int_eq(err, NIB_E_UNSUPPORTED);
            ck_assert_ptr_nonnull(strstr(msg.text, profile.name));
            continue;
        }
        ck_assert_int_eq(err, NIB_OK);
        ck_assert_str_eq(row->name, expected[i].runs);
        ck_assert_ptr_nonnull(row->gpu_kernels);
    }
}
END_TEST

/* No launch of a row asks for more than the row says, so that it runs wherever the table lets it. */
START_TEST(launches_fit_what_the_row_needs)
{
    static const uint32_t bucket[][2] = {{1, 0},   {4, 0}, {16, 0},   {17, 0},   {64, 0},
                                         {256, 0}, {0, 1}, {0, 2048}, {64, 1984}};
    size_t count, shapes_count;
    const struct nib_arch_row *rows = nib_arch_rows(&count);
    const struct nib_shape *shapes = nib_shapes(&shapes_count);
    for (size_t i = 0; i < count; i++)
        for (size_t s = 0; s < shapes_count && rows[i].gpu_kernels; s++)
            for (size_t b = 0; b < sizeof bucket / sizeof bucket[0]; b++)
                for (int op = 0; op < NIB_GPU_OP_COUNT; op++) {
                    struct nib_gpu_machine m = {.slots = 256,
                                                .ctx_pages = 2048,
                                                .step_rows_max = 2048,
                                                .splits_max = rows[i].gpu_kernels->splits_max(131072),
                                                .sms = 132};
                    nib_gpu_machine_model(&m, &shapes[s]);
                    struct nib_gpu_geometry g;
                    rows[i].gpu_kernels->geometry((enum nib_gpu_op)op, &m, bucket[b][0], bucket[b][1],
                                                  bucket[b][0] ? bucket[b][0] : 1, &g);
                    ck_assert_msg(g.shared_bytes <= rows[i].shared_bytes, "%s %s: %u bytes of shared memory",
                                  rows[i].name, nib_gpu_op_symbol((enum nib_gpu_op)op), g.shared_bytes);
                    ck_assert_uint_le(g.block, 1024);
                    ck_assert_uint_le(g.grid[3], 8); /* portable clusters, whole ones */
                    ck_assert(g.grid[3] == 0 || g.grid[0] % g.grid[3] == 0);
                    ck_assert_uint_le(g.grid[1], 65535);
                    ck_assert_uint_le(g.grid[2], 65535);
                }
}
END_TEST

/* Expert products of few rows: a model whose rows and tiles have no room beside each other asks for more than there is, which boot refuses; it may not
 * launch without room for two tiles, which would never end. */
START_TEST(a_model_too_wide_for_its_experts_is_refused)
{
    const struct nib_arch_row *row = nib_arch_find("sm90");
    if (!row->gpu_kernels)
        return; /* built without nvcc */
    uint32_t refused = 0;
    for (uint32_t hidden = 64; hidden <= NIB_MAX_HIDDEN; hidden += 64)
        for (uint32_t rows = 2; rows <= 16; rows *= 2) {
            struct nib_gpu_machine m = {.slots = 16, .step_rows_max = 64, .sms = 132};
            nib_gpu_machine_model(&m, nib_shape_find("20b"));
            m.hidden = hidden;
            const uint32_t tile = hidden / 64 * 544; /* bytes: a unit of 64 inputs has 544 */
            struct nib_gpu_geometry g;
            row->gpu_kernels->geometry(NIB_GPU_UP, &m, rows, 0, rows, &g);
            refused += g.shared_bytes > row->shared_bytes;
            if (g.shared_bytes <= row->shared_bytes)
                ck_assert_msg(g.shared_bytes >= rows * hidden * 2 + 2 * tile, "hidden %u, %u rows: %u bytes", hidden,
                              rows, g.shared_bytes);
        }
    ck_assert_uint_gt(refused, 0);
}
END_TEST

START_TEST(a_card_with_too_little_shared_memory_is_refused)
{
    struct nib_profile profile;
    const struct nib_arch_row *row;
    struct nib_msg msg;
    ck_assert_int_eq(nib_profile_load("l4", &profile, &msg), NIB_OK);
    ck_assert_ptr_null(nib_arch_refusal(nib_arch_find("sm80"), &profile, 0));
    profile.shared_bytes = 64u << 10;
    ck_assert_ptr_nonnull(strstr(nib_arch_refusal(nib_arch_find("sm80"), &profile, 0), "shared memory"));
    ck_assert_int_eq(nib_arch_select(&profile, nib_arch_unbuilt_mask(), &row, &msg), NIB_E_UNSUPPORTED);
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
    ck_assert_str_eq(row->name, "sm90-ops");
    ck_assert_int_eq(nib_arch_mask_parse("sm90,sm90-ops", &mask, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_select(&profile, mask, &row, &msg), NIB_OK);
    ck_assert_str_eq(row->name, "sm80");
    ck_assert_int_eq(nib_arch_mask_parse("sm90,sm90-ops,sm80", &mask, &msg), NIB_OK);
    ck_assert_int_eq(nib_arch_select(&profile, mask, &row, &msg), NIB_OK);
    ck_assert_str_eq(row->name, "sm75");
    ck_assert_int_eq(nib_arch_mask_parse("sm90,sm90-ops,sm80,sm75", &mask, &msg), NIB_OK);
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
        ck_assert(!rows[i].gpu_kernels || rows[i].module);
        ck_assert(rows[i].features && rows[i].numbers && rows[i].layout && rows[i].tiles);
        ck_assert_int_eq(rows[i].gpu, rows[i].shared_bytes != 0);
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

NIB_SUITE(arch_table, each_profile_gets_its_row, each_profile_runs_a_row_with_kernels, launches_fit_what_the_row_needs,
          a_model_too_wide_for_its_experts_is_refused, a_card_with_too_little_shared_memory_is_refused,
          a_mask_walks_down_the_rows, a_cpu_without_features_gets_the_reference, fallbacks_are_rows,
          bad_profiles_are_refused)
