"""`nibble bench serve`: loads on a running daemon and on its own, its figures, its files, and what may go wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree as xml

import pytest

import daemon as d

SMALL = ("--prompt", "20", "--tokens", "8", "--requests", "12", "--threads", "1", "--device", "cpu")
FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
H200 = {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / "h200.json")}
needs_rows = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


def bench(*args, env=None):
    done = subprocess.run([d.NIBBLE, "bench", "serve", *map(str, args)], capture_output=True, text=True, cwd=d.ROOT,
                          timeout=d.HANG_S, env={**os.environ, **(env or {})})
    for bad in ("Sanitizer", "runtime error", "ledger is off", "invariant"):
        assert bad not in done.stderr, done.stderr
    return done


def check_spread(spread, count):
    assert spread["count"] == count
    assert 0 <= spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"]


def check_point(point, requests, prompt, tokens):
    """A load without errors: every token counted, every time sane."""
    assert point["sent"] == point["finished"] == requests and not any(point["errors"].values())
    assert point["first_error"] == "" and point["waited"] == 0 and point["tokens_cached"] == 0
    assert point["tokens_out_s"] == pytest.approx(requests * tokens / point["seconds"])
    assert point["tokens_in_s"] == pytest.approx(requests * prompt / point["seconds"])
    assert point["requests_s"] == pytest.approx(requests / point["seconds"])
    first, whole = point["first_text_ms"], point["whole_ms"]
    check_spread(first, requests)
    check_spread(whole, requests)
    check_spread(point["token_ms"], requests)  # 0 where a whole answer of so small a model comes at once
    assert 0 < first["p50"] <= whole["p50"] and first["max"] <= whole["max"] <= point["seconds"] * 1e3 * 1.001
    gaps = point["between_texts_ms"]  # at most one less than its tokens a request
    assert 0 < gaps["count"] <= requests * (tokens - 1) and 0 <= gaps["p50"] <= gaps["max"] <= whole["max"]
    each = point["between_tokens_ms"]
    assert each["count"] == gaps["count"] and each["p50"] <= gaps["p50"] and each["p99"] <= gaps["p99"]
    assert point["cpu_us_token"] >= point["cpu_front_us_token"] > 0


def texts(svg):
    return [e.text for e in svg.iter("{http://www.w3.org/2000/svg}text")]


def check_plot(path, loads, x_title):
    svg = xml.parse(path).getroot()
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    lines = svg.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 6  # three percentiles in two panels
    for i, line in enumerate(lines):
        points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
        # texts of such a small model may come together, and no time is no point on a logarithmic axis
        assert len(points) == loads or (i >= 3 and len(points) < loads)
        assert all(0 < x < float(svg.get("width")) and 0 < y < float(svg.get("height")) for x, y in points)
        assert [x for x, _ in points] == sorted({x for x, _ in points})
    assert x_title in texts(svg)


def test_clients_on_a_daemon_of_its_own(image, tmp_path):
    files = tmp_path / "a.json", tmp_path / "a.svg"
    done = bench(image, "--clients", "1,3", *SMALL, "--json", files[0], "--plot", files[1])
    assert done.returncode == 0, done.stderr
    report = json.loads(files[0].read_text())
    assert (report["model"], report["slots"], report["context_tokens"]) == ("nano", 3, 28)
    assert (report["prompt_tokens"], report["answer_tokens"], report["seed"]) == (20, 8, 1)
    assert [p["clients"] for p in report["points"]] == [1, 3]
    for point in report["points"]:
        check_point(point, 12, 20, 8)
    check_plot(files[1], 2, "clients")
    shown = [line.split()[:3] for line in done.stdout.splitlines()[3:]]
    assert shown == [["1", "12", "0"], ["3", "12", "0"]]
    assert "stopped: 24 requests, 24 finished" in done.stderr


def test_long_prompts_beside(image, tmp_path):
    files = tmp_path / "a.json", tmp_path / "a.svg"
    done = bench(image, "--clients", "1,2", "--beside", "300", *SMALL, "--json", files[0], "--plot", files[1])
    assert done.returncode == 0, done.stderr
    report = json.loads(files[0].read_text())
    assert (report["slots"], report["context_tokens"]) == (3, 301)
    points = report["points"]
    assert [(p["clients"], p["beside"] is None) for p in points] == [(1, True), (1, False), (2, True), (2, False)]
    for p in points:
        check_point(p, 12, 20, 8)
    for p in points[1::2]:
        assert p["beside"]["prompt_tokens"] == 300 and p["beside"]["errors"] == 0
        if p["beside"]["whole_ms"]:  # at least one ended before the load did
            check_spread(p["beside"]["whole_ms"], p["beside"]["whole_ms"]["count"])
    assert done.stdout.count("beside prompts of 300 tokens") == 2
    check_plot(files[1], 2, "clients")


def test_known_prompts_are_told(start):
    daemon = start()
    long = ("--socket", daemon.socket, "--prompt", "400", "--tokens", "4", "--requests", "2,2", "--clients", "1,2")
    first, second = bench(*long), bench(*long)
    assert "were known from prompts before" not in first.stdout  # no prompt comes twice
    known = sum(map(int, re.findall(r"(\d+) of 800 prompt tokens were known", second.stdout)))
    assert known >= 4 * 256, second.stdout
    assert "were known" not in bench(*long, "--seed", "2").stdout


def test_arrivals_on_a_running_daemon(nibbled, tmp_path):
    files = tmp_path / "a.json", tmp_path / "a.svg"
    before = nibbled.metrics()
    done = bench("--socket", nibbled.socket, "--rates", "20,50,400", *SMALL, "--json", files[0], "--plot", files[1])
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(files[0].read_text())
    assert [p["rate_s"] for p in report["points"]] == [20, 50, 400]
    check_plot(files[1], 3, "requests a second")
    for point in report["points"]:
        assert point["sent"] == 12 == point["finished"] + sum(point["errors"].values())
    check_point(report["points"][0], 12, 20, 8)
    finished = sum(p["finished"] for p in report["points"])
    after = nibbled.check_ledger()
    assert after["requests_finished_total"] - before["requests_finished_total"] == finished
    assert after["answer_tokens_total"] - before["answer_tokens_total"] == finished * 8


@needs_rows
def test_a_shape_needs_no_image(tmp_path):
    path = tmp_path / "a.json"
    shape = ("--shape", "nano", "--memory-limit", "1280M", "--requests", "3", "--prompt", "20", "--tokens", "8")
    done = bench(*shape, "--json", path, env=H200)
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["row"] == "sm90"
    check_point(report["points"][0], 3, 20, 8)
    none = bench(*shape, "--device", "cpu", env=H200)
    assert none.returncode == 1 and "made-up weights run on a GPU only" in none.stderr


def test_refusals_are_counted(start):
    full = start(engine={"slots": 1, "ctx_tokens": 512}, limits={"queue": 1})
    path = full.folder / "a.json"
    done = bench("--socket", full.socket, "--clients", "8", "--prompt", "8", "--tokens", "500", "--requests", "40",
                 "--json", path)
    assert done.returncode == 0, done.stderr
    point = json.loads(path.read_text())["points"][0]
    assert point["finished"] > 0 and point["errors"]["refused"] > 0 and "queue" in point["first_error"]
    assert point["whole_ms"]["count"] == point["finished"]
    assert f"{point['errors']['refused']} refused" in done.stdout
    full.check_ledger()
    full.stop()


def test_more_arrivals_than_connections(image, tmp_path):
    """They come faster than the daemon takes connections, and wait for a free one of 256."""
    done = bench(image, "--rates", "100000", "--prompt", "4", "--tokens", "30", "--requests", "400", "--slots", "4",
                 "--threads", "1", "--device", "cpu", "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    point = json.loads((tmp_path / "a.json").read_text())["points"][0]
    assert 0 < point["waited"] <= 400 - 256 and f"{point['waited']} requests found all 256 connections busy" in done.stdout
    assert point["finished"] == 400 and point["whole_ms"]["max"] > 0, point


def test_nobody_there(tmp_path):
    done = bench("--socket", tmp_path / "none.sock", "--json", tmp_path / "a.json")
    assert done.returncode == 1 and "no nibbled answers on" in done.stderr and done.stdout == ""
    assert not (tmp_path / "a.json").exists()


def test_a_daemon_that_dies_in_the_middle(start, tmp_path):
    daemon = start(**d.LONG_CONFIG)
    args = ["--socket", daemon.socket, "--clients", "2", "--prompt", "4", "--tokens", "60000", "--requests", "9"]
    run = subprocess.Popen([d.NIBBLE, "bench", "serve", *map(str, args), "--json", tmp_path / "a.json"],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    daemon.wait_metric("sched_running", 2)
    daemon.kill()
    out, err = run.communicate(timeout=d.HANG_S)
    assert run.returncode == 1 and "no nibbled answers on" in err, err
    point = json.loads((tmp_path / "a.json").read_text())["points"][0]
    # its listening socket may outlive its connections by a moment, and take others
    assert point["sent"] == point["errors"]["broken"] >= 2 and point["finished"] == 0
    assert point["whole_ms"] is None and f"{point['sent']} broken" in out


def test_an_interrupt_ends_it_and_its_daemon(image):
    run = subprocess.Popen([d.NIBBLE, "bench", "serve", image, "--tokens", "60000", "--device", "cpu"],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "nano on row" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=d.HANG_S)
    assert run.returncode == 1 and "nibble bench serve: stopped" in err and "nibbled: stopped: " in err, err


def test_an_image_that_does_not_boot(tmp_path):
    (tmp_path / "x.nib").write_bytes(b"nothing")
    done = bench(tmp_path / "x.nib", *SMALL)
    assert done.returncode == 1 and "the daemon ended before it was ready, exit code 66" in done.stderr


@pytest.mark.parametrize("args,wanted", [
    ((), "name one image"),
    (("a", "b"), "one image, not 2"),
    (("a", "--socket", "b"), "name one image"),
    (("--shape", "none"), "no model shape"),
    (("a", "--clients", "0"), "whole numbers from 1 to 256"),
    (("a", "--clients", "1,257"), "whole numbers from 1 to 256"),
    (("a", "--clients", "2,2"), "must ascend"),
    (("a", "--clients", "1,2", "--requests", "1,2,3"), "3 numbers for 2 loads"),
    (("a", "--clients", "1,"), "with commas"),
    (("a", "--clients", "1.5"), "whole numbers"),
    (("a", "--clients", ",".join(map(str, range(1, 34)))), "1 to 32"),
    (("a", "--rates", "0"), "numbers from 0.001"),
    (("a", "--rates", "nan"), "numbers from 0.001"),
    (("a", "--rates", "1x"), "numbers from 0.001"),
    (("a", "--requests", "65537"), "1 to 65536"),
    (("a", "--requests", "0"), "1 to 65536"),
    (("a", "--prompt", "0"), "1 to 131072"),
    (("a", "--tokens", "131072"), "more than the 131072 of a context"),
    (("a", "--tokens", "60000", "--requests", "1000"), "more than the 16777216 tokens of one load"),
    (("a", "--temperature", "2.1"), "0 to 2"),
    (("a", "--seed", "-1"), "0 to 281474976710655"),
    (("a", "--beside", "131072"), "1 to 131071"),
    (("a", "--dense", "mxfp8"), "--dense is for --shape"),
    (("a", "--device", "tpu"), "auto, cpu and gpu"),
    (("a", "--frob"), "unrecognized option"),
])
def test_wrong_options(args, wanted):
    done = bench(*args)
    assert done.returncode == 2 and wanted in done.stderr and "usage: nibble bench serve" in done.stderr, done.stderr
    assert done.stdout == ""


def test_longer_than_the_daemons_context(nibbled):
    done = bench("--socket", nibbled.socket, "--prompt", "4000", "--tokens", "97")
    assert done.returncode == 1 and "more than the daemon's context of 4096" in done.stderr
    done = bench("--socket", nibbled.socket, "--beside", "4096")
    assert done.returncode == 1 and "4096 tokens beside are more than the daemon's context of 4096" in done.stderr


def test_a_file_that_cannot_be_written(image, tmp_path):
    done = bench(image, *SMALL, "--plot", tmp_path / "no" / "a.svg")
    assert done.returncode == 1 and "cannot write" in done.stderr and "clients" in done.stdout
