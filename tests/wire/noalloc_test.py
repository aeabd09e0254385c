"""After the seal nothing of ours allocates: the stepper and the engine's threads not at all, the
front only inside libmicrohttpd, and that does not grow."""

import ctypes
import mmap
import os
import subprocess
import time

import pytest

import daemon as d
from api_test import HISTORY, TOOLS


class Counts(ctypes.Structure):
    _fields_ = [(n, ctypes.c_ulonglong) for n in
                ("armed", "other_threads", "main_program", "main_http", "main_rest", "http_bytes")]
    _fields_.append(("last_rest", ctypes.c_char * 200))


@pytest.fixture
def counted(tmp_path, start, monkeypatch):
    """A daemon of the release build (a sanitizer has its own allocator) under the counter."""
    program = d.ROOT / "build" / "rel" / "nibbled"
    if not program.exists():
        pytest.skip("the release build is not there")
    monkeypatch.setattr(d, "NIBBLED", program)
    library = tmp_path / "noalloc.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-o", library,
                    d.ROOT / "tests" / "wire" / "noalloc.c", "-ldl"], check=True)
    shared = tmp_path / "counts"
    shared.write_bytes(bytes(ctypes.sizeof(Counts)))
    with open(shared, "r+b") as f:
        counts = Counts.from_buffer(mmap.mmap(f.fileno(), ctypes.sizeof(Counts)))
    nibbled = start(env={"LD_PRELOAD": str(library), "NIB_ALLOC_FILE": str(shared)},
                    **d.long_config(limits={"queue": 2}))
    return nibbled, counts


def load(nibbled, endless):
    """A bit of everything, refusals and a client that leaves too."""
    nibbled.chat("hello", seed=1, temperature=0.7, stop=["zz"], logit_bias={"5": 1})
    nibbled.chat("hello", stream=True, logprobs=True, top_logprobs=5, max_tokens=30)
    nibbled.post("/v1/chat/completions",
                 {"messages": HISTORY, "tools": TOOLS, "max_tokens": 10, "stream": True})
    nibbled.complete("x" * 500, max_tokens=40, logprobs=5, top_k=5, top_p=0.5, min_p=0.1,
                     repetition_penalty=1.1, frequency_penalty=0.1)
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


def test_nothing_allocates_after_the_seal(counted, endless):
    nibbled, counts = counted
    load(nibbled, endless)  # the C library fills its own caches at first use
    counts.armed = 1
    for _ in range(5):
        load(nibbled, endless)
    counts.armed = 0
    seen = {n: getattr(counts, n) for n, _ in Counts._fields_}
    print(seen)
    assert counts.main_http > 0  # the counter counts
    assert counts.other_threads == 0, seen
    assert counts.main_program == 0, seen
    assert counts.main_rest == 0, seen
    nibbled.check_ledger()
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
    nibbled = start(**d.long_config(limits={"queue": 2}))
    for _ in range(3):
        load(nibbled, endless)
    files = open_files(nibbled)
    memory = resident_kib(nibbled)
    for _ in range(10):
        load(nibbled, endless)
    assert open_files(nibbled) == files
    slack = 1024 if "/san" not in str(d.BUILD) else 256 * 1024  # a sanitizer keeps what was freed
    assert resident_kib(nibbled) - memory < slack
    nibbled.stop()
