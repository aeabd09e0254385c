/* tools/units.c: owns nothing. Any thread. Fails by returning false. */
#include "tools/units.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool nib_parse_size(const char *text, uint64_t *ret_bytes)
{
    static const char suffixes[] = "KMGT";
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    double value = strtod(text, &end);
    if (*end) {
        const char *suffix = strchr(suffixes, *end);
        if (!suffix || end[1])
            return false;
        for (const char *s = suffixes; s <= suffix; s++)
            value *= 1024;
    }
    if (!(value >= 0 && value <= 0x1p60))
        return false;
    *ret_bytes = (uint64_t)value;
    return true;
}

bool nib_parse_count(const char *text, uint32_t max, uint32_t *ret_value)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno || *end || value == 0 || value > max)
        return false;
    *ret_value = (uint32_t)value;
    return true;
}
