/* core/tokenizer_split.h: cuts text into the pieces that are merged separately (o200k's pattern).
 * Internal to the tokenizer, open to its tests. Any thread; no memory. */
#ifndef NIB_CORE_TOKENIZER_SPLIT_H
#define NIB_CORE_TOKENIZER_SPLIT_H

#include <stddef.h>
#include <stdint.h>

/* The end of the piece that starts at `at`; text is valid UTF-8, at < bytes and on a character
 * boundary, the result is in at+1..bytes. Over a whole text each byte is looked at a fixed number
 * of times. */
size_t nib_split_next(const uint8_t *text, size_t bytes, size_t at);

#endif
