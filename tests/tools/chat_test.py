"""`nibble chat` under a terminal and in a pipe: against a stand-in whose bytes are known, and against the daemon."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

from standin import END, HEAD, Standin, answer, content, event, reasoning, refusal
from terminal import HANG_S, Terminal

BUILD = pathlib.Path(os.environ.get("NIB_BUILD", "build/rel")).resolve()
NIBBLE = BUILD / "nibble"
NIBBLED = BUILD / "nibbled"
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
CLEAN = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "NIBBLED_SOCKET")}


@pytest.fixture
def standin(tmp_path):
    made = []

    def go(*answers):
        made.append(Standin(tmp_path / f"{len(made)}.sock", answers))
        return made[-1]

    yield go
    for s in made:
        s.close()


@pytest.fixture
def terminal():
    made = []

    def go(*args, **more):
        made.append(Terminal([NIBBLE, "chat", *args], **more))
        return made[-1]

    yield go
    for t in made:
        t.kill()


def piped(*args, stdin=b"", env=None):
    done = subprocess.run([NIBBLE, "chat", *map(str, args)], input=stdin, capture_output=True, timeout=HANG_S,
                          env={**CLEAN, **(env or {})})
    assert b"Sanitizer" not in done.stderr and b"runtime error" not in done.stderr, done.stderr
    return done


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


# One question

def test_question_on_a_terminal(standin, terminal):
    s = standin(answer(reasoning("Let me "), reasoning("think."), content("Blue "), content("sky.")))
    t = terminal("--socket", s.path, "Why?")
    assert t.end() == 0
    lines = t.shown.split("\n")
    assert lines[:3] == [f"{DIM}Let me think.{PLAIN}", "", "Blue sky."]
    assert lines[3].startswith(f"{DIM}[11 prompt tokens, first text after ") and lines[3].endswith(f", stop]{PLAIN}")
    assert lines[4:] == [""]
    assert s.asked == [{"messages": [user("Why?")], "stream": True, "stream_options": {"include_usage": True}}]


@pytest.mark.parametrize("args, env", [((), {"NO_COLOR": "1"}), (("--no-color",), {}), ((), {"TERM": "dumb"})])
def test_no_colours_when_told(standin, terminal, args, env):
    s = standin(answer(reasoning("Hm."), content("Yes.")))
    t = terminal("--socket", s.path, "Why?", *args, env=env)
    assert t.end() == 0
    assert t.shown.startswith("Hm.\n\nYes.\n[11 prompt tokens") and "\x1b" not in t.shown


def test_empty_no_color_means_colours(standin, terminal):
    s = standin(answer(reasoning("Hm."), content("Yes.")))
    t = terminal("--socket", s.path, "Why?", "--quiet", env={"NO_COLOR": ""})
    assert t.end() == 0
    assert t.shown == f"{DIM}Hm.{PLAIN}\n\nYes.\n"


def test_pipe_gets_the_answer_alone(standin):
    s = standin(answer(reasoning("Hm."), content("Yes."), reasoning("More?"), content("No.")))
    done = piped("--socket", s.path, "Why?", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Yes.\n\nNo.\n", b"Hm.\n\nMore?\n\n")


def test_file_gets_the_answer_and_the_terminal_the_reasoning(standin, terminal, tmp_path):
    s = standin(answer(reasoning("Hm."), content("Yes.")))
    with open(tmp_path / "out", "wb") as out:
        t = terminal("--socket", s.path, "Why?", "--quiet", stdout=out)
        assert t.end() == 0
    assert (tmp_path / "out").read_bytes() == b"Yes.\n"
    assert t.shown == f"{DIM}Hm.{PLAIN}\n\n"


def test_only_reasoning(standin, terminal):
    s = standin(answer(reasoning("Hm.")))
    t = terminal("--socket", s.path, "Why?", "--quiet")
    assert t.end() == 0
    assert t.shown == f"{DIM}Hm.{PLAIN}\n"


def test_answer_with_nothing_in_it(standin):
    s = standin([HEAD + b"data: [DONE]\n\n"])
    done = piped("--socket", s.path, "Why?")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"[stopped]\n")


def test_answer_that_ends_with_a_newline(standin):
    s = standin(answer(content("a\n"), content("b\n")))
    assert piped("--socket", s.path, "Why?").stdout == b"a\nb\n"


def test_tool_calls(standin, terminal):
    def call(index, **function):
        return event({"tool_calls": [{"index": index, "function": function}]})

    calls = (reasoning("Look."), call(0, name="get_weather", arguments=""), call(0, arguments='{"city":'),
             call(0, arguments='"Rome"}'), call(1, name="get_time", arguments="{}"))
    s = standin(answer(*calls))
    t = terminal("--socket", s.path, "Why?", "--quiet", "--no-color")
    assert t.end() == 0
    assert t.shown == 'Look.\n\n[call] get_weather {"city":"Rome"}\n[call] get_time {}\n'


def test_options_reach_the_request(standin):
    s = standin(answer(content("ok")))
    done = piped("--socket", s.path, "--effort", "high", "--system", "Be brief.", "--max-tokens", "77", "Hi")
    assert done.returncode == 0
    asked = s.asked[0]
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, user("Hi")]
    assert (asked["reasoning_effort"], asked["max_completion_tokens"]) == ("high", 77)


def test_socket_from_the_environment(standin):
    s = standin(answer(content("ok")))
    assert piped("Hi", env={"NIBBLED_SOCKET": s.path}).stdout == b"ok\n"


# What a stream may look like

def test_stream_split_at_every_byte(standin):
    stream = b": hello\r\n\r\n" + content("a\u00e9\u2028") + b"event: x\n" + content("z").replace(b"\n", b"\r\n")
    stream = (stream + END).replace(b"data: [DONE]", b"data:[DONE]")
    chunks = [b"%x\r\n%s\r\n" % (len(p), p) for p in (stream[i:i + 1] for i in range(len(stream)))]
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    cuts = range(1, len(stream))
    s = standin([head + b"".join(chunks) + b"0\r\n\r\n"], [HEAD] + [stream[i:i + 1] for i in range(len(stream))],
                *([HEAD + stream[:cut], stream[cut:]] for cut in cuts))
    want = "a\u00e9\u2028z\n".encode()
    assert piped("--socket", s.path, "Hi").stdout == want
    # one conversation: the stand-in answers each line with another cut
    done = piped("--socket", s.path, "--quiet", stdin=b"q\n/reset\n" * (1 + len(cuts)))
    assert done.returncode == 0 and done.stdout == want * (1 + len(cuts))
    assert not s.answers


CUT = "the answer broke off before its end"


@pytest.mark.parametrize("stream, why", [
    (content("Half an ans"), CUT),
    (content("Half an ans") + b"data: {\"choi", CUT),
    (content("Half an ans") + event(finish="stop"), CUT),
    (content("Half an ans") + b'data: {"error":{"message":"the engine failed"}}\n\n', "the engine failed"),
    (content("Half an ans") + b'data: {"error":"?"}\n\n', "the daemon gave the answer up"),
    (content("Half an ans") + b"data: nonsense\n\n", "the daemon sent an event that is no JSON object"),
    (content("Half an ans") + b"data: [1]\n\n", "the daemon sent an event that is no JSON object"),
    (content("Half an ans") + b'data: {"a":"\xff"}\n\n', "the daemon sent an event that is no JSON object"),
    (content("Half an ans") + b"data: \0\n\n", "the daemon sent an event that is no JSON object"),
    (content("Half an ans") + b"data: " + b"x" * (4 << 20), f"the daemon's answer has a part of more than {4 << 20} bytes"),
])
def test_broken_stream(standin, stream, why):
    s = standin([HEAD + stream])
    done = piped("--socket", s.path, "Hi")
    assert (done.returncode, done.stdout) == (1, b"Half an ans\n")
    assert done.stderr.decode() == f"nibble chat: {why}\n"


def test_chunked_stream_that_breaks(standin):
    part = content("Half")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    s = standin([head + b"%x\r\n%s\r\n" % (len(part), part)])
    done = piped("--socket", s.path, "Hi")
    assert done.returncode == 1 and done.stdout == b"Half\n"
    assert done.stderr.startswith(f"nibble chat: the connection to {s.path} broke: ".encode())
    assert done.stderr.count(b"\n") == 1


def test_no_http_at_all(standin):
    for said in (b"", b"hello\n"):
        done = piped("--socket", standin([said]).path, "Hi")
        assert done.returncode == 1 and done.stdout == b""
        assert b" broke: " in done.stderr and done.stderr.count(b"\n") == 1


def test_odd_shapes_are_passed_over(standin):
    odd = [{}, {"choices": None}, {"choices": []}, {"choices": [1]}, {"choices": [{"delta": "x"}]}, {"usage": 3},
           {"choices": [{"delta": {"content": 5, "reasoning_content": None, "tool_calls": [None, {"function": 1}]}}]}]
    s = standin([HEAD + b"".join(b"data: " + json.dumps(o).encode() + b"\n\n" for o in odd) + content("ok") + END])
    assert piped("--socket", s.path, "Hi").stdout == b"ok\n"


# Text that could steer a terminal

@pytest.mark.parametrize("said, shown", [
    ("a\x1b[31mred\x1b]0;title\x07b", "a\ufffd[31mred\ufffd]0;title\ufffdb"),
    ("a\x00b", "a\ufffdb"),
    ("tab\tline\nend", "tab\tline\nend"),
    ("crlf\r\nlone\rend", "crlf\nloneend"),
    ("\x7f \x08 \x0b \x0c", "\ufffd \ufffd \ufffd \ufffd"),
    ("csi\u009b31m osc\u009d0;x\u009c", "csi\ufffd31m osc\ufffd0;x\ufffd"),
    ("\u00a0\u00ad\u0300\u200d\U0001f600", "\u00a0\u00ad\u0300\u200d\U0001f600"),
])
def test_control_characters(standin, terminal, said, shown):
    s = standin(answer(reasoning(said), content(said)))
    t = terminal("--socket", s.path, "Hi", "--quiet", "--no-color")
    assert t.end() == 0
    assert t.shown == shown + "\n\n" + shown + "\n"
    call = event({"tool_calls": [{"index": 0, "function": {"name": said, "arguments": said}}]})
    s = standin(answer(call))
    done = piped("--socket", s.path, "Hi")
    assert done.stdout.decode() == f"[call] {shown} {shown}\n"


def test_every_control_character(standin):
    controls = [chr(c) for c in [*range(0x20), *range(0x7f, 0xa0)] if chr(c) not in "\t\n\r"]
    s = standin(answer(content("".join(controls))))
    assert piped("--socket", s.path, "Hi").stdout.decode() == "\ufffd" * len(controls) + "\n"


def test_control_characters_in_a_refusal(standin):
    s = standin(refusal(400, {"error": {"message": "no \x1b[2Jscreen\u009b"}}))
    assert piped("--socket", s.path, "Hi").stderr.decode() == "nibble chat: no \ufffd[2Jscreen\ufffd (status 400)\n"


# Refusals

@pytest.mark.parametrize("status, body, sentence", [
    (429, {"error": {"message": "the queue of 3 is full"}}, "the queue of 3 is full (status 429)"),
    (503, b"no json", "the daemon refused (status 503)"),
    (500, b"", "the daemon refused (status 500)"),
    (404, {"error": "x"}, "the daemon refused (status 404)"),
    (400, b'{"error":{"message":"\xff"}}', "the daemon refused (status 400)"),
    (302, {"error": {"message": "elsewhere"}}, "elsewhere (status 302)"),
])
def test_refused(standin, status, body, sentence):
    done = piped("--socket", standin(refusal(status, body)).path, "Hi")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", f"nibble chat: {sentence}\n")


@pytest.mark.parametrize("args", [(), ("Hi",)])
def test_no_daemon(tmp_path, args):
    path = tmp_path / "none.sock"
    want = f"nibble chat: no nibbled answers on {path}; is it running, and may this user connect?\n"
    done = piped("--socket", path, *args)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", want)
    with socket.socket(socket.AF_UNIX) as stale:  # a socket file that nobody listens on
        stale.bind(str(path))
    assert piped("--socket", path, *args).stderr.decode() == want


def test_socket_path_too_long():
    done = piped("--socket", "/" + "x" * 107, "Hi")
    assert (done.returncode, done.stderr) == (1, b"nibble chat: the socket's path has 108 bytes, allowed are 107\n")


@pytest.mark.parametrize("args, sentence", [
    (("--effort", "huge"), "effort is low, medium or high"),
    (("--max-tokens", "0"), '--max-tokens is "0"; allowed are 1 to 131072'),
    (("--max-tokens", "131073"), '--max-tokens is "131073"; allowed are 1 to 131072'),
    (("--max-tokens", "7x"), '--max-tokens is "7x"; allowed are 1 to 131072'),
    (("one", "two"), "more than one question; put it in quotes"),
    (("--system", b"\xff", "Hi"), "the instructions are not UTF-8 text"),
    (("--nonsense",), "unrecognized option '--nonsense'"),
])
def test_wrong_usage(args, sentence):
    done = subprocess.run([NIBBLE, "chat", *args], capture_output=True, text=True, timeout=HANG_S)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 2, "")
    assert lines[0].endswith(sentence) and lines[1].startswith("usage: nibble chat ")


def test_question_that_is_no_utf8(standin):
    s = standin()
    done = subprocess.run([NIBBLE, "chat", "--socket", s.path, b"a\xffb"], capture_output=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (1, b"nibble chat: the question is not UTF-8 text\n")
    assert s.asked == []


# A conversation

HELLO = "standin: context of 4096 tokens, 2 at once, 3 waiting"


def start(terminal, s, *args, **more):
    t = terminal("--socket", s.path, "--no-color", "--quiet", *args, **more)
    t.wait_for(HELLO)
    t.wait_for("Ctrl-D ends.")
    t.wait_for("> ")
    return t


def ask(t, text, wanted):
    t.type(text + "\n")
    t.wait_for(wanted)
    t.wait_for("> ")


def test_conversation(standin, terminal):
    s = standin(answer(reasoning("thought"), content("One.")), answer(content("Two.")), answer(content("Three.")))
    t = start(terminal, s)
    ask(t, "first", "One.")
    ask(t, "second \u00e9\u4e2d", "Two.")
    ask(t, "/reset", "the conversation is empty")
    ask(t, "third", "Three.")
    t.type("\x04")
    assert t.end() == 0
    assert [a["messages"] for a in s.asked] == [
        [user("first")],
        [user("first"), assistant("One."), user("second \u00e9\u4e2d")],
        [user("third")],
    ]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "no_such_locale"])
def test_lines_are_utf8_in_every_locale(standin, terminal, locale):
    s = standin(answer(content("ok")))
    t = start(terminal, s, env={"LC_ALL": locale})
    t.type(b"\xff\xc3")  # what is no UTF-8 is passed over
    ask(t, "\u00e9\U0001f600!", "ok")
    t.type("\x04")
    assert t.end() == 0
    assert s.asked[0]["messages"] == [user("\u00e9\U0001f600!")]


def test_history_and_editing(standin, terminal):
    s = standin(answer(content("A.")), answer(content("B.")))
    t = start(terminal, s)
    ask(t, "abc", "A.")
    t.type("\x1b[A")  # up: the line before
    t.type("\x7fd\x01X")  # erase a character, type one, go to the beginning
    ask(t, "", "B.")
    t.type("\x04")
    assert t.end() == 0
    assert s.asked[1]["messages"][-1] == user("Xabd")


def test_commands(standin, terminal):
    s = standin(answer(content("A.")), answer(content("B.")))
    t = start(terminal, s)
    ask(t, "/help", "Ctrl-C stops an answer")
    for name in ("/effort low|medium|high", "/system TEXT", "/reset", "/models", "/help", "/quit"):
        assert name.encode() in t.text
    ask(t, "/effort high", "effort is high")
    ask(t, "/effort huge", "effort is low, medium or high")
    ask(t, "/system Be brief.", "the instructions are set")
    ask(t, "/models", HELLO)
    ask(t, "one", "A.")
    ask(t, "/system", "there are no instructions")
    ask(t, "/effort low", "effort is low")
    ask(t, "two", "B.")
    for wrong in ("/", "/quitt", "/qui", "/reset now", "/systemx", "/nonsense"):
        ask(t, wrong, f'there is no command "{wrong}"; /help lists them')
    t.type("/quit\n")
    assert t.end() == 0
    assert [a.get("reasoning_effort") for a in s.asked] == ["high", "low"]
    assert s.asked[0]["messages"] == [{"role": "system", "content": "Be brief."}, user("one")]
    assert s.asked[1]["messages"] == [user("one"), assistant("A."), user("two")]


def test_refused_question_is_taken_back(standin, terminal):
    s = standin(refusal(429, {"error": {"message": "the queue of 3 is full"}}), [HEAD + content("Half")],
                answer(content("ok")))
    t = start(terminal, s)
    ask(t, "one", "the queue of 3 is full (status 429)\r\n")
    ask(t, "two", "Half\r\nthe answer broke off before its end\r\n")
    ask(t, "three", "ok")
    t.type("\x04")
    assert t.end() == 0
    assert [a["messages"] for a in s.asked] == [[user("one")], [user("two")], [user("three")]]


def test_nul_does_not_come_back(standin, terminal):
    s = standin(answer(content("a\0b\x1bc")), answer(content("ok")))
    t = start(terminal, s)
    ask(t, "one", "a\ufffdb\ufffdc")
    ask(t, "two", "ok")
    t.type("\x04")
    assert t.end() == 0
    assert s.asked[1]["messages"][1] == assistant("ab\x1bc")


class Hold:
    """A piece of an answer that waits until the client hangs up."""

    def __init__(self):
        self.gone = threading.Event()

    def __call__(self, conn):
        conn.settimeout(HANG_S)
        assert conn.recv(1) == b""
        self.gone.set()


def test_interrupt_stops_the_answer(standin, terminal):
    hold = Hold()
    s = standin([HEAD + reasoning("Hm.") + content("Half an"), hold], answer(content("Whole.")))
    t = start(terminal, s)
    t.type("one\n")
    t.wait_for("Half an")
    t.type("\x03")
    t.wait_for("> ")
    assert hold.gone.wait(HANG_S)
    ask(t, "two", "Whole.")
    t.type("\x04")
    assert t.end() == 0
    assert s.asked[1]["messages"] == [user("one"), assistant("Half an"), user("two")]


def test_interrupt_before_the_first_text(standin, terminal):
    hold = Hold()
    s = standin([hold], answer(content("Whole.")))
    t = start(terminal, s)
    t.type("one\n")
    while not s.asked:
        time.sleep(0.01)
    t.type("\x03")
    assert hold.gone.wait(HANG_S)
    t.wait_for("> ")
    ask(t, "two", "Whole.")
    t.type("\x04")
    assert t.end() == 0


def test_interrupt_drops_the_line(standin, terminal):
    s = standin(answer(content("ok")))
    t = start(terminal, s)
    for half in ("abandoned", "", "again"):
        t.type(half)
        t.wait_for(half)
        t.type("\x03")
        t.wait_for("> ")
    ask(t, "kept", "ok")
    t.type("\x04")
    assert t.end() == 0
    assert s.asked[0]["messages"] == [user("kept")]


def test_interrupt_of_one_question(standin, terminal):
    hold = Hold()
    s = standin([HEAD + reasoning("Hm"), hold])
    t = terminal("--socket", s.path, "Hi")
    t.wait_for("Hm")
    t.type("\x03")
    assert t.end() == 1
    assert hold.gone.wait(HANG_S)
    lines = t.shown.split("\n")
    assert lines[0] in (f"{DIM}Hm^C{PLAIN}", f"{DIM}Hm{PLAIN}")
    assert lines[1].startswith(f"{DIM}[first text after ") and lines[1].endswith(f"stopped]{PLAIN}")


def test_lines_from_a_pipe(standin):
    s = standin(answer(content("A.")), answer(content("B.")))
    done = piped("--socket", s.path, "--quiet", stdin="one\n\n/effort low\ntwo \u00e9".encode())
    assert (done.returncode, done.stdout) == (0, b"A.\nB.\n")
    assert s.asked[1]["messages"][-1] == user("two \u00e9") and s.asked[1]["reasoning_effort"] == "low"


# The daemon itself

@pytest.fixture(scope="module")
def nibbled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nibbled")
    subprocess.run([NIBBLE, "synth", "nano", folder / "nano.nib"], check=True, stdout=subprocess.DEVNULL)
    path = folder / "n.sock"
    (folder / "config.yaml").write_text(f"image:\n  path: {folder}/nano.nib\nsocket:\n  path: {path}\n"
                                        "engine:\n  ctx_tokens: 2048\n  threads: 1\n")
    log = open(folder / "log", "wb")
    process = subprocess.Popen([NIBBLED, "--config", folder / "config.yaml"], stderr=log)
    try:
        end = time.monotonic() + HANG_S
        while piped("--socket", path, stdin=b"/models\n").returncode:
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield path
        process.send_signal(signal.SIGTERM)
        assert process.wait(HANG_S) == 0, (folder / "log").read_text()
        assert "Sanitizer" not in (folder / "log").read_text()
    finally:
        process.kill()
        log.close()


def test_daemon_answers_a_question(nibbled):
    done = piped("--socket", nibbled, "--max-tokens", "24", "Hello")
    assert done.returncode == 0, done.stderr
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("[") and " prompt tokens, first text after " in last and " tokens at " in last
    assert last.endswith((", length]", ", stop]"))
    assert done.stdout or len(done.stderr.splitlines()) > 1


def test_daemon_holds_a_conversation(nibbled, terminal):
    t = terminal("--socket", nibbled, "--max-tokens", "16")
    t.wait_for("nano: context of 2048 tokens")
    t.wait_for("> ")
    prompts = []
    for question in ("one", "two", "three"):
        t.type(question + "\n")
        t.wait_for(f"{DIM}[")
        prompts.append(int(t.wait_for(" prompt tokens, ")))
        t.wait_for("> ")
    assert prompts == sorted(set(prompts))  # each holds the ones before
    t.type("x " * 3000 + "\n")
    refused = t.wait_for("(status 400)")
    assert b"2048" in refused
    t.wait_for("> ")
    t.type("/effort high\n")
    t.wait_for("effort is high")
    t.type("four\n")
    t.wait_for("prompt tokens, ")
    t.wait_for("> ")
    t.type("\x04")
    assert t.end() == 0
