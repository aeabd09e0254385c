"""The daemon's life: boot, readiness, watchdog, drain, socket activation, exit codes."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

import daemon as d


class Notify:
    """Stands in for systemd: receives what the daemon notifies."""

    def __init__(self, folder):
        self.path = str(folder / "notify.sock")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(d.HANG_S)
        self.seen = []

    @property
    def env(self):
        return {"NOTIFY_SOCKET": self.path}

    def until(self, wanted):
        while True:
            for line in self.socket.recv(4096).decode().split("\n"):
                self.seen.append(line)
            if any(line.startswith(wanted) for line in self.seen):
                return


def test_ready_and_stopping(start, tmp_path):
    notify = Notify(tmp_path)
    nibbled = start(env=notify.env, wait=False)
    notify.until("READY=1")
    assert nibbled.get("/health").status == 200
    assert nibbled.metrics()["self_tests_total"] == 1  # a token was generated before READY
    status = [line for line in notify.seen if line.startswith("STATUS=")]
    assert "nano" in status[-1] and "4096" in status[-1]
    log = nibbled.stop()
    notify.until("STOPPING=1")
    assert "stopped: 0 requests" in log


def test_watchdog(start, tmp_path):
    notify = Notify(tmp_path)
    nibbled = start(env={**notify.env, "WATCHDOG_USEC": "400000"})
    for _ in range(3):
        notify.seen.clear()
        notify.until("WATCHDOG=1")
    # a stopped process feeds nothing
    nibbled.process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    notify.socket.setblocking(False)
    try:
        while notify.socket.recv(4096):
            pass
    except BlockingIOError:
        pass
    time.sleep(0.6)
    with pytest.raises(BlockingIOError):
        notify.socket.recv(4096)
    nibbled.process.send_signal(signal.SIGCONT)
    notify.socket.settimeout(d.HANG_S)
    notify.seen.clear()
    notify.until("WATCHDOG=1")
    nibbled.stop()


def test_loading_is_served(start, tmp_path):
    """While the model loads the socket answers: 503 with progress, and refusals. A FIFO in the
    image's place would be refused, so a large image is used."""
    big = d.synth(tmp_path, "small")
    nibbled = start(image=big, wait=False)
    seen = set()
    while nibbled.process.poll() is None:
        try:
            health = nibbled.get("/health")
            r = nibbled.complete(max_tokens=1)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        seen.add(health.status)
        if health.status == 503:
            assert health.json["status"] == "loading"
            assert {"loaded_bytes", "total_bytes"} <= set(health.json)
            if r.status == 503:
                assert r.error["code"] == "loading" and r.headers["Retry-After"]
        else:
            break
    assert seen == {503, 200}
    nibbled.stop()


def test_sigterm_while_loading(start, tmp_path):
    """As early as there is a socket; on a quick machine the load may just be over."""
    big = d.synth(tmp_path, "small")
    for _ in range(3):
        nibbled = start(image=big, wait=False)
        while not nibbled.socket.exists():
            assert nibbled.process.poll() is None
        nibbled.stop()
        assert not nibbled.socket.exists()


def test_sigterm_drains(start, endless):
    nibbled = start()
    s = nibbled.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 1500, "seed": 1,
                                                "logit_bias": endless, "stream": True})
    got = s.recv(65536)
    late = nibbled.connect()
    late.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert late.recv(65536).startswith(b"HTTP/1.1 200")
    nibbled.process.send_signal(signal.SIGTERM)
    while b"draining" not in nibbled.log.read_bytes():
        time.sleep(0.01)
    late.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert late.recv(65536).startswith(b"HTTP/1.1 503")
    r = nibbled.complete()
    assert r.status == 503 and r.error["code"] == "shutting_down"
    while chunk := s.recv(65536):
        got += chunk
    assert got.count(b'"text"') >= 1 and b'"finish_reason":"length"' in got and b"[DONE]" in got
    late.close()
    log = nibbled.stop()
    assert "1 finished" in log
    assert not nibbled.socket.exists()


def test_drain_is_bounded(start, endless):
    nibbled = start(time={"drain_ms_max": 200}, engine={"ctx_tokens": 100000},
                    limits={"answer_bytes": 64 << 20})
    body = {"prompt": "x", "max_tokens": 90000, "logit_bias": endless}
    stream = nibbled.open_stream("/v1/completions", {**body, "stream": True})
    got = stream.recv(65536)
    whole = nibbled.open_stream("/v1/completions", body)
    nibbled.wait_metric("sched_running", 2)
    nibbled.process.send_signal(signal.SIGTERM)
    while chunk := stream.recv(65536):
        got += chunk
    assert b'"code":"shutting_down"' in got and b"[DONE]" not in got
    answer = b""
    while chunk := whole.recv(65536):
        answer += chunk
    assert answer.startswith(b"HTTP/1.1 503")
    log = nibbled.stop()
    assert "2 requests" in log


def test_sighup_changes_nothing(start):
    nibbled = start()
    nibbled.process.send_signal(signal.SIGHUP)
    while b"SIGHUP" not in nibbled.log.read_bytes():
        time.sleep(0.01)
    assert nibbled.complete().status == 200
    nibbled.stop()


def test_socket_mode_and_stale_socket(start, tmp_path, image):
    first = start(socket={"mode": "0640"})
    assert stat.S_IMODE(os.stat(first.socket).st_mode) == 0o640
    # a second daemon on the same socket is refused and does not disturb the first
    second = d.Daemon(tmp_path / "second", image, wait=False, socket={"path": str(first.socket)})
    assert second.process.wait(d.HANG_S) == 71
    assert "another process listens" in second.log.read_text()
    assert first.complete().status == 200
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()  # left behind: stale
    third = start(socket={"path": str(first.socket)}, wait=False)
    third.socket = first.socket
    third.wait_ready()
    third.stop()


def test_other_files_are_left_alone(start, tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    nibbled = start(socket={"path": str(path)}, wait=False)
    assert nibbled.process.wait(d.HANG_S) == 71
    assert path.read_text() == "data" and "not a socket" in nibbled.log.read_text()


LAUNCH = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1]); s.listen(16)
os.dup2(s.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_socket_activation(start, tmp_path):
    path = tmp_path / "activated.sock"
    nibbled = start(wait=False, launcher=[sys.executable, "-c", LAUNCH, str(path)])
    own = nibbled.socket
    nibbled.socket = path
    nibbled.wait_ready()
    assert nibbled.complete().status == 200
    assert not own.exists()
    nibbled.stop()
    assert path.exists()  # it is systemd's, not the daemon's


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="no systemd-socket-activate")
def test_systemd_socket_activate(tmp_path, image):
    path = tmp_path / "a.sock"
    nibbled = d.Daemon(tmp_path / "n", image, wait=False,
                       launcher=["systemd-socket-activate", "--fdname=api", "-l", str(path)])
    try:
        nibbled.socket = path
        nibbled.wait_ready()
        assert nibbled.complete().status == 200
        nibbled.stop()
    finally:
        nibbled.kill()


def run(tmp_path, text, *more):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    return subprocess.run([d.NIBBLED, "--config", config, *more], capture_output=True, text=True,
                          timeout=d.HANG_S)


def test_exit_codes(tmp_path, image):
    def of(text, *more):
        r = run(tmp_path, text, *more)
        assert len(r.stderr.strip().split("\n")[-1]) > 20
        return r.returncode, r.stderr

    code, text = of("limits:\n  queue: 257\n")
    assert code == 78 and "line 2" in text and "limits.queue" in text and "0 to 256" in text
    assert run(tmp_path, "limits:\n  queue: 256\n", "--check").returncode == 0
    code, text = of("memory:\n  kv: fp4\n")
    assert code == 78 and "memory.kv must be one of bf16|fp8" in text
    where = f"socket:\n  path: {tmp_path}/s.sock\n"
    code, text = of(where + "image:\n  path: /nowhere.nib\n")
    assert code == 66 and "/nowhere.nib" in text
    broken = tmp_path / "broken.nib"
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    code, text = of(where + f"image:\n  path: {broken}\n")
    assert code == 66, text
    code, text = of(where + f"image:\n  path: {image}\n  public_key: {'ab' * 32}\n")
    assert code == 66 and "sign" in text, text
    code, text = of(where + f"image:\n  path: {image}\nmemory:\n  limit_mib: 1\n")
    assert code == 78 and any(c.isdigit() for c in text), text
    code, text = of(where + f"image:\n  path: {image}\nengine:\n  row: nothing\n")
    assert code == 78 and "nothing" in text
    assert subprocess.run([d.NIBBLED, "--nonsense"], capture_output=True).returncode == 64
    assert not (tmp_path / "s.sock").exists()


def test_failure_is_notified(start, tmp_path):
    notify = Notify(tmp_path)
    nibbled = start(env=notify.env, wait=False, image="/nowhere.nib")
    assert nibbled.process.wait(d.HANG_S) == 66
    notify.until("STATUS=failed")
    assert not any(line == "READY=1" for line in notify.seen)


def test_log_has_no_user_bytes(start):
    nibbled = start()
    secret = "xyzzy-secret"
    nibbled.chat(secret, user=secret)
    nibbled.get("/" + secret)
    nibbled.post("/v1/completions", {secret: 1})
    nibbled.raw(b"GET /health HTTP/1.1\r\nHost: %s\r\n\r\n" % secret.encode())
    assert secret not in nibbled.stop()


def test_journal_prefix(start):
    nibbled = start(env={"JOURNAL_STREAM": "1:2"})
    nibbled.complete()
    assert all(line.startswith("<") for line in nibbled.stop().strip().split("\n"))


def test_default_config_is_the_committed_file():
    printed = subprocess.run([d.NIBBLED, "--print-config"], capture_output=True, check=True).stdout
    assert printed == (d.ROOT / "etc" / "nibbled.yaml").read_bytes()
