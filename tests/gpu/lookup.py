#!/usr/bin/env python3
"""Guessed tokens on a GPU: the demo model's golden requests, greedy and sampled, and texts that repeat themselves, with guesses and
without, on each row, the same answers. From build/travel (make travel): tests/gpu/lookup.py [ROW...] with NIB_BUILD set."""

import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import daemon as d  # noqa: E402
import golden  # noqa: E402
import repeat  # noqa: E402

SIZES = {"device": "gpu", "slots": 16, "ctx_tokens": 8192, "step_rows": 512}


def compare(folder, row):
    made = []
    try:
        for name, more in (("off", {}), ("on", repeat.ON)):
            made.append(d.Daemon(folder / f"{row}-{name}", golden.IMAGE, memory={"limit_mib": 4096},
                                 engine={"row": row, **SIZES}, **more))
        off, on = made
        some = golden.load()
        for i, g in enumerate(some):
            repeat.same(off, on, "/v1/chat/completions", {**g["request"], "logprobs": True, "top_logprobs": 2})
            repeat.same(off, on, "/v1/chat/completions", {**g["request"], "temperature": 1, "seed": i})
        repeat.check(off, on, {})
        m = on.metrics()
        print(f"row {row}: {2 * len(some)} and {len(list(repeat.requests({})))} requests with the same answers and "
              f"log-probabilities; of {m['tokens_total']:.0f} tokens {m['draft_tokens_total']:.0f} were guessed, "
              f"{m['draft_accepted_total']:.0f} rightly; {off.metrics()['steps_total']:.0f} steps became {m['steps_total']:.0f}")
        off.stop()
        on.stop()
    finally:
        for daemon in made:
            daemon.kill()


def main():
    with tempfile.TemporaryDirectory() as folder:
        for row in sys.argv[1:] or golden.GPU_ROWS:
            compare(pathlib.Path(folder), row)


if __name__ == "__main__":
    main()
