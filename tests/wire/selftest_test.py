"""Rows whose kernels are wrong: found at boot, named in the log and passed over, on the stand-in for libcuda. The row sm90 is
a cubin, the row sm80 is PTX: @cubin and @ptx break one and not the other."""

import shutil
import signal
import subprocess
import sys

import pytest

import daemon as d
import golden
from gpu_fault_test import FAKE, fake_env
from life_test import LAUNCH, Notify

SMALL = {"memory": {"limit_mib": 1280}, "engine": {"step_rows": 64}, "time": {"load_ms_max": 8000}}
GPU = {**SMALL, "engine": {"step_rows": 64, "device": "gpu"}}
OPS = ["repack_dense", "repack_mx", "repack_head", "sum", "begin", "embed", "qkv", "qkv_prompt", "attn", "attn_prompt", "out",
       "out_prompt", "route", "up", "up_prompt", "down", "down_prompt", "combine", "head", "scan", "sample"]
PROMPTS = ("hello", "the quick brown fox", "zebra")

pytestmark = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


def answers(daemon):
    return [daemon.complete(p, temperature=0, max_tokens=8).json["choices"][0]["text"] for p in PROMPTS]


@pytest.fixture(scope="module")
def right(tmp_path_factory, image):
    folder = tmp_path_factory.mktemp("right")
    daemon = d.Daemon(folder, image, env=fake_env(folder), **GPU)
    try:
        assert "row sm90 passed its self-test" in daemon.log.read_text()
        assert daemon.get("/health").json["struck"] == []
        return answers(daemon)
    finally:
        daemon.kill()


def boot(tmp_path, image, fault, **more):
    return d.Daemon(tmp_path / "n", image, env=fake_env(tmp_path / "n", fault=fault), **{**GPU, **more})


def runs_sm80(daemon, right):
    """sm90 and what is left of it are struck, the answers are right, and it stops as it should."""
    health = daemon.get("/health").json
    assert health["row"] == "sm80" and health["struck"] == ["sm90", "sm90-ops"]
    assert answers(daemon) == right
    daemon.stop()


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_kernel_strikes_its_row(tmp_path, image, right, op):
    daemon = boot(tmp_path, image, f"nib_gpu_{op}@cubin:1+:wrong")
    try:
        log = daemon.log.read_text()
        assert f"row sm90 is struck by its self-test: kernel nib_gpu_{op} is wrong" in log
        assert "row sm80 passed its self-test" in log
        runs_sm80(daemon, right)
    finally:
        daemon.kill()


@pytest.mark.parametrize("how", ["wrong", "700", "hang"])
def test_without_the_fused_kernel_a_step_runs_op_by_op(tmp_path, how):
    """On a model that has it: the next row is the same image without it."""
    requests = [g["request"] for g in golden.load()[:3]]
    env = fake_env(tmp_path / "n", fault=f"nib_gpu_token@cubin:1+:{how}")
    daemon = d.Daemon(tmp_path / "n", golden.IMAGE, env=env, engine={"device": "gpu"})
    try:
        assert "kernel nib_gpu_token" in daemon.log.read_text()
        health = daemon.get("/health").json
        assert health["row"] == "sm90-ops" and health["struck"] == ["sm90"]
        assert [golden.ask(daemon, r) for r in requests] == [g["said"] for g in golden.load()[:3]]
    finally:
        daemon.kill()


@pytest.mark.parametrize("fault, why", [
    ("nib_gpu_up@cubin:1+:700", "kernel nib_gpu_up: cuStreamQuery failed with CUDA_ERROR_ILLEGAL_ADDRESS"),
    ("nib_gpu_repack_mx@cubin:1+:719", "kernel nib_gpu_repack_mx"),
    ("nib_gpu_sample@cubin:1+:hang", "kernel nib_gpu_sample: the GPU did not end its work in 5000 ms"),
    ("cuModuleLoadDataEx@cubin:1+:hang", "a call of the driver did not return"),
])
def test_a_row_that_stops_the_gpu_is_left_by_a_new_start(tmp_path, image, right, fault, why):
    """The driver serves the process no more: it begins anew, under the same process id."""
    daemon = boot(tmp_path, image, fault)
    try:
        log = daemon.log.read_text()
        assert "starting again without row sm90" in log and why in log
        runs_sm80(daemon, right)
    finally:
        daemon.kill()


@pytest.mark.parametrize("fault", ["nib_gpu_up@cubin:1+:700", "cuModuleLoadDataEx@cubin:1+:hang"])
def test_systemd_keeps_its_socket_over_a_new_start(tmp_path, image, right, fault):
    """The socket is handed on, READY is said once, by the same process, and who knocks meanwhile is answered."""
    notify = Notify(tmp_path)
    path = tmp_path / "systemd.sock"
    env = {**fake_env(tmp_path / "n", fault=fault), **notify.env}
    daemon = d.Daemon(tmp_path / "n", image, env=env, wait=False, launcher=[sys.executable, "-c", LAUNCH, str(path)], **GPU)
    daemon.socket = path
    try:
        pid = daemon.process.pid
        notify.until("READY=1")
        daemon.wait_ready()
        assert "starting again without row sm90" in daemon.log.read_text()
        assert daemon.get("/health").json["row"] == "sm80"
        assert answers(daemon) == right
        assert daemon.process.pid == pid and daemon.process.poll() is None
        daemon.stop()
        notify.until("STOPPING=1")
        assert notify.seen.count("READY=1") == 1
        assert path.exists()
    finally:
        daemon.kill()


def test_sigterm_ends_a_start_that_fails(tmp_path, image):
    daemon = d.Daemon(tmp_path / "n", image, env=fake_env(tmp_path / "n", fault="nib_gpu_up@cubin:1+:hang"), wait=False, **GPU)
    try:
        while not daemon.socket.exists():
            assert daemon.process.poll() is None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.wait(d.HANG_S)
        assert "starting again" not in daemon.log.read_text()
    finally:
        daemon.kill()


@pytest.mark.parametrize("fault, why", [
    ("cuModuleLoadDataEx@cubin:1+:200", "the kernels of row sm90 cannot be loaded"),
    ("cuModuleLoadDataEx@cubin:1+:218", "the kernels of row sm90 cannot be loaded"),
])
def test_a_module_that_does_not_load_strikes_its_row(tmp_path, image, right, fault, why):
    daemon = boot(tmp_path, image, fault)
    try:
        assert why in daemon.log.read_text() and "starting again" not in daemon.log.read_text()
        assert daemon.get("/health").json["row"] == "sm80"
        assert answers(daemon) == right
    finally:
        daemon.kill()


@pytest.mark.parametrize("fault", ["nib_gpu_out:1+:wrong", "nib_gpu_out:1+:700"])
def test_without_a_right_row_the_configuration_decides(tmp_path, image, fault):
    auto = d.Daemon(tmp_path / "a", image, env=fake_env(tmp_path / "a", fault=fault), **SMALL)
    try:
        assert "so the CPU runs the model: no row is left" in auto.log.read_text()
        health = auto.get("/health").json
        assert health["row"] not in ("sm90", "sm90-ops", "sm80") and health["struck"] == ["sm90", "sm90-ops", "sm80"]
        assert auto.complete("hello").status == 200
    finally:
        auto.kill()
    gpu = d.Daemon(tmp_path / "g", image, env=fake_env(tmp_path / "g", fault=fault), wait=False, **GPU)
    try:
        assert gpu.process.wait(d.HANG_S) == 71
        assert "no row is left for NVIDIA H200" in gpu.log.read_text()
    finally:
        gpu.kill()


@pytest.mark.parametrize("fault", ["nib_gpu_out@cubin:1+:wrong", "nib_gpu_out@cubin:1+:700"])
def test_a_named_row_has_no_fall_back(tmp_path, image, fault):
    named = {**GPU, "engine": {"step_rows": 64, "row": "sm90"}}
    daemon = d.Daemon(tmp_path / "n", image, env=fake_env(tmp_path / "n", fault=fault), wait=False, **named)
    try:
        assert daemon.process.wait(d.HANG_S) == 71
        log = daemon.log.read_text()
        assert "the self-test of row sm90: kernel nib_gpu_out" in log
        assert "sm80" not in log and "starting again" not in log
    finally:
        daemon.kill()


@pytest.mark.parametrize("code", [214, 220])
def test_a_hardware_error_is_not_the_rows_fault(tmp_path, image, code):
    daemon = d.Daemon(tmp_path / "n", image, env=fake_env(tmp_path / "n", fault=f"nib_gpu_out:1:{code}"), wait=False, **GPU)
    try:
        assert daemon.process.wait(d.HANG_S) == 71
        log = daemon.log.read_text()
        assert "struck" not in log and "starting again" not in log and "kernel nib_gpu_out" in log
    finally:
        daemon.kill()


@pytest.fixture(scope="module")
def mxfp8(tmp_path_factory):
    path = tmp_path_factory.mktemp("mxfp8") / "model.nib"
    subprocess.run([d.BUILD / "nibble", "synth", "nano", path, "--seed", "7", "--dense", "mxfp8"], check=True,
                   capture_output=True, cwd=d.ROOT)
    return path


@pytest.mark.parametrize("op", ["repack_mxfp8", "qkv_mxfp8", "qkv_prompt_mxfp8", "out_mxfp8", "out_prompt_mxfp8", "head_mxfp8"])
def test_an_mxfp8_image_runs_and_its_kernels_are_tested(tmp_path, mxfp8, op):
    """On the CPU, on sm90 whatever the kernels of the other form are, and on sm80 when one of its own is wrong."""
    cpu = d.Daemon(tmp_path / "cpu", mxfp8, **{**SMALL, "engine": {"step_rows": 64, "device": "cpu"}})
    try:
        wanted = answers(cpu)
    finally:
        cpu.kill()
    daemon = boot(tmp_path / "a", mxfp8, "nib_gpu_qkv@cubin:1+:wrong,nib_gpu_head@cubin:1+:wrong")
    try:
        assert daemon.get("/health").json["row"] == "sm90" and daemon.get("/health").json["struck"] == []
        right = answers(daemon)
        assert sum(a == b for a, b in zip(right, wanted)) >= len(PROMPTS) - 1  # near ties may fall the other way
    finally:
        daemon.kill()
    daemon = boot(tmp_path / "b", mxfp8, f"nib_gpu_{op}@cubin:1+:wrong")
    try:
        assert f"row sm90 is struck by its self-test: kernel nib_gpu_{op} is wrong" in daemon.log.read_text()
        runs_sm80(daemon, right)
    finally:
        daemon.kill()
