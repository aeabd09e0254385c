/* tools/clean.c: owns nothing. Any size of text. Any thread. Fails only as the stream does. */
#include "tools/clean.h"

#include <stdbool.h>
#include <stdint.h>

#include "core/utf8.h"

#define REPLACEMENT "\xef\xbf\xbd" /* U+FFFD */

static bool is_control(uint32_t c)
{
    return (c < 0x20 && c != '\n' && c != '\t') || (c >= 0x7f && c < 0xa0);
}

/* Text that is valid UTF-8. */
static void print_valid(FILE *out, const uint8_t *text, size_t bytes)
{
    for (size_t at = 0, length; at < bytes; at += length) {
        uint32_t c = nib_utf8_decode(text + at, &length);
        if (!is_control(c))
            (void)fwrite(text + at, 1, length, out);
        else if (c != '\r')
            (void)fputs(REPLACEMENT, out);
    }
}

void nib_clean_print(FILE *out, const char *text, size_t bytes)
{
    const uint8_t *at = (const uint8_t *)text;
    while (bytes) {
        size_t valid = nib_utf8_valid_bytes(at, bytes);
        print_valid(out, at, valid);
        if (valid < bytes) {
            (void)fputs(REPLACEMENT, out);
            valid++;
        }
        at += valid;
        bytes -= valid;
    }
}
