"""The daemon on the stand-in for libcuda: every profile boots and answers; whatever call fails, clients get the right
answer or an error, and the process ends for a restart, which is READY again. NIB_FAULTS=all runs many more lives."""

import concurrent.futures
import http.client
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

import pytest

import daemon as d
from life_test import Notify

FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
PROFILES = sorted((d.ROOT / "etc" / "profiles").glob("*.json"))
STEP_MS = 1500
SMALL = {"memory": {"limit_mib": 1280}, "engine": {"device": "gpu", "step_rows": 64},
         "time": {"step_ms_max": STEP_MS, "load_ms_max": 6000}}
PROMPTS = ["hello", "the quick brown fox", "1 2 3 4", "zebra " * 40]
ALL = os.environ.get("NIB_FAULTS") == "all"
AT_THE_END = ("cuStreamDestroy", "cuModuleUnload", "cuGraphExecDestroy")
GIVE_BACK = ("cuEventDestroy", "cuMemFree", "cuMemFreeHost", *AT_THE_END)  # where an error comes to nothing

pytestmark = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


class Report:
    """What the stand-in counted: struct fake_report of tests/fake/fake.h."""

    def __init__(self, path):
        data = path.read_bytes()
        (magic, sites, self.fired, self.stuck, self.violations, self.tokens, self.steps, self.device_bytes,
         self.pinned_bytes, self.objects) = struct.unpack_from("<5I4xQQQQq", data)
        assert magic == 0x656B6166
        self.count = {}
        for i in range(sites):
            name, count = struct.unpack_from("<40sQ", data, 64 + 48 * i)
            self.count[name.rstrip(b"\0").decode()] = count


def fake_env(folder, profile="h200", fault=""):
    folder.mkdir(parents=True, exist_ok=True)
    return {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / f"{profile}.json"),
            "NIBBLED_FAKE_FAULT": fault, "NIBBLED_FAKE_REPORT": str(folder / "report"), "NIBBLED_FAKE_FILL_MIB": "1"}


def ask(daemon, prompt, tokens=12):
    """The answer's text, or the error's status, or None when the connection ended."""
    try:
        r = daemon.complete(prompt, temperature=0, max_tokens=tokens)
    except (OSError, http.client.HTTPException):
        return None
    if r.status != 200:
        assert r.error["message"]
        return r.status
    return r.json["choices"][0]["text"]


class Life:
    """One daemon with one fault: what its clients saw, and how it ended. A fault in the self-test leaves the answers to the
    next row."""

    def __init__(self, folder, image, fault, golden, term=True):
        self.fault = fault
        self.report_path = folder / "report"
        self.daemon = daemon = d.Daemon(folder, image, env=fake_env(folder, fault=fault), wait=False, **SMALL)
        self.ready = self.wrong = self.errors = self.right = 0
        self.begin = time.monotonic()
        try:
            daemon.wait_ready()
            self.ready = True
        except AssertionError:
            pass
        if self.ready:
            self.serve(golden)
        if daemon.process.poll() is None and term:
            daemon.process.send_signal(signal.SIGTERM)
        try:
            self.code = daemon.process.wait(20)
        except Exception:
            self.code = "hung"
            daemon.kill()
        self.log = daemon.log.read_text()
        self.struck = "row sm90 is struck by its self-test" in self.log
        self.report = Report(self.report_path)

    def serve(self, golden):
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for turn in range(4):
                jobs = [(p, pool.submit(ask, self.daemon, p)) for p in PROMPTS]
                if turn == 1:  # one client goes away in the middle
                    try:
                        s = self.daemon.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 400, "stream": True})
                        s.recv(200)
                        s.close()
                    except OSError:
                        pass
                for prompt, job in jobs:
                    got = job.result()
                    if isinstance(got, str):
                        self.right += got == golden[prompt]
                        self.wrong += got != golden[prompt]
                    else:
                        assert got in (None, 500, 503), got
                        self.errors += 1
                if self.daemon.process.poll() is not None:
                    break

    @property
    def outcome(self):
        for bad in ("Sanitizer", "runtime error", "invariant", "ledger is off"):
            assert bad not in self.log, self.log
        assert self.wrong == 0, (self.fault, self.log)
        assert self.code != "hung", (self.fault, self.log)
        assert self.report.violations == 0 or ":flip" in self.fault, (self.fault, self.log)
        site, _, what = self.fault.split(":")[:3] if self.fault else ("", "", "")
        if what.isdigit() and self.report.fired and site not in GIVE_BACK:
            assert f"({what})" in self.log, (self.fault, self.log)
            assert self.code != 0 or self.struck, (self.fault, self.log)
        if not self.ready:
            sentence = self.log.strip().split("\n")[-2:]
            assert self.code in (66, 70, 71, 78), (self.fault, self.code, self.log)
            assert any(len(line) > 20 for line in sentence), self.log
            return "boot refused with a sentence"
        if self.code == 0:
            assert self.errors == 0, (self.fault, self.log)
            return "right answers on another row" if self.struck else "right answers"
        assert self.code == 70, (self.fault, self.code, self.log)
        return "errors to clients and an exit for restart" if self.errors else "right answers, then an exit for restart"


@pytest.fixture(scope="module")
def golden(tmp_path_factory, image):
    """What a GPU without a fault answers, and how often each call is made until READY and until the end."""
    folder = tmp_path_factory.mktemp("golden")
    daemon = d.Daemon(folder, image, env=fake_env(folder), **SMALL)
    booted = Report(folder / "report")
    texts = {p: ask(daemon, p) for p in PROMPTS}
    assert all(isinstance(t, str) for t in texts.values())
    daemon.check_ledger()
    daemon.stop()
    done = Report(folder / "report")
    assert done.violations == 0 and done.objects == 0  # the arenas end with the process
    return {"texts": texts, "boot": booted.count, "life": done.count}


def test_nothing_is_taken_after_ready(tmp_path, image):
    folder = tmp_path / "n"
    daemon = d.Daemon(folder, image, env=fake_env(folder), **SMALL)
    before = Report(folder / "report").count
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: ask(daemon, PROMPTS[i % 4], 40), range(40)))
    report = Report(folder / "report")
    moved = {name for name in before if report.count[name] != before[name] and name.startswith("cu")}
    assert moved <= {"cuGraphLaunch", "cuStreamQuery", "cuMemcpyDtoDAsync"}, moved
    assert report.violations == 0
    daemon.stop()


@pytest.mark.parametrize("profile", [p.stem for p in PROFILES])
def test_every_profile_boots_and_answers(tmp_path, image, golden, profile):
    folder = tmp_path / profile
    env = fake_env(folder, profile)
    daemon = d.Daemon(folder, image, env=env, wait=False, engine={"device": "gpu"})
    try:
        if profile == "t4":  # its row has no kernels yet
            assert daemon.process.wait(d.HANG_S) not in (0, None)
            assert "no row of the capability table fits" in daemon.log.read_text()
            return
        daemon.wait_ready()
        assert [ask(daemon, p) for p in PROMPTS] == list(golden["texts"].values())
        log = daemon.stop()
        want = "sm90" if profile in ("h100", "h200") else "sm80"
        assert f"row {want}" in log, log
        report = Report(folder / "report")
        assert report.violations == 0 and report.objects == 0
    finally:
        daemon.kill()


def test_answers_do_not_depend_on_neighbours(tmp_path, image, golden):
    folder = tmp_path / "n"
    daemon = d.Daemon(folder, image, env=fake_env(folder), **SMALL)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            prompts = PROMPTS * 2
            assert list(pool.map(lambda p: ask(daemon, p), prompts)) == [golden["texts"][p] for p in prompts]
    daemon.check_ledger()
    daemon.stop()
    assert Report(folder / "report").violations == 0


CODES = ("2", "700", "702", "719", "214", "220", "800")


def lives(golden):
    """Rules of the sample, the same in every run, with each entry point and kernel while loading and while serving; all of
    them with NIB_FAULTS=all."""
    choose = random.Random(20251122)
    sure, rules = [], []
    for i, (site, total) in enumerate(golden["life"].items()):
        boot = golden["boot"][site]
        serving = total > boot and site not in AT_THE_END
        for c, code in enumerate(CODES):
            keep = sure if c == i % len(CODES) else rules
            if boot:
                keep.append(f"{site}:{choose.randint(1, boot)}:{code}")
            if serving:
                keep.append(f"{site}:t{choose.randint(10, 60)}:{code}")
                rules.append(f"{site}:{choose.randint(boot + 1, total)}:{code}")
        if serving:
            sure.append(f"{site}:t{choose.randint(10, 60)}:late:400")
            (sure if i % 5 == 0 else rules).append(f"{site}:t{choose.randint(10, 60)}:hang")
        elif total:
            rules += [f"{site}:1:late:400", f"{site}:1:hang"]
    return sure + rules if ALL else sure + choose.sample(rules, 40)


def test_lives_with_a_fault(tmp_path, image, golden):
    rules = lives(golden)
    outcomes, fired = {}, 0
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(Life, tmp_path / str(i), image, rule, golden["texts"]) for i, rule in enumerate(rules)]
        for job in jobs:
            life = job.result()
            outcomes[life.outcome] = outcomes.get(life.outcome, 0) + 1
            fired += life.report.fired > 0
    print(len(rules), "lives,", fired, "with a fault:", outcomes)
    assert len(outcomes) >= 3 and fired > 0.8 * len(rules)


def test_a_flipped_weight_bit_stops_the_boot(tmp_path, image, golden):
    """Copies of weights, and of what tells the kernels about them."""
    named = 0
    last = golden["boot"]["cuMemcpyHtoDAsync"]  # the self-test's come first
    for n in range(last - 9, last - 1):
        life = Life(tmp_path / str(n), image, f"cuMemcpyHtoDAsync:{n}:flip:{n}", golden["texts"])
        assert life.outcome == "boot refused with a sentence" and life.code == 71
        assert life.report.fired == 1
        named += "changed on" in life.log and "way to the GPU" in life.log
    assert named >= 4


@pytest.mark.parametrize("site", ["nib_gpu_attn", "nib_gpu_sample"])
def test_a_hanging_kernel_ends_the_process(tmp_path, image, golden, site):
    life = Life(tmp_path / site, image, f"{site}:t30:hang", golden["texts"], term=False)
    assert life.ready and life.code == 70 and life.errors > 0 and life.wrong == 0
    assert f"did not end a step in {STEP_MS} ms" in life.log


@pytest.mark.parametrize("call", ["cuGraphLaunch", "cuStreamQuery"])
def test_a_call_that_never_returns_ends_the_process(tmp_path, image, golden, call):
    """Also without systemd's watchdog, whose feeding stops at once: nothing comes for longer than the watchdog waits."""
    notify, fed = Notify(tmp_path), []

    def watch():
        while True:
            data = notify.socket.recv(4096).decode()
            if "WATCHDOG=1" in data:
                fed.append(time.monotonic())
            if "STATUS=failed" in data:
                return time.monotonic()
    folder = tmp_path / call
    env = {**fake_env(folder, fault=f"{call}:t30:hang"), **notify.env, "WATCHDOG_USEC": "400000"}
    daemon = d.Daemon(folder, image, env=env, wait=False, **SMALL)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            failed = pool.submit(watch)
            daemon.wait_ready()
            answers = []
            while len(answers) < 24 and None not in answers:
                answers.append(ask(daemon, PROMPTS[len(answers) % 4]))
            assert daemon.process.wait(d.HANG_S) == 70
            assert fed and failed.result() - fed[-1] > 4
    finally:
        daemon.kill()
    assert set(answers) <= {*golden["texts"].values(), 500, 503, None}
    assert 500 in answers or 503 in answers, answers
    log = daemon.log.read_text()
    assert "the GPU's driver does not return" in log and "ledger is off" not in log


def test_a_boot_that_never_moves_ends(tmp_path, image):
    folder = tmp_path / "n"
    daemon = d.Daemon(folder, image, env=fake_env(folder, fault="cuModuleLoadDataEx:1+:hang"), wait=False, **SMALL)
    assert daemon.process.wait(d.HANG_S) == 71
    log = daemon.log.read_text()
    assert "loading has not moved" in log and "starting again without row sm80" in log


@pytest.mark.parametrize("fault", ["cuGraphLaunch:t40:hang", "nib_gpu_attn:t40:hang"])
def test_a_stop_while_the_gpu_hangs(tmp_path, image, endless, fault):
    """SIGTERM, and no time to drain: the process ends, the answer does not look whole, and the exit code says why."""
    folder = tmp_path / "n"
    more = {**SMALL, "time": {**SMALL["time"], "drain_ms_max": 0}}
    daemon = d.Daemon(folder, image, env=fake_env(folder, fault=fault), wait=False, **more)
    try:
        daemon.wait_ready()
        stream = daemon.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 200, "stream": True,
                                                        "logit_bias": endless})
        got = stream.recv(65536)
        while not Report(folder / "report").fired:
            time.sleep(0.01)
        daemon.process.send_signal(signal.SIGTERM)
        try:
            while chunk := stream.recv(65536):
                got += chunk
        except ConnectionResetError:
            pass
        daemon.stop(70)
    finally:
        daemon.kill()
    assert b"[DONE]" not in got and got.startswith(b"HTTP/1.1 200"), got[-300:]


def test_an_engine_that_never_ends_is_left(tmp_path, image, golden):
    """All answers are out, and the driver hangs when the graphs are freed."""
    life = Life(tmp_path / "n", image, "cuGraphExecDestroy:1:hang", golden["texts"])
    assert life.right == 16 and life.code == 70
    assert "the engine did not end in" in life.log


@pytest.mark.parametrize("fault, code", [("", 0), ("nib_gpu_down:t120:719", 70), ("cuGraphLaunch:t120:2", 70)])
def test_draining(tmp_path, image, endless, fault, code):
    """SIGTERM with a stream under way: it ends by itself, or with an error when the GPU fails meanwhile."""
    folder = tmp_path / "n"
    slow = "nib_gpu_begin:1+:late:4"  # the signal comes before the fault
    env = fake_env(folder, fault=f"{fault},{slow}" if fault else slow)
    daemon = d.Daemon(folder, image, env=env, wait=False, **SMALL)
    try:
        daemon.wait_ready()
        stream = daemon.open_stream("/v1/completions", {"prompt": "x", "max_tokens": 200, "stream": True,
                                                        "logit_bias": endless})
        got = stream.recv(65536)
        daemon.process.send_signal(signal.SIGTERM)
        while chunk := stream.recv(65536):
            got += chunk
        log = daemon.stop(code)
    finally:
        daemon.kill()
    assert (b"[DONE]" in got) == (code == 0), got[-300:]
    assert (b'"error"' in got) == (code != 0), got[-300:]
    assert "draining" in log


def test_trouble_between_the_daemon_and_libcuda(tmp_path):
    """The script that runs on a card, on the stand-in: so that it is known to work where it counts."""
    env = {**os.environ, **fake_env(tmp_path / "n"), "NIBBLED_TROUBLE_LIBCUDA": str(FAKE), "NIB_BUILD": str(d.BUILD)}
    script = d.ROOT / "tests" / "gpu" / "trouble.py"
    run = subprocess.run([sys.executable, script, "nano", "illegal", "spin", "late", "boot"], env=env, text=True,
                         stdout=subprocess.PIPE, timeout=d.HANG_S)
    assert run.returncode == 0 and "0 of 4 cases failed" in run.stdout, run.stdout


def test_after_a_lost_gpu_a_restart_is_ready(tmp_path, image, golden):
    for i in range(3):
        life = Life(tmp_path / f"lost{i}", image, "nib_gpu_qkv:t20:700", golden["texts"], term=False)
        assert life.code == 70 and life.ready
        again = Life(tmp_path / f"again{i}", image, "", golden["texts"])
        assert again.outcome == "right answers" and again.right == 16
