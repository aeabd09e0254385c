#!/usr/bin/env python3
"""Golden answers of the demo model: tests/vectors/demo_answers.jsonl holds 50 requests and what the row `ref` answered greedily.

    NIB_BUILD=build/travel tests/wire/golden.py sm90 sm80      asks every one on these rows of this machine; exit 1: one differs
"""
import json
import sys
import tempfile

import daemon as d

IMAGE = d.ROOT / "etc" / "demo" / "demo.nib"
FILE = d.ROOT / "tests" / "vectors" / "demo_answers.jsonl"
GPU_ROWS = ("sm90", "sm80")


def load():
    return [json.loads(line) for line in FILE.read_text().splitlines()]


def ask(daemon, request):
    """The parts of an answer that are compared: reasoning, content, and each call's name and arguments."""
    message = daemon.post("/v1/chat/completions", request).json["choices"][0]["message"]
    calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls") or []]
    return {"reasoning": message.get("reasoning"), "content": message.get("content"), "calls": calls}


def start(folder, row, **more):
    return d.Daemon(folder, IMAGE, engine={"row": row, "device": "gpu" if row in GPU_ROWS else "cpu"}, **more)


def main():
    different = 0
    for row in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            daemon = start(folder, row)
            try:
                wrong = [(g, got) for g in load() if (got := ask(daemon, g["request"])) != g["said"]]
                daemon.stop()
            finally:
                daemon.kill()
        print(f"row {row}: {len(load()) - len(wrong)} of {len(load())} answers are those of ref")
        for g, got in wrong:
            print(f"  {g['request']['messages'][-1]['content']!r}: wanted {g['said']}, got {got}")
        different += len(wrong)
    return different > 0


if __name__ == "__main__":
    sys.exit(main())
