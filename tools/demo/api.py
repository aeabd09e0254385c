"""A daemon for the demo's questions, over its UNIX socket."""
import http.client
import json
import os
import pathlib
import socket
import subprocess
import time

BUILD = pathlib.Path(os.environ.get("NIB_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build" / "rel"))


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=600)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(600)
        self.sock.connect(self.path)


def post(path, route, body):
    connection = Connection(path)
    try:
        connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        read = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{route}: {answer.status} {read}")
    return read


class Daemon:
    """nibbled on an image, with one current date (or none), in a folder of its own."""

    def __init__(self, folder, image, date="", device="cpu", slots=16, kv="bf16"):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "n.sock"
        config = folder / "nibbled.yaml"
        config.write_text(f"image:\n  path: {pathlib.Path(image).resolve()}\nengine:\n  device: {device}\n  ctx_tokens: 2048\n"
                          f"  slots: {slots}\nmemory:\n  kv: {kv}\nsocket:\n  path: {self.socket}\nlimits:\n  queue: 64\n"
                          f'defaults:\n  date: "{date}"\nlog:\n  requests: false\n')
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen([str(BUILD / "nibbled"), "--config", str(config)], stdout=self.log, stderr=self.log)
        end = time.monotonic() + 120
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError("nibbled did not start: " + (folder / "log").read_text())
            time.sleep(0.05)

    def ready(self):
        try:
            connection = Connection(self.socket)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
