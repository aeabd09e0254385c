"""Many clients at once: concurrency, the queue, cancel, per-user limits."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading

import pytest

import daemon as d


def test_sixteen_streaming_clients(start, endless):
    """Sixteen streams over four slots: each gets exactly what it gets alone."""
    nibbled = start(limits={"queue": 16})

    def ask(i):
        r = nibbled.chat(f"client {i}", seed=i, max_tokens=30 + i, stream=True, logit_bias=endless,
                         stream_options={"include_usage": True})
        assert r.status == 200, r.body
        events = r.events
        text = "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e["choices"])
        assert events[-1]["usage"]["completion_tokens"] == 30 + i
        return text

    alone = [ask(i) for i in range(16)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(16)))
    assert together == alone
    m = nibbled.check_ledger()
    assert m["requests_finished_total"] == 32
    nibbled.stop()


def read_some(s, wanted=1):
    got = b""
    while got.count(b"data: ") < wanted:
        chunk = s.recv(65536)
        assert chunk
        got += chunk
    return got


def test_disconnect_cancels(start, endless):
    """Streaming, waiting for a whole answer, and waiting in the queue: a client that goes away frees
    its slot."""
    nibbled = start(**d.long_config(engine={"slots": 1}))
    long = {**d.LONG, "logit_bias": endless}
    streaming = nibbled.open_stream("/v1/completions", {**long, "stream": True})
    read_some(streaming)
    queued = nibbled.open_stream("/v1/completions", {**long, "stream": True})
    nibbled.wait_metric("sched_queued", 1)
    queued.close()
    nibbled.wait_metric("sched_queued", 0)
    streaming.close()
    nibbled.wait_metric("sched_running", 0)
    whole = nibbled.open_stream("/v1/completions", long)
    nibbled.wait_metric("sched_running", 1)
    whole.close()
    nibbled.wait_metric("sched_running", 0)
    m = nibbled.check_ledger()
    assert m["requests_cancelled_total"] == 3 and m["sched_cancelled_total"] == 3
    assert m["tokens_total"] < 3 * 60000
    nibbled.stop()


def test_cancel_at_many_points(start, endless):
    """Clients that leave after 0..19 events; the pages all come back."""
    nibbled = start(**d.LONG_CONFIG)
    for n in range(20):
        s = nibbled.open_stream("/v1/completions", {**d.LONG, "prompt": "x" * (1 + n * 20),
                                                    "logit_bias": endless, "stream": True})
        if n:
            read_some(s, n)
        s.close()
    m = nibbled.check_ledger()
    # the first may be gone before its request was read
    assert m["requests_cancelled_total"] == m["requests_received_total"] in (19, 20), m
    nibbled.stop()


def test_half_close_still_gets_its_answer(start):
    nibbled = start()
    with nibbled.open_stream("/v1/completions", {"prompt": "x" * 300, "max_tokens": 200}) as s:
        s.shutdown(d.socket.SHUT_WR)
        got = b""
        while chunk := s.recv(65536):
            got += chunk
    assert got.startswith(b"HTTP/1.1 200")
    nibbled.check_ledger()
    nibbled.stop()


def test_queue_full(start, endless):
    nibbled = start(**d.long_config(engine={"slots": 1}, limits={"queue": 2}))
    long = {**d.LONG, "logit_bias": endless, "stream": True}
    held = [nibbled.open_stream("/v1/completions", long) for _ in range(3)]
    nibbled.wait_metric("sched_queued", 2)
    r = nibbled.complete()
    assert r.status == 429 and int(r.headers["Retry-After"]) >= 1
    assert r.error["code"] == "queue_full" and "2 queue places" in r.error["message"]
    assert nibbled.get("/health").status == 200
    held.pop().close()
    nibbled.wait_metric("sched_queued", 1)
    fourth = nibbled.open_stream("/v1/completions", long)
    nibbled.wait_metric("sched_queued", 2)
    for s in held + [fourth]:
        s.close()
    m = nibbled.check_ledger()
    assert m["requests_refused_total"] == 1 and m["requests_cancelled_total"] == 4
    nibbled.stop()


def test_health_says_stalled(start):
    """One step that takes longer than the bound shows; the daemon is fine again after it."""
    nibbled = start(engine={"step_rows": 2048}, time={"stall_ms_max": 10})
    seen = set()
    for _ in range(20):
        with nibbled.open_stream("/v1/completions", {"prompt": "x" * 3000, "max_tokens": 1}) as s:
            s.setblocking(False)
            while True:
                health = nibbled.get("/health")
                seen.add((health.status, health.json["status"]))
                try:
                    assert s.recv(1)
                    break
                except BlockingIOError:
                    pass
        if (503, "stalled") in seen:
            break
    assert (503, "stalled") in seen
    nibbled.wait_metric("requests_active", 0)
    assert nibbled.get("/health").json["status"] == "ready"
    nibbled.stop()


def test_answer_longer_than_its_buffer(start, endless):
    nibbled = start(limits={"answer_bytes": 16384})
    r = nibbled.complete(max_tokens=4000, logit_bias=endless, logprobs=5, seed=1)
    choice = r.json["choices"][0]
    assert choice["finish_reason"] == "length"
    counts = {len(v) for v in choice["logprobs"].values()}
    assert len(counts) == 1 and 0 < counts.pop() < 4000
    nibbled.check_ledger()
    nibbled.stop()


AS_NOBODY = 65534


def as_user(nibbled, uid, body, path="/v1/completions"):
    """Status and body of a request by another user."""
    code = ("import http.client, os, socket; os.setgroups([]); os.setgid(%d); os.setuid(%d)\n"
            "c = http.client.HTTPConnection('x'); s = socket.socket(socket.AF_UNIX); s.connect(%r); c.sock = s\n"
            "c.request('POST', %r, %r, {'Content-Type': 'application/json'}); r = c.getresponse()\n"
            "print(r.status); print(r.read().decode())"
            % (uid, uid, str(nibbled.socket), path, json.dumps(body)))
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    status, _, body = out.partition("\n")
    return int(status), json.loads(body)


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become another user")


def open_to_all(nibbled):
    """The test's folders let other users through to the socket."""
    for folder in [nibbled.folder, *nibbled.folder.parents]:
        if str(folder).startswith("/tmp/"):
            os.chmod(folder, 0o755)


@needs_root
def test_peer_rules(start):
    nibbled = start(socket={"mode": "0666"}, peers="[{uid: 0}]")
    open_to_all(nibbled)
    assert nibbled.complete().status == 200
    status, body = as_user(nibbled, AS_NOBODY, {"prompt": "x", "max_tokens": 1})
    assert status == 403 and body["error"]["code"] == "peer_refused" and "65534" in body["error"]["message"]
    m = nibbled.check_ledger()
    assert m["peers_refused_total"] == 1
    nibbled.stop()


@needs_root
def test_peer_limits(start, endless):
    nibbled = start(socket={"mode": "0666"},
                    peers="[{uid: 65534, requests: 1, ctx_tokens: 100}, {any: true}]")
    open_to_all(nibbled)
    small = {"prompt": "x", "max_tokens": 1}
    assert as_user(nibbled, AS_NOBODY, small)[0] == 200
    status, body = as_user(nibbled, AS_NOBODY, {"prompt": "x" * 90, "max_tokens": 20})
    assert status == 400 and "100 tokens" in body["error"]["message"]
    # one request of that user runs; a second is refused, another user is not
    long = {"prompt": "x", "max_tokens": 99, "logit_bias": endless}
    results = []
    threads = [threading.Thread(target=lambda: results.append(as_user(nibbled, AS_NOBODY, long)[0]))
               for _ in range(6)]
    for t in threads:
        t.start()
    assert nibbled.complete().status == 200
    for t in threads:
        t.join()
    assert set(results) <= {200, 429} and 200 in results
    nibbled.check_ledger()
    nibbled.stop()


@needs_root
def test_peer_denied_first(start):
    nibbled = start(socket={"mode": "0666"}, peers="[{gid: 65534, deny: true}, {any: true}]")
    open_to_all(nibbled)
    assert as_user(nibbled, AS_NOBODY, {"prompt": "x"})[0] == 403
    assert nibbled.complete().status == 200
    nibbled.stop()
