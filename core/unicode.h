/* core/unicode.h: the class of every code point, as the tokenizer's pattern sees it.
 * Unicode 16.0.0, the version of the reference tokenizers. The table is made by
 * tests/vectors/gen_unicode.py. Pure data; any thread. */
#ifndef NIB_CORE_UNICODE_H
#define NIB_CORE_UNICODE_H

#include <stdint.h>

enum nib_uclass {
    NIB_UC_OTHER,   /* punctuation, symbols, controls, unassigned */
    NIB_UC_UPPER,   /* Lu, Lt */
    NIB_UC_LOWER,   /* Ll */
    NIB_UC_LETTER,  /* Lm, Lo */
    NIB_UC_MARK,    /* M */
    NIB_UC_NUMBER,  /* N */
    NIB_UC_SPACE,   /* White_Space but CR and LF */
    NIB_UC_NEWLINE, /* CR, LF */
};

/* Two stages: a code point's high bits choose a block, its low eight a class of four bits in it. */
extern const uint8_t nib_unicode_block[0x110000 >> 8];
extern const uint64_t nib_unicode_class[][16]; /* [blocks][256 classes, 16 a word] */

/* cp <= 0x10ffff. */
static inline enum nib_uclass nib_unicode_class_of(uint32_t cp)
{
    uint64_t word = nib_unicode_class[nib_unicode_block[cp >> 8]][cp >> 4 & 15];
    return (enum nib_uclass)(word >> (cp & 15) * 4 & 15);
}

#endif
