"""`nibble selftest`: the rows of this machine, broken ones, and what it refuses. GPU rows run on the stand-in for libcuda."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIB_BUILD", ROOT / "build" / "rel")).resolve()
FAKE = BUILD / "tests" / "fake" / "libcuda.so"
H200 = {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(ROOT / "etc" / "profiles" / "h200.json")}
NONE = {"NIBBLED_LIBCUDA": "/nowhere/libcuda.so.1"}
needs_rows = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


def selftest(*args, env=NONE, fault=""):
    done = subprocess.run([BUILD / "nibble", "selftest", *args], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, **env, "NIBBLED_FAKE_FAULT": fault}, timeout=280)
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def rows(out):
    """Of each row that has a line: whether it passed."""
    lines = [line.split() for line in out.splitlines() if not line.startswith(" ") and " rows are for a GPU" not in line]
    return {words[0]: words[1] for words in lines}


def test_cpu_rows():
    code, out, err = selftest("--device", "cpu")
    assert (code, err) == (0, "")
    assert all(state == "passed" for state in rows(out).values())
    assert "ref" not in rows(out)
    code, out, err = selftest("--device", "cpu", "--all", "--shape", "nano")
    assert code == 0 and out.count(" right") == 10 * len(rows(out))


@needs_rows
def test_gpu_rows():
    code, out, _ = selftest("--shape", "tiny", env=H200)
    assert code == 0
    assert {"sm90": "passed", "sm90-ops": "passed", "sm80": "passed"}.items() <= rows(out).items()
    code, out, _ = selftest("--shape", "tiny", "--device", "gpu", "--all", env=H200)
    assert code == 0 and out.count(" right") == 2 * 40 + 30  # sm80 has no kernels of its own for many decode rows
    assert rows(out) == {"sm90": "passed", "sm90-ops": "passed", "sm80": "passed"}
    code, out, _ = selftest("--shape", "demo", "--device", "gpu", "--all", "--row", "sm90", env=H200)
    assert code == 0 and out.count(" right") == 42 and "nib_gpu_token" in out  # tiny is too small for it
    a100 = {**H200, "NIBBLED_FAKE_PROFILE": str(ROOT / "etc" / "profiles" / "a100-80.json")}
    code, out, _ = selftest("--shape", "tiny", env=a100)
    assert code == 0 and "sm90" not in rows(out) and rows(out)["sm80"] == "passed"


@needs_rows
@pytest.mark.parametrize("fault, sentence", [
    ("nib_gpu_out@cubin:1+:wrong", "kernel nib_gpu_out is wrong: x off by"),
    ("nib_gpu_out@cubin:1+:700", "kernel nib_gpu_out: cuStreamQuery failed with CUDA_ERROR_ILLEGAL_ADDRESS"),
    ("nib_gpu_out@cubin:1+:hang", "kernel nib_gpu_out: the GPU did not end its work in 5000 ms"),
    ("cuModuleLoadDataEx@cubin:1+:200", "the kernels of row sm90 cannot be loaded"),
])
def test_a_broken_row_leaves_the_next_alone(fault, sentence):
    code, out, _ = selftest("--shape", "tiny", "--device", "gpu", env=H200, fault=fault)
    assert code == 1 and sentence in out
    assert rows(out) == {"sm90": "FAILED", "sm90-ops": "FAILED", "sm80": "passed"}
    assert (" WRONG" in out) == (":wrong" in fault)


def test_what_cannot_be_tested():
    code, out, _ = selftest("--device", "gpu")
    assert code == 1
    code, out, _ = selftest("--row", "ref")
    assert code == 1 and "the reference" in out
    code, out, _ = selftest("--row", "sm100")
    assert code == 1 and "this build has no kernels for it" in out
    for args in (["--row", "sm1"], ["--shape", "21b"], ["--device", "tpu"], ["--what"], ["more"]):
        code, _, err = selftest(*args)
        assert code == 2 and err


@needs_rows
def test_a_gpu_the_row_is_not_for():
    a100 = {**H200, "NIBBLED_FAKE_PROFILE": str(ROOT / "etc" / "profiles" / "a100-80.json")}
    code, out, _ = selftest("--row", "sm90", env=a100)
    assert code == 1 and "cannot run on" in out
