"""Speculative decoding by prompt lookup: answers are those of plain decoding, whatever was guessed; and it stops by itself."""

import threading

import pytest

import daemon as d
import golden
from gpu_test import H200, needs_rows
from repeat import FEW, ON, check, same

def config(**more):
    return {"engine": {"device": "cpu", "ctx_tokens": 2048, "slots": 4, **more.pop("engine", {})}, **more}


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_answers_are_the_same(start, endless, reuse):
    off, on = start(**config(prefix={"reuse": reuse})), start(**config(prefix={"reuse": reuse}, **ON))
    check(off, on, endless)
    off.stop()
    assert "lookup: up to 15 guessed tokens of an answer in a step, 18 of all answers" in on.stop()


@needs_rows
def test_answers_are_the_same_on_the_gpu_s_stand_in(start, endless):
    small = {"memory": {"limit_mib": 1280}, "env": H200}
    off = start(**small, **config(engine={"device": "gpu"}))
    on = start(**small, **config(engine={"device": "gpu"}, **ON))
    check(off, on, endless)
    off.stop()
    assert "lookup: up to 3 guessed tokens of an answer in a step" in on.stop()


@needs_rows
def test_one_slot_of_a_gpu_has_no_room(start):
    gpu = start(memory={"limit_mib": 1280}, env=H200, **config(engine={"device": "gpu", "slots": 1}, **ON))
    assert gpu.complete("abc" * 20, max_tokens=30, temperature=0).status == 200
    assert gpu.metrics()["draft_tokens_total"] == 0
    assert "lookup.draft_tokens is 15 and has no effect" in gpu.stop()


def test_answers_side_by_side_are_the_same(start, endless):
    off, on = start(**config()), start(**config(**ON))
    bodies = [{"prompt": "ab" * (1 + i), "max_tokens": 100, "temperature": 1, "seed": i,
               "logit_bias": {**endless, **FEW}, "logprobs": 1} for i in range(8)]
    wanted = [off.post("/v1/completions", b).json["choices"] for b in bodies]
    got = [None] * len(bodies)

    def ask(i):
        got[i] = on.post("/v1/completions", bodies[i]).json["choices"]

    for _ in range(3):
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert got == wanted
    assert on.check_ledger()["draft_accepted_total"] > 0
    off.stop()
    on.stop()


def test_a_stream_is_the_same(start, endless):
    off, on = start(**config()), start(**config(**ON))
    body = {"prompt": "ab" * 9, "max_tokens": 200, "temperature": 1, "seed": 1, "stream": True, "logprobs": 2,
            "logit_bias": {**endless, **FEW}}
    told = []
    for nibbled in (off, on):
        choices = [c for e in nibbled.post("/v1/completions", body).events for c in e["choices"]]
        text = "".join(c["text"] for c in choices)
        probs = [p for c in choices if c.get("logprobs") for p in c["logprobs"]["token_logprobs"]]
        told.append((text, probs, choices[-1]["finish_reason"]))
    assert told[0] == told[1] and len(told[0][1]) == 200
    assert on.check_ledger()["draft_accepted_total"] > 0
    off.stop()
    on.stop()


def test_guesses_that_fail_end(start, endless):
    """Drawn evenly from all bytes, what came before says nothing of what comes."""
    nibbled = start(**config(**ON))
    for seed in range(3):
        nibbled.post("/v1/completions", {"prompt": "x", "max_tokens": 1500, "temperature": 2, "seed": seed,
                                         "logit_bias": endless})
    m = nibbled.check_ledger()
    assert m["tokens_total"] > 4500 and m["draft_tokens_total"] < 450
    nibbled.stop()


def test_the_demo_answers_the_same(tmp_path):
    """Harmony, reasoning, calls and all."""
    some = golden.load()[:25]
    off, on = (d.Daemon(tmp_path / name, golden.IMAGE, **config(**more)) for name, more in (("off", {}), ("on", ON)))
    try:
        for i, g in enumerate(some):
            same(off, on, "/v1/chat/completions", {**g["request"], "logprobs": True, "top_logprobs": 2})
            same(off, on, "/v1/chat/completions", {**g["request"], "temperature": 1, "seed": i})
        assert on.check_ledger()["draft_accepted_total"] > 0
        off.stop()
        on.stop()
    finally:
        off.kill()
        on.kill()
