"""Lengths, framing and slow clients (reliability classes: believed lengths, smuggling, slowloris)."""

import re
import socket
import time

import pytest

import daemon as d

BODY = b'{"prompt":"x","max_tokens":1}'


def post(*headers, body=BODY, line=b"POST /v1/completions HTTP/1.1"):
    return b"\r\n".join([line, b"Host: x", b"Content-Type: application/json", *headers]) + b"\r\n\r\n" + body


def statuses(got):
    """Status codes of the responses on a connection."""
    return [int(n) for n in re.findall(rb"HTTP/1\.[01] (\d{3}) ", got)]


@pytest.mark.parametrize("length", [b"", b"-1", b"+5", b"5, 5", b"0x10", b"9" * 18, b"9" * 40, b"5 5",
                                    b"9223372036854775808", b"18446744073709551621", b"29abc"])
def test_odd_content_length(nibbled, length):
    got = nibbled.raw(post(b"Content-Length: " + length) + post(b"Content-Length: %d" % len(BODY)))
    # libmicrohttpd 0.9.75 sends the head of its own refusals twice, and closes
    assert len(set(statuses(got))) == 1 and statuses(got)[0] in (400, 413), got


def test_two_content_lengths(nibbled):
    n = b"%d" % len(BODY)
    for pair in ((n, b"0"), (b"0", n), (n, n)):
        got = nibbled.raw(post(*(b"Content-Length: " + p for p in pair)) + post(b"Content-Length: " + n))
        assert statuses(got) == [400], got


def test_length_and_chunked(nibbled):
    chunked = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    for headers in ((b"Content-Length: 5", b"Transfer-Encoding: chunked"),
                    (b"Transfer-Encoding: chunked", b"Content-Length: 5")):
        got = nibbled.raw(post(*headers, body=chunked) + post(b"Content-Length: %d" % len(BODY)))
        assert statuses(got) == [400], got


def test_transfer_encoding(nibbled):
    chunked = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
    assert statuses(nibbled.raw(post(b"Transfer-Encoding: chunked", body=chunked)))[0] == 200
    for name in (b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked"):
        got = nibbled.raw(post(b"Transfer-Encoding: " + name, body=chunked))
        assert statuses(got) in ([501], [400]), (name, got)


def test_trailers_are_dropped(nibbled):
    chunked = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\nX-Trailer: 1\r\n\r\n"
    assert statuses(nibbled.raw(post(b"Transfer-Encoding: chunked", body=chunked)))[0] == 200


@pytest.mark.parametrize("size", [b"-1", b"ffffffffffffffff", b"10000000000000000", b"zz", b"", b"0x5"])
def test_odd_chunk_size(nibbled, size):
    got = nibbled.raw(post(b"Transfer-Encoding: chunked", body=size + b"\r\n" + BODY + b"\r\n0\r\n\r\n"))
    assert not any(s == 200 for s in statuses(got)), got


def test_head_flood(nibbled):
    flood = b"".join(b"X-%d: %s\r\n" % (i, b"y" * 100) for i in range(2000))
    got = nibbled.raw(b"GET /health HTTP/1.1\r\nHost: x\r\n" + flood + b"\r\n")
    assert all(s >= 400 for s in statuses(got)), got[:200]
    got = nibbled.raw(b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert all(s >= 400 for s in statuses(got)), got[:200]
    assert nibbled.get("/health").status == 200


def test_two_hosts(nibbled):
    assert statuses(nibbled.raw(b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")) == [400]


def test_pipelined_and_kept_alive(nibbled):
    one = post(b"Content-Length: %d" % len(BODY))
    assert statuses(nibbled.raw(one * 3)) == [200] * 3


def test_request_split_at_every_byte(nibbled):
    data = post(b"Content-Length: %d" % len(BODY), b"Connection: close")
    for at in range(1, len(data)):
        with nibbled.connect() as s:
            s.sendall(data[:at])
            time.sleep(0.0005)
            s.sendall(data[at:])
            got = b""
            while chunk := s.recv(65536):
                got += chunk
        assert statuses(got) == [200], (at, got)


def test_expect_continue(nibbled):
    with nibbled.connect() as s:
        s.sendall(post(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue", body=b""))
        assert s.recv(1000).startswith(b"HTTP/1.1 100")
        s.sendall(BODY)
        assert s.recv(100000).startswith(b"HTTP/1.1 200")


def closed_by_daemon(s):
    """Waits until the daemon ends the connection; returns what it sent."""
    got = b""
    try:
        while chunk := s.recv(65536):
            got += chunk
    except ConnectionResetError:
        pass
    return got


def test_deadlines_are_totals(start):
    """Clients that never stop sending single bytes are cut all the same."""
    nibbled = start(time={"head_ms_max": 300, "body_ms_max": 300, "idle_ms_max": 300})
    starts = {"line": b"P", "head": b"POST /v1/completions HTTP/1.1\r\nX: ",
              "body": post(b"Content-Length: 1000", body=b"")}
    for name, data in starts.items():
        with nibbled.connect() as s:
            s.sendall(data)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(1000):  # far more than the deadline
                    s.sendall(b"a")
                    time.sleep(0.01)
        assert nibbled.get("/health").status == 200, name
    with nibbled.connect() as s:
        assert closed_by_daemon(s) == b""
    nibbled.wait_metric("deadlines_total", lambda n: n >= 2)
    nibbled.check_ledger()
    nibbled.stop()


def test_many_dribbling_clients_do_not_stop_others(start):
    nibbled = start(limits={"connections": 40, "bodies": 30}, time={"body_ms_max": 60000})
    slow = []
    for _ in range(20):
        s = nibbled.connect()
        s.sendall(post(b"Content-Length: 100000", body=b"{"))
        slow.append(s)
    assert nibbled.complete().status == 200
    for s in slow:
        s.close()
    nibbled.wait_metric("connections", 1)
    m = nibbled.check_ledger()
    assert m["requests_cancelled_total"] == 20
    nibbled.stop()


def test_bodies_at_once(start):
    """Large bodies need a place in the pool; small ones do not."""
    nibbled = start(limits={"bodies": 2})
    slow = []
    for _ in range(2):
        s = nibbled.connect()
        s.sendall(post(b"Content-Length: 100000", body=b"{" * 20000))
        slow.append(s)
    nibbled.wait_metric("requests_active", 2)
    assert nibbled.complete().status == 200
    time.sleep(0.1)  # the two are read by now
    r = nibbled.complete(metadata="x" * 20000)
    assert r.status == 503 and r.headers["Retry-After"] == "1"
    for s in slow:
        s.close()
    nibbled.wait_metric("requests_active", 0)
    assert nibbled.complete().status == 200
    nibbled.stop()


def test_slow_reader_is_cut(start, endless):
    """A client that asks for a stream and does not read it loses it, and its slot is free again."""
    nibbled = start(limits={"answer_bytes": 16384}, time={"write_ms_max": 500})
    s = nibbled.connect()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = d.json.dumps({"prompt": "x", "max_tokens": 4000, "stream": True, "logprobs": 20,
                         "logit_bias": endless}).encode()
    s.sendall(post(b"Content-Length: %d" % len(data), body=data))
    nibbled.wait_metric("slow_readers_total", 1)
    s.close()
    m = nibbled.check_ledger()
    assert m["requests_cancelled_total"] == 1
    nibbled.stop()
