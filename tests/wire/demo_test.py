"""The trained demo model through the real daemon: golden answers on every CPU row, and structure that the model really makes.

The rows are run in the release build when it is there: a sanitizer makes a whole answer slow, and what is compared is the
arithmetic of the rows."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest

import daemon as d
import golden

sys.path[:0] = [str(d.ROOT / "tools" / "demo"), str(d.ROOT / "tests" / "tools")]
import data  # noqa: E402
from terminal import Terminal  # noqa: E402

FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
RELEASE = d.BUILD.parent / "rel"


def rows_here():
    """CPU rows that this machine runs."""
    table = subprocess.run([d.NIBBLE, "arch"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in table.splitlines()
            if re.match(r"  (amx|avx512|avx2|ref) ", line) and line.rstrip().endswith("taken")]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    yield from d.lived(d.Daemon(tmp_path_factory.mktemp("demo"), golden.IMAGE))


def ask(daemon, content, **more):
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 400, **more}
    return daemon.post("/v1/chat/completions", body).json["choices"][0]


def check_golden(daemon, some):
    try:
        for g in some:
            assert golden.ask(daemon, g["request"]) == g["said"], g["request"]["messages"][-1]
        daemon.stop()
    finally:
        daemon.kill()


@pytest.mark.parametrize("row", rows_here())
def test_golden_answers(tmp_path, row, monkeypatch):
    if (RELEASE / "nibbled").exists():
        monkeypatch.setattr(d, "NIBBLED", RELEASE / "nibbled")
    answers = golden.load()
    assert len(answers) == 50
    check_golden(golden.start(tmp_path, row), answers[:10] if row == "ref" else answers)  # ref wrote the file, and is slow


@pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None, reason="no nvcc: this build has no GPU rows")
@pytest.mark.parametrize("row", golden.GPU_ROWS)
def test_golden_answers_on_the_stand_in(tmp_path, row):
    """Every twelfth only: the stand-in's kernels are plain C. golden.py asks all of them on a card."""
    env = {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / "h200.json")}
    check_golden(golden.start(tmp_path, row, env=env, memory={"limit_mib": 1280}), golden.load()[::12])


def test_reasoning_is_apart_from_the_answer(demo):
    choice = ask(demo, "What is 4718 + 3925?")
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "4718 + 3925 = 8643"
    assert "8+5+0=13" in choice["message"]["reasoning"]
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"]


def test_effort_changes_the_working(demo):
    lengths = [len(ask(demo, "What is 4718 + 3925?", reasoning_effort=e)["message"]["reasoning"]) for e in data.EFFORTS]
    assert lengths == sorted(lengths) and len(set(lengths)) == 3


def test_a_function_is_called_and_its_result_used(demo):
    tools = data.make_tools(random.Random(1), "get_time")
    choice = ask(demo, "What time is it in UTC?", tools=tools)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_time" and json.loads(call["function"]["arguments"]) == {"zone": "UTC"}
    messages = [{"role": "user", "content": "What time is it in UTC?"}, {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"],
                 "content": json.dumps({"zone": "UTC", "date": "2027-05-04", "time": "13:37"})}]
    choice = ask(demo, "", messages=messages, tools=tools)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "It is 13:37 UTC on 2027-05-04."


def test_a_stream_has_the_same_parts(demo):
    whole = ask(demo, "Reverse the word planet")["message"]
    body = {"messages": [{"role": "user", "content": "Reverse the word planet"}], "temperature": 0, "max_tokens": 400,
            "stream": True}
    deltas = [e["choices"][0]["delta"] for e in demo.post("/v1/chat/completions", body).events if e["choices"]]
    assert "".join(x.get("reasoning") or "" for x in deltas) == whole["reasoning"]
    assert "".join(x.get("content") or "" for x in deltas) == whole["content"]


def test_chat_demo_talks_and_leaves_nothing(tmp_path):
    """`nibble chat --demo`: three questions with a daemon of its own, which is gone afterwards."""
    before = set(pathlib.Path("/tmp").glob("nibble-demo-*"))
    done = subprocess.run([d.NIBBLE, "chat", "--demo"], cwd=d.ROOT, capture_output=True, text=True, timeout=d.HANG_S,
                          stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert "4718 + 3925 = 8643" in done.stdout and "8643 - 2600 = 6043" in done.stdout
    assert '[call] get_time {"zone": "UTC"}' in done.stdout and re.search(r"It is \d\d:\d\d UTC on \d{4}-", done.stdout)
    assert done.stderr.count("tokens/s") == 4 and "8+5+0=13" in done.stderr
    assert set(pathlib.Path("/tmp").glob("nibble-demo-*")) <= before


def test_chat_demo_answers_one_question():
    done = subprocess.run([d.NIBBLE, "chat", "--demo", "--quiet", "Sort 42, 7, 19"], cwd=d.ROOT, capture_output=True, text=True,
                          timeout=d.HANG_S)
    assert done.returncode == 0 and done.stdout == "7, 19, 42\n", done.stderr


def test_chat_demo_on_a_terminal_goes_on_with_the_prompt(monkeypatch):
    """Ctrl-C there drops the line and is not for the daemon."""
    monkeypatch.chdir(d.ROOT)
    t = Terminal([d.NIBBLE, "chat", "--demo"])
    try:
        t.wait_for("Ctrl-D ends.")
        t.wait_for("> ")  # what is typed before the line is read may be lost
        t.type("abandoned")
        t.wait_for("abandoned")
        t.type("\x03")
        t.wait_for("> ")
        t.type("Spell garden\n")
        t.wait_for("G-A-R-D-E-N")
        t.wait_for(" tokens/s, stop]")
        t.wait_for("> ")
        t.type("\x04")
        assert t.end() == 0
    finally:
        t.kill()


def test_chat_demo_without_its_image(tmp_path):
    if os.path.exists("/usr/local/share/nibbled/demo.nib"):
        pytest.skip("a demo is installed on this machine")
    done = subprocess.run([d.NIBBLE, "chat", "--demo"], cwd=tmp_path, capture_output=True, text=True, timeout=d.HANG_S)
    assert done.returncode == 1 and "there is no etc/demo/demo.nib or " in done.stderr, done.stderr


def test_chat_demo_whose_daemon_does_not_start(tmp_path):
    (tmp_path / "etc" / "demo").mkdir(parents=True)
    (tmp_path / "etc" / "demo" / "demo.nib").write_bytes(golden.IMAGE.read_bytes()[:100_000])
    done = subprocess.run([d.NIBBLE, "chat", "--demo"], cwd=tmp_path, capture_output=True, text=True, timeout=d.HANG_S)
    assert done.returncode == 1 and "nibbled did not start: " in done.stderr and "the image has 100000 bytes" in done.stderr
