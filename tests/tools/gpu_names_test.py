"""The GPU kernels' test refuses names that it does not have: with none run, all would be good."""

import os
import subprocess
from pathlib import Path

import pytest

BUILD = Path(os.environ.get("NIB_BUILD", Path(__file__).resolve().parents[2] / "build" / "rel"))
PROGRAM = BUILD / "tests" / "gpu" / "kernels_gpu_test"

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="built without the GPU rows")


@pytest.mark.parametrize("option, sentence", [
    ("--row", "no row is called 'lat'; there are: sm90 sm80"),
    ("--only", "no test is called 'lat'; there are: each ops head"),
])
def test_a_name_that_it_does_not_have_is_refused(option, sentence):
    done = subprocess.run([PROGRAM, option, "lat"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence), done.stderr
