"""Prompts that begin as earlier ones: what is computed, what is answered, and who may profit from whom."""

import os
import subprocess
import threading

import pytest

import daemon as d
from agent import PAGE, SYSTEM, ask, cached, check_trace, render, text, trace
from gpu_test import H200, needs_rows
from load_test import AS_NOBODY, as_user, needs_root, open_to_all


def config(ctx=6144, **more):
    return {"engine": {"device": "cpu", "ctx_tokens": ctx, "slots": 2, "step_rows": 256, **more.pop("engine", {})}, **more}


def test_an_agent_s_turn_computes_what_is_new(start):
    """On the best CPU row; that every row gives the same bits behind known pages is tests/kernels/engine_test.c's."""
    requests = trace()
    assert len(requests) == 20
    warm, cold = start(**config()), start(**config(prefix={"reuse": "false"}))
    total, fed = check_trace(warm, cold, requests)
    assert fed * 5 < total
    m = warm.check_ledger()
    assert m["prompt_tokens_reused_total"] == total - fed and m["kv_pages_idle"] > 0
    m = cold.check_ledger()
    assert m["prompt_tokens_reused_total"] == 0 and m["kv_pages_idle"] == 0
    warm.stop()
    cold.stop()


def test_the_same_with_keys_and_values_in_fp8(start):
    warm, cold = start(**config(memory={"kv": "fp8"})), start(**config(memory={"kv": "fp8"}, prefix={"reuse": "false"}))
    total, fed = check_trace(warm, cold, trace()[:6])
    assert fed < total
    alone = ask(cold, trace()[2], temperature=1, seed=9, max_tokens=30)["choices"]
    many = [None] * 4

    def one(i):
        many[i] = ask(warm, trace()[2 if i else 5], temperature=1, seed=9, max_tokens=30)["choices"]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert many[1:] == [alone] * 3
    warm.check_ledger()
    warm.stop()
    cold.stop()


@needs_rows
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_the_same_on_the_gpu_s_stand_in(start, kv):
    memory = {"limit_mib": 1280, "kv": kv}
    warm = start(env=H200, memory=memory, **config(4096, engine={"device": "gpu"}))
    cold = start(env=H200, memory=memory, prefix={"reuse": "false"},
                 **config(4096, engine={"device": "gpu"}))
    check_trace(warm, cold, trace()[:3])
    warm.check_ledger()
    warm.stop()
    cold.stop()


def test_a_sampled_answer_with_penalties_is_the_same(start):
    """A repetition penalty counts prompt tokens: such a request computes all of them."""
    warm, cold = start(**config()), start(**config(prefix={"reuse": "false"}))
    messages = trace()[3]
    ask(warm, messages)
    sampled = {"temperature": 1, "seed": 5, "max_tokens": 20, "frequency_penalty": 0.5, "presence_penalty": 0.3}
    a, b = ask(warm, messages, **sampled), ask(cold, messages, **sampled)
    assert a["choices"] == b["choices"] and cached(a) > 0
    a, b = (ask(n, messages, **sampled, repetition_penalty=1.3) for n in (warm, cold))
    assert a["choices"] == b["choices"] and cached(a) == 0
    warm.stop()
    cold.stop()


def test_a_system_prompt_is_computed_once(start):
    nibbled = start(**config(4096))
    first = ask(nibbled, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "a question"}])
    other = ask(nibbled, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "something else"}])
    assert cached(first) == 0
    parts = len(render([{}, {"role": "user", "content": "something else"}]))
    assert other["usage"]["prompt_tokens"] - cached(other) <= parts + PAGE
    nibbled.check_ledger()
    nibbled.stop()


def test_agents_that_come_together_compute_their_system_prompt_once(start):
    """Eight conversations at once: the scheduler lets the others wait for the first one's pages."""
    nibbled = start(**config(2048, engine={"slots": 8}))
    lengths = []

    def agent(i):
        lengths.append(ask(nibbled, [{"role": "system", "content": SYSTEM},
                                     {"role": "user", "content": f"task {i}"}])["usage"]["prompt_tokens"])

    threads = [threading.Thread(target=agent, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    m = nibbled.check_ledger()
    own = len(render([{}, {"role": "user", "content": "task 0"}])) + PAGE
    assert m["rows_prompt_total"] <= max(lengths) + 7 * own + 16  # 16 of the self-test
    nibbled.stop()


def test_streams_and_completions_tell_what_was_cached(start):
    nibbled = start(**config(4096))
    body = {"prompt": text(40, "abc"), "max_tokens": 2}
    assert cached(nibbled.complete(**body).json) == 0
    longer = {**body, "prompt": body["prompt"] + " and more"}
    got = cached(nibbled.complete(**longer).json)
    assert got == len(body["prompt"]) // PAGE * PAGE
    answer = nibbled.complete(**longer, stream=True, stream_options={"include_usage": True})
    assert cached(answer.events[-1]) == (len(longer["prompt"]) - 1) // PAGE * PAGE
    nibbled.stop()


@needs_root
@pytest.mark.parametrize("share", [False, True])
def test_users_share_only_when_told(start, share):
    prefix = {"share": "true"} if share else {}
    nibbled = start(socket={"mode": "0666"}, prefix=prefix, **config(4096))
    open_to_all(nibbled)
    body = {"prompt": text(60, "secret"), "max_tokens": 1}
    assert cached(nibbled.complete(**body).json) == 0
    assert cached(nibbled.complete(**body).json) > 0
    status, other = as_user(nibbled, AS_NOBODY, body)
    assert status == 200 and (cached(other) > 0) == share
    assert cached(as_user(nibbled, AS_NOBODY, body)[1]) > 0
    nibbled.check_ledger()
    nibbled.stop()


def test_a_full_pool_evicts_and_answers_the_same(start):
    """More conversations than pages: every one is answered, as on a daemon that keeps nothing."""
    warm = start(**config(2048, engine={"slots": 1}))
    cold = start(**config(2048, engine={"slots": 1}, prefix={"reuse": "false"}))
    prompts = [text(60 + i, f"talk {i}") for i in range(10)]
    for turn in range(3):
        for i, prompt in enumerate(prompts):
            body = {"prompt": prompt + text(turn * 5, "on"), "max_tokens": 4, "temperature": 0, "logprobs": 2}
            assert warm.complete(**body).json["choices"] == cold.complete(**body).json["choices"]
    m = warm.check_ledger()
    assert m["kv_pages_evicted_total"] > 0 and m["kv_pages"] == 2048 // PAGE + 64 + 4
    warm.stop()
    cold.stop()


def test_many_at_once_and_gone_clients(start, endless):
    """Clients on one beginning, some of which leave in the middle: no page is lost, and answers stay the same."""
    nibbled = start(engine={"slots": 4, "ctx_tokens": 4096, "step_rows": 64}, limits={"queue": 32})
    beginning, results = text(100, "begin"), {}
    want = nibbled.complete(prompt=beginning + " 7", temperature=0, max_tokens=5).json["choices"]

    def client(i):
        if i % 3 == 0:
            s = nibbled.open_stream("/v1/completions", {"prompt": beginning + f" {i}", "max_tokens": 2000,
                                                        "stream": True, "logit_bias": endless})
            if i % 2:
                s.recv(1000)
            s.close()
        else:
            results[i] = nibbled.complete(prompt=beginning + " 7", temperature=0, max_tokens=5)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 16
    for r in results.values():
        assert r.status == 200 and r.json["choices"] == want and cached(r.json) > 0
    nibbled.check_ledger()
    nibbled.stop()


def test_the_bench_s_loads_do_not_find_each_other_s_prompts(nibbled):
    args = ("--prompt", "200", "--tokens", "2", "--requests", "6", "--clients", "1,2", "--socket", nibbled.socket)
    before = nibbled.metrics()["prompt_tokens_reused_total"]
    subprocess.run([d.NIBBLE, "bench", "serve", *args], check=True, capture_output=True, timeout=d.HANG_S)
    assert nibbled.metrics()["prompt_tokens_reused_total"] == before
    subprocess.run([d.NIBBLE, "bench", "serve", *args], check=True, capture_output=True, timeout=d.HANG_S)
    assert nibbled.metrics()["prompt_tokens_reused_total"] > before


@needs_rows
def test_a_copy_that_fails_ends_the_daemon_in_order(start):
    """The driver refuses a copy of window pages: the request gets an error, the daemon its exit code."""
    nibbled = start(env={**H200, "NIBBLED_FAKE_FAULT": "cuMemcpyDtoDAsync:1:700"}, memory={"limit_mib": 1280},
                    **config(4096, engine={"device": "gpu"}))
    answer = nibbled.complete(prompt=text(60, "x"), max_tokens=2)
    assert answer.status == 500 and answer.error["code"] == "engine_failed"
    assert nibbled.process.wait(d.HANG_S) == os.EX_SOFTWARE
    assert "cuMemcpyDtoDAsync" in nibbled.log.read_text()
