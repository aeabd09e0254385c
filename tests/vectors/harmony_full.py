#!/usr/bin/env python3
"""The renderer and the parser against openai-harmony at full length, through the test programs of build/rel.

    harmony_full.py [conversations] [answers] [sequences]

Checks that the committed vectors are what openai-harmony gives, then makes new ones from other seeds.
"""
import os
import pathlib
import subprocess
import sys
import time

import harmony_gen as gen

BUILD = gen.ROOT / "build" / "rel"
SEED = 7000001


def numbers():
    given = [int(a) for a in sys.argv[1:4]]
    return given + [6000, 20000, 1000000][len(given):]


def run(program, **environment):
    path = BUILD / "tests" / "core" / program
    done = subprocess.run([path], cwd=gen.ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
                          errors="replace")
    print(done.stdout + done.stderr, end="")
    return done.returncode == 0


def write(name, cases):
    path = BUILD / name
    path.write_text(gen.dump(cases), encoding="utf-8")
    return str(path)


def main():
    conversations, answers, sequences = numbers()
    subprocess.run(["make", "-s", "VARIANT=rel", *(f"build/rel/tests/core/{t}_test" for t in ("harmony_render", "harmony_parse"))],
                   cwd=gen.ROOT, check=True)
    subprocess.run([sys.executable, pathlib.Path(gen.__file__), "--check"], check=True)
    render = write("harmony_render.jsonl", gen.render_lines(SEED, conversations))
    cases, tried = gen.parse_lines(SEED, answers)
    parse = write("harmony_parse.jsonl", cases)
    print(f"answers: {len(cases)} that openai-harmony accepts, of {tried} made")
    started = time.monotonic()
    ok = run("harmony_render_test", NIB_HARMONY_RENDER=render)
    ok = run("harmony_parse_test", NIB_HARMONY_PARSE=parse, NIB_HARMONY_SEQUENCES=str(sequences),
             NIB_TEST_SEED=str(SEED), CK_TIMEOUT_MULTIPLIER="10") and ok
    print(f"{time.monotonic() - started:.0f} s")
    os.unlink(render)
    os.unlink(parse)
    raise SystemExit(0 if ok else 1)


if __name__ == "__main__":
    main()
