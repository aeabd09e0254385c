/* tests/core/err_test.c: messages are truncated, never overrun; codes have names. */
#include "core/err.h"
#include "tests/harness.h"

START_TEST(message_is_cut_to_its_buffer)
{
    struct nib_msg msg;
    char big[2 * NIB_MAX_MSG_BYTES];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    ck_assert_int_eq(nib_fail(&msg, NIB_E_ARG, "%s", big), NIB_E_ARG);
    ck_assert_uint_eq(strlen(msg.text), NIB_MAX_MSG_BYTES - 1);
    ck_assert_int_eq(nib_fail(NULL, NIB_E_IO, "no message wanted"), NIB_E_IO);
}
END_TEST

START_TEST(every_code_has_a_name)
{
    for (int e = 0; e < NIB_ERR_COUNT; e++)
        ck_assert_str_ne(nib_err_name((enum nib_err)e), "unknown");
    ck_assert_str_eq(nib_err_name(NIB_ERR_COUNT), "unknown");
}
END_TEST

NIB_SUITE(err, message_is_cut_to_its_buffer, every_code_has_a_name)
