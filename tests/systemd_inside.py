"""What tests/systemd.sh runs inside the container, as root, on a booted system: one line a check, a closing count."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import pwd
import re
import socket
import stat
import subprocess
import time

SOCKET = "/run/nibbled/nibbled.sock"
IMAGE = pathlib.Path("/var/lib/nibbled/model.nib")
DROP_IN = pathlib.Path("/etc/systemd/system/nibbled.service.d/check.conf")
CONFIG = pathlib.Path("/etc/nibbled.yaml")
HANG_S = 60


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(HANG_S)
        self.sock.connect(SOCKET)


def request(method, path, body=None):
    c = Connection("localhost")
    try:
        c.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        r = c.getresponse()
        return r.status, json.loads(r.read() or b"{}")
    finally:
        c.close()


def complete(**more):
    return request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 4, **more})


def as_user(name):
    """Status of a chat by another user, or the error of connect."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        user = pwd.getpwnam(name)
        os.initgroups(name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        try:
            said = str(request("POST", "/v1/chat/completions",
                               {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4})[0])
        except OSError as e:
            said = type(e).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    return os.read(read, 100).decode()


def systemctl(*args):
    return subprocess.run(["systemctl", *args], capture_output=True, text=True)


def show(key, unit="nibbled.service"):
    return systemctl("show", "-P", key, unit).stdout.strip()


def main_pid():
    pid = int(show("MainPID"))
    assert pid > 1, "the daemon does not run"
    return pid


def until(what, wanted=True):
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        got = what()
        if got == wanted:
            return got
        time.sleep(0.05)
    return got


def active(state="active"):
    return until(lambda: show("ActiveState"), state) == state


def journal(*args):
    return subprocess.run(["journalctl", "-q", "--no-pager", "-u", "nibbled.service", *args], capture_output=True,
                          text=True).stdout


def drop_in(*lines):
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Service]\n" + "\n".join(lines) + "\n")
    systemctl("daemon-reload")


def stream_of(tokens):
    """A long answer under way: the connection, and what was read."""
    body = json.dumps({"prompt": "x", "max_tokens": tokens, "stream": True,
                       "logit_bias": {str(i): -100 for i in specials()}}).encode()
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(HANG_S)
    s.connect(SOCKET)
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return s, s.recv(65536)


def specials():
    """Ids of the special tokens: the model must not end its turn."""
    vocab = request("GET", "/v1/models")[1]["data"][0]["vocab"]
    return [i for i in range(vocab)
            if re.fullmatch(r"<\|[a-z]+\|>", request("POST", "/detokenize", {"tokens": [i]})[1]["text"])]


# ---- the checks, in this order; each returns a false value or raises when it fails ----

def check_socket_before_the_daemon():
    st = os.stat(SOCKET)
    return (show("ActiveState", "nibbled.socket") == "active" and show("ActiveState") == "inactive" and
            stat.S_IMODE(st.st_mode) == 0o660 and st.st_uid == 0 and st.st_gid == pwd.getpwnam("nibbled").pw_gid)


def check_first_connection_starts_it():
    """And is served, not refused, though the model is not loaded yet."""
    return complete()[0] == 200 and active() and show("SubState") == "running"


def check_status_text():
    return "serving nano" in show("StatusText") and "16384 tokens" in show("StatusText")


def check_journal():
    lines = [json.loads(line) for line in journal("-o", "json").splitlines()]
    ours = {e["MESSAGE"]: e["PRIORITY"] for e in lines if e.get("_COMM") == "nibbled"}
    ready = [p for m, p in ours.items() if m.startswith("ready: nano")]
    return ready == ["5"] and all(not m.startswith("<") for m in ours)


def check_member_may_chat():
    return as_user("member") == "200"


def check_stranger_may_not():
    return as_user("stranger") == "PermissionError"


def check_the_daemon_knows_who_asked():
    return f"uid {pwd.getpwnam('member').pw_uid} POST /v1/chat/completions" in journal()


def check_peer_rules():
    """A user whom the socket's mode lets in, and the rules do not."""
    os.chmod(SOCKET, 0o666)
    try:
        return as_user("stranger") == "403"
    finally:
        os.chmod(SOCKET, 0o660)


def check_confinement():
    pid = main_pid()
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines() if ":\t" in line)
    namespaces = {n: os.readlink(f"/proc/{pid}/ns/{n}") != os.readlink(f"/proc/self/ns/{n}") for n in ("net", "mnt", "ipc")}
    seen = os.listdir(f"/proc/{pid}/root/dev")
    uid = str(pwd.getpwnam("nibbled").pw_uid)
    return (status["CapEff"] == status["CapPrm"] == status["CapBnd"] == "0" * 16 and status["NoNewPrivs"] == "1" and
            status["Seccomp"] == "2" and status["Uid"].split() == [uid] * 4 and all(namespaces.values()) and
            "null" in seen and "mem" not in seen and "tty1" not in seen)


def check_nothing_is_writable():
    """In what the daemon sees, not even root writes."""
    for folder in ("/", "/etc", "/usr", "/var", "/var/lib/nibbled", "/run", "/run/nibbled", "/run/lock", "/dev/shm", "/opt", "/root", "/home"):
        r = subprocess.run(["nsenter", "-t", str(main_pid()), "-m", "touch", f"{folder}/written"], capture_output=True,
                           text=True)
        if "Read-only" not in r.stderr:
            print(f"      {folder}: {r.returncode} {r.stderr}")
            return False
    return True


def check_exposure_score():
    text = subprocess.run(["systemd-analyze", "security", "--no-pager", "nibbled.service"], capture_output=True,
                          text=True).stdout
    score = float(re.search(r"exposure level for \S+: ([0-9.]+)", text)[1])
    print(f"      (exposure {score})")
    return score <= 2.0


def check_memory_lock():
    """Where the container may not raise the limit, the daemon says what it could not lock."""
    text = CONFIG.read_text()
    CONFIG.write_text(text + "memory: {lock: true}\n")
    try:
        if systemctl("restart", "nibbled.service").returncode != 0:
            print("      (this container may not lock memory)")
            return show("ExecMainStatus") == "78" and "raise LimitMEMLOCK" in journal("-p", "err")
        status = open(f"/proc/{main_pid()}/status").read()
        locked, resident = (int(status.split(k)[1].split()[0]) for k in ("VmLck:", "VmRSS:"))
        print(f"      ({locked // 1024} MiB locked)")
        return locked >= resident and complete()[0] == 200
    finally:
        CONFIG.write_text(text)
        systemctl("stop", "nibbled.service")
        systemctl("reset-failed", "nibbled.service")
        systemctl("start", "nibbled.service")


def check_restart_refuses_nobody():
    over = False

    def client(i):
        counts = {}
        while not over:
            status = complete(seed=i)[0]
            counts[status] = counts.get(status, 0) + 1
        return counts

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, i) for i in range(6)]
        pids = {show("MainPID")}
        for _ in range(5):
            time.sleep(0.5)
            systemctl("reset-failed", "nibbled.service")  # the limit of starts is for another check
            assert systemctl("restart", "nibbled.service").returncode == 0
            pids.add(show("MainPID"))
        time.sleep(0.5)
        over = True
        counts = [c.result(HANG_S) for c in clients]
    total = sum(n for c in counts for n in c.values())
    print(f"      ({total} requests over {len(pids) - 1} restarts)")
    return all(set(c) == {200} for c in counts) and len(pids) == 6 and total > 60


def check_clients_queue_while_it_is_down():
    """Connections made between stop and start."""
    systemctl("reset-failed", "nibbled.service")
    systemctl("stop", "nibbled.service")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: complete(seed=i)[0], range(8)))
    return answers == [200] * 8 and active()


def check_stop_drains():
    s, got = stream_of(3000)
    stop = subprocess.Popen(["systemctl", "stop", "nibbled.service"], stderr=subprocess.DEVNULL)
    until(lambda: show("ActiveState"), "deactivating")
    draining = show("StatusText")
    while chunk := s.recv(65536):
        got += chunk
    stop.wait(HANG_S)
    ended = (show("Result"), show("ExecMainStatus"), show("ActiveState"))
    return (b"[DONE]" in got and b'"finish_reason":"length"' in got and "draining: 1 requests" in draining and
            ended == ("success", "0", "inactive") and os.path.exists(SOCKET)) or print(draining, ended, got[-200:])


def check_watchdog_leaves_it_alone():
    drop_in("WatchdogSec=4s")
    systemctl("start", "nibbled.service")
    before = show("NRestarts")
    time.sleep(9)
    return active() and show("NRestarts") == before and complete()[0] == 200


def check_watchdog_restarts_a_hung_daemon():
    pid, before = main_pid(), int(show("NRestarts"))
    os.kill(pid, 19)  # SIGSTOP: it hangs
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(complete)
        restarted = until(lambda: int(show("NRestarts")) > before)
        served = active() and until(lambda: complete()[0], 200) == 200
        try:
            waiting.result(HANG_S)
        except OSError:
            pass  # it had been accepted by the one that hung
    new = main_pid()
    drop_in()
    return restarted and served and new != pid and "Watchdog timeout" in journal()


def check_failed_load_is_not_repeated():
    """No image: exit 66, once for each client that asks, and not again by itself."""
    systemctl("stop", "nibbled.socket", "nibbled.service")
    IMAGE.rename(IMAGE.with_suffix(".away"))
    try:
        r = systemctl("start", "nibbled.service")
        seen = (r.returncode != 0, show("ExecMainStatus"), show("Result"), show("ActiveState"))
        time.sleep(6)  # longer than RestartSec
        again = show("NRestarts")
        said = f"{IMAGE}" in journal("-p", "err", "-n", "5")
    finally:
        IMAGE.with_suffix(".away").rename(IMAGE)
    return (seen == (True, "66", "exit-code", "failed") and again == "0" and said) or print(seen, again, said)


def check_wrong_configuration_is_not_repeated():
    text = CONFIG.read_text()
    CONFIG.write_text(text + "nonsense: 1\n")
    try:
        systemctl("reset-failed", "nibbled.service")
        r = systemctl("start", "nibbled.service")
        seen = (r.returncode != 0, show("ExecMainStatus"), show("ActiveState"))
        time.sleep(6)
        again = show("NRestarts")
        said = "nonsense" in journal("-p", "err", "-n", "5")
    finally:
        CONFIG.write_text(text)
    return (seen == (True, "78", "failed") and again == "0" and said) or print(seen, again, said)


def check_it_recovers_when_repaired():
    systemctl("reset-failed", "nibbled.service", "nibbled.socket")
    return systemctl("start", "nibbled.service").returncode == 0 and complete()[0] == 200


def check_killed_daemon_comes_back():
    before = int(show("NRestarts"))
    os.kill(main_pid(), 9)
    asked = complete()[0]  # waits in the socket's queue meanwhile
    return asked == 200 and int(show("NRestarts")) == before + 1 and active()


def check_clients_cannot_keep_it_starting():
    """A configuration error is met before any client is accepted: clients that knock end at the limit of starts."""
    text = CONFIG.read_text()
    systemctl("stop", "nibbled.service")
    systemctl("reset-failed", "nibbled.service")
    CONFIG.write_text(text + "nonsense: 1\n")
    try:
        for _ in range(20):
            try:
                complete()
            except OSError:
                pass
        starts = journal("-g", "nonsense", "--since", "-10s").count("nonsense")
        seen = show("ActiveState", "nibbled.socket"), show("Result", "nibbled.socket")
    finally:
        CONFIG.write_text(text)
    started = systemctl("reset-failed", "nibbled.service", "nibbled.socket").returncode == 0 and \
        systemctl("restart", "nibbled.service").returncode == 0
    print(f"      ({starts} starts)")
    return (started and 1 < starts <= 5 and seen[0] == "failed" and complete()[0] == 200) or print(seen, started)


def check_stopping_the_socket_removes_it():
    systemctl("stop", "nibbled.socket")
    return not os.path.exists(SOCKET) and active("inactive")


def main():
    checks = [(n[6:].replace("_", " "), f) for n, f in globals().items() if n.startswith("check_")]
    passed = 0
    version = subprocess.run(["systemctl", "--version"], capture_output=True, text=True).stdout.split("\n")[0]
    print(f"on {version}")
    for name, f in checks:
        try:
            ok = bool(f())
        except Exception as e:
            ok = False
            print(f"      {type(e).__name__}: {e}")
        passed += ok
        print("ok   " if ok else "FAIL ", name)
        if not ok:
            print("".join(f"      | {line}\n" for line in journal("-n", "12").splitlines()), end="")
    print(f"{passed} passed, {len(checks) - passed} failed")


main()
