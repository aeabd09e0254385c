"""tests/gpu/logits, which the comparison with transformers drives: on the stand-in for libcuda."""

import os
import shutil
import struct
import subprocess

import pytest

import daemon as d

FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
LOGITS = d.BUILD / "tests" / "gpu" / "logits"
VOCAB = 288  # of the shape nano
FIRST, WANTS, DECODE = 8, 1, 2
pytestmark = pytest.mark.skipif(not LOGITS.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


def step(*rows):
    """rows: (token, pos, slot, flags)"""
    return struct.pack("<I", len(rows)) + b"".join(struct.pack("<IIHH", *r) for r in rows)


def run(folder, image, steps, *shifts, slots=2):
    (folder / "steps").write_bytes(struct.pack("<III", slots, 256, 64) + b"".join(steps))
    env = {**os.environ, "NIBBLED_LIBCUDA": str(FAKE),
           "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / "h200.json")}
    done = subprocess.run([LOGITS, image, folder / "steps", folder / "out", "sm80", "2048", *shifts],
                          env=env, capture_output=True, text=True, timeout=d.HANG_S)
    got = (folder / "out").read_bytes() if done.returncode == 0 else b""
    size = 4 * VOCAB
    return done, [got[i:i + size] for i in range(0, len(got), size)]


def test_rows_come_in_order_and_do_not_depend_on_others(tmp_path, image):
    text = [7, 11, 13, 17]
    alone = [step((text[0], 0, 0, FIRST), (text[1], 1, 0, WANTS)), step((text[2], 2, 0, WANTS | DECODE)),
             step((text[3], 3, 0, WANTS | DECODE))]
    done, first = run(tmp_path, image, alone)
    assert done.returncode == 0, done.stderr
    assert len(first) == 3 and len(set(first)) == 3
    # slot 1 the same text, its prompt in two parts beside slot 0's answers; prompt rows before decode rows
    both = [step((text[0], 0, 0, FIRST), (text[1], 1, 0, WANTS)),
            step((text[0], 0, 1, FIRST), (text[2], 2, 0, WANTS | DECODE)),
            step((text[1], 1, 1, WANTS), (text[3], 3, 0, WANTS | DECODE)), step((text[2], 2, 1, WANTS | DECODE))]
    done, second = run(tmp_path, image, both)
    assert done.returncode == 0, done.stderr
    assert second == [first[0], first[1], first[0], first[2], first[1]]


def test_every_shift_changes_the_logits(tmp_path, image):
    steps = [step(*[(i + 1, i, 0, FIRST * (i == 0) | WANTS * (i == 9)) for i in range(10)])]
    outs = [tuple(run(tmp_path, image, steps, *s)[1])
            for s in ([], ["up=1"], ["down=-1"], ["out=-3"], ["router=2"], ["q=1"], ["sinks=2"], ["q=0"])]
    assert outs[0] == outs[-1] and len(outs[0]) == 1
    assert len(set(outs)) == len(outs) - 1


@pytest.mark.parametrize("shift", ["q", "q=", "q=x", "q=17", "nothing=1", "=1"])
def test_what_is_no_shift_is_refused(tmp_path, image, shift):
    done, _ = run(tmp_path, image, [step((1, 0, 0, FIRST))], shift)
    assert done.returncode == 2 and f"'{shift}' is no shift" in done.stderr


def test_wrong_steps_are_refused(tmp_path, image):
    for steps, word in (([step((1, 0, 0, FIRST))[:-1]], "cut"), ([struct.pack("<I", 3000)], "wrong size"),
                        ([step((1, 5, 7, 0))], "slot 7"), ([step((1, 0, 0, 0))], "without FIRST")):
        done, _ = run(tmp_path, image, steps)
        assert done.returncode == 1 and word in done.stderr, done.stderr
