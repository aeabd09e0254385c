"""After the seal nothing of ours allocates, maps memory or opens a file: the stepper and the engine's threads not at all,
the front only inside libmicrohttpd, and that does not grow."""

import contextlib
import ctypes
import mmap
import os
import shlex
import subprocess
import threading
import time

import pytest

import daemon as d
from api_test import HISTORY, TOOLS
from life_test import Notify


class Counts(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ulonglong) for n in
                ("armed", "other_threads", "main_program", "main_http", "main_rest", "http_bytes",
                 "maps", "files", "driver")]
    _fields_.append(("last_rest", ctypes.c_char * 200))


def read_all(notify):
    """As systemd does: who notifies waits when its messages are not read."""
    with contextlib.suppress(OSError):
        while True:
            notify.until("never said")


@pytest.fixture
def counted(tmp_path, start, monkeypatch):
    """A daemon of the release build (a sanitizer has its own allocator) under the counter, and under a watchdog."""
    program = d.ROOT / "build" / "rel" / "nibbled"
    if not program.exists():
        pytest.skip("the release build is not there")
    monkeypatch.setattr(d, "NIBBLED", program)
    library = tmp_path / "noalloc.so"
    subprocess.run([*shlex.split(os.environ.get("CC", "cc")), "-O1", "-shared", "-fPIC", "-o", library,
                    d.ROOT / "tests" / "wire" / "noalloc.c", "-ldl"], check=True)
    shared = tmp_path / "counts"
    shared.write_bytes(bytes(ctypes.sizeof(Counts)))
    with open(shared, "r+b") as f:
        counts = Counts.from_buffer(mmap.mmap(f.fileno(), ctypes.sizeof(Counts)))
    counts.armed = 1
    notify = Notify(tmp_path)
    threading.Thread(target=read_all, args=[notify], daemon=True).start()
    nibbled = start(env={"LD_PRELOAD": str(library), "NIB_ALLOC_FILE": str(shared), "WATCHDOG_USEC": "400000",
                         **notify.env},
                    **d.long_config(limits={"queue": 2}), lookup={"draft_tokens": 15})
    counts.armed = 0
    boot = {n: getattr(counts, n) for n, _ in Counts._fields_}
    print(boot)
    for name in boot:
        setattr(counts, name, type(boot[name])())
    # the counter sees what boot takes, on both threads
    assert all(boot[n] > 0 for n in ("other_threads", "main_http", "main_rest", "maps", "files")), boot
    return nibbled, counts, notify


def load(nibbled, endless):
    """A bit of everything, refusals and a client that leaves too."""
    nibbled.chat("hello", seed=1, temperature=0.7, stop=["zz"], logit_bias={"5": 1})
    nibbled.chat("hello", stream=True, logprobs=True, top_logprobs=5, max_tokens=30)
    nibbled.post("/v1/chat/completions",
                 {"messages": HISTORY, "tools": TOOLS, "max_tokens": 10, "stream": True})
    nibbled.complete("x" * 500, max_tokens=40, logprobs=5, top_k=5, top_p=0.5, min_p=0.1,
                     repetition_penalty=1.1, frequency_penalty=0.1)
    nibbled.complete("a" * 20, max_tokens=60, temperature=0, logit_bias={"97": 99})
    nibbled.post("/tokenize", {"text": "word " * 10000})
    nibbled.post("/detokenize", {"tokens": list(range(256))})
    nibbled.complete("x" * 70000)
    nibbled.post("/v1/completions", "{" * 40)
    nibbled.post("/v1/completions", '{"metadata":[%s1]}' % ("[]," * 300000))
    nibbled.get("/nothing")
    nibbled.get("/metrics")
    nibbled.raw(b"nonsense\r\n\r\n")
    long = {**d.LONG, "logit_bias": endless, "stream": True}
    held = [nibbled.open_stream("/v1/completions", long) for _ in range(6)]
    nibbled.wait_metric("requests_active", 6)
    assert nibbled.complete().status == 429
    for s in held:
        s.close()
    nibbled.wait_metric("requests_active", 0)
    end = time.monotonic() + d.HANG_S
    while nibbled.complete(max_tokens=1).status == 429:  # one that is served came after those that left
        assert time.monotonic() < end


def responses(nibbled):
    return sum(v for k, v in nibbled.metrics().items() if k.startswith("responses_total"))


def threads(nibbled):
    tasks = f"/proc/{nibbled.process.pid}/task"
    return sorted(open(f"{tasks}/{t}/comm").read().strip() for t in os.listdir(tasks))


def test_nothing_allocates_after_the_seal(counted, endless):
    nibbled, counts, notify = counted
    assert threads(nibbled) == ["nib-stepper", "nib-worker", "nibbled"]
    load(nibbled, endless)  # the C library fills its own caches at first use
    before = responses(nibbled)
    notify.seen.clear()
    counts.armed = 1
    for _ in range(12):
        load(nibbled, endless)
    counts.armed = 0
    seen = {n: getattr(counts, n) for n, _ in Counts._fields_}
    seen["responses"] = responses(nibbled) - before
    print(seen)
    assert seen["responses"] >= 200
    assert "WATCHDOG=1" in notify.seen  # telling systemd is a part of it
    assert counts.main_http > 0  # the counter counts
    assert counts.other_threads == 0, seen
    assert counts.main_program == 0, seen
    assert counts.main_rest == 0, seen
    assert counts.maps == 0 and counts.files == 0, seen
    assert counts.main_http <= 16 * seen["responses"], seen
    assert nibbled.check_ledger()["draft_accepted_total"] > 0
    nibbled.stop()


def resident_kib(nibbled):
    status = open(f"/proc/{nibbled.process.pid}/status").read()
    return int(status.split("VmRSS:")[1].split()[0])


def open_files(nibbled):
    """Descriptors once every client's connection is closed: the same number for a while."""
    seen = []
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        seen.append(len(os.listdir(f"/proc/{nibbled.process.pid}/fd")))
        time.sleep(0.05)
    return seen[-1]


def test_memory_and_descriptors_do_not_grow(start, endless):
    nibbled = start(**d.long_config(limits={"queue": 2}), lookup={"draft_tokens": 15})
    for _ in range(3):
        load(nibbled, endless)
    files = open_files(nibbled)
    memory = resident_kib(nibbled)
    early = responses(nibbled)
    for _ in range(25):
        load(nibbled, endless)
    print(f"{memory} KiB after {early:.0f} responses, {resident_kib(nibbled)} KiB after {responses(nibbled):.0f}")
    assert open_files(nibbled) == files
    slack = 1024 if "/san" not in str(d.BUILD) else 256 * 1024  # a sanitizer keeps what was freed
    assert resident_kib(nibbled) - memory < slack
    nibbled.stop()
