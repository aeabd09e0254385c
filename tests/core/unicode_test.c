/* tests/core/unicode_test.c: the class of every code point. The digest is of 0x110000 bytes, each a code point's class,
 * as gen_unicode.py's class_of gives them; tokenizer_full.py compares those with the reference's own classes. */
#include "core/hash.h"
#include "core/unicode.h"
#include "tests/harness.h"

START_TEST(every_class_is_unicode_16s)
{
    static const char want[] = "beefc3ecbf6954eba5ca412b977a2a57bdb3ec51609c71768063c9135b348fe3";
    uint8_t *classes = malloc(0x110000), digest[NIB_SHA256_BYTES];
    for (uint32_t cp = 0; cp < 0x110000; cp++)
        classes[cp] = (uint8_t)nib_unicode_class_of(cp);
    nib_sha256(classes, 0x110000, digest);
    free(classes);
    for (size_t i = 0; i < sizeof digest; i++) {
        char hex[3];
        (void)snprintf(hex, sizeof hex, "%02x", digest[i]);
        ck_assert_mem_eq(hex, want + 2 * i, 2);
    }
}
END_TEST

START_TEST(the_code_points_that_trap_others_are_right)
{
    static const struct {
        uint32_t cp;
        enum nib_uclass class;
    } rows[] = {{'\n', NIB_UC_NEWLINE},   {'\r', NIB_UC_NEWLINE},  {'\t', NIB_UC_SPACE},   {'\v', NIB_UC_SPACE},
                {0x1c, NIB_UC_OTHER},     {0x85, NIB_UC_SPACE},    {0xa0, NIB_UC_SPACE},   {0x17f, NIB_UC_LOWER},
                {0x1c5, NIB_UC_UPPER},    {0x2b0, NIB_UC_LETTER},  {0x301, NIB_UC_MARK},   {0x903, NIB_UC_MARK},
                {0x488, NIB_UC_MARK},     {0x2160, NIB_UC_NUMBER}, {0xbd, NIB_UC_NUMBER},  {0x180e, NIB_UC_OTHER},
                {0x200b, NIB_UC_OTHER},   {0x2028, NIB_UC_SPACE},  {0x3000, NIB_UC_SPACE}, {0xfeff, NIB_UC_OTHER},
                {0x0c5c, NIB_UC_OTHER}, /* a letter from Unicode 17 on */
                {0x10d40, NIB_UC_NUMBER}, {0x10d50, NIB_UC_UPPER}, {0x1c89, NIB_UC_UPPER}, /* new in 16 */
                {0x31350, NIB_UC_LETTER},                                                  /* new in 15 */
                {0xd800, NIB_UC_OTHER},   {0x10ffff, NIB_UC_OTHER}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        ck_assert_msg(nib_unicode_class_of(rows[i].cp) == rows[i].class, "class of U+%04X", rows[i].cp);
}
END_TEST

NIB_SUITE(unicode, every_class_is_unicode_16s, the_code_points_that_trap_others_are_right)
