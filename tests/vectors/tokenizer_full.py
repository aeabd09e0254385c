#!/usr/bin/env python3
"""Compares the tokenizer with tiktoken and openai-harmony, id by id. Part of `make vectors`.

    tokenizer_full.py            compares, and checks that tokenizer_small.bin is still what it makes
    tokenizer_full.py --write    writes tokenizer_small.bin, the strings that `make check` uses

The comparisons: the class of every code point with tiktoken's regular expressions; every code point in a text that
depends on its class; the ids of COUNT varied strings from a seeded generator; and the pieces that the pattern cuts of
PIECES of them, since most wrong cuts change no id. NIB_TEST_SEED replays another seed.
"""
import os
import pathlib
import random
import struct
import subprocess
import sys

import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public as published

import gen_unicode

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VOCABULARY = ROOT / "etc" / "o200k" / "o200k_base.tiktoken"
SMALL = HERE / "tokenizer_small.bin"
FILTER = "build/rel/tests/vectors/tokenizer_ids"
SEED = 20251122
COUNT = 300_000
PIECES = 100_000
SMALL_BYTES = 290_000
EVERY = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]

SAMPLES = [
    line.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    for line in (HERE / "tokenizer_samples.txt").read_text().splitlines()
]
SPACES = [chr(c) for c in sorted(gen_unicode.WHITE_SPACE)] + list("\u180e\u200b\u2060\ufeff\u200d\x1c\x1f\x00")
APOSTROPHES = list("''''''\u2019\u02bc`\uff07")
SUFFIXES = "s t re ve m ll d S T RE VE M LL D Re vE lL \u017f \u212a r v l sS st red vet lle x 1".split()
EMOJI = list("👩👨👧👦🏽🏿🚀🌈🇩🇪❤🔥☺🤷♀🏴😀🫠©™1#*") + ["\u200d", "\ufe0f", "\ufe0e", "\u20e3", "\U000e0067", "\U000e007f"]
UNITS = list("xA a\n\t!/=-_.'7日あ한é\u0301\u0e33😀\r\u0378\u0ba4\u064b\u00a0\u3000") + [
    "ab", " \n", "\n ", "\r\n", "'s", "aA", "Aa", "日A", "A日", "\u0301A", "a\u0301", "12", "1a", " a", "a ", "/\n", "ha", "Ǆ", "ʰ", "ʰA"]


def reference():
    """o200k_harmony as published (pattern and special tokens), over the ranks of the committed file."""
    ranks = tiktoken.load.load_tiktoken_bpe(str(VOCABULARY))
    published.load_tiktoken_bpe = lambda *args, **kwargs: ranks
    return tiktoken.Encoding(**published.o200k_harmony())


def reference_pieces(encoder, texts):
    """The bytes of each piece of each text: an encoding of single bytes whose pattern matches at the start only gives
    the first piece, and the pattern never looks back."""
    first = tiktoken.Encoding(
        "first", pat_str=rf"\A(?:{encoder._pat_str})", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={}
    )
    pieces, open_texts = [[] for _ in texts], [(i, text) for i, text in enumerate(texts) if text]
    while open_texts:
        firsts = first.encode_ordinary_batch([text for _, text in open_texts])
        rest = []
        for (i, text), piece in zip(open_texts, firsts):
            pieces[i].append(len(piece))
            text = text[len(bytes(piece).decode()) :]
            if text:
                rest.append((i, text))
        open_texts = rest
    return pieces


def ours(texts, *options):
    data = b"".join(struct.pack("<I", len(t)) + t for t in (s.encode() for s in texts))
    out = subprocess.run([FILTER, VOCABULARY, *options], input=data, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout
    words, at, ids = memoryview(out).cast("I"), 0, []
    for _ in texts:
        count = words[at]
        ids.append(None if count == 0xFFFFFFFF else list(words[at + 1 : at + 1 + count]))
        at += 1 + (0 if count == 0xFFFFFFFF else count)
    return ids


def compare(name, texts, expected_of, *options):
    wrong = 0
    for start in range(0, len(texts), 50_000):
        part = texts[start : start + 50_000]
        for text, want, got in zip(part, expected_of(part), ours(part, *options)):
            if want != got:
                wrong += 1
                if wrong <= 5:
                    print(f"  {text!r}\n    want {want}\n    got  {got}")
    print(f"{name}: {len(texts)} strings, {wrong} mismatches")
    return wrong


def compare_classes():
    """The generated table against the reference's own \\p{..} and \\s, over every code point."""
    byte_ranks = {bytes([b]): b for b in range(256)}
    patterns = {
        gen_unicode.UPPER: r"[\p{Lu}\p{Lt}]", gen_unicode.LOWER: r"\p{Ll}", gen_unicode.LETTER: r"[\p{Lm}\p{Lo}]",
        gen_unicode.MARK: r"\p{M}", gen_unicode.NUMBER: r"\p{N}", gen_unicode.NEWLINE: r"[\r\n]",
        gen_unicode.SPACE: r"[^\S\r\n]", gen_unicode.OTHER: r"[^\s\p{L}\p{M}\p{N}]",
    }
    wrong = 0
    for value, pattern in patterns.items():
        probe = tiktoken.Encoding("probe", pat_str=pattern, mergeable_ranks=byte_ranks, special_tokens={})
        found = set()
        for start in range(0, len(EVERY), 50_000):
            found.update(bytes(probe.encode_ordinary("".join(map(chr, EVERY[start : start + 50_000])))).decode())
        wrong += len(found ^ {chr(c) for c in EVERY if gen_unicode.class_of(c) == value})
    print(f"classes: {len(EVERY)} code points, {wrong} mismatches")
    return wrong


def some(rng, pool, low, high):
    return "".join(rng.choice(pool) for _ in range(rng.randint(low, high)))


class Strings:
    """The varied strings; one method a kind, so that each kind has the same share."""

    def __init__(self, seed, vocabulary, code):
        self.rng = random.Random(seed)
        self.by_class = [[chr(c) for c in EVERY if gen_unicode.class_of(c) == k] for k in range(8)]
        self.common = [[c for c in pool if ord(c) < 0x3000] for pool in self.by_class]
        self.tokens = [t for t in (self.text_of(v) for v in vocabulary) if t]
        self.code = code
        self.kinds = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("kind_")]

    @staticmethod
    def text_of(token):
        try:
            return token.decode()
        except UnicodeDecodeError:
            return None

    def kind_any_code_point(self):
        return "".join(chr(self.rng.choice(EVERY)) for _ in range(self.rng.randint(1, 24)))

    def kind_by_class(self):
        pools = self.common if self.rng.random() < 0.7 else self.by_class
        return "".join(self.rng.choice(self.rng.choice(pools)) for _ in range(self.rng.randint(1, 32)))

    def kind_class_runs(self):
        return "".join(some(self.rng, self.rng.choice(self.common), 1, 12) for _ in range(self.rng.randint(1, 8)))

    def kind_code(self):
        text = self.rng.choice(self.code)
        at = self.rng.randrange(len(text))
        return text[at : at + self.rng.randint(1, 200)]

    def kind_contractions(self):
        words = []
        for _ in range(self.rng.randint(1, 5)):
            word = some(self.rng, self.rng.choice(self.common[1:5]), 0, 4)
            words.append(word + self.rng.choice(APOSTROPHES) + self.rng.choice(SUFFIXES))
        return self.rng.choice(["", " "]).join(words)

    def kind_digits(self):
        return "".join(some(self.rng, self.rng.choice([self.by_class[5], list("0123456789"), list("٠١٢٣²½Ⅳ,.'-/ a")]), 1, 7)
                       for _ in range(self.rng.randint(1, 6)))

    def kind_emoji(self):
        return some(self.rng, EMOJI, 1, 20)

    def kind_letter_case(self):
        letters = list("aAbBéÉǅʰªºßſKЖж日あ한ªა\u0301\u0903") + self.common[1][:200:9] + self.common[2][:200:9]
        return some(self.rng, letters, 1, 24)

    def kind_marks(self):
        marks, bases = self.by_class[4], list("aA1 !\n'日ʰ-/") + self.common[3][::50]
        return "".join(self.rng.choice(bases) * self.rng.randint(0, 2) + some(self.rng, marks, 0, 4) for _ in range(self.rng.randint(1, 8)))

    def kind_mutated(self):
        text = list(self.kind_natural())
        for _ in range(self.rng.randint(1, 6)):
            at = self.rng.randrange(len(text) + 1)
            text[at : at + self.rng.randint(0, 2)] = self.rng.choice(self.rng.choice(self.common))
        return "".join(text)

    def kind_natural(self):
        text = self.rng.choice(SAMPLES) + self.rng.choice(["", " ", "\n", "\n\n"]) + self.rng.choice(SAMPLES)
        at = self.rng.randrange(len(text))
        return text[at : at + self.rng.randint(1, 120)]

    def kind_punctuation(self):
        return "".join(some(self.rng, list("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ \n\r/«»—…。、") + self.common[0][::40], 1, 10)
                       + self.rng.choice(["", "a", "B", "1", "日"]) for _ in range(self.rng.randint(1, 5)))

    def kind_runs(self):
        unit = self.rng.choice(UNITS) if self.rng.random() < 0.8 else self.rng.choice(self.rng.choice(self.by_class))
        top = 1500 if self.rng.random() < 0.05 else 160
        return self.rng.choice(["", "a", " "]) + unit * self.rng.randint(1, top) + self.rng.choice(["", "a", " ", "\n", "A"])

    def kind_spaces(self):
        return "".join(some(self.rng, SPACES, 0, 6) + self.rng.choice(["", "a", "A", "1", "!", "/", "日", "\n"]) for _ in range(self.rng.randint(1, 6)))

    def kind_tokens(self):
        return "".join(self.rng.choice(self.tokens) for _ in range(self.rng.randint(1, 12)))

    def kind_words_joined(self):
        top = 120 if self.rng.random() < 0.1 else 12
        return "".join(self.rng.choice(self.tokens).strip() for _ in range(self.rng.randint(2, top)))

    def make(self, count):
        return [self.kinds[i % len(self.kinds)]() for i in range(count)]


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))


def small_file(encoder, strings):
    """(varint bytes, text, varint count, varint ids, varint count, varint bytes of pieces)*, as many as fit."""
    out = bytearray()
    strings = [text for text in strings if len(text.encode()) <= 1000]
    for text, pieces in zip(strings, reference_pieces(encoder, strings)):
        ids, data = encoder.encode_ordinary(text), text.encode()
        lists = b"".join(varint(len(some)) + b"".join(map(varint, some)) for some in (ids, pieces))
        record = varint(len(data)) + data + lists
        if len(out) + len(record) > SMALL_BYTES:
            break
        out += record
    return bytes(out)


def harmony_encoder():
    """openai-harmony's own tokenizer over the committed ranks."""
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(VOCABULARY.parent)
    import openai_harmony

    return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def main():
    subprocess.run(["make", "-s", "VARIANT=rel", FILTER], check=True, cwd=ROOT)
    encoder = reference()
    tiktoken_ids = lambda texts: encoder.encode_ordinary_batch(texts)
    seed = int(os.environ.get("NIB_TEST_SEED", SEED))
    print(f"seed {seed}")

    small = small_file(encoder, Strings(SEED, encoder._mergeable_ranks, SAMPLES[-8:]).make(6_000))
    if "--write" in sys.argv[1:]:
        SMALL.write_bytes(small)
        print(f"{SMALL.name}: {len(small)} bytes")
        return 0
    wrong = 0 if SMALL.read_bytes() == small else 1
    print(f"{SMALL.name}: {'unchanged' if not wrong else 'DIFFERS; run with --write and look at the difference'}")

    wrong += 0 if gen_unicode.OUT.read_text() == gen_unicode.table() else 1
    print(f"{gen_unicode.OUT.name}: {'unchanged' if wrong == 0 else 'see above, or run gen_unicode.py'}")
    wrong += compare_classes()
    every = [f"a{c}b {c}B{c}1{c}'s{c}{c}\n{c}/ {c} A{c}" for c in map(chr, EVERY)]
    wrong += compare("every code point, tiktoken", every, tiktoken_ids)
    code = [path.read_text() for path in sorted(ROOT.glob("*/*.[chp]*")) + [ROOT / "Makefile"] if path.is_file()]
    strings = Strings(seed + 1, encoder._mergeable_ranks, code).make(COUNT)
    print(f"{len(set(strings))} of {len(strings)} varied strings are distinct, {sum(len(s.encode()) for s in strings)} bytes")
    wrong += compare("varied strings, tiktoken", strings, tiktoken_ids)
    wrong += compare("pieces, tiktoken", strings[:PIECES], lambda texts: reference_pieces(encoder, texts), "--pieces")
    harmony = harmony_encoder()
    harmony_ids = lambda texts: [harmony.encode(t, allowed_special=set(), disallowed_special=()) for t in texts]
    wrong += compare("every 7th code point, openai-harmony", every[::7], harmony_ids)
    wrong += compare("varied strings, openai-harmony", strings[: COUNT // 5], harmony_ids)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
