/* tools/units.c: owns nothing. Any thread. Fails by returning false. */
#include "tools/units.h"

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
