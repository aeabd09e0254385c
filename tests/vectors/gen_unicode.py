#!/usr/bin/env python3
"""Makes core/unicode_table.c from the Unicode 16.0.0 character database.

    gen_unicode.py            writes core/unicode_table.c
    gen_unicode.py --check    fails when the committed file differs

The database is the PyPI package unicodedata2, pinned to 16.0.0: the Unicode version of the regular expression
library in tiktoken and openai-harmony (tokenizer_full.py checks that, code point by code point).
"""
import pathlib
import sys

import unicodedata2

UNICODE = "16.0.0"
OUT = pathlib.Path(__file__).resolve().parents[2] / "core" / "unicode_table.c"

# PropList.txt, White_Space; stable since Unicode 6.3. U+180E is not in it.
WHITE_SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
OTHER, UPPER, LOWER, LETTER, MARK, NUMBER, SPACE, NEWLINE = range(8)  # enum nib_uclass
BY_CATEGORY = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LETTER, "Lo": LETTER}
BY_FIRST = {"M": MARK, "N": NUMBER}


def class_of(cp):
    if cp in (0x0A, 0x0D):
        return NEWLINE
    if cp in WHITE_SPACE:
        return SPACE
    category = unicodedata2.category(chr(cp))
    return BY_CATEGORY.get(category, BY_FIRST.get(category[0], OTHER))


def rows(items, per_line):
    lines = (items[i : i + per_line] for i in range(0, len(items), per_line))
    return "\n".join("    " + " ".join(item + "," for item in line) for line in lines)


def table():
    blocks, index = {}, []
    for start in range(0, 0x110000, 256):
        block = tuple(class_of(cp) for cp in range(start, start + 256))
        index.append(blocks.setdefault(block, len(blocks)))
    assert len(blocks) <= 256
    words = []
    for block in blocks:
        for w in range(16):
            words.append("0x%xu" % sum(c << 4 * i for i, c in enumerate(block[16 * w : 16 * w + 16])))
    body = "\n".join("    {\n%s\n    }," % rows(words[i : i + 16], 8).replace("    ", "        ") for i in range(0, len(words), 16))
    return f"""/* core/unicode_table.c: made by tests/vectors/gen_unicode.py from Unicode {UNICODE}; do not edit. */
#include "core/unicode.h"

/* clang-format off */
const uint8_t nib_unicode_block[0x110000 >> 8] = {{
{rows([str(i) for i in index], 34)}
}};

const uint64_t nib_unicode_class[][16] = {{
{body}
}};
"""


def main():
    if unicodedata2.unidata_version != UNICODE:
        sys.exit(f"gen_unicode: unicodedata2 holds Unicode {unicodedata2.unidata_version}, {UNICODE} is needed")
    text = table()
    if "--check" in sys.argv[1:]:
        if OUT.read_text() != text:
            sys.exit(f"gen_unicode: {OUT.name} differs from what Unicode {UNICODE} gives")
        print(f"gen_unicode: {OUT.name} is what Unicode {UNICODE} gives")
        return
    OUT.write_text(text)


if __name__ == "__main__":
    main()
