"""The daemon under systemd, played by the test: what it notifies and in which order, the watchdog when the engine
hangs, sockets that are passed to it, and a restart that no client notices."""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

import daemon as d
from life_test import Notify

HELLO = {"prompt": "x", "max_tokens": 4}


class Messages(Notify):
    """Whole messages, each a dict, in their order."""

    def read(self):
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().strip().split("\n"))

    def upto(self, name, value="1"):
        found = []
        while not found or found[-1].get(name) != value:
            found.append(self.read())
        return found

    def drop(self):
        """What came meanwhile."""
        found = []
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.read())
        self.socket.settimeout(d.HANG_S)
        return found


@pytest.fixture
def notify(tmp_path):
    return Messages(tmp_path)


@pytest.fixture(scope="module")
def slow_image(tmp_path_factory):
    """Large enough that its load takes several progress lines."""
    return d.synth(tmp_path_factory.mktemp("slow"), "small")


def stepper_of(nibbled):
    """The thread that owns the engine; it starts after the socket was opened."""
    while nibbled.process.poll() is None:
        for task in pathlib.Path(f"/proc/{nibbled.process.pid}/task").iterdir():
            if (task / "comm").read_text().strip() == "nib-stepper":
                return int(task.name)
    raise AssertionError(nibbled.log.read_text())


class Frozen:
    """Stops one thread of a process, as a hung engine would stop it; the other threads run on."""

    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000

    def __init__(self, tid):
        self.tid = tid
        self.libc = ctypes.CDLL(None, use_errno=True)

    def call(self, request):
        if self.libc.ptrace(request, self.tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def __enter__(self):
        try:
            self.call(self.SEIZE)
        except PermissionError:
            pytest.skip("this machine does not let a process stop a thread of its child (ptrace)")
        self.call(self.INTERRUPT)
        os.waitpid(self.tid, self.WALL)

    def __exit__(self, *_):
        self.call(self.DETACH)


def test_boot_is_told_in_order(start, notify, slow_image):
    """Progress and more time while loading, then what is served, then READY, once."""
    nibbled = start(env=notify.env, image=slow_image, wait=False, engine={"threads": 1})
    seen = notify.upto("READY")
    loading = [m for m in seen if "EXTEND_TIMEOUT_USEC" in m]
    for m in loading:
        assert m["STATUS"].startswith("loading ") and int(m["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
    amounts = [float(m["STATUS"].split()[1]) for m in loading]
    assert amounts == sorted(set(amounts)), "only progress asks for more time"
    assert "serving small" in seen[-2]["STATUS"]
    assert not any("READY" in m or "WATCHDOG" in m for m in seen[:-1])
    assert nibbled.metrics()["self_tests_total"] == 1
    assert nibbled.complete().status == 200
    nibbled.stop()
    rest = notify.upto("STOPPING") + notify.drop()
    assert not any("READY" in m for m in rest)


def test_progress_is_told(start, notify, slow_image):
    """A load that is stopped half-way is a load that takes long: one line a second, and no READY."""
    nibbled = start(env=notify.env, image=slow_image, wait=False, engine={"threads": 1})
    while not nibbled.socket.exists():
        assert nibbled.process.poll() is None
    with Frozen(stepper_of(nibbled)):
        first = nibbled.get("/health")
        if first.status == 503:  # else the machine loaded faster than the thread could be stopped
            message = notify.read()
            assert message["STATUS"].startswith("loading ")
            again = notify.read()
            assert "EXTEND_TIMEOUT_USEC" not in notify.read(), "nothing moved: no more time"
            assert again["STATUS"].startswith("loading ")
            assert nibbled.get("/health").json["status"] == "loading"
            assert not any("READY" in m for m in notify.drop())
    notify.upto("READY")
    nibbled.stop()


def forget_finished_turns(nibbled, notify):
    """What the engine finished before it was stopped is still told, once an interval is over and the front has had a
    turn."""
    time.sleep(0.5)
    for _ in range(3):
        assert nibbled.get("/health").status in (200, 503)
    notify.drop()


def test_watchdog_starves_when_the_engine_hangs(start, notify):
    """The front runs and answers; only the thread that owns the engine stands still."""
    nibbled = start(env={**notify.env, "WATCHDOG_USEC": "400000"})
    notify.upto("WATCHDOG")
    with Frozen(stepper_of(nibbled)):
        forget_finished_turns(nibbled, notify)
        for _ in range(12):
            assert nibbled.get("/health").status == 200
            time.sleep(0.2)
        assert notify.drop() == []
    notify.upto("WATCHDOG")
    assert nibbled.complete().status == 200
    nibbled.stop()


def test_watchdog_starves_in_the_middle_of_an_answer(start, notify, endless):
    nibbled = start(env={**notify.env, "WATCHDOG_USEC": "400000"}, engine={"ctx_tokens": 60000})
    s = nibbled.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 50000, "stream": True,
                                                "logit_bias": endless})
    assert s.recv(65536).startswith(b"HTTP/1.1 200")
    notify.upto("WATCHDOG")
    with Frozen(stepper_of(nibbled)):
        forget_finished_turns(nibbled, notify)
        time.sleep(1.2)
        assert notify.drop() == []
        assert nibbled.get("/health").status == 200
    notify.upto("WATCHDOG")
    s.close()
    nibbled.check_ledger()
    nibbled.stop()


@pytest.mark.parametrize("env, fed", [
    ({"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}, False),  # another process's
    ({"WATCHDOG_USEC": "0"}, False),
    ({}, False),
])
def test_no_watchdog_no_pings(start, notify, env, fed):
    nibbled = start(env={**notify.env, **env})
    notify.upto("READY")
    for _ in range(8):
        assert nibbled.complete().status == 200
        time.sleep(0.1)
    assert any("WATCHDOG" in m for m in notify.drop()) == fed
    nibbled.stop()


def test_nobody_reads_the_notifications(start, notify, slow_image):
    """A service manager that is busy: its queue fills up while the model loads. The daemon waits for nothing, and READY
    comes through later."""
    nibbled = start(env={**notify.env, "WATCHDOG_USEC": "4000"}, image=slow_image, engine={"threads": 1})
    for _ in range(20):
        assert nibbled.complete().status == 200
    assert nibbled.metrics()["ready"] == 1
    notify.upto("READY")
    notify.upto("WATCHDOG")
    nibbled.stop()


def test_abstract_notify_socket(start):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        name = f"nibbled-test-{os.getpid()}"
        s.bind("\0" + name)
        s.settimeout(d.HANG_S)
        nibbled = start(env={"NOTIFY_SOCKET": "@" + name})
        while s.recv(4096) != b"READY=1":
            pass
        nibbled.stop()


@pytest.mark.parametrize("path", ["", "x", "relative", "/nowhere/notify.sock", "/" + "x" * 200])
def test_notify_socket_of_no_use(start, path):
    nibbled = start(env={"NOTIFY_SOCKET": path})
    assert nibbled.complete().status == 200
    nibbled.stop()


def test_stop_asks_for_the_time_it_may_take(start, notify):
    nibbled = start(env=notify.env, time={"drain_ms_max": 70000})
    nibbled.stop()
    stopping = notify.upto("STOPPING")[-1]
    assert 70_000_000 <= int(stopping["EXTEND_TIMEOUT_USEC"]) <= 90_000_000


def test_second_sigterm_ends_the_drain(start, endless):
    nibbled = start(engine={"ctx_tokens": 60000}, time={"drain_ms_max": 3_600_000}, limits={"answer_bytes": 64 << 20})
    s = nibbled.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 50000, "stream": True,
                                                "logit_bias": endless})
    got = s.recv(65536)
    nibbled.process.send_signal(signal.SIGTERM)
    while b"draining: 1 requests" not in nibbled.log.read_bytes():
        time.sleep(0.01)
    nibbled.process.send_signal(signal.SIGTERM)
    while chunk := s.recv(65536):
        got += chunk
    assert b'"code":"shutting_down"' in got and b"[DONE]" not in got
    assert "asked again to stop" in nibbled.stop()


def test_sigterm_while_loading(start, notify, slow_image):
    nibbled = start(env=notify.env, image=slow_image, wait=False, engine={"threads": 1})
    while not nibbled.socket.exists():
        assert nibbled.process.poll() is None
    nibbled.process.send_signal(signal.SIGTERM)
    nibbled.stop()
    assert not nibbled.socket.exists()
    seen = notify.upto("STOPPING") + notify.drop()
    assert not any("READY" in m for m in seen)


LAUNCH = """
import json, os, sys
os.environ.update(json.loads(sys.argv[1]))
if "LISTEN_FDS" in os.environ:
    os.environ.setdefault("LISTEN_PID", str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.fixture
def pass_on(tmp_path):
    """A launcher that hands sockets to the daemon as descriptors 3, 4, ... Their files are the test's."""
    made = []

    def listener(kind=socket.SOCK_STREAM, listen=True, family=socket.AF_UNIX):
        s = socket.socket(family, kind)
        path = tmp_path / f"{len(made)}.sock"
        s.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        if listen:
            s.listen(128)
        made.append(s)
        return s, path

    def launcher(*sockets, **env):
        # high numbers first: descriptors 3 and on may be in use here
        high = [os.dup2(s.fileno(), 200 + i, inheritable=True) for i, s in enumerate(sockets)]
        moves = "import os\nfor i in range(%d): os.dup2(200 + i, 3 + i); os.close(200 + i)\n" % len(high)
        given = {"LISTEN_FDS": str(len(high)), **env}
        return ["env", "--", sys.executable, "-c", moves + LAUNCH, json.dumps(given)]

    class Passer:
        pass

    p = Passer()
    p.listener, p.launcher = listener, launcher
    yield p
    for s in made:
        s.close()
    for i in range(4):
        with contextlib.suppress(OSError):
            os.close(200 + i)


@pytest.fixture
def activated(start, pass_on, monkeypatch):
    """Starts a daemon on a listening socket of the test's."""
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: popen(*a, **{"close_fds": False, **k}))

    def go(sock, path, env=None, **more):
        nibbled = start(wait=False, launcher=pass_on.launcher(sock, **(env or {})), **more)
        nibbled.own_path, nibbled.socket = nibbled.socket, path
        return nibbled

    return go


def test_activation_by_name(activated, pass_on):
    sock, path = pass_on.listener()
    os.chmod(path, 0o606)
    nibbled = activated(sock, path, env={"LISTEN_FDNAMES": "api"}, socket={"mode": "0600"})
    nibbled.wait_ready()
    assert nibbled.complete().status == 200
    assert not nibbled.own_path.exists()
    nibbled.stop()
    assert path.exists(), "the socket's file is systemd's"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o606, "and so is its mode"


def test_sockets_of_another_process_are_left_alone(activated, pass_on):
    sock, path = pass_on.listener()
    nibbled = activated(sock, path, env={"LISTEN_PID": "1"})
    nibbled.socket = nibbled.own_path
    nibbled.wait_ready()
    nibbled.stop()


@pytest.mark.parametrize("what", ["two", "datagram", "bound only", "tcp"])
def test_wrong_sockets_are_refused(start, pass_on, monkeypatch, what):
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: popen(*a, **{"close_fds": False, **k}))
    sockets = {
        "two": lambda: [pass_on.listener()[0], pass_on.listener()[0]],
        "datagram": lambda: [pass_on.listener(socket.SOCK_DGRAM, listen=False)[0]],
        "bound only": lambda: [pass_on.listener(listen=False)[0]],
        "tcp": lambda: [pass_on.listener(family=socket.AF_INET)[0]],
    }[what]()
    nibbled = start(wait=False, launcher=pass_on.launcher(*sockets))
    assert nibbled.process.wait(d.HANG_S) == 78
    text = nibbled.log.read_text().strip()
    assert len(text.split("\n")) == 1 and "systemd" in text
    assert ("2 sockets" in text) == (what == "two")


def ask(nibbled, i):
    c = d.Connection(nibbled.socket)
    try:
        c.request("POST", "/v1/completions", json.dumps({**HELLO, "seed": i}), {"Content-Type": "application/json"})
        r = c.getresponse()
        return r.status, r.read()
    finally:
        c.close()


def test_who_came_too_early_is_served(activated, pass_on, slow_image):
    """Requests in the socket's queue before the daemon exists, and requests while it loads, wait for the model;
    /health does not."""
    sock, path = pass_on.listener()

    class Early:
        socket = path

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        before = [pool.submit(ask, Early, i) for i in range(4)]
        nibbled = activated(sock, path, image=slow_image, engine={"threads": 1})
        health = nibbled.get("/health").status
        during = [pool.submit(ask, nibbled, i) for i in range(4)]
        gone = nibbled.open_stream("/v1/completions", HELLO)  # and leaves again
        gone.close()
        answers = [f.result(d.HANG_S) for f in before + during]
    assert health == 503
    assert [status for status, _ in answers] == [200] * 8, answers
    nibbled.check_ledger()
    nibbled.stop()


def test_load_that_fails_answers_who_waits(activated, pass_on, tmp_path, slow_image):
    broken = tmp_path / "broken.nib"
    data = bytearray(slow_image.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    sock, path = pass_on.listener()
    nibbled = activated(sock, path, image=broken, engine={"threads": 1})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, nibbled, 1)
        assert nibbled.process.wait(d.HANG_S) == 66
        sock.close()  # else a request that was not accepted any more waits for the next daemon
        try:
            status, body = waiting.result(d.HANG_S)
            assert status == 503 and b"shutting_down" in body
        except OSError:
            pass  # it was not accepted before the end


def test_restart_that_no_client_notices(activated, pass_on):
    """Eight clients ask without pause, each time on a new connection, while the daemon is stopped and started
    three times: every request is answered."""
    sock, path = pass_on.listener()
    nibbled = activated(sock, path)
    over = False

    def client(i):
        n = 0
        while not over:
            status, body = ask(nibbled, i)
            assert status == 200, body
            n += 1
        return n

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, i) for i in range(8)]
        try:
            for _ in range(3):
                while nibbled.process.poll() is None:
                    if nibbled.metrics()["requests_finished_total"] >= 20:
                        break
                assert nibbled.stop()
                nibbled = activated(sock, path)
            nibbled.wait_metric("requests_finished_total", lambda n: n >= 20)
        finally:
            over = True
        counts = [c.result(d.HANG_S) for c in clients]
    assert min(counts) > 0 and sum(counts) >= 60, counts
    nibbled.check_ledger()
    nibbled.stop()


def test_drain_with_a_passed_socket(activated, pass_on, endless):
    """While it drains the daemon accepts nobody: new connections wait; a known one is refused; the stream ends well."""
    sock, path = pass_on.listener()
    nibbled = activated(sock, path)
    nibbled.wait_ready()
    known = nibbled.connect()
    known.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert known.recv(65536).startswith(b"HTTP/1.1 200")
    s = nibbled.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 1500, "stream": True,
                                                "logit_bias": endless})
    got = s.recv(65536)
    nibbled.process.send_signal(signal.SIGTERM)
    while b"draining" not in nibbled.log.read_bytes():
        time.sleep(0.01)
    late = nibbled.open_stream("/v1/completions", HELLO)
    body = json.dumps(HELLO).encode()
    known.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert known.recv(65536).startswith(b"HTTP/1.1 503")
    while chunk := s.recv(65536):
        got += chunk
    assert got.rstrip().endswith(b"0") and b"[DONE]" in got and b'"finish_reason":"length"' in got
    assert "draining: 1 requests" in nibbled.stop()
    after = activated(sock, path)
    answer = late.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    after.check_ledger()
    after.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file to any group")
def test_socket_group(start):
    import grp

    name = grp.getgrgid(2).gr_name
    nibbled = start(socket={"group": name, "mode": "0620"})
    found = os.stat(nibbled.socket)
    assert found.st_gid == 2 and stat.S_IMODE(found.st_mode) == 0o620
    nibbled.stop()


def test_unknown_socket_group(start):
    nibbled = start(socket={"group": "no-such-group"}, wait=False)
    assert nibbled.process.wait(d.HANG_S) == 78
    text = nibbled.log.read_text().strip()
    assert len(text.split("\n")) == 1 and 'no group "no-such-group"' in text
    assert not nibbled.socket.exists()


@pytest.mark.parametrize("args, code", [
    (["--nonsense"], 64), (["stray"], 64),
    (["--config", "/nowhere.yaml"], 78), (["--config", "/dev/null/x"], 78),
])
def test_one_sentence_and_its_code(args, code):
    r = subprocess.run([d.NIBBLED, *args], capture_output=True, text=True, timeout=d.HANG_S)
    assert r.returncode == code and r.stdout == ""
    assert len(r.stderr.strip().split("\n")) == 1 and len(r.stderr) > 20, r.stderr
