"""tools/demo/data.py, from which the demo model learns: its text is what the daemon renders, its answers are right, and what
is held out is never trained on."""

import calendar
import datetime
import itertools
import re
import sys

import pytest

import daemon as d

sys.path.insert(0, str(d.ROOT / "tools" / "demo"))
import data  # noqa: E402


@pytest.fixture(scope="module")
def shape(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    yield from d.lived(d.Daemon(folder, d.synth(folder, "demo")))


def take(count, *args):
    return list(itertools.islice(data.stream(*args), count))


def test_a_seed_gives_the_same_conversations():
    assert take(50, 3) == take(50, 3)
    assert take(50, 3) != take(50, 4)


def test_training_text_is_what_the_daemon_renders(shape):
    """data.py's prompt, as ids to /v1/completions, gives the very numbers that the chat request gives."""
    special, runs = d.specials(shape), {}

    def ids_of(text):
        ids = []
        for part in re.split(r"(<\|[a-z]+\|>)", text):
            if part and part not in special and part not in runs:
                runs[part] = shape.post("/tokenize", {"text": part}).json["tokens"]
            if part:
                ids += [special[part]] if part in special else runs[part]
        return ids

    compared, asked = 0, [c for c in data.held_out_questions(30, 7_000_002) if not c.date]
    assert {c.category for c in asked} >= {"call", "result", "followup"} and any("tools" in c.request for c in asked)
    for c in asked:
        more = {"temperature": 0, "max_tokens": 24}
        chat = shape.post("/v1/chat/completions", {**c.request, **more, "logprobs": True, "top_logprobs": 5}).json
        plain = shape.post("/v1/completions", {"prompt": ids_of(data.prompt_text(c)), **more, "logprobs": 5}).json
        assert chat["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"], data.prompt_text(c)
        theirs = [sorted(t.values(), reverse=True) for t in plain["choices"][0]["logprobs"]["top_logprobs"]]
        for token in (chat["choices"][0]["logprobs"] or {}).get("content") or []:
            assert sorted((t["logprob"] for t in token["top_logprobs"]), reverse=True) in theirs, data.prompt_text(c)
            compared += 1
    assert compared >= 10


def test_the_date_and_the_effort_are_rendered(start, tmp_path):
    one = next(c for c in data.held_out_questions(60, 7_000_003) if c.date)
    daemon = start(image=d.synth(tmp_path, "demo"), defaults={"date": f'"{one.date}"'})
    used = {}
    for effort in ("low", "high"):
        request = {**one.request, "reasoning_effort": effort, "max_tokens": 1}
        used[effort] = daemon.post("/v1/chat/completions", request).json["usage"]["prompt_tokens"]
        one.effort = effort
        plain = re.sub(r"<\|[a-z]+\|>", "\0", data.prompt_text(one)).encode()  # a byte a token in this vocabulary
        assert used[effort] == len(plain)
    assert used["high"] == used["low"] + 1


def check_sum(c):
    a, sign, b, result = re.fullmatch(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", c.final).groups()
    assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def check_bases(c):
    if m := re.fullmatch(r"(\w+) in (binary|hexadecimal) is (\d+) in decimal", c.final):
        text, name, n = m.groups()
    else:
        n, text, name = re.fullmatch(r"(\d+) in decimal is (\w+) in (binary|hexadecimal)", c.final).groups()
    assert int(text, {"binary": 2, "hexadecimal": 16}[name]) == int(n)


UNITS = {"km": 1000, "m": 1, "cm": 0.01, "mm": 0.001}  # those of length are enough to see a wrong factor


def check_units(c):
    a, one, b, other = re.fullmatch(r"(\d+) (\w+) = (\d+) (\w+)", c.final).groups()
    if one in UNITS and other in UNITS:
        assert abs(int(a) * UNITS[one] - int(b) * UNITS[other]) < 1e-6
    else:
        assert max(int(a), int(b)) % min(int(a), int(b)) == 0


def check_dates(c):
    if m := re.fullmatch(r"(\d{4}-\d\d-\d\d) is a (\w+)", c.final):
        assert datetime.date.fromisoformat(m[1]).strftime("%A") == m[2]
    elif m := re.fullmatch(r"(\d+) days? after (\d{4}-\d\d-\d\d) is (\S+)", c.final):
        assert datetime.date.fromisoformat(m[2]) + datetime.timedelta(int(m[1])) == datetime.date.fromisoformat(m[3])
    elif m := re.fullmatch(r"(Yes|No), (\d+) is (not )?a leap year", c.final):
        assert calendar.isleap(int(m[2])) == (m[1] == "Yes") == (m[3] is None)
    elif m := re.fullmatch(r"(\w+) (\d{4}) has (\d+) days", c.final):
        assert calendar.monthrange(int(m[2]), list(calendar.month_name).index(m[1]))[1] == int(m[3])
    else:
        n, way, day, result = re.fullmatch(r"(\d+) days? (after|before) (\w+) is (\w+)", c.final).groups()
        names = list(calendar.day_name)
        assert names[(names.index(day) + (int(n) if way == "after" else -int(n))) % 7] == result


def check_sort(c):
    items = c.final.split(", ")
    numbers = [int(x) for x in items] if items[0].isdigit() else items
    assert numbers in (sorted(numbers), sorted(numbers, reverse=True))
    asked = c.request["messages"][-1]["content"]
    assert all(x in asked for x in items)


@pytest.mark.parametrize("skill, check", [("add", check_sum), ("subtract", check_sum), ("bases", check_bases),
                                          ("units", check_units), ("dates", check_dates), ("sort", check_sort)])
def test_answers_are_right(skill, check):
    for c in take(400, 11, False, skill):
        check(c)
        if c.analysis and skill != "dates":  # the working ends with the answer, or says it
            assert c.analysis.rstrip(".").split()[-1].strip(".") in c.final or skill == "sort"


def test_words_are_spelled_and_counted():
    for c in take(300, 12, False, "reverse"):
        asked = re.findall(r"\w+", c.request["messages"][-1]["content"].upper())
        assert c.final[::-1] in asked, c
    for c in take(300, 13, False, "spell"):
        assert c.final.replace("-", "") in re.findall(r"\w+", c.request["messages"][-1]["content"].upper())


def test_nothing_held_out_is_trained_on():
    asked = data.held_out_questions(600)
    keys, texts = {c.key for c in asked}, {data.prompt_text(c) for c in asked}
    assert len(texts) == 600 and {c.category for c in asked} == set(data.CATEGORIES)
    for c in take(60_000, 14):
        assert c.key not in keys and data.prompt_text(c) not in texts
