#!/usr/bin/env python3
"""The daemon on this machine's GPU, with trouble made on purpose by tests/gpu/trouble.c: what clients see, how the process
ends, and whether the next one, started as systemd would, is READY and answers the same.

usage: NIB_BUILD=build/travel tests/gpu/trouble.py [SHAPE [CASE...]]      SHAPE: tiny (default), small, ...
NIBBLED_TROUBLE_LIBCUDA names another libcuda (the stand-in of tests/fake). Every wait is bounded. Exit 1: a case failed."""

import http.client
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import daemon as d  # noqa: E402

UNIT = (d.ROOT / "etc" / "systemd" / "nibbled.service").read_text()
STEP_MS = 2000
STALL_MS = 2 * STEP_MS + 3000  # appliance/boot.c: what takes longer sits in the driver
PAUSE_S = 0.5  # in place of RestartSec
TOKENS = 500
PROMPTS = ["hello", "the quick brown fox", "1 2 3 4", "zebra"]

# what and at which launch of a graph; the step's or call's deadline; the exit code that is due (None: it goes on); a word
# of the journal. The first launches are the boot's self-test; from 200 on the first answers are well under way.
CASES = {
    "illegal": ("illegal", 200, 0, 70, "ILLEGAL_ADDRESS"),
    "spin": ("spin", 200, STEP_MS, 70, f"did not end a step in {STEP_MS} ms"),
    "hang": ("hang", 200, STALL_MS, 70, "the GPU's driver does not return"),
    "slow": ("slow", 200, 0, None, "trouble: slow"),
    "late": ("late", 200, 0, None, "trouble: late"),
    "boot": ("illegal", 3, 0, 71, "ILLEGAL_ADDRESS"),
}


def unit(key):
    return re.search(rf"^{key}=(.*)$", UNIT, re.M).group(1)


def systemd_restarts(code):
    """Restart=on-failure: any end but a clean one, unless the code is excepted."""
    assert unit("Restart") == "on-failure"
    return code != 0 and str(code) not in unit("RestartPreventExitStatus").split()


class Client(threading.Thread):
    """One streamed answer: its text, and how it ended."""

    def __init__(self, daemon, prompt, bias):
        super().__init__(daemon=True)
        self.service, self.prompt, self.bias = daemon, prompt, bias
        self.text, self.end, self.ended_at = "", "nothing", 0.0

    def run(self):
        try:
            self.end = self.stream()
        except (OSError, http.client.HTTPException) as e:
            self.end = f"connection: {type(e).__name__}"
        self.ended_at = time.monotonic()

    def stream(self):
        c = d.Connection(self.service.socket, timeout=60)
        body = {"prompt": self.prompt, "max_tokens": TOKENS, "temperature": 0, "stream": True, "logit_bias": self.bias}
        c.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        r = c.getresponse()
        if r.status != 200:
            return f"status {r.status}"
        end = "cut"
        for line in r:
            data = line.decode().strip().removeprefix("data: ")
            if data == "[DONE]":
                return "whole" if end == "finished" else "done without an end"
            event = json.loads(data) if data else {}
            if "error" in event:
                end = "error"
            for choice in event.get("choices", ()):
                self.text += choice["text"]
                end = "finished" if choice["finish_reason"] else end
        return end


def ask_all(daemon, bias):
    clients = [Client(daemon, p, bias) for p in PROMPTS]
    for c in clients:
        c.start()
    for c in clients:
        c.join(90)
    return clients


def start(folder, image, env=None, wait=True):
    daemon = d.Daemon(folder, image, env=env, wait=False, engine={"device": "gpu", "ctx_tokens": 1024, "slots": 4},
                      memory={"limit_mib": 4096}, time={"step_ms_max": STEP_MS, "load_ms_max": 20000})
    try:
        if wait:
            daemon.wait_ready()
    except BaseException:
        daemon.kill()
        raise
    return daemon


def answers(daemon, bias):
    clients = ask_all(daemon, bias)
    assert [c.end for c in clients] == ["whole"] * len(clients), [c.end for c in clients]
    return {c.prompt: c.text for c in clients}


def judge(clients, golden, code):
    """No text that is not the right one's beginning; whole only when it is all of it."""
    bad = []
    for c in clients:
        if not golden[c.prompt].startswith(c.text):
            bad.append(f"wrong text for {c.prompt!r}")
        if c.end == "whole" and c.text != golden[c.prompt]:
            bad.append(f"a part passed as the whole for {c.prompt!r}")
        if c.end != "whole" and (code is None or not (c.end == "error" or c.end.startswith(("status 50", "connection")))):
            bad.append(f"{c.prompt!r} ended with: {c.end}")
    if code is not None and not any(c.end == "error" and c.text for c in clients):
        bad.append("no answer was broken in the middle")
    return bad


def live(daemon, case, golden, bias):
    """Clients and trouble until the process has ended. What was seen, and what of it is bad."""
    _, nth, limit_ms, code, word = case
    served = nth > 100
    clients = ask_all(daemon, bias) if served else []
    if code is None:
        daemon.process.send_signal(signal.SIGTERM)
    got = daemon.process.wait(limit_ms / 1000 + 30)
    ended = time.monotonic()
    log = daemon.log.read_text()
    at = re.search(r"trouble: \w+ at launch \d+, ([\d.]+)", log)
    if not at:
        return "", ["no trouble was made: " + log[-600:]]
    at = float(at.group(1))
    bad = judge(clients, golden, code) if served else []
    if got != (code or 0) or word not in log or "ledger is off" in log:
        bad.append(f"exit {got}, or not in the journal: {word}: {log[-600:]}")
    if code is not None and not systemd_restarts(got):
        bad.append("systemd would not start it again")
    text = f"exit {got} after {ended - at:.2f} s"
    if served:
        text = (f"clients: {', '.join(f'{c.end} after {len(c.text)} characters' for c in clients)}; "
                f"the last of them {max(c.ended_at for c in clients) - at:.2f} s after the trouble, {text}")
    return "\n  ".join([text, *[line for line in log.splitlines() if word in line and "trouble:" not in line][:1]]), bad


def run_case(name, folder, image, golden, bias):
    case = CASES[name]
    folder.mkdir(exist_ok=True)
    once = folder / "once"
    once.touch()
    env = {"NIBBLED_LIBCUDA": str(d.BUILD / "tests" / "gpu" / "libtrouble.so"), "NIBBLED_TROUBLE_ONCE": str(once),
           "NIBBLED_TROUBLE": f"{case[0]}:{case[1]}:700"}
    daemon = start(folder, image, env, wait=case[1] > 100)
    try:
        text, bad = live(daemon, case, golden, bias)
        time.sleep(PAUSE_S)
        began = time.monotonic()
        daemon = start(folder, image, env)  # the same environment, but the file is gone
        text += f"\n  started again: READY after {time.monotonic() - began:.2f} s"
        if answers(daemon, bias) != golden:
            bad.append("the answers after the restart differ")
        daemon.stop()
        return "\n  ".join([f"{name}: {text}", *(f"BAD: {b}" for b in bad or ())]), not bad
    finally:
        daemon.kill()


def main(shape="tiny", *names):
    failed = 0
    with tempfile.TemporaryDirectory() as t:
        folder = pathlib.Path(t)
        image = d.synth(folder, shape)
        daemon = start(folder / "golden", image)
        try:
            bias = {str(i): -100 for i in d.specials(daemon).values()}
            golden = answers(daemon, bias)
            print(daemon.log.read_text().splitlines()[0])
            daemon.stop()
        finally:
            daemon.kill()
        for name in names or CASES:
            try:
                text, fine = run_case(name, folder / name, image, golden, bias)
            except (AssertionError, subprocess.TimeoutExpired) as e:
                text, fine = f"{name}: {type(e).__name__}: {str(e)[-600:]}", False
            print(text, flush=True)
            failed += not fine
    print(f"{failed} of {len(names or CASES)} cases failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
