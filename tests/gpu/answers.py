#!/usr/bin/env python3
"""Compares greedy answers of the daemon on a GPU with those of the CPU's ref row, a near tie excused. Needs torch, transformers.

    NIB_BUILD=build/travel tests/gpu/answers.py [--rows sm90,sm80] [--device cuda]

Where two answers first differ, transformers' GptOss on the same weights says how near the tie is: the margin between the two
tokens in fp32, and what that margin changes by in bf16 when the embedding's last bits are drawn anew, the largest of RUNS draws.
The answers may differ only where the margin does not exceed this noise. The model is a seeded one of the shape tiny, whose ids
below 256 are bytes. Exit 1: some answer differs without a near tie.
"""
import argparse
import pathlib
import re
import sys
import tempfile

import torch

import gptoss

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import daemon as d  # noqa: E402

PROMPTS = ["hello", "the quick brown fox", "1 2 3 4", "zebra", "Once upon a time", "a\nb\nc", "0.5 + 0.25 =", "Zwölf Boxkämpfer"]
TOKENS, RUNS = 24, 16


def id_of(text):
    """The id of a byte from its name in an answer's log-probabilities."""
    byte = re.fullmatch(r"bytes:\\x([0-9a-f]{2})", text)
    return int(byte[1], 16) if byte else ord(text)


def ask(image, device, row):
    """The prompts' and the greedy answers' ids. Special tokens are kept out: they have no text to be told by."""
    out = []
    with tempfile.TemporaryDirectory() as folder:
        daemon = d.Daemon(folder, image, engine={"device": device, "row": row}, memory={"limit_mib": 1024})
        try:
            bias = {str(i): -100 for i in d.specials(daemon).values()}
            for prompt in PROMPTS:
                answer = daemon.complete(prompt, max_tokens=TOKENS, temperature=0, logprobs=1, logit_bias=bias)
                tokens = answer.json["choices"][0]["logprobs"]["tokens"]
                assert len(tokens) == TOKENS, tokens
                out.append((daemon.post("/tokenize", {"prompt": prompt}).json["tokens"], [id_of(t) for t in tokens]))
            daemon.stop()
        finally:
            daemon.kill()
    return out


@torch.no_grad()
def margins(half, truth, ids, a, b):
    """Of a over b after ids: in fp32, and the largest change of it in bf16 over RUNS draws of the embedding's last bits."""
    exact = truth.logits(truth.hidden(ids, len(ids)))[-1]
    margin, noise = float(exact[a] - exact[b]), 0.0
    draw = torch.Generator().manual_seed(1)
    for _ in range(RUNS):
        row = half.logits(half.hidden(ids, len(ids), draw)[-1:])[0]
        noise = max(noise, abs(float(row[a] - row[b]) - margin))
    return margin, noise


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rows", default="sm90,sm80")
    p.add_argument("--device", default="cuda", help="of the reference")
    options = p.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        image = d.synth(folder, "tiny")
        half, truth = (gptoss.Model(image, options.device, {}) for _ in range(2))
        truth.widen()
        wanted = ask(image, "cpu", "ref")
        for row in options.rows.split(","):
            same = excused = 0
            for (ids, want), (_, found) in zip(wanted, ask(image, "gpu", row)):
                if want == found:
                    same += 1
                    continue
                at = next(i for i, (x, y) in enumerate(zip(want, found)) if x != y)
                margin, noise = margins(half, truth, ids + want[:at], want[at], found[at])
                near = margin <= noise
                excused, failed = excused + near, failed + (not near)
                what = "near tie" if near else "FAILED"
                print(f"{what}: {row}, {bytes(ids)!r}, token {at}: margin {margin:.4f}, bf16 noise {noise:.4f}")
            print(f"{row}: {same} of {len(wanted)} answers of {TOKENS} tokens the same, {excused} differ from a near tie on", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
