/* tests/core/engine_test.c: nib_step_check takes good steps and refuses each broken rule by name. */
#include "core/engine.h"

#include "core/sample.h"
#include "tests/harness.h"

static struct nib_step step;
static struct nib_kv_table tables[4];
static struct nib_sampling sampling[4];
static uint32_t pages[4][4] = {{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}};
static struct nib_engine engine;

static void row(uint32_t token, uint32_t pos, uint16_t slot, uint16_t flags)
{
    step.rows[step.rows_count++] = (struct nib_row){.token = token, .pos = pos, .slot = slot, .flags = flags};
}

/* A step with a decode row, a first chunk, a fed-back row and a last chunk. */
static void good(void)
{
    engine = (struct nib_engine){.shape = nib_shape_find("nano"),
                                 .dims = {.slots = 4, .ctx_tokens = 200, .kv_pages = 16, .step_rows_max = 8}};
    ck_assert_ptr_nonnull(engine.shape);
    for (uint32_t i = 0; i < 4; i++)
        tables[i] = (struct nib_kv_table){.pages = pages[i], .pages_count = 4};
    memset(&step, 0, sizeof step);
    step.serial = 1;
    step.tables = tables;
    step.sampling = sampling;
    row(5, 70, 2, NIB_ROW_LOGITS | NIB_ROW_DECODE);
    row(UINT32_MAX, 9, 0, NIB_ROW_LOGITS | NIB_ROW_DECODE | NIB_ROW_FEEDBACK);
    row(1, 0, 1, NIB_ROW_FIRST);
    row(2, 1, 1, 0);
    row(3, 2, 1, 0);
    row(7, 63, 3, 0);
    row(8, 64, 3, NIB_ROW_LOGITS);
}

static void refused(const char *word)
{
    struct nib_msg msg = {""};
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_E_ARG);
    ck_assert_msg(strstr(msg.text, word), "\"%s\" does not name \"%s\"", msg.text, word);
    good();
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_OK);
}

START_TEST(a_step_needs_its_parts)
{
    good();
    step.serial = 0;
    refused("serial");
    step.rows_count = 0;
    refused("0 rows");
    engine.dims.step_rows_max = 6;
    refused("7 rows");
    step.tables = NULL;
    refused("tables");
    step.sampling = NULL;
    refused("sampling");
}
END_TEST

START_TEST(each_row_obeys_its_limits)
{
    good();
    step.rows[6].slot = 4;
    refused("slot 4");
    step.rows[6].slot = UINT16_MAX;
    refused("slot 65535");
    step.rows[0].pos = 200;
    refused("position 200");
    step.rows[0].token = engine.shape->vocab;
    refused("token");
    step.rows[0].flags |= 16;
    refused("flags");
    step.rows[6].flags |= NIB_ROW_FEEDBACK;
    refused("FEEDBACK");
    step.rows[0].flags |= NIB_ROW_FIRST;
    refused("FIRST and DECODE");
    step.rows[2].flags = 0;
    refused("without FIRST");
}
END_TEST

START_TEST(a_slot_has_one_run_of_rows)
{
    good();
    step.rows[3].pos = 3;
    refused("follows");
    step.rows[4].pos = 1;
    refused("follows");
    step.rows[3].flags = NIB_ROW_FIRST;
    refused("FIRST inside");
    step.rows[3].flags = NIB_ROW_LOGITS;
    refused("LOGITS before");
    step.rows[6].flags |= NIB_ROW_DECODE;
    refused("DECODE after");
    step.rows[5].slot = 2;
    refused("not consecutive");
}
END_TEST

/* Slot 2 guesses two tokens, slot 0 none. */
static void good_draft(void)
{
    good();
    nib_sample_defaults(&sampling[2]);
    step.rows[3] = step.rows[1];
    for (uint32_t i = 1; i < 3; i++)
        step.rows[i] =
            (struct nib_row){.token = 5 + i, .pos = 70 + i, .slot = 2, .flags = NIB_ROW_LOGITS | NIB_ROW_DECODE};
    step.rows_count = 4;
    engine.dims.want_rows_max = 6;
    struct nib_msg msg;
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_OK);
}

START_TEST(a_draft_is_rows_that_want_tokens)
{
    good_draft();
    step.rows[1].flags = NIB_ROW_DECODE;
    refused("row 1: flags 0x2 in slot 2's draft");
    good_draft();
    step.rows[0].flags |= NIB_ROW_FEEDBACK;
    refused("row 0: flags 0x7 in slot 2's draft");
    good_draft();
    step.rows[2].pos = 73;
    refused("follows");
    good_draft();
    engine.dims.slots = 3;
    engine.dims.want_rows_max = 3;
    refused("4 rows decode or want logits: at most 3");
    good_draft();
    engine.dims.slots = 3;
    engine.dims.want_rows_max = 0; /* as many as slots */
    refused("4 rows decode or want logits: at most 3");
    good_draft();
    step.rows[step.rows_count++] = (struct nib_row){.token = 1, .slot = 1, .flags = NIB_ROW_FIRST | NIB_ROW_LOGITS};
    refused("1 prompt rows beside a draft");
    good_draft();
    step.rows[2].flags = NIB_ROW_LOGITS;
    refused("row 2: flags 0x1 in slot 2's draft");
    good_draft();
    tables[2].pages_count = 1;
    refused("needs 2");
}
END_TEST

START_TEST(a_draft_needs_a_slot_without_penalties)
{
    good_draft();
    sampling[2].repetition_penalty = 1.1f;
    refused("penalty");
    good_draft();
    sampling[2].frequency_penalty = 0.5f;
    refused("penalty");
    good_draft();
    sampling[2].presence_penalty = -1;
    refused("penalty");
}
END_TEST

START_TEST(tables_cover_the_rows)
{
    good();
    tables[3].pages_count = 1;
    refused("needs 2");
    tables[3].pages = NULL;
    refused("needs 2");
    pages[2][1] = 16;
    struct nib_msg msg;
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_E_ARG);
    pages[2][1] = 9;
    pages[2][2] = UINT32_MAX; /* past the row's position: not read */
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_OK);
}
END_TEST

START_TEST(copies_stay_inside_the_engine)
{
    struct nib_msg msg = {""};
    good();
    step.loads_count = step.saves_count = 1;
    step.loads[0] = (struct nib_kv_copy){.page = 15, .index = 3, .slot = 3};
    step.saves[0] = step.loads[0];
    ck_assert_int_eq(nib_step_check(&engine, &step, &msg), NIB_OK);
    step.loads[0].page = 16;
    step.loads_count = 1;
    refused("copy 0 of the loads: page 16");
    step.loads_count = 1;
    step.loads[0] = (struct nib_kv_copy){.index = 4};
    refused("place 4");
    step.saves_count = 2;
    step.saves[0] = (struct nib_kv_copy){0};
    step.saves[1] = (struct nib_kv_copy){.slot = 4};
    refused("copy 1 of the saves: page 0, place 0, slot 4");
    step.loads_count = NIB_MAX_KV_LOADS + 1;
    refused("loads");
    step.saves_count = NIB_MAX_KV_SAVES + 1;
    refused("saves");
}
END_TEST

NIB_SUITE(engine, copies_stay_inside_the_engine, a_step_needs_its_parts, each_row_obeys_its_limits,
          a_slot_has_one_run_of_rows, a_draft_is_rows_that_want_tokens, a_draft_needs_a_slot_without_penalties,
          tables_cover_the_rows)
