/* tools/units.h: sizes as people write them. Any thread. */
#ifndef NIB_TOOLS_UNITS_H
#define NIB_TOOLS_UNITS_H

#include <stdbool.h>
#include <stdint.h>

/* "4096", "512K", "1.5G", "2T" (powers of 1024) to bytes; false when it is none or above 2^60. */
bool nib_parse_size(const char *text, uint64_t *ret_bytes);

/* A whole number from 1 to max; false for anything else. */
bool nib_parse_count(const char *text, uint32_t max, uint32_t *ret_value);

#endif
