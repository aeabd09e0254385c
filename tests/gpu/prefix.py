#!/usr/bin/env python3
"""Prompts that begin as earlier ones, on a GPU: the agent's trace of tests/wire/agent.py warm and cold on each row, the same bits;
then how long a long prompt takes cold and warm on the 20b's layers. From build/travel (make travel): tests/gpu/prefix.py [ROW...]
with NIB_BUILD set; NIB_PREFIX_LONG: tokens of the long prompt, 0 for none."""

import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import agent  # noqa: E402
import daemon as d  # noqa: E402

LONG = int(os.environ.get("NIB_PREFIX_LONG", "30000"))
SIZES = {"slots": 2, "step_rows": 2048}


def pair(folder, image, row, **engine):
    """One daemon that reuses and one that does not, at once on the card."""
    made = []
    try:
        for name, reuse in (("warm", "true"), ("cold", "false")):
            made.append(d.Daemon(folder / f"{row}-{name}", image, memory={"limit_mib": 8192}, prefix={"reuse": reuse},
                                 engine={"device": "gpu", "row": row, **SIZES, **engine}))
        return made
    except BaseException:
        for daemon in made:
            daemon.kill()
        raise


def traces(folder, image, row):
    warm, cold = pair(folder, image, row, ctx_tokens=8192)
    try:
        total, fed = agent.check_trace(warm, cold, agent.trace())
        warm.check_ledger()
        warm.stop()
        cold.stop()
        print(f"row {row}: 20 requests with the same answers and log-probabilities; {fed} of {total} prompt tokens computed")
    finally:
        warm.kill()
        cold.kill()


def first_token_ms(daemon, prompt):
    begin = time.monotonic()
    answer = daemon.complete(prompt=prompt, max_tokens=1, temperature=0, logprobs=3)
    assert answer.status == 200, answer.body
    return 1e3 * (time.monotonic() - begin), answer.json


def long_prompts(folder, image, row):
    """A prompt, then the same with 100 more tokens: three of them."""
    warm, cold = pair(folder, image, row, ctx_tokens=LONG + 4096)
    times = {"cold": [], "warm": [], "warm first": []}
    try:
        ids = warm.get("/v1/models").json["data"][0]["text_ids"]
        for seed in range(3):
            rng = random.Random(seed)
            prompt = [rng.randrange(ids) for _ in range(LONG + 100)]
            ms, _ = first_token_ms(warm, prompt[:LONG])
            times["warm first"].append(ms)
            ms, known = first_token_ms(warm, prompt)
            times["warm"].append(ms)
            ms, want = first_token_ms(cold, prompt)
            times["cold"].append(ms)
            assert known["choices"] == want["choices"]
            assert agent.cached(known) == LONG // agent.PAGE * agent.PAGE and agent.cached(want) == 0
        warm.stop()
        cold.stop()
    finally:
        warm.kill()
        cold.kill()
    shown = ", ".join(f"{what} {statistics.median(ms):.1f}" for what, ms in times.items())
    print(f"row {row}, 20b-slice, {LONG} tokens and 100 more: first token after (ms) {shown}")


def main():
    rows = sys.argv[1:] or ["sm90", "sm80"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        nano = d.synth(folder)
        for row in rows:
            traces(folder / "trace", nano, row)
        if LONG:
            long_prompts(folder / "long", d.synth(folder, "20b-slice"), rows[0])


main()
