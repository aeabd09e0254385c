"""The daemon on a GPU: on the stand-in for libcuda, with the rows that this build has."""

import pathlib
import shutil
import sys

import pytest

import daemon as d

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))
from terminal import Terminal  # noqa: E402

FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
H200 = {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / "h200.json")}
NONE = {"NIBBLED_LIBCUDA": "/nowhere/libcuda.so.1"}
SMALL = {"limit_mib": 1280}
needs_rows = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


@needs_rows
def test_answers_are_those_of_the_reference(start):
    gpu = start(env=H200, engine={"device": "gpu"}, memory=SMALL)
    cpu = start(engine={"device": "cpu", "row": "ref"})
    same = 0
    for prompt in ("hello", "the quick brown fox", "1 2 3 4", "a\nb\nc", "zebra"):
        answers = [n.complete(prompt, temperature=0, max_tokens=12).json["choices"][0]["text"] for n in (gpu, cpu)]
        same += answers[0] == answers[1]
    assert same >= 4  # bf16 may turn a near tie
    assert "NVIDIA H200" in gpu.log.read_text() and "row sm90" in gpu.log.read_text()
    gpu.stop()
    cpu.stop()


@needs_rows
@pytest.mark.parametrize("row", ["sm90", "sm80"])
def test_keys_and_values_in_fp8(start, row):
    """Answers are those of the reference with FP8; its own kernels are tested at boot."""
    memory = {**SMALL, "kv": "fp8"}
    gpu = start(env=H200, engine={"device": "gpu", "row": row}, memory=memory)
    cpu = start(engine={"device": "cpu", "row": "ref"}, memory={"kv": "fp8"})
    same = 0
    for prompt in ("hello", "the quick brown fox", "1 2 3 4", "a\nb\nc", "zebra"):
        answers = [n.complete(prompt, temperature=0, max_tokens=12).json["choices"][0]["text"] for n in (gpu, cpu)]
        same += answers[0] == answers[1]
    assert same >= 3  # bf16 may turn a near tie, and a code beside it
    gpu.stop()
    cpu.stop()
    wrong = start(env={**H200, "NIBBLED_FAKE_FAULT": "nib_gpu_kv_fp8:1+:wrong"}, engine={"device": "gpu", "row": row},
                  memory=memory, wait=False)
    assert wrong.process.wait(d.HANG_S) != 0
    assert f"the self-test of row {row}: kernel nib_gpu_kv_fp8 is wrong" in wrong.log.read_text()


@needs_rows
def test_auto_takes_the_gpu_and_a_named_row_runs(start):
    gpu = start(env=H200, memory=SMALL)
    assert "row sm90" in gpu.log.read_text()
    named = start(env=H200, engine={"row": "sm80"}, memory=SMALL)
    assert "row sm80" in named.log.read_text()
    assert named.complete("hello").status == 200


def card(profile):
    return {**H200, "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / f"{profile}.json")}


@needs_rows
@pytest.mark.parametrize("profile", ["b200", "rtx5090", "l4", "orin64"])
def test_a_card_without_kernels_of_its_own_runs_the_portable_row(start, profile):
    gpu = start(env=card(profile), memory=SMALL)
    assert "row sm80" in gpu.log.read_text()
    assert gpu.complete("hello").status == 200


@needs_rows
def test_a_card_below_every_row_is_left_to_the_cpu(start):
    cpu = start(env=card("t4"))
    log = cpu.log.read_text()
    assert "so the CPU runs the model" in log and "no row of the capability table fits NVIDIA T4" in log
    assert cpu.complete("hello").status == 200
    only = start(env=card("t4"), engine={"device": "gpu"}, wait=False)
    assert only.process.wait(d.HANG_S) != 0 and "fits NVIDIA T4" in only.log.read_text()


def test_auto_without_a_gpu_says_so(start):
    cpu = start(env=NONE)
    assert "no GPU, so the CPU runs the model" in cpu.log.read_text()
    assert "/nowhere" in cpu.log.read_text()
    assert cpu.complete("hello").status == 200


def test_gpu_without_a_gpu_is_an_error(start):
    daemon = start(env=NONE, engine={"device": "gpu"}, wait=False)
    assert daemon.process.wait(d.HANG_S) != 0
    assert "no GPU driver" in daemon.log.read_text()


@needs_rows
@pytest.mark.parametrize("fault", ["cuGraphLaunch:30:700", "nib_gpu_attn:40:700", "nib_gpu_down:t60:214"])
def test_a_lost_gpu_ends_in_an_error_and_an_exit(start, fault):
    daemon = start(env={**H200, "NIBBLED_FAKE_FAULT": fault}, engine={"device": "gpu"}, memory=SMALL, wait=False)
    daemon.wait_ready()
    statuses = []
    try:
        for _ in range(20):
            statuses.append(daemon.complete("hello", max_tokens=12).status)
    except OSError:
        pass  # it has gone
    assert daemon.process.wait(d.HANG_S) == 70
    assert set(statuses) <= {200, 500, 503}
    assert "CUDA_ERROR" in daemon.log.read_text()


@needs_rows
def test_progress_on_a_terminal(tmp_path, image):
    """A line that the next one replaces, shown while the driver takes its time."""
    config = tmp_path / "nibbled.yaml"
    config.write_text(d.yaml({"image": {"path": str(image)}, "engine": {"device": "gpu", "slots": 1, "ctx_tokens": 256},
                              "memory": SMALL, "socket": {"path": str(tmp_path / "n.sock")}}))
    shown = Terminal([d.NIBBLED, "--config", config], env={**H200, "NIBBLED_FAKE_FAULT": "cuInit:1:late:3000"})
    try:
        shown.wait_for("nibbled: loading ")
        shown.wait_for(" MB ")
        assert shown.wait_for("nibbled: row sm").endswith(b"   \r")  # the line was wiped
        shown.wait_for("nibbled: ready")
        shown.process.terminate()
        assert shown.end() == 0
    finally:
        shown.kill()
