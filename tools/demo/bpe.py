#!/usr/bin/env python3
"""Learns the demo's byte-level BPE from conversations of data.py and writes tokenizer.json as `nibble pack` reads it.

    bpe.py FOLDER

Deterministic: the same tree gives the same file. Digits stay single tokens, so do capitals (a leading space or hyphen may
join one): numbers and spelled words then have one token a character. Words of the question lists are not learnt from, so
that they are cut into the same short pieces as any other word.
"""
import collections
import itertools
import json
import pathlib
import sys

import regex

from data import answer_text, prompt_text, stream
from words import LANGUAGES, PLACES, WORDS

VOCAB, SPECIAL_BASE = 1536, 1504  # core/model.c, shape "demo"
CONVERSATIONS, SEED, COUNT_MIN = 40_000, 20_000_001, 12
SPECIALS = {0: "startoftext", 1: "endoftext", 4: "return", 5: "constrain", 7: "channel", 8: "start", 9: "end", 10: "message",
            14: "call"}
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def alphabet():
    """GPT-2's: printable Latin-1 stands for itself, the other bytes follow from U+0100."""
    others = itertools.count(256)
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return {b: chr(b) if b in shown else chr(next(others)) for b in range(256)}


def count_pieces():
    pattern, counts = regex.compile(PATTERN), collections.Counter()
    left_out = {w.lower() for w in WORDS + PLACES + LANGUAGES}
    for one in itertools.islice(stream(SEED), CONVERSATIONS):
        for run in regex.split(r"<\|[a-z]+\|>", prompt_text(one) + answer_text(one)):
            counts.update(pattern.findall(run))
    return {p.encode(): n for p, n in sorted(counts.items())
            if n >= COUNT_MIN and p.strip(" \"'").lower() not in left_out}


def allowed(token):
    """No token of two characters holds a digit or two capitals."""
    text = token.decode(errors="replace")
    return not any(c.isdigit() for c in text) and sum(c.isupper() for c in text) <= 1


def learn(counts, merges_max):
    """Tokens in rank order: 256 bytes, then the most frequent allowed pair again and again (ties: the smaller pair)."""
    tokens = [bytes([b]) for b in range(256)]
    words = [[[bytes([b]) for b in piece], n] for piece, n in counts.items()]
    known = set(tokens)
    while len(tokens) < 256 + merges_max:
        pairs = collections.Counter()
        for parts, n in words:
            for pair in zip(parts, parts[1:]):
                pairs[pair] += n
        pairs = {p: n for p, n in pairs.items() if allowed(p[0] + p[1]) and p[0] + p[1] not in known}
        if not pairs:
            break
        left, right = min(pairs, key=lambda p: (-pairs[p], p))
        token = left + right
        tokens.append(token)
        known.add(token)
        for word in words:
            parts, i = word[0], 0
            while i + 1 < len(parts):
                if parts[i] + parts[i + 1] == token:
                    parts[i : i + 2] = [token]
                i += 1
    return tokens


def tokenizer_json(tokens):
    letters, known = alphabet(), set(tokens)
    name = lambda token: "".join(letters[b] for b in token)
    # every way to split a token into two, in the order of the ids they make: merging by rank, as the daemon does
    merges = [[name(t[:i]), name(t[i:])] for t in tokens for i in range(1, len(t)) if t[:i] in known and t[i:] in known]
    special = lambda d: f"<|{SPECIALS[d]}|>" if d in SPECIALS else f"<|reserved_{SPECIAL_BASE + d}|>"
    added = [{"id": SPECIAL_BASE + d, "content": special(d), "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for d in range(16)]
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None, "decoder": dict(byte_level, use_regex=True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {name(t): i for i, t in enumerate(tokens)}, "merges": merges},
    }


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    counts = count_pieces()
    tokens = learn(counts, SPECIAL_BASE - 256)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokens), ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(counts)} pieces, {len(tokens) - 256} merges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
