#!/usr/bin/env python3
"""Writes demo_answers.jsonl: 50 held-out conversations and what the demo model answers greedily on the row `ref`.

Run it after etc/demo/demo.nib has changed, with a release build. Questions with a date in their system message are left out:
a daemon has one date.
"""
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "demo"), str(ROOT / "tests" / "wire")]

import data  # noqa: E402
import golden  # noqa: E402

COUNT, SEED = 50, 7_000_001


def main():
    asked = [c for c in data.held_out_questions(90, SEED) if not c.date][:COUNT]
    with tempfile.TemporaryDirectory() as folder:
        nibbled = golden.start(folder, "ref")
        try:
            with open(golden.FILE, "w") as f:
                for c in asked:
                    request = {**c.request, "temperature": 0, "max_tokens": 400}
                    said = golden.ask(nibbled, request)
                    f.write(json.dumps({"category": c.category, "request": request, "said": said}) + "\n")
            nibbled.stop()
        finally:
            nibbled.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
