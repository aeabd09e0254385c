#!/usr/bin/env python3
"""One prompt's greedy answer again and again among random neighbours, on each row: one answer, log-probabilities included, whatever runs
beside it. From build/travel (make travel): tests/gpu/neighbours.py [ROW...] with NIB_BUILD set. NIB_RUNS: how often; NIB_DEVICE: cpu."""

import collections
import os
import pathlib
import random
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import daemon as d  # noqa: E402
import golden  # noqa: E402

RUNS = int(os.environ.get("NIB_RUNS", "1000"))
DEVICE = os.environ.get("NIB_DEVICE", "gpu")
ASKERS, NEIGHBOURS, SLOTS, CTX = 12, 36, 48, 2048
ASKED = {"prompt": "The days of the week are Monday, Tuesday, ", "temperature": 0, "max_tokens": 48, "logprobs": 3, "ignore_eos": True}


def ask(daemon, left, answers):
    """The prompt, until nothing is left to ask."""
    while True:
        try:
            left.pop()
        except IndexError:
            return
        answer = daemon.post("/v1/completions", ASKED)
        answers.append((answer.status, str(answer.json.get("choices"))))


def disturb(daemon, seed, stop, count):
    """Random prompts, lengths and ways of sampling."""
    rng = random.Random(seed)
    while not stop.is_set():
        length = rng.choice((1, 5, 40, 64, 200, 900))
        body = {"prompt": [rng.randrange(200) for _ in range(rng.randint(1, length))], "max_tokens": rng.randint(1, 120), "ignore_eos": True,
                "temperature": rng.choice((0, 0.7, 1)), "top_p": rng.choice((1, 0.9)), "seed": rng.randrange(1 << 30)}
        count[daemon.post("/v1/completions", body).status] += 1


def run(folder, row):
    daemon = d.Daemon(folder / row, golden.IMAGE, memory={"limit_mib": 8192},
                      engine={"device": DEVICE, "row": row, "slots": SLOTS, "ctx_tokens": CTX, "step_rows": 512},
                      limits={"queue": 256, "connections": 256})
    try:
        left, answers, others, stop = [None] * RUNS, [], collections.Counter(), threading.Event()
        beside = [threading.Thread(target=disturb, args=(daemon, i, stop, others)) for i in range(NEIGHBOURS)]
        askers = [threading.Thread(target=ask, args=(daemon, left, answers)) for _ in range(ASKERS)]
        for t in beside + askers:
            t.start()
        for t in askers:
            t.join()
        stop.set()
        for t in beside:
            t.join()
        kinds = collections.Counter(answers)
        m = daemon.metrics()
        daemon.stop()
        print(f"row {row}: {len(answers)} greedy runs among {sum(others.values())} random requests: {len(kinds)} completion"
              f"{'s' if len(kinds) != 1 else ''}; {m['tokens_total'] / max(m['steps_total'], 1):.1f} tokens a step")
        assert len(answers) == RUNS and set(others) == {200}, others
        assert len(kinds) == 1 and next(iter(kinds))[0] == 200, kinds.most_common(3)
    finally:
        daemon.kill()


def main():
    with tempfile.TemporaryDirectory() as folder:
        for row in sys.argv[1:] or golden.GPU_ROWS:
            run(pathlib.Path(folder), row)


if __name__ == "__main__":
    main()
