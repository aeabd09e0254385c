"""Starts the real daemon on a small synthetic model and talks to it over its socket."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIB_BUILD", ROOT / "build" / "rel")).resolve()
NIBBLED = BUILD / "nibbled"
NIBBLE = BUILD / "nibble"
HANG_S = 120  # a guard against hangs, not a measure of speed

# An answer that is still running whenever a test looks, and the configuration that has room for it
LONG = {"prompt": "x", "max_tokens": 60000}
LONG_CONFIG = {"engine": {"ctx_tokens": 65536}, "limits": {"answer_bytes": 64 << 20}}


def long_config(**more):
    """LONG_CONFIG with other keys beside it."""
    return {k: {**LONG_CONFIG.get(k, {}), **more.get(k, {})} for k in {*LONG_CONFIG, *more}}


class Connection(http.client.HTTPConnection):
    def __init__(self, path, timeout=HANG_S):
        super().__init__("localhost", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The data of every server-sent event; the last must be [DONE]."""
        data = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        assert data[-1] == "[DONE]", self.body[-300:]
        return [json.loads(d) for d in data[:-1]]


def yaml(config):
    lines = []
    for section, keys in config.items():
        if isinstance(keys, str):
            lines.append(f"{section}: {keys}")
            continue
        lines.append(f"{section}:")
        lines += [f"  {k}: {v}" for k, v in keys.items()]
    return "\n".join(lines) + "\n"


class Daemon:
    def __init__(self, folder, image, env=None, wait=True, launcher=(), **sections):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket = self.folder / "n.sock"
        config = {
            "image": {"path": str(image)},
            "engine": {"threads": 2, "slots": 4, "ctx_tokens": 4096},
            "socket": {"path": str(self.socket)},
            "limits": {"json_bytes": 8 << 20, "body_bytes": 1 << 20, "queue": 8},
        }
        for name, keys in sections.items():
            if isinstance(keys, str):
                config[name] = keys
            else:
                config.setdefault(name, {}).update(keys)
        self.config = self.folder / "nibbled.yaml"
        self.config.write_text(yaml(config))
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*launcher, str(NIBBLED), "--config", str(self.config)],
                stderr=log, stdout=log, env={**os.environ, **(env or {})})
        if wait:
            self.wait_ready()

    def wait_ready(self):
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"exit {self.process.returncode}: {self.log.read_text()}")
            try:
                if self.get("/health").status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError("never ready: " + self.log.read_text())

    def request(self, method, path, body=None, headers=None):
        c = Connection(self.socket)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body)
            if isinstance(body, str):
                body = body.encode()
            given = {"Content-Type": "application/json"} if body is not None else {}
            c.request(method, path, body, {**given, **(headers or {})})
            r = c.getresponse()
            return Answer(r.status, r.headers, r.read())
        finally:
            c.close()

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, **headers):
        return self.request("POST", path, body, headers)

    def chat(self, content="hello", **more):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}
        return self.post("/v1/chat/completions", body)

    def complete(self, prompt="hello", **more):
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, **more})

    def connect(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(HANG_S)
        s.connect(str(self.socket))
        return s

    def raw(self, data):
        """Sends bytes, reads to the end of the connection."""
        got = b""
        with self.connect() as s:
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                while chunk := s.recv(65536):
                    got += chunk
            except (BrokenPipeError, ConnectionResetError):
                pass
        return got

    def open_stream(self, path, body):
        """A raw connection with a request on it; nothing is read yet."""
        data = json.dumps(body).encode()
        s = self.connect()
        s.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                  b"Content-Length: %d\r\n\r\n" % (path.encode(), len(data)) + data)
        return s

    def metrics(self):
        values = {}
        for line in self.get("/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name.removeprefix("nibbled_")] = float(value)
        return values

    def wait_metric(self, name, wanted):
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            value = self.metrics()[name]
            if wanted(value) if callable(wanted) else value == wanted:
                return value
            time.sleep(0.02)
        raise AssertionError(f"{name} is {value}")

    def check_ledger(self):
        """Nothing open, and every request accounted for, in the front and in the scheduler."""
        self.wait_metric("requests_active", 0)
        self.wait_metric("sched_running", 0)
        self.wait_metric("kv_pages_used", 0)  # kept until the last step that reads them is over
        m = self.metrics()
        ended = sum(m[f"requests_{k}_total"] for k in ("finished", "refused", "cancelled", "failed"))
        assert m["requests_received_total"] == ended, m
        ended = sum(m[f"sched_{k}_total"] for k in ("finished", "refused", "cancelled", "failed"))
        assert m["sched_submitted_total"] == ended, m
        return m

    def stop(self, code=0):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HANG_S) == code, self.log.read_text()
        text = self.log.read_text()
        for bad in ("ledger is off", "Sanitizer", "runtime error", "invariant"):
            assert bad not in text, text
        return text

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def synth(folder, shape="nano", seed=1):
    path = pathlib.Path(folder) / f"{shape}-{seed}.nib"
    subprocess.run([NIBBLE, "synth", shape, path, "--seed", str(seed)], check=True,
                   stdout=subprocess.DEVNULL)
    return path


def fields():
    """The daemon's own table of request fields."""
    return json.loads(subprocess.run([NIBBLED, "--print-fields"], check=True,
                                     capture_output=True).stdout)


def specials(daemon):
    """Names and ids of the special tokens."""
    vocab = daemon.get("/v1/models").json["data"][0]["vocab"]
    found = {}
    for id in range(vocab):
        text = daemon.post("/detokenize", {"tokens": [id]}).json["text"]
        if re.fullmatch(r"<\|[a-z]+\|>", text):
            found[text] = id
    return found


def lived(daemon):
    """The daemon for a fixture of a whole file; its ledger and its log are checked at the end."""
    try:
        yield daemon
        daemon.check_ledger()
        daemon.stop()
    finally:
        daemon.kill()
