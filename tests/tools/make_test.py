"""The Makefile as a script reads it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("nvcc", ["nvcc", "no-such-nvcc"])
def test_the_list_of_tests_holds_nothing_else(nvcc):
    done = subprocess.run(["make", "-s", f"NVCC={nvcc}", "VARIANT=san", "print-tests"], cwd=ROOT, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert len(names) > 40
    for name in names:
        assert name.startswith("build/san/tests/") and name.endswith("_test"), name
        assert (ROOT / name.replace("build/san/", "")).with_suffix(".c").exists(), name


def test_a_build_without_nvcc_says_so():
    done = subprocess.run(["make", "-n", "NVCC=no-such-nvcc", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "no no-such-nvcc: built without the GPU rows" in done.stdout
