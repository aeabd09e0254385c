#!/usr/bin/env python3
"""Compares the fast CPU rows with arch/ref, end to end by logits. Part of `make vectors`.

Prompt rows go through the prefill kernels, answered tokens through the decode kernels. Per position: relative error
||row - ref|| / ||ref||, KL divergence of the two distributions in nats, and whether the largest logit is the same. A
greedy answer is compared up to where the two tokens first differ, since from there on the contexts are not the same.
The fast rows keep keys and values in 16 bits: a few parts in a thousand of a logit, more at the rare positions where two
experts of a random router lie that close. So the limits hold the median error and the mean KL.
"""
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGITS = "build/rel/tests/vectors/logits"
NIBBLE = "build/rel/nibble"
ROWS = ["amx", "avx512", "avx2"]
CASES = [("tiny", 3, 300, 128), ("20b-slice", 1, 48, 32)]  # shape, seed, prompt, answer
ERROR_LIMIT = 3e-2  # median
KL_LIMIT = 1e-2  # nats, mean


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def run_row(row, folder, image, prompt, answer):
    """Logits [prompt + answer][V] and the answered ids; None when this machine cannot run the row."""
    out = folder / f"logits.{row}"
    command = [LOGITS, str(image), str(folder / "ids"), str(out), row, "1", str(answer), "2"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode == 3:
        return None
    done.check_returncode()
    ids = [int(line) for line in done.stdout.split()]
    return np.fromfile(out, np.float32).reshape(prompt + answer, -1), ids


def compare(shape, seed, prompt, answer):
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        image = folder / "image.nib"
        subprocess.run([NIBBLE, "synth", shape, str(image), "--seed", str(seed)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rng = random.Random(seed)
        np.array([rng.randrange(480) for _ in range(prompt)], np.uint32).tofile(folder / "ids")
        want, ids_want = run_row("ref", folder, image, prompt, answer)
        for row in ROWS:
            result = run_row(row, folder, image, prompt, answer)
            if result is None:
                print(f"| {shape} | {row} | this machine cannot run it | | | | | | |")
                continue
            got, ids = result
            same = next((i for i, (a, b) in enumerate(zip(ids, ids_want)) if a != b), len(ids))
            for kind, first, end in ("prefill", 0, prompt), ("decode", prompt, prompt + min(same, answer)):
                a, b = got[first:end], want[first:end]
                error = np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)
                p, q = log_softmax(b), log_softmax(a)
                kl = (np.exp(p) * (p - q)).sum(axis=1)
                agree = (a.argmax(axis=1) == b.argmax(axis=1)).sum()
                failed += not (np.median(error) <= ERROR_LIMIT and kl.mean() <= KL_LIMIT)
                print(
                    f"| {shape} | {row} | {kind} | {np.median(error):.1e} | {error.max():.1e} | {kl.mean():.1e} "
                    f"| {kl.max():.1e} | {agree}/{end - first} | {same}/{len(ids)} |"
                )
    return failed


def main():
    subprocess.run(["make", "-s", "VARIANT=rel", LOGITS, NIBBLE], cwd=ROOT, check=True)
    print("| shape | row | kernels | median error | largest | mean KL (nats) | largest | same top logit | same answer |")
    print("|---|---|---|---|---|---|---|---|---|")
    return 1 if sum(compare(*case) for case in CASES) else 0


if __name__ == "__main__":
    sys.exit(main())
